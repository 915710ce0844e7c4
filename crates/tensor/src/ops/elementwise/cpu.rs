//! Maps over one, two or three operands on the CPU.

use phalanx_host::simd::{Kernel, Real, Simd};
use phalanx_host::{Cpu, Element};

use super::math::Math;
use super::{BinaryRule, UnaryRule};
use crate::ops::walk::Walk;
use crate::{Result, View};

/// Elements that one task computes.
const PIECE: usize = 16 * 1024;

struct Map<'a, E, R> {
    x: &'a [E],
    y: &'a mut [E],
    rule: R,
}

impl<E: Math, R: UnaryRule> Kernel<E> for Map<'_, E, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let n = self.y.len().min(self.x.len());
        let (x, y) = (self.x.as_ptr(), self.y.as_mut_ptr());
        let mut i = 0;
        while i + V::LANES <= n {
            // SAFETY: i + LANES <= n elements of both.
            unsafe { self.rule.value::<E, V>(V::load(x.add(i))).store(y.add(i)) };
            i += V::LANES;
        }
        // SAFETY: the n - i elements that are left, fewer than LANES.
        unsafe { self.rule.value::<E, V>(V::load_first(x.add(i), n - i)).store_first(y.add(i), n - i) };
    }
}

/// Part of a map over contiguous operands: `y = f(x)`.
pub(super) type Part<'a, E> = &'a (dyn Fn(&[E], &mut [E]) + Sync);

/// `out = f(x)` by parts; `x` is contiguous. The parts are compiled once for each function, the rest of
/// this is not.
pub(super) fn map_by<E: Math>(cpu: &Cpu, x: &[E], out: &mut [E], part: Part<E>) {
    cpu.workers.chunks(out, PIECE, |i, y| part(&x[i * PIECE..i * PIECE + y.len()], y));
}

/// `out = f(x)`; `x` is contiguous.
pub(super) fn map<E: Math, R: UnaryRule>(cpu: &Cpu, rule: R, x: &[E], out: &mut [E]) {
    map_by(cpu, x, out, &|x, y| E::dispatch(cpu.isa, Map { x, y, rule }));
}

struct MapInPlace<'a, E, R> {
    values: &'a mut [E],
    rule: R,
}

impl<E: Math, R: UnaryRule> Kernel<E> for MapInPlace<'_, E, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        for values in self.values.chunks_mut(V::LANES) {
            let (at, n) = (values.as_mut_ptr(), values.len());
            // SAFETY: n elements, at most LANES.
            unsafe { self.rule.value::<E, V>(V::load_first(at, n)).store_first(at, n) };
        }
    }
}

/// `values = f(values)`.
pub(super) fn map_in_place<E: Math, R: UnaryRule>(cpu: &Cpu, rule: R, values: &mut [E]) {
    cpu.workers.chunks(values, PIECE, |_, values| E::dispatch(cpu.isa, MapInPlace { values, rule }));
}

struct MapGradient<'a, E, R> {
    saved: &'a [E],
    g: &'a [E],
    dx: &'a mut [E],
    accumulate: bool,
    rule: R,
}

impl<E: Math, R: UnaryRule> Kernel<E> for MapGradient<'_, E, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let n = self.dx.len().min(self.saved.len()).min(self.g.len());
        let (s, g, d) = (self.saved.as_ptr(), self.g.as_ptr(), self.dx.as_mut_ptr());
        let mut i = 0;
        while i < n {
            let w = (n - i).min(V::LANES);
            // SAFETY: i + w <= n elements of all three, and w <= LANES.
            unsafe {
                let slope = self.rule.slope::<E, V>(V::load_first(s.add(i), w));
                let mut r = V::load_first(g.add(i), w).mul(slope);
                if self.accumulate {
                    r = r.add(V::load_first(d.add(i), w));
                }
                r.store_first(d.add(i), w);
            }
            i += w;
        }
    }
}

/// Part of a gradient over contiguous operands: `dx (+)= g · f'(saved)`, given (saved, g, dx).
pub(super) type GradientPart<'a, E> = &'a (dyn Fn(&[E], &[E], &mut [E]) + Sync);

/// `dx (+)= g · f'(saved)` by parts; all contiguous.
pub(super) fn map_gradient_by<E: Math>(cpu: &Cpu, saved: &[E], g: &[E], dx: &mut [E], part: GradientPart<E>) {
    cpu.workers.chunks(dx, PIECE, |i, dx| {
        let at = i * PIECE..i * PIECE + dx.len();
        part(&saved[at.clone()], &g[at], dx);
    });
}

/// `dx (+)= g · f'(saved)`; all contiguous.
pub(super) fn map_gradient<E: Math, R: UnaryRule>(
    cpu: &Cpu,
    rule: R,
    saved: &[E],
    g: &[E],
    dx: &mut [E],
    accumulate: bool,
) {
    map_gradient_by(cpu, saved, g, dx, &|saved, g, dx| {
        E::dispatch(cpu.isa, MapGradient { saved, g, dx, accumulate, rule });
    });
}

