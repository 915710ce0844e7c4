//! The register tile: the one loop in which nearly all floating-point work of a CPU run happens.

// Loops by index over constant bounds are what the compiler unrolls into registers.
#![allow(clippy::needless_range_loop)]

use std::mem::MaybeUninit;

use crate::simd::{Kernel, Real, Simd};

use super::pack::transpose;

/// The largest tile in rows and in vectors: 14 x 2 AVX-512 accumulators leave four registers for the
/// operands.
pub(crate) const MAX_ROWS: usize = 14;
/// Numbers of the largest tile, and of the square that a transposed store works in.
const MAX_TILE: usize = MAX_ROWS * 32;
const MAX_SQUARE: usize = 16 * 16;

/// How far one operand moves: from a step of the inner sum to the next, from a segment to the next, and
/// from a group of segments to the next.
///
/// A matrix product has one segment; a convolution has one a kernel row (its taps and channels lie one
/// after the other in a channels-last image) or one an image row.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Walk {
    pub step: usize,
    pub segment: usize,
    pub group: usize,
}

/// The lengths of the three nested sums of a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Depth {
    pub steps: usize,
    pub segments: usize,
    pub groups: usize,
}

/// What is added to the finished sums.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bias<E> {
    None,
    /// A number a row, read from here.
    Rows(*const E),
    /// A number a column, read from here.
    Cols(*const E),
}

/// A tile of C = Σ A·B: `rows` x `cols` numbers, kept in registers over the whole sum.
///
/// Row i of A is read one number at a time at `a + i * a_row`, B `cols` neighbouring numbers at a time.
/// Every element is one chain of multiply-adds in the order of the sum, whatever the tile's size, so
/// that the cut into tiles never shows in the bits.
///
/// Running it is sound if, over the whole walk, A is readable in `rows` places and B in `cols` places
/// (in whole vectors if `b_whole`), and C is writable and nobody else's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile<E> {
    pub rows: usize,
    pub cols: usize,
    pub depth: Depth,
    pub a: *const E,
    pub a_row: usize,
    pub a_walk: Walk,
    pub b: *const E,
    pub b_walk: Walk,
    pub b_whole: bool,
    pub c: *mut E,
    pub c_row: usize,
    pub c_col: usize,
    pub bias: Bias<E>,
    pub add: bool,
}

/// Rows and vectors of the largest tile that the registers hold: its accumulators, the vectors of B and
/// one for the broadcast of A.
pub(crate) const fn largest<E: Copy, V: Simd<E>>() -> (usize, usize) {
    let vectors = if V::REGISTERS >= 16 { 2 } else { 1 };
    let rows = (V::REGISTERS - vectors - 1) / vectors;
    (
        if rows > MAX_ROWS {
            MAX_ROWS
        } else if rows == 0 {
            1
        } else {
            rows
        },
        vectors,
    )
}

impl<E: Real> Kernel<E> for Tile<E> {
    type Out = ();

    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let (max_rows, max_vectors) = const { largest::<E, V>() };
        debug_assert!(self.rows <= max_rows && self.cols <= max_vectors * V::LANES);
        const { assert!(largest::<E, V>().0 * largest::<E, V>().1 * V::LANES <= MAX_TILE) };
        let mut sums = MaybeUninit::<[E; MAX_TILE]>::uninit();
        let sums = sums.as_mut_ptr().cast::<E>();
        let two = self.cols > V::LANES;
        // Kernels that this vector type has no registers for are never reached; the constant
        // conditions keep them from being compiled.
        macro_rules! pick {
            ($($rows:literal)*) => {
                match self.rows {
                    $($rows => if const { $rows <= largest::<E, V>().0 } {
                        if !two {
                            // SAFETY: the maker of the tile vouches for the operands.
                            unsafe { self.shape::<V, $rows, 1>(sums) }
                        } else if const { largest::<E, V>().1 >= 2 } {
                            // SAFETY: as above.
                            unsafe { self.shape::<V, $rows, 2>(sums) }
                        }
                    },)*
                    _ => return debug_assert!(false, "a tile of {} rows", self.rows),
                }
            };
        }
        pick!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
        // SAFETY: all sums are there, and the maker of the tile vouches for C and the bias.
        unsafe {
            match (self.c_col, two) {
                (1, false) => self.store::<V, 1>(sums),
                (1, true) => self.store::<V, 2>(sums),
                _ => self.scatter::<V>(sums, if two { 2 * V::LANES } else { V::LANES }),
            }
        }
    }
}

impl<E: Real> Tile<E> {
    /// Writes the sums to `to`, in `rows` rows of `N` whole vectors.
    ///
    /// # Safety
    /// As for the whole tile, with `rows == R` and `cols` in the last of `N` vectors.
    #[inline(always)]
    unsafe fn shape<V: Simd<E>, const R: usize, const N: usize>(&self, to: *mut E) {
        let last = self.cols - (N - 1) * V::LANES;
        let whole = self.b_whole || last == V::LANES;
        // SAFETY: `sum` reads what the maker of the tile vouches for.
        let acc = unsafe {
            match (self.a_row == 1, whole) {
                (true, true) => self.sum::<V, R, N, true, false>(last),
                (true, false) => self.sum::<V, R, N, true, true>(last),
                (false, true) => self.sum::<V, R, N, false, false>(last),
                (false, false) => self.sum::<V, R, N, false, true>(last),
            }
        };
        for i in 0..R {
            for j in 0..N {
                // SAFETY: the buffer holds the largest tile.
                unsafe { acc[i][j].store(to.add((i * N + j) * V::LANES)) };
            }
        }
    }

