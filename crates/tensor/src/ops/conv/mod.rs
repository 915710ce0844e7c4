//! Convolution over channels-last images, through the host's kernels.

use phalanx_host::{ConvShape, conv2d_forward, conv2d_input_gradient, conv2d_weight_gradient};

use crate::op::{Exec, Meta, Op, Plan, Saved};
use crate::ops::columns::add_column_sums;
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// Cross-correlation of `[N, H, W, I]` with `[O, KH, KW, I]`, plus a bias `[O]` as a third operand.
#[derive(Debug)]
struct Conv2d {
    stride: [usize; 2],
    padding: [usize; 2],
}

impl Conv2d {
    fn shape(&self, x: Shape, w: Shape) -> ConvShape {
        ConvShape::new([x[0], x[1], x[2], x[3]], w[0], [w[1], w[2]])
            .with_stride(self.stride)
            .with_padding(self.padding)
    }
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real("conv2d", inputs, 0)?;
        (1..inputs.len()).try_for_each(|i| ops::want_same("conv2d", inputs, i))?;
        let (x, w) = (inputs[0].shape(), inputs[1].shape());
        if x.len() != 4 || w.len() != 4 || x[3] != w[3] {
            let hint = "it takes images [N,H,W,I] and a weight [O,KH,KW,I] with the same I";
            return Err(Error::Shapes { op: "conv2d", lhs: x, rhs: w, hint });
        }
        if inputs.len() == 3 {
            ops::want_shape(
                "conv2d",
                inputs,
                2,
                [w[0]].into(),
                "the bias has one number a row of the weight",
            )?;
        }
        let shape = self.shape(x, w);
        let refuse = |e: phalanx_host::Error| Error::Invalid { op: "conv2d", shape: x, why: e.to_string() };
        let (h, v) = (shape.out_h().map_err(refuse)?, shape.out_w().map_err(refuse)?);
        Ok(Plan::one(inputs[0].dtype, [x[0], h, v, w[0]].into()).saving_inputs(3).dense(7))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let shape = self.shape(ins[0].shape(), ins[1].shape());
        ops::real!("conv2d", ins[0].dtype, T => {
            let bias = ins.get(2).map(View::slice::<T>).transpose()?;
            Ok(conv2d_forward(cpu, &shape, ins[0].slice()?, ins[1].slice()?, bias, outs[0].slice()?)?)
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
        let shape = self.shape(x.shape(), w.shape());
        let g = g.contiguous()?;
        ops::real!("conv2d", g.dtype(), T => {
            let g = g.read()?;
            let g = g.slice::<T>()?;
            if let Some(mut slot) = sink.slot(2)? {
                let accumulate = slot.accumulate();
                add_column_sums(cpu, g, slot.slice()?, accumulate);
            }
            sink.settle(2)?;
            if let Some(mut slot) = sink.slot(1)? {
                let accumulate = slot.accumulate();
                conv2d_weight_gradient(cpu, &shape, x.read()?.slice()?, g, slot.slice()?, accumulate)?;
            }
            sink.settle(1)?;
            drop(x);
            if let Some(mut slot) = sink.slot(0)? {
                let accumulate = slot.accumulate();
                conv2d_input_gradient(cpu, &shape, w.read()?.slice()?, g, slot.slice()?, accumulate)?;
            }
            Ok(())
        })
    }
}

impl Tensor {
    /// The cross-correlation of images `[N, H, W, I]` with the weight `w` `[O, KH, KW, I]`, plus `bias`
    /// `[O]`: `[N, OH, OW, O]`. `stride` and `padding` (zeros on either side) are height, width.
    pub fn conv2d(
        &self,
        w: &Tensor,
        bias: Option<&Tensor>,
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> Result<Tensor> {
        let op = Conv2d { stride, padding };
        match bias {
            Some(b) => apply_one(op, &[self, w, b]),
            None => apply_one(op, &[self, w]),
        }
    }
}
