//! The run directory: who may use it, and the files beside checkpoints and ledger.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use crate::checkpoint::{self, Progress};
use crate::config::{Config, first_difference};
use crate::snapshot::Snapshot;
use crate::{Error, Result, ledger};

/// What to do with a directory that holds a run (`--resume`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Resume {
    /// Go on from the newest good checkpoint, if there is one.
    #[default]
    Auto,
    /// Start anew; the directory must not hold a run.
    Never,
    /// Start from this checkpoint (a `step-…` directory) or from the newest one of this run directory.
    From(PathBuf),
}

impl FromStr for Resume {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Resume::Auto,
            "never" => Resume::Never,
            dir => Resume::From(dir.into()),
        })
    }
}

/// Where a start of a run begins.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Start {
    /// The checkpoint to go on from.
    pub checkpoint: Option<PathBuf>,
    /// Which start of the run this is, from 1.
    pub attempt: u32,
    /// Things the user should know.
    pub warnings: Vec<String>,
}

/// A run's directory, as rank 0 sees it.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// A run directory at `path`; nothing is touched yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        RunDir { path: path.into() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where checkpoints go.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Makes the directory ready for a start of this run. Fails when it cannot be written, or when it
    /// holds another run; what it holds is never overwritten.
    pub fn open(&self, config: &Config, resume: &Resume) -> Result<Start> {
        let unusable = |problem: String| Error::RunDir { path: self.path.clone(), problem };
        fs::create_dir_all(&self.path).map_err(Error::io("create the run directory", &self.path))?;
        let config_file = self.path.join("config.toml");
        let holds = config_file.exists();
        if holds {
            let text = fs::read_to_string(&config_file).map_err(Error::io("read", &config_file))?;
            let before = Config::parse(&text, &config_file.display().to_string(), &[])?;
            if *resume == Resume::Never {
                return Err(unusable("it holds a run already; choose another directory with --out".into()));
            }
            if let Some((key, was, now)) = first_difference(&before.identity()?, &config.identity()?) {
                return Err(unusable(format!(
                    "it holds another run: {key} was {was} there and is {now} now; choose another directory \
                     with --out"
                )));
            }
        }
        let mut warnings = Vec::new();
        let checkpoint = match resume {
            Resume::Never => None,
            Resume::Auto => self.newest(&self.checkpoints(), &mut warnings)?.map(|c| c.0),
            Resume::From(dir) if dir.join("COMPLETE").exists() || dir.join("state.json").exists() => {
                Some(dir.clone())
            }
            Resume::From(dir) => {
                let found = self.newest(&dir.join("checkpoints"), &mut warnings)?;
                let none = || Error::Checkpoint {
                    path: dir.clone(),
                    problem: "it is neither a checkpoint nor a run directory that has one".into(),
                };
                Some(found.ok_or_else(none)?.0)
            }
        };
        // The newest good checkpoint may not be the newest: what lies beyond it is history undone.
        self.write("config.toml", config.to_toml()?.as_bytes())?;
        let attempt = ledger::next_attempt(&self.path)?;
        Ok(Start { checkpoint, attempt, warnings })
    }

    fn newest(
        &self,
        dir: &Path,
        warnings: &mut Vec<String>,
    ) -> Result<Option<(PathBuf, Snapshot, Progress)>> {
        checkpoint::newest(dir, |w| warnings.push(w))
    }

    /// Writes a file as temporary, synced, renamed.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, tmp) = (self.path.join(name), self.path.join(format!(".{name}.tmp")));
        let write = || {
            let mut file = fs::File::create(&tmp)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&tmp, &path)
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&tmp);
            Error::io("write", &path)(e)
        })
    }

    /// Writes a value as pretty JSON.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|e| Error::RunDir { path: self.path.join(name), problem: e.to_string() })?;
        self.write(name, &bytes)
    }

    /// Forgets the outcome of an earlier attempt, which this one goes beyond.
    pub fn clear_summary(&self) -> Result<()> {
        let path = self.path.join("summary.json");
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(set: &[&str]) -> Config {
        let text = "[model]\nname = \"lenet5\"\n[data]\ntrain = \"digits\"\n[optimizer]\nname = \"sgd\"\nlr = 0.1\n\
                    [train]\nepochs = 1\nglobal_batch = 8\n";
        Config::parse(text, "t", &set.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_directory_takes_its_own_run_again_and_no_other() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(tmp.path().join("a/b"));
        let start = dir.open(&config(&[]), &Resume::Auto).unwrap();
        assert_eq!(start, Start { checkpoint: None, attempt: 1, warnings: vec![] });
        assert!(dir.open(&config(&["train.epochs=5"]), &Resume::Auto).is_ok());
        let e = dir.open(&config(&["seed=4"]), &Resume::Auto).unwrap_err();
        assert!(e.to_string().contains("seed was 0 there and is 4 now") && e.exit_code() == 2, "{e}");
        let e = dir.open(&config(&[]), &Resume::Never).unwrap_err();
        assert!(e.to_string().contains("--out"), "{e}");
        let e = dir.open(&config(&["train.epochs=5"]), &Resume::From(tmp.path().join("none"))).unwrap_err();
        assert!(e.to_string().contains("neither a checkpoint"), "{e}");
    }

    #[test]
    fn an_unusable_place_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("file"), "x").unwrap();
        let e = RunDir::new(tmp.path().join("file/run")).open(&config(&[]), &Resume::Auto).unwrap_err();
        assert!(e.to_string().contains("file/run"), "{e}");
    }
}
