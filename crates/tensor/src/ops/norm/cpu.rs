//! Normalisation by the moments of channels, or of groups of them, on the CPU, in an order fixed by the shape, and what can
//! be fused with it.

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

/// The sums over each group of neighbouring channels: as many groups as `out` has places.
fn pool<E: Real>(sums: &[E], out: &mut [E]) {
    let each = (sums.len() / out.len().max(1)).max(1);
    for (o, group) in out.iter_mut().zip(sums.chunks(each)) {
        *o = E::from_f64(group.iter().map(|s| s.to_f64()).sum());
    }
}

/// Numbers of groups as numbers of their channels.
pub(super) fn spread<E: Real>(groups: &[E], cols: usize) -> Vec<E> {
    let each = cols / groups.len().max(1);
    groups.iter().flat_map(|&g| std::iter::repeat_n(g, each)).collect()
}

/// Mean and biased variance of the columns of `x`, in two passes; zeros when there are no rows. Neighbouring columns
/// share them when there are fewer places than columns.
pub(super) fn moments<E: Real>(
    cpu: &Cpu,
    [rows, cols]: [usize; 2],
    x: &[E],
    mean: &mut [E],
    variance: &mut [E],
) {
    let groups = mean.len();
    let mut sums = vec![E::ZERO; 2 * cols];
    column_sums(cpu, rows, cols, Plain(x), &mut sums[..cols]);
    let count = rows * (cols / groups.max(1));
    let share = E::from_f64(1.0 / count.max(1) as f64);
    pool(&sums[..cols], mean);
    mean.iter_mut().for_each(|m| *m = *m * share);
    let tiled = Fold::of(cols).tile(&spread(mean, cols));
    column_sums(cpu, rows, cols, Spread { x, mean: &tiled }, &mut sums);
    let mut offs = vec![E::ZERO; groups];
    pool(&sums[..cols], &mut offs);
    pool(&sums[cols..], variance);
    // The mean was rounded: what the distances add up to corrects the variance for it.
    for (v, off) in variance.iter_mut().zip(offs) {
        let off = off * share;
        let v0 = *v * share - off * off;
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

/// g times the normalised input, and g.
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
        [g.mul(d.mul(load(self.inverse, col, w))), g]
    }
}

/// The sums over the rows of g times the normalised input, then of g.
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
/// `dx = gamma · inverse · g − inverse · (Σ gamma·g + x̂ · Σ gamma·g·x̂) / n`, the sums over the n numbers of a group:
/// a channel, or one of `groups` of neighbouring channels.
pub(super) fn input_rule<E: Real>(
    rows: usize,
    groups: usize,
    sums: &[E],
    mean: &[E],
    inverse: &[E],
    gamma: &[E],
) -> InputRule<E> {
    let cols = mean.len();
    let count = rows * (cols / groups.max(1));
    let share = E::from_f64(1.0 / count.max(1) as f64);
    let scale: Vec<E> = gamma.iter().zip(inverse).map(|(&g, &i)| g * i).collect();
    let over_groups = |each: Vec<E>| {
        let mut pooled = vec![E::ZERO; groups];
        pool(&each, &mut pooled);
        spread(&pooled, cols)
    };
    let slope = (0..cols).map(|c| -(scale[c] * inverse[c] * (sums[c] * share))).collect();
    let shift = (0..cols).map(|c| -(scale[c] * (sums[cols + c] * share))).collect();
    InputRule { scale, slope: over_groups(slope), shift: over_groups(shift), mean: mean.to_vec() }
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
