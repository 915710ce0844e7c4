//! Does it fit into memory? Asked before anything is allocated, so that the answer is a sentence and not the
//! system's killer.

use std::fs;
use std::path::Path;

use phalanx_nn::{ModelConfig, Summary, summarise};
use phalanx_tensor::Device;

use crate::config::Config;
use crate::machine::Machine;
use crate::setup::Samples;
use crate::{Error, Result};

/// Memory that can be had, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Have {
    /// Bytes.
    bytes: u64,
    /// What sets the limit.
    by: &'static str,
}

/// What the ranks that compute on a rank's GPU could have of it before any had taken memory, where it has one.
pub(crate) fn of_gpu(machine: &Machine) -> Option<Have> {
    machine.free.map(|bytes| Have { bytes, by: "the GPU" })
}

/// What can still be had of the memory that is computed in.
pub(crate) fn now(device: &Device) -> Result<Option<Have>> {
    match device.gpu() {
        None => Ok(available()),
        Some(gpu) => Ok(Some(Have { bytes: gpu.free_memory()?, by: "the GPU" })),
    }
}

/// What this process can still have: of the machine, and of the control groups that it is in. None where the system
/// does not tell.
pub(crate) fn available() -> Option<Have> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_machine(&text));
    let machine = machine.map(|bytes| Have { bytes, by: "the machine" });
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = of_groups(&groups, Path::new("/sys/fs/cgroup"));
    let group = group.map(|bytes| Have { bytes, by: "the control group's limit" });
    machine.into_iter().chain(group).min_by_key(|have| have.bytes)
}

/// `MemAvailable` and free swap space of /proc/meminfo, in bytes.
fn of_machine(text: &str) -> Option<u64> {
    let number = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(number("MemAvailable")? + number("SwapFree").unwrap_or(0))
}

/// The least that is left under the limits of all groups above the process, by the lines of /proc/self/cgroup. Pages
/// of files that can be dropped do not count as used.
fn of_groups(lines: &str, root: &Path) -> Option<u64> {
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // The second version of control groups, and the first: files for limit, use and their statistics.
    let versions: [(&str, &Path, [&str; 2], &str); 2] = [
        ("0::", root, ["memory.max", "memory.current"], "inactive_file "),
        (
            ":memory:",
            &root.join("memory"),
            ["memory.limit_in_bytes", "memory.usage_in_bytes"],
            "total_inactive_file ",
        ),
    ];
    let left = versions.iter().flat_map(|(mark, root, [limit, used], inactive)| {
        let path = lines.lines().find_map(|line| Some(line.split_once(mark)?.1)).unwrap_or("/");
        // In a container the path may be another than the one that is seen: then its root has the limit.
        let inner = root.join(path.trim_start_matches('/'));
        let inner = if inner.is_dir() { inner } else { root.to_path_buf() };
        let groups: Vec<_> =
            inner.ancestors().take_while(|p| p.starts_with(root)).map(Path::to_path_buf).collect();
        groups.into_iter().filter_map(move |group| {
            let (limit, used) = (number(&group.join(limit))?, number(&group.join(used)).unwrap_or(0));
            let statistics = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
            let droppable =
                statistics.lines().find_map(|l| l.strip_prefix(inactive)?.trim().parse::<u64>().ok());
            Some(limit.saturating_sub(used.saturating_sub(droppable.unwrap_or(0))))
        })
    });
    left.min()
}

/// Bytes in a few words.
fn words(bytes: u64) -> String {
    match bytes as f64 {
        n if n >= 1e9 => format!("{:.1} GB", n / 1e9),
        n => format!("{:.1} MB", n / 1e6),
    }
}

/// What some samples computed at once need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    /// Whatever the samples: parameters, gradients, the optimizer's state.
    fixed: u64,
    /// For each sample: its activations.
    sample: u64,
    /// Samples at once.
    samples: u64,
    /// Processes or threads that each need it, of the same memory.
    times: u64,
}

impl Need {
    fn of(&self, samples: u64) -> u64 {
        self.fixed.saturating_add(self.sample.saturating_mul(samples)).saturating_mul(self.times)
    }

    /// The most samples at once that fit.
    fn most(&self, have: u64) -> u64 {
        (have / self.times.max(1)).saturating_sub(self.fixed) / self.sample.max(1)
    }

