//! The steps of a run, and its end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use phalanx_comm::{Activity, Communicator, Deadline};
use phalanx_data::{LoaderConfig, LoaderStats, Mode, Plan};
use phalanx_nn::Plateau;

use super::feed::{Fed, Feed};
use super::{Outcome, Sets, TrainRequest, steps_per_epoch};
use crate::algorithms::Algorithms;
use crate::bad::{self, BadLine, Quarantine};
use crate::bound::{Bound, BoundBy, Feeding};
use crate::checkpoint::{Progress, Writer};
use crate::config::Config;
use crate::engine::{Engine, StepReport};
use crate::evaluate::{evaluate, mean};
use crate::faults::Fault;
use crate::ledger::{Ledger, Line};
use crate::report::{Event, Reporter, Summary, peak_rss_bytes, quantile};
use crate::rundir::{Lock, RunDir};
use crate::timeline::{Spent, Times};
use crate::{Error, Result};

/// The status of a run that a signal has stopped.
pub(super) const STOPPED: &str = "stopped";

/// One rank's run.
pub(super) struct Session<'a> {
    pub(super) request: &'a TrainRequest,
    pub(super) comm: Arc<dyn Communicator>,
    pub(super) engine: Engine,
    pub(super) sets: &'a Sets,
    pub(super) dir: RunDir,
    pub(super) progress: Progress,
    pub(super) plateau: Option<Plateau>,
    pub(super) ledger: Ledger,
    pub(super) algorithms: Algorithms,
    /// With the threads of this rank.
    pub(super) loader: LoaderConfig,
    // Rank 0 only.
    pub(super) quarantine: Option<Quarantine>,
    pub(super) reporter: Option<Reporter>,
    pub(super) writer: Option<Writer>,
    pub(super) _lock: Option<Lock>,
    /// Steps of the whole run.
    pub(super) total: u64,
    /// What the device is called.
    pub(super) device_name: String,
    /// Steps that were begun, the oldest first: one, or two where the second waits on a GPU.
    pub(super) ahead: VecDeque<Ahead>,
    /// The step that this start ends at.
    pub(super) end: u64,
    // Of this start.
    pub(super) started: Instant,
    pub(super) wall_before: f64,
    pub(super) step_ms: Vec<f64>,
    pub(super) samples: u64,
    pub(super) logged: (Instant, u64),
    /// What the rank had spent its time on at the last line of metrics.
    pub(super) spent: Spent,
    /// Seconds of this start in moving batches to the device, and what the loader has done; both now and at the
    /// last line of metrics.
    pub(super) fed: [(f64, LoaderStats); 2],
    /// Whether the user was told that steps wait.
    pub(super) told_bound: bool,
    /// Bad samples of which the user was told.
    pub(super) told_bad: usize,
    /// What was wrong with the last of them; empty where this start has had none.
    pub(super) last_bad: String,
    /// The step at which all ranks were last known to have the same model.
    pub(super) equal_at: u64,
    /// How much of what the GPU's libraries cannot do has been told.
    pub(super) fallbacks_told: usize,
}

/// A step that was begun.
pub(super) struct Ahead {
    lines: Vec<Line>,
    bad: Vec<BadLine>,
    factor: f64,
}

