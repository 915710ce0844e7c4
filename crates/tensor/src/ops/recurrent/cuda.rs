//! The walk over the steps of a sequence on a GPU: for each step one product with the recurrent weight and one kernel.

use phalanx_gpu::{Args, Context, DevicePtr, Gemm, Source, Type};

use super::{Cell, Sequence};
use crate::op::{CudaOp, Exec, Op, Saved};
use crate::ops::cuda::{
    self, NONE, Operand, Scratch, dense, faults, launch, library_type, source, suffix, typed,
};
use crate::ops::matmul::cuda::{deliver, multiply};
use crate::ops::reduce::cuda::column_sums;
use crate::sink::GradSink;
use crate::tensor::Read;
use crate::{DType, Layout, Result, Shape, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("recurrent");

/// A sequence's sizes.
#[derive(Clone, Copy)]
struct Sizes {
    cell: Cell,
    reverse: bool,
    steps: usize,
    samples: usize,
    hidden: usize,
}

impl Sizes {
    /// From the shape [steps, samples, hidden] of the outputs.
    fn new(sequence: &Sequence, y: Shape) -> Self {
        let (cell, reverse) = (sequence.cell, sequence.reverse);
        Sizes { cell, reverse, steps: y[0], samples: y[1], hidden: y[2] }
    }

    /// Numbers of a sample's gates.
    fn gates(&self) -> usize {
        self.cell.gates() * self.hidden
    }

    /// Numbers from a sample's gates to the next one's where the step leaves what the way back reads.
    fn kept(&self) -> usize {
        self.cell.kept().max(self.cell.gates()) * self.hidden
    }

    /// Numbers of a state.
    fn state(&self) -> usize {
        self.samples * self.hidden
    }

    /// The place in the sequence of the `s`-th step.
    fn place(&self, s: usize) -> usize {
        if self.reverse { self.steps - 1 - s } else { s }
    }

    /// As the `Steps` of kernels, for the step at place `t`.
    fn cuda(&self, t: usize) -> [i64; 8] {
        let cell = match self.cell {
            Cell::Tanh => 0,
            Cell::Relu => 1,
            Cell::Lstm => 2,
            Cell::Gru => 3,
        };
        let vectors = |numbers: usize| (numbers / self.hidden) as i64;
        let (gates, kept) = (vectors(self.gates()), vectors(self.kept()));
        let [steps, samples, hidden, t] = [self.steps, self.samples, self.hidden, t].map(|n| n as i64);
        [cell, i64::from(self.reverse), steps, samples, hidden, gates, kept, t]
    }

    /// A product of a step: `[samples, k]` and the weight `[gates, hidden]`, which may be turned, to `n` f32 numbers a
    /// sample, `pitch` apart.
    fn gemm(&self, gpu: &Context, kind: Type, turned: bool, pitch: usize) -> Gemm {
        let (gates, hidden) = (self.gates(), self.hidden);
        let (k, n) = if turned { (hidden, gates) } else { (gates, hidden) };
        Gemm {
            m: self.samples,
            n,
            k,
            a: kind,
            b: kind,
            c: Type::F32,
            trans_a: false,
            trans_b: turned,
            lda: k,
            ldb: hidden,
            ldc: pitch,
            batch: 1,
            stride_a: 0,
            stride_b: 0,
            stride_c: 0,
            // The way back adds to what does not go through the weight.
            accumulate: !turned,
            bias: None,
            relu: false,
            math: gpu.math(),
        }
    }
}

/// Checks lengths. Nobody waits: what is wrong with them is told as an index outside its axis is, and they are taken for the
/// nearest that are right.
fn check_lengths(gpu: &Context, op: &'static str, lengths: &View, steps: usize) -> Result<()> {
    let n = lengths.shape().numel();
    let args = Args::new().ptr(lengths.ptr()?).i64(n as i64).i64(steps as i64);
    launch(gpu, &SOURCE, "check_lengths", n, faults::args(gpu, args, op)?)
}

/// The weight as steps read it: dense and of one type.
fn weight<'a>(gpu: &Context, view: &'a Operand<'_>) -> Result<Operand<'a>> {
    match view {
        Operand::As(view) => dense(gpu, view),
        Operand::Copy(copy) => Ok(Operand::As(copy.view())),
    }
}

/// The place of the `t`-th of `width` numbers each of type `dtype`; null stays null.
fn at(base: DevicePtr, t: usize, width: usize, dtype: DType) -> DevicePtr {
    if base == NONE { NONE } else { base.offset(t * width * dtype.size()) }
}

impl CudaOp for Sequence {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        saved: &mut [ViewMut],
    ) -> Result<()> {
        let (op, dtype) = (self.name(), ins[0].dtype);
        let of = Sizes::new(self, outs[0].shape);
        let (kind, library) = (suffix(op, dtype)?, library_type(op, dtype)?);
        let lengths = self.lengths().map(|i| &ins[i]);
        if let Some(lengths) = lengths {
            check_lengths(gpu, op, lengths, of.steps)?;
        }
        let lengths = lengths.map_or(Ok(NONE), View::ptr)?;
        // The state is f32, and for the products there is a copy where they take halves.
        let mut narrow = match dtype {
            DType::F32 => None,
            _ => Some(Scratch::new(gpu, dtype, [of.samples, of.hidden].into())?),
        };
        let (ys, states) = outs.split_at_mut(1);
        for (i, state) in states.iter_mut().enumerate() {
            match self.start {
                true => deliver(gpu, &ins[self.state() + i], state, false)?,
                false => gpu.fill_zero(state.ptr()?, of.state() * state.dtype.size())?,
            }
        }
        if let (Some(narrow), true) = (&mut narrow, self.start) {
            deliver(gpu, &ins[self.state()], &mut narrow.view_mut(), false)?;
        }
        let state = |i: usize| states.get(i).map_or(Ok(NONE), ViewMut::ptr);
        let (h, c) = (state(0)?, state(1)?);
        let narrow = narrow.as_ref().map_or(NONE, Scratch::ptr);
        let read = if narrow == NONE { h } else { narrow };
        let x = ins[0].ptr()?;
        let y = ys[0].ptr()?;
        let w = typed(gpu, &ins[1], dtype)?;
        let w = weight(gpu, &w)?;
        let (bias, bias_type) = match self.bias {
            true => (ins[2].ptr()?, cuda::code(ins[2].dtype)),
            false => (NONE, 0),
        };
        // Plain cells keep nothing, but the product needs a place.
        let (gates, space) = match saved.first() {
            Some(kept) => (kept.ptr()?, None),
            None => {
                let space = Scratch::new(gpu, DType::F32, [of.samples, of.kept()].into())?;
                (space.ptr(), Some(space))
            }
        };
        let cells = saved.get(1).map_or(Ok(NONE), ViewMut::ptr)?;
        for s in 0..of.steps {
            let t = of.place(s);
            let gates =
                if space.is_some() { gates } else { at(gates, t, of.samples * of.kept(), DType::F32) };
            let had_state = s > 0 || self.start;
            if had_state && of.samples > 0 {
                let gemm = of.gemm(gpu, library, true, of.kept());
                gpu.blas()?.gemm(&gemm, 1.0, read, w.ptr()?, gates, None)?;
            }
            let args = Args::new().ptr(at(x, t, of.samples * of.gates(), dtype)).ptr(gates);
            let args = args.ptr(bias).i32(bias_type).ptr(h).ptr(c).ptr(narrow);
            let args = args.ptr(at(y, t, of.state(), dtype)).ptr(at(cells, t, of.state(), DType::F32));
            let args = args.ptr(lengths).i32(i32::from(had_state)).pod(of.cuda(t));
            launch(gpu, &SOURCE, &format!("step_{kind}"), of.state(), args)?;
        }
        Ok(())
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let (op, gpu) = (self.name(), cx.gpu()?);
        let y = saved.output(0)?;
        let (dtype, shape) = (y.dtype(), y.shape());
        let kind = suffix(op, dtype)?;
        let of = Sizes::new(self, shape);
        let lengths = match self.lengths() {
            Some(i) => Some(saved.input(i)?.contiguous()?.read()?),
            None => None,
        };
        let lengths = lengths.as_ref().map_or(Ok(NONE), Read::ptr)?;
        let w = saved.input(1)?.read()?;
        let w = typed(gpu, &w.view(), dtype)?;
        let w = weight(gpu, &w)?;
        // The states at the start: h as products read it, c as it is.
        let mut start = |k: usize, dtype: DType| -> Result<Option<Tensor>> {
            match self.start && k < self.cell.states() {
                true => Ok(Some(saved.input(self.state() + k)?.to(dtype)?.contiguous()?)),
                false => Ok(None),
            }
        };
        let (h0, c0) = (start(0, dtype)?, start(1, DType::F32)?);
        let [h0, c0] = [&h0, &c0].map(|t| t.as_ref().map(Tensor::read).transpose());
        let (h0, c0) = (h0?, c0?);
        let kept = saved.extra.iter().map(Tensor::read).collect::<Result<Vec<_>>>()?;
        let g = grads[0].as_ref().map(|g| g.to(dtype)?.contiguous()?.read()).transpose()?;
        let y = y.contiguous()?.read()?;
        let to_start = self.start && (0..self.cell.states()).any(|k| sink.wants(self.state() + k));

        // The states' gradients after the sequence become those before it.
        let after = |k: usize| -> Result<Scratch> {
            let mut to = Scratch::new(gpu, DType::F32, [of.samples, of.hidden].into())?;
            match grads.get(1 + k).and_then(Option::as_ref).filter(|_| k < self.cell.states()) {
                Some(g) => deliver(gpu, &g.contiguous()?.read()?.view(), &mut to.view_mut(), false)?,
                None => gpu.fill_zero(to.ptr(), of.state() * size_of::<f32>())?,
            }
            Ok(to)
        };
        let (dh, dc) = (after(0)?, after(1)?);
        let all = shape.with(2, of.gates());
        let dr = match self.cell {
            Cell::Gru => Some(Scratch::new(gpu, dtype, all)?),
            _ => None,
        };
        let ptr = |read: Option<&Read>| read.map_or(Ok(NONE), Read::ptr);
        let (h0_at, c0_at, g_at) = (ptr(h0.as_ref())?, ptr(c0.as_ref())?, ptr(g.as_ref())?);
        let (gates, cells) = (ptr(kept.first())?, ptr(kept.get(1))?);
        let dx = cx.make(dtype, all, |out| {
            let (dx, dr) = (out.ptr()?, dr.as_ref().map_or(NONE, Scratch::ptr));
            for s in (0..of.steps).rev() {
                let t = of.place(s);
                let [dx, dr] = [dx, dr].map(|p| at(p, t, of.samples * of.gates(), dtype));
                let args = Args::new().ptr(y.ptr()?).ptr(gates).ptr(cells).ptr(h0_at).ptr(c0_at).ptr(g_at);
                let args = args.ptr(dh.ptr()).ptr(dc.ptr()).ptr(dx).ptr(dr).ptr(lengths).pod(of.cuda(t));
                launch(gpu, &SOURCE, &format!("step_back_{kind}"), of.state(), args)?;
                if (s > 0 || to_start) && of.samples > 0 {
                    let through = if dr == NONE { dx } else { dr };
                    let gemm = of.gemm(gpu, library_type(op, dtype)?, false, of.hidden);
                    gpu.blas()?.gemm(&gemm, 1.0, through, w.ptr()?, dh.ptr(), None)?;
                }
            }
            Ok(())
        })?;

        let dx_read = dx.read()?;
        let through = dr.as_ref().map_or_else(|| dx_read.view(), Scratch::view);
        if let Some(mut slot) = sink.slot(1)? {
            let add = slot.accumulate();
            weight_gradient(gpu, op, &of, &through, &y.view(), h0.as_ref(), lengths, &mut slot.view(), add)?;
        }
        sink.settle(1)?;
        if self.bias
            && let Some(mut slot) = sink.slot(2)?
        {
            let add = slot.accumulate();
            column_sums(gpu, op, &through, &mut slot.view(), add)?;
        }
        if self.start {
            for (k, state) in [&dh, &dc].into_iter().take(self.cell.states()).enumerate() {
                let made = cx.make(DType::F32, shape.without(0), |mut to| {
                    deliver(gpu, &state.view(), &mut to, false)
                })?;
                sink.pass(self.state() + k, made)?;
            }
        }
        drop(dx_read);
        sink.pass(0, dx)
    }
}

