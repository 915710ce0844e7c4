//! What layers do with a context: freezing, sharing, random keys, statistics, the order of Flatten.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::HashMap;

use common::device;
use phalanx_host::Arena;
use phalanx_host::rng::Key;
use phalanx_nn::{
    Builder, ConvConfig, ConvKind, Convolution, Forward, Layer, ModelConfig, NormValues, Norms, ParamId,
    Params, build,
};
use phalanx_tensor::{Device, Tensor};

struct Net {
    layer: Box<dyn Layer>,
    params: Params,
    norms: Norms,
    device: Device,
}

impl Net {
    fn new(config: &str, input: [usize; 3], classes: usize) -> Net {
        let config: ModelConfig = toml::from_str(config).unwrap();
        let mut b = Builder::new();
        let layer = build(&config, input, classes, &mut b).unwrap();
        let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
        params.initialise(3).unwrap();
        Net { layer, params, norms, device: device() }
    }

    fn cx(&self, training: bool, trainable: std::ops::Range<u32>, key: u64) -> Forward<'_> {
        Forward::new(&self.params, &self.norms, &self.device, training, trainable, Key::new(key))
    }

    fn input(&self, shape: &[usize], key: u64) -> Tensor {
        let mut s = Key::new(key).derive(77, 0).stream();
        let x: Vec<f32> = (0..shape.iter().product()).map(|_| s.normal() as f32 + 0.5).collect();
        Tensor::from_slice(&x, shape, &self.device).unwrap()
    }
}

