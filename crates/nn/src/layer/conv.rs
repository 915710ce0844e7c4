//! Convolutions over samples [T, C], [H, W, C] and [D, H, W, C], as they are and transposed.

use phalanx_tensor::{Conv, Shape, Tensor};
use serde::{Deserialize, Serialize};

use super::linear::bias_init;
use super::spatial::PerAxis;
use super::{Layer, refused, weights};
use crate::model::kinds::described;
use crate::params::{ParamId, Stored};
use crate::{Builder, Error, Forward, Init, Result};

/// Sizes along the axes of a sample in a configuration.
pub type Sizes = PerAxis<usize>;

/// Zeros around a sample in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "padding is a number, a list of one for each axis or of [before, after], \"same\" or \"valid\""
)]
pub enum Padding {
    /// As many on either side of all axes, or of each.
    Both(Sizes),
    /// Before and after each axis.
    Sides(Vec<[usize; 2]>),
    /// By a word.
    Named(PaddingName),
}

/// A rule that says how many zeros there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PaddingName {
    /// As many as make the output as large as the input (stride 1 only), an odd one at the end.
    Same,
    /// None.
    Valid,
}

described! {
    /// A convolution's options, those of `torch.nn.Conv2d` and `torch.nn.ConvTranspose2d`.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct ConvConfig {
        /// Output channels.
        pub out: usize,
        /// The window's sizes.
        pub kernel: Sizes,
        /// Its steps.
        #[serde(default = "one")]
        pub stride: Sizes,
        /// Zeros around the sample; a transposed convolution leaves out as much.
        #[serde(default = "no_padding")]
        pub padding: Padding,
        /// Steps from place to place of the window.
        #[serde(default = "one")]
        pub dilation: Sizes,
        /// Parts that the channels are cut into, as the two devices of Krizhevsky et al. (2012) did; as many as
        /// channels make a depthwise convolution.
        #[serde(default = "one_group")]
        pub groups: usize,
        /// What the output has at its end beyond its windows (transposed only).
        #[serde(default = "none")]
        pub output_padding: Sizes,
        /// Whether a bias is added.
        #[serde(default = "yes")]
        pub bias: bool,
        /// How the weight begins.
        #[serde(default = "he")]
        pub init: Init,
    }
}

fn one() -> Sizes {
    Sizes::All(1)
}
fn none() -> Sizes {
    Sizes::All(0)
}
fn no_padding() -> Padding {
    Padding::Both(none())
}
fn one_group() -> usize {
    1
}
fn yes() -> bool {
    true
}
fn he() -> Init {
    Init::HeNormal
}
impl ConvConfig {
    /// Square windows of stride 1 without padding, with a bias.
    pub fn new(out: usize, kernel: usize) -> Self {
        ConvConfig {
            out,
            kernel: Sizes::All(kernel),
            stride: one(),
            padding: no_padding(),
            dilation: one(),
            groups: 1,
            output_padding: none(),
            bias: true,
            init: he(),
        }
    }

    fn windows(&self) -> Conv {
        let conv = Conv::new().stride(self.stride.list()).dilation(self.dilation.list()).groups(self.groups);
        let conv = conv.output_padding(self.output_padding.list());
        match &self.padding {
            Padding::Both(sizes) => conv.padding(sizes.list()),
            Padding::Sides(sides) => conv.padding_each(sides),
            Padding::Named(PaddingName::Same) => conv.same(),
            Padding::Named(PaddingName::Valid) => conv,
        }
    }
}

/// Which of the convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvKind {
    /// A convolution (cross-correlation) over so many axes.
    Plain(usize),
    /// A transposed one.
    Transposed(usize),
}

impl ConvKind {
    fn rank(self) -> usize {
        match self {
            ConvKind::Plain(rank) | ConvKind::Transposed(rank) => rank,
        }
    }

    fn name(self) -> &'static str {
        let names = match self {
            ConvKind::Plain(_) => ["conv1d", "conv", "conv3d"],
            ConvKind::Transposed(_) => ["conv-transpose1d", "conv-transpose2d", "conv-transpose3d"],
        };
        names[self.rank().clamp(1, 3) - 1]
    }
}

