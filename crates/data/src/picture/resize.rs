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

/// The input pixels that make each output pixel, and their weights.
#[derive(Debug, Default)]
pub(super) struct Taps {
    firsts: Vec<usize>,
    /// Where each one's weights end in `weights`.
    ends: Vec<usize>,
    weights: Vec<f64>,
}

impl Taps {
    /// The taps of the output pixels `wanted`, when `length` pixels from `start` on become `to`; `pixels` whole ones
    /// exist. Without antialiasing the triangle is as wide as an input pixel.
    pub(super) fn plan(
        &mut self,
        (start, length, pixels): (f64, f64, usize),
        to: usize,
        wanted: Range<usize>,
        antialias: bool,
    ) {
        self.firsts.clear();
        self.ends.clear();
        self.weights.clear();
        let scale = length / to as f64;
        let wide = if antialias { scale.max(1.0) } else { 1.0 };
        for x in wanted {
            let centre = start + (x as f64 + 0.5) * scale;
            let first = ((centre - wide + 0.5) as isize).max(0) as usize;
            let last = ((centre + wide + 0.5) as usize).min(pixels);
            let begin = self.weights.len();
            let weight = |i: usize| (1.0 - ((i as f64 + 0.5 - centre) / wide).abs()).max(0.0);
            self.weights.extend((first..last).map(weight));
            let weights = &mut self.weights[begin..];
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            self.firsts.push(first);
            self.ends.push(self.weights.len());
        }
    }

    /// The first input pixel and the weights of each output pixel.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, &[f64])> {
        (0..self.firsts.len()).map(|i| {
            let begin = i.checked_sub(1).map_or(0, |before| self.ends[before]);
            (self.firsts[i], &self.weights[begin..self.ends[i]])
        })
    }

    /// The input pixels that some output pixel needs.
    pub(super) fn range(&self) -> Range<usize> {
        let first = self.firsts.iter().copied().min().unwrap_or(0);
        first..self.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(0)
    }
}

/// For each of `wanted` of `out` places the two of `size` (from `from` on) that it lies between and the second one's
/// weight: pixels are areas, so that the first pixel's middle is at ½.
fn between(from: usize, size: usize, out: usize, wanted: Range<usize>) -> Vec<(usize, usize, f32)> {
    let one = |i: usize| {
        let at = ((i as f64 + 0.5) * size as f64 / out as f64 - 0.5).clamp(0.0, (size - 1) as f64);
        let low = at as usize;
        (from + low, from + (low + 1).min(size - 1), (at - low as f64) as f32)
    };
    wanted.map(one).collect()
}

/// The part `place` of a piece `[top, left, height, width]` of an image [height, width, channels], scaled without
/// antialiasing: between the two nearest pixels along each axis.
pub(crate) fn bilinear(
    pixels: &[f32],
    [_, w, c]: [usize; 3],
    [top, left, tall, wide]: [usize; 4],
    Place { size, from, take }: Place,
    out: &mut Vec<f32>,
) {
    let columns = between(left, wide, size[1], from[1]..from[1] + take[1]);
    out.clear();
    for (above, below, down) in between(top, tall, size[0], from[0]..from[0] + take[0]) {
        let row = |y: usize| &pixels[y * w * c..(y + 1) * w * c];
        let (above, below) = (row(above), row(below));
        for &(a, b, across) in &columns {
            let mix = |row: &[f32], k: usize| {
                let (a, b) = (row[a * c + k], row[b * c + k]);
                a + (b - a) * across
            };
            out.extend((0..c).map(|k| {
                let (x, y) = (mix(above, k), mix(below, k));
                x + (y - x) * down
            }));
        }
    }
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
            let size = [height, width][axis];
            let mut taps = Taps::default();
            taps.plan((0.0, size as f64, size), place.size[axis], wanted, true);
            taps
        });
        let convert = |taps: &Taps| -> Vec<(usize, Vec<Self::Weight>)> {
            taps.iter()
                .map(|(first, weights)| (first, weights.iter().map(|&w| Self::weight(w)).collect()))
                .collect()
        };
        // Only the input rows that some output row needs.
        let Range { start: first, end: last } = rows.range();
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
pub(super) const BITS: u32 = 32 - 8 - 2;

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
