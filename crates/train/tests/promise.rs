//! The promise on the digits: batch norm, dropout, a last batch that divides by nothing; one hash for
//! any world, any threads, any interruption.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{hashes, request, run};
use phalanx_host::rng::Key;
use phalanx_train::config::Config;
use phalanx_train::evaluate::{EvaluateRequest, evaluate_checkpoint};
use phalanx_train::faults::Faults;
use phalanx_train::report::Summary;
use phalanx_train::run::TrainRequest;
use phalanx_train::task::Views;
use phalanx_train::{Error, ledger};

#[test]
fn one_hash_for_any_world_and_any_threads() {
    let tmp = tempfile::tempdir().unwrap();
    let mut first = None;
    for (world, compute, loader) in [(1, 1, 0), (2, 2, 1), (3, 3, 2), (4, 1, 3), (8, 2, 0)] {
        let threads = [format!("compute.threads={compute}"), format!("loader.threads={loader}")];
        let out = tmp.path().join(world.to_string());
        let summary = run(&request(&out, world, &[&threads[0], &threads[1]])).unwrap();
        assert_eq!(
            (summary.status.as_str(), summary.steps, summary.samples_seen),
            ("finished", 30, 2 * 1442)
        );
        let got = hashes(&summary);
        // Equal bits of a network that learns nothing would prove little.
        let error = summary.eval.as_ref().unwrap().top1_error;
        assert!(error < 0.3, "{error}");
        assert_eq!(*first.get_or_insert(got.clone()), got, "on {world} ranks");
        assert_eq!(ledger::verify(&out).unwrap().whole_epochs, 2);
    }
}

#[test]
fn interruptions_and_resizes_change_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let whole = hashes(&run(&request(&tmp.path().join("whole"), 2, &[])).unwrap());
    for seed in 0..3 {
        let mut stream = Key::new(seed).stream();
        let out = tmp.path().join(format!("cut-{seed}"));
        let mut at = 0;
        let end = loop {
            let world = [1, 2, 3, 4, 8][stream.below(5) as usize];
            let mut request = request(&out, world, &[]);
            // Half of the interruptions are in good order, the others a rank's panic, which loses the
            // steps since the last checkpoint.
            let stop_at = at + 1 + stream.below(12);
            if stream.below(2) == 0 {
                request.max_steps = Some(stop_at);
            } else {
                let fault = format!("rank={},step={stop_at},kind=panic", stream.below(u64::from(world)));
                request.faults = Faults::parse(&[fault]).unwrap();
            }
            match run(&request) {
                Ok(s) if s.status == "finished" => break s,
                Ok(s) => at = s.steps,
                Err(e) => {
                    assert!(matches!(e, Error::Panic { .. }) && e.exit_code() == 4, "{e}");
                    at = stop_at - stop_at % 5;
                }
            }
        };
        assert_eq!(hashes(&end), whole, "cut with seed {seed}");
        let proof = ledger::verify(&out).unwrap();
        assert_eq!((proof.whole_epochs, proof.samples), (2, 2 * 1442));
        assert!(proof.attempts > 1);
    }
}

/// The averaged weights belong to what must be the same.
fn with_average(s: &Summary) -> (String, String, String, Option<String>) {
    let (params, buffers, eval) = hashes(s);
    (params, buffers, eval, s.ema_hash.clone())
}

