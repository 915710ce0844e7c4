//! What is trained: a [`Task`] says what its losses are, and the engine does the rest.
//!
//! The engine loops over phases and virtual shards, runs backward, reduces and updates; a task never
//! does. A task's own changing state is keyed by virtual shard where it belongs to one (a replay
//! memory, an environment), so that it moves with the shard when a run is resized.

mod batch;
mod classify;
mod loss;
mod views;

use std::collections::BTreeMap;
use std::ops::{Deref, Range};

pub use batch::{Ahead, Batch};
pub use classify::Classification;
use half::{bf16, f16};
pub use loss::{Criterion, LossConfig};
use phalanx_host::{DType, Element};
use phalanx_nn::{Forward, OptimizerConfig, ParamId, Params};
use phalanx_tensor::{Device, Tensor};
pub use views::{LayersFor, ViewedClassification, Views};

use crate::{Error, Result};

/// A phase's index in [`Task::phases`].
pub type PhaseId = usize;

/// One optimisation inside a step: a GAN has two.
#[derive(Debug, Clone)]
pub struct Phase {
    /// Its name in metrics, errors and checkpoints, unlike the other phases'.
    pub name: String,
    /// The parameters that it changes: neighbours in order of registration. All others are frozen.
    pub params: Range<u32>,
    /// How they are changed.
    pub optimizer: OptimizerConfig,
}

impl Phase {
    /// The phase's parameters.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = ParamId> + use<> {
        self.params.clone().map(ParamId)
    }
}

/// What a phase makes of one shard's batch. Sums, not means: the optimizer divides by the weight of all
/// shards together.
#[derive(Debug)]
pub struct Loss {
    /// Σ weight · loss over the samples, a scalar in the graph.
    pub sum: Tensor,
    /// Σ weight.
    pub weight: f64,
    /// Sums for the metrics: exactly as many as [`Task::statistics`] names.
    pub statistics: Vec<f64>,
}

/// What a task may use while it computes one shard: the model's [`Forward`] context and its place.
#[derive(Debug)]
pub struct ShardCx<'a> {
    /// Parameters, normalisation and random numbers of this step, shard and phase.
    pub forward: Forward<'a>,
    /// The device.
    pub device: &'a Device,
    /// The step, from 0.
    pub step: u64,
    /// The virtual shard.
    pub shard: u32,
}

impl<'a> Deref for ShardCx<'a> {
    type Target = Forward<'a>;
    fn deref(&self) -> &Forward<'a> {
        &self.forward
    }
}

/// What a task may use after a phase's parameters have been changed.
#[derive(Debug)]
pub struct StepCx<'a> {
    /// All parameters.
    pub params: &'a Params,
    /// The device.
    pub device: &'a Device,
    /// The step, from 0.
    pub step: u64,
    /// The virtual shards that this rank holds.
    pub shards: Range<u32>,
}

/// An array of a task's state.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Element type.
    pub dtype: DType,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// The elements, row-major, little endian.
    pub bytes: Vec<u8>,
}

impl Array {
    /// Copies a slice; `shape` must have as many elements.
    pub fn new<T: Element>(shape: &[usize], data: &[T]) -> Self {
        Array { dtype: T::DTYPE, shape: shape.to_vec(), bytes: bytemuck::cast_slice(data).to_vec() }
    }

    /// The elements. Fails when the type is another.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.dtype != T::DTYPE {
            let problem = format!("an array of its state is {}, not {}", self.dtype, T::DTYPE);
            return Err(Error::Task { task: "state", problem });
        }
        Ok(bytemuck::pod_collect_to_vec(&self.bytes))
    }

    /// The elements as f32, rounded where their type has more digits; None when it is no floating-point type.
    pub fn floats(&self) -> Option<Vec<f32>> {
        let bytes = &self.bytes;
        Some(match self.dtype {
            DType::F32 => bytemuck::pod_collect_to_vec(bytes),
            DType::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
            DType::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            DType::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            DType::U8 | DType::I64 => return None,
        })
    }
}

/// Arrays by name.
pub type Arrays = BTreeMap<String, Array>;

/// A task's state in a checkpoint. Each rank gives what it holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StateMap {
    /// What all ranks have alike.
    pub shared: Arrays,
    /// What belongs to a virtual shard, and goes where the shard goes.
    pub shards: BTreeMap<u32, Arrays>,
}

/// What is trained.
pub trait Task: Send {
    /// The name in metrics and errors.
    fn name(&self) -> &'static str;

    /// The optimisations of one step, in order.
    fn phases(&self) -> &[Phase];

    /// Names of the sums in [`Loss::statistics`].
    fn statistics(&self) -> &[&'static str] {
        &[]
    }

    /// Whether batches come from a data set. Otherwise [`Task::prepare`] makes them.
    fn needs_data(&self) -> bool {
        true
    }

    /// Called before each phase and shard: acts (an environment) and may make the batch to use
    /// instead of the loaded one. Runs for every shard, also for one that got no samples. `cx` is one
    /// for inference, so that acting leaves no trace in the graph or in the norms' statistics; its
    /// random streams are others than those of [`Task::loss`].
    fn prepare(&mut self, _phase: PhaseId, _cx: &ShardCx) -> Result<Option<Batch>> {
        Ok(None)
    }

    /// The loss of one shard's batch, which is not empty. Parameters of the phase that it does not reach
    /// get a gradient of zero; it must reach one unless its weight is zero or the phase has none.
    fn loss(&self, phase: PhaseId, batch: &Batch, cx: &ShardCx) -> Result<Loss>;

    /// Called once on every rank when a phase's parameters have been changed: target networks,
    /// averages. What it does must not depend on the number of ranks.
    fn after_phase(&mut self, _phase: PhaseId, _cx: &mut StepCx) -> Result<()> {
        Ok(())
    }

    /// Names of the means that [`Task::evaluate`] gives sums of, the first being the loss; none when the task
    /// cannot be evaluated.
    fn evaluations(&self) -> &[&'static str] {
        &[]
    }

    /// Sums over one batch of the evaluation set, each with the weight that its mean divides by: as many as
    /// [`Task::evaluations`] names.
    fn evaluate(&self, _batch: &Batch, _cx: &ShardCx) -> Result<Vec<[f64; 2]>> {
        Ok(Vec::new())
    }

    /// What must be in a checkpoint besides parameters, norms and optimizers; of shards only this rank's.
    fn state(&self) -> StateMap {
        StateMap::default()
    }

    /// Puts a checkpoint's state back: the shared part and the shards that this rank now holds.
    fn load_state(&mut self, _state: StateMap) -> Result<()> {
        Ok(())
    }
}
