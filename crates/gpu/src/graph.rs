use crate::Context;

/// A graph of device work, to be launched as a whole.
#[derive(Debug)]
pub struct Graph {}

/// A capture that is going on.
#[derive(Debug)]
pub struct Capture {}

impl Context {
    /// Whether the compute stream is being captured.
    pub fn is_capturing(&self) -> bool {
        false
    }
}
