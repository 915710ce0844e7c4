//! Mixup (Zhang and others, 2018) and CutMix (Yun and others, 2019).

use super::{cpu, want_images};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Tensor, View, ViewMut, ops};

pub(super) const OP: &str = "mix";

/// Inputs images `[N, H, W, C]`, partners `[N]`, factors `[N]`, boxes `[N, 4]`.
#[derive(Debug)]
pub(super) struct Mix;

impl Op for Mix {
    fn name(&self) -> &'static str {
        OP
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(OP, inputs, 0)?;
        want_images(OP, inputs)?;
        let n = inputs[0].shape()[0];
        ops::want_indices(OP, inputs, 1)?;
        ops::want_shape(OP, inputs, 1, [n].into(), "there is one partner an image")?;
        ops::want_same(OP, inputs, 2)?;
        ops::want_shape(OP, inputs, 2, [n].into(), "there is one factor an image")?;
        ops::want_indices(OP, inputs, 3)?;
        ops::want_shape(OP, inputs, 3, [n, 4].into(), "there is one box [N,4] an image")?;
        Ok(Plan::one(inputs[0].dtype, inputs[0].shape()).dense(0b1111))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let (cpu, shape) = (cx.cpu()?, ins[0].shape());
        let partners = ins[1].slice::<i64>()?;
        let bad = |p: &i64| !usize::try_from(*p).is_ok_and(|p| p < shape[0]);
        if let Some(position) = partners.iter().position(bad) {
            return Err(Error::Index { op: OP, index: partners[position], position, limit: shape[0] });
        }
        ops::real!(OP, ins[0].dtype, T => {
            let plan = cpu::Mixing { partners, factors: ins[2].slice::<T>()?, boxes: ins[3].slice()? };
            cpu::mix::<T>(cpu, &plan, [shape[1], shape[2], shape[3]], ins[0].slice()?, outs[0].slice()?);
            Ok(())
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward(&self, _: &Exec, _: Saved, _: &[Option<Tensor>], _: &mut GradSink) -> Result<()> {
        Ok(())
    }
}

impl Tensor {
    /// Images `[N, H, W, C]` mixed with others of their batch: `partner` (i64 `[N]`) names them. Where an image's box (i64
    /// `[N, 4]`: top, left, bottom, right, the last two not part of it) is empty, the result is λ · image + (1 − λ) · partner,
    /// each operation rounded, with `lambda` `[N]` of the images' type; else it is the image with the partner's pixels inside
    /// the box, of which what lies outside the image is nothing. Outside the graph.
    ///
    /// Fails with [`Error::Index`] for a partner outside the batch; on a GPU as in [`Tensor::cross_entropy`].
    pub fn mix(&self, partner: &Tensor, lambda: &Tensor, boxes: &Tensor) -> Result<Tensor> {
        apply_one(Mix, &[&self.detach(), partner, &lambda.detach(), boxes])
    }
}