#[test]
fn clipping_averages_and_optimizers_that_need_whole_parameters_keep_it() {
    let tmp = tempfile::tempdir().unwrap();
    let averaged = ["train.clip_norm=0.5", "ema.decay=0.9", "ema.warmup=true"];
    let recipes: [(&str, &str, &[&str]); 4] = [
        ("adamw", "name = \"adamw\"\nlr = 0.005\nweight_decay = 0.05", &averaged),
        (
            "lars",
            "name = \"lars\"\nlr = 10.0\nmomentum = 0.9\nweight_decay = 1e-4",
            &["ema.decay=0.5", "ema.every_steps=3"],
        ),
        ("lamb", "name = \"lamb\"\nlr = 0.02\nweight_decay = 0.01", &[]),
        ("rmsprop", "name = \"rmsprop\"\nlr = 0.001", &["train.clip_value=0.01"]),
    ];
    for (name, optimizer, settings) in recipes {
        // Small buckets, so that parameters are cut where a bucket ends.
        let settings = [settings, &["distributed.bucket_mb=0.01"]].concat();
        let start = |dir: &str, world: u32| {
            let mut request = request(&tmp.path().join(format!("{name}-{dir}")), world, &settings);
            request.config.optimizer = toml::from_str(optimizer).unwrap();
            request
        };
        let whole = run(&start("1", 1)).unwrap();
        let eval = whole.eval.as_ref().unwrap();
        assert!(eval.top1_error < 0.5, "{name}: {}", eval.top1_error);
        let average = settings.iter().any(|s| s.starts_with("ema."));
        assert_eq!((whole.ema_hash.is_some(), eval.ema), (average, average), "{name}");
        assert_ne!(whole.ema_hash.as_ref(), Some(&whole.params_hash), "{name}");
        for world in [2, 3] {
            let mut request = start(&world.to_string(), world);
            request.config.compute.threads = world as usize;
            let got = run(&request).unwrap();
            assert_eq!(with_average(&got), with_average(&whole), "{name} on {world} ranks");
        }
        let mut cut = start("cut", 3);
        for (world, steps) in [(3, Some(7)), (2, Some(19)), (4, None)] {
            (cut.ranks, cut.max_steps) = (world, steps);
            let got = run(&cut).unwrap();
            if steps.is_none() {
                assert_eq!(with_average(&got), with_average(&whole), "{name} cut and resized");
            }
        }
        let metrics = std::fs::read_to_string(cut.out.join("metrics.jsonl")).unwrap();
        let clipped = settings.iter().any(|s| s.contains("clip_norm"));
        assert_eq!(metrics.contains("\"grad_norm\":"), clipped, "{name}: {metrics}");
    }
}

#[test]
fn wrong_clipping_and_averages_are_refused() {
    let text = include_str!("../../../configs/digits.toml");
    for (setting, say) in [
        ("train.clip_norm=0", "clip_norm"),
        ("train.clip_value=-1", "clip_value"),
        ("eval.use_ema=true", "[ema]"),
        ("ema.decays=0.9", "decay"),
    ] {
        let e = Config::parse(text, "digits.toml", &[setting.to_owned()]).unwrap_err();
        assert!(e.to_string().contains(say) && e.exit_code() == 2, "{setting}: {e}");
    }
    let tmp = tempfile::tempdir().unwrap();
    let e = run(&request(tmp.path(), 1, &["ema.decay=1.5"])).unwrap_err();
    assert!(e.to_string().contains("decay is 1.5") && e.exit_code() == 2, "{e}");
}

#[test]
fn another_instruction_set_is_another_fingerprint() {
    let tmp = tempfile::tempdir().unwrap();
    let mut first = request(tmp.path(), 2, &["compute.isa=\"portable\""]);
    first.max_steps = Some(6);
    run(&first).unwrap();
    let detected = phalanx_host::Isa::detect();
    let again = request(tmp.path(), 2, &[]);
    match detected {
        phalanx_host::Isa::Portable => drop(run(&again).unwrap()),
        _ => {
            let e = run(&again).unwrap_err();
            assert!(e.to_string().contains("isa") && e.to_string().contains("portable"), "{e}");
            assert_eq!(e.exit_code(), 2);
            let allowed = TrainRequest { allow_fingerprint_change: true, ..again };
            assert_eq!(run(&allowed).unwrap().status, "finished");
        }
    }
}

#[test]
fn a_narrow_wire_has_bits_of_its_own_and_they_are_one_for_any_world() {
    let tmp = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for wire in ["f32", "bf16", "f16"] {
        let mut first = None;
        for world in 1..=4 {
            let out = tmp.path().join(format!("{wire}-{world}"));
            // Small buckets, so that many sums are under way at once.
            let settings = [format!("distributed.wire={wire}"), "distributed.bucket_mb=0.01".into()];
            let summary = run(&request(&out, world, &[&settings[0], &settings[1]])).unwrap();
            let error = summary.eval.as_ref().unwrap().top1_error;
            assert!(error < 0.3, "{wire}: {error}");
            let got = hashes(&summary);
            assert_eq!(*first.get_or_insert(got.clone()), got, "{wire} on {world} ranks");
        }
        all.extend(first);
    }
    assert!(all[0].0 != all[1].0 && all[0].0 != all[2].0 && all[1].0 != all[2].0, "{all:?}");
    // The size of the buckets is no part of what a run is.
    assert_eq!(all[0], hashes(&run(&request(&tmp.path().join("large"), 2, &[])).unwrap()));
    // The wire is.
    let e = run(&request(&tmp.path().join("bf16-2"), 2, &["distributed.wire=f16"])).unwrap_err();
    assert!(e.to_string().contains("distributed.wire was \"bf16\" there"), "{e}");
}

