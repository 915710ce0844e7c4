//! Layer and root mean square normalisation on a GPU.

use phalanx_gpu::{Args, Context, DevicePtr, Grid, Source};

use super::sample::RowNorm;
use super::sweeps::{Behind, Channels, Finish, Mask, Matrix, Operand, Target, packs};
use crate::op::{CudaOp, Exec, Op, Saved};
use crate::ops::cuda::{THREADS, source, suffix};
use crate::sink::GradSink;
use crate::{DType, Result, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("norm_rows", "rows.cu");

/// Numbers that a warp's row has at most (`SHORT` of `rows.cu`).
const SHORT: usize = 1024;
/// Blocks that sum parameters' gradients: what an H100's or H200's 132 multiprocessors hold at a time; it is the same for
/// every GPU, as the order of the sums follows from it.
const SUM_BLOCKS: usize = 3 * 132;
/// Rows of such a block at least, where there are as many: what its sums take is little beside what these do.
const SUM_ROWS: usize = 32;

/// Rows of `k` elements of `dtype` as their kernels see them.
#[derive(Clone, Copy)]
struct Rows {
    dtype: DType,
    rows: usize,
    k: usize,
}

impl Rows {
    fn is_empty(self) -> bool {
        self.rows * self.k == 0
    }

    /// Elements that a thread takes at once.
    fn pack(self, pointers: &[DevicePtr]) -> usize {
        if packs(self.k, self.dtype, pointers) { 16 / self.dtype.size() } else { 1 }
    }

    /// The end of a kernel's name.
    fn ending(self, op: &'static str, pack: usize) -> Result<String> {
        Ok(format!("{}_{pack}", suffix(op, self.dtype)?))
    }

    /// Threads that have a row together where parameters' gradients are summed, and the grid.
    fn summing(self, pack: usize) -> (usize, Grid) {
        let threads = THREADS as usize;
        let width = self.k.div_ceil(pack).next_power_of_two().min(threads);
        // `LINES` of `rows.cu`.
        let lines = if SHORT / pack > threads { 1 } else { 2 };
        let blocks = self.rows.div_ceil(SUM_ROWS.max(lines * threads / width)).min(SUM_BLOCKS);
        (width, Grid { blocks: [blocks as u32, 1, 1], threads: THREADS, shared: 0 })
    }

    /// Who has a row, and a grid of them.
    fn grid(self) -> (&'static str, Grid) {
        let (who, rows) = if self.k <= SHORT { ("warp", THREADS as usize / 32) } else { ("block", 1) };
        let blocks = self.rows.div_ceil(rows).min(1 << 20) as u32;
        (who, Grid { blocks: [blocks, 1, 1], threads: THREADS, shared: 0 })
    }
}

impl CudaOp for RowNorm {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        saved: &mut [ViewMut],
    ) -> Result<()> {
        let rows = self.rows(ins[0].dtype, ins[0].shape());
        if rows.is_empty() {
            return Ok(());
        }
        let [gamma, beta] = self.given.operands().map(|i| Operand::perhaps(gpu, i.map(|i| &ins[i])));
        let (x, gamma, beta, y) = (ins[0].ptr()?, gamma?, beta?, outs[0].ptr()?);
        let (who, grid) = rows.grid();
        let kernel = format!("row_forward_{who}_{}", rows.ending(self.name(), rows.pack(&[x, y]))?);
        let args = Args::new().ptr(x).ptr(gamma.ptr).ptr(beta.ptr).ptr(y).ptr(saved[0].ptr()?);
        let args = args.i64(rows.rows as i64).i64(rows.k as i64);
        let args = args.i32(i32::from(self.centred)).f32(self.eps as f32);
        Ok(gpu.launch(&SOURCE, &kernel, grid, args)?)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (gpu, x) = (cx.gpu()?, saved.input(0)?);
        let rows = self.rows(x.dtype(), x.shape());
        let gamma = if self.given.gamma { Some(saved.input(1)?.read()?) } else { None };
        let gamma = Operand::perhaps(gpu, gamma.as_ref().map(|g| g.view()).as_ref())?;
        let (x, g) = (x.read()?, g.to(rows.dtype)?.contiguous()?.read()?);
        let moments = saved.extra[0].read()?;
        let (x, g, moments) = (x.ptr()?, g.ptr()?, moments.ptr()?);
        let [to_gamma, to_beta] = self.given.operands().map(|i| Target::of(sink, i));
        let (to_gamma, to_beta) = (to_gamma?, to_beta?);
        let dx = Target::of(sink, Some(0))?;

        let finish = Finish { gamma: to_gamma, beta: to_beta, ..Finish::NONE };
        let parameters = to_gamma.wanted() || to_beta.wanted();
        let pack = rows.pack(&[x, g, dx.ptr]);
        let ending = rows.ending(self.name(), pack)?;
        let args = Args::new().ptr(x).ptr(g).ptr(gamma.ptr).ptr(moments).ptr(dx.ptr);
        let flags = |args: Args| args.i32(i32::from(self.centred)).i32(i32::from(dx.add));
        if parameters && rows.k <= SHORT {
            let (width, grid) = rows.summing(pack);
            let blocks = if rows.is_empty() { 0 } else { grid.blocks[0] as usize };
            let parts = gpu.alloc(blocks * 2 * rows.k * size_of::<f32>())?;
            if blocks > 0 {
                let kernel = format!("row_backward_sums_{ending}");
                let args = args.ptr(parts.ptr()).i64(rows.rows as i64).i64(rows.k as i64).i32(width as i32);
                gpu.launch(&SOURCE, &kernel, grid, flags(args))?;
            }
            return finish.run(gpu, parts.ptr(), blocks, [1, rows.k]);
        }
        if dx.wanted() && !rows.is_empty() {
            let (who, grid) = rows.grid();
            let args = args.i64(rows.rows as i64).i64(rows.k as i64);
            gpu.launch(&SOURCE, &format!("row_backward_{who}_{ending}"), grid, flags(args))?;
        }
        if parameters {
            let m = Matrix { samples: 1, rows: rows.rows, cols: rows.k };
            let of = Channels { mean: moments, ..Finish::NONE.of };
            let parts = Behind { dtype: rows.dtype, g, x, of, mask: Mask::Rows, m }.sums(gpu)?;
            finish.run(gpu, parts.memory.ptr(), parts.count, [1, rows.k])?;
        }
        Ok(())
    }
}

