//! A step piece by piece. On a CPU a shard's statistics are known before its backward pass; on a GPU the host queues all shards
//! and the copies of what they came to, and waits behind that.

use std::ops::Range;

use phalanx_comm::{Activity, Deadline};
use phalanx_host::Arena;
use phalanx_host::rng::Key;
use phalanx_nn::{Contribution, Forward, NormRecord, clip_factor};
use phalanx_tensor::{DType, Device, Tensor};

use super::graphs::form_of;
use super::{ACTING, BAD, Engine, LOSS, OWN, PhaseReport, STOP, StepReport, WEIGHT};
use crate::faults::Fault;
use crate::reducer::{Reducer, Rehearsal, ShardSink};
use crate::task::{Batch, Loss, Phase, PhaseId, ShardCx, StepCx, Task};
use crate::{Error, Result};

/// What a shard's forward pass gives.
pub(super) struct Passed {
    pub(super) loss: Loss,
    pub(super) seen: Vec<NormRecord>,
    /// Random streams that it has drawn.
    pub(super) drawn: u64,
}

/// What a shard came to.
struct Outcome {
    statistics: Vec<f64>,
    /// What is not among them yet: its loss and what norms saw, on their way from a GPU.
    missing: Option<Contribution>,
}

impl Engine {
    /// The whole of a step.
    pub(super) fn plain(
        &mut self,
        step: u64,
        batches: Vec<Batch>,
        factor: f64,
        stop: bool,
    ) -> Result<StepReport> {
        let mine = self.shards()?;
        // What is kept from step to step is made before the step's own memory is used.
        self.set_seed(self.loss_scale.map_or(1.0, |s| s.scale), DType::F32)?;
        let in_use = self.graphs.enter()?;
        let mut report = StepReport { phases: Vec::new(), stop: false, bad: 0 };
        for phase in 0..self.reducers.len() {
            self.timeline.enter(Activity::Compute);
            if phase == 0 {
                self.options.faults.before_step(self.comm.rank(), step);
                if self.faulty(step, Fault::Desync) {
                    self.reducers[phase].misfit();
                }
            }
            let mut outcomes = Vec::with_capacity(mine.len());
            for (at, shard) in mine.clone().enumerate() {
                outcomes.push(self.shard(phase, step, at, shard, &batches[at], stop)?);
            }
            let queued = self.reducers[phase].queues();
            let mut losses = Vec::with_capacity(mine.len());
            for (at, mut outcome) in outcomes.into_iter().enumerate() {
                if queued {
                    self.complete(&mut outcome)?;
                    self.reducers[phase].statistics(&self.cpu, at, &outcome.statistics)?;
                }
                losses.push(outcome.statistics[LOSS]);
            }
            self.reducers[phase].depart()?;
            self.timeline.enter(Activity::Reduce);
            // From here on: a rank's own work is no wait.
            let deadline = Deadline::after(self.options.deadline);
            let total = self.reducers[phase].total(deadline)?;
            self.check_finite(phase, step, total[LOSS], &losses)?;
            let lr = self.task.phases()[phase].optimizer.lr() * factor;
            let (grad_norm, skipped) = self.optimize(phase, step, total[WEIGHT], lr, deadline)?;
            report.stop |= total[STOP] > 0.0;
            report.bad += total[BAD] as u64;
            report.phases.push(self.close(phase, step, &total, grad_norm, skipped)?);
        }
        // A step that was skipped is none: weights that have stayed are not counted twice.
        let moved = report.phases.iter().any(|phase| !phase.skipped);
        if let Some(ema) = self.ema.as_mut().filter(|_| moved) {
            ema.update(&self.cpu, &self.params, step + 1)?;
        }
        drop((batches, in_use));
        self.graphs.left_behind()?;
        self.timeline.rest();
        Ok(report)
    }

