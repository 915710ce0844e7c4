//! Optimizers over an arena of several parameters: bits, decay, padding, state, refused settings.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod cuda;

use std::ops::Range;

use common::cpu;
use phalanx_host::rng::Key;
use phalanx_host::{Arena, Cpu, Isa};
use phalanx_nn::{
    Ema, EmaConfig, Error, Init, Optimizer, OptimizerConfig, ParamId, ParamSpec, Params, Stored,
};

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

/// One of each rule with each of its options, decay on and off.
fn configs() -> Vec<OptimizerConfig> {
    let read = |text: &str| toml::from_str(text).unwrap();
    vec![
        OptimizerConfig::sgd(0.1, 0.0, 0.01),
        OptimizerConfig::sgd(0.1, 0.9, 0.01),
        OptimizerConfig::Sgd { lr: 0.1, momentum: 0.5, nesterov: true, weight_decay: 0.0 },
        read("name = \"adam\"\nlr = 0.01\nbeta1 = 0.8\nbeta2 = 0.99\neps = 1e-6\nweight_decay = 0.05"),
        read("name = \"adam\"\nlr = 0.01\nbeta2 = 0.5\namsgrad = true"),
        read("name = \"adamw\"\nlr = 0.01\nbeta2 = 0.9\nweight_decay = 0.3"),
        read("name = \"rmsprop\"\nalpha = 0.9\nweight_decay = 0.05"),
        read("name = \"rmsprop\"\nalpha = 0.9\neps = 1e-3\ncentered = true\nmomentum = 0.8"),
        read(
            "name = \"adagrad\"\nlr = 0.1\nlr_decay = 0.2\ninitial_accumulator_value = 0.3\nweight_decay = 0.05",
        ),
        read("name = \"lars\"\nlr = 2.0\nweight_decay = 0.05\ntrust_coefficient = 0.01"),
        read("name = \"lars\"\nlr = 0.5\nmomentum = 0.0\ntrust_coefficient = 0.02"),
        read("name = \"lamb\"\nlr = 0.05\nbeta2 = 0.99\nweight_decay = 0.1"),
        read("name = \"lamb\"\nlr = 0.05\nweight_decay = 0.0"),
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

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The published rules in double precision, parameter by parameter.
fn naive(config: &OptimizerConfig, steps: u64) -> Vec<f32> {
    let params = params();
    let mut all: Vec<f64> = all(&params).into_iter().map(f64::from).collect();
    let first = match *config {
        OptimizerConfig::Adagrad { initial_accumulator_value, .. } => initial_accumulator_value,
        _ => 0.0,
    };
    let mut state = [(); 3].map(|()| vec![first; all.len()]);
    for t in 1..=steps {
        let arena = gradients(&params, t - 1);
        let held = arena.read(0..all.len() * 4).unwrap();
        let sums = held.as_slice::<f32>().unwrap();
        for id in params.ids() {
            let (r, decays) = (params.range(id), params.spec(id).decay);
            let w = &mut all[r.clone()];
            let g: Vec<f64> = sums[r.clone()].iter().map(|&g| f64::from(g) * 0.125).collect();
            let [m, v, x] = state.each_mut().map(|s| &mut s[r.clone()]);
            let lambda = |l: f64| if decays { l } else { 0.0 };
            let unbiased = |beta: f64| 1.0 - beta.powi(t as i32);
            match *config {
                OptimizerConfig::Sgd { lr, momentum, nesterov, weight_decay } => {
                    for i in 0..w.len() {
                        let g = g[i] + lambda(weight_decay) * w[i];
                        m[i] = momentum * m[i] + g;
                        w[i] -= lr * if nesterov { g + momentum * m[i] } else { m[i] };
                    }
                }
                OptimizerConfig::Adam { lr, beta1, beta2, eps, weight_decay, amsgrad }
                | OptimizerConfig::AdamW { lr, beta1, beta2, eps, weight_decay, amsgrad } => {
                    let decoupled = matches!(config, OptimizerConfig::AdamW { .. });
                    for i in 0..w.len() {
                        let g = if decoupled { g[i] } else { g[i] + lambda(weight_decay) * w[i] };
                        if decoupled {
                            w[i] *= 1.0 - lr * lambda(weight_decay);
                        }
                        m[i] = beta1 * m[i] + (1.0 - beta1) * g;
                        v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                        x[i] = if amsgrad { x[i].max(v[i]) } else { v[i] };
                        w[i] -= lr * (m[i] / unbiased(beta1)) / ((x[i] / unbiased(beta2)).sqrt() + eps);
                    }
                }
                OptimizerConfig::RmsProp { lr, alpha, eps, momentum, centered, weight_decay } => {
                    for i in 0..w.len() {
                        let g = g[i] + lambda(weight_decay) * w[i];
                        m[i] = alpha * m[i] + (1.0 - alpha) * g * g;
                        v[i] = alpha * v[i] + (1.0 - alpha) * g;
                        let by = if centered { m[i] - v[i] * v[i] } else { m[i] };
                        x[i] = momentum * x[i] + g / (by.sqrt() + eps);
                        w[i] -= lr * x[i];
                    }
                }
                OptimizerConfig::Adagrad { lr, lr_decay, eps, weight_decay, .. } => {
                    for i in 0..w.len() {
                        let g = g[i] + lambda(weight_decay) * w[i];
                        m[i] += g * g;
                        w[i] -= lr / (1.0 + (t - 1) as f64 * lr_decay) * g / (m[i].sqrt() + eps);
                    }
                }
                OptimizerConfig::Lars { lr, momentum, trust_coefficient, weight_decay } => {
                    let (a, b) = (norm(w), norm(&g));
                    let adapts = decays && a > 0.0 && b > 0.0;
                    let trust = if adapts { trust_coefficient * a / (b + weight_decay * a) } else { 1.0 };
                    for i in 0..w.len() {
                        m[i] = momentum * m[i] + lr * trust * (g[i] + lambda(weight_decay) * w[i]);
                        w[i] -= m[i];
                    }
                }
                OptimizerConfig::Lamb { lr, beta1, beta2, eps, weight_decay } => {
                    let mut u = vec![0.0; w.len()];
                    for i in 0..w.len() {
                        m[i] = beta1 * m[i] + (1.0 - beta1) * g[i];
                        v[i] = beta2 * v[i] + (1.0 - beta2) * g[i] * g[i];
                        u[i] = (m[i] / unbiased(beta1)) / ((v[i] / unbiased(beta2)).sqrt() + eps)
                            + lambda(weight_decay) * w[i];
                    }
                    let (a, b) = (norm(w), norm(&u));
                    let trust = if decays && a > 0.0 && b > 0.0 { a / b } else { 1.0 };
                    w.iter_mut().zip(u).for_each(|(w, u)| *w -= lr * trust * u);
                }
            }
        }
    }
    all.into_iter().map(|x| x as f32).collect()
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
fn how_an_update_is_cut_changes_no_bits() {
    for config in configs() {
        let bits = |cuts: &[usize]| {
            let params = params();
            let mut optimizer = Optimizer::new(&config, &params, 0..6).unwrap();
            let (cpu, end) = (cpu(2), params.range(ParamId(5)).end);
            for step in 0..3 {
                let gradients = gradients(&params, step);
                let update = optimizer.begin(0.125, config.lr());
                let bounds = [&[0], cuts, &[end]].concat();
                // The last part first, as sums of gradients arrive.
                for part in bounds.windows(2).rev() {
                    optimizer.update(&cpu, &params, &gradients, update, part[0]..part[1]).unwrap();
                }
            }
            all(&params).into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let params = params();
        let start = |id| params.range(ParamId(id)).start;
        let whole = bits(&[]);
        assert!(bits(&[start(1), start(4)]) == whole, "{config:?}");
        assert!(bits(&[1, 2, 3, 4, 5].map(start)) == whole, "{config:?}");
        // Inside a parameter only where no norm of it is needed.
        let inside = start(3) + 1234;
        if matches!(config, OptimizerConfig::Lars { .. } | OptimizerConfig::Lamb { .. }) {
            let mut optimizer = Optimizer::new(&config, &params, 0..6).unwrap();
            let (before, update) = (all(&params), optimizer.begin(0.125, 0.1));
            let gradients = gradients(&params, 0);
            let e = optimizer.update(&cpu(1), &params, &gradients, update, 0..inside).unwrap_err();
            assert!(e.to_string().contains("cuts fc.weight"), "{e}");
            assert_eq!(all(&params), before);
        } else {
            assert!(bits(&[17, inside]) == whole, "{config:?}");
        }
    }
}

#[test]
fn a_parameter_or_gradient_of_zeros_has_no_trust_ratio() {
    for text in
        ["name = \"lars\"\nlr = 0.5\nweight_decay = 0.1", "name = \"lamb\"\nlr = 0.5\nweight_decay = 0.1"]
    {
        let config: OptimizerConfig = toml::from_str(text).unwrap();
        let (params, mut optimizer) = train(&config, &cpu(1), 0..0);
        let zeros = Arena::zeroed(params.elements() * 4).unwrap();
        let before = all(&params);
        optimizer.step(&cpu(1), &params, &zeros, 0.125, 0.5).unwrap();
        // With r = 1 LARS takes a plain step of decay; LAMB's step is the decay itself, whose norm is a tenth of
        // the weights', so r is 10.
        let by = if text.contains("lars") { 0.95 } else { 0.5 };
        for (b, a) in before.iter().zip(all(&params)).take(5 * 3 * 3 * 7) {
            assert!((a - b * by).abs() < 1e-6, "{text}: {b} became {a}");
        }
        let write = |x: f32| {
            let mut w = params.arena().write(0..params.elements() * 4).unwrap();
            w.as_mut_slice::<f32>().unwrap().fill(x);
        };
        write(0.0);
        optimizer.step(&cpu(1), &params, &gradients(&params, 0), 0.125, 0.5).unwrap();
        let after = all(&params);
        assert!(after.iter().all(|x| x.is_finite()) && after.iter().any(|x| *x != 0.0), "{text}");
    }
}

#[test]
fn the_gradients_norm_is_of_all_parameters_of_the_phase_on_any_threads() {
    let params = params();
    let gradients = gradients(&params, 3);
    let held = gradients.read(0..params.elements() * 4).unwrap();
    for ids in [0..6u32, 1..4, 2..2] {
        let optimizer = Optimizer::new(&configs()[0], &params, ids.clone()).unwrap();
        let of = |id| held.as_slice::<f32>().unwrap()[params.range(ParamId(id))].iter();
        let want = ids.flat_map(of).map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt() * 0.125;
        let got = [1, 2, 5].map(|n| optimizer.gradient_norm(&cpu(n), &gradients, 0.125).unwrap());
        assert!((got[0] - want).abs() <= 1e-12 * want, "{got:?}, not {want}");
        assert!(got.iter().all(|x| x.to_bits() == got[0].to_bits()), "{got:?}");
        let portable = optimizer.gradient_norm(&Cpu::new(Isa::Portable, 1).unwrap(), &gradients, 0.125);
        assert_eq!(portable.unwrap().to_bits(), got[0].to_bits());
    }
}

#[test]
fn values_are_clipped_before_weight_decay_and_keep_what_is_no_number() {
    let params = params();
    let before = all(&params);
    let mut optimizer = Optimizer::new(&OptimizerConfig::sgd(0.5, 0.0, 0.1), &params, 0..6).unwrap();
    optimizer.clip_values(0.25);
    let gradients = gradients(&params, 0);
    let mut write = gradients.write(0..params.elements() * 4).unwrap();
    write.as_mut_slice::<f32>().unwrap()[2] = f32::NAN;
    drop(write);
    optimizer.step(&cpu(1), &params, &gradients, 0.125, 0.5).unwrap();
    let held = gradients.read(0..params.elements() * 4).unwrap();
    let (after, mut cut) = (all(&params), 0);
    for i in params.range(ParamId(0)) {
        let g = held.as_slice::<f32>().unwrap()[i] * 0.125;
        cut += usize::from(g.abs() > 0.25);
        let want = before[i] - 0.5 * (g.clamp(-0.25, 0.25) + 0.1 * before[i]);
        assert!((after[i] - want).abs() < 1e-6 || i == 2, "[{i}]: {}, not {want}", after[i]);
    }
    assert!(after[2].is_nan() && cut > 50, "{cut}");
}

#[test]
fn an_average_of_the_weights_follows_them_on_any_threads() {
    for (text, decay) in [
        ("decay = 0.9", [0.9; 4]),
        ("decay = 0.3\nwarmup = true", [2.0 / 11.0, 0.25, 0.3, 0.3]),
        ("decay = 0.9\nevery_steps = 2", [1.0, 0.9, 1.0, 0.9]),
    ] {
        let config: EmaConfig = toml::from_str(text).unwrap();
        let mut ends = Vec::new();
        for threads in [1, 2, 5] {
            let params = params();
            let mut ema = Ema::new(&config, &params).unwrap();
            let mut want: Vec<f64> = all(&params).into_iter().map(f64::from).collect();
            let mut optimizer = Optimizer::new(&configs()[1], &params, 0..6).unwrap();
            for step in 1..=4 {
                optimizer.step(&cpu(1), &params, &gradients(&params, step), 0.125, 0.1).unwrap();
                ema.update(&cpu(threads), &params, step).unwrap();
                let d = decay[step as usize - 1];
                want.iter_mut().zip(all(&params)).for_each(|(a, w)| *a = d * *a + (1.0 - d) * f64::from(w));
            }
            let got = all(ema.average());
            for (g, w) in got.iter().zip(&want) {
                assert!((f64::from(*g) - w).abs() < 1e-6 * (1.0 + w.abs()), "{text}: {g}, not {w}");
            }
            ends.push(got.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        }
        assert!(ends.windows(2).all(|e| e[0] == e[1]), "{text}");
    }
    for text in ["decay = 1.0", "decay = -0.1", "decay = nan", "every_steps = 0"] {
        let e = Ema::new(&toml::from_str(text).unwrap(), &params()).unwrap_err();
        assert!(e.is_usage() && e.to_string().starts_with("ema: "), "{e}");
    }
    assert!(toml::from_str::<EmaConfig>("decai = 0.9").is_err());
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
    let mut none = Optimizer::new(&configs()[9], &params, 2..2).unwrap();
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
        ("name = \"adamw\"\nweight_decay = -1.0", "weight_decay is -1"),
        ("name = \"adamw\"\nbeta2 = 1.0", "beta2 is 1"),
        ("name = \"rmsprop\"\nalpha = 1.5", "alpha is 1.5"),
        ("name = \"rmsprop\"\nmomentum = -0.5", "momentum is -0.5"),
        ("name = \"adagrad\"\nlr_decay = -1.0", "lr_decay is -1"),
        ("name = \"adagrad\"\ninitial_accumulator_value = -1.0", "initial_accumulator_value is -1"),
        ("name = \"adagrad\"\neps = 0.0", "eps is 0"),
        ("name = \"lars\"\nlr = 1.0\ntrust_coefficient = 0.0", "trust_coefficient is 0"),
        ("name = \"lars\"\nlr = 1.0\nweight_decay = nan", "weight_decay is NaN"),
        ("name = \"lamb\"\nlr = 1.0\neps = -1.0", "eps is -1"),
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
        ("name = \"lamb\"", "lr"),
        ("name = \"lars\"\nlr = 1.0\neps = 0.1", "eps"),
        ("name = \"adamw\"\nmomentum = 0.1", "momentum"),
    ] {
        let e = toml::from_str::<OptimizerConfig>(text).unwrap_err();
        assert!(e.to_string().contains(say), "{text}: {e}");
    }
}
