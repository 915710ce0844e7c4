use std::path::{Path, PathBuf};

use super::handles::Handles;

/// Copies of some shards' files in another directory, nearer to this node. Whatever is wrong with one, the original is
/// read instead: a copy may be removed at any time.
#[derive(Debug)]
pub(super) struct Copies {
    pub(super) dir: PathBuf,
    /// By shard.
    there: Vec<bool>,
    pub(super) handles: Handles,
}

impl Copies {
    pub(super) fn new(dir: &Path, shards: usize, copied: &[u32]) -> Self {
        let mut there = vec![false; shards];
        for &shard in copied {
            if let Some(there) = there.get_mut(shard as usize) {
                *there = true;
            }
        }
        Copies { dir: dir.to_owned(), there, handles: Handles::new(shards) }
    }

    /// Whether there is a copy of a shard's file.
    pub(super) fn has(&self, shard: usize) -> bool {
        self.there.get(shard).is_some_and(|there| *there)
    }
}
