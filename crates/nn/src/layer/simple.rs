//! Dropping and flattening.

use phalanx_tensor::{Shape, Tensor};

use super::Layer;
use crate::{Builder, Error, Forward, Result};

/// Zeroes elements with probability `p` in training and scales the others by 1 / (1 − p).
#[derive(Debug)]
pub struct Dropout {
    p: f64,
}

impl Dropout {
    /// `p` in [0, 1].
    pub fn build(b: &Builder, input: Shape, p: f64) -> Result<(Self, Shape)> {
        match (0.0..=1.0).contains(&p) {
            true => Ok((Dropout { p }, input)),
            false => Err(Error::config(b.place("dropout"), format!("p is {p}; a probability lies in 0..1"))),
        }
    }
}

impl Layer for Dropout {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        // The key is drawn in any case, so that p does not shift the streams of later layers.
        let key = cx.next_key();
        if !cx.training() || self.p == 0.0 {
            return Ok(x.clone());
        }
        Ok(x.dropout(self.p, key)?)
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
