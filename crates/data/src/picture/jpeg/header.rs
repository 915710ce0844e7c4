//! What stands before the pixels of a JPEG file (ITU-T T.81, annex B).

use super::Damage;

/// How the components of a pixel are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    Grey,
    /// Luma and two differences (JFIF).
    Ycc,
    Rgb,
}

/// One component: brightness or a colour.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Component {
    id: u8,
    /// Blocks of it in a unit, along x and y.
    pub h: usize,
    pub v: usize,
    /// Numbers of its tables.
    pub quantiser: usize,
    pub dc: usize,
    pub ac: usize,
}

/// A table of codes as it is written: how many there are of each length, and what they stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Codes {
    pub counts: [u8; 16],
    pub symbols: [u8; 256],
}

/// The headers of a file of the kind that this decoder reads.
#[derive(Debug)]
pub(super) struct Header {
    pub height: usize,
    pub width: usize,
    /// 1 or 3.
    pub components: Vec<Component>,
    /// In the order of the file.
    pub quantisers: [Option<[u16; 64]>; 4],
    pub dc: [Option<Codes>; 4],
    pub ac: [Option<Codes>; 4],
    /// Units between restarts; 0 for none.
    pub restart: usize,
    /// Where the data begin.
    pub data: usize,
    pub colours: Colours,
}

impl Header {
    /// The most blocks of a component in a unit, along x and y.
    pub(super) fn most(&self) -> [usize; 2] {
        let most = |of: fn(&Component) -> usize| self.components.iter().map(of).max().unwrap_or(1);
        [most(|c| c.h), most(|c| c.v)]
    }

    /// Units along x and y.
    pub(super) fn units(&self) -> [usize; 2] {
        let [h, v] = self.most();
        [self.width.div_ceil(8 * h), self.height.div_ceil(8 * v)]
    }
}

/// Reads numbers off the front of a segment.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Damage> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or("a header is cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Damage> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Result<usize, Damage> {
        self.take(2).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])))
    }
}

/// The headers of a file; `None` where it is of a kind that is left to the general decoder: progressive, lossless,
/// arithmetic coding, 12 bits, CMYK, components in scans of their own or sampled in other ratios than 1 and 2.
pub(super) fn read(file: &[u8]) -> Result<Option<Header>, Damage> {
    let mut header = Header {
        height: 0,
        width: 0,
        components: Vec::new(),
        quantisers: [None; 4],
        dc: [None; 4],
        ac: [None; 4],
        restart: 0,
        data: 0,
        colours: Colours::Ycc,
    };
    let (mut jfif, mut adobe) = (false, None);
    let mut at = 2;
    loop {
        // What stands between segments is skipped, as others do.
        while file.get(at).is_some_and(|&b| b != 0xff) {
            at += 1;
        }
        while file.get(at) == Some(&0xff) {
            at += 1;
        }
        let Some(&kind) = file.get(at) else { return Err("it has no pixels") };
        at += 1;
        if matches!(kind, 0x00 | 0x01 | 0xd0..=0xd8) {
            continue;
        }
        let length = Bytes(&file[at..]).u16()?;
        let segment = file.get(at + 2..at + length).ok_or("a header is cut off")?;
        at += length;
        let mut bytes = Bytes(segment);
        match kind {
            0xc0 | 0xc1 if header.components.is_empty() => {
                let usual = frame(&mut bytes, &mut header)?;
                if !usual {
                    return Ok(None);
                }
            }
            0xc4 => codes(&mut bytes, &mut header)?,
            0xc0..=0xc3 | 0xc5..=0xcf | 0xdc | 0xde | 0xdf => return Ok(None),
            0xd9 => return Err("it has no pixels"),
            0xda => {
                header.data = at;
                if !scan(&mut bytes, &mut header)? {
                    return Ok(None);
                }
                break;
            }
            0xdb => quantisers(&mut bytes, &mut header)?,
            0xdd => header.restart = bytes.u16()?,
            0xe0 => jfif |= segment.starts_with(b"JFIF\0"),
            0xee if segment.len() >= 12 && segment.starts_with(b"Adobe") => adobe = Some(segment[11]),
            _ => {}
        }
    }
    let ids: Vec<u8> = header.components.iter().map(|c| c.id).collect();
    header.colours = match (header.components.len(), adobe) {
        (1, _) => Colours::Grey,
        _ if jfif => Colours::Ycc,
        (_, Some(0)) => Colours::Rgb,
        (_, Some(_)) => Colours::Ycc,
        _ if ids == *b"RGB" => Colours::Rgb,
        _ => Colours::Ycc,
    };
    Ok(Some(header))
}

