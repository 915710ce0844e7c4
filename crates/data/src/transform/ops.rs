//! The rows of the transform table.

use phalanx_host::rng::Stream;

use super::colour::{ColorJitter, Grey, Lighting};
use super::geometry::{Geometry, Target};
use super::left::{Later, Part};
use super::moves::{Erase, Translate};
use super::signal::{Noise, PitchShift, TimeShift};
use super::warp::{Affine, Rotate};
use super::{Image, Make, Param, Row, Step, Value};
use crate::{Error, FieldSpec, Normalise, Result};

/// The row that is added when none of its name is asked for.
pub(super) const NORMALISE: &str = "normalise";

/// The rows that work in the units of the set, which [`NORMALISE`] takes away.
pub(super) const BEFORE_NORMALISE: [&str; 2] = ["color-jitter", "lighting"];

/// The rows that give images a size.
pub(super) const SIZES: [&str; 4] = ["random-resized-crop", "resize", "centre-crop", "random-crop"];

const fn number(name: &'static str, default: f64, max: f64, whole: bool, help: &'static str) -> Param {
    Param { name, default: Some(default), min: 0.0, max, whole, list: false, help }
}

const fn chosen(name: &'static str, min: f64, max: f64, help: &'static str) -> Param {
    Param { name, default: None, min, max, whole: false, list: false, help }
}

const fn size(help: &'static str) -> Param {
    Param { whole: true, list: true, ..chosen("size", 1.0, 65535.0, help) }
}

const fn often(default: f64) -> Param {
    number("p", default, 1.0, false, "how often")
}

/// A ratio of two sides, of which the larger is named.
const fn ratio(default: f64) -> Param {
    let help = "the most that width is of height, or height of width";
    Param { min: 1.0, ..number("ratio", default, 100.0, false, help) }
}

const ANTIALIAS_WITH_SIZE: &str = "true: all pixels under an output pixel count, as in Pillow, the default with `size`; false: the nearest two";

