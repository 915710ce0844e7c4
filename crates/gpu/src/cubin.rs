//! What a compiled kernel takes, read from the ELF file that the compiler gives.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// What a kernel takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelResources {
    /// The kernel's name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack in local memory, of the kernel and what it calls.
    pub stack: u32,
    /// Bytes of the kernel's own frame in that stack: spilled registers, and arrays that are not in registers. The
    /// file does not tell them apart, so a kernel without such arrays has this as its spill.
    pub spill: u32,
    /// Bytes of static shared memory of a block, with what the architecture reserves (1 KB from sm_90 on).
    pub shared: u32,
}

/// Attributes in `.nv.info` (`EIATTR_…`), as the little-endian number of the format's byte and the attribute's.
const FRAME_SIZE: u16 = 0x1104;
const MIN_STACK_SIZE: u16 = 0x1204;
const REGCOUNT: u16 = 0x2f04;
/// The format of attributes with a size and so many bytes (`EIFMT_SVAL`); the others are four bytes long in all.
const SIZED: u8 = 4;

const MACHINE_CUDA: u16 = 190;
const SYMBOL_FUNCTION: u8 = 2;

/// A section.
struct Section<'a> {
    name: &'a str,
    kind: u32,
    link: usize,
    size: u64,
    bytes: &'a [u8],
}

fn bad(what: &'static str) -> Error {
    Error::Cubin { what }
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let b = bytes.get(at..).and_then(|b| b.first_chunk()).ok_or(bad("cut off"))?;
    Ok(u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let b = bytes.get(at..).and_then(|b| b.first_chunk()).ok_or(bad("cut off"))?;
    Ok(u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let b = bytes.get(at..).and_then(|b| b.first_chunk()).ok_or(bad("cut off"))?;
    Ok(u64::from_le_bytes(*b))
}

/// The NUL-terminated text at `at`.
fn text_at(bytes: &[u8], at: u32) -> Result<&str> {
    let from = bytes.get(at as usize..).ok_or(bad("a name beyond its table"))?;
    let end = from.iter().position(|b| *b == 0).ok_or(bad("a name without an end"))?;
    std::str::from_utf8(&from[..end]).map_err(|_| bad("a name that is no text"))
}

fn sections(file: &[u8]) -> Result<Vec<Section<'_>>> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return Err(bad("no 64-bit ELF file"));
    }
    if u16_at(file, 18)? != MACHINE_CUDA {
        return Err(bad("an ELF file of another machine"));
    }
    let table = usize::try_from(u64_at(file, 40)?).map_err(|_| bad("cut off"))?;
    let (entry, count, names) = (u16_at(file, 58)?, u16_at(file, 60)?, u16_at(file, 62)?);
    let header = |i: u16| -> Result<&[u8]> {
        let at = table.checked_add(usize::from(entry) * usize::from(i)).ok_or(bad("cut off"))?;
        file.get(at..).and_then(|b| b.get(..64)).ok_or(bad("cut off"))
    };
    // Sections without bytes in the file (shared memory) have a size all the same.
    const NO_BITS: u32 = 8;
    let contents = |h: &[u8]| -> Result<&[u8]> {
        let (start, size) = (u64_at(h, 24)?, u64_at(h, 32)?);
        if u32_at(h, 4)? == NO_BITS {
            return Ok(&[]);
        }
        let range = usize::try_from(start).ok().zip(usize::try_from(size).ok());
        let (start, size) = range.ok_or(bad("cut off"))?;
        file.get(start..).and_then(|b| b.get(..size)).ok_or(bad("a section beyond the file"))
    };
    let name_table = contents(header(names)?)?;
    (0..count)
        .map(|i| {
            let h = header(i)?;
            Ok(Section {
                name: text_at(name_table, u32_at(h, 0)?)?,
                kind: u32_at(h, 4)?,
                link: u32_at(h, 40)? as usize,
                size: u64_at(h, 32)?,
                bytes: contents(h)?,
            })
        })
        .collect()
}

/// Names of the functions by their place in the symbol table.
fn functions<'a>(sections: &[Section<'a>]) -> Result<BTreeMap<u32, &'a str>> {
    const SYMBOLS: u32 = 2;
    let table = sections.iter().find(|s| s.kind == SYMBOLS).ok_or(bad("no symbols"))?;
    let names = sections.get(table.link).ok_or(bad("no names of symbols"))?;
    let mut found = BTreeMap::new();
    for (i, symbol) in (0..).zip(table.bytes.chunks_exact(24)) {
        if symbol[4] & 15 == SYMBOL_FUNCTION {
            found.insert(i, text_at(names.bytes, u32_at(symbol, 0)?)?);
        }
    }
    Ok(found)
}

