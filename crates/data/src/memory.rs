use std::sync::Arc;

use phalanx_host::Element;

use crate::{Error, FieldSpec, Record, Result, Role, Schema, Source};

/// One field of all samples of a set in memory.
#[derive(Debug, Clone)]
pub struct Column {
    spec: FieldSpec,
    bytes: Vec<u8>,
    /// Where each sample starts in `bytes`, and where the last one ends; only if their sizes vary.
    starts: Option<Vec<usize>>,
}

impl Column {
    /// Samples of one size, one after the other.
    pub fn fixed<T: Element>(spec: FieldSpec, values: Vec<T>) -> Result<Self> {
        check_dtype::<T>(&spec)?;
        let bytes = bytemuck::allocation::try_cast_vec(values)
            .unwrap_or_else(|(_, values)| bytemuck::cast_slice::<T, u8>(&values).to_vec());
        if spec.variable || spec.sample_bytes() == 0 || !bytes.len().is_multiple_of(spec.sample_bytes()) {
            let problem = format!("{} bytes are no whole samples of shape {:?}", bytes.len(), spec.shape);
            return Err(Error::field(&spec.name, problem));
        }
        Ok(Column { spec, bytes, starts: None })
    }

    /// Samples whose first dimension varies.
    pub fn variable<T: Element>(spec: FieldSpec, samples: &[Vec<T>]) -> Result<Self> {
        check_dtype::<T>(&spec)?;
        let row = spec.dtype.size() * spec.shape.iter().skip(1).product::<usize>();
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        for (i, sample) in samples.iter().enumerate() {
            let data: &[u8] = bytemuck::cast_slice(sample);
            if !spec.variable
                || row == 0
                || !data.len().is_multiple_of(row)
                || data.len() > spec.sample_bytes()
            {
                let problem = format!("sample {i} of {} bytes does not fit {:?}", data.len(), spec.shape);
                return Err(Error::field(&spec.name, problem));
            }
            bytes.extend_from_slice(data);
            starts.push(bytes.len());
        }
        Ok(Column { spec, bytes, starts: Some(starts) })
    }

    fn len(&self) -> usize {
        match &self.starts {
            Some(starts) => starts.len() - 1,
            None => self.bytes.len() / self.spec.sample_bytes(),
        }
    }

    fn sample(&self, i: usize) -> &[u8] {
        match &self.starts {
            Some(starts) => &self.bytes[starts[i]..starts[i + 1]],
            None => {
                let size = self.spec.sample_bytes();
                &self.bytes[i * size..(i + 1) * size]
            }
        }
    }
}

fn check_dtype<T: Element>(spec: &FieldSpec) -> Result<()> {
    if spec.dtype == T::DTYPE {
        return Ok(());
    }
    Err(Error::field(&spec.name, format!("is {} in the schema and was given {}", spec.dtype, T::DTYPE)))
}

/// A set held in memory.
#[derive(Debug, Clone)]
pub struct Memory {
    name: String,
    schema: Schema,
    columns: Vec<Column>,
    label: Option<usize>,
    len: usize,
}

impl Memory {
    /// A set of these columns. Fails when their numbers of samples differ, when a name is there twice,
    /// and on a label outside `classes`.
    pub fn new(name: impl Into<String>, columns: Vec<Column>, classes: Vec<String>) -> Result<Self> {
        let name = name.into();
        let len = columns.first().map_or(0, Column::len);
        for (i, c) in columns.iter().enumerate() {
            let field = &c.spec.name;
            if c.len() != len {
                let first = &columns[0].spec.name;
                return Err(Error::field(field, format!("has {} samples, {first} has {len}", c.len())));
            }
            if columns[..i].iter().any(|other| other.spec.name == *field) {
                return Err(Error::field(field, "is there twice"));
            }
            c.spec.check()?;
            if c.spec.role == Role::Image && c.spec.variable {
                return Err(Error::field(field, "images in memory are of one size"));
            }
        }
        let label = columns.iter().position(|c| c.spec.role == Role::Label);
        let schema = Schema { fields: columns.iter().map(|c| c.spec.clone()).collect(), classes };
        let set = Memory { name, schema, columns, label, len };
        let classes = set.schema.classes.len();
        for i in 0..if label.is_some() { len } else { 0 } {
            if let Some(label) =
                set.label_at(i).filter(|&l| usize::try_from(l).map_or(true, |l| l >= classes))
            {
                return Err(Error::Label { set: set.name, sample: i as u64, label, classes });
            }
        }
        Ok(set)
    }

