//! The forward convolution as tiles of (pixels of one output row) x (output channels), straight from the
//! image: in a channels-last image the numbers that a pixel takes from one row are neighbours, and the
//! next pixel's are a fixed step further, which is just what a register tile reads.

use crate::gemm::{Bias, Depth, Engine, Pack, Scratch, Shared, Tile, Walk, part, run};
use crate::simd::Real;
use crate::{Buffer, Cpu, Result};

use super::bands::{Band, Bands, PIECES};
use super::pad::pad_rows;
use super::windows::{Places, Windows};

/// Output pixels that a task should have, to read the weight not too often.
const PIXELS: usize = 128;
/// Bytes of padded input that a task works on: a quarter of a 2 MB second-level cache.
const CACHE: usize = 1 << 19;
/// Bytes of a weight that no second-level cache keeps from band to band.
const LARGE: usize = 1 << 22;
/// Rows of a weight that are packed for one place of the kernel after the other: they lie pages apart.
const ROWS: usize = 16;

/// A plane of a weight: for each output channel, the numbers of one plane of the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight<'a, T> {
    /// From the plane's first number on.
    pub data: &'a [T],
    /// From output channel to output channel.
    pub row: usize,
    /// Output channels.
    pub channels: usize,
}

/// A weight in panels of as many channels as a tile has columns: for each number that a window takes, one
/// number a channel. No panel has channels of two groups.
pub(super) struct Panels {
    buffer: Buffer,
    groups: usize,
    /// Channels of a group.
    channels: usize,
    numbers: usize,
    cols: usize,
    lanes: usize,
}

impl Panels {
    /// Packs a weight as a forward convolution takes it.
    pub(super) fn new<T: Real>(cpu: &Cpu, e: &Engine<T>, w: &Weight<T>, windows: &Windows) -> Result<Self> {
        let (groups, numbers) = (windows.groups, windows.numbers());
        let channels = w.channels / groups;
        Self::build(cpu, e, [groups, channels, numbers], |group, channel, lanes, dst, width| {
            let src = w.data[(group * channels + channel) * w.row..].as_ptr();
            e.pack(Pack { src, src_step: 1, src_lane: w.row, steps: numbers, lanes, dst, width });
        })
    }

    /// Packs `taps` (places of the kernel's plane, in this order) of a weight with `share` input channels a
    /// group, its channels exchanged: the weight of the convolution that carries the output's gradient back.
    pub(super) fn backward<T: Real>(
        cpu: &Cpu,
        e: &Engine<T>,
        w: &Weight<T>,
        groups: usize,
        share: usize,
        taps: &[usize],
    ) -> Result<Self> {
        let o = w.channels / groups;
        Self::build(cpu, e, [groups, share, taps.len() * o], |group, channel, lanes, dst, width| {
            let cuts = o.div_ceil(ROWS);
            for rows in (0..cuts).map(|cut| part(o, cuts, cut)) {
                for (i, tap) in taps.iter().enumerate() {
                    let first = (group * o + rows.start) * w.row;
                    e.pack(Pack {
                        src: w.data[first + tap * share + channel..].as_ptr(),
                        src_step: w.row,
                        src_lane: 1,
                        steps: rows.len(),
                        lanes,
                        dst: dst.wrapping_add((i * o + rows.start) * width),
                        width,
                    });
                }
            }
        })
    }

    fn build<T: Real>(
        cpu: &Cpu,
        e: &Engine<T>,
        [groups, channels, numbers]: [usize; 3],
        pack: impl Fn(usize, usize, usize, *mut T, usize) + Sync,
    ) -> Result<Self> {
        let mut panels = Panels {
            buffer: cpu.pool.alloc(groups * channels.div_ceil(e.cols) * e.cols * numbers * size_of::<T>())?,
            groups,
            channels,
            numbers,
            cols: e.cols,
            lanes: e.lanes,
        };
        let count = panels.count();
        let places: Vec<_> = (0..count).map(|i| panels.channels(i)).collect();
        let dst = Shared::new(panels.buffer.as_mut_slice::<T>());
        run(cpu, count, groups * channels * numbers, |i| {
            let (group, channel, lanes, width) = places[i];
            pack(group, channel, lanes, dst.at(i * e.cols * numbers), width);
        });
        Ok(panels)
    }

