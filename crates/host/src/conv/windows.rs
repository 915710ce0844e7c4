//! Where the windows of a convolution lie on the planes of its input.

use std::ops::Range;

use crate::gemm::{Depth, Walk};

use super::shape::ConvShape;

/// Windows over neighbouring images (or planes of volumes) of channels-last pixels. Gradients have windows
/// too: those that gather an input's gradient lie on the output's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    pub images: usize,
    /// From image to image, in numbers.
    pub image_len: usize,
    pub size: [usize; 2],
    pub channels: usize,
    pub groups: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// The first place of the first window: negative in the padding, positive when pixels before it are seen
    /// by none.
    pub origin: [isize; 2],
    pub out: [usize; 2],
}

impl Windows {
    /// Pixels along an axis from the first place of the first window to the last place of the `outputs`th.
    pub(super) fn reach(&self, axis: usize, outputs: usize) -> usize {
        (outputs - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1
    }

    /// Whether windows reach past an image's edge.
    pub(super) fn padded(&self) -> bool {
        (0..2).any(|a| {
            self.origin[a] < 0 || self.origin[a] as usize + self.reach(a, self.out[a]) > self.size[a]
        })
    }

    /// Numbers of a row as the kernels read it: as it lies, or from a padded copy.
    pub(super) fn row_len(&self) -> usize {
        self.channels * if self.padded() { self.reach(1, self.out[1]) } else { self.size[1] }
    }

    /// Numbers of an image as the kernels read it.
    pub(super) fn padded_len(&self) -> usize {
        self.row_len() * if self.padded() { self.reach(0, self.out[0]) } else { self.size[0] }
    }

    /// The place in an image, as it lies, where the window of output row `row` begins.
    pub(super) fn start(&self, row: usize) -> usize {
        let y = self.origin[0] + (row * self.stride[0]) as isize;
        (y as usize * self.size[1] + self.origin[1] as usize) * self.channels
    }

    /// Channels of a group.
    pub(super) fn share(&self) -> usize {
        self.channels / self.groups
    }

    /// Whether the numbers that a window takes from one row are neighbours.
    pub(super) fn joined(&self) -> bool {
        self.groups == 1 && self.dilation[1] == 1
    }

    /// Numbers of a window that are neighbours: those of a row, or of a pixel.
    pub(super) fn run(&self) -> usize {
        if self.joined() { self.kernel[1] * self.channels } else { self.share() }
    }

    /// Numbers of a group's window.
    pub(super) fn numbers(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.share()
    }

    /// The sum over a window and how it walks over rows of `row_len` numbers.
    pub(super) fn walk(&self, row_len: usize) -> (Depth, Walk) {
        let [kernel_h, kernel_w] = self.kernel;
        let (row, pixel) = (self.dilation[0] * row_len, self.dilation[1] * self.channels);
        if self.joined() {
            let depth = Depth { steps: self.run(), segments: kernel_h, groups: 1 };
            (depth, Walk { step: 1, segment: row, group: 0 })
        } else {
            let depth = Depth { steps: self.share(), segments: kernel_w, groups: kernel_h };
            (depth, Walk { step: 1, segment: pixel, group: row })
        }
    }

    /// The runs of a window: where each begins in rows of `row_len` numbers, and in the window's numbers.
    pub(super) fn runs(&self, row_len: usize) -> impl Fn(usize) -> (usize, usize) + use<> {
        let (w, run) = (*self, self.run());
        let across = if w.joined() { 1 } else { w.kernel[1] };
        move |i| {
            let (y, x) = (i / across, i % across);
            (y * w.dilation[0] * row_len + x * w.dilation[1] * w.channels, i * run)
        }
    }

    /// The number of [`Windows::runs`].
    pub(super) fn run_count(&self) -> usize {
        self.kernel[0] * if self.joined() { 1 } else { self.kernel[1] }
    }

    /// The outputs along `axis` whose window has its place `tap` inside the image.
    pub(super) fn inside(&self, axis: usize, tap: usize) -> Range<usize> {
        inside(
            self.origin[axis] + (tap * self.dilation[axis]) as isize,
            self.stride[axis],
            self.size[axis],
            self.out[axis],
        )
    }

    /// The places along `axis` that the window of an output has inside the image.
    pub(super) fn taps_inside(&self, axis: usize, output: usize) -> Range<usize> {
        let first = self.origin[axis] + (output * self.stride[axis]) as isize;
        inside(first, self.dilation[axis], self.size[axis], self.kernel[axis])
    }

    /// Where a place of an output's window lies in an image, from its first number on; it must be inside.
    pub(super) fn place(&self, output: [usize; 2], tap: [usize; 2]) -> usize {
        let at = |a: usize| {
            self.origin[a].wrapping_add_unsigned(output[a] * self.stride[a] + tap[a] * self.dilation[a])
        };
        (at(0).wrapping_mul(self.size[1] as isize).wrapping_add(at(1)) as usize).wrapping_mul(self.channels)
    }
}

/// Those of the places `first`, `first + stride`, … (`count` of them) that lie in `0..size`, by number.
fn inside(first: isize, stride: usize, size: usize, count: usize) -> Range<usize> {
    let steps_to = |place: usize| ((place as isize - first).max(0) as usize).div_ceil(stride).min(count);
    let (start, end) = (steps_to(0), steps_to(size));
    start..end.max(start)
}

/// Where the outputs of windows lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    /// The first number of the first image.
    pub first: usize,
    /// From image to image.
    pub image: usize,
    /// From a window's output to that of the window below.
    pub row: usize,
    /// From a window's output to the next one's.
    pub pixel: usize,
}

