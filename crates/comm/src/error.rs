use std::time::Duration;

use crate::{AbortKind, AbortReason};

/// What can go wrong between ranks. An error can be cloned because one cause is told to every waiter.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Some rank gave the run up; every wait of every rank ends with its reason.
    #[error("the run was aborted by {reason}")]
    Aborted {
        /// The first reason that any rank gave.
        reason: AbortReason,
    },
    /// Two ranks started different things where they had to start the same.
    #[error(
        "ranks are out of step at {place}: rank {left_rank} started {left}, rank {right_rank} started \
         {right}; all ranks must run the same binary, configuration and data"
    )]
    Desync {
        /// Which call it was, such as `"collective 7"`.
        place: String,
        /// One of the ranks.
        left_rank: u32,
        /// What it started.
        left: String,
        /// The rank that differs from it.
        right_rank: u32,
        /// What that one started.
        right: String,
    },
    /// A wait's deadline passed.
    #[error("rank {rank} waited {allowed:?} for {what}: {report}")]
    Deadline {
        /// The rank that waited.
        rank: u32,
        /// The time that the wait was allowed.
        allowed: Duration,
        /// What it waited for.
        what: String,
        /// The ranks that have not come.
        missing: Vec<u32>,
        /// Who has come, who has not, and what those did last.
        report: String,
    },
    /// Something that must be equal on all ranks is not.
    #[error("{what} differs between ranks: rank 0 has {first:?}, rank {rank} has {other:?}")]
    Differs {
        /// What was compared.
        what: String,
        /// The first rank that differs from rank 0.
        rank: u32,
        /// Rank 0's value.
        first: String,
        /// That rank's value.
        other: String,
    },
    /// A world that a tree of virtual shards cannot be spread over.
    #[error(
        "{shards} virtual shards cannot be spread over rank {rank} of {world}: each rank needs at least \
         one; set distributed.virtual_shards to a multiple of the world size, or start fewer ranks"
    )]
    Tree {
        /// The tree's shards.
        shards: u32,
        /// The rank that was asked about.
        rank: u32,
        /// The world's size.
        world: u32,
    },
    /// A bucket that a collective cannot take.
    #[error("bucket {id} {why}")]
    Bucket {
        /// The bucket's number.
        id: u32,
        /// What is wrong with it.
        why: String,
    },
    /// A call that makes no sense as it stands.
    #[error("{0}")]
    Usage(String),
    /// The communication thread could not be started.
    #[error("rank {rank} cannot start its communication thread: {reason}")]
    Thread {
        /// The rank.
        rank: u32,
        /// The system's answer.
        reason: String,
    },
    /// MPI has refused a call.
    #[error("{call} failed: {reason}")]
    Mpi {
        /// The function.
        call: &'static str,
        /// What MPI says.
        reason: String,
    },
    /// The side channel cannot be set up.
    #[error("the side channel {0}")]
    Side(String),
    /// Host memory.
    #[error(transparent)]
    Host(#[from] phalanx_host::Error),
}

impl Error {
    /// The sort of failure, for [`AbortReason`] and the exit code.
    pub fn kind(&self) -> AbortKind {
        match self {
            Error::Aborted { reason } => reason.kind,
            Error::Desync { .. }
            | Error::Deadline { .. }
            | Error::Differs { .. }
            | Error::Mpi { .. }
            | Error::Side(_) => AbortKind::Communication,
            Error::Tree { .. } | Error::Usage(_) => AbortKind::Usage,
            Error::Bucket { .. } | Error::Thread { .. } | Error::Host(_) => AbortKind::Other,
        }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
