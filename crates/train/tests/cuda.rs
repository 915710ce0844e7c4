//! Whole runs on a GPU. They need one, or the stand-in libraries that `tests/cuda/build` makes (`PHALANX_CUDA_PATH`), so
//! they are ignored unless asked for: `tests/run` asks.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;

use common::{hashes, request, run};
use phalanx_train::bench::{StepRequest, step};
use phalanx_train::config::{Precision, WireType};
use phalanx_train::evaluate::{EvaluateRequest, evaluate_checkpoint};
use phalanx_train::predict::{PredictRequest, Predictor, Preparation};
use phalanx_train::report::Summary;
use phalanx_train::run::TrainRequest;
use phalanx_train::task::Views;
use phalanx_train::{CudaGraph, DeviceChoice, SumsOver, ledger};

fn gpu() -> DeviceChoice {
    DeviceChoice { name: "cuda".into(), share_gpu: true, sums: SumsOver::Auto }
}

/// A short run of the digits on a GPU that all ranks share.
fn on_gpu(out: &Path, ranks: u32, settings: &[&str]) -> TrainRequest {
    let settings = [settings, &["train.epochs=1", "compute.threads=1"]].concat();
    TrainRequest { device: gpu(), max_steps: Some(6), ..request(out, ranks, &settings) }
}

