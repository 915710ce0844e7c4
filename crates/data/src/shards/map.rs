//! An index file in memory, as it lies on disk: ranks of one node share its pages.

use std::fs::File;
use std::path::Path;
use std::slice;

use memmap2::{Mmap, MmapOptions};
use rkyv::rancor;

use super::format::{self, ArchivedEntry, ArchivedIndex, Content, Flaw, HEADER, Header};
use crate::{Error, Result};

/// A mapped index whose header, CRC32C and structure were checked.
#[derive(Debug)]
pub(super) struct MappedIndex {
    map: Mmap,
    /// Where the entries start in `map`.
    first: usize,
    len: usize,
    header: Header,
}

impl MappedIndex {
    /// Maps the index at `path` of the set in `dir`; `len` is what its size must be, if that is known.
    pub(super) fn open(dir: &Path, path: &Path, wanted: Option<u64>) -> Result<Self> {
        let file = match File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                return Err(Error::incomplete(dir, format!("{name} is missing")));
            }
            file => file.map_err(Error::io("open", path))?,
        };
        let len = file.metadata().map_err(Error::io("read", path))?.len();
        let wanted = wanted.unwrap_or(len);
        let flaw = |flaw: Flaw| flaw.at(dir, path);
        if len < wanted.max(HEADER as u64) {
            return Err(flaw(Flaw::Short(format!("is cut off: it has {len} bytes"))));
        }
        if len > wanted {
            return Err(flaw(Flaw::Wrong(format!("has {len} bytes and should have {wanted}"))));
        }
        // SAFETY: the mapping is read only. Files of a set are renamed to their places and never written again; should
        // somebody do that nevertheless, the entries change their values, all of which are valid, and nothing else is
        // read from the mapping after the checks below.
        let map = unsafe { MmapOptions::new().len(len as usize).populate().map(&file) }
            .map_err(Error::io("map", path))?;
        let (header, payload) = format::open(Content::Index, &map).map_err(flaw)?;
        let index = access(payload).map_err(flaw)?;
        let first = index.entries.as_ptr() as usize - map.as_ptr() as usize;
        let len = index.entries.len();
        Ok(MappedIndex { map, first, len, header })
    }

    /// The entries, in the order of the records.
    pub(super) fn entries(&self) -> &[ArchivedEntry] {
        // SAFETY: `access` found this many entries at this place, aligned and inside the mapping, which lives as long
        // as `self`; an entry has no invalid pattern of bits.
        unsafe { slice::from_raw_parts(self.map.as_ptr().add(self.first).cast(), self.len) }
    }

    /// What the file's header says.
    pub(super) fn header(&self) -> Header {
        self.header
    }

    /// The whole file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The archive, checked again.
    pub(super) fn index(&self) -> std::result::Result<&ArchivedIndex, Flaw> {
        access(&self.map[HEADER..])
    }
}

fn access(payload: &[u8]) -> std::result::Result<&ArchivedIndex, Flaw> {
    rkyv::access::<ArchivedIndex, rancor::Error>(payload)
        .map_err(|e| Flaw::Wrong(format!("is no index: {e}")))
}
