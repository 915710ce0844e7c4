//! Picking elements by index on the CPU.

use phalanx_host::simd::Real;

use crate::{Error, Layout, Result, Shape};

/// Fails unless every index is in `0..limit`.
pub(super) fn check(op: &'static str, indices: &[i64], limit: usize) -> Result<()> {
    match indices.iter().position(|&i| !usize::try_from(i).is_ok_and(|i| i < limit)) {
        Some(position) => Err(Error::Index { op, index: indices[position], position, limit }),
        None => Ok(()),
    }
}

/// `out[o][j][..] = x[o][list[j]][..]`, where `x` is `[outer, size, inner]`.
pub(super) fn slices<T: Real>(x: &[T], [_, size, inner]: [usize; 3], list: &[i64], out: &mut [T]) {
    if out.is_empty() {
        return;
    }
    for (o, out) in out.chunks_exact_mut(list.len() * inner).enumerate() {
        for (&index, row) in list.iter().zip(out.chunks_exact_mut(inner)) {
            row.copy_from_slice(&x[(o * size + index as usize) * inner..][..inner]);
        }
    }
}

/// `out[o][list[j]][..] += g[o][j][..]`.
pub(super) fn add_slices<T: Real>(g: &[T], [_, size, inner]: [usize; 3], list: &[i64], out: &mut [T]) {
    if g.is_empty() {
        return;
    }
    for (o, g) in g.chunks_exact(list.len() * inner).enumerate() {
        for (&index, g) in list.iter().zip(g.chunks_exact(inner)) {
            let row = &mut out[(o * size + index as usize) * inner..][..inner];
            row.iter_mut().zip(g).for_each(|(d, &g)| *d += g);
        }
    }
}

/// Calls `each(i, at)` for every index i in row-major order with the place in `x` that it names.
pub(super) fn elements(
    x: Shape,
    index: Shape,
    axis: usize,
    indices: &[i64],
    mut each: impl FnMut(usize, usize),
) {
    let layout = Layout::contiguous(x);
    let mut place = vec![0; index.len()];
    for (i, &picked) in indices.iter().enumerate() {
        let at = place.iter().zip(layout.strides()).enumerate();
        let at = at.map(|(a, (&p, &s))| s * if a == axis { picked as usize } else { p }).sum();
        each(i, at);
        for a in (0..place.len()).rev() {
            place[a] += 1;
            if place[a] < index[a] {
                break;
            }
            place[a] = 0;
        }
    }
}
