//! Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers:
//! as easy as 1, 2, 3", SC 2011).
//!
//! A number is a pure function of a key and a position, so that a stream belongs to what it is for
//! (seed, epoch, sample; seed, step, shard, layer) and never to a thread or a rank. The same function
//! in a CUDA kernel gives the same bits.

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// Ten rounds of Philox4x32 on `counter` under `key`.
#[inline(always)]
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let ([mut k0, mut k1], mut c) = (key, counter);
    for _ in 0..10 {
        let p0 = u64::from(M0) * u64::from(c[0]);
        let p1 = u64::from(M1) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k1, p0 as u32];
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    c
}

/// Names one random stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u32; 2]);

impl Key {
    /// The root of all streams of a run.
    pub const fn new(seed: u64) -> Self {
        Key([seed as u32, (seed >> 32) as u32])
    }

    /// The stream below this one that belongs to the coordinates `a` and `b`; chain it for more.
    /// Streams of different coordinates are independent for all practical purposes (64-bit keys).
    pub fn derive(self, a: u64, b: u64) -> Self {
        let [x, y, ..] = philox(self.0, [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]);
        Key([x, y])
    }

    /// The four words at position `block` of this stream.
    #[inline(always)]
    pub fn block(self, block: u64) -> [u32; 4] {
        philox(self.0, [block as u32, (block >> 32) as u32, 0, 0])
    }

    /// The key as one number, for a kernel's arguments or a file.
    pub const fn to_u64(self) -> u64 {
        self.0[0] as u64 | (self.0[1] as u64) << 32
    }

    /// A reader that walks the stream from its beginning.
    pub fn stream(self) -> Stream {
        Stream { key: self, next: 0, words: [0; 4], left: 0 }
    }
}

/// Maps a random word to [0, 1) with 24 bits.
#[inline(always)]
pub fn unit_f32(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// A sequential reader of one stream.
#[derive(Debug, Clone)]
pub struct Stream {
    key: Key,
    next: u64,
    words: [u32; 4],
    left: usize,
}

impl Stream {
    /// The next 32 bits.
    pub fn u32(&mut self) -> u32 {
        if self.left == 0 {
            self.words = self.key.block(self.next);
            self.next += 1;
            self.left = 4;
        }
        self.left -= 1;
        self.words[3 - self.left]
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> u64 {
        let low = u64::from(self.u32());
        low | u64::from(self.u32()) << 32
    }

    /// Uniform in [0, 1).
    pub fn f32(&mut self) -> f32 {
        unit_f32(self.u32())
    }

    /// Uniform in [0, 1) with 53 bits.
    pub fn f64(&mut self) -> f64 {
        (self.u64() >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// Uniform in `0..n` without bias (rejection); 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        // Lemire's multiply-and-reject.
        let threshold = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.u64()) * u128::from(n);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Standard normal (Box and Muller; the second value of each pair is dropped so that a draw uses
    /// a fixed number of words).
    pub fn normal(&mut self) -> f64 {
        let u = 1.0 - self.f64();
        let v = self.f64();
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the Random123 library for philox4x32-10.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([!0; 2], [!0; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn draws_have_the_moments_they_should() {
        let mut s = Key::new(7).derive(1, 2).stream();
        let n = 200_000;
        let (mut m, mut v, mut u) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let x = s.normal();
            m += x;
            v += x * x;
            u += s.f64();
        }
        let n = f64::from(n);
        assert!((m / n).abs() < 0.01 && (v / n - 1.0).abs() < 0.02 && (u / n - 0.5).abs() < 0.01);
        let mut hits = [0u32; 3];
        for _ in 0..30_000 {
            hits[s.below(3) as usize] += 1;
        }
        assert!(hits.iter().all(|h| (9_500..10_500).contains(h)), "{hits:?}");
        assert_eq!(s.below(0), 0);
        assert_ne!(Key::new(7).derive(1, 2), Key::new(7).derive(2, 1));
    }
}
