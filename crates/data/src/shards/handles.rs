use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, Once, PoisonError, RwLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Error, Result};

/// Files of a set that stay open at once.
const KEPT: usize = 384;
/// Files that a process should be allowed: two sets and their copies, and much else, are more than the usual 1024.
const WANTED: u64 = 4096;

/// Allows this process more open files, once, where it may be allowed more.
fn allow_more_files() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let now = getrlimit(Resource::Nofile);
        let most = now.maximum.unwrap_or(WANTED).min(WANTED);
        if now.current.is_some_and(|current| current < most) {
            // Where it is refused, files that cannot be opened are told when it comes to that.
            let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..now });
        }
    });
}

/// The open files of a set's shards: opened when first read, the oldest closed when there are too many.
#[derive(Debug)]
pub(super) struct Handles {
    slots: Vec<RwLock<Option<Arc<File>>>>,
    /// The shards whose files are open, oldest first.
    open: Mutex<VecDeque<usize>>,
    most: usize,
}

impl Handles {
    pub(super) fn new(shards: usize) -> Self {
        allow_more_files();
        Self::with_most(shards, KEPT)
    }

    pub(super) fn with_most(shards: usize, most: usize) -> Self {
        Handles { slots: (0..shards).map(|_| RwLock::default()).collect(), open: Mutex::default(), most }
    }

    /// The file of shard `shard`, which lies at `path`.
    pub(super) fn get(&self, shard: usize, path: impl FnOnce() -> std::path::PathBuf) -> Result<Arc<File>> {
        if let Some(file) = &*self.slots[shard].read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(file.clone());
        }
        let file = Arc::new(open(&path())?);
        {
            let mut slot = self.slots[shard].write().unwrap_or_else(PoisonError::into_inner);
            if let Some(other) = &*slot {
                // Another thread was quicker.
                return Ok(other.clone());
            }
            *slot = Some(file.clone());
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_back(shard);
        let oldest = if open.len() > self.most { open.pop_front() } else { None };
        drop(open);
        if let Some(oldest) = oldest {
            *self.slots[oldest].write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(file)
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(Error::io("read", path))
}
