//! A sum over ranks on several machines: groups add in shared memory, and their sums cross the network.
//!
//! One task a sum, polled by the thread that owns MPI. Ranks of one lane first say what they are about to
//! sum, so that a desync is found before any byte of it is used; small sums travel with that word. Then
//! the lane's pieces go, several at once, straight out of the arena and into it. See `layout` for who
//! sends what to whom.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use phalanx_host::{DType, Isa};

use super::call::{SumCall, Words};
use super::ffi::{Comm, Mpi, Request};
use super::layout::{self, Layout, Plan, Route};
use super::owner::{Progress, Slot, Task};
use super::peer_window::Board;
use crate::peer_sum::Rule;
use crate::signal::lock;
use crate::{Bucket, Error, Operand, Result, Wire};

/// Pieces of a sum that are under way at once.
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
}

/// Which sums are over.
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
    requests: Vec<Request>,
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

struct Piece {
    index: usize,
    range: Range<usize>,
    /// The group that adds it; all do when there is none.
    owner: Option<usize>,
    /// Whether totals are under way.
    totals: bool,
    /// The group's sums, in the arena or in `own`.
    sums: Vec<*const u8>,
    own: Memory,
    /// What is sent where the wire is narrow.
    packed: Memory,
    /// What comes: all other groups' sums, or the total.
    inbox: Memory,
    requests: Vec<Request>,
}

