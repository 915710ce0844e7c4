//! The configuration file: TOML, one table a component, unknown keys refused with the nearest known one.

mod text;

use std::path::Path;

use phalanx_comm::Wire;
pub use phalanx_data::DataConfig;
use phalanx_data::{LoaderConfig, Threads};
use phalanx_nn::{EmaConfig, ModelConfig, OptimizerConfig, ScheduleConfig};
use serde::{Deserialize, Serialize};
use text::line_of;
pub(crate) use text::{apply, explain};

use crate::engine::{Clip, CudaGraph};
pub use crate::precision::Precision;
use crate::task::LossConfig;
use crate::weights::InitConfig;
use crate::{Error, Result, table};

/// A run's configuration. Each component's table is that component's own type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The root of all random streams.
    #[serde(default)]
    pub seed: u64,
    /// What is trained.
    pub model: ModelConfig,
    /// The weights that it begins with instead of random ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitConfig>,
    /// What it is trained on.
    pub data: DataConfig,
    /// How samples become batches.
    #[serde(default)]
    pub loader: LoaderConfig,
    /// What the model's outputs are compared with the labels by; cross-entropy when left out.
    #[serde(default, skip_serializing_if = "LossConfig::is_default")]
    pub loss: LossConfig,
    /// How gradients change parameters.
    pub optimizer: OptimizerConfig,
    /// How the learning rate runs.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// The moving average of the weights that is kept, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaConfig>,
    /// How long, and in which steps.
    pub train: TrainConfig,
    /// How the work is spread.
    #[serde(default)]
    pub distributed: DistributedConfig,
    /// What computes.
    #[serde(default)]
    pub compute: ComputeConfig,
    /// What is kept.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// When the evaluation set is looked at.
    #[serde(default)]
    pub eval: EvalConfig,
    /// What is told.
    #[serde(default)]
    pub log: LogConfig,
}

/// More threads of one kind than this in one rank are a slip of the pen, and would exhaust the system.
const MOST_THREADS: usize = 1024;

/// The `[train]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the training set.
    pub epochs: u64,
    /// Samples in one step over all ranks.
    pub global_batch: u64,
    /// The type of activations; parameters and gradients are always f32.
    #[serde(default)]
    pub precision: Precision,
    /// Whether a step on a GPU is recorded as a CUDA graph and launched as a whole, which spares small networks most of their
    /// time: `auto` where it can be, `on`, or `off`. Numbers do not depend on it.
    #[serde(default, skip_serializing_if = "CudaGraph::is_auto")]
    pub cuda_graph: CudaGraph,
    /// The largest norm of the averaged gradients of all parameters together; larger ones are scaled down to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// The largest magnitude of an averaged gradient; larger ones are cut to it, after `clip_norm` where both are
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_value: Option<f64>,
}

impl TrainConfig {
    pub(crate) fn clip(&self) -> Clip {
        Clip { norm: self.clip_norm, value: self.clip_value }
    }
}

/// The `[distributed]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistributedConfig {
    /// V: the pieces that a global batch is cut into, fixed at a run's first start; its world size when
    /// left out. A run with V shards can use any number of ranks up to V and gives the same bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_shards: Option<u32>,
    /// Bits that do not depend on the number of ranks, nor change from run to run. The CPU always gives them; a GPU
    /// pays for them with some speed.
    pub exact: bool,
    /// Most megabytes (10⁶ bytes) in one bucket of gradients; when left out, what `bench allreduce --tune`
    /// has found best for such a world, or 25. Numbers do not depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket_mb: Option<f64>,
    /// What sums of gradients are rounded to, so that they can travel in fewer bytes between machines.
    #[serde(skip_serializing_if = "WireType::is_f32")]
    pub wire: WireType,
    /// Seconds that any wait on another rank may take, and that a rank may be silent.
    pub deadline_s: f64,
    /// Steps between comparisons of all ranks' parameters; 0 means never.
    pub audit_every_steps: u64,
    /// The address at which rank 0's machine listens for the other ranks' signs of life; by default the one
    /// by which the machines know each other's names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<std::net::IpAddr>,
    /// Whether ranks of one machine sum in shared memory; else they send messages.
    pub shared_memory: bool,
}

/// The types in which sums of gradients can travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireType {
    /// Single precision: nothing is rounded.
    #[default]
    F32,
    /// The upper half of a single-precision number.
    Bf16,
    /// Half precision, scaled to the global batch.
    F16,
}

impl WireType {
    fn is_f32(&self) -> bool {
        *self == WireType::F32
    }

    /// The wire for gradients of steps of `global_batch` samples.
    pub fn wire(self, global_batch: u64) -> Wire {
        match self {
            WireType::F32 => Wire::F32,
            WireType::Bf16 => Wire::Bf16,
            WireType::F16 => Wire::f16_for(global_batch),
        }
    }
}

