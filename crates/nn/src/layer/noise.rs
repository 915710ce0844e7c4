//! Layers that are random in training and the identity in evaluation.

use phalanx_tensor::{Shape, Tensor};

use super::Layer;
use crate::{Builder, Error, Forward, Result};

/// What is done in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoiseKind {
    /// Elements are dropped, see [`Tensor::dropout`].
    Dropout,
    /// Whole channels are dropped, see [`Tensor::channel_dropout`].
    ChannelDropout,
    /// Elements become a SELU unit's lowest value, see [`Tensor::alpha_dropout`].
    AlphaDropout,
    /// Normal noise is added, see [`Tensor::gaussian_noise`].
    Gaussian,
}

impl NoiseKind {
    fn name(self) -> &'static str {
        match self {
            NoiseKind::Dropout => "dropout",
            NoiseKind::ChannelDropout => "channel-dropout",
            NoiseKind::AlphaDropout => "alpha-dropout",
            NoiseKind::Gaussian => "gaussian-noise",
        }
    }
}

/// A layer that disturbs its input in training: an element's fate is a function of the step's key and its place.
#[derive(Debug)]
pub struct Noise {
    kind: NoiseKind,
    /// A probability, or a standard deviation.
    amount: f64,
}

impl Noise {
    /// `amount` is the probability of dropping, or the noise's standard deviation.
    pub fn build(b: &Builder, input: Shape, kind: NoiseKind, amount: f64) -> Result<(Self, Shape)> {
        let problem = match kind {
            NoiseKind::Gaussian if !(amount >= 0.0 && amount.is_finite()) => {
                format!("std is {amount}; a standard deviation is 0 or more")
            }
            NoiseKind::Gaussian => return Ok((Noise { kind, amount }, input)),
            _ if (0.0..=1.0).contains(&amount) => return Ok((Noise { kind, amount }, input)),
            _ => format!("p is {amount}; a probability lies in 0..1"),
        };
        Err(Error::config(b.place(kind.name()), problem))
    }
}

impl Layer for Noise {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        // The key is drawn in any case, so that the amount does not shift the streams of later layers.
        let key = cx.next_key();
        if !cx.training() || self.amount == 0.0 {
            return Ok(x.clone());
        }
        Ok(match self.kind {
            NoiseKind::Dropout => x.dropout(self.amount, key)?,
            NoiseKind::ChannelDropout => x.channel_dropout(self.amount, key)?,
            NoiseKind::AlphaDropout => x.alpha_dropout(self.amount, key)?,
            NoiseKind::Gaussian => x.gaussian_noise(self.amount, key)?,
        })
    }
}