const ANTIALIAS: &str = "true: all pixels under an output pixel count, as in Pillow; false: the nearest two";

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
        make: Make::Any(normalise),
    },
    Row {
        name: "random-resized-crop",
        help: "cuts a random piece out and scales it, bilinear; in evaluation the middle",
        random: true,
        params: &[
            size("the size it gets: one number or [height, width]; default: the image's own"),
            number("scale_min", 0.08, 1.0, false, "the least part of the image's area"),
            number("scale_max", 1.0, 1.0, false, "the greatest part of it"),
            ratio(4.0 / 3.0),
            Param { whole: true, ..chosen("antialias", 0.0, 1.0, ANTIALIAS_WITH_SIZE) },
        ],
        make: Make::Image(random_resized_crop),
    },
    Row {
        name: "resize",
        help: "scales the image, bilinear",
        random: false,
        params: &[
            size("its shorter side, or [height, width]"),
            number("antialias", 1.0, 1.0, true, ANTIALIAS),
        ],
        make: Make::Image(resize),
    },
    Row {
        name: "centre-crop",
        help: "cuts the middle out, with zeros around an image that is smaller",
        random: false,
        params: &[size("its size: one number or [height, width]")],
        make: Make::Image(|v, _| crop("centre-crop", v, false)),
    },
    Row {
        name: "random-crop",
        help: "cuts a random part out, with zeros around an image that is smaller; in evaluation the middle",
        random: true,
        params: &[size("its size: one number or [height, width]")],
        make: Make::Image(|v, _| crop("random-crop", v, true)),
    },
    Row {
        name: "pad-and-crop",
        help: "pads with zeros on all sides and cuts the image's size out at a random place",
        random: true,
        params: &[number("padding", 4.0, 4096.0, true, "pixels on each side")],
        make: Make::Image(|v, _| Ok(Box::new(Translate::pixels(at(v, 0))))),
    },
    Row {
        name: "flip",
        help: "mirrors left and right",
        random: true,
        params: &[often(0.5)],
        make: Make::Image(|v, _| Ok(look(Geometry::Flip { p: at(v, 0), axis: 1 }))),
    },
    Row {
        name: "vertical-flip",
        help: "mirrors up and down",
        random: true,
        params: &[often(0.5)],
        make: Make::Image(|v, _| Ok(look(Geometry::Flip { p: at(v, 0), axis: 0 }))),
    },
    Row {
        name: "rotate",
        help: "turns about the centre by a random angle, bilinear, zeros from outside",
        random: true,
        params: &[number("degrees", 15.0, 180.0, false, "the most, to either side")],
        make: Make::Image(|v, _| Ok(Box::new(Rotate { radians: at(v, 0).to_radians() }))),
    },
    Row {
        name: "translate",
        help: "shifts by a random whole number of pixels along each axis, zeros from outside",
        random: true,
        params: &[
            Param { whole: true, ..chosen("pixels", 0.0, 4096.0, "the most, either way") },
            chosen("fraction", 0.0, 1.0, "the most, as a part of height and width; default 0.1"),
        ],
        make: Make::Image(Translate::build),
    },
    Row {
        name: "affine",
        help: "turns, shifts, scales and slants about the centre at random, bilinear, zeros from outside",
        random: true,
        params: &[
            number("degrees", 15.0, 180.0, false, "the most that it turns, to either side"),
            number("fraction", 0.1, 1.0, false, "the most that it shifts, as a part of height and width"),
            Param { min: 0.01, ..number("scale_min", 0.9, 100.0, false, "the least factor of its size") },
            Param { min: 0.01, ..number("scale_max", 1.1, 100.0, false, "the greatest") },
            number("shear", 0.0, 80.0, false, "degrees that it slants at most, to either side"),
        ],
        make: Make::Image(Affine::build),
    },
    Row {
        name: "color-jitter",
        help: "changes brightness, contrast, saturation and hue by random factors, in random order; before normalise",
        random: true,
        params: &[
            number("brightness", 0.4, 1.0, false, "the most that its factor is off 1"),
            number("contrast", 0.4, 1.0, false, "likewise"),
            number("saturation", 0.4, 1.0, false, "likewise"),
            number("hue", 0.0, 0.5, false, "the most that colours turn, as a part of the circle"),
        ],
        make: Make::Image(ColorJitter::build),
    },
    Row {
        name: "lighting",
        help: "shifts colours at random along the principal components of ImageNet's; before normalise",
        random: true,
        params: &[number("deviation", 0.1, 10.0, false, "standard deviation, in those of the components")],
        make: Make::Image(Lighting::build),
    },
    Row {
        name: "grey",
        help: "takes the colours away and keeps three channels",
        random: true,
        params: &[often(0.1)],
        make: Make::Image(Grey::build),
    },
    Row {
        name: "random-erasing",
        help: "fills a random rectangle (Zhong et al., 2017)",
        random: true,
        params: &[
            often(0.5),
            number("scale_min", 0.02, 1.0, false, "the least part of the image's area"),
            number("scale_max", 0.33, 1.0, false, "the greatest"),
            ratio(10.0 / 3.0),
            Param { min: f64::MIN, ..number("value", 0.0, f64::MAX, false, "what it is filled with") },
        ],
        make: Make::Image(Erase::build),
    },
    Row {
        name: "log1p",
        help: "ln(1 + x); what is below 0 counts as 0",
        random: false,
        params: &[],
        make: Make::Any(|_, _| Ok(Box::new(LogOnePlus))),
    },
    Row {
        name: "gaussian-noise",
        help: "adds a random number to each value, in the units of its place in the list",
        random: true,
        params: &[number("std", 0.1, f64::MAX, false, "its standard deviation")],
        make: Make::Any(|v, _| Ok(Box::new(GaussianNoise { std: at(v, 0) }))),
    },
    Row {
        name: "time-shift",
        help: "shifts a signal [T, C] in time at random, with zeros behind it",
        random: true,
        params: &[number("fraction", 0.1, 1.0, false, "the most, either way, as a part of its length")],
        make: Make::Signal(|v, _| Ok(Box::new(TimeShift { fraction: at(v, 0) }))),
    },
    Row {
        name: "pitch-shift",
        help: "plays a signal [T, C] faster or slower at random, about its middle, with zeros around it",
        random: true,
        params: &[number("semitones", 2.0, 24.0, false, "the most, up or down")],
        make: Make::Signal(|v, _| Ok(Box::new(PitchShift { semitones: at(v, 0) }))),
    },
    Row {
        name: "noise",
        help: "adds white noise to a signal [T, C], as loud as a random ratio to the signal says",
        random: true,
        params: &[
            Param { min: -100.0, ..number("snr_min", 10.0, 200.0, false, "the least ratio, in decibels") },
            Param { min: -100.0, ..number("snr_max", 40.0, 200.0, false, "the greatest") },
        ],
        make: Make::Signal(Noise::build),
    },
    Row {
        name: super::mix::MIXUP,
        help: "mixes each image and its target with another's of its batch (Zhang et al., 2017)",
        random: true,
        params: &[
            Param {
                min: 1e-3,
                ..number("alpha", 0.2, 100.0, false, "both parameters of the beta distribution")
            },
            often(1.0),
        ],
        make: Make::Batch,
    },
    Row {
        name: super::mix::CUTMIX,
        help: "puts a rectangle of another image of the batch into each, and mixes the targets (Yun et al., 2019)",
        random: true,
        params: &[
            Param {
                min: 1e-3,
                ..number("alpha", 1.0, 100.0, false, "both parameters of the beta distribution")
            },
            often(1.0),
        ],
        make: Make::Batch,
    },
];

/// The number at place `i`; 0 when it is none, which the table rules out.
pub(super) fn at(values: &[Value], i: usize) -> f64 {
    match values.get(i) {
        Some(Value::Number(x)) => *x,
        _ => 0.0,
    }
}

