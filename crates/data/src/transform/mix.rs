//! Mixup and cutmix: which samples of a batch are mixed, and how much of each. Planned with the data, so that it does
//! not depend on ranks or threads; carried out on tensors, where the batch is.

use phalanx_host::rng::{Key, Stream};

use super::ops::at;
use super::{Make, Transform};
use crate::{Error, Result};

pub(super) const MIXUP: &str = "mixup";
pub(super) const CUTMIX: &str = "cutmix";

/// Separates these random streams from every other one of the same seed.
const STREAM: u64 = 0x006d_6978;

/// How the samples of a batch are mixed, one entry a sample. Sample `i` becomes: where its box is not empty, its own
/// pixels with those of sample `partner[i]` inside the box; else `lambda[i] · own + (1 − lambda[i]) · partner's`. Its
/// target is `lambda[i] · own + (1 − lambda[i]) · partner's` in both cases. Partners are taken before any is mixed.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix {
    /// Places in the batch.
    pub partner: Vec<u32>,
    /// How much of its own a sample keeps, in [0, 1]; 1 for one that stays as it is.
    pub lambda: Vec<f32>,
    /// Top, left, height and width in pixels of what comes from the partner.
    pub boxes: Vec<[u32; 4]>,
}

/// The mixing that `loader.transforms` asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixing {
    /// Each with its α and how often it happens.
    mixup: Option<[f64; 2]>,
    cutmix: Option<[f64; 2]>,
    /// Height and width of the images.
    size: [usize; 2],
}

impl Mixing {
    /// The mixing of images of that height and width; `None` where no row asks for any. With both rows each sample is
    /// mixed in one of the two ways, as likely as the other.
    ///
    /// Fails on a row that is there twice.
    pub fn of(transforms: &[Transform], size: [usize; 2]) -> Result<Option<Self>> {
        let row = |name: &str| {
            let mut rows =
                transforms.iter().filter(|t| matches!(t.row.make, Make::Batch) && t.row.name == name);
            let row = rows.next().map(|t| [at(&t.values, 0), at(&t.values, 1)]);
            match rows.next() {
                Some(_) => Err(Error::usage("loader.transforms", format!("`{name}` is there twice"))),
                None => Ok(row),
            }
        };
        let mixing = Mixing { mixup: row(MIXUP)?, cutmix: row(CUTMIX)?, size };
        Ok((mixing.mixup.is_some() || mixing.cutmix.is_some()).then_some(mixing))
    }

    /// The plan for the `n` samples of one virtual shard in one step; partners are of the same shard.
    pub fn plan(&self, seed: u64, epoch: u64, step: u64, shard: u64, n: usize) -> Mix {
        let key = Key::new(seed).derive(STREAM, epoch).derive(step, shard);
        let mut stream = key.stream();
        let mut partner: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            partner.swap(i, stream.below(i as u64 + 1) as usize);
        }
        let mut mix = Mix { partner, lambda: Vec::with_capacity(n), boxes: Vec::with_capacity(n) };
        for i in 0..n {
            let (lambda, place) = self.one(&mut key.derive(i as u64, 1).stream());
            // A sample is not mixed with itself: that would change nothing and cost a copy.
            let alone = mix.partner[i] as usize == i;
            mix.lambda.push(if alone { 1.0 } else { lambda });
            mix.boxes.push(if alone { [0; 4] } else { place });
        }
        mix
    }

    fn one(&self, stream: &mut Stream) -> (f32, [u32; 4]) {
        let ([alpha, p], cut) = match (self.mixup, self.cutmix) {
            (Some(mixup), Some(cutmix)) => {
                if stream.below(2) == 0 {
                    (mixup, false)
                } else {
                    (cutmix, true)
                }
            }
            (Some(mixup), None) => (mixup, false),
            (None, Some(cutmix)) => (cutmix, true),
            (None, None) => return (1.0, [0; 4]),
        };
        if stream.f64() >= p {
            return (1.0, [0; 4]);
        }
        let lambda = beta(alpha, stream);
        if !cut {
            return (lambda as f32, [0; 4]);
        }
        // A box of the share 1 − λ about a random centre, cut off at the rim; what is left of it decides (Yun et al.,
        // "CutMix", 2019, section 3.1).
        let side = (1.0 - lambda).sqrt();
        let [(top, tall), (left, wide)] = self.size.map(|length| {
            let (half, centre) =
                ((length as f64 * side) as usize / 2, stream.below(length.max(1) as u64) as usize);
            let (from, to) = (centre.saturating_sub(half), (centre + half).min(length));
            (from, to - from)
        });
        let area = self.size[0] * self.size[1];
        if tall * wide == 0 {
            return (1.0, [0; 4]);
        }
        let kept = 1.0 - (tall * wide) as f64 / area as f64;
        (kept as f32, [top, left, tall, wide].map(|x| x as u32))
    }
}

