//! Residual networks (He et al., 2015, "Deep Residual Learning"), as torchvision builds them: the stride
//! of a bottleneck is in its 3×3 convolution (version 1.5). Wide ones: Zagoruyko and Komodakis, 2016.

use crate::model::ModelConfig;
use crate::model::joint::Widened;
use crate::model::stack::{Conv, Stack};
use crate::{Error, Init, Result};

/// A network for large images.
pub(super) struct Resnet {
    /// Three convolutions a block, of which the last gives four times as many channels; else two.
    pub(super) bottleneck: bool,
    /// Blocks of each of the four stages.
    pub(super) blocks: [usize; 4],
    /// Channels of the first stage's 3×3 convolutions, which the other stages double.
    pub(super) width: usize,
}

impl Resnet {
    pub(super) const INIT: Init = Init::HeNormalOut;

    pub(super) fn build(&self, s: &mut Stack<'_>, config: &ModelConfig, classes: usize) -> Result<()> {
        s.conv("conv1", Conv::same(64, 7).stride(2))?;
        s.norm_relu("bn1")?;
        s.max_pool("maxpool", [3, 2, 1])?;
        let zero_gamma = config.zero_gamma.unwrap_or(false);
        for (stage, &blocks) in self.blocks.iter().enumerate() {
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                s.scope(&format!("layer{}.{block}", stage + 1), |s| {
                    self.block(s, 64 << stage, self.width << stage, stride, zero_gamma)
                })?;
            }
        }
        s.global_avg_pool("avgpool")?;
        s.linear("fc", classes, Init::Uniform)
    }

    fn block(
        &self,
        s: &mut Stack<'_>,
        planes: usize,
        width: usize,
        stride: usize,
        zero_gamma: bool,
    ) -> Result<()> {
        let out = if self.bottleneck { 4 * planes } else { planes };
        let plain = stride == 1 && s.shape[2] == out;
        let main = |s: &mut Stack<'_>| {
            if !self.bottleneck {
                s.conv("conv1", Conv::same(width, 3).stride(stride))?;
                s.norm_relu("bn1")?;
                return s.conv("conv2", Conv::same(out, 3));
            }
            s.conv("conv1", Conv::new(width, 1))?;
            s.norm_relu("bn1")?;
            s.conv("conv2", Conv::same(width, 3).stride(stride))?;
            s.norm_relu("bn2")?;
            s.conv("conv3", Conv::new(out, 1))
        };
        let last = if self.bottleneck { "bn3" } else { "bn2" };
        s.residual(main, (last, zero_gamma), |s| {
            if plain {
                return Ok(());
            }
            s.conv("downsample.0", Conv::new(out, 1).stride(stride))?;
            s.norm("downsample.1")
        })
    }
}

/// The paper's networks for images of 32×32: 6n + 2 layers in three stages of 16, 32 and 64 channels, with
/// shortcuts without parameters (its section 4.2).
pub(super) fn small(s: &mut Stack<'_>, config: &ModelConfig, depth: usize, classes: usize) -> Result<()> {
    let blocks = blocks("resnet-cifar", depth, 6, 2)?;
    let zero_gamma = config.zero_gamma.unwrap_or(false);
    s.conv("conv1", Conv::same(16, 3))?;
    s.norm_relu("bn1")?;
    for (stage, block) in (0..3).flat_map(|stage| (0..blocks).map(move |block| (stage, block))) {
        let (out, stride) = (16 << stage, if stage > 0 && block == 0 { 2 } else { 1 });
        let main = |s: &mut Stack<'_>| {
            s.conv("conv1", Conv::same(out, 3).stride(stride))?;
            s.norm_relu("bn1")?;
            s.conv("conv2", Conv::same(out, 3))
        };
        let shortcut = |s: &mut Stack<'_>| {
            let [h, w, c] = [s.shape[0], s.shape[1], s.shape[2]];
            if stride > 1 {
                s.push((Widened { stride, zeros: out - c }, [h.div_ceil(2), w.div_ceil(2), out].into()));
            }
            Ok(())
        };
        s.scope(&format!("layer{}.{block}", stage + 1), |s| s.residual(main, ("bn2", zero_gamma), shortcut))?;
    }
    s.global_avg_pool("avgpool")?;
    s.linear("fc", classes, Init::Uniform)
}

/// Wide residual networks for small images: 6n + 4 layers, norms and ReLUs before the convolutions,
/// `width` times as many channels, dropout between a block's convolutions when the configuration has it.
pub(super) fn wide(
    s: &mut Stack<'_>,
    config: &ModelConfig,
    [depth, width]: [usize; 2],
    classes: usize,
) -> Result<()> {
    let blocks = blocks("wide-resnet", depth, 6, 4)?;
    s.conv("conv1", Conv::same(16, 3))?;
    for (stage, block) in (0..3).flat_map(|stage| (0..blocks).map(move |block| (stage, block))) {
        let (out, stride) = ((16 << stage) * width, if stage > 0 && block == 0 { 2 } else { 1 });
        s.scope(&format!("layer{}.{block}", stage + 1), |s| {
            let equal = s.shape[2] == out && stride == 1;
            // Where the shortcut changes the shape, it takes what the first norm gives.
            if !equal {
                s.norm_relu("bn1")?;
            }
            let main = |s: &mut Stack<'_>| {
                if equal {
                    s.norm_relu("bn1")?;
                }
                s.conv("conv1", Conv::same(out, 3).stride(stride))?;
                s.norm_relu("bn2")?;
                if let Some(p) = config.dropout {
                    s.dropout("dropout", p)?;
                }
                s.conv("conv2", Conv::same(out, 3))
            };
            s.sum(main, |s| match equal {
                true => Ok(()),
                false => s.conv("shortcut", Conv::new(out, 1).stride(stride)),
            })
        })?;
    }
    s.norm_relu("bn")?;
    s.global_avg_pool("avgpool")?;
    s.linear("fc", classes, Init::Uniform)
}

/// The blocks of each of three stages in a network of `depth` layers.
fn blocks(name: &str, depth: usize, each: usize, rest: usize) -> Result<usize> {
    match depth.checked_sub(rest) {
        Some(n) if n > 0 && n % each == 0 => Ok(n / each),
        _ => {
            let problem = format!("{name} has {each}n + {rest} layers, so its depth cannot be {depth}");
            Err(Error::config("model", problem))
        }
    }
}
