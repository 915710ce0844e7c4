//! A decoder of JPEG files for training: of a file it decodes the part that is seen, at the size at which it is needed,
//! into memory that it keeps. What has to be read in any case are the codes up to the last row of that part. It reads
//! what nearly all files are, sequential ones with Huffman codes, 8 bits and one or three components (ITU-T T.81), and
//! leaves others to the general decoder. At full size its pixels are those of libjpeg with its usual settings.

mod codes;
mod colours;
mod header;
mod inverse;
mod simd;

use std::ops::Range;

use codes::{Bits, End, Steps, Table};
use header::{Colours, Header};

use super::simd::{Avx2, SLACK};

/// What is wrong with a file.
pub(super) type Damage = &'static str;

/// Its data end before its end.
pub(super) const CUT_OFF: Damage = "it is cut off";

/// Decodes one file after the other.
#[derive(Debug)]
pub(super) struct Decoder {
    header: Option<Header>,
    dc: [Table; 4],
    ac: [Table; 4],
    /// A scan's data without stuffing, and where in them restarts are.
    data: Vec<u8>,
    restarts: Vec<usize>,
    planes: [Plane; 3],
    /// Rows of colour differences at the size of the image.
    rows: [Vec<u8>; 3],
    sums: Vec<u16>,
    pixels: Vec<u8>,
    avx2: Option<Avx2>,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder {
            header: None,
            dc: Default::default(),
            ac: Default::default(),
            data: Vec::new(),
            restarts: Vec::new(),
            planes: Default::default(),
            rows: Default::default(),
            sums: Vec::new(),
            pixels: Vec::new(),
            avx2: Avx2::detect(),
        }
    }
}

/// The part of one component that is decoded.
#[derive(Debug)]
struct Plane {
    /// Pixels of a block's side: 1, 2, 4 or 8.
    side: usize,
    /// How often each sample counts along y and x: 1 or 2.
    repeat: [usize; 2],
    /// Its whole height and width.
    size: [usize; 2],
    /// The blocks that are decoded, along y and x.
    blocks: [Range<usize>; 2],
    /// Those blocks' pixels.
    samples: Vec<u8>,
    stride: usize,
    steps: Steps,
    mean: i32,
}

impl Default for Plane {
    fn default() -> Self {
        Plane {
            side: 8,
            repeat: [1; 2],
            size: [0; 2],
            blocks: [0..0, 0..0],
            samples: Vec::new(),
            stride: 0,
            steps: [0; 64],
            mean: 0,
        }
    }
}

impl Plane {
    /// Samples of row `y` of the plane, from column `from` on.
    fn row(&self, y: usize, columns: Range<usize>) -> &[u8] {
        let [top, left] = [0, 1].map(|axis| self.blocks[axis].start * self.side);
        let row = &self.samples[(y - top) * self.stride..][..self.stride];
        &row[columns.start - left..columns.end - left]
    }

    /// The samples along an axis that the pixels `wanted` need.
    fn needs(&self, axis: usize, wanted: &Range<usize>) -> Range<usize> {
        match self.repeat[axis] {
            1 => wanted.clone(),
            _ => (wanted.start / 2).saturating_sub(1)..(wanted.end.div_ceil(2) + 1).min(self.size[axis]),
        }
    }

    /// Whether samples are interpolated, or only repeated, where they are fewer than pixels.
    fn smooth(&self) -> bool {
        self.side > 1 && self.size[1] > 2
    }
}

impl Decoder {
    /// Reads a file's headers and takes its data: height, width and components, or `None` where it is left to the general
    /// decoder.
    pub(super) fn open(&mut self, file: &[u8]) -> Result<Option<[usize; 3]>, Damage> {
        self.let_go();
        self.header = header::read(file)?;
        let Some(header) = &self.header else { return Ok(None) };
        let scan = file.get(header.data..).unwrap_or_default();
        let [x, y] = header.units();
        let most = (x * y).checked_div(header.restart).unwrap_or(0);
        match codes::unstuff(self.avx2, scan, most, &mut self.data, &mut self.restarts) {
            End::Other => Ok(None),
            End::Missing => Err(CUT_OFF),
            End::Restarts => Err("its restarts are not in order"),
            End::Found => Ok(Some([header.height, header.width, header.components.len()])),
        }
    }

    /// Gives back what one very large file has taken.
    fn let_go(&mut self) {
        let all = self.planes.iter_mut().map(|p| &mut p.samples).chain(&mut self.rows);
        all.chain([&mut self.data, &mut self.pixels]).for_each(super::let_go);
    }

