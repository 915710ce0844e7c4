use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::format::data_path;
use super::handles::Handles;

/// Copies of some shards' files in another directory, nearer to this node. Whatever is wrong with one, the original is
/// read instead: a copy may be removed at any time.
#[derive(Debug)]
pub(super) struct Copies {
    pub(super) dir: PathBuf,
    /// By shard.
    there: Vec<AtomicBool>,
    pub(super) handles: Handles,
    /// Locked for as long as they are read.
    _in_use: Option<File>,
}

/// The file in a directory of copies that whoever reads them has locked for reading, and that tells by its time when they were
/// last begun to be read.
pub(crate) const IN_USE: &str = ".in-use";

/// Says that the copies in a directory are wanted, until the result is dropped. Without it they may go when somebody needs the
/// room, and the originals are read.
pub(crate) fn hold(dir: &Path) -> Option<File> {
    File::create(dir.join(IN_USE)).ok().filter(|file| file.try_lock_shared().is_ok())
}

impl Copies {
    pub(super) fn new(dir: &Path, shards: usize, copied: &[u32]) -> Self {
        let there = (0..shards).map(|n| AtomicBool::new(copied.contains(&(n as u32)))).collect();
        Copies { dir: dir.to_owned(), there, handles: Handles::new(shards), _in_use: hold(dir) }
    }

    /// Whether there is a copy of a shard's file.
    pub(super) fn has(&self, shard: usize) -> bool {
        self.there.get(shard).is_some_and(|there| there.load(Ordering::Relaxed))
    }

    /// Gives up a copy that is not what its original is, so that each record is not read twice. Where nobody else has it open it
    /// is gone, and the next run makes another.
    pub(super) fn give_up(&self, shard: usize) {
        if let Some(there) = self.there.get(shard) {
            there.store(false, Ordering::Relaxed);
            let _ = std::fs::remove_file(data_path(&self.dir, shard as u32));
        }
    }
}
