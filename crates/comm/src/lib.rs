//! How ranks work together: collectives over gradient buckets, small control messages, deadlines and
//! aborts.
//!
//! Nothing here knows tensors or files. A [`Bucket`] is a token of ranges of a
//! [`phalanx_host::Arena`]: it moves into a collective and comes back from [`Pending::wait`], so a
//! range in flight cannot be touched by accident.
//!
//! * [`Tree`] plans the sum over virtual shards, so that a run's bits do not depend on the number of
//!   ranks. It is pure; every transport follows it.
//! * [`Collectives`] and [`Control`] are what a transport offers; [`threads`] is the one in which
//!   ranks are threads of a process.
//! * Every wait takes a [`Deadline`]. [`Control::abort`] poisons the whole family of communicators:
//!   every wait of every rank then returns [`Error::Aborted`].

mod abort;
mod api;
pub mod bench;
mod bucket;
mod deadline;
mod error;
#[cfg(feature = "mpi")]
pub mod mpi;
mod peer_sum;
pub mod side;
mod signal;
pub mod threads;
mod tree;
mod whereabouts;
mod wire;

pub use abort::{AbortKind, AbortReason};
pub use api::{
    Collective, Collectives, Communicator, Control, Event, Flight, Locality, Member, Overlap, Pending,
    Waited, check_same,
};
pub use bucket::Bucket;
pub use deadline::Deadline;
pub use error::{Error, Result};
pub use tree::{Fold, FoldStep, Merge, Node, Operand, Schedule, Step, Tree};
pub use whereabouts::{Activity, Call, Whereabouts};
pub use wire::Wire;
