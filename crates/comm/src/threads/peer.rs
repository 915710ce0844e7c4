//! The one place where a rank's thread touches another rank's memory: the sum of the parts of all ranks.
//!
//! A bucket's guards are parked in the meeting from `start` until the sum is done, and helpers borrow
//! the meeting while they work. So memory in use cannot be freed or borrowed, whatever becomes of its
//! rank: when a world is poisoned, the guards fall with the last helper's reference.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use phalanx_host::simd::{Kernel, Real, Simd};
use phalanx_host::{DType, Isa};

use super::signal::lock;
use crate::{Bucket, Fold, Operand};

/// Elements that are summed before the next ones are looked at, so that scratch values stay in the
/// first-level cache.
const BLOCK: usize = 512;

/// A part of a rank's bucket.
#[derive(Clone, Copy)]
struct Part(*mut u8);

// SAFETY: the address of memory that any thread may use; what keeps uses apart is said in `Work`.
unsafe impl Send for Part {}
// SAFETY: as above.
unsafe impl Sync for Part {}

/// A rank's bucket while it is in flight.
pub(super) struct Parked {
    parts: Vec<Part>,
    bucket: Mutex<Option<Bucket>>,
    /// Whether the rank's communication thread is to do the work.
    pub(super) background: bool,
}

impl Parked {
    pub(super) fn new(mut bucket: Bucket, background: bool) -> Self {
        let parts = bucket.parts_mut().iter_mut().map(|p| Part(p.as_mut_ptr())).collect();
        Parked { parts, bucket: Mutex::new(Some(bucket)), background }
    }
}

/// The sum of one operation, cut into pieces that any rank's thread may take.
///
/// Every piece is taken once, by `next`. `done` counts those whose results are written. Buckets leave
/// only after all are (`take`), so a thread that works on a piece has the parts to itself there:
/// pieces do not overlap, and the buckets' guards keep everybody else away.
pub(super) struct Work {
    fold: Arc<Fold>,
    isa: Isa,
    dtype: DType,
    len: usize,
    piece: usize,
    pieces: usize,
    next: AtomicUsize,
    done: AtomicUsize,
}

/// How many elements a piece of a sum of `len` elements over `world` ranks has: a multiple of 16, one
/// cache line. Small sums are one piece, for the last rank that comes; others are cut finely enough
/// that a rank which is late or has lost its core does not hold up the rest.
pub(super) fn piece(len: usize, world: usize) -> usize {
    const SMALL: usize = 4096;
    const MOST: usize = 1 << 16;
    match len {
        0..=SMALL => SMALL,
        _ => len.div_ceil(world * 4).clamp(SMALL, MOST).next_multiple_of(16),
    }
}

impl Work {
    pub(super) fn new(fold: Arc<Fold>, isa: Isa, dtype: DType, len: usize) -> Self {
        let piece = piece(len, fold.parts.len());
        // A single part is its own sum.
        let pieces = if fold.steps.is_empty() { 0 } else { len.div_ceil(piece) };
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Work { fold, isa, dtype, len, piece, pieces, next, done }
    }

