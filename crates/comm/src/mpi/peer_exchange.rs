//! A sum over ranks on several machines: groups add in shared memory, and their sums cross the network.
//!
//! One task a sum, polled by the thread that owns MPI. Ranks of one lane first say what they are about to
//! sum, so that a desync is found before any byte of it is used; small sums travel with that word. Then
//! the lane's pieces go, several at once, straight out of the arena and into it. See `layout` for who
//! sends what to whom.

mod peer_piece;

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use phalanx_host::{DType, Isa};

use super::call::{SumCall, Words};
use super::ffi::{Comm, Mpi, Requests};
use super::layout::{self, Layout, Plan, Route};
use super::owner::{Progress, Slot, Task};
use super::peer_window::Board;
use crate::peer_sum::Rule;
use crate::signal::lock;
use crate::{Bucket, Error, Result, Wire};
use peer_piece::Piece;

/// Pieces that are under way at once.
const AT_ONCE: usize = 16;
/// Sums that are under way at once; far fewer than the board has room for.
const SUMS: u64 = 8;
/// Bytes of each group's sums that travel with the first word.
const SMALL: usize = 16 << 10;
/// Words of the first message before those bytes: the call, and its number.
const HEAD: usize = 5;

/// Memory for messages and sums, aligned for numbers of every type.
type Memory = Vec<u64>;

/// The network of one communicator.
pub(super) struct Net {
    pub(super) comm: Comm,
    pub(super) layout: Layout,
    /// This rank's group, and its number in it.
    pub(super) group: usize,
    pub(super) local: usize,
    /// The group's shared memory, when it has several ranks.
    pub(super) board: Option<Arc<Board>>,
    pub(super) isa: Isa,
    /// The ranks' numbers in messages.
    pub(super) ids: Arc<[u32]>,
    pub(super) turns: Mutex<Turns>,
    /// Memory of pieces that are done, for the next ones.
    pub(super) spare: Mutex<Vec<Memory>>,
    /// Pieces that are under way, of all sums; changed by the thread that owns MPI alone.
    pub(super) under_way: AtomicUsize,
    /// Sums whose pieces are all begun. Every rank begins pieces in one order, or two ranks could each fill all
    /// places with pieces that the other has no place for.
    pub(super) begun: Mutex<Turns>,
}

/// Which sums have come so far.
#[derive(Default)]
pub(super) struct Turns {
    /// All before this one are.
    prefix: u64,
    /// Others that are.
    beyond: BTreeSet<u64>,
}

impl Turns {
    fn over(&mut self, number: u64) {
        self.beyond.insert(number);
        while self.beyond.remove(&self.prefix) {
            self.prefix += 1;
        }
    }
}

/// What a waiting rank may want to know of a sum in flight.
#[derive(Default)]
pub(super) struct Arrivals {
    /// When all ranks of this rank's group and lane had come.
    pub(super) at: Mutex<Option<Instant>>,
    /// Ranks that have not come yet.
    pub(super) missing: Mutex<Vec<u32>>,
}

/// The sum of one bucket.
pub(super) struct Exchange {
    net: Arc<Net>,
    plan: Arc<Plan>,
    call: SumCall,
    number: u64,
    inner: Option<Inner>,
    arrivals: Arc<Arrivals>,
    slot: Arc<Slot<Bucket>>,
}

/// What must not be freed while MPI may touch it.
struct Inner {
    bucket: Bucket,
    stage: Stage,
    /// The parts of the group's ranks, by rank.
    parts: Vec<Vec<*mut u8>>,
    heads: Vec<(usize, Memory)>,
    first: Memory,
    /// Of the first words, or of the pieces, by index.
    requests: Requests,
    route: Route,
    to_come: VecDeque<(usize, Range<usize>)>,
    pieces: Vec<Piece>,
}

// SAFETY: the addresses are of memory that any thread may use; what keeps uses apart is said where they are
// used.
unsafe impl Send for Inner {}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Turn,
    Local,
    Heads,
    Pieces,
    Others,
}

fn tag(number: u64, piece: usize, part: usize, totals: bool) -> u32 {
    // 28 bits, which every MPI has: enough to tell apart all that can be under way at once.
    (number as u32 & 0x1ff) << 19
        | (piece as u32 & 0xfff) << 7
        | (part as u32 & 0x3f) << 1
        | u32::from(totals)
}

