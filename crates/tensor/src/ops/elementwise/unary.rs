//! Functions of one number on vectors: those that networks spend time in. What is rarer belongs to `functions`.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use phalanx_host::simd::Simd;

use super::math::{self, Math, abs, c, sigmoid};
use super::{From, UnaryRule, apply_unary, cuda};
use crate::{Error, Result, Tensor};

/// Makes rules of rows: the fields, what the slope is computed from, the value and the slope on vectors (`p`
/// is the rule), and the slope written with ops: none where it is constant in pieces. A row that names a method
/// gets it.
macro_rules! unary {
    ($($(#[$doc:meta])* $rule:ident { $($field:ident: $type:ty),* } $(=> $method:ident)? saves $from:ident
       |$p:ident, $x:ident: $e:ident, $v:ident| $value:expr; |$s:ident| $slope:expr; |$t:ident| $graph:expr;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub(super) struct $rule { $(pub(super) $field: $type),* }
            impl UnaryRule for $rule {
                const SAVES: From = From::$from;
                fn cuda(self) -> cuda::Name {
                    let constants: &[f64] = &[$(self.$field),*];
                    let at = |i| constants.get(i).copied().unwrap_or(0.0);
                    (stringify!($rule), [at(0), at(1), at(2)])
                }
                #[inline(always)]
                fn value<$e: Math, $v: Simd<$e>>(self, $x: $v) -> $v { let $p = self; $value }
                #[inline(always)]
                fn slope<$e: Math, $v: Simd<$e>>(self, $s: $v) -> $v { let $p = self; $slope }
                fn slope_graph(self, $t: &Tensor) -> Option<Result<Tensor>> { let $p = self; let _ = $p; $graph }
            }
            method! { $rule [$(#[$doc])*] $($method)? }
        )*
    };
}

/// A row's method, if it has one.
macro_rules! method {
    ($rule:ident [$(#[$doc:meta])*]) => {};
    ($rule:ident [$(#[$doc:meta])*] $method:ident) => {
        impl Tensor {
            $(#[$doc])*
            pub fn $method(&self) -> Result<Tensor> {
                apply_unary(stringify!($method), $rule {}, self)
            }
        }
    };
}

/// The larger and the smaller of a lane and a constant; not a number stays one.
#[inline(always)]
fn at_least<E: Math, V: Simd<E>>(low: f64, x: V) -> V {
    c::<E, V>(low).max(x)
}
#[inline(always)]
fn at_most<E: Math, V: Simd<E>>(high: f64, x: V) -> V {
    c::<E, V>(high).min(x)
}

/// `inside` in the open interval, else 0.
#[inline(always)]
fn between<E: Math, V: Simd<E>>(x: V, low: f64, high: f64, inside: V) -> V {
    let zero = c::<E, V>(0.0);
    x.if_gt(c::<E, V>(low), c::<E, V>(high).if_gt(x, inside, zero), zero)
}

/// √(2/π) and the cube's factor in the approximation of GELU by tanh.
const GELU: [f64; 2] = [FRAC_2_SQRT_PI * FRAC_1_SQRT_2, 0.044_715];

unary! {
    /// −x
    Neg {} => neg saves Input
        |_p, x: E, V| c::<E, V>(0.0).sub(x); |_s| c::<E, V>(-1.0); |_t| None;
    /// `factor · x + offset`
    Affine { factor: f64, offset: f64 } saves Input
        |p, x: E, V| x.mul_add(c::<E, V>(p.factor), c::<E, V>(p.offset)); |_s| c::<E, V>(p.factor); |_t| None;
    /// |x|; the slope at 0 is 0.
    Abs {} => abs saves Input
        |_p, x: E, V| abs::<E, V>(x);
        |s| { let zero = c::<E, V>(0.0); s.if_gt(zero, c::<E, V>(1.0), zero.if_gt(s, c::<E, V>(-1.0), zero)) };
        |_t| None;
    /// x², whose gradient reads x once.
    Square {} => square saves Input
        |_p, x: E, V| x.mul(x); |s| s.add(s); |t| Some(t.scale(2.0));
    /// Square root.
    Sqrt {} => sqrt saves Output
        |_p, x: E, V| x.sqrt(); |s| c::<E, V>(0.5).div(s); |t| Some(t.rdiv(0.5));
    /// 1 / √x
    Rsqrt {} => rsqrt saves Output
        |_p, x: E, V| c::<E, V>(1.0).div(x.sqrt()); |s| s.mul(s).mul(s).mul(c::<E, V>(-0.5));
        |t| Some(t.square().and_then(|s| s.mul(t)?.scale(-0.5)));
    /// 1 / x
    Reciprocal {} => reciprocal saves Output
        |_p, x: E, V| c::<E, V>(1.0).div(x); |s| c::<E, V>(0.0).sub(s.mul(s));
        |t| Some(t.square().and_then(|s| s.neg()));
    /// e^x
    Exp {} => exp saves Output
        |_p, x: E, V| E::exp(x); |s| s; |t| Some(Ok(t.clone()));
    /// e^x − 1 without cancellation around 0.
    Expm1 {} => expm1 saves Output
        |_p, x: E, V| E::expm1(x); |s| s.add(c::<E, V>(1.0)); |t| Some(t.offset(1.0));
    /// Natural logarithm: −∞ at 0, not a number below.
    Log {} => log saves Input
        |_p, x: E, V| E::log(x); |s| c::<E, V>(1.0).div(s); |t| Some(t.reciprocal());
    /// ln(1 + x) without cancellation around 0.
    Log1p {} => log1p saves Input
        |_p, x: E, V| E::log1p(x); |s| c::<E, V>(1.0).div(s.add(c::<E, V>(1.0)));
        |t| Some(t.offset(1.0).and_then(|u| u.reciprocal()));
    /// 1 / (1 + e^−x)
    Sigmoid {} => sigmoid saves Output
        |_p, x: E, V| sigmoid::<E, V>(x); |s| s.mul(c::<E, V>(1.0).sub(s));
        |t| Some(t.rsub(1.0).and_then(|u| u.mul(t)));
    /// Hyperbolic tangent.
    Tanh {} => tanh saves Output
        |_p, x: E, V| E::tanh(x); |s| c::<E, V>(1.0).sub(s.mul(s));
        |t| Some(t.square().and_then(|s| s.rsub(1.0)));
    /// The error function, 2/√π ∫₀ˣ e^(−t²) dt.
    Erf {} => erf saves Input
        |_p, x: E, V| math::erf::<E, V>(x);
        |s| math::gaussian::<E, V>(s).mul(c::<E, V>(FRAC_2_SQRT_PI));
        |t| Some(t.gaussian().and_then(|y| y.scale(FRAC_2_SQRT_PI)));
    /// The Gaussian e^(−x²).
    Gaussian {} => gaussian saves Input
        |_p, x: E, V| math::gaussian::<E, V>(x);
        |s| math::gaussian::<E, V>(s).mul(s.mul(c::<E, V>(-2.0)));
        |t| Some(t.gaussian().and_then(|y| y.mul(t)?.scale(-2.0)));
    /// max(x, 0); not a number stays one. The slope at 0 is 0.
    Relu {} => relu saves Output
        |_p, x: E, V| at_least::<E, V>(0.0, x); |s| s.if_gt(c::<E, V>(0.0), c::<E, V>(1.0), c::<E, V>(0.0));
        |_t| None;
    /// 1 where x > 0, else 0; its slope is 0 everywhere.
    Step {} => step saves Input
        |_p, x: E, V| x.if_gt(c::<E, V>(0.0), c::<E, V>(1.0), c::<E, V>(0.0)); |_s| c::<E, V>(0.0); |_t| None;
    /// x, but at least `low` and at most `high`.
    Clamp { low: f64, high: f64 } saves Input
        |p, x: E, V| at_most::<E, V>(p.high, at_least::<E, V>(p.low, x));
        |s| between::<E, V>(s, p.low, p.high, c::<E, V>(1.0)); |_t| None;
    /// x where it is positive, elsewhere `slope · x`.
    LeakyRelu { slope: f64 } saves Input
        |p, x: E, V| x.if_gt(c::<E, V>(0.0), x, x.mul(c::<E, V>(p.slope)));
        |s| s.if_gt(c::<E, V>(0.0), c::<E, V>(1.0), c::<E, V>(p.slope)); |_t| None;
    /// `scale · x` where x is positive, elsewhere `below · (e^(rate · x) − 1)`: ELU and its kin.
    Elu { scale: f64, below: f64, rate: f64 } saves Input
        |p, x: E, V| {
            let curve = E::expm1(x.mul(c::<E, V>(p.rate))).mul(c::<E, V>(p.below));
            x.if_gt(c::<E, V>(0.0), x.mul(c::<E, V>(p.scale)), curve)
        };
        |s| {
            let curve = E::exp(s.mul(c::<E, V>(p.rate))).mul(c::<E, V>(p.below * p.rate));
            s.if_gt(c::<E, V>(0.0), c::<E, V>(p.scale), curve)
        };
        |t| Some(elu_slope(p, t));
    /// x · Φ(x), where Φ is the distribution function of the standard normal distribution.
    Gelu {} saves Input
        |_p, x: E, V| x.mul(math::normal::<E, V>(x));
        |s| {
            let density = math::bell::<E, V>(s);
            s.mul(density).mul_add(c::<E, V>(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2), math::normal::<E, V>(s))
        };
        |t| Some(t.scale(FRAC_1_SQRT_2).and_then(|u| {
            let density = u.gaussian()?.scale(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2)?;
            u.erf()?.affine(0.5, 0.5)?.add(&t.mul(&density)?)
        }));
    /// x · ½ (1 + tanh(√(2/π) (x + 0.044715 x³)))
    GeluTanh {} saves Input
        |_p, x: E, V| x.mul(sigmoid::<E, V>(gelu_inner::<E, V>(x)));
        |s| {
            let y = sigmoid::<E, V>(gelu_inner::<E, V>(s));
            let inner = s.mul(s).mul_add(c::<E, V>(6.0 * GELU[0] * GELU[1]), c::<E, V>(2.0 * GELU[0]));
            s.mul(inner).mul(y.mul(c::<E, V>(1.0).sub(y))).add(y)
        };
        |t| Some(t.square().and_then(|s| {
            let y = s.affine(2.0 * GELU[0] * GELU[1], 2.0 * GELU[0])?.mul(t)?.sigmoid()?;
            let inner = s.affine(6.0 * GELU[0] * GELU[1], 2.0 * GELU[0])?.mul(t)?;
            inner.mul(&y)?.mul(&y.rsub(1.0)?)?.add(&y)
        }));
    /// x / (1 + e^−x), also called swish (torch.nn.SiLU).
    Silu {} => silu saves Input
        |_p, x: E, V| x.mul(sigmoid::<E, V>(x));
        |s| {
            let (y, one) = (sigmoid::<E, V>(s), c::<E, V>(1.0));
            y.mul(s.mul(one.sub(y)).add(one))
        };
        |t| Some(t.sigmoid().and_then(|y| y.mul(&t.mul(&y.rsub(1.0)?)?.offset(1.0)?)));
    /// x · tanh(ln(1 + e^x)) (torch.nn.Mish).
    Mish {} => mish saves Input
        |_p, x: E, V| x.mul(tanh_softplus::<E, V>(x));
        |s| {
            let (y, one) = (tanh_softplus::<E, V>(s), c::<E, V>(1.0));
            s.mul(sigmoid::<E, V>(s)).mul(one.sub(y.mul(y))).add(y)
        };
        |t| Some(t.softplus(1.0, f64::INFINITY).and_then(|u| {
            let y = u.tanh()?;
            t.mul(&t.sigmoid()?)?.mul(&y.square()?.rsub(1.0)?)?.add(&y)
        }));
    /// ln(1 + e^(beta · x)) / beta, and x itself where beta · x exceeds the threshold.
    Softplus { beta: f64, threshold: f64 } saves Input
        |p, x: E, V| {
            let z = x.mul(c::<E, V>(p.beta));
            let curve = E::log1p(E::exp(c::<E, V>(0.0).sub(abs::<E, V>(z)))).add(at_least::<E, V>(0.0, z));
            z.if_gt(c::<E, V>(p.threshold), x, curve.mul(c::<E, V>(1.0 / p.beta)))
        };
        |s| {
            let z = s.mul(c::<E, V>(p.beta));
            z.if_gt(c::<E, V>(p.threshold), c::<E, V>(1.0), sigmoid::<E, V>(z))
        };
        |t| Some(t.scale(p.beta).and_then(|z| {
            let one = Tensor::scalar(1.0, t.dtype(), t.device())?;
            z.gt_scalar(p.threshold)?.select(&one, &z.sigmoid()?)
        }));
    /// x/6 + ½, but at least 0 and at most 1 (torch.nn.Hardsigmoid); the slope at ±3 is 0.
    HardSigmoid {} => hard_sigmoid saves Input
        |_p, x: E, V| at_most::<E, V>(1.0, at_least::<E, V>(0.0, x.mul(c::<E, V>(1.0 / 6.0)).add(c::<E, V>(0.5))));
        |s| between::<E, V>(s, -3.0, 3.0, c::<E, V>(1.0 / 6.0)); |_t| None;
    /// x times its [`Tensor::hard_sigmoid`] (torch.nn.Hardswish); the slope is 0 at −3 and 1 at 3.
    HardSwish {} => hard_swish saves Input
        |_p, x: E, V| x.mul(HardSigmoid {}.value::<E, V>(x));
        |s| {
            let middle = s.mul(c::<E, V>(1.0 / 3.0)).add(c::<E, V>(0.5));
            let three = c::<E, V>(3.0);
            let middle = three.if_gt(s, middle, c::<E, V>(1.0));
            s.if_gt(c::<E, V>(-3.0), middle, c::<E, V>(0.0))
        };
        |t| Some(t.abs().and_then(|a| a.lt_scalar(3.0)?.select(&t.affine(1.0 / 3.0, 0.5)?, &t.detach().step()?)));
}

/// √(8/π) (x + 0.044715 x³): ½ (1 + tanh(z/2)) is the logistic function of z, which has no cancellation.
#[inline(always)]
fn gelu_inner<E: Math, V: Simd<E>>(x: V) -> V {
    x.mul(x).mul_add(c::<E, V>(2.0 * GELU[0] * GELU[1]), c::<E, V>(2.0 * GELU[0])).mul(x)
}

/// tanh(ln(1 + e^x)) = n / (n + 2) with n = e^x (e^x + 2).
#[inline(always)]
fn tanh_softplus<E: Math, V: Simd<E>>(x: V) -> V {
    let two = c::<E, V>(2.0);
    // From 20 on it is 1 in any precision, and e^x would overflow.
    let e = E::exp(at_most::<E, V>(20.0, x));
    let n = e.mul(e.add(two));
    n.div(n.add(two))
}

/// The slope of [`Elu`] with ops. The curve is cut off where it does not count, so that no infinity from there
/// reaches the gradient.
fn elu_slope(p: Elu, t: &Tensor) -> Result<Tensor> {
    let line = Tensor::scalar(p.scale, t.dtype(), t.device())?;
    let curve = t.clamp(None, Some(0.0))?.scale(p.rate)?.exp()?.scale(p.below * p.rate)?;
    t.gt_scalar(0.0)?.select(&line, &curve)
}

/// λ and α of the self-normalising networks of Klambauer et al., 2017.
const SELU: [f64; 2] = [1.050_700_987_355_480_5, 1.673_263_242_354_377_2];

impl Tensor {
    /// `factor · x + offset` with constants.
    pub fn affine(&self, factor: f64, offset: f64) -> Result<Tensor> {
        apply_unary("affine", Affine { factor, offset }, self)
    }

    /// This tensor times a constant.
    pub fn scale(&self, factor: f64) -> Result<Tensor> {
        self.affine(factor, 0.0)
    }

    /// This tensor plus a constant.
    pub fn offset(&self, offset: f64) -> Result<Tensor> {
        self.affine(1.0, offset)
    }

    /// A constant minus this tensor.
    pub fn rsub(&self, from: f64) -> Result<Tensor> {
        self.affine(-1.0, from)
    }

    /// A constant divided by this tensor.
    pub fn rdiv(&self, dividend: f64) -> Result<Tensor> {
        if !self.dtype().is_float() {
            let want = "a float".to_owned();
            return Err(Error::DTypes { op: "div", operand: 0, got: self.dtype(), want });
        }
        Tensor::scalar(dividend, self.dtype(), self.device())?.div(self)
    }

    /// At least `low` and at most `high`, where they are given; `high` wins when they cross. Not a number
    /// stays one. The slope is 1 between the two and 0 elsewhere, also at the bounds.
    pub fn clamp(&self, low: Option<f64>, high: Option<f64>) -> Result<Tensor> {
        self.clamped("clamp", low.unwrap_or(f64::NEG_INFINITY), high.unwrap_or(f64::INFINITY))
    }

    fn clamped(&self, name: &'static str, low: f64, high: f64) -> Result<Tensor> {
        apply_unary(name, Clamp { low, high }, self)
    }

    /// At least 0 and at most 6 (torch.nn.ReLU6).
    pub fn relu6(&self) -> Result<Tensor> {
        self.clamped("relu6", 0.0, 6.0)
    }

    /// At least `low` and at most `high` (torch.nn.Hardtanh, which has −1 and 1); the slope at both is 0.
    pub fn hard_tanh(&self, low: f64, high: f64) -> Result<Tensor> {
        self.clamped("hard_tanh", low, high)
    }

    /// x where it is positive, elsewhere `slope · x` (torch.nn.LeakyReLU, which has 0.01); the slope at 0 is
    /// `slope`.
    pub fn leaky_relu(&self, slope: f64) -> Result<Tensor> {
        apply_unary("leaky_relu", LeakyRelu { slope }, self)
    }

    /// x where it is positive, elsewhere `alpha · (e^x − 1)` (torch.nn.ELU, which has 1).
    pub fn elu(&self, alpha: f64) -> Result<Tensor> {
        apply_unary("elu", Elu { scale: 1.0, below: alpha, rate: 1.0 }, self)
    }

    /// [`Tensor::elu`] with the constants of self-normalising networks (Klambauer et al., 2017;
    /// torch.nn.SELU).
    pub fn selu(&self) -> Result<Tensor> {
        let [scale, alpha] = SELU;
        apply_unary("selu", Elu { scale, below: scale * alpha, rate: 1.0 }, self)
    }

    /// x where it is positive, elsewhere `alpha · (e^(x/alpha) − 1)` (torch.nn.CELU, which has 1).
    pub fn celu(&self, alpha: f64) -> Result<Tensor> {
        apply_unary("celu", Elu { scale: 1.0, below: alpha, rate: 1.0 / alpha }, self)
    }

    /// x · Φ(x), where Φ is the distribution function of the standard normal distribution (torch.nn.GELU).
    pub fn gelu(&self) -> Result<Tensor> {
        apply_unary("gelu", Gelu {}, self)
    }

    /// The approximation of [`Tensor::gelu`] by tanh: x · ½ (1 + tanh(√(2/π) (x + 0.044715 x³))).
    pub fn gelu_tanh(&self) -> Result<Tensor> {
        apply_unary("gelu_tanh", GeluTanh {}, self)
    }

    /// ln(1 + e^(beta · x)) / beta, and x itself where beta · x exceeds `threshold` (torch.nn.Softplus, which
    /// has 1 and 20).
    pub fn softplus(&self, beta: f64, threshold: f64) -> Result<Tensor> {
        apply_unary("softplus", Softplus { beta, threshold }, self)
    }

    /// The logarithm of the logistic function, −ln(1 + e^−x) (torch.nn.LogSigmoid).
    pub fn log_sigmoid(&self) -> Result<Tensor> {
        apply_unary("log_sigmoid", Softplus { beta: -1.0, threshold: f64::INFINITY }, self)
    }
}
