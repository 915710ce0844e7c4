//! Softmax and losses on the CPU: one row after the other, vectors along the classes.

use std::sync::Mutex;

use phalanx_host::Cpu;
use phalanx_host::simd::{Kernel, Simd};

use crate::ops::columns::{load, store};
use crate::ops::elementwise::math::Math;

/// Numbers that one task reads, about.
const PIECE: usize = 16 * 1024;

/// Rows of `k` numbers that one task computes.
pub(super) fn rows_a_task(k: usize) -> usize {
    (PIECE / k.max(1)).max(1)
}

/// The largest number of a row; not a number only when all are.
#[inline(always)]
pub(crate) fn largest<E: Math, V: Simd<E>>(x: &[E]) -> E {
    let mut best = V::splat(E::NEG_INFINITY);
    let mut i = 0;
    while i + V::LANES <= x.len() {
        best = load::<E, V>(x, i, V::LANES).max(best);
        i += V::LANES;
    }
    let mut lanes = [E::NEG_INFINITY; 16];
    const { assert!(V::LANES <= 16) };
    // SAFETY: the array has room for `LANES` numbers, as was just asserted.
    unsafe { best.store(lanes.as_mut_ptr()) };
    lanes.iter().chain(&x[i..]).fold(E::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// `y = e^(x − top)`, and the sum of `y`.
#[inline(always)]
pub(crate) fn exponentials<E: Math, V: Simd<E>>(x: &[E], top: E, y: &mut [E]) -> E {
    let (top, mut sum) = (V::splat(top), V::splat(E::ZERO));
    let mut i = 0;
    while i + V::LANES <= x.len() {
        let e = E::exp(load::<E, V>(x, i, V::LANES).sub(top));
        store(e, y, i, V::LANES);
        sum = sum.add(e);
        i += V::LANES;
    }
    let w = x.len() - i;
    if w > 0 {
        store(E::exp(load::<E, V>(x, i, w).sub(top)), y, i, w);
        // Read again, so that the lanes past the row count as zero.
        sum = sum.add(load(y, i, w));
    }
    sum.sum()
}

/// Applies `f` to the vectors of two rows: `y = f(x, y)`.
#[inline(always)]
pub(crate) fn update<E: Math, V: Simd<E>>(x: &[E], y: &mut [E], f: impl Fn(V, V) -> V) {
    let mut i = 0;
    while i < y.len() {
        let w = (y.len() - i).min(V::LANES);
        let v = f(load(x, i, w), load(y, i, w));
        store(v, y, i, w);
        i += w;
    }
}

/// The logarithm of one number.
#[inline(always)]
fn log<E: Math, V: Simd<E>>(x: E) -> E {
    let mut lanes = [E::ZERO; 16];
    const { assert!(V::LANES <= 16) };
    // SAFETY: the array has room for `LANES` numbers, as was just asserted.
    unsafe { E::log(V::splat(x)).store(lanes.as_mut_ptr()) };
    lanes[0]
}

struct Rows<'a, E> {
    k: usize,
    log: bool,
    x: &'a [E],
    y: &'a mut [E],
}

impl<E: Math> Kernel<E> for Rows<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        for (x, y) in self.x.chunks_exact(self.k).zip(self.y.chunks_exact_mut(self.k)) {
            let top = largest::<E, V>(x);
            let sum = exponentials::<E, V>(x, top, y);
            if self.log {
                let (top, log) = (V::splat(top), V::splat(log::<E, V>(sum)));
                update::<E, V>(x, y, |x, _| x.sub(top).sub(log));
            } else {
                let share = V::splat(E::ONE / sum);
                update::<E, V>(x, y, |_, y| y.mul(share));
            }
        }
    }
}

/// The softmax of rows of `k` numbers, or its logarithm.
pub(super) fn softmax<E: Math>(cpu: &Cpu, k: usize, log: bool, x: &[E], y: &mut [E]) {
    if y.is_empty() {
        return;
    }
    let piece = rows_a_task(k) * k;
    cpu.workers.chunks(y, piece, |i, y| {
        let x = &x[i * piece..i * piece + y.len()];
        E::dispatch(cpu.isa, Rows { k, log, x, y });
    });
}

struct RowsGradient<'a, E> {
    k: usize,
    log: bool,
    y: &'a [E],
    g: &'a [E],
    dx: &'a mut [E],
    accumulate: bool,
}

impl<E: Math> Kernel<E> for RowsGradient<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let rows = self.y.chunks_exact(self.k).zip(self.g.chunks_exact(self.k));
        for ((y, g), dx) in rows.zip(self.dx.chunks_exact_mut(self.k)) {
            let mut sum = V::splat(E::ZERO);
            let mut i = 0;
            while i < self.k {
                let w = (self.k - i).min(V::LANES);
                let part: V = load(g, i, w);
                sum = sum.add(if self.log { part } else { part.mul(load(y, i, w)) });
                i += w;
            }
            let sum = V::splat(sum.sum());
            let mut i = 0;
            while i < self.k {
                let w = (self.k - i).min(V::LANES);
                let (g, y): (V, V) = (load(g, i, w), load(y, i, w));
                let d = if self.log { g.sub(E::exp(y).mul(sum)) } else { y.mul(g.sub(sum)) };
                store(if self.accumulate { d.add(load(dx, i, w)) } else { d }, dx, i, w);
                i += w;
            }
        }
    }
}

