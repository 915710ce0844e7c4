//! Conversions between element types.

use half::{bf16, f16};
use phalanx_host::{DType, Element};

use crate::half_storage::{is_half, round, widen};
use crate::op::{CudaOp, Exec, Meta, Narrow, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Result, Tensor, View, ViewMut, ops};

/// A number on its way from one type to another. Doubles hold every other type's values exactly, save
/// for integers beyond 2⁵³.
trait Number: Element {
    fn widen(self) -> f64;
    fn narrow(x: f64) -> Self;
}

macro_rules! number {
    ($($t:ty: |$x:ident| $widen:expr, |$y:ident| $narrow:expr;)*) => { $(
        impl Number for $t {
            #[inline(always)]
            fn widen(self) -> f64 { let $x = self; $widen }
            #[inline(always)]
            fn narrow($y: f64) -> Self { $narrow }
        }
    )* };
}
number! {
    f32: |x| f64::from(x), |y| y as f32;
    f64: |x| x, |y| y;
    u8: |x| f64::from(x), |y| y as u8;
    i64: |x| x as f64, |y| y as i64;
    f16: |x| x.to_f64(), |y| f16::from_f64(y);
    bf16: |x| x.to_f64(), |y| bf16::from_f64(y);
}

/// The same values in another type.
#[derive(Debug, Clone, Copy)]
struct To(DType);

impl To {
    fn run<A: Number, B: Number>(from: &[A], to: &mut [B]) {
        to.iter_mut().zip(from).for_each(|(y, x)| *y = B::narrow(x.widen()));
    }
}

impl Op for To {
    fn name(&self) -> &'static str {
        "to"
    }

    fn narrow(&self) -> Narrow {
        Narrow::AnyType
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        Ok(Plan::one(self.0, inputs[0].shape()).dense(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        match (ins[0].dtype, self.0) {
            (from, DType::F32) if is_half(from) => return widen(cpu, &ins[0], outs[0].slice()?),
            (DType::F32, to) if is_half(to) => return round(cpu, ins[0].slice()?, &mut outs[0]),
            _ => {}
        }
        ops::shape::any_type!(ins[0].dtype, A => ops::shape::any_type!(self.0, B => {
            To::run::<A, B>(ins[0].slice()?, outs[0].slice()?);
            Ok(())
        }))
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward(&self, cx: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let dtype = saved.metas[0].gradient(cx.device()).dtype;
        grads[0].iter().try_for_each(|g| sink.pass(0, g.to(dtype)?))
    }

    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![grads[0].as_ref().map(|g| g.to(metas[0].gradient(g.device()).dtype)).transpose()?])
    }
}

impl CudaOp for To {
    fn forward_cuda(
        &self,
        gpu: &phalanx_gpu::Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        ops::shape::cuda::convert(gpu, &ins[0], &mut outs[0])
    }
}

impl Tensor {
    /// The same values as `dtype`: rounded to the nearest float, cut towards zero and to the type's
    /// range for integers (not a number is 0). Gradients flow between floats alone; other
    /// results are outside the graph.
    pub fn to(&self, dtype: DType) -> Result<Tensor> {
        match dtype {
            d if d == self.dtype() => Ok(self.clone()),
            d if d.is_float() && self.dtype().is_float() => apply_one(To(d), &[self]),
            d => apply_one(To(d), &[&self.detach()]),
        }
    }
}
