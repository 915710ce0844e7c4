//! Normalisation of rows by their own moments on the CPU: one row after the other, in an order fixed by the shape.

use phalanx_host::Cpu;
use phalanx_host::simd::{Kernel, Real, Simd};

use crate::ops::columns::{Plain, Terms, load, store};

/// Vectors that are summed side by side.
const SIDE: usize = 4;
/// Rounds of them whose sum is one chain of roundings; what lies beyond is added in doubles.
const CHAIN: usize = 32;
/// Numbers that one task maps, about.
const PIECE: usize = 16 * 1024;
/// Tasks that keep sums over rows of their own, at most.
const PARTS: usize = 64;

/// What a row's numbers are multiplied with and what is added, where there is something.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a, E> {
    pub(super) gamma: Option<&'a [E]>,
    pub(super) beta: Option<&'a [E]>,
}

/// How rows are normalised.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    /// Numbers of a row.
    pub(super) k: usize,
    /// Whether the mean is taken off first.
    pub(super) centred: bool,
    pub(super) eps: f64,
}

/// `M` sums of the terms at places `0..k`.
#[inline(always)]
fn sums<E: Real, V: Simd<E>, R: Terms<E, M>, const M: usize>(k: usize, rule: R) -> [f64; M] {
    let mut total = [0.0; M];
    let mut rest = [E::ZERO; 16];
    let mut i = 0;
    while i < k {
        let stop = k.min(i + CHAIN * SIDE * V::LANES);
        let mut acc = [[V::splat(E::ZERO); M]; SIDE];
        while i + SIDE * V::LANES <= stop {
            for (s, acc) in acc.iter_mut().enumerate() {
                let each = rule.at::<V>(i + s * V::LANES, 0, V::LANES);
                acc.iter_mut().zip(each).for_each(|(a, t)| *a = a.add(t));
            }
            i += SIDE * V::LANES;
        }
        while i < stop {
            let w = (stop - i).min(V::LANES);
            for (a, t) in acc[0].iter_mut().zip(rule.at::<V>(i, 0, w)) {
                // Through memory, so that the lanes past the end count as zero.
                let whole = w == V::LANES;
                if !whole {
                    store(t, &mut rest, 0, w);
                }
                *a = a.add(if whole { t } else { load(&rest, 0, w) });
            }
            i += w;
        }
        for (m, total) in total.iter_mut().enumerate() {
            let sum = acc[0][m].add(acc[1][m]).add(acc[2][m].add(acc[3][m]));
            *total += sum.sum().to_f64();
        }
    }
    total
}

/// The distances from a row's mean, and their squares.
#[derive(Clone, Copy)]
struct Spread<'a, E> {
    x: &'a [E],
    mean: E,
}

impl<E: Real> Terms<E, 2> for Spread<'_, E> {
    #[inline(always)]
    fn at<V: Simd<E>>(self, i: usize, _: usize, w: usize) -> [V; 2] {
        let d = load::<E, V>(self.x, i, w).sub(V::splat(self.mean));
        [d, d.mul(d)]
    }
}

/// The gradient of the normalised row, and it times the row.
#[derive(Clone, Copy)]
struct Products<'a, E> {
    g: &'a [E],
    gamma: Option<&'a [E]>,
    x: &'a [E],
    mean: E,
    inverse: E,
}

impl<E: Real> Products<'_, E> {
    /// The normalised row.
    #[inline(always)]
    fn near<V: Simd<E>>(&self, i: usize, w: usize) -> V {
        load::<E, V>(self.x, i, w).sub(V::splat(self.mean)).mul(V::splat(self.inverse))
    }
}

impl<E: Real> Terms<E, 2> for Products<'_, E> {
    #[inline(always)]
    fn at<V: Simd<E>>(self, i: usize, _: usize, w: usize) -> [V; 2] {
        let mut h: V = load(self.g, i, w);
        if let Some(gamma) = self.gamma {
            h = h.mul(load(gamma, i, w));
        }
        [h, h.mul(self.near(i, w))]
    }
}

struct Forward<'a, E> {
    rule: Rule,
    x: &'a [E],
    affine: Affine<'a, E>,
    y: &'a mut [E],
    /// Each row's mean and inverse deviation.
    moments: &'a mut [E],
}

impl<E: Real> Kernel<E> for Forward<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let Rule { k, centred, eps } = self.rule;
        let share = 1.0 / k as f64;
        let rows = self.x.chunks_exact(k).zip(self.y.chunks_exact_mut(k));
        for ((x, y), moments) in rows.zip(self.moments.chunks_exact_mut(2)) {
            let mean = match centred {
                true => E::from_f64(share * sums::<E, V, _, 1>(k, Plain(x))[0]),
                false => E::ZERO,
            };
            let centre = V::splat(mean);
            let [off, square] = sums::<E, V, _, 2>(k, Spread { x, mean }).map(|s| s * share);
            // The mean was rounded: what the distances add up to corrects the variance for it.
            let variance = if centred { square - off * off } else { square };
            let inverse = E::from_f64(1.0 / (variance.max(0.0) + eps).sqrt());
            // Not a number stays one.
            let inverse = if variance.is_nan() { E::from_f64(variance) } else { inverse };
            (moments[0], moments[1]) = (mean, inverse);
            let (scale, mut i) = (V::splat(inverse), 0);
            while i < k {
                let w = (k - i).min(V::LANES);
                let v = load::<E, V>(x, i, w).sub(centre).mul(scale);
                let v = match (self.affine.gamma, self.affine.beta) {
                    (Some(g), Some(b)) => v.mul_add(load(g, i, w), load(b, i, w)),
                    (None, Some(b)) => v.add(load(b, i, w)),
                    (Some(g), None) => v.mul(load(g, i, w)),
                    (None, None) => v,
                };
                store(v, y, i, w);
                i += w;
            }
        }
    }
}

