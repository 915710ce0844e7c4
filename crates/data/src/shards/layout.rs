//! How the fields of a record lie in a shard.
//!
//! The label lies in the index. Of one other field the record is its bytes. Of several it is their bytes, one field
//! after the other, and then a table with a row for each: so the first, which is the image as a rule, is read straight
//! to where it belongs.

use phalanx_host::DType;

use crate::{Codec, Error, FieldSpec, Result, Role};

use super::format::{Entry, NO_LABEL, codec_byte, codec_of};
use super::{SampleField, SetInfo, ShardSummary};

/// The longest side of an image.
const LONGEST: usize = u16::MAX as usize;

/// Where a schema's fields are stored.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// The label's place in the schema.
    pub(super) label: Option<usize>,
    /// The other fields' places in the schema.
    pub(super) stored: Vec<usize>,
    /// The first image's place among the stored ones.
    pub(super) image: Option<usize>,
}

impl Layout {
    /// Fails when fields cannot be stored so.
    pub(super) fn new(info: &SetInfo) -> Result<Self> {
        let (fields, classes) = (&info.fields, info.classes.len());
        for (i, f) in fields.iter().enumerate() {
            f.check()?;
            if fields[..i].iter().any(|other| other.name == f.name) {
                return Err(Error::field(&f.name, "is there twice"));
            }
            if !can_be_stored(f) {
                return Err(Error::field(&f.name, format!("shape {:?} cannot be stored", f.shape)));
            }
        }
        let labels: Vec<usize> = (0..fields.len()).filter(|&i| fields[i].role == Role::Label).collect();
        if let Some(&second) = labels.get(1) {
            return Err(Error::field(&fields[second].name, "is a second label: store it as an array"));
        }
        if !labels.is_empty() && (classes == 0 || classes >= NO_LABEL as usize) {
            return Err(Error::usage("classes", format!("{classes} cannot be those of a set with labels")));
        }
        let stored: Vec<usize> = (0..fields.len()).filter(|i| !labels.contains(i)).collect();
        let image = stored.iter().position(|&i| fields[i].role == Role::Image);
        Ok(Layout { label: labels.first().copied(), stored, image })
    }

    /// Bytes of the table at the end of a record.
    pub(super) fn table_bytes(&self) -> usize {
        if self.stored.len() > 1 { self.stored.len() * Cell::BYTES } else { 0 }
    }
}

/// Whether the format has room for a field; so its bytes fit into this machine's numbers too.
fn can_be_stored(spec: &FieldSpec) -> bool {
    match spec.role {
        Role::Image => {
            let sides_fit = spec.variable || spec.shape[..2].iter().all(|&n| n <= LONGEST);
            sides_fit && (1..=usize::from(u8::MAX)).contains(&spec.shape[2])
        }
        Role::Array if spec.variable => row_bytes(spec).is_some_and(|n| n > 0),
        _ => {
            let rows = spec.shape.first().copied().unwrap_or(1);
            row_bytes(spec).is_some_and(|row| row as u128 * rows as u128 <= u32::MAX.into())
        }
    }
}

/// Bytes of a step along the first dimension; `None` when no record has room for them.
fn row_bytes(spec: &FieldSpec) -> Option<usize> {
    let bytes = spec.shape.iter().skip(1).try_fold(spec.dtype.size(), |n, &d| n.checked_mul(d));
    bytes.filter(|&n| u32::try_from(n).is_ok())
}

/// The fields as they are checked while writing: what varies is bounded by the format alone.
pub(super) fn unbounded(fields: &[FieldSpec]) -> Vec<FieldSpec> {
    let mut fields = fields.to_vec();
    for f in fields.iter_mut().filter(|f| f.variable) {
        match f.role {
            Role::Image => f.shape[..2].fill(LONGEST),
            _ => f.shape[0] = u32::MAX as usize,
        }
    }
    fields
}

/// The fields of a sealed set: what varies has the largest size there is.
pub(super) fn bounded(info: &SetInfo, layout: &Layout, shards: &[ShardSummary]) -> Vec<FieldSpec> {
    let mut fields = info.fields.clone();
    for (k, &i) in layout.stored.iter().enumerate().filter(|(_, i)| info.fields[**i].variable) {
        let axes = if fields[i].role == Role::Image { 2 } else { 1 };
        for axis in 0..axes {
            let sizes = shards.iter().filter_map(|s| s.largest.get(k).map(|largest| largest[axis]));
            fields[i].shape[axis] = sizes.max().unwrap_or(0) as usize;
        }
    }
    fields
}

/// One field of one record: a row of the table at its end. Of arrays only the length counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) length: u32,
    pub(super) height: u16,
    pub(super) width: u16,
    pub(super) channels: u8,
    pub(super) codec: Codec,
}

impl Cell {
    /// Bytes of a row: length (u32), height (u16), width (u16), channels (u8), codec (u8), zeros (2 bytes).
    pub(super) const BYTES: usize = 12;

