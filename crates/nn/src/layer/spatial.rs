//! Padding, resizing and fractional pooling of samples [T, C], [H, W, C] or [D, H, W, C].

use phalanx_tensor::{DType, FractionalPool, Interpolation, PadMode, Resample, Shape, Tensor};
use serde::{Deserialize, Serialize};

use super::{Layer, refused};
use crate::{Builder, Error, Forward, Result};

/// A number for each axis between samples and channels: one for all, or a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "one number is wanted, or a list of one for each axis")]
pub enum PerAxis<T> {
    /// The same for all axes.
    All(T),
    /// One an axis, outermost first.
    Each(Vec<T>),
}

impl<T: Copy> PerAxis<T> {
    /// What was written.
    pub(crate) fn list(&self) -> &[T] {
        match self {
            PerAxis::All(n) => std::slice::from_ref(n),
            PerAxis::Each(each) => each,
        }
    }

    /// The numbers for so many axes; a list is taken as it is.
    pub(crate) fn get(&self, axes: usize) -> Vec<T> {
        match self {
            PerAxis::All(n) => vec![*n; axes],
            PerAxis::Each(each) => each.clone(),
        }
    }
}

/// The sizes of a sample's axes without channels.
fn places(b: &Builder, kind: &str, input: Shape) -> Result<Vec<usize>> {
    match input.len() {
        2..=4 => Ok(input[..input.len() - 1].to_vec()),
        _ => {
            let why = "it takes sequences, images or volumes, channels last".to_owned();
            Err(Error::Layer { layer: b.place(kind), input, why })
        }
    }
}

/// The sample's shape with other sizes before its channels.
fn resized(input: Shape, sizes: &[usize]) -> Shape {
    Shape::new(&[sizes, &input[input.len() - 1..]].concat())
}

/// How a configuration names what padding holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PadName {
    /// The value of the row, 0 unless told otherwise.
    #[default]
    Constant,
    /// The places mirrored at the border.
    Reflect,
    /// The border.
    Replicate,
    /// The places from the other end.
    Circular,
}

impl PadName {
    /// The mode with the row's value.
    pub fn with(self, value: f64) -> PadMode {
        match self {
            PadName::Constant => PadMode::Constant(value),
            PadName::Reflect => PadMode::Reflect,
            PadName::Replicate => PadMode::Replicate,
            PadName::Circular => PadMode::Circular,
        }
    }
}

/// Padding of each axis but the channels (`torch.nn.ZeroPad2d`, `ReflectionPad2d` and so on).
#[derive(Debug)]
pub struct Pad {
    amounts: Vec<[isize; 2]>,
    mode: PadMode,
}

impl Pad {
    /// `amounts` are places before and after; negative ones crop.
    pub fn build(
        b: &mut Builder,
        input: Shape,
        amounts: &PerAxis<PadAmount>,
        mode: PadMode,
    ) -> Result<(Self, Shape)> {
        let sizes = places(b, "pad", input)?;
        let amounts: Vec<[isize; 2]> = amounts.get(sizes.len()).into_iter().map(PadAmount::get).collect();
        let out = mode.output(&sizes, &amounts).map_err(refused(b.place("pad"), input))?;
        let shape = resized(input, &out);
        b.describe("pad", shape, b.next_param(), 0);
        Ok((Pad { amounts, mode }, shape))
    }
}

/// Padding of one axis: one number for both ends, or `[before, after]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PadAmount {
    /// Both ends alike.
    Both(isize),
    /// Before, after.
    Ends([isize; 2]),
}

impl PadAmount {
    fn get(self) -> [isize; 2] {
        match self {
            PadAmount::Both(n) => [n; 2],
            PadAmount::Ends(ends) => ends,
        }
    }
}

impl Layer for Pad {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok(x.pad(1, &self.amounts, self.mode)?)
    }
}

/// How a configuration names an interpolation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpsampleMode {
    /// The place that the result's lower edge falls into.
    #[default]
    Nearest,
    /// The place that the result's middle falls into.
    NearestExact,
    /// A line between two places along each axis.
    Linear,
    /// A curve through four places along each axis.
    Cubic,
}

impl UpsampleMode {
    fn get(self) -> Interpolation {
        match self {
            UpsampleMode::Nearest => Interpolation::Nearest,
            UpsampleMode::NearestExact => Interpolation::NearestExact,
            UpsampleMode::Linear => Interpolation::Linear,
            UpsampleMode::Cubic => Interpolation::Cubic,
        }
    }
}

/// What images are resized to.
#[derive(Debug, Clone, PartialEq)]
pub enum UpsampleTo {
    /// So many places along each axis.
    Size(PerAxis<usize>),
    /// So many times as many, rounded down.
    Factor(PerAxis<f64>),
}

/// Resizing (`torch.nn.Upsample`), to more or to fewer places.
#[derive(Debug)]
pub struct Upsample(Resample);