impl Default for DistributedConfig {
    fn default() -> Self {
        DistributedConfig {
            virtual_shards: None,
            exact: true,
            bucket_mb: None,
            wire: WireType::F32,
            deadline_s: 120.0,
            audit_every_steps: 1000,
            bind: None,
            shared_memory: true,
        }
    }
}

/// The `[compute]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ComputeConfig {
    /// Compute threads of each rank; 0 shares the machine's cores out among the ranks on it.
    pub threads: usize,
    /// `auto`, or the instruction set to use: `portable`, `avx2`, `avx512`.
    pub isa: String,
}

impl Default for ComputeConfig {
    fn default() -> Self {
        ComputeConfig { threads: 0, isa: "auto".into() }
    }
}

/// The `[checkpoint]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 means none but at epoch ends and at the end.
    pub every_steps: u64,
    /// Epochs between checkpoints; 0 means none but by steps and at the end.
    pub every_epochs: u64,
    /// Checkpoints kept, at least one.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig { every_steps: 0, every_epochs: 1, keep: 3 }
    }
}

/// The `[eval]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Epochs between evaluations; 0 means at the end only.
    pub every_epochs: u64,
    /// Samples computed at once. The result depends on it no more than by rounding.
    pub batch: u64,
    /// Whether the averaged weights are evaluated: as long as there are any, when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_ema: Option<bool>,
}

impl Default for EvalConfig {
    fn default() -> Self {
        EvalConfig { every_epochs: 1, batch: 250, use_ema: None }
    }
}

/// The `[log]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Steps between lines of metrics; 0 means epochs only.
    pub every_steps: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { every_steps: 10 }
    }
}

impl Config {
    /// Reads a file and applies `table.key=value` settings to it.
    pub fn load(path: &Path, settings: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::config(path.display().to_string(), format!("cannot read the configuration: {e}"))
        })?;
        Config::parse(&text, &path.display().to_string(), settings)
    }

    /// As [`Config::load`] for a text; `place` names it in errors.
    pub fn parse(text: &str, place: &str, settings: &[String]) -> Result<Self> {
        let in_file = |e: &toml::de::Error| {
            let line = e.span().map(|span| line_of(text, span.start));
            Error::config(line.map_or(place.to_owned(), |n| format!("{place}, line {n}")), explain(e))
        };
        let config = if settings.is_empty() {
            toml::from_str::<Config>(text).map_err(|e| in_file(&e))?
        } else {
            let mut table: toml::Table = toml::from_str(text).map_err(|e| in_file(&e))?;
            for setting in settings {
                apply(&mut table, setting)?;
            }
            table::read::<Config>(&table).map_err(|e| {
                // A fault of the file itself is told with its line, as without settings.
                match toml::from_str::<Config>(text) {
                    Err(plain) if plain.message() == e.message() => in_file(&plain),
                    _ => {
                        Error::config(format!("{place} with --set {}", settings.join(" --set ")), explain(&e))
                    }
                }
            })?
        };
        config.check(place)?;
        Ok(config)
    }

    /// The configuration as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::config("config", format!("cannot be written as TOML: {e}")))
    }

    fn check(&self, place: &str) -> Result<()> {
        let positive = |key: &str, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::config(place, format!("{key} is {value}; it must be above 0"))),
        };
        positive("train.global_batch", self.train.global_batch as f64)?;
        positive("train.epochs", self.train.epochs as f64)?;
        positive("train.clip_norm", self.train.clip_norm.unwrap_or(1.0))?;
        positive("train.clip_value", self.train.clip_value.unwrap_or(1.0))?;
        positive("distributed.bucket_mb", self.distributed.bucket_mb.unwrap_or(1.0))?;
        positive("distributed.deadline_s", self.distributed.deadline_s)?;
        positive("checkpoint.keep", self.checkpoint.keep as f64)?;
        positive("eval.batch", self.eval.batch as f64)?;
        if self.eval.use_ema == Some(true) && self.ema.is_none() {
            let problem = "eval.use_ema is true, but there is no [ema] table: no average is kept";
            return Err(Error::config(place, problem));
        }
        if let Some(v) = self.distributed.virtual_shards {
            positive("distributed.virtual_shards", f64::from(v))?;
        }
        let most_seconds = 1e9;
        if self.distributed.deadline_s > most_seconds {
            return Err(Error::config(place, format!("distributed.deadline_s is above {most_seconds}")));
        }
        self.loader.check()?;
        self.data.stage_limit()?;
        let loader = match self.loader.threads {
            Threads::Count(n) => n,
            Threads::Auto(_) => 0,
        };
        for (key, threads) in [("loader.threads", loader), ("compute.threads", self.compute.threads)] {
            if threads > MOST_THREADS {
                let problem = format!("{key} is {threads}; it must not be above {MOST_THREADS}");
                return Err(Error::config(place, problem));
            }
        }
        Ok(())
    }

    /// Whether evaluations use the averaged weights.
    pub fn evaluates_ema(&self) -> bool {
        self.ema.is_some() && self.eval.use_ema != Some(false)
    }

    /// The part that fixes a run's numbers, as text: two configurations with equal identities are the
    /// same run. What may change between a run's starts (its length, where and how often it reports,
    /// how it is spread over threads and ranks) is left out.
    pub fn identity(&self) -> Result<toml::Table> {
        let mut table = toml::Table::try_from(self)
            .map_err(|e| Error::config("config", format!("cannot be written as TOML: {e}")))?;
        for (name, key) in [
            ("train", "epochs"),
            ("train", "cuda_graph"),
            ("loader", "threads"),
            ("loader", "prefetch"),
            ("loader", "bad_records"),
            ("loader", "bad_limit"),
            ("loader", "limits"),
            ("loader", "pixels"),
            ("data", "stage"),
            ("data", "stage_limit_gb"),
            ("compute", "threads"),
            ("compute", "isa"),
            ("distributed", "bucket_mb"),
            ("distributed", "deadline_s"),
            ("distributed", "audit_every_steps"),
            ("distributed", "bind"),
            ("distributed", "shared_memory"),
            ("distributed", "virtual_shards"),
        ] {
            if let Some(toml::Value::Table(t)) = table.get_mut(name) {
                t.remove(key);
            }
        }
        for name in ["checkpoint", "log", "eval"] {
            table.remove(name);
        }
        Ok(table)
    }
}

