//! Arithmetic and elementary functions, element by element, with broadcasting.
//!
//! A function is a row of a few lines in one of three tables: `unary` (functions of one number that
//! networks spend time in: value and slope on vectors), `binary` (the same of two numbers), and `functions`
//! (all others: value and slope of one number, in doubles, which costs no code for each instruction set). Each row
//! says its gradient with ops, too, for second order.

mod binary;
mod cpu;
pub(super) mod cuda;
mod functions;
pub(crate) mod math;
mod select;
mod unary;

use std::fmt::Debug;

use math::Math;
use phalanx_host::Cpu;
use phalanx_host::simd::Simd;

use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Device, Error, Result, Shape, Tensor, View, ViewMut, ops};

/// What the slope of a function is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Input,
    Output,
}

/// A function of one number, on vectors.
pub(crate) trait UnaryRule: Copy + Debug + Send + Sync + 'static {
    const SAVES: From;
    /// The row and the constants of its CUDA kernel.
    fn cuda(self) -> cuda::Name;
    fn value<E: Math, V: Simd<E>>(self, x: V) -> V;
    /// The derivative, from the input or the output as [`UnaryRule::SAVES`] says.
    fn slope<E: Math, V: Simd<E>>(self, saved: V) -> V;
    /// The derivative written with ops; none where it is constant in pieces.
    fn slope_graph(self, saved: &Tensor) -> Option<Result<Tensor>>;
}

/// A function of two numbers, on vectors.
pub(crate) trait BinaryRule: Copy + Debug + Send + Sync + 'static {
    /// The row of its CUDA kernel.
    const CUDA: &'static str;
    /// Which inputs the gradient reads, as a bit mask.
    const SAVES: u32;
    fn value<E: Math, V: Simd<E>>(self, a: V, b: V) -> V;
    /// The gradient of input `i`, of the output's shape, written with ops: it serves both orders.
    fn grad(self, i: usize, x: Operands, g: &Tensor) -> Result<Tensor>;
}

/// The operands that the gradient of a function of two numbers reads, and its name.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a>(&'static str, &'a [Option<Tensor>]);

impl<'a> Operands<'a> {
    fn get(self, i: usize) -> Result<&'a Tensor> {
        self.1[i].as_ref().ok_or(Error::GraphReleased { op: self.0 })
    }
}

/// A function of one number as the executor sees it: whatever needs no code of its own for each function.
trait Function: Debug + Send + Sync {
    fn saves(&self) -> From;
    /// `out = f(x)`; `x` is contiguous.
    fn value(&self, cpu: &Cpu, x: &View, out: &mut ViewMut) -> Result<()>;
    /// `dx (+)= g · f'(saved)`; all contiguous.
    fn gradient(&self, cpu: &Cpu, saved: &View, g: &View, dx: &mut ViewMut, add: bool) -> Result<()>;
    /// The row and the constants of its CUDA kernel.
    fn cuda(&self) -> cuda::Name;
    /// As [`UnaryRule::slope_graph`].
    fn slope_graph(&self, saved: &Tensor) -> Option<Result<Tensor>>;
}

impl<R: UnaryRule> Function for R {
    fn saves(&self) -> From {
        R::SAVES
    }

    fn value(&self, cpu: &Cpu, x: &View, out: &mut ViewMut) -> Result<()> {
        ops::real!("function", x.dtype, T => {
            cpu::map::<T, R>(cpu, *self, x.slice()?, out.slice()?);
            Ok(())
        })
    }

    fn gradient(&self, cpu: &Cpu, saved: &View, g: &View, dx: &mut ViewMut, add: bool) -> Result<()> {
        ops::real!("function", saved.dtype, T => {
            cpu::map_gradient::<T, R>(cpu, *self, saved.slice()?, g.slice()?, dx.slice()?, add);
            Ok(())
        })
    }

    fn cuda(&self) -> cuda::Name {
        UnaryRule::cuda(*self)
    }

    fn slope_graph(&self, saved: &Tensor) -> Option<Result<Tensor>> {
        UnaryRule::slope_graph(*self, saved)
    }
}

/// A function of one number under the name that its errors carry.
#[derive(Debug)]
struct Unary {
    name: &'static str,
    function: Box<dyn Function>,
}

/// Applies a function of one number.
fn apply_unary(name: &'static str, function: impl Function + 'static, x: &Tensor) -> Result<Tensor> {
    apply_one(Unary { name, function: Box::new(function) }, &[x])
}

/// `g · f'(saved)` outside the graph.
fn times_slope(cx: &Exec, function: &dyn Function, saved: &Tensor, g: &Tensor) -> Result<Tensor> {
    let (saved, g) = (saved.detach().contiguous()?, g.detach().contiguous()?);
    let (read_saved, read_g) = (saved.read()?, g.read()?);
    let (saved, g_view) = (read_saved.view(), read_g.view());
    cx.make(g.dtype(), g.shape(), |mut out| match cx.device() {
        Device::Cpu(cpu) => function.gradient(cpu, &saved, &g_view, &mut out, false),
        Device::Cuda(gpu) => cuda::map_gradient(gpu, function.cuda(), &saved, &g_view, &mut out, false),
    })
}

/// The gradient `g` behind a ReLU with output `y`, for ops that one is fused into.
pub(crate) fn relu_gradient(cx: &Exec, y: &Tensor, g: &Tensor) -> Result<Tensor> {
    times_slope(cx, &unary::Relu {}, y, g)
}

