//! GoogLeNet (Szegedy et al., 2015, "Going Deeper with Convolutions"), as torchvision has it: a batch norm
//! after every convolution, and 3×3 windows where the paper has 5×5.

use crate::model::ModelConfig;
use crate::model::stack::{Conv, Stack};
use crate::{Init, NormOptions, Result};

pub(super) const INIT: Init = Init::Normal(0.01);

/// What the auxiliary heads' losses count in training (the paper's section 5).
const AUXILIARY: f64 = 0.3;

/// The inception modules of one size with the name of the pooling before them. Channels: 1×1; 3×3
/// reduce, 3×3; 5×5 reduce, 5×5; pool projection (the paper's table 1).
type Stage = (&'static str, [usize; 3], &'static [(&'static str, [usize; 6])]);

const STAGES: [Stage; 3] = [
    (
        "maxpool2",
        [3, 2, 0],
        &[("inception3a", [64, 96, 128, 16, 32, 32]), ("inception3b", [128, 128, 192, 32, 96, 64])],
    ),
    (
        "maxpool3",
        [3, 2, 0],
        &[
            ("inception4a", [192, 96, 208, 16, 48, 64]),
            ("inception4b", [160, 112, 224, 24, 64, 64]),
            ("inception4c", [128, 128, 256, 24, 64, 64]),
            ("inception4d", [112, 144, 288, 32, 64, 64]),
            ("inception4e", [256, 160, 320, 32, 128, 128]),
        ],
    ),
    (
        "maxpool4",
        [2, 2, 0],
        &[("inception5a", [256, 160, 320, 32, 128, 128]), ("inception5b", [384, 192, 384, 48, 128, 128])],
    ),
];

pub(super) fn build(s: &mut Stack<'_>, config: &ModelConfig, classes: usize) -> Result<()> {
    conv(s, "conv1", Conv::same(64, 7).stride(2))?;
    s.max_pool_ceil("maxpool1", [3, 2, 0])?;
    conv(s, "conv2", Conv::new(64, 1))?;
    conv(s, "conv3", Conv::same(192, 3))?;
    for (pool, window, modules) in STAGES {
        s.max_pool_ceil(pool, window)?;
        for &(name, channels) in modules {
            s.scope(name, |s| inception(s, channels))?;
            let head = match name {
                "inception4a" => "aux1",
                "inception4d" => "aux2",
                _ => continue,
            };
            if config.aux.unwrap_or(true) {
                s.auxiliary(head, AUXILIARY, |s| auxiliary(s, config, classes))?;
            }
        }
    }
    s.global_avg_pool("avgpool")?;
    s.dropout("dropout", config.dropout.unwrap_or(0.2))?;
    linear(s, "fc", classes)
}

/// A convolution with its norm and ReLU.
fn conv(s: &mut Stack<'_>, name: &str, conv: Conv) -> Result<()> {
    s.scope(name, |s| {
        s.conv("conv", conv)?;
        s.norm_relu_with("bn", NormOptions { eps: 1e-3, ..NormOptions::default() })
    })
}

/// A linear layer whose bias begins as PyTorch's do.
fn linear(s: &mut Stack<'_>, name: &str, out: usize) -> Result<()> {
    let from = s.builder.next_param();
    s.linear(name, out, INIT)?;
    s.builder.begin(from, ".bias", Init::Uniform);
    Ok(())
}

fn inception(s: &mut Stack<'_>, [c1, r3, c3, r5, c5, pool]: [usize; 6]) -> Result<()> {
    let parts = vec![
        s.part(|s| conv(s, "branch1", Conv::new(c1, 1)))?,
        s.part(|s| {
            conv(s, "branch2.0", Conv::new(r3, 1))?;
            conv(s, "branch2.1", Conv::same(c3, 3))
        })?,
        s.part(|s| {
            conv(s, "branch3.0", Conv::new(r5, 1))?;
            conv(s, "branch3.1", Conv::same(c5, 3))
        })?,
        s.part(|s| {
            s.max_pool_ceil("branch4.0", [3, 1, 1])?;
            conv(s, "branch4.1", Conv::new(pool, 1))
        })?,
    ];
    s.branches(parts)
}

fn auxiliary(s: &mut Stack<'_>, config: &ModelConfig, classes: usize) -> Result<()> {
    s.adaptive_avg_pool("avgpool", 4)?;
    conv(s, "conv", Conv::new(128, 1))?;
    s.flatten();
    linear(s, "fc1", 1024)?;
    s.relu();
    s.dropout("dropout", config.dropout.unwrap_or(0.7))?;
    linear(s, "fc2", classes)
}
