//! Sums in a world of one group: every rank is a process of one machine, and nothing crosses a network.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use phalanx_host::Isa;

use super::call::SumCall;
use super::peer_window::{Board, RING};
use crate::peer_sum::Rule;
use crate::signal::{Patience, Poison, Signal, lock};
use crate::{AbortKind, AbortReason, Bucket, Deadline, Error, Fold, Result, Waited, Whereabouts};

/// A sum that this rank has started.
pub(super) struct Sum {
    pub(super) number: u64,
    call: SumCall,
    fold: Arc<Fold>,
    places: Vec<u64>,
    background: bool,
    over: AtomicBool,
    bucket: Mutex<Option<Bucket>>,
}

impl Sum {
    /// Whether the result is there.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// The bucket, once the sum is over.
    pub(super) fn take(&self) -> Option<Bucket> {
        if self.is_over() { lock(&self.bucket).take() } else { None }
    }
}

#[derive(Default)]
struct Queue {
    next: u64,
    posted: u64,
    /// Sums that are not over, in the order in which they were started.
    sums: VecDeque<Arc<Sum>>,
}

/// This rank's sums.
pub(super) struct Sums {
    pub(super) board: Arc<Board>,
    /// The ranks' numbers in messages.
    ids: Arc<[u32]>,
    rank: usize,
    isa: Isa,
    poison: Arc<Poison>,
    whereabouts: Arc<Whereabouts>,
    queue: Mutex<Queue>,
    /// Rung when there may be work for the thread in the background.
    bell: Arc<Signal>,
    left: AtomicBool,
}

impl Sums {
    pub(super) fn new(
        board: Arc<Board>,
        ids: Arc<[u32]>,
        rank: u32,
        isa: Isa,
        poison: &Arc<Poison>,
        whereabouts: &Arc<Whereabouts>,
    ) -> Self {
        Sums {
            board,
            ids,
            rank: rank as usize,
            isa,
            poison: poison.clone(),
            whereabouts: whereabouts.clone(),
            queue: Mutex::default(),
            bell: poison.signal(),
            left: AtomicBool::new(false),
        }
    }

    /// Starts the rank's next sum.
    pub(super) fn start(
        &self,
        mut bucket: Bucket,
        call: SumCall,
        fold: Arc<Fold>,
        background: bool,
    ) -> Result<Arc<Sum>> {
        let bytes = call.bytes();
        let places = bucket.parts_mut().iter_mut().map(|p| self.board.locate(p.as_mut_ptr(), bytes));
        let foreign = || Error::Bucket {
            id: call.id,
            why: "is not in memory of this communicator (Collectives::alloc)".into(),
        };
        let places = places.collect::<Option<_>>().ok_or_else(foreign)?;
        let mut queue = lock(&self.queue);
        let number = queue.next;
        let over = AtomicBool::new(false);
        let bucket = Mutex::new(Some(bucket));
        let sum = Arc::new(Sum { number, call, fold, places, background, over, bucket });
        self.whereabouts.begin_call("collective", number, move || call.to_string());
        queue.next += 1;
        queue.sums.push_back(sum.clone());
        self.post(&mut queue);
        drop(queue);
        if background {
            self.bell.ring();
        }
        Ok(sum)
    }

    /// Posts the sums whose turn it is: a slot of the board is free when its earlier sum is over.
    fn post(&self, queue: &mut Queue) {
        let front = queue.sums.front().map_or(queue.next, |s| s.number);
        while queue.posted < queue.next.min(front + RING)
            && let Some(sum) = queue.sums.get((queue.posted - front) as usize)
        {
            self.board.post(sum.number, sum.call.words(), &sum.places);
            queue.posted += 1;
        }
    }

