//! Arithmetic and elementary functions, element by element, with broadcasting.
//!
//! A function is a rule of a few lines: its value and its slope on vectors, and its slope written with
//! ops for second order. The macros below turn rows into rules.

mod cpu;
pub(crate) mod math;

use std::fmt::Debug;

use math::{Math, sigmoid};
use phalanx_host::DType;
use phalanx_host::simd::Simd;

use crate::op::{Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// What the slope of a function is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Input,
    Output,
}

/// A function of one number.
pub(crate) trait UnaryRule: Copy + Debug + Send + Sync + 'static {
    const NAME: &'static str;
    const SAVES: From;
    fn value<E: Math, V: Simd<E>>(self, x: V) -> V;
    /// The derivative, from the input or the output as [`UnaryRule::SAVES`] says.
    fn slope<E: Math, V: Simd<E>>(self, saved: V) -> V;
    /// The derivative written with ops.
    fn slope_graph(self, saved: &Tensor) -> Result<Tensor>;
}

/// A function of two numbers.
pub(crate) trait BinaryRule: Copy + Debug + Send + Sync + 'static {
    const NAME: &'static str;
    /// Which inputs the gradient reads, as a bit mask.
    const SAVES: u32;
    fn value<E: Math, V: Simd<E>>(self, a: V, b: V) -> V;
    /// The gradient of input `i`, of the output's shape, written with ops: it serves both orders.
    fn grad(self, i: usize, a: Option<&Tensor>, b: Option<&Tensor>, g: &Tensor) -> Result<Tensor>;
}

#[derive(Debug)]
struct Unary<R>(R);

