//! Checkpoints on disk: `checkpoints/step-00000120/{model,ema,optimizer,task}.safetensors`, `state.json`,
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
use phalanx_comm::Communicator;
use serde::{Deserialize, Serialize};
pub use writer::Writer;

use crate::evaluate::Evaluation;
use crate::scaler::LossScale;
use crate::snapshot::Snapshot;
use crate::task::{Arrays, StateMap};
use crate::weights::Begun;
use crate::{Error, Result, share};

const MODEL: &str = "model.safetensors";
const EMA: &str = "ema.safetensors";
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
    /// Those of them whose records could not be used.
    #[serde(default)]
    pub bad_records: u64,
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
    /// The last evaluation, which the summary of a later start tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// Bits of the mean loss of the last whole epoch, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss_bits: Option<u64>,
    /// What losses are multiplied by, where activations are fp16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// The fingerprint of the machine that wrote it.
    pub fingerprint: BTreeMap<String, String>,
    /// The part of the configuration that fixes the run's numbers.
    pub identity: toml::Table,
    /// What tells its data sets from others, under `train` and `eval`.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub data: toml::Table,
    /// The weights that the run began with, where they were not random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Begun>,
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

/// Where it is written before it counts.
fn tmp_of(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!(".{}.tmp", name_of(step)))
}

/// Where it is kept once the run goes on from an earlier step.
fn undone_of(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("{}.undone", name_of(step)))
}

/// The checkpoints under `dir` that were finished, newest first, as (step, path).
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    entries(dir, "step-", "")
}

/// The entries under `dir` whose names are a step's number between `prefix` and `suffix`.
fn entries(dir: &Path, prefix: &str, suffix: &str) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", dir)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let step = path
            .file_name()
            .and_then(|n| n.to_str()?.strip_prefix(prefix)?.strip_suffix(suffix)?.parse::<u64>().ok());
        if let Some(step) = step {
            found.push((step, path));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Writes a checkpoint below `dir` and returns its path.
pub fn write(dir: &Path, snapshot: &Snapshot, progress: &Progress) -> Result<PathBuf> {
    let (path, tmp) = (dir.join(name_of(progress.step)), tmp_of(dir, progress.step));
    if let Err(e) = write_files(&tmp, snapshot, progress) {
        // Best effort: the error that is returned says what matters.
        let _ = fs::remove_dir_all(&tmp);
        return Err(e);
    }
    // The same step again: the new one takes its place. A kill in between leaves a whole one under the
    // temporary name, which `recover` finds.
    remove(&path)?;
    fs::rename(&tmp, &path).map_err(Error::io("rename", &tmp))?;
    sync_dir(dir)?;
    Ok(path)
}

/// Removes a directory that may not be there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Ends what a killed process began: a checkpoint that was whole gets its name, half ones are removed.
pub(crate) fn recover(dir: &Path) -> Result<()> {
    for (step, tmp) in entries(dir, ".step-", ".tmp")? {
        let path = dir.join(name_of(step));
        if tmp.join(COMPLETE).exists() && !path.join(COMPLETE).exists() {
            remove(&path)?;
            fs::rename(&tmp, &path).map_err(Error::io("rename", &tmp))?;
        } else {
            remove(&tmp)?;
        }
    }
    Ok(())
}

/// Takes the checkpoints beyond `step` out of the run's history and returns where they are now.
pub(crate) fn set_aside(dir: &Path, step: u64) -> Result<Vec<PathBuf>> {
    let mut moved = Vec::new();
    for (beyond, path) in list(dir)?.into_iter().filter(|c| c.0 > step) {
        let undone = undone_of(dir, beyond);
        remove(&undone)?;
        fs::rename(&path, &undone).map_err(Error::io("rename", &path))?;
        moved.push(undone);
    }
    Ok(moved)
}

/// A checkpoint's files, by name, but for `COMPLETE`.
fn to_files(snapshot: &Snapshot, progress: &Progress) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut task = snapshot.task.shared.clone();
    for (shard, arrays) in &snapshot.task.shards {
        task.extend(arrays.iter().map(|(n, a)| (format!("shard/{shard}/{n}"), a.clone())));
    }
    let state = serde_json::to_vec_pretty(progress).map_err(|e| Error::config(STATE, e.to_string()))?;
    let mut files = vec![
        (MODEL, to_safetensors(&snapshot.model)?),
        (OPTIMIZER, to_safetensors(&snapshot.optimizer)?),
        (STATE, state),
    ];
    if !snapshot.ema.is_empty() {
        files.push((EMA, to_safetensors(&snapshot.ema)?));
    }
    if !task.is_empty() {
        files.push((TASK, to_safetensors(&task)?));
    }
    Ok(files)
}

/// What [`to_files`] has taken apart. The error is what is wrong, without a path.
fn from_files(files: &BTreeMap<String, Vec<u8>>) -> std::result::Result<(Snapshot, Progress), String> {
    let file = |name: &str| files.get(name).ok_or_else(|| format!("{name} is missing in {COMPLETE}"));
    let arrays = |bytes: &[u8]| from_safetensors(bytes).map_err(|e| e.to_string());
    let progress: Progress = serde_json::from_slice(file(STATE)?).map_err(|e| format!("{STATE}: {e}"))?;
    let mut snapshot = Snapshot {
        model: arrays(file(MODEL)?)?,
        ema: files.get(EMA).map_or(Ok(Arrays::new()), |bytes| arrays(bytes))?,
        optimizer: arrays(file(OPTIMIZER)?)?,
        task: StateMap::default(),
        optimizer_steps: progress.optimizer_steps.clone(),
    };
    if let Some(bytes) = files.get(TASK) {
        for (name, array) in arrays(bytes)? {
            match name.strip_prefix("shard/") {
                Some(rest) => snapshot.task.insert_sharded(rest, array).map_err(|e| e.to_string())?,
                None => {
                    snapshot.task.shared.insert(name, array);
                }
            }
        }
    }
    Ok((snapshot, progress))
}