/// Reads what each kernel of a cubin takes, in the order of their names. Fails on anything that is no cubin.
pub fn resources(cubin: &[u8]) -> Result<Vec<KernelResources>> {
    let sections = sections(cubin)?;
    let functions = functions(&sections)?;
    let info = sections.iter().find(|s| s.name == ".nv.info").ok_or(bad("no .nv.info"))?.bytes;
    let mut values: BTreeMap<(u32, u16), u32> = BTreeMap::new();
    let mut at = 0;
    while at < info.len() {
        let (attribute, size) = (u16_at(info, at)?, u16_at(info, at + 2)?);
        if info[at] != SIZED {
            at += 4;
            continue;
        }
        if matches!(attribute, FRAME_SIZE | MIN_STACK_SIZE | REGCOUNT) {
            values.insert((u32_at(info, at + 4)?, attribute), u32_at(info, at + 8)?);
        }
        at += 4 + usize::from(size);
    }
    let mut kernels = Vec::new();
    for (symbol, name) in functions {
        // Functions that kernels call have a register count, too, but no information of their own.
        if !sections.iter().any(|s| s.name.strip_prefix(".nv.info.") == Some(name)) {
            continue;
        }
        let value = |attribute| values.get(&(symbol, attribute)).copied().unwrap_or(0);
        let shared = sections.iter().find(|s| s.name.strip_prefix(".nv.shared.") == Some(name));
        kernels.push(KernelResources {
            kernel: String::from(name),
            registers: value(REGCOUNT),
            stack: value(MIN_STACK_SIZE),
            spill: value(FRAME_SIZE),
            shared: shared.map_or(0, |s| s.size as u32),
        });
    }
    kernels.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of these sections (name, kind, link, bytes, size where it has no bytes), the last their names.
    fn elf(sections: &[(&str, u32, u32, Vec<u8>, u64)]) -> Vec<u8> {
        let mut names = vec![0];
        let mut file = vec![0; 64];
        let mut headers = Vec::new();
        for (name, kind, link, bytes, size) in sections {
            let mut h = vec![0u8; 64];
            h[..4].copy_from_slice(&(names.len() as u32).to_le_bytes());
            h[4..8].copy_from_slice(&kind.to_le_bytes());
            h[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
            h[32..40].copy_from_slice(&size.max(&(bytes.len() as u64)).to_le_bytes());
            h[40..44].copy_from_slice(&link.to_le_bytes());
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            file.extend_from_slice(bytes);
            headers.push(h);
        }
        let mut h = vec![0u8; 64];
        h[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
        h[32..40].copy_from_slice(&(names.len() as u64).to_le_bytes());
        headers.push(h);
        file.extend_from_slice(&names);
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 190;
        let table = file.len() as u64;
        file[40..48].copy_from_slice(&table.to_le_bytes());
        file[58] = 64;
        file[60] = headers.len() as u8;
        file[62] = headers.len() as u8 - 1;
        file.extend(headers.concat());
        file
    }

    fn example() -> Vec<u8> {
        let symbol = |name: u32, kind: u8| {
            let mut s = vec![0u8; 24];
            s[..4].copy_from_slice(&name.to_le_bytes());
            s[4] = 0x10 | kind;
            s
        };
        let sized = |attribute: u8, symbol: u32, value: u32| {
            [vec![4, attribute, 8, 0], symbol.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat()
        };
        let info = [
            sized(0x2f, 1, 40),
            vec![3, 0x1b, 0xff, 0],
            sized(0x11, 1, 16),
            sized(0x12, 1, 64),
            sized(0x2f, 2, 255),
            vec![4, 0x99, 4, 0, 1, 2, 3, 4],
            sized(0x2f, 3, 8),
        ];
        elf(&[
            ("", 0, 0, vec![], 0),
            (".strtab", 3, 0, b"\0second\0helper\0first\0".to_vec(), 0),
            (".symtab", 2, 1, [symbol(0, 0), symbol(1, 2), symbol(8, 2), symbol(15, 2)].concat(), 0),
            (".nv.info", 0x7000_0000, 2, info.concat(), 0),
            (".nv.info.second", 0x7000_0000, 2, vec![], 0),
            (".nv.info.first", 0x7000_0000, 2, vec![], 0),
            (".nv.shared.second", 8, 0, vec![], 1200),
        ])
    }

    #[test]
    fn each_kernels_numbers_are_found() {
        let found = resources(&example()).unwrap();
        let kernel = |name: &str, registers, stack, spill, shared| KernelResources {
            kernel: String::from(name),
            registers,
            stack,
            spill,
            shared,
        };
        assert_eq!(found, [kernel("first", 8, 0, 0, 0), kernel("second", 40, 64, 16, 1200)]);
    }

    #[test]
    fn a_damaged_file_is_an_error_or_another_file_but_no_panic() {
        let good = example();
        for cut in 0..good.len() {
            assert!(resources(&good[..cut]).is_err());
        }
        for at in 0..good.len() {
            for bit in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                let _ = resources(&bad);
            }
        }
    }
}
