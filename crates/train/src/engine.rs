//! One step: the same loop for every task.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use phalanx_comm::{Activity, Communicator, Deadline, Tree, Wire};
use phalanx_host::rng::Key;
use phalanx_host::{Arena, Cpu, DType};
use phalanx_nn::{Ema, EmaConfig, Forward, Norms, Optimizer, Params, clip_factor};
use phalanx_tensor::Device;

use crate::config::Precision;
use crate::faults::{Fault, Faults};
use crate::machine::Machine;
use crate::reducer::{Reducer, ShardSink, Slots};
use crate::scaler::LossScale;
use crate::share::check_same_table;
use crate::task::{Batch, Loss, Phase, PhaseId, ShardCx, StepCx, Task};
use crate::timeline::Timeline;
use crate::{Error, Result};

/// Separates the engine's random streams from those of other uses of the seed.
const STREAM: u64 = 0x57e9;
/// Separates the streams for acting from those of the loss, which are derived with 0.
const ACTING: u64 = 1;

/// What the engine must know besides the task.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The root of all random streams.
    pub seed: u64,
    /// V, the virtual shards.
    pub shards: u32,
    /// Most bytes in a bucket of gradients.
    pub bucket_bytes: usize,
    /// What sums of gradients are rounded to.
    pub wire: Wire,
    /// What any wait on another rank may take.
    pub deadline: Duration,
    /// How averaged gradients are clipped, each phase's by themselves.
    pub clip: Clip,
    /// The average of the weights that is kept beside them.
    pub ema: Option<EmaConfig>,
    /// Whether evaluations use that average.
    pub evaluate_ema: bool,
    /// The type of activations.
    pub precision: Precision,
    /// Samples of a step over all shards; the first loss scale is made for them.
    pub samples: u64,
    /// Planted failures.
    pub faults: Faults,
}

/// How averaged gradients are clipped before an optimizer sees them: by their norm first, then value by value.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Clip {
    /// The largest Euclidean norm of all of a phase's gradients together, as `torch.nn.utils.clip_grad_norm_` has
    /// it. No parameter is updated before the last gradient's sum is there.
    pub norm: Option<f64>,
    /// The largest magnitude of a gradient.
    pub value: Option<f64>,
}

/// What one phase of a step came to, over all shards.
#[derive(Debug, Clone, PartialEq)]
pub struct PhaseReport {
    /// Σ weight · loss.
    pub loss_sum: f64,
    /// Σ weight.
    pub weight: f64,
    /// The task's own sums.
    pub statistics: Vec<f64>,
    /// The Euclidean norm of the averaged gradients before clipping, where clipping or the loss scale needs it.
    pub grad_norm: Option<f64>,
    /// Whether parameters stayed as they were, since the loss scale had made some gradient too large.
    pub skipped: bool,
}

/// What a step came to: the same on every rank.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// By phase.
    pub phases: Vec<PhaseReport>,
    /// Whether some rank has asked to stop after this step.
    pub stop: bool,
    /// Samples whose records could not be used, over all ranks.
    pub bad: u64,
}

/// A model, its task and its optimizers on one rank.
pub struct Engine {
    pub(crate) comm: Arc<dyn Communicator>,
    pub(crate) device: Device,
    pub(crate) cpu: Arc<Cpu>,
    pub(crate) task: Box<dyn Task>,
    pub(crate) params: Params,
    pub(crate) norms: Norms,
    pub(crate) optimizers: Vec<Optimizer>,
    pub(crate) ema: Option<Ema>,
    pub(crate) options: EngineOptions,
    pub(crate) tree: Tree,
    pub(crate) timeline: Timeline,
    /// What losses are multiplied by, where activations are fp16.
    pub(crate) loss_scale: Option<LossScale>,
    reducers: Vec<Reducer>,
    sums_by_nccl: bool,
}

/// The places of the engine's own numbers in front of a phase's statistics.
const STOP: usize = 0;
const LOSS: usize = 1;
const WEIGHT: usize = 2;
const BAD: usize = 3;
const OWN: usize = 4;

