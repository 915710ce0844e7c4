//! Reading all of a set, to find what is damaged.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::format::{ALIGN, Entry, FOR_PEOPLE, MANIFEST, data_path, index_path};
use super::layout::Cell;
use super::manifest::{self, Loaded};
use super::map::MappedIndex;
use super::set::{check_crc, native, open_shard, split};
use super::{ShardSummary, quarantine};
use crate::files::{hex, is_of_bytes};
use crate::threads::on_threads;
use crate::{Codec, Error, Picture, Result};

/// Bytes that a thread reads at once, if a record is not larger.
const BLOCK: u64 = 8 << 20;

/// A record that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BadRecord {
    /// Its id when nothing is in quarantine.
    pub id: u64,
    /// The hash of its key, as in [`super::ShardEntry::key_hash`], in hexadecimal.
    pub key_hash: String,
    /// Its shard.
    pub shard: u32,
    /// Its first byte in the shard's file.
    pub offset: u64,
    /// What is wrong.
    pub reason: String,
}

/// A file of a set that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadFile {
    /// Its name in the set's directory.
    pub file: String,
    /// What is wrong.
    pub problem: String,
}

/// What [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// The set's root in hexadecimal; `None` when the manifest is missing or damaged.
    pub root: Option<String>,
    /// Shards of the set.
    pub shards: u64,
    /// Records of the set, with those in quarantine.
    pub records: u64,
    /// Bytes of the files with the records.
    pub bytes: u64,
    /// What is missing, if the set is incomplete.
    pub incomplete: Vec<String>,
    /// Damaged files, beyond those with bad records in them.
    pub files: Vec<BadFile>,
    /// Bad records that are not in quarantine, by id.
    pub bad: Vec<BadRecord>,
    /// Bad records that are, by id.
    pub quarantined: Vec<BadRecord>,
}

impl VerifyReport {
    /// Whether all that is read of the set is as it was written.
    pub fn is_sound(&self) -> bool {
        self.incomplete.is_empty() && self.files.is_empty() && self.bad.is_empty()
    }

    /// Notes an error that is one of the set's; others are returned.
    fn note(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Incomplete { problem, .. } => self.incomplete.push(problem),
            Error::Format { path, problem } => self.note_file(&path, problem),
            // A file that the system cannot read is as good as damaged.
            Error::Io { doing, path, cause } => self.note_file(&path, format!("cannot {doing} it: {cause}")),
            other => return Err(other),
        }
        Ok(())
    }

    fn note_file(&mut self, path: &Path, problem: String) {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.files.push(BadFile { file, problem });
    }
}

/// Reads every byte of the set in `dir` on `threads` threads (at least one): checks each record's CRC32C, decodes each
/// image, and compares the BLAKE3 of each file with the manifest's and the manifest with its root. `progress` is told
/// the bytes of records as they are done. A thread holds 8 MiB, or a record if that is larger, and an image.
///
/// Damage is no error but in the report. Fails with [`Error::Format`] when `dir` holds no shard set, and with
/// [`Error::Io`] when it cannot be listed.
pub fn verify(dir: &Path, threads: usize, progress: &(dyn Fn(u64) + Sync)) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let loaded = match manifest::load(dir) {
        Ok(loaded) => loaded,
        Err(e) if dir.join(MANIFEST).exists() || matches!(e, Error::Incomplete { .. }) => {
            report.note(e)?;
            return Ok(report);
        }
        Err(e) => return Err(e),
    };
    report.root = Some(hex(&loaded.root));
    report.shards = loaded.shards.len() as u64;
    report.records = loaded.shards.iter().map(|s| s.records).sum();
    report.bytes = loaded.shards.iter().map(|s| s.bytes).sum();
    match fs::read(dir.join(FOR_PEOPLE)) {
        Ok(bytes) if *blake3::hash(&bytes).as_bytes() == loaded.for_people => {}
        Ok(_) => report.note_file(Path::new(FOR_PEOPLE), "is not as it was written".into()),
        Err(e) => report.note_file(Path::new(FOR_PEOPLE), format!("cannot be read: {e}")),
    }
    for name in manifest::strays(dir, loaded.shards.len())? {
        report.note_file(Path::new(&name), "is no part of the set".into());
    }
    let quarantined = match quarantine::load(dir, &loaded.root, report.records) {
        Ok(records) => records,
        Err(e) => {
            report.note(e)?;
            Vec::new()
        }
    };
    let mut lanes = Vec::new();
    let mut first = 0;
    for summary in &loaded.shards {
        match open_shard(dir, &loaded, summary) {
            Ok(index) if *blake3::hash(index.bytes()).as_bytes() != summary.index_blake3 => {
                report.note_file(&index_path(dir, summary.number), "is not as it was written".into());
            }
            Ok(index) => lanes.push(Lane::new(dir, summary, index, first)),
            Err(e) => report.note(e)?,
        }
        first += summary.records;
    }
    for (lane, found) in lanes.iter().zip(run(&lanes, &loaded, threads, progress)?) {
        let Found { bad, problem, unreadable } = found;
        if let Some(problem) = unreadable {
            report.note_file(&lane.path, problem);
        }
        if let Some(problem) = problem.filter(|_| bad.is_empty()) {
            report.note_file(&lane.path, problem);
        }
        for record in bad {
            let known = quarantined.binary_search_by_key(&record.id, |r| r.id).is_ok();
            if known { &mut report.quarantined } else { &mut report.bad }.push(record);
        }
    }
    Ok(report)
}

