use std::sync::Arc;

use phalanx_host::{Buffer, DType, Element, Pool};

use crate::{Error, Mix, Result};

/// One named array of a batch: images, labels, text, targets alike.
#[derive(Debug)]
pub struct Field {
    /// Its name, as in the set's schema.
    pub name: Arc<str>,
    /// The type of its elements.
    pub dtype: DType,
    /// Its dimensions; the first is the number of samples.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub bytes: Buffer,
    /// For sequences padded to the longest of the batch: each sample's own length along dimension 1.
    pub lengths: Option<Vec<u32>>,
    /// For images of bytes: what is still to be done to each value before a model sees it.
    pub normalise: Option<Arc<Normalise>>,
    /// For such images: which part of each is to be taken then, where that is not all of it.
    pub crops: Option<Crops>,
}

/// A part of each image, all of one size, perhaps mirrored.
#[derive(Debug)]
pub struct Crops {
    /// Height and width of the parts.
    pub size: [usize; 2],
    /// i64 `[N, 3]`: the first row and the first column of each part, and whether it is mirrored left to right (1) once it
    /// has been cut. Where a part lies outside its image, bytes are 0.
    pub places: Buffer,
}

impl Crops {
    /// Bytes of one place.
    const PLACE: usize = 3 * size_of::<i64>();

    /// Parts of that size of so many images, with arbitrary places, for filling in.
    pub fn new(pool: &Pool, size: [usize; 2], images: usize) -> Result<Self> {
        Ok(Crops { size, places: pool.alloc(images.saturating_mul(Self::PLACE))? })
    }

    /// The places, each with its first row, first column and whether it is mirrored.
    pub fn places_mut(&mut self) -> &mut [[i64; 3]] {
        self.places.as_mut_slice::<i64>().as_chunks_mut().0
    }
}

/// `(x · scale − mean[c]) / std[c]` for channel `c`, each operation rounded to f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalise {
    /// The factor before all else.
    pub scale: f32,
    /// One a channel.
    pub mean: Vec<f32>,
    /// One a channel.
    pub std: Vec<f32>,
}

impl Normalise {
    /// What becomes of a value of channel `c`.
    pub fn one(&self, x: f32, c: usize) -> f32 {
        (x * self.scale - self.mean[c]) / self.std[c]
    }
}

impl Mix {
    /// Checks the lists for a batch of `samples`.
    pub fn check(&self, samples: usize) -> Result<()> {
        let fail = |problem: String| Err(Error::field("mix", problem));
        for (name, len) in
            [("partners", self.partner.len()), ("factors", self.lambda.len()), ("boxes", self.boxes.len())]
        {
            if len != samples {
                return fail(format!("has {len} {name} for {samples} samples"));
            }
        }
        if let Some(bad) = self.partner.iter().find(|p| **p as usize >= samples) {
            return fail(format!("names sample {bad} of a batch of {samples}"));
        }
        match self.lambda.iter().find(|l| !(0.0..=1.0).contains(*l)) {
            Some(bad) => fail(format!("has the factor {bad}, not one in 0..=1")),
            None => Ok(()),
        }
    }
}

impl Field {
    /// A field of that shape with arbitrary contents, for filling in.
    pub fn new(pool: &Pool, name: impl Into<Arc<str>>, dtype: DType, shape: &[usize]) -> Result<Self> {
        let name = name.into();
        let bytes = shape
            .iter()
            .try_fold(dtype.size(), |bytes, &d| bytes.checked_mul(d))
            .ok_or_else(|| Error::field(&name, format!("shape {shape:?} does not fit the address space")))?;
        let (shape, bytes) = (shape.to_vec(), pool.alloc(bytes)?);
        Ok(Field { name, dtype, shape, bytes, lengths: None, normalise: None, crops: None })
    }

    /// A field with these values. Fails when their number is not the shape's product.
    pub fn from_slice<T: Element>(
        pool: &Pool,
        name: impl Into<Arc<str>>,
        shape: &[usize],
        values: &[T],
    ) -> Result<Self> {
        let mut field = Field::new(pool, name, T::DTYPE, shape)?;
        if field.bytes.len() != size_of_val(values) {
            let problem = format!("{} values were given for shape {shape:?}", values.len());
            return Err(Error::field(&field.name, problem));
        }
        field.as_mut_slice::<T>()?.copy_from_slice(values);
        Ok(field)
    }

    /// Leaves the first `rows` samples; of fewer all.
    pub(crate) fn truncate(&mut self, rows: usize) {
        let [had, ..] = self.shape[..] else { return };
        let rows = rows.min(had);
        self.shape[0] = rows;
        self.bytes.truncate(self.dtype.size() * self.shape.iter().product::<usize>());
        if let Some(lengths) = &mut self.lengths {
            lengths.truncate(rows);
        }
        if let Some(crops) = &mut self.crops {
            crops.places.truncate(rows * Crops::PLACE);
        }
    }

    /// The elements. Fails when the field has another type.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.check_dtype(T::DTYPE)?;
        Ok(self.bytes.as_slice())
    }

    /// The elements, for writing. Fails when the field has another type.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        self.check_dtype(T::DTYPE)?;
        Ok(self.bytes.as_mut_slice())
    }

    fn check_dtype(&self, wanted: DType) -> Result<()> {
        if self.dtype == wanted {
            return Ok(());
        }
        Err(Error::field(&self.name, format!("holds {} and was asked for {wanted}", self.dtype)))
    }
}

