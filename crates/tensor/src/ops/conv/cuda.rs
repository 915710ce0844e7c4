//! Convolutions on a GPU, by cuDNN: activations and weights channels last, of one type; and locally connected images.
//!
//! cuDNN is asked for zeros of one width before and after an axis only. Other padding is put around the image by a
//! kernel first, where no such width gives the same windows. What cuDNN cannot do is done by kernels of our own.

use phalanx_gpu::{Args, Context, Conv, DevicePtr, Direction, Source};
use phalanx_host::ConvShape;

use super::local::{LocallyConnected, Sizes};
use super::{Convolution, Part, direct};
use crate::op::{CudaOp, Exec, Op, Saved};
use crate::ops::cuda::{self, Scratch, launch, library_type, source, suffix, typed};
use crate::ops::matmul::cuda::{add_row, deliver};
use crate::ops::reduce::cuda::column_sums;
use crate::sink::GradSink;
use crate::{DType, Error, Result, Shape, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("conv");

/// How an image is handed to cuDNN: its sizes, zeros on each side that cuDNN puts there, and how far inside of this
/// image the given one lies (or outside, where it is cropped).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fit {
    size: [usize; 3],
    padding: [usize; 3],
    inside: [isize; 3],
}

impl Fit {
    /// For windows with the outputs `out`.
    fn new(s: &ConvShape, out: [usize; 3]) -> Self {
        let mut fit = Fit { size: s.size, padding: [0; 3], inside: [0; 3] };
        for (a, &out) in out.iter().enumerate() {
            let reach = (s.kernel[a] - 1).saturating_mul(s.dilation[a]).saturating_add(1);
            let covered = (out - 1).saturating_mul(s.stride[a]).saturating_add(reach);
            let before = s.padding[a][0];
            // As many zeros after the image as before it: are the windows the same?
            if before < reach
                && (covered..covered.saturating_add(s.stride[a])).contains(&(s.size[a] + 2 * before))
            {
                fit.padding[a] = before;
            } else {
                fit.size[a] = covered;
                fit.inside[a] = before as isize;
            }
        }
        fit
    }

    /// The shape of what is handed over; fails where no memory can hold it, or a kernel cannot count along it.
    fn shape(&self, op: &'static str, s: &ConvShape) -> Result<Shape> {
        let all = [s.batch, self.size[0], self.size[1], self.size[2], s.in_c];
        let bytes = all.iter().try_fold(size_of::<f32>(), |n, &f| n.checked_mul(f));
        let lists = [self.size, self.padding, s.kernel, s.stride, s.dilation, s.padding.map(|p| p[0])];
        let counted = |n: &usize| i32::try_from(*n).is_ok();
        let counts = lists.as_flattened().iter().chain(&[s.batch, s.in_c, s.out_c]).all(counted);
        if counts && bytes.is_some_and(|n| isize::try_from(n).is_ok()) {
            return Ok(all.into());
        }
        Err(Error::Invalid { op, shape: all.into(), why: "the padded input does not fit in memory".into() })
    }

    /// Whether the image is handed over as it is.
    fn is_plain(&self, s: &ConvShape) -> bool {
        self.size == s.size && self.inside == [0; 3]
    }
}

/// Sizes along three axes as kernels take them.
fn sizes(of: [usize; 3]) -> [i32; 3] {
    of.map(|n| n as i32)
}

/// `to (+)= from` moved by `by` along each axis: what lies outside of `from` is zero, what lies outside of `to` is left out.
/// Both are dense images of `channels` channels and sizes `is` and `was`, and of one type.
fn shift(
    gpu: &Context,
    op: &'static str,
    from: &View,
    to: &mut ViewMut,
    channels: usize,
    [was, is]: [[usize; 3]; 2],
    by: [isize; 3],
    add: bool,
) -> Result<()> {
    let wide = 16 / to.dtype.size();
    let fits =
        channels.is_multiple_of(wide) && [from.ptr()?, to.ptr()?].iter().all(|p| p.0.is_multiple_of(16));
    let pack = if fits { wide } else { 1 };
    let items = to.shape.numel() / pack;
    let kernel = format!("shift{}_{}", if fits { "_wide" } else { "" }, suffix(op, to.dtype)?);
    let args = Args::new().ptr(from.ptr()?).ptr(to.ptr()?).u64(items as u64).i32((channels / pack) as i32);
    let args = args.pod(sizes(is)).pod(sizes(was)).pod(by.map(|n| n as i32)).i32(i32::from(add));
    launch(gpu, &SOURCE, &kernel, items, args)
}

