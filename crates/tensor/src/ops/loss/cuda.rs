//! Softmax and losses on a GPU.

use phalanx_gpu::{Args, Buffer, Context, DevicePtr, Grid, Source};
use phalanx_host::DType;

use super::cross_entropy::{Entropy, rows};
use super::{Softmax, classes};
use crate::op::{CudaOp, Exec, Meta, Plan, Saved};
use crate::ops::cuda::{NONE, Teams, blank, faults, launch, optional, source, suffix};
use crate::sink::GradSink;
use crate::{Error, Result, Shape, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("loss");

impl CudaOp for Softmax {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (op, shape, dtype) = (crate::op::Op::name(self), ins[0].shape(), ins[0].dtype);
        let k = classes(op, shape)?;
        let rows = shape.numel().checked_div(k).unwrap_or(0);
        let teams = Teams::new(op, shape, rows, k, dtype)?;
        let args = teams.args(Args::new().ptr(ins[0].ptr()?).ptr(outs[0].ptr()?), rows);
        let log = i32::from(matches!(self, Softmax::Log));
        teams.launch(gpu, &SOURCE, ("softmax", suffix(op, dtype)?), args.i32(log))
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let op = crate::op::Op::name(self);
        let y = saved.output(0)?;
        let (shape, dtype) = (y.shape(), y.dtype());
        let g = g.to(dtype)?.contiguous()?;
        let (y, g) = (y.read()?, g.read()?);
        let k = classes(op, shape)?;
        let rows = shape.numel().checked_div(k).unwrap_or(0);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let add = i32::from(slot.accumulate());
        let teams = Teams::new(op, shape, rows, k, dtype)?;
        let args = teams.args(Args::new().ptr(y.ptr()?).ptr(g.ptr()?).ptr(slot.view().ptr()?), rows);
        let log = i32::from(matches!(self, Softmax::Log));
        teams.launch(cx.gpu()?, &SOURCE, ("softmax_gradient", suffix(op, dtype)?), args.i32(log).i32(add))
    }
}

/// Writes the sum of `n` numbers of type f32 to `out`, by stretches of one length.
pub(super) fn sum(gpu: &Context, values: DevicePtr, n: usize, out: DevicePtr) -> Result<()> {
    /// Numbers that a block adds up.
    const EACH: usize = 4096;
    let blocks = n.div_ceil(EACH).max(1);
    let more = (blocks > 1).then(|| gpu.alloc(blocks * size_of::<f32>())).transpose()?;
    let to = more.as_ref().map_or(out, Buffer::ptr);
    let args = Args::new().ptr(values).i64(n as i64).i32(EACH as i32).ptr(to);
    gpu.launch(&SOURCE, "sum_stretches", Grid::linear(blocks, 1), args)?;
    more.map_or(Ok(()), |parts| sum(gpu, parts.ptr(), blocks, out))
}

/// The operands of a cross-entropy.
struct Operands<'a> {
    x: View<'a>,
    target: View<'a>,
    weights: Option<View<'a>>,
    classes: Option<View<'a>>,
}

impl Entropy {
    /// The arguments that kernels take for a `Goal`, up to the size of a team.
    fn goal(&self, of: &Operands, teams: &Teams, args: Args) -> Result<Args> {
        let (k, each) = rows(of.x.shape());
        let labels = of.target.dtype == DType::I64;
        let args = args.ptr(if labels { of.target.ptr()? } else { NONE });
        let args = optional(args, (!labels).then_some(&of.target))?;
        let args = optional(optional(args, of.weights.as_ref())?, of.classes.as_ref())?;
        let args = args.i64(each as i64).i64(self.ignore.unwrap_or(0)).i32(i32::from(self.ignore.is_some()));
        let args = args.f32((1.0 - self.smoothing) as f32).f32((self.smoothing / k.max(1) as f64) as f32);
        Ok(teams.args(args, count(of.x.shape())))
    }
}

/// The number of rows of logits.
fn count(shape: Shape) -> usize {
    shape.without(shape.len() - 1).numel()
}