    /// Fails when it is more than there is; `advice` says what to do when so many samples fit.
    fn check(&self, what: &str, have: Option<&Have>, advice: impl Fn(u64) -> String) -> Result<()> {
        let Some(have) = have.filter(|have| self.of(self.samples) > have.bytes) else { return Ok(()) };
        let who =
            if self.times > 1 { format!(", for {} ranks that share it", self.times) } else { String::new() };
        let need = format!(
            "it needs {}: {} for the parameters and what goes with them, {} for the activations of {} at once{who}",
            words(self.of(self.samples)),
            words(self.fixed.saturating_mul(self.times)),
            words(self.sample.saturating_mul(self.samples).saturating_mul(self.times)),
            if self.samples == 1 { "1 sample".into() } else { format!("{} samples", self.samples) },
        );
        let advice = match self.most(have.bytes) {
            0 => "not one sample fits: use a smaller model, smaller images, fewer ranks on a machine or more memory".into(),
            most => advice(most),
        };
        let problem = format!("{need}; {} has {} left. {advice}", have.by, words(have.bytes));
        Err(Error::Memory { what: what.to_owned(), problem })
    }
}

/// The name of a model in messages.
fn name(config: &ModelConfig) -> &str {
    config.name.as_deref().unwrap_or("the model")
}

/// Checks that a run's steps fit into what there is, with `shards` virtual shards and `ranks` of the ranks here. What
/// is counted is what must be there at once: workspaces of kernels and batches made ahead come on top.
pub(crate) fn check_training(
    config: &Config,
    samples: &Samples,
    shards: u32,
    ranks: u32,
    have: Option<&Have>,
) -> Result<()> {
    let shards = u64::from(shards.max(1));
    let of = summarise(&config.model, Some(samples.input), Some(samples.classes), 1)?;
    let copies = 2 + config.optimizer.states() as u64 + u64::from(config.ema.is_some());
    let batch = config.train.global_batch;
    let need = Need {
        fixed: of.memory.parameters.saturating_mul(copies),
        sample: config.train.precision.of_activations(of.memory.activations),
        samples: batch.div_ceil(shards),
        times: ranks.into(),
    };
    need.check(name(&config.model), have, |most| {
        format!(
            "At most {most} samples of a shard fit: set distributed.virtual_shards = {} (of a new run), or \
             train.global_batch = {}",
            batch.div_ceil(most),
            most.saturating_mul(shards)
        )
    })
}

/// Parameters, and the largest input and output of one layer for one sample: what an evaluation has at once.
fn of_inference(of: &Summary) -> (u64, u64) {
    let input = of.sample_bytes();
    let outputs: Vec<u64> =
        std::iter::once(input).chain(of.layers.iter().map(|l| l.activation_bytes)).collect();
    let most = outputs.windows(2).map(|w| w[0].saturating_add(w[1])).max().unwrap_or(input);
    (of.memory.parameters, most)
}

/// Checks that evaluations of images of `input` fit on each of `ranks` ranks here. A shard never has more of the
/// set's samples at once than its share of them.
pub(crate) fn check_evaluation(
    config: &Config,
    samples: &Samples,
    input: [usize; 3],
    [set, shards]: [u64; 2],
    ranks: u32,
    have: Option<&Have>,
) -> Result<()> {
    let (fixed, sample) = of_inference(&summarise(&config.model, Some(input), Some(samples.classes), 1)?);
    let sample = config.train.precision.of_activations(sample);
    let samples = config.eval.batch.min(set.div_ceil(shards.max(1)));
    let need = Need { fixed, sample, samples, times: ranks.into() };
    let advice = |most| format!("At most {most} fit: set eval.batch = {most}");
    need.check(name(&config.model), have, advice)
}