/// A ReLU on the CPU of what is to become one.
pub(crate) fn relu_in_place(cpu: &Cpu, values: &mut ViewMut) -> Result<()> {
    ops::real!("relu", values.dtype, T => {
        cpu::map_in_place::<T, _>(cpu, unary::Relu {}, values.slice()?);
        Ok(())
    })
}

/// The same on a GPU.
pub(crate) fn relu_in_place_cuda(gpu: &phalanx_gpu::Context, values: &mut ViewMut) -> Result<()> {
    cuda::map_in_place(gpu, UnaryRule::cuda(unary::Relu {}), values)
}

impl Op for Unary {
    fn name(&self) -> &'static str {
        self.name
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name, inputs, 0)?;
        let plan = Plan::one(inputs[0].dtype, inputs[0].shape()).dense(1);
        Ok(match self.function.saves() {
            From::Input => plan.saving_inputs(1),
            From::Output => plan.saving_outputs(1),
        })
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        self.function.value(cx.cpu()?, &ins[0], &mut outs[0])
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let from = match self.function.saves() {
            From::Input => saved.input(0)?,
            From::Output => saved.output(0)?,
        };
        let Some(g) = &grads[0] else { return Ok(()) };
        let g = g.contiguous()?;
        let (read_from, read_g) = (from.read()?, g.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let add = slot.accumulate();
        let mut dx = slot.view();
        self.function.gradient(cx.cpu()?, &read_from.view(), &read_g.view(), &mut dx, add)
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        outputs: &[Option<Tensor>],
        _: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let from = match self.function.saves() {
            From::Input => &inputs[0],
            From::Output => &outputs[0],
        };
        let (Some(saved), Some(g)) = (from, &grads[0]) else { return Ok(vec![None]) };
        let slope = match self.function.slope_graph(saved) {
            Some(slope) => slope?,
            None => {
                let one = Tensor::scalar(1.0, saved.dtype(), saved.device())?.expand(&saved.shape())?;
                times_slope(&Exec::new(saved.device()), &*self.function, saved, &one)?
            }
        };
        Ok(vec![Some(g.mul(&slope)?)])
    }
}

/// A function of two numbers as the executor sees it.
trait Pair: Debug + Send + Sync {
    /// As [`BinaryRule::SAVES`].
    fn saves(&self) -> u32;
    /// `out = f(a, b)`; both have `out`'s shape.
    fn value(&self, cpu: &Cpu, a: &View, b: &View, out: &mut ViewMut) -> Result<()>;
    /// The row of its CUDA kernel.
    fn cuda(&self) -> &'static str;
    /// As [`BinaryRule::grad`].
    fn grad(&self, i: usize, x: Operands, g: &Tensor) -> Result<Tensor>;
}

impl<R: BinaryRule> Pair for R {
    fn saves(&self) -> u32 {
        R::SAVES
    }

    fn value(&self, cpu: &Cpu, a: &View, b: &View, out: &mut ViewMut) -> Result<()> {
        ops::real!("function", a.dtype, T => cpu::zip::<T, R>(cpu, *self, a, b, out.slice()?))
    }

    fn cuda(&self) -> &'static str {
        R::CUDA
    }

    fn grad(&self, i: usize, x: Operands, g: &Tensor) -> Result<Tensor> {
        BinaryRule::grad(*self, i, x, g)
    }
}

/// A function of two numbers under the name that its errors carry.
#[derive(Debug)]
struct Binary {
    name: &'static str,
    function: Box<dyn Pair>,
}

/// Applies a function of two numbers; both operands broadcast.
fn apply_binary(name: &'static str, function: impl Pair + 'static, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    apply_one(Binary { name, function: Box::new(function) }, &[a, b])
}

impl Op for Binary {
    fn name(&self) -> &'static str {
        self.name
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name, inputs, 0)?;
        ops::want_same(self.name, inputs, 1)?;
        let shape = broadcast(self.name, inputs[0].shape(), inputs[1].shape())?;
        Ok(Plan::one(inputs[0].dtype, shape).saving_inputs(self.function.saves()))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let shape = outs[0].shape;
        let [a, b] = [stretch(self.name, &ins[0], shape)?, stretch(self.name, &ins[1], shape)?];
        self.function.value(cx.cpu()?, &a, &b, &mut outs[0])
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward(&self, _: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let plain: Vec<_> = saved.inputs.iter().map(|t| t.as_ref().map(Tensor::detach)).collect();
        for i in 0..2 {
            if sink.wants(i) {
                let grad = self.function.grad(i, Operands(self.name, &plain), g)?;
                sink.pass(i, grad.sum_to(&sink.shape(i))?)?;
            }
        }
        Ok(())
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(g) = &grads[0] else { return Ok(vec![None, None]) };
        let grad = |i: usize| {
            self.function.grad(i, Operands(self.name, inputs), g)?.sum_to(&metas[i].shape()).map(Some)
        };
        Ok(vec![grad(0)?, grad(1)?])
    }
}

/// The shape that two operands broadcast to.
pub(crate) fn broadcast(op: &'static str, a: Shape, b: Shape) -> Result<Shape> {
    a.broadcast(&b).ok_or(Error::Shapes {
        op,
        lhs: a,
        rhs: b,
        hint: "axes are matched from the last and must be equal, or 1 in one of the two",
    })
}

/// The view stretched to `shape`.
pub(crate) fn stretch<'a>(op: &'static str, view: &View<'a>, shape: Shape) -> Result<View<'a>> {
    let hint = "it does not broadcast";
    let layout =
        view.layout.expand(shape).ok_or(Error::Shapes { op, lhs: view.shape(), rhs: shape, hint })?;
    Ok(view.with(layout))
}
