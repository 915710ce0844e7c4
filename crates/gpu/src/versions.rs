//! Which libraries of NVIDIA's are in use: part of what results depend on.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

static FOUND: Mutex<BTreeMap<&'static str, String>> = Mutex::new(BTreeMap::new());

/// Notes the version of a library that has been loaded.
pub(crate) fn note(library: &'static str, version: &str) {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner).insert(library, version.to_owned());
}

/// The libraries that this process has loaded so far, with the versions that they give.
pub fn versions() -> BTreeMap<&'static str, String> {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
