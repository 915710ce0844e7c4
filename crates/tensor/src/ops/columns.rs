//! Sums down the columns of a row-major matrix: what bias gradients, normalisation and sums over
//! leading axes have in common.

use phalanx_host::Cpu;
use phalanx_host::simd::{Kernel, Real, Simd};

/// The numbers that are added up, `M` sums at a time.
pub(crate) trait Terms<E: Real, const M: usize>: Copy + Sync {
    /// The terms at elements `i..i + w` of the matrix, which are columns `col..col + w` of its folded
    /// row (see [`Fold`]); lanes from `w` on are ignored. `i + w` is within the matrix.
    fn at<V: Simd<E>>(self, i: usize, col: usize, w: usize) -> [V; M];
}

/// How a matrix of few columns is read: `rows` neighbouring rows as one row of `width` columns, so that
/// vectors are full. It follows from the number of columns alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fold {
    pub(crate) rows: usize,
    pub(crate) width: usize,
}

impl Fold {
    pub(crate) fn of(cols: usize) -> Self {
        let rows = (64 / cols.max(1)).max(1);
        Fold { rows, width: rows * cols }
    }

    /// A row of per-column numbers, repeated to the folded width.
    pub(crate) fn tile<E: Real>(self, row: &[E]) -> Vec<E> {
        row.repeat(self.rows)
    }
}

/// Folded rows whose sum is one chain of roundings.
const BLOCK: usize = 128;
/// Vectors that are summed side by side.
const SIDE: usize = 4;

struct Block<'a, E, R, const M: usize> {
    rule: R,
    start: usize,
    rows: usize,
    width: usize,
    sums: &'a mut [E],
}

impl<E: Real, R: Terms<E, M>, const M: usize> Block<'_, E, R, M> {
    #[inline(always)]
    fn side<V: Simd<E>, const S: usize>(&mut self, col: usize, last: usize) {
        let mut acc = [[V::splat(E::ZERO); M]; S];
        for r in 0..self.rows {
            for (s, acc) in acc.iter_mut().enumerate() {
                let at = col + s * V::LANES;
                let w = if s + 1 == S { last } else { V::LANES };
                let terms = self.rule.at::<V>(self.start + r * self.width + at, at, w);
                acc.iter_mut().zip(terms).for_each(|(a, t)| *a = a.add(t));
            }
        }
        for (s, acc) in acc.iter().enumerate() {
            for (m, v) in acc.iter().enumerate() {
                let w = if s + 1 == S { last } else { V::LANES };
                let at = m * self.width + col + s * V::LANES;
                let out = &mut self.sums[at..at + w];
                // SAFETY: `out` has w numbers, and w <= LANES.
                unsafe { v.store_first(out.as_mut_ptr(), w) };
            }
        }
    }
}

impl<E: Real, R: Terms<E, M>, const M: usize> Kernel<E> for Block<'_, E, R, M> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(mut self) {
        let mut col = 0;
        while col + SIDE * V::LANES <= self.width {
            self.side::<V, SIDE>(col, V::LANES);
            col += SIDE * V::LANES;
        }
        while col < self.width {
            let last = (self.width - col).min(V::LANES);
            self.side::<V, 1>(col, last);
            col += last;
        }
    }
}

