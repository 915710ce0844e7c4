//! Matrix products.
//!
//! The scheme is that of Goto and van de Geijn ("Anatomy of High-Performance Matrix Multiplication",
//! 2008) with one change: the larger first-level cache and the 32 registers of today's cores let a
//! strip of A stay in the first level while panels of B stream from the second, so A needs no block of
//! its own. Work is cut by shape alone, and every element of C is one chain of multiply-adds over k, or a
//! dot product in vectors where one side is thin and both operands lie along k; so neither threads nor tile
//! sizes show in the bits.

mod dot;
mod engine;
mod mat;
mod pack;
mod packed;
mod tile;

pub(crate) use dot::Dot;
pub(crate) use engine::{At, Engine, Scratch, Shared, part, run};
pub use mat::{Mat, MatMut};
pub(crate) use pack::Pack;
use packed::{Cut, Panels, Strips, fill};
pub use packed::{Packed, gemm_packed};
pub(crate) use tile::{Bias, Depth, Tile, Walk};

use crate::simd::Real;
use crate::{Buffer, Cpu, Error, Result};

/// C = A·B, or C += A·B where `accumulate` is set; A is m x k, B is k x n, C is m x n.
///
/// With k = 0 the product is zero. Fails with [`Error::Product`] when the sizes do not fit each other,
/// and with [`Error::OutOfMemory`] when there is no workspace.
pub fn gemm<T: Real>(cpu: &Cpu, a: Mat<T>, b: Mat<T>, c: MatMut<T>, accumulate: bool) -> Result<()> {
    gemm_bias(cpu, a, b, None, c, accumulate)
}

/// As [`gemm`], with `bias` (one number a column of C) added to each row of the product: a linear layer.
pub fn gemm_bias<T: Real>(
    cpu: &Cpu,
    a: Mat<T>,
    b: Mat<T>,
    bias: Option<&[T]>,
    c: MatMut<T>,
    accumulate: bool,
) -> Result<()> {
    Gemm::new(cpu).run(a, b, bias, c, accumulate)
}

/// Products one after another, with one workspace: for many small ones. Each is as [`gemm_bias`] would make it.
pub struct Gemm<'c, T: Real> {
    cpu: &'c Cpu,
    engine: Engine<T>,
    packed: Option<Buffer>,
}

impl<'c, T: Real> Gemm<'c, T> {
    /// For products on `cpu`.
    pub fn new(cpu: &'c Cpu) -> Self {
        Gemm { cpu, engine: Engine::new(cpu), packed: None }
    }

    /// C = A·B + `bias`, or C += A·B + `bias` where `accumulate` is set; fails as [`gemm`].
    pub fn run(
        &mut self,
        a: Mat<T>,
        b: Mat<T>,
        bias: Option<&[T]>,
        mut c: MatMut<T>,
        accumulate: bool,
    ) -> Result<()> {
        if a.cols != b.rows || a.rows != c.rows || b.cols != c.cols {
            return Err(Error::Product { a: (a.rows, a.cols), b: (b.rows, b.cols), c: (c.rows, c.cols) });
        }
        if let Some(bias) = bias
            && bias.len() != c.cols
        {
            return Err(Error::Product { a: (1, bias.len()), b: (1, 1), c: (c.rows, c.cols) });
        }
        if c.rows == 0 || c.cols == 0 {
            return Ok(());
        }
        let engine = &self.engine;
        if a.cols == 0 {
            if !accumulate {
                c.fill(T::ZERO);
            }
            c.add_to_rows(bias);
        } else if dots_are_better(&a, &b) {
            dots(self.cpu, engine, a, b, &mut c, accumulate);
            c.add_to_rows(bias);
        } else if cost(engine, &b.t(), &a.t(), c.row_stride) < cost(engine, &a, &b, c.col_stride) {
            // Cᵀ = BᵀAᵀ is the same product with the vectors along the other side.
            return self.product(b.t(), a.t(), c.t(), |_, rows| at(bias, rows, Bias::Rows), accumulate);
        } else {
            return self.product(a, b, c, |cols, _| at(bias, cols, Bias::Cols), accumulate);
        }
        Ok(())
    }

