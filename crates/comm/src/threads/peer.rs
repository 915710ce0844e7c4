//! The one place where a rank's thread touches another rank's memory: the sum of the parts of all ranks.
//!
//! A bucket's guards are parked in the meeting from `start` until the sum is done, and helpers borrow
//! the meeting while they work. So memory in use cannot be freed or borrowed, whatever becomes of its
//! rank: when a world is poisoned, the guards fall with the last helper's reference.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::peer_sum::{Rule, piece};
use crate::signal::lock;
use crate::{Bucket, Fold};

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
    rule: Rule,
    len: usize,
    piece: usize,
    pieces: usize,
    next: AtomicUsize,
    done: AtomicUsize,
}

impl Work {
    pub(super) fn new(fold: Arc<Fold>, rule: Rule, len: usize) -> Self {
        let piece = piece(len, fold.parts.len());
        // A single part is its own sum.
        let pieces = if fold.steps.is_empty() { 0 } else { len.div_ceil(piece) };
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Work { fold, rule, len, piece, pieces, next, done }
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
        if self.next.load(Ordering::Relaxed) >= self.pieces {
            return false;
        }
        let (mut parts, mut outs) = (Vec::new(), Vec::new());
        for (rank, &count) in parked.zip(&self.fold.parts) {
            if rank.parts.len() != count {
                return false;
            }
            outs.push(rank.parts[0].0);
            parts.extend(rank.parts.iter().map(|p| p.0));
        }
        if outs.len() != self.fold.parts.len() {
            return false;
        }
        let size = self.rule.dtype.size();
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.pieces {
                return false;
            }
            let start = index * self.piece;
            let n = self.piece.min(self.len - start);
            // SAFETY: the piece lies inside every part.
            let from = |p: &*mut u8| unsafe { p.add(start * size) };
            let parts: Vec<_> = parts.iter().map(|p| from(p).cast_const()).collect();
            let outs: Vec<_> = outs.iter().map(from).collect();
            // SAFETY: the parts were checked against the fold when their ranks came (`Shared::start`), the
            // piece is this thread's, and the parked guards keep everybody else away.
            unsafe { self.rule.sum(&self.fold, &parts, &outs, n) };
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
