//! Layers without parameters.

use phalanx_tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

use super::{Layer, image, slide};
use crate::{Builder, Error, Forward, Result};

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

/// The largest value of each window, by channel.
#[derive(Debug)]
pub struct MaxPool2d {
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl MaxPool2d {
    /// Square windows over samples [H, W, C].
    pub fn build(
        b: &mut Builder,
        input: Shape,
        [kernel, stride, padding]: [usize; 3],
    ) -> Result<(Self, Shape)> {
        let name = b.place("max-pool");
        let [h, w, c] = image(&name, input)?;
        if padding > kernel / 2 {
            let why = format!("its padding {padding} is more than half of its kernel {kernel}");
            return Err(Error::Layer { layer: name, input, why });
        }
        let size = |n| slide(&name, input, n, kernel, stride, padding);
        let shape = [size(h)?, size(w)?, c].into();
        b.describe("max-pool", shape, b.next_param(), 0);
        Ok((MaxPool2d { kernel, stride, padding }, shape))
    }
}

impl Layer for MaxPool2d {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok(x.max_pool2d([self.kernel; 2], [self.stride; 2], [self.padding; 2])?)
    }
}

/// The mean of each channel over the whole image.
#[derive(Debug)]
pub struct GlobalAvgPool;

impl GlobalAvgPool {
    /// Takes samples [H, W, C], gives vectors [C].
    pub fn build(b: &mut Builder, input: Shape) -> Result<(Self, Shape)> {
        let [_, _, c] = image(&b.place("global-avg-pool"), input)?;
        b.describe("global-avg-pool", [c].into(), b.next_param(), 0);
        Ok((GlobalAvgPool, [c].into()))
    }
}

impl Layer for GlobalAvgPool {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok(x.mean(&[1, 2], false)?)
    }
}

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
