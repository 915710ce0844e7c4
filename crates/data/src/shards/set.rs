use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::copies::Copies;
use super::format::{self, ALIGN, ArchivedEntry, Entry, NO_LABEL, data_path, index_path};
use super::handles::Handles;
use super::layout::{Cell, Layout};
use super::manifest::{self, Loaded, check_length};
use super::map::MappedIndex;
use super::{ShardSummary, quarantine};
use crate::loader::is_of_record;
use crate::{Codec, Error, FieldSpec, Record, RecordField, Result, Schema, Source};

/// A set of shards on disk. The index is mapped, records are read with one `pread` each and their CRC32C is checked.
#[derive(Debug)]
pub struct ShardSet {
    dir: PathBuf,
    name: String,
    schema: Schema,
    meta: BTreeMap<String, String>,
    root: [u8; 32],
    layout: Layout,
    shards: Vec<ShardSummary>,
    indexes: Vec<MappedIndex>,
    /// Records before each shard, and in the end all.
    starts: Vec<u64>,
    handles: Handles,
    /// Copies of shards that are read instead.
    copies: OnceLock<Copies>,
    /// Of each record that is left out, in order, how many of those that are not come before it.
    left_out: Vec<u64>,
}

/// Where a sample lies and what the index says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardEntry {
    /// The shard.
    pub shard: u32,
    /// Its place in the shard.
    pub record: u64,
    /// Its first byte in the shard's file.
    pub offset: u64,
    /// Its bytes, without what fills up to 64.
    pub length: u32,
    /// CRC32C of them.
    pub crc32c: u32,
    /// The first eight bytes, little endian, of the BLAKE3 hash of its key.
    pub key_hash: u64,
    /// Its class.
    pub label: Option<i64>,
    /// Rows of its first image; 0 without one.
    pub height: usize,
    /// Columns likewise.
    pub width: usize,
    /// Channels of it as stored.
    pub channels: usize,
    /// How its first image is stored; else its first field.
    pub codec: Codec,
}

impl ShardSet {
    /// Opens the set in `dir`: reads the manifest, maps the indexes, checks both and the lengths of the files. The
    /// records are checked when they are read. Records in quarantine are left out, and the others numbered without a gap.
    ///
    /// Fails with [`Error::Incomplete`] when the set's writing did not come to its end or a part is missing, with
    /// [`Error::Format`] when one is damaged, and with [`Error::Io`].
    pub fn open(dir: &Path) -> Result<Self> {
        let mut set = Self::open_whole(dir)?;
        let records = quarantine::load(dir, &set.root, set.whole())?;
        set.left_out = (0..).zip(&records).map(|(before, r)| r.id - before).collect();
        Ok(set)
    }

    /// As [`ShardSet::open`], with the records in quarantine.
    pub(super) fn open_whole(dir: &Path) -> Result<Self> {
        let loaded = manifest::load(dir)?;
        let indexes =
            loaded.shards.iter().map(|s| open_shard(dir, &loaded, s)).collect::<Result<Vec<_>>>()?;
        Ok(Self::of(dir, loaded, indexes))
    }

    fn of(dir: &Path, loaded: Loaded, indexes: Vec<MappedIndex>) -> Self {
        let mut starts = vec![0];
        starts.extend(loaded.shards.iter().scan(0, |sum, s| {
            *sum += s.records;
            Some(*sum)
        }));
        ShardSet {
            dir: dir.to_owned(),
            name: loaded.info.name,
            schema: Schema { fields: loaded.fields, classes: loaded.info.classes },
            meta: loaded.info.meta,
            root: loaded.root,
            layout: loaded.layout,
            handles: Handles::new(loaded.shards.len()),
            copies: OnceLock::new(),
            shards: loaded.shards,
            indexes,
            starts,
            left_out: Vec::new(),
        }
    }

    /// The BLAKE3 root, which stands for every byte of the set; the quarantine is no part of it.
    pub fn root(&self) -> [u8; 32] {
        self.root
    }

    /// The set's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was noted when the set was made.
    pub fn meta(&self) -> &BTreeMap<String, String> {
        &self.meta
    }

    /// The shards.
    pub fn shards(&self) -> &[ShardSummary] {
        &self.shards
    }

