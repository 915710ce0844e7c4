//! The blocks of a product, and a B that is packed once for many products.

use std::ops::Range;

use super::{Bias, Depth, Engine, Mat, MatMut, Pack, Scratch, Shared, Tile, Walk, far, part, run};
use crate::simd::Real;
use crate::{Buffer, Cpu, Error, Result};

/// Depth of a block: C is loaded and stored once a block.
const BLOCK_DEPTH: usize = 1024;
/// Bytes of B that are packed at a time: a quarter of a 2 MB second-level cache.
const BLOCK_BYTES: usize = 1 << 19;
/// Steps of an operand that are packed for one strip or panel after the other.
const ROWS: usize = 16;
/// Row strips that a task takes at most; enough to be worth a hand-over, few enough to balance.
const STRIPS: usize = 4;

/// How a B of k rows and n columns is cut: into panels of columns, blocks of panels, and depths.
pub(super) struct Cut {
    k: usize,
    n: usize,
    lanes: usize,
    /// Columns of a panel.
    cols: usize,
    /// Panels of a block.
    block: usize,
    depths: usize,
}

/// Some panels at one depth: what the second-level cache holds at a time.
#[derive(Clone, Copy)]
pub(super) struct Part {
    first: usize,
    count: usize,
    level: usize,
}

impl Cut {
    pub(super) fn new<T: Real>(e: &Engine<T>, k: usize, n: usize) -> Self {
        let depths = k.div_ceil(BLOCK_DEPTH);
        let (depth, panels) = (k.div_ceil(depths), n.div_ceil(e.cols));
        let block = panels.div_ceil((panels * e.cols * depth * size_of::<T>()).div_ceil(BLOCK_BYTES));
        Cut { k, n, lanes: e.lanes, cols: e.cols, block, depths }
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = Part> {
        let panels = self.n.div_ceil(self.cols);
        (0..self.depths).flat_map(move |level| {
            let part = move |first| Part { first, count: self.block.min(panels - first), level };
            (0..panels).step_by(self.block).map(part)
        })
    }

    fn steps(&self, p: Part) -> Range<usize> {
        part(self.k, self.depths, p.level)
    }

    fn columns(&self, panel: usize) -> Range<usize> {
        let at = panel * self.cols;
        at..(at + self.cols).min(self.n)
    }

    /// A last panel of few columns is one vector wide.
    fn width(&self, panel: usize) -> usize {
        self.columns(panel).len().next_multiple_of(self.lanes)
    }

    /// Numbers of a packed part.
    pub(super) fn len(&self, p: Part) -> usize {
        p.count * self.cols * self.steps(p).len()
    }

    /// Numbers of the largest packed part.
    pub(super) fn largest(&self) -> usize {
        self.block * self.cols * self.k.div_ceil(self.depths)
    }
}

/// Where the panels of a part are read.
#[derive(Clone, Copy)]
pub(super) enum Panels<'a, T> {
    /// One after the other.
    Packed(&'a [T]),
    /// In B itself, whose rows are contiguous.
    Plain(Mat<'a, T>),
}

/// Packs a part of `b` for a product with `m` rows: the more, the sooner threads are woken for it.
pub(super) fn fill<T: Real>(
    cpu: &Cpu,
    e: &Engine<T>,
    cut: &Cut,
    p: Part,
    b: Mat<T>,
    m: usize,
    out: &mut [T],
) {
    let steps = cut.steps(p);
    let out = Shared::new(out);
    // Panels share rows of memory when columns are neighbours: some rows at a time for all of them.
    let cuts = if b.col_stride == 1 { steps.len().div_ceil(ROWS) } else { 1 };
    run(cpu, p.count * cuts, m * steps.len() * p.count * cut.cols, |task| {
        let (i, rows) = (task % p.count, part(steps.len(), cuts, task / p.count));
        let (cols, width) = (cut.columns(p.first + i), cut.width(p.first + i));
        e.pack(Pack {
            src: b.data[(steps.start + rows.start) * b.row_stride + cols.start * b.col_stride..].as_ptr(),
            src_step: b.row_stride,
            src_lane: b.col_stride,
            steps: rows.len(),
            lanes: cols.len(),
            dst: out.at(i * cut.cols * steps.len() + rows.start * width),
            width,
        });
    });
}

/// The strips of A and the rows of C that they give.
pub(super) struct Strips<'a, T> {
    a: Mat<'a, T>,
    c: Shared<T>,
    c_row: usize,
    c_col: usize,
    /// Strips are packed when enough panels of B pass by.
    pack: bool,
    scratch: Scratch,
    /// All strips at one depth, where A is far and would be packed for several parts.
    all: Option<Buffer>,
}

impl<'a, T: Real> Strips<'a, T> {
    pub(super) fn new(cpu: &Cpu, e: &Engine<T>, cut: &Cut, a: Mat<'a, T>, c: MatMut<'a, T>) -> Result<Self> {
        let pack = (a.row_stride != 1 && a.col_stride != 1) || cut.block > 4 || (cut.block > 1 && far(&a));
        let tasks = a.rows.div_ceil(e.rows).div_ceil(STRIPS);
        let depth = cut.k.div_ceil(cut.depths);
        let whole = pack && far(&a) && cut.block < cut.n.div_ceil(cut.cols);
        let all = whole.then(|| cpu.pool.alloc(a.rows * depth * size_of::<T>())).transpose()?;
        let scratch = Scratch::new::<T>(cpu, tasks, if pack && !whole { e.rows * depth } else { 0 })?;
        let (c_row, c_col) = (c.row_stride, c.col_stride);
        Ok(Strips { a, c_row, c_col, c: Shared::new(c.data), pack, scratch, all })
    }

