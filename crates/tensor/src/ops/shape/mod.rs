//! Ops that move elements or read them in another arrangement: reshape, permute, slice, expand, copy.

mod cpu;
pub(crate) mod cuda;
mod make;
mod parts;

use phalanx_host::DType;

use crate::op::{CudaOp, Exec, Meta, Narrow, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Device, Error, Layout, Result, Shape, Tensor, View, ViewMut, ops};

macro_rules! any_type {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F64 => {
                type $t = f64;
                $body
            }
            DType::U8 => {
                type $t = u8;
                $body
            }
            DType::I64 => {
                type $t = i64;
                $body
            }
            DType::F16 => {
                type $t = half::f16;
                $body
            }
            DType::BF16 => {
                type $t = half::bf16;
                $body
            }
        }
    };
}
pub(crate) use any_type;

/// Where a part of `shape` elements lies in a row-major `whole`: from element `start` of `axis` on, every `step`-th.
pub(crate) fn part(whole: Shape, shape: Shape, axis: usize, start: usize, step: usize) -> Layout {
    let whole = Layout::contiguous(whole);
    let mut strides = whole.strides().to_vec();
    let offset = start * strides[axis];
    strides[axis] *= step;
    Layout::with(shape, &strides, offset)
}

/// Writes `from` to that part of `out`.
pub(crate) fn put(from: &View, axis: usize, start: usize, step: usize, out: &mut ViewMut) -> Result<()> {
    let target = part(out.shape, from.shape(), axis, start, step);
    any_type!(from.dtype, T => {
        cpu::scatter::<T>(from.slice()?, &from.layout, &target, out.slice()?);
        Ok(())
    })
}

/// Copies `t` row-major into `out`, of its type and shape.
pub(crate) fn copy_into(cx: &Exec, t: &Tensor, out: &mut ViewMut) -> Result<()> {
    let held = t.hold()?;
    copy_view(cx, &t.view(&held), out)
}

/// Adds `t` to `out`, row-major, of its type and shape.
pub(crate) fn add_into(cx: &Exec, t: &Tensor, out: &mut ViewMut) -> Result<()> {
    let held = t.hold()?;
    let view = t.view(&held);
    match cx.device() {
        Device::Cpu(_) => ops::real!("add gradient", t.dtype(), T => {
            cpu::add::<T>(view.slice()?, &view.layout, out.slice()?);
            Ok(())
        }),
        Device::Cuda(gpu) => cuda::copy(gpu, &view, out, true),
    }
}

fn copy_view(cx: &Exec, from: &View, to: &mut ViewMut) -> Result<()> {
    match cx.device() {
        Device::Cpu(_) => any_type!(from.dtype, T => {
            cpu::copy::<T>(from.slice()?, &from.layout, to.slice()?);
            Ok(())
        }),
        Device::Cuda(gpu) => cuda::copy(gpu, from, to, false),
    }
}

/// A contiguous copy outside the graph.
pub(crate) fn materialise(cx: &Exec, t: &Tensor) -> Result<Tensor> {
    cx.make(t.dtype(), t.shape(), |mut out| copy_into(cx, t, &mut out))
}

/// The elements row-major without gaps.
#[derive(Debug)]
struct Contiguous;

impl Op for Contiguous {
    fn name(&self) -> &'static str {
        "contiguous"
    }
    fn narrow(&self) -> Narrow {
        Narrow::AnyType
    }
    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        Ok(Plan::one(inputs[0].dtype, inputs[0].shape()))
    }
    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        copy_view(cx, &ins[0], &mut outs[0])
    }
    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }
    fn backward(&self, _: &Exec, _: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        grads[0].iter().try_for_each(|g| sink.pass(0, g.clone()))
    }
    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        _: &[Option<Tensor>],
        _: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![grads[0].clone()])
    }
}

