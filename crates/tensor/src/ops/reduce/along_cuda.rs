//! What is computed along an axis, on a GPU.

use phalanx_gpu::{Args, Context, DevicePtr, Grid, Source};

use super::along::{Cumulative, TopK};
use crate::op::{CudaOp, Exec, Op, Saved};
use crate::ops::cuda::{THREADS, blocks, code, launch, source, suffix};
use crate::ops::index::around;
use crate::sink::GradSink;
use crate::{DType, Result, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("along", "along.cu");

/// The parameters that tell a kernel the lines along an axis.
fn lines([outer, length, inner]: [usize; 3]) -> Args {
    Args::new().i64((outer * inner) as i64).i64(length as i64).i64(inner as i64)
}

/// A few long lines get a block each. Which do, their number and length say.
pub(super) fn long(count: usize, length: usize) -> Option<Grid> {
    (count < 4096 && length >= 512).then_some(Grid { blocks: [count as u32, 1, 1], threads: 256, shared: 0 })
}

impl CudaOp for Cumulative {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (x, end) = (&ins[0], suffix(self.name(), ins[0].dtype)?);
        let sizes = around(x.shape(), self.axis);
        let (count, length) = (sizes[0] * sizes[2], sizes[1]);
        let args = lines(sizes).ptr(x.ptr()?).ptr(outs[0].ptr()?);
        let args = args.i32(i32::from(self.product)).i32(i32::from(self.reverse));
        if length == 0 || count == 0 {
            return Ok(());
        }
        match long(count, length) {
            Some(grid) => Ok(gpu.launch(&SOURCE, &format!("cumulate_long_{end}"), grid, args)?),
            None => launch(gpu, &SOURCE, &format!("cumulate_{end}"), count, args),
        }
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        if !self.product {
            return self.backward(cx, saved, grads, sink);
        }
        let Some(g) = &grads[0] else { return Ok(()) };
        let (gpu, shape) = (cx.gpu()?, sink.shape(0));
        let sizes = around(shape, self.axis);
        let (x, g) = (saved.input(0)?.contiguous()?, g.contiguous()?);
        let (x, g, dtype) = (x.read()?, g.read()?, g.dtype());
        let made = cx.make(DType::F32, shape, |out| {
            let products = gpu.alloc(shape.numel() * size_of::<f64>())?;
            let args = lines(sizes).ptr(x.ptr()?).ptr(g.ptr()?).i32(code(dtype));
            let args = args.ptr(products.ptr()).ptr(out.ptr()?);
            let (end, count) = (suffix(self.name(), x.view().dtype)?, sizes[0] * sizes[2]);
            match long(count, sizes[1]) {
                _ if shape.numel() == 0 => Ok(()),
                Some(grid) => Ok(gpu.launch(&SOURCE, &format!("cumprod_gradient_long_{end}"), grid, args)?),
                None => launch(gpu, &SOURCE, &format!("cumprod_gradient_{end}"), count, args),
            }
        })?;
        sink.pass(0, made)
    }
}

/// Keys that a block sorts by itself: `CHUNK` of `along.cu`.
const CHUNK: usize = 2048;

/// Sorts each `width` of `total` keys.
fn sort(gpu: &Context, op: &TopK, x: &View, keys: DevicePtr, total: usize, width: usize) -> Result<()> {
    let chunks = blocks(op.name(), x.shape(), total.div_ceil(CHUNK))?;
    let chunk = |from: usize, to: usize| {
        let args = Args::new().ptr(keys).i64(total as i64).i64(width as i64).i64(from as i64).i64(to as i64);
        let grid = Grid { blocks: [chunks, 1, 1], threads: THREADS, shared: 0 };
        gpu.launch(&SOURCE, "sort_chunk", grid, args)
    };
    chunk(2, width.min(CHUNK))?;
    let mut size = 2 * CHUNK;
    while size <= width {
        let mut apart = size / 2;
        while apart >= CHUNK {
            let args = Args::new().ptr(keys).i64((total / 2) as i64).i64(width as i64);
            launch(gpu, &SOURCE, "sort_apart", total / 2, args.i64(size as i64).i64(apart as i64))?;
            apart /= 2;
        }
        chunk(size, size)?;
        size *= 2;
    }
    Ok(())
}

impl CudaOp for TopK {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (x, end) = (&ins[0], suffix(self.name(), ins[0].dtype)?);
        let sizes = around(x.shape(), self.axis);
        let (count, width) = (sizes[0] * sizes[2], sizes[1].next_power_of_two());
        if count * self.k == 0 {
            return Ok(());
        }
        let total = count * width;
        let keys = gpu.alloc(total * size_of::<u64>())?;
        let all = keys.ptr();
        let args = lines(sizes).i64(width as i64).ptr(x.ptr()?).ptr(all).i32(i32::from(self.largest));
        launch(gpu, &SOURCE, &format!("keys_{end}"), total, args)?;
        sort(gpu, self, x, all, total, width)?;
        if !self.sorted {
            let args = Args::new().ptr(all).i64(total as i64).i64(width as i64).i64(self.k as i64);
            launch(gpu, &SOURCE, "by_place", total, args)?;
            sort(gpu, self, x, all, total, width)?;
        }
        let args = lines(sizes).i64(width as i64).i64(self.k as i64).ptr(all).ptr(x.ptr()?);
        let args = args.ptr(outs[0].ptr()?).ptr(outs[1].ptr()?);
        launch(gpu, &SOURCE, &format!("take_{end}"), count * self.k, args)
    }
}