impl Engine {
    /// Puts a task on this rank, its parameters in the memory of the rank's device. All ranks must give the same; bucket
    /// plans are compared.
    pub fn new(
        comm: Arc<dyn Communicator>,
        machine: &Machine,
        task: Box<dyn Task>,
        params: Params,
        norms: Norms,
        options: EngineOptions,
    ) -> Result<Self> {
        let params = params.on(&machine.device)?;
        let tree = Tree::new(options.shards)?;
        let gradients =
            Slots::new(&*comm, tree, params.elements(), DType::F32, params.home(), machine.sums.as_ref())?;
        let statistics = OWN + task.statistics().len() + norms.statistics_len();
        let mut reducers = Vec::new();
        let mut optimizers = Vec::new();
        check_phases(&*task, &params)?;
        for phase in task.phases() {
            let ids = phase.params.clone();
            reducers.push(Reducer::new(
                &comm,
                tree,
                &params,
                ids.clone(),
                &gradients,
                statistics,
                options.bucket_bytes,
                options.wire,
            )?);
            let mut optimizer = Optimizer::new(&phase.optimizer, &params, ids)?;
            if let Some(bound) = options.clip.value {
                optimizer.clip_values(bound);
            }
            optimizers.push(optimizer);
        }
        check_same_table(&*comm, "the plan of buckets", || {
            let phases = task.phases().iter().map(|p| p.name.clone());
            Ok(phases.zip(reducers.iter().map(|r| r.plan().into())).collect())
        })?;
        let ema = options.ema.as_ref().map(|config| Ema::new(config, &params)).transpose()?;
        let scaled = options.precision == Precision::Fp16;
        Ok(Engine {
            timeline: Timeline::new(comm.clone()),
            comm,
            device: machine.device.clone(),
            sums_by_nccl: machine.sums.is_some(),
            cpu: machine.cpu.clone(),
            loss_scale: scaled.then(|| LossScale::new(options.samples)),
            task,
            params,
            norms,
            optimizers,
            ema,
            options,
            tree,
            reducers,
        })
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// What gradients are summed over, `nccl` or the communicator's name.
    pub fn sums_over(&self) -> &'static str {
        if self.sums_by_nccl { "nccl" } else { self.comm.name() }
    }

    /// The task.
    pub fn task(&self) -> &dyn Task {
        &*self.task
    }

    /// This rank's virtual shards.
    pub fn shards(&self) -> Result<Range<u32>> {
        Ok(self.tree.shards_of(self.comm.rank(), self.comm.world())?)
    }

    /// The averaged weights, where evaluations use them.
    pub(crate) fn evaluated_average(&self) -> Option<&Params> {
        self.ema.as_ref().filter(|_| self.options.evaluate_ema).map(Ema::average)
    }

