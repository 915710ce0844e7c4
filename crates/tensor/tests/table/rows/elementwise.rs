//! Functions of one, two or three elements.

use phalanx_tensor::{DType, Tensor};

use crate::naive as n;
use crate::row::{Array, Row, input, mask, positive, row};

/// Shapes that fill no vector, one, several, and more than one task.
const FLAT: [&[usize]; 4] = [&[], &[1], &[3, 7], &[5, 3301]];

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    macro_rules! unary {
        ($($method:ident $name:literal $input:ident |$x:ident| $value:expr;)*) => { $(
            for shape in FLAT {
                let row = row($name, vec![$input(shape)], |x| x[0].$method(), |x| n::map(&x[0], |$x| $value));
                rows.push(if shape.is_empty() { row } else { row.batch(&[0]) }.second());
            }
        )* };
    }
    unary! {
        neg "neg" input |x| -x;
        exp "exp" input |x| x.exp();
        log "log" positive |x| x.ln();
        sqrt "sqrt" positive |x| x.sqrt();
        square "square" input |x| x * x;
        sigmoid "sigmoid" input |x| 1.0 / (1.0 + (-x).exp());
        tanh "tanh" input |x| x.tanh();
        relu "relu" input |x| x.max(0.0);
        step "step" input |x| f64::from(u8::from(x > 0.0));
        abs "abs" input |x| x.abs();
        rsqrt "rsqrt" positive |x| 1.0 / x.sqrt();
        reciprocal "reciprocal" positive |x| 1.0 / x;
        expm1 "expm1" input |x| x.exp_m1();
        log1p "log1p" input |x| x.ln_1p();
        erf "erf" input |x| n::erf(x);
        gaussian "gaussian" input |x| (-x * x).exp();
        gelu "gelu" input |x| x * 0.5 * (1.0 + n::erf(x / 2f64.sqrt()));
        gelu_tanh "gelu_tanh" input
            |x| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
        silu "silu" input |x| x / (1.0 + (-x).exp());
        mish "mish" input |x| x * x.exp().ln_1p().tanh();
        hard_sigmoid "hard_sigmoid" input |x| ((x + 3.0) / 6.0).clamp(0.0, 1.0);
        hard_swish "hard_swish" input |x| x * ((x + 3.0) / 6.0).clamp(0.0, 1.0);
        sin "sin" input |x| x.sin();
    }
    macro_rules! with_constants {
        ($($name:literal |$t:ident| $run:expr, |$x:ident| $value:expr;)*) => { $(
            for shape in FLAT {
                let run = |x: &[Tensor]| { let $t = &x[0]; $run };
                rows.push(row($name, vec![input(shape)], run, move |x| n::map(&x[0], |$x| $value)).second());
            }
        )* };
    }
    let elu = |x: f64, alpha: f64| if x > 0.0 { x } else { alpha * x.exp_m1() };
    with_constants! {
        "affine" |t| t.scale(-2.5), |x| -2.5 * x;
        "affine" |t| t.offset(0.75), |x| x + 0.75;
        "affine" |t| t.rsub(0.75), |x| 0.75 - x;
        "clamp" |t| t.clamp(Some(-0.3), Some(0.4)), |x| x.clamp(-0.3, 0.4);
        "clamp" |t| t.clamp(None, Some(0.4)), |x| x.min(0.4);
        "hard_tanh" |t| t.hard_tanh(-0.5, 0.25), |x| x.clamp(-0.5, 0.25);
        "leaky_relu" |t| t.leaky_relu(0.2), |x| if x > 0.0 { x } else { 0.2 * x };
        "elu" |t| t.elu(0.7), |x| elu(x, 0.7);
        "celu" |t| t.celu(0.5), |x| if x > 0.0 { x } else { 0.5 * (x / 0.5).exp_m1() };
        "softplus" |t| t.softplus(2.0, 1.0), |x| if 2.0 * x > 1.0 { x } else { (2.0 * x).exp().ln_1p() / 2.0 };
        "log_sigmoid" |t| t.log_sigmoid(), |x| -(-x).exp().ln_1p();
        "pow" |t| t.pow_scalar(3.0), |x| x.powi(3);
        "soft_shrink" |t| t.soft_shrink(0.25), |x| if x.abs() > 0.25 { x - 0.25 * x.signum() } else { 0.0 };
    }
    for shape in FLAT {
        let run = |x: &[Tensor]| x[0].rdiv(2.0);
        rows.push(row("div", vec![positive(shape)], run, |x| n::map(&x[0], |x| 2.0 / x)).second());
    }
    let pairs: [(&[usize], &[usize]); 5] = [
        (&[5, 3301], &[5, 3301]),
        (&[4, 1, 3], &[2, 3]),
        (&[130, 200], &[200]),
        (&[130, 200], &[130, 1]),
        (&[], &[]),
    ];
    macro_rules! binary {
        ($($method:ident $name:literal |$x:ident, $y:ident| $value:expr;)*) => { $(
            for (a, b) in pairs {
                let inputs = vec![input(a), positive(b)];
                let row = row($name, inputs, |x| x[0].$method(&x[1]), |x| n::zip(&x[0], &x[1], |$x, $y| $value));
                let row = if a == b && !a.is_empty() { row.batch(&[0, 1]) } else { row };
                rows.push(row.second().refuses(&[&[3, 4], &[3]]).refuses(&[&[2], &[5, 3]]));
            }
        )* };
    }
    binary! {
        add "add" |x, y| x + y;
        sub "sub" |x, y| x - y;
        mul "mul" |x, y| x * y;
        div "div" |x, y| x / y;
        maximum "maximum" |x, y| x.max(y);
        minimum "minimum" |x, y| x.min(y);
        prelu "prelu" |x, y| if x > 0.0 { x } else { x * y };
        atan2 "atan2" |x, y| x.atan2(y);
        remainder "remainder" |x, y| x - y * (x / y).floor();
    }
    for (a, b) in pairs {
        let run = |x: &[Tensor]| x[0].pow(&x[1]);
        let row = row("pow", vec![positive(a), input(b)], run, |x| n::zip(&x[0], &x[1], f64::powf));
        rows.push(row.second().refuses(&[&[3, 4], &[3]]));
    }
    for (m, a, b) in [
        (&[3usize, 4][..], &[3usize, 4][..], &[4usize][..]),
        (&[6, 1], &[1, 5], &[]),
        (&[70, 90], &[70, 90], &[70, 90]),
    ] {
        let inputs = vec![mask(m), input(a), input(b)];
        let row = row("where", inputs, |x| x[0].select(&x[1], &x[2]), |x| n::choose(&x[0], &x[1], &x[2]));
        rows.push(row.second().refuses(&[&[3], &[2], &[2]]).refuses(&[&[2], &[2], &[3]]));
    }
    rows.extend(masks());
    for shape in [&[7usize][..], &[3, 0, 2], &[100, 30]] {
        let row = row("to", vec![input(shape)], |x| x[0].to(DType::F64), |x| x[0].clone());
        rows.push(row.batch(&[0]).any_type().second());
    }
    rows
}

