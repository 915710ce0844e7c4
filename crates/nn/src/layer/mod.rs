//! Layers: parameters by id, computation by ops. A layer holds no values; [`Forward`] hands them out.

mod attention;
mod conv;
mod embedding;
mod linear;
mod norm;
mod pool;
mod recurrent;
mod simple;

use std::fmt::Debug;

pub use attention::{MultiheadAttention, Sight};
pub use conv::Conv2d;
pub use embedding::Embedding;
pub use linear::Linear;
pub use norm::{BatchNorm, NormOptions};
use phalanx_tensor::{Shape, Tensor};
pub use pool::{AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool, LocalResponseNorm, MaxPool2d, Pair};
pub use recurrent::{Recurrent, RecurrentCell, RecurrentConfig};
pub use simple::{Activation, Dropout, Flatten};

use crate::{Error, Forward, Result};

/// A function with parameters.
pub trait Layer: Debug + Send + Sync {
    /// Computes the outputs of a batch; the first axis of `x` counts samples.
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor>;
}

/// Layers one after another.
#[derive(Debug, Default)]
pub struct Sequential {
    /// Each with its path in the model; empty where none was told.
    layers: Vec<(String, Box<dyn Layer>)>,
}

impl Sequential {
    /// No layer yet: the identity.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer at the end.
    pub fn push(&mut self, layer: impl Layer + 'static) {
        self.push_at(String::new(), layer);
    }

    /// Adds a layer at the end, whose errors name its path in the model.
    pub fn push_at(&mut self, path: String, layer: impl Layer + 'static) {
        self.layers.push((path, Box::new(layer)));
    }
}

impl Layer for Sequential {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        self.layers
            .iter()
            .try_fold(x.clone(), |x, (path, layer)| layer.forward(cx, &x).map_err(|e| e.at(path, x.shape())))
    }
}

/// The sizes of one sample when it is an image [H, W, C].
fn image(layer: &str, input: Shape) -> Result<[usize; 3]> {
    <[usize; 3]>::try_from(&input[..]).map_err(|_| Error::Layer {
        layer: layer.to_owned(),
        input,
        why: "it takes images [height, width, channels]".into(),
    })
}

/// The size of one sample when it is a vector.
fn vector(layer: &str, input: Shape) -> Result<usize> {
    match input[..] {
        [n] => Ok(n),
        _ => Err(Error::Layer {
            layer: layer.to_owned(),
            input,
            why: "it takes vectors; put a flatten layer before it".into(),
        }),
    }
}

/// The outputs along one axis of a window that slides over it.
fn slide(
    layer: &str,
    input: Shape,
    size: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<usize> {
    let fail = |why: String| Error::Layer { layer: layer.to_owned(), input, why };
    if kernel == 0 || stride == 0 {
        return Err(fail(format!("kernel {kernel} and stride {stride} must be at least 1")));
    }
    if padding > kernel {
        return Err(fail(format!("its padding {padding} is wider than its kernel {kernel}")));
    }
    let room = size
        .saturating_add(padding.saturating_mul(2))
        .checked_sub(kernel)
        .ok_or_else(|| fail(format!("its kernel {kernel} is larger than {size} with padding {padding}")))?;
    Ok(room / stride + 1)
}

/// The most elements of one weight: 16 GiB, more than any model that this is meant for.
const LARGEST: usize = 1 << 32;

/// Checks the sizes of a layer's weight, outputs first.
fn weights<const N: usize>(layer: &str, input: Shape, sizes: [usize; N]) -> Result<()> {
    let fail = |why: String| Err(Error::Layer { layer: layer.to_owned(), input, why });
    if sizes[0] == 0 {
        return fail("it is to have 0 outputs".into());
    }
    match sizes.iter().try_fold(1usize, |n, &s| n.checked_mul(s)) {
        Some(n) if n <= LARGEST => Ok(()),
        _ => fail(format!("its weight {sizes:?} would have more than {LARGEST} elements")),
    }
}
