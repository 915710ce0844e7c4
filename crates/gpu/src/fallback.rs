//! What a library could not do, so that a slower kernel of ours does it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::Context;

/// The names of what fell back so far.
#[derive(Default)]
pub(crate) struct Fallbacks(Mutex<BTreeSet<String>>);

impl Context {
    /// Takes note that a kernel of ours does `what`, which a library would do faster.
    pub fn note_fallback(&self, what: String) {
        self.fallen().0.lock().unwrap_or_else(PoisonError::into_inner).insert(what);
    }

    /// What a library would do faster and a kernel of ours does, by name, sorted.
    pub fn fallbacks(&self) -> Vec<String> {
        self.fallen().0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
