use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::loader::{BadRecords, Threads};
use crate::open::open_test_of;
use crate::{
    Balance, Error, Limits, OrderKind, Pixels, Result, Source, Split, Stage, Transform, balanced, few_shots,
    open, split_validation,
};

/// The `[data]` table.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
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
    /// How many samples of each class are trained on; all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots: Option<u64>,
    /// How classes of different sizes are made equal in training, after `validation` and `shots`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    /// Where each node copies the files that it will read: `off`, `auto` or a directory.
    #[serde(default, skip_serializing_if = "Stage::is_off")]
    pub stage: Stage,
    /// The most that is copied there, in 10⁹ bytes; what there is room for, when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_limit_gb: Option<f64>,
}

impl DataConfig {
    /// Opens the training and the evaluation set. With `validation` above 0 both are parts of the
    /// training split, cut by class and by `seed`; so are the few `shots` and the `balance` of training.
    pub fn open(&self, seed: u64) -> Result<(Arc<dyn Source>, Arc<dyn Source>)> {
        let train = open(&self.train, Split::Train)?;
        let (mut train, eval) = match &self.eval {
            _ if self.validation != 0.0 => split_validation(&train, self.validation, seed)?,
            Some(eval) => (train, open(eval, Split::Test)?),
            None => (train, open_test_of(&self.train)?),
        };
        if let Some(shots) = self.shots {
            train = few_shots(&train, shots, seed)?;
        }
        if let Some(balance) = self.balance {
            train = balanced(&train, balance, seed)?;
        }
        Ok((train, eval))
    }

    /// The most bytes that are staged.
    ///
    /// Fails when it is no number above 0.
    pub fn stage_limit(&self) -> Result<Option<u64>> {
        match self.stage_limit_gb {
            Some(gb) if !(gb > 0.0 && gb.is_finite()) => {
                Err(Error::usage("data.stage_limit_gb", format!("is {gb}, and must be above 0")))
            }
            limit => Ok(limit.map(|gb| (gb * 1e9) as u64)),
        }
    }
}

/// The `[loader]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderConfig {
    /// Loader threads, or `auto`; 0 makes every batch in the caller's thread when it is asked for. What is in a batch does
    /// not depend on it.
    pub threads: Threads,
    /// How samples are shuffled: `full`, or `{ blocked = { block = 1024, window = 16 } }`.
    #[serde(skip_serializing_if = "OrderKind::is_full")]
    pub order: OrderKind,
    /// What becomes of a sample that cannot be read, decoded or transformed.
    #[serde(skip_serializing_if = "BadRecords::is_fail")]
    pub bad_records: BadRecords,
    /// The part of the samples seen, in [0, 1], that may be bad where that is no failure by itself: looked at after each epoch
    /// and evaluation, and from the eleventh bad one on after each step.
    pub bad_limit: f64,
    /// What is done to the images, in this order. Without a `normalise` row the default one comes last. Evaluation leaves
    /// random rows out, but for what they do to an image's size.
    pub transforms: Vec<Transform>,
    /// What is done in evaluation instead, where that should be something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_transforms: Option<Vec<Transform>>,
    /// What images are delivered as: `bytes` leaves the normalisation to the device, where the rows allow it, and last
    /// rows that crop, shift or mirror left and right.
    pub pixels: Pixels,
    /// What an image file may cost.
    pub limits: Limits,
    /// Shard batches made ahead of the one asked for; at least one a thread.
    pub prefetch: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        LoaderConfig {
            threads: Threads::Count(2),
            order: OrderKind::Full,
            bad_records: BadRecords::Fail,
            bad_limit: 0.01,
            transforms: Vec::new(),
            eval_transforms: None,
            pixels: Pixels::default(),
            limits: Limits::default(),
            prefetch: 4,
        }
    }
}

impl LoaderConfig {
    /// Fails on values that cannot be, whatever the set.
    pub fn check(&self) -> Result<()> {
        match (0.0..=1.0).contains(&self.bad_limit) {
            true => Ok(()),
            false => {
                Err(Error::usage("loader.bad_limit", format!("is {}, and must be in [0, 1]", self.bad_limit)))
            }
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
        assert_eq!((c.threads, c.transforms.len()), (Threads::Count(0), 1));
        let again: LoaderConfig = toml::from_str(&toml::to_string(&c).unwrap()).unwrap();
        assert_eq!(again, c);
        let text = "threads = \"auto\"\norder = { blocked = { block = 64 } }\nbad_records = \"substitute\"\nbad_limit = 0.5";
        let c: LoaderConfig = toml::from_str(text).unwrap();
        assert_eq!((c.threads, c.bad_records), (Threads::Auto(None), BadRecords::Substitute));
        assert_eq!(toml::from_str::<LoaderConfig>(&toml::to_string(&c).unwrap()).unwrap(), c);
        assert!(c.check().is_ok() && LoaderConfig { bad_limit: f64::NAN, ..c }.check().is_err());
        for wrong in ["threads = \"all\"", "threads = -1", "threads = 1.5", "bad_records = \"skip\""] {
            assert!(toml::from_str::<LoaderConfig>(wrong).is_err(), "{wrong}");
        }
        // What a run without the new keys was, it still is.
        let plain = toml::to_string(&LoaderConfig::default()).unwrap();
        assert!(!plain.contains("order") && !plain.contains("bad_records"), "{plain}");
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

    #[test]
    fn training_alone_is_balanced_or_cut_to_few_shots() {
        let config =
            |text: &str| toml::from_str::<DataConfig>(&format!("train = \"digits\"\n{text}")).unwrap();
        let sizes = |c: &DataConfig| c.open(0).map(|(train, eval)| (train.len(), eval.len())).unwrap();
        let (all, test) = sizes(&config(""));
        assert_eq!(sizes(&config("shots = 3")), (30, test));
        let (over, _) = sizes(&config("balance = \"oversample\""));
        let (under, _) = sizes(&config("balance = \"undersample\"\nvalidation = 0.5"));
        assert!(over > all && over % 10 == 0 && under < all / 2 && under % 10 == 0, "{over} {under}");
        let c = config("stage = \"auto\"\nstage_limit_gb = 1.5");
        assert_eq!((&c.stage, c.stage_limit().unwrap()), (&Stage::Auto, Some(1_500_000_000)));
        assert!(config("stage_limit_gb = 0.0").stage_limit().is_err());
        assert_eq!(toml::from_str::<DataConfig>(&toml::to_string(&c).unwrap()).unwrap(), c);
    }
}
