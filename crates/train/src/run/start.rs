//! How a rank gets ready: all checks, the run directory, the model as it was left.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_comm::side::host_name;
use phalanx_comm::{Activity, Communicator, Deadline};
use phalanx_host::Isa;
use phalanx_nn::Builder;

use super::session::{STOPPED, Session};
use super::{Sets, TrainRequest, shards, steps_per_epoch};
use crate::algorithms::Algorithms;
use crate::bad::Quarantine;
use crate::checkpoint::{self, Progress, Writer};
use crate::config::{Config, first_difference, other_run};
use crate::engine::{Engine, EngineOptions};
use crate::fingerprint::{self, Fingerprint};
use crate::ledger::{Header, Ledger};
use crate::machine::Machine;
use crate::report::{Event, Reporter, Style, Summary, show_summary};
use crate::rundir::{Lock, RunDir};
use crate::share::{check_same_table, from_rank_0};
use crate::task::Criterion;
use crate::weights::Begun;
use crate::{Error, Result, memory, report, setup, staging, tuning};

/// What a start finds.
pub(super) enum Opened<'a> {
    /// There is something to do.
    Ready(Box<Session<'a>>),
    /// The run has come to its end before; its summary then.
    Ended(Box<Summary>),
}

/// Gets one rank ready. Only rank 0 reads what is in the run directory; the others are told.
pub(super) fn open<'a>(
    request: &'a TrainRequest,
    comm: Arc<dyn Communicator>,
    isa: Isa,
    sets: &'a Sets,
) -> Result<Opened<'a>> {
    let started = Instant::now();
    // Asked before a rank here has anything large: a checkpoint's memory is free again when the steps begin.
    let have = memory::available();
    comm.whereabouts().enter(Activity::Starting);
    let config = &request.config;
    let allowed = Duration::from_secs_f64(config.distributed.deadline_s);
    let mut machine = setup::machine(config, &request.device, isa, &*comm)?;
    machine.set_precision(config.train.precision)?;
    let mut here = fingerprint::of(&machine, isa);
    fingerprint::add_decoder(&mut here, &[&*sets.train, &*sets.eval]);
    check_same_table(&*comm, "the configuration", || config.identity())?;
    let data = fingerprint::of_sets(&*sets.train, &*sets.eval)?;
    check_same_table(&*comm, "the data", || Ok(data.clone()))?;
    let samples = setup::samples(&*sets.train, &config.loader)?;
    setup::check_alike((&*sets.train, &samples), &*sets.eval, &config.loader)?;
    // A model or a loss that does not fit the samples is refused before the directory is touched.
    phalanx_nn::build(&config.model, samples.input, samples.classes, &mut Builder::new())?;
    Criterion::new(&config.loss, samples.classes)?;

    let dir = RunDir::new(&request.out);
    let (mut lock, mut read) = (None, None);
    let start = from_rank_0(&*comm, Deadline::after(allowed), || {
        lock = Some(dir.lock()?);
        let (start, saved) = dir.open(config, &request.resume)?;
        read = saved;
        Ok(start)
    })?;
    let mut warnings = start.warnings;
    warnings.extend(lock.as_mut().and_then(|l: &mut Lock| l.warning.take()));
    let saved = match &start.checkpoint {
        None => None,
        Some(path) => {
            let saved = checkpoint::from_rank_0(&*comm, read)?;
            warnings.extend(check_saved(config, &data, &saved.1, path)?);
            from_rank_0(&*comm, Deadline::after(allowed), || {
                saved.1.init.as_ref().map_or(Ok(()), Begun::check_unchanged)
            })?;
            let allow = request.allow_fingerprint_change;
            warnings.extend(fingerprint::check_resume(
                &here,
                &saved.1.fingerprint,
                &machine.in_brackets(),
                allow,
            )?);
            Some(saved)
        }
    };
    let total = config.train.epochs.saturating_mul(steps_per_epoch(config, &*sets.train));
    let end = request.max_steps.map_or(total, |m| m.min(total));
    if let (Some((_, p)), Some(summary)) = (&saved, start.ended)
        && p.step >= end
        && !p.evaluation_due
        && summary.steps == p.step
        && summary.status != STOPPED
    {
        if comm.rank() == 0 {
            if request.style == Style::Human {
                report::say("nothing to do: this run has come to its end already");
            }
            show_summary(&dir, request.style, &summary);
        }
        return Ok(Opened::Ended(Box::new(summary)));
    }
    let shards = shards(config, saved.as_ref().map(|s| s.1.virtual_shards), comm.world())?;
    let (ranks, set) = (machine.sharing, [sets.eval.len(), shards.into()]);
    let have = memory::of_gpu(&machine).or(have);
    memory::check_training(config, &samples, shards, ranks, have.as_ref())?;
    if !sets.eval.is_empty() {
        memory::check_evaluation(config, &samples, samples.input, set, ranks, have.as_ref())?;
    }
    let staged = staging::stage(&config.data, &*comm, &[&*sets.train, &*sets.eval], allowed)?;
    warnings.extend(staged.iter().flat_map(|s| s.warnings.clone()));
    let resumed = [config.distributed.exact, saved.is_some(), request.allow_fingerprint_change];
    let algorithms = Algorithms::open(&dir, &*comm, machine.gpu(), resumed)?;
    machine.join(&comm, request.device.sums, config.distributed.exact)?;
    let by_host = |why| format!("gradients go by way of the host's memory and not over NCCL: {why}");
    warnings.extend(machine.no_nccl.as_ref().map(by_host));
    let model = setup::classification(config, &*sets.train, &comm, &machine)?;
    let (bucket_bytes, warning) = tuning::bucket_bytes(config.distributed.bucket_mb, &*comm)?;
    warnings.extend(warning);
    let options = EngineOptions {
        seed: config.seed,
        shards,
        bucket_bytes,
        wire: config.distributed.wire.wire(config.train.global_batch),
        deadline: allowed,
        clip: config.train.clip(),
        ema: config.ema.clone(),
        evaluate_ema: config.evaluates_ema(),
        precision: config.train.precision,
        samples: config.train.global_batch,
        cuda_graph: config.train.cuda_graph,
        faults: request.faults.clone(),
    };
    let mut engine = Engine::new(comm.clone(), &machine, model.task, model.params, model.norms, options)?;
    warnings.extend(engine.take_graph_notice());
    let progress = match saved {
        None => {
            let begun = match &config.init {
                None => None,
                Some(init) => Some(from_rank_0(&*comm, Deadline::after(allowed), || {
                    engine.begin_with(init, config, &samples)
                })?),
            };
            engine.take_model_of_rank_0()?;
            new_progress(config, shards, here, begun)?
        }
        Some((snapshot, progress)) => {
            engine.restore(&snapshot)?;
            engine.loss_scale = progress.loss_scale.or(engine.loss_scale);
            // Facts of this start replace those of the one before.
            Progress { fingerprint: here, identity: config.identity()?, ..progress }
        }
    };
    let progress = Progress { data, ..progress };
    let hash = engine.hash()?;
    phalanx_comm::check_same(&*comm, "the model's parameters", &hash.params, Deadline::after(allowed))?;
    dir.check_shared(&*comm, start.attempt)?;
    // The first lasting change to the directory, now that nothing speaks against the run; the ledger's
    // files come after it on every rank.
    warnings.extend(from_rank_0(&*comm, Deadline::after(allowed), || dir.begin(config, progress.step))?);
    let header = Header {
        attempt: start.attempt,
        rank: comm.rank(),
        world_size: comm.world(),
        first_step: progress.step,
        seed: config.seed,
        samples: sets.train.len(),
        data: fingerprint::of_training(&progress.data),
        global_batch: config.train.global_batch,
        virtual_shards: shards,
        order: config.loader.order,
    };
    let ledger = Ledger::create(dir.path(), &header)?;
    let hosts = comm.all_gather(host_name().as_bytes(), Deadline::after(allowed))?;
    let (mut reporter, mut writer, mut quarantine) = (None, None, None);
    if comm.rank() == 0 {
        let (first, due) = (progress.step, progress.evaluation_due);
        let mut r = Reporter::new(&dir, request.style, start.attempt, first, total, due)?;
        dir.clear_summary()?;
        dir.write_json("env.json", &environment(&engine, &machine, &progress, &hosts, staged.as_ref()))?;
        quarantine = Some(Quarantine::open(&dir, first)?);
        for message in warnings {
            r.tell(&Event::Warning { message })?;
        }
        r.tell(&Event::Start {
            step: progress.step,
            world_size: comm.world(),
            virtual_shards: shards,
            parameters: engine.params().count() as u64,
            resumed_from: start.checkpoint,
            init: progress.init.clone(),
            device: machine.device.name().into(),
            device_name: machine.name(),
            no_gpu: machine.no_gpu.as_ref().map(|no| no.brief.clone()),
        })?;
        reporter = Some(r);
        writer = Some(Writer::new(dir.checkpoints(), config.checkpoint.keep));
    }
    let loader = setup::loader(&config.loader, &*comm, &machine);
    let plateau = config.schedule.plateau(progress.plateau.as_ref())?;
    Ok(Opened::Ready(Box::new(Session {
        request,
        comm,
        engine,
        sets,
        dir,
        plateau,
        ledger,
        loader,
        quarantine,
        algorithms,
        reporter,
        writer,
        _lock: lock,
        total,
        device_name: machine.name(),
        ahead: VecDeque::new(),
        end,
        started,
        wall_before: progress.wall_s,
        step_ms: Vec::new(),
        samples: 0,
        logged: (Instant::now(), progress.samples_seen),
        fallbacks_told: 0,
        spent: Default::default(),
        fed: Default::default(),
        told_bound: false,
        told_bad: 0,
        last_bad: String::new(),
        equal_at: progress.step,
        progress,
    })))
}