    /// Of a sample to write. The error is what is wrong with it.
    pub(super) fn of(spec: &FieldSpec, field: &SampleField<'_>) -> std::result::Result<Self, String> {
        let SampleField { codec, shape, bytes } = *field;
        let Ok(length) = u32::try_from(bytes.len()) else {
            return Err(format!("has {} bytes; a record has less than 4 GiB", bytes.len()));
        };
        let mut cell = Cell { length, height: 0, width: 0, channels: 0, codec };
        if spec.role == Role::Image {
            let &[h, w, c] = shape else {
                return Err(format!("has the shape {shape:?}; an image has rows, columns and channels"));
            };
            let (Ok(height), Ok(width), Ok(channels)) = (u16::try_from(h), u16::try_from(w), u8::try_from(c))
            else {
                return Err(format!(
                    "is {w}x{h} with {c} channels; at most {LONGEST} a side and 255 channels are stored"
                ));
            };
            cell = Cell { height, width, channels, ..cell };
        }
        cell.check(spec)?;
        if spec.role == Role::Array && cell.shape(spec) != shape {
            return Err(format!(
                "has {} bytes and the shape {shape:?} where the schema has {} {:?}",
                bytes.len(),
                spec.dtype,
                spec.shape
            ));
        }
        Ok(cell)
    }

    pub(super) fn to_bytes(self) -> [u8; Cell::BYTES] {
        let [a, b, c, d] = self.length.to_le_bytes();
        let ([e, f], [g, h]) = (self.height.to_le_bytes(), self.width.to_le_bytes());
        [a, b, c, d, e, f, g, h, self.channels, codec_byte(self.codec), 0, 0]
    }

    /// `None` when this is no row of a table.
    pub(super) fn from_bytes(row: [u8; Cell::BYTES]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, channels, codec, 0, 0] = row else { return None };
        Some(Cell {
            length: u32::from_le_bytes([a, b, c, d]),
            height: u16::from_le_bytes([e, f]),
            width: u16::from_le_bytes([g, h]),
            channels,
            codec: codec_of(codec)?,
        })
    }

    /// Of a record with one field.
    pub(super) fn of_entry(entry: &Entry, codec: Codec) -> Self {
        let Entry { length, height, width, channels, .. } = *entry;
        Cell { length, height, width, channels, codec }
    }

    /// Whether an entry says the same of its record's first image.
    pub(super) fn is_image_of(&self, entry: &Entry) -> bool {
        let Entry { height, width, channels, codec, .. } = *entry;
        (self.height, self.width, self.channels, codec_byte(self.codec)) == (height, width, channels, codec)
    }

    /// Fails when no field of the schema can be so. The error is what is wrong.
    pub(super) fn check(&self, spec: &FieldSpec) -> std::result::Result<(), String> {
        if self.fits(spec) { Ok(()) } else { Err(self.problem(spec)) }
    }

    /// Whether [`Cell::check`] passes.
    #[inline]
    pub(super) fn fits(&self, spec: &FieldSpec) -> bool {
        let length = self.length as usize;
        if spec.role == Role::Image {
            let [h, w, c] = self.image_shape();
            let sides_fit = match spec.variable {
                true => h <= spec.shape[0] && w <= spec.shape[1],
                false => h == spec.shape[0] && w == spec.shape[1],
            };
            let bytes_fit = match self.codec {
                Codec::Raw => c == spec.shape[2] && length == h * w * c * spec.dtype.size(),
                Codec::Jpeg | Codec::Png => spec.dtype == DType::U8 && length > 0,
            };
            return h > 0 && w > 0 && c > 0 && sides_fit && bytes_fit;
        }
        let Some(row) = row_bytes(spec).filter(|_| self.codec == Codec::Raw) else { return false };
        let rows = spec.shape.first().copied().unwrap_or(1);
        if spec.variable { length.is_multiple_of(row) && length / row <= rows } else { length == row * rows }
    }

    #[cold]
    fn problem(&self, spec: &FieldSpec) -> String {
        let (length, codec) = (self.length, self.codec);
        let is = match spec.role {
            Role::Image => {
                let [h, w, c] = self.image_shape();
                if h == 0 || w == 0 || c == 0 {
                    return format!("is {w}x{h} with {c} channels: there is no pixel");
                }
                format!("is {w}x{h} with {c} channels in {length} bytes ({codec:?})")
            }
            _ if codec != Codec::Raw => return "is an image file, but no image field".into(),
            _ => format!("has {length} bytes"),
        };
        format!("{is} where the schema has {} {:?}", spec.dtype, spec.shape)
    }

    fn image_shape(&self) -> [usize; 3] {
        [self.height.into(), self.width.into(), self.channels.into()]
    }

    /// The sample's own dimensions, once [`Cell::check`] has passed.
    pub(super) fn shape(&self, spec: &FieldSpec) -> Vec<usize> {
        let mut shape = Vec::new();
        self.shape_into(spec, &mut shape);
        shape
    }

    /// As [`Cell::shape`], into memory that is there.
    pub(super) fn shape_into(&self, spec: &FieldSpec, shape: &mut Vec<usize>) {
        shape.clear();
        if spec.role == Role::Image {
            shape.extend(self.image_shape());
            return;
        }
        shape.extend_from_slice(&spec.shape);
        if spec.variable {
            shape[0] = self.length as usize / row_bytes(spec).unwrap_or(1).max(1);
        }
    }

    /// What counts towards [`ShardSummary::largest`].
    pub(super) fn extent(&self, spec: &FieldSpec) -> [u32; 2] {
        match spec.role {
            Role::Image => [self.height.into(), self.width.into()],
            _ => [self.shape(spec).first().map_or(1, |&n| n as u32), 0],
        }
    }
}
