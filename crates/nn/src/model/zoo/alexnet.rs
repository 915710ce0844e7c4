//! AlexNet: Krizhevsky, Sutskever and Hinton, 2012, and the variant on one device (Krizhevsky, 2014) that
//! torchvision has.

use crate::model::ModelConfig;
use crate::model::stack::{Conv, Stack};
use crate::{Init, Result};

/// torchvision's: no response norms, no groups, fewer channels.
pub(super) fn one_device(s: &mut Stack<'_>, config: &ModelConfig, classes: usize) -> Result<()> {
    s.scope("features", |s| {
        for (name, conv, pool) in [
            ("0", Conv::new(64, 11).stride(4).padding(2), Some("2")),
            ("3", Conv::same(192, 5), Some("5")),
            ("6", Conv::same(384, 3), None),
            ("8", Conv::same(256, 3), None),
            ("10", Conv::same(256, 3), Some("12")),
        ] {
            s.conv(name, conv.bias())?;
            s.relu();
            if let Some(pool) = pool {
                s.max_pool(pool, [3, 2, 0])?;
            }
        }
        Ok(())
    })?;
    s.adaptive_avg_pool("avgpool", 6)?;
    s.flatten();
    let dropout = config.dropout.unwrap_or(0.5);
    for (name, out) in ["classifier.1", "classifier.4"].into_iter().zip(config.two_hidden()?) {
        s.dropout("classifier.dropout", dropout)?;
        s.linear(name, out, Init::Uniform)?;
        s.relu();
    }
    s.linear("classifier.6", classes, Init::Uniform)
}

/// The paper's, whose two halves met on two devices in the third convolution and the full connections
/// only: response norms and overlapping pooling, weights from N(0, 0.01²), biases from 1 where the paper
/// says so.
pub(super) fn two_devices(s: &mut Stack<'_>, config: &ModelConfig, classes: usize) -> Result<()> {
    for (name, conv, bias, norm_and_pool) in [
        ("conv1", Conv::new(96, 11).stride(4).padding(2), 0.0, [true, true]),
        ("conv2", Conv::same(256, 5).groups(2), 1.0, [true, true]),
        ("conv3", Conv::same(384, 3), 0.0, [false, false]),
        ("conv4", Conv::same(384, 3).groups(2), 1.0, [false, false]),
        ("conv5", Conv::same(256, 3).groups(2), 1.0, [false, true]),
    ] {
        let from = s.builder.next_param();
        s.conv(name, conv.bias())?;
        s.builder.begin(from, ".bias", Init::Constant(bias));
        s.relu();
        if norm_and_pool[0] {
            s.local_response_norm(&name.replace("conv", "norm"))?;
        }
        if norm_and_pool[1] {
            s.max_pool(&name.replace("conv", "pool"), [3, 2, 0])?;
        }
    }
    s.adaptive_avg_pool("avgpool", 6)?;
    s.flatten();
    let dropout = config.dropout.unwrap_or(0.5);
    for (name, out) in ["fc6", "fc7"].into_iter().zip(config.two_hidden()?) {
        let from = s.builder.next_param();
        s.linear(name, out, Init::Normal(0.01))?;
        s.builder.begin(from, ".bias", Init::Ones);
        s.relu();
        s.dropout("dropout", dropout)?;
    }
    s.linear("fc8", classes, Init::Normal(0.01))
}
