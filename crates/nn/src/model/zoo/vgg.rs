//! Plain deep networks of 3×3 convolutions (Simonyan and Zisserman, 2014), under torchvision's names.

use crate::model::ModelConfig;
use crate::model::stack::{Conv, Stack};
use crate::{Init, Result};

/// A column of the paper's table 1.
pub(super) struct Vgg {
    /// Convolutions of each of the five blocks, which end with a pooling.
    pub(super) convs: [usize; 5],
    /// Whether a block's third convolution sees one pixel (C).
    pub(super) pointwise: bool,
    /// Whether the first convolution is followed by a local response norm (A-LRN).
    pub(super) lrn: bool,
}

impl Vgg {
    pub(super) const INIT: Init = Init::HeNormalOut;

    pub(super) fn build(&self, s: &mut Stack<'_>, config: &ModelConfig, classes: usize) -> Result<()> {
        let batch_norm = config.batch_norm.unwrap_or(false);
        s.scope("features", |s| {
            // Modules are numbered one after the other, ReLUs and poolings too.
            let mut modules = (0..).map(|i: usize| i.to_string());
            let mut next = move || modules.next().unwrap_or_default();
            for (block, &convs) in self.convs.iter().enumerate() {
                let out = (64 << block).min(512);
                for i in 0..convs {
                    let kernel = if self.pointwise && i == 2 { 1 } else { 3 };
                    s.conv(&next(), Conv::same(out, kernel).bias())?;
                    if batch_norm {
                        s.norm_relu(&next())?;
                    } else {
                        s.relu();
                    }
                    next();
                    if self.lrn && block == 0 {
                        s.local_response_norm(&next())?;
                    }
                }
                s.max_pool(&next(), [2, 2, 0])?;
            }
            Ok(())
        })?;
        s.adaptive_avg_pool("avgpool", 7)?;
        s.flatten();
        let (init, dropout) = (Init::Normal(0.01), config.dropout.unwrap_or(0.5));
        for (name, out) in ["classifier.0", "classifier.3"].into_iter().zip(config.two_hidden()?) {
            s.linear(name, out, init)?;
            s.relu();
            s.dropout("classifier.dropout", dropout)?;
        }
        s.linear("classifier.6", classes, init)
    }
}
