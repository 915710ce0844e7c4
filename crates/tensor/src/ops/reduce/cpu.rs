//! Reductions on the CPU, in an order fixed by the shape.

use phalanx_host::Cpu;
use phalanx_host::simd::{Kernel, Real, Simd};

use crate::Layout;
use crate::ops::columns::{Plain, column_sums};
use crate::ops::walk::Walk;

struct RowSum<'a, E>(&'a [E]);

impl<E: Real> Kernel<E> for RowSum<'_, E> {
    type Out = E;
    #[inline(always)]
    fn run<V: Simd<E>>(self) -> E {
        // Four chains hide the adder's latency and shorten the chain of roundings.
        let mut acc = [V::splat(E::ZERO); 4];
        let mut wide = self.0.chunks_exact(4 * V::LANES);
        for c in &mut wide {
            for (k, a) in acc.iter_mut().enumerate() {
                // SAFETY: the chunk has 4 · LANES elements.
                *a = a.add(unsafe { V::load(c.as_ptr().add(k * V::LANES)) });
            }
        }
        for (k, c) in wide.remainder().chunks(V::LANES).enumerate() {
            // SAFETY: reads as many as the chunk has.
            acc[k] = acc[k].add(unsafe { V::load_first(c.as_ptr(), c.len()) });
        }
        acc[0].add(acc[1]).add(acc[2].add(acc[3])).sum()
    }
}

struct AddRow<'a, E>(&'a mut [E], &'a [E]);

impl<E: Real> Kernel<E> for AddRow<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        for (o, x) in self.0.chunks_mut(V::LANES).zip(self.1.chunks(V::LANES)) {
            let w = o.len().min(x.len());
            // SAFETY: both have w elements, and w <= LANES.
            unsafe {
                V::load_first(o.as_ptr(), w).add(V::load_first(x.as_ptr(), w)).store_first(o.as_mut_ptr(), w)
            };
        }
    }
}

/// Rows or vectors' numbers that one chain of roundings covers; what lies beyond is added in doubles.
/// The cut depends on the shape alone.
const BLOCK: usize = 256;

/// `out[kept] = Σ src[kept, reduced]`, where the two layouts walk the kept and the reduced axes.
pub(super) fn sum<T: Real>(cpu: &Cpu, src: &[T], kept: &Layout, reduced: &Layout, out: &mut [T]) {
    out.fill(T::ZERO);
    if out.is_empty() || reduced.shape.numel() == 0 {
        return;
    }
    let (outer, inner) = (Walk::new([kept]), Walk::new([reduced]));
    let (n, [kept_step]) = (outer.inner(), outer.steps());
    let (m, [step]) = (inner.inner(), inner.steps());
    if kept_step == 1 && step == n && inner.runs() == 1 {
        // Down the columns of a matrix without gaps.
        outer.for_runs(0, outer.runs(), |r, [base]| {
            column_sums(cpu, m, n, Plain(&src[base..base + m * n]), &mut out[r * n..(r + 1) * n]);
        });
    } else if kept_step == 1 && step != 1 && n > 1 {
        // Down the columns of rows that lie apart.
        outer.for_runs(0, outer.runs(), |r, [base]| {
            let (mut part, mut total) = (vec![T::ZERO; n], vec![0.0f64; n]);
            let mut rows = 0;
            let mut close = |part: &mut Vec<T>| {
                total.iter_mut().zip(part).for_each(|(t, x)| *t += std::mem::take(x).to_f64());
            };
            inner.for_runs(0, inner.runs(), |_, [at]| {
                for i in 0..m {
                    let from = base + at + i * step;
                    T::dispatch(cpu.isa, AddRow(&mut part, &src[from..from + n]));
                    rows += 1;
                    if rows % BLOCK == 0 {
                        close(&mut part);
                    }
                }
            });
            close(&mut part);
            out[r * n..(r + 1) * n].iter_mut().zip(total).for_each(|(o, t)| *o = T::from_f64(t));
        });
    } else {
        let one = |base: usize| {
            let mut total = 0.0;
            inner.for_runs(0, inner.runs(), |_, [at]| {
                let at = base + at;
                total += match step {
                    1 => {
                        let part = |x| T::dispatch(cpu.isa, RowSum(x)).to_f64();
                        src[at..at + m].chunks(16 * BLOCK).map(part).sum()
                    }
                    _ => (0..m).map(|i| src[at + i * step].to_f64()).sum::<f64>(),
                };
            });
            T::from_f64(total)
        };
        outer.for_runs(0, outer.runs(), |r, [base]| {
            let row = &mut out[r * n..(r + 1) * n];
            row.iter_mut().enumerate().for_each(|(k, o)| *o = one(base + k * kept_step));
        });
    }
}