/// A convolution over [N, .., C]. Its weight [O, .., I / groups] is stored [O, I / groups, ..], as PyTorch does; a
/// transposed one's [I, .., O / groups] as [I, O / groups, ..].
#[derive(Debug)]
pub struct Convolution {
    weight: ParamId,
    bias: Option<ParamId>,
    kind: ConvKind,
    windows: Conv,
}

impl Convolution {
    /// Registers `weight` and, when asked for, `bias`. `input` is the shape of one sample, [.., C] with as many axes
    /// before the channels as `kind` says. Returns the layer and its output's shape.
    pub fn build(
        b: &mut Builder,
        input: Shape,
        kind: ConvKind,
        config: &ConvConfig,
    ) -> Result<(Self, Shape)> {
        let name = b.place(kind.name());
        let refuse = |why: String| Err(Error::Layer { layer: name.clone(), input, why });
        let (rank, out, groups) = (kind.rank(), config.out, config.groups);
        let Some((&channels, sizes)) = input.split_last().filter(|(_, sizes)| sizes.len() == rank) else {
            let what = ["sequences [length", "images [height, width", "volumes [depth, height, width"];
            return refuse(format!("it takes {}, channels]", what[rank.clamp(1, 3) - 1]));
        };
        if groups == 0 || !channels.is_multiple_of(groups) || !out.is_multiple_of(groups) {
            return refuse(format!("{channels} and {out} channels cannot be shared among {groups} groups"));
        }
        let kernel = match config.kernel.list() {
            [n] => vec![*n; rank],
            list if list.len() == rank => list.to_vec(),
            list => return refuse(format!("its kernel {list:?} has not one number for each of {rank} axes")),
        };
        let windows = config.windows();
        let (transposed, pixels) = match kind {
            ConvKind::Plain(_) if config.output_padding.list().iter().any(|&size| size != 0) => {
                return refuse("output_padding goes with a transposed convolution".into());
            }
            ConvKind::Plain(_) => (false, windows.output(sizes, &kernel)),
            ConvKind::Transposed(_) => (true, windows.transposed_output(sizes, &kernel)),
        };
        let pixels = pixels.map_err(refused(name.clone(), input))?;
        let (rows, share) = if transposed { (channels, out / groups) } else { (out, channels / groups) };
        let taps = kernel.iter().fold(1usize, |n, &k| n.saturating_mul(k));
        weights(&name, input, [out, taps, channels / groups])?;
        // PyTorch's: inputs of one unit of a weight's row, and a share of the rows that a number goes to.
        let fans = [taps * share, taps * rows / if transposed { 1 } else { groups }];
        let from = b.next_param();
        let shape: Shape = (&[&[rows], &kernel[..], &[share]].concat()[..]).into();
        let weight = b.param("weight", shape, Stored::Conv, true, config.init, fans);
        let bias =
            config.bias.then(|| b.param("bias", [out], Stored::Plain, false, bias_init(config.init), fans));
        let shape: Shape = (&[&pixels[..], &[out]].concat()[..]).into();
        // One for each number of the weight and each window.
        let windows_at = if transposed { sizes } else { &pixels[..] };
        let adds =
            [rows, taps, share].iter().chain(windows_at).fold(1u64, |n, &f| n.saturating_mul(f as u64));
        b.describe(kind.name(), shape, from, adds);
        Ok((Convolution { weight, bias, kind, windows }, shape))
    }
}

impl Layer for Convolution {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (cx.param(self.weight), self.bias.map(|b| cx.param(b)));
        let (w, b, windows) = (&weight, bias.as_ref(), &self.windows);
        Ok(match self.kind {
            ConvKind::Plain(1) => x.conv1d(w, b, windows)?,
            ConvKind::Plain(2) => x.conv2d(w, b, windows)?,
            ConvKind::Plain(_) => x.conv3d(w, b, windows)?,
            ConvKind::Transposed(1) => x.conv_transpose1d(w, b, windows)?,
            ConvKind::Transposed(2) => x.conv_transpose2d(w, b, windows)?,
            ConvKind::Transposed(_) => x.conv_transpose3d(w, b, windows)?,
        })
    }
}
