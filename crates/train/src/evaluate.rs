//! Evaluation: every sample of the set once, spread over the shards, exact sums.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use phalanx_comm::{Activity, Communicator, Deadline, Wire};
use phalanx_data::{Loader, LoaderConfig, Mode, Plan, Source};
use serde::{Deserialize, Serialize};

use phalanx_host::Isa;

use crate::checkpoint::{self, Progress};
use crate::config::{Config, Precision, first_difference};
use crate::engine::{Clip, CudaGraph, Engine, EngineOptions};
use crate::faults::Faults;
use crate::machine::DeviceChoice;
use crate::setup::Samples;
use crate::share::check_same_table;
use crate::snapshot::Snapshot;
use crate::task::{Batch, Criterion, Task, ViewedClassification, Views};
use crate::{Error, Result, bad, memory, ranks, setup};

/// What an evaluation came to: means over the set, errors as fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss.
    #[serde(deserialize_with = "crate::report::or_nan")]
    pub loss: f64,
    /// The fraction whose class did not come first.
    pub top1_error: f64,
    /// The fraction whose class was not among the first five.
    pub top5_error: f64,
    /// Samples evaluated.
    pub samples: u64,
    /// Samples that count nothing, since their records could not be used.
    #[serde(default, skip_serializing_if = "none")]
    pub bad_records: u64,
    /// Whether the weights were their moving average.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ema: bool,
    /// The views of each image whose shares were averaged, where it was not the image alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub views: Option<Views>,
}

fn none(n: &u64) -> bool {
    *n == 0
}

impl Evaluation {
    /// What was evaluated, as the end of a remark, where it is not the weights and images themselves.
    pub fn of_what(&self) -> String {
        let weights = if self.ema { ", averaged weights" } else { "" };
        let views = self.views.as_ref().map_or(String::new(), |v| format!(", {v}"));
        format!("{weights}{views}")
    }
}

/// `sum / weight`; the mean of nothing is told as 0.
pub(crate) fn mean(sum: f64, weight: f64) -> f64 {
    if weight > 0.0 { sum / weight } else { 0.0 }
}

/// Steps between votes on whether to stop.
const VOTE_EVERY: u64 = 8;