impl Places {
    /// Dense images of `out` pixels, from number `first` on.
    pub(super) fn dense(first: usize, [h, w]: [usize; 2], channels: usize) -> Self {
        Places { first, image: h * w * channels, row: w * channels, pixel: channels }
    }

    /// Where a window's output lies.
    #[inline]
    pub(super) fn at(&self, image: usize, row: usize, pixel: usize) -> usize {
        self.first + image * self.image + row * self.row + pixel * self.pixel
    }
}

/// What of a convolution one plane of the kernel does to neighbouring planes of a volume.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slab {
    /// The plane of the kernel.
    pub tap: usize,
    /// Planes.
    pub count: usize,
    /// The first one, counted over all samples: of the input (from which on every `step`th takes part) and of
    /// the output.
    pub input: usize,
    pub output: usize,
    pub step: usize,
}

/// Whether depth does nothing but make more images.
pub(super) fn flat(s: &ConvShape, out: [usize; 3]) -> bool {
    s.kernel[0] == 1 && s.padding[0] == [0, 0] && out[0] == s.size[0]
}

/// A convolution as one of planes: plane by plane of the kernel and, where planes of several samples are not
/// evenly spaced, sample by sample.
pub(super) fn slabs(s: &ConvShape, out: [usize; 3]) -> Vec<Slab> {
    if flat(s, out) {
        return vec![Slab { tap: 0, count: s.batch * s.size[0], input: 0, output: 0, step: 1 }];
    }
    let mut all = Vec::new();
    for tap in 0..s.kernel[0] {
        let first = (tap * s.dilation[0]) as isize - s.padding[0][0] as isize;
        let planes = inside(first, s.stride[0], s.size[0], out[0]);
        if planes.is_empty() {
            continue;
        }
        let plane = (first + (planes.start * s.stride[0]) as isize) as usize;
        all.extend((0..s.batch).map(|n| Slab {
            tap,
            count: planes.len(),
            input: n * s.size[0] + plane,
            output: n * out[0] + planes.start,
            step: s.stride[0],
        }));
    }
    all
}

/// A forward convolution's windows on the planes of a slab.
pub(super) fn windows(s: &ConvShape, out: [usize; 3], slab: &Slab) -> Windows {
    Windows {
        images: slab.count,
        image_len: slab.step * s.size[1] * s.size[2] * s.in_c,
        size: [s.size[1], s.size[2]],
        channels: s.in_c,
        groups: s.groups,
        kernel: [s.kernel[1], s.kernel[2]],
        stride: [s.stride[1], s.stride[2]],
        dilation: [s.dilation[1], s.dilation[2]],
        origin: [-(s.padding[1][0] as isize), -(s.padding[2][0] as isize)],
        out: [out[1], out[2]],
    }
}

/// The pixels of an input along one axis that lie alike to the stride. Their gradient is a convolution of the
/// output's with a stride of 1: of the kernel's places that meet them, in reverse.
#[derive(Debug, Clone)]
pub(super) struct Phase {
    /// The first pixel; the others follow a stride apart.
    pub first: usize,
    pub count: usize,
    /// The kernel's places, in the order of the output's pixels that they take.
    pub taps: Vec<usize>,
    /// From place to place, in the output's pixels.
    pub dilation: usize,
    /// The output's pixel that the first place of the first window takes.
    pub origin: isize,
}

/// The phases of an input's axis of `size` pixels.
pub(super) fn phases(
    size: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    before: usize,
) -> Vec<Phase> {
    let step = dilation / gcd(stride, dilation);
    let one = |rest: usize| {
        // Pixel i meets place k of output (i + before - k * dilation) / stride where that is whole.
        let first = (rest + stride - before % stride) % stride;
        let mut taps: Vec<usize> = (0..kernel).filter(|k| k * dilation % stride == rest).collect();
        taps.reverse();
        let last = taps.first().map_or(0, |k| (k * dilation - rest) / stride);
        let origin = ((first + before - rest) / stride) as isize - last as isize;
        Phase { first, count: size.saturating_sub(first).div_ceil(stride), taps, dilation: step, origin }
    };
    (0..stride).map(one).filter(|p| p.count > 0).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_meet_every_product_once() {
        for (size, kernel, stride, dilation, before) in [
            (9, 3, 2, 1, 1),
            (7, 5, 3, 2, 4),
            (1, 1, 4, 1, 0),
            (12, 4, 4, 2, 5),
            (5, 2, 6, 3, 0),
            (3, 1, 1, 1, 2),
        ] {
            let outputs = 40usize;
            let mut want: Vec<(usize, usize, usize)> = Vec::new();
            for (o, k) in (0..outputs).flat_map(|o| (0..kernel).map(move |k| (o, k))) {
                let i = (o * stride + k * dilation).wrapping_sub(before);
                if i < size {
                    want.push((i, o, k));
                }
            }
            let mut got = Vec::new();
            for p in phases(size, kernel, stride, dilation, before) {
                for (t, (j, &k)) in (0..p.count).flat_map(|t| p.taps.iter().enumerate().map(move |k| (t, k)))
                {
                    let o = p.origin + (t + j * p.dilation) as isize;
                    if (0..outputs as isize).contains(&o) {
                        got.push((p.first + t * stride, o as usize, k));
                    }
                }
            }
            want.sort_unstable();
            got.sort_unstable();
            assert_eq!(got, want, "{size} {kernel} {stride} {dilation} {before}");
        }
    }
}
