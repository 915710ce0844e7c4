//! Memory that the ranks of one machine share: a board on which they meet, and the arenas that they sum
//! in place.
//!
//! The n-th sum of every rank is one meeting. A rank posts where its parts are, then counts itself as
//! arrived; when all have, whoever has a thread to spare takes pieces of the sum, adds the parts of all in
//! the tree's order and writes the total into part 0 of every rank. The guards of a rank's parts are kept
//! by that rank until all pieces are written, so memory in use is borrowed by nobody else.
//!
//! A process that dies leaves a meeting incomplete; the others' waits have deadlines.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use phalanx_host::Arena;

use super::call::{HEAD, Words};
use super::ffi::{Window, free_bytes, futex_wait, futex_wake};
use crate::peer_sum::{Rule, piece};
use crate::signal::{Patience, lock};
use crate::{Deadline, Error, Fold, Result};

/// Sums of a rank that may be posted and not done; further ones wait for their turn.
pub(super) const RING: u64 = 64;

/// Control calls whose words are kept. A rank comes to one only when all have come to the one before, and
/// so have read the one before that.
const TALKS: u64 = 2;

/// The most parts a rank can have: twice the height of the highest tree.
pub(super) const MOST_PARTS: usize = 40;

#[repr(C, align(64))]
struct Post {
    call: [AtomicU64; 4],
    parts: [AtomicU64; MOST_PARTS],
}

/// What a rank says in a control call: a head.
#[repr(C, align(64))]
struct Word([AtomicU64; HEAD / 8]);

/// The state of the work on one meeting, tagged with its number: `number << 24 | count`.
#[repr(C, align(64))]
struct Work {
    next: AtomicU64,
    done: AtomicU64,
}

#[repr(C, align(64))]
struct Seat {
    /// Sums that the rank has posted.
    arrived: AtomicU64,
    posts: [Post; RING as usize],
    /// Control calls that the rank has come to.
    talked: AtomicU64,
    words: [Word; TALKS as usize],
    // Of the first rank's seat only.
    work: [Work; RING as usize],
    sleepers: AtomicU32,
    bell: AtomicU32,
}

const COUNT: u32 = 24;

fn tagged(number: u64, count: u64) -> u64 {
    number << COUNT | count
}

/// Bytes of the board's segment of each rank.
pub(super) const SEAT_BYTES: usize = size_of::<Seat>();

/// A window of arenas: where each local rank's segment lies here.
struct Room {
    window: Arc<Window>,
}

/// The shared memory of this machine's ranks.
pub(super) struct Board {
    me: usize,
    /// Seats are in the segments of this window, which is there until MPI ends.
    seats: Window,
    rooms: Mutex<Vec<Room>>,
    patience: Patience,
}

/// Where a part is: window and offset.
fn place(room: usize, offset: usize) -> u64 {
    (room as u64) << 48 | offset as u64
}

impl Board {
    /// The board in a window with [`SEAT_BYTES`] zero bytes for each rank.
    pub(super) fn new(me: u32, seats: Window) -> Result<Self> {
        for (base, bytes) in &seats.segments {
            if *bytes < SEAT_BYTES || !base.cast::<Seat>().is_aligned() {
                let reason = format!("a segment of {bytes} bytes at {base:p} does not fit");
                return Err(Error::Mpi { call: "MPI_Win_shared_query", reason });
            }
        }
        let patience = Patience::of_waiter(seats.segments.len());
        Ok(Board { me: me as usize, seats, rooms: Mutex::default(), patience })
    }

    /// Ranks on this machine.
    pub(super) fn world(&self) -> usize {
        self.seats.segments.len()
    }

    fn seat(&self, rank: usize) -> &Seat {
        // SAFETY: the segment holds a seat (checked in `new`), all of whose fields are atomics for which any
        // bytes are valid, and stays mapped until MPI ends, after which the world calls nothing here
        // (`World::check`, and its `Drop`).
        unsafe { &*self.seats.segments[rank].0.cast::<Seat>() }
    }

