//! The run directory: who may use it, and the files beside checkpoints and ledger.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use phalanx_comm::side::host_name;
use phalanx_comm::{AbortKind, Communicator, Deadline};
use serde::Serialize;

use crate::checkpoint::{self, Progress};
use crate::config::{Config, other_run};
use crate::report::Summary;
use crate::snapshot::Snapshot;
use crate::{Error, Result, ledger, share};

/// How long a file that one machine has written may be hidden from another by caches.
const CACHES: Duration = Duration::from_secs(5);

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
    /// The summary of the start before, where it came to its end.
    pub ended: Option<Summary>,
}

/// The right to use a run directory, held by one process at a time. It ends with the process, however
/// that ends: the system holds it, not the file.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    /// Why it does not hold others off, on a file system without locks.
    pub warning: Option<String>,
}

/// A run's directory, as rank 0 sees it.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
}

/// The file that [`keep_failure`] writes.
const FAILURE: &str = "failure.txt";

/// Leaves the message of a failure in an existing run directory: what a failing job prints last, its launcher may
/// cut off. Not that of a wrong command, which is no failure of the run that the directory holds. The end of the process never waits long for it, as the disk may be what has failed.
pub fn keep_failure(dir: &Path, kind: AbortKind, text: &str) {
    const PATIENCE: Duration = Duration::from_millis(300);
    if kind == AbortKind::Usage {
        return;
    }
    let (path, text) = (dir.join(FAILURE), format!("error: {text}\n"));
    let (tell, done) = std::sync::mpsc::channel();
    let write = move || {
        // There is nobody left to be told of a failure to write it.
        let _ = fs::write(path, text);
        let _ = tell.send(());
    };
    if std::thread::Builder::new().name("failure".into()).spawn(write).is_ok() {
        let _ = done.recv_timeout(PATIENCE);
    }
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

    /// Makes the directory and takes it for this process. Fails when it cannot be written, or when
    /// another process has it.
    pub fn lock(&self) -> Result<Lock> {
        let unusable = |problem: String| Error::RunDir { path: self.path.clone(), problem };
        let hint = "choose another run directory with --out";
        fs::create_dir_all(&self.path)
            .map_err(|e| unusable(format!("the run directory cannot be created: {e}; {hint}")))?;
        let path = self.path.join(".lock");
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| unusable(format!("the run directory cannot be written: {e}; {hint}")))?;
        let warning = match file.try_lock() {
            Ok(()) => None,
            Err(TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                let holder = Some(holder.trim())
                    .filter(|h| !h.is_empty())
                    .map_or(String::new(), |h| format!(" ({h})"));
                let problem = format!("another process{holder} is training in it; wait for it, or {hint}");
                return Err(unusable(problem));
            }
            Err(TryLockError::Error(e)) => Some(format!(
                "{} cannot be locked ({e}): take care to start one process at a time on it",
                path.display()
            )),
        };
        // For the message above alone: nothing is lost when it cannot be written.
        let _ = file.set_len(0);
        let _ = writeln!(file, "process {} on {}", std::process::id(), host_name());
        Ok(Lock { _file: file, warning })
    }

    /// Finds where a start of this run begins. Fails when the directory holds another run. Nothing of
    /// value is changed: that is [`RunDir::begin`]'s, once it is known that the run can go on.
    pub fn open(&self, config: &Config, resume: &Resume) -> Result<(Start, Option<(Snapshot, Progress)>)> {
        let unusable = |problem: String| Error::RunDir { path: self.path.clone(), problem };
        let config_file = self.path.join("config.toml");
        let holds = config_file.exists();
        if holds {
            let text = fs::read_to_string(&config_file).map_err(Error::io("read", &config_file))?;
            let before = Config::parse(&text, &config_file.display().to_string(), &[])?;
            if *resume == Resume::Never {
                return Err(unusable("it holds a run already; choose another directory with --out".into()));
            }
            if let Some((key, was, now)) = other_run(&before.identity()?, &config.identity()?) {
                return Err(unusable(format!(
                    "it holds another run: {key} was {was} there and is {now} now; choose another directory \
                     with --out"
                )));
            }
        }
        checkpoint::recover(&self.checkpoints())?;
        let mut warnings = Vec::new();
        let found = match resume {
            Resume::Never => None,
            Resume::Auto => checkpoint::newest(&self.checkpoints(), |w| warnings.push(w))?,
            Resume::From(dir) if dir.join("COMPLETE").exists() || dir.join("state.json").exists() => {
                let (snapshot, progress) = checkpoint::read(dir)?;
                Some((dir.clone(), snapshot, progress))
            }
            Resume::From(dir) => {
                let found = checkpoint::newest(&dir.join("checkpoints"), |w| warnings.push(w))?;
                let none = || Error::Checkpoint {
                    path: dir.clone(),
                    problem: "it is neither a checkpoint nor a run directory that has one".into(),
                };
                Some(found.ok_or_else(none)?)
            }
        };
        let (checkpoint, saved) = found.map(|(path, s, p)| (path, (s, p))).unzip();
        let attempt = ledger::next_attempt(&self.path)?;
        let ended =
            fs::read(self.path.join("summary.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
        Ok((Start { checkpoint, attempt, warnings, ended }, saved))
    }

    /// Makes the directory ready for a start of this run from `step` on: it is this configuration's, and
    /// checkpoints of later steps (damaged ones, or those that the user goes back behind) are set
    /// aside, since the run does those steps again. Returns what the user should know.
    pub fn begin(&self, config: &Config, step: u64) -> Result<Vec<String>> {
        // It told of the start before.
        let _ = fs::remove_file(self.path.join(FAILURE));
        for name in ["config.toml", "env.json", "summary.json", "metrics.jsonl"] {
            // Left by a process that was killed while it wrote.
            let _ = fs::remove_file(self.tmp_of(name));
        }
        let aside = checkpoint::set_aside(&self.checkpoints(), step)?;
        self.write("config.toml", config.to_toml()?.as_bytes())?;
        let names: Vec<String> = aside.iter().map(|p| p.display().to_string()).collect();
        Ok(match names.is_empty() {
            true => Vec::new(),
            false => vec![format!(
                "the run goes on from step {step}; what lies beyond is kept as {} until it has come past it again",
                names.join(", ")
            )],
        })
    }

    fn tmp_of(&self, name: &str) -> PathBuf {
        self.path.join(format!(".{name}.tmp"))
    }

    /// Checks that every rank sees this very directory: what rank 0 writes, all must be able to read. A
    /// meeting of all ranks.
    pub fn check_shared(&self, comm: &dyn Communicator, attempt: u32) -> Result<()> {
        if comm.world() == 1 {
            return Ok(());
        }
        // Of this start alone, so that no machine has its absence in its cache.
        let path = self.path.join(format!(".start-{attempt:04}"));
        let token = share::from_rank_0(comm, comm.deadline(), || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let token = format!("{} {} {}", host_name(), std::process::id(), now.as_nanos());
            fs::write(&path, &token).map_err(Error::io("write", &path))?;
            Ok(token)
        })?;
        let begun = Instant::now();
        let sees = || fs::read_to_string(&path).is_ok_and(|t| t == token);
        let mut seen = sees();
        while !seen && begun.elapsed() < CACHES && comm.aborted().is_none() {
            std::thread::sleep(CACHES / 50);
            seen = sees();
        }
        let mine = format!("{}{}", if seen { '+' } else { '-' }, host_name());
        let deadline = Deadline::after(comm.deadline().allowed().saturating_add(CACHES));
        let all = comm.all_gather(mine.as_bytes(), deadline);
        if comm.rank() == 0 {
            let _ = fs::remove_file(&path);
        }
        let all: Vec<String> = all?.iter().map(|b| String::from_utf8_lossy(b).into_owned()).collect();
        match all.iter().position(|a| a.starts_with('-')) {
            None => Ok(()),
            Some(rank) => {
                let problem = format!(
                    "it is not shared: rank {rank} on {} does not see what rank 0 on {} has written there; choose \
                     a directory on a file system of all machines with --out",
                    &all[rank][1..],
                    &all[0][1..]
                );
                Err(Error::RunDir { path: self.path.clone(), problem })
            }
        }
    }

    /// Writes a file as temporary, synced, renamed.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, tmp) = (self.path.join(name), self.tmp_of(name));
        let write = || {
            let mut file = File::create(&tmp)?;
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
    use crate::ranks;

    fn config(set: &[&str]) -> Config {
        let text = "[model]\nname = \"lenet5\"\n[data]\ntrain = \"digits\"\n[optimizer]\nname = \"sgd\"\nlr = 0.1\n\
                    [train]\nepochs = 1\nglobal_batch = 8\n";
        Config::parse(text, "t", &set.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_directory_takes_its_own_run_again_and_no_other() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(tmp.path().join("a/b"));
        let _lock = dir.lock().unwrap();
        let (start, saved) = dir.open(&config(&[]), &Resume::Auto).unwrap();
        assert_eq!(saved, None);
        assert_eq!(start, Start { checkpoint: None, attempt: 1, warnings: vec![], ended: None });
        // Nothing is claimed before the run can begin.
        assert!(dir.open(&config(&["seed=4"]), &Resume::Never).is_ok());
        assert_eq!(dir.begin(&config(&[]), 0).unwrap(), Vec::<String>::new());
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
        let e = RunDir::new(tmp.path().join("file/run")).lock().unwrap_err();
        assert!(e.to_string().contains("file/run") && e.exit_code() == 2, "{e}");
    }

    #[test]
    fn a_directory_that_is_not_shared_is_told_with_rank_and_host() {
        let tmp = tempfile::tempdir().unwrap();
        let of = |rank: u32, apart: bool| {
            let dir = tmp.path().join(if apart { rank.to_string() } else { "all".into() });
            fs::create_dir_all(&dir).unwrap();
            RunDir::new(dir)
        };
        let check = |apart| {
            ranks::run_threads(3, Duration::from_secs(2), phalanx_host::Isa::Portable, |comm| {
                of(comm.rank(), apart && comm.rank() > 0).check_shared(&*comm, 1)
            })
        };
        // The token of an earlier start is none of this one.
        fs::create_dir_all(tmp.path().join("1")).unwrap();
        fs::write(tmp.path().join("1/.start-0001"), "elsewhere 1 1").unwrap();
        check(false).unwrap();
        let e = check(true).unwrap_err();
        let told = format!("rank 1 on {0} does not see what rank 0 on {0} has written", host_name());
        assert!(e.to_string().contains("not shared") && e.to_string().contains(&told), "{e}");
        assert_eq!(e.exit_code(), 2);
        assert_eq!(fs::read_dir(tmp.path().join("all")).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_is_one_process_s_at_a_time() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(tmp.path());
        let held = dir.lock().unwrap();
        assert_eq!(held.warning, None);
        let e = dir.lock().unwrap_err();
        let me = format!("process {} on", std::process::id());
        assert!(e.to_string().contains(&me) && e.exit_code() == 2, "{e}");
        drop(held);
        dir.lock().unwrap();
    }
}
