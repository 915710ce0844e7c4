//! Which part of an image is seen, and at which size: the rows that move pixels without mixing colours. The first of
//! them are planned before an image is decoded, so that only what is seen of it is decoded and resized.

use phalanx_host::rng::Stream;

use super::Image;
use super::left::{Later, Part};
use crate::picture::{Frame, bilinear, shorter_side};
use crate::{Place, Resample};

/// What a row of this kind does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Geometry {
    /// A random piece of random size and shape, scaled (Szegedy et al., 2015), as torchvision's `RandomResizedCrop`.
    Piece {
        /// The piece's part of the image's area.
        area: [f64; 2],
        /// Natural logarithm of the largest width by height; the least is its inverse.
        ratio: f64,
        /// Height and width; the image's own when left out.
        size: Option<[usize; 2]>,
        antialias: bool,
    },
    /// All of the image, scaled.
    Resize { to: Target, antialias: bool },
    /// A part of that height and width. What is asked for beyond the image is 0.
    Crop { size: [usize; 2], random: bool },
    /// Mirrors along an axis: 0 turns up into down, 1 left into right.
    Flip { p: f64, axis: usize },
}

/// The size that an image gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Target {
    /// Its shorter side; the longer one keeps the proportions.
    Shorter(usize),
    /// Height and width.
    Exact([usize; 2]),
}

impl Target {
    fn of(self, [h, w]: [usize; 2]) -> [usize; 2] {
        match self {
            Target::Shorter(side) => shorter_side(h, w, side),
            Target::Exact(size) => size,
        }
    }
}

/// Places that are tried before the largest piece in the middle is taken.
const TRIES: usize = 10;

/// Top, left, height and width of a piece of an image of height `h` and width `w`.
fn piece(area: [f64; 2], ratio: f64, [h, w]: [usize; 2], stream: &mut Stream) -> [usize; 4] {
    let mut between = |[a, b]: [f64; 2]| a + (b - a) * stream.f64();
    let sizes = (0..TRIES).find_map(|_| {
        let area = between(area) * (h * w) as f64;
        let ratio = between([-ratio, ratio]).exp();
        let (tall, wide) = ((area / ratio).sqrt().round() as usize, (area * ratio).sqrt().round() as usize);
        ((1..=h).contains(&tall) && (1..=w).contains(&wide)).then_some([tall, wide])
    });
    let Some([tall, wide]) = sizes else {
        let most = ratio.exp();
        let tall = h.min(((w as f64) * most).round() as usize).max(1);
        let wide = w.min(((h as f64) * most).round() as usize).max(1);
        return [(h - tall) / 2, (w - wide) / 2, tall, wide];
    };
    let top = stream.below((h - tall + 1) as u64) as usize;
    [top, stream.below((w - wide + 1) as u64) as usize, tall, wide]
}

impl Geometry {
    /// Height and width after it, where they do not depend on the image.
    pub(super) fn size(&self, from: Option<[usize; 2]>) -> Option<[usize; 2]> {
        match self {
            Geometry::Piece { size, .. } => size.or(from),
            Geometry::Resize { to: Target::Exact(size), .. } | Geometry::Crop { size, .. } => Some(*size),
            Geometry::Resize { to, .. } => from.map(|from| to.of(from)),
            Geometry::Flip { .. } => from,
        }
    }

    /// Narrows what is seen; `frame` has come through rows that [`Geometry::follows`] allows before this one.
    pub(super) fn narrow(&self, frame: &mut Frame, stream: &mut Stream) {
        match *self {
            Geometry::Piece { area, ratio, size, antialias } => {
                let [_, _, h, w] = frame.piece;
                frame.piece = piece(area, ratio, [h, w], stream);
                *frame = Frame { antialias, ..frame.resized(size.unwrap_or([h, w])) };
            }
            Geometry::Resize { to, antialias } => {
                let [_, _, h, w] = frame.piece;
                *frame = Frame { antialias, ..frame.resized(to.of([h, w])) };
            }
            Geometry::Crop { size, random } => {
                let take = [0, 1].map(|axis| size[axis].min(frame.place.take[axis]));
                let from = match random {
                    true => [0, 1]
                        .map(|axis| stream.below((frame.place.take[axis] - take[axis] + 1) as u64) as usize),
                    false => Place::middle_of(frame.place.take, take).from,
                };
                frame.place.from = from;
                frame.place.take = take;
                frame.canvas = size;
            }
            Geometry::Flip { p, axis } => frame.mirrored[axis] ^= stream.f64() < p,
        }
    }

    /// Whether it can be planned together with those before it: a piece or a size first, then a crop, then flips.
    pub(super) fn follows(&self, before: &[(u64, Geometry)]) -> bool {
        match self {
            // One of the image's own size is computed in floats, as rows of any place are.
            Geometry::Piece { size: None, .. } => false,
            Geometry::Piece { .. } | Geometry::Resize { .. } => before.is_empty(),
            Geometry::Crop { .. } => {
                before.iter().all(|(_, g)| matches!(g, Geometry::Piece { .. } | Geometry::Resize { .. }))
            }
            Geometry::Flip { .. } => true,
        }
    }

