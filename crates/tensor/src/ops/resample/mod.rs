//! Resizing of channels-last sequences, images and volumes (`torch.nn.functional.interpolate`'s semantics): a
//! filter along each axis, whose gradient is the same sums turned around.

use super::boxes::{BoxSum, Boxes, Taps};
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor};

const OP: &str = "interpolate";

/// The most places along an axis: their list has to fit in memory, whatever a configuration asks for.
const MOST: usize = u32::MAX as usize;

/// How values between places are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// The place that the result's lower edge falls into, as PyTorch's `nearest` and OpenCV's.
    Nearest,
    /// The place that the result's middle falls into, as PyTorch's `nearest-exact` and Pillow's.
    NearestExact,
    /// A straight line between two places: linear, bilinear, trilinear.
    Linear,
    /// A cubic curve through four places (Keys, 1981; a = −0.75, with antialiasing −0.5, as PyTorch has it).
    Cubic,
}

/// What an image is resized to, and how.
#[derive(Debug, Clone, Copy)]
pub struct Resample {
    mode: Interpolation,
    to: To,
    align_corners: bool,
    antialias: bool,
}

#[derive(Debug, Clone, Copy)]
enum To {
    Size(Shape),
    /// Factors of so many axes.
    Factors([f64; 3], usize),
}

impl Resample {
    /// To so many places along each of the 1 to 3 axes between samples and channels.
    pub fn to_size(mode: Interpolation, sizes: &[usize]) -> Self {
        Resample { mode, to: To::Size(Shape::new(sizes)), align_corners: false, antialias: false }
    }

    /// By a factor along each axis: ⌊factor · size⌋ places, whose middles lie as the factor says and not as
    /// the rounded size would.
    pub fn by(mode: Interpolation, factors: &[f64]) -> Self {
        let mut all = [1.0; 3];
        all.iter_mut().zip(factors).for_each(|(a, &f)| *a = f);
        Resample { mode, to: To::Factors(all, factors.len()), align_corners: false, antialias: false }
    }

    /// Whether the middles of the corner places of both images lie on one another, instead of the images'
    /// edges. Not with the nearest place.
    pub fn align_corners(self, yes: bool) -> Self {
        Resample { align_corners: yes, ..self }
    }

    /// Whether the filter widens with the step between results when the image shrinks, so that every
    /// place counts (as Pillow does and torchvision's `antialias`). Linear and cubic alone.
    pub fn antialias(self, yes: bool) -> Self {
        Resample { antialias: yes, ..self }
    }

    fn rank(&self) -> usize {
        match self.to {
            To::Size(sizes) => sizes.len(),
            To::Factors(_, axes) => axes,
        }
    }

    /// The number of places along `axis` of `size`, and the factor that was given.
    fn along(&self, axis: usize, size: usize) -> std::result::Result<(usize, Option<f64>), String> {
        let (out, factor) = match self.to {
            To::Size(sizes) => (sizes[axis], None),
            To::Factors(factors, _) => {
                let factor = factors[axis];
                let out = (size as f64 * factor).floor();
                if !(factor > 0.0 && out <= MOST as f64) {
                    return Err(format!("a factor of {factor} on {size} places"));
                }
                (out as usize, Some(factor))
            }
        };
        match size > 0 && (1..=MOST).contains(&out) {
            true => Ok((out, factor)),
            false => Err(format!("{size} places cannot become {out}")),
        }
    }

    /// The sizes that axes of `sizes` get (without samples and channels). Fails as the op does.
    pub fn output(&self, sizes: &[usize]) -> Result<Shape> {
        let lengths = self.lengths(sizes);
        let lengths = lengths.map_err(|why| Error::Invalid { op: OP, shape: sizes.into(), why })?;
        Ok(Shape::new(&lengths.iter().map(|l| l.0).collect::<Vec<_>>()))
    }

    /// What each axis becomes: see [`Resample::along`].
    fn lengths(&self, sizes: &[usize]) -> std::result::Result<Vec<(usize, Option<f64>)>, String> {
        let nearest = matches!(self.mode, Interpolation::Nearest | Interpolation::NearestExact);
        if nearest && (self.align_corners || self.antialias) {
            return Err("align_corners and antialias go with linear and cubic interpolation".into());
        }
        if sizes.len() != self.rank() {
            return Err(format!("{} axes cannot be resized by {}", sizes.len(), self.rank()));
        }
        if !(1..=3).contains(&sizes.len()) {
            return Err(format!("{} axes between samples and channels are not 1 to 3", sizes.len()));
        }
        sizes.iter().enumerate().map(|(axis, &size)| self.along(axis, size)).collect()
    }

    fn axes(&self, sizes: &[usize]) -> std::result::Result<Vec<Taps>, String> {
        let lengths = self.lengths(sizes)?;
        let taps = |(&size, (out, factor)): (&usize, (usize, Option<f64>))| self.taps_of(size, out, factor);
        Ok(sizes.iter().zip(lengths).map(taps).collect())
    }

