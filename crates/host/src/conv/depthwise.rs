//! Convolutions of each channel by itself: vectors hold channels, and borders are left out instead of padded,
//! since a copy would cost about as much as the few products.

// Loops by index over constant bounds are what the compiler unrolls into registers.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use crate::gemm::{At, Engine, Pack, Shared, part, run};
use crate::simd::{Kernel, Real, Simd};
use crate::{Buffer, Cpu, Result};

use super::bands::Bands;
use super::forward::Weight;
use super::weight::Gradient;
use super::windows::{Places, Windows};

/// Output pixels that a task should have.
const PIXELS: usize = 64;
/// Bytes of input that a task works on.
const CACHE: usize = 1 << 19;
/// Pixels that a tile of the forward pass has at most, and places of the kernel that one of the weight's
/// gradient has: each is a sum in a register.
const MOST_PIXELS: usize = 8;
const MOST_TAPS: usize = 6;

/// A weight by places of the kernel: one number a channel for each.
pub(super) struct Packed(Buffer);

impl Packed {
    /// Packs `taps`, places of the kernel's plane, in this order.
    pub(super) fn new<T: Real>(
        cpu: &Cpu,
        e: &Engine<T>,
        w: &Weight<T>,
        taps: impl ExactSizeIterator<Item = usize>,
    ) -> Result<Self> {
        let channels = w.channels;
        let mut buffer = cpu.pool.alloc(taps.len() * channels * size_of::<T>())?;
        for (tap, to) in taps.zip(buffer.as_mut_slice::<T>().chunks_exact_mut(channels)) {
            e.pack(Pack {
                src: w.data[tap..].as_ptr(),
                src_step: 1,
                src_lane: w.row,
                steps: 1,
                lanes: channels,
                dst: to.as_mut_ptr(),
                width: channels,
            });
        }
        Ok(Packed(buffer))
    }
}

/// Outputs of neighbouring windows that have the same places inside the image.
///
/// Running it is sound if all windows are readable and `y` is writable and nobody else's.
#[derive(Clone, Copy)]
struct Row<E> {
    /// The first place of the first window.
    x: *const E,
    x_pixel: usize,
    /// From place to place: down and across.
    x_tap: [usize; 2],
    w: *const E,
    w_tap: [usize; 2],
    taps: [usize; 2],
    y: *mut E,
    y_pixel: usize,
    pixels: usize,
    channels: usize,
    bias: Option<*const E>,
    add: bool,
}

impl<E: Real> Kernel<E> for Row<E> {
    type Out = ();

    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let blocks = self.pixels.div_ceil(MOST_PIXELS);
        for c in (0..self.channels).step_by(V::LANES) {
            let lanes = (self.channels - c).min(V::LANES);
            for pixels in (0..blocks).map(|b| part(self.pixels, blocks, b)) {
                macro_rules! pick {
                    ($($n:literal)*) => {
                        match pixels.len() {
                            // SAFETY: the maker of the row vouches for the operands.
                            $($n => unsafe { self.block::<V, $n>(c, lanes, pixels.start) },)*
                            n => debug_assert!(false, "a block of {n} pixels"),
                        }
                    };
                }
                pick!(1 2 3 4 5 6 7 8);
            }
        }
    }
}

impl<E: Real> Row<E> {
    /// # Safety
    /// As for the whole row; `lanes` channels from `c` on and `P` pixels from `first` on are there.
    #[inline(always)]
    unsafe fn block<V: Simd<E>, const P: usize>(&self, c: usize, lanes: usize, first: usize) {
        let start = match self.bias {
            // SAFETY: vouched for by the caller.
            Some(bias) => unsafe { V::load_first(bias.add(c), lanes) },
            None => V::splat(E::ZERO),
        };
        let mut acc = [start; P];
        for ky in 0..self.taps[0] {
            for kx in 0..self.taps[1] {
                let x =
                    self.x.wrapping_add(ky * self.x_tap[0] + kx * self.x_tap[1] + first * self.x_pixel + c);
                // SAFETY: vouched for by the caller.
                unsafe {
                    let w = self.w.add(ky * self.w_tap[0] + kx * self.w_tap[1] + c);
                    let w = V::load_first(w, lanes);
                    for i in 0..P {
                        let x = x.add(i * self.x_pixel);
                        let x = if lanes == V::LANES { V::load(x) } else { V::load_first(x, lanes) };
                        acc[i] = x.mul_add(w, acc[i]);
                    }
                }
            }
        }
        for i in 0..P {
            // SAFETY: as above.
            unsafe {
                let y = self.y.add((first + i) * self.y_pixel + c);
                let sum = if self.add { V::load_first(y, lanes).add(acc[i]) } else { acc[i] };
                sum.store_first(y, lanes);
            }
        }
    }
}