/// Some samples, ready for a model: what a loader delivers, and what a task with its own memory (replay)
/// may build by hand.
#[derive(Debug, Default)]
pub struct Batch {
    /// The arrays, all with the same first dimension.
    pub fields: Vec<Field>,
    /// Which samples these are, in their set's numbering.
    pub ids: Vec<u64>,
    /// How much each sample counts in sums.
    pub weights: Vec<f32>,
    /// How samples are to be mixed with each other, where mixup or cutmix is asked for; not done yet.
    pub mix: Option<Mix>,
}

impl Batch {
    /// A batch in which every sample counts 1. Fails when a field's first dimension is not the number
    /// of ids, or when two fields have one name.
    pub fn new(fields: Vec<Field>, ids: Vec<u64>) -> Result<Self> {
        for (i, f) in fields.iter().enumerate() {
            if f.shape.first() != Some(&ids.len()) {
                let problem = format!("has shape {:?} in a batch of {} samples", f.shape, ids.len());
                return Err(Error::field(&f.name, problem));
            }
            if f.lengths.as_ref().is_some_and(|l| l.len() != ids.len()) {
                return Err(Error::field(&f.name, format!("needs {} lengths, one a sample", ids.len())));
            }
            if f.crops.as_ref().is_some_and(|c| c.places.len() != ids.len() * Crops::PLACE) {
                return Err(Error::field(&f.name, format!("needs {} places, one a sample", ids.len())));
            }
            if fields[..i].iter().any(|other| other.name == f.name) {
                return Err(Error::field(&f.name, "is there twice"));
            }
        }
        let weights = vec![1.0; ids.len()];
        Ok(Batch { fields, ids, weights, mix: None })
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no samples: a shard of a short last step may be empty.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The sum of the weights.
    pub fn weight(&self) -> f64 {
        self.weights.iter().map(|&w| f64::from(w)).sum()
    }

    /// The field of that name. Fails with the names that are there.
    pub fn field(&self, name: &str) -> Result<&Field> {
        self.fields.iter().find(|f| &*f.name == name).ok_or_else(|| {
            let names: Vec<_> = self.fields.iter().map(|f| &*f.name).collect();
            Error::field(name, format!("is not in the batch, which has {}", names.join(", ")))
        })
    }

    /// The elements of the field of that name; fails when it is not there or has another type.
    pub fn values<T: Element>(&self, name: &str) -> Result<&[T]> {
        self.field(name)?.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_built_by_hand_and_checked() {
        let pool = Pool::new();
        let state = Field::from_slice(&pool, "state", &[2, 3], &[0f32, 1., 2., 3., 4., 5.]).unwrap();
        let action = Field::from_slice(&pool, "action", &[2], &[1i64, 0]).unwrap();
        let batch = Batch::new(vec![state, action], vec![7, 9]).unwrap();
        assert_eq!((batch.len(), batch.weight()), (2, 2.0));
        assert_eq!(batch.values::<i64>("action").unwrap(), [1, 0]);
        assert_eq!(batch.field("state").unwrap().shape, [2, 3]);
        let message = |e: Error| e.to_string();
        assert!(message(batch.values::<f32>("action").unwrap_err()).contains("holds i64"));
        assert!(message(batch.field("reward").unwrap_err()).contains("state, action"));

        assert!(Field::from_slice(&pool, "x", &[2, 2], &[0f32; 3]).is_err());
        assert!(Field::new(&pool, "x", DType::F32, &[usize::MAX, 2]).is_err());
        let x = || Field::new(&pool, "x", DType::U8, &[2]).unwrap();
        assert!(Batch::new(vec![x()], vec![1]).is_err());
        assert!(message(Batch::new(vec![x(), x()], vec![1, 2]).unwrap_err()).contains("twice"));
        let mix = |partner: &[u32], lambda: &[f32], boxes: usize| {
            let boxes = vec![[0; 4]; boxes];
            Mix { partner: partner.to_vec(), lambda: lambda.to_vec(), boxes }.check(2)
        };
        assert!(mix(&[1, 0], &[0.25, 1.0], 2).is_ok() && mix(&[1], &[0.0, 0.0], 2).is_err());
        assert!(message(mix(&[1, 2], &[0.5, 0.5], 2).unwrap_err()).contains("sample 2 of a batch of 2"));
        assert!(message(mix(&[1, 0], &[0.5, f32::NAN], 2).unwrap_err()).contains("factor NaN"));
        assert!(mix(&[1, 0], &[0.5, 0.5], 1).is_err());
        let mut long = Field::from_slice(&pool, "x", &[3, 2], &[0u8, 1, 2, 3, 4, 5]).unwrap();
        long.truncate(2);
        assert_eq!((&long.shape[..], long.as_slice::<u8>().unwrap()), (&[2, 2][..], &[0, 1, 2, 3][..]));
        long.truncate(9);
        assert_eq!(long.shape, [2, 2]);
        long.truncate(0);
        assert!(long.bytes.is_empty());
        let uneven = Field { lengths: Some(vec![1]), ..x() };
        assert!(Batch::new(vec![uneven], vec![1, 2]).is_err());
    }
}
