//! Shard sets: a directory with `dataset.json` for people, `dataset.rkyv` (what is in the set, with the hash of every
//! other file), and for each shard `shard-NNNNN.dat` (the records on 64-byte bounds) and `shard-NNNNN.idx` (where each
//! record lies, its class, size and checksum).
//!
//! Everything is little endian. Files are written under temporary names, synced and renamed, `dataset.rkyv` last: a
//! directory without it is incomplete, and says so. The set's root is the BLAKE3 hash of the manifest, which names the
//! hashes of all other files; so one hash stands for every byte of the set.

mod copies;
mod format;
mod handles;
mod layout;
mod manifest;
mod map;
mod quarantine;
mod set;
#[cfg(test)]
pub(crate) mod tests;
mod verify;
mod writer;

use std::collections::BTreeMap;

pub(crate) use copies::{IN_USE, hold};
pub(crate) use format::{MANIFEST, PACKING};
pub(crate) use format::{data_path, index_path};
pub(crate) use manifest::looks_like;
pub use manifest::{finished_shard, seal};
pub use quarantine::{Repaired, repair};
use serde::{Deserialize, Serialize};
pub use set::{ShardEntry, ShardSet};
pub use verify::{BadFile, BadRecord, VerifyReport, verify};
pub use writer::ShardWriter;

use crate::{Codec, FieldSpec};

/// What a set is, told to everyone who writes a part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct SetInfo {
    /// The set's name, in messages and fingerprints.
    pub name: String,
    /// The fields of a record, at most one of them a label. What varies in a variable field is counted while writing:
    /// `shape[0]` (and `shape[1]` of an image) are not looked at, and the sealed set's schema has the largest there is.
    pub fields: Vec<FieldSpec>,
    /// The classes' names for people, which need not differ; empty for a set without labels.
    pub classes: Vec<String>,
    /// Whatever else tells this set from another: its source, how images were resized.
    pub meta: BTreeMap<String, String>,
}

/// One sample to write.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Its path in the source; only its hash is stored.
    pub key: &'a str,
    /// Its class, if the set has a label field.
    pub label: Option<i64>,
    /// The other fields, in the schema's order.
    pub fields: &'a [SampleField<'a>],
}

/// One field of a sample to write.
#[derive(Debug, Clone, Copy)]
pub struct SampleField<'a> {
    /// What `bytes` are.
    pub codec: Codec,
    /// This sample's own dimensions. Of an image file: rows, columns and channels as the file has them.
    pub shape: &'a [usize],
    /// The elements, little endian, or the file that holds them.
    pub bytes: &'a [u8],
}

/// What is known of a finished shard.
#[derive(
    Debug, Clone, PartialEq, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct ShardSummary {
    /// Its place in the set, from 0.
    pub number: u32,
    /// Records in it.
    pub records: u64,
    /// Bytes of the file with the records.
    pub bytes: u64,
    /// Bytes of the index file.
    pub index_bytes: u64,
    /// Records by the codec of their first image (of their first field, in a set without images): raw, JPEG, PNG.
    pub codecs: [u64; 3],
    /// The largest of each field but the label: rows and columns of an image, the first dimension of an array and 0.
    pub largest: Vec<[u32; 2]>,
    /// BLAKE3 of the file with the records.
    pub data_blake3: [u8; 32],
    /// BLAKE3 of the index file.
    pub index_blake3: [u8; 32],
    /// CRC32C of what follows the index file's header.
    pub index_crc32c: u32,
}