/// A checkpoint must be of this very run, on the same data. Gives what the user should know.
fn check_saved(config: &Config, data: &toml::Table, saved: &Progress, path: &Path) -> Result<Option<String>> {
    let fail = |problem: String| Err(Error::Checkpoint { path: path.into(), problem });
    let now = config.identity()?;
    // Before checkpoints told what was in the sets, the sets' places had to do.
    let told = !saved.data.is_empty();
    let other = if told { other_run(&saved.identity, &now) } else { first_difference(&saved.identity, &now) };
    if let Some((key, was, now)) = other {
        return fail(format!("it is of another run: {key} was {was} there and is {now} now"));
    }
    // Nothing is learnt of what is evaluated on, unless the learning rate follows it.
    let follows = config.schedule.plateau(None)?.is_some();
    let relevant = |data: &toml::Table| {
        let mut data = data.clone();
        if let Some(toml::Value::Table(eval)) = data.get_mut("eval").filter(|_| !follows)
            && eval.contains_key("root")
        {
            eval.remove("quarantined");
            eval.remove("samples");
        }
        data
    };
    let [then, here] = [&saved.data, data].map(relevant);
    let Some((key, was, now)) = first_difference(&then, &here).filter(|_| told) else {
        let changed = told && saved.data != *data;
        return Ok(changed.then(|| {
            "other records of the evaluation set are left out than before: its errors are of other samples".to_owned()
        }));
    };
    let why = match key.ends_with(".quarantined") {
        true => {
            " (`phalanx data repair` has changed what is left out of the set; a run goes on with what it began with)"
        }
        false => "",
    };
    fail(format!("it was trained on other data: {key} was {was} there and is {now} now{why}"))
}

