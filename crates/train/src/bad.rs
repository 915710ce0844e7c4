//! Records that could not be used: what becomes of them is written to `quarantine.jsonl`, and too many end the run.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use phalanx_comm::Communicator;
use phalanx_data::{BadSample, too_many_bad};
use serde::{Deserialize, Serialize};

use crate::rundir::RunDir;
use crate::{Error, Result};

const NAME: &str = "quarantine.jsonl";

/// A line of `quarantine.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadLine {
    /// The step, from 0 over the whole run.
    pub step: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The virtual shard.
    pub shard: u32,
    /// The sample.
    pub id: u64,
    /// The sample that took its place; none where it counted nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub substitute: Option<u64>,
    /// What was wrong with its record.
    pub reason: String,
}

impl BadLine {
    /// What becomes of a sample of one shard in one step.
    pub(crate) fn new(step: u64, epoch: u64, shard: u32, bad: BadSample) -> Self {
        let BadSample { id, substitute, reason, .. } = bad;
        BadLine { step, epoch, shard, id, substitute, reason }
    }
}

/// The lines of all ranks of one step, in the order of the shards. A meeting of all ranks.
pub(crate) fn gather(comm: &dyn Communicator, mine: &[BadLine]) -> Result<Vec<BadLine>> {
    let broken = |e: serde_json::Error| Error::config("bad records", e.to_string());
    let mine = serde_json::to_vec(mine).map_err(broken)?;
    let all = comm.all_gather(&mine, comm.deadline())?;
    let mut lines = Vec::new();
    for bytes in &all {
        lines.extend(serde_json::from_slice::<Vec<BadLine>>(bytes).map_err(broken)?);
    }
    Ok(lines)
}

/// Fails when `bad` of the run's `seen` samples are too many, in the middle of an epoch. The same on all ranks.
pub(crate) fn check(bad: u64, seen: u64, limit: f64, last: &str) -> Result<()> {
    judge(too_many_bad(bad, seen, limit, false), bad, seen, limit, last)
}

/// As [`check`], where `seen` are whole epochs, or the samples of an evaluation: of those some must be left, too.
pub(crate) fn check_whole(bad: u64, seen: u64, limit: f64, last: &str) -> Result<()> {
    let none_left = bad > 0 && bad >= seen;
    judge(none_left || too_many_bad(bad, seen, limit, true), bad, seen, limit, last)
}

fn judge(too_many: bool, bad: u64, seen: u64, limit: f64, last: &str) -> Result<()> {
    match too_many {
        false => Ok(()),
        true => {
            let last = if last.is_empty() { "of an earlier start" } else { last }.to_owned();
            Err(Error::BadRecords { bad, seen, limit, last })
        }
    }
}

/// Rank 0's side.
#[derive(Debug)]
pub(crate) struct Quarantine {
    path: PathBuf,
}

impl Quarantine {
    /// Of a run that goes on from `first_step`: lines of steps that are done again are taken out.
    pub(crate) fn open(dir: &RunDir, first_step: u64) -> Result<Self> {
        let path = dir.path().join(NAME);
        if let Ok(text) = fs::read_to_string(&path) {
            // A torn line is what a killed process leaves.
            let stays =
                |line: &&str| serde_json::from_str::<BadLine>(line).is_ok_and(|l| l.step < first_step);
            let kept: String = text.lines().filter(stays).flat_map(|line| [line, "\n"]).collect();
            dir.write(NAME, kept.as_bytes())?;
        }
        Ok(Quarantine { path })
    }

    /// Adds lines; the file is made with the first.
    pub(crate) fn add(&self, lines: &[BadLine]) -> Result<()> {
        let mut text = String::new();
        for line in lines {
            let broken = |e: serde_json::Error| Error::config(NAME, e.to_string());
            text += &serde_json::to_string(line).map_err(broken)?;
            text.push('\n');
        }
        let file = fs::OpenOptions::new().create(true).append(true).open(&self.path);
        file.and_then(|mut f| f.write_all(text.as_bytes())).map_err(Error::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_has_no_line_twice() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(tmp.path());
        let path = tmp.path().join(NAME);
        let line = |step| BadLine { step, epoch: 0, shard: 1, id: 7, substitute: None, reason: "x".into() };
        let steps = || {
            let text = fs::read_to_string(&path).unwrap();
            text.lines().map(|l| serde_json::from_str::<BadLine>(l).unwrap().step).collect::<Vec<_>>()
        };
        let q = Quarantine::open(&dir, 0).unwrap();
        assert!(!path.exists());
        q.add(&[line(1), line(4)]).unwrap();
        q.add(&[line(5)]).unwrap();
        let mut torn = fs::OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"step\":5,").unwrap();
        let q = Quarantine::open(&dir, 5).unwrap();
        assert_eq!(steps(), [1, 4]);
        q.add(&[line(5)]).unwrap();
        assert_eq!(steps(), [1, 4, 5]);
    }

    #[test]
    fn too_many_end_the_run_with_the_code_of_bad_data() {
        check(10, 20, 0.01, "").unwrap();
        assert!(check_whole(10, 20, 0.01, "").is_err() && check_whole(10, 20, 0.5, "").is_ok());
        assert!(check_whole(3, 3, 1.0, "").is_err() && check_whole(0, 0, 0.0, "").is_ok());
        let e = check(11, 20, 0.01, "sample 3 of x: damaged").unwrap_err();
        assert_eq!(e.exit_code(), 3);
        let text = e.to_string();
        assert!(text.contains("11 of 20 samples") && text.contains("sample 3 of x: damaged"), "{text}");
    }
}