    /// The product in blocks; `bias(column, row)` is what a tile that starts there adds.
    fn product(
        &mut self,
        a: Mat<T>,
        b: Mat<T>,
        c: MatMut<T>,
        bias: impl Fn(usize, usize) -> Bias<T> + Sync,
        accumulate: bool,
    ) -> Result<()> {
        let Gemm { cpu, engine: e, packed } = self;
        let cut = Cut::new(e, b.rows, b.cols);
        // Packing costs a pass over the operand; panels of a B with contiguous rows pay that back only
        // when enough strips of A read them.
        let pack = b.col_stride != 1 || a.rows.div_ceil(e.rows) > 2;
        let bytes = if pack { cut.largest() * size_of::<T>() } else { 0 };
        if packed.as_ref().map_or(0, Buffer::len) < bytes {
            *packed = Some(cpu.pool.alloc(bytes)?);
        }
        let mut strips = Strips::new(cpu, e, &cut, a, c)?;
        for p in cut.parts() {
            let panels = match packed {
                Some(packed) if pack => {
                    fill(cpu, e, &cut, p, b, a.rows, packed.as_mut_slice());
                    Panels::Packed(packed.as_slice())
                }
                _ => Panels::Plain(b),
            };
            strips.times(cpu, e, &cut, p, panels, &bias, accumulate);
        }
        Ok(())
    }
}

/// The bias from number `i` on.
fn at<T>(bias: Option<&[T]>, i: usize, side: impl Fn(*const T) -> Bias<T>) -> Bias<T> {
    bias.map_or(Bias::None, |b| side(b[i..].as_ptr()))
}

/// An estimate in cycles of the product with vectors along the columns of `b`.
fn cost<T: Real>(e: &Engine<T>, a: &Mat<T>, b: &Mat<T>, c_col: usize) -> usize {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    let vectors = n.div_ceil(e.lanes);
    // Two multiply-adds a cycle, but a tile takes at least the latency of eight a step.
    let columns = n.div_ceil(e.cols);
    let strips = m.div_ceil(e.rows);
    let sums = (m * vectors / 2).max(strips * columns * 4) * k;
    let packing = if b.col_stride == 1 { 2 * k * vectors } else { 5 * k * vectors * e.lanes / 16 };
    let reading = if far(a) { 2 * strips * k } else { 0 };
    let store = if c_col == 1 { m * vectors } else { 8 * m * vectors };
    sums + packing + reading + store
}

/// Whether each step of the sum is on another cache line of A, and soon on another page, for one number a row:
/// reading it so for every panel anew costs more than the product.
fn far<T>(a: &Mat<T>) -> bool {
    a.row_stride == 1 && a.col_stride * size_of::<T>() >= 512
}

/// Whether both operands lie along the sum and one is so thin that any other way would mostly pack.
fn dots_are_better<T>(a: &Mat<T>, b: &Mat<T>) -> bool {
    a.col_stride == 1 && b.row_stride == 1 && a.rows.min(b.cols) <= 4
}

/// Small m or n, both operands contiguous along k.
fn dots<T: Real>(cpu: &Cpu, e: &Engine<T>, a: Mat<T>, b: Mat<T>, c: &mut MatMut<T>, accumulate: bool) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    let (down, across) = (m.div_ceil(e.dots.0), n.div_ceil(e.dots.1));
    let (c_row, c_col) = (c.row_stride, c.col_stride);
    let c = Shared::new(c.data);
    // A task takes so many tiles that its reading is worth the hand-over.
    let group = (PER_TASK / k).max(1);
    let tiles = down * across;
    run(cpu, tiles.div_ceil(group), m * n * k, |task| {
        for tile in task * group..(task * group + group).min(tiles) {
            let (rows, cols) = (part(m, down, tile / across), part(n, across, tile % across));
            e.dot(Dot {
                rows: rows.len(),
                cols: cols.len(),
                depth: Depth { steps: k, segments: 1, groups: 1 },
                a: a.data[rows.start * a.row_stride..].as_ptr(),
                a_row: a.row_stride,
                a_walk: Walk { step: 1, ..Walk::default() },
                b: b.data[cols.start * b.col_stride..].as_ptr(),
                b_row: b.col_stride,
                b_walk: Walk { step: 1, ..Walk::default() },
                c: c.at(rows.start * c_row + cols.start * c_col),
                c_row,
                c_col,
                add: accumulate,
            });
        }
    });
}

/// Numbers along the sum that a task of dot products reads a row.
const PER_TASK: usize = 1 << 15;
