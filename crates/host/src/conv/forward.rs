//! The forward convolution as tiles of (pixels of one output row) x (output channels), straight from the
//! image: in a channels-last image the numbers that a pixel takes from one row are neighbours, and the
//! next pixel's are a fixed step further, which is just what a register tile reads.

use crate::gemm::{Bias, Depth, Engine, Pack, Scratch, Shared, Tile, Walk, part, run};
use crate::simd::Real;
use crate::{Buffer, Cpu, Result};

use super::bands::{Band, Bands};
use super::pad::pad_rows;
use super::shape::{ConvShape, Sizes};

/// Output pixels that a task should have, to read the weight not too often.
const PIXELS: usize = 128;
/// Bytes of padded input that a task works on: a quarter of a 2 MB second-level cache.
const CACHE: usize = 1 << 19;

/// A weight in panels of as many output channels as a tile has columns: for each number that a pixel
/// takes, one number a channel.
pub(super) struct Panels {
    buffer: Buffer,
    channels: usize,
    reach: usize,
}

impl Panels {
    /// Packs `[out_c, reach]`, as a forward convolution takes it.
    pub(super) fn new<T: Real>(
        cpu: &Cpu,
        e: &Engine<T>,
        w: &[T],
        out_c: usize,
        reach: usize,
    ) -> Result<Self> {
        Self::build(cpu, e, out_c, reach, |channel, lanes, dst, width| {
            let src = w[channel * reach..].as_ptr();
            e.pack(Pack { src, src_step: 1, src_lane: reach, steps: reach, lanes, dst, width });
        })
    }

    /// Packs the weight `[out_c, taps, in_c]` with its channels exchanged and its taps reversed: the
    /// weight of the convolution that carries the output's gradient back.
    pub(super) fn reversed<T: Real>(cpu: &Cpu, e: &Engine<T>, w: &[T], shape: &ConvShape) -> Result<Self> {
        let (taps, c, o) = (shape.kernel[0] * shape.kernel[1], shape.in_c, shape.out_c);
        Self::build(cpu, e, c, taps * o, |channel, lanes, dst, width| {
            for tap in 0..taps {
                e.pack(Pack {
                    src: w[(taps - 1 - tap) * c + channel..].as_ptr(),
                    src_step: taps * c,
                    src_lane: 1,
                    steps: o,
                    lanes,
                    dst: dst.wrapping_add(tap * o * width),
                    width,
                });
            }
        })
    }

    fn build<T: Real>(
        cpu: &Cpu,
        e: &Engine<T>,
        channels: usize,
        reach: usize,
        pack: impl Fn(usize, usize, *mut T, usize) + Sync,
    ) -> Result<Self> {
        let panels = channels.div_ceil(e.cols);
        let mut buffer = cpu.pool.alloc(panels * e.cols * reach * size_of::<T>())?;
        let dst = Shared::new(buffer.as_mut_slice::<T>());
        run(cpu, panels, channels * reach, |p| {
            let lanes = part_of(channels, e.cols, p);
            pack(p * e.cols, lanes, dst.at(p * e.cols * reach), lanes.next_multiple_of(e.lanes));
        });
        Ok(Panels { buffer, channels, reach })
    }
}

/// The size of piece `i` of `n` cut into pieces of `size`.
fn part_of(n: usize, size: usize, i: usize) -> usize {
    size.min(n - i * size)
}

/// y = x * w + bias, or y += where `add` is set.
pub(super) fn forward<T: Real>(
    cpu: &Cpu,
    e: &Engine<T>,
    shape: &ConvShape,
    z: &Sizes,
    x: &[T],
    w: &Panels,
    bias: Option<&[T]>,
    y: &mut [T],
    add: bool,
) -> Result<()> {
    let (o, stride) = (shape.out_c, shape.stride);
    let tiles = z.out_w.div_ceil(e.rows);
    let work = y.len() * z.reach;
    let y = Shared::new(y);
    let panels = w.buffer.as_slice::<T>();
    inputs(cpu, shape, z, x, work, |input| {
        for p in 0..w.channels.div_ceil(e.cols) {
            let (channel, cols) = (p * e.cols, part_of(w.channels, e.cols, p));
            let width = cols.next_multiple_of(e.lanes);
            for (image, row, t) in input.band.pixels(tiles) {
                let pixels = part(z.out_w, tiles, t);
                e.tile(Tile {
                    rows: pixels.len(),
                    cols,
                    depth: Depth { steps: z.run, segments: shape.kernel[0], groups: 1 },
                    a: input.at(image, row * stride[0]).wrapping_add(pixels.start * stride[1] * shape.in_c),
                    a_row: stride[1] * shape.in_c,
                    a_walk: Walk { step: 1, segment: z.pad_row, group: 0 },
                    b: panels[p * e.cols * w.reach..].as_ptr(),
                    b_walk: Walk { step: width, segment: z.run * width, group: 0 },
                    b_whole: true,
                    c: y.at(((image * z.out_h + row) * z.out_w + pixels.start) * o + channel),
                    c_row: o,
                    c_col: 1,
                    bias: bias.map_or(Bias::None, |b| Bias::Cols(b[channel..].as_ptr())),
                    add,
                });
            }
        }
    })
}