/// Evaluates the task on `source`, `batch` samples of each shard at a time. All ranks must call it; all
/// get the same result, whatever their number. None when some rank's `stop` said so.
pub fn evaluate(
    engine: &Engine,
    source: &Arc<dyn Source>,
    loader: &LoaderConfig,
    batch: u64,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Evaluation>> {
    let shards = u64::from(engine.options.shards);
    let mine = engine.shards()?;
    // A sum and its weight for each.
    let width = 2 * engine.task.evaluations().len();
    // No more samples at once than the set has: a small set is still spread over the shards.
    let global = batch.saturating_mul(shards).min(source.len().max(1));
    let range = u64::from(mine.start)..u64::from(mine.end);
    let plan = Plan::new(source.len(), global, shards, range, 1)?;
    let deadline = || Deadline::after(engine.options.deadline);
    let mut sums = vec![0.0; mine.len() * width];
    let (mut bad, mut last) = (0u64, String::new());
    let pool = engine.device.host_pool();
    for loaded in Loader::new(source.clone(), loader, Mode::Eval, plan, &pool)? {
        let loaded = loaded?;
        let first_of_step = loaded.item.shard == u64::from(mine.start);
        if first_of_step
            && loaded.item.step.is_multiple_of(VOTE_EVERY)
            && engine.comm.vote(u8::from(stop()), deadline())? > 0
        {
            return Ok(None);
        }
        bad += loaded.bad.len() as u64;
        if let Some(of) = loaded.bad.last() {
            last.clone_from(&of.reason);
        }
        if loaded.batch.is_empty() {
            continue;
        }
        let batch = Batch::from_data(loaded.batch, &engine.device)?;
        let values = engine.task.evaluate(&batch, &engine.inference())?;
        let at = (loaded.item.shard as usize - mine.start as usize) * width;
        sums[at..at + width].iter_mut().zip(values.as_flattened()).for_each(|(s, v)| *s += v);
    }
    // Every rank adds all shards' sums in the order of the shards: one result for any world.
    let all = engine.comm.all_gather(bytemuck::cast_slice(&sums), deadline())?;
    let mut total = vec![0.0; width];
    for part in all {
        for shard in bytemuck::pod_collect_to_vec::<u8, f64>(&part).chunks(width) {
            total.iter_mut().zip(shard).for_each(|(t, s)| *t += s);
        }
    }
    let told = engine.comm.all_gather(&[&bad.to_le_bytes(), last.as_bytes()].concat(), deadline())?;
    let told = told.iter().filter_map(|t| t.split_first_chunk());
    let (mut bad, mut last) = (0, String::new());
    for (number, reason) in told.map(|(n, reason)| (u64::from_le_bytes(*n), reason)).filter(|t| t.0 > 0) {
        (bad, last) = (bad + number, String::from_utf8_lossy(reason).into_owned());
    }
    // Means of a part of the set that is too small would be told as the set's.
    bad::check_whole(bad, source.len(), loader.bad_limit, &last)?;
    let means: Vec<f64> = total.chunks(2).map(|of| mean(of[0], of[1])).collect();
    let [loss, top1_error, top5_error] = means[..] else {
        let problem = format!("it has {} means to evaluate, not 3", means.len());
        return Err(Error::Task { task: engine.task.name(), problem });
    };
    Ok(Some(Evaluation {
        loss,
        top1_error,
        top5_error,
        samples: source.len().saturating_sub(bad),
        bad_records: bad,
        ema: engine.evaluated_average().is_some(),
        views: None,
    }))
}

/// What `phalanx evaluate` is asked to do.
#[derive(Debug, Clone)]
pub struct EvaluateRequest {
    /// The configuration, whose evaluation set it is.
    pub config: Config,
    /// A checkpoint, or a run directory for its newest one.
    pub checkpoint: PathBuf,
    /// The views of each image.
    pub views: Views,
    /// Where to compute.
    pub device: DeviceChoice,
    /// The type of activations: the checkpoint's on a GPU, f32 on the CPU when left out.
    pub precision: Option<Precision>,
}

/// Evaluates over thread ranks.
pub fn evaluate_checkpoint(request: &EvaluateRequest, world: u32) -> Result<Evaluation> {
    let config = &request.config;
    let isa = Isa::choose(&config.compute.isa)?;
    let sets = config.data.open(config.seed)?;
    let deadline = Duration::from_secs_f64(config.distributed.deadline_s);
    let body = |comm| on_rank(request, isa, &sets, comm);
    let results = ranks::run_threads(world, deadline, isa, body)?;
    let none = || Error::config("--ranks", "there must be at least one rank");
    results.into_iter().next().ok_or_else(none)
}

/// As [`evaluate_checkpoint`], as one rank of `comm`'s world. Rank 0 alone must see the checkpoint.
pub fn evaluate_rank(request: &EvaluateRequest, comm: Arc<dyn Communicator>) -> Result<Evaluation> {
    let config = &request.config;
    let isa = Isa::choose(&config.compute.isa)?;
    on_rank(request, isa, &config.data.open(config.seed)?, comm)
}

fn on_rank(
    request: &EvaluateRequest,
    isa: Isa,
    (train, eval): &(Arc<dyn Source>, Arc<dyn Source>),
    comm: Arc<dyn Communicator>,
) -> Result<Evaluation> {
    let EvaluateRequest { config, views, .. } = request;
    let deadline = Duration::from_secs_f64(config.distributed.deadline_s);
    check_same_table(&*comm, "the configuration", || config.identity())?;
    let saved = if comm.rank() == 0 { Some(read_for(config, &request.checkpoint)?) } else { None };
    let (snapshot, progress) = checkpoint::from_rank_0(&*comm, saved)?;
    let have = memory::available();
    let machine = setup::machine(config, &request.device, isa, &*comm)?;
    if comm.rank() == 0 {
        machine.tell_no_gpu();
    }
    let mut config = config.clone();
    config.train.precision = match request.precision {
        Some(precision) => precision,
        None if machine.gpu().is_some() => precision_of(&progress.identity),
        None => Precision::F32,
    };
    machine.set_precision(config.train.precision)?;
    let config = &config;
    let samples = setup::samples(&**train, &config.loader)?;
    setup::check_alike((&**train, &samples), &**eval, &config.loader)?;
    let shards = progress.virtual_shards.max(comm.world());
    let (here, have) = (machine.sharing, memory::of_gpu(&machine).or(have));
    let fits = |input| {
        memory::check_evaluation(config, &samples, input, [eval.len(), shards.into()], here, have.as_ref())
    };
    fits(samples.input)?;
    let model = setup::classification(config, &**train, &comm, &machine)?;
    let task: Box<dyn Task> = if views.is_plain() {
        model.task
    } else {
        let layers = |size| {
            fits(size)?;
            setup::layers_for(&config.model, size, samples.classes, &model.params)
        };
        let ignore = Criterion::new(&config.loss, samples.classes)?.ignored();
        let Samples { input, image, label, .. } = samples;
        let names = [image, label];
        Box::new(ViewedClassification::new(
            views,
            input,
            &layers,
            &model.params,
            names,
            ignore,
            &machine.cpu,
        )?)
    };
    let loader = setup::loader(&config.loader, &*comm, &machine);
    let options = EngineOptions {
        seed: config.seed,
        shards,
        // No gradient is summed.
        bucket_bytes: usize::MAX,
        wire: Wire::F32,
        deadline,
        clip: Clip::default(),
        ema: config.ema.clone().filter(|_| config.evaluates_ema()),
        evaluate_ema: true,
        precision: config.train.precision,
        samples: config.train.global_batch,
        cuda_graph: CudaGraph::Off,
        faults: Faults::default(),
    };
    let mut engine = Engine::new(comm, &machine, task, model.params, model.norms, options)?;
    engine.restore(&snapshot)?;
    engine.comm.whereabouts().enter(Activity::Evaluation);
    let result = evaluate(&engine, eval, &loader, config.eval.batch, &|| false)?;
    let result = result.ok_or_else(|| Error::config("evaluation", "it was stopped"))?;
    Ok(Evaluation { views: Some(views.clone()).filter(|v| !v.is_plain()), ..result })
}

/// The type of activations that a run had.
fn precision_of(identity: &toml::Table) -> Precision {
    let of_run = identity.get("train").and_then(|train| train.get("precision"));
    of_run.and_then(|p| p.clone().try_into().ok()).unwrap_or_default()
}

/// The checkpoint at `path`, which must be of the configured model.
fn read_for(config: &Config, path: &Path) -> Result<(Snapshot, Progress)> {
    let (_, snapshot, progress) = checkpoint::find(path, |_| ())?;
    let model = |identity: toml::Table| identity.into_iter().filter(|(key, _)| key == "model").collect();
    if let Some((key, was, now)) =
        first_difference(&model(progress.identity.clone()), &model(config.identity()?))
    {
        let problem = format!("it is of another model: {key} was {was} there and is {now} now");
        return Err(Error::Checkpoint { path: path.into(), problem });
    }
    Ok((snapshot, progress))
}
