//! Largest numbers of windows on the CPU: vectors run over the channels of one window.

use std::ops::Range;

use phalanx_host::simd::{Kernel, Real, Simd};
use phalanx_host::{Cpu, Element};

use super::windows::Axis;
use crate::ops::columns::{load, store};

/// The windows over samples of so many channels. Axes that are not pooled over stand in front.
#[derive(Debug)]
pub(super) struct Windows {
    pub(super) axes: [Axis; 3],
    pub(super) channels: usize,
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
    /// Places of the largest window.
    pub(super) fn places(&self) -> usize {
        self.axes.iter().map(|a| a.kernel).product()
    }

    fn sample_len(&self) -> usize {
        self.axes.iter().map(|a| a.size).product::<usize>() * self.channels
    }

    fn row_len(&self) -> usize {
        self.axes[2].spans.len() * self.channels
    }

    fn out_len(&self) -> usize {
        self.axes[0].spans.len() * self.axes[1].spans.len() * self.row_len()
    }

    /// The lines of a sample that the row of windows `at` reads, in order: the number of the first place
    /// of a window on it, and the line.
    fn lines(&self, at: [usize; 2], lines: &mut Vec<(usize, usize)>) {
        let [outer, middle, inner] = &self.axes;
        let (a, b) = (&outer.spans[at[0]], &middle.spans[at[1]]);
        lines.clear();
        for i in a.inside.clone() {
            lines.extend(b.inside.clone().map(|j| {
                let place = (i * middle.kernel + j) * inner.kernel;
                (place, outer.at(a, i) * middle.size + middle.at(b, j))
            }));
        }
    }
}

/// One row of windows of one sample.
struct Row<'a, E> {
    w: &'a Windows,
    /// The places of a window as numbers of the computed type.
    numbers: &'a [E],
    /// The sample.
    x: &'a [E],
    /// See [`Windows::lines`].
    lines: &'a [(usize, usize)],
    y: &'a mut [E],
    /// The places of the largest numbers, which are among `numbers`.
    places: &'a mut [E],
}

impl<E: Real> Kernel<E> for Row<'_, E> {
    /// Whether every number was finite; otherwise nothing can be said of the row.
    type Out = bool;

    /// Vectors are whole also where a pixel has fewer channels: what they hold of the next pixel is
    /// overwritten by it.
    #[inline(always)]
    fn run<V: Simd<E>>(self) -> bool {
        let Row { w, numbers, x, lines, y, places } = self;
        let c = w.channels;
        let inner = &w.axes[2];
        let zero = V::splat(E::ZERO);
        let mut odd = zero;
        for (ox, span) in inner.spans.iter().enumerate() {
            let start = inner.at(span, span.inside.start);
            for from in (0..c).step_by(V::LANES) {
                let mut best = V::splat(E::NEG_INFINITY);
                let mut place = zero;
                for &(number, line) in lines {
                    let mut i = (line * inner.size + start) * c + from;
                    for number in &numbers[number..][span.inside.clone()] {
                        let v: V = load(x, i, V::LANES.min(x.len() - i));
                        // Infinite or not a number times zero is not a number.
                        odd = v.mul_add(zero, odd);
                        place = v.if_gt(best, V::splat(*number), place);
                        best = v.max(best);
                        i += inner.step * c;
                    }
                }
                let to = ox * c + from;
                let width = V::LANES.min(y.len() - to);
                store(best, y, to, width);
                store(place, places, to, width);
            }
        }
        odd.sum() == E::ZERO
    }
}

/// Whether a number is none.
fn nan<E: Real>(x: E) -> bool {
    x.to_f64().is_nan()
}

/// Follows the largest of numbers by the book: not a number wins over all, the first of equals over the others.
pub(super) struct Best<E>(Option<(E, usize)>);

impl<E: Real> Best<E> {
    pub(super) fn none() -> Self {
        Best(None)
    }

    pub(super) fn see(&mut self, v: E, place: usize) {
        if self.0.is_none_or(|(best, _)| v > best || (nan(v) && !nan(best))) {
            self.0 = Some((v, place));
        }
    }

    pub(super) fn put<P: Place>(self, y: &mut E, place: &mut P) {
        if let Some((v, p)) = self.0 {
            (*y, *place) = (v, P::of(p as i32));
        }
    }
}

/// One row of windows, number by number.
fn row_of_any<E: Real, P: Place>(
    w: &Windows,
    x: &[E],
    lines: &[(usize, usize)],
    y: &mut [E],
    places: &mut [P],
) {
    let (inner, c) = (&w.axes[2], w.channels);
    for (i, (y, p)) in y.iter_mut().zip(places).enumerate() {
        let span = &inner.spans[i / c];
        let mut best = Best::none();
        for &(place, line) in lines {
            for k in span.inside.clone() {
                best.see(x[(line * inner.size + inner.at(span, k)) * c + i % c], place + k);
            }
        }
        best.put(y, p);
    }
}

/// Elements that one task computes at least.
const PIECE: usize = 16 * 1024;

