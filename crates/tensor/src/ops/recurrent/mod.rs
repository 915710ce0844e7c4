//! Recurrent layers over whole sequences: torch.nn.RNN, LSTM and GRU (Elman, 1990; Hochreiter and Schmidhuber,
//! 1997; Cho et al., 2014).
//!
//! The input's part of all gates is one product for the whole sequence ([`Tensor::linear`], with its gradients).
//! The op here goes through the steps: one product with the recurrent weight, packed once, and one pass
//! that makes the gates and the state. On the way back the weight's gradient is one product over all steps.
//! Inside, time is the first axis, so that a step is one block of memory.

mod cpu;
pub(super) mod cuda;
mod steps;

use phalanx_host::{Buffer, Mat, MatMut, gemm};

use self::steps::{Back, Forward, Gradients, Made, Sizes};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved, Spec};
use crate::ops::columns::add_column_sums;
use crate::ops::elementwise::math::Math;
use crate::ops::matmul::mat;
use crate::sink::{GradSink, Slot};
use crate::tape::apply;
use crate::tensor::Read;
use crate::{DType, Error, Result, Shape, Tensor, View, ViewMut, half_storage, ops};

/// The function of a recurrent layer's step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// h' = tanh(x + h)
    Tanh,
    /// h' = max(x + h, 0)
    Relu,
    /// Gates input, forget, cell, output; the states are h and c.
    Lstm,
    /// Gates reset, update, new.
    Gru,
}

impl Cell {
    /// Vectors of the hidden size in a row of gates: the weights have as many times the hidden size rows.
    pub fn gates(self) -> usize {
        match self {
            Cell::Tanh | Cell::Relu => 1,
            Cell::Lstm => 4,
            Cell::Gru => 3,
        }
    }

    /// The number of states: c comes after h.
    pub fn states(self) -> usize {
        if self == Cell::Lstm { 2 } else { 1 }
    }

    /// Vectors of the hidden size that a step keeps for the backward pass.
    fn kept(self) -> usize {
        match self {
            Cell::Tanh | Cell::Relu => 0,
            Cell::Lstm | Cell::Gru => 4,
        }
    }

    /// The name in errors.
    fn name(self) -> &'static str {
        match self {
            Cell::Tanh | Cell::Relu => "rnn",
            Cell::Lstm => "lstm",
            Cell::Gru => "gru",
        }
    }
}

/// One direction of one recurrent layer, with PyTorch's weights: `weight_ih` `[G·H, I]`, `weight_hh` `[G·H, H]` and the
/// biases `[G·H]` of both, for the cell's G gates.
#[derive(Debug, Clone, Copy)]
pub struct Recurrence<'a> {
    /// The function of a step.
    pub cell: Cell,
    /// For the input.
    pub weight_ih: &'a Tensor,
    /// For the hidden state.
    pub weight_hh: &'a Tensor,
    /// For the input and for the hidden state.
    pub bias: Option<[&'a Tensor; 2]>,
    /// Whether steps are taken from the last to the first; outputs stay at their inputs' places.
    pub reverse: bool,
}

/// What a recurrent layer makes of sequences.
#[derive(Debug, Clone)]
pub struct Recurred {
    /// The hidden state after each step, `[N, T, H]`: zero past a sequence's length.
    pub outputs: Tensor,
    /// The states after each sequence's last step, `[N, H]` each: h, and c for an LSTM.
    pub states: Vec<Tensor>,
}

/// The steps of a sequence. Inputs: the input's part of the gates `[T, N, G·H]`, the recurrent weight
/// `[G·H, H]`, its bias, the states at the start `[N, H]`, the lengths `[N]`; the last three may be missing.
#[derive(Debug, Clone, Copy)]
struct Sequence {
    cell: Cell,
    reverse: bool,
    bias: bool,
    start: bool,
    lengths: bool,
}

impl Sequence {
    /// The first state's place among the inputs.
    fn state(&self) -> usize {
        2 + usize::from(self.bias)
    }

    /// The lengths' place among the inputs, if there are some.
    fn lengths(&self) -> Option<usize> {
        let states = if self.start { self.cell.states() } else { 0 };
        self.lengths.then(|| self.state() + states)
    }