    fn count(&self) -> usize {
        self.groups * self.channels.div_ceil(self.cols)
    }

    /// The channels of panel `i`: their group, the first one in it, how many, and the panel's width.
    fn channels(&self, i: usize) -> (usize, usize, usize, usize) {
        let each = self.channels.div_ceil(self.cols);
        let first = i % each * self.cols;
        let count = self.cols.min(self.channels - first);
        (i / each, first, count, count.next_multiple_of(self.lanes))
    }
}

/// y = x * w + bias, or y += where `add` is set.
pub(super) fn forward<T: Real>(
    cpu: &Cpu,
    e: &Engine<T>,
    w: &Windows,
    x: &[T],
    panels: &Panels,
    bias: Option<&[T]>,
    y: Shared<T>,
    to: &Places,
    add: bool,
) -> Result<()> {
    let [out_h, out_w] = w.out;
    let tiles = out_w.div_ceil(e.rows);
    let pixel = w.stride[1] * w.channels;
    let (depth, a_walk) = w.walk(w.row_len());
    let work = w.images * out_h * out_w * panels.groups * panels.channels * panels.numbers;
    let packed = panels.buffer.as_slice::<T>();
    let b_walk = |width| Walk {
        step: width,
        segment: depth.steps * width,
        group: depth.steps * depth.segments * width,
    };
    let panel = |i: usize, input: &Input<T>| {
        let (group, channel, cols, width) = panels.channels(i);
        let (from, out) = (group * w.share(), group * panels.channels + channel);
        for (image, row, t) in input.band.pixels(tiles) {
            let pixels = part(out_w, tiles, t);
            e.tile(Tile {
                rows: pixels.len(),
                cols,
                depth,
                a: input.at(image, row).wrapping_add(pixels.start * pixel + from),
                a_row: pixel,
                a_walk,
                b: packed[i * e.cols * panels.numbers..].as_ptr(),
                b_walk: b_walk(width),
                b_whole: true,
                c: y.at(to.at(image, row, pixels.start) + out),
                c_row: to.pixel,
                c_col: 1,
                bias: bias.map_or(Bias::None, |b| Bias::Cols(b[out..].as_ptr())),
                add,
            });
        }
    };
    // Either each band reads the whole weight, or each panel of the weight reads all images.
    let bands = Bands::sharing(w, PIXELS, CACHE / size_of::<T>());
    let (weight, images) = (size_of_val(packed), w.images * w.padded_len() * size_of::<T>());
    if weight <= LARGE || bands.count() * weight + images <= panels.count() * images + weight {
        return inputs(cpu, w, x, &bands, work, |input| (0..panels.count()).for_each(|i| panel(i, &input)));
    }
    let len = w.padded_len();
    let mut buffer = cpu.pool.alloc(if w.padded() { w.images * len * size_of::<T>() } else { 0 })?;
    let (x, image_len) = if w.padded() {
        let padded = buffer.as_mut_slice::<T>();
        cpu.workers.chunks(padded, len, |image, to| pad_rows(w, &x[image * w.image_len..], 0, to));
        (buffer.as_slice::<T>(), len)
    } else {
        (&x[w.start(0)..], w.image_len)
    };
    let parts = PIECES.div_ceil(panels.count()).min(w.images);
    run(cpu, panels.count() * parts, work, |task| {
        let images = part(w.images, parts, task % parts);
        let base = x[images.start * image_len..].as_ptr();
        let band = Band { images, rows: 0..out_h };
        panel(task / parts, &Input { band, base, image_len, row: w.stride[0] * w.row_len() });
    });
    Ok(())
}