/// What becomes of a result besides being written.
#[derive(Clone, Copy)]
enum Also<'a> {
    Nothing,
    /// It is added to what is there.
    Added,
    /// A bias is added to it.
    Biased(&'a View<'a>),
}

/// One call of cuDNN: `image` is the input as [`Fit`] says. Whether anything was done: not where it cannot do so in one go.
fn call(
    gpu: &Context,
    op: &'static str,
    s: &ConvShape,
    fit: &Fit,
    out: [usize; 3],
    part: Part,
    dtype: DType,
    [image, weight, output]: [DevicePtr; 3],
    also: Also,
) -> Result<bool> {
    // Volumes have three axes there, all others two: cuDNN has more engines for images.
    let volume = fit.size[0] > 1 || s.kernel[0] > 1 || fit.padding[0] > 0;
    let axes = |all: [usize; 3]| all[usize::from(!volume)..].to_vec();
    let kind = library_type(op, dtype)?;
    let conv = Conv {
        n: s.batch,
        c: s.in_c,
        k: s.out_c,
        groups: s.groups,
        image: axes(fit.size),
        kernel: axes(s.kernel),
        out: axes(out),
        stride: axes(s.stride),
        pad_before: axes(fit.padding),
        pad_after: axes(fit.padding),
        dilation: axes(s.dilation),
        activations: kind,
        weights: kind,
        math: gpu.math(),
        exact: gpu.exact(),
        direction: match part {
            Part::Output => Direction::Forward,
            Part::Input => Direction::Data,
            Part::Weight => Direction::Weights,
        },
        accumulate: matches!(also, Also::Added),
        bias: match also {
            Also::Biased(bias) => Some(library_type(op, bias.dtype)?),
            _ => None,
        },
    };
    let bias = match also {
        Also::Biased(bias) => Some(bias.ptr()?),
        _ => None,
    };
    Ok(gpu.dnn()?.convolve(&conv, [image, weight, output], bias)?)
}

/// A convolution for people: what is computed of which windows.
fn name(s: &ConvShape, part: Part) -> String {
    let list = |l: [usize; 3]| l.map(|n| n.to_string()).join("x");
    let (what, padding) = (part.name(), s.padding.map(|[before, after]| before.max(after)));
    let sizes = format!("{} of {} channels by {}x{}", list(s.size), s.in_c, s.out_c, list(s.kernel));
    let windows =
        format!("stride {}, padding {}, dilation {}", list(s.stride), list(padding), list(s.dilation));
    format!("{what} of {} images {sizes} weights, {windows}, {} groups", s.batch, s.groups)
}

