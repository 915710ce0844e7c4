//! Locally connected images: as a convolution, but each output pixel has a weight of its own.

use phalanx_host::simd::Real;
use phalanx_host::{Cpu, Mat, MatMut, gemm};

use super::{Conv, gradients};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

const NAME: &str = "locally_connected2d";

/// `[N, H, W, C]` with `[OH · OW, KH · KW · C, F]` and, as a third operand, a bias `[OH, OW, F]`.
#[derive(Debug)]
pub(super) struct LocallyConnected {
    kernel: [usize; 2],
    stride: [usize; 2],
}

/// The sizes of one call.
pub(super) struct Sizes {
    pub(super) batch: usize,
    /// A row of an image, and a pixel.
    pub(super) row: usize,
    pub(super) pixel: usize,
    pub(super) image: usize,
    pub(super) out: [usize; 2],
    pub(super) filters: usize,
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
}

impl Sizes {
    /// Numbers that a window takes from one row of an image.
    fn run(&self) -> usize {
        self.kernel[1] * self.pixel
    }

    /// Calls `f(output, input, weight)` with where each row of each window begins, in the first image.
    fn each(&self, mut f: impl FnMut(usize, usize, usize) -> Result<()>) -> Result<()> {
        let [down, across] = self.stride;
        for p in 0..self.out[0] * self.out[1] {
            let (y, x) = (p / self.out[1], p % self.out[1]);
            for k in 0..self.kernel[0] {
                let input = (y * down + k) * self.row + x * across * self.pixel;
                f(p * self.filters, input, (p * self.kernel[0] + k) * self.run() * self.filters)?;
            }
        }
        Ok(())
    }

    /// What the windows at one place take from a row of each image, from number `at` on.
    fn windows<'a, T>(&self, x: &'a [T], at: usize) -> Result<Mat<'a, T>> {
        Ok(Mat::new(&x[at..], self.batch, self.run(), self.image, 1)?)
    }

    /// One output pixel of each image, from number `at` on.
    fn outputs<'a, T>(&self, y: &'a [T], at: usize) -> Result<Mat<'a, T>> {
        let image = self.out[0] * self.out[1] * self.filters;
        Ok(Mat::new(&y[at..], self.batch, self.filters, image, 1)?)
    }

    fn weight<'a, T>(&self, w: &'a [T], at: usize) -> Result<Mat<'a, T>> {
        Ok(Mat::new(&w[at..], self.run(), self.filters, self.filters, 1)?)
    }

    fn forward<T: Real>(&self, cpu: &Cpu, x: &[T], w: &[T], bias: Option<&[T]>, y: &mut [T]) -> Result<()> {
        let image = self.out[0] * self.out[1] * self.filters;
        match bias {
            Some(b) => y.chunks_exact_mut(image.max(1)).for_each(|y| y.copy_from_slice(b)),
            None => y.fill(T::ZERO),
        }
        if y.is_empty() {
            return Ok(());
        }
        self.each(|o, i, k| {
            let c = MatMut::new(&mut y[o..], self.batch, self.filters, image, 1)?;
            Ok(gemm(cpu, self.windows(x, i)?, self.weight(w, k)?, c, true)?)
        })
    }

    fn weight_gradient<T: Real>(
        &self,
        cpu: &Cpu,
        x: &[T],
        dy: &[T],
        dw: &mut [T],
        accumulate: bool,
    ) -> Result<()> {
        if !accumulate && dy.is_empty() {
            dw.fill(T::ZERO);
        }
        if dw.is_empty() || dy.is_empty() {
            return Ok(());
        }
        self.each(|o, i, k| {
            let c = MatMut::new(&mut dw[k..], self.run(), self.filters, self.filters, 1)?;
            Ok(gemm(cpu, self.windows(x, i)?.t(), self.outputs(dy, o)?, c, accumulate)?)
        })
    }

    fn input_gradient<T: Real>(
        &self,
        cpu: &Cpu,
        w: &[T],
        dy: &[T],
        dx: &mut [T],
        accumulate: bool,
    ) -> Result<()> {
        if !accumulate {
            dx.fill(T::ZERO);
        }
        if dx.is_empty() || dy.is_empty() {
            return Ok(());
        }
        self.each(|o, i, k| {
            let c = MatMut::new(&mut dx[i..], self.batch, self.run(), self.image, 1)?;
            Ok(gemm(cpu, self.outputs(dy, o)?, self.weight(w, k)?.t(), c, true)?)
        })
    }
}

