use std::fmt;
use std::time::Duration;

use phalanx_host::Arena;

use crate::{AbortReason, Bucket, Deadline, Error, Result, Tree, Whereabouts, Wire};

/// Where a rank sits among the machines of its world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Locality {
    /// The machine's number, `0..nodes`, by the first rank on each.
    pub node: u32,
    /// Machines.
    pub nodes: u32,
    /// This rank's number among those on its machine.
    pub local_rank: u32,
    /// Ranks on this machine.
    pub local_world: u32,
}

/// What a rank has spent waiting for others since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waited {
    /// For ranks that had not come to a collective yet: stragglers.
    pub for_ranks: Duration,
    /// For the collective itself, once all had come.
    pub for_work: Duration,
}

impl std::ops::AddAssign for Waited {
    fn add_assign(&mut self, other: Self) {
        self.for_ranks += other.for_ranks;
        self.for_work += other.for_work;
    }
}

/// A place in a world of ranks.
pub trait Member: Send + Sync {
    /// This rank's number, `0..world`.
    fn rank(&self) -> u32;
    /// The number of ranks.
    fn world(&self) -> u32;
    /// The transport's name: `"threads"`, `"mpi"`, `"nccl"`.
    fn name(&self) -> &'static str;
    /// Where this rank sits among the machines.
    fn locality(&self) -> Locality;
}

/// What a collective does with a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Collective {
    /// Sums the partial sums of all nodes over the fixed tree; every rank gets the total in part 0.
    /// The bits depend on the shards' values and on the tree alone, not on the number of ranks.
    AllReduce {
        /// The tree over the virtual shards.
        tree: Tree,
        /// What every sum of the tree is rounded to, so that it can travel in fewer bytes.
        wire: Wire,
    },
}

/// What must have happened before a collective may read the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The bucket's memory is ready now.
    Ready,
}

/// Who does a collective's work on this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// The communication thread (or stream), while the caller goes on.
    Background,
    /// The caller, which is about to wait: its own thread does the work and no other is woken.
    Caller,
}

/// Bulk operations over all ranks. Every rank must start the same operations in the same order; they
/// complete in that order.
pub trait Collectives: Member {
    /// `bytes` zeroed bytes that this transport moves without a copy. All ranks must call it, in the same
    /// order; they may ask for different sizes.
    fn alloc(&self, bytes: usize) -> Result<Arena>;

    /// Moves `bucket` into an operation that begins once `after` has happened, and returns at once.
    ///
    /// Fails with [`Error::Bucket`] when the number of parts is not the number of nodes that the rank
    /// holds, with [`Error::Tree`] when the tree has fewer shards than there are ranks, with
    /// [`Error::Desync`] when a rank has already started something else in this place, and with
    /// [`Error::Aborted`]. After an error the bucket is gone: give the run up by [`Control::abort`].
    fn start(&self, bucket: Bucket, what: Collective, after: Event, overlap: Overlap) -> Result<Pending>;

    /// The communicator of all ranks that give the same `color`, ordered by `key`, then by rank. It
    /// shares its fate with this one: an abort in either ends both. All ranks must call it.
    fn split(&self, color: u32, key: u32) -> Result<Box<dyn Communicator>>;
}

/// Small messages over all ranks, each a meeting of all of them: every rank must make the same calls in
/// the same order. They are not ordered against [`Collectives::start`].
///
/// All of them fail with [`Error::Aborted`], [`Error::Desync`] or, when `deadline` passes,
/// [`Error::Deadline`], which also aborts the run.
pub trait Control: Member {
    /// The world's time-out, counted from now.
    fn deadline(&self) -> Deadline;
    /// Every rank's bytes, by rank. They may differ in length.
    fn all_gather(&self, bytes: &[u8], deadline: Deadline) -> Result<Vec<Vec<u8>>>;
    /// The bytes that `root` gives. The root must give some, and only the root: else [`Error::Usage`].
    fn broadcast(&self, root: u32, bytes: Option<&[u8]>, deadline: Deadline) -> Result<Vec<u8>>;
    /// Returns when all ranks have called it.
    fn barrier(&self, deadline: Deadline) -> Result<()>;
    /// The largest of all ranks' ballots, so that all take one decision at one step.
    fn vote(&self, ballot: u8, deadline: Deadline) -> Result<u8>;
    /// Gives the run up: every wait of every rank, here and in all communicators split from one world,
    /// returns [`Error::Aborted`] with the first reason given. Never blocks.
    fn abort(&self, reason: AbortReason);
    /// The reason, once some rank has aborted.
    fn aborted(&self) -> Option<AbortReason>;
    /// Where this rank writes what it is doing, for reports of a failure.
    fn whereabouts(&self) -> &Whereabouts;
    /// What this rank's waits for collectives ([`Pending::wait`]) have taken so far.
    fn waited(&self) -> Waited;
}

/// Both halves of a transport.
pub trait Communicator: Collectives + Control {}
impl<T: Collectives + Control + ?Sized> Communicator for T {}

/// An operation in flight, as a transport sees it; the inside of [`Pending`].
pub trait Flight: Send {
    /// As [`Pending::wait`].
    fn wait(self: Box<Self>, deadline: Deadline) -> Result<Bucket>;
    /// As [`Pending::is_done`].
    fn is_done(&self) -> bool;
}

/// An operation in flight, which holds its bucket. Dropping it gives the bucket up, not the operation:
/// the other ranks still get their result. Its ranges stay borrowed until the operation is done and this
/// rank starts or awaits another one.
#[must_use = "the bucket comes back from `wait` only"]
pub struct Pending(Box<dyn Flight>);

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending(done: {})", self.is_done())
    }
}

impl Pending {
    /// For transports: an operation in flight.
    pub fn new(flight: impl Flight + 'static) -> Self {
        Pending(Box::new(flight))
    }

    /// Waits for the result, lending this thread to the work. Fails with [`Error::Aborted`],
    /// [`Error::Desync`] or [`Error::Deadline`]; the last aborts the run. After an error the bucket's
    /// ranges stay borrowed until no peer can touch them.
    pub fn wait(self, deadline: Deadline) -> Result<Bucket> {
        self.0.wait(deadline)
    }

    /// Whether [`Pending::wait`] would return at once.
    pub fn is_done(&self) -> bool {
        self.0.is_done()
    }
}

/// The root of a broadcast gives bytes, and nobody else.
pub(crate) fn check_broadcast(me: &(impl Member + ?Sized), root: u32, bytes: Option<&[u8]>) -> Result<()> {
    let (rank, world) = (me.rank(), me.world());
    if root < world && bytes.is_some() == (rank == root) {
        return Ok(());
    }
    let gave = if bytes.is_some() { "gives bytes" } else { "gives nothing" };
    Err(Error::Usage(format!(
        "rank {rank} of {world} {gave} to a broadcast from rank {root}; the root gives"
    )))
}

/// Checks that `value` is the same on all ranks: a fingerprint, the hash of a plan. Every rank gets the
/// same [`Error::Differs`], which names the first rank that differs from rank 0 and both values.
pub fn check_same(
    control: &(impl Control + ?Sized),
    what: &str,
    value: &str,
    deadline: Deadline,
) -> Result<()> {
    let all = control.all_gather(value.as_bytes(), deadline)?;
    let Some((rank, other)) = all.iter().enumerate().find(|(_, v)| **v != all[0]) else { return Ok(()) };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Err(Error::Differs {
        what: what.to_string(),
        rank: rank as u32,
        first: text(&all[0]),
        other: text(other),
    })
}
