//! Packing a data set as several ranks. Data rooms know no ranks, so what they need of them is handed in: who one is,
//! and a barrier.

use std::time::Duration;

use phalanx_comm::{Communicator, Deadline};
use phalanx_data::{PackRank, PackReport, PackRequest};
use phalanx_host::Isa;

use crate::{Error, Result, ranks};

/// Packs as `ranks` threads; see [`phalanx_data::pack`].
pub fn pack(request: &PackRequest, ranks: u32, say: &(dyn Fn(&str) + Sync)) -> Result<PackReport> {
    // Nothing of a thread can be lost without an error, and no one can say how long a shard takes.
    let never = Duration::from_secs(365 * 24 * 3600);
    let all = ranks::run_threads(ranks, never, Isa::choose("auto")?, |comm| pack_rank(request, &*comm, say))?;
    let report = all.into_iter().next().flatten();
    report.ok_or_else(|| Error::config("--ranks", "there must be at least one rank"))
}

/// Packs as one rank of `comm`'s world; rank 0 gets the report.
///
/// Ranks wait for each other without a deadline, since their shards take as long as the disks need; that a process is
/// gone is seen by the watchdog.
pub fn pack_rank(
    request: &PackRequest,
    comm: &dyn Communicator,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Option<PackReport>> {
    let rank = PackRank { rank: comm.rank(), world: comm.world() };
    phalanx_data::pack(request, rank, &|| Ok::<(), Error>(comm.barrier(Deadline::never())?), say)
}
