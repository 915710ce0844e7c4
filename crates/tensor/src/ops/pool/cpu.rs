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
    fn of(place: i32) -> Self;
    fn get(self) -> usize;
}

impl Place for u8 {
    #[inline(always)]
    fn of(place: i32) -> Self {
        place as u8
    }
    #[inline(always)]
    fn get(self) -> usize {
        usize::from(self)
    }
}

impl Place for i64 {
    #[inline(always)]
    fn of(place: i32) -> Self {
        i64::from(place)
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

/// What a row is computed in: its largest numbers and their places, each with room for a vector past
/// its end.
struct Scratch<E> {
    best: Vec<E>,
    places: Vec<E>,
    /// The places of a window as numbers of the computed type.
    numbers: Vec<E>,
}

impl<E: Real> Scratch<E> {
    fn new(w: &Windows, lanes: usize) -> Self {
        let row = vec![E::ZERO; w.row_len() + lanes];
        let numbers = (0..w.kernel[0] * w.kernel[1]).map(|i| E::from_f64(i as f64)).collect();
        Scratch { best: row.clone(), places: row, numbers }
    }
}

impl<E: Real, P: Place> Row<'_, E, P> {
    /// Whether every number was finite; otherwise nothing can be said of the row.
    ///
    /// Vectors are whole also where a pixel has fewer channels: what they hold of the next pixel is
    /// overwritten by it.
    #[inline(always)]
    fn finite<V: Simd<E>>(&mut self, scratch: &mut Scratch<E>) -> bool {
        let (w, x) = (self.w, self.x);
        let c = w.channels;
        let (rows, top) = w.inside(0, self.at);
        let zero = V::splat(E::ZERO);
        let mut odd = zero;
        for ox in 0..w.out[1] {
            let (cols, left) = w.inside(1, ox);
            let first = rows.start * w.kernel[1] + cols.start;
            for from in (0..c).step_by(V::LANES) {
                let mut best = V::splat(E::NEG_INFINITY);
                let mut place = V::splat(scratch.numbers[first]);
                for ky in rows.clone() {
                    let line = (top + ky as isize) as usize * w.image[1];
                    for kx in cols.clone() {
                        let i = (line + (left + kx as isize) as usize) * c + from;
                        let v: V = load(x, i, V::LANES.min(x.len() - i));
                        // Infinite or not a number times zero is not a number.
                        odd = v.mul_add(zero, odd);
                        place = v.if_gt(best, V::splat(scratch.numbers[ky * w.kernel[1] + kx]), place);
                        best = v.max(best);
                    }
                }
                store(best, &mut scratch.best, ox * c + from, V::LANES);
                store(place, &mut scratch.places, ox * c + from, V::LANES);
            }
        }
        self.y.copy_from_slice(&scratch.best[..self.y.len()]);
        for (p, number) in self.places.iter_mut().zip(&scratch.places) {
            // SAFETY: it is one of `numbers`, which are whole and far below 2³¹: the vector was made of
            // them. A checked conversion would not become a vector's.
            *p = P::of(unsafe { number.to_f64().to_int_unchecked::<i32>() });
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
            (*y, *p) = (v, P::of(place as i32));
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
        let mut scratch = Scratch::new(w, V::LANES);
        for (at, (y, places)) in rows.enumerate() {
            let mut row = Row { w, x, at, y, places };
            if !row.finite::<V>(&mut scratch) {
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