/// How an operand runs along the innermost axis.
#[derive(Clone, Copy)]
pub(super) struct Run<'a, E> {
    data: &'a [E],
    step: usize,
}

impl<E: Copy> Run<'_, E> {
    /// Element `i`.
    pub(super) fn at(&self, i: usize) -> E {
        self.data[i * self.step]
    }
}

impl<E: Real> Run<'_, E> {
    #[inline(always)]
    fn load<V: Simd<E>>(&self, i: usize, w: usize) -> V {
        match self.step {
            0 => V::splat(self.data[0]),
            1 => {
                let part = &self.data[i..i + w];
                // SAFETY: `part` has w elements, and w <= LANES.
                unsafe {
                    if w == V::LANES { V::load(part.as_ptr()) } else { V::load_first(part.as_ptr(), w) }
                }
            }
            step => {
                let mut lanes = [E::ZERO; 16];
                lanes.iter_mut().take(w).enumerate().for_each(|(k, l)| *l = self.data[(i + k) * step]);
                // SAFETY: no vector has more than 16 lanes.
                unsafe { V::load(lanes.as_ptr()) }
            }
        }
    }
}

struct Zip<'a, E, R> {
    a: Run<'a, E>,
    b: Run<'a, E>,
    out: &'a mut [E],
    rule: R,
}

impl<E: Math, R: BinaryRule> Kernel<E> for Zip<'_, E, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let n = self.out.len();
        let mut i = 0;
        while i < n {
            let w = (n - i).min(V::LANES);
            let r = self.rule.value::<E, V>(self.a.load::<V>(i, w), self.b.load::<V>(i, w));
            let part = &mut self.out[i..i + w];
            // SAFETY: `part` has w elements, and w <= LANES.
            unsafe {
                if w == V::LANES { r.store(part.as_mut_ptr()) } else { r.store_first(part.as_mut_ptr(), w) }
            };
            i += w;
        }
    }
}

/// Part of a map over two operands: `out = f(a, b)`.
pub(super) type PairPart<'a, E, O> = &'a (dyn Fn(Run<E>, Run<E>, &mut [O]) + Sync);

/// `out = f(a, b)` by parts, both operands stretched to `out`'s shape.
pub(super) fn zip_by<E: Element, O: Send>(
    cpu: &Cpu,
    a: &View,
    b: &View,
    out: &mut [O],
    part: PairPart<E, O>,
) -> Result<()> {
    let (x, y) = (a.slice::<E>()?, b.slice::<E>()?);
    let walk = Walk::new([&a.layout, &b.layout]);
    let (n, [sa, sb]) = (walk.inner(), walk.steps());
    let row = |[p, q]: [usize; 2], out: &mut [O]| {
        part(Run { data: &x[p..], step: sa }, Run { data: &y[q..], step: sb }, out);
    };
    if out.is_empty() {
        return Ok(());
    }
    if walk.runs() == 1 {
        cpu.workers.chunks(out, PIECE, |i, out| row([i * PIECE * sa, i * PIECE * sb], out));
    } else {
        let rows = PIECE.div_ceil(n);
        cpu.workers.chunks(out, rows * n, |i, out| {
            let from = i * rows;
            walk.for_runs(from, from + out.len() / n, |r, at| row(at, &mut out[(r - from) * n..][..n]));
        });
    }
    Ok(())
}

/// `out = f(a, b)`, both stretched to `out`'s shape.
pub(super) fn zip<E: Math, R: BinaryRule>(
    cpu: &Cpu,
    rule: R,
    a: &View,
    b: &View,
    out: &mut [E],
) -> Result<()> {
    zip_by::<E, E>(cpu, a, b, out, &|a, b, out| E::dispatch(cpu.isa, Zip { a, b, out, rule }))
}

/// `out = if mask != 0 { a } else { b }`, all stretched to `out`'s shape.
pub(super) fn select<E: Element>(cpu: &Cpu, mask: &View, a: &View, b: &View, out: &mut [E]) -> Result<()> {
    let (m, x, y) = (mask.slice::<u8>()?, a.slice::<E>()?, b.slice::<E>()?);
    if out.is_empty() {
        return Ok(());
    }
    let walk = Walk::new([&mask.layout, &a.layout, &b.layout]);
    let (n, [sm, sa, sb]) = (walk.inner(), walk.steps());
    let rows = PIECE.div_ceil(n);
    cpu.workers.chunks(out, rows * n, |i, out| {
        let from = i * rows;
        walk.for_runs(from, from + out.len() / n, |r, [p, q, s]| {
            for (i, o) in out[(r - from) * n..][..n].iter_mut().enumerate() {
                *o = if m[p + i * sm] != 0 { x[q + i * sa] } else { y[s + i * sb] };
            }
        });
    });
    Ok(())
}
