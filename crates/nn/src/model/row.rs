//! The rows of `[[model.layers]]`.

use serde::{Deserialize, Serialize};

use super::activation::{self, Approximate};
use super::kinds::described;
use crate::Init;
use crate::layer::{ConvConfig, PadAmount, PadName, Pair, PerAxis, RecurrentCell, UpsampleMode};

// Every variant has named options and is documented, with `///` first and `#[serde]` after it: `phalanx model layers` prints that.
described! {
/// A row of `[[model.layers]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Row {
    /// A convolution over images.
    Conv(ConvConfig),
    /// A convolution over sequences.
    Conv1d(ConvConfig),
    /// A convolution over volumes.
    Conv3d(ConvConfig),
    /// A transposed convolution over sequences.
    ConvTranspose1d(ConvConfig),
    /// A transposed convolution over images.
    ConvTranspose2d(ConvConfig),
    /// A transposed convolution over volumes.
    ConvTranspose3d(ConvConfig),
    /// As a convolution over images without padding, with a weight of its own for each output pixel.
    LocallyConnected {
        /// Output channels.
        out: usize,
        /// The window's side, or its height and width.
        kernel: Pair,
        /// Its step.
        #[serde(default = "one_pair")]
        stride: Pair,
        /// Whether a bias is added.
        #[serde(default = "yes")]
        bias: bool,
        /// How the weight begins.
        #[serde(default = "glorot")]
        init: Init,
    },
    /// A fully connected layer.
    Linear {
        /// Outputs; the number of classes when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        out: Option<usize>,
        /// Whether a bias is added.
        #[serde(default = "yes")]
        bias: bool,
        /// How the weight begins.
        #[serde(default = "uniform")]
        init: Init,
    },
    /// Batch normalisation by channel.
    BatchNorm {
        /// Added to variances; 1e-5 when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eps: Option<f64>,
        /// A batch's share in the new running statistics; 0.1 when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        momentum: Option<f64>,
        /// Whether there is a scale and a shift for each channel; yes when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        affine: Option<bool>,
    },
    /// Layer normalisation of each sample's last axes.
    LayerNorm {
        /// How many: 1 (the channels of each pixel) when left out, 3 for whole images.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        axes: Option<usize>,
        /// Added to variances; 1e-5 when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eps: Option<f64>,
        /// Whether there is a scale and a shift for each number; yes when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        affine: Option<bool>,
    },
    /// Root mean square normalisation of each sample's last axes.
    RmsNorm {
        /// As in `layer-norm`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        axes: Option<usize>,
        /// Added to mean squares; 2^−23 when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eps: Option<f64>,
        /// Whether there is a scale for each number; yes when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        affine: Option<bool>,
    },
    /// Normalisation of groups of channels of each sample.
    GroupNorm {
        /// Groups of neighbouring channels.
        groups: usize,
        /// Added to variances; 1e-5 when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eps: Option<f64>,
        /// Whether there is a scale and a shift for each channel; yes when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        affine: Option<bool>,
    },
    /// Normalisation of each channel of each sample.
    InstanceNorm {
        /// Added to variances; 1e-5 when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eps: Option<f64>,
        /// A batch's share in the new running statistics; 0.1 when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        momentum: Option<f64>,
        /// Whether there is a scale and a shift for each channel.
        #[serde(default)]
        affine: bool,
        /// Whether running statistics are kept, and used in evaluation.
        #[serde(default)]
        track_running_stats: bool,
    },
    /// max(x, 0)
    Relu {},
    /// 1 / (1 + e^−x)
    Sigmoid {},
    /// Hyperbolic tangent.
    Tanh {},
    /// x, but at least 0 and at most 6.
    Relu6 {},
    /// x where it is positive, elsewhere a fixed slope times it.
    LeakyRelu {
        /// The slope.
        #[serde(default = "activation::hundredth")]
        slope: f64,
    },
    /// x where it is positive, elsewhere a learned slope times it.
    Prelu {
        /// Whether each channel has a slope of its own.
        #[serde(default)]
        per_channel: bool,
        /// What slopes begin with.
        #[serde(default = "activation::quarter")]
        init: f64,
    },
    /// x where it is positive, elsewhere alpha · (e^x − 1).
    Elu {
        /// The limit towards −∞ is −alpha.
        #[serde(default = "activation::unit")]
        alpha: f64,
    },
    /// ELU with the constants of self-normalising networks.
    Selu {},
    /// x where it is positive, elsewhere alpha · (e^(x/alpha) − 1).
    Celu {
        /// The limit towards −∞ is −alpha.
        #[serde(default = "activation::unit")]
        alpha: f64,
    },
    /// x · Φ(x), where Φ is the distribution function of the standard normal distribution.
    Gelu {
        /// "tanh" for the approximation by tanh.
        #[serde(default)]
        approximate: Approximate,
    },
    /// x / (1 + e^−x), also called swish.
    Silu {},
    /// x · tanh(ln(1 + e^x))
    Mish {},
    /// ln(1 + e^(beta · x)) / beta
    Softplus {
        /// How sharply it bends.
        #[serde(default = "activation::unit")]
        beta: f64,
        /// Where beta · x exceeds it, the result is x.
        #[serde(default = "activation::twenty")]
        threshold: f64,
    },
    /// x / (1 + |x|)
    Softsign {},
    /// e^(−x²)
    Gaussian {},
    /// x/6 + ½, but at least 0 and at most 1.
    HardSigmoid {},
    /// x times its hard sigmoid.
    HardSwish {},
    /// x, but at least min and at most max.
    HardTanh {
        /// The least result.
        #[serde(default = "activation::minus_unit")]
        min: f64,
        /// The largest result.
        #[serde(default = "activation::unit")]
        max: f64,
    },
    /// −ln(1 + e^−x)
    LogSigmoid {},
    /// x − tanh(x)
    TanhShrink {},
    /// x where its size exceeds lambda, else 0.
    HardShrink {
        /// The bound.
        #[serde(default = "activation::half")]
        lambda: f64,
    },
    /// x moved towards 0 by lambda.
    SoftShrink {
        /// How far.
        #[serde(default = "activation::half")]
        lambda: f64,
    },
    /// x where it exceeds the threshold, else a value.
    Threshold {
        /// The threshold.
        threshold: f64,
        /// The value.
        value: f64,
    },
    /// The largest value of each window.
    MaxPool {
        /// The window's side, or its height and width.
        kernel: Pair,
        /// Its step; the window's size when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stride: Option<Pair>,
        /// −∞ around the image.
        #[serde(default = "none")]
        padding: Pair,
        /// Whether a rest that fills no window makes one.
        #[serde(default)]
        ceil: bool,
    },
    /// The mean of each channel.
    GlobalAvgPool {},
    /// Drops elements in training.
    Dropout {
        /// The probability.
        p: f64,
    },
    /// A vector of each sample.
    Flatten {},
    /// The mean of each window.
    AvgPool {
        /// The window's side, or its height and width.
        kernel: Pair,
        /// Its step; the window's size when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stride: Option<Pair>,
        /// Zeros around the image.
        #[serde(default = "none")]
        padding: Pair,
        /// Whether a rest that fills no window makes one.
        #[serde(default)]
        ceil: bool,
        /// Whether the zeros count.
        #[serde(default = "yes")]
        count_include_pad: bool,
    },
    /// The means of windows that cover the image evenly.
    AdaptiveAvgPool {
        /// How many: rows and columns.
        out: Pair,
    },
    /// Drops whole channels of a sample in training (spatial dropout).
    ChannelDropout {
        /// The probability.
        p: f64,
    },
    /// Drops elements in training and keeps mean and variance, for networks of SELU units.
    AlphaDropout {
        /// The probability.
        p: f64,
    },
    /// Adds normal noise in training, as a denoising autoencoder needs it.
    GaussianNoise {
        /// Its standard deviation.
        std: f64,
    },
    /// Places around the sample.
    Pad {
        /// How many at both ends of all axes, or a list with an entry for each axis: a number for both ends, or
        /// [before, after]; negative ones crop.
        amounts: PerAxis<PadAmount>,
        /// What they hold.
        #[serde(default)]
        mode: PadName,
        /// The number that they hold in the mode `constant`.
        #[serde(default)]
        value: f64,
    },
    /// Resizes the sample.
    Upsample {
        /// The places along each axis; this or scale.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<PerAxis<usize>>,
        /// What the places are multiplied by.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scale: Option<PerAxis<f64>>,
        /// How values between places are made.
        #[serde(default)]
        mode: UpsampleMode,
        /// Whether the middles of the corner places lie on one another instead of the edges (linear, cubic).
        #[serde(default)]
        align_corners: bool,
        /// Whether the filter widens where the sample shrinks (linear, cubic).
        #[serde(default)]
        antialias: bool,
    },
    /// Channels to places: C·r² channels become C of an image r times as high and wide.
    PixelShuffle {
        /// r
        factor: usize,
    },
    /// Places to channels, the way back of pixel-shuffle.
    PixelUnshuffle {
        /// r
        factor: usize,
    },
    /// The largest value of windows that begin at random steps in training (Graham, 2014).
    FractionalMaxPool {
        /// The window's size.
        kernel: PerAxis<usize>,
        /// How many windows; this or ratio.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        out: Option<PerAxis<usize>>,
        /// The share of the places that is left.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ratio: Option<PerAxis<f64>>,
    },
    /// Local response normalisation across channels.
    Lrn {
        /// Channels of a window.
        #[serde(default = "five")]
        size: usize,
        /// What the mean of the window's squares is multiplied with.
        #[serde(default = "lrn_alpha")]
        alpha: f64,
        /// The power.
        #[serde(default = "lrn_beta")]
        beta: f64,
        /// Added before the power is taken.
        #[serde(default = "lrn_k")]
        k: f64,
    },
    /// A recurrent network over a sequence, or over an image row by row.
    Recurrent {
        /// The function of a step.
        cell: RecurrentCell,
        /// The size of the hidden state, in each direction.
        hidden: usize,
        /// Layers on top of each other.
        #[serde(default = "one")]
        layers: usize,
        /// Whether a second set of weights goes through the sequence from its end.
        #[serde(default)]
        bidirectional: bool,
        /// The probability of dropping between layers, in training.
        #[serde(default)]
        dropout: f64,
        /// Whether there are biases.
        #[serde(default = "yes")]
        bias: bool,
        /// Whether it gives the last hidden state alone, a vector, instead of all of them.
        #[serde(default)]
        last: bool,
    },
    /// Vectors looked up in a table by the sample's numbers.
    Embedding {
        /// Rows of the table: indices are smaller.
        count: usize,
        /// Numbers of a row.
        size: usize,
        /// A row that begins at 0 and stays there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        padding: Option<usize>,
    },
}
}

fn five() -> usize {
    5
}
fn lrn_alpha() -> f64 {
    1e-4
}
fn lrn_beta() -> f64 {
    0.75
}
fn lrn_k() -> f64 {
    1.0
}
fn one() -> usize {
    1
}
fn one_pair() -> Pair {
    1.into()
}
fn glorot() -> Init {
    Init::GlorotUniform
}
fn none() -> Pair {
    0.into()
}
fn yes() -> bool {
    true
}
fn uniform() -> Init {
    Init::Uniform
}

impl Row {
    /// Batch normalisation with the usual options.
    pub fn batch_norm() -> Row {
        Row::BatchNorm { eps: None, momentum: None, affine: None }
    }
}
