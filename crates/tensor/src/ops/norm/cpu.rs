//! Batch normalisation on the CPU, in an order fixed by the shape, and what can be fused with it.

use phalanx_host::Cpu;
use phalanx_host::simd::{Kernel, Real, Simd};

use crate::ops::columns::{Fold, Plain, Terms, column_sums, load, store};

/// Squares of the distances from each column's mean.
#[derive(Clone, Copy)]
struct Spread<'a, E> {
    x: &'a [E],
    /// Tiled to the folded row.
    mean: &'a [E],
}

impl<E: Real> Terms<E, 2> for Spread<'_, E> {
    #[inline(always)]
    fn at<V: Simd<E>>(self, i: usize, col: usize, w: usize) -> [V; 2] {
        let d = load::<E, V>(self.x, i, w).sub(load(self.mean, col, w));
        [d, d.mul(d)]
    }
}

/// Mean and biased variance of the columns of `x`, in two passes; zeros when there are no rows.
pub(super) fn moments<E: Real>(cpu: &Cpu, rows: usize, x: &[E], mean: &mut [E], variance: &mut [E]) {
    let cols = mean.len();
    column_sums(cpu, rows, cols, Plain(x), mean);
    let share = E::from_f64(1.0 / rows.max(1) as f64);
    mean.iter_mut().for_each(|m| *m = *m * share);
    let tiled = Fold::of(cols).tile(mean);
    let mut sums = vec![E::ZERO; 2 * cols];
    column_sums(cpu, rows, cols, Spread { x, mean: &tiled }, &mut sums);
    // The mean was rounded: what the distances add up to corrects the variance for it.
    for (c, v) in variance.iter_mut().enumerate() {
        let off = sums[c] * share;
        let v0 = sums[cols + c] * share - off * off;
        *v = if v0 < E::ZERO { E::ZERO } else { v0 };
    }
}

/// 1/√(variance + eps).
pub(super) fn inverse_deviation<E: Real>(variance: &[E], eps: f64, out: &mut [E]) {
    for (o, v) in out.iter_mut().zip(variance) {
        *o = E::from_f64(1.0 / (v.to_f64() + eps).sqrt());
    }
}

/// Numbers of each channel.
#[derive(Clone, Copy)]
pub(super) struct Channels<'a, E> {
    pub(super) mean: &'a [E],
    pub(super) inverse: &'a [E],
    pub(super) gamma: &'a [E],
    pub(super) beta: &'a [E],
}

/// Folded rows that one task maps.
const ROWS: usize = 128;

struct Normalise<'a, E> {
    x: &'a [E],
    y: &'a mut [E],
    fuse: Fused<'a, E>,
    width: usize,
    mean: &'a [E],
    scale: &'a [E],
    beta: &'a [E],
}

impl<E: Real> Kernel<E> for Normalise<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        for (r, y) in self.y.chunks_mut(self.width).enumerate() {
            let start = r * self.width;
            let mut j = 0;
            while j < y.len() {
                let w = (y.len() - j).min(V::LANES);
                let d = load::<E, V>(self.x, start + j, w).sub(load(self.mean, j, w));
                let mut v = d.mul_add(load(self.scale, j, w), load(self.beta, j, w));
                if let Some(residual) = self.fuse.residual {
                    v = v.add(load(residual, start + j, w));
                }
                if self.fuse.relu {
                    v = V::splat(E::ZERO).max(v);
                }
                store(v, y, j, w);
                j += w;
            }
        }
    }
}

/// What follows the normalisation in the same pass.
#[derive(Clone, Copy)]
pub(super) struct Fused<'a, E> {
    pub(super) residual: Option<&'a [E]>,
    pub(super) relu: bool,
}

/// `y = (x − mean) · inverse · gamma + beta`, plus the residual, cut off at 0, as `fuse` says.
pub(super) fn normalise<E: Real>(cpu: &Cpu, x: &[E], of: Channels<E>, fuse: Fused<E>, y: &mut [E]) {
    if y.is_empty() {
        return;
    }
    let fold = Fold::of(of.mean.len());
    let scale: Vec<E> = of.gamma.iter().zip(of.inverse).map(|(&g, &i)| g * i).collect();
    let [mean, scale, beta] = [of.mean, &scale, of.beta].map(|v| fold.tile(v));
    let piece = ROWS * fold.width;
    cpu.workers.chunks(y, piece, |i, y| {
        let at = i * piece..i * piece + y.len();
        let fuse = Fused { residual: fuse.residual.map(|r| &r[at.clone()]), ..fuse };
        let kernel =
            Normalise { x: &x[at], y, fuse, width: fold.width, mean: &mean, scale: &scale, beta: &beta };
        E::dispatch(cpu.isa, kernel);
    });
}

/// The gradient of what a fused ReLU was given: that of its output where the output is positive.
#[derive(Clone, Copy)]
pub(super) struct Masked<'a, E> {
    pub(super) g: &'a [E],
    /// The output, when there is a ReLU.
    pub(super) y: Option<&'a [E]>,
}

