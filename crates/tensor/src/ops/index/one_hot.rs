//! Classes as vectors.

use phalanx_host::DType;

use super::cpu;
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// 1 at the index of each row, else 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct OneHot {
    pub(super) classes: usize,
    dtype: DType,
}

impl Op for OneHot {
    fn name(&self) -> &'static str {
        "one_hot"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_indices("one_hot", inputs, 0)?;
        let shape = inputs[0].shape();
        if !matches!(self.dtype, DType::F32 | DType::F64) {
            let why = format!("it makes f32 or f64, not {}", self.dtype);
            return Err(Error::Invalid { op: "one_hot", shape, why });
        }
        Ok(Plan::one(self.dtype, Shape::new(&[&shape[..], &[self.classes]].concat())).dense(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let (cpu, list) = (cx.cpu()?, ins[0].slice()?);
        cpu::check("one_hot", list, self.classes)?;
        ops::real!("one_hot", self.dtype, T => {
            cpu::one_hot::<T>(cpu, list, self.classes, outs[0].slice()?);
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
    /// A vector of `classes` numbers for each of these indices (i64, any shape): 1 at the index, 0 elsewhere,
    /// as torch.nn.functional.one_hot, but of type `dtype` (f32 or f64). Fails with [`Error::Index`] for an
    /// index outside `0..classes`.
    pub fn one_hot(&self, classes: usize, dtype: DType) -> Result<Tensor> {
        apply_one(OneHot { classes, dtype }, &[self])
    }
}
