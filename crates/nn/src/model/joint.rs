//! Layers that join others: branches, residuals, auxiliary heads.

use phalanx_tensor::{Tensor, concat};

use crate::layer::{BatchNorm, Layer, Sequential};
use crate::{Forward, Result};

/// max(norm(x), 0)
#[derive(Debug)]
pub(super) struct NormRelu(pub(super) BatchNorm);

impl Layer for NormRelu {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        self.0.forward_fused(cx, x, None, true)
    }
}

/// The channels of several layers over one input, one after the other.
#[derive(Debug)]
pub(super) struct Branches(pub(super) Vec<Sequential>);

impl Layer for Branches {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let outputs = self.0.iter().map(|branch| branch.forward(cx, x)).collect::<Result<Vec<_>>>()?;
        let channels = x.shape().len() - 1;
        Ok(concat(&outputs.iter().collect::<Vec<_>>(), channels)?)
    }
}

/// main(x) + shortcut(x) (He et al., 2016, "Identity mappings").
#[derive(Debug)]
pub(super) struct Sum {
    pub(super) main: Sequential,
    pub(super) shortcut: Sequential,
}

impl Layer for Sum {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let main = self.main.forward(cx, x)?;
        Ok(main.add(&self.shortcut.forward(cx, x)?)?)
    }
}

/// max(norm(main(x)) + shortcut(x), 0) (He et al., 2015).
#[derive(Debug)]
pub(super) struct Residual {
    pub(super) main: Sequential,
    pub(super) norm: BatchNorm,
    pub(super) shortcut: Sequential,
}

impl Layer for Residual {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let main = self.main.forward(cx, x)?;
        let shortcut = self.shortcut.forward(cx, x)?;
        self.norm.forward_fused(cx, &main, Some(&shortcut), true)
    }
}

/// Passes its input on. In training `head` makes further logits of it, whose loss counts with `weight`
/// (Szegedy et al., 2015); in evaluation it is not computed.
#[derive(Debug)]
pub(super) struct Auxiliary {
    pub(super) head: Sequential,
    pub(super) weight: f64,
}

impl Layer for Auxiliary {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        if cx.training() {
            cx.add_auxiliary(self.weight, self.head.forward(cx, x)?);
        }
        Ok(x.clone())
    }
}

/// Every second row and column, with channels of zeros behind: a shortcut without parameters (He et al.,
/// 2015, option A).
#[derive(Debug)]
pub(super) struct Widened {
    pub(super) stride: usize,
    pub(super) zeros: usize,
}

impl Layer for Widened {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        // A window of one element takes every stride-th.
        let x = x.max_pool2d([1, 1], [self.stride; 2], [0, 0])?;
        let shape = x.shape();
        let zeros = Tensor::scalar(0.0, x.dtype(), x.device())?.expand(&shape.with(3, self.zeros))?;
        Ok(concat(&[&x, &zeros], 3)?)
    }
}
