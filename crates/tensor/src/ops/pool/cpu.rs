//! Pooling on the CPU: vectors run over the channels of one window.

use phalanx_host::simd::{Kernel, Real, Simd};
use phalanx_host::{Cpu, Element};

use crate::ops::columns::{load, store};

/// Where the windows of one image lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    pub(super) image: [usize; 2],
    pub(super) channels: usize,
    pub(super) out: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) padding: [usize; 2],
}

/// A place in a window, counted row by row.
pub(super) trait Place: Element {
    fn of(place: usize) -> Self;
    fn get(self) -> usize;
}

impl Place for u8 {
    #[inline(always)]
    fn of(place: usize) -> Self {
        place as u8
    }
    #[inline(always)]
    fn get(self) -> usize {
        usize::from(self)
    }
}

impl Place for i64 {
    #[inline(always)]
    fn of(place: usize) -> Self {
        place as i64
    }
    #[inline(always)]
    fn get(self) -> usize {
        self as usize
    }
}

impl Windows {
    fn image_len(&self) -> usize {
        self.image[0] * self.image[1] * self.channels
    }

    fn row_len(&self) -> usize {
        self.out[1] * self.channels
    }

    fn out_len(&self) -> usize {
        self.out[0] * self.row_len()
    }

    /// The part of window `at` along `axis` that lies inside the image, and the window's start, which
    /// may lie before it.
    #[inline(always)]
    fn inside(&self, axis: usize, at: usize) -> (std::ops::Range<usize>, isize) {
        let start = (at * self.stride[axis]) as isize - self.padding[axis] as isize;
        let first = (-start).max(0) as usize;
        let end = (self.image[axis] as isize - start).clamp(0, self.kernel[axis] as isize) as usize;
        (first..end, start)
    }
}

/// One row of windows.
struct Row<'a, E, P> {
    w: &'a Windows,
    /// The image.
    x: &'a [E],
    /// Which row.
    at: usize,
    y: &'a mut [E],
    places: &'a mut [P],
}

impl<E: Real, P: Place> Row<'_, E, P> {
    /// Whether every number was finite; otherwise nothing can be said of the row.
    #[inline(always)]
    fn finite<V: Simd<E>>(&mut self) -> bool {
        let Row { w, x, at, ref mut y, ref mut places } = *self;
        let c = w.channels;
        let (rows, top) = w.inside(0, at);
        let zero = V::splat(E::ZERO);
        let mut odd = zero;
        for ox in 0..w.out[1] {
            let (cols, left) = w.inside(1, ox);
            let first = rows.start * w.kernel[1] + cols.start;
            let mut from = 0;
            while from < c {
                let n = (c - from).min(V::LANES);
                let mut best = V::splat(E::NEG_INFINITY);
                let mut place = V::splat(E::from_f64(first as f64));
                for ky in rows.clone() {
                    let line = (top + ky as isize) as usize * w.image[1];
                    for kx in cols.clone() {
                        let v: V = load(x, (line + (left + kx as isize) as usize) * c + from, n);
                        // Infinite or not a number times zero is not a number.
                        odd = v.mul_add(zero, odd);
                        let here = V::splat(E::from_f64((ky * w.kernel[1] + kx) as f64));
                        place = v.if_gt(best, here, place);
                        best = v.max(best);
                    }
                }
                store(best, y, ox * c + from, n);
                let mut lanes = [E::ZERO; 16];
                const { assert!(V::LANES <= 16) };
                // SAFETY: the array has room for `LANES` numbers, as was just asserted.
                unsafe { place.store(lanes.as_mut_ptr()) };
                let out = &mut places[ox * c + from..ox * c + from + n];
                out.iter_mut().zip(lanes).for_each(|(p, l)| *p = P::of(l.to_f64() as usize));
                from += n;
            }
        }
        odd.sum() == E::ZERO
    }
}

/// Whether a number is none.
fn nan<E: Real>(x: E) -> bool {
    x.to_f64().is_nan()
}

/// One row of windows by the book: not a number wins over all, the first of equals over the others.
fn row_of_any<E: Real, P: Place>(row: Row<'_, E, P>) {
    let Row { w, x, at, y, places } = row;
    let (rows, top) = w.inside(0, at);
    for (i, (y, p)) in y.iter_mut().zip(places).enumerate() {
        let (ox, c) = (i / w.channels, i % w.channels);
        let (cols, left) = w.inside(1, ox);
        let mut best: Option<(E, usize)> = None;
        for ky in rows.clone() {
            for kx in cols.clone() {
                let pixel = (top + ky as isize) as usize * w.image[1] + (left + kx as isize) as usize;
                let v = x[pixel * w.channels + c];
                if best.is_none_or(|(b, _)| v > b || (nan(v) && !nan(b))) {
                    best = Some((v, ky * w.kernel[1] + kx));
                }
            }
        }
        if let Some((v, place)) = best {
            (*y, *p) = (v, P::of(place));
        }
    }
}

/// All windows of one image.
struct Image<'a, E, P> {
    w: &'a Windows,
    x: &'a [E],
    y: &'a mut [E],
    places: &'a mut [P],
}

impl<E: Real, P: Place> Kernel<E> for Image<'_, E, P> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let Image { w, x, y, places } = self;
        let rows = y.chunks_exact_mut(w.row_len()).zip(places.chunks_exact_mut(w.row_len()));
        for (at, (y, places)) in rows.enumerate() {
            let mut row = Row { w, x, at, y, places };
            if !row.finite::<V>() {
                row_of_any(row);
            }
        }
    }
}

/// `y` = the largest of each window of `x`, `places` where it was.
pub(super) fn max<E: Real, P: Place>(cpu: &Cpu, w: &Windows, x: &[E], y: &mut [E], places: &mut [P]) {
    if y.is_empty() {
        return;
    }
    let mut images: Vec<(&mut [E], &mut [P])> =
        y.chunks_exact_mut(w.out_len()).zip(places.chunks_exact_mut(w.out_len())).collect();
    cpu.workers.chunks(&mut images, 1, |n, image| {
        let x = &x[n * w.image_len()..(n + 1) * w.image_len()];
        for (y, places) in image {
            E::dispatch(cpu.isa, Image { w, x, y, places });
        }
    });
}

/// `dx (+)=` each number of `g` at its place.
pub(super) fn max_gradient<E: Real, P: Place>(
    cpu: &Cpu,
    w: &Windows,
    g: &[E],
    places: &[P],
    dx: &mut [E],
    accumulate: bool,
) {
    if dx.is_empty() {
        return;
    }
    let c = w.channels;
    let offsets: Vec<usize> = (0..w.kernel[0] * w.kernel[1])
        .map(|k| (k / w.kernel[1] * w.image[1] + k % w.kernel[1]) * c)
        .collect();
    let before = (w.padding[0] * w.image[1] + w.padding[1]) * c;
    cpu.workers.chunks(dx, w.image_len(), |n, dx| {
        if !accumulate {
            dx.fill(E::ZERO);
        }
        let at = n * w.out_len()..(n + 1) * w.out_len();
        let pixels = g[at.clone()].chunks_exact(c).zip(places[at].chunks_exact(c));
        for (i, (g, places)) in pixels.enumerate() {
            let [oy, ox] = [i / w.out[1] * w.stride[0], i % w.out[1] * w.stride[1]];
            let start = (oy * w.image[1] + ox) * c;
            for (k, (&g, p)) in g.iter().zip(places).enumerate() {
                dx[start + offsets[p.get()] + k - before] += g;
            }
        }
    });
}
