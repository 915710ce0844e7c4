//! What is done to an image between its source and its shard.

use serde::Serialize;

use crate::picture::{Place, Resample, shorter_side};
use crate::source::RecordField;
use crate::{Codec, Error, FieldSpec, Picture, Result, Role};

/// The longest side that a shard's index can tell.
const LONGEST: usize = u16::MAX as usize;

/// How images are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Images {
    /// As they are in the source.
    Keep,
    /// Files whose shorter side is above `short` are made smaller, to that, and encoded as JPEG of `quality` (1 to
    /// 100); others stay as they are.
    Resize {
        /// The shorter side, in pixels.
        short: usize,
        /// As in every JPEG encoder.
        quality: u8,
    },
    /// Pixels of one size: the shorter side becomes `side`, also where it was shorter, and the middle `side` x `side`
    /// is kept, with three channels.
    Raw {
        /// In pixels.
        side: usize,
    },
}

impl Images {
    pub(super) fn check(self) -> Result<()> {
        match self {
            Images::Resize { short, .. } | Images::Raw { side: short } if !(1..=LONGEST).contains(&short) => {
                Err(Error::usage("--resize", format!("{short} must be in 1..={LONGEST}")))
            }
            Images::Resize { quality, .. } if !(1..=100).contains(&quality) => {
                Err(Error::usage("--quality", format!("{quality} must be in 1..=100")))
            }
            _ => Ok(()),
        }
    }

    /// The field's specification in the set that is written.
    pub(super) fn spec(self, spec: &FieldSpec) -> Result<FieldSpec> {
        if spec.role != Role::Image || self == Images::Keep {
            return Ok(spec.clone());
        }
        if !spec.variable {
            let problem =
                format!("is for image files; {:?} holds pixels of one size, {:?}", spec.name, spec.shape);
            return Err(Error::usage("--resize", problem));
        }
        Ok(match self {
            Images::Raw { side } => {
                FieldSpec { name: spec.name.clone(), ..FieldSpec::image([side, side, 3], 255.0) }
            }
            _ => spec.clone(),
        })
    }

    /// Changes an image file into what is stored. With `check` an image that could stay as it is is decoded all the
    /// same, to see that it can be. The error says what is wrong with the file.
    pub(super) fn apply(self, field: &mut RecordField, check: bool) -> std::result::Result<(), String> {
        let [height, width] = [0, 1].map(|axis| field.shape.get(axis).copied().unwrap_or(0));
        if height.max(width) > LONGEST {
            return Err(format!(
                "it is {width}x{height}; a side of a stored image has at most {LONGEST} pixels"
            ));
        }
        match self {
            Images::Resize { short, quality } if height.min(width) > short => {
                let picture = Picture::decode(&field.bytes)?;
                let [height, width] = shorter_side(picture.height, picture.width, short);
                let pixels = resized(&picture, Place::whole([height, width]));
                let small = Picture { height, width, channels: picture.channels, pixels };
                small.to_jpeg(quality, &mut field.bytes)?;
                put(field, Codec::Jpeg, [height, width, small.channels]);
            }
            Images::Raw { side } => {
                let picture = Picture::decode(&field.bytes)?.into_rgb();
                field.bytes = resized(&picture, Place::middle(picture.height, picture.width, side, side));
                put(field, Codec::Raw, [side, side, 3]);
            }
            _ if check => drop(Picture::decode(&field.bytes)?),
            _ => {}
        }
        Ok(())
    }
}

fn resized(picture: &Picture, place: Place) -> Vec<u8> {
    u8::resize(&picture.pixels, [picture.height, picture.width, picture.channels], place)
}

fn put(field: &mut RecordField, codec: Codec, shape: [usize; 3]) {
    field.codec = codec;
    field.shape.clear();
    field.shape.extend(shape);
}
