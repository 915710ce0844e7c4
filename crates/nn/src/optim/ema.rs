//! An exponential moving average of the weights (Polyak and Juditsky, 1992).

use phalanx_gpu::DevicePtr;
use phalanx_host::Cpu;
use phalanx_host::simd::{Kernel, Real, Simd};
use phalanx_tensor::Device;
use serde::{Deserialize, Serialize};

use super::cpu::PIECE;
use super::cuda;
use crate::params::{Params, bytes};
use crate::{Error, Result};

/// The `[ema]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmaConfig {
    /// d in `average ← d average + (1 − d) weight`.
    pub decay: f64,
    /// Steps between updates of the average.
    pub every_steps: u64,
    /// Begins with a smaller d: `min(decay, (1 + t) / (10 + t))` at update t = 1, 2, …, as TensorFlow's
    /// ExponentialMovingAverage does with `num_updates`.
    pub warmup: bool,
}

impl Default for EmaConfig {
    fn default() -> Self {
        EmaConfig { decay: 0.9999, every_steps: 1, warmup: false }
    }
}

impl EmaConfig {
    /// Checks the values.
    pub fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.decay) {
            return Err(Error::config("ema", format!("decay is {}; it must lie in 0..1", self.decay)));
        }
        match self.every_steps {
            0 => Err(Error::config("ema", "every_steps is 0; it must be above 0")),
            _ => Ok(()),
        }
    }

    /// d of update `t`, counted from 1.
    fn decay_at(&self, t: u64) -> f64 {
        let t = t as f64;
        if self.warmup { self.decay.min((1.0 + t) / (10.0 + t)) } else { self.decay }
    }
}

/// A model's averaged weights, in single precision. Norms' running statistics are averages already: there is no
/// second average of them.
#[derive(Debug)]
pub struct Ema {
    config: EmaConfig,
    average: Params,
}

impl Ema {
    /// The average begins with the weights as they are.
    pub fn new(config: &EmaConfig, params: &Params) -> Result<Self> {
        config.check()?;
        Ok(Ema { config: config.clone(), average: params.twin()? })
    }

    /// The averaged weights, under the same ids.
    pub fn average(&self) -> &Params {
        &self.average
    }

    /// The share of the weights after `steps` steps of the run in the average; below 0 when it stays as it is then.
    fn share(&self, steps: u64) -> f32 {
        match steps.is_multiple_of(self.config.every_steps) {
            true => (1.0 - self.config.decay_at(steps / self.config.every_steps)) as f32,
            false => -1.0,
        }
    }

    /// What a recorded [`Ema::record`] wants at a launch for the step that ends the first `steps`, under the name
    /// [`super::AVERAGE`].
    pub fn varying(&self, steps: u64) -> Vec<u8> {
        self.share(steps).to_ne_bytes().to_vec()
    }

    /// While a graph is recorded on the parameters' GPU: records [`Ema::update`], which does nothing when there is something
    /// at `skipped`.
    pub fn record(&self, params: &Params, steps: u64, skipped: DevicePtr) -> Result<()> {
        let Some(gpu) = params.home().and_then(Device::gpu) else {
            return Err(phalanx_tensor::Error::WrongMemory { op: "ema", device: "GPU" }.into());
        };
        let all = bytes(&(0..params.elements()));
        let mut average = self.average.arena().write(all.clone())?;
        cuda::approach(gpu, &mut average, &params.arena().read(all)?, self.share(steps), Some(skipped))
    }

    /// Takes the weights after `steps` steps of the run into account. What the average is at a step depends on the
    /// weights at the steps before alone, so there is nothing else to keep.
    pub fn update(&mut self, cpu: &Cpu, params: &Params, steps: u64) -> Result<()> {
        let rest = self.share(steps);
        if rest < 0.0 {
            return Ok(());
        }
        let all = bytes(&(0..params.elements()));
        let mut average = self.average.arena().write(all.clone())?;
        let weights = params.arena().read(all)?;
        if let Some(gpu) = params.home().and_then(Device::gpu) {
            return cuda::approach(gpu, &mut average, &weights, rest, None);
        }
        let (average, weights) = (average.as_mut_slice::<f32>()?, weights.as_slice::<f32>()?);
        cpu.workers.chunks(average, PIECE, |i, average| {
            let weights = &weights[i * PIECE..i * PIECE + average.len()];
            f32::dispatch(cpu.isa, Approach { average, weights, by: rest });
        });
        Ok(())
    }
}

/// `average += (weight − average) by`
struct Approach<'a> {
    average: &'a mut [f32],
    weights: &'a [f32],
    by: f32,
}

impl Kernel<f32> for Approach<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<f32>>(self) {
        self.average.iter_mut().zip(self.weights).for_each(|(a, &w)| *a += (w - *a) * self.by);
    }
}
