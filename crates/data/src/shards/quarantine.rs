//! Records that are left out because they are damaged: `quarantine.json`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::format::{FOR_PEOPLE, QUARANTINE};
use super::manifest;
use super::verify::{BadRecord, verify};
use crate::files::{TEMPORARY, hex, remove_file, write_whole};
use crate::{Error, Result};

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The root of the set that it belongs to.
    root: String,
    /// By id.
    records: Vec<BadRecord>,
    /// BLAKE3 of the above.
    blake3: String,
}

impl File {
    fn new(root: &[u8; 32], records: Vec<BadRecord>) -> Result<Self> {
        let root = hex(root);
        let plain = serde_json::to_vec(&(&root, &records)).map_err(unwritable)?;
        Ok(File { blake3: hex(blake3::hash(&plain).as_bytes()), root, records })
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(unwritable)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

fn unwritable(e: serde_json::Error) -> Error {
    Error::usage(QUARANTINE, format!("cannot be written: {e}"))
}

/// The records in quarantine of the set in `dir` with that root and that many records, by id.
pub(super) fn load(dir: &Path, root: &[u8; 32], len: u64) -> Result<Vec<BadRecord>> {
    let path = dir.join(QUARANTINE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let bad =
        |problem: String| Error::format(&path, format!("{problem}; `phalanx data repair` makes it anew"));
    let file: File = serde_json::from_slice(&bytes).map_err(|e| bad(format!("is damaged: {e}")))?;
    if file.root != hex(root) {
        return Err(bad(format!(
            "belongs to another set: its root is {}, the set's {}",
            file.root,
            hex(root)
        )));
    }
    let sorted = file.records.iter().is_sorted_by(|a, b| a.id < b.id);
    if !sorted || file.records.last().is_some_and(|r| r.id >= len) {
        return Err(bad("names records that are not there, or not in order".into()));
    }
    // Every byte of it counts: it says what is trained on.
    let same = File::new(root, file.records.clone())?;
    if same.to_bytes()? != bytes {
        return Err(bad("is damaged: it is not as it was written".into()));
    }
    Ok(file.records)
}

/// What [`repair`] did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Repaired {
    /// The records in quarantine now, by id.
    pub quarantined: Vec<BadRecord>,
    /// How many of them were not there before.
    pub added: u64,
    /// How many were in quarantine and are sound again.
    pub released: u64,
    /// Records that are left.
    pub left: u64,
    /// Files that were written anew because they follow from the others.
    pub rewritten: Vec<String>,
}

/// Reads a whole set as [`verify`] does and puts its bad records, and no others, into quarantine: [`super::ShardSet::open`]
/// leaves them out from then on. A damaged `dataset.json` is written anew.
///
/// Fails with [`Error::Incomplete`] or [`Error::Format`] when something else is missing or damaged, which only packing
/// again can bring back; nothing is changed then.
pub fn repair(dir: &Path, threads: usize, progress: &(dyn Fn(u64) + Sync)) -> Result<Repaired> {
    let report = verify(dir, threads, progress)?;
    if let Some(problem) = report.incomplete.first() {
        return Err(Error::incomplete(dir, problem));
    }
    // What a repair that was killed has left is no damage.
    let (left, damaged): (Vec<_>, Vec<_>) = report.files.iter().partition(|f| f.file.ends_with(TEMPORARY));
    if let Some(bad) = damaged.iter().find(|f| ![FOR_PEOPLE, QUARANTINE].contains(&f.file.as_str())) {
        let way = match bad.problem.starts_with("cannot be read") {
            true => "once it can, repeat this",
            false => "only packing again can repair damage",
        };
        let problem = format!("{}; {way}", bad.problem);
        return Err(Error::format(dir.join(&bad.file), problem));
    }
    left.iter().try_for_each(|f| remove_file(&dir.join(&f.file)))?;
    let loaded = manifest::load(dir)?;
    let mut done = Repaired::default();
    if report.files.iter().any(|f| f.file == FOR_PEOPLE) {
        let bytes = manifest::for_people(&loaded.info, &loaded.layout, &loaded.shards)?;
        write_whole(&dir.join(FOR_PEOPLE), &bytes)?;
        done.rewritten.push(FOR_PEOPLE.to_owned());
    }
    let path = dir.join(QUARANTINE);
    // A quarantine that cannot be read names nothing.
    let before = load(dir, &loaded.root, report.records).unwrap_or_default();
    let mut now = [report.bad, report.quarantined].concat();
    now.sort_by_key(|r| r.id);
    let has = |list: &[BadRecord], id: u64| list.binary_search_by_key(&id, |r| r.id).is_ok();
    done.added = now.iter().filter(|r| !has(&before, r.id)).count() as u64;
    done.released = before.iter().filter(|r| !has(&now, r.id)).count() as u64;
    done.left = report.records - now.len() as u64;
    if now.is_empty() {
        remove_file(&path)?;
    } else {
        write_whole(&path, &File::new(&loaded.root, now.clone())?.to_bytes()?)?;
    }
    done.quarantined = now;
    Ok(done)
}