    /// The usual case: u8 images [H, W, C] of one size with values in `0..=max`, and their classes.
    /// Errors as [`Memory::new`].
    pub fn classification(
        name: impl Into<String>,
        images: Vec<u8>,
        shape: [usize; 3],
        max: f32,
        labels: Vec<i64>,
        classes: Vec<String>,
    ) -> Result<Self> {
        let image = Column::fixed(FieldSpec::image(shape, max), images)?;
        let label = Column::fixed(FieldSpec::label(), labels)?;
        Memory::new(name, vec![image, label], classes)
    }

    /// As a trait object, to share.
    pub fn shared(self) -> Arc<dyn Source> {
        Arc::new(self)
    }

    fn label_at(&self, i: usize) -> Option<i64> {
        self.label.map(|c| bytemuck::pod_read_unaligned(self.columns[c].sample(i)))
    }

    fn check_id(&self, id: u64) -> Result<usize> {
        let i = usize::try_from(id).unwrap_or(usize::MAX);
        if i < self.len {
            return Ok(i);
        }
        Err(Error::NoSample { set: self.name.clone(), sample: id, len: self.len as u64 })
    }
}

impl Source for Memory {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len as u64
    }

    fn schema(&self) -> &Schema {
        &self.schema
    }

    fn read(&self, id: u64, record: &mut Record) -> Result<()> {
        let i = self.check_id(id)?;
        record.reset(self.columns.len());
        for (c, out) in self.columns.iter().zip(&mut record.fields) {
            let bytes = c.sample(i);
            out.bytes.extend_from_slice(bytes);
            out.shape.extend_from_slice(&c.spec.shape);
            if c.starts.is_some() {
                out.shape[0] = bytes.len() / (c.spec.sample_bytes() / c.spec.shape[0].max(1)).max(1);
            }
        }
        Ok(())
    }

    fn label(&self, id: u64) -> Result<Option<i64>> {
        self.check_id(id).map(|i| self.label_at(i))
    }
}

#[cfg(test)]
mod tests {
    use phalanx_host::DType;

    use super::*;

    fn classes(n: usize) -> Vec<String> {
        (0..n).map(|c| format!("class {c}")).collect()
    }

    #[test]
    fn records_come_back_as_stored() {
        let text = FieldSpec::array("text", DType::U8, &[4], true);
        let columns = vec![
            Column::variable(text, &[b"abcd".to_vec(), vec![], b"xy".to_vec()]).unwrap(),
            Column::fixed(FieldSpec::label(), vec![1i64, 0, 1]).unwrap(),
            Column::fixed(FieldSpec::array("at", DType::F32, &[2], false), vec![0f32, 1., 2., 3., 4., 5.])
                .unwrap(),
        ];
        let set = Memory::new("mixed", columns, classes(2)).unwrap();
        let mut record = Record::default();
        for (id, text, at) in [(2, &b"xy"[..], [4f32, 5.]), (1, b"", [2., 3.]), (0, b"abcd", [0., 1.])] {
            set.read(id, &mut record).unwrap();
            assert_eq!((&record.fields[0].bytes[..], record.fields[0].shape[0]), (text, text.len()));
            assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&record.fields[2].bytes), at);
            assert_eq!(set.label(id).unwrap(), Some((id as i64 + 1) % 2));
        }
        assert!(matches!(set.read(3, &mut record), Err(Error::NoSample { len: 3, .. })));
    }

    #[test]
    fn wrong_sets_are_refused() {
        let set = |labels, n| Memory::classification("s", vec![0; 8], [2, 2, 1], 255.0, labels, classes(n));
        assert!(set(vec![0, 1], 2).is_ok());
        assert!(matches!(set(vec![0, 2], 2), Err(Error::Label { sample: 1, label: 2, classes: 2, .. })));
        assert!(matches!(set(vec![-1, 0], 2), Err(Error::Label { sample: 0, .. })));
        assert!(set(vec![0, 1, 1], 2).unwrap_err().to_string().contains("has 3 samples, image has 2"));
        let twice = Column::fixed(FieldSpec::label(), vec![0i64]).unwrap();
        assert!(Memory::new("s", vec![twice.clone(), twice], classes(1)).is_err());
        assert!(Column::fixed(FieldSpec::label(), vec![0f32]).is_err());
        assert!(Column::fixed(FieldSpec::image([2, 2, 1], 1.0), vec![0u8; 3]).is_err());
        let odd = FieldSpec { shape: vec![4], ..FieldSpec::image([1, 1, 1], 1.0) };
        assert!(Memory::new("s", vec![Column::fixed(odd, vec![0u8; 4]).unwrap()], vec![]).is_err());
    }
}
