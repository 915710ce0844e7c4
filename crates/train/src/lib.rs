//! Training: the one room that knows tensors, networks, ranks and data.
//!
//! [`run::train`] is what `phalanx train` does; [`Engine`] is one step of any [`task::Task`]. The
//! engine loops over phases and virtual shards, a [`reducer::Reducer`] sums gradients over all shards
//! while backward still runs, [`checkpoint`] and [`ledger`] keep the promise: kill it, resize it, start
//! it again: the same bits, every sample exactly once.

mod audit;
pub mod bad;
pub mod bench;
pub mod bound;
pub mod buckets;
pub mod checkpoint;
pub mod config;
mod engine;
mod error;
pub mod evaluate;
pub mod faults;
pub mod fingerprint;
pub mod ledger;
pub mod machine;
mod memory;
pub mod model;
pub mod pack;
pub mod predict;
#[cfg(feature = "mpi")]
pub mod process;
pub mod ranks;
pub mod reducer;
pub mod report;
pub mod run;
pub mod rundir;
mod scaler;
pub mod setup;
mod share;
mod snapshot;
mod staging;
pub mod stats;
pub mod sums;
pub mod task;
mod tfevents;
pub mod timeline;
pub mod tuning;
pub mod weights;

#[cfg(feature = "mpi")]
pub use phalanx_comm::mpi::library as mpi_library;
/// What ranks work together through.
pub use phalanx_comm::{AbortKind, Communicator};

pub use engine::{Clip, Engine, EngineOptions, PhaseReport, StepReport};
pub use error::{Error, Result};
pub use machine::{DeviceChoice, Machine};
pub use scaler::LossScale;
pub use snapshot::{ModelHash, Snapshot};
pub use sums::SumsOver;
