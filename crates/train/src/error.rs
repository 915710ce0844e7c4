use std::path::{Path, PathBuf};

use phalanx_comm::AbortKind;

/// What can end a run; [`Error::exit_code`] is what the process then returns.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration that cannot be run; the text names the key, the value and what would be right.
    #[error("{place}: {problem}")]
    Config {
        /// The file, the `--set` argument or the key.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// A run directory that cannot be used for this run.
    #[error("{}: {problem}", path.display())]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// A checkpoint that cannot be used.
    #[error("checkpoint {}: {problem}", path.display())]
    Checkpoint {
        /// The checkpoint's directory.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// Weights that are not the model's.
    #[error("weights {}: {problem}", path.display())]
    Weights {
        /// The file or directory.
        path: PathBuf,
        /// What does not fit, and what to do.
        problem: String,
    },
    /// A file of weights that cannot be read.
    #[error("{}: {problem}", path.display())]
    WeightsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A model that does not fit into memory.
    #[error("{what} does not fit into memory: {problem}")]
    Memory {
        /// The model.
        what: String,
        /// What is needed, what is there, and what would fit.
        problem: String,
    },
    /// More records than may be that cannot be used.
    #[error(
        "{bad} of {seen} samples could not be used, and loader.bad_limit is {limit}; the last: {last}. A higher limit lets a run go \
         on; `phalanx data verify` finds damaged records of a set, and `phalanx data repair` leaves them out of runs that begin \
         after it; a run's quarantine.jsonl names those that it met in training"
    )]
    BadRecords {
        /// Samples whose records were bad, in the whole run.
        bad: u64,
        /// Samples seen.
        seen: u64,
        /// The part that may be bad.
        limit: f64,
        /// What was wrong with the last one.
        last: String,
    },
    /// A ledger that does not prove what it should.
    #[error("ledger of {}: {problem}", path.display())]
    Ledger {
        /// The run directory.
        path: PathBuf,
        /// The first thing that is wrong, and how many there are.
        problem: String,
    },
    /// A loss that is not finite.
    #[error(
        "non-finite loss ({loss}) at step {step} on rank {rank}, shard {shard}, phase {phase:?}; the last \
         checkpoint is from before it: lower the learning rate or look at the data"
    )]
    NonFinite {
        /// The loss.
        loss: f64,
        /// The step.
        step: u64,
        /// The rank that computed the shard.
        rank: u32,
        /// The virtual shard.
        shard: u32,
        /// The task's phase.
        phase: String,
    },
    /// Gradients whose norm is not finite.
    #[error(
        "the norm of the gradients is not finite ({norm}) at step {step}, phase {phase:?}; the last checkpoint is from \
         before it: lower the learning rate or look at the data"
    )]
    NonFiniteGradient {
        /// The norm.
        norm: f64,
        /// The step.
        step: u64,
        /// The task's phase.
        phase: String,
    },
    /// A parameter that is not finite; it is not written to a checkpoint.
    #[error(
        "parameter {name} is not finite after {step} steps; no checkpoint of it is kept: the last one is from before"
    )]
    NonFiniteModel {
        /// The parameter.
        name: String,
        /// Steps done.
        step: u64,
    },
    /// Ranks that no longer have the same model.
    #[error(
        "replicas differ after {step} steps: {tensor} on {} is not what it is on the other {}{}; all were equal \
         after {since} steps. Hardware fails, or the task is not the same on all ranks: go on from a \
         checkpoint of step {since} or before",
        ranks.join(", "), *world as usize - ranks.len(),
        if 2 * ranks.len() < *world as usize { "" } else { ", which are no majority" }
    )]
    Diverged {
        /// The first parameter, or running statistic, that differs.
        tensor: String,
        /// The ranks that are not with the majority, with their machines.
        ranks: Vec<String>,
        /// Ranks in all.
        world: u32,
        /// Steps done.
        step: u64,
        /// When all were last known to be equal.
        since: u64,
    },
    /// A rank panicked.
    #[error("rank {rank} panicked: {message}")]
    Panic {
        /// The rank.
        rank: u32,
        /// The panic's message and place.
        message: String,
    },
    /// The system refused an operation on a file.
    #[error("cannot {doing} {}: {cause}", path.display())]
    Io {
        /// `read`, `write`, `create` and the like.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// A batch, state or model that does not fit the task.
    #[error("task {task}: {problem}")]
    Task {
        /// The task's name.
        task: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// From the tensor room.
    #[error(transparent)]
    Tensor(#[from] phalanx_tensor::Error),
    /// From the nn room.
    #[error(transparent)]
    Nn(#[from] phalanx_nn::Error),
    /// From the comm room.
    #[error(transparent)]
    Comm(#[from] phalanx_comm::Error),
    /// From the data room.
    #[error(transparent)]
    Data(#[from] phalanx_data::Error),
    /// From the GPU's room.
    #[error(transparent)]
    Gpu(#[from] phalanx_gpu::Error),
    /// From the host room.
    #[error(transparent)]
    Host(#[from] phalanx_host::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn config(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Config { place: place.into(), problem: problem.into() }
    }

    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Error::Io { doing, path, cause }
    }

    /// Whether a GPU's memory is full.
    pub(crate) fn is_full_device(&self) -> bool {
        match self {
            Error::Gpu(e) | Error::Tensor(phalanx_tensor::Error::Gpu(e)) => e.is_full(),
            Error::Nn(e) => e.is_full_device(),
            _ => false,
        }
    }

    /// The sort of failure, as peers are told it.
    pub fn kind(&self) -> AbortKind {
        use phalanx_tensor::Error as T;
        match self {
            Error::Config { .. }
            | Error::RunDir { .. }
            | Error::Checkpoint { .. }
            | Error::Weights { .. }
            | Error::Memory { .. }
            | Error::Nn(_) => AbortKind::Usage,
            Error::Host(phalanx_host::Error::Isa { .. }) => AbortKind::Usage,
            Error::Tensor(T::DeviceUnavailable { .. }) => AbortKind::Usage,
            Error::Ledger { .. }
            | Error::BadRecords { .. }
            | Error::WeightsFile { .. }
            | Error::Tensor(T::Index { .. }) => AbortKind::Data,
            Error::Data(e) => match e.kind() {
                phalanx_data::Kind::Usage => AbortKind::Usage,
                phalanx_data::Kind::Data => AbortKind::Data,
                phalanx_data::Kind::System => AbortKind::Other,
            },
            Error::NonFinite { .. } | Error::NonFiniteGradient { .. } | Error::NonFiniteModel { .. } => {
                AbortKind::Numerics
            }
            Error::Diverged { .. } | Error::Gpu(phalanx_gpu::Error::Collective { .. }) => {
                AbortKind::Communication
            }
            Error::Panic { .. } => AbortKind::Panic,
            Error::Comm(e) => e.kind(),
            Error::Io { .. } | Error::Task { .. } | Error::Tensor(_) | Error::Gpu(_) | Error::Host(_) => {
                AbortKind::Other
            }
        }
    }

    /// The process's exit code: 2 bad usage, 3 bad data, 4 communication, 5 numerics, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        self.kind().exit_code()
    }
}
