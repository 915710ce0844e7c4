//! From a decoded piece of an image of bytes to what is wanted of it: resized, cropped, padded, mirrored, with memory
//! that is used again for every image.

use std::ops::Range;

use super::resize::{BITS, Place, Resample, Taps};
use super::simd::{self, Avx2, SLACK, Weights};

/// What of an image is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Top, left, height and width of the piece of the image that is looked at.
    pub piece: [usize; 4],
    /// To which size that piece is scaled, and what is taken of it.
    pub place: Place,
    /// Height and width of what is delivered: at least `place.take`, which is put into its middle; the rest is 0.
    pub canvas: [usize; 2],
    /// Whether up and down, left and right are exchanged.
    pub mirrored: [bool; 2],
    /// Whether all pixels under an output pixel count where the piece becomes smaller, as Pillow has it, or the two
    /// nearest along each axis.
    pub antialias: bool,
}

impl Frame {
    /// An image of that height and width as it is.
    pub(crate) fn whole([h, w]: [usize; 2]) -> Self {
        let (piece, place) = ([0, 0, h, w], Place::whole([h, w]));
        Frame { piece, place, canvas: [h, w], mirrored: [false; 2], antialias: false }
    }

    /// The same piece scaled to `size`.
    pub(crate) fn resized(&self, size: [usize; 2]) -> Self {
        Frame { place: Place::whole(size), canvas: size, ..self.clone() }
    }

    /// How many times smaller an image may be decoded, of 1, 2, 4 and 8, so that the piece has at least the size that it
    /// gets.
    pub(crate) fn shrink(&self) -> usize {
        let fits = |s: &usize| [0, 1].iter().all(|&axis| self.piece[2 + axis] >= s * self.place.size[axis]);
        [8, 4, 2].into_iter().find(fits).unwrap_or(1)
    }
}

/// One axis of a plan.
#[derive(Debug, Default)]
struct Axis {
    /// The first input pixel of each output pixel, counted from the window's first.
    first: Vec<usize>,
    weights: Weights,
    /// Whether pixels are copied.
    copied: bool,
    exact: Taps,
}

impl Axis {
    /// Plans one axis and returns the first and the number of input pixels that are needed, counted from the piece's
    /// first. The piece is `length` pixels from `start` on, of which `pixels` whole ones exist.
    fn plan(
        &mut self,
        (start, length, pixels): (f64, f64, usize),
        (to, from, take): (usize, usize, usize),
        antialias: bool,
        mirrored: bool,
    ) -> (usize, usize) {
        self.first.clear();
        self.weights.all.clear();
        self.copied = start == 0.0 && length == to as f64 && pixels == to;
        if self.copied {
            self.weights.taps = 1;
            self.first.extend(0..take);
            self.weights.all.resize(take, 1 << BITS);
            if mirrored {
                self.first.reverse();
            }
            self.weights.prepare(&self.first);
            return (from, take);
        }
        self.exact.plan((start, length, pixels), to, from..from + take, antialias);
        let Range { start: first, end: last } = self.exact.range();
        let most = self.exact.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        self.weights.taps = most;
        let (firsts, weights) = (&mut self.first, &mut self.weights.all);
        let mut put = |(at, own): (usize, &[f64])| {
            // So that all have as many, zeros are added behind, or before where the window ends.
            let begin = at.min(last - most);
            firsts.push(begin - first);
            let (before, from) = (at - begin, weights.len());
            weights.resize(from + most, 0);
            for (to, w) in weights[from + before..].iter_mut().zip(own) {
                *to = <u8 as Resample>::weight(*w);
            }
        };
        match mirrored {
            true => self.exact.iter().rev().for_each(&mut put),
            false => self.exact.iter().for_each(&mut put),
        }
        self.weights.prepare(&self.first);
        (first, last - first)
    }
}

/// The piece of a [`Frame`] in the pixels of an image that may be smaller than the frame's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Area {
    /// Top, left, height and width of the whole pixels that the piece touches.
    pub bounds: [usize; 4],
    /// Where the piece begins within them.
    start: [f64; 2],
    /// Its height and width.
    length: [f64; 2],
}

