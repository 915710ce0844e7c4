//! Functions of each element.

use std::fmt;

use phalanx_tensor::{Shape, Tensor};

use super::Layer;
use crate::params::{ParamId, Stored};
use crate::{Builder, Error, Forward, Init, Result};

/// What an [`Activation`] computes of a tensor and its options.
type Function = fn(&Tensor, [f64; 2]) -> phalanx_tensor::Result<Tensor>;

/// A function of each element, without parameters.
#[derive(Clone, Copy)]
pub struct Activation {
    name: &'static str,
    function: Function,
    options: [f64; 2],
}

impl Activation {
    /// `function` with its options; an option that it does not have is not looked at. `name` is for people.
    pub fn new(name: &'static str, options: [f64; 2], function: Function) -> Self {
        Activation { name, function, options }
    }

    /// max(x, 0)
    pub fn relu() -> Self {
        Self::new("relu", [0.0; 2], |x, _| x.relu())
    }

    /// Hyperbolic tangent.
    pub fn tanh() -> Self {
        Self::new("tanh", [0.0; 2], |x, _| x.tanh())
    }
}

impl fmt::Debug for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple(self.name).field(&self.options).finish()
    }
}

impl Layer for Activation {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok((self.function)(x, self.options)?)
    }
}

/// x where it is positive, elsewhere a learned slope times it: one slope, or one for each channel (torch.nn.PReLU).
#[derive(Debug)]
pub struct Prelu {
    weight: ParamId,
}

impl Prelu {
    /// Registers `weight`: a slope for each of the last axis's channels, or one in all. They begin as `init`
    /// says and do not decay. `input` is the shape of one sample.
    pub fn build(b: &mut Builder, input: Shape, per_channel: bool, init: Init) -> Result<(Self, Shape)> {
        let slopes = match (per_channel, input.last()) {
            (false, _) => 1,
            (true, Some(&channels)) => channels,
            (true, None) => {
                let why = "a single number has no channels; give it one slope".to_owned();
                return Err(Error::Layer { layer: b.place("prelu"), input, why });
            }
        };
        let from = b.next_param();
        let weight = b.param("weight", [slopes], Stored::Plain, false, init, [slopes, slopes]);
        b.describe("prelu", input, from, 0);
        Ok((Prelu { weight }, input))
    }
}

impl Layer for Prelu {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok(x.prelu(&cx.param(self.weight))?)
    }
}
