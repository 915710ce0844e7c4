//! Huffman codes of JPEG files and the bits that they are read from (ITU-T T.81, annexes C and F).

use super::header::Codes;
use super::{Damage, simd};
use crate::picture::simd::Avx2;

/// Bits of a code that are looked up at once.
const LOOK: u32 = 10;

/// A table to decode codes with.
#[derive(Debug)]
pub(super) struct Table {
    /// What it was made of, to be used again for files with the same codes.
    made_of: Option<Codes>,
    /// For the next [`LOOK`] bits: where code and number are within them, the number in the upper half, the zeros before
    /// it, and the bits of both; where only the code is, its symbol and its bits; else 0.
    direct: Box<[u32; 1 << LOOK]>,
    /// By length from 1 on: the first 16 bits that are beyond its codes, and what to add to a code for its symbol's place.
    beyond: [u32; 17],
    offset: [i32; 17],
    symbols: [u8; 256],
}

impl Default for Table {
    fn default() -> Self {
        Table {
            made_of: None,
            direct: Box::new([0; 1 << LOOK]),
            beyond: [0; 17],
            offset: [0; 17],
            symbols: [0; 256],
        }
    }
}

impl Table {
    /// Makes it for these codes.
    pub(super) fn set(&mut self, codes: &Codes) -> Result<(), Damage> {
        if self.made_of.as_ref() == Some(codes) {
            return Ok(());
        }
        self.made_of = None;
        self.direct.fill(0);
        self.symbols = codes.symbols;
        let (mut code, mut place) = (0u32, 0usize);
        for length in 1..=16u32 {
            let count = u32::from(codes.counts[length as usize - 1]);
            if code + count > 1 << length {
                return Err("a table has more codes than there are");
            }
            self.offset[length as usize] = place as i32 - code as i32;
            for _ in 0..count {
                if length <= LOOK {
                    let from = (code << (LOOK - length)) as usize;
                    for (rest, entry) in self.direct[from..][..1 << (LOOK - length)].iter_mut().enumerate() {
                        *entry = entry_for(codes.symbols[place], length, rest as u32);
                    }
                }
                (code, place) = (code + 1, place + 1);
            }
            self.beyond[length as usize] = code << (16 - length);
            code <<= 1;
        }
        self.made_of = Some(*codes);
        Ok(())
    }

    /// Symbol and length of the code that the bits begin with; longer than [`LOOK`].
    #[cold]
    fn long(&self, bits: u64) -> Result<(u8, u32), Damage> {
        let next = (bits >> 48) as u32;
        let length = (LOOK + 1..=16).find(|&l| next < self.beyond[l as usize]);
        let length = length.ok_or("there is no such code")?;
        let place = (next >> (16 - length)) as i32 + self.offset[length as usize];
        let symbol = usize::try_from(place).ok().and_then(|p| self.symbols.get(p));
        Ok((*symbol.ok_or("there is no such code")?, length))
    }
}

/// What stands in the table of a code of that length and the bits that follow it.
fn entry_for(symbol: u8, length: u32, rest: u32) -> u32 {
    let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
    let left = LOOK - length;
    if size == 0 || size > left {
        return u32::from(symbol) << 8 | length;
    }
    let value = extend(u64::from(rest >> (left - size)), size) as u32;
    value << 16 | run << 8 | (length + size)
}

/// The number that `size` bits stand for: those that begin with 0 are negative.
#[inline(always)]
fn extend(bits: u64, size: u32) -> i32 {
    let below = (bits >> (size - 1)) as i32 - 1;
    bits as i32 + (below & (1 - (1 << size)))
}

/// Bits from the front of a scan's data.
#[derive(Debug, Clone)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits, from the highest on.
    next: u64,
    /// How many of them are there.
    count: u32,
}

/// Zeros that must follow a scan's data.
pub(super) const PADDING: usize = 16;

/// For each coefficient in the order of the file: its quantiser and, in the lower half, its place in a block.
pub(super) type Steps = [u32; 64];

/// The steps of a table of quantisers.
pub(super) fn steps(quantisers: &[u16; 64]) -> Steps {
    let mut steps = [0; 64];
    for ((step, q), place) in steps.iter_mut().zip(quantisers).zip(ORDER) {
        *step = u32::from(*q) << 16 | u32::from(place);
    }
    steps
}

impl<'a> Bits<'a> {
    /// Bits of data that are followed by [`PADDING`] zeros.
    pub(super) fn new(data: &'a [u8]) -> Self {
        Bits { data, at: 0, next: 0, count: 0 }
    }

    /// Makes sure of 56 bits. Behind the padding there are zeros without end.
    #[inline(always)]
    fn fill(&mut self) {
        if let Some(Ok(bytes)) = self.data.get(self.at..self.at + 8).map(<[u8; 8]>::try_from) {
            self.next |= u64::from_be_bytes(bytes) >> self.count;
            self.at += ((63 - self.count) >> 3) as usize;
        }
        self.count |= 56;
    }

    #[inline(always)]
    fn drop(&mut self, bits: u32) {
        self.next <<= bits;
        self.count -= bits;
    }

    /// Bytes of which bits were taken.
    pub(super) fn used(&self) -> usize {
        self.at - (self.count / 8) as usize
    }

    /// Symbol and number of a code that the table does not give both of: 0 for a code without a number.
    #[inline(always)]
    fn longer(&mut self, table: &Table, entry: u32) -> Result<(u32, i32), Damage> {
        let (symbol, length) = match entry {
            0 => table.long(self.next)?,
            entry => ((entry >> 8) as u8, entry & 0xff),
        };
        self.drop(length);
        let size = u32::from(symbol & 15);
        if size == 0 {
            return Ok((symbol.into(), 0));
        }
        let value = extend(self.next >> (64 - size), size);
        self.drop(size);
        Ok((symbol.into(), value))
    }

