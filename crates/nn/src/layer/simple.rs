//! Flattening.

use phalanx_tensor::{Shape, Tensor};

use super::Layer;
use crate::{Builder, Forward, Result};

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