    fn run<T: Math>(
        &self,
        cx: &Exec,
        ins: &[View],
        outs: &mut [ViewMut],
        saved: &mut [ViewMut],
    ) -> Result<()> {
        let cpu = cx.cpu()?;
        let lengths = self.lengths().map(|i| ins[i].slice::<i64>()).transpose()?;
        let of = Sizes::new(self.cell, self.reverse, outs[0].shape, lengths);
        if let Some(position) = lengths.unwrap_or(&[]).iter().position(|&l| l < 0 || l as usize > of.steps) {
            let index = lengths.unwrap_or(&[])[position];
            return Err(Error::Index { op: self.name(), index, position, limit: of.steps + 1 });
        }
        let (ys, states) = outs.split_at_mut(1);
        for (i, state) in states.iter_mut().enumerate() {
            let state = state.slice::<T>()?;
            match self.start {
                true => state.copy_from_slice(ins[self.state() + i].slice()?),
                false => state.fill(T::ZERO),
            }
        }
        let mut states = states.iter_mut().map(ViewMut::slice::<T>);
        let mut saved = saved.iter_mut().map(ViewMut::slice::<T>);
        let made = Made {
            y: ys[0].slice()?,
            h: states.next().unwrap_or_else(|| Ok(Default::default()))?,
            c: states.next().unwrap_or_else(|| Ok(Default::default()))?,
            gates: saved.next().unwrap_or_else(|| Ok(Default::default()))?,
            cells: saved.next().unwrap_or_else(|| Ok(Default::default()))?,
        };
        let bias = if self.bias { ins[2].slice()? } else { &[] };
        let read = Forward { x: ins[0].slice()?, bias, weight: mat(&ins[1])?, from_zero: !self.start };
        steps::forward(cpu, &of, &read, made)
    }

    fn run_back<T: Math>(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let cpu = cx.cpu()?;
        let y = saved.output(0)?;
        let (dtype, shape) = (y.dtype(), y.shape());
        let dense = |t: &Tensor| t.contiguous()?.read();
        let (y, w) = (dense(&y)?, saved.input(1)?.read()?);
        let start = |k: usize| match self.start && k < self.cell.states() {
            true => saved.inputs[self.state() + k].as_ref().map(dense).transpose(),
            false => Ok(None),
        };
        let (h0, c0) = (start(0)?, start(1)?);
        let lengths = match self.lengths() {
            Some(i) => saved.inputs[i].as_ref().map(dense).transpose()?,
            None => None,
        };
        let of = Sizes::new(self.cell, self.reverse, shape, lengths.as_ref().map(Read::slice).transpose()?);
        let g = grads[0].as_ref().map(dense).transpose()?;
        let kept = saved.extra.iter().map(Tensor::read).collect::<Result<Vec<_>>>()?;
        let read = Back {
            weight: mat(&w.view())?,
            y: y.slice()?,
            gates: some(kept.first())?,
            cells: some(kept.get(1))?,
            h0: some(h0.as_ref())?,
            c0: some(c0.as_ref())?,
            g: some(g.as_ref())?,
            to_start: self.start && (0..self.cell.states()).any(|k| sink.wants(self.state() + k)),
        };

        // The states' gradients after the sequence become those before it.
        let numbers = |n: usize| cx.workspace(n * size_of::<T>());
        let after = |k: usize| -> Result<Buffer> {
            let mut to = numbers(if k < self.cell.states() { of.samples * of.hidden } else { 0 })?;
            match grads.get(1 + k).and_then(Option::as_ref) {
                Some(g) => {
                    let mut to = ViewMut::new(g.dtype(), g.shape(), to.bytes_mut());
                    ops::shape::copy_into(cx, g, &mut to)?;
                }
                None => to.bytes_mut().fill(0),
            }
            Ok(to)
        };
        let (mut dh, mut dc) = (after(0)?, after(1)?);
        let all = of.steps * of.samples * of.gates();
        let mut dx = numbers(all)?;
        let mut dr = numbers(if self.cell == Cell::Gru { all } else { 0 })?;
        let to = Gradients {
            dh: dh.as_mut_slice(),
            dc: dc.as_mut_slice(),
            dx: dx.as_mut_slice(),
            dr: dr.as_mut_slice(),
        };
        steps::backward::<T>(cpu, &of, &read, to)?;

        let through: &[T] = if self.cell == Cell::Gru { dr.as_slice() } else { dx.as_slice() };
        if let Some(mut slot) = sink.slot(1)? {
            weight_gradient(cx, &of, through, &read, &mut slot)?;
        }
        sink.settle(1)?;
        if self.bias
            && let Some(mut slot) = sink.slot(2)?
        {
            let accumulate = slot.accumulate();
            add_column_sums::<T>(cpu, through, slot.slice()?, accumulate);
        }
        let pass = |sink: &mut GradSink, i: usize, from: Buffer, shape: Shape| {
            sink.pass(i, Tensor::from_buffer(from, dtype, shape, cx.device())?)
        };
        if self.start {
            for (k, state) in [dh, dc].into_iter().take(self.cell.states()).enumerate() {
                pass(sink, self.state() + k, state, shape.without(0))?;
            }
        }
        pass(sink, 0, dx, shape.with(2, of.gates()))
    }
}

