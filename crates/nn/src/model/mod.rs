//! Models: named ones in code, others as rows of a configuration.

mod activation;
mod joint;
pub(crate) mod kinds;
mod stack;
mod summary;
mod zoo;

use phalanx_tensor::Pool;
use serde::{Deserialize, Serialize};

pub use self::activation::Approximate;
use self::kinds::described;
pub use self::kinds::{LayerKind, LayerListing, LayerOption};
use self::stack::Stack;
pub use self::summary::{LayerSummary, Listed, Listing, Memory, Summary, list, summarise};
use crate::layer::{
    ConvConfig, Layer, NormOptions, PadAmount, PadName, Pair, PerAxis, RecurrentCell, UpsampleMode,
};
use crate::{Builder, Error, Init, Result};

/// The `[model]` table: a name with its options, or rows of layers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A named model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Sizes of the hidden layers (`mlp`; `alexnet*` and `vgg-*` have two).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<Vec<usize>>,
    /// The function between layers (`mlp`, `lenet5`), by the name of its row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<String>,
    /// The probability of dropping where the model drops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Whether each convolution is followed by a batch norm (`vgg-*`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_norm: Option<bool>,
    /// Whether the last norm of each residual block begins with γ = 0 (`resnet*`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_gamma: Option<bool>,
    /// Whether there are auxiliary heads (`googlenet`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aux: Option<bool>,
    /// The number of layers (`resnet-cifar`, `wide-resnet`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// What the numbers of channels are multiplied by (`wide-resnet`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Layers, first to last, instead of a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Row>,
}

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

/// The windows of a pooling row.
fn windows(kernel: Pair, stride: Option<Pair>, padding: Pair) -> Pool {
    Pool::new(&kernel.get()).stride(&stride.unwrap_or(kernel).get()).padding(&padding.get())
}

/// A norm's options, where they were given.
fn norm_options(eps: Option<f64>, momentum: Option<f64>, affine: Option<bool>) -> NormOptions {
    let d = NormOptions::default();
    NormOptions {
        eps: eps.unwrap_or(d.eps),
        momentum: momentum.unwrap_or(d.momentum),
        affine: affine.unwrap_or(d.affine),
        ..d
    }
}

impl Row {
    /// Batch normalisation with the usual options.
    pub fn batch_norm() -> Row {
        Row::BatchNorm { eps: None, momentum: None, affine: None }
    }
}

impl ModelConfig {
    /// The named model with its default options.
    pub fn named(name: &str) -> Self {
        ModelConfig { name: Some(name.to_owned()), ..ModelConfig::default() }
    }

