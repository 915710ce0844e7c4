//! Norms of each sample by itself: what they compute depends on no other sample, in training and evaluation alike.

use phalanx_tensor::{Shape, Tensor};

use super::Layer;
use super::norm::{Affine, NormOptions, channels, values_or_none};
use crate::norm::{Counted, NormId, NormRecord};
use crate::params::{ParamId, Stored};
use crate::{Builder, Error, Forward, Init, Result};

/// The shape of a sample's last `axes`, and how a parameter of that shape is stored: PyTorch lays images out with
/// channels first.
fn last_axes(b: &Builder, kind: &str, input: Shape, axes: usize) -> Result<(Shape, Stored)> {
    if axes == 0 || axes > input.len() {
        let why = format!("axes is {axes}; it normalises 1 to {} of a sample's last axes", input.len());
        return Err(Error::Layer { layer: b.place(kind), input, why });
    }
    let stored = if input.len() == 3 && axes > 1 { Stored::Sample } else { Stored::Plain };
    Ok((input[input.len() - axes..].into(), stored))
}

/// Layer normalisation (Ba, Kiros and Hinton, 2016) of each sample's last axes together: of the channels of each pixel,
/// or of whole samples. `torch.nn.LayerNorm`'s semantics.
#[derive(Debug)]
pub struct LayerNorm {
    affine: Option<Affine>,
    axes: usize,
    eps: f64,
}

impl LayerNorm {
    /// Takes samples of at least `axes` axes; registers `weight` (γ, from 1) and `bias` (β, from 0) of the last ones'
    /// shape.
    pub fn build(b: &mut Builder, input: Shape, axes: usize, options: NormOptions) -> Result<(Self, Shape)> {
        const KIND: &str = "layer-norm";
        options.check(b.place(KIND))?;
        let (shape, stored) = last_axes(b, KIND, input, axes)?;
        let from = b.next_param();
        let affine = Affine::build(b, shape, stored, &options);
        b.describe(KIND, input, from, 0);
        Ok((LayerNorm { affine, axes, eps: options.eps }, input))
    }
}

impl Layer for LayerNorm {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let affine = self.affine.as_ref().map(|a| a.values(cx));
        let [gamma, beta] = affine.as_ref().map_or([None; 2], |[g, b]| [Some(g), Some(b)]);
        Ok(x.layer_norm(self.axes, gamma, beta, self.eps)?)
    }
}

/// Root mean square normalisation (Zhang and Sennrich, 2019) of each sample's last axes together. `torch.nn.RMSNorm`'s
/// semantics.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Option<ParamId>,
    axes: usize,
    eps: f64,
}

impl RmsNorm {
    /// Takes samples of at least `axes` axes; registers `weight` (from 1) of the last ones' shape when `affine`. Without
    /// `eps` it is the distance of 1 from the next number, as in PyTorch.
    pub fn build(
        b: &mut Builder,
        input: Shape,
        axes: usize,
        eps: Option<f64>,
        affine: bool,
    ) -> Result<(Self, Shape)> {
        const KIND: &str = "rms-norm";
        let eps = eps.unwrap_or(f64::from(f32::EPSILON));
        NormOptions { eps, ..NormOptions::default() }.check(b.place(KIND))?;
        let (shape, stored) = last_axes(b, KIND, input, axes)?;
        let from = b.next_param();
        let weight = affine.then(|| b.param("weight", shape, stored, false, Init::Ones, [1, 1]));
        b.describe(KIND, input, from, 0);
        Ok((RmsNorm { weight, axes, eps }, input))
    }
}

impl Layer for RmsNorm {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let weight = self.weight.map(|id| cx.param(id));
        Ok(x.rms_norm(self.axes, weight.as_ref(), self.eps)?)
    }
}

/// Group normalisation (Wu and He, 2018): each sample's groups of neighbouring channels. `torch.nn.GroupNorm`'s
/// semantics.
#[derive(Debug)]
pub struct GroupNorm {
    affine: Option<Affine>,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Takes samples with channels last, whose number `groups` divides; registers `weight` (γ, from 1) and `bias` (β,
    /// from 0), one for each channel.
    pub fn build(
        b: &mut Builder,
        input: Shape,
        groups: usize,
        options: NormOptions,
    ) -> Result<(Self, Shape)> {
        const KIND: &str = "group-norm";
        options.check(b.place(KIND))?;
        let channels = channels(b, KIND, input)?;
        if groups == 0 || channels % groups != 0 {
            let why = format!("{channels} channels cannot be cut into {groups} groups of as many each");
            return Err(Error::Layer { layer: b.place(KIND), input, why });
        }
        let from = b.next_param();
        let affine = Affine::build(b, [channels].into(), Stored::Plain, &options);
        b.describe(KIND, input, from, 0);
        Ok((GroupNorm { affine, groups, eps: options.eps }, input))
    }
}

impl Layer for GroupNorm {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let affine = self.affine.as_ref().map(|a| a.values(cx));
        let [gamma, beta] = affine.as_ref().map_or([None; 2], |[g, b]| [Some(g), Some(b)]);
        Ok(x.group_norm(self.groups, gamma, beta, self.eps)?)
    }
}

/// Instance normalisation (Ulyanov, Vedaldi and Lempitsky, 2016): each sample's channels one by one.
/// `torch.nn.InstanceNorm2d`'s semantics, also of its running statistics: where they are kept, training normalises by the
/// sample's own moments and evaluation by them.
#[derive(Debug)]
pub struct InstanceNorm {
    affine: Option<Affine>,
    running: Option<NormId>,
    channels: usize,
    /// Values of a channel in one sample.
    each: usize,
    eps: f64,
}

impl InstanceNorm {
    /// Takes samples with channels last; registers `weight` and `bias` when the options say so, and running statistics
    /// when `track`.
    pub fn build(b: &mut Builder, input: Shape, options: NormOptions, track: bool) -> Result<(Self, Shape)> {
        const KIND: &str = "instance-norm";
        options.check(b.place(KIND))?;
        let channels = channels(b, KIND, input)?;
        let each = input[..input.len() - 1].iter().product();
        if each < 2 {
            let why = "a channel has a single value there, whose deviation is 0".to_owned();
            return Err(Error::Layer { layer: b.place(KIND), input, why });
        }
        let from = b.next_param();
        let affine = Affine::build(b, [channels].into(), Stored::Plain, &options);
        let running = track.then(|| b.norm(channels, options.momentum, Counted::Samples));
        b.describe(KIND, input, from, 0);
        Ok((InstanceNorm { affine, running, channels, each, eps: options.eps }, input))
    }
}

impl Layer for InstanceNorm {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let [gamma, beta] = values_or_none(cx, self.affine.as_ref(), self.channels)?;
        match self.running {
            Some(norm) if !cx.training() => {
                let (mean, variance) = cx.running(norm)?;
                Ok(x.batch_norm_eval(&gamma, &beta, &mean, &variance, self.eps)?)
            }
            running => {
                let out = x.group_norm_with_moments(self.channels, Some(&gamma), Some(&beta), self.eps)?;
                if let Some(norm) = running.filter(|_| x.shape()[0] > 0) {
                    let unbias = self.each as f64 / (self.each - 1) as f64;
                    let (mean, variance) =
                        (out.mean.mean(&[0], false)?, out.variance.mean(&[0], false)?.scale(unbias)?);
                    cx.record(NormRecord { norm, count: x.shape()[0], mean, variance });
                }
                Ok(out.y)
            }
        }
    }
}
