//! Recurrent layers, attention and embeddings: PyTorch's values and names, lengths, dropout, and a few steps of training.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{cases, device, numbers, value, weight};
use phalanx_host::rng::Key;
use phalanx_host::{Arena, Cpu, Isa};
use phalanx_nn::{
    Builder, Forward, ModelConfig, MultiheadAttention, Norms, Params, Recurrent, RecurrentConfig, Sight,
    build,
};
use phalanx_tensor::{Cell, Device, Tensor};
use serde_json::Value;

struct Net<L> {
    layer: L,
    params: Params,
    norms: Norms,
    device: Device,
}

impl<L> Net<L> {
    fn new(device: Device, make: impl FnOnce(&mut Builder) -> L) -> Self {
        let mut b = Builder::new();
        let layer = make(&mut b);
        let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
        params.initialise(3).unwrap();
        Net { layer, params, norms, device }
    }

    fn cx(&self, training: bool) -> Forward<'_> {
        let all = 0..self.params.len() as u32;
        Forward::new(&self.params, &self.norms, &self.device, training, all, Key::new(5))
    }
}

fn close(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (i, (&g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(g) - w).abs() < 1e-5 * scale, "{what}: element {i} is {g}, must be {w}");
    }
}

/// Input `k` of a case.
fn filled(k: usize, shape: &[usize], device: &Device) -> Tensor {
    let data: Vec<f32> = (0..shape.iter().product()).map(|i| value(k, i) as f32).collect();
    Tensor::from_slice(&data, shape, device).unwrap()
}

/// Σ weight(i) · t[i].
fn project(t: &Tensor) -> Tensor {
    let w: Vec<f32> = (0..t.shape().numel()).map(|i| weight(i) as f32).collect();
    t.mul(&Tensor::from_slice(&w, t.shape(), t.device()).unwrap()).unwrap().sum_all().unwrap()
}

fn sizes(v: &Value) -> Vec<usize> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
}