    /// What is to be done on the host when a phase's parameters have changed: the norms' running statistics, the task's part.
    pub(super) fn close(
        &mut self,
        phase: PhaseId,
        step: u64,
        total: &[f64],
        grad_norm: Option<f64>,
        skipped: bool,
    ) -> Result<PhaseReport> {
        let own = OWN + self.task.statistics().len();
        self.norms.fold(&total[own..])?;
        let shards = self.shards()?;
        let mut cx = StepCx { params: &self.params, device: &self.device, step, shards };
        self.task.after_phase(phase, &mut cx)?;
        Ok(PhaseReport {
            loss_sum: total[LOSS],
            weight: total[WEIGHT],
            statistics: total[OWN..own].to_vec(),
            grad_norm,
            skipped,
        })
    }

    /// What gradients are multiplied by: 1 over the weight of all samples, and what losses have been scaled by. None without
    /// a sample, as there is nothing to average.
    pub(super) fn scale(&self, weight: f64) -> Option<f64> {
        (weight > 0.0).then(|| 1.0 / (weight * self.loss_scale.map_or(1.0, |s| s.scale)))
    }

    /// Takes the sums of a phase's gradients as they come and updates its parameters. Returns the averaged
    /// gradients' norm where it is clipped, or losses are scaled: on every rank from the same sums, in one order, so with
    /// the same bits; and whether the update was skipped.
    fn optimize(
        &mut self,
        phase: PhaseId,
        step: u64,
        weight: f64,
        lr: f64,
        deadline: Deadline,
    ) -> Result<(Option<f64>, bool)> {
        let scale = self.scale(weight);
        let (optimizer, reducer) = (&mut self.optimizers[phase], &mut self.reducers[phase]);
        let clipped = self.options.clip.norm;
        let at_once = clipped.is_none() && self.loss_scale.is_none();
        let update = scale.filter(|_| at_once).map(|scale| optimizer.begin(scale, lr));
        let mut corrupt = self.options.faults.hits(self.comm.rank(), step, Fault::CorruptGradient);
        // What has come is used while the rest is on its way.
        while let Some(elements) = reducer.next_sum(deadline)? {
            self.timeline.enter(Activity::Optimizer);
            if std::mem::take(&mut corrupt) {
                corrupt_gradient(&self.device, reducer.gradients(), &elements)?;
            }
            if let Some(update) = update {
                optimizer.update(&self.cpu, &self.params, reducer.gradients(), update, elements)?;
            }
            self.timeline.enter(Activity::Reduce);
        }
        self.timeline.enter(Activity::Optimizer);
        let Some(scale) = scale.filter(|_| !at_once) else { return Ok((None, false)) };
        let norm = optimizer.gradient_norm(&self.cpu, reducer.gradients(), scale)?;
        if self.skips(phase, step, norm)? {
            return Ok((None, true));
        }
        let (optimizer, gradients) = (&mut self.optimizers[phase], self.reducers[phase].gradients());
        let scale = clipped.map_or(scale, |most| scale * clip_factor(norm, most));
        optimizer.step(&self.cpu, &self.params, gradients, scale, lr)?;
        Ok((Some(norm), false))
    }

    /// Takes note of the norm of a step's gradients, and says whether their update is skipped.
    pub(super) fn skips(&mut self, phase: PhaseId, step: u64, norm: f64) -> Result<bool> {
        let go_on = self.loss_scale.as_mut().is_some_and(|s| s.observe(norm.is_finite()));
        match (norm.is_finite(), go_on) {
            (true, _) => Ok(false),
            (false, true) => Ok(true),
            (false, false) => {
                let phase = self.task.phases()[phase].name.clone();
                Err(Error::NonFiniteGradient { norm, step, phase })
            }
        }
    }

