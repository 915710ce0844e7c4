use phalanx_tensor::{Pool, Shape};

use super::joint::{Auxiliary, Branches, NormRelu, Residual, Sum};
use super::{Row, norm_options, windows};
use crate::layer::{
    Activation, AdaptiveAvgPool2d, AvgPool2d, BatchNorm, ConvConfig, ConvKind, Convolution, Embedding,
    Flatten, FractionalMaxPool, FractionalTo, GlobalAvgPool, GroupNorm, InstanceNorm, Layer, LayerNorm,
    Linear, LocalResponseNorm, LocallyConnected2d, MaxPool2d, Noise, NoiseKind, NormOptions, Pad, Padding,
    PixelShuffle, Prelu, Recurrent, RecurrentConfig, RmsNorm, Sequential, Sizes, Upsample, UpsampleTo,
};
use crate::{Builder, Error, Init, Result};

/// A convolution with a square window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conv {
    out: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    groups: usize,
    bias: bool,
}

impl Conv {
    /// Of stride 1, without padding and bias.
    pub(crate) fn new(out: usize, kernel: usize) -> Self {
        Conv { out, kernel, stride: 1, padding: 0, groups: 1, bias: false }
    }

    /// Of a window that fits its output to its input, as far as the stride goes.
    pub(crate) fn same(out: usize, kernel: usize) -> Self {
        Conv { padding: kernel / 2, ..Conv::new(out, kernel) }
    }

    pub(crate) fn stride(self, stride: usize) -> Self {
        Conv { stride, ..self }
    }

    pub(crate) fn padding(self, padding: usize) -> Self {
        Conv { padding, ..self }
    }

    pub(crate) fn bias(self) -> Self {
        Conv { bias: true, ..self }
    }

    /// In so many parts, each over its share of the channels.
    pub(crate) fn groups(self, groups: usize) -> Self {
        Conv { groups, ..self }
    }
}

/// Square windows `[kernel, stride, padding]`.
fn square([kernel, stride, padding]: [usize; 3]) -> Pool {
    Pool::new(&[kernel; 2]).stride(&[stride; 2]).padding(&[padding; 2])
}

/// Layers one after another in the making: pushes a layer and follows the shape of one sample. How the
/// weights of a network begin is told once.
pub(crate) struct Stack<'a> {
    pub(crate) builder: &'a mut Builder,
    pub(crate) shape: Shape,
    init: Init,
    layers: Sequential,
}

impl<'a> Stack<'a> {
    /// A stack over samples of shape `input`, whose convolutions begin as `init` says.
    pub(crate) fn new(builder: &'a mut Builder, input: Shape, init: Init) -> Self {
        Stack { builder, shape: input, init, layers: Sequential::new() }
    }

    pub(crate) fn finish(self) -> Box<dyn Layer> {
        Box::new(self.layers)
    }

