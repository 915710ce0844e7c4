//! Tar archives as lists of places: every file's name, and where in the archive its bytes lie, so that they are
//! read later with one positioned read and an archive inside an archive is walked without unpacking anything.
//!
//! An own walker instead of the crate `tar`, which writes our exports: it knows the offsets of an inner archive's
//! files, it refuses by name what must not be there, and an archive cannot make it read or keep more than a
//! bounded amount between two files. Sources: POSIX.1-2017, "pax Interchange Format", and the manual of GNU tar,
//! "Basic Tar Format".

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Everything in an archive is a multiple of this long.
const BLOCK: u64 = 512;
/// Headers of one archive; an archive of nothing else is no data set.
const MOST_HEADERS: u64 = 1 << 24;
/// Headers in a row that only describe the file that comes after them.
const MOST_EXTENSIONS: usize = 8;
/// The longest content of such a header.
const LONGEST_EXTENSION: u64 = 1 << 20;
/// The longest name.
const LONGEST_NAME: usize = 4096;
/// Zeros after the end; tapes are written in records of many blocks.
const MOST_PADDING: u64 = 1 << 20;
/// Read at once: a header, and a short file behind it with the header of the next.
const WINDOW: usize = 4096;

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Its name: relative, without `.` and `..`.
    pub(super) name: String,
    /// Where its bytes begin, counted in the outermost archive.
    pub(super) offset: u64,
    /// How many there are.
    pub(super) length: u64,
}

/// Walks through an archive, file by file.
#[derive(Debug)]
pub(super) struct Walker<'a> {
    file: &'a File,
    path: PathBuf,
    /// The name of the inner archive, if it is one.
    inside: Option<String>,
    at: u64,
    end: u64,
    headers: u64,
    window: Vec<u8>,
    window_at: u64,
    over: bool,
}

/// What one header and its extensions came to.
enum Step {
    File(Member),
    Directory,
    End,
}

/// What extension headers say of the file after them.
#[derive(Default)]
struct Said {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

/// Opens an archive for reading; it must be a file of known size.
pub(super) fn open(path: &Path) -> Result<(File, u64)> {
    let meta = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if !meta.is_file() {
        return Err(Error::format(path, "is no regular file, so where it ends is not known"));
    }
    let file = File::open(path).map_err(Error::io("read", path))?;
    Ok((file, meta.len()))
}

impl<'a> Walker<'a> {
    /// A walk through the archive `file` of `length` bytes at `path`.
    pub(super) fn new(file: &'a File, path: &Path, length: u64) -> Result<Self> {
        let mut walker = Walker {
            file,
            path: path.to_owned(),
            inside: None,
            at: 0,
            end: length,
            headers: 0,
            window: Vec::new(),
            window_at: 0,
            over: false,
        };
        walker.refuse_packed()?;
        Ok(walker)
    }

    /// A walk through `member`, an archive in this one.
    pub(super) fn inner(&self, member: &Member) -> Result<Walker<'a>> {
        let mut walker = Walker {
            file: self.file,
            path: self.path.clone(),
            inside: Some(member.name.clone()),
            at: member.offset,
            end: member.offset + member.length,
            headers: 0,
            window: Vec::new(),
            window_at: 0,
            over: false,
        };
        walker.refuse_packed()?;
        Ok(walker)
    }