/// The frame: size and components. Whether it is of the kind that is read here.
fn frame(bytes: &mut Bytes<'_>, header: &mut Header) -> Result<bool, Damage> {
    let bits = bytes.u8()?;
    header.height = bytes.u16()?;
    header.width = bytes.u16()?;
    let count = bytes.u8()?;
    if bits != 8 || !matches!(count, 1 | 3) || header.height == 0 || header.width == 0 {
        return Ok(false);
    }
    for _ in 0..count {
        let (id, sampling, quantiser) = (bytes.u8()?, bytes.u8()?, bytes.u8()?);
        let (h, v) = (usize::from(sampling >> 4), usize::from(sampling & 15));
        if quantiser > 3 {
            return Err("there is no such table of quantisers");
        }
        // A single component has one block a unit, whatever is written.
        let (h, v) = if count == 1 { (1, 1) } else { (h, v) };
        header.components.push(Component { id, h, v, quantiser: quantiser.into(), dc: 0, ac: 0 });
    }
    let usual = |(i, c): (usize, &Component)| match i {
        0 => matches!(c.h, 1 | 2) && matches!(c.v, 1 | 2),
        _ => (c.h, c.v) == (1, 1),
    };
    Ok(header.components.iter().enumerate().all(usual))
}

fn codes(bytes: &mut Bytes<'_>, header: &mut Header) -> Result<(), Damage> {
    while !bytes.0.is_empty() {
        let kind = bytes.u8()?;
        let mut codes = Codes { counts: [0; 16], symbols: [0; 256] };
        codes.counts.copy_from_slice(bytes.take(16)?);
        let count: usize = codes.counts.iter().map(|&n| usize::from(n)).sum();
        let symbols = codes.symbols.get_mut(..count).ok_or("a table of codes has more than 256")?;
        symbols.copy_from_slice(bytes.take(count)?);
        if kind >> 4 == 0 && symbols.iter().any(|&size| size > 15) {
            return Err("a table of differences has an impossible one");
        }
        let tables = if kind >> 4 == 0 { &mut header.dc } else { &mut header.ac };
        let place = tables.get_mut(usize::from(kind & 15)).filter(|_| kind >> 4 < 2);
        *place.ok_or("a table of codes has an impossible number")? = Some(codes);
    }
    Ok(())
}

fn quantisers(bytes: &mut Bytes<'_>, header: &mut Header) -> Result<(), Damage> {
    while !bytes.0.is_empty() {
        let kind = bytes.u8()?;
        let table = header.quantisers.get_mut(usize::from(kind & 15));
        let table = table.ok_or("a table of quantisers has an impossible number")?;
        for q in table.insert([0; 64]) {
            *q = if kind >> 4 == 0 { u16::from(bytes.u8()?) } else { bytes.u16()? as u16 };
        }
    }
    Ok(())
}

/// The scan's header. Whether all components are in it.
fn scan(bytes: &mut Bytes<'_>, header: &mut Header) -> Result<bool, Damage> {
    let count = usize::from(bytes.u8()?);
    if header.components.is_empty() || count != header.components.len() {
        return Ok(false);
    }
    for component in &mut header.components {
        let (id, tables) = (bytes.u8()?, bytes.u8()?);
        if id != component.id {
            return Ok(false);
        }
        (component.dc, component.ac) = (usize::from(tables >> 4), usize::from(tables & 15));
        if component.dc > 3 || component.ac > 3 {
            return Err("a table of codes has an impossible number");
        }
    }
    Ok(true)
}
