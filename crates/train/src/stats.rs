//! Mean and deviation of a set's images, computed by several ranks.

use std::time::Duration;

use phalanx_comm::{Communicator, Deadline};
use phalanx_data::{BlockStats, ChannelStats, Role, Source, block_stats, stats_blocks};
use phalanx_host::Isa;

use crate::{Error, Result, ranks};

/// Computes as `ranks` threads; see [`stats_rank`].
pub fn stats(set: &dyn Source, ranks: u32, progress: &(dyn Fn(u64) + Sync)) -> Result<ChannelStats> {
    // No one can say how long a set takes to read, and nothing of a thread can be lost without an error.
    let never = Duration::from_secs(365 * 24 * 3600);
    let isa = Isa::choose("auto")?;
    let all = ranks::run_threads(ranks, never, isa, |comm| stats_rank(set, 1, &*comm, progress))?;
    all.into_iter().next().ok_or_else(|| Error::config("--ranks", "there must be at least one rank"))
}

/// Computes as one rank of `comm`'s world, on `threads` threads; every rank gets the same result, which does not depend
/// on the number of either. `progress` is told the images that this rank has seen.
///
/// Errors are those of [`block_stats`] and of the communicator.
pub fn stats_rank(
    set: &dyn Source,
    threads: usize,
    comm: &dyn Communicator,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<ChannelStats> {
    let (rank, world) = (u64::from(comm.rank()), u64::from(comm.world()));
    let blocks = stats_blocks(set.len());
    let mine = blocks * rank / world..blocks * (rank + 1) / world;
    let mine = block_stats(set, mine, threads, progress)?;
    let bytes = serde_json::to_vec(&mine).map_err(|e| Error::config("statistics", e.to_string()))?;
    let mut all: Vec<BlockStats> = Vec::new();
    for bytes in comm.all_gather(&bytes, Deadline::never())? {
        let theirs: Vec<BlockStats> =
            serde_json::from_slice(&bytes).map_err(|e| Error::config("statistics", e.to_string()))?;
        all.extend(theirs);
    }
    let max = set.schema().first(Role::Image).map_or(1.0, |image| image.max);
    Ok(ChannelStats::of(&all, max))
}

#[cfg(test)]
mod tests {
    use phalanx_data::{Synth, SynthCodec, SynthConfig};

    use super::*;

    #[test]
    fn any_number_of_ranks_finds_the_same() {
        let config = SynthConfig {
            classes: 3,
            images: 2500,
            val: 0,
            size: [8, 8],
            vary: 0.0,
            codec: SynthCodec::Raw,
            seed: 1,
        };
        let set = Synth::new(&config, false).unwrap();
        let alone = stats(&set, 1, &|_| ()).unwrap();
        assert_eq!((alone.images, alone.pixels, alone.mean.len()), (2500, 2500 * 64, 3));
        assert!(alone.mean.iter().chain(&alone.std).all(|v| (0.05..0.95).contains(v)), "{alone:?}");
        for ranks in [2, 3, 5] {
            assert_eq!(stats(&set, ranks, &|_| ()).unwrap(), alone);
        }
        assert!(stats(&set, 0, &|_| ()).is_err());
    }
}
