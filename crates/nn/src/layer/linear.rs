use phalanx_tensor::{Shape, Tensor};

use super::{Layer, vector, weights};
use crate::params::{ParamId, Stored};
use crate::{Builder, Forward, Init, Result};

/// `y = x Wᵀ + b` with W [out, in], and perhaps a ReLU of it.
#[derive(Debug)]
pub struct Linear {
    weight: ParamId,
    bias: Option<ParamId>,
    relu: bool,
}

impl Linear {
    /// Registers `weight` and, when asked for, `bias`. `input` is the shape of one sample, a vector.
    /// Returns the layer and its output's shape.
    pub fn build(b: &mut Builder, input: Shape, out: usize, bias: bool, init: Init) -> Result<(Self, Shape)> {
        let name = b.place("linear");
        let n = vector(&name, input)?;
        weights(&name, input, [out, n])?;
        let from = b.next_param();
        let weight = b.param("weight", [out, n], Stored::Plain, true, init, [n, out]);
        let bias = bias.then(|| b.param("bias", [out], Stored::Plain, false, bias_init(init), [n, out]));
        b.describe("linear", [out].into(), from, (n * out) as u64);
        Ok((Linear { weight, bias, relu: false }, [out].into()))
    }
}

/// Biases begin as PyTorch's do with its own weights, and at 0 with all others.
pub(super) fn bias_init(weight: Init) -> Init {
    if weight == Init::Uniform { Init::Uniform } else { Init::Zeros }
}

impl Layer for Linear {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (cx.param(self.weight), self.bias.map(|b| cx.param(b)));
        Ok(match self.relu {
            true => x.linear_relu(&weight, bias.as_ref())?,
            false => x.linear(&weight, bias.as_ref())?,
        })
    }

    fn take_relu(&mut self) -> bool {
        !std::mem::replace(&mut self.relu, true)
    }
}
