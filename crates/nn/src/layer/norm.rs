use phalanx_tensor::{Shape, Tensor};

use super::Layer;
use crate::norm::{NormId, NormRecord};
use crate::params::{ParamId, Stored};
use crate::{Builder, Error, Forward, Init, Result};

/// Added to variances.
const EPS: f64 = 1e-5;

/// Batch normalisation over all axes but the last (Ioffe and Szegedy, 2015). In training each virtual
/// shard is normalised by its own statistics.
#[derive(Debug)]
pub struct BatchNorm {
    weight: ParamId,
    bias: ParamId,
    norm: NormId,
}

impl BatchNorm {
    /// Registers `weight` (γ, from 1), `bias` (β, from 0) and the running statistics.
    pub fn build(b: &mut Builder, input: Shape) -> Result<(Self, Shape)> {
        let why = "it takes samples with channels last".to_owned();
        let channels =
            *input.last().ok_or_else(|| Error::Layer { layer: b.place("batch-norm"), input, why })?;
        let from = b.next_param();
        let mut param = |name: &str, init| b.param(name, [channels], Stored::Plain, false, init, [1, 1]);
        let (weight, bias) = (param("weight", Init::Ones), param("bias", Init::Zeros));
        let norm = b.norm(channels);
        b.describe("batch-norm", input, from, 0);
        Ok((BatchNorm { weight, bias, norm }, input))
    }
}

impl Layer for BatchNorm {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let (gamma, beta) = (cx.param(self.weight), cx.param(self.bias));
        if !cx.training() {
            let (mean, variance) = cx.running(self.norm)?;
            return Ok(x.batch_norm_eval(&gamma, &beta, &mean, &variance, EPS)?);
        }
        let out = x.batch_norm_train(&gamma, &beta, EPS)?;
        cx.record(NormRecord { norm: self.norm, count: out.count, mean: out.mean, variance: out.variance });
        Ok(out.y)
    }
}
