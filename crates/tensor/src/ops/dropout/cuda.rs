//! Dropout and noise on a GPU.

use phalanx_gpu::{Args, Context, Source};
use phalanx_host::rng::Key;

use super::Dropout;
use super::cpu::threshold;
use crate::op::{CudaOp, Exec, Saved};
use crate::ops::cuda::{code, launch, random, source, suffix};
use crate::sink::GradSink;
use crate::{Result, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("dropout");

/// `y (+)=` what becomes of the elements of `x`, of one type.
fn drop(gpu: &Context, op: &Dropout, x: &View, y: &ViewMut, add: bool) -> Result<()> {
    let (n, size) = (x.shape().numel(), x.dtype.size());
    let suffix = suffix(op.op, x.dtype)?;
    let Some(from) = threshold(op.p) else {
        return if add { Ok(()) } else { Ok(gpu.fill_zero(y.ptr()?, n * size)?) };
    };
    let args = Args::new().ptr(x.ptr()?).ptr(y.ptr()?).i64(n as i64);
    let args = random(gpu, args, op.key)?
        .u32(from)
        .f32(op.affine.scale as f32)
        .f32(op.affine.shift as f32)
        .f32(op.affine.low as f32);
    launch(gpu, &SOURCE, &format!("drop_{suffix}"), n.div_ceil(16 / size), args.i32(i32::from(add)))
}

impl CudaOp for Dropout {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        drop(gpu, self, &ins[0], &outs[0], false)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let g = g.to(saved.metas[0].dtype)?.contiguous()?.read()?;
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let add = slot.accumulate();
        drop(cx.gpu()?, &self.back(), &g.view(), &slot.view(), add)
    }
}

/// Normal numbers.
pub(super) fn normal(gpu: &Context, key: Key, out: &ViewMut) -> Result<()> {
    let n = out.shape.numel();
    let args = Args::new().ptr(out.ptr()?).i32(code(out.dtype)).i64(n as i64);
    launch(gpu, &SOURCE, "normal", n.div_ceil(2), random(gpu, args, key)?)
}