/// `dx (+)=` the gradient of [`softmax`] from its output.
pub(super) fn softmax_gradient<E: Math>(
    cpu: &Cpu,
    k: usize,
    log: bool,
    y: &[E],
    g: &[E],
    dx: &mut [E],
    accumulate: bool,
) {
    if dx.is_empty() {
        return;
    }
    let piece = rows_a_task(k) * k;
    cpu.workers.chunks(dx, piece, |i, dx| {
        let at = i * piece..i * piece + dx.len();
        E::dispatch(cpu.isa, RowsGradient { k, log, y: &y[at.clone()], g: &g[at], dx, accumulate });
    });
}

/// What the rows of logits are compared with.
#[derive(Clone, Copy)]
pub(super) enum Target<'a, E> {
    /// A class for each row.
    Labels(&'a [i64]),
    /// A probability for each logit.
    Shares(&'a [E]),
}

/// How much each class of each row counts: class c of a row with `q[c]` times −log softmax(x)[c].
#[derive(Clone, Copy)]
pub(super) struct Goal<'a, E> {
    /// The classes, numbers of a row.
    pub(super) k: usize,
    pub(super) target: Target<'a, E>,
    /// The label whose rows count nothing.
    pub(super) ignore: Option<i64>,
    /// Weights of samples.
    pub(super) weights: Option<&'a [E]>,
    /// Rows of a sample.
    pub(super) each: usize,
    /// What a class's share of the target counts: its weight, less what smoothing takes.
    pub(super) scale: &'a [E],
    /// What each class counts in every row, from smoothing; empty without it.
    pub(super) base: &'a [E],
}

/// One row's part of a [`Goal`].
#[derive(Clone, Copy)]
struct Aim<'a, E> {
    /// The sample's weight; none is 1.
    weight: Option<E>,
    /// The label and what it counts besides `base`.
    own: Option<(usize, E)>,
    /// The row's probabilities.
    shares: Option<&'a [E]>,
}

impl<'a, E: Math> Goal<'a, E> {
    /// Row `r`, or nothing when it is ignored.
    #[inline(always)]
    fn aim(&self, r: usize) -> Option<Aim<'a, E>> {
        let weight = self.weights.map(|w| w[r / self.each]);
        match self.target {
            Target::Labels(l) if Some(l[r]) == self.ignore => None,
            Target::Labels(l) => {
                let label = l[r] as usize;
                Some(Aim { weight, own: Some((label, self.scale[label])), shares: None })
            }
            Target::Shares(t) => {
                Some(Aim { weight, own: None, shares: Some(&t[r * self.k..(r + 1) * self.k]) })
            }
        }
    }

    /// What classes `i..i + w` count besides the label.
    #[inline(always)]
    fn counts<V: Simd<E>>(&self, shares: Option<&[E]>, i: usize, w: usize) -> V {
        let base = if self.base.is_empty() { V::splat(E::ZERO) } else { load(self.base, i, w) };
        shares.map_or(base, |t| load::<E, V>(t, i, w).mul_add(load(self.scale, i, w), base))
    }

    /// Whether a row's classes count one by one, not only its label.
    #[inline(always)]
    fn dense(&self, aim: &Aim<E>) -> bool {
        aim.shares.is_some() || !self.base.is_empty()
    }

    /// Σ counts, and Σ counts · (x − top).
    #[inline(always)]
    fn sums<V: Simd<E>>(&self, shares: Option<&[E]>, x: &[E], top: E) -> [E; 2] {
        let mut sums = [V::splat(E::ZERO); 2];
        let mut i = 0;
        while i < self.k {
            let w = (self.k - i).min(V::LANES);
            let q: V = self.counts(shares, i, w);
            sums[0] = sums[0].add(q);
            sums[1] = q.mul_add(load::<E, V>(x, i, w).sub(V::splat(top)), sums[1]);
            i += w;
        }
        sums.map(V::sum)
    }
}

struct Entropy<'a, E> {
    goal: Goal<'a, E>,
    /// The first row's number.
    first: usize,
    x: &'a [E],
    p: &'a mut [E],
}

