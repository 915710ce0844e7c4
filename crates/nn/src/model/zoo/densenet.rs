//! Densely connected networks with bottlenecks and compression (Huang et al., 2016), as torchvision has
//! them.

use crate::layer::Sequential;
use crate::model::ModelConfig;
use crate::model::stack::{Conv, Stack};
use crate::{Init, Result};

/// A row of the paper's table 1.
pub(super) struct Densenet {
    /// Channels that each layer adds.
    pub(super) growth: usize,
    /// Layers of each of the four blocks.
    pub(super) layers: [usize; 4],
    /// Channels of the first convolution.
    pub(super) first: usize,
}

impl Densenet {
    pub(super) const INIT: Init = Init::HeNormal;

    pub(super) fn build(&self, s: &mut Stack<'_>, config: &ModelConfig, classes: usize) -> Result<()> {
        s.scope("features", |s| {
            s.conv("conv0", Conv::same(self.first, 7).stride(2))?;
            s.norm_relu("norm0")?;
            s.max_pool("pool0", [3, 2, 1])?;
            for (block, &layers) in (1..).zip(&self.layers) {
                for layer in 1..=layers {
                    s.scope(&format!("denseblock{block}.denselayer{layer}"), |s| {
                        self.layer(s, config.dropout)
                    })?;
                }
                if block < self.layers.len() {
                    s.scope(&format!("transition{block}"), transition)?;
                }
            }
            s.norm_relu("norm5")
        })?;
        s.global_avg_pool("avgpool")?;
        let from = s.builder.next_param();
        s.linear("classifier", classes, Init::Uniform)?;
        s.builder.begin(from, ".bias", Init::Zeros);
        Ok(())
    }

    /// Joins `growth` new channels to all that are there. Each layer joins them to the last layer's
    /// output, which is the same as joining all features anew, and keeps no more.
    fn layer(&self, s: &mut Stack<'_>, dropout: Option<f64>) -> Result<()> {
        let input = s.shape;
        let part = s.part(|s| {
            s.norm_relu("norm1")?;
            s.conv("conv1", Conv::new(4 * self.growth, 1))?;
            s.norm_relu("norm2")?;
            s.conv("conv2", Conv::same(self.growth, 3))?;
            s.builder.describe_unkept();
            dropout.map_or(Ok(()), |p| s.dropout("dropout", p))
        })?;
        s.branches(vec![(Sequential::new(), input), part])
    }
}

/// Halves the channels and the image's sides.
fn transition(s: &mut Stack<'_>) -> Result<()> {
    s.norm_relu("norm")?;
    s.conv("conv", Conv::new(s.shape[2] / 2, 1))?;
    s.builder.describe_unkept();
    s.avg_pool("pool", [2, 2, 0])
}
