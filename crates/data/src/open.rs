use std::path::Path;
use std::sync::Arc;

use crate::{Error, Result, Source, embedded, idx};

/// Which part of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What is evaluated on.
    Test,
}

impl Split {
    /// The name used in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "test",
        }
    }
}

/// The names of the sets that are part of the program.
pub fn embedded_names() -> &'static [&'static str] {
    &[embedded::DIGITS]
}

/// Opens one split of a data set: an embedded set by its name, or a directory with IDX files (see
/// [`crate::fetch`]).
///
/// Fails with [`Error::UnknownSet`] when `spec` is neither, and with [`Error::Format`] or [`Error::Io`]
/// when the directory's files are missing or damaged.
pub fn open(spec: &str, split: Split) -> Result<Arc<dyn Source>> {
    if spec == embedded::DIGITS {
        return embedded::digits(split);
    }
    let dir = Path::new(spec);
    if dir.is_dir() {
        return idx::open(dir, split);
    }
    let hint = match nearest(spec, embedded_names()) {
        Some(near) => format!("; did you mean {near:?}?"),
        None if crate::fetchable().contains(&spec) => {
            format!("; `phalanx data fetch {spec}` puts it into a directory to name here")
        }
        None if spec.contains('/') => "; nothing is there".to_owned(),
        None => String::new(),
    };
    Err(Error::UnknownSet { spec: spec.to_owned(), offers: embedded_names().join(", "), hint })
}

/// The known name that `name` is probably a misspelling of.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|k| (strsim::jaro_winkler(name, k), *k));
    scored.filter(|(score, _)| *score > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}