impl LocallyConnected {
    pub(super) fn sizes(&self, x: Shape, w: Shape) -> Result<Sizes> {
        let misfit = |hint| Error::Shapes { op: NAME, lhs: x, rhs: w, hint };
        let (&[batch, h, width, c], &[places, numbers, filters]) = (&x[..], &w[..]) else {
            return Err(misfit("it takes images [N,H,W,C] and a weight [OH*OW,KH*KW*C,F]"));
        };
        let (kernel, stride) = (self.kernel, self.stride);
        let windows = Conv::new().stride(&stride).sizes([batch, c, filters], &[h, width], &kernel);
        let windows = windows.map_err(|why| Error::Invalid { op: NAME, shape: x, why })?;
        let [_, down, across] = windows.out_size()?;
        let out = [down, across];
        if places != out[0] * out[1] || numbers != kernel[0] * kernel[1] * c {
            return Err(misfit("a weight [OH*OW,KH*KW*C,F] has a matrix for each output pixel"));
        }
        Ok(Sizes { batch, row: width * c, pixel: c, image: h * width * c, out, filters, kernel, stride })
    }
}

impl Op for LocallyConnected {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(NAME, inputs, 0)?;
        (1..inputs.len()).try_for_each(|i| ops::want_same(NAME, inputs, i))?;
        let s = self.sizes(inputs[0].shape(), inputs[1].shape())?;
        let [h, w] = s.out;
        if inputs.len() == 3 {
            let hint = "the bias has a number for each number of an output image [OH,OW,F]";
            ops::want_shape(NAME, inputs, 2, [h, w, s.filters].into(), hint)?;
        }
        let shape = [s.batch, h, w, s.filters].into();
        Ok(Plan::one(inputs[0].dtype, shape).saving_inputs(3).dense(7))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let s = self.sizes(ins[0].shape(), ins[1].shape())?;
        ops::real!(NAME, ins[0].dtype, T => {
            let bias = ins.get(2).map(View::slice::<T>).transpose()?;
            s.forward(cx.cpu()?, ins[0].slice()?, ins[1].slice()?, bias, outs[0].slice()?)
        })
    }

    fn backward(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let cpu = cx.cpu()?;
        let (x, w) = (saved.input(0)?, saved.input(1)?);
        let s = self.sizes(x.shape(), w.shape())?;
        let g = g.contiguous()?;
        ops::real!(NAME, g.dtype(), T => {
            let g = g.read()?;
            let g = g.slice::<T>()?;
            let of_weight = |to: &mut [T], add| s.weight_gradient(cpu, x.read()?.slice()?, g, to, add);
            let of_input = |to: &mut [T], add| s.input_gradient(cpu, w.read()?.slice()?, g, to, add);
            gradients(cpu, g, sink, of_weight, of_input)
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }
}

impl Tensor {
    /// As a convolution of images `[N, H, W, C]` without padding, but with a weight for each output pixel: `w`
    /// `[OH · OW, KH · KW · C, F]`, plus `bias` `[OH, OW, F]`, gives `[N, OH, OW, F]`. `kernel` and `stride` are
    /// height, width (Keras' `LocallyConnected2D` of implementation 1).
    pub fn locally_connected2d(
        &self,
        w: &Tensor,
        bias: Option<&Tensor>,
        kernel: [usize; 2],
        stride: [usize; 2],
    ) -> Result<Tensor> {
        let op = LocallyConnected { kernel, stride };
        match bias {
            Some(b) => apply_one(op, &[self, w, b]),
            None => apply_one(op, &[self, w]),
        }
    }
}