    /// Decodes the part `window` (top, left, height, width) of the image that the opened file becomes when it is made
    /// `shrink` (1, 2, 4, 8) times smaller, rounded up: rows of pixels of one byte or three, and [`SLACK`] bytes more.
    pub(super) fn decode(
        &mut self,
        shrink: usize,
        [top, left, tall, wide]: [usize; 4],
    ) -> Result<&[u8], Damage> {
        let Some(header) = self.header.take() else { return Err("it is no JPEG image") };
        let (rows, columns) = (top..top + tall, left..left + wide);
        self.plan(&header, 8 / shrink, &rows, &columns)?;
        self.blocks(&header)?;
        let channels = header.components.len();
        // What it held is overwritten.
        self.pixels.resize(tall * wide * channels + SLACK, 0);
        self.colour(&header, rows, columns);
        self.header = Some(header);
        Ok(&self.pixels)
    }

    /// Decides what of each component is decoded, where a block becomes `side` pixels high and wide.
    fn plan(
        &mut self,
        header: &Header,
        side: usize,
        rows: &Range<usize>,
        columns: &Range<usize>,
    ) -> Result<(), Damage> {
        let [h, v] = header.most();
        for (plane, component) in self.planes.iter_mut().zip(&header.components) {
            // A component of fewer samples becomes larger blocks instead, as far as they go.
            let fewer = [v / component.v, h / component.h];
            plane.side = (side * fewer[0].min(fewer[1])).min(8);
            plane.repeat = fewer.map(|f| f * side / plane.side);
            plane.size = [(header.height, component.v, v), (header.width, component.h, h)]
                .map(|(pixels, own, most)| (pixels * own * plane.side).div_ceil(8 * most));
            plane.blocks = [(0, rows), (1, columns)].map(|(axis, wanted)| {
                let samples = plane.needs(axis, wanted);
                samples.start / plane.side..samples.end.div_ceil(plane.side)
            });
            plane.stride = plane.blocks[1].len() * plane.side;
            plane.samples.resize(plane.stride * plane.blocks[0].len() * plane.side, 0);
            plane.mean = 0;
            let quantisers = header.quantisers[component.quantiser].as_ref();
            plane.steps = codes::steps(quantisers.ok_or("a table of quantisers is missing")?);
            let table = |tables: &[Option<header::Codes>; 4], at: usize| {
                tables[at].ok_or("a table of codes is missing")
            };
            self.dc[component.dc].set(&table(&header.dc, component.dc)?)?;
            self.ac[component.ac].set(&table(&header.ac, component.ac)?)?;
        }
        Ok(())
    }

    /// Reads the codes and decodes the blocks that were planned.
    fn blocks(&mut self, header: &Header) -> Result<(), Damage> {
        let [units_x, units_y] = header.units();
        let planes = &mut self.planes[..header.components.len()];
        let last =
            header.components.iter().zip(planes.iter()).map(|(c, p)| p.blocks[0].end.div_ceil(c.v)).max();
        let last = last.unwrap_or(0).min(units_y);
        let ends = self.restarts.iter().copied().chain([self.data.len() - codes::PADDING]);
        let mut ends = ends.peekable();
        let mut bits = Bits::new(&self.data);
        let mut begin = 0;
        let mut left = header.restart;
        let mut block = [0i16; 64];
        for unit_y in 0..last {
            for unit_x in 0..units_x {
                if header.restart > 0 {
                    if left == 0 {
                        let next = ends.next().filter(|_| ends.peek().is_some());
                        let next = next.ok_or("a restart is missing")?;
                        if begin + bits.used() > next {
                            return Err("a restart comes too early");
                        }
                        // Whatever was left of the data before, the next begin here.
                        begin = next;
                        bits = Bits::new(&self.data[begin..]);
                        planes.iter_mut().for_each(|p| p.mean = 0);
                        left = header.restart;
                    }
                    left -= 1;
                }
                for (component, plane) in header.components.iter().zip(&mut *planes) {
                    let tables = [&self.dc[component.dc], &self.ac[component.ac]];
                    for y in unit_y * component.v..(unit_y + 1) * component.v {
                        for x in unit_x * component.h..(unit_x + 1) * component.h {
                            let (steps, mean) = (&plane.steps, &mut plane.mean);
                            if !(plane.blocks[0].contains(&y) && plane.blocks[1].contains(&x)) {
                                simd::read::<false>(self.avx2, &mut bits, tables, steps, mean, &mut block)?;
                                continue;
                            }
                            let count =
                                simd::read::<true>(self.avx2, &mut bits, tables, steps, mean, &mut block)?;
                            let (side, stride) = (plane.side, plane.stride);
                            let at = (y - plane.blocks[0].start) * side * stride
                                + (x - plane.blocks[1].start) * side;
                            let out = &mut plane.samples[at..];
                            let mean = (plane.mean as i16).wrapping_mul((plane.steps[0] >> 16) as i16);
                            if count == 1 {
                                inverse::even(mean, side, out, stride);
                                continue;
                            }
                            block[0] = mean;
                            inverse::block(self.avx2, &block, side, out, stride);
                            block.fill(0);
                        }
                    }
                }
            }
            // Of data that have ended nothing more is made than the row: what a header claims may be large.
            if begin + bits.used() > ends.peek().copied().unwrap_or(0) {
                return Err("its data end too early");
            }
        }
        Ok(())
    }