/// A shard to read. Whoever reads its next block also hashes it; what the records are is looked at outside the lock, so
/// that several threads can work on one shard.
struct Lane {
    path: PathBuf,
    shard: u32,
    /// The id of its first record.
    first: u64,
    bytes: u64,
    wanted: [u8; 32],
    index: MappedIndex,
    reading: Mutex<Reading>,
}

#[derive(Default)]
struct Reading {
    file: Option<File>,
    /// Records that were read.
    records: usize,
    /// Of all bytes so far; worth nothing once some could not be read.
    hash: blake3::Hasher,
    unread: bool,
    done: bool,
    found: Found,
}

/// What is wrong with a shard.
#[derive(Debug, Default)]
struct Found {
    bad: Vec<BadRecord>,
    /// Of the file as a whole.
    problem: Option<String>,
    /// Why it cannot be read at present, which says nothing of its records.
    unreadable: Option<String>,
}

impl Lane {
    fn new(dir: &Path, summary: &ShardSummary, index: MappedIndex, first: u64) -> Self {
        Lane {
            path: data_path(dir, summary.number),
            shard: summary.number,
            first,
            bytes: summary.bytes,
            wanted: summary.data_blake3,
            index,
            reading: Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, record: usize) -> Entry {
        native(&self.index.entries()[record])
    }

    /// Reads the next records into `block`: which they are, and where in the file the block starts. `None` at the end.
    fn next(&self, block: &mut Vec<u8>) -> Option<(Range<usize>, u64)> {
        let reading = &mut *self.lock();
        let entries = self.index.entries();
        let start = |record: usize| match entries.get(record) {
            Some(entry) => u64::from(entry.start.to_native()) * ALIGN,
            None => self.bytes,
        };
        let mut most = BLOCK;
        while !reading.done {
            let (from, at) = (reading.records, start(reading.records));
            let mut to = (from + 1).min(entries.len());
            while to < entries.len() && start(to + 1) - at <= most {
                to += 1;
            }
            block.resize((start(to) - at) as usize, 0);
            let read = reading.read(&self.path, block, at);
            if read.as_ref().is_err_and(is_of_bytes) && to > from + 1 {
                // One after the other, to learn which it is.
                most = 0;
                continue;
            }
            reading.records = to;
            reading.done = to == entries.len();
            let whole = read.is_ok();
            match read {
                Ok(()) => {
                    reading.hash.update(block);
                }
                Err(e) if !is_of_bytes(&e) => {
                    reading.found.unreadable = Some(format!("cannot be read: {e}"));
                    (reading.file, reading.done) = (None, true);
                    return None;
                }
                Err(e) => {
                    reading.unread = true;
                    reading.found.problem = Some(format!("cannot be read: {e}"));
                    if from < to {
                        reading.found.bad.push(self.bad(from, format!("it cannot be read: {e}")));
                    }
                }
            }
            if reading.done {
                reading.file = None;
                if !reading.unread && *reading.hash.finalize().as_bytes() != self.wanted {
                    reading.found.problem = Some("is not as it was written, outside of its records".into());
                }
            }
            if whole {
                return Some((from..to, at));
            }
        }
        None
    }

    fn bad(&self, record: usize, reason: String) -> BadRecord {
        let entry = self.entry(record);
        BadRecord {
            id: self.first + record as u64,
            key_hash: format!("{:016x}", entry.key_hash),
            shard: self.shard,
            offset: u64::from(entry.start) * ALIGN,
            reason,
        }
    }

    /// Looks at the records of a block.
    fn check(&self, loaded: &Loaded, records: Range<usize>, at: u64, block: &[u8]) {
        let mut bad = Vec::new();
        for record in records {
            let entry = self.entry(record);
            let offset = u64::from(entry.start) * ALIGN;
            let bytes = &block[(offset - at) as usize..][..entry.length as usize];
            if let Err(reason) = check_record(loaded, &entry, bytes) {
                bad.push(self.bad(record, reason));
            }
        }
        if !bad.is_empty() {
            self.lock().found.bad.append(&mut bad);
        }
    }
}

impl Reading {
    fn read(&mut self, path: &Path, block: &mut [u8], at: u64) -> std::io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => File::open(path)?,
        };
        file.read_exact_at(block, at)?;
        self.file = Some(file);
        Ok(())
    }
}

