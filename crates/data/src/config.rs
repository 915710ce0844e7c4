use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::open::open_test_of;
use crate::{Limits, Pixels, Result, Source, Split, Transform, open, split_validation};

/// The `[data]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The training set: an embedded set's name, or a directory.
    pub train: String,
    /// The evaluation set, likewise; the training set's own test split when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<String>,
    /// The part of the training split, in [0, 1), that is held out and evaluated on instead of the
    /// evaluation set: for choosing settings without touching the test split.
    #[serde(default)]
    pub validation: f64,
}

impl DataConfig {
    /// Opens the training and the evaluation set. With `validation` above 0 both are parts of the
    /// training split, cut by class and by `seed`.
    pub fn open(&self, seed: u64) -> Result<(Arc<dyn Source>, Arc<dyn Source>)> {
        let train = open(&self.train, Split::Train)?;
        if self.validation != 0.0 {
            return split_validation(&train, self.validation, seed);
        }
        let eval = match &self.eval {
            Some(eval) => open(eval, Split::Test)?,
            None => open_test_of(&self.train)?,
        };
        Ok((train, eval))
    }
}

/// The `[loader]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderConfig {
    /// Loader threads; 0 makes every batch in the caller's thread when it is asked for.
    pub threads: usize,
    /// What is done to the images, in this order. Without a `normalise` row the default one comes last. Evaluation leaves
    /// random rows out, but for what they do to an image's size.
    pub transforms: Vec<Transform>,
    /// What is done in evaluation instead, where that should be something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_transforms: Option<Vec<Transform>>,
    /// What images are delivered as: `bytes` leaves the normalisation to the device, where the rows allow it.
    pub pixels: Pixels,
    /// What an image file may cost.
    pub limits: Limits,
    /// Shard batches made ahead of the one asked for; at least one a thread.
    pub prefetch: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        LoaderConfig {
            threads: 2,
            transforms: Vec::new(),
            eval_transforms: None,
            pixels: Pixels::default(),
            limits: Limits::default(),
            prefetch: 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_defaults_and_refuse_unknown_keys() {
        let c: LoaderConfig = toml::from_str("").unwrap();
        assert_eq!(c, LoaderConfig::default());
        let c: LoaderConfig =
            toml::from_str("threads = 0\ntransforms = [{ name = \"flip\", p = 0.25 }]").unwrap();
        assert_eq!((c.threads, c.transforms.len()), (0, 1));
        let again: LoaderConfig = toml::from_str(&toml::to_string(&c).unwrap()).unwrap();
        assert_eq!(again, c);
        assert!(toml::from_str::<LoaderConfig>("thread = 1").is_err());
        assert!(toml::from_str::<DataConfig>("train = \"digits\"\nvalid = 0.1").is_err());
        assert!(toml::from_str::<DataConfig>("eval = \"digits\"").is_err());
    }

    #[test]
    fn validation_cuts_the_training_split() {
        let config = |text: &str| toml::from_str::<DataConfig>(text).unwrap();
        let (train, eval) = config("train = \"digits\"").open(0).unwrap();
        let (part, held) = config("train = \"digits\"\nvalidation = 0.1").open(0).unwrap();
        assert_eq!(part.len() + held.len(), train.len());
        assert!(held.len().abs_diff(train.len() / 10) < 10 && !eval.is_empty());
        assert!(config("train = \"digits\"\nvalidation = 1.0").open(0).is_err());
    }
}
