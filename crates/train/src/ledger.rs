//! The ledger: which samples each rank consumed at each step, and the proof that each was consumed
//! exactly once an epoch.
//!
//! Every start of a run is an *attempt* and has a file for each of its ranks, `ledger/attempt-0001-
//! rank-00000.jsonl`: a header, then a line for each step and virtual shard. A run that was killed
//! after its last checkpoint repeats some steps in the next attempt; the earlier attempt's lines of
//! those steps are superseded, as its work on them was. What is left is the history that the
//! parameters have seen.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use phalanx_data::{
    Loaded, Order, OrderKind, WorkItem, shard_positions, step_positions, steps_per_epoch, substitutes,
};
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
    /// Samples in a step.
    pub global_batch: u64,
    /// V.
    pub virtual_shards: u32,
    /// How epochs are shuffled.
    #[serde(default, skip_serializing_if = "OrderKind::is_full")]
    pub order: OrderKind,
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
        Line { step, epoch, shard: shard as u32, ids: loaded.batch.ids.clone(), replaced, quarantined }
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

/// What a rank wrote in an attempt.
type RankFile = (Header, Vec<Line>);

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

/// What a ledger proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// Starts of the run.
    pub attempts: u32,
    /// World size of each attempt.
    pub world_sizes: Vec<u32>,
    /// The step that the run began at: 0, or that of another run's checkpoint.
    pub first_step: u64,
    /// Steps that count, those before `first_step` included.
    pub steps: u64,
    /// Epochs of which every sample was consumed exactly once.
    pub whole_epochs: u64,
    /// Samples of the last, unfinished epoch, each consumed exactly once so far.
    pub samples_in_last_epoch: u64,
    /// Samples consumed in all.
    pub samples: u64,
    /// Those of them whose records were bad and in whose place another was computed.
    #[serde(default)]
    pub replaced: u64,
    /// Those of them whose records were bad and that counted nothing.
    #[serde(default)]
    pub quarantined: u64,
    /// Steps that were done again after a crash; their first run does not count.
    pub superseded_steps: u64,
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let worlds: Vec<String> = self.world_sizes.iter().map(u32::to_string).collect();
        write!(f, "every sample exactly once: {} whole epochs", self.whole_epochs)?;
        if self.samples_in_last_epoch > 0 {
            write!(f, " and {} samples of the next one", self.samples_in_last_epoch)?;
        }
        write!(
            f,
            ", {} samples in {} steps\nstarts: {}, on {} ranks; steps done again after a crash: {}",
            self.samples,
            self.steps - self.first_step.min(self.steps),
            self.attempts,
            worlds.join(", "),
            self.superseded_steps
        )?;
        if self.replaced + self.quarantined > 0 {
            let [replaced, quarantined] = [self.replaced, self.quarantined];
            write!(
                f,
                "\nbad records among them: {replaced} replaced by other samples, {quarantined} left out"
            )?;
        }
        match self.first_step {
            0 => Ok(()),
            step => write!(f, "\nbegun at step {step}, from the checkpoint of another run"),
        }
    }
}

/// Reads all attempts. Files without a header are those of a process that was killed as it started.
fn attempts(run: &Path) -> Result<BTreeMap<u32, Vec<RankFile>>> {
    let fail = |problem: String| Error::Ledger { path: run.to_owned(), problem };
    let mut attempts: BTreeMap<u32, Vec<RankFile>> = BTreeMap::new();
    let mut numbers = BTreeSet::new();
    for path in files(run)? {
        numbers.extend(attempt_of(&path));
        if let Some((header, lines)) = read(&path).map_err(fail)? {
            attempts.entry(header.attempt).or_default().push((header, lines));
        }
    }
    if let Some((lost, _)) = (1..).zip(&numbers).find(|(want, is)| want != *is) {
        return Err(fail(format!("attempt {lost} has no files, but there are later ones")));
    }
    Ok(attempts)
}

