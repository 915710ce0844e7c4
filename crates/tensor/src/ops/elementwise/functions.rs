//! Functions that networks spend little time in: a row each, of plain numbers. They are computed in doubles
//! and rounded once, so single precision is as exact as it can be, and cost no code for each instruction set.

use std::f64::consts::{LN_2, LN_10};
use std::fmt;

use phalanx_host::Cpu;
use phalanx_host::simd::Real;

use super::math::Math;
use super::{From, Function, Operands, Pair, apply_binary, apply_unary, cpu, cuda};
use crate::{Result, Tensor, View, ViewMut, ops};

/// A row of the table of functions of one number. `p` are its constants.
struct Row {
    name: &'static str,
    value: fn(p: [f64; 2], x: f64) -> f64,
    /// The derivative at the input.
    slope: fn(p: [f64; 2], x: f64) -> f64,
    /// The derivative written with ops.
    graph: fn(p: [f64; 2], x: &Tensor) -> Result<Tensor>,
}

/// A row with its constants.
struct Rare(&'static Row, [f64; 2]);

impl fmt::Debug for Rare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.0.name, self.1)
    }
}

fn map<E: Math>(cpu: &Cpu, x: &[E], out: &mut [E], f: &(dyn Fn(f64) -> f64 + Sync)) {
    cpu::map_by(cpu, x, out, &|x, y| y.iter_mut().zip(x).for_each(|(y, x)| *y = E::from_f64(f(x.to_f64()))));
}

impl Function for Rare {
    fn saves(&self) -> From {
        From::Input
    }

    fn value(&self, cpu: &Cpu, x: &View, out: &mut ViewMut) -> Result<()> {
        ops::real!(self.0.name, x.dtype, T => {
            map::<T>(cpu, x.slice()?, out.slice()?, &|x| (self.0.value)(self.1, x));
            Ok(())
        })
    }

    fn gradient(&self, cpu: &Cpu, saved: &View, g: &View, dx: &mut ViewMut, add: bool) -> Result<()> {
        ops::real!(self.0.name, saved.dtype, T => {
            let slope = |x: T| (self.0.slope)(self.1, x.to_f64()) as T;
            cpu::map_gradient_by::<T>(cpu, saved.slice()?, g.slice()?, dx.slice()?, &|saved, g, dx| {
                for ((dx, g), x) in dx.iter_mut().zip(g).zip(saved) {
                    *dx = g * slope(*x) + if add { *dx } else { 0.0 };
                }
            });
            Ok(())
        })
    }

    fn cuda(&self) -> cuda::Name {
        (self.0.name, [self.1[0], self.1[1], 0.0])
    }

    fn slope_graph(&self, saved: &Tensor) -> Option<Result<Tensor>> {
        Some((self.0.graph)(self.1, saved))
    }
}

