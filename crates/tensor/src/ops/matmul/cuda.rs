//! Matrix products on a GPU, by cublasLt, and the additions that go with them.

use phalanx_gpu::{Args, Context, DevicePtr, Gemm, Source};

use super::batch::{Axis, Product};
use super::linear::Linear;
use super::{Matmul, stretch, stretched, turn};
use crate::op::{CudaOp, Exec, Op, Saved};
use crate::ops::cuda::{self, Operand, Scratch, launch, library_type, source, suffix, typed};
use crate::ops::elementwise::relu_in_place_cuda;
use crate::ops::reduce::cuda::column_sums;
use crate::sink::GradSink;
use crate::{DType, Layout, Result, Shape, Tensor, View, ViewMut, ops};

pub(crate) static SOURCE: Source = source!("matmul");

/// One operand of a batch of products as the library takes it: rows `pitch` apart, or columns when it is turned, and
/// matrices `step` apart.
#[derive(Clone, Copy)]
pub(super) struct Side {
    ptr: DevicePtr,
    pitch: usize,
    turned: bool,
    step: usize,
}

/// The pitch of a matrix and whether it is turned; none when neither its rows nor its columns are dense.
fn lie([rows, columns]: [usize; 2], [down, across]: [usize; 2]) -> Option<(usize, bool)> {
    if (across == 1 || columns == 1) && (rows == 1 || down >= columns) {
        return Some((if rows == 1 { columns } else { down }, false));
    }
    if (down == 1 || rows == 1) && (columns == 1 || across >= rows) {
        return Some((if columns == 1 { rows } else { across }, true));
    }
    None
}

/// Writes `from` to `to` in the type of that, or adds it; both are dense.
pub(crate) fn deliver(gpu: &Context, from: &View, to: &mut ViewMut, add: bool) -> Result<()> {
    if from.dtype == to.dtype {
        return ops::shape::cuda::copy(gpu, &from.with(whole(from, to.shape)), to, add);
    }
    if !add {
        return ops::shape::cuda::convert(gpu, from, to);
    }
    let (n, a, b) = (from.shape().numel(), from.ptr()?, to.ptr()?);
    let kernel = match (from.dtype, to.dtype) {
        _ if a.0 % 8 != 0 || b.0 % 16 != 0 => None,
        (DType::BF16, DType::F32) => Some("add_bf16_f32"),
        (DType::F16, DType::F32) => Some("add_f16_f32"),
        _ => None,
    };
    if let Some(kernel) = kernel {
        return launch(gpu, &SOURCE, kernel, n.div_ceil(4), Args::new().ptr(a).ptr(b).i64(n as i64));
    }
    let args = Args::new().ptr(a).i32(cuda::code(from.dtype)).ptr(b).i32(cuda::code(to.dtype)).i64(n as i64);
    launch(gpu, &SOURCE, "add_any", n, args)
}

/// A dense view's layout under another shape of as many elements.
fn whole(view: &View, shape: Shape) -> Layout {
    Layout::contiguous(shape).at(view.layout.offset)
}

/// Adds the row `bias` to each row of `y`.
pub(crate) fn add_row(gpu: &Context, op: &'static str, y: &mut ViewMut, bias: &View) -> Result<()> {
    let (columns, n) = (bias.shape().numel(), y.shape.numel());
    let wide = 16 / y.dtype.size();
    let pack = if columns.is_multiple_of(wide) && y.ptr()?.0.is_multiple_of(16) { wide } else { 1 };
    let kernel = format!("add_row{}_{}", if pack > 1 { "_wide" } else { "" }, suffix(op, y.dtype)?);
    let args = Args::new().ptr(y.ptr()?).ptr(bias.ptr()?).i32(cuda::code(bias.dtype));
    let args = args.u64((n / pack) as u64).u32(columns as u32);
    launch(gpu, &SOURCE, &kernel, n / pack, args)
}

/// What comes behind a product.
#[derive(Clone, Copy)]
enum Then {
    Nothing,
    /// It is added to what is there.
    Add,
    Relu,
}

