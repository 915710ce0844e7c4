//! Local response normalisation (Krizhevsky, Sutskever and Hinton, 2012).

mod cpu;
pub(super) mod cuda;

use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Tensor, View, ViewMut, ops};

/// Divides by a power of the squares of neighbouring channels.
#[derive(Debug, Clone, Copy)]
struct LocalResponseNorm {
    size: usize,
    alpha: f64,
    beta: f64,
    k: f64,
}

impl Op for LocalResponseNorm {
    fn name(&self) -> &'static str {
        "local_response_norm"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name(), inputs, 0)?;
        let shape = inputs[0].shape();
        let refuse = |why: &str| Err(Error::Invalid { op: self.name(), shape, why: why.to_owned() });
        if shape.is_empty() {
            return refuse("it has no axis of channels");
        }
        if self.size == 0 || self.size > shape[shape.len() - 1].saturating_mul(2).max(64) {
            return refuse(
                "its window must have at least 1 channel, and at most twice as many as there are, or 64",
            );
        }
        if !(self.k > 0.0 && self.alpha >= 0.0 && self.beta.is_finite()) {
            return refuse("k must be above 0, alpha not below it, beta finite");
        }
        Ok(Plan::one(inputs[0].dtype, shape).saving_inputs(1).dense(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let channels = ins[0].shape()[ins[0].shape().len() - 1];
        ops::real!(self.name(), ins[0].dtype, T => {
            cpu::normalise::<T>(cpu, self, channels, ins[0].slice()?, outs[0].slice()?);
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
        let x = saved.input(0)?;
        let channels = x.shape()[x.shape().len() - 1];
        let (dtype, g, x) = (g.dtype(), g.contiguous()?.read()?, x.contiguous()?.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!(self.name(), dtype, T => {
            cpu::gradient::<T>(cpu, self, channels, x.slice()?, g.slice()?, slot.slice()?, accumulate);
            Ok(())
        })
    }
}

impl Tensor {
    /// `x / (k + alpha / size · Σ x²)^beta` with the sum over the `size` channels (last axis) around each,
    /// `size / 2` of them before it; channels that do not exist count as 0. As in PyTorch `alpha` is divided by
    /// the size of the window; the paper's is not.
    pub fn local_response_norm(&self, size: usize, alpha: f64, beta: f64, k: f64) -> Result<Tensor> {
        apply_one(LocalResponseNorm { size, alpha, beta, k }, &[self])
    }
}