fn error(s: &Summary) -> f64 {
    s.eval.as_ref().unwrap().top1_error
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn one_hash_for_any_world_from_run_to_run_and_through_checkpoints() {
    let tmp = tempfile::tempdir().unwrap();
    let mut first = None;
    for (name, world) in [("a", 1), ("again", 1), ("b", 2), ("c", 4), ("d", 3)] {
        let out = tmp.path().join(name);
        let summary = run(&on_gpu(&out, world, &[])).unwrap();
        assert_eq!((summary.device.as_str(), summary.steps), ("cuda", 6));
        let got = hashes(&summary);
        assert_eq!(*first.get_or_insert(got.clone()), got, "{name}: {world} ranks");
    }
    let out = tmp.path().join("cut");
    for (steps, world) in [(2, 4), (5, 1), (6, 2)] {
        let summary = run(&TrainRequest { max_steps: Some(steps), ..on_gpu(&out, world, &[]) }).unwrap();
        assert_eq!(summary.steps, steps);
        if steps == 6 {
            assert_eq!(hashes(&summary).0, first.as_ref().unwrap().0);
            assert_eq!(hashes(&summary).1, first.as_ref().unwrap().1);
        }
    }
    ledger::verify(&out).unwrap();
    let env = std::fs::read_to_string(out.join("env.json")).unwrap();
    assert!(["compute_capability", "nvrtc", "cudnn", "cublaslt"].iter().all(|k| env.contains(k)), "{env}");
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn what_the_cpu_computes_is_what_a_gpu_computes_but_for_rounding() {
    let tmp = tempfile::tempdir().unwrap();
    for (n, (settings, ranks)) in [
        (&["train.clip_norm=0.5", "ema.decay=0.9"][..], 1),
        (&["distributed.wire=\"bf16\""], 2),
        (&["optimizer={ name = \"lamb\", lr = 0.02, weight_decay = 0.01 }"], 1),
    ]
    .into_iter()
    .enumerate()
    {
        let (here, there) = (tmp.path().join(format!("cpu-{n}")), tmp.path().join(format!("gpu-{n}")));
        let there = run(&on_gpu(&there, ranks, settings)).unwrap();
        let here = run(&TrainRequest { device: "cpu".into(), ..on_gpu(&here, ranks, settings) }).unwrap();
        let (a, b) = (there.train_loss, here.train_loss);
        assert!((a - b).abs() < 1e-3 * b, "{settings:?}: {a}, not {b}");
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn narrow_activations_learn_too() {
    let tmp = tempfile::tempdir().unwrap();
    for precision in ["tf32", "bf16", "fp16"] {
        let set = format!("train.precision=\"{precision}\"");
        let out = tmp.path().join(precision);
        let long = |world: u32, out: &Path| TrainRequest {
            max_steps: None,
            ..on_gpu(out, world, &[&set, "log.every_steps=1"])
        };
        let one = run(&long(1, &out)).unwrap();
        // One epoch; chance is 0.9.
        assert!(error(&one) < 0.7, "{precision}: {}", error(&one));
        let two = run(&long(2, &tmp.path().join(format!("{precision}-2")))).unwrap();
        assert_eq!(hashes(&one), hashes(&two), "{precision}");
        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.contains("skipped_steps"), precision == "fp16");
        let state = std::fs::read_dir(out.join("checkpoints")).unwrap().next().unwrap().unwrap().path();
        let state = std::fs::read_to_string(state.join("state.json")).unwrap();
        assert_eq!(state.contains("loss_scale"), precision == "fp16");
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_run_goes_on_with_the_algorithms_that_it_began_with_or_not_at_all() {
    let tmp = tempfile::tempdir().unwrap();
    let out = tmp.path().join("run");
    let set = ["distributed.exact=true"];
    let steps = |n| TrainRequest { max_steps: Some(n), ..on_gpu(&out, 2, &set) };
    run(&steps(1)).unwrap();
    let file = out.join("algorithms.json");
    let first: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let all = first["algorithms"].as_object().unwrap();
    assert!(all.len() >= 5 && all.keys().all(|k| k.ends_with("-exact")), "{first}");
    run(&steps(2)).unwrap();
    let second: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(all.iter().all(|(name, id)| second["algorithms"][name] == *id));
    // One that is not there is no choice.
    let mut gone = second.clone();
    for id in gone["algorithms"].as_object_mut().unwrap().values_mut() {
        *id = "4711".into();
    }
    std::fs::write(&file, gone.to_string()).unwrap();
    let e = run(&steps(3)).unwrap_err().to_string();
    assert!(e.contains("the algorithm 4711") && e.contains("--allow-fingerprint-change"), "{e}");
    std::fs::write(&file, "{").unwrap();
    let e = run(&steps(3)).unwrap_err().to_string();
    assert!(e.contains("algorithms.json") && e.contains("chosen anew"), "{e}");
    std::fs::write(&file, gone.to_string()).unwrap();
    run(&TrainRequest { allow_fingerprint_change: true, ..steps(3) }).unwrap();
    let anew: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(anew["algorithms"].as_object().unwrap().values().all(|id| id != "4711"), "{anew}");
    // Another library's numbers are not taken.
    let mut other = gone.clone();
    other["cudnn"] = "1".into();
    std::fs::write(&file, other.to_string()).unwrap();
    run(&steps(4)).unwrap();
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn ranks_share_a_gpu_only_when_they_may() {
    let tmp = tempfile::tempdir().unwrap();
    let alone = |name: &str, out: &str| TrainRequest {
        device: name.into(),
        max_steps: Some(2),
        ..on_gpu(&tmp.path().join(out), 2, &[])
    };
    let e = run(&alone("cuda", "none")).unwrap_err();
    let said = e.to_string();
    assert!(said.contains("2 ranks, 1 GPU: ") && e.exit_code() == 2, "{e}");
    assert!(said.contains("--share-gpu") && said.contains("--device cpu"), "{e}");
    // Where it is left open, no rank has one.
    let open = run(&alone("auto", "auto")).unwrap();
    assert_eq!((open.device.as_str(), open.device_name.as_str()), ("cpu", "cpu"));
    assert_eq!(hashes(&open), hashes(&run(&alone("cpu", "cpu")).unwrap()));
    let env = std::fs::read_to_string(tmp.path().join("auto/env.json")).unwrap();
    assert!(env.contains("2 ranks, 1 GPU: they would share; --share-gpu or fewer ranks"), "{env}");
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn sums_on_a_narrow_wire_are_the_same_for_any_world() {
    let tmp = tempfile::tempdir().unwrap();
    let of = |world: u32, wire: &str| {
        let out = tmp.path().join(format!("{wire}-{world}"));
        let wire = format!("distributed.wire=\"{wire}\"");
        hashes(&run(&TrainRequest { max_steps: Some(3), ..on_gpu(&out, world, &[&wire]) }).unwrap())
    };
    let one = of(1, "bf16");
    assert_eq!([of(2, "bf16"), of(3, "bf16")], [one.clone(), one.clone()]);
    assert_ne!(of(1, "f32"), one);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn steps_that_half_precision_cannot_hold_are_skipped_by_all_ranks_and_over_restarts() {
    let tmp = tempfile::tempdir().unwrap();
    // Gradients of the first loss scales are past the largest half.
    let weights = format!("loss={{ kind = \"cross_entropy\", class_weights = {:?} }}", [500.0; 10]);
    let of = |name: &str, world: u32, steps: u64| {
        let settings = ["train.precision=\"fp16\"", &weights, "ema.decay=0.9", "log.every_steps=1"];
        let asked = on_gpu(&tmp.path().join(name), world, &settings);
        let summary = run(&TrainRequest { max_steps: Some(steps), ..asked }).unwrap();
        (summary.params_hash, summary.ema_hash.unwrap(), summary.buffers_hash)
    };
    let skipped = |name: &str| {
        let metrics = std::fs::read_to_string(tmp.path().join(name).join("metrics.jsonl")).unwrap();
        let line = |l| serde_json::from_str::<serde_json::Value>(l).unwrap();
        metrics.lines().map(line).filter_map(|l| l["skipped_steps"].as_u64()).collect::<Vec<_>>()
    };
    let begun = of("cut", 2, 0);
    let after = of("cut", 2, 2);
    assert_eq!((&after.0, &after.1, skipped("cut")), (&begun.0, &begun.1, vec![1, 2]));
    let whole = of("whole", 1, 6);
    assert!(whole.0 != begun.0 && whole.1 != begun.1);
    assert_eq!([of("cut", 1, 6), of("two", 2, 6), of("three", 3, 6)], [(); 3].map(|()| whole.clone()));
    assert_eq!(skipped("cut"), skipped("whole"));
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_run_goes_on_where_it_began_unless_more_is_allowed() {
    let tmp = tempfile::tempdir().unwrap();
    for (n, (first, then, words)) in [
        (gpu(), "cpu".into(), "; here it is the CPU; the run would go on with other bits"),
        ("cpu".into(), gpu(), "the checkpoint is of the CPU; here it is "),
    ]
    .into_iter()
    .enumerate()
    {
        let on = |device: DeviceChoice, steps| TrainRequest {
            device,
            max_steps: Some(steps),
            ..on_gpu(&tmp.path().join(n.to_string()), 1, &[])
        };
        run(&on(first, 2)).unwrap();
        let mut next = on(then, 4);
        let e = run(&next).unwrap_err();
        let said = e.to_string();
        assert!(said.contains(words) && said.contains("--allow-fingerprint-change"), "{e}");
        assert_eq!(e.exit_code(), 2);
        next.allow_fingerprint_change = true;
        let summary = run(&next).unwrap();
        assert_eq!((summary.steps, &*summary.device), (4, &*next.device.name));
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn checkpoints_are_evaluated_and_predicted_from() {
    let tmp = tempfile::tempdir().unwrap();
    let out = tmp.path().join("run");
    let asked = TrainRequest { max_steps: None, ..on_gpu(&out, 1, &["train.precision=\"bf16\""]) };
    let summary = run(&asked).unwrap();
    let of = |views: &Views, world, device: DeviceChoice, precision| {
        let (config, checkpoint, views) = (asked.config.clone(), out.clone(), views.clone());
        evaluate_checkpoint(&EvaluateRequest { config, checkpoint, views, device, precision }, world)
    };
    let plain = Views::default();
    // As it was trained where a GPU computes it, else in single precision, unless something else is asked.
    let there = of(&plain, 2, gpu(), None).unwrap();
    assert_eq!(Some(&there), summary.eval.as_ref());
    let e = of(&plain, 1, "cpu".into(), Some(Precision::Bf16)).unwrap_err();
    assert!(e.to_string().contains("bf16 is for GPUs") && e.exit_code() == 2, "{e}");
    for views in [plain, Views { crops: 10, crop: None, scales: vec![8] }] {
        let here = of(&views, 1, "cpu".into(), None).unwrap().loss;
        let single = of(&views, 1, gpu(), Some(Precision::F32)).unwrap().loss;
        assert!((single - here).abs() < 1e-4, "{single} {here}");
    }
    assert!((there.loss - of(&Views::default(), 1, "cpu".into(), None).unwrap().loss).abs() < 0.05);
    let predictor = |device: DeviceChoice| {
        Predictor::new(&PredictRequest {
            model: None,
            settings: vec![],
            checkpoint: out.clone(),
            labels: None,
            transform: Some(Preparation::Imagenet),
            input: None,
            top: 3,
            device,
            threads: 1,
        })
        .unwrap()
    };
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pictures/rgb.png");
    let tell = |p: Predictor| {
        let mut told = Vec::new();
        p.run(std::slice::from_ref(&image), |_, outcome| told.extend(outcome.unwrap())).unwrap();
        told
    };
    let (a, b) = (tell(predictor(gpu())), tell(predictor("cpu".into())));
    assert!(a.len() == 3 && a.iter().zip(&b).all(|(a, b)| (a.logit - b.logit).abs() < 1e-3), "{a:?} {b:?}");
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn steps_are_measured() {
    for (precision, train) in [(Precision::F32, true), (Precision::Bf16, true), (Precision::Fp16, false)] {
        let report = step(&StepRequest {
            model: "lenet5".into(),
            input: None,
            classes: None,
            batch: 4,
            ranks: 1,
            virtual_shards: None,
            device: gpu(),
            precision,
            threads: 1,
            isa: "auto".into(),
            hidden: None,
            bucket_mb: None,
            wire: WireType::F32,
            seconds: 0.01,
            train,
            profile: train,
            cuda_graph: CudaGraph::Auto,
        })
        .unwrap();
        assert!(report.samples_per_second > 0.0 && report.peak_device_bytes.is_some_and(|b| b > 100_000));
        assert!(report.peak_fraction.is_none() && report.device == "cuda" && report.device_name != "cuda");
        assert_eq!(train, report.profile.iter().any(|k| k.name == "optim/momentum" && k.runs == 1.0));
    }
}
