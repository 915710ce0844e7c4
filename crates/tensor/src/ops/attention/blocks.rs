//! The walk over blocks of weights: 64 queries by 128 keys at a time.

use phalanx_host::rng::Key;
use phalanx_host::{Buffer, Cpu, Mat, MatMut, gemm};

use super::cpu::{Advance, Again, Slopes};
use crate::ops::dropout::drop_from;
use crate::ops::elementwise::math::Math;
use crate::ops::tasks::{groups, try_chunks};
use crate::ops::walk::Walk;
use crate::{Layout, Result, Shape, View};

/// Queries of a block.
const ROWS: usize = 64;
/// Keys of a block.
const COLS: usize = 128;

/// The operands. `mask` and `bias` are stretched to the weights.
pub(super) struct Heads<'a> {
    /// Queries, keys, numbers of a key, numbers of a value.
    pub(super) sizes: [usize; 4],
    pub(super) q: View<'a>,
    pub(super) k: View<'a>,
    pub(super) v: View<'a>,
    pub(super) mask: Option<View<'a>>,
    pub(super) bias: Option<View<'a>>,
    pub(super) causal: bool,
    pub(super) scale: f64,
    pub(super) dropout: Option<(f64, Key)>,
}

/// Some rows of a matrix with its strides.
fn rows<'a, T: Math>(x: &View<'a>, start: usize, from: usize, count: usize) -> Result<Mat<'a, T>> {
    let (n, strides) = (x.shape().len() - 2, x.layout.strides());
    let (row, col) = (strides[n], strides[n + 1]);
    let all = x.slice::<T>()?;
    let at = (start + from * row).min(all.len());
    Ok(Mat::new(&all[at..], count, x.shape()[n + 1], row, col)?)
}

impl Heads<'_> {
    /// Where each head's queries, keys, values, mask and bias begin, one after the other in the batch.
    fn starts(&self) -> Vec<[usize; 5]> {
        let n = self.q.shape().len() - 2;
        let lead = |x: &View| Layout::with(Shape::new(&x.shape()[..n]), &x.layout.strides()[..n], 0);
        let none =
            |x: &Option<View>| x.as_ref().map_or(Layout::with(lead(&self.q).shape, &[0; 6][..n], 0), lead);
        let layouts = [lead(&self.q), lead(&self.k), lead(&self.v), none(&self.mask), none(&self.bias)];
        Walk::new(layouts.each_ref()).places()
    }

    /// The keys that any of the queries before `end` looks at.
    fn keys(&self, end: usize) -> usize {
        if self.causal { self.sizes[1].min(end) } else { self.sizes[1] }
    }

    /// The scores of queries `i..` by keys `j..` of head `h` in `s`, whose rows have `cols` numbers.
    fn scores<T: Math>(
        &self,
        cpu: &Cpu,
        starts: &[usize; 5],
        [i, j]: [usize; 2],
        [count, cols]: [usize; 2],
        s: &mut [T],
    ) -> Result<()> {
        let (q, k) = (rows(&self.q, starts[0], i, count)?, rows(&self.k, starts[1], j, cols)?);
        gemm(cpu, q, k.t(), MatMut::row_major(s, count, cols)?, false)?;
        let scale = T::from_f64(self.scale);
        for (r, s) in s.chunks_exact_mut(cols).enumerate() {
            s.iter_mut().for_each(|s| *s = *s * scale);
            let place = |x: &View, start: usize| {
                let strides = &x.layout.strides()[x.shape().len() - 2..];
                (start + (i + r) * strides[0] + j * strides[1], strides[1])
            };
            if let Some(x) = &self.bias {
                let ((at, step), x) = (place(x, starts[4]), x.slice::<T>()?);
                s.iter_mut().enumerate().for_each(|(c, s)| *s += x[at + c * step]);
            }
            if let Some(x) = &self.mask {
                let ((at, step), x) = (place(x, starts[3]), x.slice::<u8>()?);
                let hidden = |c: &usize| x[at + c * step] == 0;
                (0..cols).filter(hidden).for_each(|c| s[c] = T::NEG_INFINITY);
            }
            if self.causal && j + cols > i + r + 1 {
                s[(i + r + 1).saturating_sub(j)..].fill(T::NEG_INFINITY);
            }
        }
        Ok(())
    }

    /// Drops weights of head `h` from query `i` and key `j` on, or what belongs to them.
    fn drop<T: Math>(&self, h: usize, [i, j]: [usize; 2], cols: usize, p: &mut [T]) {
        let Some((probability, key)) = self.dropout else { return };
        let [queries, keys, ..] = self.sizes;
        for (r, p) in p.chunks_exact_mut(cols).enumerate() {
            drop_from(probability, key, ((h * queries + i + r) * keys + j) as u64, p);
        }
    }
}

