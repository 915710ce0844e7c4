//! What the tests of whole runs share: two epochs of the digits, with a last batch that divides by nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use phalanx_train::Result;
use phalanx_train::config::Config;
use phalanx_train::faults::Faults;
use phalanx_train::report::{Style, Summary};
use phalanx_train::run::{TrainRequest, train};
use phalanx_train::rundir::Resume;

/// A run of 30 steps and 8 virtual shards in `out`.
pub(crate) fn request(out: &Path, ranks: u32, settings: &[&str]) -> TrainRequest {
    let text = include_str!("../../../../configs/digits.toml");
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

pub(crate) fn run(request: &TrainRequest) -> Result<Summary> {
    train(request).map(|o| o.summary)
}

/// What must be the same whatever happens to a run.
pub(crate) fn hashes(s: &Summary) -> (String, String, String) {
    let eval = s.eval.as_ref().map(|e| format!("{e:?}")).unwrap_or_default();
    (s.params_hash.clone(), s.buffers_hash.clone(), eval)
}
