//! Pooling on a GPU.

use half::{bf16, f16};
use phalanx_gpu::{Args, Context, DevicePtr, Source};

use super::fractional::{FractionalPool, Unpool, three};
use super::windows::{Axis, Tiling};
use super::{MaxPool, cpu, type_of};
use crate::op::{CudaOp, Exec, Op, Saved};
use crate::ops::cuda::{self, code, divisor, faults, launch, runs, source, suffix};
use crate::sink::GradSink;
use crate::{DType, Error, Result, Shape, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("pool");
pub(crate) static FRACTIONAL: Source = source!("fractional", "fractional.cu");

/// The windows along one axis, as kernels know them.
#[derive(Debug, Clone, Copy)]
struct Along {
    places: usize,
    windows: usize,
    kernel: usize,
    step: usize,
    stride: usize,
    pad: usize,
    adaptive: bool,
}

impl Along {
    fn new(axis: &Axis, adaptive: bool) -> Self {
        let start = |i: usize| axis.spans.get(i).map(|s| s.start);
        let first = start(0).unwrap_or(0);
        let stride = start(1).map_or(1, |second| second.abs_diff(first).max(1));
        Along {
            places: axis.size,
            windows: axis.spans.len(),
            kernel: axis.kernel,
            step: axis.step,
            stride,
            pad: first.min(0).unsigned_abs(),
            adaptive,
        }
    }

    fn words(&self) -> [u32; 13] {
        let [a, b, c] = [self.places, self.windows, self.stride].map(divisor);
        let rest = [self.kernel as u32, self.step as u32, self.pad as u32, u32::from(self.adaptive)];
        let mut words = [0; 13];
        words.iter_mut().zip([a, b, c].iter().flatten().chain(&rest)).for_each(|(w, &v)| *w = v);
        words
    }

    /// Whether it has `kernel` places side by side for each window.
    fn plain(&self, kernel: usize) -> bool {
        !self.adaptive && self.step == 1 && self.kernel == kernel
    }
}

/// The windows of a pooling, with the numbers of one call.
struct Layout {
    op: &'static str,
    shape: Shape,
    axes: [Along; 3],
    channels: usize,
    /// The type of saved places.
    saved: DType,
    /// A window's places along both axes of an image, where a kernel knows the number.
    square: Option<usize>,
}

impl Layout {
    fn new(pool: &MaxPool, x: Shape) -> Result<Self> {
        let windows: cpu::Windows = pool.windows(x)?;
        let adaptive = matches!(pool.tiling, Tiling::Adaptive(_));
        let op = pool.name();
        let axes = windows.axes.each_ref().map(|a| Along::new(a, adaptive && a.size > 1));
        let numbers = |a: &Along| [a.places, a.windows, a.step, a.stride, a.pad, a.kernel * a.step];
        if axes.iter().flat_map(numbers).any(|n| n >= 1 << 28) {
            let why = "an axis or its windows are too long for a GPU's kernels".to_owned();
            return Err(Error::Invalid { op, shape: x, why });
        }
        let flat = axes[0].places == 1 && axes[0].plain(1) && axes[0].pad == 0;
        let square = [2, 3].into_iter().find(|&k| flat && axes[1].plain(k) && axes[2].plain(k));
        Ok(Layout {
            op,
            shape: x,
            axes,
            channels: windows.channels,
            saved: type_of(windows.places()),
            square,
        })
    }

    fn places(&self) -> usize {
        self.axes.iter().map(|a| a.places).product()
    }

    fn windows(&self) -> usize {
        self.axes.iter().map(|a| a.windows).product()
    }

    /// The kernel's `Windows`, for packs of so many channels.
    fn args(&self, pack: usize) -> Args {
        let [a, b, c] = self.axes.map(|a| a.words());
        let packs = divisor(self.channels / pack);
        let words: Vec<u32> = [&a[..], &b, &c, &packs].concat();
        Args::new().bytes(bytemuck::cast_slice(&words))
    }

    /// Channels that a thread takes at once: more than one only with saved places of a byte, whose packs lie aligned too.
    fn pack(&self, dtype: DType, all: &[DevicePtr], places: DevicePtr) -> usize {
        match cuda::wide(dtype, self.channels, all) {
            pack if self.saved == DType::U8 && places.0.is_multiple_of(pack as u64) => pack,
            _ => 1,
        }
    }

    /// Calls `run(samples before, items)` for as many samples as a launch takes, which have `per` items each.
    fn each(&self, per: usize, mut run: impl FnMut(usize, usize) -> Result<()>) -> Result<()> {
        for [first, count] in runs(self.op, self.shape, self.shape[0], per)? {
            run(first, count * per)?;
        }
        Ok(())
    }

    /// The ending of kernels' names for packs of so many channels.
    fn name(&self, pack: usize, dtype: DType) -> Result<String> {
        let end = suffix(self.op, dtype)?;
        Ok(match (pack, self.saved) {
            (1, DType::U8) => format!("one_u8_{end}"),
            (1, _) => format!("one_i64_{end}"),
            _ => end.to_owned(),
        })
    }
}

impl CudaOp for MaxPool {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        saved: &mut [ViewMut],
    ) -> Result<()> {
        let (x, dtype, w) = (ins[0].ptr()?, ins[0].dtype, Layout::new(self, ins[0].shape())?);
        let (y, places) = (outs[0].ptr()?, saved[0].ptr()?);
        if outs[0].shape.numel() == 0 {
            return Ok(());
        }
        let pack = w.pack(dtype, &[x, y], places);
        let kernel = match w.square.filter(|_| pack > 1) {
            Some(k) => format!("max_{k}_{}", suffix(w.op, dtype)?),
            None => format!("max_{}", w.name(pack, dtype)?),
        };
        let [a, b] = [w.places(), w.windows()].map(|n| n * w.channels);
        w.each(b / pack, |first, items| {
            let args = w.args(pack).ptr(x.offset(first * a * dtype.size()));
            let args =
                args.ptr(y.offset(first * b * dtype.size())).ptr(places.offset(first * b * w.saved.size()));
            launch(gpu, &SOURCE, &kernel, items, args.u32(items as u32))
        })?;
        let Some(all) = outs.get_mut(1) else { return Ok(()) };
        let all = all.ptr()?;
        w.each(b, |first, items| {
            let args = w.args(1).ptr(places.offset(first * b * w.saved.size()));
            let args =
                args.i32(i32::from(w.saved == DType::I64)).ptr(all.offset(first * b * size_of::<i64>()));
            launch(gpu, &SOURCE, "flat", items, args.u32(items as u32))
        })
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (gpu, w) = (cx.gpu()?, Layout::new(self, saved.metas[0].shape())?);
        let dtype = saved.metas[0].dtype;
        let g = g.to(dtype)?.contiguous()?;
        let (g, places) = (g.read()?, saved.extra[0].read()?);
        let (g, places) = (g.ptr()?, places.ptr()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let (add, dx) = (i32::from(slot.accumulate()), slot.view().ptr()?);
        let [a, b] = [w.places(), w.windows()].map(|n| n * w.channels);
        if w.shape.numel() == 0 {
            return Ok(());
        }
        let pack = w.pack(dtype, &[g, dx], places);
        let ends = |args: Args, first: usize| {
            let args = args.ptr(g.offset(first * b * dtype.size()));
            args.ptr(places.offset(first * b * w.saved.size())).ptr(dx.offset(first * a * dtype.size()))
        };
        // Two by two places share their windows where these lie two apart.
        if let Some(k) = w.square.filter(|_| pack > 1 && w.axes[1..].iter().all(|a| a.stride == 2)) {
            let [down, across] = [1, 2].map(|i| (w.axes[i].places + w.axes[i].pad).div_ceil(2));
            let kernel = format!("gather_{k}_{}", suffix(w.op, dtype)?);
            return w.each(down * across * w.channels / pack, |first, items| {
                let args = ends(w.args(pack).pod(divisor(down)).pod(divisor(across)), first);
                launch(gpu, &SOURCE, &kernel, items, args.u32(items as u32).i32(add))
            });
        }
        let kernel = format!("gather_{}", w.name(pack, dtype)?);
        w.each(a / pack, |first, items| {
            let args = ends(w.args(pack), first).u32(items as u32).i32(add);
            launch(gpu, &SOURCE, &kernel, items, args)
        })
    }
}

impl FractionalPool {
    /// The kernels' `Cut`.
    fn cut(&self, x: Shape) -> [i64; 11] {
        let rank = self.out.len();
        let sizes = [three(&x[1..=rank]), three(&self.out), three(&self.kernel)];
        let mut words = [0; 11];
        let rest = [x[rank + 1], rank];
        words.iter_mut().zip(sizes.iter().flatten().chain(&rest)).for_each(|(w, &v)| *w = v as i64);
        words
    }
}

/// A float tensor's numbers, when the GPU has computed them.
fn numbers(gpu: &Context, x: &View) -> Result<Vec<f64>> {
    let mut bytes = vec![0; x.shape().numel() * x.dtype.size()];
    gpu.download(x.ptr()?, &mut bytes)?;
    let single = |b: &[u8]| b.try_into().map_or(f32::NAN, f32::from_ne_bytes);
    let bits = |b: &[u8]| b.try_into().map_or(0x7fff, u16::from_ne_bytes);
    let one = |b: &[u8]| match x.dtype {
        DType::F16 => f16::from_bits(bits(b)).to_f64(),
        DType::BF16 => bf16::from_bits(bits(b)).to_f64(),
        _ => f64::from(single(b)),
    };
    Ok(bytes.chunks_exact(x.dtype.size()).map(one).collect())
}

impl CudaOp for FractionalPool {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (x, end) = (&ins[0], suffix(self.name(), ins[0].dtype)?);
        suffix(self.name(), ins[1].dtype)?;
        // Seen before anything is read at places that they give; a recorded step takes the nearest that will do.
        if !gpu.is_capturing()
            && let Some(s) = numbers(gpu, &ins[1])?.iter().find(|s| !(0.0..1.0).contains(*s))
        {
            let why = format!("a sample is {s}; they lie in 0..1");
            return Err(Error::Invalid { op: self.name(), shape: x.shape(), why });
        }
        let total = outs[0].shape.numel();
        let args = Args::new().pod(self.cut(x.shape())).ptr(x.ptr()?).ptr(ins[1].ptr()?);
        let args = args.i32(code(ins[1].dtype)).ptr(outs[0].ptr()?).ptr(outs[1].ptr()?);
        launch(gpu, &FRACTIONAL, &format!("fractional_{end}"), total, args.i64(total as i64))
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (x, dtype) = (sink.shape(0), saved.metas[0].dtype);
        let (g, places) = (g.to(dtype)?.contiguous()?, saved.output(1)?);
        let (g, places) = (g.read()?, places.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let (add, dx) = (i32::from(slot.accumulate()), slot.view().ptr()?);
        let args = Args::new().pod(self.cut(x)).ptr(g.ptr()?).ptr(places.ptr()?).ptr(dx);
        let kernel = format!("gather_{}", suffix(self.name(), dtype)?);
        launch(cx.gpu()?, &FRACTIONAL, &kernel, x.numel(), args.i64(x.numel() as i64).i32(add))
    }
}

impl CudaOp for Unpool {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (x, end) = (&ins[0], suffix(self.name(), ins[0].dtype)?);
        let (shape, y, places) = (x.shape(), outs[0].ptr()?, ins[1].ptr()?);
        let (total, limit) = (shape.numel(), self.sizes.numel());
        let elements = outs[0].shape.numel();
        gpu.fill_zero(y, elements * outs[0].dtype.size())?;
        if total == 0 {
            return Ok(());
        }
        let channels = shape[shape.len() - 1];
        let cells = total / (shape[0] * channels);
        let last = gpu.alloc(elements * size_of::<u32>())?;
        gpu.fill_zero(last.ptr(), last.len())?;
        let sizes =
            |args: Args| [cells, limit, channels, total].into_iter().fold(args, |args, n| args.i64(n as i64));
        let args = sizes(Args::new().ptr(places).ptr(last.ptr()));
        launch(gpu, &FRACTIONAL, "claim", total, faults::args(gpu, args, self.name())?)?;
        let args = Args::new().ptr(x.ptr()?).ptr(places).ptr(last.ptr()).ptr(y);
        launch(gpu, &FRACTIONAL, &format!("put_{end}"), total, sizes(args))
    }
}
