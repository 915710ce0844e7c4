//! How parameters begin.

use phalanx_host::rng::Stream;
use serde::{Deserialize, Serialize};

/// An initialisation. Fans are the number of inputs and outputs of one unit, kernel area included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// All the given value.
    Constant(f32),
    /// Normal with the given deviation.
    Normal(f32),
    /// Standard normal in rows of fan-out numbers, save for the given row, which is 0: a table of embeddings
    /// with padding.
    NormalSaveRow(usize),
    /// Normal with deviation √(2 / fan-in) (He et al., 2015), for ReLU.
    HeNormal,
    /// Normal with deviation √(2 / fan-out): He's rule for the backward pass, torchvision's for
    /// residual networks.
    HeNormalOut,
    /// Uniform with the same deviation.
    HeUniform,
    /// Normal with deviation √(2 / (fan-in + fan-out)) (Glorot and Bengio, 2010), for tanh.
    GlorotNormal,
    /// Uniform with the same deviation.
    GlorotUniform,
    /// Normal with deviation √(1 / fan-in) (LeCun et al., 1998).
    LecunNormal,
    /// Uniform in ±1/√fan-in: PyTorch's default for weights and biases.
    Uniform,
}

impl Init {
    /// Fills `out`, drawing from `stream`.
    pub fn fill(self, stream: &mut Stream, [fan_in, fan_out]: [usize; 2], out: &mut [f32]) {
        let (fan_in, fan_out) = (fan_in.max(1) as f64, fan_out.max(1) as f64);
        let normal = |s: &mut Stream, deviation: f64| (s.normal() * deviation) as f32;
        let uniform = |s: &mut Stream, bound: f64| ((s.f64() * 2.0 - 1.0) * bound) as f32;
        let he = (2.0 / fan_in).sqrt();
        let glorot = (2.0 / (fan_in + fan_out)).sqrt();
        for (i, x) in out.iter_mut().enumerate() {
            *x = match self {
                Init::Zeros => 0.0,
                Init::Ones => 1.0,
                Init::Constant(value) => value,
                Init::Normal(deviation) => normal(stream, f64::from(deviation)),
                Init::NormalSaveRow(row) if i / fan_out as usize == row => 0.0,
                Init::NormalSaveRow(_) => normal(stream, 1.0),
                Init::HeNormal => normal(stream, he),
                Init::HeNormalOut => normal(stream, (2.0 / fan_out).sqrt()),
                Init::HeUniform => uniform(stream, he * 3f64.sqrt()),
                Init::GlorotNormal => normal(stream, glorot),
                Init::GlorotUniform => uniform(stream, glorot * 3f64.sqrt()),
                Init::LecunNormal => normal(stream, (1.0 / fan_in).sqrt()),
                Init::Uniform => uniform(stream, 1.0 / fan_in.sqrt()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use phalanx_host::rng::Key;

    use super::*;

    #[test]
    fn deviations_are_the_published_ones() {
        let fans = [50, 30];
        for (init, want) in [
            (Init::Zeros, 0.0),
            (Init::Normal(0.25), 0.25),
            (Init::HeNormal, (2.0f64 / 50.0).sqrt()),
            (Init::HeNormalOut, (2.0f64 / 30.0).sqrt()),
            (Init::HeUniform, (2.0f64 / 50.0).sqrt()),
            (Init::GlorotNormal, (2.0f64 / 80.0).sqrt()),
            (Init::GlorotUniform, (2.0f64 / 80.0).sqrt()),
            (Init::LecunNormal, (1.0f64 / 50.0).sqrt()),
            (Init::Uniform, (1.0f64 / 150.0).sqrt()),
        ] {
            let mut x = vec![7.0; 100_000];
            init.fill(&mut Key::new(3).stream(), fans, &mut x);
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e5;
            let deviation = (x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / 1e5).sqrt();
            assert!(
                mean.abs() < 0.003 && (deviation - want).abs() < 0.01 * want + 1e-9,
                "{init:?}: {mean} {deviation}"
            );
        }
    }
}
