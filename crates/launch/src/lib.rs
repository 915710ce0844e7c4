//! How a run meets the system it runs on. At this stage: signals.

mod signals;

pub use signals::stop_on_signals;

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
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
