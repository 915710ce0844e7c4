//! The gradient of a convolution's input: a convolution of the output's gradient, or products added up where
//! they belong.

use crate::gemm::{Bias, Depth, Engine, Pack, Scratch, Shared, Tile, Walk, part, run};
use crate::simd::Real;
use crate::{Cpu, Result};

use super::depthwise;
use super::filled;
use super::forward::{Panels, Weight, forward};
use super::shape::ConvShape;
use super::windows::{Phase, Places, Slab, Windows, phases};

/// What the planes of a slab are to the gradient of the input: `dx` begins with the slab's first plane, `dy`
/// with the slab's first plane of the output.
pub(super) struct Planes<'a, T> {
    pub shape: &'a ConvShape,
    pub slab: &'a Slab,
    pub out: [usize; 2],
    pub weight: &'a Weight<'a, T>,
    pub dy: &'a [T],
    pub dx: Shared<T>,
}

/// dx (+)= what one plane of the kernel carries back.
pub(super) fn input<T: Real>(cpu: &Cpu, e: &Engine<T>, p: &Planes<T>, accumulate: bool) -> Result<()> {
    let (s, w) = (p.shape, p.weight);
    let (share, o) = (s.in_c / s.groups, s.out_c / s.groups);
    // Convolving keeps its sums in registers; adding up products in memory instead fills the vectors better
    // when channels are few.
    let joined = s.groups == 1 && s.dilation[2] == 1;
    if joined && filled(e, share) <= filled(e, s.kernel[2] * share) * o / (o + 6) {
        return adding(cpu, e, p, accumulate);
    }
    let axis = |a: usize| phases(s.size[a], s.kernel[a], s.stride[a], s.dilation[a], s.padding[a][0]);
    let (down, across) = (axis(1), axis(2));
    let seen = |all: &[Phase]| all.iter().all(|p| !p.taps.is_empty());
    let image = Places::dense(0, [s.size[1], s.size[2]], s.in_c);
    let image = Places { image: image.image * p.slab.step, ..image };
    if !(accumulate || seen(&down) && seen(&across)) {
        // Some pixels meet no place of the kernel.
        for n in 0..p.slab.count {
            let len = s.size[1] * s.size[2] * s.in_c;
            // SAFETY: an image of dx, which is nobody else's before the threads start below.
            unsafe { std::slice::from_raw_parts_mut(p.dx.at(image.at(n, 0, 0)), len) }.fill(T::ZERO);
        }
    }
    for (y, x) in down.iter().flat_map(|y| across.iter().map(move |x| (y, x))) {
        let taps: Vec<usize> =
            y.taps.iter().flat_map(|ky| x.taps.iter().map(move |kx| ky * s.kernel[2] + kx)).collect();
        if taps.is_empty() {
            continue;
        }
        let windows = Windows {
            images: p.slab.count,
            image_len: p.out[0] * p.out[1] * s.out_c,
            size: p.out,
            channels: s.out_c,
            groups: s.groups,
            kernel: [y.taps.len(), x.taps.len()],
            stride: [1, 1],
            dilation: [y.dilation, x.dilation],
            origin: [y.origin, x.origin],
            out: [y.count, x.count],
        };
        let to = Places {
            first: image.at(0, y.first, x.first),
            image: image.image,
            row: image.row * s.stride[1],
            pixel: image.pixel * s.stride[2],
        };
        if s.is_depthwise() {
            let packed = depthwise::Packed::new(cpu, e, w, taps.iter().copied())?;
            depthwise::forward(cpu, &windows, p.dy, &packed, None, p.dx, &to, accumulate)?;
        } else {
            let panels = Panels::backward(cpu, e, w, s.groups, share, &taps)?;
            forward(cpu, e, &windows, p.dy, &panels, None, p.dx, &to, accumulate)?;
        }
    }
    Ok(())
}

