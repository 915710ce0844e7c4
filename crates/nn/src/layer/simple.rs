//! Layers without parameters.

use phalanx_tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

use super::Layer;
use crate::{Builder, Forward, Result};

/// A function of each element.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// max(x, 0)
    #[default]
    Relu,
    /// 1 / (1 + e^−x)
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
}

impl Layer for Activation {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::Relu => x.relu()?,
            Activation::Sigmoid => x.sigmoid()?,
            Activation::Tanh => x.tanh()?,
        })
    }
}

/// Makes a vector of each sample, channels first as the weights of torchvision's classifiers expect.
#[derive(Debug)]
pub struct Flatten;

impl Flatten {
    /// Takes samples of any shape.
    pub fn build(b: &mut Builder, input: Shape) -> (Self, Shape) {
        let shape = [input.numel()].into();
        b.describe("flatten", shape, b.next_param(), 0);
        (Flatten, shape)
    }
}

impl Layer for Flatten {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        let shape = x.shape();
        let n = shape.first().copied().unwrap_or(0);
        let per_sample = shape.iter().skip(1).product();
        match shape[..] {
            // One channel or one pixel: both orders are the same.
            [_, h, w, c] if c != 1 && h * w != 1 => {
                Ok(x.permute(&[0, 3, 1, 2])?.reshape(&[n, per_sample])?)
            }
            _ => Ok(x.reshape(&[n, per_sample])?),
        }
    }
}