/// Computes `part` of a convolution from dense `a` and `b`, in the order of [`Part::from`] and of one type, and writes it to
/// `to`, of any float type, or adds it. With a bias says whether that was added, too.
fn compute(
    gpu: &Context,
    op: &'static str,
    s: &ConvShape,
    part: Part,
    [a, b]: [&View; 2],
    to: &mut ViewMut,
    also: Also,
) -> Result<bool> {
    let add = matches!(also, Also::Added);
    if to.shape.numel() == 0 {
        return Ok(false);
    }
    if a.shape().numel() == 0 || b.shape().numel() == 0 {
        if !add {
            gpu.fill_zero(to.ptr()?, to.shape.numel() * to.dtype.size())?;
        }
        return Ok(false);
    }
    let (out, dtype) = (s.out_size()?, a.dtype);
    let fit = Fit::new(s, out);
    let fitted = fit.shape(op, s)?;
    // The input with its padding, where that is put there.
    let image = match part {
        Part::Input => None,
        _ if fit.is_plain(s) => None,
        _ => {
            let mut image = Scratch::new(gpu, dtype, fitted)?;
            shift(gpu, op, a, &mut image.view_mut(), s.in_c, [s.size, fit.size], fit.inside, false)?;
            Some(image)
        }
    };
    let first = image.as_ref().map_or_else(|| a.ptr(), |x| Ok(x.ptr()))?;
    let pointers = |made: DevicePtr| -> Result<[DevicePtr; 3]> {
        Ok(match part {
            Part::Output => [first, b.ptr()?, made],
            Part::Input => [made, b.ptr()?, first],
            Part::Weight => [first, made, b.ptr()?],
        })
    };
    let cropped = part == Part::Input && !fit.is_plain(s);
    // In one go, where the library knows how.
    let at_once = !cropped && to.dtype == dtype && !matches!(also, Also::Nothing);
    if at_once && call(gpu, op, s, &fit, out, part, dtype, pointers(to.ptr()?)?, also)? {
        return Ok(true);
    }
    // A weight's gradient in f32 from halves takes cuDNN 30 times as long.
    let result = match cropped || add || to.dtype != dtype {
        true if cropped => Some(Scratch::new(gpu, dtype, fitted)?),
        true => Some(Scratch::new(gpu, dtype, to.shape)?),
        false => None,
    };
    let made = result.as_ref().map_or_else(|| to.ptr(), |r| Ok(r.ptr()))?;
    match call(gpu, op, s, &fit, out, part, dtype, pointers(made)?, Also::Nothing) {
        Err(Error::Gpu(e)) if e.is_unsupported() => {
            gpu.note_fallback(format!("{} in {dtype}: {e}", name(s, part)));
            direct::compute(gpu, s, part, [a, b], to, add)?;
            return Ok(false);
        }
        done => done?,
    };
    let Some(result) = result else { return Ok(false) };
    if !cropped {
        deliver(gpu, &result.view(), to, add)?;
        return Ok(false);
    }
    let outside = fit.inside.map(|n| -n);
    if to.dtype == dtype {
        shift(gpu, op, &result.view(), to, s.in_c, [fit.size, s.size], outside, add)?;
        return Ok(false);
    }
    let mut whole = Scratch::new(gpu, dtype, to.shape)?;
    shift(gpu, op, &result.view(), &mut whole.view_mut(), s.in_c, [fit.size, s.size], outside, false)?;
    deliver(gpu, &whole.view(), to, add)?;
    Ok(false)
}

/// A gradient, which may be added to what its slot has.
fn added(add: bool) -> Also<'static> {
    if add { Also::Added } else { Also::Nothing }
}

impl CudaOp for Convolution {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (op, dtype) = (self.name(), ins[0].dtype);
        let s = self.sizes(ins[0].shape(), ins[1].shape())?;
        let b = typed(gpu, &ins[1], dtype)?;
        // The library adds a bias to outputs alone.
        let bias = ins.get(2);
        let also = bias.filter(|_| self.part == Part::Output).map_or(Also::Nothing, Also::Biased);
        let done = compute(gpu, op, &s, self.part, [&ins[0], &b.view()], &mut outs[0], also)?;
        bias.filter(|_| !done).map_or(Ok(()), |bias| add_row(gpu, op, &mut outs[0], bias))
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (op, gpu) = (self.name(), cx.gpu()?);
        let (a, b) = (saved.input(0)?, saved.input(1)?);
        let (dtype, s) = (a.dtype(), self.sizes(a.shape(), b.shape())?);
        let [first, second] = self.part.from();
        let g = g.to(dtype)?.contiguous()?.read()?;
        let g = g.view();
        if let Some(mut slot) = sink.slot(2)? {
            let add = slot.accumulate();
            column_sums(gpu, op, &g, &mut slot.view(), add)?;
        }
        sink.settle(2)?;
        if let Some(mut slot) = sink.slot(1)? {
            let add = slot.accumulate();
            let a = a.contiguous()?.read()?;
            let a = a.view();
            let operands = second.from().map(|p| if p == first { &a } else { &g });
            compute(gpu, op, &s, second, operands, &mut slot.view(), added(add))?;
        }
        sink.settle(1)?;
        drop(a);
        if let Some(mut slot) = sink.slot(0)? {
            let add = slot.accumulate();
            let b = b.contiguous()?.read()?;
            let b = typed(gpu, &b.view(), dtype)?;
            let b = b.view();
            let operands = first.from().map(|p| if p == second { &b } else { &g });
            compute(gpu, op, &s, first, operands, &mut slot.view(), added(add))?;
        }
        Ok(())
    }
}

