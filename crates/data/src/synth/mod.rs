//! Sets that are computed instead of read: procedural textures in the shape of ImageNet, for measuring and testing at a
//! size that nobody has to download.
//!
//! A class is a ground (waves of a direction, a frequency and a sharpness, and noise of several octaves) with shapes on
//! it (a family, a number, a size, a filling); see `look.rs`. An image has its own place, size, turn, colours,
//! light, noise and things that do not belong. So a linear classifier fails and a convolutional network
//! learns. A class is a pure function of (seed, class), an image one of (seed, split, class, index): neither the number
//! of images nor who computes them is an input, and training and validation draw from separate streams.

mod list;
mod look;
mod noise;
mod paint;
mod shape;
#[cfg(test)]
mod tests;

pub(crate) use list::import;
use look::{Draw, Look, Place};

use crate::{Codec, Error, FieldSpec, Picture, Record, Result, Schema, Source};

/// The version of the generator: whatever changes a pixel counts it up.
const VERSION: u32 = 1;
/// The most classes; each costs some bytes of memory.
const MOST_CLASSES: u64 = 100_000;
/// The longest side of an image.
const LONGEST: usize = 8192;

/// How a synthetic set's images are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynthCodec {
    /// JPEG files of this quality, 1 to 100.
    Jpeg(u8),
    /// Pixels, all of one size.
    Raw,
}

/// A synthetic set.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthConfig {
    /// The number of classes. The images of a split are spread over them evenly.
    pub classes: u64,
    /// Images to train on.
    pub images: u64,
    /// Images to validate on.
    pub val: u64,
    /// Rows and columns.
    pub size: [usize; 2],
    /// By which part the sides of an image vary, 0 to 0.5; if they do, a fifth of the images is upright instead.
    pub vary: f32,
    /// How images are stored.
    pub codec: SynthCodec,
    /// Another seed makes other classes and other images.
    pub seed: u64,
}

impl SynthConfig {
    /// Fails with [`Error::Usage`] on what is no set.
    pub fn check(&self) -> Result<()> {
        let [height, width] = self.size;
        let refuse = |what: &str, problem: String| Err(Error::usage(what, problem));
        if !(1..=MOST_CLASSES).contains(&self.classes) {
            return refuse("--classes", format!("is {}; 1..={MOST_CLASSES} is possible", self.classes));
        }
        if self.images == 0 {
            return refuse("--images", "is 0; a set has at least one image to train on".into());
        }
        if !(8..=LONGEST).contains(&height) || !(8..=LONGEST).contains(&width) {
            return refuse("--size", format!("is {width}x{height}; a side has 8..={LONGEST} pixels"));
        }
        if !(0.0..=0.5).contains(&self.vary) {
            return refuse("--vary", format!("is {}; it must be in 0..=0.5", self.vary));
        }
        match self.codec {
            SynthCodec::Jpeg(quality) if !(1..=100).contains(&quality) => {
                refuse("--quality", format!("is {quality}; it must be in 1..=100"))
            }
            SynthCodec::Raw if self.vary > 0.0 => {
                refuse("--vary", format!("is {}; stored as pixels, images have one size", self.vary))
            }
            _ => Ok(()),
        }
    }
}

/// One split of a synthetic set, computed when it is read. It needs the memory of its classes alone.
#[derive(Debug)]
pub struct Synth {
    name: String,
    schema: Schema,
    config: SynthConfig,
    val: bool,
    looks: Vec<Look>,
}

impl Synth {
    /// The images to train on, or those to validate on.
    ///
    /// Fails with [`Error::Usage`] on what is no set.
    pub fn new(config: &SynthConfig, val: bool) -> Result<Self> {
        config.check()?;
        let looks: Vec<Look> = (0..config.classes).map(|class| Look::of(config.seed, class)).collect();
        let name = |(class, look): (usize, &Look)| format!("{class:04} {}", look.family.name());
        let classes = looks.iter().enumerate().map(name).collect();
        let [height, width] = config.size;
        let image = FieldSpec {
            variable: config.codec != SynthCodec::Raw,
            ..FieldSpec::image([height, width, 3], 255.0)
        };
        // What varies is told by its bound: an upright image is as high as others are wide.
        let longest = (height.max(width) as f32 * (1.0 + config.vary) + 1.0) as usize;
        let shape = if config.vary > 0.0 { vec![longest, longest, 3] } else { image.shape };
        let fields = vec![FieldSpec { shape, ..image }, FieldSpec::label()];
        let (split, seed) = (if val { "val" } else { "train" }, config.seed);
        let name = format!("synth {seed} ({split})");
        Ok(Synth { name, schema: Schema { fields, classes }, config: config.clone(), val, looks })
    }

    /// Image `id` is one of this class, and the class's image of this index.
    fn place(&self, id: u64) -> Result<Place> {
        let SynthConfig { classes, seed, .. } = self.config;
        if id >= self.len() {
            return Err(Error::NoSample { set: self.name.clone(), sample: id, len: self.len() });
        }
        Ok(Place { seed, split: u64::from(self.val), class: id % classes, index: id / classes })
    }

    /// The pixels of image `id`.
    ///
    /// Fails with [`Error::NoSample`] when there is none.
    pub fn picture(&self, id: u64) -> Result<Picture> {
        let place = self.place(id)?;
        let look = &self.looks[place.class as usize];
        Ok(paint::paint(Draw::of(place, look, self.config.size, self.config.vary)))
    }
}

impl Source for Synth {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        if self.val { self.config.val } else { self.config.images }
    }

    fn schema(&self) -> &Schema {
        &self.schema
    }

    fn read(&self, id: u64, record: &mut Record) -> Result<()> {
        let picture = self.picture(id)?;
        record.reset(2);
        let [image, label] = &mut record.fields[..] else { return Ok(()) };
        image.shape.extend([picture.height, picture.width, 3]);
        match self.config.codec {
            SynthCodec::Raw => image.bytes = picture.pixels,
            SynthCodec::Jpeg(quality) => {
                picture
                    .to_jpeg(quality, &mut image.bytes)
                    .map_err(|problem| Error::field("image", problem))?;
                image.codec = Codec::Jpeg;
            }
        }
        label.bytes.extend_from_slice(&(id % self.config.classes).to_le_bytes());
        Ok(())
    }

    fn label(&self, id: u64) -> Result<Option<i64>> {
        Ok(Some(self.place(id)?.class as i64))
    }
}