/// y = x * w + bias, or y += where `add` is set.
pub(super) fn forward<T: Real>(
    cpu: &Cpu,
    w: &Windows,
    x: &[T],
    packed: &Packed,
    bias: Option<&[T]>,
    y: Shared<T>,
    to: &Places,
    add: bool,
) -> Result<()> {
    let (channels, [_, kernel_w], [out_h, out_w]) = (w.channels, w.kernel, w.out);
    let bands = Bands::sharing(w, PIXELS, CACHE / size_of::<T>());
    let packed = packed.0.as_slice::<T>();
    let kernel = T::select::<At<Row<T>>>(cpu.isa);
    let middle = within(w, 0..kernel_w);
    run(cpu, bands.count(), w.images * out_h * out_w * channels * w.numbers(), |i| {
        for (image, row, _) in bands.get(i).pixels(1) {
            let down = w.taps_inside(0, row);
            let outputs = |pixels: Range<usize>| {
                let across = w.taps_inside(1, pixels.start);
                // A window without a place inside the image reads nothing.
                let (down, across) =
                    if down.is_empty() || across.is_empty() { (0..0, 0..0) } else { (down.clone(), across) };
                kernel(At(&Row {
                    x: x.as_ptr().wrapping_add(
                        (image * w.image_len)
                            .wrapping_add(w.place([row, pixels.start], [down.start, across.start])),
                    ),
                    x_pixel: w.stride[1] * channels,
                    x_tap: [w.dilation[0] * w.size[1] * channels, w.dilation[1] * channels],
                    w: packed.as_ptr().wrapping_add((down.start * kernel_w + across.start) * channels),
                    w_tap: [kernel_w * channels, channels],
                    taps: [down.len(), across.len()],
                    y: y.at(to.at(image, row, pixels.start)),
                    y_pixel: to.pixel,
                    pixels: pixels.len(),
                    channels,
                    bias: bias.map(<[T]>::as_ptr),
                    add,
                }));
            };
            (0..middle.start).for_each(|p| outputs(p..p + 1));
            if !middle.is_empty() {
                outputs(middle.clone());
            }
            (middle.end..out_w).for_each(|p| outputs(p..p + 1));
        }
    });
    Ok(())
}

/// The outputs of a row whose windows have all of `taps` inside the image; where there are none, an empty
/// range after the first output.
fn within(w: &Windows, taps: Range<usize>) -> Range<usize> {
    let all = taps.map(|k| w.inside(1, k)).reduce(|a, b| a.start.max(b.start)..a.end.min(b.end));
    all.filter(|r| !r.is_empty()).unwrap_or(0..0)
}

/// Sums over neighbouring windows for neighbouring places of the kernel.
///
/// Running it is sound if all windows are readable and `dw` is writable and nobody else's.
#[derive(Clone, Copy)]
struct Products<E> {
    x: *const E,
    x_pixel: usize,
    x_tap: usize,
    taps: usize,
    dy: *const E,
    dy_pixel: usize,
    pixels: usize,
    /// A number a channel for each place, to add to.
    dw: *mut E,
    channels: usize,
}

impl<E: Real> Kernel<E> for Products<E> {
    type Out = ();

    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        for c in (0..self.channels).step_by(V::LANES) {
            let lanes = (self.channels - c).min(V::LANES);
            macro_rules! pick {
                ($($n:literal)*) => {
                    match self.taps {
                        // SAFETY: the maker of the products vouches for the operands.
                        $($n => unsafe { self.block::<V, $n>(c, lanes) },)*
                        n => debug_assert!(false, "a block of {n} places"),
                    }
                };
            }
            pick!(1 2 3 4 5 6);
        }
    }
}