/// Checks the ledger of a run directory. Fails with [`Error::Ledger`] on the first omission, repeat or
/// misplaced sample, and says how many there are.
pub fn verify(run: &Path) -> Result<Proof> {
    let fail = |problem: String| Error::Ledger { path: run.to_owned(), problem };
    let attempts = attempts(run)?;
    let Some(first) = attempts.values().next().map(|a| a[0].0.clone()) else {
        return Err(fail("there is none; is this a run directory?".into()));
    };
    for (attempt, ranks) in &attempts {
        let h = &ranks[0].0;
        let whole =
            ranks.len() == h.world_size as usize && ranks.iter().zip(0..).all(|((h, _), r)| h.rank == r);
        // A rank adds lines only after a meeting of all, each with its file: a start that was killed
        // before has fewer files, and did nothing.
        if !whole && ranks.iter().any(|(_, lines)| !lines.is_empty()) {
            return Err(fail(format!(
                "attempt {attempt} has the files of {} ranks, but ran on {}",
                ranks.len(),
                h.world_size
            )));
        }
        let fixed = |h: &Header| (h.seed, h.samples, h.global_batch, h.virtual_shards, h.order);
        if let Some((h, _)) = ranks.iter().find(|(h, _)| fixed(h) != fixed(&first)) {
            return Err(fail(format!("attempt {attempt} is of another run: {h:?} against {first:?}")));
        }
    }

    // An attempt counts up to the first step of the next one.
    let starts: Vec<(u32, u64)> = attempts.iter().map(|(a, r)| (*a, r[0].0.first_step)).collect();
    let world_sizes = attempts.values().map(|r| r[0].0.world_size).collect();
    let mut by_step: BTreeMap<u64, BTreeMap<u32, Line>> = BTreeMap::new();
    let mut superseded = BTreeSet::new();
    let mut problems = Vec::new();
    for (attempt, ranks) in attempts {
        let end = starts.iter().filter(|(a, _)| *a > attempt).map(|s| s.1).min().unwrap_or(u64::MAX);
        for (header, lines) in ranks {
            for line in lines {
                if line.step >= end {
                    superseded.insert((attempt, line.step));
                    continue;
                }
                let (step, shard) = (line.step, line.shard);
                if by_step.entry(step).or_default().insert(shard, line).is_some() {
                    problems.push(format!(
                        "shard {shard} of step {step} was computed twice (again on rank {} of attempt {attempt})",
                        header.rank
                    ));
                }
            }
        }
    }
    let steps = committed(run, &by_step)?;
    let mut proof = Proof {
        attempts: starts.len() as u32,
        world_sizes,
        first_step: first.first_step,
        steps,
        whole_epochs: 0,
        samples_in_last_epoch: 0,
        samples: 0,
        replaced: 0,
        quarantined: 0,
        superseded_steps: superseded.len() as u64,
    };
    check_steps(&first, steps, &by_step, &mut proof, &mut problems);
    if problems.is_empty() {
        return Ok(proof);
    }
    let shown = problems.len().min(3);
    let more = match problems.len() - shown {
        0 => String::new(),
        n => format!("; and {n} more"),
    };
    Err(fail(format!("{}{more}", problems[..shown].join("; "))))
}

/// The number of steps that count: up to the newest checkpoint or the summary, whichever is later. What
/// lies beyond was lost with the process that did it, or is still being written.
fn committed(run: &Path, by_step: &BTreeMap<u64, BTreeMap<u32, Line>>) -> Result<u64> {
    let saved = checkpoint::list(&run.join("checkpoints"))?.first().map_or(0, |c| c.0);
    let summary = fs::read(run.join("summary.json")).ok();
    let summary = summary.and_then(|b| serde_json::from_slice::<serde_json::Value>(&b).ok());
    let ended = summary.and_then(|s| s.get("steps")?.as_u64()).unwrap_or(0);
    let seen = by_step.keys().next_back().map_or(0, |s| s + 1);
    // With neither, nothing is committed yet; what is there is checked all the same.
    Ok(if saved == 0 && ended == 0 { seen } else { saved.max(ended) })
}

