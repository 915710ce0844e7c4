//! A tile of dot products, for operands that lie along the sum: matrix times vector, and the weight
//! gradient of a convolution over one channel.

// Loops by index over constant bounds are what the compiler unrolls into registers.
#![allow(clippy::needless_range_loop)]

use crate::simd::{Kernel, Real, Simd};

use super::tile::{Depth, Walk};

const MAX_ROWS: usize = 6;
const MAX_COLS: usize = 4;

/// A tile of C = Σ A·Bᵀ: dot products of `rows` rows of A with `cols` rows of B. The steps of
/// the sum are neighbours in memory, in both (a walk's `step` is 1).
///
/// Running it is sound if all those runs are readable and C is writable and nobody else's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dot<E> {
    pub rows: usize,
    pub cols: usize,
    pub depth: Depth,
    pub a: *const E,
    pub a_row: usize,
    pub a_walk: Walk,
    pub b: *const E,
    pub b_row: usize,
    pub b_walk: Walk,
    pub c: *mut E,
    pub c_row: usize,
    pub c_col: usize,
    pub add: bool,
}

/// Rows and columns of the largest tile that the registers hold.
pub(crate) const fn largest<E: Copy, V: Simd<E>>() -> (usize, usize) {
    match V::REGISTERS {
        32.. => (MAX_ROWS, MAX_COLS),
        16.. => (3, 3),
        8.. => (2, 2),
        _ => (1, 1),
    }
}

impl<E: Real> Kernel<E> for Dot<E> {
    type Out = ();

    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        macro_rules! pick {
            ($($rows:literal $cols:literal)*) => {
                match (self.rows, self.cols) {
                    $(($rows, $cols) => if const {
                        $rows <= largest::<E, V>().0 && $cols <= largest::<E, V>().1
                    } {
                        // SAFETY: the maker of the tile vouches for the operands.
                        unsafe { self.shape::<V, $rows, $cols>() }
                    },)*
                    _ => debug_assert!(false, "{} x {} dot products", self.rows, self.cols),
                }
            };
        }
        pick!(1 1 1 2 1 3 1 4 2 1 2 2 2 3 2 4 3 1 3 2 3 3 3 4 4 1 4 2 4 3 4 4 5 1 5 2 5 3 5 4 6 1 6 2 6 3 6 4);
    }
}

impl<E: Real> Dot<E> {
    /// # Safety
    /// As for the whole tile.
    #[inline(always)]
    unsafe fn shape<V: Simd<E>, const R: usize, const C: usize>(&self) {
        let mut acc = [[V::splat(E::ZERO); C]; R];
        debug_assert!(self.a_walk.step == 1 && self.b_walk.step == 1);
        let Depth { steps, segments, groups } = self.depth;
        let whole = steps - steps % V::LANES;
        for s in 0..groups * segments {
            let (group, segment) = (s / segments, s % segments);
            let a = self.a.wrapping_add(group * self.a_walk.group + segment * self.a_walk.segment);
            let b = self.b.wrapping_add(group * self.b_walk.group + segment * self.b_walk.segment);
            let mut p = 0;
            while p < whole {
                // SAFETY: a whole vector inside each run.
                unsafe { self.step::<V, R, C>(&mut acc, a.add(p), b.add(p), V::LANES) };
                p += V::LANES;
            }
            if p < steps {
                // SAFETY: the rest of each run.
                unsafe { self.step::<V, R, C>(&mut acc, a.add(p), b.add(p), steps - p) };
            }
        }
        for i in 0..R {
            for j in 0..C {
                let sum = acc[i][j].sum();
                // SAFETY: inside C, by the contract of the tile.
                unsafe {
                    let c = self.c.add(i * self.c_row + j * self.c_col);
                    *c = if self.add { *c + sum } else { sum };
                }
            }
        }
    }

    /// # Safety
    /// `n` numbers (at most a vector's lanes) must be readable in each row from `a` and from `b`.
    #[inline(always)]
    unsafe fn step<V: Simd<E>, const R: usize, const C: usize>(
        &self,
        acc: &mut [[V; C]; R],
        a: *const E,
        b: *const E,
        n: usize,
    ) {
        let mut bv = [V::splat(E::ZERO); C];
        for j in 0..C {
            // SAFETY: vouched for by the caller.
            bv[j] = unsafe { V::load_first(b.add(j * self.b_row), n) };
        }
        for i in 0..R {
            // SAFETY: vouched for by the caller.
            let x = unsafe { V::load_first(a.add(i * self.a_row), n) };
            for j in 0..C {
                acc[i][j] = x.mul_add(bv[j], acc[i][j]);
            }
        }
    }
}
