//! One step: the same loop for every task.
//!
//! `plain.rs` does a step piece by piece, `recorded.rs` launches one that was recorded as a CUDA graph, and `graphs.rs` says
//! which of them can be.

mod graphs;
mod plain;
mod recorded;

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use phalanx_comm::{Communicator, Tree, Wire};
use phalanx_host::rng::Key;
use phalanx_host::{Cpu, DType};
use phalanx_nn::{Ema, EmaConfig, Forward, Norms, Optimizer, Params};
use phalanx_tensor::{Device, Tensor};

pub use self::graphs::{CudaGraph, GraphUse};
use self::graphs::{Graphs, ShardForm};
use self::recorded::Flight;
use crate::config::Precision;
use crate::faults::{Fault, Faults};
use crate::machine::Machine;
use crate::reducer::{Reducer, Slots};
use crate::scaler::LossScale;
use crate::share::check_same_table;
use crate::task::{Batch, ShardCx, Task};
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
    /// Whether steps on a GPU become CUDA graphs.
    pub cuda_graph: CudaGraph,
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
    /// The steps that were recorded.
    graphs: Graphs,
    /// Steps that were begun and whose reports nobody has, the oldest first.
    begun: VecDeque<Begun>,
    /// What backward begins with: one, or the loss scale.
    seed: Option<(f64, Tensor)>,
    /// Phases and forms of their shards' batches that were done once without sums.
    rehearsed: HashSet<(usize, ShardForm)>,
}

/// A step that was begun.
#[derive(Debug)]
enum Begun {
    /// It is done.
    Done(StepReport),
    /// It was launched as a graph.
    Launched(Flight),
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
        if let Some(gpu) = machine.gpu() {
            gpu.set_patience(options.deadline);
        }
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
        let graphs = Graphs::new(&*comm, &machine.device, &*task, &options)?;
        Ok(Engine {
            graphs,
            begun: VecDeque::new(),
            seed: None,
            rehearsed: HashSet::new(),
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

    /// Begins step `step`. `batches` holds one batch for each of this rank's shards, in their order; `factor` scales the
    /// phases' learning rates; `stop` asks all ranks to stop after this step. [`Engine::finish`] gives its report.
    ///
    /// One more step may be begun before the report of the last is taken while [`Engine::may_go_ahead`]. Nothing else of the
    /// engine must be used while a report is outstanding.
    pub fn begin(&mut self, step: u64, mut batches: Vec<Batch>, factor: f64, stop: bool) -> Result<()> {
        let mine = self.shards()?;
        if batches.is_empty() && !self.task.needs_data() {
            batches.resize_with(mine.len(), Batch::default);
        }
        if batches.len() != mine.len() {
            let problem = format!("{} batches were given for {} shards", batches.len(), mine.len());
            return Err(Error::Task { task: self.task.name(), problem });
        }
        let begun = match self.launch(step, &batches, factor, stop)? {
            Some(flight) => Begun::Launched(flight),
            None => {
                self.land_all()?;
                Begun::Done(self.plain(step, batches, factor, stop)?)
            }
        };
        self.begun.push_back(begun);
        Ok(())
    }

    /// The report of the oldest step that was begun, after a wait for it.
    ///
    /// Every rank gets the same report or, when a loss is not finite, the same [`Error::NonFinite`],
    /// before any parameter has changed; likewise [`Error::NonFiniteGradient`] where gradients' norms are clipped.
    pub fn finish(&mut self) -> Result<StepReport> {
        match self.begun.pop_front() {
            Some(Begun::Done(report)) => Ok(report),
            Some(Begun::Launched(flight)) => self.land(flight),
            None => Err(Error::Task { task: self.task.name(), problem: "no step was begun".into() }),
        }
    }

    /// Runs a step: [`Engine::begin`] and [`Engine::finish`].
    pub fn step(&mut self, step: u64, batches: Vec<Batch>, factor: f64, stop: bool) -> Result<StepReport> {
        self.begin(step, batches, factor, stop)?;
        self.finish()
    }

    /// Steps that were begun and whose reports nobody has taken.
    pub fn outstanding(&self) -> usize {
        self.begun.len()
    }

    /// Whether it is of use to begin another step before the last one's report is taken: it then waits on the GPU, which so
    /// never waits for the host. A loss scale must be known before a step begins.
    pub fn may_go_ahead(&self) -> bool {
        self.loss_scale.is_none()
            && self.begun.len() == 1
            && matches!(self.begun.front(), Some(Begun::Launched(_)))
    }

    /// Takes the reports of all launched steps.
    fn land_all(&mut self) -> Result<()> {
        for begun in std::mem::take(&mut self.begun) {
            let done = match begun {
                Begun::Launched(flight) => Begun::Done(self.land(flight)?),
                done => done,
            };
            self.begun.push_back(done);
        }
        Ok(())
    }

    /// Does something between two steps in the memory of a GPU that steps work in, as an evaluation, for which there need not
    /// be room besides. It must leave nothing there. Where that memory is cut in other pieces than it asks for, and there is no
    /// room for more, the recorded steps are given up and it is done once more.
    pub fn between_steps<T>(&mut self, work: impl Fn(&Engine) -> Result<T>) -> Result<T> {
        self.land_all()?;
        self.norms.keep_on(&self.device)?;
        let in_use = self.graphs.enter()?;
        let in_graphs = in_use.is_some();
        let mut done = work(self);
        drop(in_use);
        if in_graphs && done.as_ref().is_err_and(Error::is_full_device) {
            self.graphs.make_room();
            done = work(self);
        }
        let done = done?;
        self.graphs.left_behind()?;
        Ok(done)
    }

    /// What is known of steps as CUDA graphs; none where there is no GPU.
    pub fn cuda_graph(&self) -> Option<GraphUse> {
        self.graphs.in_use()
    }

    /// The same, but why not where none has been launched so far.
    pub fn cuda_graph_used(&self) -> Option<GraphUse> {
        match self.graphs.in_use() {
            Some(GraphUse::Recorded(_)) if !self.graphs.used() => {
                Some(GraphUse::Not("no two steps were alike".to_owned()))
            }
            other => other,
        }
    }

    /// What the steps that were recorded so far are made of: kernels, calls of libraries and copies, by name.
    pub fn recorded_work(&self) -> Vec<String> {
        self.graphs.work()
    }

    /// Why steps are not recorded, once, as soon as it is known and where somebody may have expected otherwise.
    pub fn take_graph_notice(&mut self) -> Option<String> {
        self.graphs.take_notice()
    }

    /// The random streams of a phase's shard in a step.
    fn key(&self, step: u64, phase: usize, shard: u32) -> Key {
        Key::new(self.options.seed).derive(STREAM, step).derive(phase as u64, u64::from(shard))
    }

    fn faulty(&self, step: u64, fault: Fault) -> bool {
        self.options.faults.hits(self.comm.rank(), step, fault)
    }
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