#[test]
fn layers_have_the_names_the_order_and_the_values_of_pytorch() {
    for case in cases("recurrent") {
        let (op, p) = (case["op"].as_str().unwrap(), &case["params"]);
        let cell = match op {
            "RNN" => Cell::Tanh,
            "LSTM" => Cell::Lstm,
            _ => Cell::Gru,
        };
        let shapes: Vec<Vec<usize>> = case["inputs"].as_array().unwrap().iter().map(sizes).collect();
        let config = RecurrentConfig {
            layers: p["layers"].as_u64().unwrap() as usize,
            bidirectional: p["bidirectional"] == true,
            ..RecurrentConfig::new(p["hidden"].as_u64().unwrap() as usize)
        };
        let net = Net::new(device(), |b| Recurrent::build(b, shapes[0][1..].into(), cell, config).unwrap().0);
        let names: Vec<&str> = net.params.ids().map(|id| net.params.spec(id).name.as_str()).collect();
        let wanted: Vec<&str> = p["names"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        assert_eq!(names, wanted, "{op}");
        for (k, id) in (1..).zip(net.params.ids()) {
            let values = filled(k, &shapes[k], &net.device).to_vec::<f32>().unwrap();
            net.params.import(id, &shapes[k], &values).unwrap();
        }

        let x = filled(0, &shapes[0], &net.device);
        let first = 1 + wanted.len();
        let start: Vec<Tensor> = (first..shapes.len()).map(|k| filled(k, &shapes[k], &net.device)).collect();
        let lengths: Vec<i64> = sizes(&p["lengths"]).into_iter().map(|l| l as i64).collect();
        let lengths = Tensor::from_slice(&lengths, [lengths.len()], &net.device).unwrap();
        let cx = net.cx(true);
        let made = net.layer.run(&cx, &x, Some(&start), Some(&lengths)).unwrap();
        let outputs = case["outputs"].as_array().unwrap();
        close(op, &made.outputs.to_vec::<f32>().unwrap(), &numbers(&outputs[0]));
        for (state, want) in made.states.iter().zip(&outputs[1..]) {
            close(op, &state.to_vec::<f32>().unwrap(), &numbers(want));
        }
        assert_eq!(made.states.len(), outputs.len() - 1);
        // One number a gradient, as in the file.
        let all = project(&made.outputs).gradients().unwrap();
        let got: Vec<f32> = net
            .params
            .ids()
            .map(|id| project(all.get(&cx.param(id)).unwrap()).item().unwrap() as f32)
            .collect();
        close(op, &got, &numbers(&case["gradients"]));
    }
}

#[test]
fn attention_in_heads_is_that_of_pytorch() {
    for case in cases("multihead") {
        let shapes: Vec<Vec<usize>> = case["inputs"].as_array().unwrap().iter().map(sizes).collect();
        let heads = case["params"]["heads"].as_u64().unwrap() as usize;
        let net = Net::new(device(), |b| MultiheadAttention::build(b, shapes[0][2], heads, 0.5).unwrap());
        let names: Vec<&str> = net.params.ids().map(|id| net.params.spec(id).name.as_str()).collect();
        assert_eq!(names, ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]);
        for (k, id) in (3..).zip(net.params.ids()) {
            let values = filled(k, &shapes[k], &net.device).to_vec::<f32>().unwrap();
            net.params.import(id, &shapes[k], &values).unwrap();
        }
        let x = [0, 1, 2].map(|k| filled(k, &shapes[k], &net.device).leaf());
        // PyTorch's mask says which keys are hidden.
        let hidden = case["params"]["hidden"].as_array();
        let seen = hidden.map(|h| h.iter().map(|v| u8::from(v == 0)).collect::<Vec<_>>());
        let seen = seen.map(|s| Tensor::from_slice(&s, &shapes[1][..2], &net.device).unwrap());
        let sight = Sight { keys: seen.as_ref(), ..Sight::default() };
        // Dropping is for training alone; the parameters' gradients are wanted all the same.
        let cx = net.cx(false);
        let y = net.layer.attend(&cx, x.each_ref(), &sight).unwrap();
        close("multihead", &y.to_vec::<f32>().unwrap(), &numbers(&case["outputs"][0]));
        let all = project(&y).gradients().unwrap();
        let parameters = net.params.ids().map(|id| cx.param(id));
        for (k, t) in x.iter().cloned().chain(parameters).enumerate() {
            let got = all.get(&t).unwrap().to_vec::<f32>().unwrap();
            close(&format!("gradient {k}"), &got, &numbers(&case["gradients"][k]));
        }
        // All that a query may look at, told twice.
        let [n, l, s] = [shapes[0][0], shapes[0][1], shapes[1][1]];
        let ones = |shape: &[usize]| Tensor::full(1u8, shape, &net.device).unwrap();
        let (keys, pairs) = (ones(&[n, s]), ones(&[l, s]));
        let both = Sight { keys: Some(&keys), pairs: Some(&pairs), causal: false };
        let run = |sight: &Sight| {
            net.layer.attend(&net.cx(false), x.each_ref(), sight).unwrap().to_vec::<f32>().unwrap()
        };
        assert_eq!(run(&both), run(&Sight::default()));
        assert_ne!(run(&Sight { causal: true, ..Sight::default() }), run(&Sight::default()));
    }
    let refused = MultiheadAttention::build(&mut Builder::new(), 6, 4, 0.0).unwrap_err();
    assert!(refused.to_string().contains("among 4 heads"), "{refused}");
}

#[test]
fn dropout_is_between_layers_in_training_alone() {
    let config = RecurrentConfig { layers: 2, dropout: 0.5, ..RecurrentConfig::new(6) };
    let net = Net::new(device(), |b| Recurrent::build(b, [4, 3].into(), Cell::Gru, config).unwrap().0);
    let x = filled(0, &[2, 4, 3], &net.device);
    let run = |training: bool| net.layer.run(&net.cx(training), &x, None, None).unwrap();
    let outputs = |training| run(training).outputs.to_vec::<f32>().unwrap();
    assert_eq!(outputs(true), outputs(true), "one key gives one mask");
    assert_ne!(outputs(true), outputs(false));
    // The first layer's states know nothing of it.
    let first = |training| run(training).states[0].slice(0, 0, 1).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(first(true), first(false));
}

