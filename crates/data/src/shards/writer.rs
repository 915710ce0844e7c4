use std::path::{Path, PathBuf};

use super::format::{
    self, ALIGN, Content, Entry, Index, MANIFEST, MOST_RECORDS, MOST_SHARDS, NO_LABEL, codec_byte, data_path,
    index_path,
};
use super::layout::{Cell, Layout, unbounded};
use super::{Sample, SetInfo, ShardSummary};
use crate::files::{Temporary, remove_file};
use crate::{Codec, Error, FieldSpec, Result};

/// Bytes collected before they are hashed and written.
const BLOCK: usize = 1 << 20;

/// Writes one shard of a set, in one pass over the bytes.
///
/// Nothing is there under the shard's name before [`ShardWriter::finish`]; a writer that is dropped removes what it
/// wrote.
#[derive(Debug)]
pub struct ShardWriter {
    dir: PathBuf,
    set: String,
    number: u32,
    fields: Vec<FieldSpec>,
    classes: usize,
    layout: Layout,
    info_hash: [u8; 32],
    out: Temporary,
    block: Vec<u8>,
    hash: blake3::Hasher,
    /// Whether the file lacks bytes.
    failed: bool,
    /// Where the next record starts.
    end: u64,
    entries: Vec<Entry>,
    cells: Vec<Cell>,
    codecs: [u64; 3],
    largest: Vec<[u32; 2]>,
}

impl ShardWriter {
    /// Begins shard `number` of a set in `dir`, which must be there; what an earlier writer left of that shard goes.
    ///
    /// Fails with [`Error::Usage`] when the set is sealed already or the number is too large, with [`Error::Field`]
    /// when the fields cannot be stored, and with [`Error::Io`].
    pub fn create(dir: &Path, number: u32, info: &SetInfo) -> Result<Self> {
        if number >= MOST_SHARDS {
            return Err(Error::usage("shard", format!("{number}: a set has at most {MOST_SHARDS} shards")));
        }
        let layout = Layout::new(info)?;
        if dir.join(MANIFEST).exists() {
            let problem = "holds a finished shard set; write to another directory, or remove it";
            return Err(Error::usage(dir.display().to_string(), problem));
        }
        // The index first: while it is there, the shard counts as finished.
        for path in [index_path(dir, number), data_path(dir, number)] {
            remove_file(&path)?;
        }
        Ok(ShardWriter {
            out: Temporary::fixed(&data_path(dir, number))?,
            dir: dir.to_owned(),
            set: info.name.clone(),
            number,
            fields: unbounded(&info.fields),
            classes: info.classes.len(),
            info_hash: format::info_hash(info)?,
            block: Vec::with_capacity(BLOCK),
            hash: blake3::Hasher::new(),
            failed: false,
            end: 0,
            entries: Vec::new(),
            cells: Vec::new(),
            codecs: [0; 3],
            largest: vec![[0; 2]; layout.stored.len()],
            layout,
        })
    }

