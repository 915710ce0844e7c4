//! What is done to samples between the record and the batch: a table of rows, each with a name, checked
//! parameters and a builder.
//!
//! Images are [H, W, C]. Rows that say where pixels come from are planned first, so that of an image file only what is
//! seen is decoded; they and those that move whole pixels work on bytes, the others on f32, in the units that the set
//! is stored in. What comes from outside the image is 0 in the units of the row's place in the list. Random numbers are
//! keyed by seed, epoch, sample and row: never by thread, rank or batch.

mod colour;
mod config;
mod geometry;
mod left;
#[cfg(test)]
mod left_tests;
mod mix;
mod moves;
mod ops;
mod pipeline;
mod signal;
#[cfg(test)]
mod sized_tests;
#[cfg(test)]
mod tests;
mod warp;

use std::fmt;
use std::sync::Arc;

use geometry::Geometry;
use left::{Later, Part};
pub use mix::{Mix, Mixing};
use phalanx_host::rng::Stream;
pub use pipeline::{Output, Pipeline, Pixels, Signal, check_fields, delivered};

use crate::{Error, FieldSpec, Normalise, Result, picture};

/// A parameter's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Not given: the row chooses, usually by the set's schema.
    Auto,
    /// One number.
    Number(f64),
    /// One number a channel.
    List(Vec<f64>),
}

/// One parameter of a row.
#[derive(Debug)]
pub struct Param {
    /// The key in the configuration.
    pub name: &'static str,
    /// Its value when left out; without one the row chooses ([`Value::Auto`]).
    pub default: Option<f64>,
    /// The least value allowed.
    pub min: f64,
    /// The greatest value allowed.
    pub max: f64,
    /// Whether it must be a whole number.
    pub whole: bool,
    /// Whether it may be a list, one number a channel.
    pub list: bool,
    /// What it means, for people.
    pub help: &'static str,
}

/// Makes a row's step for samples of that kind.
type Build = fn(&[Value], &FieldSpec) -> Result<Box<dyn Step>>;

/// One transform that can be asked for.
pub struct Row {
    /// The name in the configuration.
    pub name: &'static str,
    /// What it does, for people.
    pub help: &'static str,
    /// Whether it draws random numbers; such a row is left out in evaluation, but for its size.
    pub random: bool,
    /// Its parameters.
    pub params: &'static [Param],
    make: Make,
}

/// What a row works on.
#[derive(Clone, Copy)]
enum Make {
    /// Images.
    Image(Build),
    /// Arrays [T, C] of f32: signals of T points in time.
    Signal(Build),
    /// Both.
    Any(Build),
    /// The images of a batch, of which the loader plans pairs ([`Mixing`]).
    Batch,
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row").field("name", &self.name).field("params", &self.params).finish_non_exhaustive()
    }
}

/// All transforms there are.
pub fn rows() -> &'static [Row] {
    ops::ROWS
}

/// A row with its parameters: one entry of `loader.transforms`, such as `{ name = "flip", p = 0.5 }`.
#[derive(Debug, Clone)]
pub struct Transform {
    row: &'static Row,
    values: Vec<Value>,
    field: Option<Arc<str>>,
}

impl PartialEq for Transform {
    fn eq(&self, other: &Self) -> bool {
        self.row.name == other.row.name && self.values == other.values && self.field == other.field
    }
}

