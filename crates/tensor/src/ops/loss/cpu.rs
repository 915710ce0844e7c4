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

struct Entropy<'a, E> {
    k: usize,
    x: &'a [E],
    labels: &'a [i64],
    weights: Option<&'a [E]>,
    p: &'a mut [E],
}

impl<E: Math> Kernel<E> for Entropy<'_, E> {
    type Out = f64;
    #[inline(always)]
    fn run<V: Simd<E>>(self) -> f64 {
        let mut total = 0.0;
        let rows = self.x.chunks_exact(self.k).zip(self.p.chunks_exact_mut(self.k));
        for (i, ((x, p), &label)) in rows.zip(self.labels).enumerate() {
            let top = largest::<E, V>(x);
            let sum = exponentials::<E, V>(x, top, p);
            let share = V::splat(E::ONE / sum);
            update::<E, V>(x, p, |_, p| p.mul(share));
            let loss = log::<E, V>(sum) - (x[label as usize] - top);
            total += self.weights.map_or(1.0, |w| w[i].to_f64()) * loss.to_f64();
        }
        total
    }
}

/// The weighted sum of −log softmax(x)[label] over rows of `k` numbers; the softmax goes to `p`.
pub(super) fn cross_entropy<E: Math>(
    cpu: &Cpu,
    k: usize,
    x: &[E],
    labels: &[i64],
    weights: Option<&[E]>,
    p: &mut [E],
) -> f64 {
    if p.is_empty() {
        return 0.0;
    }
    let rows = rows_a_task(k);
    let piece = rows * k;
    sum_of_tasks(p.len().div_ceil(piece), |sums| {
        cpu.workers.chunks(p, piece, |i, p| {
            let at = i * rows..i * rows + p.len() / k;
            let (x, weights) = (&x[i * piece..i * piece + p.len()], weights.map(|w| &w[at.clone()]));
            put(sums, i, E::dispatch(cpu.isa, Entropy { k, x, labels: &labels[at], weights, p }));
        });
    })
}

/// The sum of what tasks hand in, in the order of their numbers.
fn sum_of_tasks(tasks: usize, run: impl FnOnce(&Mutex<Vec<f64>>)) -> f64 {
    let sums = Mutex::new(vec![0.0; tasks]);
    run(&sums);
    sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_iter().sum()
}

fn put(sums: &Mutex<Vec<f64>>, i: usize, sum: f64) {
    sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[i] = sum;
}

struct EntropyGradient<'a, E> {
    k: usize,
    p: &'a [E],
    labels: &'a [i64],
    weights: Option<&'a [E]>,
    g: E,
    dx: &'a mut [E],
    accumulate: bool,
}

impl<E: Math> Kernel<E> for EntropyGradient<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let rows = self.p.chunks_exact(self.k).zip(self.dx.chunks_exact_mut(self.k));
        for (i, ((p, dx), &label)) in rows.zip(self.labels).enumerate() {
            let scale = self.weights.map_or(self.g, |w| self.g * w[i]);
            let (v, label) = (V::splat(scale), label as usize);
            // The label's own place apart: (p − 1) · scale keeps its digits where p is near 1.
            let own = (p[label] - E::ONE) * scale;
            let own = if self.accumulate { dx[label] + own } else { own };
            match self.accumulate {
                true => update::<E, V>(p, dx, |p, d| p.mul_add(v, d)),
                false => update::<E, V>(p, dx, |p, _| p.mul(v)),
            }
            dx[label] = own;
        }
    }
}

/// `dx (+)= g · weight · (p − onehot(label))`.
pub(super) fn cross_entropy_gradient<E: Math>(
    cpu: &Cpu,
    k: usize,
    p: &[E],
    labels: &[i64],
    weights: Option<&[E]>,
    g: E,
    dx: &mut [E],
    accumulate: bool,
) {
    if dx.is_empty() {
        return;
    }
    let rows = rows_a_task(k);
    let piece = rows * k;
    cpu.workers.chunks(dx, piece, |i, dx| {
        let at = i * rows..i * rows + dx.len() / k;
        let (p, weights) = (&p[i * piece..i * piece + dx.len()], weights.map(|w| &w[at.clone()]));
        E::dispatch(cpu.isa, EntropyGradient { k, p, labels: &labels[at], weights, g, dx, accumulate });
    });
}

