use std::fmt::Debug;
use std::sync::Arc;

use phalanx_host::DType;

use crate::{Error, Result, ShardSet};

/// What a field is for; decides how the loader treats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Pixels [H, W, C], u8 or f32, or image files: transformed on the way to the batch.
    Image,
    /// A class, one i64 a sample.
    Label,
    /// Anything else (text, arrays, targets): delivered as it is.
    Array,
}

/// One field of a set's samples.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldSpec {
    /// Its name; unique in the schema.
    pub name: Arc<str>,
    /// What it is for.
    pub role: Role,
    /// The type of the stored elements.
    pub dtype: DType,
    /// Dimensions of one sample; empty for a scalar.
    pub shape: Vec<usize>,
    /// Whether the first dimension of a sample varies; `shape[0]` is then the most there is. The loader
    /// pads with zeros to the longest of a batch. Of an image height and width vary; transforms give it its size.
    pub variable: bool,
    /// The largest stored value of a pixel: dividing by it is the default normalisation.
    pub max: f32,
}

impl FieldSpec {
    /// u8 pixels [H, W, C] in `0..=max`, named `image`.
    pub fn image(shape: [usize; 3], max: f32) -> Self {
        let (name, shape) = ("image".into(), shape.to_vec());
        FieldSpec { name, role: Role::Image, dtype: DType::U8, shape, variable: false, max }
    }

    /// The class of a sample, named `label`.
    pub fn label() -> Self {
        let (name, shape) = ("label".into(), Vec::new());
        FieldSpec { name, role: Role::Label, dtype: DType::I64, shape, variable: false, max: 1.0 }
    }

    /// An array that is delivered as it is.
    pub fn array(name: impl Into<Arc<str>>, dtype: DType, shape: &[usize], variable: bool) -> Self {
        let (name, shape) = (name.into(), shape.to_vec());
        FieldSpec { name, role: Role::Array, dtype, shape, variable, max: 1.0 }
    }

    /// Bytes of one stored sample; the most when the first dimension varies.
    pub fn sample_bytes(&self) -> usize {
        self.dtype.size() * self.shape.iter().product::<usize>()
    }

    /// Fails when the field's parts do not agree with its role.
    pub(crate) fn check(&self) -> Result<()> {
        let fits = match self.role {
            Role::Image => {
                self.shape.len() == 3
                    && matches!(self.dtype, DType::U8 | DType::F32)
                    && self.max > 0.0
                    && self.max.is_finite()
            }
            Role::Label => self.shape.is_empty() && self.dtype == DType::I64,
            Role::Array => !(self.variable && self.shape.is_empty()),
        };
        if fits {
            return Ok(());
        }
        let problem =
            format!("a {} of shape {:?} cannot be an {:?} field", self.dtype, self.shape, self.role);
        Err(Error::field(&self.name, problem))
    }
}

/// What the samples of a set look like.
#[derive(Debug, Clone, PartialEq)]
pub struct Schema {
    /// The fields, in the order in which a record and a batch have them.
    pub fields: Vec<FieldSpec>,
    /// The names of the classes; empty for a set without labels.
    pub classes: Vec<String>,
}

impl Schema {
    /// The first field with that role.
    pub fn first(&self, role: Role) -> Option<&FieldSpec> {
        self.fields.iter().find(|f| f.role == role)
    }
}

/// How a field of a sample is stored.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// The elements themselves, row-major, little endian.
    #[default]
    Raw,
    /// A JPEG file.
    Jpeg,
    /// A PNG file.
    Png,
}

/// One field of one sample, as stored.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct RecordField {
    /// The elements, or the file that holds them.
    pub bytes: Vec<u8>,
    /// This sample's own dimensions.
    pub shape: Vec<usize>,
    /// What `bytes` are.
    pub codec: Codec,
}

/// One sample, field by field as in the schema. A loader thread keeps one and reads every sample into
/// it, so that nothing is allocated for a sample.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Record {
    /// The fields.
    pub fields: Vec<RecordField>,
}

impl Record {
    /// Makes room for `fields` fields and keeps the memory of those that are there.
    pub fn reset(&mut self, fields: usize) {
        self.fields.resize_with(fields, RecordField::default);
        for f in &mut self.fields {
            f.bytes.clear();
            f.shape.clear();
            f.codec = Codec::Raw;
        }
    }
}

/// A set of samples with the ids `0..len`, read from any thread: what sets in memory, views and sets on
/// disk have in common.
pub trait Source: Send + Sync + Debug {
    /// The set's name, for messages.
    fn name(&self) -> &str;

    /// The number of samples.
    fn len(&self) -> u64;

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the samples look like.
    fn schema(&self) -> &Schema;

    /// Reads sample `id`, overwriting `record`. Image files stay as they are: the loader's transforms decode
    /// what they need of them.
    ///
    /// Fails with [`crate::Error::NoSample`] when `id` is not in `0..len`.
    fn read(&self, id: u64, record: &mut Record) -> Result<()>;

    /// As [`Source::read`], but for field `field` of the record, whose elements go to `into` without a stop on the way: a
    /// copy less where samples are delivered as they are stored. `false`, and nothing read, where this source or this
    /// sample does not allow that.
    fn read_into(&self, _id: u64, _field: usize, _record: &mut Record, _into: &mut [u8]) -> Result<bool> {
        Ok(false)
    }

    /// The class of sample `id`, without reading the rest of it; `None` for a set without labels.
    fn label(&self, id: u64) -> Result<Option<i64>>;

    /// The shard set whose files the samples come from, where there is one.
    fn shard_set(&self) -> Option<&ShardSet> {
        None
    }

    /// The number that sample `id` has in that set.
    fn id_in_shards(&self, id: u64) -> u64 {
        id
    }
}
