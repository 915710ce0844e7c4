//! The promise on the digits: batch norm, dropout, a last batch that divides by nothing; one hash for
//! any world, any threads, any interruption.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use phalanx_host::rng::Key;
use phalanx_train::config::Config;
use phalanx_train::faults::Faults;
use phalanx_train::ledger;
use phalanx_train::report::{Style, Summary};
use phalanx_train::run::{TrainRequest, train};
use phalanx_train::rundir::Resume;
use phalanx_train::{Error, Result};

fn request(out: &Path, ranks: u32, settings: &[&str]) -> TrainRequest {
    let text = include_str!("../../../configs/digits.toml");
    let fixed = ["train.epochs=2", "train.global_batch=101", "checkpoint.every_steps=5", "log.every_steps=4"];
    let settings: Vec<String> = fixed.iter().chain(settings).map(|s| (*s).to_owned()).collect();
    TrainRequest {
        config: Config::parse(text, "digits.toml", &settings).unwrap(),
        ranks,
        device: "cpu".into(),
        out: out.into(),
        resume: Resume::Auto,
        max_steps: None,
        style: Style::Quiet,
        faults: Faults::default(),
        allow_fingerprint_change: false,
        stop: Arc::new(AtomicBool::new(false)),
    }
}

fn run(request: &TrainRequest) -> Result<Summary> {
    train(request).map(|o| o.summary)
}

fn hashes(s: &Summary) -> (String, String, String) {
    let eval = s.eval.as_ref().map(|e| format!("{e:?}")).unwrap_or_default();
    (s.params_hash.clone(), s.buffers_hash.clone(), eval)
}

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
