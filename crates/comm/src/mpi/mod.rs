//! Ranks as processes of an MPI job.
//!
//! One thread owns MPI ([`owner`]); everybody else hands it tasks. Ranks of one machine sum in a
//! shared-memory window ([`peer_window`]) with the kernel that thread ranks use, and never touch MPI for it;
//! ranks of several machines sum within the machine first, then exchange pieces by non-blocking messages,
//! straight from and into the arena ([`peer_exchange`]). The tree is the same, so are the bits. Device memory
//! never goes to MPI.
//!
//! Nobody waits for the dead: every wait has a deadline on this side of MPI, the side channel
//! ([`crate::side`]) tells every process of a failure, and on that path nobody says goodbye to MPI, which
//! could wait for a process that is gone: [`exit_now`] ends the process.

mod call;
mod control;
mod ffi;
mod join;
mod layout;
mod owner;
mod peer_exchange;
mod peer_window;
mod sums;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use phalanx_host::{Arena, Isa};

use crate::side::Side;
use crate::signal::{Poison, lock};
use crate::{
    AbortKind, AbortReason, Bucket, Collective, Collectives, Communicator, Control, Deadline, Error, Event,
    Flight, Fold, Locality, Member, Overlap, Pending, Result, Tree, Waited, Whereabouts,
};
use call::{Head, SumCall, Talk};
use control::Meeting;
use ffi::Comm;
use layout::Plan;
use owner::{Owner, Slot};
use peer_exchange::{Arrivals, Exchange, Net};
use sums::{Sum, Sums, late};

pub use ffi::{exit_now, library};
pub use join::{Options, join};

/// How this rank's sums are made.
enum Transport {
    /// All ranks are this machine's.
    Shared(Arc<Sums>),
    /// Ranks are on several machines.
    Net(Arc<Net>),
    /// There is no other rank.
    Alone,
}

/// One rank's end of an MPI world.
pub struct World {
    rank: u32,
    /// The ranks' numbers in the job, for messages.
    ids: Arc<[u32]>,
    locality: Locality,
    timeout: Arc<Mutex<Duration>>,
    isa: Isa,
    poison: Arc<Poison>,
    whereabouts: Arc<Whereabouts>,
    side: Arc<Side>,
    owner: Owner,
    comm: Comm,
    control: Comm,
    node: Comm,
    library: Arc<str>,
    transport: Transport,
    /// Whether some machine's ranks have shared memory: windows are then made in meetings of all.
    windows: bool,
    talks: AtomicU64,
    sums: AtomicU64,
    folds: Mutex<HashMap<Tree, Arc<Fold>>>,
    plans: Mutex<HashMap<Tree, Arc<Plan>>>,
    waited: Arc<Mutex<Waited>>,
    /// Set once MPI has ended, and its windows with it.
    closed: AtomicBool,
    /// Started by the first background sum in shared memory.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World(rank {} of {} over MPI)", self.rank, self.ids.len())
    }
}

impl World {
    /// What the MPI library calls itself.
    pub fn library(&self) -> &str {
        &self.library
    }

    /// The side channel, for the report of a failure.
    pub fn side(&self) -> &Side {
        &self.side
    }

    /// Changes what [`Control::deadline`] allows, and after how much silence a rank counts as lost.
    pub fn set_timeout(&self, timeout: Duration) {
        *lock(&self.timeout) = timeout;
        self.side.set_deadline(timeout);
    }

    /// Ends MPI in good order, together with all other ranks: nothing is left to be done by any of them.
    /// Arenas of this world must be gone; without that MPI is left alone and the error says so.
    pub fn close(&self) -> Result<()> {
        self.barrier(self.deadline())?;
        self.side.leave();
        if let Some(board) = self.board()
            && board.arenas_in_use()
        {
            return Err(Error::Usage("an arena of the world is still in use at its end".into()));
        }
        self.leave();
        self.closed.store(true, Ordering::Release);
        self.owner.finalize(self.ids[self.rank as usize], self.deadline())
    }

    fn board(&self) -> Option<&peer_window::Board> {
        match &self.transport {
            Transport::Shared(sums) => Some(&sums.board),
            Transport::Net(net) => net.board.as_deref(),
            Transport::Alone => None,
        }
    }

    /// Stops the thread in the background.
    fn leave(&self) {
        if let Transport::Shared(sums) = &self.transport {
            sums.leave();
        }
        if let Some(thread) = lock(&self.thread).take() {
            // It looks for the end whenever it wakes.
            let _ = thread.join();
        }
    }