impl Transform {
    /// The transform of that name with these parameters; those left out keep their defaults.
    ///
    /// Fails on unknown names (with the nearest known one) and on values out of range.
    pub fn new(name: &str, params: &[(&str, Value)]) -> Result<Self> {
        let row = rows().iter().find(|r| r.name == name).ok_or_else(|| {
            let names: Vec<_> = rows().iter().map(|r| r.name).collect();
            Error::usage("loader.transforms", unknown("transform", name, &names))
        })?;
        let mut values: Vec<_> =
            row.params.iter().map(|p| p.default.map_or(Value::Auto, Value::Number)).collect();
        for (key, value) in params {
            let place = row.params.iter().position(|p| p.name == *key).ok_or_else(|| {
                let names: Vec<_> = row.params.iter().map(|p| p.name).collect();
                Error::usage(format!("transform {name}"), unknown("parameter", key, &names))
            })?;
            row.params[place]
                .check(value)
                .map_err(|problem| Error::usage(format!("transform {name}, {key}"), problem))?;
            values[place] = value.clone();
        }
        Ok(Transform { row, values, field: None })
    }

    /// The same for the field of that name alone: `field = "…"` in the configuration.
    pub fn on(self, field: impl Into<Arc<str>>) -> Self {
        Transform { field: Some(field.into()), ..self }
    }

    /// The field that it is for; all images where it says nothing, or all signals where it is for those.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// The transform's row in the table.
    pub fn row(&self) -> &'static Row {
        self.row
    }

    /// Whether it gives images a size: what a picture of the model's size needs no more.
    pub fn sizes(&self) -> bool {
        ops::SIZES.contains(&self.row.name)
    }

    /// The value of the parameter of that name.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.row.params.iter().position(|p| p.name == name).map(|i| &self.values[i])
    }
}

impl Param {
    fn check(&self, value: &Value) -> std::result::Result<(), String> {
        let numbers = match value {
            Value::Auto => return Ok(()),
            Value::Number(x) => std::slice::from_ref(x),
            Value::List(list) if self.list => list,
            Value::List(_) => return Err("must be one number".into()),
        };
        for x in numbers {
            if !(self.min..=self.max).contains(x) {
                return Err(format!("is {x}, and must be in {}", self.range()));
            }
            if self.whole && x.fract() != 0.0 {
                return Err(format!("is {x}, and must be a whole number"));
            }
        }
        Ok(())
    }

    fn range(&self) -> String {
        let below = if self.max == f64::MAX { "∞)".to_owned() } else { format!("{}]", self.max) };
        match self.min {
            f64::MIN => format!("(-∞, {below}"),
            f64::MIN_POSITIVE => format!("(0, {below}"),
            min => format!("[{min}, {below}"),
        }
    }
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match crate::open::nearest(name, known) {
        Some(near) => format!("unknown {what} {name:?}; did you mean {near:?}?"),
        None => format!("unknown {what} {name:?}; there are {}", known.join(", ")),
    }
}

/// A sample in work: an image, or a signal [T, C] as [T, 1, C].
#[derive(Debug, Default)]
struct Image<T> {
    /// [H, W, C].
    shape: [usize; 3],
    pixels: Vec<T>,
    /// For what cannot be done in place.
    scratch: Vec<T>,
}

impl<T> Image<T> {
    /// Gives back what one very large image has taken.
    fn let_go(&mut self) {
        [&mut self.pixels, &mut self.scratch].into_iter().for_each(picture::let_go);
    }
}

/// A transform made ready for one field of a set.
trait Step: Send {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream);

    /// What it does to each value of channel `c`, if that is all that it does.
    fn pointwise(&self, _x: f32, _c: usize) -> Option<f32> {
        None
    }

    /// Where its pixels come from, if that is all that it says.
    fn geometry(&self) -> Option<&Geometry> {
        None
    }

    /// Whether [`Step::apply_bytes`] does the same to images of bytes.
    fn on_bytes(&self) -> bool {
        false
    }

    fn apply_bytes(&self, _: &mut Image<u8>, _: &mut Stream) {}

    /// What a device does in its place, if it can: then [`Step::place`] tells with the same draws what that is.
    fn later(&self) -> Option<Later> {
        None
    }

    fn place(&self, _: &mut Part, _: &mut Stream) {}

    /// What it does to each value, if a device can do that later.
    fn normalise(&self) -> Option<&Normalise> {
        None
    }
}
