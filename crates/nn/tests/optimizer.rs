//! Optimizers over an arena of several parameters: bits, decay, padding, state, refused settings.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::ops::Range;

use common::cpu;
use phalanx_host::rng::Key;
use phalanx_host::{Arena, Cpu, Isa};
use phalanx_nn::{Error, Init, Optimizer, OptimizerConfig, ParamId, ParamSpec, Params, Stored};

fn spec(name: &str, shape: &[usize], stored: Stored, decay: bool) -> ParamSpec {
    ParamSpec { name: name.into(), shape: shape.into(), stored, decay, init: Init::HeNormal, fans: [9, 9] }
}

/// Odd sizes, changing decay, and one parameter that is larger than a task's piece.
fn params() -> Params {
    let specs = vec![
        spec("conv.weight", &[5, 3, 3, 7], Stored::Conv, true),
        spec("conv.bias", &[5], Stored::Plain, false),
        spec("norm.weight", &[5], Stored::Plain, false),
        spec("fc.weight", &[70, 1001], Stored::Plain, true),
        spec("last.weight", &[3, 11], Stored::Plain, true),
        spec("last.bias", &[1], Stored::Plain, false),
    ];
    let params = Params::new(specs, &mut Arena::zeroed).unwrap();
    params.initialise(5).unwrap();
    params
}

fn gradients(params: &Params, step: u64) -> Arena {
    let arena = Arena::zeroed(params.elements() * 4).unwrap();
    for id in params.ids() {
        let r = params.range(id);
        let mut place = arena.write(r.start * 4..r.end * 4).unwrap();
        let mut stream = Key::new(1).derive(step, u64::from(id.0)).stream();
        place.as_mut_slice::<f32>().unwrap().iter_mut().for_each(|g| *g = stream.normal() as f32 * 8.0);
    }
    arena
}

fn all(params: &Params) -> Vec<f32> {
    params.arena().read(0..params.elements() * 4).unwrap().as_slice().unwrap().to_vec()
}

fn configs() -> [OptimizerConfig; 4] {
    [
        OptimizerConfig::sgd(0.1, 0.0, 0.01),
        OptimizerConfig::sgd(0.1, 0.9, 0.01),
        OptimizerConfig::Sgd { lr: 0.1, momentum: 0.5, nesterov: true, weight_decay: 0.0 },
        OptimizerConfig::Adam { lr: 0.01, beta1: 0.8, beta2: 0.99, eps: 1e-6, weight_decay: 0.05 },
    ]
}

fn train(config: &OptimizerConfig, cpu: &Cpu, steps: Range<u64>) -> (Params, Optimizer) {
    let params = params();
    let mut optimizer = Optimizer::new(config, &params, 0..6).unwrap();
    for step in steps {
        optimizer.step(cpu, &params, &gradients(&params, step), 0.125, config.lr()).unwrap();
    }
    (params, optimizer)
}

/// The published rules in double precision, element by element.
fn naive(config: &OptimizerConfig, steps: u64) -> Vec<f32> {
    let params = params();
    let mut w: Vec<f64> = all(&params).into_iter().map(f64::from).collect();
    let mut decayed = vec![false; w.len()];
    params.ids().filter(|&id| params.spec(id).decay).for_each(|id| decayed[params.range(id)].fill(true));
    let (mut m, mut v) = (vec![0.0; w.len()], vec![0.0; w.len()]);
    for t in 1..=steps {
        let arena = gradients(&params, t - 1);
        let held = arena.read(0..w.len() * 4).unwrap();
        for (i, &g) in held.as_slice::<f32>().unwrap().iter().enumerate() {
            let lambda = |l: f64| if decayed[i] { l } else { 0.0 };
            match *config {
                OptimizerConfig::Sgd { lr, momentum, nesterov, weight_decay } => {
                    let g = f64::from(g) * 0.125 + lambda(weight_decay) * w[i];
                    m[i] = momentum * m[i] + g;
                    w[i] -= lr * if nesterov { g + momentum * m[i] } else { m[i] };
                }
                OptimizerConfig::Adam { lr, beta1, beta2, eps, weight_decay } => {
                    let g = f64::from(g) * 0.125 + lambda(weight_decay) * w[i];
                    m[i] = beta1 * m[i] + (1.0 - beta1) * g;
                    v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                    let (a, b) = (1.0 - beta1.powi(t as i32), 1.0 - beta2.powi(t as i32));
                    w[i] -= lr * (m[i] / a) / ((v[i] / b).sqrt() + eps);
                }
            }
        }
    }
    w.into_iter().map(|x| x as f32).collect()
}

#[test]
fn every_instruction_set_follows_the_published_rules_and_keeps_the_padding_zero() {
    for config in configs() {
        let want = naive(&config, 4);
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|i| i.available()) {
            let (params, _) = train(&config, &Cpu::new(isa, 1).unwrap(), 0..4);
            let got = all(&params);
            let mut inside = vec![false; got.len()];
            params.ids().for_each(|id| inside[params.range(id)].fill(true));
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!((g - w).abs() <= 4e-6 * (1.0 + w.abs()), "{config:?} {isa} [{i}]: {g}, not {w}");
                assert!(inside[i] || g.to_bits() == 0, "{config:?}: padding at {i} became {g}");
            }
        }
    }
}

