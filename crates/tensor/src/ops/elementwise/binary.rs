//! Functions of two numbers on vectors; both operands broadcast.

use phalanx_host::simd::Simd;

use super::math::{Math, c};
use super::{BinaryRule, Operands, apply_binary};
use crate::{Result, Tensor};

macro_rules! binary {
    ($($(#[$doc:meta])* $method:ident($other:ident) $rule:ident saves $saves:literal
       { |$a:ident: $e:ident, $b:ident: $v:ident| $value:expr; |$i:ident, $x:ident, $g:ident| $grad:expr })*) => {
        $(
            #[derive(Debug, Clone, Copy)]
            struct $rule;
            impl BinaryRule for $rule {
                const SAVES: u32 = $saves;
                const CUDA: &'static str = stringify!($rule);
                #[inline(always)]
                fn value<$e: Math, $v: Simd<$e>>(self, $a: $v, $b: $v) -> $v { $value }
                fn grad(self, $i: usize, $x: Operands, $g: &Tensor) -> Result<Tensor> { $grad }
            }
            impl Tensor {
                $(#[$doc])*
                pub fn $method(&self, $other: &Tensor) -> Result<Tensor> {
                    apply_binary(stringify!($method), $rule, self, $other)
                }
            }
        )*
    };
}

binary! {
    /// Sum; both operands broadcast.
    add(other) Add saves 0 { |a: E, b: V| a.add(b); |_i, _x, g| Ok(g.clone()) }
    /// Difference; both operands broadcast.
    sub(other) Sub saves 0 { |a: E, b: V| a.sub(b); |i, _x, g| if i == 0 { Ok(g.clone()) } else { g.neg() } }
    /// Product; both operands broadcast.
    mul(other) Mul saves 3 { |a: E, b: V| a.mul(b); |i, x, g| g.mul(x.get(1 - i)?) }
    /// Quotient; both operands broadcast.
    div(other) Div saves 3 {
        |a: E, b: V| a.div(b);
        |i, x, g| match i {
            0 => g.div(x.get(1)?),
            _ => g.mul(x.get(0)?)?.div(&x.get(1)?.square()?)?.neg(),
        }
    }
    /// The larger of two elements, not a number where either is none; both operands broadcast. Equal
    /// elements get half of the gradient each, as in torch.maximum.
    maximum(other) Maximum saves 3 {
        // A comparison with not a number gives its second operand: b where b is none.
        |a: E, b: V| unless_nan(a, a.max(b));
        |i, x, g| chosen(x.get(i)?, x.get(1 - i)?, g)
    }
    /// The smaller of two elements, not a number where either is none; both operands broadcast. Equal
    /// elements get half of the gradient each, as in torch.minimum.
    minimum(other) Minimum saves 3 {
        |a: E, b: V| unless_nan(a, a.min(b));
        |i, x, g| chosen(x.get(1 - i)?, x.get(i)?, g)
    }
    /// This tensor where it is positive, elsewhere `slope` times it; `slope` broadcasts: one number, or
    /// one for each channel (the last axis). torch.nn.PReLU; at 0 the slope is `slope`.
    prelu(slope) Prelu saves 3 {
        |a: E, b: V| { let zero = c::<E, V>(0.0); a.if_gt(zero, a, a.mul(b)) };
        |i, x, g| {
            let (x, slope) = (x.get(0)?, x.get(1)?);
            let (positive, zero) = (x.gt_scalar(0.0)?, Tensor::scalar(0.0, x.dtype(), x.device())?);
            match i {
                0 => positive.select(g, &g.mul(slope)?),
                _ => positive.select(&zero, &g.mul(x)?),
            }
        }
    }
}

/// `other`, but not a number where `a` is none.
#[inline(always)]
fn unless_nan<E: Math, V: Simd<E>>(a: V, other: V) -> V {
    // All numbers but −∞ are above −∞, and that is below ∞.
    let [low, high] = [f64::NEG_INFINITY, f64::INFINITY].map(c::<E, V>);
    a.if_gt(low, other, high.if_gt(a, other, a))
}

/// The gradient `g` where `a` is larger than `b`, half of it where they are equal, all of it where either is
/// not a number; of the shape that the three broadcast to.
fn chosen(a: &Tensor, b: &Tensor, g: &Tensor) -> Result<Tensor> {
    let zero = Tensor::scalar(0.0, g.dtype(), g.device())?;
    let half = a.eq(b)?.select(&g.scale(0.5)?, g)?;
    a.lt(b)?.select(&zero, &half)
}