    /// Makes pixels of the planes, row by row.
    fn colour(&mut self, header: &Header, rows: Range<usize>, columns: Range<usize>) {
        let wide = columns.len();
        let channels = header.components.len();
        let Decoder { planes, rows: kept, sums, pixels, avx2, .. } = self;
        let out = pixels.chunks_exact_mut((wide * channels).max(1));
        for (y, out) in rows.zip(out) {
            let mut full: [&[u8]; 3] = [&[]; 3];
            for ((plane, row), full) in planes.iter().zip(kept.iter_mut()).zip(&mut full).take(channels) {
                *full = sampled(plane, y, &columns, row, sums, *avx2);
            }
            let [a, b, c] = full;
            match header.colours {
                Colours::Grey => out.copy_from_slice(a),
                Colours::Ycc => colours::rgb(*avx2, a, b, c, out),
                Colours::Rgb => {
                    for (((to, a), b), c) in out.as_chunks_mut::<3>().0.iter_mut().zip(a).zip(b).zip(c) {
                        *to = [*a, *b, *c];
                    }
                }
            }
        }
    }
}

/// Row `y` of an image, of one component.
fn sampled<'a>(
    plane: &'a Plane,
    y: usize,
    columns: &Range<usize>,
    row: &'a mut Vec<u8>,
    sums: &mut Vec<u16>,
    avx2: Option<Avx2>,
) -> &'a [u8] {
    let needed = plane.needs(1, columns);
    // Where the wanted columns begin in a row of twice as many as are needed.
    let skip = columns.start.saturating_sub(2 * needed.start);
    let near = plane.row(y / plane.repeat[0], needed.clone());
    // The row on the other side of the pixel's edge.
    let far = match y % 2 {
        0 => (y / 2).saturating_sub(1),
        _ => (y / 2 + 1).min(plane.size[0] - 1),
    };
    match plane.repeat {
        [1, 1] => return near,
        [1, _] => {
            row.resize(2 * near.len(), 0);
            match plane.smooth() {
                true => simd::across(avx2, near, row),
                false => double(near, row),
            }
        }
        [_, 1] => {
            row.resize(near.len(), 0);
            match plane.side > 1 {
                true => colours::down(near, plane.row(far, needed), 1 + (y % 2) as u16, row),
                false => row.copy_from_slice(near),
            }
            return row;
        }
        _ => {
            row.resize(2 * near.len(), 0);
            sums.resize(near.len(), 0);
            match plane.smooth() {
                true => simd::both_ways(avx2, near, plane.row(far, needed), sums, row),
                false => double(near, row),
            }
        }
    }
    &row[skip..][..columns.len()]
}

/// Every sample twice.
fn double(near: &[u8], row: &mut [u8]) {
    for (pair, x) in row.as_chunks_mut::<2>().0.iter_mut().zip(near) {
        *pair = [*x; 2];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_change_no_pixel() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pictures");
        for name in ["ycc444", "ycc422", "ycc420", "restarts", "own-codes", "grey-odd", "rgb"] {
            let file = std::fs::read(folder.join(format!("{name}.jpg"))).unwrap();
            let decode = |avx2, shrink: usize| {
                let mut decoder = Decoder { avx2, ..Decoder::default() };
                let [h, w, c] = decoder.open(&file).unwrap().unwrap();
                let [h, w] = [h, w].map(|side: usize| side.div_ceil(shrink));
                decoder.decode(shrink, [0, 0, h, w]).unwrap()[..h * w * c].to_vec()
            };
            for shrink in [1, 2, 4, 8] {
                assert!(decode(None, shrink) == decode(Avx2::detect(), shrink), "{name} at 1/{shrink}");
            }
        }
    }

    #[test]
    fn transforms_of_wild_coefficients_are_the_same_with_vectors() {
        let mut stream = phalanx_host::rng::Key::new(3).stream();
        for _ in 0..300 {
            let spread = 1 + stream.below(65536) as i64;
            let block: [i16; 64] =
                std::array::from_fn(|_| (stream.below(spread as u64) as i64 - spread / 2) as i16);
            let [mut plain, mut fast] = [[0; 80]; 2];
            inverse::block(None, &block, 8, &mut plain, 10);
            inverse::block(Avx2::detect(), &block, 8, &mut fast, 10);
            assert_eq!(plain, fast);
        }
    }
}
