use phalanx_tensor::{Shape, Tensor};

use super::linear::bias_init;
use super::{Layer, image, slide, weights};
use crate::params::{ParamId, Stored};
use crate::{Builder, Forward, Init, Result};

/// A 2-D convolution (cross-correlation) over [N, H, W, C] with a weight [O, KH, KW, I], stored
/// [O, I, KH, KW] as torchvision does.
#[derive(Debug)]
pub struct Conv2d {
    weight: ParamId,
    bias: Option<ParamId>,
    stride: [usize; 2],
    padding: [usize; 2],
}

impl Conv2d {
    /// Registers `weight` and, when asked for, `bias`, for square windows. `input` is the shape of one
    /// sample [H, W, C]. Returns the layer and its output's shape.
    pub fn build(
        b: &mut Builder,
        input: Shape,
        out: usize,
        [kernel, stride, padding]: [usize; 3],
        bias: bool,
        init: Init,
    ) -> Result<(Self, Shape)> {
        let name = b.place("conv");
        let [h, w, c] = image(&name, input)?;
        weights(&name, input, [out, kernel, kernel, c])?;
        let [oh, ow] = [
            slide(&name, input, h, kernel, stride, padding)?,
            slide(&name, input, w, kernel, stride, padding)?,
        ];
        let fans = [kernel * kernel * c, kernel * kernel * out];
        let from = b.next_param();
        let weight = b.param("weight", [out, kernel, kernel, c], Stored::Conv, true, init, fans);
        let bias = bias.then(|| b.param("bias", [out], Stored::Plain, false, bias_init(init), fans));
        let shape = Shape::from([oh, ow, out]);
        b.describe(
            "conv",
            shape,
            from,
            [oh, ow, out].iter().fold(fans[0] as u64, |n, &f| n.saturating_mul(f as u64)),
        );
        Ok((Conv2d { weight, bias, stride: [stride; 2], padding: [padding; 2] }, shape))
    }
}

impl Layer for Conv2d {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.map(|b| cx.param(b));
        Ok(x.conv2d(&cx.param(self.weight), bias.as_ref(), self.stride, self.padding)?)
    }
}
