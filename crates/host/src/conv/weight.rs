//! The gradient of a convolution's weight, as register tiles that read the images where they lie.

use crate::gemm::{Bias, Depth, Dot, Engine, Pack, Shared, Tile, Walk, part, run};
use crate::simd::Real;
use crate::{Cpu, Result};

use super::bands::{Band, Bands};
use super::pad::pad_rows;
use super::windows::{Places, Windows};

/// Bytes of images that are worked on at a time: half of a 2 MB second-level cache.
const CACHE: usize = 1 << 20;

/// The gradient of a plane of a weight, as [`super::forward::Weight`].
#[derive(Clone, Copy)]
pub(super) struct Gradient<T> {
    pub data: Shared<T>,
    pub row: usize,
    pub channels: usize,
}

/// The input of one band at a time, padded: `(first of all, band, from its first window on, length of an image)`.
fn each_band<T: Real>(
    cpu: &Cpu,
    w: &Windows,
    out_c: usize,
    x: &[T],
    mut f: impl FnMut(bool, Band, &[T], usize) -> Result<()>,
) -> Result<()> {
    let bands = Bands::caching(w, out_c, CACHE / size_of::<T>());
    let (images, rows) = bands.largest();
    let (row_len, is_padded) = (w.row_len(), w.padded());
    let most = w.reach(0, rows) * row_len;
    let mut buffer = cpu.pool.alloc(if is_padded { images * most * size_of::<T>() } else { 0 })?;
    for i in 0..bands.count() {
        let band = bands.get(i);
        let first = band.rows.start;
        if is_padded {
            let len = w.reach(0, band.rows.len()) * row_len;
            let padded = &mut buffer.as_mut_slice::<T>()[..band.images.len() * len];
            cpu.workers.chunks(padded, len, |j, to| {
                pad_rows(w, &x[(band.images.start + j) * w.image_len..], first, to);
            });
            f(i == 0, band, padded, len)?;
        } else {
            let from = &x[band.images.start * w.image_len + w.start(first)..];
            f(i == 0, band, from, w.image_len)?;
        }
    }
    Ok(())
}

/// dw (+)= Σ over pixels of dy · x: tiles of (output channels) x (neighbouring numbers of a window), each one
/// sum over all pixels of a band. `at` says where dy lies.
pub(super) fn weight<T: Real>(
    cpu: &Cpu,
    e: &Engine<T>,
    w: &Windows,
    x: &[T],
    (dy, at): (&[T], &Places),
    dw: Gradient<T>,
    accumulate: bool,
) -> Result<()> {
    let (o, [_, out_w], [down, across]) = (dw.channels / w.groups, w.out, w.stride);
    let (strips, panels) = (o.div_ceil(e.rows), w.run().div_ceil(e.cols));
    let (row_len, count) = (w.row_len(), w.run_count());
    let run_at = w.runs(row_len);
    each_band(cpu, w, dw.channels, x, |first, band, x, image_len| {
        let pixels = band.images.len() * band.rows.len() * out_w;
        let dy = &dy[at.at(band.images.start, band.rows.start, 0)..];
        run(cpu, w.groups * count * strips, pixels * dw.channels * w.numbers(), |task| {
            let (group, rest) = (task / (count * strips), task % (count * strips));
            let (from, to) = run_at(rest / strips);
            let channels = part(o, strips, rest % strips);
            let channel = group * o + channels.start;
            for p in 0..panels {
                let number = p * e.cols;
                e.tile(Tile {
                    rows: channels.len(),
                    cols: e.cols.min(w.run() - number),
                    depth: Depth { steps: out_w, segments: band.rows.len(), groups: band.images.len() },
                    a: dy[channel..].as_ptr(),
                    a_row: 1,
                    a_walk: Walk { step: at.pixel, segment: at.row, group: at.image },
                    b: x[from + group * w.share() + number..].as_ptr(),
                    b_walk: Walk { step: across * w.channels, segment: down * row_len, group: image_len },
                    b_whole: false,
                    c: dw.data.at(channel * dw.row + to + number),
                    c_row: dw.row,
                    c_col: 1,
                    bias: Bias::None,
                    add: accumulate || !first,
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
    w: &Windows,
    x: &[T],
    (dy, at): (&[T], &Places),
    dw: Gradient<T>,
    accumulate: bool,
) -> Result<()> {
    let (o, out_w, [kernel_h, kernel_w]) = (dw.channels, w.out[1], w.kernel);
    let (strips, parts) = (o.div_ceil(e.dots.0), kernel_w.div_ceil(e.dots.1));
    let row_len = w.row_len();
    each_band(cpu, w, o, x, |first, band, x, image_len| {
        let (rows, images) = (band.rows.len(), band.images.len());
        let pixels = rows * out_w;
        let mut planes = cpu.pool.alloc(images * o * pixels * size_of::<T>())?;
        let to = Shared::new(planes.as_mut_slice::<T>());
        run(cpu, images, images * pixels * o, |j| {
            let src = dy[at.at(band.images.start + j, band.rows.start, 0)..].as_ptr();
            let dst = to.at(j * o * pixels);
            e.pack(Pack {
                src,
                src_step: 1,
                src_lane: at.pixel,
                steps: o,
                lanes: pixels,
                dst,
                width: pixels,
            });
        });
        let planes = planes.as_slice::<T>();
        run(cpu, kernel_h * strips, images * pixels * o * w.numbers(), |task| {
            let (y, channels) = (task / strips, part(o, strips, task % strips));
            for taps in (0..parts).map(|p| part(kernel_w, parts, p)) {
                e.dot(Dot {
                    rows: channels.len(),
                    cols: taps.len(),
                    depth: Depth { steps: out_w, segments: rows, groups: images },
                    a: planes[channels.start * pixels..].as_ptr(),
                    a_row: pixels,
                    a_walk: Walk { step: 1, segment: out_w, group: o * pixels },
                    b: x[y * w.dilation[0] * row_len + taps.start * w.dilation[1]..].as_ptr(),
                    b_row: w.dilation[1],
                    b_walk: Walk { step: 1, segment: w.stride[0] * row_len, group: image_len },
                    c: dw.data.at(channels.start * dw.row + y * kernel_w + taps.start),
                    c_row: dw.row,
                    c_col: 1,
                    add: accumulate || !first,
                });
            }
        });
        Ok(())
    })
}