    /// How many records are in quarantine.
    pub fn quarantined(&self) -> u64 {
        self.left_out.len() as u64
    }

    /// The records in quarantine, by their numbers among all records of the set, in order.
    pub fn left_out(&self) -> impl Iterator<Item = u64> {
        self.left_out.iter().zip(0..).map(|(between, before)| between + before)
    }

    /// The shard that sample `id` lies in. Fails with [`Error::NoSample`].
    pub fn shard_of(&self, id: u64) -> Result<u32> {
        self.place(id).map(|(shard, _)| shard as u32)
    }

    /// The hash of sample `id`'s key. Fails with [`Error::NoSample`].
    pub fn key_hash(&self, id: u64) -> Result<u64> {
        let (shard, record) = self.place(id)?;
        Ok(self.indexes[shard].entries()[record].key_hash.to_native())
    }

    /// What the index says of sample `id`. Fails with [`Error::NoSample`].
    pub fn entry(&self, id: u64) -> Result<ShardEntry> {
        let (shard, record) = self.place(id)?;
        let entry = native(&self.indexes[shard].entries()[record]);
        Ok(ShardEntry {
            shard: shard as u32,
            record: record as u64,
            offset: u64::from(entry.start) * ALIGN,
            length: entry.length,
            crc32c: entry.crc32c,
            key_hash: entry.key_hash,
            label: (entry.label != NO_LABEL).then_some(entry.label.into()),
            height: entry.height.into(),
            width: entry.width.into(),
            channels: entry.channels.into(),
            codec: format::codec_of(entry.codec).unwrap_or_default(),
        })
    }

    /// With that many files open at most.
    #[cfg(test)]
    pub(super) fn keep_open(&mut self, most: usize) {
        self.handles = Handles::with_most(self.shards.len(), most);
    }

    /// Records, with those in quarantine.
    pub(super) fn whole(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The shard and the place in it of sample `id`.
    fn place(&self, id: u64) -> Result<(usize, usize)> {
        let mut at = id;
        if !self.left_out.is_empty() {
            at = id.saturating_add(self.left_out.partition_point(|&k| k <= id) as u64);
        }
        if at >= self.whole() {
            return Err(Error::NoSample { set: self.name.clone(), sample: id, len: self.len() });
        }
        // Shards are equally large as a rule, but for the last.
        let guess = (at / self.shards[0].records.max(1)).min(self.shards.len() as u64 - 1) as usize;
        let fits = self.starts[guess] <= at && at < self.starts[guess + 1];
        let shard = if fits { guess } else { self.starts.partition_point(|&s| s <= at) - 1 };
        Ok((shard, (at - self.starts[shard]) as usize))
    }

    /// Reads from copies of these shards' files in `dir` from now on, where they can be read; they have the names of the
    /// originals. The first call counts: ranks of one process share what is open.
    pub fn use_copies(&self, dir: &Path, shards: &[u32]) {
        self.copies.get_or_init(|| Copies::new(dir, self.shards.len(), shards));
    }

    /// Reads a record's bytes into `bytes`, which are as many.
    fn payload(&self, id: u64, shard: usize, entry: &Entry, bytes: &mut [u8]) -> Result<()> {
        let copies = self.copies.get().filter(|c| c.has(shard));
        let copied = copies.map(|c| (c, read_record(&c.handles, &c.dir, id, shard, entry, bytes)));
        if let Some((_, Ok(()))) = copied {
            return Ok(());
        }
        read_record(&self.handles, &self.dir, id, shard, entry, bytes)?;
        // The original is sound. What is wrong with the copy's bytes stays wrong; what else has happened may pass.
        if let Some((copies, Err(e))) = copied
            && is_of_record(&e)
        {
            copies.give_up(shard);
        }
        Ok(())
    }

    fn put_label(&self, entry: &Entry, record: &mut Record) {
        if let Some(label) = self.layout.label {
            let field = &mut record.fields[label];
            field.bytes.clear();
            field.bytes.extend_from_slice(&i64::from(entry.label).to_le_bytes());
            field.shape.clear();
            field.codec = Codec::Raw;
        }
    }

    fn fill(&self, id: u64, bytes: &mut Vec<u8>, record: &mut Record) -> Result<()> {
        let (shard, at) = self.place(id)?;
        let entry = native(&self.indexes[shard].entries()[at]);
        self.put_label(&entry, record);
        if self.layout.stored.is_empty() {
            return Ok(());
        }
        // What is there is overwritten: only growth costs zeros.
        bytes.resize(entry.length as usize, 0);
        self.payload(id, shard, &entry, bytes)?;
        let bad = |problem: String| {
            let offset = u64::from(entry.start) * ALIGN;
            Error::format(
                data_path(&self.dir, shard as u32),
                format!("sample {id} at byte {offset}: {problem}"),
            )
        };
        let mut first = 0;
        split(&self.layout, &self.schema.fields, &entry, bytes, |k, cell, range| {
            let i = self.layout.stored[k];
            let RecordField { bytes: out, shape, codec } = &mut record.fields[i];
            cell.shape_into(&self.schema.fields[i], shape);
            *codec = cell.codec;
            if k == 0 {
                first = range.end;
            } else {
                out.clear();
                out.extend_from_slice(&bytes[range]);
            }
        })
        .map_err(bad)?;
        bytes.truncate(first);
        Ok(())
    }
}

/// Reads a record's bytes from a shard's file in `dir` and checks them.
fn read_record(
    handles: &Handles,
    dir: &Path,
    id: u64,
    shard: usize,
    entry: &Entry,
    bytes: &mut [u8],
) -> Result<()> {
    let path = || data_path(dir, shard as u32);
    let file = handles.get(shard, path)?;
    let offset = u64::from(entry.start) * ALIGN;
    let bad = |problem: String| Error::format(path(), format!("sample {id} at byte {offset}: {problem}"));
    file.read_exact_at(bytes, offset).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => bad("the file ends before it".into()),
        _ => Error::io("read", path())(e),
    })?;
    check_crc(entry, bytes).map_err(bad)
}