fn check_steps(
    run: &Header,
    steps: u64,
    by_step: &BTreeMap<u64, BTreeMap<u32, Line>>,
    proof: &mut Proof,
    problems: &mut Vec<String>,
) {
    let per_epoch = steps_per_epoch(run.samples, run.global_batch).max(1);
    let mut epoch_of_order = None;
    let mut seen: HashMap<u64, u64> = HashMap::new();
    for step in run.first_step..steps {
        let (epoch, within) = (step / per_epoch, step % per_epoch);
        let order = match &epoch_of_order {
            Some((e, order)) if *e == epoch => order,
            _ => {
                seen.clear();
                let order = Order::of(run.order, run.seed, epoch, run.samples);
                &epoch_of_order.insert((epoch, order)).1
            }
        };
        let range = step_positions(run.samples, run.global_batch, within);
        for shard in 0..run.virtual_shards {
            let line = by_step.get(&step).and_then(|s| s.get(&shard));
            let positions = shard_positions(range.clone(), u64::from(run.virtual_shards), u64::from(shard));
            let want: Vec<u64> = positions.map(|p| order.at(p)).collect();
            let Some(line) = line else {
                problems.push(format!(
                    "step {step} has no line of shard {shard}: {} samples of epoch {epoch} are missing",
                    want.len()
                ));
                continue;
            };
            for id in &line.ids {
                if let Some(before) = seen.insert(*id, step) {
                    problems.push(format!(
                        "sample {id} was consumed twice in epoch {epoch}: at step {before} and at step {step} \
                         (shard {shard})"
                    ));
                }
            }
            if line.ids != want || line.epoch != epoch {
                let missing = want.iter().find(|id| !line.ids.contains(id));
                let foreign = line.ids.iter().find(|id| !want.contains(id));
                problems.push(match (missing, foreign) {
                    (Some(id), None) => {
                        format!("sample {id} of epoch {epoch} is missing at step {step} (shard {shard})")
                    }
                    (_, Some(id)) => {
                        format!("sample {id} does not belong to step {step}, shard {shard} of epoch {epoch}")
                    }
                    (None, None) => {
                        format!("step {step}, shard {shard} has the right samples in a wrong number or order")
                    }
                });
            }
            problems.extend(line.wrong_fate(run));
            proof.samples += line.ids.len() as u64;
            proof.replaced += line.replaced.len() as u64;
            proof.quarantined += line.quarantined.len() as u64;
        }
        proof.samples_in_last_epoch = seen.len() as u64;
        if within + 1 == per_epoch && seen.len() as u64 == run.samples {
            proof.whole_epochs += 1;
            proof.samples_in_last_epoch = 0;
        }
    }
}

