//! Losses of numbers one by one on the CPU: their values and slopes on vectors.

use phalanx_host::Cpu;
use phalanx_host::simd::{Kernel, Simd};

use super::PointLoss;
use super::cpu::{put, rows_a_task, sum_of_tasks};
use crate::ops::columns::{load, store};
use crate::ops::elementwise::math::{Math, c};

#[inline(always)]
fn minus<E: Math, V: Simd<E>>(x: V) -> V {
    V::splat(E::ZERO).sub(x)
}

/// log(1 + e^x) and log(1 + e^−x), then their slopes at x and −x: sigmoid(x), sigmoid(−x). No term cancels.
#[inline(always)]
fn softplus<E: Math, V: Simd<E>>(x: V) -> [V; 4] {
    let (zero, one) = (V::splat(E::ZERO), V::splat(E::ONE));
    let other = zero.sub(x);
    let e = E::exp(other.min(x));
    let small = E::log1p(e);
    let near = one.div(one.add(e));
    let far = e.mul(near);
    [zero.max(x).add(small), zero.max(other).add(small), zero.if_gt(x, far, near), zero.if_gt(x, near, far)]
}

impl PointLoss {
    /// The loss and its slopes in x and y. `positive` is what the term of y counts with logits.
    #[inline(always)]
    fn at<E: Math, V: Simd<E>>(self, x: V, y: V, positive: V) -> [V; 3] {
        let (zero, one) = (V::splat(E::ZERO), V::splat(E::ONE));
        match self {
            PointLoss::Mse => {
                let d = x.sub(y);
                [d.mul(d), d.add(d), minus::<E, V>(d.add(d))]
            }
            PointLoss::L1 => distance::<E, V>(x.sub(y)),
            PointLoss::Huber { delta } => huber::<E, V>(x.sub(y), c::<E, V>(delta), one),
            PointLoss::SmoothL1 { beta } if beta > 0.0 => {
                huber::<E, V>(x.sub(y), c::<E, V>(beta), c::<E, V>(1.0 / beta))
            }
            PointLoss::SmoothL1 { .. } => distance::<E, V>(x.sub(y)),
            PointLoss::Bce => {
                // Not a number stays one: it is the second operand.
                let most = c::<E, V>(100.0);
                let yes = most.min(minus::<E, V>(E::log(x)));
                let no = most.min(minus::<E, V>(E::log1p(minus::<E, V>(x))));
                let rest = one.sub(x);
                let spread = c::<E, V>(1e-12).max(x.mul(rest));
                [y.mul(yes).add(one.sub(y).mul(no)), x.sub(y).div(spread), yes.sub(no)]
            }
            PointLoss::BceWithLogits => {
                let [up, down, at, other] = softplus::<E, V>(x);
                let (yes, no) = (positive.mul(y), one.sub(y));
                [yes.mul(down).add(no.mul(up)), no.mul(at).sub(yes.mul(other)), positive.mul(down).sub(up)]
            }
            PointLoss::Hinge { margin } => {
                let short = c::<E, V>(margin).sub(x.mul(y));
                let on = zero.max(short).if_gt(zero, one, zero);
                [zero.max(short), minus::<E, V>(y.mul(on)), minus::<E, V>(x.mul(on))]
            }
            PointLoss::SquaredHinge { margin } => {
                let short = zero.max(c::<E, V>(margin).sub(x.mul(y)));
                let twice = minus::<E, V>(short.add(short));
                [short.mul(short), twice.mul(y), twice.mul(x)]
            }
            PointLoss::HingeEmbedding { margin } => {
                let short = c::<E, V>(margin).sub(x);
                let on = short.if_gt(zero, one, zero);
                [y.if_gt(zero, x, zero.max(short)), y.if_gt(zero, one, minus::<E, V>(on)), zero]
            }
            PointLoss::Exponential => {
                let e = E::exp(minus::<E, V>(x.mul(y)));
                [e, minus::<E, V>(e.mul(y)), minus::<E, V>(e.mul(x))]
            }
            PointLoss::Logistic => {
                let [_, down, _, other] = softplus::<E, V>(x.mul(y));
                [down, minus::<E, V>(other.mul(y)), minus::<E, V>(other.mul(x))]
            }
            PointLoss::KlDiv { log_target: true } => {
                let (e, d) = (E::exp(y), y.sub(x));
                [e.mul(d), minus::<E, V>(e), e.mul(d.add(one))]
            }
            PointLoss::KlDiv { log_target: false } => {
                // 0 log 0 is 0; what is below 0 has no logarithm.
                let log = y.if_gt(zero, E::log(y), zero.if_gt(y, c::<E, V>(f64::NAN), y));
                [y.mul(log.sub(x)), minus::<E, V>(y), log.add(one).sub(x)]
            }
            PointLoss::Poisson { log_input, full, eps } => {
                let [value, of_x, of_y] = if log_input {
                    let e = E::exp(x);
                    [e.sub(x.mul(y)), e.sub(y), minus::<E, V>(x)]
                } else {
                    let (at, log) = (x.add(c::<E, V>(eps)), E::log(x.add(c::<E, V>(eps))));
                    [x.sub(y.mul(log)), one.sub(y.div(at)), minus::<E, V>(log)]
                };
                if !full {
                    return [value, of_x, of_y];
                }
                let log = E::log(y);
                let half = c::<E, V>(0.5).mul(log.add(c::<E, V>(std::f64::consts::TAU.ln())));
                let term = y.mul(log).sub(y).add(half);
                [
                    value.add(y.if_gt(one, term, zero)),
                    of_x,
                    of_y.add(y.if_gt(one, log.add(c::<E, V>(0.5).div(y)), zero)),
                ]
            }
        }
    }
}