    fn start_thread(&self, sums: &Arc<Sums>) -> Result<()> {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let sums = sums.clone();
            let started = thread::Builder::new()
                .name(format!("comm-{}", self.rank))
                .spawn(move || sums.serve())
                .map_err(|e| Error::Thread { rank: self.rank, reason: e.to_string() })?;
            *thread = Some(started);
        }
        Ok(())
    }

    /// A value kept by tree.
    fn cached<T>(
        map: &Mutex<HashMap<Tree, Arc<T>>>,
        tree: Tree,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        let mut map = lock(map);
        if let Some(known) = map.get(&tree) {
            return Ok(known.clone());
        }
        let made = Arc::new(make()?);
        map.insert(tree, made.clone());
        Ok(made)
    }

    /// Makes a control call of all ranks.
    fn talk(&self, talk: Talk, bytes: Vec<u8>, deadline: Deadline) -> Result<Vec<Vec<u8>>> {
        self.check()?;
        let number = self.talks.fetch_add(1, Ordering::Relaxed);
        self.whereabouts.begin_call("control call", number, move || talk.to_string());
        let result = match &self.transport {
            Transport::Shared(sums) => self.talk_here(&sums.board, talk, number, &bytes, deadline),
            _ => Ok(None),
        };
        let result = match result {
            Ok(None) => self.talk_afar(talk, number, bytes, deadline),
            Ok(Some(all)) => Ok(all),
            Err(e) => Err(e),
        };
        self.failing(result.inspect(|_| self.whereabouts.end_call("control call", number)))
    }

    /// A control call among processes of one machine; None when it has more to say than they can there.
    fn talk_here(
        &self,
        board: &peer_window::Board,
        talk: Talk,
        number: u64,
        bytes: &[u8],
        deadline: Deadline,
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let head = Head::new(number, talk, bytes);
        board.say(number, &head.to_bytes());
        let ranks = 0..board.world();
        let here = || ranks.clone().all(|r| board.has_said(r, number));
        board.wait(true, deadline, || here() || self.poison.is_set());
        if !here() {
            self.check()?;
            let missing = ranks.filter(|r| !board.has_said(*r, number)).map(|r| self.ids[r]).collect();
            let me = self.ids[self.rank as usize];
            return Err(late(me, deadline, format!("control call {number} ({talk})"), missing));
        }
        let heads: Vec<u8> = ranks.flat_map(|r| board.said(r, number)).collect();
        let heads = control::check_heads(&heads, &head, self.rank as usize, &self.ids)?;
        Ok(control::short(&heads, talk))
    }

    /// A control call by messages.
    fn talk_afar(&self, talk: Talk, number: u64, bytes: Vec<u8>, deadline: Deadline) -> Result<Vec<Vec<u8>>> {
        let slot = Slot::new(&self.poison);
        let me = self.rank;
        self.owner.submit(Meeting::new(
            self.control,
            me,
            self.ids.clone(),
            number,
            talk,
            bytes,
            slot.clone(),
        ));
        let what = format!("control call {number} ({talk})");
        self.owner.outcome(&slot, &what, self.ids[me as usize], deadline)
    }

    fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Usage("the world is closed".into()));
        }
        self.poison.error().map_or(Ok(()), Err)
    }

    /// Tells the world of an error of this rank's communication; an error that was told to it stays that.
    fn failing<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| {
            match &e {
                Error::Aborted { .. } | Error::Usage(_) => return e,
                _ => self.fail(&e),
            }
            // The first cause counts.
            self.poison.error().unwrap_or(e)
        })
    }

    fn fail(&self, e: &Error) {
        let reason = AbortReason::new(self.ids[self.rank as usize], e.kind(), e.to_string());
        self.poison.set(reason.clone(), Some(e.clone()));
        self.side.abort(reason);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            let id = self.ids[self.rank as usize];
            self.abort(AbortReason::new(id, AbortKind::Panic, "the rank's thread panicked"));
        }
        if !self.closed.load(Ordering::Acquire) {
            self.leave();
        }
    }
}

impl Member for World {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn world(&self) -> u32 {
        self.ids.len() as u32
    }

    fn name(&self) -> &'static str {
        "mpi"
    }

    fn locality(&self) -> Locality {
        self.locality
    }
}