/// Comparisons and logic.
fn masks() -> Vec<Row> {
    let mut rows = Vec::new();
    // Rounded, so that some are equal.
    let coarse = |t: &Tensor| if t.dtype().is_float() { t.scale(4.0)?.round() } else { Ok(t.clone()) };
    let rough = |x: f64| (4.0 * x).round_ties_even();
    let bit = |yes: bool| f64::from(u8::from(yes));
    macro_rules! comparison {
        ($($method:ident $scalar:ident $name:literal $op:tt;)*) => { $(
            for (a, b) in [(&[3usize, 7][..], &[3usize, 7][..]), (&[5, 1], &[4]), (&[140, 150], &[150])] {
                let run = move |x: &[Tensor]| coarse(&x[0])?.$method(&coarse(&x[1])?);
                let want = move |x: f64, y: f64| bit(rough(x) $op rough(y));
                let row = row($name, vec![input(a), input(b)], run, move |x| n::zip(&x[0], &x[1], want));
                rows.push(row.no_gradient().refuses(&[&[3], &[2]]));
            }
            let run = move |x: &[Tensor]| coarse(&x[0])?.$scalar(1.0);
            let want = move |x: f64| bit(rough(x) $op 1.0);
            rows.push(row($name, vec![input(&[6, 7])], run, move |x| n::map(&x[0], want)).no_gradient().any_type());
        )* };
    }
    comparison! {
        eq eq_scalar "eq" ==;
        ne ne_scalar "ne" !=;
        lt lt_scalar "lt" <;
        le le_scalar "le" <=;
        gt gt_scalar "gt" >;
        ge ge_scalar "ge" >=;
    }
    macro_rules! logic {
        ($($method:ident $name:literal |$x:ident, $y:ident| $value:expr;)*) => { $(
            for (a, b) in [(&[3usize, 7][..], &[3usize, 7][..]), (&[5, 1], &[4]), (&[140, 150], &[150])] {
                let want = move |x: f64, y: f64| { let ($x, $y) = (x != 0.0, y != 0.0); bit($value) };
                let row = row($name, vec![mask(a), mask(b)], |x| x[0].$method(&x[1]), move |x| n::zip(&x[0], &x[1], want));
                rows.push(row.no_gradient().refuses(&[&[3], &[2]]));
            }
        )* };
    }
    logic! {
        logical_and "logical_and" |x, y| x && y;
        logical_or "logical_or" |x, y| x || y;
        logical_xor "logical_xor" |x, y| x != y;
    }
    let not = row("logical_not", vec![mask(&[4, 9])], |x| x[0].logical_not(), |x| n::map(&x[0], |x| 1.0 - x));
    rows.push(not.no_gradient());
    for (name, run) in [
        ("isnan", Tensor::isnan as fn(&Tensor) -> phalanx_tensor::Result<Tensor>),
        ("isfinite", Tensor::isfinite),
        ("isinf", Tensor::isinf),
    ] {
        let want = move |x: &Array| n::map(x, |_| bit(name == "isfinite"));
        let row = row(name, vec![input(&[5, 3])], move |x| run(&x[0]), move |x| want(&x[0]));
        rows.push(row.no_gradient().any_type());
    }
    for (m, a) in [(&[3usize, 4][..], &[3usize, 4][..]), (&[6, 1], &[5]), (&[4], &[3, 4])] {
        let run = |x: &[Tensor]| x[1].masked_fill(&x[0], -2.0);
        let want = |x: &[Array]| n::choose(&x[0], &Array::new(&[], |_| -2.0), &x[1]);
        rows.push(row("where", vec![mask(m), input(a)], run, want).second().refuses(&[&[3], &[2]]));
    }
    rows
}
