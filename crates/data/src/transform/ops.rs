//! The rows of the transform table.

use phalanx_host::rng::Stream;

use super::imagenet::{ColorJitter, Lighting, RandomResizedCrop};
use super::{Image, Param, Row, Step, Value};
use crate::{Error, FieldSpec, Result};

/// The row that is added when none of its name is asked for.
pub(super) const NORMALISE: &str = "normalise";

/// The rows that work in the units of the set, which [`NORMALISE`] takes away.
pub(super) const BEFORE_NORMALISE: [&str; 2] = ["color-jitter", "lighting"];

const fn number(name: &'static str, default: f64, max: f64, whole: bool, help: &'static str) -> Param {
    Param { name, default: Some(default), min: 0.0, max, whole, list: false, help }
}

const fn chosen(name: &'static str, min: f64, max: f64, help: &'static str) -> Param {
    Param { name, default: None, min, max, whole: false, list: false, help }
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: NORMALISE,
        help: "(x · scale − mean) / std",
        random: false,
        params: &[
            chosen("scale", f64::MIN_POSITIVE, f64::MAX, "default: maps the set's largest value to 1"),
            Param { list: true, ..chosen("mean", f64::MIN, f64::MAX, "after scaling; default 0") },
            Param { list: true, ..chosen("std", f64::MIN_POSITIVE, f64::MAX, "after scaling; default 1") },
        ],
        build: Normalise::build,
    },
    Row {
        name: "pad-and-crop",
        help: "pads with zeros on all sides and cuts the image's size out at a random place",
        random: true,
        params: &[number("padding", 4.0, 4096.0, true, "pixels on each side")],
        build: |v, _| Ok(Box::new(Translate { x: at(v, 0) as i64, y: at(v, 0) as i64 })),
    },
    Row {
        name: "flip",
        help: "mirrors left and right",
        random: true,
        params: &[number("p", 0.5, 1.0, false, "how often")],
        build: |v, _| Ok(Box::new(Flip { p: at(v, 0) })),
    },
    Row {
        name: "rotate",
        help: "turns about the centre by a random angle, bilinear, zeros from outside",
        random: true,
        params: &[number("degrees", 15.0, 180.0, false, "the most, to either side")],
        build: |v, _| Ok(Box::new(Rotate { radians: at(v, 0).to_radians() })),
    },
    Row {
        name: "translate",
        help: "shifts by a random whole number of pixels along each axis, zeros from outside",
        random: true,
        params: &[
            Param { whole: true, ..chosen("pixels", 0.0, 4096.0, "the most, either way") },
            chosen("fraction", 0.0, 1.0, "the most, as a part of height and width; default 0.1"),
        ],
        build: Translate::build,
    },
    Row {
        name: "random-resized-crop",
        help: "cuts a random piece out and scales it to the image's size, bilinear",
        random: true,
        params: &[
            number("scale_min", 0.08, 1.0, false, "the least part of the image's area"),
            number("scale_max", 1.0, 1.0, false, "the greatest part of it"),
            Param {
                min: 1.0,
                ..number(
                    "ratio",
                    4.0 / 3.0,
                    100.0,
                    false,
                    "the most that width is of height, or height of width",
                )
            },
        ],
        build: RandomResizedCrop::build,
    },
    Row {
        name: "color-jitter",
        help: "changes brightness, contrast and saturation by random factors, in random order; before normalise",
        random: true,
        params: &[
            number("brightness", 0.4, 1.0, false, "the most that its factor is off 1"),
            number("contrast", 0.4, 1.0, false, "likewise"),
            number("saturation", 0.4, 1.0, false, "likewise"),
        ],
        build: ColorJitter::build,
    },
    Row {
        name: "lighting",
        help: "shifts colours at random along the principal components of ImageNet's; before normalise",
        random: true,
        params: &[number("deviation", 0.1, 10.0, false, "standard deviation, in those of the components")],
        build: Lighting::build,
    },
];

/// The number at place `i`; 0 when it is none, which the table rules out.
pub(super) fn at(values: &[Value], i: usize) -> f64 {
    match values.get(i) {
        Some(Value::Number(x)) => *x,
        _ => 0.0,
    }
}

struct Normalise {
    scale: f32,
    /// One (mean, std) a channel.
    channels: Vec<(f32, f32)>,
}

impl Normalise {
    fn build(values: &[Value], spec: &FieldSpec) -> Result<Box<dyn Step>> {
        let channels = spec.shape.last().copied().unwrap_or(1);
        let per_channel = |i: usize, default: f64, name: &str| match &values[i] {
            Value::Auto => Ok(vec![default; channels]),
            Value::Number(x) => Ok(vec![*x; channels]),
            Value::List(list) if list.len() == channels => Ok(list.clone()),
            Value::List(list) => Err(Error::usage(
                format!("transform {NORMALISE}, {name}"),
                format!("has {} numbers for images of {channels} channels", list.len()),
            )),
        };
        let scale = match &values[0] {
            Value::Number(x) => *x as f32,
            _ => 1.0 / spec.max,
        };
        let (mean, std) = (per_channel(1, 0.0, "mean")?, per_channel(2, 1.0, "std")?);
        let channels = mean.into_iter().zip(std).map(|(m, s)| (m as f32, s as f32)).collect();
        Ok(Box::new(Normalise { scale, channels }))
    }

    fn one(&self, x: f32, c: usize) -> f32 {
        let (mean, std) = self.channels[c];
        (x * self.scale - mean) / std
    }
}