    /// Says this rank's head in control call `number`.
    pub(super) fn say(&self, number: u64, head: &[u8; HEAD]) {
        let seat = self.seat(self.me);
        let word = &seat.words[(number % TALKS) as usize];
        for (at, bytes) in word.0.iter().zip(head.as_chunks::<8>().0) {
            at.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        // Releases the head.
        seat.talked.store(number + 1, Ordering::Release);
        self.ring();
    }

    /// Whether a rank has come to control call `number`.
    pub(super) fn has_said(&self, rank: usize, number: u64) -> bool {
        self.seat(rank).talked.load(Ordering::Acquire) > number
    }

    /// What a rank has said in control call `number`, which it has come to.
    pub(super) fn said(&self, rank: usize, number: u64) -> [u8; HEAD] {
        let word = &self.seat(rank).words[(number % TALKS) as usize];
        let mut head = [0; HEAD];
        for (bytes, at) in head.as_chunks_mut::<8>().0.iter_mut().zip(&word.0) {
            *bytes = at.load(Ordering::Relaxed).to_le_bytes();
        }
        head
    }

    /// Adds a window of arenas and returns `bytes` bytes of this rank's segment as one.
    pub(super) fn add_room(&self, window: Window, bytes: usize) -> Result<Arena> {
        let (base, has) = window.segments[self.me];
        if has < bytes {
            let reason = format!("{bytes} bytes were asked for, {has} came");
            return Err(Error::Mpi { call: "MPI_Win_allocate_shared", reason });
        }
        let window = Arc::new(window);
        lock(&self.rooms).push(Room { window: window.clone() });
        let base = NonNull::new(base).ok_or(Error::Host(phalanx_host::Error::OutOfMemory { bytes }))?;
        // SAFETY: the segment is this rank's; it stays mapped until MPI ends, and the world does not end MPI
        // while an arena holds its window (`Board::arenas_in_use`). Other ranks touch it only during a
        // meeting for which this rank has handed in its guards.
        Ok(unsafe { Arena::lent(base, bytes, Box::new(window)) })
    }

    /// Whether somebody still holds an arena.
    pub(super) fn arenas_in_use(&self) -> bool {
        lock(&self.rooms).iter().any(|r| Arc::strong_count(&r.window) > 1)
    }

    /// Where `bytes` bytes at `at` lie, for the other ranks; None outside of all windows.
    pub(super) fn locate(&self, at: *const u8, bytes: usize) -> Option<u64> {
        let rooms = lock(&self.rooms);
        rooms.iter().enumerate().find_map(|(i, room)| {
            let (base, len) = room.window.segments[self.me];
            let offset = (at as usize).checked_sub(base as usize)?;
            (offset + bytes <= len).then(|| place(i, offset))
        })
    }

    /// A rank's part, as it lies here.
    fn part(&self, rank: usize, place: u64, bytes: usize) -> Result<*mut u8> {
        let rooms = lock(&self.rooms);
        let (room, offset) = ((place >> 48) as usize, (place & ((1 << 48) - 1)) as usize);
        let segment = rooms.get(room).map(|r| r.window.segments[rank]);
        match segment {
            Some((base, len)) if offset.checked_add(bytes).is_some_and(|end| end <= len) => {
                // SAFETY: inside the segment.
                Ok(unsafe { base.add(offset) })
            }
            _ => Err(Error::Usage(format!(
                "local rank {rank} gives a part in its window {room}, which local rank {} does not have: all \
                 ranks must allocate in the same order",
                self.me
            ))),
        }
    }

    /// Posts this rank's sum `number`, whose turn it must be.
    pub(super) fn post(&self, number: u64, call: Words, parts: &[u64]) {
        let seat = self.seat(self.me);
        let post = &seat.posts[(number % RING) as usize];
        // Released, so that who reads a word of this sum also sees that the rank has come past earlier ones.
        post.call.iter().zip(call).for_each(|(a, v)| a.store(v, Ordering::Release));
        post.parts.iter().zip(parts).for_each(|(a, v)| a.store(*v, Ordering::Relaxed));
        // Releases the post and the parts' contents to whoever sees the count.
        seat.arrived.store(number + 1, Ordering::Release);
        self.ring();
    }

    /// Whether a rank has come to sum `number`.
    pub(super) fn has_arrived(&self, rank: usize, number: u64) -> bool {
        self.seat(rank).arrived.load(Ordering::Acquire) > number
    }

    /// Whether all ranks have.
    pub(super) fn is_complete(&self, number: u64) -> bool {
        (0..self.world()).all(|r| self.has_arrived(r, number))
    }

    /// The first rank that has come to `number` with another call than `call`, and that call.
    pub(super) fn mismatch(&self, number: u64, call: Words) -> Option<(usize, Words)> {
        (0..self.world()).filter(|r| self.has_arrived(*r, number)).find_map(|rank| {
            let post = &self.seat(rank).posts[(number % RING) as usize];
            let theirs = post.call.each_ref().map(|a| a.load(Ordering::Acquire));
            // A rank that has come so far that its slot is, or may be, a later sum's has seen this one done.
            let later = self.seat(rank).arrived.load(Ordering::Acquire) + 1 > number + RING;
            (theirs != call && !later).then_some((rank, theirs))
        })
    }

    /// All ranks' parts in sum `number`, to which all have come: `counts` of each, `bytes` long.
    pub(super) fn parts(&self, number: u64, counts: &[usize], bytes: usize) -> Result<Vec<Vec<*mut u8>>> {
        let of = |(rank, &count): (usize, &usize)| {
            let post = &self.seat(rank).posts[(number % RING) as usize];
            post.parts[..count].iter().map(|p| self.part(rank, p.load(Ordering::Relaxed), bytes)).collect()
        };
        counts.iter().enumerate().map(of).collect()
    }

    fn work(&self, number: u64) -> &Work {
        &self.seat(0).work[(number % RING) as usize]
    }

    /// Adds one to a tagged count, from 0 if it is an earlier meeting's, unless it has reached `most`;
    /// returns the count before. Acquires and releases.
    fn bump(count: &AtomicU64, number: u64, most: u64) -> Option<u64> {
        let at = |old: u64| match (old >> COUNT).cmp(&number) {
            // All have come to this meeting, so the slot's earlier one is over.
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => old & ((1 << COUNT) - 1),
            // This meeting is over.
            std::cmp::Ordering::Greater => most,
        };
        let step = |old: u64| (at(old) < most).then(|| tagged(number, at(old) + 1));
        count.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).ok().map(at)
    }