impl RowNorm {
    fn rows(&self, dtype: DType, shape: crate::Shape) -> Rows {
        let (before, normalised) = shape.split_at(shape.len() - self.axes);
        Rows { dtype, rows: before.iter().product(), k: normalised.iter().product() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sums_are_cut_by_shape_and_every_row_has_someone(rows in 1usize..1 << 28, k in 1usize..1 << 17, half: bool) {
            let dtype = if half { DType::F16 } else { DType::F32 };
            let (of, threads) = (Rows { dtype, rows, k }, THREADS as usize);
            for pack in [1, 16 / dtype.size()] {
                let (width, grid) = of.summing(pack);
                prop_assert!(width.is_power_of_two() && threads.is_multiple_of(width));
                prop_assert!(width == threads || width * pack >= k);
                let blocks = grid.blocks[0] as usize;
                prop_assert!((1..=SUM_BLOCKS).contains(&blocks));
                // No block is without a row, and none has fewer than it is worth to sum, but where there are no more.
                let least = SUM_ROWS.max(threads / width);
                prop_assert!(blocks == 1 || rows > (blocks - 1) * least);
            }
            let (who, grid) = of.grid();
            let blocks = grid.blocks[0] as usize;
            let each = if who == "warp" { threads / 32 } else { 1 };
            prop_assert!(blocks == 1 << 20 || blocks * each >= rows && (blocks - 1) * each < rows);
            prop_assert_eq!(who == "warp", k <= SHORT);
        }
    }
}