/// Reads all lanes: each thread takes one after the other, and helps with what others have not done when none is left.
fn run(
    lanes: &[Lane],
    loaded: &Loaded,
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Found>> {
    let taken = AtomicUsize::new(0);
    let work = || {
        let mut block = Vec::new();
        let mut finish = |lane: &Lane| {
            while let Some((records, at)) = lane.next(&mut block) {
                lane.check(loaded, records, at, &block);
                progress(block.len() as u64);
            }
        };
        while let Some(lane) = lanes.get(taken.fetch_add(1, Ordering::Relaxed)) {
            finish(lane);
        }
        lanes.iter().for_each(finish);
    };
    on_threads(threads, "verify", work)?;
    let found = lanes.iter().map(|lane| {
        let mut found = std::mem::take(&mut lane.lock().found);
        found.bad.sort_by_key(|r| r.id);
        found
    });
    Ok(found.collect())
}

/// Whether a record is what its entry and the schema say. The error is what is wrong.
fn check_record(loaded: &Loaded, entry: &Entry, bytes: &[u8]) -> std::result::Result<(), String> {
    check_crc(entry, bytes)?;
    let mut result = Ok(());
    split(&loaded.layout, &loaded.fields, entry, bytes, |k, cell, range| {
        if result.is_err() {
            return;
        }
        let field = &loaded.fields[loaded.layout.stored[k]];
        result = match cell.codec {
            Codec::Raw => Ok(()),
            _ => check_image(&cell, &bytes[range]).map_err(|e| format!("field {:?}: {e}", field.name)),
        };
        // Whoever counts sizes looks at the index alone.
        if loaded.layout.image == Some(k) && !cell.is_image_of(entry) {
            result = Err("the index says another size or codec than the record".into());
        }
    })?;
    result
}

fn check_image(cell: &Cell, bytes: &[u8]) -> std::result::Result<(), String> {
    let starts: &[u8] = if cell.codec == Codec::Png { b"\x89PNG" } else { b"\xff\xd8" };
    if !bytes.starts_with(starts) {
        return Err(format!("it is no {:?} file", cell.codec));
    }
    let picture = catch_unwind(AssertUnwindSafe(|| Picture::decode(bytes)))
        .unwrap_or_else(|_| Err("the decoder panicked".into()))?;
    let (h, w) = (usize::from(cell.height), usize::from(cell.width));
    match (picture.height, picture.width) == (h, w) {
        true => Ok(()),
        false => Err(format!("it is {}x{}, the index says {w}x{h}", picture.width, picture.height)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::tests::{captioned_set, quiet};

    #[test]
    fn what_cannot_be_read_costs_only_the_records_it_is_in() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        captioned_set(dir, &[6]);
        let loaded = manifest::load(dir).unwrap();
        let lane = |from| {
            let index = open_shard(dir, &loaded, &loaded.shards[0]).unwrap();
            Lane::new(dir, &loaded.shards[0], index, from)
        };
        let path = data_path(dir, 0);
        let bytes = fs::read(&path).unwrap();
        // As a disk that fails while it is read: the lengths were looked at before.
        let lanes = [lane(100)];
        let offset = |record: usize| u64::from(lanes[0].entry(record).start) * ALIGN;
        File::options().write(true).open(&path).unwrap().set_len(offset(4) + 1).unwrap();
        let found = run(&lanes, &loaded, 2, &quiet).unwrap();
        assert_eq!(found[0].bad.iter().map(|b| b.id).collect::<Vec<_>>(), [104, 105]);
        assert!(found[0].bad.iter().all(|b| b.reason.contains("cannot be read")), "{:?}", found[0].bad);
        assert!(found[0].problem.is_some());
        fs::write(&path, bytes).unwrap();
        let lanes = [lane(0)];
        // A file that is not there, or may not be read, says nothing of its records: `repair` must not give them up.
        fs::remove_file(&path).unwrap();
        let found = &run(&lanes, &loaded, 1, &quiet).unwrap()[0];
        assert!(found.bad.is_empty() && found.problem.is_none());
        assert!(found.unreadable.as_ref().is_some_and(|why| why.contains("cannot be read")));
    }
}