    /// The next file; None after the last.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        while !self.over {
            match self.step()? {
                Step::File(member) => return Ok(Some(member)),
                Step::Directory => {}
                Step::End => self.over = true,
            }
        }
        Ok(None)
    }

    /// The content of a short member.
    pub(super) fn content(&mut self, member: &Member, most: usize) -> Result<Vec<u8>> {
        if member.length > most as u64 {
            let problem = format!("has {} bytes where at most {most} are expected", member.length);
            return Err(self.bad(member.offset, Some(&member.name), problem));
        }
        Ok(self.bytes(member.offset, member.length as usize)?.to_vec())
    }

    fn bad(&self, at: u64, entry: Option<&str>, problem: impl std::fmt::Display) -> Error {
        let inside = self.inside.as_ref().map_or(String::new(), |name| format!("in {name:?}, "));
        let entry = entry.map_or(String::new(), |name| format!("entry {name:?}, "));
        Error::format(&self.path, format!("{inside}{entry}byte {at}: {problem}"))
    }

    /// `length` bytes at `at`, which the caller knows to lie before the end.
    fn bytes(&mut self, at: u64, length: usize) -> Result<&[u8]> {
        let held = self.window_at..self.window_at + self.window.len() as u64;
        if at < held.start || at + length as u64 > held.end {
            let take = (WINDOW.max(length) as u64).min(self.end.saturating_sub(at)) as usize;
            self.window.resize(take.max(length), 0);
            self.window_at = at;
            if let Err(e) = self.file.read_exact_at(&mut self.window, at) {
                self.window.clear();
                return Err(Error::io("read", &self.path)(e));
            }
        }
        let from = (at - self.window_at) as usize;
        Ok(&self.window[from..from + length])
    }

    /// A compressed archive has no offsets to read at.
    fn refuse_packed(&mut self) -> Result<()> {
        let have = self.end.saturating_sub(self.at).min(6) as usize;
        let at = self.at;
        let start = self.bytes(at, have)?;
        let packers: [(&[u8], &str, &str); 4] = [
            (b"\x1f\x8b", "gzip", "gunzip -k"),
            (b"BZh", "bzip2", "bunzip2 -k"),
            (b"\xfd7zXZ\0", "xz", "unxz -k"),
            (b"\x28\xb5\x2f\xfd", "zstd", "unzstd -k"),
        ];
        let Some((_, packer, command)) = packers.iter().find(|(magic, ..)| start.starts_with(magic)) else {
            return Ok(());
        };
        let problem =
            format!("the archive is compressed with {packer}; unpack it first, with `{command} FILE`");
        Err(self.bad(at, None, problem))
    }

    fn step(&mut self) -> Result<Step> {
        let mut said = Said::default();
        for extensions in 0..=MOST_EXTENSIONS {
            let at = self.at;
            let Some(header) = self.header()? else {
                if extensions > 0 {
                    return Err(self.bad(at, None, "the archive ends where a file was announced"));
                }
                return Ok(Step::End);
            };
            let kind = header[156];
            let shown = String::from_utf8_lossy(&until_nul(&header[..100])).into_owned();
            let mut size = match number(&header[124..136]) {
                Some(size) => size,
                None => return Err(self.bad(at, Some(&shown), "its size is no number")),
            };
            let is_extension = matches!(kind, b'L' | b'K' | b'x' | b'g');
            if !is_extension {
                size = said.size.unwrap_or(size);
            }
            let content = at + BLOCK;
            let after = size.checked_next_multiple_of(BLOCK).and_then(|padded| content.checked_add(padded));
            // The last file's padding may be missing, and then so is the end, which the next call says.
            if content.checked_add(size).is_none_or(|end| end > self.end) {
                let room = self.end - content;
                let problem =
                    format!("it claims {size} bytes and the archive ends {room} bytes after its header");
                return Err(self.bad(at, Some(&shown), problem));
            }
            self.at = after.unwrap_or(self.end).min(self.end);
            if is_extension {
                if size > LONGEST_EXTENSION {
                    let problem = format!(
                        "it describes the next file in {size} bytes; {LONGEST_EXTENSION} are the most"
                    );
                    return Err(self.bad(at, Some(&shown), problem));
                }
                self.extension(at, kind, &shown, size as usize, &mut said)?;
                continue;
            }
            return self.file(at, kind, header, size, said);
        }
        let problem = format!("more than {MOST_EXTENSIONS} headers in a row describe no file");
        Err(self.bad(self.at, None, problem))
    }

    /// The header at the current place, its checksum checked; None at the archive's end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK as usize]>> {
        let at = self.at;
        self.headers += 1;
        if self.headers > MOST_HEADERS {
            return Err(self.bad(at, None, format!("more than {MOST_HEADERS} entries; no end is in sight")));
        }
        if self.end - at < BLOCK {
            let problem = "the archive is cut short: the two blocks of zeros that end it are missing";
            return Err(self.bad(at, None, problem));
        }
        let mut header = [0; BLOCK as usize];
        header.copy_from_slice(self.bytes(at, BLOCK as usize)?);
        if header.iter().all(|&b| b == 0) {
            self.check_end()?;
            return Ok(None);
        }
        // The field itself counts as spaces; some old programs summed signed bytes.
        let counted = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
        let unsigned: u64 = header.iter().enumerate().map(|(i, &b)| u64::from(counted(i, b))).sum();
        let signed: i64 = header.iter().enumerate().map(|(i, &b)| i64::from(counted(i, b) as i8)).sum();
        let stored = number(&header[148..156]);
        if stored != Some(unsigned) && stored.map(|s| s as i64) != Some(signed) {
            let shown = String::from_utf8_lossy(&until_nul(&header[..100])).into_owned();
            let problem = "its header's checksum is wrong: it is damaged, or no tar archive";
            return Err(self.bad(at, Some(&shown), problem));
        }
        Ok(Some(header))
    }

    /// Nothing but zeros may follow the first block of zeros.
    fn check_end(&mut self) -> Result<()> {
        let rest = self.end - self.at;
        if rest < 2 * BLOCK {
            return Err(self.bad(
                self.at,
                None,
                "the archive is cut short: it ends after one block of zeros",
            ));
        }
        if rest > MOST_PADDING {
            let problem = format!("{rest} bytes follow the archive's end; {MOST_PADDING} are the most");
            return Err(self.bad(self.at, None, problem));
        }
        let (mut at, end) = (self.at, self.end);
        while at < end {
            let take = (end - at).min(WINDOW as u64) as usize;
            let found = self.bytes(at, take)?.iter().position(|&b| b != 0);
            if let Some(found) = found {
                let problem =
                    "something follows the archive's end: it is damaged, or two archives in one file";
                return Err(self.bad(at + found as u64, None, problem));
            }
            at += take as u64;
        }
        Ok(())
    }

    fn extension(&mut self, at: u64, kind: u8, shown: &str, size: usize, said: &mut Said) -> Result<()> {
        match kind {
            b'L' => said.name = Some(until_nul(self.bytes(at + BLOCK, size)?)),
            // The name of a link's target; the link itself comes next and is refused.
            b'K' => {}
            _ => {
                let records = self.bytes(at + BLOCK, size)?.to_vec();
                let told = pax(&records).map_err(|problem| self.bad(at, Some(shown), problem))?;
                if kind == b'g' && (told.name.is_some() || told.size.is_some()) {
                    let problem = "it gives all files after it one name or size";
                    return Err(self.bad(at, Some(shown), problem));
                }
                said.name = told.name.or(said.name.take());
                said.size = told.size.or(said.size);
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        at: u64,
        kind: u8,
        header: [u8; BLOCK as usize],
        length: u64,
        said: Said,
    ) -> Result<Step> {
        let raw = said.name.unwrap_or_else(|| name_of(&header));
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let what = match kind {
            b'0' | 0 | b'7' | b'5' => None,
            b'1' => Some("a hard link"),
            b'2' => Some("a symbolic link"),
            b'3' | b'4' => Some("a device"),
            b'6' => Some("a pipe"),
            b'S' => Some("a sparse file"),
            b'M' => Some("the continuation of a file from another volume"),
            _ => Some("of a kind that data sets have no use for"),
        };
        if let Some(what) = what {
            return Err(self.bad(at, Some(&shown), format!("it is {what}, which is not read")));
        }
        let name = safe_path(&raw).map_err(|problem| self.bad(at, Some(&shown), problem))?;
        // Before there were directories' headers, a slash at the end made one.
        if kind == b'5' || (raw.ends_with(b"/") && length == 0) {
            return Ok(Step::Directory);
        }
        if name.is_empty() || raw.ends_with(b"/") {
            return Err(self.bad(at, Some(&shown), "it is a file with the name of a directory"));
        }
        Ok(Step::File(Member { name, offset: at + BLOCK, length }))
    }
}

/// Bytes before the first NUL.
fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|&b| b == 0).next().unwrap_or_default().to_vec()
}

