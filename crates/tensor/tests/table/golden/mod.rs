//! Rows from PyTorch's golden values (tests/golden); a file here for each subject under tests/golden/families.

/// Sets a row's op, whether its gradient has a gradient, and the one output.
macro_rules! runs {
    ($row:ident, $name:literal, second: $second:literal, |$x:ident| $body:expr) => {{
        ($row.op, $row.second) = ($name, $second);
        $row.run = std::sync::Arc::new(move |$x: &[phalanx_tensor::Tensor]| Ok(vec![$body]));
    }};
}

mod convs;
mod functions;
mod indexing;
mod losses;
mod network;
mod norms;
mod padding;
mod pooling;
mod reductions;
mod resampling;
mod sequences;

use std::sync::Arc;

use phalanx_tensor::{Conv, Tensor, concat};
use serde_json::Value;

use crate::row::{In, Kind, Row, Want};

/// Gives a row its op's name and what runs it, from the case's op and params; leaves the name empty when it
/// does not know the op.
type Fill = fn(&str, &Value, &mut Row);

/// The golden files and who reads them.
const FAMILIES: &[(&str, Fill)] = &[
    ("attention", sequences::fill),
    ("elementwise", basic),
    ("reduce", basic),
    ("matmul", basic),
    ("conv2d", basic),
    ("max_pool2d", basic),
    ("batch_norm", basic),
    ("loss", basic),
    ("shape", basic),
    ("convs", convs::fill),
    ("indexing", indexing::fill),
    ("padding", padding::fill),
    ("pooling", pooling::fill),
    ("resampling", resampling::fill),
    ("response", pooling::fill),
    ("functions", functions::fill),
    ("pairs", functions::fill),
    ("reductions", reductions::fill),
    ("along", reductions::fill),
    ("losses", losses::fill),
    ("norms", norms::fill),
    ("sequences", sequences::fill),
];

fn cases(family: &str) -> Vec<Value> {
    // On a machine with a GPU the program may come without the checkout.
    let here = || concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden").to_owned();
    let path = format!("{}/{family}.json", std::env::var("PHALANX_GOLDEN").unwrap_or_else(|_| here()));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut file: Value = serde_json::from_str(&text).unwrap();
    match file["cases"].take() {
        Value::Array(cases) => cases,
        other => panic!("{path}: cases are {other}"),
    }
}

fn ints<T: TryFrom<i64>>(v: &Value) -> Vec<T> {
    let one = |v: &Value| T::try_from(v.as_i64().unwrap()).ok().unwrap();
    v.as_array().unwrap_or(&vec![]).iter().map(one).collect()
}