/// `M` rows of `cols` sums over the `rows` rows of a matrix, one after the other in `out`.
///
/// The order of the additions depends on the shape alone.
pub(crate) fn column_sums<E: Real, R: Terms<E, M>, const M: usize>(
    cpu: &Cpu,
    rows: usize,
    cols: usize,
    rule: R,
    out: &mut [E],
) {
    let out = &mut out[..M * cols];
    out.fill(E::ZERO);
    if rows == 0 || cols == 0 {
        return;
    }
    let fold = Fold::of(cols);
    let (whole, rest) = (rows / fold.rows, rows % fold.rows);
    let blocks = whole.div_ceil(BLOCK);
    let mut parts = vec![E::ZERO; M * fold.width * (blocks + usize::from(rest > 0))];
    cpu.workers.chunks(&mut parts, M * fold.width, |b, sums| {
        let start = b * BLOCK * fold.width;
        if b < blocks {
            let rows = BLOCK.min(whole - b * BLOCK);
            E::dispatch(cpu.isa, Block { rule, start, rows, width: fold.width, sums });
        } else {
            // The rows that fill no folded row: one short one.
            let width = rest * cols;
            let start = whole * fold.width;
            E::dispatch(cpu.isa, Block { rule, start, rows: 1, width, sums: &mut sums[..M * width] });
        }
    });
    // In doubles: there may be thousands of parts.
    let mut totals = vec![0.0f64; M * cols];
    for (b, part) in parts.chunks_exact(M * fold.width).enumerate() {
        let width = if b < blocks { fold.width } else { rest * cols };
        for (part, totals) in part.chunks_exact(width).zip(totals.chunks_exact_mut(cols)) {
            for row in part.chunks_exact(cols) {
                totals.iter_mut().zip(row).for_each(|(t, x)| *t += x.to_f64());
            }
        }
    }
    out.iter_mut().zip(totals).for_each(|(o, t)| *o = E::from_f64(t));
}

/// The elements themselves.
#[derive(Clone, Copy)]
pub(crate) struct Plain<'a, E>(pub(crate) &'a [E]);

impl<E: Real> Terms<E, 1> for Plain<'_, E> {
    #[inline(always)]
    fn at<V: Simd<E>>(self, i: usize, _: usize, w: usize) -> [V; 1] {
        [load(self.0, i, w)]
    }
}

/// `w` numbers of `x` from `i` on.
#[inline(always)]
pub(crate) fn load<E: Real, V: Simd<E>>(x: &[E], i: usize, w: usize) -> V {
    let part = &x[i..i + w];
    // SAFETY: `part` has w numbers, and w <= LANES.
    unsafe { if w == V::LANES { V::load(part.as_ptr()) } else { V::load_first(part.as_ptr(), w) } }
}

/// Writes the first `w` lanes to `x` from `i` on.
#[inline(always)]
pub(crate) fn store<E: Real, V: Simd<E>>(v: V, x: &mut [E], i: usize, w: usize) {
    let part = &mut x[i..i + w];
    // SAFETY: `part` has w numbers, and w <= LANES.
    unsafe { if w == V::LANES { v.store(part.as_mut_ptr()) } else { v.store_first(part.as_mut_ptr(), w) } }
}

/// `out (+)= ` the sums of the columns of the row-major matrix `x`.
pub(crate) fn add_column_sums<E: Real>(cpu: &Cpu, x: &[E], out: &mut [E], accumulate: bool) {
    let cols = out.len();
    let rows = x.len().checked_div(cols).unwrap_or(0);
    if !accumulate {
        return column_sums(cpu, rows, cols, Plain(x), out);
    }
    let mut sums = vec![E::ZERO; cols];
    column_sums(cpu, rows, cols, Plain(x), &mut sums);
    out.iter_mut().zip(sums).for_each(|(o, s)| *o += s);
}

#[cfg(test)]
mod tests {
    use phalanx_host::Isa;

    use super::*;

    #[test]
    fn sums_of_whole_numbers_are_exact_for_any_shape_set_and_number_of_threads() {
        for (rows, cols) in [(0, 3), (1, 1), (9, 64), (1000, 6), (777, 1), (300, 65), (129, 130), (5, 0)] {
            let x: Vec<f32> = (0..rows * cols).map(|i| (i % 17) as f32).collect();
            let want: Vec<f32> = (0..cols).map(|c| (0..rows).map(|r| x[r * cols + c]).sum::<f32>()).collect();
            for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|i| i.available()) {
                for threads in [1, 3] {
                    let cpu = Cpu::new(isa, threads).unwrap();
                    let mut out = vec![f32::NAN; cols];
                    add_column_sums(&cpu, &x, &mut out, false);
                    assert_eq!(out, want, "{rows}x{cols} {isa}");
                    add_column_sums(&cpu, &x, &mut out, true);
                    assert!(out.iter().zip(&want).all(|(a, b)| *a == 2.0 * b));
                }
            }
        }
    }
}