/// The first key in which two identities are of different runs. Where the data lie is none of them: sets are told from
/// others by what is in them ([`crate::fingerprint::of_sets`]).
pub(crate) fn other_run(a: &toml::Table, b: &toml::Table) -> Option<(String, String, String)> {
    let without_places = |identity: &toml::Table| {
        let mut identity = identity.clone();
        if let Some(toml::Value::Table(data)) = identity.get_mut("data") {
            for place in ["train", "eval"] {
                data.remove(place);
            }
        }
        identity
    };
    first_difference(&without_places(a), &without_places(b))
}

/// The first key, as a dotted path, in which two tables differ, with both values.
pub(crate) fn first_difference(a: &toml::Table, b: &toml::Table) -> Option<(String, String, String)> {
    let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter().find_map(|key| difference_at(key.clone(), a.get(key), b.get(key)))
}

fn difference_at(
    path: String,
    a: Option<&toml::Value>,
    b: Option<&toml::Value>,
) -> Option<(String, String, String)> {
    use toml::Value::{Array, Table};
    match (a, b) {
        (x, y) if x == y => None,
        (Some(Table(x)), Some(Table(y))) => {
            first_difference(x, y).map(|(key, x, y)| (format!("{path}.{key}"), x, y))
        }
        (Some(Array(x)), Some(Array(y))) if x.len() == y.len() => {
            let mut pairs = x.iter().zip(y).enumerate();
            pairs.find_map(|(i, (x, y))| difference_at(format!("{path}[{i}]"), Some(x), Some(y)))
        }
        (x, y) => Some((path, brief(x), brief(y))),
    }
}

