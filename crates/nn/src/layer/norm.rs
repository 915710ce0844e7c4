use phalanx_tensor::{Fuse, Shape, Tensor};

use super::Layer;
use crate::norm::{Counted, MOMENTUM, NormId, NormRecord};
use crate::params::{ParamId, Stored};
use crate::{Builder, Error, Forward, Init, Result};

/// Added to variances unless a norm says otherwise.
const EPS: f64 = 1e-5;

/// How a norm is set up; the defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormOptions {
    /// Added to variances.
    pub eps: f64,
    /// A batch's share in the new running statistics, for norms that have them.
    pub momentum: f64,
    /// Whether there is a scale γ and a shift β for each channel.
    pub affine: bool,
    /// What γ begins with: 0 makes a residual block begin as the identity (Goyal et al., 2017).
    pub gamma: Init,
}

impl Default for NormOptions {
    fn default() -> Self {
        NormOptions { eps: EPS, momentum: MOMENTUM, affine: true, gamma: Init::Ones }
    }
}

impl NormOptions {
    pub(super) fn check(&self, place: String) -> Result<()> {
        let problem = match self {
            NormOptions { eps, .. } if !(*eps >= 0.0 && eps.is_finite()) => {
                format!("eps is {eps}; it must be a number from 0 on")
            }
            NormOptions { momentum, .. } if !(0.0..=1.0).contains(momentum) => {
                format!("momentum is {momentum}; it is a batch's share in the running statistics, in 0..1")
            }
            _ => return Ok(()),
        };
        Err(Error::config(place, problem))
    }
}

/// γ and β, when a norm has them.
#[derive(Debug)]
pub(super) struct Affine {
    weight: ParamId,
    bias: ParamId,
}

impl Affine {
    /// Registers `weight` (γ) and `bias` (β, from 0) of `shape`.
    pub(super) fn build(
        b: &mut Builder,
        shape: Shape,
        stored: Stored,
        options: &NormOptions,
    ) -> Option<Self> {
        let mut param = |name: &str, init| b.param(name, shape, stored, false, init, [1, 1]);
        options
            .affine
            .then(|| Affine { weight: param("weight", options.gamma), bias: param("bias", Init::Zeros) })
    }

    /// γ and β.
    pub(super) fn values(&self, cx: &Forward) -> [Tensor; 2] {
        [cx.param(self.weight), cx.param(self.bias)]
    }
}

/// Batch normalisation over all axes but the last (Ioffe and Szegedy, 2015). In training each virtual
/// shard is normalised by its own statistics.
#[derive(Debug)]
pub struct BatchNorm {
    affine: Option<Affine>,
    norm: NormId,
    channels: usize,
    eps: f64,
}

impl BatchNorm {
    /// Registers `weight` (γ, from 1), `bias` (β, from 0) and the running statistics.
    pub fn build(b: &mut Builder, input: Shape) -> Result<(Self, Shape)> {
        BatchNorm::build_with(b, input, NormOptions::default())
    }

    /// As [`BatchNorm::build`], with options.
    pub fn build_with(b: &mut Builder, input: Shape, options: NormOptions) -> Result<(Self, Shape)> {
        options.check(b.place("batch-norm"))?;
        let channels = channels(b, "batch-norm", input)?;
        let from = b.next_param();
        let affine = Affine::build(b, [channels].into(), Stored::Plain, &options);
        let norm = b.norm(channels, options.momentum, Counted::Values);
        b.describe("batch-norm", input, from, 0);
        Ok((BatchNorm { affine, norm, channels, eps: options.eps }, input))
    }

    /// The end of a residual block in one pass: the normalised `x`, plus `residual`, cut off at 0 when `relu` says so.
    pub fn forward_fused(
        &self,
        cx: &Forward,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Result<Tensor> {
        let [gamma, beta] = values_or_none(cx, self.affine.as_ref(), self.channels)?;
        let fuse = Fuse { residual, relu };
        if !cx.training() {
            let (mean, variance) = cx.running(self.norm)?;
            return Ok(x.batch_norm_eval_with([&gamma, &beta], [&mean, &variance], self.eps, fuse)?);
        }
        let out = x.batch_norm_train_with(&gamma, &beta, self.eps, fuse)?;
        cx.record(NormRecord { norm: self.norm, count: out.count, mean: out.mean, variance: out.variance });
        Ok(out.y)
    }
}

impl Layer for BatchNorm {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        self.forward_fused(cx, x, None, false)
    }
}

/// γ and β of so many channels; 1 and 0 for a norm that has none.
pub(super) fn values_or_none(cx: &Forward, affine: Option<&Affine>, channels: usize) -> Result<[Tensor; 2]> {
    let number = |v: f32| Tensor::full(v, [channels], cx.device());
    match affine {
        Some(a) => Ok(a.values(cx)),
        None => Ok([number(1.0)?, number(0.0)?]),
    }
}

/// The number of channels of samples with channels last.
pub(super) fn channels(b: &Builder, kind: &str, input: Shape) -> Result<usize> {
    let why = "it takes samples with channels last".to_owned();
    input.last().copied().ok_or_else(|| Error::Layer { layer: b.place(kind), input, why })
}
