//! Rows for signals: arrays [T, C], here as images of one column.

use phalanx_host::rng::Stream;

use super::ops::{at, range};
use super::{Image, Step, Value};
use crate::{FieldSpec, Result};

/// A random shift in time.
pub(super) struct TimeShift {
    pub(super) fraction: f64,
}

impl Step for TimeShift {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        let [t, w, c] = image.shape;
        let most = (t as f64 * self.fraction).round() as u64;
        let by = stream.below(2 * most + 1) as i64 - most as i64;
        let (length, gap) = (image.pixels.len(), (by.unsigned_abs() as usize).min(t) * w * c);
        if by >= 0 {
            image.pixels.copy_within(..length - gap, gap);
            image.pixels[..gap].fill(0.0);
        } else {
            image.pixels.copy_within(gap.., 0);
            image.pixels[length - gap..].fill(0.0);
        }
    }
}

/// Resamples in time about the middle, so that pitch and tempo rise or fall together.
pub(super) struct PitchShift {
    pub(super) semitones: f64,
}

impl Step for PitchShift {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        let [t, w, c] = image.shape;
        let semitones = (2.0 * stream.f64() - 1.0) * self.semitones;
        if semitones == 0.0 || t == 0 {
            return;
        }
        let speed = (semitones / 12.0).exp2();
        let (width, middle) = (w * c, (t as f64 - 1.0) / 2.0);
        let (pixels, scratch) = (&image.pixels, &mut image.scratch);
        scratch.clear();
        for i in 0..t {
            let place = (i as f64 - middle) * speed + middle;
            let (before, after) = (place.floor(), (place - place.floor()) as f32);
            let value = |at: f64, k: usize| match at >= 0.0 && at < t as f64 {
                true => pixels[at as usize * width + k],
                false => 0.0,
            };
            scratch.extend(
                (0..width).map(|k| value(before, k) * (1.0 - after) + value(before + 1.0, k) * after),
            );
        }
        std::mem::swap(&mut image.pixels, &mut image.scratch);
    }
}

/// White noise whose power is that of the signal less a random number of decibels.
pub(super) struct Noise {
    decibels: [f64; 2],
}

impl Noise {
    pub(super) fn build(values: &[Value], _: &FieldSpec) -> Result<Box<dyn Step>> {
        let decibels = range("noise", ["snr_min", "snr_max"], [at(values, 0), at(values, 1)])?;
        Ok(Box::new(Noise { decibels }))
    }
}

impl Step for Noise {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        let decibels = self.decibels[0] + (self.decibels[1] - self.decibels[0]) * stream.f64();
        let power: f64 = image.pixels.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let power = power / image.pixels.len().max(1) as f64;
        let std = (power * 10f64.powf(-decibels / 10.0)).sqrt();
        image.pixels.iter_mut().for_each(|x| *x += (std * stream.normal()) as f32);
    }
}
