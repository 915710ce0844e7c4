//! The named models: a table of what there is, and a file for each family.

mod alexnet;
mod classic;
mod densenet;
mod googlenet;
mod resnet;
mod vgg;

use phalanx_tensor::Shape;

use self::densenet::Densenet;
use self::resnet::Resnet;
use self::vgg::Vgg;
use super::ModelConfig;
use super::stack::Stack;
use crate::layer::Layer;
use crate::{Builder, Error, Init, Result, error};

/// Builds a model's layers for so many classes.
type Build = fn(&mut Stack<'_>, &ModelConfig, usize) -> Result<()>;

/// A named model.
#[derive(Debug, Clone, Copy)]
pub(super) struct NamedModel {
    /// Its name.
    pub(super) name: &'static str,
    /// Keys of the `[model]` table that it understands.
    pub(super) options: &'static [&'static str],
    /// The samples that it was made for: height, width, channels.
    pub(super) input: [usize; 3],
    /// The classes that it was made for.
    pub(super) classes: usize,
    /// Where it was published.
    pub(super) paper: &'static str,
    init: Init,
    build: Build,
}

/// Samples and classes of ImageNet.
pub(super) const IMAGENET: ([usize; 3], usize) = ([224, 224, 3], 1000);
const MNIST: ([usize; 3], usize) = ([28, 28, 1], 10);
const DIGITS: ([usize; 3], usize) = ([8, 8, 1], 10);
const CIFAR: ([usize; 3], usize) = ([32, 32, 3], 10);

const DROPOUT: &[&str] = &["dropout"];
const GAMMA: &[&str] = &["zero_gamma"];
const HIDDEN: &[&str] = &["dropout", "hidden"];
const VGG: &[&str] = &["batch_norm", "dropout", "hidden"];

const LECUN: &str = "LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998";
const KRIZHEVSKY: &str =
    "Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, 2012";
const ONE_WEIRD_TRICK: &str =
    "Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014";
const SIMONYAN: &str =
    "Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014";
const SZEGEDY: &str = "Szegedy et al., Going Deeper with Convolutions, 2015";
const HE: &str = "He et al., Deep Residual Learning for Image Recognition, 2015";
const ZAGORUYKO: &str = "Zagoruyko and Komodakis, Wide Residual Networks, 2016";
const HUANG: &str = "Huang et al., Densely Connected Convolutional Networks, 2016";
const ROSENBLATT: &str = "Rosenblatt, The Perceptron, 1958";
const RUMELHART: &str = "Rumelhart et al., Learning representations by back-propagating errors, 1986";

impl NamedModel {
    /// The samples and the number of classes that it was made for.
    pub(super) fn made_for(&self) -> ([usize; 3], usize) {
        (self.input, self.classes)
    }
}

/// A row of the table: name, options, (input, classes), paper, initialisation, layers.
macro_rules! models {
    ($($name:literal, $options:expr, $made_for:expr, $paper:expr, $init:expr, $build:expr;)*) => {
        &[$(NamedModel {
            name: $name,
            options: $options,
            input: $made_for.0,
            classes: $made_for.1,
            paper: $paper,
            init: $init,
            build: $build,
        }),*]
    };
}

/// A row's layers, from a value that has a `build`.
macro_rules! of {
    ($value:expr) => {
        |s, config, classes| $value.build(s, config, classes)
    };
}

const fn plain(convs: [usize; 5]) -> Vgg {
    Vgg { convs, pointwise: false, lrn: false }
}

const fn basic(blocks: [usize; 4]) -> Resnet {
    Resnet { bottleneck: false, blocks, width: 64 }
}

const fn bottleneck(blocks: [usize; 4], width: usize) -> Resnet {
    Resnet { bottleneck: true, blocks, width }
}

const fn dense(growth: usize, layers: [usize; 4], first: usize) -> Densenet {
    Densenet { growth, layers, first }
}