/// The tag of first words: no piece has that number of parts.
fn head_tag(number: u64) -> u32 {
    tag(number, 0, 0x3f, true)
}

fn bytes_of(memory: &Memory) -> *const u8 {
    memory.as_ptr().cast()
}

fn bytes_of_mut(memory: &mut Memory) -> *mut u8 {
    memory.as_mut_ptr().cast()
}

impl Net {
    fn memory(&self, bytes: usize) -> Memory {
        let mut memory = lock(&self.spare).pop().unwrap_or_default();
        memory.resize(bytes.div_ceil(8), 0);
        memory
    }

    fn give_back(&self, memory: Memory) {
        // As many as can be under way: their number is bounded by `AT_ONCE` and `SUMS`.
        if memory.capacity() > 0 {
            lock(&self.spare).push(memory);
        }
    }

    /// The rank of this lane in a group.
    fn peer(&self, group: usize) -> u32 {
        self.layout.groups[group].start + self.local as u32
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (mine, all) = (self.group, self.layout.groups.len());
        (0..all).filter(move |g| *g != mine)
    }

    fn rank(&self) -> u32 {
        self.layout.groups[self.group].start + self.local as u32
    }
}

impl Exchange {
    pub(super) fn new(
        net: Arc<Net>,
        plan: Arc<Plan>,
        call: SumCall,
        number: u64,
        mut bucket: Bucket,
        arrivals: Arc<Arrivals>,
        slot: Arc<Slot<Bucket>>,
    ) -> Self {
        let parts = vec![bucket.parts_mut().iter_mut().map(|p| p.as_mut_ptr()).collect()];
        let inner = Inner {
            bucket,
            stage: Stage::Turn,
            parts,
            heads: Vec::new(),
            first: Vec::new(),
            requests: Requests::default(),
            route: Route::Direct,
            to_come: VecDeque::new(),
            pieces: Vec::new(),
        };
        Exchange { net, plan, call, number, inner: Some(inner), arrivals, slot }
    }

    /// Bytes of an element on the wire.
    fn wire_size(&self) -> usize {
        if self.call.dtype == DType::F32 { self.call.wire.size() } else { self.call.dtype.size() }
    }

    fn narrow(&self) -> bool {
        self.call.dtype == DType::F32 && self.call.wire != Wire::F32
    }

    fn rule(&self) -> Rule {
        Rule { isa: self.net.isa, dtype: self.call.dtype, wire: self.call.wire }
    }

    fn lanes(&self) -> usize {
        self.net.layout.lanes()
    }

    fn step(&self, mpi: &Mpi, inner: &mut Inner) -> Result<Progress> {
        match inner.stage {
            Stage::Turn => {
                if self.number >= lock(&self.net.turns).prefix + SUMS {
                    return Ok(Progress::None);
                }
                if let Some(board) = &self.net.board {
                    let own = &inner.parts[0];
                    let place = |p: &*mut u8| board.locate(*p, self.call.bytes());
                    let places: Option<Vec<u64>> = own.iter().map(place).collect();
                    let foreign = || Error::Bucket {
                        id: self.call.id,
                        why: "is not in memory of this communicator (Collectives::alloc)".into(),
                    };
                    board.post(self.number, self.call.words(), &places.ok_or_else(foreign)?);
                }
                inner.stage = Stage::Local;
                Ok(Progress::Some)
            }
            Stage::Local => self.local(mpi, inner),
            Stage::Heads => self.heads(mpi, inner),
            Stage::Pieces => self.pieces(mpi, inner),
            Stage::Others => match &self.net.board {
                Some(board) if !board.is_done(self.number, self.lanes() as u64) => Ok(Progress::None),
                _ => Ok(Progress::Done),
            },
        }
    }

    fn differs(&self, rank: u32, theirs: Words) -> Error {
        Error::Desync {
            place: format!("collective {}", self.number),
            left_rank: self.net.ids[self.net.rank() as usize],
            left: self.call.to_string(),
            right_rank: self.net.ids[rank as usize],
            right: SumCall::tell(theirs),
        }
    }

