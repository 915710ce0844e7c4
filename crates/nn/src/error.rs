use phalanx_tensor::Shape;

/// What can go wrong with models, optimizers and schedules.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A configuration that names no model, layer or optimizer, or gives it impossible values.
    #[error("{table}: {problem}")]
    Config {
        /// The table or row, as `model.layers[3] (conv)`.
        table: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A layer that cannot take what the one before gives.
    #[error("{layer} cannot take {input}: {why}")]
    Layer {
        /// The layer, with its place in the model.
        layer: String,
        /// The shape of one sample that reaches it.
        input: Shape,
        /// The rule that was broken.
        why: String,
    },
    /// An op that failed in a layer of a model.
    #[error("layer {path}, given {input}: {cause}")]
    At {
        /// The layer's path in the model.
        path: String,
        /// The shape of the batch that reached it.
        input: Shape,
        /// What the op says: its name, the shapes and the rule.
        cause: Box<Error>,
    },
    /// Stored values that are not this parameter's.
    #[error("{name} has shape {want}, but {got} was given: the values are of another model")]
    Mismatch {
        /// The parameter, norm statistic or optimizer state.
        name: String,
        /// Its stored shape here.
        want: Shape,
        /// The shape that was given.
        got: Shape,
    },
    /// Stored values that are missing.
    #[error("there is no {name}: the values are of another model or optimizer")]
    Missing {
        /// What was looked for.
        name: String,
    },
    /// A vector of norm statistics of the wrong length.
    #[error("the norms have {want} sums, but a vector of {got} was given")]
    Statistics {
        /// [`crate::Norms::statistics_len`].
        want: usize,
        /// The vector's length.
        got: usize,
    },
    /// Two parameters of one name.
    #[error("{name} is registered twice in one model")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// From the tensor room.
    #[error(transparent)]
    Tensor(#[from] phalanx_tensor::Error),
    /// From the GPU's room.
    #[error(transparent)]
    Gpu(#[from] phalanx_gpu::Error),
    /// From the host room.
    #[error(transparent)]
    Host(#[from] phalanx_host::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn config(table: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Config { table: table.into(), problem: problem.into() }
    }

    /// The same error with the path of the innermost layer that has one.
    pub(crate) fn at(self, path: &str, input: Shape) -> Self {
        match self {
            e @ Error::At { .. } => e,
            e if path.is_empty() => e,
            e => Error::At { path: path.to_owned(), input, cause: Box::new(e) },
        }
    }

    /// Whether the user's configuration or files are at fault, not the program or the machine.
    pub fn is_usage(&self) -> bool {
        if let Error::At { cause, .. } = self {
            return cause.is_usage();
        }
        !matches!(
            self,
            Error::Tensor(_)
                | Error::Gpu(_)
                | Error::Host(_)
                | Error::Duplicate { .. }
                | Error::Statistics { .. }
        )
    }

    /// Whether a GPU's memory is full.
    pub fn is_full_device(&self) -> bool {
        match self {
            Error::At { cause, .. } => cause.is_full_device(),
            Error::Gpu(e) | Error::Tensor(phalanx_tensor::Error::Gpu(e)) => e.is_full(),
            _ => false,
        }
    }
}

/// The known word that is most like `wrong`, as a hint for a message; empty when none is like it.
pub(crate) fn nearest(wrong: &str, known: &[&str]) -> String {
    // Words are alike when most of their letter pairs are the same (Dice's coefficient).
    let pairs = |w: &str| w.as_bytes().windows(2).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let likeness = |k: &str| {
        let (a, b) = (pairs(wrong), pairs(k));
        let common = a.iter().filter(|p| b.contains(p)).count();
        2 * common * 100 / (a.len() + b.len()).max(1)
    };
    let best = known.iter().map(|k| (likeness(k), *k)).max();
    best.filter(|(l, _)| *l >= 40).map_or(String::new(), |(_, k)| format!("; did you mean {k:?}?"))
}