/// Maps a shard's index and checks it against the manifest; checks the length of the file with the records.
pub(super) fn open_shard(dir: &Path, loaded: &Loaded, summary: &ShardSummary) -> Result<MappedIndex> {
    let path = index_path(dir, summary.number);
    let map = MappedIndex::open(dir, &path, Some(summary.index_bytes))?;
    check_length(dir, &data_path(dir, summary.number), summary.bytes)?;
    let bad = |problem: String| Error::format(&path, problem);
    let header = map.header();
    if header.crc32c != summary.index_crc32c || header.hash != loaded.info_hash {
        return Err(bad("belongs to another set or another place in it".into()));
    }
    if map.entries().len() as u64 != summary.records {
        return Err(bad(format!("has {} records, the manifest {}", map.entries().len(), summary.records)));
    }
    let mut end = 0;
    for (i, entry) in map.entries().iter().map(native).enumerate() {
        let next = next_start(loaded, &entry, end);
        end = next.ok_or_else(|| bad(format!("record {i} {}", entry_problem(loaded, &entry, end))))?;
    }
    match end == summary.bytes {
        true => Ok(map),
        false => Err(bad(format!("its records end at byte {end} of {}", summary.bytes))),
    }
}

/// Where the record after this one must start, if this one starts at `end` and is as the schema says.
#[inline]
fn next_start(loaded: &Loaded, entry: &Entry, end: u64) -> Option<u64> {
    let label_fits = match loaded.layout.label {
        Some(_) => (entry.label as usize) < loaded.info.classes.len(),
        None => entry.label == NO_LABEL,
    };
    let codec = format::codec_of(entry.codec)?;
    let fits = match loaded.layout.stored[..] {
        [] => entry.length == 0,
        [only] => Cell::of_entry(entry, codec).fits(&loaded.fields[only]),
        // Of several, the record's table tells.
        _ => true,
    };
    let start = u64::from(entry.start) * ALIGN;
    let fits = fits && label_fits && start == end && entry.flags == 0 && entry.spare == 0;
    fits.then(|| (start + u64::from(entry.length)).next_multiple_of(ALIGN))
}