impl Upsample {
    /// Exactly one of `size` and `scale` must be there; `corners` and `antialias` as [`Resample`] has them.
    pub fn build(
        b: &mut Builder,
        input: Shape,
        to: &UpsampleTo,
        mode: UpsampleMode,
        [corners, antialias]: [bool; 2],
    ) -> Result<(Self, Shape)> {
        let sizes = places(b, "upsample", input)?;
        let how = match to {
            UpsampleTo::Size(size) => Resample::to_size(mode.get(), &size.get(sizes.len())),
            UpsampleTo::Factor(factor) => Resample::by(mode.get(), &factor.get(sizes.len())),
        };
        let how = how.align_corners(corners).antialias(antialias);
        let shape = resized(input, &how.output(&sizes).map_err(refused(b.place("upsample"), input))?);
        b.describe("upsample", shape, b.next_param(), 0);
        Ok((Upsample(how), shape))
    }
}

impl Layer for Upsample {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok(x.interpolate(&self.0)?)
    }
}

/// Channels to places (`torch.nn.PixelShuffle`), or back.
#[derive(Debug)]
pub struct PixelShuffle {
    factor: usize,
    back: bool,
}

impl PixelShuffle {
    /// Takes samples [H, W, C]; `back` makes channels of places.
    pub fn build(b: &mut Builder, input: Shape, factor: usize, back: bool) -> Result<(Self, Shape)> {
        let kind = if back { "pixel-unshuffle" } else { "pixel-shuffle" };
        let name = b.place(kind);
        let [h, w, c] = super::image(&name, input)?;
        let square = factor.checked_mul(factor).filter(|&f| f > 0);
        let shape = match square {
            Some(f) if back && h % factor == 0 && w % factor == 0 => [h / factor, w / factor, c * f],
            Some(f) if !back && c % f == 0 => [h * factor, w * factor, c / f],
            _ => {
                let what = if back { "height and width are" } else { "the number of channels is" };
                let why = format!(
                    "{what} not a multiple of its factor {factor}{}",
                    if back { "" } else { " squared" }
                );
                return Err(Error::Layer { layer: name, input, why });
            }
        };
        b.describe(kind, shape.into(), b.next_param(), 0);
        Ok((PixelShuffle { factor, back }, shape.into()))
    }
}

impl Layer for PixelShuffle {
    fn forward(&self, _: &Forward, x: &Tensor) -> Result<Tensor> {
        Ok(if self.back { x.pixel_unshuffle(self.factor)? } else { x.pixel_shuffle(self.factor)? })
    }
}

/// The largest number of windows that begin at random steps (Graham, Fractional Max-Pooling, 2014;
/// `torch.nn.FractionalMaxPool2d`). In evaluation the steps are those of the middle sample, so that a result
/// does not depend on chance.
#[derive(Debug)]
pub struct FractionalMaxPool {
    pool: FractionalPool,
    axes: usize,
}

/// How many windows a fractional pooling makes.
#[derive(Debug, Clone, PartialEq)]
pub enum FractionalTo {
    /// So many along each axis.
    Size(PerAxis<usize>),
    /// This share of the places, rounded down.
    Ratio(PerAxis<f64>),
}

impl FractionalMaxPool {
    /// Windows of `kernel` places.
    pub fn build(
        b: &mut Builder,
        input: Shape,
        kernel: &PerAxis<usize>,
        to: &FractionalTo,
    ) -> Result<(Self, Shape)> {
        const KIND: &str = "fractional-max-pool";
        let sizes = places(b, KIND, input)?;
        let axes = sizes.len();
        let out = match to {
            FractionalTo::Size(out) => out.get(axes),
            FractionalTo::Ratio(ratio) => {
                sizes.iter().zip(ratio.get(axes)).map(|(&size, r)| (size as f64 * r) as usize).collect()
            }
        };
        let pool = FractionalPool::new(&kernel.get(axes), &out);
        let shape = resized(input, &pool.output(&sizes).map_err(refused(b.place(KIND), input))?);
        b.describe(KIND, shape, b.next_param(), 0);
        Ok((FractionalMaxPool { pool, axes }, shape))
    }
}

impl Layer for FractionalMaxPool {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        // Drawn in evaluation, too, as dropout does.
        let mut stream = cx.next_key().stream();
        let shape = x.shape();
        let planes = [shape[0], shape[shape.len() - 1], self.axes];
        let count = planes.iter().product();
        let samples: Vec<f32> = match cx.training() {
            true => (0..count).map(|_| stream.f32()).collect(),
            false => vec![0.5; count],
        };
        let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let samples = Tensor::from_slice(&samples, planes, x.device())?.to(dtype)?;
        Ok(x.fractional_max_pool(&self.pool, &samples)?.0)
    }
}