    /// Forward, backward and statistics of one shard; where all is queued, the reducer does not have the statistics yet.
    fn shard(
        &mut self,
        phase: usize,
        step: u64,
        at: usize,
        shard: u32,
        batch: &Batch,
        stop: bool,
    ) -> Result<Outcome> {
        // Counted once, whatever the phases.
        let bad = if phase == 0 { batch.bad as f64 } else { 0.0 };
        let key = self.key(step, phase, shard);
        let acting =
            Forward::new(&self.params, &self.norms, &self.device, false, 0..0, key.derive(0, ACTING))
                .with_activations(self.options.precision.activations());
        let acting = ShardCx { forward: acting, device: &self.device, step, shard };
        let own = self.task.prepare(phase, &acting)?;
        drop(acting);
        let batch = own.as_ref().unwrap_or(batch);
        let names = self.task.statistics().len();
        let mut outcome =
            Outcome { statistics: vec![0.0; OWN + names + self.norms.statistics_len()], missing: None };
        outcome.statistics[STOP] = f64::from(u8::from(stop && at == 0));
        outcome.statistics[BAD] = bad;
        let queues = self.reducers[phase].queues();
        self.rehearse(phase, step, at, shard, key, batch)?;
        self.reducers[phase].begin_shard(at);
        if !batch.is_empty() {
            let Passed { mut loss, seen, .. } = self.pass(phase, step, shard, key, batch)?;
            if self.faulty(step, Fault::Nan) {
                loss.sum = loss.sum.scale(f64::NAN)?;
            }
            outcome.statistics[WEIGHT] = loss.weight;
            outcome.statistics[OWN..OWN + names].copy_from_slice(&loss.statistics);
            outcome.missing = Some(Contribution::begin(&seen, &[&loss.sum])?);
            drop(seen);
            if !queues {
                self.complete(&mut outcome)?;
                self.reducers[phase].statistics(&self.cpu, at, &outcome.statistics)?;
            }
            self.back(phase, &loss.sum)?;
        } else if !queues {
            self.reducers[phase].statistics(&self.cpu, at, &outcome.statistics)?;
        }
        self.reducers[phase].end_shard(&self.cpu)?;
        Ok(outcome)
    }

    /// Waits for what is missing of an outcome.
    fn complete(&self, outcome: &mut Outcome) -> Result<()> {
        let Some(missing) = outcome.missing.take() else { return Ok(()) };
        let own = OWN + self.task.statistics().len();
        let read = missing.add_to(&self.norms, &mut outcome.statistics[own..])?;
        // One number, as `check_loss` has seen.
        outcome.statistics[LOSS] = read[0][0];
        Ok(())
    }

    /// Before sums over NCCL are on their way: does a shard of a form that is new and forgets what came of it. cuBLASLt and cuDNN
    /// load kernels and choose among them at their first use, for which the driver may wait for all that is queued, sums
    /// included, and no deadline could end that.
    fn rehearse(
        &mut self,
        phase: usize,
        step: u64,
        at: usize,
        shard: u32,
        key: Key,
        batch: &Batch,
    ) -> Result<()> {
        if !self.sums_by_nccl || batch.is_empty() || !self.rehearsed.insert((phase, form_of(batch))) {
            return Ok(());
        }
        let Passed { loss, .. } = self.pass(phase, step, shard, key, batch)?;
        if loss.sum.requires_grad() {
            let seed = Tensor::scalar(1.0, loss.sum.gradient_dtype(), &self.device)?;
            self.reducers[phase].begin_shard(at);
            let mut sink = Rehearsal(&mut self.reducers[phase]);
            loss.sum.backward_from(seed.reshape(&loss.sum.shape())?, &mut sink)?;
        }
        Ok(())
    }

    /// The loss of a shard's batch, and what norms have seen.
    pub(super) fn pass(
        &self,
        phase: usize,
        step: u64,
        shard: u32,
        key: Key,
        batch: &Batch,
    ) -> Result<Passed> {
        let trainable = self.task.phases()[phase].params.clone();
        let forward = Forward::new(&self.params, &self.norms, &self.device, true, trainable, key)
            .with_activations(self.options.precision.activations());
        let cx = ShardCx { forward, device: &self.device, step, shard };
        let loss = self.task.loss(phase, batch, &cx)?;
        check_loss(&*self.task, phase, &loss)?;
        Ok(Passed { loss, seen: cx.forward.take_statistics(), drawn: cx.forward.drawn() })
    }