    /// Waits for the group's ranks, then says the first word to the lane.
    fn local(&self, mpi: &Mpi, inner: &mut Inner) -> Result<Progress> {
        if let Some(board) = &self.net.board {
            let start = self.net.layout.groups[self.net.group].start;
            if let Some((rank, theirs)) = board.mismatch(self.number, self.call.words()) {
                return Err(self.differs(start + rank as u32, theirs));
            }
            if !board.is_complete(self.number) {
                let missing = (0..board.world()).filter(|r| !board.has_arrived(*r, self.number));
                *lock(&self.arrivals.missing) = missing.map(|r| self.net.ids[start as usize + r]).collect();
                return Ok(Progress::None);
            }
            inner.parts = board.parts(self.number, &self.plan.parts, self.call.bytes())?;
        }
        if self.net.local >= self.lanes() {
            lock(&self.net.begun).over(self.number);
            *lock(&self.arrivals.at) = Some(Instant::now());
            inner.stage = Stage::Others;
            return Ok(Progress::Some);
        }
        let lane = layout::lane(self.call.len, self.lanes(), self.net.local);
        let groups = self.net.layout.groups.len();
        let (route, pieces) = layout::pieces(lane.clone(), groups, self.call.wire, self.call.dtype.size());
        inner.route = route;
        inner.to_come = pieces.into_iter().enumerate().collect();

        // The first word, with the group's sums behind it when they are small.
        let most = self.plan.fold.parts.iter().copied().max().unwrap_or(1);
        let small = lane.len() * self.wire_size() * most <= SMALL && route == Route::Direct;
        let mut bytes = HEAD * 8;
        let mut word = self.net.memory(HEAD * 8 + SMALL);
        word[..4].copy_from_slice(&self.call.words());
        word[4] = self.number;
        if small {
            let sums = self.group_sums(inner, &lane)?;
            let each = lane.len() * self.wire_size();
            for (i, sum) in sums.0.iter().enumerate() {
                // SAFETY: there is room for `SMALL` bytes behind the head; `each` times the parts is no more.
                let to = unsafe { bytes_of_mut(&mut word).add(HEAD * 8 + i * each) };
                self.pack(*sum, to, lane.len());
            }
            bytes += each * sums.0.len();
            self.net.give_back(sums.1);
            // Kept whole, and added when the others' words are there.
            inner.to_come.clear();
        }
        inner.first = word;
        let missing = self.net.others().map(|g| self.net.ids[self.net.peer(g) as usize]);
        *lock(&self.arrivals.missing) = missing.collect();
        for group in self.net.others() {
            let mut theirs = self.net.memory(HEAD * 8 + SMALL);
            let (peer, tag) = (self.net.peer(group), head_tag(self.number));
            let at = bytes_of_mut(&mut theirs);
            inner.heads.push((group, theirs));
            // SAFETY: both live in `inner`, which is leaked if the requests are given up, and are not touched
            // before `heads` has seen the requests done.
            unsafe {
                inner.requests.push(mpi.irecv(self.net.comm, at, HEAD * 8 + SMALL, peer, tag)?, group);
                let sent = mpi.isend(self.net.comm, bytes_of(&inner.first), bytes, peer, tag)?;
                inner.requests.push(sent, group);
            }
        }
        inner.stage = Stage::Heads;
        Ok(Progress::Some)
    }

    /// Waits for the lane's first words.
    fn heads(&self, mpi: &Mpi, inner: &mut Inner) -> Result<Progress> {
        let mut moved = false;
        mpi.test_some(&mut inner.requests, |_| moved = true)?;
        if !inner.requests.is_empty() {
            return Ok(if moved { Progress::Some } else { Progress::None });
        }
        for (group, word) in &inner.heads {
            let theirs: Words = [word[0], word[1], word[2], word[3]];
            if theirs != self.call.words() || word[4] != self.number {
                return Err(self.differs(self.net.peer(*group), theirs));
            }
        }
        *lock(&self.arrivals.at) = Some(Instant::now());
        lock(&self.arrivals.missing).clear();
        inner.stage = Stage::Pieces;
        if inner.to_come.is_empty() {
            lock(&self.net.begun).over(self.number);
            self.add_small(inner);
        }
        for (_, word) in inner.heads.drain(..) {
            self.net.give_back(word);
        }
        self.net.give_back(std::mem::take(&mut inner.first));
        Ok(Progress::Some)
    }