    /// What a random row is in evaluation, where its size must be the same: the middle.
    pub(super) fn in_evaluation(&self) -> Vec<Geometry> {
        let middle = |size| Geometry::Crop { size, random: false };
        match *self {
            Geometry::Piece { size: Some([h, w]), .. } => {
                // 256 for 224.
                let shorter = (h.max(w) * 256 + 112) / 224;
                vec![Geometry::Resize { to: Target::Shorter(shorter), antialias: true }, middle([h, w])]
            }
            Geometry::Crop { size, random: true } => vec![middle(size)],
            _ => Vec::new(),
        }
    }

    /// Whether it only moves whole pixels.
    pub(super) fn moves(&self) -> bool {
        matches!(self, Geometry::Crop { .. } | Geometry::Flip { .. })
    }

    /// The row by itself, on an image in work.
    pub(super) fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        let Some(mut frame) = self.frame(image, stream) else { return };
        let whole = Frame::whole([image.shape[0], image.shape[1]]);
        let (piece, place) = (frame.piece, frame.place);
        if piece != whole.piece || place.size != whole.place.size {
            let Image { shape: [h, w, c], pixels, scratch } = image;
            if frame.antialias {
                let [top, left, tall, wide] = piece;
                let rows = pixels.chunks_exact(*w * *c).skip(top).take(tall);
                let cut: Vec<f32> =
                    rows.flat_map(|row| &row[left * *c..(left + wide) * *c]).copied().collect();
                *scratch = f32::resize(&cut, [tall, wide, *c], place);
            } else {
                bilinear(pixels, [*h, *w, *c], piece, place, scratch);
            }
            std::mem::swap(pixels, scratch);
            [*h, *w] = place.take;
            frame.place = Place::whole(place.take);
        }
        arrange(image, &frame);
    }

    /// The same where [`Geometry::moves`].
    pub(super) fn apply_bytes(&self, image: &mut Image<u8>, stream: &mut Stream) {
        if let Some(frame) = self.frame(image, stream) {
            arrange(image, &frame);
        }
    }

    /// What a device does in its place, if it can.
    pub(super) fn later(&self) -> Option<Later> {
        match self {
            Geometry::Crop { .. } => Some(Later::Crops),
            Geometry::Flip { axis: 1, .. } => Some(Later::Mirrors),
            _ => None,
        }
    }

    /// The same to what a device is to see, where there is a [`Geometry::later`].
    pub(super) fn place(&self, part: &mut Part, stream: &mut Stream) {
        let mut frame = Frame::whole(part.size);
        self.narrow(&mut frame, stream);
        let Frame { place, canvas, mirrored, .. } = frame;
        let around = [0, 1].map(|axis| (canvas[axis] - place.take[axis]) / 2);
        part.cut([0, 1].map(|axis| place.from[axis] as i64 - around[axis] as i64), canvas);
        part.mirrored ^= mirrored[1];
    }

    /// What it makes of an image, unless that has no pixels or stays as it is.
    fn frame<T>(&self, image: &Image<T>, stream: &mut Stream) -> Option<Frame> {
        let [h, w, _] = image.shape;
        if h * w == 0 {
            return None;
        }
        let whole = Frame::whole([h, w]);
        let mut frame = whole.clone();
        self.narrow(&mut frame, stream);
        (frame != whole).then_some(frame)
    }
}

/// Cuts out, pads and mirrors without scaling.
fn arrange<T: Copy + Default>(image: &mut Image<T>, frame: &Frame) {
    let Image { shape: [h, w, c], pixels, scratch } = image;
    let (Place { from, take, .. }, canvas) = (frame.place, frame.canvas);
    if canvas != [*h, *w] || take != canvas {
        scratch.clear();
        scratch.resize(canvas[0] * canvas[1] * *c, T::default());
        let at = [0, 1].map(|axis| (canvas[axis] - take[axis]) / 2);
        let rows = pixels.chunks_exact(*w * *c).skip(from[0]).take(take[0]);
        for (row, to) in rows.zip(scratch.chunks_exact_mut((canvas[1] * *c).max(1)).skip(at[0])) {
            to[at[1] * *c..][..take[1] * *c].copy_from_slice(&row[from[1] * *c..][..take[1] * *c]);
        }
        std::mem::swap(pixels, scratch);
        [*h, *w] = canvas;
    }
    mirror(pixels, image.shape, frame.mirrored);
}

/// Mirrors an image up and down, left and right.
fn mirror<T>(pixels: &mut [T], [h, w, c]: [usize; 3], [vertical, horizontal]: [bool; 2]) {
    if vertical {
        for y in 0..h / 2 {
            let (above, below) = pixels.split_at_mut((h - 1 - y) * w * c);
            above[y * w * c..][..w * c].swap_with_slice(&mut below[..w * c]);
        }
    }
    if horizontal {
        for row in pixels.chunks_exact_mut((w * c).max(1)) {
            for x in 0..w / 2 {
                let (left, right) = row.split_at_mut((w - 1 - x) * c);
                left[x * c..][..c].swap_with_slice(&mut right[..c]);
            }
        }
    }
}
