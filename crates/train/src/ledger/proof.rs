//! The proof that a ledger's samples were each consumed exactly once an epoch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use phalanx_data::{Order, shard_positions, step_positions, steps_per_epoch};
use serde::Serialize;

use super::{Header, Line, attempt_of, files};
use crate::checkpoint;
use crate::{Error, Result};

/// What a rank wrote in an attempt.
type RankFile = (Header, Vec<Line>);

/// What a ledger proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// Starts of the run.
    pub attempts: u32,
    /// What tells the data set from others; empty where the run did not say it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub data: String,
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
    let starts: Vec<(u32, u64)> = attempts.iter().map(|(a, r)| (*a, r[0].0.first_step)).collect();
    // What a later attempt has begun again from its first step on has left no trace in the parameters.
    let counts =
        |first_step: u64, attempt: u32| !starts.iter().any(|(a, s)| *a > attempt && *s <= first_step);
    let Some(first) = attempts.values().map(|a| &a[0].0).find(|h| counts(h.first_step, h.attempt)).cloned()
    else {
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
        if counts(h.first_step, *attempt)
            && let Some(problem) = ranks.iter().find_map(|(h, _)| first.another(h))
        {
            return Err(fail(format!(
                "attempt {attempt} is of another run than attempt {}: {problem}",
                first.attempt
            )));
        }
    }

    // An attempt counts up to the first step of the next one.
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
        data: first.data.clone(),
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