/// The name in the header itself: POSIX puts the front of a long one into a field of its own.
fn name_of(header: &[u8; BLOCK as usize]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        return [&prefix[..], b"/", &name[..]].concat();
    }
    name
}

/// A number in a header: octal digits, or for large ones a set first bit and the number itself.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len().saturating_sub(8));
        let high_is_zero = high.iter().enumerate().all(|(i, &b)| if i == 0 { b == 0x80 } else { b == 0 });
        return (!high.is_empty() && high_is_zero).then(|| low.iter().fold(0, |n, &b| n << 8 | u64::from(b)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() {
        return Some(0);
    }
    text.bytes().all(|b| (b'0'..=b'7').contains(&b)).then(|| u64::from_str_radix(text, 8).ok())?
}

/// What the records `length key=value` of a pax header say.
fn pax(mut records: &[u8]) -> std::result::Result<Said, &'static str> {
    const BROKEN: &str = "its list of attributes is broken";
    let mut said = Said::default();
    while !records.is_empty() {
        let space = records.iter().take(20).position(|&b| b == b' ').ok_or(BROKEN)?;
        let digits = std::str::from_utf8(&records[..space]).map_err(|_| BROKEN)?;
        let length: usize = digits.parse().map_err(|_| BROKEN)?;
        let record = records.get(space + 1..length).ok_or(BROKEN)?;
        let record = record.strip_suffix(b"\n").ok_or(BROKEN)?;
        let equals = record.iter().position(|&b| b == b'=').ok_or(BROKEN)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => said.name = Some(value.to_vec()),
            b"size" => {
                let text = std::str::from_utf8(value).map_err(|_| BROKEN)?;
                said.size = Some(text.parse().map_err(|_| BROKEN)?);
            }
            key if key.starts_with(b"GNU.sparse.") => return Err("it is a sparse file, which is not read"),
            _ => {}
        }
        records = &records[length..];
    }
    Ok(said)
}

/// A relative path that stays where it is put, its parts joined by single slashes; empty for `./`.
pub(super) fn safe_path(raw: &[u8]) -> std::result::Result<String, &'static str> {
    let text = std::str::from_utf8(raw).map_err(|_| "its name is not UTF-8")?;
    if text.len() > LONGEST_NAME {
        return Err("its name is longer than 4096 bytes");
    }
    if text.contains('\0') {
        return Err("its name has a byte of zero in it");
    }
    if text.starts_with('/') {
        return Err("its name is an absolute path");
    }
    let mut path = String::with_capacity(text.len());
    for part in text.split('/').filter(|p| !p.is_empty() && *p != ".") {
        if part == ".." {
            return Err("its name climbs out of the archive");
        }
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(part);
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