    /// Reads a block: adds the difference of its mean to that of the one before to `mean`, and puts its other
    /// coefficients, multiplied by their quantisers, into their places; returns one more than the place in the file's
    /// order of the last. Without `KEEP` they are only skipped.
    #[inline(always)]
    pub(super) fn block<const KEEP: bool>(
        &mut self,
        [dc, ac]: [&Table; 2],
        steps: &Steps,
        mean: &mut i32,
        block: &mut [i16; 64],
    ) -> Result<usize, Damage> {
        // A copy can be kept in registers.
        let mut bits = self.clone();
        bits.fill();
        let entry = dc.direct[(bits.next >> (64 - LOOK)) as usize];
        let difference = if entry >> 16 != 0 && entry & 0xff00 == 0 {
            bits.drop(entry & 0xff);
            (entry as i32) >> 16
        } else {
            match bits.longer(dc, entry)? {
                (0..=15, value) => value,
                _ => return Err("there is no such difference"),
            }
        };
        *mean = mean.wrapping_add(difference);
        let (mut k, mut last) = (1, 1);
        while k < 64 {
            if bits.count < 32 {
                bits.fill();
            }
            let entry = ac.direct[(bits.next >> (64 - LOOK)) as usize];
            let value = if entry >> 16 != 0 {
                bits.drop(entry & 0xff);
                k += (entry >> 8 & 0xff) as usize;
                (entry as i32) >> 16
            } else {
                let (symbol, value) = bits.longer(ac, entry)?;
                match symbol {
                    0 => break,
                    0xf0 => {
                        k += 16;
                        continue;
                    }
                    _ if value == 0 => return Err("there is no such code"),
                    _ => k += (symbol >> 4) as usize,
                }
                value
            };
            if k > 63 {
                return Err("a block has too many coefficients");
            }
            if KEEP {
                let step = steps[k];
                block[(step & 63) as usize] = (value as i16).wrapping_mul((step >> 16) as i16);
            }
            k += 1;
            last = k;
        }
        *self = bits;
        match k > 64 {
            true => Err("a block has too many coefficients"),
            false => Ok(last),
        }
    }
}

/// Where the coefficients of the file's order stand in a block (figure A.6).
const ORDER: [u8; 64] = order();

const fn order() -> [u8; 64] {
    let mut order = [0; 64];
    let (mut x, mut y, mut k) = (0i32, 0i32, 0);
    // Diagonals, every other one upwards.
    while k < 64 {
        order[k] = (8 * y + x) as u8;
        let up = (x + y) % 2 == 0;
        if up {
            match (x, y) {
                (7, _) => y += 1,
                (_, 0) => x += 1,
                _ => (x, y) = (x + 1, y - 1),
            }
        } else {
            match (x, y) {
                (_, 7) => x += 1,
                (0, _) => y += 1,
                _ => (x, y) = (x - 1, y + 1),
            }
        }
        k += 1;
    }
    order
}

/// Copies bytes up to the first that is 255, or until fewer than eight are left; returns their number.
pub(super) fn copy_until_255(from: &[u8], to: &mut [u8]) -> usize {
    let mut done = 0;
    for (bytes, to) in from.as_chunks::<8>().0.iter().zip(to.as_chunks_mut::<8>().0) {
        *to = *bytes;
        let word = u64::from_le_bytes(*bytes);
        let full =
            (word & 0x7f7f_7f7f_7f7f_7f7f).wrapping_add(0x0101_0101_0101_0101) & word & 0x8080_8080_8080_8080;
        if full != 0 {
            return done + (full.trailing_zeros() / 8) as usize;
        }
        done += 8;
    }
    done
}

/// How a scan's data end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With the image.
    Found,
    /// With the file.
    Missing,
    /// With other data.
    Other,
    /// There are more restarts than may be, or one is missing among them.
    Restarts,
}

/// Copies a scan's data without the zeros behind bytes of 255 into `data`, with [`PADDING`] behind them. `restarts`
/// gets the place of every restart, of which there may be `most`.
pub(super) fn unstuff(
    avx2: Option<Avx2>,
    scan: &[u8],
    most: usize,
    data: &mut Vec<u8>,
    restarts: &mut Vec<usize>,
) -> End {
    restarts.clear();
    data.resize(scan.len() + 2 * PADDING, 0);
    let (mut from, mut to) = (0, 0);
    let whole = loop {
        let count = simd::copy_until_255(avx2, &scan[from..], &mut data[to..]);
        (from, to) = (from + count, to + count);
        match (scan.get(from), scan.get(from + 1)) {
            (Some(0xff), Some(0x00)) => {
                data[to] = 0xff;
                (from, to) = (from + 2, to + 1);
            }
            (Some(0xff), Some(0xff)) => from += 1,
            (Some(0xff), Some(&restart @ 0xd0..=0xd7)) => {
                // They are numbered from 0 to 7, over and over.
                if restarts.len() == most || usize::from(restart & 7) != restarts.len() % 8 {
                    break End::Restarts;
                }
                restarts.push(to);
                from += 2;
            }
            (Some(0xff), Some(0xd9)) => break End::Found,
            (Some(0xff), Some(_)) => break End::Other,
            (Some(0xff), None) | (None, _) => break End::Missing,
            (Some(&byte), _) => {
                data[to] = byte;
                (from, to) = (from + 1, to + 1);
            }
        }
    };
    data.truncate(to);
    data.resize(to + PADDING, 0);
    whole
}
