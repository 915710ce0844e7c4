//! The files that make shards a set.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::format::{
    self, Content, FOR_PEOPLE, FieldRow, Flaw, InfoRow, MANIFEST, MOST_SHARDS, Manifest, PACKING, data_path,
    index_path,
};
use super::layout::{Layout, bounded};
use super::map::MappedIndex;
use super::{SetInfo, ShardSummary};
use crate::files::{TEMPORARY, hex, write_whole};
use crate::{Error, FieldSpec, Result};

/// Whether a directory holds a shard set, or the beginnings of one.
pub(crate) fn looks_like(dir: &Path) -> bool {
    [MANIFEST, FOR_PEOPLE, PACKING].iter().any(|name| dir.join(name).exists())
        || [data_path(dir, 0), index_path(dir, 0)].iter().any(|path| path.exists())
}

/// What is known of shard `number` when it was finished for the same set by an earlier process; `None` when it is to
/// be written anew: it is not there, is damaged, or belongs to another [`SetInfo`]. The records themselves are not read.
pub fn finished_shard(dir: &Path, number: u32, info: &SetInfo) -> Result<Option<ShardSummary>> {
    let map = match MappedIndex::open(dir, &index_path(dir, number), None) {
        Ok(map) => map,
        Err(Error::Incomplete { .. } | Error::Format { .. }) => return Ok(None),
        Err(e) => return Err(e),
    };
    let Ok(index) = map.index() else { return Ok(None) };
    let bytes = index.bytes.to_native();
    let path = data_path(dir, number);
    let found = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    if index.number.to_native() != number || found != bytes || map.header().hash != format::info_hash(info)? {
        return Ok(None);
    }
    Ok(Some(ShardSummary {
        number,
        records: index.entries.len() as u64,
        bytes,
        index_bytes: map.bytes().len() as u64,
        codecs: index.codecs.map(|n| n.to_native()),
        largest: index.largest.iter().map(|extent| extent.map(|n| n.to_native())).collect(),
        data_blake3: index.data_blake3,
        index_blake3: *blake3::hash(map.bytes()).as_bytes(),
        index_crc32c: map.header().crc32c,
    }))
}

/// Makes a set of finished shards, numbered from 0 without a gap, and returns its root. Sealing again what did not
/// change writes the same bytes.
///
/// Fails with [`Error::Usage`] when the shards are not those of one set or others lie there, with
/// [`Error::Incomplete`] when one is not in its place, and with [`Error::Io`].
pub fn seal(dir: &Path, info: &SetInfo, shards: &[ShardSummary]) -> Result<[u8; 32]> {
    let layout = Layout::new(info)?;
    let mut shards = shards.to_vec();
    shards.sort_by_key(|s| s.number);
    if shards.len() > MOST_SHARDS as usize {
        return Err(Error::usage("shards", format!("{}: a set has at most {MOST_SHARDS}", shards.len())));
    }
    for (wanted, shard) in (0..).zip(&shards) {
        let number = shard.number;
        if number != wanted {
            let problem =
                format!("number {number} comes where {wanted} should: one is missing or there twice");
            return Err(Error::usage("shards", problem));
        }
        if shard.largest.len() != layout.stored.len() {
            return Err(Error::usage("shards", format!("number {number} has other fields than the set")));
        }
        check_length(dir, &data_path(dir, number), shard.bytes)?;
        check_length(dir, &index_path(dir, number), shard.index_bytes)?;
    }
    if let Some(name) = strays(dir, shards.len())?.first() {
        let problem =
            format!("holds {name}, which is no part of a set of {} shards: remove it", shards.len());
        return Err(Error::usage(dir.display().to_string(), problem));
    }
    let for_people = for_people(info, &layout, &shards)?;
    write_whole(&dir.join(FOR_PEOPLE), &for_people)?;
    let for_people = *blake3::hash(&for_people).as_bytes();
    let archive = format::archive(&Manifest { info: InfoRow::of(info), shards, for_people })?;
    let root = *blake3::hash(&archive).as_bytes();
    let mut bytes = format::header(Content::Manifest, root, &archive).to_vec();
    bytes.extend_from_slice(&archive);
    write_whole(&dir.join(MANIFEST), &bytes)?;
    Ok(root)
}

/// Fails when a file of the set in `dir` is not there or has another length.
pub(super) fn check_length(dir: &Path, path: &Path, wanted: u64) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let found = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Error::incomplete(dir, format!("{name} is missing")));
        }
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let problem = format!("has {found} bytes and should have {wanted}");
    match found.cmp(&wanted) {
        std::cmp::Ordering::Less => Err(Flaw::Short(problem).at(dir, path)),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Flaw::Wrong(problem).at(dir, path)),
    }
}

