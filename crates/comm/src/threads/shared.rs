//! What the ranks of one world share.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx_host::{DType, Isa};

use super::board::{Board, Meeting, Mismatch};
use super::peer::{Parked, Work};
use crate::peer_sum::Rule;
use crate::signal::{Patience, Poison, Signal, lock};
use crate::{AbortKind, AbortReason, Bucket, Deadline, Error, Fold, Result, Tree, Waited, Whereabouts, Wire};

/// An all-reduce, as ranks compare it.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct SumCall {
    id: u32,
    dtype: DType,
    len: usize,
    tree: Tree,
    wire: Wire,
}

impl fmt::Display for SumCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SumCall { id, dtype, len, tree, wire } = self;
        write!(f, "all-reduce of bucket {id}: {len} {dtype} over {} virtual shards", tree.shards())?;
        if *wire == Wire::F32 { Ok(()) } else { write!(f, " as {wire:?}") }
    }
}

/// A control message, as ranks compare it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Talk {
    AllGather,
    Broadcast { root: u32 },
    Barrier,
    Vote,
    Split,
}

impl fmt::Display for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Talk::AllGather => f.write_str("all-gather"),
            Talk::Broadcast { root } => write!(f, "broadcast from rank {root}"),
            Talk::Barrier => f.write_str("barrier"),
            Talk::Vote => f.write_str("vote"),
            Talk::Split => f.write_str("split"),
        }
    }
}

pub(super) type SumMeeting = Meeting<SumCall, Parked, Work>;
pub(super) type TalkMeeting = Meeting<Talk, Box<[u8]>, ()>;

impl SumMeeting {
    /// Whether the result is there.
    pub(super) fn is_done(&self) -> bool {
        self.is_complete() && self.state.is_done()
    }
}

/// One rank's part of the shared state.
pub(super) struct Seat {
    /// Its operations that are not done, in the order in which it started them.
    queue: Mutex<VecDeque<Arc<SumMeeting>>>,
    /// Rung when there may be work for its communication thread.
    signal: Arc<Signal>,
    /// Set when the rank leaves.
    left: AtomicBool,
    pub(super) whereabouts: Whereabouts,
    /// What the rank's own thread has waited.
    pub(super) waited: Mutex<Waited>,
}

fn pop_done(queue: &mut VecDeque<Arc<SumMeeting>>) {
    while queue.front().is_some_and(|m| m.is_done()) {
        queue.pop_front();
    }
}

/// A world being split off, and the number of ranks that have still to fetch it.
struct Cradle {
    child: Arc<Shared>,
    to_come: usize,
}

/// A world of ranks in one process.
pub(super) struct Shared {
    /// The ranks' numbers in the world that this one was split from, for messages.
    pub(super) ids: Vec<u32>,
    pub(super) timeout: Duration,
    pub(super) poison: Arc<Poison>,
    isa: Isa,
    patience: Patience,
    pub(super) seats: Vec<Seat>,
    gone: AtomicUsize,
    sums: Board<SumCall, Parked, Work>,
    talks: Board<Talk, Box<[u8]>, ()>,
    folds: Mutex<HashMap<Tree, Arc<Fold>>>,
    /// Worlds being split off, by call and colour.
    nursery: Mutex<HashMap<(u64, u32), Cradle>>,
}

impl Shared {
    pub(super) fn new(ids: Vec<u32>, timeout: Duration, isa: Isa, poison: Arc<Poison>) -> Self {
        let ranks = ids.len();
        let seat = |_: &u32| Seat {
            queue: Mutex::default(),
            signal: poison.signal(),
            left: AtomicBool::new(false),
            whereabouts: Whereabouts::default(),
            waited: Mutex::default(),
        };
        Shared {
            timeout,
            isa,
            patience: Patience::of_waiter(ranks),
            seats: ids.iter().map(seat).collect(),
            gone: AtomicUsize::new(0),
            sums: Board::new("collective", ranks, poison.signal()),
            talks: Board::new("control call", ranks, poison.signal()),
            folds: Mutex::default(),
            nursery: Mutex::default(),
            poison,
            ids,
        }
    }

    pub(super) fn world(&self) -> usize {
        self.ids.len()
    }

    fn check(&self) -> Result<()> {
        self.poison.error().map_or(Ok(()), Err)
    }

    fn fold(&self, tree: Tree) -> Result<Arc<Fold>> {
        let mut folds = lock(&self.folds);
        if let Some(fold) = folds.get(&tree) {
            return Ok(Arc::clone(fold));
        }
        let fold = Arc::new(tree.fold(self.world() as u32)?);
        folds.insert(tree, Arc::clone(&fold));
        Ok(fold)
    }

