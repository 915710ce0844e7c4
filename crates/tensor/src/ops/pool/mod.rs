//! Pooling over channels-last images.

mod cpu;

use phalanx_host::DType;

use crate::op::{Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// The most rows or columns of a window: places are counted in single precision too.
const MOST: usize = 1 << 11;

/// The largest number of each window of `[N, H, W, C]`.
#[derive(Debug, Clone, Copy)]
struct MaxPool2d {
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
}

impl MaxPool2d {
    /// Rows and columns of the output.
    fn out(&self, x: Shape) -> Result<[usize; 2]> {
        let refuse = |why: String| Error::Invalid { op: "max_pool2d", shape: x, why };
        let mut out = [0; 2];
        for (axis, out) in out.iter_mut().enumerate() {
            let (k, s, p) = (self.kernel[axis], self.stride[axis], self.padding[axis]);
            if k == 0 || s == 0 || k > MOST {
                return Err(refuse(format!(
                    "kernel and stride must be at least 1, the kernel at most {MOST}"
                )));
            }
            // Otherwise a window could lie in the padding alone and have no largest number.
            if p > k / 2 {
                return Err(refuse(format!("padding {p} is more than half of the kernel {k}")));
            }
            let size = x[axis + 1];
            let room = (size + 2 * p).checked_sub(k);
            let room =
                room.ok_or_else(|| refuse(format!("a window of {k} is larger than {size} padded by {p}")))?;
            *out = room / s + 1;
        }
        Ok(out)
    }

    fn windows(&self, x: Shape, out: [usize; 2]) -> cpu::Windows {
        cpu::Windows {
            image: [x[1], x[2]],
            channels: x[3],
            out,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
        }
    }

    /// The type of the saved places in a window.
    fn places(&self) -> DType {
        if self.kernel[0] * self.kernel[1] <= 256 { DType::U8 } else { DType::I64 }
    }
}

macro_rules! place {
    ($dtype:expr, $p:ident => $body:expr) => {
        match $dtype {
            DType::U8 => {
                type $p = u8;
                $body
            }
            _ => {
                type $p = i64;
                $body
            }
        }
    };
}

impl Op for MaxPool2d {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real("max_pool2d", inputs, 0)?;
        ops::want_axes("max_pool2d", inputs, 4, "images [N,H,W,C]")?;
        let x = inputs[0].shape();
        let [h, w] = self.out(x)?;
        let shape = Shape::from([x[0], h, w, x[3]]);
        Ok(Plan::one(inputs[0].dtype, shape).saving(self.places(), shape).dense(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let y = &mut outs[0];
        let windows = self.windows(ins[0].shape(), [y.shape[1], y.shape[2]]);
        ops::real!("max_pool2d", ins[0].dtype, T => place!(self.places(), P => {
            cpu::max::<T, P>(cpu, &windows, ins[0].slice()?, y.slice()?, saved[0].slice()?);
            Ok(())
        }))
    }

    fn backward(&self, cx: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let cpu = cx.cpu()?;
        let windows = self.windows(saved.metas[0].shape(), [g.shape()[1], g.shape()[2]]);
        let g = g.contiguous()?;
        let (places, dtype, g) = (saved.extra[0].read()?, g.dtype(), g.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!("max_pool2d", dtype, T => place!(self.places(), P => {
            cpu::max_gradient::<T, P>(cpu, &windows, g.slice()?, places.slice()?, slot.slice()?, accumulate);
            Ok(())
        }))
    }
}

impl Tensor {
    /// The largest number of each window of images `[N, H, W, C]`. `kernel`, `stride` and `padding` are
    /// height, width; a kernel has at most 2048 rows and columns; padding counts as −∞ and is at most half
    /// of the kernel; a rest that fills no
    /// window is left out. Not a number wins; the gradient goes to the first of equal numbers.
    pub fn max_pool2d(&self, kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> Result<Tensor> {
        apply_one(MaxPool2d { kernel, stride, padding }, &[self])
    }
}
