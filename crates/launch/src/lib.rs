//! How a run meets the system it runs on: which launcher has started it, which signals reach
//! it, and how its ranks are started.

mod launch;
mod nodelist;
mod place;
mod signals;

pub use launch::{Facts, Line, On, Request};
pub use nodelist::{compress, expand, tasks_per_node};
pub use place::{Launcher, Place};
pub use signals::{stop_on_signals, tell_on_signals};

/// What can go wrong between a run and its system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A signal's handler could not be installed.
    #[error("cannot handle signal {signal}: {cause}")]
    Signal {
        /// The signal's number.
        signal: i32,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// A launcher's variable that makes no sense.
    #[error("the environment's {name}={value:?} makes no sense: {why}")]
    Variable {
        /// The variable.
        name: String,
        /// Its value.
        value: String,
        /// Why not.
        why: String,
    },
    /// Two launchers that do not agree.
    #[error(
        "the environment contradicts itself: {left} is {left_value}, but {right} is {right_value}; unset the \
         variables of the launcher that has not started this process"
    )]
    Conflict {
        /// One variable.
        left: String,
        /// Its value.
        left_value: u32,
        /// The other.
        right: String,
        /// Its value.
        right_value: u32,
    },
    /// Processes that were started together and would not be one world.
    #[error("{0}")]
    Singletons(String),
    /// What was asked of `phalanx launch` cannot be done.
    #[error("{0}")]
    Launch(String),
    /// A program that should start the ranks, and does not itself start.
    #[error("cannot start {program}: {cause}{hint}; tried: {line}")]
    Start {
        /// The program.
        program: String,
        /// The system's answer.
        cause: std::io::Error,
        /// How to get it, when it is not there.
        hint: &'static str,
        /// The whole line.
        line: String,
    },
    /// The started program cannot be waited for.
    #[error("cannot wait for {program}: {cause}")]
    Wait {
        /// The program.
        program: String,
        /// The system's answer.
        cause: std::io::Error,
    },
}

impl Error {
    /// The process's exit code: bad usage.
    pub fn exit_code(&self) -> u8 {
        2
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
