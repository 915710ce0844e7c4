//! One step of a recurrent cell for one sample: gates, state and output in one pass, and the way back.
//!
//! A row of gates has a vector of H numbers for each gate, in PyTorch's order: input, forget, cell, output
//! (LSTM); reset, update, new (GRU).

use phalanx_host::simd::{Kernel, Simd};

use super::Cell;
use crate::ops::columns::{load, store};
use crate::ops::elementwise::math::{Math, sigmoid};

/// One step forward. Slices that a cell has no use for are empty.
pub(super) struct Step<'a, E> {
    pub(super) cell: Cell,
    /// The input's part of the gates.
    pub(super) x: &'a [E],
    /// Added to the state's part of the gates; empty when there is none.
    pub(super) bias: &'a [E],
    /// The state's part of the gates when it comes in, what the way back reads when it goes out.
    pub(super) gates: &'a mut [E],
    /// The hidden state, before and after.
    pub(super) h: &'a mut [E],
    /// The cell state, before and after (LSTM).
    pub(super) c: &'a mut [E],
    /// A copy of the cell state for the way back (LSTM).
    pub(super) kept: &'a mut [E],
    /// A copy of the hidden state: the output.
    pub(super) y: &'a mut [E],
}

impl<E: Math> Step<'_, E> {
    /// The state's part of the numbers `at..at + w` of the gates.
    #[inline(always)]
    fn recurrent<V: Simd<E>>(&self, at: usize, w: usize) -> V {
        let sum: V = load(self.gates, at, w);
        if self.bias.is_empty() { sum } else { sum.add(load(self.bias, at, w)) }
    }

    #[inline(always)]
    fn gate<V: Simd<E>>(&self, at: usize, w: usize) -> V {
        self.recurrent::<V>(at, w).add(load(self.x, at, w))
    }

    #[inline(always)]
    fn finish<V: Simd<E>>(&mut self, h: V, i: usize, w: usize) {
        store(h, self.h, i, w);
        store(h, self.y, i, w);
    }
}

impl<E: Math> Kernel<E> for Step<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(mut self) {
        let n = self.h.len();
        let mut i = 0;
        while i < n {
            let w = (n - i).min(V::LANES);
            match self.cell {
                Cell::Tanh => {
                    let h = E::tanh(self.gate::<V>(i, w));
                    self.finish(h, i, w);
                }
                Cell::Relu => {
                    let h = V::splat(E::ZERO).max(self.gate::<V>(i, w));
                    self.finish(h, i, w);
                }
                Cell::Lstm => {
                    let input = sigmoid::<E, V>(self.gate(i, w));
                    let forget = sigmoid::<E, V>(self.gate(n + i, w));
                    let new = E::tanh(self.gate::<V>(2 * n + i, w));
                    let output = sigmoid::<E, V>(self.gate(3 * n + i, w));
                    let c = forget.mul_add(load(self.c, i, w), input.mul(new));
                    for (k, gate) in [input, forget, new, output].into_iter().enumerate() {
                        store(gate, self.gates, k * n + i, w);
                    }
                    store(c, self.c, i, w);
                    store(c, self.kept, i, w);
                    self.finish(output.mul(E::tanh(c)), i, w);
                }
                Cell::Gru => {
                    let reset = sigmoid::<E, V>(self.gate(i, w));
                    let update = sigmoid::<E, V>(self.gate(n + i, w));
                    let inner: V = self.recurrent(2 * n + i, w);
                    let new = E::tanh(reset.mul_add(inner, load(self.x, 2 * n + i, w)));
                    let h: V = load(self.h, i, w);
                    for (k, gate) in [reset, update, new, inner].into_iter().enumerate() {
                        store(gate, self.gates, k * n + i, w);
                    }
                    self.finish(update.mul_add(h.sub(new), new), i, w);
                }
            }
            i += w;
        }
    }
}

/// One step back. Slices that a cell has no use for are empty.
pub(super) struct StepBack<'a, E> {
    pub(super) cell: Cell,
    /// What [`Step`] left in the gates.
    pub(super) gates: &'a [E],
    /// The output (plain cells), or the cell state after the step (LSTM).
    pub(super) after: &'a [E],
    /// The state before the step: hidden (GRU) or cell (LSTM).
    pub(super) before: &'a [E],
    /// The output's gradient; empty when nothing depends on it.
    pub(super) g: &'a [E],
    /// The hidden state's gradient: after the step when it comes in, and when it goes out the part of that before
    /// the step that does not go through the recurrent weight.
    pub(super) dh: &'a mut [E],
    /// The cell state's gradient, after and before the step (LSTM).
    pub(super) dc: &'a mut [E],
    /// The gradient of the input's part of the gates.
    pub(super) dx: &'a mut [E],
    /// The gradient of the state's part where it is another (GRU).
    pub(super) dr: &'a mut [E],
}

/// x (1 − x)
#[inline(always)]
fn sigmoid_slope<E: Math, V: Simd<E>>(x: V) -> V {
    x.mul(V::splat(E::ONE).sub(x))
}

/// 1 − x²
#[inline(always)]
fn tanh_slope<E: Math, V: Simd<E>>(x: V) -> V {
    V::splat(E::ONE).sub(x.mul(x))
}

impl<E: Math> Kernel<E> for StepBack<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let n = self.dh.len();
        let zero = V::splat(E::ZERO);
        let mut i = 0;
        while i < n {
            let w = (n - i).min(V::LANES);
            let gate = |k: usize| load::<E, V>(self.gates, k * n + i, w);
            let mut dh: V = load(self.dh, i, w);
            if !self.g.is_empty() {
                dh = dh.add(load(self.g, i, w));
            }
            let mut rest = zero;
            match self.cell {
                Cell::Tanh => {
                    store(dh.mul(tanh_slope::<E, V>(load(self.after, i, w))), self.dx, i, w);
                }
                Cell::Relu => {
                    let y: V = load(self.after, i, w);
                    store(y.if_gt(zero, dh, zero), self.dx, i, w);
                }
                Cell::Lstm => {
                    let (input, forget, new, output) = (gate(0), gate(1), gate(2), gate(3));
                    let t = E::tanh(load::<E, V>(self.after, i, w));
                    let dc = dh.mul(output).mul_add(tanh_slope(t), load(self.dc, i, w));
                    let parts = [
                        dc.mul(new).mul(sigmoid_slope(input)),
                        dc.mul(load(self.before, i, w)).mul(sigmoid_slope(forget)),
                        dc.mul(input).mul(tanh_slope(new)),
                        dh.mul(t).mul(sigmoid_slope(output)),
                    ];
                    for (k, part) in parts.into_iter().enumerate() {
                        store(part, self.dx, k * n + i, w);
                    }
                    store(dc.mul(forget), self.dc, i, w);
                }
                Cell::Gru => {
                    let (reset, update, new, inner) = (gate(0), gate(1), gate(2), gate(3));
                    let dn = dh.mul(V::splat(E::ONE).sub(update)).mul(tanh_slope(new));
                    let before: V = load(self.before, i, w);
                    let dz = dh.mul(before.sub(new)).mul(sigmoid_slope(update));
                    let dr = dn.mul(inner).mul(sigmoid_slope(reset));
                    for (k, part) in [dr, dz, dn].into_iter().enumerate() {
                        store(part, self.dx, k * n + i, w);
                    }
                    for (k, part) in [dr, dz, dn.mul(reset)].into_iter().enumerate() {
                        store(part, self.dr, k * n + i, w);
                    }
                    rest = dh.mul(update);
                }
            }
            store(rest, self.dh, i, w);
            i += w;
        }
    }
}
