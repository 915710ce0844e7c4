//! The walk over the steps of a sequence: for each one product with the recurrent weight and one pass over the
//! samples.

use phalanx_host::{Cpu, Mat, MatMut, Packed, gemm_packed};

use super::Cell;
use super::cpu::{Step, StepBack};
use crate::ops::elementwise::math::Math;
use crate::ops::tasks::groups;
use crate::{Result, Shape};

/// Numbers of gates that one task computes, about.
const PIECE: usize = 8 * 1024;

/// A sequence's sizes, and the order of its steps.
#[derive(Clone, Copy)]
pub(super) struct Sizes<'a> {
    pub(super) cell: Cell,
    pub(super) reverse: bool,
    pub(super) steps: usize,
    pub(super) samples: usize,
    pub(super) hidden: usize,
    /// Steps of each sample, when they differ.
    pub(super) lengths: Option<&'a [i64]>,
}

impl<'a> Sizes<'a> {
    /// From the shape [steps, samples, hidden] of the outputs.
    pub(super) fn new(cell: Cell, reverse: bool, y: Shape, lengths: Option<&'a [i64]>) -> Self {
        Sizes { cell, reverse, steps: y[0], samples: y[1], hidden: y[2], lengths }
    }

    /// Numbers of a sample's gates.
    pub(super) fn gates(&self) -> usize {
        self.cell.gates() * self.hidden
    }

    /// Numbers that a sample's step keeps for the way back, besides the output.
    pub(super) fn kept(&self) -> usize {
        self.cell.kept() * self.hidden
    }

    /// The place in the sequence of the `s`-th step.
    fn place(&self, s: usize) -> usize {
        if self.reverse { self.steps - 1 - s } else { s }
    }

    fn active(&self, sample: usize, t: usize) -> bool {
        self.lengths.is_none_or(|l| t < l[sample] as usize)
    }

    /// The samples up to the last that is active at place `t`.
    fn rows(&self, t: usize) -> usize {
        (0..self.samples).rev().find(|&n| self.active(n, t)).map_or(0, |n| n + 1)
    }

    /// The place of a sample's first step; none when it has no steps.
    pub(super) fn first(&self, sample: usize) -> Option<usize> {
        let length = self.lengths.map_or(self.steps, |l| l[sample] as usize);
        let last = length.checked_sub(1)?;
        Some(if self.reverse { last } else { 0 })
    }

    /// The place before `t` in the order of the steps; none at the sample's first step.
    fn before(&self, sample: usize, t: usize) -> Option<usize> {
        if self.first(sample) == Some(t) {
            return None;
        }
        Some(if self.reverse { t + 1 } else { t - 1 })
    }

    /// Samples of one task.
    fn group(&self) -> usize {
        (PIECE / (4 * self.hidden)).max(1)
    }
}

/// Row `i` of a group, or nothing of an empty one.
fn row<T>(group: &mut [T], i: usize, width: usize) -> &mut [T] {
    if group.is_empty() { group } else { &mut group[i * width..(i + 1) * width] }
}

/// What the walk forward reads: the input's part of the gates and the recurrent bias (or nothing).
pub(super) struct Forward<'a, T> {
    pub(super) x: &'a [T],
    pub(super) bias: &'a [T],
    pub(super) weight: Mat<'a, T>,
    /// Whether the state that comes in is zero.
    pub(super) from_zero: bool,
}

/// What the walk forward writes. `h` and `c` hold the state before and after; `gates` and `cells` are what it
/// keeps for the way back.
pub(super) struct Made<'a, T> {
    pub(super) y: &'a mut [T],
    pub(super) h: &'a mut [T],
    pub(super) c: &'a mut [T],
    pub(super) gates: &'a mut [T],
    pub(super) cells: &'a mut [T],
}

/// All steps forward.
pub(super) fn forward<T: Math>(cpu: &Cpu, of: &Sizes, read: &Forward<T>, made: Made<T>) -> Result<()> {
    let (n, hidden, width) = (of.samples, of.hidden, of.gates());
    if n == 0 || of.steps == 0 {
        return Ok(());
    }
    // Plain cells keep nothing, but the product needs a place.
    let kept = of.kept().max(width);
    let mut space = cpu.pool.alloc(if of.kept() == 0 { n * width * size_of::<T>() } else { 0 })?;
    let weight = Packed::new(cpu, read.weight.t())?;
    let Made { y, h, c, gates, cells } = made;
    let group = of.group();
    let pieces = n.div_ceil(group);
    for s in 0..of.steps {
        let t = of.place(s);
        let gates = match of.kept() {
            0 => space.as_mut_slice(),
            _ => &mut gates[t * n * kept..(t + 1) * n * kept],
        };
        if s == 0 && read.from_zero {
            gates.fill(T::ZERO);
        } else {
            let rows = of.rows(t);
            let state = Mat::row_major(&h[..rows * hidden], rows, hidden)?;
            gemm_packed(cpu, state, &weight, MatMut::new(gates, rows, width, kept, 1)?, false)?;
        }
        let cells: &mut [T] =
            if cells.is_empty() { &mut [] } else { &mut cells[t * n * hidden..][..n * hidden] };
        let mut all: Vec<_> = groups(gates, group * kept, pieces)
            .zip(groups(h, group * hidden, pieces))
            .zip(groups(c, group * hidden, pieces))
            .zip(groups(cells, group * hidden, pieces))
            .zip(groups(&mut y[t * n * hidden..][..n * hidden], group * hidden, pieces))
            .collect();
        cpu.workers.chunks(&mut all, 1, |piece, part| {
            for ((((gates, h), c), cells), y) in part {
                for i in 0..h.len() / hidden {
                    let sample = piece * group + i;
                    let (gates, y) = (row(gates, i, kept), row(y, i, hidden));
                    let kept = row(cells, i, hidden);
                    if !of.active(sample, t) {
                        [gates, y, kept].into_iter().for_each(|x| x.fill(T::ZERO));
                        continue;
                    }
                    let (h, c) = (row(h, i, hidden), row(c, i, hidden));
                    let x = &read.x[(t * n + sample) * width..][..width];
                    T::dispatch(cpu.isa, Step { cell: of.cell, x, bias: read.bias, gates, h, c, kept, y });
                }
            }
        });
    }
    Ok(())
}