/// Reads one file. A torn last line, which a killed process leaves, is passed over; None when that is
/// all there is.
fn read(path: &Path) -> std::result::Result<Option<RankFile>, String> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read {name}: {e}"))?;
    let lines: Vec<&str> = text.lines().collect();
    let torn = |at: usize, e: &serde_json::Error| at + 1 == lines.len() && e.is_eof();
    let Some((head, rest)) = lines.split_first() else { return Ok(None) };
    let header = match serde_json::from_str(head) {
        Ok(header) => header,
        Err(e) if torn(0, &e) => return Ok(None),
        Err(e) => return Err(format!("{name}, line 1: {e}")),
    };
    let mut out = Vec::with_capacity(rest.len());
    for (i, text) in (1..).zip(rest) {
        match serde_json::from_str(text) {
            Ok(line) => out.push(line),
            Err(e) if torn(i, &e) => {}
            Err(e) => return Err(format!("{name}, line {}: {e}", i + 1)),
        }
    }
    Ok(Some((header, out)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(attempt: u32, rank: u32, world_size: u32, first_step: u64) -> Header {
        Header {
            attempt,
            rank,
            world_size,
            first_step,
            seed: 5,
            samples: 23,
            global_batch: 6,
            virtual_shards: 4,
            order: OrderKind::Full,
        }
    }

    fn line(step: u64, epoch: u64, shard: u32, ids: Vec<u64>) -> Line {
        Line { step, epoch, shard, ids, replaced: Vec::new(), quarantined: Vec::new() }
    }

    /// Writes what an attempt on `world` ranks does from `first` to `end`.
    fn attempt(run: &Path, world: u32, first: u64, end: u64) {
        let number = next_attempt(run).unwrap();
        for rank in 0..world {
            let h = header(number, rank, world, first);
            let mut ledger = Ledger::create(run, &h).unwrap();
            for step in first..end {
                let epoch = step / 4;
                let order = Order::new(5, epoch, 23);
                for shard in 4 * rank / world..4 * (rank + 1) / world {
                    let at = shard_positions(step_positions(23, 6, step % 4), 4, u64::from(shard));
                    ledger.add(&line(step, epoch, shard, at.map(|p| order.at(p)).collect())).unwrap();
                }
            }
            ledger.sync().unwrap();
        }
    }

    #[test]
    fn crashes_and_resizes_leave_each_sample_once() {
        let dir = tempfile::tempdir().unwrap();
        attempt(dir.path(), 2, 0, 5);
        attempt(dir.path(), 3, 3, 6);
        attempt(dir.path(), 1, 6, 10);
        let proof = verify(dir.path()).unwrap();
        assert_eq!(
            (proof.attempts, proof.steps, proof.whole_epochs, proof.samples, proof.superseded_steps),
            (3, 10, 2, 23 * 2 + 12, 2)
        );
        assert_eq!((proof.samples_in_last_epoch, proof.world_sizes), (12, vec![2, 3, 1]));
    }

    fn spoil(change: impl FnOnce(&mut Vec<String>)) -> String {
        let dir = tempfile::tempdir().unwrap();
        attempt(dir.path(), 2, 0, 8);
        let path = files(dir.path()).unwrap().remove(1);
        let mut lines: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(String::from).collect();
        change(&mut lines);
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        verify(dir.path()).unwrap_err().to_string()
    }

    #[test]
    fn planted_omissions_and_repeats_are_found() {
        let edit = |lines: &mut Vec<String>, at: usize, f: &dyn Fn(&mut Line)| {
            let mut line: Line = serde_json::from_str(&lines[at]).unwrap();
            f(&mut line);
            lines[at] = serde_json::to_string(&line).unwrap();
        };
        let omitted = spoil(|l| edit(l, 5, &|line| line.ids.truncate(line.ids.len() - 1)));
        assert!(omitted.contains("missing at step 2"), "{omitted}");
        let repeated = spoil(|l| {
            let other: Line = serde_json::from_str(&l[1]).unwrap();
            edit(l, 3, &|line| line.ids.push(other.ids[0]));
        });
        assert!(repeated.contains("consumed twice"), "{repeated}");
        let swapped = spoil(|l| edit(l, 3, &|line| line.ids[0] = 999));
        assert!(swapped.contains("999 does not belong"), "{swapped}");
        let gone = spoil(|l| drop(l.remove(4)));
        assert!(gone.contains("no line of shard"), "{gone}");
        let doubled = spoil(|l| l.push(l[4].clone()));
        assert!(doubled.contains("computed twice"), "{doubled}");
        let garbage = spoil(|l| l[2] = "{\"step\":".into());
        assert!(garbage.contains("line 3"), "{garbage}");
    }

    #[test]
    fn fates_of_bad_samples_are_counted_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        attempt(dir.path(), 2, 0, 8);
        let edit = |at: usize, f: &dyn Fn(&mut Line)| {
            let path = files(dir.path()).unwrap().remove(0);
            let text = fs::read_to_string(&path).unwrap();
            let mut lines: Vec<String> = text.lines().map(String::from).collect();
            let mut line: Line = serde_json::from_str(&lines[at]).unwrap();
            f(&mut line);
            lines[at] = serde_json::to_string(&line).unwrap();
            fs::write(&path, lines.join("\n") + "\n").unwrap();
        };
        let by = |line: &Line, id| substitutes(5, line.epoch, id, 23).nth(1).unwrap();
        edit(3, &|line| line.replaced = vec![[line.ids[0], by(line, line.ids[0])]]);
        edit(4, &|line| line.quarantined = line.ids.clone());
        let proof = verify(dir.path()).unwrap();
        assert_eq!((proof.whole_epochs, proof.replaced, proof.samples), (2, 1, 46));
        assert!(proof.quarantined > 0 && proof.to_string().contains("1 replaced"), "{proof}");
        edit(3, &|line| line.replaced[0][1] = line.ids[0]);
        assert!(verify(dir.path()).unwrap_err().to_string().contains("cannot have been replaced"));
        edit(3, &|line| line.replaced = vec![[999, 1]]);
        assert!(verify(dir.path()).unwrap_err().to_string().contains("sample 999 is said"));
        edit(3, &|line| (line.replaced, line.quarantined) = (vec![], vec![line.ids[0]; 2]));
        assert!(verify(dir.path()).unwrap_err().to_string().contains("or two"));
    }

    #[test]
    fn a_ledger_of_another_order_is_another_run_s() {
        let dir = tempfile::tempdir().unwrap();
        attempt(dir.path(), 1, 0, 4);
        let path = files(dir.path()).unwrap().remove(0);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("order"), "{text}");
        let blocked =
            text.replacen("\"virtual_shards\":4", "\"virtual_shards\":4,\"order\":{\"blocked\":{}}", 1);
        fs::write(&path, blocked).unwrap();
        assert!(verify(dir.path()).unwrap_err().to_string().contains("does not belong"));
    }

    #[test]
    fn a_torn_last_line_is_what_a_kill_leaves_and_a_lost_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        attempt(dir.path(), 2, 0, 4);
        let path = files(dir.path()).unwrap().remove(0);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text + "{\"step\":4,\"ep").unwrap();
        assert_eq!(verify(dir.path()).unwrap().whole_epochs, 1);
        fs::remove_file(path).unwrap();
        assert!(verify(dir.path()).unwrap_err().to_string().contains("ran on 2"));
        assert!(verify(&dir.path().join("x")).unwrap_err().to_string().contains("is this a run directory"));
    }

    #[test]
    fn a_start_that_died_before_its_first_step_spoils_nothing() {
        let dir = tempfile::tempdir().unwrap();
        attempt(dir.path(), 2, 0, 4);
        // Rank 1 of attempt 2 had not come so far; rank 0 of attempt 3 had not written a line.
        drop(Ledger::create(dir.path(), &header(2, 0, 3, 4)).unwrap());
        fs::write(dir_of(dir.path()).join("attempt-0003-rank-00000.jsonl"), "{\"att").unwrap();
        attempt(dir.path(), 4, 4, 8);
        let proof = verify(dir.path()).unwrap();
        assert_eq!((proof.steps, proof.whole_epochs, proof.world_sizes), (8, 2, vec![2, 3, 4]));
        for rank in 0..2 {
            fs::remove_file(dir_of(dir.path()).join(format!("attempt-0001-rank-0000{rank}.jsonl"))).unwrap();
        }
        assert!(verify(dir.path()).unwrap_err().to_string().contains("attempt 1 has no files"));
    }

    #[test]
    fn a_run_from_another_run_s_checkpoint_proves_what_it_did_itself() {
        let dir = tempfile::tempdir().unwrap();
        attempt(dir.path(), 2, 6, 12);
        let proof = verify(dir.path()).unwrap();
        assert_eq!((proof.first_step, proof.steps, proof.whole_epochs, proof.samples), (6, 12, 1, 11 + 23));
        assert!(proof.to_string().contains("begun at step 6"), "{proof}");
    }
}