impl<E: Real> Masked<'_, E> {
    #[inline(always)]
    fn at<V: Simd<E>>(self, i: usize, w: usize) -> V {
        let g: V = load(self.g, i, w);
        let zero = V::splat(E::ZERO);
        self.y.map_or(g, |y| load::<E, V>(y, i, w).if_gt(zero, g, zero))
    }

    fn part(self, at: std::ops::Range<usize>) -> Self {
        Masked { g: &self.g[at.clone()], y: self.y.map(|y| &y[at]) }
    }
}

/// g, and g times the normalised input.
#[derive(Clone, Copy)]
struct Products<'a, E> {
    g: Masked<'a, E>,
    x: &'a [E],
    mean: &'a [E],
    inverse: &'a [E],
}

impl<E: Real> Terms<E, 2> for Products<'_, E> {
    #[inline(always)]
    fn at<V: Simd<E>>(self, i: usize, col: usize, w: usize) -> [V; 2] {
        let g: V = self.g.at(i, w);
        let d = load::<E, V>(self.x, i, w).sub(load(self.mean, col, w));
        [g, g.mul(d.mul(load(self.inverse, col, w)))]
    }
}

/// The sums over the rows of g, then of g times the normalised input.
pub(super) fn gradient_sums<E: Real>(
    cpu: &Cpu,
    rows: usize,
    g: Masked<E>,
    x: &[E],
    mean: &[E],
    inverse: &[E],
) -> Vec<E> {
    let fold = Fold::of(mean.len());
    let (mean_row, inverse_row) = (fold.tile(mean), fold.tile(inverse));
    let mut sums = vec![E::ZERO; 2 * mean.len()];
    let rule = Products { g, x, mean: &mean_row, inverse: &inverse_row };
    column_sums(cpu, rows, mean.len(), rule, &mut sums);
    sums
}

/// The input's gradient as `scale · g + slope · (x − mean) + shift`, per channel.
pub(super) struct InputRule<E> {
    scale: Vec<E>,
    slope: Vec<E>,
    shift: Vec<E>,
    mean: Vec<E>,
}

/// The rule when the statistics depend on the input:
/// `dx = gamma · inverse · (g − Σg/n − x̂ · Σ(g·x̂)/n)`.
pub(super) fn input_rule<E: Real>(
    rows: usize,
    sums: &[E],
    mean: &[E],
    inverse: &[E],
    gamma: &[E],
) -> InputRule<E> {
    let cols = mean.len();
    let share = E::from_f64(1.0 / rows.max(1) as f64);
    let scale: Vec<E> = gamma.iter().zip(inverse).map(|(&g, &i)| g * i).collect();
    let slope = (0..cols).map(|c| -(scale[c] * inverse[c] * (sums[cols + c] * share))).collect();
    let shift = (0..cols).map(|c| -(scale[c] * (sums[c] * share))).collect();
    InputRule { scale, slope, shift, mean: mean.to_vec() }
}

/// The rule when they are constants.
pub(super) fn frozen_rule<E: Real>(inverse: &[E], gamma: &[E]) -> InputRule<E> {
    let zeros = vec![E::ZERO; gamma.len()];
    let scale = gamma.iter().zip(inverse).map(|(&g, &i)| g * i).collect();
    InputRule { scale, slope: zeros.clone(), shift: zeros.clone(), mean: zeros }
}

struct InputGradient<'a, E> {
    g: Masked<'a, E>,
    x: &'a [E],
    dx: &'a mut [E],
    rule: &'a InputRule<E>,
    accumulate: bool,
}

impl<E: Real> Kernel<E> for InputGradient<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let r = self.rule;
        let width = r.scale.len();
        for (row, dx) in self.dx.chunks_mut(width).enumerate() {
            let start = row * width;
            let mut j = 0;
            while j < dx.len() {
                let w = (dx.len() - j).min(V::LANES);
                let d = load::<E, V>(self.x, start + j, w).sub(load(&r.mean, j, w));
                let base = d.mul_add(load(&r.slope, j, w), load(&r.shift, j, w));
                let base = if self.accumulate { base.add(load(dx, j, w)) } else { base };
                let g: V = self.g.at(start + j, w);
                store(g.mul_add(load(&r.scale, j, w), base), dx, j, w);
                j += w;
            }
        }
    }
}

/// `dx (+)=` the rule's gradient.
pub(super) fn input_gradient<E: Real>(
    cpu: &Cpu,
    g: Masked<E>,
    x: &[E],
    rule: &InputRule<E>,
    dx: &mut [E],
    accumulate: bool,
) {
    if dx.is_empty() {
        return;
    }
    let fold = Fold::of(rule.scale.len());
    let tile = |v: &Vec<E>| fold.tile(v);
    let rule = InputRule {
        scale: tile(&rule.scale),
        slope: tile(&rule.slope),
        shift: tile(&rule.shift),
        mean: tile(&rule.mean),
    };
    let piece = ROWS * fold.width;
    cpu.workers.chunks(dx, piece, |i, dx| {
        let at = i * piece..i * piece + dx.len();
        let kernel = InputGradient { g: g.part(at.clone()), x: &x[at], dx, rule: &rule, accumulate };
        E::dispatch(cpu.isa, kernel);
    });
}