/// `y` = the largest of each window of `x`, `places` where it was.
pub(super) fn max<E: Real, P: Place>(cpu: &Cpu, w: &Windows, x: &[E], y: &mut [E], places: &mut [P]) {
    if y.is_empty() {
        return;
    }
    let numbers: Vec<E> = (0..w.places()).map(|i| E::from_f64(i as f64)).collect();
    let [outer, middle, _] = w.axes.each_ref().map(|a| a.spans.len());
    let (row, sample) = (w.row_len(), w.sample_len());
    let rows = PIECE.div_ceil(row);
    let mut pieces: Vec<(&mut [E], &mut [P])> =
        y.chunks_mut(rows * row).zip(places.chunks_mut(rows * row)).collect();
    cpu.workers.chunks(&mut pieces, 1, |i, piece| {
        let (mut found, mut lines) = (vec![E::ZERO; row], Vec::new());
        for (y, places) in piece {
            let each = y.chunks_exact_mut(row).zip(places.chunks_exact_mut(row));
            for (r, (y, places)) in each.enumerate() {
                let r = i * rows + r;
                let (n, at) = (r / (outer * middle), [r / middle % outer, r % middle]);
                let x = &x[n * sample..(n + 1) * sample];
                w.lines(at, &mut lines);
                let (y, found) = (&mut *y, &mut *found);
                let (lines, numbers) = (&*lines, &*numbers);
                if E::dispatch(cpu.isa, Row { w, numbers, x, lines, y: &mut *y, places: &mut *found }) {
                    for (p, number) in places.iter_mut().zip(found) {
                        // SAFETY: it is one of `numbers`, which are whole and far below 2³¹: the vector was
                        // made of them. A checked conversion would not become a vector's.
                        *p = P::of(unsafe { number.to_f64().to_int_unchecked::<i32>() });
                    }
                } else {
                    row_of_any(w, x, lines, y, places);
                }
            }
        }
    });
}

/// `out` = where in its sample, without channels, each window's place lies.
pub(super) fn flat<P: Place>(w: &Windows, places: &[P], out: &mut [i64]) {
    let [outer, middle, inner] = &w.axes;
    let (row, windows) = (w.row_len().max(1), [outer.spans.len(), middle.spans.len()]);
    for (i, (out, place)) in out.iter_mut().zip(places).enumerate() {
        let (r, span) = (i / row, &inner.spans[i % row / w.channels]);
        let (rest, k) = (place.get() / inner.kernel, place.get() % inner.kernel);
        let a = outer.at(&outer.spans[r / windows[1] % windows[0]], rest / middle.kernel);
        let b = middle.at(&middle.spans[r % windows[1]], rest % middle.kernel);
        *out = ((a * middle.size + b) * inner.size + inner.at(span, k)) as i64;
    }
}

/// Elements of a sample's gradient that one task computes at least.
const SLAB: usize = 64 * 1024;

/// `dx (+)=` each number of `g` at its place, in the order of the windows.
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
    let [outer, middle, inner] = &w.axes;
    let c = w.channels;
    let offset = |place: usize| {
        let (rest, k) = (place / inner.kernel, place % inner.kernel);
        let (i, j) = (rest / middle.kernel, rest % middle.kernel);
        ((i * outer.step * middle.size + j * middle.step) * inner.size + k * inner.step) * c
    };
    let offsets: Vec<usize> = (0..w.places()).map(offset).collect();
    // A large sample is cut into slabs along its first axis of any size.
    let cut = if outer.size > 1 { 0 } else { 1 };
    let line = w.sample_len() / w.axes[cut].size;
    let slab = SLAB.div_ceil(line).min(w.axes[cut].size);
    let slabs = w.axes[cut].size.div_ceil(slab);
    let mut pieces: Vec<&mut [E]> =
        dx.chunks_exact_mut(w.sample_len()).flat_map(|sample| sample.chunks_mut(slab * line)).collect();
    cpu.workers.chunks(&mut pieces, 1, |piece, dx| {
        let (n, from) = (piece / slabs, piece % slabs * slab);
        // The windows that reach into the slab.
        let touch = |axis: usize| -> Range<usize> {
            let a = &w.axes[axis];
            if axis != cut || slabs == 1 {
                return 0..a.spans.len();
            }
            let first = |s: &super::windows::Span| a.at(s, s.inside.start);
            let last = |s: &super::windows::Span| a.at(s, s.inside.end - 1);
            a.spans.partition_point(|s| last(s) < from)..a.spans.partition_point(|s| first(s) < from + slab)
        };
        for dx in dx {
            if !accumulate {
                dx.fill(E::ZERO);
            }
            for a in touch(0) {
                for b in touch(1) {
                    let at = n * w.out_len() + (a * middle.spans.len() + b) * w.row_len();
                    let row = at..at + w.row_len();
                    let pixels = g[row.clone()].chunks_exact(c).zip(places[row].chunks_exact(c));
                    for (span, (g, places)) in inner.spans.iter().zip(pixels) {
                        let start = (outer.spans[a].start * middle.size as isize + middle.spans[b].start)
                            * inner.size as isize
                            + span.start;
                        let start = start * c as isize - (from * line) as isize;
                        for (k, (&g, p)) in g.iter().zip(places).enumerate() {
                            let to = start + (offsets[p.get()] + k) as isize;
                            // Outside the slab it is another's, and wraps around to past this one's end.
                            if let Some(d) = dx.get_mut(to as usize) {
                                *d += g;
                            }
                        }
                    }
                }
            }
        }
    });
}