/// Gives all ranks the checkpoint that rank 0 has read: no other rank needs to see its files.
pub(crate) fn from_rank_0(
    comm: &dyn Communicator,
    mine: Option<(Snapshot, Progress)>,
) -> Result<(Snapshot, Progress)> {
    let files = mine.as_ref().map(|(s, p)| to_files(s, p)).transpose()?;
    let names = share::from_rank_0(comm, comm.deadline(), || {
        Ok(files.iter().flatten().map(|f| f.0.to_owned()).collect::<Vec<_>>())
    })?;
    let mut got = BTreeMap::new();
    for (i, name) in names.into_iter().enumerate() {
        let bytes = files.as_ref().and_then(|f| f.get(i)).map(|f| f.1.as_slice());
        got.insert(name, share::bytes_from_rank_0(comm, bytes)?);
    }
    match mine {
        Some(mine) => Ok(mine),
        None => from_files(&got).map_err(|e| Error::config("the checkpoint from rank 0", e)),
    }
}

fn write_files(tmp: &Path, snapshot: &Snapshot, progress: &Progress) -> Result<()> {
    remove(tmp)?;
    fs::create_dir_all(tmp).map_err(Error::io("create", tmp))?;
    let mut hashes = String::new();
    for (name, bytes) in to_files(snapshot, progress)? {
        writer::write_synced(&tmp.join(name), &bytes)?;
        hashes += &format!("{}  {name}\n", blake3::hash(&bytes).to_hex());
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
    if !path.is_dir() {
        return Err(damaged("there is no such directory".into()));
    }
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
        files.insert(name.to_owned(), bytes);
    }
    from_files(&files).map_err(damaged)
}

/// Finds the newest good checkpoint below `dir`: damaged ones are passed over, with `warn` told why.
pub fn newest(dir: &Path, mut warn: impl FnMut(String)) -> Result<Option<(PathBuf, Snapshot, Progress)>> {
    let mut newest: Option<Error> = None;
    let all = list(dir)?;
    for (_, path) in &all {
        match read(path) {
            Ok((snapshot, progress)) => return Ok(Some((path.clone(), snapshot, progress))),
            Err(e) => {
                warn(format!("{e}; trying the one before"));
                newest = newest.or(Some(e));
            }
        }
    }
    match newest {
        None => Ok(None),
        Some(e) => {
            let problem = format!(
                "none of the {} is good; start anew in another run directory (--out). The newest: {e}",
                all.len()
            );
            Err(Error::Checkpoint { path: dir.to_owned(), problem })
        }
    }
}

/// The checkpoint at `path`: itself, or the newest good one of a run directory, with `warn` told of damaged ones.
pub fn find(path: &Path, warn: impl FnMut(String)) -> Result<(PathBuf, Snapshot, Progress)> {
    let dir = path.join("checkpoints");
    if !dir.is_dir() {
        return read(path).map(|(snapshot, progress)| (path.to_owned(), snapshot, progress));
    }
    let none = || Error::Checkpoint { path: path.into(), problem: "it has no checkpoint yet".into() };
    newest(&dir, warn)?.ok_or_else(none)
}

/// Removes all but the newest `keep` checkpoints, and those set aside that the run has come past.
fn prune(dir: &Path, keep: usize) -> Result<()> {
    let all = list(dir)?;
    for (_, path) in all.iter().skip(keep.max(1)) {
        remove(path)?;
    }
    let newest = all.first().map_or(0, |c| c.0);
    for (_, path) in entries(dir, "step-", ".undone")?.iter().filter(|c| c.0 <= newest) {
        remove(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Array;

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
        let ema =
            Arrays::from([("fc.weight".into(), Array::new(&[2, 2], &[0.5f32, -2.0, 0.0, step as f32]))]);
        let snapshot =
            Snapshot { model, ema, optimizer: Arrays::new(), task, optimizer_steps: vec![step, 2] };
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
        let e = newest(dir.path(), |_| ()).unwrap_err().to_string();
        assert!(e.contains("none of the 4 is good") && e.contains("not complete"), "{e}");
        assert!(newest(&dir.path().join("none"), |_| ()).unwrap().is_none());
    }

    #[test]
    fn history_undone_is_set_aside_and_goes_once_it_is_done_again() {
        let dir = tempfile::tempdir().unwrap();
        let put = |step| {
            let (s, p) = sample(step);
            write(dir.path(), &s, &p).unwrap();
            prune(dir.path(), 3).unwrap();
        };
        let steps = || list(dir.path()).unwrap().iter().map(|c| c.0).collect::<Vec<_>>();
        (1..=3).for_each(put);
        let aside = set_aside(dir.path(), 1).unwrap();
        assert_eq!((steps(), aside.len(), aside.iter().all(|p| p.exists())), (vec![1], 2, true));
        put(2);
        assert_eq!(aside.iter().map(|p| p.exists()).collect::<Vec<_>>(), [true, false]);
        put(3);
        assert_eq!((steps(), aside[0].exists()), (vec![3, 2, 1], false));
    }

    #[test]
    fn a_kill_between_removing_and_renaming_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (s, p) = sample(7);
        let path = write(dir.path(), &s, &p).unwrap();
        fs::rename(&path, tmp_of(dir.path(), 7)).unwrap();
        // Half of an old one, and half of a new one.
        fs::create_dir(&path).unwrap();
        fs::create_dir(tmp_of(dir.path(), 8)).unwrap();
        recover(dir.path()).unwrap();
        assert_eq!(read(&path).unwrap(), (s, p));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
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