/// What the walk back reads: what the walk forward left, the state at the start and the outputs' gradient;
/// empty where there is none.
pub(super) struct Back<'a, T> {
    pub(super) weight: Mat<'a, T>,
    pub(super) y: &'a [T],
    pub(super) gates: &'a [T],
    pub(super) cells: &'a [T],
    pub(super) h0: &'a [T],
    pub(super) c0: &'a [T],
    pub(super) g: &'a [T],
    /// Whether the gradient of the state at the start is wanted.
    pub(super) to_start: bool,
}

/// What the walk back writes: `dh` and `dc` hold the state's gradient after and before; `dx` is that of the input's
/// part of the gates, `dr` that of the state's part where it is another.
pub(super) struct Gradients<'a, T> {
    pub(super) dh: &'a mut [T],
    pub(super) dc: &'a mut [T],
    pub(super) dx: &'a mut [T],
    pub(super) dr: &'a mut [T],
}

/// All steps back.
pub(super) fn backward<T: Math>(cpu: &Cpu, of: &Sizes, read: &Back<T>, to: Gradients<T>) -> Result<()> {
    let (n, hidden, width, kept) = (of.samples, of.hidden, of.gates(), of.kept());
    if n == 0 || of.steps == 0 {
        return Ok(());
    }
    let weight = Packed::new(cpu, read.weight)?;
    let zeros = vec![T::ZERO; hidden];
    let Gradients { dh, dc, dx, dr } = to;
    let group = of.group();
    let pieces = n.div_ceil(group);
    // Row `sample` at place `t` of what has `width` numbers a row.
    let at = |t: usize, sample: usize, width: usize| (t * n + sample) * width..(t * n + sample + 1) * width;
    for s in (0..of.steps).rev() {
        let t = of.place(s);
        let block = t * n * width..(t + 1) * n * width;
        let other: &mut [T] = if dr.is_empty() { &mut [] } else { &mut dr[block.clone()] };
        let mut all: Vec<_> = groups(dh, group * hidden, pieces)
            .zip(groups(dc, group * hidden, pieces))
            .zip(groups(&mut dx[block.clone()], group * width, pieces))
            .zip(groups(other, group * width, pieces))
            .collect();
        cpu.workers.chunks(&mut all, 1, |piece, part| {
            for (((dh, dc), dx), dr) in part {
                for i in 0..dh.len() / hidden {
                    let sample = piece * group + i;
                    let (dx, dr) = (row(dx, i, width), row(dr, i, width));
                    if !of.active(sample, t) {
                        dx.fill(T::ZERO);
                        dr.fill(T::ZERO);
                        continue;
                    }
                    let (states, start) = match of.cell {
                        Cell::Lstm => (read.cells, read.c0),
                        _ => (read.y, read.h0),
                    };
                    let before = match of.before(sample, t) {
                        Some(t) => &states[at(t, sample, hidden)],
                        None if start.is_empty() => &zeros[..],
                        None => &start[sample * hidden..(sample + 1) * hidden],
                    };
                    let g = if read.g.is_empty() { read.g } else { &read.g[at(t, sample, hidden)] };
                    let (dh, dc) = (row(dh, i, hidden), row(dc, i, hidden));
                    let (gates, after) = (&read.gates[at(t, sample, kept)], &states[at(t, sample, hidden)]);
                    let cell = of.cell;
                    T::dispatch(cpu.isa, StepBack { cell, gates, after, before, g, dh, dc, dx, dr });
                }
            }
        });
        if s > 0 || read.to_start {
            let rows = of.rows(t);
            let through = if dr.is_empty() { &dx[block] } else { &dr[block] };
            let through = Mat::row_major(&through[..rows * width], rows, width)?;
            gemm_packed(cpu, through, &weight, MatMut::row_major(dh, rows, hidden)?, true)?;
        }
    }
    Ok(())
}