#[test]
fn the_time_that_a_run_takes_is_explained() {
    let tmp = tempfile::tempdir().unwrap();
    let late = "rank=1,step=9,kind=slow:80".to_owned();
    let faults = Faults::parse(&[late]).unwrap();
    let summary = run(&TrainRequest { faults, ..request(tmp.path(), 2, &["train.epochs=4"]) }).unwrap();
    let t = summary.time;
    assert!(t.unexplained_s <= 0.03 * t.total_s, "{t:?}");
    assert!(t.total_s <= summary.wall_s && t.total_s > 0.5 * summary.wall_s, "{t:?} of {}", summary.wall_s);
    for part in [t.compute_s, t.data_wait_s, t.communication_s, t.optimizer_s, t.checkpoint_s, t.audit_s] {
        assert!(part > 0.0, "{t:?}");
    }
    // Half of the ranks waited for the late one.
    assert!(t.evaluation_s > 0.0 && t.skew_s > 0.03, "{t:?}");
    // The lines of metrics add up to what rank 0 has spent up to the last of them.
    let text = std::fs::read_to_string(tmp.path().join("metrics.jsonl")).unwrap();
    let total =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["time"]["total_s"].as_f64();
    let lines: Vec<f64> = text.lines().filter_map(total).collect();
    assert_eq!(lines.len(), 15);
    let sum: f64 = lines.iter().sum();
    assert!(sum < 1.05 * t.total_s && sum > 0.5 * t.total_s, "{sum} of {t:?}");
}

#[test]
fn losses_that_weigh_classes_and_ignore_labels_keep_it() {
    let tmp = tempfile::tempdir().unwrap();
    let weights = "loss.class_weights=[0.3, 1.7, 1.0, 0.9, 2.2, 0.1, 1.3, 0.7, 0.45, 3.1]";
    let smoothed = ["loss.kind=cross_entropy", "loss.label_smoothing=0.1", weights, "loss.ignore_index=7"];
    let binary = ["loss.kind=bce", "loss.label_smoothing=0.05"];
    let recipes: [(&str, &[&str]); 3] = [
        ("smoothed", &smoothed),
        ("bce", &binary),
        ("margin", &["loss.kind=multi_margin", "loss.p=2", "loss.margin=0.5"]),
    ];
    for (name, settings) in recipes {
        let start =
            |dir: &str, world: u32| request(&tmp.path().join(format!("{name}-{dir}")), world, settings);
        let whole = run(&start("1", 1)).unwrap();
        let eval = whole.eval.as_ref().unwrap();
        // After 30 steps; by chance it is 0.9.
        assert!(eval.top1_error < 0.65, "{name}: {}", eval.top1_error);
        for world in [2, 3] {
            let mut request = start(&world.to_string(), world);
            request.config.compute.threads = world as usize;
            assert_eq!(hashes(&run(&request).unwrap()), hashes(&whole), "{name} on {world} ranks");
        }
        let mut cut = start("cut", 3);
        for (world, steps) in [(3, Some(7)), (2, Some(19)), (4, None)] {
            (cut.ranks, cut.max_steps) = (world, steps);
            let got = run(&cut).unwrap();
            if steps.is_none() {
                assert_eq!(hashes(&got), hashes(&whole), "{name} cut and resized");
            }
        }
    }
    // The loss is part of what a run is, and the plain one is what there is without the table.
    let e = run(&request(&tmp.path().join("smoothed-1"), 1, &smoothed[..3])).unwrap_err();
    assert!(e.to_string().contains("loss.ignore_index was 7 there"), "{e}");
    let plain = run(&request(&tmp.path().join("none"), 1, &[])).unwrap();
    let named = run(&request(&tmp.path().join("none"), 1, &["loss.kind=cross_entropy"])).unwrap();
    assert_eq!(hashes(&plain), hashes(&named));
}