/// Whether all requests are done.
fn all_done(mpi: &Mpi, requests: &mut Vec<Request>) -> Result<bool> {
    let mut failed = Ok(());
    requests.retain_mut(|r| match mpi.test(r) {
        Ok(done) => !done,
        Err(e) => {
            failed = Err(e);
            false
        }
    });
    failed.map(|()| requests.is_empty())
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
            requests: Vec::new(),
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
                inner.requests.push(mpi.irecv(self.net.comm, at, HEAD * 8 + SMALL, peer, tag)?);
                inner.requests.push(mpi.isend(self.net.comm, bytes_of(&inner.first), bytes, peer, tag)?);
            }
        }
        inner.stage = Stage::Heads;
        Ok(Progress::Some)
    }

    /// Copies `n` elements as they travel.
    fn pack(&self, from: *const u8, to: *mut u8, n: usize) {
        if !self.narrow() {
            // SAFETY: `from` is a sum and `to` a message's place, both of `n` elements and apart.
            return unsafe { std::ptr::copy_nonoverlapping(from, to, n * self.call.dtype.size()) };
        }
        // SAFETY: as above; sums are f32 where the wire is narrow, and messages are aligned to 8 bytes.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(from.cast::<f32>(), n),
                std::slice::from_raw_parts_mut(to.cast::<u16>(), n),
            )
        };
        self.call.wire.pack(self.net.isa, from, to);
    }

    /// The inverse of [`Exchange::pack`].
    fn unpack(&self, from: *const u8, to: *mut u8, n: usize) {
        if !self.narrow() {
            // SAFETY: as in `pack`.
            return unsafe { std::ptr::copy_nonoverlapping(from, to, n * self.call.dtype.size()) };
        }
        // SAFETY: as in `pack`.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(from.cast::<u16>(), n),
                std::slice::from_raw_parts_mut(to.cast::<f32>(), n),
            )
        };
        self.call.wire.unpack(self.net.isa, from, to);
    }

    /// The sums of this rank's group over `range`, and the memory that those need which are no rank's part.
    fn group_sums(&self, inner: &Inner, range: &Range<usize>) -> Result<(Vec<*const u8>, Memory)> {
        let size = self.call.dtype.size();
        let flat: Vec<*mut u8> = inner.parts.iter().flatten().copied().collect();
        // SAFETY: `range` lies inside every part.
        let at = |p: *mut u8| unsafe { p.add(range.start * size) };
        let parts: Vec<*const u8> = flat.iter().map(|p| at(*p).cast_const()).collect();
        let made = self.plan.local.iter().filter(|(f, _)| !f.steps.is_empty()).count();
        let each = (range.len() * size).next_multiple_of(64);
        let mut memory = if made > 0 { self.net.memory(made * each) } else { Vec::new() };
        let mut next = bytes_of_mut(&mut memory);
        let mut sums = Vec::with_capacity(self.plan.local.len());
        for (fold, total) in &self.plan.local {
            match total {
                Operand::Part(i) if fold.steps.is_empty() => sums.push(parts[*i]),
                _ => {
                    // SAFETY: the parts are the group's, which have all come and keep their guards until all
                    // lanes are done; this range is this lane's. The output is fresh memory, with room for
                    // `made` sums.
                    unsafe { self.rule().sum(fold, &parts, &[next], range.len()) };
                    sums.push(next.cast_const());
                    // SAFETY: stays within `made * each` bytes, or one past the last.
                    next = unsafe { next.add(each) };
                }
            }
        }
        Ok((sums, memory))
    }

    /// Waits for the lane's first words.
    fn heads(&self, mpi: &Mpi, inner: &mut Inner) -> Result<Progress> {
        let before = inner.requests.len();
        if !all_done(mpi, &mut inner.requests)? {
            return Ok(if inner.requests.len() < before { Progress::Some } else { Progress::None });
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

    /// Adds all groups' sums, as they travelled, into part 0 of all ranks of this group.
    fn add(&self, inner: &Inner, range: &Range<usize>, sums: &[*const u8]) {
        let (n, size) = (range.len(), self.call.dtype.size());
        let mut wide = Vec::new();
        let sums: Vec<*const u8> = if self.narrow() {
            wide = self.net.memory(sums.len() * n * size);
            let base = bytes_of_mut(&mut wide);
            let widen = |(i, sum): (usize, &*const u8)| {
                // SAFETY: there is room for all sums.
                let to = unsafe { base.add(i * n * size) };
                self.unpack(*sum, to, n);
                to.cast_const()
            };
            sums.iter().enumerate().map(widen).collect()
        } else {
            sums.to_vec()
        };
        let outs = self.outs(inner, range);
        // SAFETY: `sums` are messages that have come and this group's own sums, whose sends are done; each has
        // `n` elements. The outputs are this lane's range of the group's part 0, which nobody else touches
        // until the lane is done; a sum may lie in one of them, exactly there.
        unsafe { self.rule().sum(&self.plan.fold, &sums, &outs, n) };
        self.net.give_back(wide);
    }

    /// Part 0 of every rank of the group, at `range`.
    fn outs(&self, inner: &Inner, range: &Range<usize>) -> Vec<*mut u8> {
        let size = self.call.dtype.size();
        // SAFETY: `range` lies inside every part.
        inner.parts.iter().map(|p| unsafe { p[0].add(range.start * size) }).collect()
    }

    fn pieces(&self, mpi: &Mpi, inner: &mut Inner) -> Result<Progress> {
        let mut moved = false;
        while inner.pieces.len() < AT_ONCE
            && let Some((index, range)) = inner.to_come.pop_front()
        {
            let piece = self.begin(mpi, inner, index, range)?;
            inner.pieces.push(piece);
            moved = true;
        }
        let mut pieces = std::mem::take(&mut inner.pieces);
        let mut failed = None;
        let mut left = Vec::with_capacity(pieces.len());
        for mut piece in pieces.drain(..) {
            match if failed.is_none() { self.advance(mpi, inner, &mut piece) } else { Ok(false) } {
                Ok(true) => {
                    moved = true;
                    [piece.own, piece.packed, piece.inbox].into_iter().for_each(|m| self.net.give_back(m));
                }
                Ok(false) => left.push(piece),
                Err(e) => {
                    failed = Some(e);
                    left.push(piece);
                }
            }
        }
        inner.pieces = left;
        if let Some(e) = failed {
            return Err(e);
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

    fn begin(&self, mpi: &Mpi, inner: &Inner, index: usize, range: Range<usize>) -> Result<Piece> {
        let groups = self.net.layout.groups.len();
        let owner = (inner.route == Route::Owned).then_some(index % groups);
        let (sums, own) = self.group_sums(inner, &range)?;
        let (n, each) = (range.len(), range.len() * self.wire_size());
        let mut piece = Piece {
            index,
            range,
            owner,
            totals: false,
            sums,
            own,
            packed: Vec::new(),
            inbox: Vec::new(),
            requests: Vec::new(),
        };
        if self.narrow() {
            piece.packed = self.net.memory(piece.sums.len() * each.next_multiple_of(8));
            let base = bytes_of_mut(&mut piece.packed);
            for (i, sum) in piece.sums.iter_mut().enumerate() {
                // SAFETY: there is room for all sums, each on 8 bytes.
                let to = unsafe { base.add(i * each.next_multiple_of(8)) };
                self.pack(*sum, to, n);
                *sum = to.cast_const();
            }
        }
        if owner.is_none_or(|o| o == self.net.group) {
            let coming = self.net.others().map(|g| self.plan.fold.parts[g]).sum::<usize>();
            piece.inbox = self.net.memory(coming * each.next_multiple_of(8));
            let mut at = bytes_of_mut(&mut piece.inbox);
            for group in self.net.others() {
                for part in 0..self.plan.fold.parts[group] {
                    let tag = tag(self.number, index, part, false);
                    // SAFETY: a place of its own in the inbox, which is leaked if the request is given up.
                    unsafe {
                        piece.requests.push(mpi.irecv(self.net.comm, at, each, self.net.peer(group), tag)?);
                        at = at.add(each.next_multiple_of(8));
                    }
                }
            }
        }
        for group in self.net.others().filter(|g| owner.is_none_or(|o| o == *g)) {
            for (part, sum) in piece.sums.iter().enumerate() {
                let tag = tag(self.number, index, part, false);
                // SAFETY: the sum lies in the arena or in the piece; both stay until the request is done, and
                // nothing is written there before.
                let sent = unsafe { mpi.isend(self.net.comm, *sum, each, self.net.peer(group), tag)? };
                piece.requests.push(sent);
            }
        }
        Ok(piece)
    }

    /// Moves a piece on; returns whether it is done.
    fn advance(&self, mpi: &Mpi, inner: &Inner, piece: &mut Piece) -> Result<bool> {
        if !all_done(mpi, &mut piece.requests)? {
            return Ok(false);
        }
        let (n, each) = (piece.range.len(), piece.range.len() * self.wire_size());
        let outs = self.outs(inner, &piece.range);
        let tag = tag(self.number, piece.index, 0, true);
        match (piece.owner, piece.totals) {
            (owner, false) if owner.is_none_or(|o| o == self.net.group) => {
                let step = each.next_multiple_of(8);
                let mut at = bytes_of(&piece.inbox);
                let mut sums = Vec::new();
                for (group, &count) in self.plan.fold.parts.iter().enumerate() {
                    if group == self.net.group {
                        sums.extend(&piece.sums);
                        continue;
                    }
                    for _ in 0..count {
                        sums.push(at);
                        // SAFETY: within the inbox, or one past it.
                        at = unsafe { at.add(step) };
                    }
                }
                self.add(inner, &piece.range, &sums);
                if owner.is_none() {
                    return Ok(true);
                }
                piece.totals = true;
                let mut total = outs[0].cast_const();
                if self.narrow() {
                    // Its sums have been sent, and added.
                    let to = bytes_of_mut(&mut piece.packed);
                    self.pack(total, to, n);
                    total = to.cast_const();
                }
                for group in self.net.others() {
                    // SAFETY: as in `begin`.
                    let sent = unsafe { mpi.isend(self.net.comm, total, each, self.net.peer(group), tag)? };
                    piece.requests.push(sent);
                }
                Ok(false)
            }
            // All have the total.
            (Some(owner), true) if owner == self.net.group => Ok(true),
            (Some(owner), false) => {
                // This group's sums are sent: the total may come in their place.
                piece.totals = true;
                let mut to = outs[self.net.local];
                if self.narrow() {
                    piece.inbox = self.net.memory(each);
                    to = bytes_of_mut(&mut piece.inbox);
                }
                // SAFETY: this lane's range of this rank's part 0, or the inbox.
                let coming = unsafe { mpi.irecv(self.net.comm, to, each, self.net.peer(owner), tag)? };
                piece.requests.push(coming);
                Ok(false)
            }
            (_, _) => {
                let mine = outs[self.net.local];
                if self.narrow() {
                    self.unpack(bytes_of(&piece.inbox), mine, n);
                }
                for (_, out) in outs.iter().enumerate().filter(|(i, _)| *i != self.net.local) {
                    // SAFETY: this lane's range of two ranks' part 0, which are apart.
                    unsafe { std::ptr::copy_nonoverlapping(mine, *out, n * self.call.dtype.size()) };
                }
                Ok(true)
            }
        }
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