struct Squares<'a, E> {
    k: usize,
    a: &'a [E],
    b: &'a [E],
    weights: Option<&'a [E]>,
}

impl<E: Math> Kernel<E> for Squares<'_, E> {
    type Out = f64;
    #[inline(always)]
    fn run<V: Simd<E>>(self) -> f64 {
        let mut total = 0.0;
        for (i, (a, b)) in self.a.chunks_exact(self.k).zip(self.b.chunks_exact(self.k)).enumerate() {
            let mut sum = 0.0;
            // Short chains in the compute type, then doubles.
            for (a, b) in a.chunks(32 * V::LANES).zip(b.chunks(32 * V::LANES)) {
                let mut acc = V::splat(E::ZERO);
                let mut j = 0;
                while j < a.len() {
                    let w = (a.len() - j).min(V::LANES);
                    let d = load::<E, V>(a, j, w).sub(load(b, j, w));
                    acc = d.mul_add(d, acc);
                    j += w;
                }
                sum += acc.sum().to_f64();
            }
            total += self.weights.map_or(1.0, |w| w[i].to_f64()) * sum;
        }
        total
    }
}

/// The weighted sum of (a − b)² over rows of `k` numbers.
pub(super) fn squares<E: Math>(cpu: &Cpu, k: usize, a: &[E], b: &[E], weights: Option<&[E]>) -> f64 {
    if a.is_empty() {
        return 0.0;
    }
    let (rows, all) = (rows_a_task(k), a.len() / k);
    sum_of_tasks(all.div_ceil(rows), |sums| {
        cpu.workers.run(all.div_ceil(rows), |i| {
            let at = i * rows..(i * rows + rows).min(all);
            let of = at.start * k..at.end * k;
            let kernel = Squares { k, a: &a[of.clone()], b: &b[of], weights: weights.map(|w| &w[at]) };
            put(sums, i, E::dispatch(cpu.isa, kernel));
        });
    })
}

struct SquaresGradient<'a, E> {
    k: usize,
    a: &'a [E],
    b: &'a [E],
    weights: Option<&'a [E]>,
    /// 2g for the gradient of a, −2g for that of b.
    factor: E,
    dx: &'a mut [E],
    accumulate: bool,
}

impl<E: Math> Kernel<E> for SquaresGradient<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let rows = self.a.chunks_exact(self.k).zip(self.b.chunks_exact(self.k));
        for (i, ((a, b), dx)) in rows.zip(self.dx.chunks_exact_mut(self.k)).enumerate() {
            let factor = V::splat(self.weights.map_or(self.factor, |w| self.factor * w[i]));
            let mut j = 0;
            while j < dx.len() {
                let w = (dx.len() - j).min(V::LANES);
                let d = load::<E, V>(a, j, w).sub(load(b, j, w)).mul(factor);
                store(if self.accumulate { d.add(load(dx, j, w)) } else { d }, dx, j, w);
                j += w;
            }
        }
    }
}

/// `dx (+)= factor · weight · (a − b)`.
pub(super) fn squares_gradient<E: Math>(
    cpu: &Cpu,
    k: usize,
    [a, b]: [&[E]; 2],
    weights: Option<&[E]>,
    factor: E,
    dx: &mut [E],
    accumulate: bool,
) {
    if dx.is_empty() {
        return;
    }
    let rows = rows_a_task(k);
    cpu.workers.chunks(dx, rows * k, |i, dx| {
        let at = i * rows * k..i * rows * k + dx.len();
        let weights = weights.map(|w| &w[i * rows..i * rows + dx.len() / k]);
        let (a, b) = (&a[at.clone()], &b[at]);
        E::dispatch(cpu.isa, SquaresGradient { k, a, b, weights, factor, dx, accumulate });
    });
}
