use std::path::{Path, PathBuf};

use super::format::{
    self, ALIGN, Content, Entry, Index, MANIFEST, MOST_RECORDS, MOST_SHARDS, NO_LABEL, codec_byte, data_path,
    index_path,
};
use super::layout::{Cell, Layout, unbounded};
use super::{Sample, SetInfo, ShardSummary};
use crate::files::Temporary;
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
    /// Bytes that were handed to the file.
    written: u64,
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
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path)(e));
                }
                _ => {}
            }
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
            written: 0,
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
        if self.written + self.block.len() as u64 != self.end {
            return Err(Error::usage("shard", "an earlier record could not be written"));
        }
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
        self.hash.update(bytes);
        self.out.write(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.hash.update(&self.block);
        self.out.write(&self.block)?;
        self.written += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }

    /// Syncs the records and puts them in their place, and then the index likewise: with it the shard is finished.
    pub fn finish(mut self) -> Result<ShardSummary> {
        self.flush()?;
        if self.written != self.end {
            return Err(Error::usage("shard", "a record could not be written"));
        }
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
