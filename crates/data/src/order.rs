//! Which sample is seen when: pure functions without memory.

mod blocked;
mod feistel;
#[cfg(test)]
mod tests;

use std::num::NonZeroU32;
use std::ops::Range;

use blocked::Blocked;
use feistel::{Domain, Feistel};
use phalanx_host::rng::Key;
use serde::{Deserialize, Serialize};

/// Separates the order's random stream from every other one of the same seed.
const STREAM: u64 = 0x6F72_6465_7200;

/// How an epoch's samples are shuffled.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum OrderKind {
    /// Every sample may come anywhere.
    #[default]
    Full,
    /// Blocks of neighbouring samples are shuffled, and then the samples within windows of some blocks: reads stay
    /// within a few places of the files at a time, which file systems with spinning disks or many clients want.
    Blocked {
        /// Samples in a block.
        #[serde(default = "default_block")]
        block: NonZeroU32,
        /// Blocks in a window.
        #[serde(default = "default_window")]
        window: NonZeroU32,
    },
}

fn default_block() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(1023)
}

fn default_window() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(15)
}

impl OrderKind {
    /// Whether it is the one that is meant where nothing is said.
    pub fn is_full(&self) -> bool {
        *self == OrderKind::Full
    }
}

/// The order of one epoch: a pseudo-random permutation of `0..n` that is evaluated at one position in
/// constant time and memory.
///
/// A Feistel network (Luby and Rackoff, "How to construct pseudorandom permutations from pseudorandom
/// functions", 1988) permutes the numbers of just enough bits to hold `n`; results of `n` and above are
/// fed in again until one lies below (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite
/// domains", 2002), less than twice on average. The round keys come from Philox once; a round itself is
/// one wide multiplication.
#[derive(Debug, Clone)]
pub struct Order(Shuffle);

#[derive(Debug, Clone)]
enum Shuffle {
    Full(Feistel, Domain),
    Blocked(Box<Blocked>),
}

impl Order {
    /// The full order of `n` samples in epoch `epoch` of the run with that seed.
    pub fn new(seed: u64, epoch: u64, n: u64) -> Self {
        Order::of(OrderKind::Full, seed, epoch, n)
    }

    /// The order of that kind.
    pub fn of(kind: OrderKind, seed: u64, epoch: u64, n: u64) -> Self {
        let key = Key::new(seed).derive(STREAM, epoch);
        Order(match kind {
            OrderKind::Full => Shuffle::Full(Feistel::new(key), Domain::new(n)),
            OrderKind::Blocked { block, window } => {
                Shuffle::Blocked(Box::new(Blocked::new(key, n, block.get().into(), window.get().into())))
            }
        })
    }

    /// A full order with a stream of its own.
    pub(crate) fn keyed(key: Key, n: u64) -> Self {
        Order(Shuffle::Full(Feistel::new(key), Domain::new(n)))
    }

    /// The number of samples.
    pub fn len(&self) -> u64 {
        match &self.0 {
            Shuffle::Full(_, domain) => domain.len(),
            Shuffle::Blocked(blocked) => blocked.len(),
        }
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sample at `position`. A position outside `0..n` is no position of the epoch and comes back
    /// unchanged, so that the set it is asked of reports it.
    #[inline]
    pub fn at(&self, position: u64) -> u64 {
        match &self.0 {
            _ if position >= self.len() => position,
            Shuffle::Full(feistel, domain) => feistel.at(domain, 0, position),
            Shuffle::Blocked(blocked) => blocked.at(position),
        }
    }
}

/// Steps in one epoch of `n` samples: the last batch may be short. A batch of 0 counts as 1.
pub fn steps_per_epoch(n: u64, global_batch: u64) -> u64 {
    n.div_ceil(global_batch.max(1))
}

/// The positions of an epoch that step `step` of it consumes; empty past the epoch's end.
pub fn step_positions(n: u64, global_batch: u64, step: u64) -> Range<u64> {
    let batch = global_batch.max(1);
    let start = step.saturating_mul(batch).min(n);
    start..start.saturating_add(batch).min(n)
}

/// The part of a step's positions that belongs to virtual shard `shard` of `shards`: from `len·s/V` to
/// `len·(s+1)/V`. Shards differ by at most one sample and may be empty; in order they make up the range.
/// 0 shards count as 1; a shard that does not exist is empty.
pub fn shard_positions(range: Range<u64>, shards: u64, shard: u64) -> Range<u64> {
    let (shards, len) = (shards.max(1), range.end.saturating_sub(range.start));
    let cut =
        |s: u64| range.start + (u128::from(len) * u128::from(s.min(shards)) / u128::from(shards)) as u64;
    cut(shard)..cut(shard.saturating_add(1))
}