impl<'a> Session<'a> {
    fn config(&self) -> &'a Config {
        &self.request.config
    }

    fn stop_asked(&self) -> bool {
        self.request.stop.load(Ordering::Relaxed)
    }

    fn tell(&mut self, event: Event) -> Result<()> {
        self.reporter.as_mut().map_or(Ok(()), |r| r.tell(&event))
    }

    pub(super) fn run(mut self) -> Result<Outcome> {
        let per_epoch = steps_per_epoch(self.config(), &*self.sets.train);
        self.engine.timeline.reset();
        let mut stopped = false;
        let mut saved_at = (self.progress.step > 0).then_some(self.progress.step);
        if self.progress.evaluation_due {
            stopped = !self.evaluate()?;
            saved_at = saved_at.filter(|_| stopped);
        }
        let mine = self.engine.shards()?;
        let plan = Plan::new(
            self.sets.train.len(),
            self.config().train.global_batch,
            u64::from(self.engine.options.shards),
            u64::from(mine.start)..u64::from(mine.end),
            self.config().train.epochs,
        )?
        .starting_at(self.progress.epoch, self.progress.step_in_epoch);
        let mode = Mode::Train { seed: self.config().seed };
        let (source, config) = (self.sets.train.clone(), &self.loader);
        let mut feed = Feed::new(source, config, mode, plan, &self.engine.device, mine.len())?;

        while self.progress.step < self.end && !stopped {
            stopped = self.step(&mut feed)?;
            let epoch_ended = self.progress.step_in_epoch == per_epoch;
            if epoch_ended {
                self.end_epoch()?;
                let every = self.config().eval.every_epochs;
                let due = every > 0 && self.progress.epoch.is_multiple_of(every);
                self.progress.evaluation_due = due || self.progress.step == self.total;
                let judged = self.judge_epoch();
                self.kept(judged)?;
                if self.progress.evaluation_due && !stopped {
                    let evaluated = self.evaluate();
                    stopped = !self.kept(evaluated)?;
                }
            }
            let due = stopped || self.checkpoint_due(epoch_ended);
            // A checkpoint of replicas that have parted would carry their difference into the next start.
            self.audit(due || self.progress.step == self.end)?;
            if due {
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

    /// One step of all ranks, and where it helps the beginning of the next. Returns whether the run is to stop.
    fn step(&mut self, feed: &mut Feed) -> Result<bool> {
        let begun = Instant::now();
        if self.ahead.is_empty() {
            self.begin(feed)?;
        }
        if self.may_go_ahead() {
            self.begin(feed)?;
        }
        let report = self.engine.finish()?;
        if let Some(message) = self.engine.take_graph_notice() {
            self.tell(Event::Warning { message })?;
        }
        let Some(Ahead { lines, bad, factor }) = self.ahead.pop_front() else { return Ok(report.stop) };
        for line in &lines {
            self.ledger.add(line)?;
        }
        self.step_ms.push(begun.elapsed().as_secs_f64() * 1e3);
        let stop = self.count(&report, factor)?;
        if report.bad > 0 {
            self.count_bad(report.bad, &bad)?;
        }
        Ok(stop)
    }

    /// Whether the next step can be begun before the report of this one is there: when nothing comes between them.
    fn may_go_ahead(&self) -> bool {
        let p = &self.progress;
        let last = p.step + 1 >= self.end
            || p.step_in_epoch + 1 >= steps_per_epoch(self.config(), &*self.sets.train);
        let due = |every: u64| every > 0 && (p.step + 1).is_multiple_of(every);
        let between =
            due(self.config().checkpoint.every_steps) || due(self.config().distributed.audit_every_steps);
        self.engine.may_go_ahead() && !last && !between && !self.stop_asked()
    }

    /// Begins the step behind those that were begun.
    fn begin(&mut self, feed: &mut Feed) -> Result<()> {
        let at = self.ahead.len() as u64;
        let step = self.progress.step + at;
        self.comm.whereabouts().at_step(Some(step));
        self.engine.timeline.enter(Activity::Loader);
        if self.request.faults.hits(self.comm.rank(), step, Fault::HangLoader) {
            self.hang()?;
        }
        let Fed { batches, lines, bad } = feed.next(step)?;
        self.fed[1] = feed.books();
        let factor = self.factor(self.progress.step_in_epoch + at);
        self.engine.begin(step, batches, factor, self.stop_asked())?;
        self.ahead.push_back(Ahead { lines, bad, factor });
        Ok(())
    }

    /// Adds a step's bad samples to the books: `all` over the ranks, `mine` of this one. Every rank takes the same
    /// decision whether they are too many.
    fn count_bad(&mut self, all: u64, mine: &[BadLine]) -> Result<()> {
        // The user is told of the first; all are in the file.
        const TOLD: usize = 5;
        self.progress.bad_records += all;
        let lines = bad::gather(&*self.comm, mine)?;
        if let Some(quarantine) = &self.quarantine {
            quarantine.add(&lines)?;
        }
        for line in &lines {
            self.told_bad += 1;
            let more = match self.told_bad {
                n if n > TOLD => break,
                TOLD => "; more are in quarantine.jsonl only",
                _ => "",
            };
            let fate = match line.substitute {
                Some(by) => format!("sample {by} took its place"),
                None => "it counts nothing".to_owned(),
            };
            self.tell(Event::Warning { message: format!("{}; {fate}{more}", line.reason) })?;
        }
        self.last_bad = lines.last().map_or_else(String::new, |l| l.reason.clone());
        let (p, limit) = (&self.progress, self.config().loader.bad_limit);
        bad::check(p.bad_records, p.samples_seen, limit, &self.last_bad)
    }

    /// What the steps since `before` were made of, which took `times`.
    fn feeding(&self, times: &Times, before: &(f64, LoaderStats)) -> Feeding {
        let (copy, stats) = (self.fed[1].0 - before.0, self.fed[1].1.since(&before.1));
        Feeding {
            steps: times.total_s - times.evaluation_s - times.checkpoint_s - times.audit_s,
            wait: stats.wait_s,
            copy,
            read: stats.read_s,
            make: stats.make_s,
            threads: stats.threads as f64,
        }
    }

    /// A planted failure: the loader never gives its next batch. The other ranks must notice.
    fn hang(&self) -> Result<()> {
        loop {
            std::thread::sleep(Duration::from_millis(10));
            if let Some(reason) = self.comm.aborted() {
                return Err(phalanx_comm::Error::Aborted { reason }.into());
            }
        }
    }

    /// What the learning rate is multiplied by at a step of the epoch.
    fn factor(&self, step_in_epoch: u64) -> f64 {
        let per_epoch = steps_per_epoch(self.config(), &*self.sets.train) as f64;
        let epoch = self.progress.epoch as f64 + step_in_epoch as f64 / per_epoch;
        let plateau = self.plateau.as_ref().map_or(1.0, Plateau::factor);
        plateau * self.config().schedule.factor(epoch, self.config().train.epochs as f64)
    }

    /// Adds a step to the books and logs it where that is due.
    fn count(&mut self, report: &StepReport, factor: f64) -> Result<bool> {
        let Some(first) = report.phases.first() else { return Ok(report.stop) };
        let range = phalanx_data::step_positions(
            self.sets.train.len(),
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
        self.tell_fallbacks()?;
        let every = self.config().log.every_steps;
        if every > 0 && self.progress.step.is_multiple_of(every) && self.reporter.is_some() {
            let (since, seen) =
                std::mem::replace(&mut self.logged, (Instant::now(), self.progress.samples_seen));
            let time = self.engine.timeline.since(&mut self.spent);
            let before = self.fed[0];
            self.fed[0] = self.fed[1];
            let bound = self.feeding(&time, &before).bound(1.0);
            self.tell_bound(bound.filter(|b| b.stall_share >= 0.1));
            let names = self.engine.task().statistics();
            let statistics = names.iter().zip(&first.statistics).map(|(n, v)| ((*n).to_owned(), (*v).into()));
            self.tell(Event::Step {
                step: self.progress.step,
                epoch: self.progress.epoch,
                loss: mean(first.loss_sum, first.weight),
                lr: self.engine.task().phases()[0].optimizer.lr() * factor,
                samples_per_second: (self.progress.samples_seen - seen) as f64
                    / since.elapsed().as_secs_f64(),
                grad_norm: first.grad_norm,
                loss_scale: self.engine.loss_scale.map(|s| s.scale),
                skipped_steps: self.engine.loss_scale.map(|s| s.skipped),
                statistics: statistics.collect(),
                bound,
                time: Some(time),
            })?;
        }
        Ok(report.stop)
    }

    /// Tells the user once that steps wait: not by the first line, when much is done for the first time.
    fn tell_bound(&mut self, bound: Option<Bound>) {
        let first = self.samples <= self.config().train.global_batch * self.config().log.every_steps;
        if let (Some(bound), Some(reporter), false) = (bound, &self.reporter, first || self.told_bound) {
            reporter.aside(&bound.to_string());
            self.told_bound = true;
        }
    }

    /// Warns of each piece of work once that a GPU's library cannot do, since it may take most of a step's time.
    fn tell_fallbacks(&mut self) -> Result<()> {
        let Some(gpu) = self.engine.device.gpu().filter(|_| self.reporter.is_some()) else { return Ok(()) };
        let all = gpu.fallbacks();
        let new = all.len().saturating_sub(self.fallbacks_told);
        if new > 0 {
            self.fallbacks_told = all.len();
            let message = format!("{new} kinds of work are done by slow kernels: {}", all.join("; "));
            self.tell(Event::Warning { message })?;
        }
        Ok(())
    }

    fn epoch_loss(&self) -> f64 {
        mean(f64::from_bits(self.progress.epoch_loss_bits), f64::from_bits(self.progress.epoch_weight_bits))
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

    /// Fails on all ranks alike when too many of the epochs' samples were bad.
    fn judge_epoch(&self) -> Result<()> {
        let (p, limit) = (&self.progress, self.config().loader.bad_limit);
        bad::check_whole(p.bad_records, p.samples_seen, limit, &self.last_bad)
    }

    /// What has come of an epoch or an evaluation. Where all ranks end because of bad records the epoch is kept: with a higher
    /// limit the run goes on from there.
    fn kept<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(Error::BadRecords { .. }) = &result {
            self.audit(true)?;
            self.checkpoint()?;
            if let Some(writer) = &mut self.writer {
                writer.wait()?;
            }
        }
        result
    }

    /// Evaluates; false when a stop came in between, and the evaluation is still due.
    fn evaluate(&mut self) -> Result<bool> {
        self.engine.timeline.enter(Activity::Evaluation);
        let stop = self.request.stop.clone();
        let asked = || stop.load(Ordering::Relaxed);
        let batch = self.config().eval.batch;
        let (set, loader) = (&self.sets.eval, &self.loader);
        let done = self.engine.between_steps(|engine| evaluate(engine, set, loader, batch, &asked))?;
        let Some(eval) = done else { return Ok(false) };
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

    /// Compares the ranks' models where that is due, or is to be done at last.
    fn audit(&mut self, last: bool) -> Result<()> {
        let (every, step) = (self.config().distributed.audit_every_steps, self.progress.step);
        if every > 0 && (last || step.is_multiple_of(every)) {
            self.engine.timeline.enter(Activity::Audit);
            self.engine.audit(step, self.equal_at)?;
            self.engine.timeline.rest();
            self.equal_at = step;
        }
        Ok(())
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
        self.engine.timeline.enter(Activity::Checkpoint);
        self.save()?;
        self.engine.timeline.rest();
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        self.ledger.sync()?;
        self.algorithms.keep(&self.dir, &*self.comm, self.engine.device.gpu())?;
        let snapshot = self.engine.snapshot(self.writer.is_some())?;
        let step = self.progress.step;
        if let Some(name) = snapshot.first_non_finite() {
            return Err(Error::NonFiniteModel { name, step });
        }
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let progress = Progress {
            optimizer_steps: snapshot.optimizer_steps.clone(),
            loss_scale: self.engine.loss_scale,
            world_size: self.comm.world(),
            wall_s: self.wall_before + self.started.elapsed().as_secs_f64(),
            ..self.progress.clone()
        };
        let disk_full = self.request.faults.disk_full(self.comm.rank(), step.saturating_sub(1));
        writer.start(snapshot, progress, disk_full)
    }

    fn finish(mut self, stopped: bool) -> Result<Outcome> {
        self.comm.whereabouts().at_step(None);
        self.engine.timeline.enter(Activity::Checkpoint);
        if let Some(writer) = &mut self.writer {
            writer.wait()?;
        }
        let deadline = Deadline::after(Duration::from_secs_f64(self.config().distributed.deadline_s));
        self.comm.barrier(deadline)?;
        self.engine.timeline.enter(Activity::Finishing);
        let hash = self.engine.hash()?;
        let spent = self.engine.timeline.mean()?;
        // The mean of the ranks' times stands for each of them.
        let fed = self.feeding(&spent, &Default::default()).of_all(&*self.comm)?;
        let bound = fed.bound(f64::from(self.comm.world()));
        let bytes = self.comm.all_gather(&self.fed[1].1.bytes.to_le_bytes(), deadline)?;
        let bytes_read = bytes.iter().filter_map(|b| Some(u64::from_le_bytes(*b.first_chunk()?))).sum();
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
            comm: self.engine.sums_over().into(),
            device: self.engine.device.name().into(),
            device_name: self.device_name,
            epochs: p.epoch,
            steps: p.step,
            samples_seen: p.samples_seen,
            samples_per_second: if time > 0.0 { self.samples as f64 / time } else { 0.0 },
            step_ms_p50: quantile(&mut self.step_ms, 0.5),
            train_loss: p.train_loss_bits.map(f64::from_bits).or(running).unwrap_or(0.0),
            eval: p.evaluation.clone(),
            params_hash: hash.params,
            buffers_hash: hash.buffers,
            ema_hash: hash.ema,
            peak_rss_bytes: peak_rss_bytes(),
            cuda_graph: self.engine.cuda_graph_used(),
            peak_device_bytes: self.engine.device.gpu().map(|gpu| gpu.memory().peak_live),
            time: spent,
            bound: bound.filter(|_| !self.step_ms.is_empty()),
            bytes_read,
            bad_records: p.bad_records,
            wall_s: self.wall_before + self.started.elapsed().as_secs_f64(),
        };
        if let Some(reporter) = &mut self.reporter {
            self.dir.write_json("summary.json", &summary)?;
            reporter.finish(&self.dir, &summary)?;
            if let Some(bound) = summary.bound.filter(|b| b.bound_by != BoundBy::Compute) {
                reporter.aside(&bound.to_string());
            }
        }
        Ok(Outcome { summary, stopped })
    }
}
