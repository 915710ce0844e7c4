//! Matrix products.
//!
//! The scheme is that of Goto and van de Geijn ("Anatomy of High-Performance Matrix Multiplication",
//! 2008) with one change: the larger first-level cache and the 32 registers of today's cores let a
//! strip of A stay in the first level while panels of B stream from the second, so A needs no block of
//! its own. Work is cut by shape alone, and every element of C is one chain of multiply-adds over k, so
//! neither threads nor tile sizes show in the bits.

mod dot;
mod engine;
mod mat;
mod pack;
mod tile;

pub(crate) use dot::Dot;
pub(crate) use engine::{At, Engine, Scratch, Shared, part, run};
pub use mat::{Mat, MatMut};
pub(crate) use pack::Pack;
pub(crate) use tile::{Bias, Depth, Tile, Walk};

use crate::simd::Real;
use crate::{Cpu, Error, Result};

/// Depth of a block: C is loaded and stored once a block.
const BLOCK_DEPTH: usize = 1024;
/// Bytes of B that are packed at a time: a quarter of a 2 MB second-level cache.
const BLOCK_BYTES: usize = 1 << 19;
/// Row strips that a task takes at most; enough to be worth a hand-over, few enough to balance.
const STRIPS: usize = 4;

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
    let engine = Engine::new(cpu);
    if a.cols == 0 {
        if !accumulate {
            c.fill(T::ZERO);
        }
        c.add_to_rows(bias);
    } else if dots_are_better(&a, &b) {
        dots(cpu, &engine, a, b, &mut c, accumulate);
        c.add_to_rows(bias);
    } else if cost(&engine, &b.t(), &a.t(), c.row_stride) < cost(&engine, &a, &b, c.col_stride) {
        // Cᵀ = BᵀAᵀ is the same product with the vectors along the other side.
        return product(cpu, &engine, b.t(), a.t(), c.t(), |_, rows| at(bias, rows, Bias::Rows), accumulate);
    } else {
        return product(cpu, &engine, a, b, c, |cols, _| at(bias, cols, Bias::Cols), accumulate);
    }
    Ok(())
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

/// The product in blocks; `bias(column, row)` is what a tile that starts there adds.
fn product<T: Real>(
    cpu: &Cpu,
    e: &Engine<T>,
    a: Mat<T>,
    b: Mat<T>,
    c: MatMut<T>,
    bias: impl Fn(usize, usize) -> Bias<T> + Sync,
    accumulate: bool,
) -> Result<()> {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    let depths = k.div_ceil(BLOCK_DEPTH);
    let depth = k.div_ceil(depths);
    let strips = m.div_ceil(e.rows);
    let panels = n.div_ceil(e.cols);
    let block = panels.div_ceil((panels * e.cols * depth * size_of::<T>()).div_ceil(BLOCK_BYTES));
    // Packing costs a pass over the operand; panels of a B with contiguous rows pay that back only
    // when enough strips of A read them, and strips of A when enough panels of B pass by.
    let pack_b = b.col_stride != 1 || strips > 2;
    let pack_a = (a.row_stride != 1 && a.col_stride != 1) || block > 4 || (block > 1 && far(&a));
    let tasks = strips.div_ceil(STRIPS);
    let mut packed = cpu.pool.alloc(if pack_b { block * e.cols * depth * size_of::<T>() } else { 0 })?;
    let scratch = Scratch::new::<T>(cpu, tasks, if pack_a { e.rows * depth } else { 0 })?;
    let (c_row, c_col) = (c.row_stride, c.col_stride);
    let c = Shared::new(c.data);

    for first in (0..panels).step_by(block) {
        let count = block.min(panels - first);
        let columns = |panel: usize| {
            let at = panel * e.cols;
            at..(at + e.cols).min(n)
        };
        // A last panel of few columns is one vector wide.
        let width = |panel: usize| columns(panel).len().next_multiple_of(e.lanes);
        for level in 0..depths {
            let steps = part(k, depths, level);
            let work = m * steps.len() * count * e.cols;
            let panel_len = e.cols * steps.len();
            if pack_b {
                let out = Shared::new(packed.as_mut_slice::<T>());
                run(cpu, count, work, |i| {
                    let cols = columns(first + i);
                    e.pack(Pack {
                        src: b.data[steps.start * b.row_stride + cols.start * b.col_stride..].as_ptr(),
                        src_step: b.row_stride,
                        src_lane: b.col_stride,
                        steps: steps.len(),
                        lanes: cols.len(),
                        dst: out.at(i * panel_len),
                        width: width(first + i),
                    });
                });
            }
            let packed = packed.as_slice::<T>();
            run(cpu, tasks, work, |task| {
                scratch.with(|strip: &mut [T]| {
                    for s in task * STRIPS..(task * STRIPS + STRIPS).min(strips) {
                        let rows = part(m, strips, s);
                        let from = a.data[rows.start * a.row_stride + steps.start * a.col_stride..].as_ptr();
                        let (from, a_row, a_step) = if pack_a {
                            e.pack(Pack {
                                src: from,
                                src_step: a.col_stride,
                                src_lane: a.row_stride,
                                steps: steps.len(),
                                lanes: rows.len(),
                                dst: strip.as_mut_ptr(),
                                width: rows.len(),
                            });
                            (strip.as_ptr(), 1, rows.len())
                        } else {
                            (from, a.row_stride, a.col_stride)
                        };
                        for i in 0..count {
                            let cols = columns(first + i);
                            let (b, b_step) = if pack_b {
                                (packed[i * panel_len..].as_ptr(), width(first + i))
                            } else {
                                (b.data[steps.start * b.row_stride + cols.start..].as_ptr(), b.row_stride)
                            };
                            e.tile(Tile {
                                rows: rows.len(),
                                cols: cols.len(),
                                depth: Depth { steps: steps.len(), segments: 1, groups: 1 },
                                a: from,
                                a_row,
                                a_walk: Walk { step: a_step, ..Walk::default() },
                                b,
                                b_walk: Walk { step: b_step, ..Walk::default() },
                                b_whole: pack_b,
                                c: c.at(rows.start * c_row + cols.start * c_col),
                                c_row,
                                c_col,
                                bias: if level == 0 { bias(cols.start, rows.start) } else { Bias::None },
                                add: accumulate || level > 0,
                            });
                        }
                    }
                });
            });
        }
    }
    Ok(())
}
