//! The networks of torchvision at a small size against PyTorch's values in double precision
//! (`tests/golden/families/networks.py`): logits, auxiliary logits, loss, every parameter's gradient, and the
//! running statistics after the batch.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{cases, device, numbers, value, weight};
use phalanx_host::Arena;
use phalanx_host::rng::Key;
use phalanx_nn::{Builder, Forward, ModelConfig, NormValues, Params, build};
use phalanx_tensor::Tensor;
use serde_json::Value;

/// Element `i` of tensor `k`: a hash of both, in [-1, 1).
fn noise(k: usize, i: usize) -> f64 {
    let (k, i) = (k as u64, i as u64);
    let mut h = (i.wrapping_mul(2_654_435_769).wrapping_add(k.wrapping_mul(2_246_822_519))) & 0xffff_ffff;
    h = ((h ^ (h >> 15)).wrapping_mul(2_246_822_519)) & 0xffff_ffff;
    h = ((h ^ (h >> 13)).wrapping_mul(3_266_489_917)) & 0xffff_ffff;
    h ^= h >> 16;
    h as f64 / 2f64.powi(31) - 1.0
}

/// How parameter `k` begins, in stored layout.
fn first(k: usize, name: &str, shape: &[usize]) -> Vec<f32> {
    let fan_in: usize = shape.iter().skip(1).product();
    let one = |i| match (shape.len() > 1, name.ends_with("weight")) {
        (true, _) => noise(k, i) * (6.0 / fan_in as f64).sqrt(),
        (false, true) => 1.0 + 0.25 * noise(k, i),
        (false, false) => 0.1 * noise(k, i),
    };
    (0..shape.iter().product()).map(|i| one(i) as f32).collect()
}

/// sum(weight(i) * x[i]) and sqrt(sum(x^2)).
fn summary(x: &[f64]) -> [f64; 2] {
    let projected = x.iter().enumerate().map(|(i, x)| weight(i) * x).sum();
    [projected, x.iter().map(|x| x * x).sum::<f64>().sqrt()]
}

fn doubles(t: &Tensor) -> Vec<f64> {
    t.detach().to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// Sets all parameters, in order of their names, and gives them in that order.
fn begin(params: &Params) -> Vec<phalanx_nn::ParamId> {
    let mut ids: Vec<_> = params.ids().collect();
    ids.sort_by_key(|&id| params.spec(id).name.clone());
    for (k, &id) in (1..).zip(&ids) {
        let shape = params.stored_shape(id);
        params.import(id, &shape, &first(k, &params.spec(id).name, &shape)).unwrap();
    }
    ids
}

/// How far single precision may be from double: outputs relative to their largest number, gradients to their norm.
/// Batch norms over the eight pixels that are left of two small images make rounding errors larger. PyTorch's own
/// errors in single precision, in this order: 1e-6 and 1e-6, 1e-5 and 7e-3, 3e-4 and 9e-3, 2e-5 and 6e-5, 2e-4 and
/// 3e-2, 2e-4 and 8e-2.
const BOUNDS: [(&str, f64, f64); 6] = [
    ("alexnet", 1e-5, 1e-4),
    ("vgg11_bn", 4e-5, 2e-2),
    ("googlenet", 1e-3, 4e-2),
    ("resnet18", 1e-4, 1e-3),
    ("resnet50", 5e-4, 1e-1),
    ("densenet121", 1e-3, 2e-1),
];

/// A bias before a batch norm has no gradient but rounding errors: those are compared with this.
const FLOOR: f64 = 1e-2;

fn config(case: &Value) -> ModelConfig {
    let mut table = case["params"]["options"].clone();
    table["name"] = case["op"].clone();
    serde_json::from_value(table).unwrap()
}

#[test]
fn networks_compute_what_torchvisions_do() {
    let device = device();
    let mut seen = 0;
    for case in cases("networks") {
        let name = case["op"].as_str().unwrap();
        let sizes: Vec<usize> = numbers(&case["inputs"][0]).iter().map(|&s| s as usize).collect();
        let mut b = Builder::new();
        let model = build(&config(&case), [sizes[1], sizes[2], sizes[3]], 10, &mut b).unwrap();
        let (params, mut norms) = b.finish(&mut Arena::zeroed).unwrap();
        let ids = begin(&params);

        let images: Vec<f32> = (0..sizes.iter().product()).map(|i| value(0, i) as f32).collect();
        let images = Tensor::from_slice(&images, &sizes[..], &device).unwrap();
        let labels: Vec<i64> = numbers(&case["params"]["labels"]).iter().map(|&l| l as i64).collect();
        let labels = Tensor::from_slice(&labels, [labels.len()], &device).unwrap();
        let cx = Forward::new(&params, &norms, &device, true, 0..params.len() as u32, Key::new(0));
        let logits = model.forward(&cx, &images).unwrap();
        let mut loss = logits.cross_entropy(&labels, None).unwrap();
        let mut got = vec![doubles(&logits)];
        for (weight, logits) in cx.take_auxiliary() {
            let part = logits.cross_entropy(&labels, None).unwrap().scale(weight).unwrap();
            loss = loss.add(&part).unwrap();
            got.push(doubles(&logits));
        }
        got.push(vec![loss.item().unwrap()]);
        let mut sums = vec![0.0; norms.statistics_len()];
        norms.contribution(&cx.take_statistics(), &mut sums).unwrap();
        let gradients = loss.gradients().unwrap();
        drop(cx);
        norms.fold(&sums).unwrap();
        let mut running = norms.export();
        running.sort_by_key(|(name, ..)| name.clone());
        let running = running.iter().filter_map(|(_, _, values)| match values {
            NormValues::Float(v) => Some(v.iter().map(|&x| f64::from(x))),
            NormValues::Count(_) => None,
        });
        let running: Vec<f64> = running.flatten().collect();
        if !running.is_empty() {
            got.push(summary(&running).to_vec());
        }

        let (_, outputs_bound, gradients_bound) = *BOUNDS.iter().find(|b| b.0 == name).unwrap();
        let outputs = case["outputs"].as_array().unwrap();
        assert_eq!(got.len(), outputs.len(), "{name}");
        for (k, (got, want)) in got.iter().zip(outputs).enumerate() {
            let want = numbers(want);
            let scale = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
            assert_eq!(got.len(), want.len(), "{name}: output {k}");
            for (g, w) in got.iter().zip(&want) {
                assert!((g - w).abs() <= outputs_bound * scale, "{name}: output {k}: {g}, not {w}");
            }
        }
        let want = numbers(&case["gradients"][0]);
        assert_eq!(want.len(), 2 * ids.len(), "{name}");
        for (&id, want) in ids.iter().zip(want.chunks(2)) {
            let leaf = params.tensor(id, &device).leaf_named(phalanx_tensor::LeafId(u64::from(id.0)));
            let gradient = gradients.get(&leaf).unwrap();
            let ours = gradient.detach().contiguous().unwrap().to_vec::<f32>().unwrap();
            let stored = params.to_stored(id, &ours);
            let stored: Vec<f64> = stored.into_iter().map(f64::from).collect();
            let (parameter, got) = (&params.spec(id).name, summary(&stored));
            // Errors of single elements are independent, so that a projection's is about that of the norm.
            for (g, w) in got.iter().zip(want) {
                let error = (g - w).abs() / want[1].max(FLOOR);
                assert!(error <= gradients_bound, "{name}: gradient of {parameter}: {got:?}, not {want:?}");
            }
        }
        seen += 1;
    }
    assert_eq!(seen, BOUNDS.len());
}