impl<E: Real> Products<E> {
    /// # Safety
    /// As for all the products; `lanes` channels from `c` on are there.
    #[inline(always)]
    unsafe fn block<V: Simd<E>, const T: usize>(&self, c: usize, lanes: usize) {
        // Two sums a place, of every other pixel: no addition waits for the one before.
        let mut acc = [[V::splat(E::ZERO); T]; 2];
        for p in 0..self.pixels / 2 {
            // SAFETY: vouched for by the caller.
            unsafe {
                self.step(2 * p, c, lanes, &mut acc[0]);
                self.step(2 * p + 1, c, lanes, &mut acc[1]);
            }
        }
        if self.pixels % 2 == 1 {
            // SAFETY: as above.
            unsafe { self.step(self.pixels - 1, c, lanes, &mut acc[0]) };
        }
        for t in 0..T {
            // SAFETY: as above.
            unsafe {
                let to = self.dw.add(t * self.channels + c);
                V::load_first(to, lanes).add(acc[0][t].add(acc[1][t])).store_first(to, lanes);
            }
        }
    }

    /// # Safety
    /// As for [`Products::block`]; `p` is one of the pixels.
    #[inline(always)]
    unsafe fn step<V: Simd<E>, const T: usize>(&self, p: usize, c: usize, lanes: usize, acc: &mut [V; T]) {
        // SAFETY: vouched for by the caller.
        unsafe {
            let g = V::load_first(self.dy.add(p * self.dy_pixel + c), lanes);
            let x = self.x.add(p * self.x_pixel + c);
            for t in 0..T {
                let x = x.add(t * self.x_tap);
                let x = if lanes == V::LANES { V::load(x) } else { V::load_first(x, lanes) };
                acc[t] = x.mul_add(g, acc[t]);
            }
        }
    }
}

/// dw (+)= Σ over pixels of dy · x. `at` says where dy lies.
pub(super) fn weight<T: Real>(
    cpu: &Cpu,
    w: &Windows,
    x: &[T],
    (dy, at): (&[T], &Places),
    dw: Gradient<T>,
    accumulate: bool,
) -> Result<()> {
    let (channels, [kernel_h, kernel_w], [out_h, out_w]) = (w.channels, w.kernel, w.out);
    let bands = Bands::sharing(w, PIXELS, CACHE / size_of::<T>());
    let len = kernel_h * kernel_w * channels;
    // Each band has sums of its own, which are added up in their order.
    let mut buffer = cpu.pool.alloc(bands.count() * len * size_of::<T>())?;
    let sums = buffer.as_mut_slice::<T>();
    sums.fill(T::ZERO);
    let to = Shared::new(sums);
    let kernel = T::select::<At<Products<T>>>(cpu.isa);
    let parts = kernel_w.div_ceil(MOST_TAPS);
    let blocks: Vec<_> =
        (0..parts).map(|p| part(kernel_w, parts, p)).map(|t| (t.clone(), within(w, t))).collect();
    run(cpu, bands.count(), w.images * out_h * out_w * len, |i| {
        for (image, row, _) in bands.get(i).pixels(1) {
            for ky in w.taps_inside(0, row) {
                let products = |taps: Range<usize>, pixels: Range<usize>| {
                    if pixels.is_empty() {
                        return;
                    }
                    kernel(At(&Products {
                        x: x.as_ptr().wrapping_add(
                            image * w.image_len + w.place([row, pixels.start], [ky, taps.start]),
                        ),
                        x_pixel: w.stride[1] * channels,
                        x_tap: w.dilation[1] * channels,
                        taps: taps.len(),
                        dy: dy.as_ptr().wrapping_add(at.at(image, row, pixels.start)),
                        dy_pixel: at.pixel,
                        pixels: pixels.len(),
                        dw: to.at(i * len + (ky * kernel_w + taps.start) * channels),
                        channels,
                    }));
                };
                for (taps, middle) in &blocks {
                    products(taps.clone(), middle.clone());
                    for tap in taps.clone() {
                        let all = w.inside(1, tap);
                        if middle.is_empty() {
                            products(tap..tap + 1, all);
                        } else {
                            products(tap..tap + 1, all.start..middle.start);
                            products(tap..tap + 1, middle.end..all.end);
                        }
                    }
                }
            }
        }
    });
    let sums = buffer.as_slice::<T>();
    for (c, t) in (0..channels).flat_map(|c| (0..kernel_h * kernel_w).map(move |t| (c, t))) {
        let sum = sums.iter().skip(t * channels + c).step_by(len).fold(T::ZERO, |a, &b| a + b);
        // SAFETY: an element of dw, which is nobody else's.
        unsafe {
            let to = dw.data.at(c * dw.row + t);
            *to = if accumulate { *to + sum } else { sum };
        }
    }
    Ok(())
}