    /// Whether all pieces are written. Acquires the results.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire) == self.pieces
    }

    /// Works on pieces until none is left to take; returns whether it finished the last of all.
    ///
    /// `parked` are the buckets of all ranks, by rank, each with one part for each node of the fold and
    /// `len` elements of `dtype` in each part (`Shared::start` has checked all that). Nothing is done
    /// if a rank is missing.
    pub(super) fn help<'a>(&self, parked: impl Iterator<Item = &'a Parked>) -> bool {
        match self.dtype {
            DType::F64 => self.help_as::<f64>(parked),
            _ => self.help_as::<f32>(parked),
        }
    }

    fn help_as<'a, E: Real>(&self, parked: impl Iterator<Item = &'a Parked>) -> bool {
        if self.next.load(Ordering::Relaxed) >= self.pieces {
            return false;
        }
        let mut parts: Vec<*mut E> = Vec::new();
        let mut outs: Vec<*mut E> = Vec::new();
        for (rank, &count) in parked.zip(&self.fold.parts) {
            if rank.parts.len() != count {
                return false;
            }
            outs.push(rank.parts[0].0.cast());
            parts.extend(rank.parts.iter().map(|p| p.0.cast::<E>()));
        }
        if outs.len() != self.fold.parts.len() {
            return false;
        }
        let scratch = if self.fold.steps.len() > 1 { self.fold.temps * BLOCK } else { 0 };
        let mut temps = vec![E::ZERO; scratch];
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.pieces {
                return false;
            }
            let start = index * self.piece;
            let end = (start + self.piece).min(self.len);
            let (fold, temps) = (&*self.fold, temps.as_mut_ptr());
            E::dispatch(self.isa, Sum { fold, parts: &parts, outs: &outs, temps, start, end });
            // Releases the results to whoever sees the full count, as in `Board::post`.
            if self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.pieces {
                return true;
            }
        }
    }

    /// A rank's bucket, once the sum is done.
    pub(super) fn take(&self, parked: &Parked) -> Option<Bucket> {
        if self.is_done() { lock(&parked.bucket).take() } else { None }
    }
}

/// Elements `start..end` of a sum. Exists only inside `Work::help_as`.
struct Sum<'a, E> {
    fold: &'a Fold,
    parts: &'a [*mut E],
    outs: &'a [*mut E],
    temps: *mut E,
    start: usize,
    end: usize,
}

impl<E: Real> Kernel<E> for Sum<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let Some((last, before)) = self.fold.steps.split_last() else { return };
        let mut at = self.start;
        while at < self.end {
            let n = BLOCK.min(self.end - at);
            let operand = |o: Operand| match o {
                // SAFETY: `at` lies inside every part.
                Operand::Part(i) => unsafe { self.parts[i].add(at).cast_const() },
                // SAFETY: there are `fold.temps` blocks of scratch when a step uses any.
                Operand::Temp(i) => unsafe { self.temps.add(i * BLOCK).cast_const() },
            };
            for step in before {
                // SAFETY: as for the operands.
                let dst = unsafe { self.temps.add(step.dst * BLOCK) };
                // SAFETY: operands and result have `n` elements each; the parts' elements belong to this
                // thread (see `Work`), the scratch is its own.
                unsafe { add::<E, V>(operand(step.a), operand(step.b), &[dst], 0, n) };
            }
            // SAFETY: as above; `outs` are part 0 of every rank, with `at + n` elements.
            unsafe { add::<E, V>(operand(last.a), operand(last.b), self.outs, at, n) };
            at += n;
        }
    }
}

/// `outs[k][at + i] = a[i] + b[i]` for `i` in `0..n`.
///
/// # Safety
/// `a` and `b` must be valid for reading `n` elements, each of `outs` for writing `at + n`, with no other
/// thread using them. An output may be one of the inputs, else none may overlap.
#[inline(always)]
unsafe fn add<E: Real, V: Simd<E>>(a: *const E, b: *const E, outs: &[*mut E], at: usize, n: usize) {
    let whole = n - n % V::LANES;
    let mut i = 0;
    while i < whole {
        // SAFETY: `i + LANES <= n`, and the caller vouches for `n`. Inputs are read before outputs are
        // written, so they may be the same.
        unsafe {
            let sum = V::load(a.add(i)).add(V::load(b.add(i)));
            for out in outs {
                sum.store(out.add(at + i));
            }
        }
        i += V::LANES;
    }
    if i < n {
        // SAFETY: the last `n - i < LANES` elements.
        unsafe {
            let sum = V::load_first(a.add(i), n - i).add(V::load_first(b.add(i), n - i));
            for out in outs {
                sum.store_first(out.add(at + i), n - i);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_cache_lines_and_cover_large_sums_finely() {
        for world in 1..9 {
            for len in [0, 1, 17, 4096, 4097, 100_003, 25 << 20] {
                let piece = piece(len, world);
                assert!(piece.is_multiple_of(16) && piece > 0, "{len} over {world}");
                assert!(len <= 4096 || len.div_ceil(piece) >= 2, "{len} over {world}");
            }
        }
    }
}
