//! The gradients of a convolution, as register tiles that read the images where they lie.

use crate::gemm::{Bias, Depth, Dot, Engine, Pack, Scratch, Shared, Tile, Walk, part, run};
use crate::simd::Real;
use crate::{Cpu, Result};

use super::bands::{Band, Bands};
use super::pad::{crop, pad_rows};
use super::shape::{ConvShape, Sizes};

/// Bytes of images that are worked on at a time: half of a 2 MB second-level cache.
const CACHE: usize = 1 << 20;

/// The padded input of one band at a time: `(band, address of its first row, length of an image)`.
fn each_band<T: Real>(
    cpu: &Cpu,
    shape: &ConvShape,
    z: &Sizes,
    x: &[T],
    mut f: impl FnMut(usize, Band, &[T], usize) -> Result<()>,
) -> Result<()> {
    let bands = Bands::caching(shape, z, CACHE / size_of::<T>());
    let (images, rows) = bands.largest();
    let reach = |rows: usize| (rows - 1) * shape.stride[0] + shape.kernel[0];
    let len = reach(rows) * z.pad_row;
    let mut buffer = cpu.pool.alloc(if z.padded { images * len * size_of::<T>() } else { 0 })?;
    for i in 0..bands.count() {
        let band = bands.get(i);
        let first = band.rows.start * shape.stride[0];
        if z.padded {
            let padded = &mut buffer.as_mut_slice::<T>()[..band.images.len() * len];
            cpu.workers.chunks(padded, len, |j, to| {
                pad_rows(shape, z, x, band.images.start + j, first, reach(band.rows.len()), to);
            });
            f(i, band, padded, len)?;
        } else {
            let from = &x[(band.images.start * z.pad_h + first) * z.pad_row..];
            f(i, band, from, z.pad_h * z.pad_row)?;
        }
    }
    Ok(())
}

/// dw (+)= Σ over pixels of dy · x: tiles of (output channels) x (numbers of one kernel row), each one
/// sum over all pixels of a band.
pub(super) fn weight<T: Real>(
    cpu: &Cpu,
    e: &Engine<T>,
    shape: &ConvShape,
    z: &Sizes,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
    accumulate: bool,
) -> Result<()> {
    let (o, [kernel_h, _], [down, across]) = (shape.out_c, shape.kernel, shape.stride);
    let (strips, panels) = (o.div_ceil(e.rows), z.run.div_ceil(e.cols));
    let weights = dw.len();
    let dw = Shared::new(dw);
    each_band(cpu, shape, z, x, |i, band, x, image_len| {
        let pixels = band.images.len() * band.rows.len() * z.out_w;
        let first = (band.images.start * z.out_h + band.rows.start) * z.out_w;
        run(cpu, kernel_h * strips, pixels * weights, |task| {
            let (y, channels) = (task / strips, part(o, strips, task % strips));
            for p in 0..panels {
                let at = p * e.cols;
                e.tile(Tile {
                    rows: channels.len(),
                    cols: e.cols.min(z.run - at),
                    depth: Depth { steps: z.out_w, segments: band.rows.len(), groups: band.images.len() },
                    a: dy[first * o + channels.start..].as_ptr(),
                    a_row: 1,
                    a_walk: Walk { step: o, segment: z.out_w * o, group: z.out_h * z.out_w * o },
                    b: x[y * z.pad_row + at..].as_ptr(),
                    b_walk: Walk { step: across * shape.in_c, segment: down * z.pad_row, group: image_len },
                    b_whole: false,
                    c: dw.at(channels.start * z.reach + y * z.run + at),
                    c_row: z.reach,
                    c_col: 1,
                    bias: Bias::None,
                    add: accumulate || i > 0,
                });
            }
        });
        Ok(())
    })
}

