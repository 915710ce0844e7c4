use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A sample that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its path in the source.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What became of one split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitReport {
    /// `train` or `val`; None where the source has no splits.
    pub split: Option<String>,
    /// The set's folder.
    pub dir: PathBuf,
    /// Samples in it.
    pub records: u64,
    /// Classes; 0 without labels.
    pub classes: usize,
    /// Bytes of all files with records.
    pub bytes: u64,
    /// Shards.
    pub shards: u32,
    /// Those of rank 0's that an earlier packing had finished.
    pub kept: u32,
    /// What was left out.
    pub skipped: Vec<Skipped>,
    /// What looked odd in the source.
    pub warnings: Vec<String>,
    /// BLAKE3 of the set, in hexadecimal.
    pub root: String,
}

/// What [`super::pack`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackReport {
    /// The folder that was asked for.
    pub out: PathBuf,
    /// Its splits.
    pub splits: Vec<SplitReport>,
}

/// Skipped samples that are shown one by one.
const SHOWN: usize = 10;

impl fmt::Display for PackReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for s in &self.splits {
            let kept = if s.kept > 0 { format!(", {} of them kept", s.kept) } else { String::new() };
            writeln!(
                f,
                "{}  {} samples of {} classes, {:.1} MB in {} shards{kept}, root {}",
                s.dir.display(),
                s.records,
                s.classes,
                s.bytes as f64 / 1e6,
                s.shards,
                s.root
            )?;
            if !s.skipped.is_empty() {
                writeln!(f, "  left out {} samples:", s.skipped.len())?;
            }
            for skipped in s.skipped.iter().take(SHOWN) {
                writeln!(f, "    {}: {}", skipped.key, skipped.problem)?;
            }
            if s.skipped.len() > SHOWN {
                writeln!(f, "    … all of them in {}", s.dir.join(super::folder::SKIPPED).display())?;
            }
        }
        write!(f, "ready: train = {:?}", self.out.display().to_string())
    }
}