/// Two numbers of which the first must not be above the second.
pub(super) fn range(row: &str, names: [&str; 2], [min, max]: [f64; 2]) -> Result<[f64; 2]> {
    if min <= max {
        return Ok([min, max]);
    }
    let problem = format!("{} {min} is above {} {max}", names[0], names[1]);
    Err(Error::usage(format!("transform {row}"), problem))
}

/// Height and width of a `size`, and whether one number was given; `None` when it was left out.
fn sides(row: &str, value: Option<&Value>) -> Result<Option<([usize; 2], bool)>> {
    match value {
        Some(Value::Number(x)) => Ok(Some(([*x as usize; 2], true))),
        Some(Value::List(list)) => match list[..] {
            [h, w] => Ok(Some(([h as usize, w as usize], false))),
            _ => {
                let problem = format!("has {} numbers; it is one number or [height, width]", list.len());
                Err(Error::usage(format!("transform {row}, size"), problem))
            }
        },
        _ => Ok(None),
    }
}

fn needed(row: &str, value: Option<&Value>) -> Result<([usize; 2], bool)> {
    let problem = "is missing: one number or [height, width]";
    sides(row, value)?.ok_or_else(|| Error::usage(format!("transform {row}, size"), problem))
}

fn random_resized_crop(values: &[Value], _: &FieldSpec) -> Result<Box<dyn Step>> {
    let row = "random-resized-crop";
    let area = range(row, ["scale_min", "scale_max"], [at(values, 1), at(values, 2)])?;
    let size = sides(row, values.first())?.map(|(size, _)| size);
    let antialias = if values.get(4) == Some(&Value::Auto) { size.is_some() } else { at(values, 4) > 0.0 };
    let ratio = at(values, 3).ln();
    Ok(look(Geometry::Piece { area, ratio, size, antialias }))
}

fn resize(values: &[Value], _: &FieldSpec) -> Result<Box<dyn Step>> {
    let to = match needed("resize", values.first())? {
        ([side, _], true) => Target::Shorter(side),
        (size, false) => Target::Exact(size),
    };
    Ok(look(Geometry::Resize { to, antialias: at(values, 1) > 0.0 }))
}

fn crop(row: &str, values: &[Value], random: bool) -> Result<Box<dyn Step>> {
    Ok(look(Geometry::Crop { size: needed(row, values.first())?.0, random }))
}

/// A step that says where pixels come from.
pub(super) fn look(geometry: Geometry) -> Box<dyn Step> {
    Box::new(Look(geometry))
}

struct Look(Geometry);

impl Step for Look {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        self.0.apply(image, stream);
    }

    fn geometry(&self) -> Option<&Geometry> {
        Some(&self.0)
    }

    fn on_bytes(&self) -> bool {
        self.0.moves()
    }

    fn apply_bytes(&self, image: &mut Image<u8>, stream: &mut Stream) {
        self.0.apply_bytes(image, stream);
    }

    fn later(&self) -> Option<Later> {
        self.0.later()
    }

    fn place(&self, part: &mut Part, stream: &mut Stream) {
        self.0.place(part, stream);
    }
}

fn normalise(values: &[Value], spec: &FieldSpec) -> Result<Box<dyn Step>> {
    let channels = spec.shape.last().copied().unwrap_or(1);
    let per_channel = |i: usize, default: f64, name: &str| match &values[i] {
        Value::Auto => Ok(vec![default as f32; channels]),
        Value::Number(x) => Ok(vec![*x as f32; channels]),
        Value::List(list) if list.len() == channels => Ok(list.iter().map(|&x| x as f32).collect()),
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
    Ok(Box::new(Normalise { scale, mean, std }))
}

impl Step for Normalise {
    fn apply(&self, image: &mut Image<f32>, _: &mut Stream) {
        for pixel in image.pixels.chunks_exact_mut(self.mean.len().max(1)) {
            pixel.iter_mut().enumerate().for_each(|(c, x)| *x = self.one(*x, c));
        }
    }

    fn pointwise(&self, x: f32, c: usize) -> Option<f32> {
        Some(self.one(x, c))
    }

    fn normalise(&self) -> Option<&Normalise> {
        Some(self)
    }
}

struct LogOnePlus;

impl LogOnePlus {
    fn one(x: f32) -> f32 {
        f64::from(x.max(0.0)).ln_1p() as f32
    }
}

impl Step for LogOnePlus {
    fn apply(&self, image: &mut Image<f32>, _: &mut Stream) {
        image.pixels.iter_mut().for_each(|x| *x = Self::one(*x));
    }

    fn pointwise(&self, x: f32, _: usize) -> Option<f32> {
        Some(Self::one(x))
    }
}

struct GaussianNoise {
    std: f64,
}

impl Step for GaussianNoise {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        image.pixels.iter_mut().for_each(|x| *x += (self.std * stream.normal()) as f32);
    }
}