/// The names in `dir` that look like a shard's or a temporary file's and are no part of a set of that many shards,
/// sorted.
pub(super) fn strays(dir: &Path, shards: usize) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let name = entry.map_err(Error::io("read", dir))?.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("shard-").map(|rest| {
            let digits = rest.strip_suffix(".dat").or(rest.strip_suffix(".idx"));
            digits.filter(|d| d.len() == 5).and_then(|d| d.parse::<usize>().ok())
        });
        if number.is_some_and(|n| n.is_none_or(|n| n >= shards)) || name.ends_with(TEMPORARY) {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

/// `dataset.json`.
#[derive(serde::Serialize)]
struct ForPeople<'a> {
    format: &'static str,
    name: &'a str,
    records: u64,
    bytes: u64,
    codecs: BTreeMap<&'static str, u64>,
    fields: Vec<FieldRow>,
    classes: &'a [String],
    meta: &'a BTreeMap<String, String>,
    shards: Vec<ShardLine>,
}

#[derive(serde::Serialize)]
struct ShardLine {
    number: u32,
    records: u64,
    bytes: u64,
    blake3: String,
}

/// The bytes of `dataset.json`: a function of what the manifest says.
pub(super) fn for_people(info: &SetInfo, layout: &Layout, shards: &[ShardSummary]) -> Result<Vec<u8>> {
    let line = |s: &ShardSummary| ShardLine {
        number: s.number,
        records: s.records,
        bytes: s.bytes,
        blake3: hex(&s.data_blake3),
    };
    let value = ForPeople {
        format: "phalanx shard set 1",
        name: &info.name,
        records: shards.iter().map(|s| s.records).sum(),
        bytes: shards.iter().map(|s| s.bytes).sum(),
        codecs: codec_counts(shards),
        fields: bounded(info, layout, shards).iter().map(FieldRow::of).collect(),
        classes: &info.classes,
        meta: &info.meta,
        shards: shards.iter().map(line).collect(),
    };
    let mut bytes = serde_json::to_vec_pretty(&value)
        .map_err(|e| Error::usage(FOR_PEOPLE, format!("cannot be written: {e}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Records by the names of their codecs, without those of which there are none.
pub(super) fn codec_counts(shards: &[ShardSummary]) -> BTreeMap<&'static str, u64> {
    let counts = ["raw", "jpeg", "png"].into_iter().enumerate();
    counts
        .map(|(k, name)| (name, shards.iter().fold(0, |sum, s| u64::saturating_add(sum, s.codecs[k]))))
        .filter(|&(_, count)| count > 0)
        .collect()
}

/// A manifest that was read and checked.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) info: SetInfo,
    pub(super) info_hash: [u8; 32],
    pub(super) layout: Layout,
    /// The schema's fields, with the largest size of what varies.
    pub(super) fields: Vec<FieldSpec>,
    pub(super) shards: Vec<ShardSummary>,
    pub(super) for_people: [u8; 32],
    pub(super) root: [u8; 32],
}

/// Reads the manifest of the set in `dir`.
pub(super) fn load(dir: &Path) -> Result<Loaded> {
    let path = dir.join(MANIFEST);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound && looks_like(dir) => {
            return Err(Error::incomplete(dir, format!("it has no {MANIFEST}, which is written last")));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Error::format(dir, format!("is no shard set: it has no {MANIFEST}")));
        }
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let bad = |problem: String| Error::format(&path, problem);
    let (header, archive) = format::open(Content::Manifest, &bytes).map_err(|flaw| flaw.at(dir, &path))?;
    if *blake3::hash(archive).as_bytes() != header.hash {
        return Err(bad("is damaged: the BLAKE3 root does not fit".into()));
    }
    let Manifest { info, shards, for_people } =
        format::manifest(archive).map_err(|e| bad(format!("is no manifest: {e}")))?;
    let info = info.info().ok_or_else(|| bad("has a field of an unknown role or type".into()))?;
    let layout = Layout::new(&info).map_err(|e| bad(e.to_string()))?;
    if shards.len() > MOST_SHARDS as usize
        || (0..).zip(&shards).any(|(n, s)| s.number != n || s.largest.len() != layout.stored.len())
    {
        return Err(bad("its shards are not in order or have other fields".into()));
    }
    if shards.iter().try_fold(0u64, |sum, s| sum.checked_add(s.records)?.checked_add(s.bytes)).is_none() {
        return Err(bad("its counts are beyond 64 bits".into()));
    }
    let fields = bounded(&info, &layout, &shards);
    let info_hash = format::info_hash(&info)?;
    Ok(Loaded { info, info_hash, layout, fields, shards, for_people, root: header.hash })
}
