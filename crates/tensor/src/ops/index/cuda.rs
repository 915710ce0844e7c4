//! Picking elements by index on a GPU, and adding them back.

use phalanx_gpu::{Args, Context, DevicePtr, Grid, Source};

use super::one_hot::OneHot;
use super::scatter::ScatterAdd;
use super::{Pick, Places, Unit, around};
use crate::op::{CudaOp, Exec, Op, Saved};
use crate::ops::cuda::{code, faults, launch, source, suffix, walk};
use crate::sink::GradSink;
use crate::{Error, Layout, Result, Shape, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("index");

/// Keys that a block sorts in its shared memory.
const CHUNK: usize = 4096;
/// Keys that a thread looks at when it adds.
const STRETCH: usize = 32;

/// Where in a row-major `source` indices of a shape point, save for their own part, and what that part is counted in.
fn places(source: Shape, axis: usize, index: Shape) -> (Layout, usize) {
    let mut strides = Layout::contiguous(source).strides().to_vec();
    let along = std::mem::take(&mut strides[axis]);
    (Layout::with(index, &strides, 0), along)
}

/// The widest access in bytes that slices of `bytes` bytes from these addresses on allow.
fn access(bytes: usize, all: &[DevicePtr]) -> usize {
    let fits = |w: &usize| bytes.is_multiple_of(*w) && all.iter().all(|p| p.0.is_multiple_of(*w as u64));
    [16, 8, 4, 2].into_iter().find(fits).unwrap_or(1)
}

impl CudaOp for Pick {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (shape, axis) = (ins[0].shape(), self.0.axis);
        let (x, list, out) = (ins[0].ptr()?, ins[1].ptr()?, outs[0].ptr()?);
        let bytes = ins[0].dtype.size();
        let args = Args::new().ptr(x).ptr(list).ptr(out);
        if let Unit::Element = self.0.unit {
            let (layout, along) = places(shape, axis, ins[1].shape());
            let args = args.i64(along as i64).i64(shape[axis] as i64).pod(walk([&layout]));
            let args = faults::args(gpu, args, self.name())?;
            return launch(gpu, &SOURCE, &format!("gather_{bytes}"), ins[1].shape().numel(), args);
        }
        let [_, size, inner] = around(shape, axis);
        let word = access(inner * bytes, &[x, out]);
        let (words, total) = (inner * bytes / word, outs[0].shape.numel() * bytes / word);
        let args =
            args.i64(total as i64).i64(size as i64).i64(ins[1].shape().numel() as i64).i64(words as i64);
        launch(gpu, &SOURCE, &format!("pick_{word}"), total, faults::args(gpu, args, self.name())?)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (gpu, g, index) = (cx.gpu()?, g.contiguous()?.read()?, saved.input(1)?.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        let mut out = slot.view();
        if !accumulate {
            out.zero(cx.device())?;
        }
        add(gpu, self.name(), self.0, &g.view(), &index.view(), &out)
    }
}

impl CudaOp for ScatterAdd {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        crate::ops::shape::cuda::copy(gpu, &ins[0], &mut outs[0], false)?;
        add(gpu, self.name(), self.0, &ins[2], &ins[1], &outs[0])
    }
}

impl CudaOp for OneHot {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (rows, n) = (ins[0].shape().numel(), outs[0].shape.numel());
        let args = Args::new().ptr(ins[0].ptr()?).i64(rows as i64).i64(self.classes as i64);
        let args = args.ptr(outs[0].ptr()?).i32(code(outs[0].dtype));
        launch(gpu, &SOURCE, "one_hot", n, faults::args(gpu, args, self.name())?)
    }
}