/// dx (+)= dy · w, each product added where its pixels came from. A tile is (pixels of one output
/// column) x (numbers of one kernel row): its rows fall on different rows of the image, so that no
/// addition waits for the one before.
fn adding<T: Real>(cpu: &Cpu, e: &Engine<T>, p: &Planes<T>, accumulate: bool) -> Result<()> {
    let (s, w, [out_h, out_w]) = (p.shape, p.weight, p.out);
    let (c, o, [_, kernel_h, kernel_w]) = (s.in_c, s.out_c, s.kernel);
    let ([_, down, across], numbers) = (s.stride, kernel_w * c);
    let (panels, tiles) = (numbers.div_ceil(e.cols), out_h.div_ceil(e.rows));
    let panel_len = e.cols * o;
    let columns = |p: usize| e.cols.min(numbers - p * e.cols);
    let mut packed = cpu.pool.alloc(kernel_h * panels * panel_len * size_of::<T>())?;
    let to = Shared::new(packed.as_mut_slice::<T>());
    run(cpu, kernel_h * panels, o * kernel_h * numbers, |i| {
        let (y, p) = (i / panels, i % panels);
        e.pack(Pack {
            src: w.data[y * numbers + p * e.cols..].as_ptr(),
            src_step: w.row,
            src_lane: 1,
            steps: o,
            lanes: columns(p),
            dst: to.at(i * panel_len),
            width: columns(p).next_multiple_of(e.lanes),
        });
    });
    let packed = packed.as_slice::<T>();
    let padded = s.padding[1..] != [[0, 0], [0, 0]];
    let [[top, bottom], [left, right]] = [s.padding[1], s.padding[2]];
    let row_len = (s.size[2] + left + right) * c;
    let padded_len = (s.size[1] + top + bottom) * row_len;
    let scratch = Scratch::new::<T>(cpu, p.slab.count, if padded { padded_len } else { 0 })?;
    let image_len = s.size[1] * s.size[2] * c;
    let work = p.slab.count * out_h * out_w * o * kernel_h * numbers;
    run(cpu, p.slab.count, work, |n| {
        // SAFETY: the images of dx do not overlap, and each is one task's.
        let image =
            unsafe { std::slice::from_raw_parts_mut(p.dx.at(n * p.slab.step * image_len), image_len) };
        let dy = &p.dy[n * out_h * out_w * o..];
        let add = |image: &mut [T]| {
            for i in 0..kernel_h * panels {
                let (y, p) = (i / panels, i % panels);
                for (t, column) in (0..tiles).flat_map(|t| (0..out_w).map(move |c| (t, c))) {
                    let rows = part(out_h, tiles, t);
                    let at = (rows.start * down + y * s.dilation[1]) * row_len + column * across * c;
                    e.tile(Tile {
                        rows: rows.len(),
                        cols: columns(p),
                        depth: Depth { steps: o, segments: 1, groups: 1 },
                        a: dy[(rows.start * out_w + column) * o..].as_ptr(),
                        a_row: out_w * o,
                        a_walk: Walk { step: 1, segment: 0, group: 0 },
                        b: packed[i * panel_len..].as_ptr(),
                        b_walk: Walk { step: columns(p).next_multiple_of(e.lanes), segment: 0, group: 0 },
                        b_whole: true,
                        c: image[at + p * e.cols..].as_mut_ptr(),
                        c_row: down * row_len,
                        c_col: 1,
                        bias: Bias::None,
                        add: true,
                    });
                }
            }
        };
        if padded {
            scratch.with(|padded: &mut [T]| {
                let padded = &mut padded[..padded_len];
                padded.fill(T::ZERO);
                add(padded);
                let rows = padded.chunks_exact(row_len).skip(top);
                for (to, from) in image.chunks_exact_mut(s.size[2] * c).zip(rows) {
                    let from = &from[left * c..][..to.len()];
                    if accumulate {
                        to.iter_mut().zip(from).for_each(|(o, &f)| *o += f);
                    } else {
                        to.copy_from_slice(from);
                    }
                }
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