impl<E: Math> Kernel<E> for Entropy<'_, E> {
    type Out = f64;
    #[inline(always)]
    fn run<V: Simd<E>>(self) -> f64 {
        let (goal, mut total) = (self.goal, 0.0);
        let rows = self.x.chunks_exact(goal.k).zip(self.p.chunks_exact_mut(goal.k));
        for (i, (x, p)) in rows.enumerate() {
            let Some(aim) = goal.aim(self.first + i) else {
                p.fill(E::ZERO);
                continue;
            };
            let top = largest::<E, V>(x);
            let sum = exponentials::<E, V>(x, top, p);
            let share = V::splat(E::ONE / sum);
            update::<E, V>(x, p, |_, p| p.mul(share));
            let log = log::<E, V>(sum);
            let own = aim.own.map_or(0.0, |(label, count)| {
                let loss = log - (x[label] - top);
                count.to_f64() * loss.to_f64()
            });
            let mut loss = own;
            if goal.dense(&aim) {
                // Both terms are at least 0: nothing cancels.
                let [counts, dot] = goal.sums::<V>(aim.shares, x, top);
                loss += (counts * log - dot).to_f64();
            }
            total += aim.weight.map_or(1.0, E::to_f64) * loss;
        }
        total
    }
}

/// The weighted sum of Σ counts · −log softmax(x) over rows; the softmax goes to `p`, zeros for ignored rows.
pub(super) fn cross_entropy<E: Math>(cpu: &Cpu, goal: Goal<E>, x: &[E], p: &mut [E]) -> f64 {
    if p.is_empty() {
        return 0.0;
    }
    let rows = rows_a_task(goal.k);
    let piece = rows * goal.k;
    sum_of_tasks(p.len().div_ceil(piece), |sums| {
        cpu.workers.chunks(p, piece, |i, p| {
            let x = &x[i * piece..i * piece + p.len()];
            put(sums, i, E::dispatch(cpu.isa, Entropy { goal, first: i * rows, x, p }));
        });
    })
}

/// The sum of what tasks hand in, in the order of their numbers.
pub(super) fn sum_of_tasks(tasks: usize, run: impl FnOnce(&Mutex<Vec<f64>>)) -> f64 {
    let sums = Mutex::new(vec![0.0; tasks]);
    run(&sums);
    sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_iter().sum()
}

pub(super) fn put(sums: &Mutex<Vec<f64>>, i: usize, sum: f64) {
    sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[i] = sum;
}

struct EntropyGradient<'a, E> {
    goal: Goal<'a, E>,
    first: usize,
    p: &'a [E],
    g: E,
    dx: &'a mut [E],
    accumulate: bool,
}

impl<E: Math> Kernel<E> for EntropyGradient<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let goal = self.goal;
        let rows = self.p.chunks_exact(goal.k).zip(self.dx.chunks_exact_mut(goal.k));
        for (i, (p, dx)) in rows.enumerate() {
            let Some(aim) = goal.aim(self.first + i) else {
                if !self.accumulate {
                    dx.fill(E::ZERO);
                }
                continue;
            };
            let g = aim.weight.map_or(self.g, |w| self.g * w);
            let rest = match goal.dense(&aim) {
                true => goal.sums::<V>(aim.shares, p, E::ZERO)[0],
                false => E::ZERO,
            };
            // The label's own place apart: (p − 1) · count keeps its digits where p is near 1.
            let own = aim.own.map(|(label, count)| {
                let base = goal.base.get(label).copied().unwrap_or(E::ZERO);
                let d = ((p[label] - E::ONE) * count + (rest * p[label] - base)) * g;
                (label, if self.accumulate { dx[label] + d } else { d })
            });
            let v = V::splat(aim.own.map_or(rest, |(_, count)| count + rest) * g);
            if goal.dense(&aim) {
                let g = V::splat(g);
                let mut j = 0;
                while j < dx.len() {
                    let w = (dx.len() - j).min(V::LANES);
                    let q = goal.counts::<V>(aim.shares, j, w).mul(g);
                    let d = load::<E, V>(p, j, w).mul(v).sub(q);
                    store(if self.accumulate { d.add(load(dx, j, w)) } else { d }, dx, j, w);
                    j += w;
                }
            } else if self.accumulate {
                update::<E, V>(p, dx, |p, d| p.mul_add(v, d));
            } else {
                update::<E, V>(p, dx, |p, _| p.mul(v));
            }
            if let Some((label, d)) = own {
                dx[label] = d;
            }
        }
    }
}

/// `dx (+)= g · weight · (Σ counts · p − counts)`.
pub(super) fn cross_entropy_gradient<E: Math>(
    cpu: &Cpu,
    goal: Goal<E>,
    p: &[E],
    g: E,
    dx: &mut [E],
    accumulate: bool,
) {
    if dx.is_empty() {
        return;
    }
    let rows = rows_a_task(goal.k);
    let piece = rows * goal.k;
    cpu.workers.chunks(dx, piece, |i, dx| {
        let p = &p[i * piece..i * piece + dx.len()];
        E::dispatch(cpu.isa, EntropyGradient { goal, first: i * rows, p, g, dx, accumulate });
    });
}