/// Ops whose output reads the input's storage through another layout. They differ in the layout and in
/// how a gradient finds its way back, and that way is built of ops, so it serves both orders.
#[derive(Debug, Clone)]
enum Rearrange {
    /// Same elements, other sizes; the input is contiguous, or only axes of size 1 come or go.
    Reshape(Shape),
    /// Output axis i is input axis `0[i]`.
    Permute(Vec<usize>),
    /// Elements `start, start + step, …` along one axis.
    Slice { axis: usize, start: usize, len: usize, step: usize },
    /// Stretched to a larger shape.
    Expand(Shape),
}

/// The layout read as `to`, when all that differs are axes of size 1.
fn around_ones(layout: &Layout, to: Shape) -> Option<Layout> {
    let mut axes = layout.shape.iter().zip(layout.strides()).filter(|a| *a.0 != 1);
    let strides: Option<Vec<usize>> = to
        .iter()
        .map(|&size| match size {
            1 => Some(0),
            _ => axes.next().filter(|a| *a.0 == size).map(|a| *a.1),
        })
        .collect();
    strides.filter(|_| axes.next().is_none()).map(|strides| Layout::with(to, &strides, layout.offset))
}

impl Rearrange {
    fn grad(&self, input: Shape, g: &Tensor) -> Result<Tensor> {
        match self {
            Rearrange::Reshape(_) => g.reshape(&input),
            Rearrange::Permute(axes) => {
                let mut back = vec![0; axes.len()];
                axes.iter().enumerate().for_each(|(i, &a)| back[a] = i);
                g.permute(&back)
            }
            Rearrange::Slice { axis, start, len, step } => apply_one(
                Scatter { axis: *axis, start: *start, len: *len, step: *step, size: input[*axis] },
                &[g],
            ),
            Rearrange::Expand(_) => g.sum_to(&input),
        }
    }
}

impl Op for Rearrange {
    fn name(&self) -> &'static str {
        match self {
            Rearrange::Reshape(_) => "reshape",
            Rearrange::Permute(_) => "permute",
            Rearrange::Slice { .. } => "slice",
            Rearrange::Expand(_) => "expand",
        }
    }

    fn narrow(&self) -> Narrow {
        Narrow::AnyType
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (shape, layout) = (inputs[0].shape(), inputs[0].layout);
        let invalid = |why: String| Error::Invalid { op: self.name(), shape, why };
        let out = match self {
            Rearrange::Reshape(to) if to.numel() != shape.numel() => {
                return Err(invalid(format!("{to} has {} elements, not {}", to.numel(), shape.numel())));
            }
            Rearrange::Reshape(to) => {
                around_ones(&layout, *to).unwrap_or_else(|| Layout::contiguous(*to).at(layout.offset))
            }
            Rearrange::Permute(axes) => {
                let mut seen = axes.clone();
                seen.sort_unstable();
                if !seen.iter().copied().eq(0..shape.len()) {
                    return Err(invalid(format!("{axes:?} does not name each axis once")));
                }
                let pick = |v: &[usize]| axes.iter().map(|&a| v[a]).collect::<Vec<_>>();
                Layout::with(Shape::new(&pick(&shape)), &pick(layout.strides()), layout.offset)
            }
            &Rearrange::Slice { axis, start, len, step } => {
                let size = *shape.get(axis).ok_or_else(|| invalid(format!("there is no axis {axis}")))?;
                let last =
                    len.checked_sub(1).and_then(|n| n.checked_mul(step)).map(|n| n.saturating_add(start));
                if step == 0 || last.is_some_and(|l| l >= size) || start > size {
                    return Err(invalid(format!(
                        "{len} elements from {start} by {step} do not lie in axis {axis} of size {size}"
                    )));
                }
                let mut strides = layout.strides().to_vec();
                let offset = layout.offset + start * strides[axis];
                strides[axis] *= step;
                Layout::with(shape.with(axis, len), &strides, offset)
            }
            Rearrange::Expand(to) => layout.expand(*to).ok_or_else(|| {
                invalid(format!("it does not broadcast to {to}: only axes of size 1 stretch"))
            })?,
        };
        Ok(Plan::alias(inputs[0].dtype, out))
    }

    fn forward(&self, _: &Exec, _: &[View], _: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        Ok(())
    }

    fn backward(&self, _: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        if let Some(g) = &grads[0]
            && sink.wants(0)
        {
            sink.pass(0, self.grad(saved.metas[0].shape(), g)?)?;
        }
        Ok(())
    }

    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![grads[0].as_ref().map(|g| self.grad(metas[0].shape(), g)).transpose()?])
    }
}