/// `out (+)= a · b + bias` for a batch of `[m, k]` and `[k, n]`, both of type `dtype`, as is the bias; `out` is dense.
#[allow(clippy::too_many_arguments, reason = "they are the operands and sizes of a product")]
fn product(
    gpu: &Context,
    op: &'static str,
    dtype: DType,
    [batch, m, n, k]: [usize; 4],
    [a, b]: [Side; 2],
    bias: Option<DevicePtr>,
    out: &mut ViewMut,
    then: Then,
) -> Result<()> {
    let operands = library_type(op, dtype)?;
    if out.dtype != dtype && out.dtype != DType::F32 {
        // The library writes the operands' type or f32.
        let mut wide = Scratch::new(gpu, DType::F32, out.shape)?;
        product(gpu, op, dtype, [batch, m, n, k], [a, b], bias, &mut wide.view_mut(), then)?;
        return deliver(gpu, &wide.view(), out, matches!(then, Then::Add));
    }
    let step = |s: Side| if batch == 1 { 0 } else { s.step };
    let gemm = Gemm {
        m,
        n,
        k,
        a: operands,
        b: operands,
        c: library_type(op, out.dtype)?,
        trans_a: a.turned,
        trans_b: b.turned,
        lda: a.pitch,
        ldb: b.pitch,
        ldc: n,
        batch,
        stride_a: step(a),
        stride_b: step(b),
        stride_c: m * n,
        accumulate: matches!(then, Then::Add),
        bias: bias.map(|_| operands),
        relu: false,
        math: gpu.math(),
    };
    if matches!(then, Then::Relu) {
        if !gpu.gemm_relu(&gemm, a.ptr, b.ptr, out.ptr()?, bias)? {
            relu_in_place_cuda(gpu, out)?;
        }
        return Ok(());
    }
    Ok(gpu.blas()?.gemm(&gemm, 1.0, a.ptr, b.ptr, out.ptr()?, bias)?)
}

/// A matrix of numbers of `dtype` as the library takes it, and the copy of it that this may need.
struct Matrix<'a> {
    operand: Operand<'a>,
    shape: [usize; 2],
}

impl<'a> Matrix<'a> {
    fn new(gpu: &Context, view: &View<'a>, dtype: DType) -> Result<Self> {
        let shape = [view.shape()[0], view.shape()[1]];
        let mut operand = typed(gpu, view, dtype)?;
        if let Operand::As(view) = &operand
            && lie(shape, [view.layout.strides()[0], view.layout.strides()[1]]).is_none()
        {
            operand = cuda::dense(gpu, view)?;
        }
        Ok(Matrix { operand, shape })
    }

    fn side(&self) -> Result<Side> {
        let view = self.operand.view();
        let steps = [view.layout.strides()[0], view.layout.strides()[1]];
        let (pitch, turned) = lie(self.shape, steps).unwrap_or((self.shape[1], false));
        Ok(Side { ptr: view.ptr()?, pitch, turned, step: 0 })
    }
}

/// `out (+)= a · b + bias` for two matrices, computed on numbers of `dtype`.
pub(crate) fn multiply(
    gpu: &Context,
    op: &'static str,
    dtype: DType,
    a: &View,
    b: &View,
    bias: Option<&View>,
    out: &mut ViewMut,
    add: bool,
) -> Result<()> {
    multiply_then(gpu, op, dtype, [a, b], bias, out, if add { Then::Add } else { Then::Nothing })
}

fn multiply_then(
    gpu: &Context,
    op: &'static str,
    dtype: DType,
    [a, b]: [&View; 2],
    bias: Option<&View>,
    out: &mut ViewMut,
    then: Then,
) -> Result<()> {
    let [m, k, n] = [a.shape()[0], a.shape()[1], b.shape()[1]];
    if m * n == 0 {
        return Ok(());
    }
    if k == 0 {
        if !matches!(then, Then::Add) {
            gpu.fill_zero(out.ptr()?, m * n * out.dtype.size())?;
        }
        bias.map_or(Ok(()), |bias| add_row(gpu, op, out, bias))?;
        return if matches!(then, Then::Relu) { relu_in_place_cuda(gpu, out) } else { Ok(()) };
    }
    let (a, b) = (Matrix::new(gpu, a, dtype)?, Matrix::new(gpu, b, dtype)?);
    // The library adds a bias of the operands' type.
    let bias = bias.map(|bias| typed(gpu, bias, dtype)).transpose()?;
    let bias = bias.as_ref().map(Operand::ptr).transpose()?;
    product(gpu, op, dtype, [1, m, n, k], [a.side()?, b.side()?], bias, out, then)
}

/// Axes of a batch as one, when both operands go through them in even steps: its size, and the steps.
fn one_axis(axes: &[Axis]) -> Option<Axis> {
    let mut all = Axis { size: 1, a: 0, b: 0 };
    for &outer in axes.iter().rev() {
        if all.size == 1 {
            all = outer;
        } else if outer.a == all.a * all.size && outer.b == all.b * all.size {
            all.size *= outer.size;
        } else {
            return None;
        }
    }
    Some(all)
}