    /// Does and awaits this rank's sums in order, up to and with number `upto`. `awake` is for a thread that
    /// has nothing else to do.
    pub(super) fn drive(&self, upto: u64, awake: bool, deadline: Deadline) -> Result<Waited> {
        let mut waited = Waited::default();
        loop {
            let front = lock(&self.queue).sums.front().cloned();
            let Some(sum) = front.filter(|s| s.number <= upto) else { return Ok(waited) };
            let begun = Instant::now();
            let number = sum.number;
            self.wait(&sum, awake, deadline, || sum.is_over() || self.board.is_complete(number))?;
            waited.for_ranks += begun.elapsed();
            let begun = Instant::now();
            if !sum.is_over() {
                self.check_calls(&sum)?;
                let rule = Rule { isa: self.isa, dtype: sum.call.dtype, wire: sum.call.wire };
                self.board.help(number, &sum.fold, &rule, sum.call.len)?;
                let all = self.board.pieces(&sum.fold, sum.call.len);
                self.wait(&sum, awake, deadline, || sum.is_over() || self.board.is_done(number, all))?;
            }
            waited.for_work += begun.elapsed();
            let mut queue = lock(&self.queue);
            if queue.sums.front().is_some_and(|s| s.number == number) {
                sum.over.store(true, Ordering::Release);
                self.whereabouts.end_call("collective", number);
                queue.sums.pop_front();
                self.post(&mut queue);
                drop(queue);
                // A thread that waits for this sum in this process.
                self.board.ring();
            }
        }
    }

    fn check_calls(&self, sum: &Sum) -> Result<()> {
        let Some((rank, theirs)) = self.board.mismatch(sum.number, sum.call.words()) else { return Ok(()) };
        let error = Error::Desync {
            place: format!("collective {}", sum.number),
            left_rank: self.ids[self.rank],
            left: sum.call.to_string(),
            right_rank: self.ids[rank],
            right: SumCall::tell(theirs),
        };
        Err(error)
    }

    /// Waits until `done`. What is done counts, whatever happened to the world since.
    fn wait(&self, sum: &Sum, awake: bool, deadline: Deadline, done: impl Fn() -> bool) -> Result<()> {
        // A rank that has come with another call never makes this meeting complete.
        let wrong = || self.board.mismatch(sum.number, sum.call.words()).is_some();
        let over = || done() || self.poison.is_set() || self.left.load(Ordering::Relaxed) || wrong();
        self.board.wait(awake, deadline, over);
        if done() {
            return Ok(());
        }
        if let Some(e) = self.poison.error() {
            return Err(e);
        }
        self.check_calls(sum)?;
        if self.left.load(Ordering::Relaxed) {
            let message = "the rank's communicator was dropped";
            let reason = AbortReason::new(self.ids[self.rank], AbortKind::Other, message);
            return Err(Error::Aborted { reason });
        }
        let missing: Vec<u32> = (0..self.board.world())
            .filter(|r| !self.board.has_arrived(*r, sum.number))
            .map(|r| self.ids[r])
            .collect();
        Err(late(self.ids[self.rank], deadline, format!("collective {} ({})", sum.number, sum.call), missing))
    }

    /// The thread in the background: does sums once all ranks have come to them.
    pub(super) fn serve(&self) {
        let over = || self.left.load(Ordering::Acquire) || self.poison.is_set();
        let front = || {
            let queue = lock(&self.queue);
            queue.sums.front().filter(|_| queue.sums.iter().any(|s| s.background)).map(|s| s.number)
        };
        loop {
            self.bell.wait(Patience::NONE, Deadline::never(), || over() || front().is_some());
            let Some(number) = front().filter(|_| !over()) else { return };
            // Sums of one rank are done in order: those before a background one are this thread's as well.
            self.board.wait(false, Deadline::never(), || {
                over() || self.board.is_complete(number) || front() != Some(number)
            });
            if self.board.is_complete(number) && self.drive(number, false, Deadline::never()).is_err() {
                return;
            }
        }
    }

    /// Ends the thread in the background.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::Release);
        self.bell.ring();
        self.board.ring();
    }
}

/// The error of a wait whose deadline has passed.
pub(super) fn late(rank: u32, deadline: Deadline, what: String, missing: Vec<u32>) -> Error {
    let report = match missing.len() {
        0 => "all ranks have come, but the work on it does not end".to_string(),
        1 => format!("rank {} has not come", missing[0]),
        _ => {
            let names: Vec<String> = missing.iter().map(u32::to_string).collect();
            format!("ranks {} have not come", names.join(", "))
        }
    };
    Error::Deadline { rank, allowed: deadline.allowed(), what, missing, report }
}