/// The elements, or none.
fn some<T: Math>(t: Option<&Read>) -> Result<&[T]> {
    t.map_or(Ok(&[]), Read::slice)
}

/// The gradient of the recurrent weight: one product over all steps but the first, whose state came in, and one for
/// that when it was not zero. `through` is the gradient of the state's part of the gates.
fn weight_gradient<'a, T: Math>(
    cx: &Exec,
    of: &Sizes,
    through: &'a [T],
    read: &Back<'a, T>,
    slot: &mut Slot,
) -> Result<()> {
    let (cpu, n, width, hidden) = (cx.cpu()?, of.samples, of.gates(), of.hidden);
    let accumulate = slot.accumulate();
    let out = slot.slice::<T>()?;
    let rows = of.steps.saturating_sub(1) * n;
    // The state before a step is the output of the step before; past a length both sides are zero.
    let skip = |x: &'a [T], skip: bool, width: usize| {
        if skip { &x[x.len() - rows * width..] } else { &x[..rows * width] }
    };
    let (states, grads) = (skip(read.y, of.reverse, hidden), skip(through, !of.reverse, width));
    let grads = Mat::row_major(grads, rows, width)?;
    let to = MatMut::row_major(out, width, hidden)?;
    gemm(cpu, grads.t(), Mat::row_major(states, rows, hidden)?, to, accumulate)?;
    if read.h0.is_empty() {
        return Ok(());
    }
    let mut first = vec![T::ZERO; n * width];
    for (sample, row) in first.chunks_exact_mut(width).enumerate() {
        if let Some(t) = of.first(sample) {
            row.copy_from_slice(&through[(t * n + sample) * width..][..width]);
        }
    }
    let (first, start) = (Mat::row_major(&first, n, width)?, Mat::row_major(read.h0, n, hidden)?);
    Ok(gemm(cpu, first.t(), start, MatMut::row_major(out, width, hidden)?, true)?)
}

impl Op for Sequence {
    fn name(&self) -> &'static str {
        self.cell.name()
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let op = self.name();
        ops::want_real(op, inputs, 0)?;
        let (x, w) = (inputs[0].shape(), inputs[1].shape());
        let (&[steps, samples, width], &[rows, hidden]) = (&x[..], &w[..]) else {
            let hint = "it takes gates [T,N,G*H] and a recurrent weight [G*H,H]";
            return Err(Error::Shapes { op, lhs: x, rhs: w, hint });
        };
        if hidden == 0 || width != rows || rows != self.cell.gates() * hidden {
            let hint = match self.cell.gates() {
                1 => "its weights must have as many rows as hidden units",
                3 => "its weights must have three rows a hidden unit",
                _ => "its weights must have four rows a hidden unit",
            };
            return Err(Error::Shapes { op, lhs: x, rhs: w, hint });
        }
        let reals = inputs.len() - usize::from(self.lengths);
        (1..reals).try_for_each(|i| ops::want_same(op, inputs, i))?;
        if self.bias {
            ops::want_shape(op, inputs, 2, [rows].into(), "a bias has one number a row of the weight")?;
        }
        let state = Shape::from([samples, hidden]);
        for i in self.state()..reals {
            ops::want_shape(op, inputs, i, state, "a state has one row [H] a sample")?;
        }
        if let Some(i) = self.lengths() {
            ops::want_indices(op, inputs, i)?;
            ops::want_shape(op, inputs, i, [samples].into(), "there is one length a sample")?;
        }
        let dtype = inputs[0].dtype;
        let mut plan = Plan::one(dtype, [steps, samples, hidden].into());
        plan.outputs.extend((0..self.cell.states()).map(|_| Spec::new(dtype, state)));
        if self.cell.kept() > 0 {
            plan = plan.saving(dtype, [steps, samples, self.cell.kept() * hidden].into());
        }
        if self.cell == Cell::Lstm {
            plan = plan.saving(dtype, [steps, samples, hidden].into());
        }
        let all = (1 << inputs.len()) - 1;
        // Neither the gates that come in nor the bias are read again.
        let bias = if self.bias { 0b100 } else { 0 };
        Ok(plan.saving_inputs(all & !1 & !bias).saving_outputs(1).dense(all & !0b10))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()> {
        ops::real!(self.name(), ins[0].dtype, T => self.run::<T>(cx, ins, outs, saved))
    }