/// |d| and its slopes in x and y, where d = x − y.
#[inline(always)]
fn distance<E: Math, V: Simd<E>>(d: V) -> [V; 3] {
    let zero = V::splat(E::ZERO);
    let sign = d.if_gt(zero, V::splat(E::ONE), zero.if_gt(d, V::splat(-E::ONE), d));
    [zero.sub(d).max(d), sign, zero.sub(sign)]
}

/// Huber's loss of the difference `d`, times `scale`.
#[inline(always)]
fn huber<E: Math, V: Simd<E>>(d: V, delta: V, scale: V) -> [V; 3] {
    let (zero, half) = (V::splat(E::ZERO), V::splat(E::from_f64(0.5)));
    let size = zero.sub(d).max(d);
    let far = delta.mul(size.sub(half.mul(delta)));
    let value = size.if_gt(delta, far, half.mul(d).mul(d));
    let slope = zero.sub(delta).max(delta.min(d)).mul(scale);
    [value.mul(scale), slope, zero.sub(slope)]
}

/// A point loss and its operands.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a, E> {
    pub(super) loss: PointLoss,
    /// Numbers of a sample.
    pub(super) k: usize,
    pub(super) x: &'a [E],
    pub(super) y: &'a [E],
    /// Weights of samples.
    pub(super) weights: Option<&'a [E]>,
    /// What positive targets count, for each of the last axis.
    pub(super) positive: Option<&'a [E]>,
}

impl<E: Math> Pair<'_, E> {
    /// The loss and its slopes at elements `i..i + w`, which do not cross the last axis when positives are weighted.
    #[inline(always)]
    fn at<V: Simd<E>>(&self, i: usize, w: usize) -> [V; 3] {
        let positive = self.positive.map_or(V::splat(E::ONE), |p| load(p, i % p.len(), w));
        self.loss.at(load(self.x, i, w), load(self.y, i, w), positive)
    }

    /// The longest run of neighbours that one call of [`Pair::at`] may read from.
    fn run(&self) -> usize {
        // A single axis is that of the samples and the last one: then a sample is one number.
        self.positive.map_or(self.k, |p| p.len().min(self.k))
    }
}

/// Vectors whose sum is one chain of roundings.
const CHAIN: usize = 32;

struct Sum<'a, E> {
    of: Pair<'a, E>,
    samples: std::ops::Range<usize>,
}

impl<E: Math> Kernel<E> for Sum<'_, E> {
    type Out = f64;
    #[inline(always)]
    fn run<V: Simd<E>>(self) -> f64 {
        let (of, mut total) = (self.of, 0.0);
        let run = of.run();
        let mut rest = [E::ZERO; 16];
        for sample in self.samples {
            let (mut i, end) = (sample * of.k, (sample + 1) * of.k);
            let mut sum = 0.0;
            while i < end {
                // Short chains in the compute type, then doubles.
                let stop = (i + CHAIN * V::LANES).min(i + run - (i - sample * of.k) % run);
                let mut acc = V::splat(E::ZERO);
                while i + V::LANES <= stop {
                    acc = acc.add(of.at::<V>(i, V::LANES)[0]);
                    i += V::LANES;
                }
                if i < stop {
                    // Through memory, so that the lanes past the end count as zero.
                    store(of.at::<V>(i, stop - i)[0], &mut rest, 0, stop - i);
                    acc = acc.add(load(&rest, 0, stop - i));
                    i = stop;
                }
                sum += acc.sum().to_f64();
            }
            total += of.weights.map_or(1.0, |w| w[sample].to_f64()) * sum;
        }
        total
    }
}

/// The weighted sum of the losses.
pub(super) fn sum<E: Math>(cpu: &Cpu, of: Pair<E>) -> f64 {
    if of.x.is_empty() {
        return 0.0;
    }
    let (each, all) = (rows_a_task(of.k), of.x.len() / of.k);
    sum_of_tasks(all.div_ceil(each), |sums| {
        cpu.workers.run(all.div_ceil(each), |i| {
            let samples = i * each..(i * each + each).min(all);
            put(sums, i, E::dispatch(cpu.isa, Sum { of, samples }));
        });
    })
}

struct Gradient<'a, E> {
    of: Pair<'a, E>,
    /// 0 for the gradient of x, 1 for that of y.
    input: usize,
    first: usize,
    g: E,
    dx: &'a mut [E],
    accumulate: bool,
}

impl<E: Math> Kernel<E> for Gradient<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let (of, run) = (self.of, self.of.run());
        for (n, dx) in self.dx.chunks_exact_mut(of.k).enumerate() {
            let sample = self.first + n;
            let g = V::splat(of.weights.map_or(self.g, |w| self.g * w[sample]));
            let mut j = 0;
            while j < of.k {
                let w = (run - j % run).min(V::LANES);
                let [_, of_x, of_y] = of.at::<V>(sample * of.k + j, w);
                let d = if self.input == 0 { of_x } else { of_y }.mul(g);
                store(if self.accumulate { d.add(load(dx, j, w)) } else { d }, dx, j, w);
                j += w;
            }
        }
    }
}

/// `dx (+)= g · weight · ` the slope in x (`input` 0) or y (1).
pub(super) fn gradient<E: Math>(cpu: &Cpu, of: Pair<E>, input: usize, g: E, dx: &mut [E], accumulate: bool) {
    if dx.is_empty() {
        return;
    }
    let each = rows_a_task(of.k);
    cpu.workers.chunks(dx, each * of.k, |i, dx| {
        E::dispatch(cpu.isa, Gradient { of, input, first: i * each, g, dx, accumulate });
    });
}
