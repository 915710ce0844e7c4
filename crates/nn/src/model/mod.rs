//! Models: named ones in code, others as rows of a configuration.

mod activation;
mod joint;
pub(crate) mod kinds;
mod row;
mod stack;
mod summary;
mod zoo;

use phalanx_tensor::Pool;
use serde::{Deserialize, Serialize};

pub use self::activation::Approximate;
pub use self::kinds::{LayerKind, LayerListing, LayerOption};
pub use self::row::Row;
use self::stack::Stack;
pub use self::summary::{LayerSummary, Listed, Listing, Memory, Summary, list, summarise};
use crate::layer::{Layer, NormOptions, Pair};
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
    fn a_linear_layer_takes_one_relu_that_follows() {
        let text = "layers = [{ type = \"flatten\" }, { type = \"linear\", out = 4 }, { type = \"relu\" }, \
                    { type = \"relu\" }, { type = \"linear\" }, { type = \"tanh\" }]";
        let made = format!(
            "{:?}",
            build(&toml::from_str(text).unwrap(), [2, 2, 1], 3, &mut Builder::new()).unwrap()
        );
        let count = |what: &str| made.matches(what).count();
        assert_eq!(
            [count("relu: true"), count("relu: false"), count("relu("), count("tanh(")],
            [1, 1, 1, 1],
            "{made}"
        );
        assert!(made.contains("layers.4") && made.contains("layers.5"), "{made}");
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