impl Collectives for World {
    fn alloc(&self, bytes: usize) -> Result<Arena> {
        if !self.windows {
            return Ok(Arena::zeroed(bytes)?);
        }
        // All ranks of the machine must find that there is room before one of them asks for it: the library
        // waits for ever for a rank that was refused.
        let asked = self.talk(Talk::Alloc, (bytes as u64).to_le_bytes().to_vec(), self.deadline())?;
        let start = self.rank - self.locality.local_rank;
        let mine = asked.iter().skip(start as usize).take(self.locality.local_world as usize);
        let number = |b: &Vec<u8>| b.as_slice().try_into().map_or(0, u64::from_le_bytes);
        let total = mine.map(|b| number(b) as usize + (16 << 10)).sum();
        let Some(board) = self.board() else {
            self.agree(Ok(()))?;
            return Ok(Arena::zeroed(bytes)?);
        };
        self.agree(peer_window::check_room(total))?;
        let (node, rank) = (self.node, self.ids[self.rank as usize]);
        let made = self
            .owner
            .call("a shared-memory window", rank, self.deadline(), move |mpi| mpi.shared_window(node, bytes));
        let arena = board.add_room(self.failing(made)?, bytes)?;
        // Pages are taken now, while they are known to be there.
        arena.write(0..bytes)?.bytes_mut().fill(0);
        Ok(arena)
    }

    fn start(&self, bucket: Bucket, what: Collective, after: Event, overlap: Overlap) -> Result<Pending> {
        let Collective::AllReduce { tree, wire } = what;
        let Event::Ready = after;
        self.check()?;
        let call = SumCall::new(&bucket, tree, wire);
        let need = tree.nodes_of(self.rank, self.world())?.len();
        if bucket.parts().len() != need || need > peer_window::MOST_PARTS {
            let (have, v) = (bucket.parts().len(), tree.shards());
            let (rank, world) = (self.rank, self.world());
            let why = format!("has {have} parts; rank {rank} of {world} holds {need} nodes of {v} shards");
            return Err(Error::Bucket { id: call.id, why });
        }
        Ok(match &self.transport {
            Transport::Alone => self.alone(bucket, call),
            Transport::Shared(sums) => {
                let fold = Self::cached(&self.folds, tree, || tree.fold(self.world()))?;
                let background = overlap == Overlap::Background;
                if background {
                    self.start_thread(sums)?;
                }
                let sum = sums.start(bucket, call, fold, background)?;
                let end = self.end();
                Pending::new(InWindow { sums: sums.clone(), sum, end })
            }
            Transport::Net(net) => {
                let plan = Self::cached(&self.plans, tree, || net.layout.plan(tree, self.rank))?;
                let number = self.sums.fetch_add(1, Ordering::Relaxed);
                self.whereabouts.begin_call("collective", number, move || call.to_string());
                let (slot, arrivals) = (Slot::new(&self.poison), Arc::new(Arrivals::default()));
                let task =
                    Exchange::new(net.clone(), plan, call, number, bucket, arrivals.clone(), slot.clone());
                self.owner.submit(task);
                Pending::new(OnWire { slot, arrivals, number, call, end: self.end() })
            }
        })
    }

    fn split(&self, color: u32, key: u32) -> Result<Box<dyn Communicator>> {
        let mine = [color.to_le_bytes(), key.to_le_bytes()].concat();
        let all = self.talk(Talk::Split, mine, self.deadline())?;
        let number = |b: &[u8]| b.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b));
        let mut members: Vec<(u32, u32)> = all
            .iter()
            .zip(self.ids.iter())
            .filter(|(b, _)| number(&b[..4]) == color)
            .map(|(b, id)| (number(&b[4..]), *id))
            .collect();
        members.sort_unstable();
        let ids = members.into_iter().map(|(_, id)| id).collect();
        let part = self.failing(join::part(self, ids, color, key))?;
        Ok(Box::new(part))
    }
}

impl World {
    /// What a flight needs of its world.
    fn end(&self) -> End {
        End {
            rank: self.ids[self.rank as usize],
            poison: self.poison.clone(),
            side: self.side.clone(),
            whereabouts: self.whereabouts.clone(),
            waited: self.waited.clone(),
        }
    }

    /// The sum of a rank that is alone: its one part is the whole tree's.
    fn alone(&self, bucket: Bucket, call: SumCall) -> Pending {
        let number = self.sums.fetch_add(1, Ordering::Relaxed);
        self.whereabouts.begin_call("collective", number, move || call.to_string());
        self.whereabouts.end_call("collective", number);
        Pending::new(Done(bucket))
    }

    /// Fails on all ranks when it has failed on one.
    fn agree(&self, mine: Result<()>) -> Result<()> {
        let text = mine.as_ref().err().map_or(String::new(), ToString::to_string);
        let all = self.talk(Talk::AllGather, text.into_bytes(), self.deadline())?;
        mine?;
        let other = all.iter().zip(self.ids.iter()).find(|(text, _)| !text.is_empty());
        other.map_or(Ok(()), |(text, rank)| {
            let message = String::from_utf8_lossy(text).into_owned();
            Err(Error::Aborted { reason: AbortReason::new(*rank, AbortKind::Communication, message) })
        })
    }
}

