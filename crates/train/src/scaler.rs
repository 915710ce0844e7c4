//! Dynamic loss scaling for activations in half precision, whose smallest numbers are not small enough for gradients.

use serde::{Deserialize, Serialize};

/// What losses are multiplied by before backward; the optimizer divides by it again. Always a power of two, so that it
/// changes no bits but those of numbers that would be too small. A step whose gradients are not finite is skipped and
/// halves it; after enough good ones in a row it is doubled. All ranks see the same sums, so they decide alike.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor.
    pub scale: f64,
    /// Good steps since it changed.
    good: u32,
    /// Steps skipped since the run began.
    pub skipped: u64,
}

/// Good steps before the scale is doubled.
const PATIENCE: u32 = 2000;
/// What the scale of a mean over all samples begins with.
const FIRST: f64 = 65536.0;
const LARGEST: f64 = 16_777_216.0;
/// Below it something else is wrong.
const SMALLEST: f64 = 1.0 / 16_777_216.0;

impl LossScale {
    /// For losses that are summed over `samples` samples: the sum's gradients are larger than a mean's.
    pub fn new(samples: u64) -> Self {
        let samples = samples.clamp(1, 1 << 32).next_power_of_two();
        LossScale { scale: (FIRST / samples as f64).max(SMALLEST), good: 0, skipped: 0 }
    }

    /// Takes note of a step whose gradients were finite, or not. False when no smaller scale is left to try.
    #[must_use]
    pub fn observe(&mut self, finite: bool) -> bool {
        if finite {
            self.good += 1;
            if self.good >= PATIENCE {
                (self.scale, self.good) = ((self.scale * 2.0).min(LARGEST), 0);
            }
            return true;
        }
        self.skipped += 1;
        (self.scale, self.good) = (self.scale / 2.0, 0);
        self.scale >= SMALLEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_at_once_and_rises_slowly() {
        let mut s = LossScale::new(100);
        assert_eq!(s.scale, 512.0);
        assert!(s.observe(false));
        assert_eq!((s.scale, s.skipped), (256.0, 1));
        for _ in 0..PATIENCE - 1 {
            assert!(s.observe(true));
        }
        assert_eq!(s.scale, 256.0);
        assert!(s.observe(true));
        assert_eq!(s.scale, 512.0);
        (0..100 * PATIENCE).for_each(|_| assert!(s.observe(true)));
        assert_eq!(s.scale, LARGEST);
        assert!((0..48).all(|_| s.observe(false)) && !s.observe(false));
    }
}
