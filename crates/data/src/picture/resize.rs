//! Resizing as Pillow does it (and torchvision with it): every output pixel is the mean of the input pixels
//! under a triangle, which is as wide as an output pixel where the image becomes smaller. So nothing is missed
//! ("antialiased"). Bytes are computed in whole numbers of 22 bits, rows first, and rounded between the two
//! passes, which makes the result Pillow's own. Source: the description of `Image.resize` with
//! `Resampling.BILINEAR` in Pillow's documentation, "Filters comparison".
//!
//! Only the part of the resized image that is asked for is computed: a crop of a line 100,000 pixels long that
//! would become a hundred times as long costs no more than any other.

use std::ops::Range;

/// What of a resized image is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The resized image's height and width.
    pub size: [usize; 2],
    /// The first row and column wanted.
    pub from: [usize; 2],
    /// Rows and columns wanted.
    pub take: [usize; 2],
}

impl Place {
    /// All of an image resized to `size`, height and width.
    pub fn whole(size: [usize; 2]) -> Self {
        Place { size, from: [0, 0], take: size }
    }

    /// The middle `side` x `side` of an image whose shorter side becomes `shorter`; torchvision's
    /// `Resize(shorter)` and `CenterCrop(side)`. `side` is at most `shorter`.
    pub fn middle(height: usize, width: usize, shorter: usize, side: usize) -> Self {
        let size = shorter_side(height, width, shorter);
        Place::middle_of(size, [side.min(shorter); 2])
    }

    /// The middle `take` of an image resized to `size`; `take` is not larger.
    pub fn middle_of(size: [usize; 2], take: [usize; 2]) -> Self {
        Place { size, from: [0, 1].map(|axis| middle(size[axis] - take[axis])), take }
    }
}

/// The size, height and width, of an image whose shorter side becomes `shorter`; the longer one is rounded down,
/// as torchvision's `Resize` does.
pub fn shorter_side(height: usize, width: usize, shorter: usize) -> [usize; 2] {
    let longer = |long: usize, short: usize| (shorter as u128 * long as u128 / short.max(1) as u128) as usize;
    match height <= width {
        true => [shorter, longer(width, height)],
        false => [longer(height, width), shorter],
    }
}

/// Half of `room`, to the even number where there are two: Python's `round`, which torchvision's centre crop uses.
fn middle(room: usize) -> usize {
    let half = room / 2;
    half + (room & half & 1)
}

/// The input pixels that make an output pixel, and their weights.
#[derive(Debug)]
struct Taps {
    first: usize,
    weights: Vec<f64>,
}

/// The taps of the output pixels `wanted`, when `from` pixels become `to`.
fn taps(from: usize, to: usize, wanted: Range<usize>) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let wide = scale.max(1.0);
    let of = |x: usize| {
        let centre = (x as f64 + 0.5) * scale;
        let first = ((centre - wide + 0.5) as isize).max(0) as usize;
        let last = ((centre + wide + 0.5) as usize).min(from);
        let weight = |i: usize| (1.0 - ((i as f64 + 0.5 - centre) / wide).abs()).max(0.0);
        let mut weights: Vec<f64> = (first..last).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        if sum != 0.0 {
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        Taps { first, weights }
    };
    wanted.map(of).collect()
}

/// A type of pixels that can be resized.
pub trait Resample: Copy + Default {
    /// A tap's weight as it is computed with.
    type Weight: Copy;
    #[doc(hidden)]
    fn weight(w: f64) -> Self::Weight;
    #[doc(hidden)]
    fn sum(pixels: impl Iterator<Item = Self>, weights: &[Self::Weight]) -> Self;

    /// The part `place` of an image [height, width, channels], resized: [rows, columns, channels].
    fn resize(pixels: &[Self], [height, width, channels]: [usize; 3], place: Place) -> Vec<Self> {
        let [rows, columns] = [0, 1].map(|axis| {
            let wanted = place.from[axis]..place.from[axis] + place.take[axis];
            taps([height, width][axis], place.size[axis], wanted)
        });
        let convert = |taps: &[Taps]| -> Vec<(usize, Vec<Self::Weight>)> {
            taps.iter().map(|t| (t.first, t.weights.iter().map(|&w| Self::weight(w)).collect())).collect()
        };
        // Only the input rows that some output row needs.
        let first = rows.iter().map(|t| t.first).min().unwrap_or(0);
        let last = rows.iter().map(|t| t.first + t.weights.len()).max().unwrap_or(0);
        let input = &pixels[first * width * channels..last * width * channels];
        let kept = place.take[1] * channels;
        // An axis that stays as it is is copied: the taps would give the same.
        let mut middle = Vec::with_capacity((last - first) * kept);
        let columns = convert(&columns);
        for row in input.chunks_exact((width * channels).max(1)) {
            if place.size[1] == width {
                middle.extend_from_slice(&row[place.from[1] * channels..][..kept]);
                continue;
            }
            for (x, weights) in &columns {
                let taken = &row[x * channels..];
                middle.extend(
                    (0..channels).map(|c| Self::sum(taken[c..].iter().copied().step_by(channels), weights)),
                );
            }
        }
        if place.size[0] == height {
            middle.truncate(place.take[0] * kept);
            return middle;
        }
        let mut out = Vec::with_capacity(place.take[0] * kept);
        for (y, weights) in convert(&rows) {
            let taken = &middle[(y - first) * kept..];
            out.extend((0..kept).map(|x| Self::sum(taken[x..].iter().copied().step_by(kept), &weights)));
        }
        out
    }
}

/// Bits of a byte's weights behind the point.
const BITS: u32 = 32 - 8 - 2;

impl Resample for u8 {
    type Weight = i32;

    fn weight(w: f64) -> i32 {
        // Weights are never negative.
        (0.5 + w * f64::from(1 << BITS)) as i32
    }

    fn sum(pixels: impl Iterator<Item = u8>, weights: &[i32]) -> u8 {
        let sum = pixels.zip(weights).fold(1 << (BITS - 1), |sum, (x, w)| sum + i32::from(x) * w);
        (sum >> BITS).clamp(0, 255) as u8
    }
}

impl Resample for f32 {
    type Weight = f64;

    fn weight(w: f64) -> f64 {
        w
    }

    fn sum(pixels: impl Iterator<Item = f32>, weights: &[f64]) -> f32 {
        pixels.zip(weights).fold(0.0, |sum, (x, w)| sum + f64::from(x) * w) as f32
    }
}
