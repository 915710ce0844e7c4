//! Squared differences.

use super::cpu;
use crate::op::{Exec, Meta, Narrow, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// Inputs a, b of one shape and perhaps a weight for each entry of the first axis.
#[derive(Debug)]
struct Mse;

/// Numbers that share a weight.
fn per_sample(shape: Shape) -> usize {
    shape.iter().skip(1).product()
}

impl Op for Mse {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn narrow(&self) -> Narrow {
        Narrow::Keep
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real("mse", inputs, 0)?;
        (1..inputs.len()).try_for_each(|i| ops::want_same("mse", inputs, i))?;
        let shape = inputs[0].shape();
        ops::want_shape("mse", inputs, 1, shape, "both must have one shape; expand one of them first")?;
        if inputs.len() == 3 {
            let Some(&n) = shape.first() else {
                let why = "it needs an axis of samples to be weighted".to_owned();
                return Err(Error::Invalid { op: "mse", shape, why });
            };
            ops::want_shape("mse", inputs, 2, [n].into(), "there is one weight an entry of the first axis")?;
        }
        Ok(Plan::one(inputs[0].dtype, [].into()).saving_inputs(7).dense(7))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let k = per_sample(ins[0].shape());
        ops::real!("mse", ins[0].dtype, T => {
            let weights = ins.get(2).map(View::slice::<T>).transpose()?;
            let sum = cpu::squares(cpu, k, ins[0].slice()?, ins[1].slice()?, weights);
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
        let k = per_sample(sink.shape(0));
        let (a, b) = (saved.input(0)?.read()?, saved.input(1)?.read()?);
        let weights = saved.inputs.get_mut(2).and_then(Option::take).map(|w| w.read()).transpose()?;
        let (dtype, g) = (g.dtype(), g.item()?);
        for (i, factor) in [(0, 2.0 * g), (1, -2.0 * g)] {
            let Some(mut slot) = sink.slot(i)? else { continue };
            let accumulate = slot.accumulate();
            ops::real!("mse", dtype, T => {
                let weights = weights.as_ref().map(|w| w.slice::<T>()).transpose()?;
                let pair = [a.slice::<T>()?, b.slice()?];
                cpu::squares_gradient(cpu, k, pair, weights, factor as T, slot.slice()?, accumulate);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (Some(a), Some(b)) = (&inputs[0], &inputs[1]) else {
            return Err(Error::GraphReleased { op: "mse" });
        };
        let Some(g) = &grads[0] else { return Ok(vec![None; metas.len()]) };
        let mut d = a.sub(b)?.mul(&g.scale(2.0)?)?;
        if let Some(Some(w)) = inputs.get(2) {
            let mut column = vec![1; a.shape().len()];
            column[0] = w.shape()[0];
            d = d.mul(&w.reshape(&column)?)?;
        }
        let mut parts = vec![Some(d.clone()), Some(d.neg()?)];
        parts.resize(metas.len(), None);
        Ok(parts)
    }
}

impl Tensor {
    /// The sum of `weights[i] · (self[i, ..] − target[i, ..])²`, a scalar. Both have one shape and type;
    /// `weights` has one number an entry of the first axis (1 when there are none) and gets no gradient.
    pub fn mse(&self, target: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        match weights {
            Some(w) => apply_one(Mse, &[self, target, &w.detach()]),
            None => apply_one(Mse, &[self, target]),
        }
    }
}