/// As many samples of `input` as may be computed at once, at most `wanted`. Fails when not one fits.
pub(crate) fn samples_at_once(
    model: &ModelConfig,
    input: [usize; 3],
    classes: usize,
    wanted: u64,
    have: Option<&Have>,
) -> Result<u64> {
    let (fixed, sample) = of_inference(&summarise(model, Some(input), Some(classes), 1)?);
    let need = Need { fixed, sample, samples: 1, times: 1 };
    need.check(name(model), have, |_| String::new())?;
    // Half is left for what is not counted.
    let most = have.map_or(wanted, |have| need.most(have.bytes) / 2);
    Ok(wanted.min(most).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_understood() {
        let text = "MemTotal:  16 kB\nMemAvailable:    1000 kB\nSwapFree: 24 kB\n";
        assert_eq!(of_machine(text), Some(1024 * 1024));
        assert_eq!(of_machine("MemTotal: 3 kB"), None);
        assert!(available().is_none_or(|have| have.bytes > 0));
    }

    #[test]
    fn the_narrowest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(of_groups("0::/a/b\n", root.path()), None);
        put("a/b/memory.max", "max\n");
        put("a/memory.max", "1000\n");
        put("a/memory.current", "700\n");
        put("a/memory.stat", "anon 500\ninactive_file 150\n");
        assert_eq!(of_groups("0::/a/b\n", root.path()), Some(450));
        // The path of the host is not the container's.
        put("memory.max", "90");
        assert_eq!(of_groups("0::/x/y\n", root.path()), Some(90));
        assert_eq!(of_groups("0::/a/b\n", root.path()), Some(90));
        // The first version.
        put("memory/g/memory.limit_in_bytes", "100");
        put("memory/g/memory.usage_in_bytes", "99");
        assert_eq!(of_groups("3:cpu:/\n4:memory:/g\n0::/a/b\n", root.path()), Some(1));
    }

    #[test]
    fn what_does_not_fit_says_what_would() {
        let have = Have { bytes: 10_000_000_000, by: "the machine" };
        let need = Need { fixed: 1_000_000_000, sample: 200_000_000, samples: 64, times: 2 };
        assert_eq!((need.of(64), need.most(have.bytes)), (27_600_000_000, 20));
        let e = need.check("resnet50", Some(&have), |most| format!("At most {most} fit")).unwrap_err();
        assert_eq!(
            e.to_string(),
            "resnet50 does not fit into memory: it needs 27.6 GB: 2.0 GB for the parameters and what goes with \
             them, 25.6 GB for the activations of 64 samples at once, for 2 ranks that share it; the machine has \
             10.0 GB left. At most 20 fit"
        );
        assert_eq!(e.exit_code(), 2);
        assert!(Need { samples: 20, ..need }.check("m", Some(&have), |_| String::new()).is_ok());
        assert!(need.check("m", None, |_| String::new()).is_ok());
        let none =
            Need { fixed: 9_000_000_000, ..need }.check("m", Some(&have), |_| String::new()).unwrap_err();
        assert!(none.to_string().contains("not one sample fits"), "{none}");
    }

    #[test]
    fn runs_are_checked_before_they_begin() {
        let config = |set: &[&str]| {
            let text = include_str!("../../../configs/digits.toml");
            Config::parse(text, "t", &set.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
        };
        let samples = Samples { input: [8, 8, 1], classes: 10, image: "image", label: "label" };
        let have = Have { bytes: 10_000_000_000, by: "the machine" };
        check_training(&config(&[]), &samples, 8, 2, Some(&have)).unwrap();
        let large = config(&["train.global_batch=8000000000000"]);
        let e = check_training(&large, &samples, 8, 1, Some(&have)).unwrap_err();
        assert!(e.to_string().contains("set distributed.virtual_shards ="), "{e}");
        let large = config(&["eval.batch=1000000000000000"]);
        let evaluation =
            |set, shards| check_evaluation(&large, &samples, samples.input, [set, shards], 1, Some(&have));
        let e = evaluation(1 << 40, 8).unwrap_err();
        assert!(e.to_string().contains("set eval.batch ="), "{e}");
        // There are no more samples than the set has, over all shards.
        evaluation(355, 8).unwrap();
        evaluation(1 << 40, 1 << 30).unwrap();
        evaluation(0, 8).unwrap();
        let resnet = ModelConfig::named("resnet18");
        let at_once = samples_at_once(&resnet, [224, 224, 3], 1000, 16, Some(&have)).unwrap();
        assert!((1..=16).contains(&at_once));
        let e = samples_at_once(&resnet, [3_000_000, 3_000_000, 3], 1000, 16, Some(&have)).unwrap_err();
        assert!(e.to_string().contains("not one sample fits"), "{e}");
    }

    #[test]
    fn sizes_past_all_counting_do_not_fit() {
        let text = "layers = [{ type = \"relu\" }, { type = \"global-avg-pool\" }, { type = \"linear\" }]";
        let model: ModelConfig = toml::from_str(text).unwrap();
        let of = summarise(&model, Some([1 << 32, 1 << 32, 3]), Some(10), 1).unwrap();
        assert_eq!(of_inference(&of).1, u64::MAX);
        let have = Have { bytes: 1 << 40, by: "the machine" };
        let need = Need { fixed: 0, sample: of.memory.activations, samples: 2, times: 2 };
        let e = need.check("m", Some(&have), |_| String::new()).unwrap_err();
        assert!(e.to_string().contains("not one sample fits"), "{e}");
    }
}