    /// From a shard's loss back to the parameters, unless it depends on none.
    fn back(&mut self, phase: usize, loss: &Tensor) -> Result<()> {
        if !loss.requires_grad() {
            return Ok(());
        }
        let scale = self.loss_scale.map_or(1.0, |s| s.scale);
        let seed = self.set_seed(scale, loss.gradient_dtype())?.reshape(&loss.shape())?;
        back_from(&mut self.reducers[phase], &self.cpu, loss, seed)
    }

    /// The scalar `scale` of a type, kept from step to step.
    fn set_seed(&mut self, scale: f64, dtype: DType) -> Result<Tensor> {
        match &self.seed {
            Some((of, seed)) if *of == scale && seed.dtype() == dtype => Ok(seed.clone()),
            _ => {
                let seed = Tensor::scalar(scale, dtype, &self.device)?;
                self.seed = Some((scale, seed.clone()));
                Ok(seed)
            }
        }
    }

    /// Turns a loss that is not finite into one error that names the same shard on all ranks.
    pub(super) fn check_finite(&self, phase: usize, step: u64, total: f64, mine: &[f64]) -> Result<()> {
        if total.is_finite() {
            return Ok(());
        }
        let deadline = Deadline::after(self.options.deadline);
        let all = self.comm.all_gather(bytemuck::cast_slice(mine), deadline)?;
        let mut found = (self.comm.rank(), 0, total);
        for (rank, bytes) in (0u32..).zip(&all) {
            let losses: Vec<f64> = bytemuck::pod_collect_to_vec(bytes);
            let first = self.tree.shards_of(rank, self.comm.world())?.start;
            if let Some((shard, &loss)) = (first..).zip(&losses).find(|(_, l)| !l.is_finite()) {
                found = (rank, shard, loss);
                break;
            }
        }
        let (rank, shard, loss) = found;
        let phase = self.task.phases()[phase].name.clone();
        Err(Error::NonFinite { loss, step, rank, shard, phase })
    }
}

/// Walks back from a loss, whose own gradient is `seed`, to the reducer's slots.
pub(super) fn back_from(
    reducer: &mut Reducer,
    cpu: &phalanx_host::Cpu,
    loss: &Tensor,
    seed: Tensor,
) -> Result<()> {
    let mut sink = ShardSink { reducer, cpu, error: None };
    let walked = loss.backward_from(seed, &mut sink);
    match sink.error.take() {
        Some(e) => Err(e),
        None => Ok(walked?),
    }
}

/// Flips a bit of the largest summed gradient among `elements`, on this rank alone: what a machine's memory does
/// once in a while.
fn corrupt_gradient(device: &Device, gradients: &Arena, elements: &Range<usize>) -> Result<()> {
    let place = elements.start * size_of::<f32>()..elements.end * size_of::<f32>();
    let mut values: Vec<f32> =
        bytemuck::pod_collect_to_vec(&device.read_arena(&gradients.read(place.clone())?)?);
    let largest = values.iter_mut().max_by(|a, b| a.abs().total_cmp(&b.abs()));
    if let Some(x) = largest {
        *x = f32::from_bits(x.to_bits() ^ 1 << 22);
    }
    Ok(device.write_arena(&mut gradients.write(place)?, bytemuck::cast_slice(&values))?)
}

/// Checks what a task gives as a shard's loss.
fn check_loss(task: &dyn Task, phase: usize, loss: &Loss) -> Result<()> {
    let fail = |problem| Err(Error::Task { task: task.name(), problem });
    let (names, given) = (task.statistics().len(), loss.statistics.len());
    if given != names {
        return fail(format!("it names {names} statistics, but its loss has {given}"));
    }
    if loss.sum.shape().numel() != 1 {
        return fail(format!("its loss is no number, but has the shape {}", loss.sum.shape()));
    }
    let Phase { name, params, .. } = &task.phases()[phase];
    if !loss.sum.requires_grad() && loss.weight != 0.0 && !params.is_empty() {
        return fail(format!(
            "the loss of phase {name:?} depends on none of its parameters: was it detached?"
        ));
    }
    Ok(())
}
