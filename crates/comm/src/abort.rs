use std::fmt;

use serde::{Deserialize, Serialize};

/// What sort of failure ends a run. The order of the variants is part of no contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AbortKind {
    /// Bad usage or configuration.
    Usage,
    /// Data that is missing, damaged or does not match its manifest.
    Data,
    /// A peer is lost, a deadline has passed, or the ranks no longer do the same thing.
    Communication,
    /// A loss or a gradient is not finite.
    Numerics,
    /// A rank panicked: a bug.
    Panic,
    /// Anything else, such as a full disk.
    Other,
}

impl AbortKind {
    /// The exit code of a run that ended so: 2 usage, 3 data, 4 communication (a rank
    /// that panicked is a lost peer), 5 numerics, 1 for the rest.
    pub const fn exit_code(self) -> u8 {
        match self {
            AbortKind::Usage => 2,
            AbortKind::Data => 3,
            AbortKind::Communication | AbortKind::Panic => 4,
            AbortKind::Numerics => 5,
            AbortKind::Other => 1,
        }
    }

    /// The name used in messages.
    pub const fn name(self) -> &'static str {
        match self {
            AbortKind::Usage => "usage",
            AbortKind::Data => "data",
            AbortKind::Communication => "communication",
            AbortKind::Numerics => "numerics",
            AbortKind::Panic => "panic",
            AbortKind::Other => "error",
        }
    }
}

impl fmt::Display for AbortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a run was aborted: the first reason given by any rank, the same on all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortReason {
    /// The rank (of the whole world, also when it spoke in a part split from it) that failed.
    pub rank: u32,
    /// What sort of failure it was.
    pub kind: AbortKind,
    /// The training step, where one was running.
    pub step: Option<u64>,
    /// What happened, for people.
    pub message: String,
}

impl AbortReason {
    /// A reason outside of any step.
    pub fn new(rank: u32, kind: AbortKind, message: impl Into<String>) -> Self {
        AbortReason { rank, kind, step: None, message: message.into() }
    }

    /// The same reason, at `step`.
    pub fn at_step(self, step: u64) -> Self {
        AbortReason { step: Some(step), ..self }
    }
}

impl fmt::Display for AbortReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}", self.rank)?;
        if let Some(step) = self.step {
            write!(f, " at step {step}")?;
        }
        write!(f, ": {}: {}", self.kind, self.message)
    }
}
