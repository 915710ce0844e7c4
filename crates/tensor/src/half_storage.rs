//! Half precision is a way to store, not to compute: kernels take f32 and f64. Operands of type bf16 or f16
//! are widened for the time of a kernel, and its first result is rounded to the type of its first float. So each op
//! accumulates in f32 without a line of its own, and what the graph keeps for the backward pass stays
//! narrow. Gradients are f32 all the way ([`Meta::gradient`]), so that small ones need no loss scale.
//!
//! A GPU's kernels read and write halves themselves; there the op is only asked for its plan as if they were f32.

use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use phalanx_host::{Buffer, Cpu, DType};

use crate::op::{CudaOp, Exec, Meta, Narrow, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::{Error, Layout, Result, Tensor, View, ViewMut, ops};

/// Elements that one task converts.
const PIECE: usize = 16 * 1024;

/// The op itself, or the op behind a [`Widened`] when it gets a half and cannot read it.
pub(crate) fn adapt(op: Arc<dyn Op>, metas: &[Meta]) -> Result<Arc<dyn Op>> {
    let narrow = op.narrow();
    if narrow == Narrow::AnyType || !metas.iter().any(|m| is_half(m.dtype)) {
        return Ok(op);
    }
    // Two kinds of halves have no common type but f32, and a mix of them is more likely a mistake.
    let mut halves = metas.iter().enumerate().filter(|(_, m)| is_half(m.dtype));
    if let Some((_, first)) = halves.next()
        && let Some((operand, other)) = halves.find(|(_, m)| m.dtype != first.dtype)
    {
        let want = format!("{} like the other operand", first.dtype);
        return Err(Error::DTypes { op: op.name(), operand, got: other.dtype, want });
    }
    let first = metas.iter().map(|m| m.dtype).find(|d| d.is_float());
    let round = first.filter(|&d| narrow == Narrow::Round && is_half(d));
    Ok(Arc::new(Widened { op, round }))
}

pub(crate) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// An op whose halves are widened; `round` is the type of its first result, when that is to be a half.
#[derive(Debug)]
struct Widened {
    op: Arc<dyn Op>,
    round: Option<DType>,
}

/// What the op behind sees of an operand.
fn wide(meta: &Meta) -> Meta {
    match is_half(meta.dtype) {
        true => Meta { dtype: DType::F32, layout: Layout::contiguous(meta.shape()) },
        false => *meta,
    }
}

/// `from` as f32, row-major; `from` is contiguous.
pub(crate) fn widen(cpu: &Cpu, from: &View, to: &mut [f32]) -> Result<()> {
    match from.dtype {
        DType::BF16 => {
            let from = from.slice::<bf16>()?;
            cpu.workers.chunks(to, PIECE, |i, to| from[i * PIECE..][..to.len()].convert_to_f32_slice(to));
        }
        _ => {
            let from = from.slice::<f16>()?;
            cpu.workers.chunks(to, PIECE, |i, to| from[i * PIECE..][..to.len()].convert_to_f32_slice(to));
        }
    }
    Ok(())
}

/// `from` rounded to nearest, ties to even.
pub(crate) fn round(cpu: &Cpu, from: &[f32], to: &mut ViewMut) -> Result<()> {
    match to.dtype {
        DType::BF16 => {
            let to = to.slice::<bf16>()?;
            cpu.workers.chunks(to, PIECE, |i, to| to.convert_from_f32_slice(&from[i * PIECE..][..to.len()]));
        }
        _ => {
            let to = to.slice::<f16>()?;
            cpu.workers.chunks(to, PIECE, |i, to| to.convert_from_f32_slice(&from[i * PIECE..][..to.len()]));
        }
    }
    Ok(())
}

/// The same tensor with f32 elements, outside the graph.
fn widened(cx: &Exec, t: &Tensor) -> Result<Tensor> {
    if !is_half(t.dtype()) {
        return Ok(t.clone());
    }
    let dense = if t.layout().is_contiguous() { t.clone() } else { ops::shape::materialise(cx, t)? };
    let held = dense.hold()?;
    cx.make(DType::F32, t.shape(), |mut out| widen(cx.cpu()?, &dense.view(&held), out.slice()?))
}

impl Op for Widened {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let mut plan = self.op.infer(&inputs.iter().map(wide).collect::<Vec<_>>())?;
        if let (Some(to), Some(first)) = (self.round, plan.outputs.first_mut())
            && first.dtype == DType::F32
        {
            first.dtype = to;
        }
        // A view cannot change the type of what it looks at; no op that makes views gets here.
        plan.alias = None;
        for (i, _) in inputs.iter().enumerate().filter(|(_, m)| is_half(m.dtype)) {
            plan.dense |= 1 << i;
        }
        Ok(plan)
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let mut memory: Vec<Option<Buffer>> = Vec::with_capacity(ins.len());
        for view in ins {
            memory.push(match is_half(view.dtype) {
                true => {
                    let mut buffer = cx.workspace(view.shape().numel() * size_of::<f32>())?;
                    widen(cpu, view, buffer.as_mut_slice())?;
                    Some(buffer)
                }
                false => None,
            });
        }
        let views: Vec<View> = ins
            .iter()
            .zip(&memory)
            .map(|(view, memory)| match memory {
                Some(m) => View::new(DType::F32, Layout::contiguous(view.shape()), m.bytes()),
                None => *view,
            })
            .collect();
        let Some((first, rest)) = outs.split_first_mut().filter(|(first, _)| is_half(first.dtype)) else {
            return self.op.forward(cx, &views, outs, saved);
        };
        let mut result = cx.workspace(first.shape.numel() * size_of::<f32>())?;
        let mut all = vec![ViewMut::new(DType::F32, first.shape, result.bytes_mut())];
        all.extend(rest.iter_mut().map(ViewMut::reborrow));
        self.op.forward(cx, &views, &mut all, saved)?;
        drop(all);
        round(cpu, result.as_slice(), first)
    }

    fn backward(&self, cx: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let widen = |all: Vec<Option<Tensor>>| {
            all.into_iter().map(|t| t.map(|t| widened(cx, &t)).transpose()).collect::<Result<Vec<_>>>()
        };
        let saved = Saved {
            inputs: widen(saved.inputs)?,
            outputs: widen(saved.outputs)?,
            extra: saved.extra,
            metas: saved.metas.iter().map(wide).collect(),
        };
        self.op.backward(cx, saved, grads, sink)
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        self.op.cuda().is_some().then_some(self)
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        outputs: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let widen = |all: &[Option<Tensor>]| {
            let one = |t: &Option<Tensor>| match t {
                Some(t) if is_half(t.dtype()) => t.to(DType::F32).map(Some),
                t => Ok(t.clone()),
            };
            all.iter().map(one).collect::<Result<Vec<_>>>()
        };
        let metas: Vec<Meta> = metas.iter().map(wide).collect();
        self.op.backward_graph(&widen(inputs)?, &widen(outputs)?, &metas, grads)
    }
}

impl CudaOp for Widened {
    fn plan_cuda(&self, inputs: &[Meta], plan: Plan) -> Plan {
        match self.op.cuda() {
            Some(op) => op.plan_cuda(inputs, plan),
            None => plan,
        }
    }

    fn forward_cuda(
        &self,
        gpu: &phalanx_gpu::Context,
        ins: &[View],
        outs: &mut [ViewMut],
        saved: &mut [ViewMut],
    ) -> Result<()> {
        self.kernels()?.forward_cuda(gpu, ins, outs, saved)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        self.kernels()?.backward_cuda(cx, saved, grads, sink)
    }
}

impl Widened {
    fn kernels(&self) -> Result<&dyn CudaOp> {
        self.op.cuda().ok_or(Error::NoCudaKernel { op: self.op.name() })
    }
}
