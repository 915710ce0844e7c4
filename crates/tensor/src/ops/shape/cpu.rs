//! Strided copies and sums on the CPU.

use phalanx_host::Element;
use phalanx_host::simd::Real;

use crate::Layout;
use crate::ops::walk::Walk;

/// Writes the elements of `src`, read through `layout`, row-major to `out`.
pub(super) fn copy<T: Element>(src: &[T], layout: &Layout, out: &mut [T]) {
    if out.is_empty() {
        return;
    }
    let walk = Walk::new([layout]);
    let (n, [step]) = (walk.inner(), walk.steps());
    walk.for_runs(0, walk.runs(), |i, [at]| {
        let row = &mut out[i * n..(i + 1) * n];
        match step {
            1 => row.copy_from_slice(&src[at..at + n]),
            _ => row.iter_mut().enumerate().for_each(|(k, x)| *x = src[at + k * step]),
        }
    });
}

/// As [`copy`], adding to `out`.
pub(super) fn add<T: Real>(src: &[T], layout: &Layout, out: &mut [T]) {
    if out.is_empty() {
        return;
    }
    let walk = Walk::new([layout]);
    let (n, [step]) = (walk.inner(), walk.steps());
    walk.for_runs(0, walk.runs(), |i, [at]| {
        let row = &mut out[i * n..(i + 1) * n];
        match step {
            1 => row.iter_mut().zip(&src[at..at + n]).for_each(|(x, &y)| *x += y),
            _ => row.iter_mut().enumerate().for_each(|(k, x)| *x += src[at + k * step]),
        }
    });
}

/// Writes the elements of `src`, read through `from`, to `out` through `to`; both have one shape.
pub(super) fn scatter<T: Element>(src: &[T], from: &Layout, to: &Layout, out: &mut [T]) {
    if from.shape.numel() == 0 {
        return;
    }
    let walk = Walk::new([from, to]);
    let (n, [read, write]) = (walk.inner(), walk.steps());
    walk.for_runs(0, walk.runs(), |_, [a, b]| {
        (0..n).for_each(|k| out[to.offset + b + k * write] = src[a + k * read]);
    });
}
