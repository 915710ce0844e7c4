//! Checkpoints on disk: `checkpoints/step-00000120/{model,optimizer,task}.safetensors`, `state.json`,
//! `COMPLETE`.
//!
//! A checkpoint is written under a temporary name, each file synced; `COMPLETE` comes last and holds
//! the BLAKE3 hash of every file; then the directory is renamed. So one is there whole or not at all,
//! and a damaged one is told from a good one.

mod format;
mod writer;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use format::{from_safetensors, to_safetensors};
use serde::{Deserialize, Serialize};
pub use writer::Writer;

use crate::snapshot::Snapshot;
use crate::task::StateMap;
use crate::{Error, Result};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const TASK: &str = "task.safetensors";
const STATE: &str = "state.json";
const COMPLETE: &str = "COMPLETE";

/// How far a run has come: what a checkpoint holds besides arrays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done; the next one has this number.
    pub step: u64,
    /// The epoch of the next step.
    pub epoch: u64,
    /// The next step's number within its epoch.
    pub step_in_epoch: u64,
    /// Samples consumed so far.
    pub samples_seen: u64,
    /// V, fixed at the run's first start.
    pub virtual_shards: u32,
    /// Bits of the sums of loss and weight in the running epoch (as u64, since a decimal may round).
    pub epoch_loss_bits: u64,
    /// As above.
    pub epoch_weight_bits: u64,
    /// The optimizers' step counts, by phase.
    pub optimizer_steps: Vec<u64>,
    /// State of a plateau schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plateau: Option<phalanx_nn::PlateauState>,
    /// Whether the evaluation that is due after `epoch - 1` has not been made yet.
    #[serde(default)]
    pub evaluation_due: bool,
    /// The fingerprint of the machine that wrote it.
    pub fingerprint: BTreeMap<String, String>,
    /// The part of the configuration that fixes the run's numbers.
    pub identity: toml::Table,
    /// World size of the ranks that wrote it.
    pub world_size: u32,
    /// Seconds that the run has taken so far, over all its starts.
    #[serde(default)]
    pub wall_s: f64,
}

/// The directory name of the checkpoint after `step` steps.
fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

/// The checkpoints under `dir` that were finished, newest first, as (step, path).
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", dir)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let step = path.file_name().and_then(|n| n.to_str()?.strip_prefix("step-")?.parse::<u64>().ok());
        if let Some(step) = step {
            found.push((step, path));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Writes a checkpoint below `dir` and returns its path.
pub fn write(dir: &Path, snapshot: &Snapshot, progress: &Progress) -> Result<PathBuf> {
    let (path, tmp) =
        (dir.join(name_of(progress.step)), dir.join(format!(".{}.tmp", name_of(progress.step))));
    let done = write_files(&tmp, snapshot, progress).and_then(|()| {
        // The same step again (a run resumed from an older checkpoint): the new one takes its place.
        if path.exists() {
            fs::remove_dir_all(&path).map_err(Error::io("replace", &path))?;
        }
        fs::rename(&tmp, &path).map_err(Error::io("rename", &tmp))?;
        sync_dir(dir)
    });
    if done.is_err() {
        // Best effort: the error that is returned says what matters.
        let _ = fs::remove_dir_all(&tmp);
    }
    done.map(|()| path)
}

fn write_files(tmp: &Path, snapshot: &Snapshot, progress: &Progress) -> Result<()> {
    if tmp.exists() {
        fs::remove_dir_all(tmp).map_err(Error::io("remove", tmp))?;
    }
    fs::create_dir_all(tmp).map_err(Error::io("create", tmp))?;
    let mut task = snapshot.task.shared.clone();
    for (shard, arrays) in &snapshot.task.shards {
        task.extend(arrays.iter().map(|(n, a)| (format!("shard/{shard}/{n}"), a.clone())));
    }
    let state = serde_json::to_vec_pretty(progress)
        .map_err(|e| Error::Checkpoint { path: tmp.into(), problem: format!("state: {e}") })?;
    let mut files = vec![
        (MODEL, to_safetensors(&snapshot.model)?),
        (OPTIMIZER, to_safetensors(&snapshot.optimizer)?),
        (STATE, state),
    ];
    if !task.is_empty() {
        files.push((TASK, to_safetensors(&task)?));
    }
    let mut hashes = String::new();
    for (name, bytes) in &files {
        writer::write_synced(&tmp.join(name), bytes)?;
        hashes += &format!("{}  {name}\n", blake3::hash(bytes).to_hex());
    }
    writer::write_synced(&tmp.join(COMPLETE), hashes.as_bytes())?;
    sync_dir(tmp)
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("sync", dir))
}

