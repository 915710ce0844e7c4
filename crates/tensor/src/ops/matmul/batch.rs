//! Products of all matrices of a batch.

use phalanx_host::simd::Real;
use phalanx_host::{Cpu, Gemm, Mat, MatMut};

use crate::ops::tasks::try_chunks;
use crate::ops::walk::Walk;
use crate::{Layout, Result, Shape, View};

/// Multiply-adds that a task of several small products does, about. Larger products are cut into rows by the
/// host's own tasks.
const PER_TASK: usize = 1 << 18;

/// An axis of the batch: its size, and both operands' steps along it.
#[derive(Clone, Copy)]
pub(super) struct Axis {
    pub(super) size: usize,
    pub(super) a: usize,
    pub(super) b: usize,
}

/// A batch of products, with as many of its axes as possible taken into the matrices.
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    /// Steps from row to row and from column to column.
    pub(super) a: [usize; 2],
    pub(super) b: [usize; 2],
    /// Axes along which there are results, and those along which products are added up.
    pub(super) kept: Vec<Axis>,
    pub(super) sums: Vec<Axis>,
}

impl Product {
    /// Matrices that lie behind each other are taken as one: rows that meet one and the same `b`, and columns that
    /// are summed anyway. So a batch of rows times one weight is a single product, and its gradient too.
    pub(super) fn new(a: &View, b: &View, summed: u32) -> Self {
        let batch = a.shape().len() - 2;
        let (sa, sb) = (a.layout.strides(), b.layout.strides());
        let [mut m, mut k] = [a.shape()[batch], a.shape()[batch + 1]];
        let n = b.shape()[batch + 1];
        let [mut a_row, mut a_col] = [sa[batch], sa[batch + 1]];
        let [mut b_row, b_col] = [sb[batch], sb[batch + 1]];
        let axes = |sum: bool| -> Vec<Axis> {
            let chosen = (0..batch).filter(|&i| (summed >> i & 1 == 1) == sum && a.shape()[i] != 1);
            chosen.map(|i| Axis { size: a.shape()[i], a: sa[i], b: sb[i] }).collect()
        };
        let (mut kept, mut sums) = (axes(false), axes(true));
        while let Some(&Axis { size, a, b: 0 }) = kept.last()
            && (m == 1 || a == m * a_row)
        {
            if m == 1 {
                a_row = a;
            }
            m *= size;
            kept.pop();
        }
        while let Some(&Axis { size, a, b }) = sums.last()
            && (k == 1 || (a == k * a_col && b == k * b_row))
        {
            if k == 1 {
                (a_col, b_row) = (a, b);
            }
            k *= size;
            sums.pop();
        }
        Product { m, k, n, a: [a_row, a_col], b: [b_row, b_col], kept, sums }
    }
}

/// `out (+)= a · b` for `a` `[.., m, k]` and `b` `[.., k, n]`, both stretched to one batch. Products along the
/// axes of the bit mask `summed` are added up in their order; `out` holds the rest, row-major.
pub(super) fn products<T: Real>(
    cpu: &Cpu,
    a: &View,
    b: &View,
    summed: u32,
    out: &mut [T],
    accumulate: bool,
) -> Result<()> {
    let Product { m, k, n, a: [a_row, a_col], b: [b_row, b_col], kept, sums } = Product::new(a, b, summed);
    let each = m * n;
    let chain: usize = sums.iter().map(|x| x.size).product();
    if out.is_empty() {
        return Ok(());
    }
    if chain * k == 0 {
        if !accumulate {
            out.fill(T::ZERO);
        }
        return Ok(());
    }
    let starts = starts(kept.iter().chain(&sums));
    let (x, y) = (a.slice::<T>()?, b.slice::<T>()?);
    let one = |gemm: &mut Gemm<T>, i: usize, c: &mut [T]| -> Result<()> {
        for (j, &[p, q]) in starts[i * chain..(i + 1) * chain].iter().enumerate() {
            let a = Mat::new(&x[p..], m, k, a_row, a_col)?;
            let b = Mat::new(&y[q..], k, n, b_row, b_col)?;
            gemm.run(a, b, None, MatMut::row_major(c, m, n)?, accumulate || j > 0)?;
        }
        Ok(())
    };
    let group = (PER_TASK / (each * k * chain)).max(1);
    try_chunks(cpu, out, group * each, |task, out| {
        let mut gemm = Gemm::new(cpu);
        out.chunks_exact_mut(each).enumerate().try_for_each(|(i, c)| one(&mut gemm, task * group + i, c))
    })
}

/// Where each product's operands begin, in row-major order of the axes.
fn starts<'a>(axes: impl Iterator<Item = &'a Axis> + Clone) -> Vec<[usize; 2]> {
    let list = |f: fn(&Axis) -> usize| axes.clone().map(f).collect::<Vec<_>>();
    let shape = Shape::new(&list(|x| x.size));
    let [a, b] = [list(|x| x.a), list(|x| x.b)].map(|strides| Layout::with(shape, &strides, 0));
    Walk::new([&a, &b]).places()
}