fn new_progress(
    config: &Config,
    shards: u32,
    fingerprint: Fingerprint,
    init: Option<Begun>,
) -> Result<Progress> {
    let identity = config.identity()?;
    Ok(Progress { virtual_shards: shards, fingerprint, identity, init, ..Progress::default() })
}

/// `env.json`.
fn environment(
    engine: &Engine,
    machine: &Machine,
    progress: &Progress,
    hosts: &[Vec<u8>],
    staged: Option<&staging::Outcome>,
) -> serde_json::Value {
    let comm = &engine.comm;
    let gpu = machine.gpu().map(|gpu| {
        let info = gpu.info();
        let uuid: String = info.uuid.iter().map(|b| format!("{b:02x}")).collect();
        serde_json::json!({
            "name": info.name,
            "uuid": uuid,
            "compute_capability": format!("{}.{}", info.compute.0, info.compute.1),
            "memory_bytes": info.memory,
            "multiprocessors": info.sms,
            "driver": format!("{}.{}", info.driver.0, info.driver.1),
        })
    });
    let hosts: BTreeSet<_> = hosts.iter().map(|h| String::from_utf8_lossy(h)).collect();
    serde_json::json!({
        "phalanx": env!("CARGO_PKG_VERSION"),
        "host": host_name(),
        "os": std::env::consts::OS,
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "world_size": comm.world(),
        "comm": engine.sums_over(),
        "no_nccl": machine.no_nccl,
        "hosts": hosts,
        "threads_per_rank": machine.cpu.workers.threads(),
        "device": machine.device.name(),
        "device_name": machine.name(),
        "gpu": gpu,
        "cuda_graph": engine.cuda_graph(),
        "no_gpu": machine.no_gpu.as_ref().map(|no| &no.why),
        "bucket_mb": engine.options.bucket_bytes as f64 / 1e6,
        "init": progress.init,
        "staged": staged,
        "fingerprint": progress.fingerprint,
    })
}
