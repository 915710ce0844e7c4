//! The losses of some steps on fixed random data: what one device computes, to be held beside what another does.

use std::sync::Arc;

use phalanx_comm::Communicator;
use phalanx_host::Isa;
use serde::Serialize;

use super::{DEADLINE, StepRequest, first, prepare};
use crate::config::Precision;
use crate::{Result, ranks};

/// Of the usual rate: with all of it some networks diverge and others learn four samples by heart, and two devices' rounding
/// then grows a hundredfold in a few steps.
const RATE: f64 = 0.01;

/// What `bench losses` found.
#[derive(Debug, Clone, Serialize)]
pub struct LossesReport {
    /// The model's name.
    pub model: String,
    /// Samples of each rank in a step.
    pub batch: u64,
    /// What it was computed on: `cpu` or `cuda`.
    pub device: String,
    /// What that is called.
    pub device_name: String,
    /// The type of activations.
    pub precision: Precision,
    /// The mean loss of each step, on one batch that stays the same.
    pub losses: Vec<f64>,
}

/// Makes `steps` steps of what [`super::step`] measures and gives their losses. Time and memory are not looked at.
pub fn losses(request: &StepRequest, steps: u64) -> Result<LossesReport> {
    let body = |comm| losses_rank(request, steps, &comm);
    first(ranks::run_threads(request.ranks, DEADLINE, Isa::choose(&request.isa)?, body)?)
}

fn losses_rank(request: &StepRequest, steps: u64, comm: &Arc<dyn Communicator>) -> Result<LossesReport> {
    let shards = request.virtual_shards.unwrap_or(comm.world());
    let mut made = prepare(request, Isa::choose(&request.isa)?, shards, comm)?;
    let mut losses = Vec::new();
    for number in 0..steps {
        let report = made.engine.step(number, made.batches.clone(), RATE, false)?;
        losses.extend(report.phases.iter().map(|p| p.loss_sum / p.weight));
    }
    Ok(LossesReport {
        model: request.model.clone(),
        batch: request.batch,
        device: made.machine.device.name().into(),
        device_name: made.machine.name(),
        precision: request.precision,
        losses,
    })
}
