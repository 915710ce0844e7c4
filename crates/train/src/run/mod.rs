//! A run from its start to its summary: what `phalanx train` does on one rank.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use phalanx_comm::Communicator;
use phalanx_data::Source;
use phalanx_host::Isa;
use phalanx_nn::EmaConfig;

use crate::config::Config;
use crate::faults::Faults;
use crate::machine::DeviceChoice;
use crate::report::{Style, Summary};
use crate::rundir::Resume;
use crate::{Error, Result, ranks};

mod feed;
mod session;
mod start;

use start::Opened;

/// What `phalanx train` is asked to do.
#[derive(Debug, Clone)]
pub struct TrainRequest {
    /// The configuration.
    pub config: Config,
    /// Thread ranks.
    pub ranks: u32,
    /// Where to compute.
    pub device: DeviceChoice,
    /// The run directory.
    pub out: PathBuf,
    /// What to do with a run that is there.
    pub resume: Resume,
    /// Stop once this many steps are done in all.
    pub max_steps: Option<u64>,
    /// How progress is shown.
    pub style: Style,
    /// Planted failures.
    pub faults: Faults,
    /// Go on although the fingerprint differs from the checkpoint's.
    pub allow_fingerprint_change: bool,
    /// Set by a signal: stop after the step, with a checkpoint.
    pub stop: Arc<AtomicBool>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The summary, as written.
    pub summary: Summary,
    /// Whether it was stopped by a signal and wants to be started again.
    pub stopped: bool,
}

/// Trains over thread ranks.
pub fn train(request: &TrainRequest) -> Result<Outcome> {
    train_or(request, &|_| ())
}

/// As [`train`]; calls `stuck` with the failure when a rank has failed and some other one hangs where no
/// abort reaches it.
pub fn train_or(request: &TrainRequest, stuck: &dyn Fn(&Error)) -> Result<Outcome> {
    if request.ranks == 0 {
        return Err(Error::config("--ranks", "there must be at least one rank"));
    }
    // What can be known before anything is opened, made or started.
    let isa = check(request, request.ranks)?;
    // Threads share what is open.
    let sets = Sets::open(&request.config)?;
    let deadline = Duration::from_secs_f64(request.config.distributed.deadline_s);
    let body = |comm| train_on(request, comm, isa, &sets);
    let outcomes = ranks::run_threads_or(request.ranks, deadline, isa, ranks::GRACE, stuck, body)?;
    let none = || Error::config("--ranks", "no rank gave an outcome");
    outcomes.into_iter().next().ok_or_else(none)
}

/// Trains as one rank of `comm`'s world: `request.ranks` does not count.
pub fn train_rank(request: &TrainRequest, comm: Arc<dyn Communicator>) -> Result<Outcome> {
    let isa = check(request, comm.world())?;
    train_on(request, comm, isa, &Sets::open(&request.config)?)
}

fn train_on(request: &TrainRequest, comm: Arc<dyn Communicator>, isa: Isa, sets: &Sets) -> Result<Outcome> {
    match start::open(request, comm, isa, sets)? {
        Opened::Ready(session) => session.run(),
        Opened::Ended(summary) => Ok(Outcome { summary: *summary, stopped: false }),
    }
}

/// Checks what can be known of a run on `world` ranks without opening anything.
fn check(request: &TrainRequest, world: u32) -> Result<Isa> {
    let config = &request.config;
    request.faults.check(world)?;
    shards(config, None, world)?;
    config.optimizer.check()?;
    config.schedule.check()?;
    config.ema.as_ref().map_or(Ok(()), EmaConfig::check)?;
    config.model.check()?;
    Ok(Isa::choose(&config.compute.isa)?)
}

/// The open data sets of a run.
struct Sets {
    train: Arc<dyn Source>,
    eval: Arc<dyn Source>,
}

impl Sets {
    fn open(config: &Config) -> Result<Self> {
        let (train, eval) = config.data.open(config.seed)?;
        if config.train.global_batch > train.len() {
            let problem = format!(
                "{} is larger than the set: {} has {} samples",
                config.train.global_batch,
                train.name(),
                train.len()
            );
            return Err(Error::config("train.global_batch", problem));
        }
        Ok(Sets { train, eval })
    }
}

fn steps_per_epoch(config: &Config, train: &dyn Source) -> u64 {
    phalanx_data::steps_per_epoch(train.len(), config.train.global_batch)
}

/// V: the checkpoint's, or the configured, or one a rank.
fn shards(config: &Config, saved: Option<u32>, world: u32) -> Result<u32> {
    let v = match (saved, config.distributed.virtual_shards) {
        (Some(saved), Some(v)) if saved != v => {
            let problem =
                format!("it is {v}, but the run was begun with {saved}; V is fixed at a run's first start");
            return Err(Error::config("distributed.virtual_shards", problem));
        }
        (saved, configured) => saved.or(configured).unwrap_or(world),
    };
    if world > v {
        let problem = format!(
            "{world} ranks cannot share {v} virtual shards; start at most {v} (a new run can have more: \
             distributed.virtual_shards)"
        );
        return Err(Error::config("--ranks", problem));
    }
    Ok(v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shards_are_fixed_at_the_first_start() {
        let text = "[model]\nname=\"lenet5\"\n[data]\ntrain=\"digits\"\n[optimizer]\nname=\"sgd\"\nlr=0.1\n[train]\nepochs=1\nglobal_batch=8\n";
        let open = Config::parse(text, "t", &[]).unwrap();
        let fixed = Config::parse(text, "t", &["distributed.virtual_shards=8".into()]).unwrap();
        assert_eq!(shards(&open, None, 3).unwrap(), 3);
        assert_eq!(shards(&open, Some(6), 3).unwrap(), 6);
        assert_eq!(shards(&fixed, None, 3).unwrap(), 8);
        assert!(shards(&fixed, Some(6), 3).unwrap_err().to_string().contains("begun with 6"));
        assert!(shards(&open, Some(2), 3).unwrap_err().to_string().contains("at most 2 ("));
    }
}
