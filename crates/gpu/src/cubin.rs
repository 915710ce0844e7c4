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
    /// Bytes of the kernel's own frame in that stack: spilled registers, and arrays that are no registers.
    pub spill: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
}

/// Attributes in `.nv.info` (`EIATTR_…`): format and number in one.
const FRAME_SIZE: u16 = 0x1104;
const MIN_STACK_SIZE: u16 = 0x1204;
const REGCOUNT: u16 = 0x2f04;
/// The format of attributes with a size and so many bytes (`EIFMT_SVAL`); the others are four bytes long in all.
const SIZED: u8 = 4;

const MACHINE_CUDA: u16 = 190;
const SYMBOL_FUNCTION: u8 = 2;

/// A section's name, contents and how far its entries are apart.
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
        if matches!(attribute.swap_bytes().swap_bytes(), FRAME_SIZE | MIN_STACK_SIZE | REGCOUNT) {
            values.insert((u32_at(info, at + 4)?, attribute), u32_at(info, at + 8)?);
        }
        at += 4 + usize::from(size);
    }
    let mut kernels = Vec::new();
    for (symbol, name) in functions {
        // Functions that kernels call have a register count, too, but no code section of a kernel's information.
        let own = |s: &&Section| s.name.strip_prefix(".nv.info.") == Some(name);
        if sections.iter().find(own).is_none() {
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