    /// Brings a rank's bucket to its next sum.
    pub(super) fn start(
        &self,
        rank: usize,
        bucket: Bucket,
        (tree, wire): (Tree, Wire),
        background: bool,
    ) -> Result<Arc<SumMeeting>> {
        self.check()?;
        let fold = self.fold(tree)?;
        let (have, need) = (bucket.parts().len(), fold.parts[rank]);
        if have != need {
            let (id, v) = (bucket.id(), tree.shards());
            let why =
                format!("has {have} parts; rank {rank} of {} holds {need} nodes of {v} shards", self.world());
            return Err(Error::Bucket { id, why });
        }
        let call = SumCall { id: bucket.id(), dtype: bucket.dtype(), len: bucket.len(), tree, wire };
        let parked = Parked::new(bucket, background);
        let posted = {
            // Held over both, so that a rank's queue has the order of its numbers.
            let mut queue = lock(&self.seats[rank].queue);
            pop_done(&mut queue);
            let rule = Rule { isa: self.isa, dtype: call.dtype, wire };
            let work = || Work::new(fold, rule, call.len);
            let posted = self.sums.post(rank, call, parked, work);
            if let Ok(meeting) = &posted {
                queue.push_back(Arc::clone(meeting));
            }
            posted
        };
        let meeting = posted.map_err(|m| self.desync(rank, &self.sums, call, m))?;
        // A communication thread is woken when there is something to do for it, not before: by the last
        // rank that comes.
        if meeting.is_complete() && !meeting.state.is_done() {
            let busy = self.seats.iter().zip(meeting.posts()).filter(|(_, post)| post.background);
            busy.for_each(|(seat, _)| seat.signal.ring());
        }
        self.sums.signal.ring();
        Ok(meeting)
    }

    /// Does and awaits a rank's sums in order, up to and with number `upto`. Returns what it waited for.
    pub(super) fn drive(&self, rank: usize, upto: u64, deadline: Deadline) -> Result<Waited> {
        let mut waited = Waited::default();
        loop {
            let front = lock(&self.seats[rank].queue).front().cloned();
            let Some(meeting) = front.filter(|m| m.number <= upto) else { return Ok(waited) };
            let begun = Instant::now();
            let complete = || meeting.is_complete();
            self.wait(rank, &self.sums, &meeting, complete, self.patience, deadline)?;
            waited.for_ranks += begun.elapsed();
            let begun = Instant::now();
            if !self.poison.is_set() && meeting.state.help(meeting.posts()) {
                self.sums.signal.ring();
            }
            // No work on the next sum begins before this one is done, which keeps the order.
            let done = || meeting.is_done();
            self.wait(rank, &self.sums, &meeting, done, self.patience, deadline)?;
            waited.for_work += begun.elapsed();
            pop_done(&mut lock(&self.seats[rank].queue));
        }
    }

    /// A rank's communication thread: drives background sums once all ranks have come to them.
    pub(super) fn serve(&self, rank: usize) {
        let seat = &self.seats[rank];
        let over = || seat.left.load(Ordering::Acquire) || self.poison.is_set();
        let work = || {
            let queue = lock(&seat.queue);
            // Ranks come in order: with the last complete one, all before it are.
            let mine = |m: &&Arc<SumMeeting>| m.post(rank).is_some_and(|p| p.background);
            queue.iter().take_while(|m| m.is_complete()).filter(mine).last().map(|m| m.number)
        };
        loop {
            seat.signal.wait(Patience::NONE, Deadline::never(), || over() || work().is_some());
            if over() {
                return;
            }
            if let Some(upto) = work()
                && self.drive(rank, upto, Deadline::never()).is_err()
            {
                return;
            }
        }
    }

    /// Waits until all ranks have brought their bytes to the rank's next control call.
    pub(super) fn talk(
        &self,
        rank: usize,
        call: Talk,
        bytes: &[u8],
        deadline: Deadline,
    ) -> Result<Arc<TalkMeeting>> {
        self.check()?;
        let posted = self.talks.post(rank, call, bytes.into(), || ());
        let meeting = posted.map_err(|m| self.desync(rank, &self.talks, call, m))?;
        self.talks.signal.ring();
        let complete = || meeting.is_complete();
        self.wait(rank, &self.talks, &meeting, complete, self.patience, deadline)?;
        Ok(meeting)
    }

