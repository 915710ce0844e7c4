//! The ledger: which samples each rank consumed at each step, and the proof that each was consumed
//! exactly once an epoch.
//!
//! Every start of a run is an *attempt* and has a file for each of its ranks, `ledger/attempt-0001-
//! rank-00000.jsonl`: a header, then a line for each step and virtual shard. A run that was killed
//! after its last checkpoint repeats some steps in the next attempt; the earlier attempt's lines of
//! those steps are superseded, as its work on them was. What is left is the history that the
//! parameters have seen.

mod proof;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use phalanx_data::{Loaded, OrderKind, WorkItem, substitutes};
pub use proof::{Proof, verify};
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::{Error, Result};

/// The first line of a ledger file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Which start of the run this is, from 1.
    pub attempt: u32,
    /// The rank.
    pub rank: u32,
    /// The number of ranks.
    pub world_size: u32,
    /// The first step of the attempt.
    pub first_step: u64,
    /// The run's seed.
    pub seed: u64,
    /// Samples in the training set.
    pub samples: u64,
    /// What tells that set from others; empty in files of versions that did not say it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data: String,
    /// Samples in a step.
    pub global_batch: u64,
    /// V.
    pub virtual_shards: u32,
    /// How epochs are shuffled.
    #[serde(default, skip_serializing_if = "OrderKind::is_full")]
    pub order: OrderKind,
}

impl Header {
    /// What of another attempt's header says that it is of another run or on other data.
    fn another(&self, other: &Header) -> Option<String> {
        let told = |h: &Header| match h.data.is_empty() || self.data.is_empty() || other.data.is_empty() {
            true => String::new(),
            false => h.data.clone(),
        };
        let facts = |h: &Header| {
            [
                ("seed", h.seed.to_string()),
                ("samples", h.samples.to_string()),
                ("data", told(h)),
                ("global batch", h.global_batch.to_string()),
                ("virtual shards", h.virtual_shards.to_string()),
                ("order", format!("{:?}", h.order)),
            ]
        };
        let ((what, ours), (_, theirs)) = facts(self).into_iter().zip(facts(other)).find(|(a, b)| a != b)?;
        Some(format!("{what} is {theirs} there and {ours} here"))
    }
}

/// What one virtual shard consumed in one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// The step, from 0 over the whole run.
    pub step: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The virtual shard.
    pub shard: u32,
    /// The samples, in order.
    pub ids: Vec<u64>,
    /// Those of them whose records were bad, each with the sample that took its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<[u64; 2]>,
    /// Those of them whose records were bad, and that counted nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<u64>,
}

impl Line {
    /// The line of a batch.
    pub fn new(step: u64, loaded: &Loaded) -> Self {
        let WorkItem { epoch, shard, .. } = loaded.item;
        let (mut replaced, mut quarantined) = (Vec::new(), Vec::new());
        for bad in &loaded.bad {
            match bad.substitute {
                Some(by) => replaced.push([bad.id, by]),
                None => quarantined.push(bad.id),
            }
        }
        Line { step, epoch, shard: shard as u32, ids: loaded.ids.clone(), replaced, quarantined }
    }

    /// What is wrong with the samples that it says were bad: they are its own, each told once, and what took their
    /// places is what may.
    fn wrong_fate(&self, run: &Header) -> Option<String> {
        let Line { step, shard, .. } = self;
        let mut told = BTreeSet::new();
        for id in self.replaced.iter().map(|r| r[0]).chain(self.quarantined.iter().copied()) {
            if !self.ids.contains(&id) || !told.insert(id) {
                return Some(format!(
                    "sample {id} is said to have been bad, but step {step}, shard {shard} has no such sample, or two"
                ));
            }
        }
        let foreign =
            |[id, by]: &&[u64; 2]| !substitutes(run.seed, self.epoch, *id, run.samples).any(|s| s == *by);
        let [id, by] = self.replaced.iter().find(foreign)?;
        Some(format!("sample {id} of step {step}, shard {shard} cannot have been replaced by sample {by}"))
    }
}

/// One rank's side of the ledger.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: BufWriter<File>,
}

fn dir_of(run: &Path) -> PathBuf {
    run.join("ledger")
}

fn files(run: &Path) -> Result<Vec<PathBuf>> {
    let dir = dir_of(run);
    let entries = match fs::read_dir(&dir) {
        Ok(e) => e,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", &dir)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", &dir))?.path();
        if path.extension().is_some_and(|e| e == "jsonl") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The attempt that a ledger file is of, by its name.
fn attempt_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix("attempt-")?.split('-').next()?.parse().ok()
}

/// The number of the next attempt in this run directory.
pub fn next_attempt(run: &Path) -> Result<u32> {
    Ok(files(run)?.iter().filter_map(|p| attempt_of(p)).max().unwrap_or(0) + 1)
}

impl Ledger {
    /// Opens this rank's file of a new attempt.
    pub fn create(run: &Path, header: &Header) -> Result<Self> {
        let dir = dir_of(run);
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let path = dir.join(format!("attempt-{:04}-rank-{:05}.jsonl", header.attempt, header.rank));
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        let mut ledger = Ledger { path, file: BufWriter::new(file) };
        ledger.put(header)?;
        ledger.sync()?;
        checkpoint::sync_dir(&dir)?;
        Ok(ledger)
    }

    fn put(&mut self, line: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(line)
            .map_err(|e| Error::Ledger { path: self.path.clone(), problem: e.to_string() })?;
        writeln!(self.file, "{text}").map_err(Error::io("write", &self.path))
    }

    /// Adds a line. It is on disk after the next [`Ledger::sync`].
    pub fn add(&mut self, line: &Line) -> Result<()> {
        self.put(line)
    }

    /// Makes all lines durable. Called on every rank before a checkpoint counts as complete.
    pub fn sync(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io("write", &self.path))?;
        self.file.get_ref().sync_data().map_err(Error::io("sync", &self.path))
    }
}