/// Normalises rows; writes each row's mean and inverse deviation to `moments`.
pub(super) fn normalise<E: Real>(
    cpu: &Cpu,
    rule: Rule,
    x: &[E],
    affine: Affine<E>,
    y: &mut [E],
    moments: &mut [E],
) {
    if y.is_empty() {
        return;
    }
    let rows = (PIECE / rule.k).max(1);
    let piece = rows * rule.k;
    cpu.workers.chunks_of_two((y, piece), (moments, 2 * rows), |i, y, moments| {
        let x = &x[i * piece..i * piece + y.len()];
        E::dispatch(cpu.isa, Forward { rule, x, affine, y, moments });
    });
}

struct Backward<'a, E> {
    rule: Rule,
    x: &'a [E],
    g: &'a [E],
    gamma: Option<&'a [E]>,
    moments: &'a [E],
    dx: &'a mut [E],
    accumulate: bool,
    /// Sums over the rows of g · x̂ and of g, one after the other, when they are wanted.
    parts: Option<&'a mut [E]>,
}

impl<E: Real> Kernel<E> for Backward<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(mut self) {
        let Rule { k, centred, .. } = self.rule;
        let share = 1.0 / k as f64;
        let rows = self.x.chunks_exact(k).zip(self.g.chunks_exact(k));
        for (((x, g), dx), moments) in rows.zip(self.dx.chunks_exact_mut(k)).zip(self.moments.chunks_exact(2))
        {
            let row = Products { g, gamma: self.gamma, x, mean: moments[0], inverse: moments[1] };
            let means = sums::<E, V, _, 2>(k, row).map(|s| E::from_f64(s * share));
            if let Some(parts) = self.parts.as_deref_mut() {
                let (of_gamma, of_beta) = parts.split_at_mut(k);
                let mut i = 0;
                while i < k {
                    let w = (k - i).min(V::LANES);
                    let g: V = load(g, i, w);
                    store(g.mul_add(row.near(i, w), load(of_gamma, i, w)), of_gamma, i, w);
                    store(g.add(load(of_beta, i, w)), of_beta, i, w);
                    i += w;
                }
            }
            let level = V::splat(if centred { means[0] } else { E::ZERO });
            let (slope, inverse, mut i) = (V::splat(means[1]), V::splat(moments[1]), 0);
            while i < k {
                let w = (k - i).min(V::LANES);
                let [h, _] = row.at::<V>(i, 0, w);
                let d = h.sub(level).sub(row.near::<V>(i, w).mul(slope)).mul(inverse);
                store(if self.accumulate { d.add(load(dx, i, w)) } else { d }, dx, i, w);
                i += w;
            }
        }
    }
}

/// What the backward pass of [`normalise`] reads.
#[derive(Clone, Copy)]
pub(super) struct Behind<'a, E> {
    pub(super) x: &'a [E],
    pub(super) g: &'a [E],
    pub(super) gamma: Option<&'a [E]>,
    pub(super) moments: &'a [E],
}

/// `dx (+)=` the gradient of the rows. Gives the sums over the rows of g · x̂, then of g, when `parameters` says so.
pub(super) fn gradients<E: Real>(
    cpu: &Cpu,
    rule: Rule,
    of: Behind<E>,
    dx: &mut [E],
    accumulate: bool,
    parameters: bool,
) -> Vec<E> {
    let k = rule.k;
    if dx.is_empty() {
        return vec![E::ZERO; if parameters { 2 * k } else { 0 }];
    }
    // Few enough tasks that what they leave to be summed is little beside their work.
    let all = dx.len() / k;
    let rows = (PIECE / k).max(all.div_ceil(PARTS)).max(1);
    let piece = rows * k;
    let part = |i: usize, dx: &mut [E], parts: Option<&mut [E]>| {
        let at = i * piece..i * piece + dx.len();
        let moments = &of.moments[2 * i * rows..2 * (i * rows + dx.len() / k)];
        let (x, g, gamma) = (&of.x[at.clone()], &of.g[at], of.gamma);
        E::dispatch(cpu.isa, Backward { rule, x, g, gamma, moments, dx, accumulate, parts });
    };
    if !parameters {
        cpu.workers.chunks(dx, piece, |i, dx| part(i, dx, None));
        return Vec::new();
    }
    let mut parts = vec![E::ZERO; 2 * k * all.div_ceil(rows)];
    cpu.workers.chunks_of_two((dx, piece), (&mut parts, 2 * k), |i, dx, parts| part(i, dx, Some(parts)));
    total(&parts, 2 * k)
}

/// The sums of neighbouring rows of `n` numbers, in doubles.
pub(super) fn total<E: Real>(parts: &[E], n: usize) -> Vec<E> {
    let mut totals = vec![0.0f64; n];
    for part in parts.chunks_exact(n.max(1)) {
        totals.iter_mut().zip(part).for_each(|(t, p)| *t += p.to_f64());
    }
    totals.into_iter().map(E::from_f64).collect()
}