impl Step for Normalise {
    fn apply(&self, image: &mut Image, _: &mut Stream) {
        for pixel in image.pixels.chunks_exact_mut(self.channels.len()) {
            pixel.iter_mut().enumerate().for_each(|(c, x)| *x = self.one(*x, c));
        }
    }

    fn pointwise(&self, x: f32, c: usize) -> Option<f32> {
        Some(self.one(x, c))
    }
}

struct Flip {
    p: f64,
}

impl Step for Flip {
    fn apply(&self, image: &mut Image, stream: &mut Stream) {
        if stream.f64() >= self.p {
            return;
        }
        let [_, w, c] = image.shape;
        for row in image.pixels.chunks_exact_mut(w * c) {
            for x in 0..w / 2 {
                let (left, right) = row.split_at_mut((w - 1 - x) * c);
                left[x * c..][..c].swap_with_slice(&mut right[..c]);
            }
        }
    }
}

/// A random shift by at most `x` and `y` pixels. Padding by p and cropping at a random place is the
/// same as a shift by at most p.
struct Translate {
    x: i64,
    y: i64,
}

impl Translate {
    fn build(values: &[Value], spec: &FieldSpec) -> Result<Box<dyn Step>> {
        let part = |of: usize, fraction: f64| (of as f64 * fraction).round() as i64;
        let (y, x) = match (&values[0], &values[1]) {
            (Value::Number(_), Value::Number(_)) => {
                return Err(Error::usage("transform translate", "takes `pixels` or `fraction`, not both"));
            }
            (Value::Number(pixels), _) => (*pixels as i64, *pixels as i64),
            (_, Value::Number(f)) => (part(spec.shape[0], *f), part(spec.shape[1], *f)),
            _ => (part(spec.shape[0], 0.1), part(spec.shape[1], 0.1)),
        };
        Ok(Box::new(Translate { x, y }))
    }
}

impl Step for Translate {
    fn apply(&self, image: &mut Image, stream: &mut Stream) {
        let mut draw = |most: i64| stream.below(2 * most as u64 + 1) as i64 - most;
        let (dy, dx) = (draw(self.y), draw(self.x));
        if (dy, dx) == (0, 0) {
            return;
        }
        let [h, w, c] = image.shape;
        image.scratch.clear();
        image.scratch.resize(image.pixels.len(), 0.0);
        // The columns that stay inside: from `from` in the old image to `to` in the new one.
        let kept = w.saturating_sub(dx.unsigned_abs() as usize) * c;
        let (from, to) = ((-dx).max(0) as usize * c, dx.max(0) as usize * c);
        for y in 0..h {
            let source = y as i64 - dy;
            if (0..h as i64).contains(&source) && kept > 0 {
                let old = &image.pixels[source as usize * w * c..][from..from + kept];
                image.scratch[y * w * c..][to..to + kept].copy_from_slice(old);
            }
        }
        std::mem::swap(&mut image.pixels, &mut image.scratch);
    }
}

struct Rotate {
    radians: f64,
}

impl Step for Rotate {
    fn apply(&self, image: &mut Image, stream: &mut Stream) {
        let angle = (2.0 * stream.f64() - 1.0) * self.radians;
        if angle == 0.0 {
            return;
        }
        let (sin, cos) = angle.sin_cos();
        rotate(image, sin as f32, cos as f32);
    }
}

/// The next whole number below; `f32::floor` is a library call on the oldest processors.
#[inline(always)]
fn floor(x: f32) -> i64 {
    let cut = x as i64;
    cut - i64::from((cut as f32) > x)
}

/// Turns an image about its centre, counter-clockwise as it is seen (y points down).
pub(super) fn rotate(image: &mut Image, sin: f32, cos: f32) {
    let [h, w, c] = image.shape;
    let (cx, cy) = ((w as f32 - 1.0) / 2.0, (h as f32 - 1.0) / 2.0);
    image.scratch.clear();
    let (pixels, scratch) = (&image.pixels, &mut image.scratch);
    let value = |x: i64, y: i64, channel: usize| {
        let inside = (0..w as i64).contains(&x) && (0..h as i64).contains(&y);
        if inside { pixels[(y as usize * w + x as usize) * c + channel] } else { 0.0 }
    };
    for y in 0..h {
        for x in 0..w {
            let (dx, dy) = (x as f32 - cx, y as f32 - cy);
            // Where this pixel comes from.
            let (sx, sy) = (cos * dx - sin * dy + cx, sin * dx + cos * dy + cy);
            let (x0, y0) = (floor(sx), floor(sy));
            let (fx, fy) = (sx - x0 as f32, sy - y0 as f32);
            let mix = |[a, b, c, d]: [f32; 4]| {
                let (top, bottom) = (a * (1.0 - fx) + b * fx, c * (1.0 - fx) + d * fx);
                top * (1.0 - fy) + bottom * fy
            };
            if (0..w as i64 - 1).contains(&x0) && (0..h as i64 - 1).contains(&y0) {
                // All four neighbours are inside.
                let above = &pixels[(y0 as usize * w + x0 as usize) * c..][..2 * c];
                let below = &pixels[((y0 as usize + 1) * w + x0 as usize) * c..][..2 * c];
                scratch.extend((0..c).map(|k| mix([above[k], above[k + c], below[k], below[k + c]])));
            } else {
                scratch.extend((0..c).map(|k| {
                    let (x1, y1) = (x0 + 1, y0 + 1);
                    mix([value(x0, y0, k), value(x1, y0, k), value(x0, y1, k), value(x1, y1, k)])
                }));
            }
        }
    }
    std::mem::swap(&mut image.pixels, &mut image.scratch);
}