/// Reads a checkpoint, checking every file against `COMPLETE`.
pub fn read(path: &Path) -> Result<(Snapshot, Progress)> {
    let damaged = |problem: String| Error::Checkpoint { path: path.into(), problem };
    let complete = fs::read_to_string(path.join(COMPLETE))
        .map_err(|e| damaged(format!("it is not complete (its {COMPLETE} cannot be read: {e})")))?;
    let mut files = BTreeMap::new();
    for line in complete.lines() {
        let (hash, name) =
            line.split_once("  ").ok_or_else(|| damaged(format!("its {COMPLETE} is damaged")))?;
        let bytes = fs::read(path.join(name)).map_err(|e| damaged(format!("{name} cannot be read: {e}")))?;
        if blake3::hash(&bytes).to_hex().as_str() != hash {
            return Err(damaged(format!("{name} is damaged: its hash is not the one in {COMPLETE}")));
        }
        files.insert(name, bytes);
    }
    let file =
        |name: &str| files.get(name).ok_or_else(|| damaged(format!("{name} is missing in {COMPLETE}")));
    let progress: Progress =
        serde_json::from_slice(file(STATE)?).map_err(|e| damaged(format!("{STATE}: {e}")))?;
    let mut snapshot = Snapshot {
        model: from_safetensors(file(MODEL)?)?,
        optimizer: from_safetensors(file(OPTIMIZER)?)?,
        task: StateMap::default(),
        optimizer_steps: progress.optimizer_steps.clone(),
    };
    if let Some(bytes) = files.get(TASK) {
        for (name, array) in from_safetensors(bytes)? {
            match name.strip_prefix("shard/") {
                Some(rest) => snapshot.task.insert_sharded(rest, array)?,
                None => {
                    snapshot.task.shared.insert(name, array);
                }
            }
        }
    }
    Ok((snapshot, progress))
}

/// Finds the newest good checkpoint below `dir`: damaged ones are passed over, with `warn` told why.
pub fn newest(dir: &Path, mut warn: impl FnMut(String)) -> Result<Option<(PathBuf, Snapshot, Progress)>> {
    let all = list(dir)?;
    for (_, path) in &all {
        match read(path) {
            Ok((snapshot, progress)) => return Ok(Some((path.clone(), snapshot, progress))),
            Err(e) => warn(format!("{e}; trying the one before")),
        }
    }
    match all.first() {
        None => Ok(None),
        Some((_, path)) => {
            let problem = "no good checkpoint is left; start anew in another directory (--out)".to_owned();
            Err(Error::Checkpoint { path: path.clone(), problem })
        }
    }
}

/// Removes all but the newest `keep` checkpoints, and leftovers of interrupted writes.
fn prune(dir: &Path, keep: usize) -> Result<()> {
    for (_, path) in list(dir)?.into_iter().skip(keep.max(1)) {
        fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Array, Arrays};

    fn sample(step: u64) -> (Snapshot, Progress) {
        let mut model = Arrays::new();
        model
            .insert("fc.weight".into(), Array::new(&[2, 2], &[1.0f32, -2.5, f32::MIN_POSITIVE, step as f32]));
        model.insert("bn.num_batches_tracked".into(), Array::new(&[], &[7i64]));
        let mut task = StateMap::default();
        task.shared.insert("target".into(), Array::new(&[1], &[0.5f64]));
        for shard in [0, 3] {
            let arrays = task.shards.entry(shard).or_default();
            arrays.insert("replay/state".into(), Array::new(&[2], &[shard as u8, 9]));
        }
        let snapshot = Snapshot { model, optimizer: Arrays::new(), task, optimizer_steps: vec![step, 2] };
        let progress = Progress {
            step,
            epoch_loss_bits: 0.1f64.to_bits(),
            optimizer_steps: vec![step, 2],
            identity: toml::from_str("seed = 1\n[train]\nglobal_batch = 8").unwrap(),
            ..Progress::default()
        };
        (snapshot, progress)
    }

    #[test]
    fn what_is_written_is_read_back_and_old_ones_are_pruned() {
        let dir = tempfile::tempdir().unwrap();
        for step in [5, 10, 15] {
            let (s, p) = sample(step);
            let path = write(dir.path(), &s, &p).unwrap();
            assert_eq!(read(&path).unwrap(), (s, p));
        }
        prune(dir.path(), 2).unwrap();
        assert_eq!(list(dir.path()).unwrap().iter().map(|c| c.0).collect::<Vec<_>>(), [15, 10]);
        let (s, p) = sample(10);
        write(dir.path(), &s, &p).unwrap();
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_with_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        for step in [1, 2, 3, 4] {
            let (s, p) = sample(step);
            write(dir.path(), &s, &p).unwrap();
        }
        let at = |step| dir.path().join(name_of(step));
        fs::remove_file(at(4).join(COMPLETE)).unwrap();
        let mut bytes = fs::read(at(3).join(MODEL)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(at(3).join(MODEL), bytes).unwrap();
        let mut warnings = Vec::new();
        let (path, _, progress) = newest(dir.path(), |w| warnings.push(w)).unwrap().unwrap();
        assert_eq!((path, progress.step), (at(2), 2));
        assert!(warnings[0].contains("not complete") && warnings[1].contains("damaged"), "{warnings:?}");
        for step in [1, 2] {
            fs::write(at(step).join(STATE), "{}").unwrap();
        }
        assert!(newest(dir.path(), |_| ()).unwrap_err().to_string().contains("no good checkpoint"));
        assert!(newest(&dir.path().join("none"), |_| ()).unwrap().is_none());
    }

    #[test]
    fn a_full_disk_leaves_the_older_checkpoint_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let (s, p) = sample(1);
        write(dir.path(), &s, &p).unwrap();
        // A file in the place of the temporary directory cannot be removed as one: the write fails.
        fs::write(dir.path().join(format!(".{}.tmp", name_of(2))), "x").unwrap();
        let (s, p) = sample(2);
        assert!(write(dir.path(), &s, &p).is_err());
        assert_eq!(list(dir.path()).unwrap().len(), 1);
    }
}
