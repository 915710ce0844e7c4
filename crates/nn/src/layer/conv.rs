use phalanx_tensor::{Shape, Tensor, concat};

use super::linear::bias_init;
use super::{Layer, image, slide, weights};
use crate::params::{ParamId, Stored};
use crate::{Builder, Error, Forward, Init, Result};

/// A 2-D convolution (cross-correlation) over [N, H, W, C] with a weight [O, KH, KW, I], stored
/// [O, I, KH, KW] as torchvision does.
#[derive(Debug)]
pub struct Conv2d {
    weight: ParamId,
    bias: Option<ParamId>,
    stride: [usize; 2],
    padding: [usize; 2],
    groups: usize,
}

impl Conv2d {
    /// Registers `weight` and, when asked for, `bias`, for square windows. `input` is the shape of one
    /// sample [H, W, C]. Returns the layer and its output's shape.
    pub fn build(
        b: &mut Builder,
        input: Shape,
        out: usize,
        window: [usize; 3],
        bias: bool,
        init: Init,
    ) -> Result<(Self, Shape)> {
        Conv2d::build_grouped(b, input, out, window, 1, bias, init)
    }

    /// As [`Conv2d::build`], in `groups` parts of which each takes and gives its share of the channels, as the two
    /// devices of Krizhevsky et al. (2012) did. The weight is [O, KH, KW, I / groups].
    pub fn build_grouped(
        b: &mut Builder,
        input: Shape,
        out: usize,
        [kernel, stride, padding]: [usize; 3],
        groups: usize,
        bias: bool,
        init: Init,
    ) -> Result<(Self, Shape)> {
        let name = b.place("conv");
        let [h, w, channels] = image(&name, input)?;
        if groups == 0 || !channels.is_multiple_of(groups) || !out.is_multiple_of(groups) {
            let why = format!("{channels} and {out} channels cannot be shared among {groups} groups");
            return Err(Error::Layer { layer: name, input, why });
        }
        let c = channels / groups;
        weights(&name, input, [out, kernel, kernel, c])?;
        let [oh, ow] = [
            slide(&name, input, h, kernel, stride, padding)?,
            slide(&name, input, w, kernel, stride, padding)?,
        ];
        let fans = [kernel * kernel * c, kernel * kernel * out / groups];
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
        Ok((Conv2d { weight, bias, stride: [stride; 2], padding: [padding; 2], groups }, shape))
    }
}

impl Layer for Conv2d {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (cx.param(self.weight), self.bias.map(|b| cx.param(b)));
        if self.groups == 1 {
            return Ok(x.conv2d(&weight, bias.as_ref(), self.stride, self.padding)?);
        }
        let (into, from) = (weight.shape()[0] / self.groups, weight.shape()[3]);
        let part = |g: usize| -> Result<Tensor> {
            let bias = bias.as_ref().map(|b| b.slice(0, g * into, into)).transpose()?;
            let weight = weight.slice(0, g * into, into)?;
            Ok(x.slice(3, g * from, from)?.conv2d(&weight, bias.as_ref(), self.stride, self.padding)?)
        };
        let parts = (0..self.groups).map(part).collect::<Result<Vec<_>>>()?;
        Ok(concat(&parts.iter().collect::<Vec<_>>(), 3)?)
    }
}
