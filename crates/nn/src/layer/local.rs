use phalanx_tensor::{Conv, Shape, Tensor};

use super::linear::bias_init;
use super::pool::Pair;
use super::{Layer, image, refused, weights};
use crate::params::{ParamId, Stored};
use crate::{Builder, Forward, Init, Result};

/// As a convolution over [N, H, W, C] without padding, with a weight of its own for each output pixel (Keras'
/// `LocallyConnected2D`): `weight` [OH · OW, KH · KW · C, F] and `bias` [OH, OW, F], stored as they are.
#[derive(Debug)]
pub struct LocallyConnected2d {
    weight: ParamId,
    bias: Option<ParamId>,
    kernel: [usize; 2],
    stride: [usize; 2],
}

impl LocallyConnected2d {
    /// Registers `weight` and, when asked for, `bias`, for `[kernel, stride]` windows. `input` is the shape of one
    /// sample [H, W, C]. Returns the layer and its output's shape.
    pub fn build(
        b: &mut Builder,
        input: Shape,
        out: usize,
        [kernel, stride]: [Pair; 2],
        bias: bool,
        init: Init,
    ) -> Result<(Self, Shape)> {
        let name = b.place("locally-connected");
        let [h, w, c] = image(&name, input)?;
        let (kernel, stride) = (kernel.get(), stride.get());
        let pixels = Conv::new().stride(&stride).output(&[h, w], &kernel);
        let pixels = pixels.map_err(refused(name.clone(), input))?;
        let (places, numbers) = (pixels.numel(), kernel[0] * kernel[1] * c);
        weights(&name, input, [out, places, numbers])?;
        let (from, fans) = (b.next_param(), [numbers, out]);
        let shape = [pixels[0], pixels[1], out];
        let weight = b.param("weight", [places, numbers, out], Stored::Plain, true, init, fans);
        let bias = bias.then(|| b.param("bias", shape, Stored::Plain, false, bias_init(init), fans));
        b.describe("locally-connected", shape.into(), from, (places * numbers * out) as u64);
        Ok((LocallyConnected2d { weight, bias, kernel, stride }, shape.into()))
    }
}

impl Layer for LocallyConnected2d {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.map(|b| cx.param(b));
        Ok(x.locally_connected2d(&cx.param(self.weight), bias.as_ref(), self.kernel, self.stride)?)
    }
}