    /// A context for evaluation: nothing is recorded, norms use their running statistics, weights are the averaged
    /// ones when the options say so.
    pub fn inference(&self) -> ShardCx<'_> {
        let key = Key::new(self.options.seed);
        let params = self.evaluated_average().unwrap_or(&self.params);
        let forward = Forward::new(params, &self.norms, &self.device, false, 0..0, key)
            .with_activations(self.options.precision.activations());
        ShardCx { forward, device: &self.device, step: 0, shard: 0 }
    }

    /// Runs step `step`. `batches` holds one batch for each of this rank's shards, in their order;
    /// `factor` scales the phases' learning rates; `stop` asks all ranks to stop after this step.
    ///
    /// Every rank gets the same report or, when a loss is not finite, the same [`Error::NonFinite`],
    /// before any parameter has changed; likewise [`Error::NonFiniteGradient`] where gradients' norms are clipped.
    pub fn step(
        &mut self,
        step: u64,
        mut batches: Vec<Batch>,
        factor: f64,
        stop: bool,
    ) -> Result<StepReport> {
        let mine = self.shards()?;
        if batches.is_empty() && !self.task.needs_data() {
            batches.resize_with(mine.len(), Batch::default);
        }
        if batches.len() != mine.len() {
            let problem = format!("{} batches were given for {} shards", batches.len(), mine.len());
            return Err(Error::Task { task: self.task.name(), problem });
        }
        let mut report = StepReport { phases: Vec::new(), stop: false, bad: 0 };
        for phase in 0..self.reducers.len() {
            self.timeline.enter(Activity::Compute);
            if phase == 0 {
                self.options.faults.before_step(self.comm.rank(), step);
                if self.faulty(step, Fault::Desync) {
                    self.reducers[phase].misfit();
                }
            }
            let mut losses = Vec::with_capacity(mine.len());
            for (at, shard) in mine.clone().enumerate() {
                losses.push(self.shard(phase, step, at, shard, &batches[at], stop)?);
            }
            self.timeline.enter(Activity::Reduce);
            // From here on: a rank's own work is no wait.
            let deadline = Deadline::after(self.options.deadline);
            let total = self.reducers[phase].total(deadline)?;
            self.check_finite(phase, step, total[LOSS], &losses)?;
            let lr = self.task.phases()[phase].optimizer.lr() * factor;
            let (grad_norm, skipped) = self.optimize(phase, step, total[WEIGHT], lr, deadline)?;
            let own = OWN + self.task.statistics().len();
            self.norms.fold(&total[own..])?;
            let mut cx = StepCx { params: &self.params, device: &self.device, step, shards: mine.clone() };
            self.task.after_phase(phase, &mut cx)?;
            report.stop |= total[STOP] > 0.0;
            report.bad += total[BAD] as u64;
            report.phases.push(PhaseReport {
                loss_sum: total[LOSS],
                weight: total[WEIGHT],
                statistics: total[OWN..own].to_vec(),
                grad_norm,
                skipped,
            });
        }
        // A step that was skipped is none: weights that have stayed are not counted twice.
        let moved = report.phases.iter().any(|phase| !phase.skipped);
        if let Some(ema) = self.ema.as_mut().filter(|_| moved) {
            ema.update(&self.cpu, &self.params, step + 1)?;
        }
        self.timeline.rest();
        Ok(report)
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
        // Without a sample there is nothing to average. Losses may have been scaled.
        let scale = (weight > 0.0).then(|| 1.0 / (weight * self.loss_scale.map_or(1.0, |s| s.scale)));
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
        let go_on = self.loss_scale.as_mut().is_some_and(|s| s.observe(norm.is_finite()));
        match (norm.is_finite(), go_on) {
            (true, _) => {}
            (false, true) => return Ok((None, true)),
            (false, false) => {
                let phase = self.task.phases()[phase].name.clone();
                return Err(Error::NonFiniteGradient { norm, step, phase });
            }
        }
        let scale = clipped.map_or(scale, |most| scale * clip_factor(norm, most));
        optimizer.step(&self.cpu, &self.params, reducer.gradients(), scale, lr)?;
        Ok((Some(norm), false))
    }

    fn faulty(&self, step: u64, fault: Fault) -> bool {
        self.options.faults.hits(self.comm.rank(), step, fault)
    }

    /// Forward, backward and statistics of one shard. Returns its loss.
    fn shard(
        &mut self,
        phase: usize,
        step: u64,
        at: usize,
        shard: u32,
        batch: &Batch,
        stop: bool,
    ) -> Result<f64> {
        let trainable = self.task.phases()[phase].params.clone();
        let key = Key::new(self.options.seed).derive(STREAM, step).derive(phase as u64, u64::from(shard));
        let cx = |training, trainable, key| ShardCx {
            forward: Forward::new(&self.params, &self.norms, &self.device, training, trainable, key)
                .with_activations(self.options.precision.activations()),
            device: &self.device,
            step,
            shard,
        };
        // Counted once, whatever the phases.
        let bad = if phase == 0 { batch.bad as f64 } else { 0.0 };
        let own = self.task.prepare(phase, &cx(false, 0..0, key.derive(0, ACTING)))?;
        let batch = own.as_ref().unwrap_or(batch);
        let cx = cx(true, trainable.clone(), key);

        let names = self.task.statistics().len();
        let mut statistics = vec![0.0; OWN + names + self.norms.statistics_len()];
        statistics[STOP] = f64::from(u8::from(stop && at == 0));
        statistics[BAD] = bad;
        let spoiled = self.faulty(step, Fault::Nan);
        let reducer = &mut self.reducers[phase];
        reducer.begin_shard(at);
        if !batch.is_empty() {
            let mut loss = self.task.loss(phase, batch, &cx)?;
            if spoiled {
                loss.sum = loss.sum.scale(f64::NAN)?;
            }
            check_loss(&*self.task, phase, &loss)?;
            statistics[WEIGHT] = loss.weight;
            statistics[OWN..OWN + names].copy_from_slice(&loss.statistics);
            let seen = cx.forward.take_statistics();
            let sums = &mut statistics[OWN + names..];
            let read = self.norms.contribution_with(&seen, &[&loss.sum], sums)?;
            statistics[LOSS] = match read.first().map(|v| &v[..]) {
                Some(&[sum]) => sum,
                _ => loss.sum.item()?,
            };
            drop((cx, seen));
            reducer.statistics(&self.cpu, &statistics)?;
            if loss.sum.requires_grad() {
                if let Some(scale) = self.loss_scale {
                    loss.sum = loss.sum.scale(scale.scale)?;
                }
                let mut sink = ShardSink { reducer, cpu: &self.cpu, error: None };
                let walked = loss.sum.backward(&mut sink);
                match sink.error.take() {
                    Some(e) => return Err(e),
                    None => walked?,
                }
            }
        } else {
            reducer.statistics(&self.cpu, &statistics)?;
        }
        reducer.end_shard(&self.cpu)?;
        Ok(statistics[LOSS])
    }

    /// Turns a loss that is not finite into one error that names the same shard on all ranks.
    fn check_finite(&self, phase: usize, step: u64, total: f64, mine: &[f64]) -> Result<()> {
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

/// Checks what a task says of its phases.
fn check_phases(task: &dyn Task, params: &Params) -> Result<()> {
    let fail = |problem| Err(Error::Task { task: task.name(), problem });
    for (i, phase) in task.phases().iter().enumerate() {
        let (name, ids) = (&phase.name, &phase.params);
        if ids.start > ids.end || ids.end as usize > params.len() {
            let has = params.len();
            return fail(format!("phase {name:?} trains parameters {ids:?}, but the model has {has}"));
        }
        if task.phases()[..i].iter().any(|p| p.name == *name) {
            return fail(format!(
                "two phases are named {name:?}: their optimizers' states are stored by name"
            ));
        }
    }
    Ok(())
}

/// Checks what a task gives as a shard's loss.
fn check_loss(task: &dyn Task, phase: usize, loss: &Loss) -> Result<()> {
    let fail = |problem| Err(Error::Task { task: task.name(), problem });
    let (names, given) = (task.statistics().len(), loss.statistics.len());
    if given != names {
        return fail(format!("it names {names} statistics, but its loss has {given}"));
    }
    let Phase { name, params, .. } = &task.phases()[phase];
    if !loss.sum.requires_grad() && loss.weight != 0.0 && !params.is_empty() {
        return fail(format!(
            "the loss of phase {name:?} depends on none of its parameters: was it detached?"
        ));
    }
    Ok(())
}