    /// Adds a layer of output `shape`.
    pub(crate) fn push(&mut self, (layer, shape): (impl Layer + 'static, Shape)) {
        self.layers.push_at(self.builder.name(""), layer);
        self.shape = shape;
    }

    /// Builds with `name` in front of all names; an empty one adds nothing.
    fn named<T>(&mut self, name: &str, build: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.builder.path_push(name);
        let result = build(self);
        self.builder.path_pop();
        result
    }

    /// Goes on below `name`: a module of modules.
    pub(crate) fn scope(&mut self, name: &str, build: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.named(name, build)
    }

    /// A stack of its own over what this one gives.
    pub(crate) fn part(
        &mut self,
        build: impl FnOnce(&mut Stack<'_>) -> Result<()>,
    ) -> Result<(Sequential, Shape)> {
        let mut part = Stack::new(self.builder, self.shape, self.init);
        build(&mut part)?;
        Ok((part.layers, part.shape))
    }

    pub(crate) fn conv(&mut self, name: &str, conv: Conv) -> Result<()> {
        let Conv { out, kernel, stride, padding, groups, bias } = conv;
        self.named(name, |s| {
            let config = ConvConfig {
                stride: Sizes::All(stride),
                padding: Padding::Both(Sizes::All(padding)),
                groups,
                bias,
                init: s.init,
                ..ConvConfig::new(out, kernel)
            };
            s.build_conv(ConvKind::Plain(2), &config)
        })
    }

    fn build_conv(&mut self, kind: ConvKind, config: &ConvConfig) -> Result<()> {
        let made = Convolution::build(self.builder, self.shape, kind, config)?;
        self.push(made);
        Ok(())
    }

    pub(crate) fn linear(&mut self, name: &str, out: usize, init: Init) -> Result<()> {
        self.named(name, |s| {
            let made = Linear::build(s.builder, s.shape, out, true, init)?;
            s.push(made);
            Ok(())
        })
    }

    /// A batch norm that is not followed by a ReLU.
    pub(crate) fn norm(&mut self, name: &str) -> Result<()> {
        let (norm, shape) = self.build_norm(name, NormOptions::default())?;
        self.push((norm, shape));
        Ok(())
    }

    /// A batch norm and a ReLU.
    pub(crate) fn norm_relu(&mut self, name: &str) -> Result<()> {
        self.norm_relu_with(name, NormOptions::default())
    }

    /// As [`Stack::norm_relu`], with options.
    pub(crate) fn norm_relu_with(&mut self, name: &str, options: NormOptions) -> Result<()> {
        let (norm, shape) = self.build_norm(name, options)?;
        self.push((NormRelu(norm), shape));
        Ok(())
    }

    fn build_norm(&mut self, name: &str, options: NormOptions) -> Result<(BatchNorm, Shape)> {
        self.named(name, |s| BatchNorm::build_with(s.builder, s.shape, options))
    }

    pub(crate) fn relu(&mut self) {
        if !self.layers.take_relu() {
            self.push((Activation::relu(), self.shape));
        }
    }

    pub(crate) fn dropout(&mut self, name: &str, p: f64) -> Result<()> {
        self.named(name, |s| s.noise(NoiseKind::Dropout, p))
    }

    fn noise(&mut self, kind: NoiseKind, amount: f64) -> Result<()> {
        let made = Noise::build(self.builder, self.shape, kind, amount)?;
        self.push(made);
        Ok(())
    }

    /// The largest of windows `[kernel, stride, padding]`.
    pub(crate) fn max_pool(&mut self, name: &str, window: [usize; 3]) -> Result<()> {
        self.max_pool_by(name, square(window))
    }

    /// As [`Stack::max_pool`]; a rest that fills no window gets one.
    pub(crate) fn max_pool_ceil(&mut self, name: &str, window: [usize; 3]) -> Result<()> {
        self.max_pool_by(name, square(window).ceil(true))
    }

    fn max_pool_by(&mut self, name: &str, pool: Pool) -> Result<()> {
        self.named(name, |s| {
            let made = MaxPool2d::build(s.builder, s.shape, pool)?;
            s.push(made);
            Ok(())
        })
    }

    /// The mean of windows `[kernel, stride, padding]`.
    pub(crate) fn avg_pool(&mut self, name: &str, window: [usize; 3]) -> Result<()> {
        self.named(name, |s| {
            let made = AvgPool2d::build(s.builder, s.shape, square(window))?;
            s.push(made);
            Ok(())
        })
    }

    /// Means of `side` by `side` windows that cover any image evenly.
    pub(crate) fn adaptive_avg_pool(&mut self, name: &str, side: usize) -> Result<()> {
        self.named(name, |s| {
            let made = AdaptiveAvgPool2d::build(s.builder, s.shape, [side; 2])?;
            s.push(made);
            Ok(())
        })
    }

    /// Response normalisation with the constants of Krizhevsky et al., 2012: k = 2, n = 5, α = 1e-4, β = 0.75. Ours
    /// divides α by n, theirs does not.
    pub(crate) fn local_response_norm(&mut self, name: &str) -> Result<()> {
        const CHANNELS: usize = 5;
        self.named(name, |s| {
            let constants = [1e-4 * CHANNELS as f64, 0.75, 2.0];
            let made = LocalResponseNorm::build(s.builder, s.shape, CHANNELS, constants)?;
            s.push(made);
            Ok(())
        })
    }

    pub(crate) fn global_avg_pool(&mut self, name: &str) -> Result<()> {
        self.named(name, |s| {
            let made = GlobalAvgPool::build(s.builder, s.shape)?;
            s.push(made);
            Ok(())
        })
    }

    pub(crate) fn flatten(&mut self) {
        let made = Flatten::build(self.builder, self.shape);
        self.push(made);
    }

    /// Joins the channels of parts over this stack's output, whose images must have one size.
    pub(crate) fn branches(&mut self, parts: Vec<(Sequential, Shape)>) -> Result<()> {
        let [h, w] = parts.first().map_or([0, 0], |(_, s)| [s[0], s[1]]);
        if let Some((_, other)) = parts.iter().find(|(_, s)| s.len() != 3 || s[..2] != [h, w]) {
            return Err(self.refuse("concat", format!("its branches give images of {h}x{w} and of {other}")));
        }
        let channels = parts.iter().map(|(_, s)| s[2]).sum();
        let shape = Shape::from([h, w, channels]);
        self.builder.describe("concat", shape, self.builder.next_param(), 0);
        self.push((Branches(parts.into_iter().map(|(layer, _)| layer).collect()), shape));
        Ok(())
    }

    /// Adds what `main` and `shortcut` make of this stack's output; an empty shortcut is the identity.
    pub(crate) fn sum(
        &mut self,
        main: impl FnOnce(&mut Stack<'_>) -> Result<()>,
        shortcut: impl FnOnce(&mut Stack<'_>) -> Result<()>,
    ) -> Result<()> {
        let (main, shape) = self.part(main)?;
        let shortcut = self.fitting(shape, shortcut)?;
        self.push((Sum { main, shortcut }, shape));
        Ok(())
    }

    /// A residual block: `main`, the batch norm `norm`, the sum with `shortcut` and a ReLU. Its γ begins
    /// at 0 when `zero_gamma`, so that the block begins as the identity.
    pub(crate) fn residual(
        &mut self,
        main: impl FnOnce(&mut Stack<'_>) -> Result<()>,
        (norm, zero_gamma): (&str, bool),
        shortcut: impl FnOnce(&mut Stack<'_>) -> Result<()>,
    ) -> Result<()> {
        let (main, shape) = self.part(main)?;
        let from = self.builder.next_param();
        let norm = self.named(norm, |s| BatchNorm::build(s.builder, shape))?.0;
        if zero_gamma {
            self.builder.begin(from, ".weight", Init::Zeros);
        }
        let shortcut = self.fitting(shape, shortcut)?;
        self.push((Residual { main, norm, shortcut }, shape));
        Ok(())
    }

    /// A part that must give `shape`, to be added to another one of that shape.
    fn fitting(
        &mut self,
        shape: Shape,
        build: impl FnOnce(&mut Stack<'_>) -> Result<()>,
    ) -> Result<Sequential> {
        let before = self.builder.description().len();
        let (part, given) = self.part(build)?;
        if given != shape {
            return Err(self.refuse("sum", format!("its branch gives {shape} and its shortcut {given}")));
        }
        // The sum is one with the branch's last layer; only the shortcut's output is not kept.
        if self.builder.description().len() > before {
            self.builder.describe_unkept();
        }
        Ok(part)
    }

    /// A head on this stack's output whose loss counts with `weight` in training.
    pub(crate) fn auxiliary(
        &mut self,
        name: &str,
        weight: f64,
        head: impl FnOnce(&mut Stack<'_>) -> Result<()>,
    ) -> Result<()> {
        self.named(name, |s| {
            let from = s.builder.description().len();
            let (head, _) = s.part(head)?;
            s.builder.describe_training_only(from);
            s.push((Auxiliary { head, weight }, s.shape));
            Ok(())
        })
    }

    /// An error of the layer at this place.
    pub(crate) fn refuse(&self, kind: &str, why: String) -> Error {
        Error::Layer { layer: self.builder.place(kind), input: self.shape, why }
    }

    /// Adds a row's layer under `name`.
    pub(crate) fn row(&mut self, name: &str, row: &Row, classes: usize) -> Result<()> {
        self.named(name, |s| s.build_row(row, classes))
    }

    fn build_row(&mut self, row: &Row, classes: usize) -> Result<()> {
        let (b, input) = (&mut *self.builder, self.shape);
        match *row {
            Row::Prelu { per_channel, init } => {
                let made = Prelu::build(b, input, per_channel, Init::Constant(init as f32))?;
                self.push(made);
            }
            Row::Conv1d(ref c) => self.build_conv(ConvKind::Plain(1), c)?,
            Row::Conv(ref c) => self.build_conv(ConvKind::Plain(2), c)?,
            Row::Conv3d(ref c) => self.build_conv(ConvKind::Plain(3), c)?,
            Row::ConvTranspose1d(ref c) => self.build_conv(ConvKind::Transposed(1), c)?,
            Row::ConvTranspose2d(ref c) => self.build_conv(ConvKind::Transposed(2), c)?,
            Row::ConvTranspose3d(ref c) => self.build_conv(ConvKind::Transposed(3), c)?,
            Row::LocallyConnected { out, kernel, stride, bias, init } => {
                let made = LocallyConnected2d::build(b, input, out, [kernel, stride], bias, init)?;
                self.push(made);
            }
            Row::Linear { out, bias, init } => {
                let made = Linear::build(b, input, out.unwrap_or(classes), bias, init)?;
                self.push(made);
            }
            Row::BatchNorm { eps, momentum, affine } => {
                let made = BatchNorm::build_with(b, input, norm_options(eps, momentum, affine))?;
                self.push(made);
            }
            Row::LayerNorm { axes, eps, affine } => {
                let options = norm_options(eps, None, affine);
                let made = LayerNorm::build(b, input, axes.unwrap_or(1), options)?;
                self.push(made);
            }
            Row::RmsNorm { axes, eps, affine } => {
                let affine = affine.unwrap_or(true);
                let made = RmsNorm::build(b, input, axes.unwrap_or(1), eps, affine)?;
                self.push(made);
            }
            Row::GroupNorm { groups, eps, affine } => {
                let made = GroupNorm::build(b, input, groups, norm_options(eps, None, affine))?;
                self.push(made);
            }
            Row::InstanceNorm { eps, momentum, affine, track_running_stats } => {
                let options = norm_options(eps, momentum, Some(affine));
                let made = InstanceNorm::build(b, input, options, track_running_stats)?;
                self.push(made);
            }
            Row::MaxPool { kernel, stride, padding, ceil } => {
                let made = MaxPool2d::build(b, input, windows(kernel, stride, padding).ceil(ceil))?;
                self.push(made);
            }
            Row::GlobalAvgPool {} => {
                let made = GlobalAvgPool::build(b, input)?;
                self.push(made);
            }
            Row::Dropout { p } => self.noise(NoiseKind::Dropout, p)?,
            Row::ChannelDropout { p } => self.noise(NoiseKind::ChannelDropout, p)?,
            Row::AlphaDropout { p } => self.noise(NoiseKind::AlphaDropout, p)?,
            Row::GaussianNoise { std } => self.noise(NoiseKind::Gaussian, std)?,
            Row::Flatten {} => {
                let made = Flatten::build(b, input);
                self.push(made);
            }
            Row::AvgPool { kernel, stride, padding, ceil, count_include_pad } => {
                let pool = windows(kernel, stride, padding).ceil(ceil).count_include_pad(count_include_pad);
                let made = AvgPool2d::build(b, input, pool)?;
                self.push(made);
            }
            Row::AdaptiveAvgPool { out } => {
                let made = AdaptiveAvgPool2d::build(b, input, out.get())?;
                self.push(made);
            }
            Row::Pad { ref amounts, mode, value } => {
                let made = Pad::build(b, input, amounts, mode.with(value))?;
                self.push(made);
            }
            Row::Upsample { ref size, ref scale, mode, align_corners, antialias } => {
                let to = match (size, scale) {
                    (Some(size), None) => UpsampleTo::Size(size.clone()),
                    (None, Some(scale)) => UpsampleTo::Factor(scale.clone()),
                    _ => return Err(Error::config(b.place("upsample"), "give it one of size and scale")),
                };
                let made = Upsample::build(b, input, &to, mode, [align_corners, antialias])?;
                self.push(made);
            }
            Row::PixelShuffle { factor } => {
                let made = PixelShuffle::build(b, input, factor, false)?;
                self.push(made);
            }
            Row::PixelUnshuffle { factor } => {
                let made = PixelShuffle::build(b, input, factor, true)?;
                self.push(made);
            }
            Row::FractionalMaxPool { ref kernel, ref out, ref ratio } => {
                let to = match (out, ratio) {
                    (Some(out), None) => FractionalTo::Size(out.clone()),
                    (None, Some(ratio)) => FractionalTo::Ratio(ratio.clone()),
                    _ => {
                        return Err(Error::config(
                            b.place("fractional-max-pool"),
                            "give it one of out and ratio",
                        ));
                    }
                };
                let made = FractionalMaxPool::build(b, input, kernel, &to)?;
                self.push(made);
            }
            Row::Lrn { size, alpha, beta, k } => {
                let made = LocalResponseNorm::build(b, input, size, [alpha, beta, k])?;
                self.push(made);
            }
            Row::Recurrent { cell, hidden, layers, bidirectional, dropout, bias, last } => {
                let config = RecurrentConfig { hidden, layers, bidirectional, dropout, bias, last };
                let made = Recurrent::build(b, input, cell.into(), config)?;
                self.push(made);
            }
            Row::Embedding { count, size, padding } => {
                let made = Embedding::build(b, input, [count, size], padding)?;
                self.push(made);
            }
            Row::Relu {} => self.relu(),
            _ => {
                let place = self.builder.place("activation");
                self.push((row.activation(&place)?, input));
            }
        }
        Ok(())
    }
}