    /// The world of colour `color` that call `number` splits off, for its ranks `members`.
    pub(super) fn split(&self, number: u64, color: u32, members: &[usize]) -> Arc<Shared> {
        let mut nursery = lock(&self.nursery);
        let cradle = nursery.entry((number, color)).or_insert_with(|| {
            let ids = members.iter().map(|&r| self.ids[r]).collect();
            let child = Shared::new(ids, self.timeout, self.isa, Arc::clone(&self.poison));
            Cradle { child: Arc::new(child), to_come: members.len() }
        });
        cradle.to_come -= 1;
        let (child, last) = (Arc::clone(&cradle.child), cradle.to_come == 0);
        if last {
            nursery.remove(&(number, color));
        }
        child
    }

    /// Marks a rank as gone. Who waits for something that it had not come to gives up.
    pub(super) fn leave(&self, rank: usize) {
        // Releases the rank's posts: who sees it gone sees all that it had come to.
        self.seats[rank].left.store(true, Ordering::Release);
        self.gone.fetch_add(1, Ordering::Release);
        self.seats[rank].signal.ring();
        self.sums.signal.ring();
        self.talks.signal.ring();
    }

    /// A rank that is gone and has not come to `meeting`.
    fn lost<C, P, S>(&self, meeting: &Meeting<C, P, S>) -> Option<usize> {
        if self.gone.load(Ordering::Acquire) == 0 {
            return None;
        }
        let gone: Vec<usize> =
            (0..self.world()).filter(|&r| self.seats[r].left.load(Ordering::Acquire)).collect();
        gone.into_iter().find(|&r| meeting.post(r).is_none())
    }

    /// Waits until `done`. What is done counts, whatever happened to the world since.
    fn wait<C: Copy + PartialEq + fmt::Display, P, S>(
        &self,
        rank: usize,
        board: &Board<C, P, S>,
        meeting: &Meeting<C, P, S>,
        done: impl Fn() -> bool,
        patience: Patience,
        deadline: Deadline,
    ) -> Result<()> {
        let over = || done() || self.poison.is_set() || self.lost(meeting).is_some();
        board.signal.wait(patience, deadline, over);
        if done() {
            return Ok(());
        }
        self.check()?;
        let me = self.ids[rank];
        let what = format!("{} ({})", board.place(meeting.number), meeting.call);
        if let Some(lost) = self.lost(meeting) {
            let message = format!("the rank is gone, and rank {me} waits for it in {what}");
            return Err(self.fail(AbortReason::new(self.ids[lost], AbortKind::Communication, message), None));
        }
        let missing = meeting.missing();
        let list = |ranks: &mut dyn Iterator<Item = usize>| {
            ranks.map(|r| self.ids[r].to_string()).collect::<Vec<_>>().join(", ")
        };
        let report = if missing.is_empty() {
            "all ranks have come, but a rank's thread has stopped in the middle of the work".to_string()
        } else {
            let come = list(&mut (0..self.world()).filter(|r| !missing.contains(r)));
            let tell = |&r: &usize| {
                let (sum, talk) = (self.sums.last(r), self.talks.last(r));
                format!("rank {} has not (its last: {sum}, {talk})", self.ids[r])
            };
            format!("ranks {come} have come; {}", missing.iter().map(tell).collect::<Vec<_>>().join("; "))
        };
        let missing = missing.iter().map(|&r| self.ids[r]).collect();
        let error = Error::Deadline { rank: me, allowed: deadline.allowed(), what, missing, report };
        Err(self.fail(AbortReason::new(me, AbortKind::Communication, error.to_string()), Some(error)))
    }

    /// Poisons the world with `reason`. Returns `own` to the rank that was the first to fail, and the
    /// first cause to others.
    fn fail(&self, reason: AbortReason, own: Option<Error>) -> Error {
        let error = Error::Aborted { reason: reason.clone() };
        if self.poison.set(reason, None) {
            own.unwrap_or(error)
        } else {
            self.poison.error().unwrap_or(error)
        }
    }

    fn desync<C: Copy + PartialEq + fmt::Display, P, S>(
        &self,
        rank: usize,
        board: &Board<C, P, S>,
        call: C,
        Mismatch { number, first, theirs }: Mismatch<C>,
    ) -> Error {
        let error = Error::Desync {
            place: board.place(number),
            left_rank: self.ids[first],
            left: theirs.to_string(),
            right_rank: self.ids[rank],
            right: call.to_string(),
        };
        let reason = AbortReason::new(self.ids[rank], AbortKind::Communication, error.to_string());
        self.poison.set(reason, Some(error.clone()));
        self.poison.error().unwrap_or(error)
    }
}