/// A number of the beta distribution with both parameters `alpha`: x / (x + y) of two of the gamma distribution.
fn beta(alpha: f64, stream: &mut Stream) -> f64 {
    let (x, y) = (log_gamma_distributed(alpha, stream), log_gamma_distributed(alpha, stream));
    // In logarithms, since both are far below the least number for a small alpha.
    1.0 / (1.0 + (y - x).exp())
}

/// The logarithm of a number of the gamma distribution (Marsaglia and Tsang, "A simple method for generating gamma
/// variables", 2000).
fn log_gamma_distributed(shape: f64, stream: &mut Stream) -> f64 {
    // Above 0, so that its logarithm is finite.
    let uniform = |stream: &mut Stream| 1.0 - stream.f64();
    let (raised, more) = if shape < 1.0 { (shape + 1.0, uniform(stream).ln() / shape) } else { (shape, 0.0) };
    let d = raised - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = stream.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && uniform(stream).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return (d * v).ln() + more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Value;

    fn row(name: &str, alpha: f64, p: f64) -> Transform {
        Transform::new(name, &[("alpha", Value::Number(alpha)), ("p", Value::Number(p))]).unwrap()
    }

    #[test]
    fn plans_are_keyed_and_partners_are_a_permutation() {
        let mixing = Mixing::of(&[row(MIXUP, 0.4, 1.0)], [8, 8]).unwrap().unwrap();
        let mix = mixing.plan(3, 1, 4, 2, 40);
        assert_eq!(mix, mixing.plan(3, 1, 4, 2, 40));
        for other in [(4, 1, 4, 2), (3, 2, 4, 2), (3, 1, 5, 2), (3, 1, 4, 3)] {
            assert_ne!(mix, mixing.plan(other.0, other.1, other.2, other.3, 40));
        }
        let mut seen = mix.partner.clone();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..40));
        for (i, lambda) in mix.lambda.iter().enumerate() {
            assert!((0.0..=1.0).contains(lambda) && (mix.partner[i] as usize != i || *lambda == 1.0));
        }
        assert!(mix.boxes.iter().all(|b| *b == [0; 4]));
        assert_eq!(mixing.plan(3, 1, 4, 2, 1).lambda, [1.0]);
        assert!(mixing.plan(3, 1, 4, 2, 0).partner.is_empty());
    }

    #[test]
    fn boxes_take_what_their_lambda_says() {
        let mixing = Mixing::of(&[row(CUTMIX, 1.0, 1.0)], [20, 30]).unwrap().unwrap();
        let mix = mixing.plan(0, 0, 0, 0, 500);
        for (&[top, left, tall, wide], lambda) in mix.boxes.iter().zip(&mix.lambda) {
            assert!(top + tall <= 20 && left + wide <= 30);
            assert!((f64::from(tall * wide) / 600.0 - (1.0 - f64::from(*lambda))).abs() < 1e-6);
        }
        let mixed = mix.lambda.iter().filter(|l| **l < 1.0).count();
        assert!(mixed > 400, "{mixed}");
    }

    #[test]
    fn beta_has_its_mean_and_variance() {
        for alpha in [0.01, 0.2, 1.0, 5.0] {
            let mut stream = Key::new(7).stream();
            let draws: Vec<f64> = (0..20_000).map(|_| beta(alpha, &mut stream)).collect();
            let mean = draws.iter().sum::<f64>() / 20_000.0;
            let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
            let wanted = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!(
                (mean - 0.5).abs() < 0.012 && (variance / wanted - 1.0).abs() < 0.05,
                "{alpha}: {mean} {variance}"
            );
        }
    }

    #[test]
    fn rows_decide_how_often_and_how() {
        assert_eq!(Mixing::of(&[Transform::new("flip", &[]).unwrap()], [8, 8]).unwrap(), None);
        assert!(Mixing::of(&[row(MIXUP, 1.0, 1.0), row(MIXUP, 0.2, 1.0)], [8, 8]).is_err());
        let both = [row(MIXUP, 1.0, 0.5), row(CUTMIX, 1.0, 0.5)];
        let mix = Mixing::of(&both, [32, 32]).unwrap().unwrap().plan(1, 0, 0, 0, 2000);
        let cut = mix.boxes.iter().filter(|b| **b != [0; 4]).count();
        let mixed = mix.lambda.iter().filter(|l| **l < 1.0).count();
        assert!((900..1100).contains(&mixed) && (380..620).contains(&cut), "{mixed} {cut}");
    }
}
