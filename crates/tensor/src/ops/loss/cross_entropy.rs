//! Cross-entropy of logits and labels, fused with the softmax.

use super::cpu;
use crate::op::{Exec, Meta, Narrow, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Tensor, View, ViewMut, ops};

/// Inputs logits `[N, K]`, labels `[N]` and perhaps weights `[N]`; saves the softmax.
#[derive(Debug)]
struct CrossEntropy;

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn narrow(&self) -> Narrow {
        Narrow::Keep
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let op = self.name();
        ops::want_real(op, inputs, 0)?;
        ops::want_indices(op, inputs, 1)?;
        ops::want_axes(op, inputs, 2, "logits [N,K]")?;
        let (dtype, shape) = (inputs[0].dtype, inputs[0].shape());
        ops::want_shape(op, inputs, 1, [shape[0]].into(), "there is one label a row of the logits [N,K]")?;
        if inputs.len() == 3 {
            ops::want_same(op, inputs, 2)?;
            ops::want_shape(
                op,
                inputs,
                2,
                [shape[0]].into(),
                "there is one weight a row of the logits [N,K]",
            )?;
        }
        Ok(Plan::one(dtype, [].into()).saving_inputs(0b110).saving(dtype, shape).dense(0b111))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let (k, labels) = (ins[0].shape()[1], ins[1].slice::<i64>()?);
        let bad = |&l: &i64| !usize::try_from(l).is_ok_and(|l| l < k);
        if let Some(position) = labels.iter().position(bad) {
            return Err(Error::Index { op: self.name(), index: labels[position], position, limit: k });
        }
        ops::real!(self.name(), ins[0].dtype, T => {
            let weights = ins.get(2).map(View::slice::<T>).transpose()?;
            let sum = cpu::cross_entropy(cpu, k, ins[0].slice()?, labels, weights, saved[0].slice()?);
            outs[0].slice::<T>()?.fill(sum as T);
            Ok(())
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
        let labels = saved.input(1)?.read()?;
        let weights = saved.inputs.get_mut(2).and_then(Option::take).map(|w| w.read()).transpose()?;
        let (k, p) = (sink.shape(0)[1], saved.extra[0].read()?);
        let (dtype, scale) = (g.dtype(), g.item()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!(self.name(), dtype, T => {
            let weights = weights.as_ref().map(|w| w.slice::<T>()).transpose()?;
            let (p, labels, g) = (p.slice()?, labels.slice()?, scale as T);
            cpu::cross_entropy_gradient(cpu, k, p, labels, weights, g, slot.slice()?, accumulate);
            Ok(())
        })
    }
}

impl Tensor {
    /// The sum over samples of `weights[i] · −log softmax(self[i])[labels[i]]`, a scalar.
    ///
    /// This tensor is the logits `[N, K]`, `labels` is i64 `[N]`, and `weights` `[N]` has the logits'
    /// type; weights are 1 when there are none, and get no gradient. A label outside `0..K` fails with
    /// [`Error::Index`], whatever its weight.
    pub fn cross_entropy(&self, labels: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        match weights {
            Some(w) => apply_one(CrossEntropy, &[self, labels, &w.detach()]),
            None => apply_one(CrossEntropy, &[self, labels]),
        }
    }
}