    /// The weighted places of each of `out` results on an axis of `size`.
    fn taps_of(&self, size: usize, out: usize, factor: Option<f64>) -> Taps {
        let mut taps = Taps::new(size);
        // From result to result on the axis.
        let step = match (self.align_corners, factor) {
            (true, _) if out > 1 => (size - 1) as f64 / (out - 1) as f64,
            (true, _) => 0.0,
            (false, Some(factor)) => 1.0 / factor,
            (false, None) => size as f64 / out as f64,
        };
        let last = size as isize - 1;
        let middle = |o: usize| match self.align_corners {
            true => step * o as f64,
            false => step * (o as f64 + 0.5) - 0.5,
        };
        for o in 0..out {
            match self.mode {
                Interpolation::Nearest | Interpolation::NearestExact => {
                    // In single precision whatever the type, as PyTorch's channels-last kernels do.
                    let half = if self.mode == Interpolation::Nearest { 0.0 } else { 0.5 };
                    let step = factor.map_or_else(|| size as f32 / out as f32, |f| (1.0 / f) as f32);
                    let place = ((o as f32 + half) * step).floor() as usize;
                    taps.push([(place.min(size - 1), 1.0)].into_iter(), 1.0);
                }
                Interpolation::Linear | Interpolation::Cubic if self.antialias => {
                    taps.push(wide(self.mode, o, step, size).into_iter(), 1.0);
                }
                Interpolation::Linear => {
                    let at = middle(o).max(0.0);
                    let low = (at as usize).min(size - 1);
                    let high = (low + 1).min(size - 1);
                    let share = (at - low as f64).clamp(0.0, 1.0);
                    // A whole place is read once, and not with a weight of 0, which infinite numbers would not survive.
                    let both = [(low, 1.0 - share), (high, share)];
                    taps.push(both.into_iter().filter(|w| w.1 != 0.0), 1.0);
                }
                Interpolation::Cubic => {
                    let at = middle(o);
                    let low = (at.floor() as isize).min(last);
                    let share = (at - low as f64).clamp(0.0, 1.0);
                    let places = (-1..3isize).map(|k| {
                        let weight = cubic(share - k as f64, -0.75);
                        ((low + k).clamp(0, last) as usize, weight)
                    });
                    taps.push(places, 1.0);
                }
            }
        }
        taps
    }
}

/// Keys' cubic kernel.
fn cubic(x: f64, a: f64) -> f64 {
    match x.abs() {
        x if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((x - 5.0) * x + 8.0) * x * a - 4.0 * a,
        _ => 0.0,
    }
}

/// Result `o`'s filter, as wide as the step when that is more than one place; the weights add up to 1.
fn wide(mode: Interpolation, o: usize, step: f64, size: usize) -> Vec<(usize, f64)> {
    let (reach, kernel): (f64, fn(f64) -> f64) = match mode {
        Interpolation::Cubic => (2.0, |x| cubic(x, -0.5)),
        _ => (1.0, |x| (1.0 - x.abs()).max(0.0)),
    };
    let stretch = step.max(1.0);
    let (center, reach) = (step * (o as f64 + 0.5), reach * stretch);
    let from = (center - reach + 0.5).max(0.0) as usize;
    let to = ((center + reach + 0.5).max(0.0) as usize).min(size);
    let weights: Vec<f64> = (from..to).map(|i| kernel((i as f64 - center + 0.5) / stretch)).collect();
    let total: f64 = weights.iter().sum();
    (from..to).zip(weights).map(|(i, w)| (i, if total == 0.0 { w } else { w / total })).collect()
}

impl Boxes for Resample {
    fn name(&self) -> &'static str {
        OP
    }

    fn rank(&self) -> usize {
        Resample::rank(self)
    }

    fn taps(&self, x: Shape) -> Result<Vec<Taps>> {
        self.axes(&x[1..x.len() - 1]).map_err(|why| Error::Invalid { op: OP, shape: x, why })
    }

    fn moves(&self) -> bool {
        matches!(self.mode, Interpolation::Nearest | Interpolation::NearestExact)
    }
}

impl Tensor {
    /// `[N, …, C]` resized along the 1 to 3 axes between samples and channels, as `how` says.
    pub fn interpolate(&self, how: &Resample) -> Result<Tensor> {
        apply_one(BoxSum::new(*how), &[self])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_known_without_places_and_absurd_ones_are_refused() {
        let linear = Interpolation::Linear;
        let size = |out: &[usize]| Resample::to_size(linear, out).output(&vec![4; out.len()]);
        assert_eq!(size(&[7, 1 << 31]).unwrap(), [7, 1 << 31].into());
        assert_eq!(Resample::by(linear, &[0.5, 2.5]).output(&[5, 4]).unwrap(), [2, 10].into());
        for out in [&[1_000_000_000_000][..], &[4, 1_000_000_000_000], &[0], &[], &[4; 4]] {
            assert!(size(out).is_err(), "{out:?}");
        }
        for factors in [&[1e12][..], &[f64::NAN], &[], &[1.0; 4]] {
            let sizes = vec![4; factors.len()];
            assert!(Resample::by(linear, factors).output(&sizes).is_err(), "{factors:?}");
        }
    }
}
