//! Getting public data sets into a directory.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// One file that [`fetch`] left in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// The SHA-256 of its content, in hexadecimal.
    pub sha256: &'static str,
}

/// What [`fetch`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The data set's name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Where it came from; `None` when all files were in place and intact.
    pub origin: Option<String>,
    /// The files, all verified.
    pub files: Vec<FetchedFile>,
}

/// The names that [`fetch`] knows.
pub fn fetchable() -> &'static [&'static str] {
    &["mnist", "fashion-mnist"]
}

/// Puts a public data set into `dir`, verified, from the first origin that has it, or from the directory
/// `from` alone.
pub fn fetch(name: &str, dir: &Path, from: Option<&Path>) -> Result<Report> {
    Err(Error::usage(name, format!("{dir:?} {from:?}")))
}