impl CudaOp for Entropy {
    /// The way back reads the logits again and three numbers a row, not the softmax.
    fn plan_cuda(&self, inputs: &[Meta], plan: Plan) -> Plan {
        let kept = Plan { saved: Vec::new(), save_inputs: plan.save_inputs | 1, ..plan };
        kept.saving(DType::F32, [count(inputs[0].shape()), 3].into())
    }

    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        saved: &mut [ViewMut],
    ) -> Result<()> {
        let op = "cross_entropy";
        let (shape, dtype) = (ins[0].shape(), ins[0].dtype);
        let rows = count(shape);
        let of = Operands {
            x: ins[0],
            target: ins[1],
            weights: self.weighted.then(|| ins[2]),
            classes: self.class_weights().map(|i| ins[i]),
        };
        let teams = Teams::new(op, shape, rows, shape[shape.len() - 1], dtype)?;
        let losses = gpu.alloc(rows * size_of::<f32>())?;
        let args = self.goal(&of, &teams, Args::new().ptr(of.x.ptr()?))?;
        let args = faults::args(gpu, args.ptr(losses.ptr()).ptr(saved[0].ptr()?), op)?;
        teams.launch(gpu, &SOURCE, ("entropy", suffix(op, dtype)?), args)?;
        sum(gpu, losses.ptr(), rows, outs[0].ptr()?)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let op = "cross_entropy";
        let read = saved.inputs.iter_mut().map(|t| t.take().map(|t| t.read()).transpose());
        let (read, kept) = (read.collect::<Result<Vec<_>>>()?, saved.extra[0].read()?);
        let part = |i: usize| {
            let released = Error::GraphReleased { op };
            read.get(i).and_then(Option::as_ref).map(|r| r.view()).ok_or(released)
        };
        let of = Operands {
            x: part(0)?,
            target: part(1)?,
            weights: self.weighted.then(|| part(2)).transpose()?,
            classes: self.class_weights().map(part).transpose()?,
        };
        let (shape, dtype) = (of.x.shape(), of.x.dtype);
        let g = g.to(DType::F32)?.read()?;
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let add = i32::from(slot.accumulate());
        let teams = Teams::new(op, shape, count(shape), shape[shape.len() - 1], dtype)?;
        let args = self.goal(&of, &teams, Args::new().ptr(of.x.ptr()?))?;
        let args = args.ptr(kept.ptr()?).ptr(g.ptr()?).ptr(slot.view().ptr()?).i32(add);
        teams.launch(cx.gpu()?, &SOURCE, ("entropy_gradient", suffix(op, dtype)?), args)
    }
}

/// For each row of f32 logits, how many are not smaller than the label's, or why there is no such number: see the kernel.
pub(super) fn ranks(gpu: &Context, logits: &Tensor, labels: &Tensor, ignore: Option<i64>) -> Result<Tensor> {
    let (x, labels) = (logits.detach().contiguous()?, labels.detach().contiguous()?);
    let (x_read, read, shape) = (x.read()?, labels.read()?, x.shape());
    let cx = Exec::new(x.device());
    cx.make(DType::I64, [shape[0]].into(), |out| {
        let args = optional(Args::new(), Some(&x_read.view()))?.ptr(read.ptr()?).i64(ignore.unwrap_or(0));
        let args = args.i32(i32::from(ignore.is_some())).i64(shape[0] as i64).i32(shape[1] as i32);
        let grid = Grid::linear(shape[0], 8);
        Ok(gpu.launch(&SOURCE, "ranks", grid, args.ptr(out.ptr()?))?)
    })
}

/// What [`super::margin`] needs to know of rows: where their numbers are, which rows count, and their factors.
pub(super) fn label_rows(
    gpu: &Context,
    op: &'static str,
    labels: &Tensor,
    k: usize,
    options: &super::CrossEntropy,
) -> Result<[Tensor; 3]> {
    let labels = labels.detach().contiguous()?;
    let shape = labels.shape();
    let dense = |t: Option<&Tensor>| t.map(|t| t.detach().contiguous()?.read()).transpose();
    let (weights, classes, read) = (dense(options.weights)?, dense(options.class_weights)?, labels.read()?);
    let each: usize = shape.iter().skip(1).product();
    let cx = Exec::new(labels.device());
    let column = Shape::new(&[&shape[..], &[1]].concat());
    let (places, to_places) = blank(&cx, DType::I64, column)?;
    let (counted, to_counted) = blank(&cx, DType::U8, shape)?;
    let (factors, to_factors) = blank(&cx, DType::F32, shape)?;
    let args = Args::new().ptr(read.ptr()?).i64(options.ignore_index.unwrap_or(0));
    let args = args.i32(i32::from(options.ignore_index.is_some())).i64(shape.numel() as i64).i32(k as i32);
    let args = optional(args, weights.as_ref().map(|w| w.view()).as_ref())?.i64(each as i64);
    let args = optional(args, classes.as_ref().map(|c| c.view()).as_ref())?;
    let args = args.ptr(to_places).ptr(to_counted).ptr(to_factors);
    launch(gpu, &SOURCE, "label_rows", shape.numel(), faults::args(gpu, args, op)?)?;
    Ok([places, counted, factors])
}

/// A mask of `[rows, k]` that is 0 at each row's place alone.
pub(super) fn all_but(gpu: &Context, places: &Tensor, k: usize) -> Result<Tensor> {
    let (read, rows) = (places.read()?, places.shape().numel());
    Exec::new(places.device()).make(DType::U8, [rows, k].into(), |out| {
        let args = Args::new().ptr(read.ptr()?).i64(rows as i64).i32(k as i32).ptr(out.ptr()?);
        launch(gpu, &SOURCE, "all_but", rows * k, args)
    })
}