/// Memory for a block of numbers.
fn block<T>(cpu: &Cpu) -> Result<Buffer> {
    Ok(cpu.pool.alloc(ROWS * COLS * size_of::<T>())?)
}

/// Some queries of a head: the values that they get and the logarithms of their sums.
struct Queries<'a, T> {
    head: usize,
    from: usize,
    y: &'a mut [T],
    logs: &'a mut [T],
}

/// The weighted values `y` and, for each query, the logarithm of its sum of exponentials.
pub(super) fn forward<T: Math>(cpu: &Cpu, of: &Heads, y: &mut [T], logs: &mut [T]) -> Result<()> {
    let [queries, keys, _, size] = of.sizes;
    if logs.is_empty() {
        return Ok(());
    }
    let starts = of.starts();
    let mut all = Vec::new();
    let mut rest = y;
    for (head, logs) in logs.chunks_exact_mut(queries).enumerate() {
        for (b, logs) in logs.chunks_mut(ROWS).enumerate() {
            let (y, after) = std::mem::take(&mut rest).split_at_mut(logs.len() * size);
            rest = after;
            all.push(Queries { head, from: b * ROWS, y, logs });
        }
    }
    try_chunks(cpu, &mut all, 1, |_, part| {
        let Some(Queries { head, from, y, logs }) = part.first_mut() else { return Ok(()) };
        let (starts, count) = (&starts[*head], logs.len());
        let (mut s, mut p) = (block::<T>(cpu)?, block::<T>(cpu)?);
        let (mut tops, mut sums) = ([T::NEG_INFINITY; ROWS], [T::ZERO; ROWS]);
        y.fill(T::ZERO);
        for j in (0..of.keys(*from + count)).step_by(COLS) {
            let cols = COLS.min(keys - j);
            let (s, p) = (&mut s.as_mut_slice::<T>()[..count * cols], &mut p.as_mut_slice()[..count * cols]);
            of.scores(cpu, starts, [*from, j], [count, cols], s)?;
            for r in 0..count {
                let at = r * cols..(r + 1) * cols;
                let (s, p, y) = (&s[at.clone()], &mut p[at], &mut y[r * size..(r + 1) * size]);
                T::dispatch(cpu.isa, Advance { s, p, top: &mut tops[r], sum: &mut sums[r], y });
            }
            of.drop(*head, [*from, j], cols, p);
            let (p, v) = (Mat::row_major(p, count, cols)?, rows(&of.v, starts[2], j, cols)?);
            gemm(cpu, p, v, MatMut::row_major(y, count, size)?, true)?;
        }
        for (r, log) in logs.iter_mut().enumerate() {
            // A query without keys has no weights, now and on the way back.
            let nothing = sums[r] == T::ZERO;
            let share = if nothing { T::ZERO } else { T::ONE / sums[r] };
            y[r * size..(r + 1) * size].iter_mut().for_each(|y| *y = *y * share);
            *log = match nothing {
                true => -T::NEG_INFINITY,
                false => T::from_f64(tops[r].to_f64() + sums[r].to_f64().ln()),
            };
        }
        Ok(())
    })
}

