//! The table of classes in ImageNet's development kit, a MATLAB file of version 5 (MathWorks, "MAT-File Format"):
//! an array of structures with, among others, the fields `ILSVRC2012_ID`, `WNID` and `words`.

use std::io::Read;

use flate2::read::ZlibDecoder;

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Synset {
    pub(super) id: u64,
    pub(super) wnid: String,
    pub(super) words: String,
}

type Parsed<T> = Result<T, &'static str>;

const CUT: &str = "is no whole MATLAB file of version 5";
/// The file's variable is a megabyte unpacked.
const MOST: u64 = 1 << 26;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
const STRUCT: u8 = 2;
const CHAR: u8 = 4;

/// The rows of the first array of structures that has them.
pub(super) fn synsets(file: &[u8]) -> Result<Vec<Synset>, String> {
    let mut rest = file.get(128..).ok_or(CUT)?;
    if &file[126..128] != b"IM" {
        return Err("is no MATLAB file of version 5 in little-endian order".into());
    }
    while !rest.is_empty() {
        let (kind, data) = element(&mut rest)?;
        let unpacked = match kind {
            COMPRESSED => {
                let mut bytes = Vec::new();
                let read = ZlibDecoder::new(data).take(MOST).read_to_end(&mut bytes);
                read.map_err(|e| format!("cannot be unpacked: {e}"))?;
                bytes
            }
            _ => continue,
        };
        let (kind, matrix) = element(&mut &unpacked[..])?;
        if kind == MATRIX
            && let Some(rows) = table(matrix)?
        {
            return Ok(rows);
        }
    }
    Err("has no table with ILSVRC2012_ID and WNID".into())
}

fn word(bytes: &[u8], at: usize) -> Parsed<u32> {
    let b = bytes.get(at..at + 4).ok_or(CUT)?;
    Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Takes the next element: its type and its data. Data of up to four bytes share the tag's eight.
fn element<'a>(rest: &mut &'a [u8]) -> Parsed<(u32, &'a [u8])> {
    let tag = word(rest, 0)?;
    if tag >> 16 != 0 {
        let data = rest.get(4..4 + (tag >> 16) as usize).filter(|d| d.len() <= 4).ok_or(CUT)?;
        *rest = rest.get(8..).ok_or(CUT)?;
        return Ok((tag & 0xffff, data));
    }
    let length = word(rest, 4)? as usize;
    let data = rest.get(8..).and_then(|r| r.get(..length)).ok_or(CUT)?;
    let padded = if tag == COMPRESSED { length } else { length.next_multiple_of(8) };
    *rest = rest.get(8 + padded..).unwrap_or_default();
    Ok((tag, data))
}

/// The flags' class, the number of elements, and what comes after the name.
fn head(mut matrix: &[u8]) -> Parsed<(u8, usize, &[u8])> {
    let (_, flags) = element(&mut matrix)?;
    let (_, dims) = element(&mut matrix)?;
    element(&mut matrix)?;
    let mut count = dims.as_chunks::<4>().0.iter().map(|&d| u32::from_le_bytes(d) as usize);
    let count = count.try_fold(1usize, usize::checked_mul).ok_or(CUT)?;
    Ok((*flags.first().ok_or(CUT)?, count, matrix))
}

fn table(matrix: &[u8]) -> Parsed<Option<Vec<Synset>>> {
    let (class, count, mut rest) = head(matrix)?;
    if class != STRUCT {
        return Ok(None);
    }
    let (_, length) = element(&mut rest)?;
    let (_, names) = element(&mut rest)?;
    let length = word(length, 0)?.max(1) as usize;
    let text = |n: &[u8]| String::from_utf8_lossy(n).trim_end_matches('\0').to_owned();
    let names: Vec<String> = names.chunks(length).map(text).collect();
    let place = |name: &str| names.iter().position(|n| n == name);
    let (Some(id), Some(wnid)) = (place("ILSVRC2012_ID"), place("WNID")) else { return Ok(None) };
    let words = place("words");
    let mut rows = Vec::new();
    for _ in 0..count {
        let mut row = Synset { id: 0, wnid: String::new(), words: String::new() };
        for field in 0..names.len() {
            let (_, value) = element(&mut rest)?;
            match field {
                f if f == id => row.id = values(value)?.1.first().copied().unwrap_or(0),
                f if f == wnid => row.wnid = string(value)?,
                f if Some(f) == words => row.words = string(value)?,
                _ => {}
            }
        }
        rows.push(row);
    }
    Ok(Some(rows))
}

fn string(matrix: &[u8]) -> Parsed<String> {
    let (class, codes) = values(matrix)?;
    if class != CHAR {
        return Err("has a name that is no text");
    }
    let codes = codes.into_iter().map(|c| u32::try_from(c).ok().and_then(char::from_u32).unwrap_or('?'));
    Ok(codes.collect())
}

/// The values of an array of numbers or letters, as whole numbers.
fn values(matrix: &[u8]) -> Parsed<(u8, Vec<u64>)> {
    let (class, _, mut rest) = head(matrix)?;
    // An empty text has no data at all.
    if rest.is_empty() {
        return Ok((class, Vec::new()));
    }
    let (kind, data) = element(&mut rest)?;
    if kind == 16 {
        let text = std::str::from_utf8(data).map_err(|_| CUT)?;
        return Ok((class, text.chars().map(|c| u64::from(u32::from(c))).collect()));
    }
    let size = match kind {
        1 | 2 => 1,
        3 | 4 | 17 => 2,
        5 | 6 | 7 | 18 => 4,
        9 | 12 | 13 => 8,
        _ => return Err("has numbers of an unknown type"),
    };
    let whole = |b: &[u8]| b.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let number = |b: &[u8]| match kind {
        7 => f32::from_bits(whole(b) as u32) as u64,
        9 => f64::from_bits(whole(b)) as u64,
        _ => whole(b),
    };
    Ok((class, data.chunks_exact(size).map(number).collect()))
}