    /// Adds what has come with the first words.
    fn add_small(&self, inner: &mut Inner) {
        let lane = layout::lane(self.call.len, self.lanes(), self.net.local);
        if lane.is_empty() {
            return;
        }
        let each = lane.len() * self.wire_size();
        let mut messages: Vec<(usize, *const u8)> =
            inner.heads.iter().map(|(g, word)| (*g, bytes_of(word))).collect();
        // This group's own sums as it sent them: exactly representable, so nothing is lost.
        messages.push((self.net.group, bytes_of(&inner.first)));
        messages.sort_unstable_by_key(|m| m.0);
        let sums = messages.iter().zip(&self.plan.fold.parts);
        // SAFETY: each message has its group's sums behind the head.
        let sums = sums.flat_map(|((_, m), k)| (0..*k).map(move |i| unsafe { m.add(HEAD * 8 + i * each) }));
        let sums: Vec<*const u8> = sums.collect();
        self.add(inner, &lane, &sums);
    }

    fn pieces(&self, mpi: &Mpi, inner: &mut Inner) -> Result<Progress> {
        let mut moved = false;
        // Sums end one after the other: the first can be used while the others are on their way.
        let may_begin = lock(&self.net.begun).prefix >= self.number;
        while may_begin
            && self.net.under_way.load(Ordering::Relaxed) < AT_ONCE
            && let Some((index, range)) = inner.to_come.pop_front()
        {
            let mut piece = self.begin(inner, index, range)?;
            let posted = self.post(mpi, inner, &mut piece);
            inner.pieces.push(piece);
            posted?;
            self.net.under_way.fetch_add(1, Ordering::Relaxed);
            moved = true;
            if inner.to_come.is_empty() {
                lock(&self.net.begun).over(self.number);
            }
        }
        let Inner { requests, pieces, .. } = inner;
        mpi.test_some(requests, |of| {
            moved = true;
            pieces.iter_mut().filter(|p| p.index == of).for_each(|p| p.open -= 1);
        })?;
        let mut at = 0;
        while at < inner.pieces.len() {
            if inner.pieces[at].open > 0 {
                at += 1;
                continue;
            }
            // Its place is kept, so that an error leaves it among those whose memory MPI may still use.
            let mut piece = inner.pieces.swap_remove(at);
            let done = self.advance(mpi, inner, &mut piece);
            if let Ok(true) = done {
                piece.memory().into_iter().for_each(|m| self.net.give_back(m));
                self.net.under_way.fetch_sub(1, Ordering::Relaxed);
                moved = true;
            } else {
                inner.pieces.push(piece);
                done?;
            }
        }
        if inner.pieces.is_empty() && inner.to_come.is_empty() {
            if let Some(board) = &self.net.board {
                board.finish(self.number, self.lanes() as u64);
            }
            inner.stage = Stage::Others;
            return Ok(Progress::Some);
        }
        Ok(if moved { Progress::Some } else { Progress::None })
    }
}

impl Task for Exchange {
    fn poll(&mut self, mpi: &Mpi) -> Progress {
        let Some(mut inner) = self.inner.take() else { return Progress::Done };
        match self.step(mpi, &mut inner) {
            Ok(Progress::Done) => {
                lock(&self.net.turns).over(self.number);
                self.slot.put(Ok(inner.bucket));
                Progress::Done
            }
            Ok(progress) => {
                self.inner = Some(inner);
                progress
            }
            Err(e) => {
                // MPI may still write to what it was given.
                std::mem::forget(inner);
                self.slot.put(Err(e));
                Progress::Done
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_apart_and_fit_into_28_bits() {
        let mut seen = BTreeSet::new();
        for number in [0, 1, SUMS, 511] {
            for piece in 0..AT_ONCE * 4 {
                for part in 0..40 {
                    for totals in [false, true] {
                        let t = tag(number, piece, part, totals);
                        assert!(t < 1 << 28 && seen.insert(t));
                    }
                }
            }
            assert!(seen.insert(head_tag(number)));
        }
    }

    #[test]
    fn turns_follow_each_other() {
        let mut turns = Turns::default();
        for (over, prefix) in [(1, 0), (2, 0), (0, 3), (3, 4)] {
            turns.over(over);
            assert_eq!(turns.prefix, prefix);
        }
    }
}