/// Makes methods of rows: the value and the slope at a number, and the slope written with ops.
macro_rules! functions {
    ($($(#[$doc:meta])* $method:ident($($p:ident),*) |$x:ident| $value:expr; |$s:ident| $slope:expr;
       |$t:ident| $graph:expr;)*) => {
        impl Tensor { $(
            $(#[$doc])*
            pub fn $method(&self $(, $p: f64)*) -> Result<Tensor> {
                static ROW: Row = Row {
                    name: stringify!($method),
                    value: |[$($p,)* ..], $x| { $(let _ = $p;)* $value },
                    slope: |[$($p,)* ..], $s| { $(let _ = $p;)* $slope },
                    graph: |[$($p,)* ..], $t| { $(let _ = $p;)* $graph },
                };
                let constants: &[f64] = &[$($p),*];
                let at = |i| constants.get(i).copied().unwrap_or(0.0);
                apply_unary(ROW.name, Rare(&ROW, [at(0), at(1)]), self)
            }
        )* }
    };
}

/// Zeros like `t`.
fn zeros(t: &Tensor) -> Result<Tensor> {
    Tensor::zeros(t.dtype(), t.shape(), t.device())
}

/// 1 where `mask` is set, else 0, of `t`'s type.
fn ones_where(mask: &Tensor, t: &Tensor) -> Result<Tensor> {
    mask.to(t.dtype())
}

functions! {
    /// 1 above 0, −1 below, 0 at 0 and where it is not a number; the slope is 0.
    sign() |x| f64::from(i8::from(x > 0.0) - i8::from(x < 0.0)); |_s| 0.0; |t| zeros(t);
    /// The largest whole number that is not above x; the slope is 0.
    floor() |x| x.floor(); |_s| 0.0; |t| zeros(t);
    /// The smallest whole number that is not below x; the slope is 0.
    ceil() |x| x.ceil(); |_s| 0.0; |t| zeros(t);
    /// The nearest whole number, ties to the even one; the slope is 0.
    round() |x| x.round_ties_even(); |_s| 0.0; |t| zeros(t);
    /// x without its fraction; the slope is 0.
    trunc() |x| x.trunc(); |_s| 0.0; |t| zeros(t);
    /// x less its whole part.
    fract() |x| x.fract(); |_s| 1.0; |t| zeros(t)?.offset(1.0);
    /// 2^x
    exp2() |x| x.exp2(); |s| LN_2 * s.exp2(); |t| t.exp2()?.scale(LN_2);
    /// Logarithm to the base 2.
    log2() |x| x.log2(); |s| 1.0 / (s * LN_2); |t| t.rdiv(1.0 / LN_2);
    /// Logarithm to the base 10.
    log10() |x| x.log10(); |s| 1.0 / (s * LN_10); |t| t.rdiv(1.0 / LN_10);
    /// Sine.
    sin() |x| x.sin(); |s| s.cos(); |t| t.cos();
    /// Cosine.
    cos() |x| x.cos(); |s| -s.sin(); |t| t.sin()?.neg();
    /// Tangent.
    tan() |x| x.tan(); |s| 1.0 + s.tan().powi(2); |t| t.tan()?.square()?.offset(1.0);
    /// Inverse of the sine, in [−π/2, π/2].
    asin() |x| x.asin(); |s| (1.0 - s * s).sqrt().recip(); |t| t.square()?.rsub(1.0)?.rsqrt();
    /// Inverse of the cosine, in [0, π].
    acos() |x| x.acos(); |s| -(1.0 - s * s).sqrt().recip(); |t| t.square()?.rsub(1.0)?.rsqrt()?.neg();
    /// Inverse of the tangent, in (−π/2, π/2).
    atan() |x| x.atan(); |s| (1.0 + s * s).recip(); |t| t.square()?.offset(1.0)?.reciprocal();
    /// Hyperbolic sine.
    sinh() |x| x.sinh(); |s| s.cosh(); |t| t.cosh();
    /// Hyperbolic cosine.
    cosh() |x| x.cosh(); |s| s.sinh(); |t| t.sinh();
    /// Inverse of the hyperbolic sine.
    asinh() |x| x.asinh(); |s| (1.0 + s * s).sqrt().recip(); |t| t.square()?.offset(1.0)?.rsqrt();
    /// Inverse of the hyperbolic cosine; not a number below 1.
    acosh() |x| x.acosh(); |s| (s * s - 1.0).sqrt().recip(); |t| t.square()?.offset(-1.0)?.rsqrt();
    /// Inverse of the hyperbolic tangent; not a number beyond ±1.
    atanh() |x| x.atanh(); |s| (1.0 - s * s).recip(); |t| t.square()?.rsub(1.0)?.reciprocal();
    /// x / (1 + |x|) (torch.nn.Softsign).
    softsign() |x| x / (1.0 + x.abs()); |s| (1.0 + s.abs()).powi(-2);
        |t| t.abs()?.offset(1.0)?.reciprocal()?.square();
    /// x − tanh(x) (torch.nn.Tanhshrink).
    tanh_shrink() |x| x - x.tanh(); |s| s.tanh().powi(2); |t| t.tanh()?.square();
    /// x where |x| exceeds `lambda`, else 0 (torch.nn.Hardshrink, which has 0.5).
    hard_shrink(lambda) |x| if x.abs() <= lambda { 0.0 } else { x }; |s| f64::from(s.abs() > lambda);
        |t| ones_where(&t.detach().abs()?.gt_scalar(lambda)?, t);
    /// x moved towards 0 by `lambda`, and 0 where |x| is at most that (torch.nn.Softshrink, which has 0.5).
    soft_shrink(lambda) |x| if x.abs() <= lambda { 0.0 } else { x - lambda.copysign(x) };
        |s| f64::from(s.abs() > lambda);
        |t| ones_where(&t.detach().abs()?.gt_scalar(lambda)?, t);
    /// x where it exceeds `limit`, elsewhere `other` (torch.nn.Threshold).
    threshold(limit, other) |x| if x <= limit { other } else { x }; |s| f64::from(s > limit);
        |t| ones_where(&t.gt_scalar(limit)?, t);
}

/// The powers of one number; [`Tensor::pow_scalar`] has vectors for the usual ones.
static POWER: Row = Row {
    name: "pow",
    value: |[exponent, _], x| x.powf(exponent),
    slope: |[exponent, _], x| if exponent == 0.0 { 0.0 } else { exponent * x.powf(exponent - 1.0) },
    graph: |[exponent, _], t| match exponent {
        0.0 => zeros(t),
        _ => t.pow_scalar(exponent - 1.0)?.scale(exponent),
    },
};

impl Tensor {
    /// This tensor to the power of `exponent`; not a number for a negative base and an exponent that is not
    /// whole.
    pub fn pow_scalar(&self, exponent: f64) -> Result<Tensor> {
        use super::unary::{Affine, Reciprocal, Rsqrt, Sqrt, Square};
        match exponent {
            1.0 => apply_unary("pow", Affine { factor: 1.0, offset: 0.0 }, self),
            2.0 => apply_unary("pow", Square {}, self),
            0.5 => apply_unary("pow", Sqrt {}, self),
            -0.5 => apply_unary("pow", Rsqrt {}, self),
            -1.0 => apply_unary("pow", Reciprocal {}, self),
            _ => apply_unary("pow", Rare(&POWER, [exponent, 0.0]), self),
        }
    }
}

/// A row of the table of functions of two numbers.
struct PairRow {
    name: &'static str,
    value: fn(a: f64, b: f64) -> f64,
    /// The gradient of input `i` with ops, from the operands and the gradient of the output.
    grad: fn(i: usize, a: &Tensor, b: &Tensor, g: &Tensor) -> Result<Tensor>,
}

/// A row as a function.
struct RarePair(&'static PairRow);

impl fmt::Debug for RarePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl Pair for RarePair {
    fn saves(&self) -> u32 {
        0b11
    }

    fn value(&self, cpu: &Cpu, a: &View, b: &View, out: &mut ViewMut) -> Result<()> {
        ops::real!(self.0.name, a.dtype, T => {
            cpu::zip_by::<T, T>(cpu, a, b, out.slice()?, &|a, b, out| {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = (self.0.value)(a.at(i).to_f64(), b.at(i).to_f64()) as T;
                }
            })
        })
    }

    fn cuda(&self) -> &'static str {
        self.0.name
    }

    fn grad(&self, i: usize, x: Operands, g: &Tensor) -> Result<Tensor> {
        (self.0.grad)(i, x.get(0)?, x.get(1)?, g)
    }
}

/// Makes methods of rows: the value of two numbers, and the gradient of input `i` with ops.
macro_rules! pairs {
    ($($(#[$doc:meta])* $method:ident($other:ident) |$a:ident, $b:ident| $value:expr;
       |$i:ident, $x:ident, $y:ident, $g:ident| $grad:expr;)*) => {
        impl Tensor { $(
            $(#[$doc])*
            pub fn $method(&self, $other: &Tensor) -> Result<Tensor> {
                static ROW: PairRow = PairRow {
                    name: stringify!($method),
                    value: |$a, $b| $value,
                    grad: |$i, $x, $y, $g| $grad,
                };
                apply_binary(ROW.name, RarePair(&ROW), self, $other)
            }
        )* }
    };
}

pairs! {
    /// This tensor to the power of `exponent`, element by element; both operands broadcast. The gradient of
    /// an exponent is 0 where the base is 0 and the exponent is not negative.
    pow(exponent) |a, b| a.powf(b); |i, a, b, g| power_gradient(i, a, b, g);
    /// What is left of this tensor when whole multiples of `divisor` are taken away: of the divisor's sign
    /// (torch.remainder); both operands broadcast.
    remainder(divisor)
        |a, b| { let r = a % b; if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r } };
        |i, a, b, g| if i == 0 { Ok(g.clone()) } else { g.mul(&a.detach().div(&b.detach())?.floor()?)?.neg() };
    /// The angle of the point (`x`, this tensor), in [−π, π]; both operands broadcast.
    atan2(x) |a, b| a.atan2(b);
        |i, a, b, g| {
            let size = a.square()?.add(&b.square()?)?;
            if i == 0 { g.mul(b)?.div(&size) } else { g.mul(a)?.div(&size)?.neg() }
        };
    /// ln(e^a + e^b) without overflow (torch.logaddexp); both operands broadcast.
    logaddexp(other)
        |a, b| if a == b { a + LN_2 } else { a.max(b) + (-(a - b).abs()).exp().ln_1p() };
        |i, a, b, g| { let d = a.sub(b)?; g.mul(&if i == 0 { d } else { d.neg()? }.sigmoid()?) };
}

fn power_gradient(i: usize, base: &Tensor, exponent: &Tensor, g: &Tensor) -> Result<Tensor> {
    if i == 0 {
        let slope = exponent.mul(&base.pow(&exponent.offset(-1.0)?)?)?;
        return g.mul(&slope.masked_fill(&exponent.eq_scalar(0.0)?, 0.0)?);
    }
    // 0 · ln 0 counts as 0; the base is replaced there, so that the graph holds no infinity.
    let none = base.eq_scalar(0.0)?.logical_and(&exponent.ge_scalar(0.0)?)?;
    let logarithm = base.masked_fill(&none, 1.0)?.log()?;
    g.mul(&base.pow(exponent)?)?.mul(&logarithm)
}