impl Control for World {
    fn deadline(&self) -> Deadline {
        Deadline::after(*lock(&self.timeout))
    }

    fn all_gather(&self, bytes: &[u8], deadline: Deadline) -> Result<Vec<Vec<u8>>> {
        self.talk(Talk::AllGather, bytes.to_vec(), deadline)
    }

    fn broadcast(&self, root: u32, bytes: Option<&[u8]>, deadline: Deadline) -> Result<Vec<u8>> {
        crate::api::check_broadcast(self, root, bytes)?;
        let all = self.talk(Talk::Broadcast { root }, bytes.unwrap_or_default().to_vec(), deadline)?;
        Ok(all.into_iter().next().unwrap_or_default())
    }

    fn barrier(&self, deadline: Deadline) -> Result<()> {
        self.talk(Talk::Barrier, Vec::new(), deadline).map(drop)
    }

    fn vote(&self, ballot: u8, deadline: Deadline) -> Result<u8> {
        let all = self.talk(Talk::Vote, vec![ballot], deadline)?;
        Ok(all.iter().flat_map(|b| b.iter().copied()).fold(ballot, u8::max))
    }

    fn abort(&self, reason: AbortReason) {
        self.side.abort(reason);
    }

    fn aborted(&self) -> Option<AbortReason> {
        self.poison.reason()
    }

    fn whereabouts(&self) -> &Whereabouts {
        &self.whereabouts
    }

    fn waited(&self) -> Waited {
        *lock(&self.waited)
    }
}

/// What outlives a call: a flight's way to its world.
struct End {
    rank: u32,
    poison: Arc<Poison>,
    side: Arc<Side>,
    whereabouts: Arc<Whereabouts>,
    waited: Arc<Mutex<Waited>>,
}

impl End {
    /// Tells the world of an error that this rank has found first.
    fn failed(&self, e: Error) -> Error {
        if !matches!(e, Error::Aborted { .. }) {
            let reason = AbortReason::new(self.rank, e.kind(), e.to_string());
            self.poison.set(reason.clone(), Some(e.clone()));
            self.side.abort(reason);
        }
        self.poison.error().unwrap_or(e)
    }
}

/// A sum that is done.
struct Done(Bucket);

impl Flight for Done {
    fn wait(self: Box<Self>, _: Deadline) -> Result<Bucket> {
        Ok(self.0)
    }

    fn is_done(&self) -> bool {
        true
    }
}

/// A sum in shared memory.
struct InWindow {
    sums: Arc<Sums>,
    sum: Arc<Sum>,
    end: End,
}

impl Flight for InWindow {
    fn wait(self: Box<Self>, deadline: Deadline) -> Result<Bucket> {
        if !self.sum.is_over() {
            let driven = self.sums.drive(self.sum.number, true, deadline);
            let waited = driven.map_err(|e| self.end.failed(e))?;
            *lock(&self.end.waited) += waited;
        }
        let number = self.sum.number;
        self.sum.take().ok_or_else(|| Error::Usage(format!("collective {number} has no bucket to give back")))
    }

    fn is_done(&self) -> bool {
        self.sum.is_over() || self.end.poison.is_set()
    }
}

/// A sum that crosses the network.
struct OnWire {
    slot: Arc<Slot<Bucket>>,
    arrivals: Arc<Arrivals>,
    number: u64,
    call: SumCall,
    end: End,
}

impl Flight for OnWire {
    fn wait(self: Box<Self>, deadline: Deadline) -> Result<Bucket> {
        let begun = Instant::now();
        let result = self.slot.wait(&self.end.poison, deadline).unwrap_or_else(|| {
            Err(self.end.poison.error().unwrap_or_else(|| {
                let missing = lock(&self.arrivals.missing).clone();
                late(self.end.rank, deadline, format!("collective {} ({})", self.number, self.call), missing)
            }))
        });
        let bucket = result.map_err(|e| self.end.failed(e))?;
        let all = begun.elapsed();
        let came = lock(&self.arrivals.at).map_or(Duration::ZERO, |at| at.saturating_duration_since(begun));
        let for_ranks = came.min(all);
        *lock(&self.end.waited) += Waited { for_ranks, for_work: all - for_ranks };
        self.end.whereabouts.end_call("collective", self.number);
        Ok(bucket)
    }

    fn is_done(&self) -> bool {
        self.slot.is_full() || self.end.poison.is_set()
    }
}