/// A value in a few words: what is long is told by its size.
fn brief(value: Option<&toml::Value>) -> String {
    match value {
        None => "unset".into(),
        Some(toml::Value::Array(rows)) if rows.iter().any(toml::Value::is_table) => {
            format!("{} rows", rows.len())
        }
        Some(v) => v.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        seed = 3
        [model]
        name = "lenet5"
        [data]
        train = "digits"
        [optimizer]
        name = "sgd"
        lr = 0.1
        [train]
        epochs = 2
        global_batch = 32
    "#;

    /// Settings that change no number of a run whose data are sound.
    const SPREAD: [&str; 5] = [
        "train.epochs=9",
        "loader.threads=auto",
        "loader.bad_records=substitute",
        "data.stage=auto",
        "data.stage_limit_gb=2.5",
    ];

    fn text_of(text: &str, settings: &[&str]) -> String {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        Config::parse(text, "x.toml", &settings).unwrap_err().to_string()
    }

    #[test]
    fn a_small_file_gets_defaults_and_round_trips() {
        let c = Config::parse(SMALL, "x.toml", &[]).unwrap();
        assert_eq!((c.seed, c.train.epochs, c.checkpoint.keep, c.distributed.bucket_mb), (3, 2, 3, None));
        assert_eq!(Config::parse(&c.to_toml().unwrap(), "y", &[]).unwrap(), c);
    }

    #[test]
    fn unknown_keys_name_the_nearest_known_one_and_the_line() {
        let text = text_of(&SMALL.replace("epochs", "epoch"), &[]);
        assert!(text.contains("did you mean `epochs`") && text.contains("line 1"), "{text}");
        let text = text_of(&format!("{SMALL}\n[chekpoint]\nkeep = 1"), &[]);
        assert!(text.contains("did you mean `checkpoint`"), "{text}");
        let text = text_of(SMALL, &["train.global_bach=3"]);
        assert!(text.contains("did you mean `global_batch`") && text.contains("--set"), "{text}");
        let text = text_of(SMALL, &["optimizer.name=adem"]);
        assert!(text.contains("optimizer") && text.contains("did you mean `adam`?"), "{text}");
        // A fault of the file is told with its line, whatever is set besides.
        let text = text_of(&SMALL.replace("epochs", "epoch"), &["seed=4"]);
        assert!(text.starts_with("x.toml, line 11: ") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn wrong_types_signs_and_garbage_are_refused() {
        for (from, to, say) in [
            ("epochs = 2", "epochs = \"two\"", "line"),
            ("epochs = 2", "epochs = 0", "train.epochs is 0"),
            ("epochs = 2", "epochs = -1", "line"),
            ("global_batch = 32", "global_batch = 0", "train.global_batch"),
            ("[train]", "[train", "line 10"),
            ("epochs = 2", "epochs = 1.5", "a whole number"),
            ("seed = 3", "seed = 3\nloader.threads = 99999", "loader.threads is 99999"),
        ] {
            let text = text_of(&SMALL.replace(from, to), &[]);
            assert!(text.contains(say), "{to}: {text}");
        }
        for (set, say) in [
            ("distributed.virtual_shards=0", "virtual_shards is 0"),
            ("distributed.deadline_s=nan", "deadline_s"),
            ("distributed.bucket_mb=0", "bucket_mb"),
            ("distributed.wire=fp16", "did you mean `f16`"),
            ("distributed.bind=eth0", "IP address"),
            ("train.epochs", "table.key=value"),
            ("seed.x=1", "not a table"),
            ("loader.threads=all", "\"auto\""),
            ("loader.bad_limit=2", "loader.bad_limit"),
            ("loader.bad_records=skip", "unknown value"),
            ("loader.order=ful", "did you mean `full`"),
            ("data.stage_limit_gb=-1", "stage_limit_gb"),
            (".x=1", "empty key"),
        ] {
            let text = text_of(SMALL, &[set]);
            assert!(text.contains(say), "{set}: {text}");
        }
    }

    #[test]
    fn settings_reach_every_type_of_value() {
        let set = ["seed=9", "data.train=mnist dir", "schedule.name=\"cosine\"", "eval.batch=7"];
        let c = Config::parse(SMALL, "x", &set.map(String::from)).unwrap();
        assert_eq!((c.seed, c.data.train.as_str(), c.eval.batch), (9, "mnist dir", 7));
    }

    #[test]
    fn identities_ignore_what_may_change_and_name_what_may_not() {
        let a = Config::parse(SMALL, "x", &[]).unwrap();
        let same = Config::parse(SMALL, "x", &SPREAD.map(String::from)).unwrap();
        assert_eq!(first_difference(&a.identity().unwrap(), &same.identity().unwrap()), None);
        let other = Config::parse(SMALL, "x", &["optimizer.lr=0.2".to_owned()]).unwrap();
        let (key, x, y) = first_difference(&a.identity().unwrap(), &other.identity().unwrap()).unwrap();
        assert_eq!((key.as_str(), x.as_str(), y.as_str()), ("optimizer.lr", "0.1", "0.2"));
        let elsewhere = Config::parse(SMALL, "x", &["data.train=other/place".to_owned()]).unwrap();
        assert_eq!(other_run(&a.identity().unwrap(), &elsewhere.identity().unwrap()), None);
        let part = Config::parse(SMALL, "x", &["data.shots=3".to_owned()]).unwrap();
        let (key, ..) = other_run(&a.identity().unwrap(), &part.identity().unwrap()).unwrap();
        assert_eq!(key, "data.shots");
        let rows = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
        let (a, b) = (rows("l = [{ out = 1 }, { out = 2 }]"), rows("l = [{ out = 1 }, { out = 3 }]"));
        assert_eq!(first_difference(&a, &b), Some(("l[1].out".into(), "2".into(), "3".into())));
        let shorter = first_difference(&a, &rows("l = [{ out = 1 }]"));
        assert_eq!(shorter, Some(("l".into(), "2 rows".into(), "1 rows".into())));
    }
}