/// The forward convolution of images with one channel: tiles of (output channels) x (pixels), since
/// neighbouring pixels fill vectors that a few channels would leave half empty.
pub(super) fn forward_planar<T: Real>(
    cpu: &Cpu,
    e: &Engine<T>,
    w: &Windows,
    x: &[T],
    weight: &Weight<T>,
    bias: Option<&[T]>,
    y: Shared<T>,
    to: &Places,
    add: bool,
) -> Result<()> {
    let (o, numbers, [out_h, out_w]) = (weight.channels, w.numbers(), w.out);
    let (strips, tiles) = (o.div_ceil(e.rows), out_w.div_ceil(e.cols));
    let mut packed = cpu.pool.alloc(o * numbers * size_of::<T>())?;
    let dst = packed.as_mut_slice::<T>();
    for s in 0..strips {
        let rows = part(o, strips, s);
        e.pack(Pack {
            src: weight.data[rows.start * weight.row..].as_ptr(),
            src_step: 1,
            src_lane: weight.row,
            steps: numbers,
            lanes: rows.len(),
            dst: dst[rows.start * numbers..].as_mut_ptr(),
            width: rows.len(),
        });
    }
    let packed = packed.as_slice::<T>();
    let [kernel_h, kernel_w] = w.kernel;
    let b_walk = Walk { step: w.dilation[1], segment: w.dilation[0] * w.row_len(), group: 0 };
    let bands = Bands::sharing(w, PIXELS, CACHE / size_of::<T>());
    inputs(cpu, w, x, &bands, w.images * out_h * out_w * o * numbers, |input| {
        for (image, row, t) in input.band.pixels(tiles) {
            let pixels = part(out_w, tiles, t);
            for channels in (0..strips).map(|s| part(o, strips, s)) {
                e.tile(Tile {
                    rows: channels.len(),
                    cols: pixels.len(),
                    depth: Depth { steps: kernel_w, segments: kernel_h, groups: 1 },
                    a: packed[channels.start * numbers..].as_ptr(),
                    a_row: 1,
                    a_walk: Walk { step: channels.len(), segment: kernel_w * channels.len(), group: 0 },
                    b: input.at(image, row).wrapping_add(pixels.start),
                    b_walk,
                    b_whole: false,
                    c: y.at(to.at(image, row, pixels.start) + channels.start),
                    c_row: 1,
                    c_col: to.pixel,
                    bias: bias.map_or(Bias::None, |b| Bias::Rows(b[channels.start..].as_ptr())),
                    add,
                });
            }
        }
    })
}

/// The input of a band's pixels, with padding in place.
struct Input<T> {
    band: Band,
    base: *const T,
    image_len: usize,
    /// From the windows of one output row to those of the next.
    row: usize,
}

impl<T> Input<T> {
    /// The first place of the first window of an output row.
    fn at(&self, image: usize, row: usize) -> *const T {
        let (image, row) = (image - self.band.images.start, row - self.band.rows.start);
        self.base.wrapping_add(image * self.image_len + row * self.row)
    }
}

/// Calls `f` with the input of every band of the batch.
fn inputs<T: Real>(
    cpu: &Cpu,
    w: &Windows,
    x: &[T],
    bands: &Bands,
    work: usize,
    f: impl Fn(Input<T>) + Sync,
) -> Result<()> {
    let (images, rows) = bands.largest();
    let (row_len, is_padded) = (w.row_len(), w.padded());
    let padded_len = w.reach(0, rows) * row_len;
    let scratch = Scratch::new::<T>(cpu, bands.count(), if is_padded { images * padded_len } else { 0 })?;
    run(cpu, bands.count(), work, |i| {
        let band = bands.get(i);
        let first = band.rows.start;
        scratch.with(|padded: &mut [T]| {
            let (base, image_len) = if is_padded {
                let len = w.reach(0, band.rows.len()) * row_len;
                for (image, to) in band.images.clone().zip(padded.chunks_exact_mut(padded_len)) {
                    pad_rows(w, &x[image * w.image_len..], first, &mut to[..len]);
                }
                (padded.as_ptr(), padded_len)
            } else {
                (x[band.images.start * w.image_len + w.start(first)..].as_ptr(), w.image_len)
            };
            f(Input { band, base, image_len, row: w.stride[0] * row_len });
        });
    });
    Ok(())
}