impl Sizes {
    /// As the `Local` of kernels.
    fn cuda(&self) -> [i64; 11] {
        let ([oh, ow], [kh, kw], [down, across]) = (self.out, self.kernel, self.stride);
        let (h, w, c) = (self.image / self.row.max(1), self.row / self.pixel.max(1), self.pixel);
        [self.batch, h, w, c, oh, ow, self.filters, kh, kw, down, across].map(|n| n as i64)
    }
}

impl CudaOp for LocallyConnected {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let s = self.sizes(ins[0].shape(), ins[1].shape())?;
        let x = typed(gpu, &ins[0], outs[0].dtype)?;
        let (bias, kind) = match ins.get(2) {
            Some(bias) => (bias.ptr()?, cuda::code(bias.dtype)),
            None => (DevicePtr(0), 0),
        };
        let kernel = format!("local_forward_{}", suffix(self.name(), outs[0].dtype)?);
        let args = Args::new().ptr(x.ptr()?).ptr(ins[1].ptr()?).i32(cuda::code(ins[1].dtype));
        let args = args.ptr(bias).i32(kind).ptr(outs[0].ptr()?).pod(s.cuda());
        launch(gpu, &SOURCE, &kernel, outs[0].shape.numel(), args)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (op, gpu) = (self.name(), cx.gpu()?);
        let (x, w) = (saved.input(0)?, saved.input(1)?);
        let (dtype, s) = (x.dtype(), self.sizes(x.shape(), w.shape())?);
        let kind = suffix(op, dtype)?;
        let g = g.to(dtype)?.contiguous()?.read()?;
        if let Some(mut slot) = sink.slot(2)? {
            let add = slot.accumulate();
            column_sums(gpu, op, &g.view(), &mut slot.view(), add)?;
        }
        sink.settle(2)?;
        let to = |slot: &ViewMut, args: Args, add: bool| {
            let args = args.ptr(slot.ptr()?).i32(cuda::code(slot.dtype)).i32(i32::from(add));
            Ok::<_, Error>(args.pod(s.cuda()))
        };
        if let Some(mut slot) = sink.slot(1)? {
            let (add, x) = (slot.accumulate(), x.contiguous()?.read()?);
            let slot = slot.view();
            let args = to(&slot, Args::new().ptr(x.ptr()?).ptr(g.ptr()?), add)?;
            launch(gpu, &SOURCE, &format!("local_weight_{kind}"), slot.shape.numel(), args)?;
        }
        sink.settle(1)?;
        if let Some(mut slot) = sink.slot(0)? {
            let (add, w) = (slot.accumulate(), w.contiguous()?.read()?);
            let slot = slot.view();
            let args = Args::new().ptr(g.ptr()?).ptr(w.ptr()?).i32(cuda::code(w.view().dtype));
            let args = to(&slot, args, add)?;
            launch(gpu, &SOURCE, &format!("local_input_{kind}"), slot.shape.numel(), args)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The windows of `size` along one axis, and how they are handed over: (size, padding, inside).
    fn fit(size: usize, kernel: usize, stride: usize, padding: [usize; 2], out: Option<usize>) -> [isize; 3] {
        let s = ConvShape::new([1, 1, 1, size, 1], 1, [1, 1, kernel]).with_stride([1, 1, stride]);
        let s = s.with_padding([[0; 2], [0; 2], padding]);
        let s = out.map_or(s, |out| s.with_outputs([1, 1, out]));
        let fit = Fit::new(&s, s.out_size().unwrap());
        assert_eq!((fit.size[..2].to_vec(), fit.padding[..2].to_vec()), (vec![1, 1], vec![0, 0]));
        // What is handed over has just these windows.
        let room = fit.size[2] + 2 * fit.padding[2] - kernel;
        assert_eq!(room / stride + 1, s.out_size().unwrap()[2]);
        [fit.size[2] as isize, fit.padding[2] as isize, fit.inside[2]]
    }

    /// Some numbers, the same each time.
    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 13) % 31) as f32 / 16.0 - 1.0).collect()
    }

    #[test]
    #[ignore = "needs a GPU or its stand-in"]
    fn the_library_and_the_definition_agree() {
        let device = crate::Device::cuda(0).unwrap();
        let Some(gpu) = device.gpu() else { return };
        let images = ConvShape::new([2, 1, 9, 8, 6], 4, [1, 3, 2]);
        let volumes = ConvShape::new([1, 4, 5, 6, 4], 6, [2, 3, 1]).with_stride([1, 2, 2]);
        let shapes = [
            images,
            images.with_groups(2).with_stride([1, 2, 1]).with_padding([[0, 0], [1, 1], [1, 0]]),
            images.with_dilation([1, 2, 3]).with_padding([[0, 0], [2, 1], [0, 3]]),
            images.with_padding([[0, 0], [5, 4], [1, 2]]).with_outputs([1, 9, 7]),
            volumes.with_padding([[1, 0], [1, 1], [0, 2]]).with_groups(2),
        ];
        for s in shapes {
            let of = |part| super::super::shape_of(part, &s, 3).unwrap();
            for part in [Part::Output, Part::Input, Part::Weight] {
                let make = |p| Tensor::from_slice(&numbers(of(p).numel()), of(p), &device).unwrap();
                let [a, b] = part.from().map(make);
                let (a, b) = (a.read().unwrap(), b.read().unwrap());
                let cx = Exec::new(&device);
                let both = [false, true].map(|ours| {
                    let to = cx.make(DType::F32, of(part), |mut to| {
                        to.zero(&device)?;
                        let operands = [&a.view(), &b.view()];
                        match ours {
                            true => direct::compute(gpu, &s, part, operands, &mut to, true),
                            false => {
                                compute(gpu, "conv", &s, part, operands, &mut to, Also::Added).map(|_| ())
                            }
                        }
                    });
                    to.unwrap().to_vec::<f32>().unwrap()
                });
                let far = both[0].iter().zip(&both[1]).find(|(x, y)| (*x - *y).abs() > 1e-4);
                assert!(far.is_none(), "{part:?} of {s:?}: {far:?}");
            }
        }
    }

    #[test]
    fn windows_that_even_padding_gives_too_take_no_copy() {
        assert_eq!(fit(224, 7, 2, [3, 3], None), [224, 3, 0]);
        // One zero less after the image is not seen by a stride of 2.
        assert_eq!(fit(224, 7, 2, [3, 2], None), [224, 3, 0]);
        assert_eq!(fit(8, 3, 2, [1, 1], Some(4)), [8, 1, 0]);
        assert_eq!(fit(224, 3, 2, [0, 1], None), [225, 0, 0]);
        assert_eq!(fit(5, 2, 1, [0, 1], None), [6, 0, 0]);
        assert_eq!(fit(5, 3, 1, [4, 4], None), [13, 0, 4]);
        // Windows that are left out crop the image.
        assert_eq!(fit(9, 2, 1, [0, 0], Some(5)), [6, 0, 0]);
    }
}