/// Losses of a few steps of plain gradient descent on a fixed batch, and the parameters' bits at the end.
fn train(rows: &str, x: &Tensor, classes: usize, threads: usize) -> (Vec<f64>, Vec<u32>) {
    let config: ModelConfig = toml::from_str(&format!("layers = [{rows}]")).unwrap();
    let device = Device::cpu(Cpu::new(Isa::detect(), threads).unwrap());
    let shape = x.shape();
    let net = Net::new(device, |b| build(&config, [shape[1], shape[2], shape[3]], classes, b).unwrap());
    let x = Tensor::from_slice(&x.to_vec::<f32>().unwrap(), shape, &net.device).unwrap();
    let labels: Vec<i64> = (0..shape[0]).map(|i| (i % classes) as i64).collect();
    let labels = Tensor::from_slice(&labels, [shape[0]], &net.device).unwrap();
    let mut losses = Vec::new();
    for _ in 0..8 {
        let cx = net.cx(true);
        let loss = net.layer.forward(&cx, &x).unwrap().cross_entropy(&labels, None).unwrap();
        losses.push(loss.item().unwrap());
        let all = loss.gradients().unwrap();
        let steps: Vec<(std::ops::Range<usize>, Vec<f32>)> = net
            .params
            .ids()
            .map(|id| (net.params.range(id), all.get(&cx.param(id)).unwrap().to_vec().unwrap()))
            .collect();
        for (range, g) in steps {
            let mut bytes = net.params.arena().write(range.start * 4..range.end * 4).unwrap();
            bytes.as_mut_slice::<f32>().unwrap().iter_mut().zip(g).for_each(|(p, g)| *p -= 0.05 * g);
        }
    }
    let bits = net.params.ids().flat_map(|id| {
        let values: Vec<f32> = net.params.tensor(id, &net.device).to_vec().unwrap();
        values.into_iter().map(f32::to_bits)
    });
    (losses, bits.collect())
}

#[test]
fn rows_of_models_train_with_the_same_bits_on_any_number_of_threads() {
    let pixels = filled(0, &[6, 5, 4, 1], &device());
    // Whole numbers from 0 to 3.
    let tokens = pixels.offset(0.75).unwrap().scale(2.2).unwrap();
    for (rows, x) in [
        (r#"{ type = "recurrent", cell = "lstm", hidden = 7, last = true }, { type = "linear" }"#, &pixels),
        (
            r#"{ type = "recurrent", cell = "gru", hidden = 5, layers = 2, bidirectional = true, last = true }, { type = "linear" }"#,
            &pixels,
        ),
        (
            r#"{ type = "recurrent", cell = "rnn", hidden = 6, bias = false }, { type = "flatten" }, { type = "linear" }"#,
            &pixels,
        ),
        (
            r#"{ type = "recurrent", cell = "rnn-relu", hidden = 6, last = true }, { type = "linear" }"#,
            &pixels,
        ),
        (
            r#"{ type = "embedding", count = 4, size = 3, padding = 0 }, { type = "recurrent", cell = "lstm", hidden = 6, dropout = 0.2, layers = 2 },
               { type = "recurrent", cell = "lstm", hidden = 4, last = true }, { type = "linear" }"#,
            &tokens,
        ),
    ] {
        let (losses, bits) = train(rows, x, 3, 1);
        assert!(losses[7] < losses[0], "{rows}: {losses:?}");
        for threads in [2, 3] {
            assert!(
                train(rows, x, 3, threads) == (losses.clone(), bits.clone()),
                "{rows} on {threads} threads"
            );
        }
    }
}