/// The gradient of the recurrent weight, as on the CPU: one product over all steps but the first, whose state came in, and
/// one for that when it was not zero.
#[allow(clippy::too_many_arguments, reason = "they are what the gradient is made of")]
fn weight_gradient(
    gpu: &Context,
    op: &'static str,
    of: &Sizes,
    through: &View,
    y: &View,
    h0: Option<&Read>,
    lengths: DevicePtr,
    to: &mut ViewMut,
    add: bool,
) -> Result<()> {
    let (dtype, width, hidden) = (y.dtype, of.gates(), of.hidden);
    let rows = of.steps.saturating_sub(1) * of.samples;
    // The state before a step is the output of the step before; past a length both sides are zero.
    let offset =
        |view: &View, n: usize, skip: bool| view.layout.offset + if skip { of.samples * n } else { 0 };
    let at = offset(through, width, !of.reverse && of.steps > 0);
    let grads = through.with(Layout::with([width, rows].into(), &[1, width], at));
    let at = offset(y, hidden, of.reverse && of.steps > 0);
    let states = y.with(Layout::with([rows, hidden].into(), &[hidden, 1], at));
    multiply(gpu, op, dtype, &grads, &states, None, to, add)?;
    let Some(h0) = h0.filter(|_| of.steps > 0) else { return Ok(()) };
    let first = Scratch::new(gpu, dtype, [of.samples, width].into())?;
    let args = Args::new().ptr(through.ptr()?).ptr(first.ptr()).ptr(lengths).pod(of.cuda(0));
    let kernel = format!("first_rows_{}", suffix(op, dtype)?);
    launch(gpu, &SOURCE, &kernel, of.samples * width, args)?;
    let first = first.view();
    let turned = Layout::with([width, of.samples].into(), &[1, width], 0);
    multiply(gpu, op, dtype, &first.with(turned), &h0.view(), None, to, true)
}
