//! Functions of one and two numbers.

use std::sync::Arc;

use phalanx_tensor::{Result, Tensor};
use serde_json::Value;

use crate::row::Row;

type One = fn(&Tensor, &[Option<f64>]) -> Result<Tensor>;
type Two = fn(&Tensor, &Tensor) -> Result<Tensor>;

/// Rows of the methods without constants.
macro_rules! plain {
    ($($method:ident)*) => { [$((stringify!($method), (|x, _| x.$method()) as One)),*] };
}

/// Rows of the methods with constants: name, the op's name, and the constants.
macro_rules! with {
    ($x:ident, $c:ident: $($method:ident $op:literal ($($constant:expr),*))*) => {
        [$((stringify!($method), $op, (|$x, $c| $x.$method($($constant),*)) as One)),*]
    };
}

/// The op's name and what runs it.
fn one(op: &str) -> Option<(&'static str, One)> {
    let plain = plain! {
        abs sign square relu exp expm1 exp2 sigmoid tanh sin cos tan asin acos atan sinh cosh asinh acosh atanh
        floor ceil round trunc fract erf gaussian gelu gelu_tanh silu mish relu6 selu softsign hard_sigmoid
        hard_swish log_sigmoid tanh_shrink log1p log2 log10 sqrt rsqrt reciprocal
    };
    let with = with! { x, c:
        leaky_relu "leaky_relu" (c[0].unwrap())
        elu "elu" (c[0].unwrap())
        celu "celu" (c[0].unwrap())
        softplus "softplus" (c[0].unwrap(), c[1].unwrap())
        hard_tanh "hard_tanh" (c[0].unwrap(), c[1].unwrap())
        hard_shrink "hard_shrink" (c[0].unwrap())
        soft_shrink "soft_shrink" (c[0].unwrap())
        threshold "threshold" (c[0].unwrap(), c[1].unwrap())
        clamp "clamp" (c[0], c[1])
        pow_scalar "pow" (c[0].unwrap())
    };
    let mut found = plain.iter().map(|&(name, run)| (name, name, run)).chain(with);
    found.find(|f| f.0 == op).map(|(_, name, run)| (name, run))
}

fn two(op: &str) -> Option<(&'static str, Two)> {
    let all: &[(_, Two)] = &[
        ("maximum", Tensor::maximum),
        ("minimum", Tensor::minimum),
        ("atan2", Tensor::atan2),
        ("remainder", Tensor::remainder),
        ("pow", Tensor::pow),
        ("prelu", Tensor::prelu),
        ("logaddexp", Tensor::logaddexp),
    ];
    all.iter().copied().find(|f| f.0 == op)
}

pub(super) fn fill(op: &str, p: &Value, row: &mut Row) {
    row.second = true;
    if let Some((name, run)) = two(op) {
        row.op = name;
        row.run = Arc::new(move |x| Ok(vec![run(&x[0], &x[1])?]));
    } else if let Some((name, run)) = one(op) {
        let scale = p["scale"].as_f64().unwrap();
        let mut constants: Vec<_> =
            p["constants"].as_array().into_iter().flatten().map(Value::as_f64).collect();
        constants.resize(2, None);
        row.op = name;
        row.run = Arc::new(move |x| {
            // What is no number goes to the op itself, which must refuse it.
            let scaled = if x[0].dtype().is_float() { x[0].scale(scale)? } else { x[0].clone() };
            Ok(vec![run(&scaled, &constants)?])
        });
    }
}
