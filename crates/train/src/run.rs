//! A run from its start to its summary: what `phalanx train` does on one rank.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use phalanx_comm::side::host_name;
use phalanx_comm::{Communicator, Deadline, check_same};
use phalanx_data::{Loader, Mode, Plan, Source};
use phalanx_host::Isa;
use phalanx_nn::Plateau;

use crate::checkpoint::{self, Progress, Writer};
use crate::config::Config;
use crate::engine::{Engine, EngineOptions, StepReport};
use crate::evaluate::evaluate;
use crate::faults::Faults;
use crate::fingerprint::{self, Fingerprint};
use crate::ledger::{Header, Ledger, Line};
use crate::report::{Event, Reporter, Style, Summary, peak_rss_bytes, quantile, show_summary};
use crate::rundir::{Lock, Resume, RunDir, Start};
use crate::share::from_rank_0;
use crate::task::Batch;
use crate::{Error, Result, ranks, report, setup};

/// What `phalanx train` is asked to do.
#[derive(Debug, Clone)]
pub struct TrainRequest {
    /// The configuration.
    pub config: Config,
    /// Thread ranks.
    pub ranks: u32,
    /// `auto`, `cpu` or `cuda`.
    pub device: String,
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
    match Session::open(request, comm, isa, &sets.train, &sets.eval)? {
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

/// The status of a run that a signal has stopped.
const STOPPED: &str = "stopped";

/// What a start finds.
enum Opened<'a> {
    /// There is something to do.
    Ready(Box<Session<'a>>),
    /// The run has come to its end before; its summary then.
    Ended(Box<Summary>),
}

/// One rank's run.
struct Session<'a> {
    request: &'a TrainRequest,
    comm: Arc<dyn Communicator>,
    engine: Engine,
    train: &'a Arc<dyn Source>,
    eval: &'a Arc<dyn Source>,
    dir: RunDir,
    progress: Progress,
    plateau: Option<Plateau>,
    ledger: Ledger,
    // Rank 0 only.
    reporter: Option<Reporter>,
    writer: Option<Writer>,
    _lock: Option<Lock>,
    /// Steps of the whole run.
    total: u64,
    /// The step that this start ends at.
    end: u64,
    // Of this start.
    started: Instant,
    wall_before: f64,
    step_ms: Vec<f64>,
    samples: u64,
    logged: (Instant, u64),
}

impl<'a> Session<'a> {
    fn open(
        request: &'a TrainRequest,
        comm: Arc<dyn Communicator>,
        isa: Isa,
        train: &'a Arc<dyn Source>,
        eval: &'a Arc<dyn Source>,
    ) -> Result<Opened<'a>> {
        let started = Instant::now();
        let config = &request.config;
        let deadline = || Deadline::after(Duration::from_secs_f64(config.distributed.deadline_s));
        let threads = setup::threads_per_rank(config.compute.threads, comm.locality().local_world);
        let device = setup::device(&request.device, isa, threads)?;
        let here = fingerprint::cpu(isa);
        check_same(&*comm, "the fingerprint", &fingerprint::line(&here), deadline())?;
        check_same(&*comm, "the configuration", &config.identity()?.to_string(), deadline())?;
        let sets = format!("{} ({}), {} ({})", train.name(), train.len(), eval.name(), eval.len());
        check_same(&*comm, "the data", &sets, deadline())?;
        let model = setup::classification(config, &**train, &comm)?;