/// Why [`next_start`] has none.
#[cold]
fn entry_problem(loaded: &Loaded, entry: &Entry, end: u64) -> String {
    let start = u64::from(entry.start) * ALIGN;
    if start != end {
        return format!("starts at byte {start} and should at {end}");
    }
    let codec = format::codec_of(entry.codec).unwrap_or_default();
    let cell = match loaded.layout.stored[..] {
        [only] => Cell::of_entry(entry, codec).check(&loaded.fields[only]),
        _ => Ok(()),
    };
    cell.err().unwrap_or_else(|| format!("has an impossible label, codec, flag or length: {entry:?}"))
}

#[inline]
pub(super) fn native(e: &ArchivedEntry) -> Entry {
    Entry {
        key_hash: e.key_hash.to_native(),
        start: e.start.to_native(),
        length: e.length.to_native(),
        crc32c: e.crc32c.to_native(),
        label: e.label.to_native(),
        height: e.height.to_native(),
        width: e.width.to_native(),
        channels: e.channels,
        codec: e.codec,
        flags: e.flags,
        spare: e.spare,
    }
}

pub(super) fn check_crc(entry: &Entry, bytes: &[u8]) -> std::result::Result<(), String> {
    let found = crc32c::crc32c(bytes);
    match found == entry.crc32c {
        true => Ok(()),
        false => Err(format!("it is damaged: its CRC32C is {found:08x} and should be {:08x}", entry.crc32c)),
    }
}

/// Gives `each` the fields of a record: which, what it is, and where in `bytes` it lies.
pub(super) fn split(
    layout: &Layout,
    fields: &[FieldSpec],
    entry: &Entry,
    bytes: &[u8],
    mut each: impl FnMut(usize, Cell, Range<usize>),
) -> std::result::Result<(), String> {
    let broken = || "the table at its end is broken".to_owned();
    let table = bytes.len().checked_sub(layout.table_bytes()).ok_or_else(broken)?;
    let mut at = 0usize;
    for (k, &i) in layout.stored.iter().enumerate() {
        let cell = match layout.table_bytes() {
            // The entry is the only field's row, and was looked at when the set was opened.
            0 => Cell::of_entry(entry, format::codec_of(entry.codec).ok_or_else(broken)?),
            _ => {
                let row = bytes[table + k * Cell::BYTES..].first_chunk().ok_or_else(broken)?;
                let cell = Cell::from_bytes(*row).ok_or_else(broken)?;
                cell.check(&fields[i]).map_err(|problem| format!("field {:?} {problem}", fields[i].name))?;
                cell
            }
        };
        let end = at.checked_add(cell.length as usize).filter(|&end| end <= table).ok_or_else(broken)?;
        each(k, cell, at..end);
        at = end;
    }
    if at == table { Ok(()) } else { Err(broken()) }
}

impl Source for ShardSet {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.whole() - self.quarantined()
    }

    fn schema(&self) -> &Schema {
        &self.schema
    }

    fn read(&self, id: u64, record: &mut Record) -> Result<()> {
        record.fields.resize_with(self.schema.fields.len(), RecordField::default);
        // The first field's memory takes the whole record, and keeps what belongs to it.
        let Some(&first) = self.layout.stored.first() else {
            return self.fill(id, &mut Vec::new(), record);
        };
        let mut bytes = std::mem::take(&mut record.fields[first].bytes);
        let result = self.fill(id, &mut bytes, record);
        record.fields[first].bytes = bytes;
        result
    }

    fn read_into(&self, id: u64, field: usize, record: &mut Record, into: &mut [u8]) -> Result<bool> {
        let (shard, at) = self.place(id)?;
        let entry = native(&self.indexes[shard].entries()[at]);
        // The entry of an only field was compared with the schema when the set was opened.
        let raw = format::codec_of(entry.codec) == Some(Codec::Raw);
        if self.layout.stored[..] != [field] || !raw || entry.length as usize != into.len() {
            return Ok(false);
        }
        record.fields.resize_with(self.schema.fields.len(), RecordField::default);
        self.put_label(&entry, record);
        self.payload(id, shard, &entry, into).map(|()| true)
    }

    fn shard_set(&self) -> Option<&ShardSet> {
        Some(self)
    }

    fn label(&self, id: u64) -> Result<Option<i64>> {
        let (shard, record) = self.place(id)?;
        let label = self.indexes[shard].entries()[record].label.to_native();
        Ok((label != NO_LABEL).then_some(label.into()))
    }
}