    fn backward(&self, cx: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let dtype = saved.metas[0].dtype;
        ops::real!(self.name(), dtype, T => self.run_back::<T>(cx, saved, grads, sink))
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }
}

impl Recurrence<'_> {
    /// Checks what the product with the input reads; the rest is checked where the steps are taken.
    fn check(&self, x: &Tensor) -> Result<()> {
        let op = self.cell.name();
        // Halves are computed with as single.
        let meta = |t: &Tensor| Meta {
            dtype: if half_storage::is_half(t.dtype()) { DType::F32 } else { t.dtype() },
            layout: *t.layout(),
        };
        let mut metas = vec![meta(x), meta(self.weight_ih)];
        metas.extend(self.bias.map(|b| meta(b[0])));
        ops::want_real(op, &metas, 0)?;
        (1..metas.len()).try_for_each(|i| ops::want_same(op, &metas, i))?;
        let (x, w, hh) = (x.shape(), self.weight_ih.shape(), self.weight_hh.shape());
        let hint = match (&x[..], &w[..], &hh[..]) {
            (&[_, _, i], &[rows, k], &[other, _]) if i == k && rows == other => {
                let hint = "a bias has one number a row of the weight";
                return metas.get(2).map_or(Ok(()), |_| ops::want_shape(op, &metas, 2, [rows].into(), hint));
            }
            (&[_, _, i], &[_, k], _) if i == k => "its two weights must have the same number of rows",
            _ => "it takes sequences [N,T,I] and a weight [G*H,I] for them",
        };
        Err(Error::Shapes { op, lhs: x, rhs: w, hint })
    }
}

impl Tensor {
    /// A recurrent layer over these sequences `[N, T, I]`, as one direction of one layer of torch.nn.RNN, LSTM or
    /// GRU.
    ///
    /// `start` are the cell's states before the first step, `[N, H]` each (h, then c), zeros when there are none.
    /// `lengths` (i64, `[N]`) are the steps of each sequence where they differ, in any order: what lies behind
    /// a sequence's length is not read, its outputs are zero, and its last state is that at the length, as with PyTorch's
    /// packed sequences. The outputs lie in memory with time first; a copy of them is made by who needs another order.
    ///
    /// Fails with [`Error::Index`] for a length outside `0..=T`, on a GPU as in [`Tensor::cross_entropy`], and with [`Error::Shapes`] or
    /// [`Error::DTypes`] for operands that do not fit. There is no gradient of the gradient.
    pub fn recurrent(
        &self,
        by: &Recurrence,
        start: Option<&[Tensor]>,
        lengths: Option<&Tensor>,
    ) -> Result<Recurred> {
        by.check(self)?;
        if let Some(got) = start.map(<[Tensor]>::len).filter(|&n| n != by.cell.states()) {
            let why = format!("{got} states were given, but it has {}", by.cell.states());
            return Err(Error::Invalid { op: by.cell.name(), shape: self.shape(), why });
        }
        let x = self.permute(&[1, 0, 2])?.linear(by.weight_ih, by.bias.map(|b| b[0]))?;
        let mut inputs = vec![&x, by.weight_hh];
        inputs.extend(by.bias.map(|b| b[1]));
        inputs.extend(start.unwrap_or_default());
        inputs.extend(lengths);
        let op = Sequence {
            cell: by.cell,
            reverse: by.reverse,
            bias: by.bias.is_some(),
            start: start.is_some(),
            lengths: lengths.is_some(),
        };
        let mut states = apply(op, &inputs)?;
        let outputs = states.remove(0).permute(&[1, 0, 2])?;
        Ok(Recurred { outputs, states })
    }

    /// One step of a recurrent cell for inputs `[N, I]`, as torch.nn.RNNCell, LSTMCell or GRUCell: the states after
    /// it, `[N, H]` each. Fails as [`Tensor::recurrent`].
    pub fn recurrent_step(&self, by: &Recurrence, start: Option<&[Tensor]>) -> Result<Vec<Tensor>> {
        let shape = self.shape();
        let &[samples, inputs] = &shape[..] else {
            let (rhs, hint) = (by.weight_ih.shape(), "a step takes inputs [N,I]");
            return Err(Error::Shapes { op: by.cell.name(), lhs: shape, rhs, hint });
        };
        Ok(self.reshape(&[samples, 1, inputs])?.recurrent(by, start, None)?.states)
    }
}
