//! A layer's product: rows times the transposed weight, plus a bias.

use phalanx_host::simd::Real;
use phalanx_host::{Cpu, MatMut, gemm_bias};

use super::{into_slot, mat};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::ops::columns::add_column_sums;
use crate::ops::elementwise::{relu_gradient, relu_in_place};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Tensor, View, ViewMut, ops};

/// `x wᵀ + b` for `x` `[N, I]`, `w` `[O, I]` and, as a third operand, `b` `[O]`; perhaps with a ReLU behind it.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) relu: bool,
}

impl Linear {
    /// The gradient of the product, of that of the result.
    pub(super) fn behind_relu(&self, cx: &Exec, saved: &mut Saved, g: &Tensor) -> Result<Tensor> {
        match self.relu {
            true => {
                let y = saved.output(0)?;
                relu_gradient(cx, &y, &g.to(y.dtype())?)
            }
            false => Ok(g.clone()),
        }
    }
}

fn forward<T: Real>(cpu: &Cpu, ins: &[View], out: &mut ViewMut) -> Result<()> {
    let [n, o] = [out.shape[0], out.shape[1]];
    let bias = ins.get(2).map(View::slice::<T>).transpose()?;
    let y = MatMut::row_major(out.slice::<T>()?, n, o)?;
    Ok(gemm_bias(cpu, mat(&ins[0])?, mat(&ins[1])?.t(), bias, y, false)?)
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        if self.relu { "linear_relu" } else { "linear" }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let op = self.name();
        ops::want_real(op, inputs, 0)?;
        (1..inputs.len()).try_for_each(|i| ops::want_same(op, inputs, i))?;
        let (x, w) = (inputs[0].shape(), inputs[1].shape());
        let (&[n, i], &[o, k]) = (&x[..], &w[..]) else {
            let hint = "it takes rows [..,I] and a weight [O,I]";
            return Err(Error::Shapes { op, lhs: x, rhs: w, hint });
        };
        if i != k {
            let hint = "the last axes of the input and of the weight [O,I] must be equal";
            return Err(Error::Shapes { op, lhs: x, rhs: w, hint });
        }
        if inputs.len() == 3 {
            ops::want_shape(op, inputs, 2, [o].into(), "the bias has one number a row of the weight")?;
        }
        let plan = Plan::one(inputs[0].dtype, [n, o].into()).saving_inputs(3).dense(4);
        Ok(if self.relu { plan.saving_outputs(1) } else { plan })
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        ops::real!(self.name(), ins[0].dtype, T => forward::<T>(cpu, ins, &mut outs[0]))?;
        if self.relu { relu_in_place(cpu, &mut outs[0]) } else { Ok(()) }
    }

    fn backward(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let g = self.behind_relu(cx, &mut saved, g)?;
        let cpu = cx.cpu()?;
        let (x, w) = (saved.input(0)?, saved.input(1)?);
        let [n, i, o] = [x.shape()[0], x.shape()[1], w.shape()[0]];
        ops::real!(self.name(), g.dtype(), T => {
            if sink.wants(2) {
                let g = g.contiguous()?;
                if let Some(mut slot) = sink.slot(2)? {
                    let accumulate = slot.accumulate();
                    add_column_sums::<T>(cpu, g.read()?.slice()?, slot.slice()?, accumulate);
                }
            }
            sink.settle(2)?;
            let g = g.read()?;
            if let Some(mut slot) = sink.slot(1)? {
                into_slot::<T>(cpu, mat(&g.view())?.t(), mat(&x.read()?.view())?, [o, i], &mut slot)?;
            }
            sink.settle(1)?;
            drop(x);
            if let Some(mut slot) = sink.slot(0)? {
                into_slot::<T>(cpu, mat(&g.view())?, mat(&w.read()?.view())?, [n, i], &mut slot)?;
            }
            Ok(())
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        outputs: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let [Some(x), Some(w), ..] = inputs else { return Err(Error::GraphReleased { op: self.name() }) };
        let Some(g) = &grads[0] else { return Ok(vec![None; metas.len()]) };
        let g = match (&outputs[0], self.relu) {
            (Some(y), true) => &g.mul(&y.step()?)?,
            (None, true) => return Err(Error::GraphReleased { op: self.name() }),
            (_, false) => g,
        };
        let mut parts = vec![Some(g.matmul(w)?), Some(g.t()?.matmul(x)?)];
        if metas.len() == 3 {
            parts.push(Some(g.sum(&[0], false)?));
        }
        Ok(parts)
    }
}

impl Tensor {
    /// A layer's product: this tensor `[.., I]` times the transpose of `w` `[O, I]`, plus `bias` `[O]`;
    /// the result is `[.., O]`. Other leading axes than one are folded into one.
    pub fn linear(&self, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        self.by_weight(w, bias, false)
    }

    /// [`Tensor::linear`] with a ReLU behind it, with the same bits as one after the other in one pass less. On a GPU that is the
    /// product's own, where it passes on what is not a number.
    pub fn linear_relu(&self, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        self.by_weight(w, bias, true)
    }

    fn by_weight(&self, w: &Tensor, bias: Option<&Tensor>, relu: bool) -> Result<Tensor> {
        let run = |x: &Tensor| match bias {
            Some(b) => apply_one(Linear { relu }, &[x, w, b]),
            None => apply_one(Linear { relu }, &[x, w]),
        };
        let shape = self.shape();
        match shape.split_last() {
            Some((&i, lead)) if lead.len() != 1 => {
                let y = run(&self.reshape(&[lead.iter().product(), i])?)?;
                y.reshape(&[lead, &y.shape()[1..]].concat())
            }
            _ => run(self),
        }
    }
}
