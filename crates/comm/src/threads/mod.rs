//! Ranks as threads of one process: the embedded default, and the test double of the other transports.
//!
//! [`world`] makes one [`Endpoint`] a rank. An all-reduce is a meeting: each rank brings the addresses
//! of its parts, and when all have come, whoever has a thread to spare (waiters and communication
//! threads of any rank) takes pieces of the sum, adds the parts of all ranks in the tree's order and
//! writes the total into part 0 of every rank. Which thread takes a piece has no influence on its bits.
//! A rank whose thread has lost its core holds up nobody, and a rank that comes last finds others
//! ready to help.
//!
//! Nobody waits for the dead: an endpoint that is dropped during a panic aborts the world; one that is
//! dropped in good order ends the waits of those that still need it.

mod board;
mod peer;
mod shared;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use phalanx_host::{Arena, Isa};

use crate::api::check_broadcast;
use crate::signal::{Poison, lock};
use crate::{
    AbortKind, AbortReason, Bucket, Collective, Collectives, Communicator, Control, Deadline, Error, Event,
    Flight, Locality, Member, Overlap, Pending, Result, Waited, Whereabouts,
};
use shared::{Shared, SumMeeting, Talk};

/// A world of `ranks` ranks in this process, by rank. `timeout` is what [`Control::deadline`] allows;
/// sums are computed with `isa`. Fails with [`Error::Usage`] when `ranks` is 0.
pub fn world(ranks: u32, timeout: Duration, isa: Isa) -> Result<Vec<Endpoint>> {
    if ranks == 0 {
        return Err(Error::Usage("a world of 0 ranks; at least 1 is needed".into()));
    }
    let shared = Arc::new(Shared::new((0..ranks).collect(), timeout, isa, Arc::new(Poison::default())));
    Ok((0..ranks).map(|rank| Endpoint::new(Arc::clone(&shared), rank)).collect())
}

/// One rank's end of a world of threads. Dropping it stops and joins its communication thread.
pub struct Endpoint {
    shared: Arc<Shared>,
    rank: u32,
    /// Started by the first background operation.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint(rank {} of {})", self.rank, self.world())
    }
}

impl Endpoint {
    fn new(shared: Arc<Shared>, rank: u32) -> Self {
        Endpoint { shared, rank, thread: Mutex::default() }
    }

    fn seat(&self) -> usize {
        self.rank as usize
    }

    fn start_thread(&self) -> Result<()> {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let (shared, seat) = (Arc::clone(&self.shared), self.seat());
            let started = thread::Builder::new()
                .name(format!("comm-{}", self.rank))
                .spawn(move || shared.serve(seat))
                .map_err(|e| Error::Thread { rank: self.rank, reason: e.to_string() })?;
            *thread = Some(started);
        }
        Ok(())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if thread::panicking() {
            let id = self.shared.ids[self.seat()];
            self.abort(AbortReason::new(id, AbortKind::Panic, "the rank's thread panicked"));
        }
        self.shared.leave(self.seat());
        if let Some(thread) = lock(&self.thread).take() {
            // It ends by itself: it only works on sums that all ranks have come to.
            let _ = thread.join();
        }
    }
}

impl Member for Endpoint {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn world(&self) -> u32 {
        self.shared.world() as u32
    }

    fn name(&self) -> &'static str {
        "threads"
    }

    fn locality(&self) -> Locality {
        Locality { node: 0, nodes: 1, local_rank: self.rank, local_world: self.world() }
    }
}

impl Collectives for Endpoint {
    fn alloc(&self, bytes: usize) -> Result<Arena> {
        Ok(Arena::zeroed(bytes)?)
    }

    fn start(&self, bucket: Bucket, what: Collective, after: Event, overlap: Overlap) -> Result<Pending> {
        let Collective::AllReduce { tree, wire } = what;
        let Event::Ready = after;
        // A rank alone has nothing to sum.
        let background = overlap == Overlap::Background && self.world() > 1;
        if background {
            self.start_thread()?;
        }
        let meeting = self.shared.start(self.seat(), bucket, (tree, wire), background)?;
        Ok(Pending::new(InFlight { shared: Arc::clone(&self.shared), seat: self.seat(), meeting }))
    }

    fn split(&self, color: u32, key: u32) -> Result<Box<dyn Communicator>> {
        let mine = [color.to_le_bytes(), key.to_le_bytes()].concat();
        let meeting = self.shared.talk(self.seat(), Talk::Split, &mine, self.deadline())?;
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b));
        let mut members: Vec<(u32, usize)> = meeting
            .posts()
            .enumerate()
            .filter(|(_, post)| number(&post[..4]) == color)
            .map(|(rank, post)| (number(&post[4..]), rank))
            .collect();
        members.sort_unstable();
        let members: Vec<usize> = members.into_iter().map(|(_, rank)| rank).collect();
        let rank = members.iter().take_while(|&&r| r != self.seat()).count() as u32;
        let child = self.shared.split(meeting.number, color, &members);
        Ok(Box::new(Endpoint::new(child, rank)))
    }
}

impl Control for Endpoint {
    fn deadline(&self) -> Deadline {
        Deadline::after(self.shared.timeout)
    }

    fn all_gather(&self, bytes: &[u8], deadline: Deadline) -> Result<Vec<Vec<u8>>> {
        let meeting = self.shared.talk(self.seat(), Talk::AllGather, bytes, deadline)?;
        Ok(meeting.posts().map(|b| b.to_vec()).collect())
    }

    fn broadcast(&self, root: u32, bytes: Option<&[u8]>, deadline: Deadline) -> Result<Vec<u8>> {
        check_broadcast(self, root, bytes)?;
        let call = Talk::Broadcast { root };
        let meeting = self.shared.talk(self.seat(), call, bytes.unwrap_or_default(), deadline)?;
        Ok(meeting.post(root as usize).map(|b| b.to_vec()).unwrap_or_default())
    }

    fn barrier(&self, deadline: Deadline) -> Result<()> {
        self.shared.talk(self.seat(), Talk::Barrier, &[], deadline).map(drop)
    }

    fn vote(&self, ballot: u8, deadline: Deadline) -> Result<u8> {
        let meeting = self.shared.talk(self.seat(), Talk::Vote, &[ballot], deadline)?;
        Ok(meeting.posts().flat_map(|b| b.iter().copied()).fold(ballot, u8::max))
    }

    fn abort(&self, reason: AbortReason) {
        self.shared.poison.set(reason, None);
    }

    fn aborted(&self) -> Option<AbortReason> {
        self.shared.poison.reason()
    }

    fn whereabouts(&self) -> &Whereabouts {
        &self.shared.seats[self.seat()].whereabouts
    }

    fn waited(&self) -> Waited {
        *lock(&self.shared.seats[self.seat()].waited)
    }
}

/// An all-reduce in flight.
struct InFlight {
    shared: Arc<Shared>,
    seat: usize,
    meeting: Arc<SumMeeting>,
}

impl Flight for InFlight {
    fn wait(self: Box<Self>, deadline: Deadline) -> Result<Bucket> {
        if !self.meeting.is_done() {
            let waited = self.shared.drive(self.seat, self.meeting.number, deadline)?;
            *lock(&self.shared.seats[self.seat].waited) += waited;
        }
        let parked = self.meeting.post(self.seat);
        parked.and_then(|parked| self.meeting.state.take(parked)).ok_or_else(|| {
            Error::Usage(format!("collective {} has no bucket to give back", self.meeting.number))
        })
    }

    fn is_done(&self) -> bool {
        self.meeting.is_done() || self.shared.poison.is_set()
    }
}
