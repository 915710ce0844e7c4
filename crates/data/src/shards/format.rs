//! The bytes of indexes and manifests: a header of 64 bytes, then an rkyv archive.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use phalanx_host::DType;
use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use super::{SetInfo, ShardSummary};
use crate::{Codec, Error, FieldSpec, Result, Role};

/// Records start at multiples of this.
pub(super) const ALIGN: u64 = 64;
/// Bytes before an archive.
pub(super) const HEADER: usize = 64;
/// Shards a set may have: their numbers have five digits.
pub(super) const MOST_SHARDS: u32 = 100_000;
/// Records a shard may have: an archive's pointers reach 2 GiB.
pub(super) const MOST_RECORDS: usize = 1 << 25;
/// The label in an entry of a set without labels.
pub(super) const NO_LABEL: u32 = u32::MAX;

/// What this program writes and reads.
const VERSION: u32 = 1;

/// The manifest's name.
pub(crate) const MANIFEST: &str = "dataset.rkyv";
/// The name of the description for people.
pub(super) const FOR_PEOPLE: &str = "dataset.json";
/// The name of the list of records to leave out.
pub(super) const QUARANTINE: &str = "quarantine.json";
/// Is there while a set is being packed.
pub(crate) const PACKING: &str = ".pack.json";

pub(crate) fn data_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("shard-{number:05}.dat"))
}

pub(crate) fn index_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("shard-{number:05}.idx"))
}

/// Where a record lies and what it is; 32 bytes. Every pattern of bits is a value of the archived type.
#[derive(Debug, Clone, Copy, Archive, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The first eight bytes of the BLAKE3 hash of the sample's key.
    pub(super) key_hash: u64,
    /// Where it starts, in units of [`ALIGN`] bytes.
    pub(super) start: u32,
    /// Its bytes.
    pub(super) length: u32,
    /// CRC32C of them.
    pub(super) crc32c: u32,
    /// Its class, or [`NO_LABEL`].
    pub(super) label: u32,
    /// Rows of its first image; 0 without one.
    pub(super) height: u16,
    /// Columns likewise.
    pub(super) width: u16,
    /// Channels likewise.
    pub(super) channels: u8,
    /// How its first image is stored; else its first field.
    pub(super) codec: u8,
    /// None are defined yet.
    pub(super) flags: u8,
    /// 0.
    pub(super) spare: u8,
}

/// The archive of an index file.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) number: u32,
    pub(super) bytes: u64,
    pub(super) data_blake3: [u8; 32],
    pub(super) codecs: [u64; 3],
    pub(super) largest: Vec<[u32; 2]>,
    pub(super) entries: Vec<Entry>,
}

/// A field's description, readable in the manifest and in `dataset.json`.
#[derive(Debug, Archive, Serialize, Deserialize, serde::Serialize)]
pub(super) struct FieldRow {
    name: String,
    role: String,
    dtype: String,
    shape: Vec<u64>,
    variable: bool,
    max: f32,
}

/// [`SetInfo`] as it is stored.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(super) struct InfoRow {
    name: String,
    fields: Vec<FieldRow>,
    classes: Vec<String>,
    meta: Vec<(String, String)>,
}

/// The archive of the manifest.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) info: InfoRow,
    pub(super) shards: Vec<ShardSummary>,
    /// BLAKE3 of `dataset.json`.
    pub(super) for_people: [u8; 32],
}

const ROLES: [(Role, &str); 3] = [(Role::Image, "image"), (Role::Label, "label"), (Role::Array, "array")];

impl FieldRow {
    pub(super) fn of(spec: &FieldSpec) -> Self {
        FieldRow {
            name: spec.name.to_string(),
            role: ROLES.iter().find(|(r, _)| *r == spec.role).map_or("", |(_, name)| name).to_owned(),
            dtype: spec.dtype.name().to_owned(),
            shape: spec.shape.iter().map(|&d| d as u64).collect(),
            variable: spec.variable,
            max: spec.max,
        }
    }

    fn spec(&self) -> Option<FieldSpec> {
        Some(FieldSpec {
            name: Arc::from(self.name.as_str()),
            role: ROLES.iter().find(|(_, name)| *name == self.role)?.0,
            dtype: DType::from_name(&self.dtype)?,
            shape: self.shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?,
            variable: self.variable,
            max: self.max,
        })
    }
}

impl InfoRow {
    pub(super) fn of(info: &SetInfo) -> Self {
        InfoRow {
            name: info.name.clone(),
            fields: info.fields.iter().map(FieldRow::of).collect(),
            classes: info.classes.clone(),
            meta: info.meta.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        }
    }

