//! Layers: parameters by id, computation by ops. A layer holds no values; [`Forward`] hands them out.

mod activation;
mod attention;
mod conv;
mod embedding;
mod linear;
mod local;
mod noise;
mod norm;
mod pool;
mod recurrent;
mod sample_norm;
mod simple;
mod spatial;

use std::fmt::Debug;

pub use activation::{Activation, Prelu};
pub use attention::{MultiheadAttention, Sight};
pub use conv::{ConvConfig, ConvKind, Convolution, Padding, PaddingName, Sizes};
pub use embedding::Embedding;
pub use linear::Linear;
pub use local::LocallyConnected2d;
pub use noise::{Noise, NoiseKind};
pub use norm::{BatchNorm, NormOptions};
use phalanx_tensor::{Shape, Tensor};
pub use pool::{AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool, LocalResponseNorm, MaxPool2d, Pair};
pub use recurrent::{Recurrent, RecurrentCell, RecurrentConfig};
pub use sample_norm::{GroupNorm, InstanceNorm, LayerNorm, RmsNorm};
pub use simple::Flatten;
pub use spatial::{
    FractionalMaxPool, FractionalTo, Pad, PadAmount, PadName, PerAxis, PixelShuffle, Upsample, UpsampleMode,
    UpsampleTo,
};

use crate::{Error, Forward, Result};

/// A function with parameters.
pub trait Layer: Debug + Send + Sync {
    /// Computes the outputs of a batch; the first axis of `x` counts samples.
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor>;

    /// Takes over a ReLU that is to come next, which costs a pass less in one with the layer. False where it cannot.
    fn take_relu(&mut self) -> bool {
        false
    }
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
    fn take_relu(&mut self) -> bool {
        self.layers.last_mut().is_some_and(|(_, layer)| layer.take_relu())
    }

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

/// The tensor room's refusal as this layer's.
fn refused(layer: String, input: Shape) -> impl Fn(phalanx_tensor::Error) -> Error {
    move |e| match e {
        phalanx_tensor::Error::Invalid { why, .. } => Error::Layer { layer: layer.clone(), input, why },
        e => e.into(),
    }
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