    /// Counts a share of meeting `number` as done; returns whether it was the last of `all`.
    pub(super) fn finish(&self, number: u64, all: u64) -> bool {
        let last = Self::bump(&self.work(number).done, number, all).is_some_and(|before| before + 1 == all);
        if last {
            self.ring();
        }
        last
    }

    /// Whether all shares of a meeting are done. Acquires the results.
    pub(super) fn is_done(&self, number: u64, all: u64) -> bool {
        all == 0 || self.work(number).done.load(Ordering::Acquire) >= tagged(number, all)
    }

    /// Pieces of a sum of `len` elements that ranks take.
    pub(super) fn pieces(&self, fold: &Fold, len: usize) -> u64 {
        // A single part is its own sum.
        if fold.steps.is_empty() { 0 } else { len.div_ceil(piece(len, self.world())) as u64 }
    }

    /// Works on pieces of sum `number`, to which all ranks of the fold have come with equal calls, until none
    /// is left to take.
    pub(super) fn help(&self, number: u64, fold: &Fold, rule: &Rule, len: usize) -> Result<()> {
        let all = self.pieces(fold, len);
        if self.is_done(number, all) {
            return Ok(());
        }
        let (size, piece) = (rule.dtype.size(), piece(len, self.world()));
        let ranks = match self.parts(number, &fold.parts, len * size) {
            Ok(ranks) => ranks,
            // Others have done it meanwhile, and its slot has its next meeting.
            Err(_) if self.is_done(number, all) => return Ok(()),
            Err(e) => return Err(e),
        };
        let outs: Vec<*mut u8> = ranks.iter().map(|parts| parts[0]).collect();
        let parts: Vec<*mut u8> = ranks.into_iter().flatten().collect();
        while let Some(index) = Self::bump(&self.work(number).next, number, all) {
            let start = index as usize * piece;
            // SAFETY: the piece lies inside every part.
            let at = |p: &*mut u8| unsafe { p.add(start * size) };
            let parts: Vec<_> = parts.iter().map(|p| at(p).cast_const()).collect();
            let outs: Vec<_> = outs.iter().map(at).collect();
            // SAFETY: the parts lie in their ranks' segments (`Board::part`), at element bounds and with `len`
            // elements, as their buckets were checked; the piece is this thread's alone, and every rank
            // keeps its guards until all pieces are done.
            unsafe { rule.sum(fold, &parts, &outs, piece.min(len - start)) };
            self.finish(number, all);
        }
        Ok(())
    }

    /// Wakes the machine's ranks that sleep, so that they look again.
    pub(super) fn ring(&self) {
        let seat = self.seat(0);
        // Pairs with the fence in `wait`: either this sees the sleeper, or the sleeper sees what was written.
        fence(Ordering::SeqCst);
        if seat.sleepers.load(Ordering::Relaxed) > 0 {
            seat.bell.fetch_add(1, Ordering::Relaxed);
            futex_wake(&seat.bell);
        }
    }

    /// Waits until `ready`, or until the deadline has passed. `ready` must also look for the world's end:
    /// what is not told by [`Board::ring`] is seen within a few milliseconds.
    pub(super) fn wait(&self, awake: bool, deadline: Deadline, ready: impl Fn() -> bool) {
        const NAP: Duration = Duration::from_millis(5);
        if ready() || (awake && self.patience.awake(&ready)) {
            return;
        }
        let seat = self.seat(0);
        seat.sleepers.fetch_add(1, Ordering::Relaxed);
        loop {
            let seen = seat.bell.load(Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if ready() || deadline.expired() {
                break;
            }
            futex_wait(&seat.bell, seen, deadline.remaining().map_or(NAP, |left| left.min(NAP)));
        }
        seat.sleepers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Refuses a window that the machine's shared memory has no room for: beyond it, writing ends the process.
pub(super) fn check_room(bytes: usize) -> Result<()> {
    let free = free_bytes(c"/dev/shm").unwrap_or(u64::MAX);
    // Other users of it, and the library's own pages.
    const SPARE: u64 = 8 << 20;
    if free.saturating_sub(SPARE) >= bytes as u64 {
        return Ok(());
    }
    let reason = format!(
        "the ranks of a machine need {bytes} bytes of shared memory, but /dev/shm has {free} free; enlarge it \
         (in a container: --shm-size), or set distributed.shared_memory = false"
    );
    Err(Error::Mpi { call: "MPI_Win_allocate_shared", reason })
}