/// The forward convolution of images with one channel: tiles of (output channels) x (pixels), since
/// neighbouring pixels fill vectors that a few channels would leave half empty.
pub(super) fn forward_planar<T: Real>(
    cpu: &Cpu,
    e: &Engine<T>,
    shape: &ConvShape,
    z: &Sizes,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<()> {
    let o = shape.out_c;
    let (strips, tiles) = (o.div_ceil(e.rows), z.out_w.div_ceil(e.cols));
    let mut packed = cpu.pool.alloc(size_of_val(w))?;
    let dst = packed.as_mut_slice::<T>();
    for s in 0..strips {
        let rows = part(o, strips, s);
        e.pack(Pack {
            src: w[rows.start * z.reach..].as_ptr(),
            src_step: 1,
            src_lane: z.reach,
            steps: z.reach,
            lanes: rows.len(),
            dst: dst[rows.start * z.reach..].as_mut_ptr(),
            width: rows.len(),
        });
    }
    let packed = packed.as_slice::<T>();
    let work = y.len() * z.reach;
    let y = Shared::new(y);
    inputs(cpu, shape, z, x, work, |input| {
        for (image, row, t) in input.band.pixels(tiles) {
            let pixels = part(z.out_w, tiles, t);
            for channels in (0..strips).map(|s| part(o, strips, s)) {
                e.tile(Tile {
                    rows: channels.len(),
                    cols: pixels.len(),
                    depth: Depth { steps: z.run, segments: shape.kernel[0], groups: 1 },
                    a: packed[channels.start * z.reach..].as_ptr(),
                    a_row: 1,
                    a_walk: Walk { step: channels.len(), segment: z.run * channels.len(), group: 0 },
                    b: input.at(image, row * shape.stride[0]).wrapping_add(pixels.start),
                    b_walk: Walk { step: 1, segment: z.pad_row, group: 0 },
                    b_whole: false,
                    c: y.at(((image * z.out_h + row) * z.out_w + pixels.start) * o + channels.start),
                    c_row: 1,
                    c_col: o,
                    bias: bias.map_or(Bias::None, |b| Bias::Rows(b[channels.start..].as_ptr())),
                    add: false,
                });
            }
        }
    })
}

/// The input of a band's pixels, with padding in place.
struct Input<T> {
    band: Band,
    base: *const T,
    first: usize,
    image_len: usize,
    row_len: usize,
}

impl<T> Input<T> {
    /// The address of a padded row.
    fn at(&self, image: usize, row: usize) -> *const T {
        let at = (image - self.band.images.start) * self.image_len + (row - self.first) * self.row_len;
        self.base.wrapping_add(at)
    }
}

/// Calls `f` with the input of every band of the batch.
fn inputs<T: Real>(
    cpu: &Cpu,
    shape: &ConvShape,
    z: &Sizes,
    x: &[T],
    work: usize,
    f: impl Fn(Input<T>) + Sync,
) -> Result<()> {
    let bands = Bands::sharing(shape, z, PIXELS, CACHE / size_of::<T>());
    let (images, rows) = bands.largest();
    let reach = |rows: usize| (rows - 1) * shape.stride[0] + shape.kernel[0];
    let padded_len = reach(rows) * z.pad_row;
    let scratch = Scratch::new::<T>(cpu, bands.count(), if z.padded { images * padded_len } else { 0 })?;
    run(cpu, bands.count(), work, |i| {
        let band = bands.get(i);
        let (first, row_len) = (band.rows.start * shape.stride[0], z.pad_row);
        scratch.with(|padded: &mut [T]| {
            let (base, image_len) = if z.padded {
                for (image, to) in band.images.clone().zip(padded.chunks_exact_mut(padded_len)) {
                    pad_rows(shape, z, x, image, first, reach(band.rows.len()), to);
                }
                (padded.as_ptr(), padded_len)
            } else {
                (x[(band.images.start * z.pad_h + first) * row_len..].as_ptr(), z.pad_h * row_len)
            };
            f(Input { band, base, first, image_len, row_len });
        });
    });
    Ok(())
}