/// The way back of a slice: its elements put into zeros of the sliced tensor's shape.
#[derive(Debug, Clone)]
struct Scatter {
    axis: usize,
    start: usize,
    len: usize,
    step: usize,
    size: usize,
}

impl Scatter {
    fn grad(&self, g: &Tensor) -> Result<Tensor> {
        g.slice_by(self.axis, self.start, self.len, self.step)
    }
}

impl Op for Scatter {
    fn name(&self) -> &'static str {
        "scatter_slice"
    }
    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name(), inputs, 0)?;
        Ok(Plan::one(inputs[0].dtype, inputs[0].shape().with(self.axis, self.size)))
    }
    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        cx.cpu()?;
        outs[0].bytes()?.fill(0);
        put(&ins[0], self.axis, self.start, self.step, &mut outs[0])
    }
    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }
    fn backward(&self, _: &Exec, _: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        grads[0].iter().try_for_each(|g| sink.pass(0, self.grad(g)?))
    }
    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        _: &[Option<Tensor>],
        _: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![grads[0].as_ref().map(|g| self.grad(g)).transpose()?])
    }
}

impl Tensor {
    /// The same elements, row-major and without gaps; no copy when they already are.
    pub fn contiguous(&self) -> Result<Tensor> {
        match self.layout().is_contiguous() {
            true => Ok(self.clone()),
            false => apply_one(Contiguous, &[self]),
        }
    }

    /// The same elements in row-major order under another shape; a copy only when there are gaps.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if *self.shape() == *shape {
            return Ok(self.clone());
        }
        let to = Shape::new(shape);
        match around_ones(self.layout(), to) {
            Some(_) => apply_one(Rearrange::Reshape(to), &[self]),
            None => apply_one(Rearrange::Reshape(to), &[&self.contiguous()?]),
        }
    }

    /// Output axis i is this tensor's axis `axes[i]`; no copy.
    pub fn permute(&self, axes: &[usize]) -> Result<Tensor> {
        apply_one(Rearrange::Permute(axes.to_vec()), &[self])
    }

    /// The last two axes swapped; no copy.
    pub fn t(&self) -> Result<Tensor> {
        let n = self.shape().len();
        if n < 2 {
            return Err(Error::Invalid {
                op: "t",
                shape: self.shape(),
                why: "it has fewer than two axes".into(),
            });
        }
        let mut axes: Vec<usize> = (0..n).collect();
        axes.swap(n - 2, n - 1);
        self.permute(&axes)
    }

    /// Elements `start..start + len` along `axis`; no copy.
    pub fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Tensor> {
        self.slice_by(axis, start, len, 1)
    }

    /// `len` elements along `axis` from `start` on, `step` apart; no copy.
    pub fn slice_by(&self, axis: usize, start: usize, len: usize, step: usize) -> Result<Tensor> {
        apply_one(Rearrange::Slice { axis, start, len, step }, &[self])
    }

    /// Stretched to `shape` by broadcasting; no copy.
    pub fn expand(&self, shape: &[usize]) -> Result<Tensor> {
        if *self.shape() == *shape {
            return Ok(self.clone());
        }
        apply_one(Rearrange::Expand(Shape::new(shape)), &[self])
    }

    /// The undoing of a broadcast: summed down to `shape`, which must broadcast to this tensor's.
    pub fn sum_to(&self, shape: &[usize]) -> Result<Tensor> {
        let from = self.shape();
        if *from == *shape {
            return Ok(self.clone());
        }
        let lead = from.len().saturating_sub(shape.len());
        let axes: Vec<usize> =
            (0..from.len()).filter(|&i| i < lead || (shape[i - lead] == 1 && from[i] != 1)).collect();
        self.sum(&axes, true)?.reshape(shape)
    }
}