impl<R: UnaryRule> Op for Unary<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(R::NAME, inputs, 0)?;
        let plan = Plan::one(inputs[0].dtype, inputs[0].shape()).dense(1);
        Ok(match R::SAVES {
            From::Input => plan.saving_inputs(1),
            From::Output => plan.saving_outputs(1),
        })
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        ops::real!(R::NAME, ins[0].dtype, T => {
            cpu::map::<T, R>(cpu, self.0, ins[0].slice()?, outs[0].slice()?);
            Ok(())
        })
    }

    fn backward(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let from = match R::SAVES {
            From::Input => saved.input(0)?,
            From::Output => saved.output(0)?,
        };
        let Some(g) = &grads[0] else { return Ok(()) };
        let g = g.contiguous()?;
        let cpu = cx.cpu()?;
        let (hs, hg) = (from.hold()?, g.hold()?);
        let (s, g) = (from.view(&hs), g.view(&hg));
        if let Some(mut slot) = sink.slot(0)? {
            let accumulate = slot.accumulate();
            ops::real!(R::NAME, s.dtype, T => {
                cpu::map_gradient::<T, R>(cpu, self.0, s.slice()?, g.slice()?, slot.slice()?, accumulate);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        outputs: &[Option<Tensor>],
        _: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let from = match R::SAVES {
            From::Input => &inputs[0],
            From::Output => &outputs[0],
        };
        match (from, &grads[0]) {
            (Some(s), Some(g)) => Ok(vec![Some(g.mul(&self.0.slope_graph(s)?)?)]),
            _ => Ok(vec![None]),
        }
    }
}

#[derive(Debug)]
struct Binary<R>(R);

/// The shape that two operands broadcast to.
pub(crate) fn broadcast(op: &'static str, a: Shape, b: Shape) -> Result<Shape> {
    a.broadcast(&b).ok_or(Error::Shapes {
        op,
        lhs: a,
        rhs: b,
        hint: "axes are matched from the last and must be equal, or 1 in one of the two",
    })
}

impl<R: BinaryRule> Op for Binary<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(R::NAME, inputs, 0)?;
        ops::want_same(R::NAME, inputs, 1)?;
        let shape = broadcast(R::NAME, inputs[0].shape(), inputs[1].shape())?;
        Ok(Plan::one(inputs[0].dtype, shape).saving_inputs(R::SAVES))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let shape = outs[0].shape;
        let [a, b] = [stretch(R::NAME, &ins[0], shape)?, stretch(R::NAME, &ins[1], shape)?];
        ops::real!(R::NAME, a.dtype, T => cpu::zip::<T, R>(cpu, self.0, &a, &b, outs[0].slice()?))
    }

    fn backward(&self, _: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let plain = |i: usize| saved.inputs[i].as_ref().map(Tensor::detach);
        let (a, b) = (plain(0), plain(1));
        for i in 0..2 {
            if sink.wants(i) {
                let grad = self.0.grad(i, a.as_ref(), b.as_ref(), g)?.sum_to(&sink.shape(i))?;
                sink.pass(i, grad)?;
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
        (0..2)
            .map(|i| {
                let grad = self.0.grad(i, inputs[0].as_ref(), inputs[1].as_ref(), g)?;
                grad.sum_to(&metas[i].shape()).map(Some)
            })
            .collect()
    }
}

/// The view stretched to `shape`.
pub(crate) fn stretch<'a>(op: &'static str, view: &View<'a>, shape: Shape) -> Result<View<'a>> {
    let hint = "it does not broadcast";
    let layout =
        view.layout.expand(shape).ok_or(Error::Shapes { op, lhs: view.shape(), rhs: shape, hint })?;
    Ok(view.with(layout))
}

/// `a` where the mask is not 0, `b` elsewhere.
#[derive(Debug)]
struct Where;

impl Op for Where {
    fn name(&self) -> &'static str {
        "where"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        if inputs[0].dtype != DType::U8 {
            let want = "u8 (a mask)".to_owned();
            return Err(Error::DTypes { op: "where", operand: 0, got: inputs[0].dtype, want });
        }
        ops::want_real("where", inputs, 1)?;
        ops::want_same("where", &inputs[1..], 1)?;
        let values = broadcast("where", inputs[1].shape(), inputs[2].shape())?;
        Ok(Plan::one(inputs[1].dtype, broadcast("where", inputs[0].shape(), values)?).saving_inputs(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        cx.cpu()?;
        let shape = outs[0].shape;
        let [m, a, b] = [0, 1, 2].map(|i| stretch("where", &ins[i], shape));
        let (m, a, b) = (m?, a?, b?);
        ops::real!("where", a.dtype, T => cpu::select::<T>(&m, &a, &b, outs[0].slice()?))
    }

    fn backward(
        &self,
        _: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let parts = where_gradients(&saved.input(0)?, g)?;
        for (i, part) in [1, 2].into_iter().zip(parts) {
            if sink.wants(i) {
                sink.pass(i, part.sum_to(&sink.shape(i))?)?;
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
        let (Some(mask), Some(g)) = (&inputs[0], &grads[0]) else { return Ok(vec![None, None, None]) };
        let [a, b] = where_gradients(mask, g)?;
        Ok(vec![None, Some(a.sum_to(&metas[1].shape())?), Some(b.sum_to(&metas[2].shape())?)])
    }
}

fn where_gradients(mask: &Tensor, g: &Tensor) -> Result<[Tensor; 2]> {
    let zero = Tensor::scalar(0.0, g.dtype(), g.device())?;
    Ok([mask.select(g, &zero)?, mask.select(&zero, g)?])
}

macro_rules! unary {
    ($($(#[$doc:meta])* $method:ident $rule:ident saves $from:ident
       { |$x:ident: $e:ident, $v:ident| $value:expr; |$s:ident| $slope:expr; |$t:ident| $graph:expr })*) => {
        $(
            #[derive(Debug, Clone, Copy)]
            struct $rule;
            impl UnaryRule for $rule {
                const NAME: &'static str = stringify!($method);
                const SAVES: From = From::$from;
                #[inline(always)]
                fn value<$e: Math, $v: Simd<$e>>(self, $x: $v) -> $v { $value }
                #[inline(always)]
                fn slope<$e: Math, $v: Simd<$e>>(self, $s: $v) -> $v { $slope }
                fn slope_graph(self, $t: &Tensor) -> Result<Tensor> { $graph }
            }
            impl Tensor {
                $(#[$doc])*
                pub fn $method(&self) -> Result<Tensor> {
                    apply_one(Unary($rule), &[self])
                }
            }
        )*
    };
}

#[inline(always)]
fn c<E: Math, V: Simd<E>>(x: f64) -> V {
    V::splat(E::from_f64(x))
}

unary! {
    /// −x
    neg Neg saves Input {
        |x: E, V| c::<E, V>(0.0).sub(x); |_s| c::<E, V>(-1.0);
        |t| Tensor::scalar(-1.0, t.dtype(), t.device())?.expand(&t.shape())
    }
    /// e^x
    exp Exp saves Output { |x: E, V| E::exp(x); |s| s; |t| Ok(t.clone()) }
    /// Natural logarithm.
    log Log saves Input {
        |x: E, V| E::log(x); |s| c::<E, V>(1.0).div(s);
        |t| Tensor::scalar(1.0, t.dtype(), t.device())?.div(t)
    }
    /// Square root.
    sqrt Sqrt saves Output {
        |x: E, V| x.sqrt(); |s| c::<E, V>(0.5).div(s);
        |t| Tensor::scalar(0.5, t.dtype(), t.device())?.div(t)
    }
    /// x², whose gradient reads x once.
    square Square saves Input { |x: E, V| x.mul(x); |s| s.add(s); |t| t.scale(2.0) }
    /// 1 / (1 + e^−x)
    sigmoid Sigmoid saves Output {
        |x: E, V| sigmoid::<E, V>(x); |s| s.mul(c::<E, V>(1.0).sub(s));
        |t| t.mul(&t.neg()?.offset(1.0)?)
    }
    /// Hyperbolic tangent.
    tanh Tanh saves Output {
        |x: E, V| E::tanh(x); |s| c::<E, V>(1.0).sub(s.mul(s));
        |t| t.square()?.neg()?.offset(1.0)
    }
    /// max(x, 0); not a number stays one. The slope at 0 is 0.
    relu Relu saves Output {
        |x: E, V| c::<E, V>(0.0).max(x); |s| s.if_gt(c::<E, V>(0.0), c::<E, V>(1.0), c::<E, V>(0.0));
        |t| t.detach().step()
    }
    /// 1 where x > 0, else 0; its slope is 0 everywhere.
    step Step saves Input {
        |x: E, V| x.if_gt(c::<E, V>(0.0), c::<E, V>(1.0), c::<E, V>(0.0)); |_s| c::<E, V>(0.0);
        |t| Tensor::zeros(t.dtype(), t.shape(), t.device())
    }
}

/// The gradient `g` behind a ReLU with output `y`, for ops that one is fused into; both are contiguous.
pub(crate) fn relu_gradient(cx: &Exec, y: &Tensor, g: &Tensor) -> Result<Tensor> {
    let cpu = cx.cpu()?;
    let (read_y, read_g) = (y.read()?, g.read()?);
    cx.make(g.dtype(), g.shape(), |mut out| {
        ops::real!(Relu::NAME, g.dtype(), T => {
            cpu::map_gradient::<T, Relu>(cpu, Relu, read_y.slice()?, read_g.slice()?, out.slice()?, false);
            Ok(())
        })
    })
}

/// `x · factor + offset` with constants.
#[derive(Debug, Clone, Copy)]
struct Affine {
    factor: f64,
    offset: f64,
}

impl UnaryRule for Affine {
    const NAME: &'static str = "affine";
    const SAVES: From = From::Input;
    #[inline(always)]
    fn value<E: Math, V: Simd<E>>(self, x: V) -> V {
        x.mul_add(c::<E, V>(self.factor), c::<E, V>(self.offset))
    }
    #[inline(always)]
    fn slope<E: Math, V: Simd<E>>(self, _: V) -> V {
        c::<E, V>(self.factor)
    }
    fn slope_graph(self, t: &Tensor) -> Result<Tensor> {
        Tensor::scalar(self.factor, t.dtype(), t.device())?.expand(&t.shape())
    }
}

macro_rules! binary {
    ($($(#[$doc:meta])* $method:ident $rule:ident saves $saves:literal
       { |$a:ident, $b:ident| $value:expr; |$i:ident, $x:ident, $y:ident, $g:ident| $grad:expr })*) => {
        $(
            #[derive(Debug, Clone, Copy)]
            struct $rule;
            impl BinaryRule for $rule {
                const NAME: &'static str = stringify!($method);
                const SAVES: u32 = $saves;
                #[inline(always)]
                fn value<E: Math, V: Simd<E>>(self, $a: V, $b: V) -> V { $value }
                fn grad(self, $i: usize, a: Option<&Tensor>, b: Option<&Tensor>, $g: &Tensor) -> Result<Tensor> {
                    let released = || Error::GraphReleased { op: Self::NAME };
                    let $x = || a.ok_or_else(released);
                    let $y = || b.ok_or_else(released);
                    let _ = (&$x, &$y);
                    $grad
                }
            }
            impl Tensor {
                $(#[$doc])*
                pub fn $method(&self, other: &Tensor) -> Result<Tensor> {
                    apply_one(Binary($rule), &[self, other])
                }
            }
        )*
    };
}

binary! {
    /// Sum; both operands broadcast.
    add Add saves 0 { |a, b| a.add(b); |_i, x, y, g| Ok(g.clone()) }
    /// Difference; both operands broadcast.
    sub Sub saves 0 { |a, b| a.sub(b); |i, x, y, g| if i == 0 { Ok(g.clone()) } else { g.neg() } }
    /// Product; both operands broadcast.
    mul Mul saves 3 { |a, b| a.mul(b); |i, x, y, g| if i == 0 { g.mul(y()?) } else { g.mul(x()?) } }
    /// Quotient; both operands broadcast.
    div Div saves 3 {
        |a, b| a.div(b);
        |i, x, y, g| if i == 0 { g.div(y()?) } else { g.mul(x()?)?.div(&y()?.square()?)?.neg() }
    }
}

impl Tensor {
    /// This tensor times a constant.
    pub fn scale(&self, factor: f64) -> Result<Tensor> {
        apply_one(Unary(Affine { factor, offset: 0.0 }), &[self])
    }

    /// This tensor plus a constant.
    pub fn offset(&self, offset: f64) -> Result<Tensor> {
        apply_one(Unary(Affine { factor: 1.0, offset }), &[self])
    }

    /// `a` where this mask (u8) is not 0, `b` elsewhere; all three broadcast.
    pub fn select(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        apply_one(Where, &[self, a, b])
    }
}
