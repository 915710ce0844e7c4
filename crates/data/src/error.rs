use std::path::PathBuf;

/// Whose fault an error is; the binary turns it into the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The caller asked for what cannot be: exit code 2.
    Usage,
    /// The data are missing, damaged or unreadable: exit code 3.
    Data,
    /// The system cannot do what is asked of it, as on a full disk: exit code 1.
    System,
}

/// What can go wrong with data sets, transforms and the loader.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name or directory that is no data set.
    #[error("{spec:?} is neither an embedded data set ({offers}) nor a directory{hint}")]
    UnknownSet {
        /// What was asked for.
        spec: String,
        /// The embedded sets, comma separated.
        offers: String,
        /// What was probably meant, or how to get it; empty when nothing is near.
        hint: String,
    },
    /// An argument or a configuration value out of its range.
    #[error("{what}: {problem}")]
    Usage {
        /// The argument or key.
        what: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// A file that is not what its name or its header says.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file, or the place an embedded set stands for.
        path: PathBuf,
        /// What was found, where, and what was expected.
        problem: String,
    },
    /// A shard set whose writing did not come to its end, or of which a part is gone.
    #[error("{} is incomplete: {problem}", path.display())]
    Incomplete {
        /// The set's directory.
        path: PathBuf,
        /// What is not there.
        problem: String,
    },
    /// A label outside the classes of its set.
    #[error("sample {sample} of {set} has label {label}, but the set has {classes} classes (0..{classes})")]
    Label {
        /// The set's name.
        set: String,
        /// The sample's id.
        sample: u64,
        /// The label found.
        label: i64,
        /// The number of classes.
        classes: usize,
    },
    /// A sample that does not exist.
    #[error("sample {sample} was asked of {set}, which has {len} samples")]
    NoSample {
        /// The set's name.
        set: String,
        /// The id asked for.
        sample: u64,
        /// The number of samples.
        len: u64,
    },
    /// A batch or a record that does not have what is asked of it.
    #[error("field {field:?}: {problem}")]
    Field {
        /// The field's name.
        field: String,
        /// What is there and what was wanted.
        problem: String,
    },
    /// Anything that went wrong while the loader made one sample.
    #[error("sample {sample} of {set}: {cause}")]
    Sample {
        /// The set's name.
        set: String,
        /// The sample's id.
        sample: u64,
        /// What went wrong.
        cause: Box<Error>,
    },
    /// An image file that took longer to decode than it may.
    #[error("decoding it took {took} ms, and loader.limits.decode_ms is {most}")]
    Slow {
        /// Milliseconds.
        took: u64,
        /// What they may be.
        most: u64,
    },
    /// A panic in a loader thread, caught.
    #[error("loader thread panicked: {message}")]
    Panic {
        /// The panic's message.
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
    /// No origin could give a data set.
    #[error("cannot fetch {name} into {}; tried:{}\n{hint}", dir.display(), list(attempts))]
    Fetch {
        /// The data set's name.
        name: String,
        /// Where it should have gone.
        dir: PathBuf,
        /// Every origin that was tried, with its failure.
        attempts: Vec<String>,
        /// What the user can do.
        hint: String,
    },
    /// Host memory.
    #[error(transparent)]
    Host(#[from] phalanx_host::Error),
}

fn list(attempts: &[String]) -> String {
    attempts.iter().map(|a| format!("\n  - {a}")).collect()
}

impl Error {
    /// Whether the caller or the data are at fault.
    pub fn kind(&self) -> Kind {
        match self {
            Error::UnknownSet { .. } | Error::Usage { .. } => Kind::Usage,
            Error::Sample { cause, .. } => cause.kind(),
            // What cannot be read is missing or damaged; what cannot be written is no fault of the data.
            Error::Io { doing, .. } if *doing != "read" => Kind::System,
            _ => Kind::Data,
        }
    }

    pub(crate) fn usage(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Usage { what: what.into(), problem: problem.into() }
    }

    pub(crate) fn format(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Error::Format { path: path.into(), problem: problem.into() }
    }

    pub(crate) fn incomplete(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Error::Incomplete { path: path.into(), problem: problem.into() }
    }

    pub(crate) fn field(field: &str, problem: impl Into<String>) -> Self {
        Error::Field { field: field.to_owned(), problem: problem.into() }
    }

    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |cause| Error::Io { doing, path, cause }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