impl Area {
    /// The piece of `frame` where the image is decoded `shrink` times smaller, to a height and width of `size`.
    pub(crate) fn of(frame: &Frame, shrink: usize, size: [usize; 2]) -> Self {
        let mut area = Area { bounds: [0; 4], start: [0.0; 2], length: [0.0; 2] };
        for (axis, side) in size.into_iter().enumerate() {
            let (from, length) = (frame.piece[axis], frame.piece[2 + axis]);
            let first = from / shrink;
            area.bounds[axis] = first;
            area.bounds[2 + axis] = (from + length).div_ceil(shrink).min(side) - first;
            area.start[axis] = (from % shrink) as f64 / shrink as f64;
            area.length[axis] = length as f64 / shrink as f64;
        }
        area
    }
}

/// Resizes, crops, pads and mirrors. What it computes is bit for bit [`u8::resize`](super::Resample) of the piece.
#[derive(Debug)]
pub(crate) struct Framer {
    rows: Axis,
    columns: Axis,
    middle: Vec<u8>,
    avx2: Option<Avx2>,
}

impl Default for Framer {
    fn default() -> Self {
        Framer { rows: Axis::default(), columns: Axis::default(), middle: Vec::new(), avx2: Avx2::detect() }
    }
}

impl Framer {
    /// One that computes without vectors.
    #[cfg(test)]
    pub(crate) fn portable() -> Self {
        Framer { avx2: None, ..Framer::default() }
    }

    /// Plans `frame`: which rows and columns (top, left, height, width) of the image that `area` is in are needed.
    pub(crate) fn plan(&mut self, frame: &Frame, area: &Area) -> [usize; 4] {
        let Place { size, from, take } = frame.place;
        let mut window = [0; 4];
        for (axis, plan) in [&mut self.rows, &mut self.columns].into_iter().enumerate() {
            let input = (area.start[axis], area.length[axis], area.bounds[2 + axis]);
            let wanted = (size[axis], from[axis], take[axis]);
            let (first, count) = plan.plan(input, wanted, frame.antialias, frame.mirrored[axis]);
            window[axis] = area.bounds[axis] + first;
            window[2 + axis] = count;
        }
        window
    }

    /// Makes what was planned out of the window's pixels: `height` rows of `columns` pixels of `channels` bytes that begin
    /// `stride` bytes apart; what `pixels` has behind them may be anything. `out` is the frame's canvas.
    pub(crate) fn run(
        &mut self,
        frame: &Frame,
        pixels: &[u8],
        ([height, columns], stride, channels): ([usize; 2], usize, usize),
        out: &mut [u8],
    ) {
        let [tall, wide] = frame.place.take;
        // What is mirrored is the canvas: of an odd number of zeros the odd one changes sides.
        let at = [0, 1].map(|axis| {
            let around = frame.canvas[axis] - frame.place.take[axis];
            if frame.mirrored[axis] { around - around / 2 } else { around / 2 }
        });
        if frame.canvas != frame.place.take {
            out.fill(0);
        }
        let kept = wide * channels;
        if kept == 0 || tall == 0 || columns == 0 {
            return;
        }
        let out = out.chunks_exact_mut(frame.canvas[1] * channels).skip(at[0]).take(tall);
        let out = out.map(|row| &mut row[at[1] * channels..][..kept]);
        let straight = self.columns.copied && !frame.mirrored[1];
        let (source, pitch) = if straight {
            (pixels, stride)
        } else {
            self.middle.clear();
            // Vectors write some bytes past a pixel.
            self.middle.resize(height * kept + SLACK, 0);
            let Axis { first, weights, .. } = &self.columns;
            for y in 0..height {
                let to = &mut self.middle[y * kept..][..kept + SLACK];
                simd::along(self.avx2, &pixels[y * stride..], channels, first, weights, to);
            }
            (&self.middle[..height * kept], kept)
        };
        let Axis { first, weights, copied, .. } = &self.rows;
        for ((to, &first), weights) in out.zip(first).zip(weights.all.chunks_exact(weights.taps.max(1))) {
            match copied {
                true => to.copy_from_slice(&source[first * pitch..][..kept]),
                false => simd::across(self.avx2, &source[first * pitch..], pitch, weights, to),
            }
        }
    }
}