const ROWS: &str = "layers = [{ type = \"flatten\" }, { type = \"linear\", out = 6 }, { type = \"tanh\" },
    { type = \"linear\" }]";

#[test]
fn frozen_parameters_are_constants_and_trainable_ones_are_shared_leaves() {
    let net = Net::new(ROWS, [2, 2, 1], 3);
    let x = net.input(&[4, 2, 2, 1], 1);
    let cx = net.cx(true, 2..4, 0);
    let loss = net.layer.forward(&cx, &x).unwrap().sum_all().unwrap();
    let gradients = loss.gradients().unwrap();
    for id in net.params.ids() {
        let t = cx.param(id);
        assert_eq!(t.leaf_id().map(|l| l.0), (id.0 >= 2).then_some(u64::from(id.0)));
        assert_eq!(gradients.get(&t).is_some(), id.0 >= 2, "{}", net.params.spec(id).name);
    }
    let frozen = net.cx(true, 0..0, 0);
    assert!(!net.layer.forward(&frozen, &x).unwrap().requires_grad());
    // Two uses of one weight sum their gradients.
    let again = || net.layer.forward(&cx, &x).unwrap().sum_all().unwrap();
    let twice = again().add(&again()).unwrap();
    let both = twice.gradients().unwrap();
    let of = |g: &phalanx_tensor::Gradients| g.get(&cx.param(ParamId(2))).unwrap().to_vec::<f32>().unwrap();
    for (two, one) in of(&both).iter().zip(of(&gradients)) {
        assert!((two - 2.0 * one).abs() < 1e-4 * (1.0 + one.abs()), "{two} {one}");
    }
}

#[test]
fn flatten_emits_channels_first() {
    let net = Net::new("layers = [{ type = \"flatten\" }]", [2, 3, 2], 12);
    let x: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let x = Tensor::from_slice(&x, [2, 2, 3, 2], &net.device).unwrap();
    let y = net.layer.forward(&net.cx(false, 0..0, 0), &x).unwrap();
    assert_eq!(y.shape()[..], [2, 12]);
    let want = [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11].map(|i| i as f32);
    let got = y.to_vec::<f32>().unwrap();
    assert_eq!(got[..12], want);
    assert_eq!(got[12..], want.map(|i| i + 12.0));
}

#[test]
fn dropout_draws_by_key_and_layer_and_only_in_training() {
    let text = "layers = [{ type = \"flatten\" }, { type = \"dropout\", p = 0.5 }]";
    let net = Net::new(text, [1, 100, 1], 100);
    let x = Tensor::full(1.0f32, [20, 1, 100, 1], &net.device).unwrap();
    let run = |cx: &Forward| net.layer.forward(cx, &x).unwrap().to_vec::<f32>().unwrap();
    let cx = net.cx(true, 0..0, 1);
    let (first, second) = (run(&cx), run(&cx));
    assert_ne!(first, second, "two layers of one context draw apart");
    assert_eq!(first, run(&net.cx(true, 0..0, 1)), "one key gives one stream");
    assert_ne!(first, run(&net.cx(true, 0..0, 2)));
    let kept = first.iter().filter(|&&v| v == 2.0).count();
    assert!((900..1100).contains(&kept) && first.iter().all(|&v| v == 0.0 || v == 2.0), "{kept}");
    assert!(run(&net.cx(false, 0..0, 1)).iter().all(|&v| v == 1.0));
    assert!(run(&cx.inference()).iter().all(|&v| v == 1.0));
    let keys: std::collections::HashSet<_> = (0..100).map(|_| cx.next_key()).collect();
    assert_eq!(keys.len(), 100);
}

const NORM: &str = "layers = [{ type = \"batch-norm\" }, { type = \"global-avg-pool\" }]";

fn running(net: &Net) -> Vec<f32> {
    let float = |v| match v {
        NormValues::Float(v) => v,
        NormValues::Count(n) => vec![n as f32],
    };
    net.norms.export().into_iter().flat_map(|(_, _, v)| float(v)).collect()
}

#[test]
fn shards_of_any_cut_fold_to_the_running_statistics_of_the_whole_batch() {
    let mut results: Vec<Vec<f32>> = Vec::new();
    for cut in [&[6usize][..], &[2, 4], &[1, 3, 2], &[3, 0, 3]] {
        let mut net = Net::new(NORM, [2, 2, 3], 3);
        let x = net.input(&[6, 2, 2, 3], 9);
        let mut sums = vec![0.0; net.norms.statistics_len()];
        let mut at = 0;
        for &n in cut.iter().filter(|&&n| n > 0) {
            let cx = net.cx(true, 0..2, 0);
            net.layer.forward(&cx, &x.slice(0, at, n).unwrap()).unwrap();
            net.norms.contribution(&cx.take_statistics(), &mut sums).unwrap();
            assert!(cx.take_statistics().is_empty(), "they are taken once");
            at += n;
        }
        net.norms.fold(&sums).unwrap();
        // A step in which no shard used the norm changes nothing, its count included.
        net.norms.fold(&vec![0.0; sums.len()]).unwrap();
        results.push(running(&net));
        assert!(net.norms.fold(&sums[1..]).is_err() && net.norms.contribution(&[], &mut []).is_err());

        // PyTorch's rule from the definition: momentum 0.1, unbiased variance.
        let data = x.to_vec::<f32>().unwrap();
        for c in 0..3 {
            let channel: Vec<f64> = data.iter().skip(c).step_by(3).map(|&v| f64::from(v)).collect();
            let n = channel.len() as f64;
            let mean = channel.iter().sum::<f64>() / n;
            let variance = channel.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let got = &results[results.len() - 1];
            assert!((f64::from(got[c]) - 0.1 * mean).abs() < 1e-6, "{cut:?}: {got:?}");
            assert!((f64::from(got[3 + c]) - 0.9 - 0.1 * variance).abs() < 1e-6, "{cut:?}: {got:?}");
            assert_eq!(got[6], 1.0);
        }
    }
}

#[test]
fn norms_use_the_batch_in_training_and_the_running_statistics_in_evaluation() {
    let mut net = Net::new(NORM, [2, 2, 3], 3);
    let x = net.input(&[6, 2, 2, 3], 4);
    let run = |net: &Net, training| {
        let cx = net.cx(training, 0..2, 0);
        let y = net.layer.forward(&cx, &x).unwrap();
        let mean = y.mean(&[0], false).unwrap().to_vec::<f32>().unwrap();
        (mean, cx.take_statistics())
    };
    let (mean, records) = run(&net, true);
    assert!(mean.iter().all(|m| m.abs() < 1e-5) && records.len() == 1 && records[0].count == 24);
    // The first running statistics are 0 and 1: evaluation leaves the images as they are.
    let (mean, none) = run(&net, false);
    let plain = x.mean(&[0, 1, 2], false).unwrap().to_vec::<f32>().unwrap();
    assert!(none.is_empty() && mean.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-4));
    let mut sums = vec![0.0; net.norms.statistics_len()];
    net.norms.contribution(&records, &mut sums).unwrap();
    for _ in 0..200 {
        net.norms.fold(&sums).unwrap();
    }
    assert!(run(&net, false).0.iter().all(|m| m.abs() < 1e-4), "they have followed the batch");
}

