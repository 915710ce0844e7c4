//! Softmax and losses. A loss is a sum over its samples, and the caller divides by the weight that all
//! ranks have summed.

pub(crate) mod cpu;
mod cross_entropy;
pub(super) mod cuda;
mod margin;
mod metric;
mod point;
mod point_cpu;
pub(super) mod point_cuda;

pub use cross_entropy::CrossEntropy;
pub use margin::Triplet;
pub use metric::top_k_errors;
pub use point::PointLoss;

use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// Checks that operand `i` is a weight for each entry of the first axis of operand 0.
fn check_weights(op: &'static str, inputs: &[Meta], i: usize) -> Result<()> {
    ops::want_same(op, inputs, i)?;
    let shape = inputs[0].shape();
    let Some(&n) = shape.first() else {
        let why = "it needs an axis of samples to be weighted".to_owned();
        return Err(Error::Invalid { op, shape, why });
    };
    ops::want_shape(op, inputs, i, [n].into(), "there is one weight an entry of the first axis")
}

/// Softmax over the last axis, or its logarithm.
#[derive(Debug, Clone, Copy)]
enum Softmax {
    Plain,
    Log,
}

/// The size of the last axis.
fn classes(op: &'static str, shape: Shape) -> Result<usize> {
    let why = || Error::Invalid { op, shape, why: "it needs at least one axis".into() };
    shape.last().copied().ok_or_else(why)
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        match self {
            Softmax::Plain => "softmax",
            Softmax::Log => "log_softmax",
        }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name(), inputs, 0)?;
        classes(self.name(), inputs[0].shape())?;
        Ok(Plan::one(inputs[0].dtype, inputs[0].shape()).saving_outputs(1).dense(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let k = classes(self.name(), ins[0].shape())?;
        ops::real!(self.name(), ins[0].dtype, T => {
            let log = matches!(self, Softmax::Log);
            cpu::softmax::<T>(cpu, k, log, ins[0].slice()?, outs[0].slice()?);
            Ok(())
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
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
        let (y, g) = (saved.output(0)?, g.contiguous()?);
        let k = classes(self.name(), y.shape())?;
        let (dtype, y, g) = (y.dtype(), y.read()?, g.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!(self.name(), dtype, T => {
            let log = matches!(self, Softmax::Log);
            cpu::softmax_gradient::<T>(cpu, k, log, y.slice()?, g.slice()?, slot.slice()?, accumulate);
            Ok(())
        })
    }

    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        outputs: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (Some(y), Some(g)) = (&outputs[0], &grads[0]) else { return Ok(vec![None]) };
        let last = [metas[0].shape().len() - 1];
        Ok(vec![Some(match self {
            Softmax::Plain => y.mul(&g.sub(&g.mul(y)?.sum(&last, true)?)?)?,
            Softmax::Log => g.sub(&y.exp()?.mul(&g.sum(&last, true)?)?)?,
        })])
    }
}

/// Over an axis that is put last for the time of the op.
fn over(op: Softmax, x: &Tensor, axis: usize) -> Result<Tensor> {
    ops::want_axis(op.name(), x.shape(), axis)?;
    let mut axes: Vec<usize> = (0..x.shape().len()).collect();
    let last = axes.len() - 1;
    axes.swap(axis, last);
    apply_one(op, &[&x.permute(&axes)?])?.permute(&axes)
}

impl Tensor {
    /// e^x / Σ e^x over the last axis.
    pub fn softmax(&self) -> Result<Tensor> {
        apply_one(Softmax::Plain, &[self])
    }

    /// x − log Σ e^x over the last axis, without overflow.
    pub fn log_softmax(&self) -> Result<Tensor> {
        apply_one(Softmax::Log, &[self])
    }

    /// As [`Tensor::softmax`], over `axis`.
    pub fn softmax_over(&self, axis: usize) -> Result<Tensor> {
        over(Softmax::Plain, self, axis)
    }

    /// As [`Tensor::log_softmax`], over `axis`.
    pub fn log_softmax_over(&self, axis: usize) -> Result<Tensor> {
        over(Softmax::Log, self, axis)
    }
}
