use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Error, Result, ShardSet, Source, embedded, idx, shards};

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

/// Opens one split of a data set: an embedded set by its name, a directory with shard sets in it (`train`, and `val`,
/// `test` or `validation`), a shard set, which is taken for whichever split is asked for, or a directory with IDX files
/// (see [`crate::fetch`]).
///
/// Fails with [`Error::UnknownSet`] when `spec` is none of them, and with [`Error::Incomplete`], [`Error::Format`] or
/// [`Error::Io`] when the directory's files are missing or damaged.
pub fn open(spec: &str, split: Split) -> Result<Arc<dyn Source>> {
    if spec == embedded::DIGITS {
        return embedded::digits(split);
    }
    let dir = Path::new(spec);
    if dir.is_dir() {
        return match shard_dir(dir, split)? {
            Some(dir) => Ok(Arc::new(ShardSet::open(&dir)?)),
            None => idx::open(dir, split),
        };
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

/// Opens the test split that belongs to the training set `spec`.
///
/// Errors as [`open`]; also when `spec` is a single shard set, which would be its own test split.
pub(crate) fn open_test_of(spec: &str) -> Result<Arc<dyn Source>> {
    if spec != embedded::DIGITS && shards::looks_like(Path::new(spec)) {
        let problem =
            format!("{spec} is one shard set without a test split: name one, or set data.validation");
        return Err(Error::usage("data.eval", problem));
    }
    open(spec, Split::Test)
}

/// The directory of a split's shard set; `None` where there are no shard sets.
fn shard_dir(dir: &Path, split: Split) -> Result<Option<PathBuf>> {
    if shards::looks_like(dir) {
        return Ok(Some(dir.to_owned()));
    }
    let names = |split| -> &[&str] {
        match split {
            Split::Train => &["train"],
            Split::Test => &["val", "test", "validation"],
        }
    };
    let find = |split| names(split).iter().map(|name| dir.join(name)).find(|dir| shards::looks_like(dir));
    if let Some(found) = find(split) {
        return Ok(Some(found));
    }
    match [Split::Train, Split::Test].into_iter().find_map(find) {
        Some(other) => {
            let problem = format!(
                "has a shard set in {} and none for the {} split, which would be in {}",
                other.file_name().unwrap_or_default().to_string_lossy(),
                split.name(),
                names(split).join(", ")
            );
            Err(Error::format(dir, problem))
        }
        None => Ok(None),
    }
}

/// The known name that `name` is probably a misspelling of.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|k| (strsim::jaro_winkler(name, k), *k));
    scored.filter(|(score, _)| *score > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}