#[test]
fn wrong_losses_are_explained() {
    let text = include_str!("../../../configs/digits.toml");
    for (settings, say) in [
        (&["loss.kind=cross_entrpy"][..], "did you mean `cross_entropy`"),
        (&["loss.label_smoothing=0.1"], "missing key `kind`"),
        (&["loss.kind=mse", "loss.delta=1"], "delta"),
        (&["loss.kind=cross_entropy", "loss.label_smothing=0.1"], "did you mean `label_smoothing`"),
        (&["loss.kind=cross_entropy", "loss.label_smoothing=1.5"], "label_smoothing is 1.5"),
        (
            &["loss.kind=cross_entropy", "loss.class_weights=[1, 2]"],
            "2 weights, but the data set has 10 classes",
        ),
        (&["loss.kind=bce", "loss.pos_weight=[-1, 1]"], "pos_weight has -1"),
        (&["loss.kind=huber", "loss.delta=0"], "delta is 0"),
        (&["loss.kind=multi_margin", "loss.p=3"], "p is 3"),
    ] {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        let parsed = Config::parse(text, "digits.toml", &settings);
        let e = parsed.and_then(|c| phalanx_train::setup::check(&c)).unwrap_err();
        assert!(e.to_string().contains(say) && e.exit_code() == 2, "{settings:?}: {e}");
    }
}

#[test]
fn weights_to_begin_with_and_views_to_evaluate_keep_it() {
    let tmp = tempfile::tempdir().unwrap();
    let first = tmp.path().join("first");
    let whole = run(&request(&first, 2, &[])).unwrap();
    let weights = format!("init.weights={}", first.display());
    let begin = |name: &str, world: u32, max: Option<u64>, more: &[&str]| {
        let settings: Vec<&str> = [&[&*weights, "seed=8"], more].concat();
        let mut request = request(&tmp.path().join(name), world, &settings);
        request.max_steps = max;
        run(&request)
    };
    let untouched = begin("none", 3, Some(0), &[]).unwrap();
    assert_eq!((untouched.steps, &untouched.params_hash), (0, &whole.params_hash));
    assert_eq!(untouched.buffers_hash, whole.buffers_hash);
    let one = hashes(&begin("one", 1, None, &[]).unwrap());
    begin("cut", 3, Some(7), &[]).unwrap();
    assert_eq!(hashes(&begin("cut", 4, None, &[]).unwrap()), one);
    // The average begins with those weights on any number of ranks.
    let averaged = |name: &str, world: u32, max: Option<u64>| {
        with_average(&begin(name, world, max, &["ema.decay=0.9"]).unwrap())
    };
    let (params, .., average) = averaged("average-none", 1, Some(0));
    assert_eq!((&params, average.as_ref()), (&whole.params_hash, Some(&params)));
    let average = averaged("average-1", 1, None);
    assert!(average.3.is_some());
    assert_eq!(averaged("average-3", 3, None), average);
    // A head of its own is another run; what begins no name is none.
    let head = hashes(&begin("head", 2, None, &["init.skip=[\"layers.\"]"]).unwrap());
    assert_ne!(head, one);
    let e = begin("wrong", 2, None, &["init.skip=[\"head.\"]"]).unwrap_err();
    assert!(e.to_string().contains("no tensor of the model begins with it") && e.exit_code() == 2, "{e}");

    let config = request(&first, 1, &[]).config;
    let plain = Views::default();
    let of = |views: &Views, world: u32| {
        let (config, checkpoint, views) = (config.clone(), first.clone(), views.clone());
        let device = "cpu".into();
        evaluate_checkpoint(&EvaluateRequest { config, checkpoint, views, device, precision: None }, world)
    };
    for views in [
        Views { scales: vec![10], crops: 10, crop: None },
        Views { scales: vec![8, 11], crop: Some(8), ..plain.clone() },
        Views { scales: vec![8, 9], ..plain.clone() },
    ] {
        let alone = of(&views, 1).unwrap();
        assert_eq!((alone.samples, alone.views.as_ref()), (355, Some(&views)));
        assert!(alone.top1_error < 0.5, "{views}: {alone:?}");
        assert_eq!(of(&views, 3).unwrap(), alone, "{views}");
    }
    // The network's last layer takes one size.
    let e = of(&Views { scales: vec![16], ..plain.clone() }, 2).unwrap_err();
    assert!(e.to_string().contains("made for another size than 16x16x1") && e.exit_code() == 2, "{e}");
    let plainly = of(&plain, 2).unwrap();
    assert_eq!(Some(plainly), whole.eval);
}
