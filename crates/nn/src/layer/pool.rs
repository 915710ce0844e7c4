//! Pooling and local response normalisation over samples [H, W, C].

use phalanx_tensor::{Pool, Shape, Tensor};
use serde::{Deserialize, Serialize};

use super::{Layer, image, refused};
use crate::{Builder, Error, Forward, Result};

/// Height and width in a configuration: one number for both, or `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Pair<T = usize> {
    /// Both alike.
    Both(T),
    /// Height, width.
    Each([T; 2]),
}

impl<T: Copy> Pair<T> {
    /// Height, width.
    pub fn get(self) -> [T; 2] {
        match self {
            Pair::Both(n) => [n; 2],
            Pair::Each(each) => each,
        }
    }
}

impl<T> From<T> for Pair<T> {
    fn from(n: T) -> Self {
        Pair::Both(n)
    }
}

/// Checks windows over samples [H, W, C] and notes the layer; gives the shape after it.
fn windows(b: &mut Builder, kind: &str, input: Shape, pool: &Pool) -> Result<Shape> {
    let name = b.place(kind);
    let [h, w, c] = image(&name, input)?;
    let out = pool.output(&[h, w]).map_err(refused(name, input))?;
    let shape = [out[0], out[1], c].into();
    b.describe(kind, shape, b.next_param(), 0);
    Ok(shape)
}

/// The largest value of each window, by channel.
#[derive(Debug)]
pub struct MaxPool2d(Pool);

impl MaxPool2d {
    /// Takes samples [H, W, C].
    pub fn build(b: &mut Builder, input: Shape, pool: Pool) -> Result<(Self, Shape)> {
        let shape = windows(b, "max-pool", input, &pool)?;
        Ok((MaxPool2d(pool), shape))
    }
}

impl Layer for MaxPool2d {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok(x.max_pool(&self.0)?)
    }
}

/// The mean of each window, by channel.
#[derive(Debug)]
pub struct AvgPool2d(Pool);

impl AvgPool2d {
    /// Takes samples [H, W, C].
    pub fn build(b: &mut Builder, input: Shape, pool: Pool) -> Result<(Self, Shape)> {
        let shape = windows(b, "avg-pool", input, &pool)?;
        Ok((AvgPool2d(pool), shape))
    }
}

impl Layer for AvgPool2d {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok(x.avg_pool(&self.0)?)
    }
}

/// Means of windows that cover any image evenly: so many of them.
#[derive(Debug)]
pub struct AdaptiveAvgPool2d([usize; 2]);

impl AdaptiveAvgPool2d {
    /// Takes samples [H, W, C], gives [`out[0]`, `out[1]`, C].
    pub fn build(b: &mut Builder, input: Shape, out: [usize; 2]) -> Result<(Self, Shape)> {
        let name = b.place("adaptive-avg-pool");
        let [h, w, c] = image(&name, input)?;
        if out.contains(&0) || h * w == 0 {
            let why = format!("an image cannot be cut into {} by {} windows", out[0], out[1]);
            return Err(Error::Layer { layer: name, input, why });
        }
        let shape = [out[0], out[1], c].into();
        b.describe("adaptive-avg-pool", shape, b.next_param(), 0);
        Ok((AdaptiveAvgPool2d(out), shape))
    }
}

impl Layer for AdaptiveAvgPool2d {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok(x.adaptive_avg_pool(&self.0)?)
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

/// Local response normalisation across channels (Krizhevsky, Sutskever and Hinton, 2012), as
/// [`Tensor::local_response_norm`].
#[derive(Debug)]
pub struct LocalResponseNorm {
    size: usize,
    alpha: f64,
    beta: f64,
    k: f64,
}

impl LocalResponseNorm {
    /// Takes samples with channels last. `alpha` is divided by `size`, the channels of a window.
    pub fn build(
        b: &mut Builder,
        input: Shape,
        size: usize,
        [alpha, beta, k]: [f64; 3],
    ) -> Result<(Self, Shape)> {
        let most = input.last().map_or(0, |c| c.saturating_mul(2).max(64));
        if size == 0 || size > most || !(k > 0.0 && alpha >= 0.0 && beta.is_finite()) {
            let why = format!(
                "its size must be at least 1 (at most {most}), k above 0, alpha not below 0, beta finite"
            );
            return Err(Error::Layer { layer: b.place("lrn"), input, why });
        }
        b.describe("lrn", input, b.next_param(), 0);
        Ok((LocalResponseNorm { size, alpha, beta, k }, input))
    }
}

impl Layer for LocalResponseNorm {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok(x.local_response_norm(self.size, self.alpha, self.beta, self.k)?)
    }
}
