//! Picking elements by index on the CPU, and adding them back.
//!
//! What is added to one place is added by one task, in the order of the indices.

use phalanx_host::simd::Real;
use phalanx_host::{Cpu, Element};

use crate::ops::walk::Walk;
use crate::{Error, Layout, Result, Shape};

/// Numbers that one task moves, about.
const PIECE: usize = 16 * 1024;
/// Parts that the places of an axis are cut into when slices are added to them.
const PARTS: usize = 64;

/// Fails unless every index is in `0..limit`.
pub(super) fn check(op: &'static str, indices: &[i64], limit: usize) -> Result<()> {
    match indices.iter().position(|&i| !usize::try_from(i).is_ok_and(|i| i < limit)) {
        Some(position) => Err(Error::Index { op, index: indices[position], position, limit }),
        None => Ok(()),
    }
}

/// Sets every element to zero.
pub(super) fn clear<T: Real>(cpu: &Cpu, out: &mut [T]) {
    cpu.workers.chunks(out, PIECE, |_, out| out.fill(T::ZERO));
}

/// `out[o][j][..] = x[o][list[j]][..]`, where `x` is `[outer, size, inner]`.
pub(super) fn slices<T: Element>(
    cpu: &Cpu,
    x: &[T],
    [_, size, inner]: [usize; 3],
    list: &[i64],
    out: &mut [T],
) {
    if out.is_empty() {
        return;
    }
    let rows = (PIECE / inner).max(1);
    cpu.workers.chunks(out, rows * inner, |task, out| {
        let (mut o, mut j) = (task * rows / list.len(), task * rows % list.len());
        for out in out.chunks_exact_mut(inner) {
            let at = (o * size + list[j] as usize) * inner;
            match inner {
                // Not worth a call that copies memory.
                1 => out[0] = x[at],
                _ => out.copy_from_slice(&x[at..at + inner]),
            }
            j += 1;
            if j == list.len() {
                (o, j) = (o + 1, 0);
            }
        }
    });
}

fn add<T: Real>(g: &[T], out: &mut [T]) {
    out.iter_mut().zip(g).for_each(|(d, &g)| *d += g);
}

/// `out[o][list[j]][..] += g[o][j][..]`, save for the index `skip`.
pub(super) fn add_slices<T: Real>(
    cpu: &Cpu,
    g: &[T],
    [outer, size, inner]: [usize; 3],
    list: &[i64],
    skip: Option<i64>,
    out: &mut [T],
) {
    if g.is_empty() {
        return;
    }
    let take = |j: &usize| Some(list[*j]) != skip;
    if outer > 1 || g.len() <= PIECE {
        let (each, own) = (size * inner, list.len() * inner);
        let group = (PIECE / own).max(1);
        cpu.workers.chunks(out, group * each, |task, out| {
            for (i, out) in out.chunks_exact_mut(each).enumerate() {
                let g = &g[(task * group + i) * own..][..own];
                for j in (0..list.len()).filter(take) {
                    add(&g[j * inner..][..inner], &mut out[list[j] as usize * inner..][..inner]);
                }
            }
        });
        return;
    }
    // A task owns some places, and its slices keep their order.
    let places = size.div_ceil(PARTS);
    let part = |j: usize| list[j] as usize / places;
    let mut ends = vec![0; size.div_ceil(places) + 1];
    (0..list.len()).filter(take).for_each(|j| ends[part(j) + 1] += 1);
    (1..ends.len()).for_each(|p| ends[p] += ends[p - 1]);
    let (starts, mut next) = (ends.clone(), ends);
    let mut order = vec![0; starts[starts.len() - 1]];
    for j in (0..list.len()).filter(take) {
        order[next[part(j)]] = j;
        next[part(j)] += 1;
    }
    cpu.workers.chunks(out, places * inner, |task, out| {
        for &j in &order[starts[task]..starts[task + 1]] {
            let place = list[j] as usize - task * places;
            add(&g[j * inner..][..inner], &mut out[place * inner..][..inner]);
        }
    });
}

/// The places in a row-major `source` of which the indices along `axis` name the last part.
struct Places {
    walk: Walk<1>,
    /// Elements from an index to the next.
    along: usize,
}

impl Places {
    fn new(source: Shape, axis: usize, index: Shape) -> Self {
        let whole = Layout::contiguous(source);
        let mut strides = whole.strides().to_vec();
        let along = std::mem::take(&mut strides[axis]);
        Places { walk: Walk::new([&Layout::with(index, &strides, 0)]), along }
    }

    /// Calls `each(i, at)` for the indices of runs `from..to` with the place that each names.
    fn each(&self, list: &[i64], from: usize, to: usize, mut each: impl FnMut(usize, usize)) {
        let (n, [step]) = (self.walk.inner(), self.walk.steps());
        self.walk.for_runs(from, to, |run, [at]| {
            for i in 0..n {
                each(run * n + i, at + i * step + list[run * n + i] as usize * self.along);
            }
        });
    }
}

/// `out[i] = x[place that index i names]`.
pub(super) fn gather<T: Element>(
    cpu: &Cpu,
    x: &[T],
    source: Shape,
    axis: usize,
    (index, list): (Shape, &[i64]),
    out: &mut [T],
) {
    if out.is_empty() {
        return;
    }
    let places = Places::new(source, axis, index);
    let n = places.walk.inner();
    let runs = PIECE.div_ceil(n);
    cpu.workers.chunks(out, runs * n, |task, out| {
        let from = task * runs;
        places.each(list, from, from + out.len() / n, |i, at| out[i - from * n] = x[at]);
    });
}

/// `out[place that index i names] += g[i]`.
pub(super) fn add_elements<T: Real>(
    cpu: &Cpu,
    g: &[T],
    source: Shape,
    axis: usize,
    (index, list): (Shape, &[i64]),
    out: &mut [T],
) {
    if g.is_empty() {
        return;
    }
    let some = |source, axis, index, list: &[i64], g: &[T], out: &mut [T]| {
        let places = Places::new(source, axis, index);
        places.each(list, 0, places.walk.runs(), |i, at| out[at] += g[i]);
    };
    if axis == 0 {
        return some(source, axis, index, list, g, out);
    }
    // Entries of the first axis never meet.
    let (each, own) = (source.numel() / source[0], index.numel() / index[0]);
    let group = (PIECE / own).max(1);
    cpu.workers.chunks(&mut out[..index[0] * each], group * each, |task, out| {
        for (i, out) in out.chunks_exact_mut(each).enumerate() {
            let at = (task * group + i) * own;
            let (list, g) = (&list[at..at + own], &g[at..at + own]);
            some(source.without(0), axis - 1, index.without(0), list, g, out);
        }
    });
}

/// Rows of `classes` numbers that are 1 at their index and 0 elsewhere.
pub(super) fn one_hot<T: Real>(cpu: &Cpu, list: &[i64], classes: usize, out: &mut [T]) {
    clear(cpu, out);
    for (row, &index) in out.chunks_exact_mut(classes.max(1)).zip(list) {
        row[index as usize] = T::ONE;
    }
}
