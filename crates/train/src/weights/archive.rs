//! Zip archives as `torch.save` writes them: entries that are stored, not compressed, with zip64 records
//! where a number does not fit 32 bits (PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3).
//!
//! Everything is a slice of the file's bytes: what a header claims is looked up, and nothing is allocated
//! by a number that the file gives.

use std::collections::BTreeMap;
use std::ops::Range;

/// What is wrong with a file, without its name.
pub(super) type Found<T> = Result<T, String>;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;

/// How every zip archive with an entry begins.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

/// An entry of the central directory.
#[derive(Debug)]
struct Entry {
    encrypted: bool,
    method: u16,
    crc: u32,
    stored: u64,
    /// Where its local header begins.
    header: u64,
}

/// The entries of an archive.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    entries: BTreeMap<String, Entry>,
}

fn part(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let (at, end) = (usize::try_from(at).ok()?, usize::try_from(at.checked_add(len)?).ok()?);
    bytes.get(at..end)
}

fn u16_at(bytes: &[u8], at: u64) -> Option<u16> {
    part(bytes, at, 2)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: u64) -> Option<u32> {
    part(bytes, at, 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: u64) -> Option<u64> {
    part(bytes, at, 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// The end record stands last but for a comment of at most 65,535 bytes.
fn find_end(bytes: &[u8]) -> Option<u64> {
    const RECORD: usize = 22;
    let last = bytes.len().checked_sub(RECORD)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    (first..=last).rev().map(|at| at as u64).find(|&at| {
        u32_at(bytes, at) == Some(END)
            && u16_at(bytes, at + 20).is_some_and(|n| at + 22 + u64::from(n) == bytes.len() as u64)
    })
}

/// The number of entries and where the central directory begins.
fn directory(bytes: &[u8]) -> Option<(u64, u64)> {
    let end = find_end(bytes)?;
    let (count, start) = (u16_at(bytes, end + 10)?, u32_at(bytes, end + 16)?);
    if count != u16::MAX && start != u32::MAX {
        return Some((count.into(), start.into()));
    }
    let Some(locator) = end.checked_sub(20).filter(|&at| u32_at(bytes, at) == Some(LOCATOR64)) else {
        return Some((count.into(), start.into()));
    };
    let record = u64_at(bytes, locator + 8).filter(|&at| u32_at(bytes, at) == Some(END64))?;
    Some((u64_at(bytes, record.checked_add(32)?)?, u64_at(bytes, record.checked_add(48)?)?))
}

/// The entry whose header begins at `at`: its name, itself, and where the next header begins.
fn entry(bytes: &[u8], at: u64) -> Option<(String, Entry, u64)> {
    const HEADER: u64 = 46;
    let header = part(bytes, at, HEADER).filter(|h| u32_at(h, 0) == Some(CENTRAL))?;
    let len = |at| u16_at(header, at).map(u64::from);
    let (name, extra, comment) = (len(28)?, len(30)?, len(32)?);
    let text = String::from_utf8_lossy(part(bytes, at + HEADER, name)?).into_owned();
    let mut found = Entry {
        encrypted: u16_at(header, 8)? & 1 != 0,
        method: u16_at(header, 10)?,
        crc: u32_at(header, 16)?,
        stored: u32_at(header, 20)?.into(),
        header: u32_at(header, 42)?.into(),
    };
    let full = u32_at(header, 24)? == u32::MAX;
    widen(part(bytes, at + HEADER + name, extra)?, full, &mut found);
    Some((text, found, at + HEADER + name + extra + comment))
}

/// Takes numbers of 64 bits from the extra field: there are only those whose place holds all ones, in the
/// order full size, stored size, header.
fn widen(mut extra: &[u8], full: bool, entry: &mut Entry) {
    const ZIP64: u16 = 1;
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        if id == ZIP64 {
            let mut at = if full { 12 } else { 4 };
            for number in [&mut entry.stored, &mut entry.header] {
                if *number == u64::from(u32::MAX) {
                    if let Some(wide) = u64_at(extra, at) {
                        *number = wide;
                    }
                    at += 8;
                }
            }
            return;
        }
        extra = extra.get(4 + usize::from(len)..).unwrap_or_default();
    }
}

impl<'a> Archive<'a> {
    /// Reads the central directory.
    pub(super) fn open(bytes: &'a [u8]) -> Found<Self> {
        let cut = || "its zip directory is damaged or cut off".to_owned();
        let (count, mut at) = directory(bytes).ok_or_else(cut)?;
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let (name, entry, next) = entry(bytes, at).ok_or_else(cut)?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(format!("it has two entries {name:?}"));
            }
            at = next;
        }
        Ok(Archive { bytes, entries })
    }

    /// The names of the entries.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The contents of an entry, compared with their checksum.
    pub(super) fn get(&self, name: &str) -> Found<&'a [u8]> {
        let entry = self.entries.get(name).ok_or_else(|| format!("it has no entry {name:?}"))?;
        if entry.method != 0 || entry.encrypted {
            return Err(format!(
                "its entry {name:?} is compressed or encrypted, which torch.save never does"
            ));
        }
        let place = self.place(entry).ok_or_else(|| format!("its entry {name:?} is cut off"))?;
        let found = &self.bytes[place];
        let mut crc = flate2::Crc::new();
        crc.update(found);
        // PyTorch can be told to leave checksums out (torch.serialization.set_crc32_options).
        if entry.crc != 0 && crc.sum() != entry.crc {
            return Err(format!("its entry {name:?} is damaged: its CRC-32 is another"));
        }
        Ok(found)
    }

    fn place(&self, entry: &Entry) -> Option<Range<usize>> {
        const HEADER: u64 = 30;
        let header = part(self.bytes, entry.header, HEADER).filter(|h| u32_at(h, 0) == Some(LOCAL))?;
        let names = u64::from(u16_at(header, 26)?) + u64::from(u16_at(header, 28)?);
        let start = usize::try_from(entry.header.checked_add(HEADER + names)?).ok()?;
        let end = start.checked_add(usize::try_from(entry.stored).ok()?)?;
        (end <= self.bytes.len()).then_some(start..end)
    }
}
