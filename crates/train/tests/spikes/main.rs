//! Spikes that show the interfaces to fit more than classification: a GAN (two phases), an LSTM (a
//! weight used at every step), a DQN (state and environment of each virtual shard, a target network)
//! and a contractive penalty (second order). Each runs on any number of ranks and through a checkpoint
//! with equal bits. `edges` has what lies at the interfaces' rims.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod contractive;
mod dqn;
mod edges;
mod gan;
mod lstm;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use phalanx_comm::{Communicator, Wire};
use phalanx_host::{Cpu, Isa};
use phalanx_nn::{Norms, Params};
use phalanx_tensor::Device;
use phalanx_train::checkpoint::{self, Progress};
use phalanx_train::config::Precision;
use phalanx_train::faults::Faults;
use phalanx_train::ranks::run_threads;
use phalanx_train::task::{Batch, Task};
use phalanx_train::{Clip, CudaGraph, Engine, EngineOptions, Machine, ModelHash, Result, Snapshot};

/// V in all spikes.
pub(crate) const SHARDS: u32 = 4;
const DEADLINE: Duration = Duration::from_secs(20);

/// A spike: how its model is built and where its batches come from.
pub(crate) trait Spike: Sync {
    fn build(&self, comm: &Arc<dyn Communicator>) -> Result<(Box<dyn Task>, Params, Norms)>;
    /// The batch of a step and shard; not called for tasks that make their own.
    fn batch(&self, step: u64, shard: u32, device: &Device) -> Batch;
}

/// What a run ends with.
#[derive(Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) hash: ModelHash,
    pub(crate) snapshot: Snapshot,
    /// The mean loss of each step, by phase.
    pub(crate) losses: Vec<Vec<f64>>,
}

/// Runs steps on `world` ranks, from a checkpoint when one is given.
pub(crate) fn run(spike: &dyn Spike, world: u32, steps: Range<u64>, from: Option<&Path>) -> End {
    try_run(spike, world, steps, from).unwrap()
}

/// As [`run`], for runs that may fail.
pub(crate) fn try_run(spike: &dyn Spike, world: u32, steps: Range<u64>, from: Option<&Path>) -> Result<End> {
    let body = |comm: Arc<dyn Communicator>| {
        let machine = Machine::cpu(Cpu::new(Isa::detect(), 1)?);
        let device = machine.device.clone();
        let (task, params, norms) = spike.build(&comm)?;
        let (seed, shards, bucket_bytes) = (7, SHARDS, 256);
        let options = EngineOptions {
            seed,
            shards,
            bucket_bytes,
            wire: Wire::F32,
            deadline: DEADLINE,
            clip: Clip::default(),
            ema: None,
            evaluate_ema: false,
            precision: Precision::F32,
            samples: 1,
            cuda_graph: CudaGraph::Auto,
            faults: Faults::default(),
        };
        let mut engine = Engine::new(comm, &machine, task, params, norms, options)?;
        if let Some(path) = from {
            engine.restore(&checkpoint::read(path)?.0)?;
        }
        let mut losses = Vec::new();
        for step in steps.clone() {
            let batches = match engine.task().needs_data() {
                true => engine.shards()?.map(|s| spike.batch(step, s, &device)).collect(),
                false => Vec::new(),
            };
            let report = engine.step(step, batches, 1.0, false)?;
            losses.push(report.phases.iter().map(|p| p.loss_sum / p.weight.max(1.0)).collect());
        }
        Ok(End { hash: engine.hash()?, snapshot: engine.snapshot(true)?, losses })
    };
    let mut ends = run_threads(world, DEADLINE, Isa::detect(), body)?;
    assert!(ends.windows(2).all(|w| w[0] == w[1]), "ranks ended differently");
    Ok(ends.remove(0))
}

/// The promise for one spike: the same end on any number of ranks, and through a checkpoint on disk
/// that is taken on two ranks and resumed on three. Returns the end.
pub(crate) fn keeps_the_promise(spike: &dyn Spike, steps: u64) -> End {
    let whole = run(spike, 2, 0..steps, None);
    for world in [1, 3, 4] {
        assert_eq!(run(spike, world, 0..steps, None), whole, "on {world} ranks");
    }
    let half = run(spike, 2, 0..steps / 2, None);
    assert_ne!(half.hash, whole.hash);
    let dir = tempfile::tempdir().unwrap();
    let progress = Progress {
        step: steps / 2,
        virtual_shards: SHARDS,
        optimizer_steps: half.snapshot.optimizer_steps.clone(),
        ..Progress::default()
    };
    let path = checkpoint::write(dir.path(), &half.snapshot, &progress).unwrap();
    let rest = run(spike, 3, steps / 2..steps, Some(&path));
    assert_eq!((&rest.hash, &rest.snapshot), (&whole.hash, &whole.snapshot), "resumed on other ranks");
    whole
}