    /// `NEAR`: the rows of A are neighbours in memory. `MASK`: only `last` numbers of B's last vector
    /// may be read.
    ///
    /// # Safety
    /// As for [`Tile::shape`].
    #[inline(always)]
    unsafe fn sum<V: Simd<E>, const R: usize, const N: usize, const NEAR: bool, const MASK: bool>(
        &self,
        last: usize,
    ) -> [[V; N]; R] {
        let mut acc = [[V::splat(E::ZERO); N]; R];
        let row = if NEAR { 1 } else { self.a_row };
        for group in 0..self.depth.groups {
            for segment in 0..self.depth.segments {
                let mut a = self.a.wrapping_add(group * self.a_walk.group + segment * self.a_walk.segment);
                let mut b = self.b.wrapping_add(group * self.b_walk.group + segment * self.b_walk.segment);
                for _ in 0..self.depth.steps {
                    let mut bv = [V::splat(E::ZERO); N];
                    for j in 0..N {
                        // SAFETY: inside B's walk, by the contract of the tile.
                        bv[j] = unsafe {
                            if MASK && j == N - 1 {
                                V::load_first(b.add(j * V::LANES), last)
                            } else {
                                V::load(b.add(j * V::LANES))
                            }
                        };
                    }
                    for i in 0..R {
                        // SAFETY: inside A's walk, by the contract of the tile.
                        let x = V::splat(unsafe { *a.add(i * row) });
                        for j in 0..N {
                            acc[i][j] = x.mul_add(bv[j], acc[i][j]);
                        }
                    }
                    a = a.wrapping_add(self.a_walk.step);
                    b = b.wrapping_add(self.b_walk.step);
                }
            }
        }
        acc
    }

    /// Stores a tile whose columns are neighbours in C, from a buffer with rows of `N` vectors.
    ///
    /// # Safety
    /// As for the whole tile; `buffer` holds the finished sums.
    #[inline(always)]
    unsafe fn store<V: Simd<E>, const N: usize>(&self, buffer: *const E) {
        let last = self.cols - (N - 1) * V::LANES;
        for i in 0..self.rows {
            for j in 0..N {
                let (at, n) = (j * V::LANES, if j == N - 1 { last } else { V::LANES });
                // SAFETY: the buffer has whole vectors, the bias `rows` or `cols` numbers and C's row
                // `cols`; of the last vector only the first `last` lanes are touched.
                unsafe {
                    let mut v = V::load(buffer.add(i * N * V::LANES + at));
                    match self.bias {
                        Bias::None => {}
                        Bias::Rows(p) => v = v.add(V::splat(*p.add(i))),
                        Bias::Cols(p) => v = v.add(V::load_first(p.add(at), n)),
                    }
                    let c = self.c.add(i * self.c_row + at);
                    if self.add {
                        v = V::load_first(c, n).add(v);
                    }
                    v.store_first(c, n);
                }
            }
        }
    }

    /// Stores a tile whose columns are not neighbours in C, from a buffer with rows of `width`. Where
    /// the rows are neighbours (the transposed product) it goes by columns through a transpose.
    ///
    /// # Safety
    /// As for the whole tile; `buffer` holds the finished sums.
    #[inline(always)]
    unsafe fn scatter<V: Simd<E>>(&self, buffer: *const E, width: usize) {
        let mut square = MaybeUninit::<[E; MAX_SQUARE]>::uninit();
        let square = square.as_mut_ptr().cast::<E>();
        const { assert!(V::LANES * V::LANES <= MAX_SQUARE) };
        for at in (0..self.cols).step_by(V::LANES) {
            let cols = (self.cols - at).min(V::LANES);
            // A tile may have more rows than a vector has lanes.
            for top in (0..self.rows).step_by(V::LANES) {
                let rows = (self.rows - top).min(V::LANES);
                // SAFETY: reads rows of the buffer, writes at most a square of vectors.
                unsafe {
                    let from = buffer.add(top * width + at);
                    transpose::<E, V>(from, width, rows, cols, square, V::LANES, V::LANES);
                }
                for j in 0..cols {
                    // SAFETY: the bias has `rows` or `cols` numbers, C's column `rows`.
                    unsafe {
                        let mut v = V::load(square.add(j * V::LANES));
                        match self.bias {
                            Bias::None => {}
                            Bias::Rows(p) => v = v.add(V::load_first(p.add(top), rows)),
                            Bias::Cols(p) => v = v.add(V::splat(*p.add(at + j))),
                        }
                        let c = self.c.add(top * self.c_row + (at + j) * self.c_col);
                        if self.c_row == 1 {
                            if self.add {
                                v = V::load_first(c, rows).add(v);
                            }
                            v.store_first(c, rows);
                        } else {
                            v.store(square.add(j * V::LANES));
                            for i in 0..rows {
                                let (x, c) = (*square.add(j * V::LANES + i), c.add(i * self.c_row));
                                *c = if self.add { *c + x } else { x };
                            }
                        }
                    }
                }
            }
        }
    }
}