#[test]
fn named_models_take_the_samples_that_they_say() {
    for (name, input, parameters) in [
        ("perceptron", [28, 28, 1], 7850),
        ("mlp", [28, 28, 1], 407_050),
        ("lenet5", [28, 28, 1], 61_706),
        ("lenet5", [32, 32, 3], 83_126),
        ("lenet5", [12, 12, 1], 6 * 26 + 16 * 151 + 120 * 17 + 84 * 121 + 850),
        ("digits-cnn", [8, 8, 1], 9 * (16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 256 * 10 + 10),
    ] {
        let net = Net::new(&format!("name = \"{name}\""), input, 10);
        assert_eq!(net.params.count(), parameters, "{name}");
        let x = net.input(&[3, input[0], input[1], input[2]], 5);
        for training in [true, false] {
            let y = net.layer.forward(&net.cx(training, 0..net.params.len() as u32, 0), &x).unwrap();
            assert_eq!(y.shape()[..], [3, 10], "{name}");
            assert!(y.to_vec::<f32>().unwrap().iter().all(|v| v.is_finite()));
        }
    }
    let mut b = Builder::new();
    let small = build(&ModelConfig::named("lenet5"), [8, 8, 1], 10, &mut b).unwrap_err().to_string();
    assert!(small.contains("[8,8,1]") && small.contains("12 by 12"), "{small}");
}

#[test]
fn convolutions_over_any_number_of_axes_give_the_shapes_that_they_say() {
    for (kind, input, options) in [
        (ConvKind::Plain(1), &[9, 4][..], "stride = 2, padding = [[0, 1]], groups = 2"),
        (ConvKind::Plain(2), &[9, 8, 4], "dilation = [2, 1], padding = \"same\", groups = 4"),
        (ConvKind::Plain(3), &[3, 5, 4, 4], "stride = [1, 2, 1], padding = 1"),
        (ConvKind::Transposed(1), &[5, 4], "stride = 3, output_padding = 2"),
        (ConvKind::Transposed(2), &[4, 3, 4], "stride = 2, padding = [1, 0], groups = 2"),
        (ConvKind::Transposed(3), &[2, 3, 1, 4], "stride = 2, padding = 1, output_padding = [1, 0, 1]"),
    ] {
        let text = format!("c = {{ out = 8, kernel = 3, {options} }}");
        let config = toml::from_str::<HashMap<String, ConvConfig>>(&text).unwrap().remove("c").unwrap();
        let again: ConvConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        let mut b = Builder::new();
        let (layer, shape) = Convolution::build(&mut b, input.into(), kind, &config).unwrap();
        let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
        params.initialise(3).unwrap();
        let net = Net { layer: Box::new(layer), params, norms, device: device() };
        let x = net.input(&[&[2], input].concat(), 1);
        let y = net.layer.forward(&net.cx(true, 0..2, 0), &x).unwrap();
        assert_eq!(y.shape()[..], [&[2], &shape[..]].concat(), "{kind:?}");
        let loss = y.mul(&y).unwrap().sum_all().unwrap();
        assert!(loss.gradients().is_ok() && loss.item().unwrap() > 0.0);
    }
}

#[test]
fn a_batch_of_another_shape_names_the_layer_the_op_and_the_shapes() {
    let rows =
        "layers = [{ type = \"conv\", out = 2, kernel = 3 }, { type = \"relu\" }, { type = \"flatten\" },
        { type = \"linear\" }]";
    let net = Net::new(rows, [5, 5, 3], 4);
    let say = |shape: &[usize]| {
        let e = net.layer.forward(&net.cx(false, 0..0, 0), &net.input(shape, 1)).unwrap_err();
        assert!(!e.is_usage());
        e.to_string()
    };
    let e = say(&[2, 5, 5, 4]);
    assert!(e.starts_with("layer layers.0, given [2,5,5,4]: conv2d") && e.contains("[2,3,3,3]"), "{e}");
    let e = say(&[2, 6, 5, 3]);
    assert!(e.starts_with("layer layers.3, given [2,24]: linear") && e.contains("[4,18]"), "{e}");
    // Inside a block of a named model.
    let net = Net::new("name = \"resnet20\"", [32, 32, 3], 4);
    let e = net.layer.forward(&net.cx(false, 0..0, 0), &net.input(&[1, 32, 32, 1], 1)).unwrap_err();
    assert!(e.to_string().starts_with("layer conv1, given [1,32,32,1]"), "{e}");
}
