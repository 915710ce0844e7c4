//! Which sample is seen when: pure functions without memory.

use std::ops::Range;

use phalanx_host::rng::Key;

/// Separates the order's random stream from every other one of the same seed.
const STREAM: u64 = 0x6F72_6465_7200;
const ROUNDS: usize = 8;
/// A network of fewer bits has too few round functions to reach all permutations equally often; walking
/// through 256 numbers for a handful of samples costs nothing that matters.
const LEAST_BITS: u32 = 8;

/// The order of one epoch: a pseudo-random permutation of `0..n` that is evaluated at one position in
/// constant time and memory.
///
/// A Feistel network (Luby and Rackoff, "How to construct pseudorandom permutations from pseudorandom
/// functions", 1988) permutes the numbers of just enough bits to hold `n`; results of `n` and above are
/// fed in again until one lies below (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite
/// domains", 2002), less than twice on average. The round keys come from Philox once; a round itself is
/// one wide multiplication.
#[derive(Debug, Clone)]
pub struct Order {
    n: u64,
    low_bits: u32,
    low_mask: u64,
    high_mask: u64,
    keys: [[u64; 2]; ROUNDS],
}

impl Order {
    /// The order of `n` samples in epoch `epoch` of the run with that seed.
    pub fn new(seed: u64, epoch: u64, n: u64) -> Self {
        let bits = (u64::BITS - n.saturating_sub(1).leading_zeros()).max(LEAST_BITS);
        let low_bits = bits / 2;
        let mut stream = Key::new(seed).derive(STREAM, epoch).stream();
        let keys = std::array::from_fn(|_| [stream.u64(), stream.u64() | 1]);
        let mask = |bits: u32| (1u64 << bits) - 1;
        Order { n, low_bits, low_mask: mask(low_bits), high_mask: mask(bits - low_bits), keys }
    }

    /// The number of samples.
    pub fn len(&self) -> u64 {
        self.n
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The sample at `position`. A position outside `0..n` is no position of the epoch and comes back
    /// unchanged, so that the set it is asked of reports it.
    #[inline]
    pub fn at(&self, position: u64) -> u64 {
        if position >= self.n {
            return position;
        }
        let mut x = position;
        loop {
            x = self.permute(x);
            if x < self.n {
                return x;
            }
        }
    }

    #[inline(always)]
    fn permute(&self, x: u64) -> u64 {
        let (mut low, mut high) = (x & self.low_mask, x >> self.low_bits);
        for pair in self.keys.chunks_exact(2) {
            high ^= mix(low, pair[0]) & self.high_mask;
            low ^= mix(high, pair[1]) & self.low_mask;
        }
        high << self.low_bits | low
    }
}

/// Both halves of a keyed 128-bit product, folded.
#[inline(always)]
fn mix(x: u64, [a, b]: [u64; 2]) -> u64 {
    let wide = u128::from(x ^ a) * u128::from(b);
    (wide >> 64) as u64 ^ wide as u64
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

#[cfg(test)]
mod tests;
