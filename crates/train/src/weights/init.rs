//! `[init]`: a run that begins with somebody's weights instead of random ones.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{LoadError, Origin, heads, load, read};
use crate::config::Config;
use crate::engine::Engine;
use crate::setup::Samples;
use crate::{Error, Result};

/// The `[init]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitConfig {
    /// A file of weights (safetensors, or `.pth` of PyTorch), a checkpoint, or a run directory for its newest one.
    pub weights: PathBuf,
    /// Beginnings of names that are not taken from there and stay random: `["fc."]` for a new head.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<String>,
}

/// What a run began with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// Where the weights are from.
    #[serde(flatten)]
    pub origin: Origin,
    /// What of the model is not from there.
    pub new: Vec<String>,
}

impl fmt::Display for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin.path.display())?;
        match &self.new[..] {
            [] => Ok(()),
            new => write!(f, ", but for {}", new.join(", ")),
        }
    }
}

impl Begun {
    /// Checks that what the run began with is still what stands in its place; it may be gone, since a
    /// checkpoint has all.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let Origin { path, blake3 } = &self.origin;
        if !path.exists() {
            return Ok(());
        }
        let now = read(path)?.origin.blake3;
        if now == *blake3 {
            return Ok(());
        }
        let short = |hash: &str| hash[..hash.len().min(16)].to_owned();
        let problem = format!(
            "it is not what this run began with: its BLAKE3 hash was {}… then and is {}… now",
            short(blake3),
            short(&now)
        );
        Err(Error::Weights { path: path.clone(), problem })
    }
}

impl Engine {
    /// Takes the configured weights; for `samples` the model was built. On rank 0 alone: the others get its model.
    pub(crate) fn begin_with(
        &mut self,
        init: &InitConfig,
        config: &Config,
        samples: &Samples,
    ) -> Result<Begun> {
        let weights = read(&init.weights)?;
        let loaded = load(&self.params, Some(&mut self.norms), &weights.arrays, &init.skip);
        let heads = || heads(&config.model, samples.input, samples.classes);
        let new = loaded.map_err(|e| misfit(&init.weights, e, heads()))?;
        Ok(Begun { origin: weights.origin, new })
    }
}

/// What to tell of weights that do not fit a model with these heads.
pub(crate) fn misfit(path: &Path, e: LoadError, heads: Result<Vec<(String, usize)>>) -> Error {
    let advice = match (&e, heads) {
        (LoadError::Misfit(m), Ok(heads)) => m.other_classes(&heads),
        _ => None,
    };
    let problem = match (e, advice) {
        (LoadError::Nn(e), _) => return e.into(),
        (e @ LoadError::Skip(_), _) => return Error::config("init", e.to_string()),
        (e, Some(skip)) => format!(
            "it was trained for another number of classes: {e}. To begin with a new head, set init.skip = {skip:?}"
        ),
        (e, None) => format!("it is of another model: {e}"),
    };
    Error::Weights { path: path.into(), problem }
}