/// What the way back reads besides the operands: the outputs, their gradient, and what [`forward`] kept.
pub(super) struct Back<'a, T> {
    pub(super) y: &'a [T],
    pub(super) g: &'a [T],
    pub(super) sums: &'a [T],
}

/// The gradients of queries, keys and values, row-major.
pub(super) fn backward<T: Math>(
    cpu: &Cpu,
    of: &Heads,
    read: &Back<T>,
    [dq, dk, dv]: [&mut [T]; 3],
) -> Result<()> {
    let [queries, keys, width, size] = of.sizes;
    [&mut *dq, &mut *dk, &mut *dv].into_iter().for_each(|x| x.fill(T::ZERO));
    if queries * keys == 0 {
        return Ok(());
    }
    let starts = of.starts();
    let pieces = |x, piece: usize| groups(x, piece, starts.len());
    let mut all: Vec<_> =
        pieces(dq, queries * width).zip(pieces(dk, keys * width)).zip(pieces(dv, keys * size)).collect();
    try_chunks(cpu, &mut all, 1, |h, part| {
        let Some(((dq, dk), dv)) = part.first_mut() else { return Ok(()) };
        let (mut s, mut p, mut d) = (block::<T>(cpu)?, block::<T>(cpu)?, block::<T>(cpu)?);
        for i in (0..queries).step_by(ROWS) {
            let count = ROWS.min(queries - i);
            let at = (h * queries + i) * size..(h * queries + i + count) * size;
            let (y, g) = (&read.y[at.clone()], &read.g[at]);
            let logs = &read.sums[h * queries + i..][..count];
            let dot = |r: usize| {
                let at = r * size..(r + 1) * size;
                let terms = y[at.clone()].iter().zip(&g[at]).map(|(y, g)| y.to_f64() * g.to_f64());
                T::from_f64(terms.sum())
            };
            let shares: Vec<T> = (0..count).map(dot).collect();
            let g = Mat::row_major(g, count, size)?;
            let q = rows(&of.q, starts[h][0], i, count)?;
            for j in (0..of.keys(i + count)).step_by(COLS) {
                let cols = COLS.min(keys - j);
                let [s, p, d] = [&mut s, &mut p, &mut d].map(|x| &mut x.as_mut_slice::<T>()[..count * cols]);
                let each = |r: usize| r * cols..(r + 1) * cols;
                of.scores(cpu, &starts[h], [i, j], [count, cols], s)?;
                for r in 0..count {
                    T::dispatch(cpu.isa, Again { s: &s[each(r)], log: logs[r], p: &mut p[each(r)] });
                }
                let (k, v) = (rows(&of.k, starts[h][1], j, cols)?, rows(&of.v, starts[h][2], j, cols)?);
                gemm(cpu, g, v.t(), MatMut::row_major(d, count, cols)?, false)?;
                of.drop(h, [i, j], cols, d);
                // The weights as the values met them.
                s.copy_from_slice(p);
                of.drop(h, [i, j], cols, s);
                let to = MatMut::row_major(&mut dv[j * size..(j + cols) * size], cols, size)?;
                gemm(cpu, Mat::row_major(s, count, cols)?.t(), g, to, true)?;
                for r in 0..count {
                    let scale = T::from_f64(of.scale);
                    let (p, dp) = (&p[each(r)], &mut d[each(r)]);
                    T::dispatch(cpu.isa, Slopes { p, dp, share: shares[r], scale });
                }
                let d = Mat::row_major(d, count, cols)?;
                let to = MatMut::row_major(&mut dq[i * width..(i + count) * width], count, width)?;
                gemm(cpu, d, k, to, true)?;
                let to = MatMut::row_major(&mut dk[j * width..(j + cols) * width], cols, width)?;
                gemm(cpu, d.t(), q, to, true)?;
            }
        }
        Ok(())
    })
}