/// `out += g` at the indexed places, where several meet in the order of their indices.
fn add(gpu: &Context, op: &'static str, at: Places, g: &View, index: &View, out: &ViewMut) -> Result<()> {
    let (source, n) = (out.shape, index.shape().numel());
    if g.shape().numel() == 0 || out.shape.numel() == 0 {
        return Ok(());
    }
    suffix(op, g.dtype)?;
    suffix(op, out.dtype)?;
    let padded = n.next_power_of_two().max(64);
    let bits = padded.trailing_zeros();
    // Units along the axis of [outer, size, inner]; an element is a unit of a table with a single column.
    let ([outer, size, inner], names) = match at.unit {
        Unit::Element => ([1, source.numel(), 1], source.numel()),
        _ => (around(source, at.axis), source[at.axis]),
    };
    if names.checked_shl(bits).is_none_or(|keys| keys >> bits != names || keys >> 62 != 0) {
        let why = format!("{n} indices of {names} places are too many to sort");
        return Err(Error::Invalid { op, shape: source, why });
    }
    let keys = gpu.alloc(padded * size_of::<u64>())?;
    let args = Args::new().ptr(index.ptr()?);
    let (kernel, args) = match at.unit {
        Unit::Element => {
            let (layout, along) = places(source, at.axis, index.shape());
            let args = args.i64(along as i64).i64(source[at.axis] as i64).i32(bits as i32).i64(padded as i64);
            ("element_keys", args.ptr(keys.ptr()).pod(walk([&layout])))
        }
        unit => {
            let skip = if let Unit::Row { padding } = unit { padding } else { None };
            let args =
                args.i64(n as i64).i64(size as i64).i64(skip.unwrap_or(0)).i32(i32::from(skip.is_some()));
            ("slice_keys", args.i32(bits as i32).i64(padded as i64).ptr(keys.ptr()))
        }
    };
    launch(gpu, &SOURCE, kernel, padded, faults::args(gpu, args, op)?)?;
    sort(gpu, keys.ptr(), padded)?;
    let (columns, stretches) = (outer * inner, n.div_ceil(STRETCH));
    let parts = gpu.alloc(stretches * 2 * columns * size_of::<f32>())?;
    let runs = || {
        let args = Args::new().ptr(keys.ptr()).i64(n as i64).i32(bits as i32).i64(size as i64);
        args.i64(n as i64).i64(inner as i64).i64(columns as i64)
    };
    let args = runs().ptr(g.ptr()?).i32(code(g.dtype)).ptr(out.ptr()?).i32(code(out.dtype));
    launch(gpu, &SOURCE, "add_runs", stretches * columns, args.ptr(parts.ptr()))?;
    let args = runs().ptr(out.ptr()?).i32(code(out.dtype)).ptr(parts.ptr());
    launch(gpu, &SOURCE, "add_parts", (stretches - 1) * columns, args)
}

/// Sorts keys that all differ, save for the last ones; their number is a power of two.
fn sort(gpu: &Context, keys: DevicePtr, n: usize) -> Result<()> {
    let chunk = n.min(CHUNK);
    let within = |from: usize, to: usize| {
        let args = Args::new().ptr(keys).i64(from as i64).i64(to as i64).i32(chunk as i32);
        let grid = Grid::linear(n / chunk, 1).threads((chunk / 2).min(1024) as u32);
        Ok::<_, Error>(gpu.launch(&SOURCE, "sort_chunks", grid, args)?)
    };
    within(2, chunk)?;
    let mut k = 2 * chunk;
    while k <= n {
        let mut j = k / 2;
        while j >= chunk {
            let args = Args::new().ptr(keys).i64(k as i64).i64(j as i64).i64((n / 2) as i64);
            launch(gpu, &SOURCE, "sort_step", n / 2, args)?;
            j /= 2;
        }
        within(k, k)?;
        k *= 2;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn accesses_are_aligned_and_the_widest_that_are(bytes in 1usize..1 << 20, shift in 0u32..6, at in prop::collection::vec(0u64..1 << 30, 1..4)) {
            let bytes = bytes << shift;
            let all: Vec<DevicePtr> = at.iter().map(|&p| DevicePtr(p << shift)).collect();
            let fits = |w: usize| bytes.is_multiple_of(w) && all.iter().all(|p| p.0.is_multiple_of(w as u64));
            let w = access(bytes, &all);
            prop_assert!(w.is_power_of_two() && fits(w));
            prop_assert!(w == 16 || !fits(2 * w));
        }
    }
}