    /// All options of named models, and whether they are given.
    fn given(&self) -> [(&'static str, bool); 8] {
        [
            ("hidden", self.hidden.is_some()),
            ("activation", self.activation.is_some()),
            ("dropout", self.dropout.is_some()),
            ("batch_norm", self.batch_norm.is_some()),
            ("zero_gamma", self.zero_gamma.is_some()),
            ("aux", self.aux.is_some()),
            ("depth", self.depth.is_some()),
            ("width", self.width.is_some()),
        ]
    }

    /// The hidden layers of a classifier that has two.
    fn two_hidden(&self) -> Result<[usize; 2]> {
        let sizes = self.hidden.as_deref().unwrap_or(&[4096, 4096]);
        let problem = || format!("hidden is {sizes:?}, but its classifier has two hidden layers");
        <[usize; 2]>::try_from(sizes).map_err(|_| Error::config("model", problem()))
    }

    /// What can be checked without knowing the samples.
    pub fn check(&self) -> Result<()> {
        let fail = |problem: String| Err(Error::config("model", problem));
        let Some(name) = &self.name else {
            let option = self.given().into_iter().find(|(_, given)| *given);
            return match (self.layers.is_empty(), option) {
                (true, _) => {
                    let names = zoo::names().collect::<Vec<_>>().join(", ");
                    fail(format!("it needs a name (one of {names}) or rows [[model.layers]]"))
                }
                (false, Some((option, _))) => fail(format!("{option} goes with a name, not with layers")),
                (false, None) => Ok(()),
            };
        };
        if !self.layers.is_empty() {
            return fail(format!("it has both the name {name:?} and layers; give one of the two"));
        }
        zoo::resolve(name, self)?;
        if let Some(function) = &self.activation {
            Row::of_function(function)?;
        }
        if let Some(0) = self.hidden.iter().flatten().min() {
            return fail("a hidden layer has 0 outputs".into());
        }
        Ok(())
    }
}

/// Builds a model for samples of `input` [H, W, C] and `classes` outputs, registering its parameters.
pub fn build(
    config: &ModelConfig,
    input: [usize; 3],
    classes: usize,
    b: &mut Builder,
) -> Result<Box<dyn Layer>> {
    config.check()?;
    if classes == 0 {
        return Err(Error::config("model", "the data set has no classes"));
    }
    if let Some(name) = &config.name {
        return zoo::build(name, config, input.into(), classes, b);
    }
    let mut stack = Stack::new(b, input.into(), Init::HeNormal);
    for (i, row) in config.layers.iter().enumerate() {
        stack.row(&format!("layers.{i}"), row, classes)?;
    }
    if *stack.shape != [classes] {
        let problem = format!(
            "its last layer gives {} a sample, but the data set has {classes} classes; end with a linear layer \
             without out",
            stack.shape
        );
        return Err(Error::config("model.layers", problem));
    }
    Ok(stack.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(text: &str, input: [usize; 3]) -> Result<Builder> {
        let config: ModelConfig = toml::from_str(text).unwrap();
        let mut b = Builder::new();
        build(&config, input, 10, &mut b).map(|_| b)
    }

    #[test]
    fn rows_make_a_stack_whose_shapes_fit() {
        let b = built(
            "layers = [{ type = \"conv\", out = 4, kernel = 3, padding = 1 }, { type = \"batch-norm\" },
              { type = \"relu\" }, { type = \"max-pool\", kernel = 2 }, { type = \"dropout\", p = 0.5 },
              { type = \"flatten\" }, { type = \"linear\" }]",
            [8, 6, 2],
        )
        .unwrap();
        let shapes: Vec<_> = b.description().iter().map(|d| d.output.to_vec()).collect();
        assert_eq!(shapes, [vec![8, 6, 4], vec![8, 6, 4], vec![4, 3, 4], vec![48], vec![10]]);
        assert_eq!(b.multiply_adds(), 8 * 6 * 4 * 18 + 48 * 10);
        let (params, norms) = b.finish(&mut phalanx_host::Arena::zeroed).unwrap();
        assert_eq!(params.count(), 4 * 18 + 4 + 8 + 480 + 10);
        assert_eq!(norms.statistics_len(), 9);
        assert!(params.find("layers.0.weight").is_some() && params.find("layers.6.bias").is_some());
    }

    #[test]
    fn convolution_rows_take_every_option() {
        let b = built(
            "layers = [{ type = \"conv\", out = 6, kernel = [3, 2], padding = \"same\", groups = 2 },
              { type = \"conv\", out = 4, kernel = 3, stride = [2, 1], padding = [[1, 0], [0, 2]], dilation = 2 },
              { type = \"conv-transpose2d\", out = 2, kernel = 3, stride = 2, padding = 1, output_padding = 1,
                groups = 2, bias = false }, { type = \"flatten\" }, { type = \"linear\" }]",
            [10, 9, 4],
        )
        .unwrap();
        let shapes: Vec<_> = b.description().iter().map(|d| d.output.to_vec()).collect();
        assert_eq!(shapes, [vec![10, 9, 6], vec![4, 7, 4], vec![8, 14, 2], vec![224], vec![10]]);
        let adds: Vec<_> = b.description().iter().map(|d| d.multiply_adds).collect();
        assert_eq!(adds[..3], [90 * 6 * 12, 28 * 4 * 54, 28 * 4 * 9]);
        let (params, _) = b.finish(&mut phalanx_host::Arena::zeroed).unwrap();
        let stored = |name: &str| params.stored_shape(params.find(name).unwrap()).to_vec();
        assert_eq!(stored("layers.0.weight"), [6, 2, 3, 2]);
        assert_eq!(stored("layers.2.weight"), [4, 1, 3, 3]);
        assert!(params.find("layers.2.bias").is_none());
    }

    #[test]
    fn locally_connected_rows_have_a_matrix_a_pixel() {
        let text = "layers = [{ type = \"locally-connected\", out = 5, kernel = [3, 2], stride = [2, 1] },
            { type = \"flatten\" }, { type = \"linear\" }]";
        let b = built(text, [9, 4, 2]).unwrap();
        let first = &b.description()[0];
        assert_eq!((first.output.to_vec(), first.parameters), (vec![4, 3, 5], 12 * 12 * 5 + 60));
        let e = built(text, [2, 4, 2]).unwrap_err().to_string();
        assert!(e.contains("layers.0 (locally-connected) cannot take [2,4,2]: a kernel of 3"), "{e}");
    }

    #[test]
    fn pooling_rows_take_one_number_or_height_and_width() {
        let b = built(
            "layers = [{ type = \"max-pool\", kernel = 3, stride = 2, ceil = true },
              { type = \"avg-pool\", kernel = [2, 1], padding = [1, 0], count_include_pad = false },
              { type = \"adaptive-avg-pool\", out = [3, 2] }, { type = \"flatten\" }, { type = \"linear\" }]",
            [10, 9, 2],
        )
        .unwrap();
        let shapes: Vec<_> = b.description().iter().map(|d| d.output.to_vec()).collect();
        assert_eq!(shapes, [vec![5, 4, 2], vec![3, 4, 2], vec![3, 2, 2], vec![12], vec![10]]);
    }

    #[test]
    fn wrong_models_name_the_layer_and_the_shapes() {
        for (text, say) in [
            ("", "needs a name"),
            ("name = \"lenet\"", "did you mean \"lenet5\""),
            ("name = \"perceptron\"\nhidden = [3]", "no option hidden"),
            ("name = \"mlp\"\nhidden = [0]", "0 outputs"),
            ("name = \"mlp\"\nlayers = [{ type = \"relu\" }]", "both the name"),
            (
                "layers = [{ type = \"linear\" }]",
                "layers.0 (linear) cannot take [8,8,1]: it takes vectors; put a flatten",
            ),
            (
                "layers = [{ type = \"flatten\" }, { type = \"conv\", out = 1, kernel = 1 }]",
                "layers.1 (conv) cannot take [64]",
            ),
            ("layers = [{ type = \"conv\", out = 0, kernel = 1 }]", "0 outputs"),
            ("layers = [{ type = \"conv\", out = 1, kernel = 9 }]", "larger than 8"),
            ("layers = [{ type = \"conv\", out = 1, kernel = 1, stride = 0 }]", "at least 1"),
            ("layers = [{ type = \"conv\", out = 1, kernel = 3, groups = 2 }]", "cannot be shared among 2"),
            ("layers = [{ type = \"conv\", out = 1, kernel = [3, 3, 3] }]", "each of 2 axes"),
            (
                "layers = [{ type = \"conv\", out = 1, kernel = 3, stride = 2, padding = \"same\" }]",
                "layers.0 (conv) cannot take [8,8,1]: padding \"same\" takes a stride of 1",
            ),
            ("layers = [{ type = \"conv\", out = 1, kernel = 3, output_padding = 1 }]", "a transposed"),
            (
                "layers = [{ type = \"conv-transpose2d\", out = 1, kernel = 3, output_padding = 1 }]",
                "smaller than",
            ),
            ("layers = [{ type = \"conv1d\", out = 1, kernel = 3 }]", "takes sequences [length, channels]"),
            ("layers = [{ type = \"conv\", out = 9223372036854775807, kernel = 3 }]", "would have more than"),
            ("layers = [{ type = \"max-pool\", kernel = 2, padding = 2 }]", "more than half"),
            ("layers = [{ type = \"max-pool\", kernel = [2, 9] }]", "larger than 8"),
            ("layers = [{ type = \"avg-pool\", kernel = 3, stride = [1, 0] }]", "at least 1"),
            ("layers = [{ type = \"adaptive-avg-pool\", out = [0, 2] }]", "cannot be cut into 0 by 2"),
            ("layers = [{ type = \"flatten\" }, { type = \"adaptive-avg-pool\", out = 1 }]", "takes images"),
            ("layers = [{ type = \"lrn\", size = 0 }]", "size must be at least 1"),
            ("layers = [{ type = \"dropout\", p = 1.5 }]", "probability"),
            ("layers = [{ type = \"recurrent\", cell = \"lstm\", hidden = 0 }]", "none may be 0"),
            (
                "layers = [{ type = \"flatten\" }, { type = \"recurrent\", cell = \"gru\", hidden = 3 }]",
                "layers.1 (gru) cannot take [64]",
            ),
            ("layers = [{ type = \"recurrent\", cell = \"rnn\", hidden = 3, dropout = 2.0 }]", "probability"),
            ("layers = [{ type = \"embedding\", count = 4, size = 2, padding = 4 }]", "no row 4"),
            ("layers = [{ type = \"flatten\" }, { type = \"linear\", out = 3 }]", "10 classes"),
        ] {
            let e = built(text, [8, 8, 1]).unwrap_err();
            assert!(e.to_string().contains(say) && e.is_usage(), "{text}: {e}");
        }
        assert!(
            toml::from_str::<ModelConfig>("layers = [{ type = \"conv\", out = 1, kernels = 1 }]").is_err()
        );
        assert!(toml::from_str::<ModelConfig>("layers = [{ type = \"conf\" }]").is_err());
    }
}
