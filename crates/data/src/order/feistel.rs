//! A keyed permutation of `0..n`, both ways, without memory.

use phalanx_host::rng::Key;

const ROUNDS: usize = 8;
/// A network of fewer bits has too few round functions to reach all permutations equally often; walking
/// through 256 numbers for a handful of samples costs nothing that matters.
const LEAST_BITS: u32 = 8;

/// The round keys.
#[derive(Debug, Clone)]
pub(super) struct Feistel {
    keys: [[u64; 2]; ROUNDS],
}

/// The numbers that are permuted, `0..n`, and the halves of as many bits as hold them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Domain {
    n: u64,
    low_bits: u32,
    low_mask: u64,
    high_mask: u64,
}

impl Domain {
    #[inline(always)]
    pub(super) fn new(n: u64) -> Self {
        let bits = (u64::BITS - n.saturating_sub(1).leading_zeros()).max(LEAST_BITS);
        let low_bits = bits / 2;
        let mask = |bits: u32| (1u64 << bits) - 1;
        Domain { n, low_bits, low_mask: mask(low_bits), high_mask: mask(bits - low_bits) }
    }

    /// How many numbers are permuted.
    pub(super) fn len(&self) -> u64 {
        self.n
    }
}

impl Feistel {
    pub(super) fn new(key: Key) -> Self {
        let mut stream = key.stream();
        Feistel { keys: std::array::from_fn(|_| [stream.u64(), stream.u64() | 1]) }
    }

    /// Where `x`, which is below the domain's end, goes. Each `tweak` is a permutation of its own; 0 is the plain one.
    #[inline(always)]
    pub(super) fn at(&self, domain: &Domain, tweak: u64, mut x: u64) -> u64 {
        loop {
            let (mut low, mut high) = (x & domain.low_mask, x >> domain.low_bits);
            for pair in self.keys.chunks_exact(2) {
                high ^= mix(low ^ tweak, pair[0]) & domain.high_mask;
                low ^= mix(high ^ tweak, pair[1]) & domain.low_mask;
            }
            x = high << domain.low_bits | low;
            if x < domain.n {
                return x;
            }
        }
    }

    /// Where `x` comes from: the inverse of the plain [`Feistel::at`].
    pub(super) fn before(&self, domain: &Domain, mut x: u64) -> u64 {
        loop {
            let (mut low, mut high) = (x & domain.low_mask, x >> domain.low_bits);
            for pair in self.keys.chunks_exact(2).rev() {
                low ^= mix(high, pair[1]) & domain.low_mask;
                high ^= mix(low, pair[0]) & domain.high_mask;
            }
            x = high << domain.low_bits | low;
            if x < domain.n {
                return x;
            }
        }
    }
}

/// Both halves of a keyed 128-bit product, folded.
#[inline(always)]
pub(super) fn mix(x: u64, [a, b]: [u64; 2]) -> u64 {
    let wide = u128::from(x ^ a) * u128::from(b);
    (wide >> 64) as u64 ^ wide as u64
}