        let dir = RunDir::new(&request.out);
        let mut lock = None;
        let start: Start = from_rank_0(&*comm, deadline(), || {
            lock = Some(dir.lock()?);
            dir.open(config, &request.resume)
        })?;
        let mut warnings = start.warnings;
        warnings.extend(lock.as_mut().and_then(|l: &mut Lock| l.warning.take()));
        let saved = start.checkpoint.as_deref().map(checkpoint::read).transpose()?;
        if let (Some((_, p)), Some(path)) = (&saved, &start.checkpoint) {
            check_saved(config, p, path)?;
            warnings.extend(fingerprint::check_resume(
                &here,
                &p.fingerprint,
                request.allow_fingerprint_change,
            )?);
        }
        let total = config.train.epochs.saturating_mul(steps_per_epoch(config, &**train));
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
        let options = EngineOptions {
            seed: config.seed,
            shards,
            bucket_bytes: (config.distributed.bucket_mb.unwrap_or(25.0) * 1e6) as usize,
            wire: config.distributed.wire.wire(config.train.global_batch),
            deadline: Duration::from_secs_f64(config.distributed.deadline_s),
            faults: request.faults.clone(),
        };
        let mut engine = Engine::new(comm.clone(), &device, model.task, model.params, model.norms, options)?;
        let progress = match saved {
            None => new_progress(config, shards, here)?,
            Some((snapshot, progress)) => {
                engine.restore(&snapshot)?;
                // Facts of this start replace those of the one before.
                Progress { fingerprint: here, identity: config.identity()?, ..progress }
            }
        };
        check_same(&*comm, "the model's parameters", &engine.hash()?.params, deadline())?;
        // The first change to the directory, now that nothing speaks against the run; the ledger's files
        // come after it on every rank.
        warnings.extend(from_rank_0(&*comm, deadline(), || dir.begin(config, progress.step))?);
        let header = Header {
            attempt: start.attempt,
            rank: comm.rank(),
            world_size: comm.world(),
            first_step: progress.step,
            seed: config.seed,
            samples: train.len(),
            global_batch: config.train.global_batch,
            virtual_shards: shards,
        };
        let ledger = Ledger::create(dir.path(), &header)?;
        let (mut reporter, mut writer) = (None, None);
        if comm.rank() == 0 {
            let (first, due) = (progress.step, progress.evaluation_due);
            let mut r = Reporter::new(&dir, request.style, start.attempt, first, total, due)?;
            dir.clear_summary()?;
            dir.write_json("env.json", &environment(&progress.fingerprint, &comm, threads))?;
            for message in warnings {
                r.tell(&Event::Warning { message })?;
            }
            r.tell(&Event::Start {
                step: progress.step,
                world_size: comm.world(),
                virtual_shards: shards,
                parameters: engine.params().count() as u64,
                resumed_from: start.checkpoint,
            })?;
            reporter = Some(r);
            writer = Some(Writer::new(dir.checkpoints(), config.checkpoint.keep));
        }
        let plateau = config.schedule.plateau(progress.plateau.as_ref())?;
        Ok(Opened::Ready(Box::new(Session {
            request,
            comm,
            engine,
            train,
            eval,
            dir,
            plateau,
            ledger,
            reporter,
            writer,
            _lock: lock,
            total,
            end,
            started,
            wall_before: progress.wall_s,
            step_ms: Vec::new(),
            samples: 0,
            logged: (Instant::now(), progress.samples_seen),
            progress,
        })))
    }

