//! What is done to images between the record and the batch: a table of rows, each with a name, checked
//! parameters and a builder.
//!
//! Images are [H, W, C] and f32 from the first row on, in the units they are stored in; what comes from
//! outside the image is 0 in the units of the row's place in the list. Random numbers are keyed by seed,
//! epoch, sample and row: never by thread, rank or batch.

mod config;
mod imagenet;
mod ops;
#[cfg(test)]
mod tests;

use std::fmt;

use phalanx_host::DType;
use phalanx_host::rng::{Key, Stream};

use crate::{Error, FieldSpec, Result};

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

/// Makes a row's step for images of that kind.
type Build = fn(&[Value], &FieldSpec) -> Result<Box<dyn Step>>;

/// One transform that can be asked for.
pub struct Row {
    /// The name in the configuration.
    pub name: &'static str,
    /// What it does, for people.
    pub help: &'static str,
    /// Whether it draws random numbers; such a row is left out in evaluation.
    pub random: bool,
    /// Its parameters.
    pub params: &'static [Param],
    build: Build,
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
}

impl PartialEq for Transform {
    fn eq(&self, other: &Self) -> bool {
        self.row.name == other.row.name && self.values == other.values
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
        Ok(Transform { row, values })
    }

    /// The transform's row in the table.
    pub fn row(&self) -> &'static Row {
        self.row
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

/// An image in work.
#[derive(Debug, Default)]
struct Image {
    /// [H, W, C].
    shape: [usize; 3],
    pixels: Vec<f32>,
    /// As large as `pixels`, for what cannot be done in place.
    scratch: Vec<f32>,
}

/// A transform made ready for one set's images. It must not change their shape.
trait Step: Send {
    fn apply(&self, image: &mut Image, stream: &mut Stream);

    /// What it does to each value of channel `c`, if that is all that it does.
    fn pointwise(&self, _x: f32, _c: usize) -> Option<f32> {
        None
    }
}

/// All steps from a stored image to the batch.
pub struct Pipeline {
    dtype: DType,
    steps: Vec<(u64, Box<dyn Step>)>,
    image: Image,
    /// When every step is pointwise and pixels are bytes: what becomes of each, channel by channel.
    table: Option<Vec<[f32; 256]>>,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pipeline({} steps, {:?})", self.steps.len(), self.image.shape)
    }
}

impl Pipeline {
    /// The rows that apply (random ones only in training), then the default normalisation unless a row
    /// normalises.
    ///
    /// Fails when `spec` is no image [H, W, C], on parameters that do not fit it, and on rows in an order that makes no
    /// sense.
    pub fn new(transforms: &[Transform], spec: &FieldSpec, training: bool) -> Result<Self> {
        let &[h, w, c] = &spec.shape[..] else {
            return Err(Error::field(
                &spec.name,
                format!("an image has shape [H, W, C], not {:?}", spec.shape),
            ));
        };
        let mut all = transforms.to_vec();
        match all.iter().filter(|t| t.row.name == ops::NORMALISE).count() {
            0 => all.push(Transform::new(ops::NORMALISE, &[])?),
            1 => {}
            _ => return Err(Error::usage("loader.transforms", "`normalise` is there twice")),
        }
        let mut behind = all.iter().skip_while(|t| t.row.name != ops::NORMALISE);
        if let Some(t) = behind.find(|t| ops::BEFORE_NORMALISE.contains(&t.row.name)) {
            return Err(Error::usage(
                format!("transform {}", t.row.name),
                "it must stand before `normalise`",
            ));
        }
        let mut steps = Vec::new();
        for (i, t) in all.iter().enumerate().filter(|(_, t)| training || !t.row.random) {
            steps.push((i as u64, (t.row.build)(&t.values, spec)?));
        }
        let through = |x: u8, c: usize| {
            steps.iter().try_fold(f32::from(x), |x, (_, step): &(u64, Box<dyn Step>)| step.pointwise(x, c))
        };
        let channel = |c: usize| {
            let mut table = [0.0; 256];
            for (x, to) in (0..=u8::MAX).zip(&mut table) {
                *to = through(x, c)?;
            }
            Some(table)
        };
        let table = if spec.dtype == DType::U8 { (0..c).map(channel).collect() } else { None };
        let image = Image { shape: [h, w, c], ..Image::default() };
        Ok(Pipeline { dtype: spec.dtype, steps, image, table })
    }

    /// Takes one image from its stored bytes to `out`; both have the schema's size. `key` names the
    /// sample's random stream in this epoch; `None` in evaluation.
    pub fn run(&mut self, bytes: &[u8], key: Option<Key>, out: &mut [f32]) {
        if let Some(table) = &self.table {
            if let [table] = &table[..] {
                out.iter_mut().zip(bytes).for_each(|(to, &x)| *to = table[usize::from(x)]);
                return;
            }
            for (to, from) in out.chunks_exact_mut(table.len()).zip(bytes.chunks_exact(table.len())) {
                to.iter_mut().zip(from).zip(table).for_each(|((to, &x), t)| *to = t[usize::from(x)]);
            }
            return;
        }
        self.image.pixels.clear();
        match self.dtype {
            DType::U8 => self.image.pixels.extend(bytes.iter().map(|&x| f32::from(x))),
            _ => {
                let floats = bytes.as_chunks::<4>().0;
                self.image.pixels.extend(floats.iter().map(|&x| f32::from_ne_bytes(x)));
            }
        }
        for (i, step) in &self.steps {
            let mut stream = key.unwrap_or(Key::new(0)).derive(*i, 0).stream();
            step.apply(&mut self.image, &mut stream);
        }
        out.copy_from_slice(&self.image.pixels);
    }
}