    /// Packs all strips of an A whose rows are neighbours in memory, some rows of memory at a time.
    fn pack_all(&mut self, cpu: &Cpu, e: &Engine<T>, steps: &Range<usize>) {
        let Some(buffer) = &mut self.all else { return };
        let (a, to) = (self.a, Shared::new(buffer.as_mut_slice::<T>()));
        let (strips, cuts) = (a.rows.div_ceil(e.rows), steps.len().div_ceil(ROWS));
        run(cpu, cuts, a.rows * steps.len(), |cut| {
            let cut = part(steps.len(), cuts, cut);
            for rows in (0..strips).map(|s| part(a.rows, strips, s)) {
                e.pack(Pack {
                    src: a.data[(steps.start + cut.start) * a.col_stride + rows.start..].as_ptr(),
                    src_step: a.col_stride,
                    src_lane: 1,
                    steps: cut.len(),
                    lanes: rows.len(),
                    dst: to.at(rows.start * steps.len() + cut.start * rows.len()),
                    width: rows.len(),
                });
            }
        });
    }

    /// All strips by one part of B; `bias(column, row)` is what a tile that starts there adds. Parts must come in
    /// the order of [`Cut::parts`].
    pub(super) fn times(
        &mut self,
        cpu: &Cpu,
        e: &Engine<T>,
        cut: &Cut,
        p: Part,
        panels: Panels<T>,
        bias: &(impl Fn(usize, usize) -> Bias<T> + Sync),
        accumulate: bool,
    ) {
        let steps = cut.steps(p);
        if p.first == 0 {
            self.pack_all(cpu, e, &steps);
        }
        let Strips { a, c, c_row, c_col, pack, .. } = *self;
        let all = self.all.as_ref().map(|all| all.as_slice::<T>());
        let (m, count) = (a.rows, a.rows.div_ceil(e.rows));
        run(cpu, count.div_ceil(STRIPS), m * steps.len() * p.count * cut.cols, |task| {
            self.scratch.with(|strip: &mut [T]| {
                for s in task * STRIPS..(task * STRIPS + STRIPS).min(count) {
                    let rows = part(m, count, s);
                    let from = a.data[rows.start * a.row_stride + steps.start * a.col_stride..].as_ptr();
                    let (from, a_row, a_step) = if let Some(all) = all {
                        (all[rows.start * steps.len()..].as_ptr(), 1, rows.len())
                    } else if pack {
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
                    for i in 0..p.count {
                        let cols = cut.columns(p.first + i);
                        let (b, b_step, b_whole) = match panels {
                            Panels::Packed(b) => {
                                (b[i * cut.cols * steps.len()..].as_ptr(), cut.width(p.first + i), true)
                            }
                            Panels::Plain(b) => {
                                let at = steps.start * b.row_stride + cols.start;
                                (b.data[at..].as_ptr(), b.row_stride, false)
                            }
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
                            b_whole,
                            c: c.at(rows.start * c_row + cols.start * c_col),
                            c_row,
                            c_col,
                            bias: if p.level == 0 { bias(cols.start, rows.start) } else { Bias::None },
                            add: accumulate || p.level > 0,
                        });
                    }
                }
            });
        });
    }
}

/// The right factor of many products, packed once: the recurrent weight of a sequence.
#[derive(Debug)]
pub struct Packed<T: Real> {
    buffer: Buffer,
    k: usize,
    n: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: Real> Packed<T> {
    /// Packs `b`. Fails with [`Error::OutOfMemory`] when there is no memory for the copy.
    pub fn new(cpu: &Cpu, b: Mat<T>) -> Result<Self> {
        let (k, n) = (b.rows, b.cols);
        let e = Engine::new(cpu);
        let len = n.next_multiple_of(e.cols) * k;
        let mut buffer = cpu.pool.alloc(len * size_of::<T>())?;
        if k * n > 0 {
            let (cut, mut at) = (Cut::new(&e, k, n), 0);
            for p in cut.parts() {
                fill(cpu, &e, &cut, p, b, 1, &mut buffer.as_mut_slice::<T>()[at..at + cut.len(p)]);
                at += cut.len(p);
            }
        }
        Ok(Packed { buffer, k, n, of: std::marker::PhantomData })
    }
}

/// As [`gemm`](super::gemm), with a B that was packed on a CPU of the same instruction set. Each element is one
/// chain over k whatever the number of rows; [`gemm`](super::gemm) takes dot products, with other bits, when one
/// side is thin.
pub fn gemm_packed<T: Real>(
    cpu: &Cpu,
    a: Mat<T>,
    b: &Packed<T>,
    mut c: MatMut<T>,
    accumulate: bool,
) -> Result<()> {
    if a.cols != b.k || a.rows != c.rows || b.n != c.cols {
        return Err(Error::Product { a: (a.rows, a.cols), b: (b.k, b.n), c: (c.rows, c.cols) });
    }
    if c.rows * c.cols == 0 {
        return Ok(());
    }
    if b.k == 0 {
        if !accumulate {
            c.fill(T::ZERO);
        }
        return Ok(());
    }
    let e = Engine::new(cpu);
    let cut = Cut::new(&e, b.k, b.n);
    let (all, mut at) = (b.buffer.as_slice::<T>(), 0);
    let mut strips = Strips::new(cpu, &e, &cut, a, c)?;
    for p in cut.parts() {
        strips.times(cpu, &e, &cut, p, Panels::Packed(&all[at..]), &|_, _| Bias::None, accumulate);
        at += cut.len(p);
    }
    Ok(())
}