/// `batch::products` on a GPU, for operands of one type.
fn products(gpu: &Context, a: &View, b: &View, summed: u32, out: &mut ViewMut, add: bool) -> Result<()> {
    let (op, then) = ("matmul", if add { Then::Add } else { Then::Nothing });
    let p = Product::new(a, b, summed);
    let chain: usize = p.sums.iter().map(|x| x.size).product();
    if out.shape.numel() == 0 {
        return Ok(());
    }
    if chain * p.k == 0 {
        return if add {
            Ok(())
        } else {
            Ok(gpu.fill_zero(out.ptr()?, out.shape.numel() * out.dtype.size())?)
        };
    }
    let ([m, k, n], dtype) = ([p.m, p.k, p.n], a.dtype);
    if p.sums.is_empty()
        && let Some(axis) = one_axis(&p.kept)
        && let Some(at) = lie([m, k], p.a)
        && let Some(bt) = lie([k, n], p.b)
    {
        let a = Side { ptr: a.ptr()?, pitch: at.0, turned: at.1, step: axis.a };
        let b = Side { ptr: b.ptr()?, pitch: bt.0, turned: bt.1, step: axis.b };
        return product(gpu, op, dtype, [axis.size, m, n, k], [a, b], None, out, then);
    }
    // Both put so that sums are part of the matrices' inner size: one call, and the sum is f32 all the way.
    let put = |view: &View, of: fn(&Axis) -> usize, [down, across]: [usize; 2], left: bool| {
        let kept = p.kept.iter().map(|x| (x.size, of(x)));
        let sums = p.sums.iter().map(|x| (x.size, of(x)));
        let axes: Vec<(usize, usize)> = match left {
            true => kept.chain([(m, down)]).chain(sums).chain([(k, across)]).collect(),
            false => kept.chain(sums).chain([(k, down), (n, across)]).collect(),
        };
        let (sizes, strides): (Vec<_>, Vec<_>) = axes.into_iter().unzip();
        let view = view.with(Layout::with(Shape::new(&sizes), &strides, view.layout.offset));
        let mut to = Scratch::new(gpu, dtype, view.shape())?;
        ops::shape::cuda::copy(gpu, &view, &mut to.view_mut(), false)?;
        Ok::<_, crate::Error>(to)
    };
    let (a, b) = (put(a, |x| x.a, p.a, true)?, put(b, |x| x.b, p.b, false)?);
    let (k, count) = (k * chain, p.kept.iter().map(|x| x.size).product());
    let a = Side { ptr: a.ptr(), pitch: k, turned: false, step: m * k };
    let b = Side { ptr: b.ptr(), pitch: n, turned: false, step: k * n };
    product(gpu, op, dtype, [count, m, n, k], [a, b], None, out, then)
}

impl CudaOp for Matmul {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (shape, dtype) = (outs[0].shape, ins[0].dtype);
        let lead = Shape::new(&shape[..shape.len() - 2]);
        let (a, b) = (typed(gpu, &ins[0], dtype)?, typed(gpu, &ins[1], dtype)?);
        let (a, b) = (stretch(&a.view(), lead)?, stretch(&b.view(), lead)?);
        products(gpu, &a, &b, 0, &mut outs[0], false)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let gpu = cx.gpu()?;
        let (a, b) = (saved.input(0)?, saved.input(1)?);
        let (shapes, shape, dtype) = ([a.shape(), b.shape()], g.shape(), a.dtype());
        let g = g.to(dtype)?;
        let lead = Shape::new(&shape[..shape.len() - 2]);
        let (a, b, g) = (a.read()?, b.read()?, g.read()?);
        let (a, b) = (typed(gpu, &a.view(), dtype)?, typed(gpu, &b.view(), dtype)?);
        let (a, b) = (stretch(&a.view(), lead)?, stretch(&b.view(), lead)?);
        for (i, [x, y]) in [[g.view(), turn(&b)], [turn(&a), g.view()]].iter().enumerate() {
            let Some(mut slot) = sink.slot(i)? else { continue };
            let add = slot.accumulate();
            products(gpu, x, y, stretched(shapes[i], lead), &mut slot.view(), add)?;
        }
        Ok(())
    }
}

impl CudaOp for Linear {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (dtype, w) = (ins[0].dtype, turn(&ins[1]));
        let then = if self.relu { Then::Relu } else { Then::Nothing };
        multiply_then(gpu, self.name(), dtype, [&ins[0], &w], ins.get(2), &mut outs[0], then)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let g = self.behind_relu(cx, &mut saved, g)?;
        let (op, gpu) = (self.name(), cx.gpu()?);
        let (x, w) = (saved.input(0)?, saved.input(1)?);
        let dtype = x.dtype();
        let g = g.to(dtype)?;
        if sink.wants(2) {
            let g = g.contiguous()?.read()?;
            if let Some(mut slot) = sink.slot(2)? {
                let add = slot.accumulate();
                column_sums(gpu, op, &g.view(), &mut slot.view(), add)?;
            }
        }
        sink.settle(2)?;
        let g = g.read()?;
        if let Some(mut slot) = sink.slot(1)? {
            let add = slot.accumulate();
            let x = x.read()?;
            multiply(gpu, op, dtype, &turn(&g.view()), &x.view(), None, &mut slot.view(), add)?;
        }
        sink.settle(1)?;
        drop(x);
        if let Some(mut slot) = sink.slot(0)? {
            let add = slot.accumulate();
            let w = w.read()?;
            multiply(gpu, op, dtype, &g.view(), &w.view(), None, &mut slot.view(), add)?;
        }
        Ok(())
    }
}