    /// `None` when a role or an element type is none that this program knows.
    pub(super) fn info(self) -> Option<SetInfo> {
        Some(SetInfo {
            fields: self.fields.iter().map(FieldRow::spec).collect::<Option<_>>()?,
            name: self.name,
            classes: self.classes,
            meta: self.meta.into_iter().collect(),
        })
    }
}

/// What binds an index to its set: the hash of all that [`SetInfo`] says.
pub(super) fn info_hash(info: &SetInfo) -> Result<[u8; 32]> {
    Ok(*blake3::hash(&archive(&InfoRow::of(info))?).as_bytes())
}

pub(super) fn archive<T>(value: &T) -> Result<AlignedVec>
where
    T: for<'a> Serialize<
        rkyv::api::high::HighSerializer<AlignedVec, rkyv::ser::allocator::ArenaHandle<'a>, rancor::Error>,
    >,
{
    rkyv::to_bytes::<rancor::Error>(value)
        .map_err(|e| Error::usage("shard set", format!("cannot be archived: {e}")))
}

/// Reads an archive that may lie at any address.
pub(super) fn manifest(payload: &[u8]) -> std::result::Result<Manifest, rancor::Error> {
    let mut aligned = AlignedVec::<16>::with_capacity(payload.len());
    aligned.extend_from_slice(payload);
    rkyv::from_bytes::<Manifest, rancor::Error>(&aligned)
}

/// The hash of a sample's key.
pub(super) fn key_hash(key: &str) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(key.as_bytes()).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

pub(super) fn codec_byte(codec: Codec) -> u8 {
    match codec {
        Codec::Raw => 0,
        Codec::Jpeg => 1,
        Codec::Png => 2,
    }
}

pub(super) fn codec_of(byte: u8) -> Option<Codec> {
    [Codec::Raw, Codec::Jpeg, Codec::Png].get(usize::from(byte)).copied()
}

/// What a file with a header is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The hash in its header is that of the set's [`SetInfo`].
    Index,
    /// The hash in its header is the set's root.
    Manifest,
}

impl Content {
    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Content::Index => b"PHXINDEX",
            Content::Manifest => b"PHXSHSET",
        }
    }
}

/// What is wrong with a file.
#[derive(Debug)]
pub(super) enum Flaw {
    /// It ends too early.
    Short(String),
    /// Anything else.
    Wrong(String),
}

impl Flaw {
    /// As an error of the file at `path` in the set in `dir`.
    pub(super) fn at(self, dir: &Path, path: &Path) -> Error {
        match self {
            Flaw::Short(problem) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                Error::incomplete(dir, format!("{name} {problem}"))
            }
            Flaw::Wrong(problem) => Error::format(path, problem),
        }
    }
}

/// What a header says of its archive.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) hash: [u8; 32],
    pub(super) crc32c: u32,
}

/// The header before `payload`.
///
/// Magic (8 bytes), version (u32), CRC32C of the archive (u32), its length (u64), a hash (32 bytes), zeros (4 bytes),
/// CRC32C of the 60 bytes before (u32).
pub(super) fn header(content: Content, hash: [u8; 32], payload: &[u8]) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(content.magic());
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    out[16..24].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    out[24..56].copy_from_slice(&hash);
    let crc = crc32c::crc32c(&out[..60]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Checks a file's header and the archive's CRC32C; returns both.
pub(super) fn open(content: Content, bytes: &[u8]) -> std::result::Result<(Header, &[u8]), Flaw> {
    let Some((head, payload)) = bytes.split_first_chunk::<HEADER>() else {
        return Err(Flaw::Short(format!("has {} bytes, fewer than its header", bytes.len())));
    };
    let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if head[..8] != *content.magic() {
        let (found, wanted) = (head[..8].escape_ascii(), content.magic().escape_ascii());
        return Err(Flaw::Wrong(format!("begins with \"{found}\" and should begin with \"{wanted}\"")));
    }
    if u32_at(60) != crc32c::crc32c(&head[..60]) {
        return Err(Flaw::Wrong("its header is damaged: the CRC32C does not fit".into()));
    }
    if u32_at(8) != VERSION {
        let found = u32_at(8);
        return Err(Flaw::Wrong(format!(
            "is of version {found} of the format; this program reads {VERSION}"
        )));
    }
    let length = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
    if (payload.len() as u64) < length {
        return Err(Flaw::Short(format!("is cut off: {} of {length} bytes are there", payload.len())));
    }
    if payload.len() as u64 > length {
        let more = payload.len() as u64 - length;
        return Err(Flaw::Wrong(format!("is longer by {more} bytes than its header says")));
    }
    if u32_at(12) != crc32c::crc32c(payload) {
        return Err(Flaw::Wrong("is damaged: the CRC32C does not fit".into()));
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(&head[24..56]);
    Ok((Header { hash, crc32c: u32_at(12) }, payload))
}
