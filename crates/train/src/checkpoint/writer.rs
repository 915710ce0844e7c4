//! Writing in the background: the step goes on while the snapshot goes to disk.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::{Progress, prune, write};
use crate::snapshot::Snapshot;
use crate::{Error, Result};

/// Writes `bytes` to a new file and makes them durable.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(Error::io("write", path))
}

/// Writes one checkpoint at a time. Errors surface at the next call.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    keep: usize,
    running: Option<JoinHandle<Result<PathBuf>>>,
}

impl Writer {
    /// A writer to `dir`, which keeps the newest `keep` checkpoints there.
    pub fn new(dir: PathBuf, keep: usize) -> Self {
        Writer { dir, keep, running: None }
    }

    /// Waits for the write before, then starts this one. `disk_full` plants a failure half way.
    pub fn start(&mut self, snapshot: Snapshot, progress: Progress, disk_full: bool) -> Result<()> {
        self.wait()?;
        let (dir, keep) = (self.dir.clone(), self.keep);
        let job = move || {
            if disk_full {
                let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                return Err(Error::io("write", &dir)(full));
            }
            let path = write(&dir, &snapshot, &progress)?;
            prune(&dir, keep)?;
            Ok(path)
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(job);
        self.running = Some(thread.map_err(Error::io("start a thread for", &self.dir))?);
        Ok(())
    }

    /// Whether a write is under way or has an outcome to tell; never waits.
    pub fn poll(&mut self) -> Result<()> {
        match &self.running {
            Some(t) if t.is_finished() => self.wait().map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Waits for the write under way, if any, and returns the path that it wrote.
    pub fn wait(&mut self) -> Result<Option<PathBuf>> {
        let Some(thread) = self.running.take() else { return Ok(None) };
        match thread.join() {
            Ok(result) => result.map(Some),
            Err(_) => {
                let problem = "the writing thread panicked".to_owned();
                Err(Error::Checkpoint { path: self.dir.clone(), problem })
            }
        }
    }
}

impl Drop for Writer {
    /// A run that ends early still finishes the write under way: half a checkpoint helps nobody.
    fn drop(&mut self) {
        let _ = self.wait();
    }
}