    /// Records so far.
    pub fn records(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Bytes of the shard's records so far.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Appends a sample; its id in the shard is the number of those before it. After an [`Error::Io`] the writer can
    /// only be dropped.
    ///
    /// Fails with [`Error::Label`] or [`Error::Field`] on a sample that is not as the set's schema says, with
    /// [`Error::Usage`] when the shard or the record would become too large, and with [`Error::Io`].
    pub fn add(&mut self, sample: &Sample<'_>) -> Result<()> {
        let label = self.label(sample)?;
        if sample.fields.len() != self.layout.stored.len() {
            let (given, wanted) = (sample.fields.len(), self.layout.stored.len());
            let problem = format!("{given} fields beside the label; the schema has {wanted}");
            return Err(Error::field(sample.key, problem));
        }
        self.cells.clear();
        for (&i, field) in self.layout.stored.iter().zip(sample.fields) {
            let cell = Cell::of(&self.fields[i], field);
            let named =
                |problem| Error::field(&self.fields[i].name, format!("of {:?} {problem}", sample.key));
            self.cells.push(cell.map_err(named)?);
        }
        let length =
            self.layout.table_bytes() as u64 + self.cells.iter().map(|c| u64::from(c.length)).sum::<u64>();
        let (Ok(length), Ok(start)) = (u32::try_from(length), u32::try_from(self.end / ALIGN)) else {
            let problem = format!(
                "{:?} with {length} bytes after {} bytes: a record has less than 4 GiB and a shard less than 256 GiB",
                sample.key, self.end
            );
            return Err(Error::usage("shard", problem));
        };
        if self.entries.len() >= MOST_RECORDS {
            return Err(Error::usage("shard", format!("a shard has at most {MOST_RECORDS} records")));
        }
        self.check_whole()?;
        let mut crc32c = 0;
        for field in sample.fields {
            crc32c = crc32c::crc32c_append(crc32c, field.bytes);
            self.put(field.bytes)?;
        }
        if self.cells.len() > 1 {
            for k in 0..self.cells.len() {
                let row = self.cells[k].to_bytes();
                crc32c = crc32c::crc32c_append(crc32c, &row);
                self.put(&row)?;
            }
        }
        let next = (self.end + u64::from(length)).next_multiple_of(ALIGN);
        self.put(&[0; ALIGN as usize][..(next - self.end - u64::from(length)) as usize])?;
        self.end = next;

        let main = self.cells.get(self.layout.image.unwrap_or(0)).copied();
        let main = main.unwrap_or(Cell { length: 0, height: 0, width: 0, channels: 0, codec: Codec::Raw });
        self.codecs[usize::from(codec_byte(main.codec))] += 1;
        for ((cell, &i), largest) in self.cells.iter().zip(&self.layout.stored).zip(&mut self.largest) {
            let extent = cell.extent(&self.fields[i]);
            *largest = [0, 1].map(|axis| largest[axis].max(extent[axis]));
        }
        self.entries.push(Entry {
            key_hash: format::key_hash(sample.key),
            start,
            length,
            crc32c,
            label,
            height: main.height,
            width: main.width,
            channels: main.channels,
            codec: codec_byte(main.codec),
            flags: 0,
            spare: 0,
        });
        Ok(())
    }

    fn label(&self, sample: &Sample<'_>) -> Result<u32> {
        let problem = match (self.layout.label, sample.label) {
            (None, None) => return Ok(NO_LABEL),
            (Some(_), Some(label)) => {
                let found = u32::try_from(label).ok().filter(|&l| (l as usize) < self.classes);
                return found.ok_or_else(|| Error::Label {
                    set: format!("shard {} of {}", self.number, self.set),
                    sample: self.records(),
                    label,
                    classes: self.classes,
                });
            }
            (Some(_), None) => "has no label, and the schema has one",
            (None, Some(_)) => "has a label, and the schema has none",
        };
        Err(Error::field(sample.key, problem))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.block.len() + bytes.len() > BLOCK {
            self.flush()?;
        }
        if bytes.len() < BLOCK {
            self.block.extend_from_slice(bytes);
            return Ok(());
        }
        self.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        let mut block = std::mem::take(&mut self.block);
        let result = self.write(&block);
        block.clear();
        self.block = block;
        result
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.out.write(bytes).inspect_err(|_| self.failed = true)
    }

    /// Fails when bytes are missing in the file.
    fn check_whole(&self) -> Result<()> {
        match self.failed {
            true => Err(Error::usage("shard", "an earlier record could not be written")),
            false => Ok(()),
        }
    }

    /// Syncs the records and puts them in their place, and then the index likewise: with it the shard is finished.
    pub fn finish(mut self) -> Result<ShardSummary> {
        self.check_whole()?;
        self.flush()?;
        let records = self.records();
        let index = Index {
            number: self.number,
            bytes: self.end,
            data_blake3: *self.hash.finalize().as_bytes(),
            codecs: self.codecs,
            largest: self.largest,
            entries: self.entries,
        };
        self.out.rename_to(&data_path(&self.dir, self.number))?;
        let archive = format::archive(&index)?;
        let header = format::header(Content::Index, self.info_hash, &archive);
        let path = index_path(&self.dir, self.number);
        let mut out = Temporary::fixed(&path)?;
        out.write(&header)?;
        out.write(&archive)?;
        out.rename_to(&path)?;
        let mut hash = blake3::Hasher::new();
        hash.update(&header).update(&archive);
        Ok(ShardSummary {
            number: self.number,
            records,
            bytes: index.bytes,
            index_bytes: (header.len() + archive.len()) as u64,
            codecs: index.codecs,
            largest: index.largest,
            data_blake3: index.data_blake3,
            index_blake3: *hash.finalize().as_bytes(),
            index_crc32c: crc32c::crc32c(&archive),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use memmap2::MmapOptions;
    use phalanx_host::DType;

    use super::*;
    use crate::{Kind, SampleField};

    fn info(fields: Vec<FieldSpec>) -> SetInfo {
        let classes = ["Füchse", "狐"].map(String::from).to_vec();
        SetInfo { name: "s".into(), fields, classes, meta: BTreeMap::new() }
    }

    fn refused(fields: Vec<FieldSpec>, label: Option<i64>, samples: &[SampleField<'_>]) -> Error {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), 0, &info(fields)).unwrap();
        let error = writer.add(&Sample { key: "a/b", label, fields: samples }).unwrap_err();
        // Nothing of it is in the shard.
        assert_eq!(writer.finish().unwrap().records, 0);
        error
    }

    #[test]
    fn samples_that_the_schema_has_no_room_for_are_refused() {
        let raw = |shape, bytes| SampleField { codec: Codec::Raw, shape, bytes };
        for (label, found) in [(2, 2), (-1, -1), (i64::MAX, i64::MAX)] {
            let error = refused(vec![FieldSpec::label()], Some(label), &[]);
            assert!(matches!(error, Error::Label { label, classes: 2, .. } if label == found), "{error}");
        }
        let says = |error: Error, part: &str| assert!(error.to_string().contains(part), "{error}");
        says(refused(vec![FieldSpec::label()], None, &[]), "has no label");
        says(refused(vec![], Some(0), &[]), "has a label");
        says(refused(vec![], None, &[raw(&[1], &[0])]), "1 fields beside the label; the schema has 0");
        let image = || FieldSpec::image([2, 1, 3], 255.0);
        let any = || FieldSpec { variable: true, ..image() };
        says(refused(vec![image()], None, &[raw(&[2, 1, 3], &[0; 5])]), "5 bytes");
        says(refused(vec![image()], None, &[raw(&[1, 2, 3], &[0; 6])]), "is 2x1 with 3 channels");
        says(refused(vec![image()], None, &[raw(&[2, 3], &[0; 6])]), "an image has rows, columns");
        says(refused(vec![any()], None, &[raw(&[2, 1, 1], &[0; 2])]), "with 1 channels");
        says(refused(vec![any()], None, &[raw(&[0, 1, 3], &[])]), "no pixel");
        let jpeg = |shape, bytes| SampleField { codec: Codec::Jpeg, shape, bytes };
        says(refused(vec![any()], None, &[jpeg(&[65_536, 1, 3], &[0])]), "at most 65535 a side");
        says(refused(vec![any()], None, &[jpeg(&[1, 1, 3], &[])]), "in 0 bytes");
        let floats = FieldSpec { dtype: DType::F32, ..any() };
        says(refused(vec![floats], None, &[jpeg(&[1, 1, 3], &[0])]), "where the schema has f32");
        let pairs = || FieldSpec::array("p", DType::F32, &[0, 2], true);
        says(refused(vec![pairs()], None, &[jpeg(&[1, 2], &[0; 8])]), "no image field");
        says(refused(vec![pairs()], None, &[raw(&[1, 2], &[0; 12])]), "12 bytes");
        says(refused(vec![pairs()], None, &[raw(&[2, 2], &[0; 8])]), "shape [2, 2]");
        says(refused(vec![pairs()], None, &[raw(&[2, 1], &[0; 16])]), "shape [2, 1]");
    }

    #[test]
    fn sets_that_cannot_be_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let create = |info: &SetInfo| ShardWriter::create(dir.path(), 0, info).unwrap_err();
        let label = FieldSpec::label;
        let twice =
            [FieldSpec::array("a", DType::U8, &[], false), FieldSpec::array("a", DType::U8, &[], false)];
        let second = FieldSpec { name: "other".into(), ..label() };
        for fields in [
            twice.to_vec(),
            vec![label(), second],
            vec![FieldSpec::array("a", DType::U8, &[], true)],
            vec![FieldSpec::array("a", DType::U8, &[1, 0], true)],
            vec![FieldSpec::array("a", DType::F64, &[1, usize::MAX], false)],
            vec![FieldSpec::array("a", DType::F64, &[1 << 29], false)],
            vec![FieldSpec::array("a", DType::F64, &[1, 1 << 29], true)],
            vec![FieldSpec::image([1, 1, 256], 1.0)],
            vec![FieldSpec::image([65_536, 1, 3], 1.0)],
            vec![FieldSpec { dtype: DType::I64, ..FieldSpec::image([1, 1, 1], 1.0) }],
            vec![FieldSpec::image([1, 1, 1], f32::NAN)],
        ] {
            assert!(matches!(create(&info(fields.clone())), Error::Field { .. }), "{fields:?}");
        }
        let unnamed = SetInfo { classes: vec![], ..info(vec![label()]) };
        assert_eq!(create(&unnamed).kind(), Kind::Usage);
        let many = ShardWriter::create(dir.path(), MOST_SHARDS, &info(vec![])).unwrap_err();
        assert_eq!(many.kind(), Kind::Usage);
        let nowhere = ShardWriter::create(&dir.path().join("no"), 0, &info(vec![])).unwrap_err();
        assert!(matches!(nowhere, Error::Io { doing: "create", .. }), "{nowhere}");
    }

    #[test]
    fn what_32_bits_cannot_tell_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let info = info(vec![
            FieldSpec::array("a", DType::U8, &[0], true),
            FieldSpec::array("b", DType::U8, &[0], true),
        ]);
        let mut writer = ShardWriter::create(dir.path(), 0, &info).unwrap();
        // Memory that nobody touches takes none.
        let huge = MmapOptions::new().len(1 << 32).no_reserve_swap().map_anon().unwrap();
        let huge = huge.make_read_only().unwrap();
        let field = |n: usize| SampleField { codec: Codec::Raw, shape: &[0], bytes: &huge[..n] };
        let add = |writer: &mut ShardWriter, [a, b]: [usize; 2]| {
            let shapes = [[a], [b]];
            let fields = [
                SampleField { shape: &shapes[0], ..field(a) },
                SampleField { shape: &shapes[1], ..field(b) },
            ];
            writer.add(&Sample { key: "k", label: None, fields: &fields }).map_err(|e| e.to_string())
        };
        let one = add(&mut writer, [1 << 32, 0]).unwrap_err();
        assert!(one.contains("4294967296 bytes; a record has less than 4 GiB"), "{one}");
        let both = add(&mut writer, [1 << 31, 1 << 31]).unwrap_err();
        assert!(both.contains("less than 4 GiB"), "{both}");
        add(&mut writer, [1, 1]).unwrap();
        writer.end = (1 << 38) - 64;
        add(&mut writer, [1, 1]).unwrap();
        let full = add(&mut writer, [1, 1]).unwrap_err();
        assert!(full.contains("less than 256 GiB"), "{full}");
    }
}
