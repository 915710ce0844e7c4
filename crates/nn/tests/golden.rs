//! Whole networks and optimizers against PyTorch's values.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{cases, cpu, device, numbers, value, weight};
use phalanx_host::Arena;
use phalanx_host::rng::Key;
use phalanx_nn::{
    Builder, Forward, Init, ModelConfig, Optimizer, OptimizerConfig, ParamId, ParamSpec, Params, Stored,
    build, clip_factor,
};
use phalanx_tensor::Tensor;

/// Builds a golden network with its weights by formula, and compares logits, loss and three numbers of
/// every gradient, all in stored layout: layouts, names, Flatten's order and gradients at once.
#[test]
fn networks_give_the_logits_and_gradients_of_pytorch() {
    let mut seen = 0;
    for case in cases("network") {
        let name = case["op"].as_str().unwrap();
        let mut config = ModelConfig::named(name);
        if name == "mlp" {
            config.hidden = Some(vec![32]);
        }
        let mut b = Builder::new();
        let model = build(&config, [28, 28, 1], 10, &mut b).unwrap();
        let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
        let names: Vec<&str> =
            case["params"]["names"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        let scales = numbers(&case["params"]["scales"]);
        assert_eq!(params.len(), names.len());
        let id = |name: &str| params.find(name).unwrap_or_else(|| panic!("no parameter {name}"));
        for (k, name) in names.iter().enumerate() {
            let shape: Vec<usize> = numbers(&case["inputs"][k + 1]).iter().map(|&s| s as usize).collect();
            let n = shape.iter().product();
            let values: Vec<f32> = (0..n).map(|i| (scales[k] * (value(k + 1, i) - 0.1)) as f32).collect();
            params.import(id(name), &shape, &values).unwrap();
        }
        let device = device();
        let images: Vec<f32> = (0..3 * 784).map(|i| value(0, i) as f32).collect();
        let images = Tensor::from_slice(&images, [3, 28, 28, 1], &device).unwrap();
        let labels: Vec<i64> = numbers(&case["params"]["labels"]).iter().map(|&l| l as i64).collect();
        let labels = Tensor::from_slice(&labels, [3], &device).unwrap();
        let cx = Forward::new(&params, &norms, &device, true, 0..params.len() as u32, Key::new(0));
        let logits = model.forward(&cx, &images).unwrap();
        let loss = logits.cross_entropy(&labels, None).unwrap();
        let close = |what: &str, got: &[f64], want: &[f64], tolerance: f64| {
            assert_eq!(got.len(), want.len(), "{name}: {what}");
            for (i, (g, w)) in got.iter().zip(want).enumerate() {
                assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "{name}: {what}[{i}] is {g}, not {w}");
            }
        };
        let got: Vec<f64> = logits.to_vec::<f32>().unwrap().into_iter().map(f64::from).collect();
        close("logits", &got, &numbers(&case["outputs"][0]), 2e-6);
        close("loss", &[loss.item().unwrap()], &numbers(&case["outputs"][1]), 2e-6);
        let gradients = loss.gradients().unwrap();
        for (k, name) in names.iter().enumerate() {
            let leaf = cx.param(id(name));
            let ours = gradients.get(&leaf).unwrap().to_vec::<f32>().unwrap();
            let g: Vec<f64> = params.to_stored(id(name), &ours).into_iter().map(f64::from).collect();
            let dot: f64 = g.iter().enumerate().map(|(i, x)| weight(i) * x).sum();
            let norm = g.iter().map(|x| x * x).sum::<f64>().sqrt();
            close(name, &[dot, g.iter().sum(), norm], &numbers(&case["gradients"][k + 1]), 2e-5);
        }
        seen += 1;
    }
    assert_eq!(seen, 2);
}

fn seven() -> Params {
    let spec = ParamSpec {
        name: "p".into(),
        shape: [7].into(),
        stored: Stored::Plain,
        decay: true,
        init: Init::Zeros,
        fans: [1, 1],
    };
    let params = Params::new(vec![spec], &mut Arena::zeroed).unwrap();
    let start: Vec<f32> = (0..7).map(|i| value(0, i) as f32).collect();
    params.import(ParamId(0), &[7], &start).unwrap();
    params
}

/// Takes the five steps of a golden case: the gradient of step t is half the parameter plus value(t, .).
fn follow(case: &serde_json::Value, config: &OptimizerConfig, mut step: impl FnMut(&Params, &Arena)) {
    let params = seven();
    for t in 1..=5 {
        let (_, p) = params.export(ParamId(0)).unwrap();
        let gradients = Arena::zeroed(params.elements() * 4).unwrap();
        // Sums over a weight of 4.
        let mut write = gradients.write(0..28).unwrap();
        for (i, g) in write.as_mut_slice::<f32>().unwrap().iter_mut().enumerate() {
            *g = 4.0 * (0.5 * f64::from(p[i]) + value(t, i)) as f32;
        }
        drop(write);
        step(&params, &gradients);
        let (_, got) = params.export(ParamId(0)).unwrap();
        for (g, w) in got.iter().zip(numbers(&case["outputs"][t - 1])) {
            assert!((f64::from(*g) - w).abs() < 2e-6, "{config:?}, step {t}: {g}, not {w}");
        }
    }
}

#[test]
fn optimizers_take_the_steps_of_pytorch() {
    let all = [cases("optimizer"), cases("optimizers")].concat();
    assert_eq!(all.len(), 8 + 18);
    for case in all {
        let mut settings = case["params"].clone();
        settings["name"] = case["op"].clone();
        let config: OptimizerConfig = serde_json::from_value(settings).unwrap();
        let mut optimizer = Optimizer::new(&config, &seven(), 0..1).unwrap();
        follow(&case, &config, |params, gradients| {
            optimizer.step(&cpu(1), params, gradients, 0.25, config.lr()).unwrap();
        });
        assert_eq!(optimizer.steps(), 5);
    }
}

#[test]
fn gradients_are_clipped_as_pytorch_clips_them() {
    let cases = cases("clipping");
    assert_eq!(cases.len(), 3);
    for case in cases {
        let get = |key: &str| case["params"][key].as_f64();
        let config = OptimizerConfig::sgd(0.1, get("momentum").unwrap(), get("weight_decay").unwrap());
        let mut optimizer = Optimizer::new(&config, &seven(), 0..1).unwrap();
        if let Some(bound) = get("clip_value") {
            optimizer.clip_values(bound);
        }
        let mut clipped = 0;
        follow(&case, &config, |params, gradients| {
            let mut scale = 0.25;
            if let Some(most) = get("clip_norm") {
                let norm = optimizer.gradient_norm(&cpu(1), gradients, scale).unwrap();
                scale *= clip_factor(norm, most);
                clipped += usize::from(scale < 0.25);
            }
            optimizer.step(&cpu(1), params, gradients, scale, 0.1).unwrap();
        });
        match get("clip_norm") {
            Some(most) if most > 1.0 => assert_eq!(clipped, 2),
            Some(_) => assert_eq!(clipped, 5),
            None => assert_eq!(clipped, 0),
        }
    }
}