    fn config(&self) -> &'a Config {
        &self.request.config
    }

    fn stop_asked(&self) -> bool {
        self.request.stop.load(Ordering::Relaxed)
    }

    fn tell(&mut self, event: Event) -> Result<()> {
        self.reporter.as_mut().map_or(Ok(()), |r| r.tell(&event))
    }

    fn run(mut self) -> Result<Outcome> {
        let per_epoch = steps_per_epoch(self.config(), &**self.train);
        let mut stopped = false;
        let mut saved_at = (self.progress.step > 0).then_some(self.progress.step);
        if self.progress.evaluation_due {
            stopped = !self.evaluate()?;
            saved_at = saved_at.filter(|_| stopped);
        }
        let mine = self.engine.shards()?;
        let plan = Plan::new(
            self.train.len(),
            self.config().train.global_batch,
            u64::from(self.engine.options.shards),
            u64::from(mine.start)..u64::from(mine.end),
            self.config().train.epochs,
        )?
        .starting_at(self.progress.epoch, self.progress.step_in_epoch);
        let mode = Mode::Train { seed: self.config().seed };
        let mut loader =
            Loader::new(self.train.clone(), &self.config().loader, mode, plan, &self.engine.cpu.pool)?;

        while self.progress.step < self.end && !stopped {
            stopped = self.step(&mut loader, mine.len())?;
            let epoch_ended = self.progress.step_in_epoch == per_epoch;
            if epoch_ended {
                self.end_epoch()?;
                let every = self.config().eval.every_epochs;
                let due = every > 0 && self.progress.epoch.is_multiple_of(every);
                self.progress.evaluation_due = due || self.progress.step == self.total;
                if self.progress.evaluation_due && !stopped {
                    stopped = !self.evaluate()?;
                }
            }
            if stopped || self.checkpoint_due(epoch_ended) {
                self.checkpoint()?;
                saved_at = Some(self.progress.step);
            }
            if let Some(writer) = &mut self.writer {
                writer.poll()?;
            }
        }
        if saved_at != Some(self.progress.step) {
            self.checkpoint()?;
        }
        self.finish(stopped)
    }

    /// One step of all ranks. Returns whether the run is to stop.
    fn step(&mut self, loader: &mut Loader, shards: usize) -> Result<bool> {
        let begun = Instant::now();
        let (step, epoch) = (self.progress.step, self.progress.epoch);
        let mut batches = Vec::with_capacity(shards);
        let mut lines = Vec::with_capacity(shards);
        for _ in 0..shards {
            let ended = || Error::config("loader", format!("it ended before step {step}"));
            let loaded = loader.next().ok_or_else(ended)??;
            let ids = loaded.batch.ids.clone();
            lines.push(Line { step, epoch, shard: loaded.item.shard as u32, ids });
            batches.push(Batch::from_data(loaded.batch, &self.engine.device)?);
        }
        let factor = self.factor();
        let report = self.engine.step(step, batches, factor, self.stop_asked())?;
        for line in &lines {
            self.ledger.add(line)?;
        }
        self.step_ms.push(begun.elapsed().as_secs_f64() * 1e3);
        self.count(&report, factor)
    }

    fn factor(&self) -> f64 {
        let per_epoch = steps_per_epoch(self.config(), &**self.train) as f64;
        let epoch = self.progress.epoch as f64 + self.progress.step_in_epoch as f64 / per_epoch;
        let plateau = self.plateau.as_ref().map_or(1.0, Plateau::factor);
        plateau * self.config().schedule.factor(epoch, self.config().train.epochs as f64)
    }

    /// Adds a step to the books and logs it where that is due.
    fn count(&mut self, report: &StepReport, factor: f64) -> Result<bool> {
        let Some(first) = report.phases.first() else { return Ok(report.stop) };
        let range = phalanx_data::step_positions(
            self.train.len(),
            self.config().train.global_batch,
            self.progress.step_in_epoch,
        );
        let p = &mut self.progress;
        p.step += 1;
        p.step_in_epoch += 1;
        p.samples_seen += range.end - range.start;
        self.samples += range.end - range.start;
        p.epoch_loss_bits = (f64::from_bits(p.epoch_loss_bits) + first.loss_sum).to_bits();
        p.epoch_weight_bits = (f64::from_bits(p.epoch_weight_bits) + first.weight).to_bits();
        let every = self.config().log.every_steps;
        if every > 0 && self.progress.step.is_multiple_of(every) && self.reporter.is_some() {
            let (since, seen) =
                std::mem::replace(&mut self.logged, (Instant::now(), self.progress.samples_seen));
            let names = self.engine.task().statistics();
            let statistics = names.iter().zip(&first.statistics).map(|(n, v)| ((*n).to_owned(), (*v).into()));
            self.tell(Event::Step {
                step: self.progress.step,
                epoch: self.progress.epoch,
                loss: first.loss_sum / first.weight,
                lr: self.engine.task().phases()[0].optimizer.lr() * factor,
                samples_per_second: (self.progress.samples_seen - seen) as f64
                    / since.elapsed().as_secs_f64(),
                statistics: statistics.collect(),
            })?;
        }
        Ok(report.stop)
    }

    fn epoch_loss(&self) -> f64 {
        f64::from_bits(self.progress.epoch_loss_bits) / f64::from_bits(self.progress.epoch_weight_bits)
    }

    fn end_epoch(&mut self) -> Result<()> {
        let (train_loss, epoch) = (self.epoch_loss(), self.progress.epoch);
        self.progress.train_loss_bits = Some(train_loss.to_bits());
        self.tell(Event::Epoch { step: self.progress.step, epoch, train_loss })?;
        let p = &mut self.progress;
        (p.epoch, p.step_in_epoch) = (p.epoch + 1, 0);
        (p.epoch_loss_bits, p.epoch_weight_bits) = (0, 0);
        Ok(())
    }

    /// Evaluates; false when a stop came in between, and the evaluation is still due.
    fn evaluate(&mut self) -> Result<bool> {
        let stop = self.request.stop.clone();
        let asked = || stop.load(Ordering::Relaxed);
        let batch = self.config().eval.batch;
        let Some(eval) = evaluate(&self.engine, self.eval, &self.config().loader, batch, &asked)? else {
            return Ok(false);
        };
        self.progress.evaluation_due = false;
        if let Some(plateau) = &mut self.plateau {
            plateau.observe(eval.loss);
            self.progress.plateau = Some(plateau.state());
        }
        let (step, epoch) = (self.progress.step, self.progress.epoch.saturating_sub(1));
        self.tell(Event::Eval { step, epoch, eval: eval.clone() })?;
        self.progress.evaluation = Some(eval);
        // Its time is not the next steps'.
        self.logged = (Instant::now(), self.progress.samples_seen);
        Ok(true)
    }

    fn checkpoint_due(&self, epoch_ended: bool) -> bool {
        let c = &self.config().checkpoint;
        let by_steps = c.every_steps > 0 && self.progress.step.is_multiple_of(c.every_steps);
        let by_epochs =
            epoch_ended && c.every_epochs > 0 && self.progress.epoch.is_multiple_of(c.every_epochs);
        by_steps || by_epochs
    }

    /// Between two steps, so an optimizer's update is never half done in it. The gathering inside
    /// `snapshot` is the meeting after which every rank's ledger is on disk.
    fn checkpoint(&mut self) -> Result<()> {
        self.ledger.sync()?;
        let snapshot = self.engine.snapshot(self.writer.is_some())?;
        let step = self.progress.step;
        if let Some(name) = snapshot.first_non_finite() {
            return Err(Error::NonFiniteModel { name, step });
        }
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let progress = Progress {
            optimizer_steps: snapshot.optimizer_steps.clone(),
            world_size: self.comm.world(),
            wall_s: self.wall_before + self.started.elapsed().as_secs_f64(),
            ..self.progress.clone()
        };
        let disk_full = self.request.faults.disk_full(self.comm.rank(), step.saturating_sub(1));
        writer.start(snapshot, progress, disk_full)
    }

    fn finish(mut self, stopped: bool) -> Result<Outcome> {
        if let Some(writer) = &mut self.writer {
            writer.wait()?;
        }
        let hash = self.engine.hash()?;
        let deadline = Deadline::after(Duration::from_secs_f64(self.config().distributed.deadline_s));
        self.comm.barrier(deadline)?;
        let p = &self.progress;
        let status = match (stopped, p.step >= self.total) {
            (true, _) => STOPPED,
            (false, true) => "finished",
            (false, false) => "max-steps",
        };
        let running = (p.epoch_weight_bits != 0).then(|| self.epoch_loss());
        let time: f64 = self.step_ms.iter().sum::<f64>() / 1e3;
        let summary = Summary {
            status: status.into(),
            world_size: self.comm.world(),
            virtual_shards: p.virtual_shards,
            comm: self.comm.name().into(),
            device: self.engine.device.name().into(),
            epochs: p.epoch,
            steps: p.step,
            samples_seen: p.samples_seen,
            samples_per_second: if time > 0.0 { self.samples as f64 / time } else { 0.0 },
            step_ms_p50: quantile(&mut self.step_ms, 0.5),
            train_loss: p.train_loss_bits.map(f64::from_bits).or(running).unwrap_or(0.0),
            eval: p.evaluation.clone(),
            params_hash: hash.params,
            buffers_hash: hash.buffers,
            peak_rss_bytes: peak_rss_bytes(),
            wall_s: self.wall_before + self.started.elapsed().as_secs_f64(),
        };
        if let Some(reporter) = &mut self.reporter {
            self.dir.write_json("summary.json", &summary)?;
            reporter.finish(&self.dir, &summary)?;
        }
        Ok(Outcome { summary, stopped })
    }
}

fn steps_per_epoch(config: &Config, train: &dyn Source) -> u64 {
    phalanx_data::steps_per_epoch(train.len(), config.train.global_batch)
}

/// A checkpoint must be of this very run.
fn check_saved(config: &Config, saved: &Progress, path: &std::path::Path) -> Result<()> {
    let Some((key, was, now)) = crate::config::first_difference(&saved.identity, &config.identity()?) else {
        return Ok(());
    };
    let problem = format!("it is of another run: {key} was {was} there and is {now} now");
    Err(Error::Checkpoint { path: path.into(), problem })
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

fn new_progress(config: &Config, shards: u32, fingerprint: Fingerprint) -> Result<Progress> {
    Ok(Progress { virtual_shards: shards, fingerprint, identity: config.identity()?, ..Progress::default() })
}

/// `env.json`.
fn environment(fingerprint: &Fingerprint, comm: &Arc<dyn Communicator>, threads: usize) -> serde_json::Value {
    serde_json::json!({
        "phalanx": env!("CARGO_PKG_VERSION"),
        "host": host_name(),
        "os": std::env::consts::OS,
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "world_size": comm.world(),
        "comm": comm.name(),
        "threads_per_rank": threads,
        "fingerprint": fingerprint,
    })
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
