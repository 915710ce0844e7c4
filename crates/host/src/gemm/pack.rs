//! Copies operands into panels: for each step of the sum, the numbers of one tile side by side.

// Loops by index over constant bounds are what the compiler unrolls into registers.
#![allow(clippy::needless_range_loop)]

use crate::simd::{Kernel, Real, Simd};

/// Reads `rows` x `cols` numbers (each at most a vector's lanes) and writes their transpose: `cols`
/// rows of `width` numbers, zero from `rows` on.
///
/// # Safety
/// The reads and writes must be in bounds, and `rows <= width <= LANES`.
#[inline(always)]
pub(super) unsafe fn transpose<E: Real, V: Simd<E>>(
    src: *const E,
    src_row: usize,
    rows: usize,
    cols: usize,
    dst: *mut E,
    dst_row: usize,
    width: usize,
) {
    const { assert!(V::LANES <= 16) };
    let mut v = [V::splat(E::ZERO); 16];
    for i in 0..V::LANES {
        if i < rows {
            // SAFETY: the caller vouches for the reads.
            v[i] = unsafe { V::load_first(src.add(i * src_row), cols) };
        }
    }
    // log2(LANES) perfect shuffles of the rows transpose the square.
    let mut round = 1;
    while round < V::LANES {
        let mut w = v;
        for i in 0..V::LANES / 2 {
            (w[2 * i], w[2 * i + 1]) = v[i].zip(v[i + V::LANES / 2]);
        }
        v = w;
        round *= 2;
    }
    for j in 0..V::LANES {
        if j < cols {
            // SAFETY: the caller vouches for the writes.
            unsafe { v[j].store_first(dst.add(j * dst_row), width) };
        }
    }
}

/// Copies `steps` x `lanes` numbers, read at `src + step * src_step + lane * src_lane`, to a panel with
/// rows of `width`, zero from `lanes` on.
///
/// Running it is sound if the reads are in bounds and `dst` is writable for `steps * width` numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pack<E> {
    pub src: *const E,
    pub src_step: usize,
    pub src_lane: usize,
    pub steps: usize,
    pub lanes: usize,
    pub dst: *mut E,
    pub width: usize,
}

impl<E: Real> Kernel<E> for Pack<E> {
    type Out = ();

    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let Pack { src, src_step, src_lane, steps, lanes, dst, width } = self;
        for at in (0..width).step_by(V::LANES) {
            let wide = (width - at).min(V::LANES);
            let some = lanes.saturating_sub(at).min(V::LANES);
            if src_lane == 1 {
                for p in 0..steps {
                    // SAFETY: inside the source's `lanes` and the panel's `width`, by the contract.
                    unsafe {
                        let v = V::load_first(src.wrapping_add(p * src_step + at), some);
                        v.store_first(dst.add(p * width + at), wide);
                    }
                }
            } else if src_step == 1 {
                for p in (0..steps).step_by(V::LANES) {
                    // SAFETY: as above.
                    unsafe {
                        let from = src.wrapping_add(p + at * src_lane);
                        let cols = (steps - p).min(V::LANES);
                        transpose::<E, V>(from, src_lane, some, cols, dst.add(p * width + at), width, wide);
                    }
                }
            } else {
                for p in 0..steps {
                    for l in 0..wide {
                        // SAFETY: as above.
                        unsafe {
                            let x =
                                if l < some { *src.add(p * src_step + (at + l) * src_lane) } else { E::ZERO };
                            *dst.add(p * width + at + l) = x;
                        }
                    }
                }
            }
        }
    }
}