/// All named models.
pub(super) const MODELS: &[NamedModel] = models! {
    "perceptron", &[], MNIST, ROSENBLATT, Init::Uniform, classic::perceptron;
    "mlp", &["hidden", "activation", "dropout"], MNIST, RUMELHART, Init::Uniform, classic::mlp;
    "lenet5", &["activation"], MNIST, LECUN, Init::Uniform, classic::lenet5;
    "digits-cnn", DROPOUT, DIGITS, "", Init::HeNormal, classic::digits_cnn;
    "alexnet", HIDDEN, IMAGENET, ONE_WEIRD_TRICK, Init::Uniform, alexnet::one_device;
    "alexnet-2012", HIDDEN, IMAGENET, KRIZHEVSKY, Init::Normal(0.01), alexnet::two_devices;
    "vgg-a", VGG, IMAGENET, SIMONYAN, Vgg::INIT, of!(plain([1, 1, 2, 2, 2]));
    "vgg-a-lrn", HIDDEN, IMAGENET, SIMONYAN, Vgg::INIT, of!(Vgg { lrn: true, ..plain([1, 1, 2, 2, 2]) });
    "vgg-b", VGG, IMAGENET, SIMONYAN, Vgg::INIT, of!(plain([2, 2, 2, 2, 2]));
    "vgg-c", VGG, IMAGENET, SIMONYAN, Vgg::INIT, of!(Vgg { pointwise: true, ..plain([2, 2, 3, 3, 3]) });
    "vgg-d", VGG, IMAGENET, SIMONYAN, Vgg::INIT, of!(plain([2, 2, 3, 3, 3]));
    "vgg-e", VGG, IMAGENET, SIMONYAN, Vgg::INIT, of!(plain([2, 2, 4, 4, 4]));
    "googlenet", &["aux", "dropout"], IMAGENET, SZEGEDY, googlenet::INIT, googlenet::build;
    "resnet18", GAMMA, IMAGENET, HE, Resnet::INIT, of!(basic([2, 2, 2, 2]));
    "resnet34", GAMMA, IMAGENET, HE, Resnet::INIT, of!(basic([3, 4, 6, 3]));
    "resnet50", GAMMA, IMAGENET, HE, Resnet::INIT, of!(bottleneck([3, 4, 6, 3], 64));
    "resnet101", GAMMA, IMAGENET, HE, Resnet::INIT, of!(bottleneck([3, 4, 23, 3], 64));
    "resnet152", GAMMA, IMAGENET, HE, Resnet::INIT, of!(bottleneck([3, 8, 36, 3], 64));
    "wide_resnet50_2", GAMMA, IMAGENET, ZAGORUYKO, Resnet::INIT, of!(bottleneck([3, 4, 6, 3], 128));
    "wide_resnet101_2", GAMMA, IMAGENET, ZAGORUYKO, Resnet::INIT, of!(bottleneck([3, 4, 23, 3], 128));
    "resnet-cifar", &["depth", "zero_gamma"],
        CIFAR, HE, Resnet::INIT, |s, c, n| resnet::small(s, c, c.depth.unwrap_or(20), n);
    "wide-resnet", &["depth", "width", "dropout"], CIFAR, ZAGORUYKO, Resnet::INIT,
        |s, c, n| resnet::wide(s, c, [c.depth.unwrap_or(28), c.width.unwrap_or(10)], n);
    "densenet121", DROPOUT, IMAGENET, HUANG, Densenet::INIT, of!(dense(32, [6, 12, 24, 16], 64));
    "densenet161", DROPOUT, IMAGENET, HUANG, Densenet::INIT, of!(dense(48, [6, 12, 36, 24], 96));
    "densenet169", DROPOUT, IMAGENET, HUANG, Densenet::INIT, of!(dense(32, [6, 12, 32, 32], 64));
    "densenet201", DROPOUT, IMAGENET, HUANG, Densenet::INIT, of!(dense(32, [6, 12, 48, 32], 64));
};

/// What an alias's name tells of its model's options.
#[derive(Debug, Clone, Copy)]
enum Told {
    Nothing,
    BatchNorm,
    Depth(usize),
    DepthAndWidth(usize, usize),
}

/// Further names: torchvision's, and those of usual sizes.
const ALIASES: [(&str, &str, Told); 15] = [
    ("vgg11", "vgg-a", Told::Nothing),
    ("vgg13", "vgg-b", Told::Nothing),
    ("vgg16", "vgg-d", Told::Nothing),
    ("vgg19", "vgg-e", Told::Nothing),
    ("vgg11_bn", "vgg-a", Told::BatchNorm),
    ("vgg13_bn", "vgg-b", Told::BatchNorm),
    ("vgg16_bn", "vgg-d", Told::BatchNorm),
    ("vgg19_bn", "vgg-e", Told::BatchNorm),
    ("resnet20", "resnet-cifar", Told::Depth(20)),
    ("resnet32", "resnet-cifar", Told::Depth(32)),
    ("resnet44", "resnet-cifar", Told::Depth(44)),
    ("resnet56", "resnet-cifar", Told::Depth(56)),
    ("resnet110", "resnet-cifar", Told::Depth(110)),
    ("wrn-16-4", "wide-resnet", Told::DepthAndWidth(16, 4)),
    ("wrn-28-10", "wide-resnet", Told::DepthAndWidth(28, 10)),
];

/// All names and aliases.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|m| m.name).chain(ALIASES.iter().map(|a| a.0))
}

/// The aliases of a model.
pub(super) fn aliases(name: &str) -> impl Iterator<Item = &'static str> {
    ALIASES.iter().filter(move |a| a.1 == name).map(|a| a.0)
}

/// The configured model, with the options that its alias tells set.
pub(super) fn resolve(name: &str, config: &ModelConfig) -> Result<(&'static NamedModel, ModelConfig)> {
    let fail = |problem: String| Error::config("model", problem);
    let alias = ALIASES.iter().find(|a| a.0 == name);
    let base = alias.map_or(name, |a| a.1);
    let model = MODELS.iter().find(|m| m.name == base).ok_or_else(|| {
        let all: Vec<&str> = names().collect();
        fail(format!(
            "there is no model {name:?}; there are {}{}",
            all.join(", "),
            error::nearest(name, &all)
        ))
    })?;
    if let Some((option, _)) =
        config.given().into_iter().find(|(o, given)| *given && !model.options.contains(o))
    {
        return Err(fail(format!("{name} has no option {option}; it has {:?}", model.options)));
    }
    let mut config = config.clone();
    let tell = |option: &str, known: bool| match known {
        true => {
            Err(fail(format!("the name {name:?} tells its {option}; leave the option out, or name {base}")))
        }
        false => Ok(()),
    };
    match alias.map_or(Told::Nothing, |a| a.2) {
        Told::Nothing => {}
        Told::BatchNorm => {
            tell("batch_norm", config.batch_norm.replace(true).is_some())?;
        }
        Told::Depth(depth) => tell("depth", config.depth.replace(depth).is_some())?,
        Told::DepthAndWidth(depth, width) => {
            tell("depth", config.depth.replace(depth).is_some())?;
            tell("width", config.width.replace(width).is_some())?;
        }
    }
    Ok((model, config))
}

pub(super) fn build(
    name: &str,
    config: &ModelConfig,
    input: Shape,
    classes: usize,
    b: &mut Builder,
) -> Result<Box<dyn Layer>> {
    let (model, config) = resolve(name, config)?;
    let mut stack = Stack::new(b, input, model.init);
    (model.build)(&mut stack, &config, classes)?;
    Ok(stack.finish())
}