fn pair(v: &Value) -> [usize; 2] {
    ints(v).try_into().unwrap()
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn row_of(family: &str, case: &Value) -> Row {
    let (op, p) = (case["op"].as_str().unwrap(), case["params"].clone());
    let shapes: Vec<Vec<usize>> = case["inputs"].as_array().unwrap().iter().map(ints).collect();
    let wanted = case["gradients"].as_array().unwrap();
    let named = |k: usize| ["positive", "unit", "signs"].into_iter().find(|n| ints(&p[*n]).contains(&k));
    let kind = |k: usize| match (named(k), wanted[k].is_null()) {
        (Some("positive"), false) => Kind::Positive,
        (Some("positive"), true) => Kind::FrozenPositive,
        (Some("unit"), false) => Kind::Unit,
        (Some("unit"), true) => Kind::FrozenUnit,
        (Some(_), _) => Kind::Signs,
        (None, false) => Kind::Value,
        (None, true) => Kind::Frozen,
    };
    let inputs = shapes.iter().enumerate().map(|(k, s)| In { shape: s.clone(), kind: kind(k) }).collect();
    let gradients = wanted.iter().map(|g| (!g.is_null()).then(|| floats(g))).collect();
    let outputs = case["outputs"].as_array().unwrap().iter().map(floats).collect();
    let mut row = Row {
        op: "",
        run: Arc::new(|_| Ok(vec![])),
        inputs,
        want: Want::Golden { outputs, gradients },
        batch: vec![],
        second: false,
        any_type: false,
        smooth: true,
        slopes: true,
        bad: vec![],
    };
    let (_, fill) = FAMILIES.iter().find(|f| f.0 == family).unwrap();
    fill(op, &p, &mut row);
    assert!(!row.op.is_empty(), "{family} has an op {op} that this test does not know");
    row
}

/// The families written in make.py itself.
fn basic(op: &str, p: &Value, row: &mut Row) {
    let (axes, keep) = (ints::<usize>(&p["axes"]), p["keepdim"].as_bool().unwrap_or(false));
    let axis = p["axis"].as_u64().unwrap_or(0) as usize;
    let (index, labels) = (ints::<i64>(&p["index"]), ints::<i64>(&p["labels"]));
    let eps = p["eps"].as_f64().unwrap_or(0.0);
    match op {
        "add" => runs!(row, "add", second: true, |x| x[0].add(&x[1])?),
        "sub" => runs!(row, "sub", second: true, |x| x[0].sub(&x[1])?),
        "mul" => runs!(row, "mul", second: true, |x| x[0].mul(&x[1])?),
        "div" => runs!(row, "div", second: true, |x| x[0].div(&x[1])?),
        "neg" => runs!(row, "neg", second: true, |x| x[0].neg()?),
        "exp" => runs!(row, "exp", second: true, |x| x[0].exp()?),
        "log" => runs!(row, "log", second: true, |x| x[0].log()?),
        "sqrt" => runs!(row, "sqrt", second: true, |x| x[0].sqrt()?),
        "sigmoid" => runs!(row, "sigmoid", second: true, |x| x[0].sigmoid()?),
        "tanh" => runs!(row, "tanh", second: true, |x| x[0].tanh()?),
        "relu" => runs!(row, "relu", second: true, |x| x[0].relu()?),
        "where" => {
            let bits: Vec<u8> = ints(&p["condition"]);
            let shape: Vec<usize> = ints(&p["condition_shape"]);
            runs!(row, "where", second: true, |x| {
                Tensor::from_slice(&bits, &shape[..], x[0].device())?.select(&x[0], &x[1])?
            });
        }
        "sum" => runs!(row, "sum", second: true, |x| x[0].sum(&axes, keep)?),
        "mean" => runs!(row, "mean", second: true, |x| x[0].mean(&axes, keep)?),
        "max" => runs!(row, "max", second: true, |x| x[0].max(&axes, keep)?),
        "matmul" => {
            let [a, b] = ["transpose_a", "transpose_b"].map(|k| p[k].as_bool().unwrap());
            let turn = |t: &Tensor, yes: bool| if yes { t.t() } else { Ok(t.clone()) };
            runs!(row, "matmul", second: true, |x| turn(&x[0], a)?.matmul(&turn(&x[1], b)?)?);
        }
        "conv2d" => {
            let [stride, padding] = ["stride", "padding"].map(|k| pair(&p[k]));
            let conv = Conv::new().stride(&stride).padding(&padding);
            runs!(row, "conv2d", second: true, |x| x[0].conv2d(&x[1], x.get(2), &conv)?);
        }
        "max_pool2d" => {
            let [kernel, stride, padding] = ["kernel", "stride", "padding"].map(|k| pair(&p[k]));
            runs!(row, "max_pool2d", second: false, |x| x[0].max_pool2d(kernel, stride, padding)?);
        }
        "batch_norm" if p["training"] == true => {
            row.op = "batch_norm_train";
            row.run = Arc::new(move |x| {
                let b = x[0].batch_norm_train(&x[1], &x[2], eps)?;
                Ok(vec![b.y, b.mean, b.variance])
            });
        }
        "batch_norm" => runs!(row, "batch_norm_eval", second: false, |x| {
            x[0].batch_norm_eval(&x[1], &x[2], &x[3], &x[4], eps)?
        }),
        "log_softmax" => runs!(row, "log_softmax", second: true, |x| x[0].log_softmax()?),
        "cross_entropy" => runs!(row, "cross_entropy", second: false, |x| {
            let labels = Tensor::from_slice(&labels, [labels.len()], x[0].device())?;
            x[0].cross_entropy(&labels, Some(&x[1]))?
        }),
        "mse" => runs!(row, "mse", second: true, |x| x[0].mse(&x[1], None)?),
        "slice" => {
            let ranges: Vec<Vec<usize>> = p["ranges"].as_array().unwrap().iter().map(ints).collect();
            runs!(row, "slice", second: true, |x| {
                let cut = |t: Tensor, (a, r): (usize, &Vec<usize>)| t.slice(a, r[0], r[1] - r[0]);
                ranges.iter().enumerate().try_fold(x[0].clone(), cut)?
            });
            row.any_type = true;
        }
        "permute" => {
            runs!(row, "permute", second: true, |x| x[0].permute(&axes)?);
            row.any_type = true;
        }
        "concat" => runs!(row, "concat", second: true, |x| concat(&x.iter().collect::<Vec<_>>(), axis)?),
        "gather" => {
            runs!(row, "index_select", second: true, |x| {
                x[0].index_select(axis, &Tensor::from_slice(&index, [index.len()], x[0].device())?)?
            });
            row.any_type = true;
        }
        "gather_along" => {
            let shape: Vec<usize> = ints(&p["shape"]);
            runs!(row, "gather", second: true, |x| {
                x[0].gather(axis, &Tensor::from_slice(&index, &shape[..], x[0].device())?)?
            });
            row.any_type = true;
        }
        _ => {}
    }
}

pub(crate) fn rows() -> Vec<Row> {
    FAMILIES.iter().flat_map(|f| cases(f.0).into_iter().map(|c| row_of(f.0, &c))).collect()
}
