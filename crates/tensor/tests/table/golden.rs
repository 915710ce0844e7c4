//! Rows from PyTorch's golden values (tests/golden), and whole networks.

use std::sync::Arc;

use phalanx_host::Isa;
use phalanx_tensor::{DType, Tensor, concat};
use serde_json::Value;

use crate::row::{Array, In, Kind, Row, Want, close, device, doubles, gradients, real, value, weight};

fn cases(family: &str) -> Vec<Value> {
    let path = format!("{}/../../tests/golden/{family}.json", env!("CARGO_MANIFEST_DIR"));
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

fn row_of(case: &Value) -> Row {
    let (op, p) = (case["op"].as_str().unwrap(), case["params"].clone());
    let positive: Vec<usize> = ints(&p["positive"]);
    let shapes: Vec<Vec<usize>> = case["inputs"].as_array().unwrap().iter().map(ints).collect();
    let wanted = case["gradients"].as_array().unwrap();
    let kind = |k: usize| match (positive.contains(&k), wanted[k].is_null()) {
        (false, false) => Kind::Value,
        (true, false) => Kind::Positive,
        (false, true) => Kind::Frozen,
        (true, true) => Kind::FrozenPositive,
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
        bad: vec![],
    };
    macro_rules! runs {
        ($name:literal, second: $second:literal, |$x:ident| $body:expr) => {{
            (row.op, row.second) = ($name, $second);
            row.run = Arc::new(move |$x: &[Tensor]| Ok(vec![$body]));
        }};
    }
    let (axes, keep) = (ints::<usize>(&p["axes"]), p["keepdim"].as_bool().unwrap_or(false));
    let axis = p["axis"].as_u64().unwrap_or(0) as usize;
    let (index, labels) = (ints::<i64>(&p["index"]), ints::<i64>(&p["labels"]));
    let eps = p["eps"].as_f64().unwrap_or(0.0);
    match op {
        "add" => runs!("add", second: true, |x| x[0].add(&x[1])?),
        "sub" => runs!("sub", second: true, |x| x[0].sub(&x[1])?),
        "mul" => runs!("mul", second: true, |x| x[0].mul(&x[1])?),
        "div" => runs!("div", second: true, |x| x[0].div(&x[1])?),
        "neg" => runs!("neg", second: true, |x| x[0].neg()?),
        "exp" => runs!("exp", second: true, |x| x[0].exp()?),
        "log" => runs!("log", second: true, |x| x[0].log()?),
        "sqrt" => runs!("sqrt", second: true, |x| x[0].sqrt()?),
        "sigmoid" => runs!("sigmoid", second: true, |x| x[0].sigmoid()?),
        "tanh" => runs!("tanh", second: true, |x| x[0].tanh()?),
        "relu" => runs!("relu", second: true, |x| x[0].relu()?),
        "where" => {
            let bits: Vec<u8> = ints(&p["condition"]);
            let shape: Vec<usize> = ints(&p["condition_shape"]);
            runs!("where", second: true, |x| {
                Tensor::from_slice(&bits, &shape[..], x[0].device())?.select(&x[0], &x[1])?
            });
        }
        "sum" => runs!("sum", second: true, |x| x[0].sum(&axes, keep)?),
        "mean" => runs!("mean", second: true, |x| x[0].mean(&axes, keep)?),
        "max" => runs!("max", second: false, |x| x[0].max(&axes, keep)?),
        "matmul" => {
            let [a, b] = ["transpose_a", "transpose_b"].map(|k| p[k].as_bool().unwrap());
            let turn = |t: &Tensor, yes: bool| if yes { t.t() } else { Ok(t.clone()) };
            runs!("matmul", second: true, |x| turn(&x[0], a)?.matmul(&turn(&x[1], b)?)?);
        }
        "conv2d" => {
            let (stride, padding) = (pair(&p["stride"]), pair(&p["padding"]));
            runs!("conv2d", second: false, |x| x[0].conv2d(&x[1], x.get(2), stride, padding)?);
        }
        "max_pool2d" => {
            let [kernel, stride, padding] = ["kernel", "stride", "padding"].map(|k| pair(&p[k]));
            runs!("max_pool2d", second: false, |x| x[0].max_pool2d(kernel, stride, padding)?);
        }
        "batch_norm" if p["training"] == true => {
            row.op = "batch_norm_train";
            row.run = Arc::new(move |x| {
                let b = x[0].batch_norm_train(&x[1], &x[2], eps)?;
                Ok(vec![b.y, b.mean, b.variance])
            });
        }
        "batch_norm" => runs!("batch_norm_eval", second: false, |x| {
            x[0].batch_norm_eval(&x[1], &x[2], &x[3], &x[4], eps)?
        }),
        "log_softmax" => runs!("log_softmax", second: true, |x| x[0].log_softmax()?),
        "cross_entropy" => runs!("cross_entropy", second: false, |x| {
            let labels = Tensor::from_slice(&labels, [labels.len()], x[0].device())?;
            x[0].cross_entropy(&labels, Some(&x[1]))?
        }),
        "mse" => runs!("mse", second: true, |x| x[0].mse(&x[1], None)?),
        "slice" => {
            let ranges: Vec<Vec<usize>> = p["ranges"].as_array().unwrap().iter().map(ints).collect();
            runs!("slice", second: true, |x| {
                let cut = |t: Tensor, (a, r): (usize, &Vec<usize>)| t.slice(a, r[0], r[1] - r[0]);
                ranges.iter().enumerate().try_fold(x[0].clone(), cut)?
            });
            row.any_type = true;
        }
        "permute" => {
            runs!("permute", second: true, |x| x[0].permute(&axes)?);
            row.any_type = true;
        }
        "concat" => runs!("concat", second: true, |x| concat(&x.iter().collect::<Vec<_>>(), axis)?),
        "gather" => runs!("index_select", second: true, |x| {
            x[0].index_select(axis, &Tensor::from_slice(&index, [index.len()], x[0].device())?)?
        }),
        "gather_along" => {
            let shape: Vec<usize> = ints(&p["shape"]);
            runs!("gather", second: true, |x| {
                x[0].gather(axis, &Tensor::from_slice(&index, &shape[..], x[0].device())?)?
            });
        }
        other => panic!("the golden files have an op {other} that this test does not know"),
    }
    row
}

pub(crate) fn rows() -> Vec<Row> {
    let families = ["elementwise", "reduce", "matmul", "conv2d", "max_pool2d", "batch_norm", "loss", "shape"];
    families.iter().flat_map(|f| cases(f)).map(|c| row_of(&c)).collect()
}

fn mlp(x: &Tensor, p: &[Tensor]) -> Tensor {
    let x = x.reshape(&[x.shape()[0], 784]).unwrap();
    x.linear(&p[0], Some(&p[1])).unwrap().relu().unwrap().linear(&p[2], Some(&p[3])).unwrap()
}

fn lenet5(x: &Tensor, p: &[Tensor]) -> Tensor {
    let stage = |x: &Tensor, i: usize, padding: [usize; 2]| {
        // torchvision's [O,I,KH,KW] as [O,KH,KW,I].
        let w = p[i].permute(&[0, 2, 3, 1]).unwrap();
        let y = x.conv2d(&w, Some(&p[i + 1]), [1, 1], padding).unwrap().relu().unwrap();
        y.max_pool2d([2, 2], [2, 2], [0, 0]).unwrap()
    };
    let x = stage(&stage(x, 0, [2, 2]), 2, [0, 0]);
    // The weights expect channels first.
    let x = x.permute(&[0, 3, 1, 2]).unwrap().reshape(&[x.shape()[0], 400]).unwrap();
    let x = x.linear(&p[4], Some(&p[5])).unwrap().relu().unwrap();
    let x = x.linear(&p[6], Some(&p[7])).unwrap().relu().unwrap();
    x.linear(&p[8], Some(&p[9])).unwrap()
}

#[test]
fn whole_networks_have_the_logits_losses_and_gradients_of_pytorch() {
    let device = device(Isa::detect(), 1);
    for case in cases("network") {
        let (name, p) = (case["op"].as_str().unwrap(), &case["params"]);
        let shapes: Vec<Vec<usize>> = case["inputs"].as_array().unwrap().iter().map(ints).collect();
        let scales = floats(&p["scales"]);
        let input = |(k, s): (usize, &Vec<usize>)| {
            let scaled = |i| if k == 0 { value(0, i) } else { (value(k, i) - 0.1) * scales[k - 1] };
            real(&Array::new(s, scaled), DType::F64, &device).leaf()
        };
        let x: Vec<Tensor> = shapes.iter().enumerate().map(input).collect();
        let net = if name == "mlp" { mlp } else { lenet5 };
        let logits = net(&x[0], &x[1..]);
        let labels: Vec<i64> = ints(&p["labels"]);
        let labels = Tensor::from_slice(&labels, [labels.len()], &device).unwrap();
        let loss = logits.cross_entropy(&labels, None).unwrap();
        close(name, &doubles(&logits), &floats(&case["outputs"][0]), 1e-11);
        close(
            name,
            &doubles(&loss),
            &[case["outputs"][1].as_f64().unwrap_or_else(|| floats(&case["outputs"][1])[0])],
            1e-11,
        );
        for (k, g) in gradients(&loss, &x).into_iter().enumerate() {
            let g = g.unwrap();
            let projected: f64 = g.iter().enumerate().map(|(i, g)| weight(i) * g).sum();
            let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
            let got = [projected, g.iter().sum(), norm];
            close(&format!("{name}: gradient {k}"), &got, &floats(&case["gradients"][k]), 1e-10);
        }
    }
}