/// The same for images with one channel and a horizontal stride of 1: dot products along rows of
/// pixels, with each channel of dy gathered into a plane first.
pub(super) fn weight_planar<T: Real>(
    cpu: &Cpu,
    e: &Engine<T>,
    shape: &ConvShape,
    z: &Sizes,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
    accumulate: bool,
) -> Result<()> {
    let (o, [kernel_h, kernel_w]) = (shape.out_c, shape.kernel);
    let (strips, parts) = (o.div_ceil(e.dots.0), kernel_w.div_ceil(e.dots.1));
    let weights = dw.len();
    let dw = Shared::new(dw);
    each_band(cpu, shape, z, x, |i, band, x, image_len| {
        let (rows, images) = (band.rows.len(), band.images.len());
        let pixels = rows * z.out_w;
        let mut planes = cpu.pool.alloc(images * o * pixels * size_of::<T>())?;
        let to = Shared::new(planes.as_mut_slice::<T>());
        run(cpu, images, images * pixels * o, |j| {
            let first = ((band.images.start + j) * z.out_h + band.rows.start) * z.out_w;
            let src = dy[first * o..].as_ptr();
            let dst = to.at(j * o * pixels);
            e.pack(Pack { src, src_step: 1, src_lane: o, steps: o, lanes: pixels, dst, width: pixels });
        });
        let planes = planes.as_slice::<T>();
        run(cpu, kernel_h * strips, images * pixels * weights, |task| {
            let (y, channels) = (task / strips, part(o, strips, task % strips));
            for taps in (0..parts).map(|p| part(kernel_w, parts, p)) {
                e.dot(Dot {
                    rows: channels.len(),
                    cols: taps.len(),
                    depth: Depth { steps: z.out_w, segments: rows, groups: images },
                    a: planes[channels.start * pixels..].as_ptr(),
                    a_row: pixels,
                    a_walk: Walk { step: 1, segment: z.out_w, group: o * pixels },
                    b: x[y * z.pad_row + taps.start..].as_ptr(),
                    b_row: 1,
                    b_walk: Walk { step: 1, segment: shape.stride[0] * z.pad_row, group: image_len },
                    c: dw.at(channels.start * z.reach + y * z.run + taps.start),
                    c_row: z.reach,
                    c_col: 1,
                    add: accumulate || i > 0,
                });
            }
        });
        Ok(())
    })
}

/// dx (+)= dy · w, each product added where its pixels came from. A tile is (pixels of one output
/// column) x (numbers of one kernel row): its rows fall on different rows of the image, so that no
/// addition waits for the one before.
pub(super) fn input<T: Real>(
    cpu: &Cpu,
    e: &Engine<T>,
    shape: &ConvShape,
    z: &Sizes,
    w: &[T],
    dy: &[T],
    dx: &mut [T],
    accumulate: bool,
) -> Result<()> {
    let (o, [kernel_h, _], [down, across]) = (shape.out_c, shape.kernel, shape.stride);
    let (panels, tiles) = (z.run.div_ceil(e.cols), z.out_h.div_ceil(e.rows));
    let panel_len = e.cols * o;
    let columns = |p: usize| e.cols.min(z.run - p * e.cols);
    let mut packed = cpu.pool.alloc(kernel_h * panels * panel_len * size_of::<T>())?;
    let to = Shared::new(packed.as_mut_slice::<T>());
    run(cpu, kernel_h * panels, w.len(), |i| {
        let (y, p) = (i / panels, i % panels);
        e.pack(Pack {
            src: w[y * z.run + p * e.cols..].as_ptr(),
            src_step: z.reach,
            src_lane: 1,
            steps: o,
            lanes: columns(p),
            dst: to.at(i * panel_len),
            width: columns(p).next_multiple_of(e.lanes),
        });
    });
    let packed = packed.as_slice::<T>();
    let padded_len = z.pad_h * z.pad_row;
    let scratch = Scratch::new::<T>(cpu, shape.batch, if z.padded { padded_len } else { 0 })?;
    let (image_len, work) = (shape.in_h * shape.in_w * shape.in_c, dy.len() * z.reach);
    let dx = Shared::new(dx);
    run(cpu, shape.batch, work, |n| {
        // SAFETY: the images of dx do not overlap, and each is one task's.
        let image = unsafe { std::slice::from_raw_parts_mut(dx.at(n * image_len), image_len) };
        let dy = &dy[n * z.out_h * z.out_w * o..];
        let add = |image: &mut [T]| {
            for i in 0..kernel_h * panels {
                let (y, p) = (i / panels, i % panels);
                for (t, column) in (0..tiles).flat_map(|t| (0..z.out_w).map(move |c| (t, c))) {
                    let rows = part(z.out_h, tiles, t);
                    let at = (rows.start * down + y) * z.pad_row + column * across * shape.in_c;
                    e.tile(Tile {
                        rows: rows.len(),
                        cols: columns(p),
                        depth: Depth { steps: o, segments: 1, groups: 1 },
                        a: dy[(rows.start * z.out_w + column) * o..].as_ptr(),
                        a_row: z.out_w * o,
                        a_walk: Walk { step: 1, segment: 0, group: 0 },
                        b: packed[i * panel_len..].as_ptr(),
                        b_walk: Walk { step: columns(p).next_multiple_of(e.lanes), segment: 0, group: 0 },
                        b_whole: true,
                        c: image[at + p * e.cols..].as_mut_ptr(),
                        c_row: down * z.pad_row,
                        c_col: 1,
                        bias: Bias::None,
                        add: true,
                    });
                }
            }
        };
        if z.padded {
            scratch.with(|padded: &mut [T]| {
                let padded = &mut padded[..padded_len];
                padded.fill(T::ZERO);
                add(padded);
                crop(shape, z, padded, image, accumulate);
            });
        } else {
            if !accumulate {
                image.fill(T::ZERO);
            }
            add(image);
        }
    });
    Ok(())
}