#[test]
fn threads_change_no_bits() {
    for config in configs() {
        let bits = |threads| {
            let (params, _) = train(&config, &cpu(threads), 0..3);
            all(&params).into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let one = bits(1);
        assert!(one == bits(2) && one == bits(5), "{config:?}");
    }
}

#[test]
fn state_travels_by_name_in_stored_layout_and_training_goes_on_bit_for_bit() {
    for config in configs() {
        let (whole, _) = train(&config, &cpu(1), 0..5);
        let (params, before) = train(&config, &cpu(1), 0..2);
        let stored = before.export(&params).unwrap();
        let kinds = stored.len() / 6;
        let mut after = Optimizer::new(&config, &params, 0..6).unwrap();
        let mut find = |name: &str| stored.iter().find(|(n, ..)| n == name).map(|(_, v)| v.clone());
        after.import(&params, before.steps(), &mut find).unwrap();
        for step in 2..5 {
            after.step(&cpu(1), &params, &gradients(&params, step), 0.125, config.lr()).unwrap();
        }
        assert_eq!(all(&params), all(&whole), "{config:?}");
        if kinds > 0 {
            assert_eq!(stored[0].1.0, [5, 7, 3, 3], "convolutions as PyTorch has them");
            let mut missing = |name: &str| find(name).filter(|_| !name.ends_with("last.bias"));
            let e = after.import(&params, 0, &mut missing).unwrap_err();
            assert!(matches!(&e, Error::Missing { name } if name.ends_with(".last.bias")), "{e}");
            let mut wrong = |name: &str| find(name).map(|(_, v)| (vec![v.len()], v));
            let e = after.import(&params, 0, &mut wrong).unwrap_err();
            assert!(e.to_string().contains("conv.weight has shape [5,7,3,3], but [315]"), "{e}");
        }
    }
}

#[test]
fn an_optimizer_of_a_phase_leaves_the_other_parameters_alone() {
    let params = params();
    let before: Vec<_> = params.ids().map(|id| params.export(id).unwrap()).collect();
    let mut optimizer = Optimizer::new(&configs()[1], &params, 1..4).unwrap();
    optimizer.step(&cpu(1), &params, &gradients(&params, 0), 1.0, 0.1).unwrap();
    for (id, before) in params.ids().zip(before) {
        let changed = params.export(id).unwrap() != before;
        assert_eq!(changed, (1..4).contains(&id.0), "{}", params.spec(id).name);
    }
    let names: Vec<_> = optimizer.export(&params).unwrap().into_iter().map(|(n, ..)| n).collect();
    assert_eq!(names, ["momentum.conv.bias", "momentum.norm.weight", "momentum.fc.weight"]);
    assert!(Optimizer::new(&configs()[0], &params, 0..7).unwrap_err().to_string().contains("not among"));
    // A phase without parameters is a phase with nothing to do.
    let mut none = Optimizer::new(&configs()[3], &params, 2..2).unwrap();
    none.step(&cpu(1), &params, &gradients(&params, 0), 1.0, 0.1).unwrap();
    // Reading a parameter meanwhile is a programming error that must not be a race.
    let held = params.tensor(ParamId(1), &common::device()).hold().unwrap();
    assert!(optimizer.step(&cpu(1), &params, &gradients(&params, 0), 1.0, 0.1).is_err());
    drop(held);
}

#[test]
fn impossible_settings_are_refused_by_name() {
    for (text, say) in [
        ("name = \"sgd\"\nlr = 0.0", "lr is 0"),
        ("name = \"sgd\"\nlr = -1.0", "lr is -1"),
        ("name = \"sgd\"\nlr = inf", "lr is inf"),
        ("name = \"sgd\"\nlr = 0.1\nmomentum = 1.0", "momentum is 1"),
        ("name = \"sgd\"\nlr = 0.1\nmomentum = nan", "momentum is NaN"),
        ("name = \"sgd\"\nlr = 0.1\nnesterov = true", "nesterov needs"),
        ("name = \"sgd\"\nlr = 0.1\nweight_decay = -1e-4", "weight_decay is"),
        ("name = \"adam\"\nbeta1 = 1.0", "beta1 is 1"),
        ("name = \"adam\"\nbeta2 = -0.1", "beta2 is"),
        ("name = \"adam\"\neps = 0.0", "eps is 0"),
    ] {
        let config: OptimizerConfig = toml::from_str(text).unwrap();
        let e = config.check().unwrap_err();
        assert!(e.to_string().contains(say) && e.is_usage(), "{text}: {e}");
        assert!(Optimizer::new(&config, &params(), 0..6).is_err());
    }
    for (text, say) in [
        ("name = \"sgd\"", "lr"),
        ("name = \"adm\"\nlr = 0.1", "adam"),
        ("name = \"sgd\"\nlr = 0.1\nbeta1 = 0.9", "beta1"),
        ("lr = 0.1", "name"),
    ] {
        let e = toml::from_str::<OptimizerConfig>(text).unwrap_err();
        assert!(e.to_string().contains(say), "{text}: {e}");
    }
}
