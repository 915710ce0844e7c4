//! Copies: a directory of the user's own, a lock, files that appear whole.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::plan::{Plan, Wanted};
use crate::files::TEMPORARY;
use crate::{Error, Result, shards};

/// Bytes that are read and written at once.
const PIECE: usize = 8 << 20;
/// Bytes of a file system that are left free: others need some.
const SPARE: u64 = 1 << 30;

/// Whether two paths are on one file system. What cannot be asked is none of the two's.
pub(super) fn same_file_system(a: &Path, b: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).ok().map(|m| m.dev());
    device(a).is_some() && device(a) == device(b)
}

/// A directory for copies, of this user alone.
#[derive(Debug)]
pub(super) struct Area {
    dir: PathBuf,
}

/// Held while copying. It ends with the process, however that ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Area {
    /// Makes the directory in `place`, or finds it there. Fails, with a reason, when it is not this user's.
    pub(super) fn open(place: &Path) -> std::result::Result<Self, String> {
        let me = fs::metadata("/proc/self").map_err(|e| format!("the user is not known: {e}"))?.uid();
        let dir = place.join(format!("phalanx-stage-{me}"));
        let made = DirBuilder::new().mode(0o700).create(&dir);
        match fs::symlink_metadata(&dir) {
            // In a directory that all may write anybody may have made it.
            Ok(m) if m.is_dir() && m.uid() == me => Ok(Area { dir }),
            Ok(_) => Err(format!("{} is not a directory of this user", dir.display())),
            Err(e) => Err(format!("cannot create {}: {}", dir.display(), made.err().unwrap_or(e))),
        }
    }

    /// `None` while another process copies.
    pub(super) fn lock(&self) -> std::result::Result<Option<Lock>, String> {
        let path = self.dir.join(".lock");
        let failed = |e: std::io::Error| format!("cannot lock {}: {e}", path.display());
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(failed(e)),
        }
    }

    /// Bytes that may be written.
    pub(super) fn free(&self) -> std::result::Result<u64, String> {
        let of = rustix::fs::statvfs(&self.dir)
            .map_err(|e| format!("the free space of {} is not known: {e}", self.dir.display()))?;
        let spare = SPARE.min(of.f_blocks.saturating_mul(of.f_frsize) / 20);
        Ok(of.f_bavail.saturating_mul(of.f_frsize).saturating_sub(spare))
    }

    /// Removes copies of other sets than `keep` that nobody reads, the longest unused first, until `bytes` may be written. Only
    /// while the lock is held.
    pub(super) fn make_room(&self, keep: &[&str], bytes: u64) -> std::result::Result<(), String> {
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let (name, dir) = (entry.file_name(), entry.path());
            let used = dir.join(shards::IN_USE);
            let is_root = name.len() == 2 * blake3::OUT_LEN && entry.file_type().is_ok_and(|t| t.is_dir());
            if is_root && !keep.iter().any(|root| name == *root) {
                let last = fs::metadata(&used).or_else(|_| fs::metadata(&dir)).and_then(|m| m.modified());
                others.push((last.ok(), dir, used));
            }
        }
        others.sort();
        for (_, dir, used) in others {
            if self.free()? >= bytes {
                break;
            }
            let file = File::options().create(true).truncate(false).write(true).open(used);
            // Locked until it is gone.
            if let Some(_held) = file.ok().filter(|file| file.try_lock().is_ok()) {
                // What cannot be removed is in nobody's way but the room's.
                let _ = fs::remove_dir_all(dir);
            }
        }
        Ok(())
    }

    /// Holds a set's copies from before they are made ([`shards::hold`]).
    pub(super) fn hold(&self, root: &str) -> Option<File> {
        let dir = self.of(root);
        fs::create_dir_all(&dir).ok()?;
        shards::hold(&dir)
    }

    fn of(&self, root: &str) -> PathBuf {
        self.dir.join(root)
    }

    /// Whether a copy is there. One that is, is whole: it was renamed once it was.
    pub(super) fn has(&self, root: &str, number: u32, bytes: u64) -> bool {
        let path = shards::data_path(&self.of(root), number);
        fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() == bytes)
    }
}

/// A file in work.
#[derive(Debug)]
struct Open {
    from: File,
    from_path: PathBuf,
    to: File,
    temporary: PathBuf,
    at: u64,
    file: Wanted,
}

/// The copying of a plan's files, in pieces.
#[derive(Debug)]
pub(super) struct Copying {
    area: Area,
    /// The sets' roots and directories.
    sets: Vec<(String, PathBuf)>,
    there: Vec<Wanted>,
    rest: std::vec::IntoIter<Wanted>,
    open: Option<Open>,
    copied: u64,
    piece: Vec<u8>,
}

impl Drop for Copying {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            // Of a file that is not whole.
            let _ = fs::remove_file(&open.temporary);
        }
    }
}

impl Copying {
    pub(super) fn new(area: Area, sets: Vec<(String, PathBuf)>, plan: Plan) -> Self {
        let rest = plan.copy.into_iter();
        Copying { area, sets, there: plan.keep, rest, open: None, copied: 0, piece: Vec::new() }
    }

    /// Copies until `until`; returns whether all is copied. What is done before an error stays.
    pub(super) fn advance(&mut self, until: Instant) -> Result<bool> {
        self.piece.resize(PIECE, 0);
        loop {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => match self.rest.next() {
                    Some(file) => self.begin(file)?,
                    None => return Ok(true),
                },
            };
            let result = self.piece_of(&mut open);
            match result {
                Ok(true) => {
                    self.copied += open.file.bytes;
                    self.there.push(open.file);
                }
                Ok(false) => self.open = Some(open),
                Err(e) => {
                    // The room is of more use to others.
                    let _ = fs::remove_file(&open.temporary);
                    return Err(e);
                }
            }
            if Instant::now() >= until {
                return Ok(self.open.is_none() && self.rest.as_slice().is_empty());
            }
        }
    }

    fn begin(&self, file: Wanted) -> Result<Open> {
        let (root, dir) = &self.sets[file.set];
        let to_dir = self.area.of(root);
        fs::create_dir_all(&to_dir).map_err(Error::io("create", &to_dir))?;
        let from_path = shards::data_path(dir, file.number);
        let from = File::open(&from_path).map_err(Error::io("open", &from_path))?;
        // One name for all processes: what a killed one has left is overwritten.
        let mut temporary = shards::data_path(&to_dir, file.number).into_os_string();
        temporary.push(TEMPORARY);
        let temporary = PathBuf::from(temporary);
        let to = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        Ok(Open { from, from_path, to, temporary, at: 0, file })
    }

    /// Copies a piece; returns whether the file is whole and has its name.
    fn piece_of(&mut self, open: &mut Open) -> Result<bool> {
        let left = (open.file.bytes - open.at).min(PIECE as u64) as usize;
        let piece = &mut self.piece[..left];
        open.from.read_exact_at(piece, open.at).map_err(Error::io("read", &open.from_path))?;
        open.to.write_all(piece).map_err(Error::io("write", &open.temporary))?;
        open.at += left as u64;
        if open.at < open.file.bytes {
            return Ok(false);
        }
        // Not synced: after a crash of the machine its checksums tell of a damaged record, and the original is read.
        let name = shards::data_path(&self.area.of(&self.sets[open.file.set].0), open.file.number);
        fs::rename(&open.temporary, &name).map_err(Error::io("rename a temporary file to", &name))?;
        Ok(true)
    }

    /// Where each set's copies are, which there are, and how many bytes are new.
    pub(super) fn finish(&self) -> (Vec<(PathBuf, Vec<u32>)>, u64) {
        let of = |set: usize| {
            let mut numbers: Vec<u32> =
                self.there.iter().filter(|f| f.set == set).map(|f| f.number).collect();
            numbers.sort_unstable();
            (self.area.of(&self.sets[set].0), numbers)
        };
        ((0..self.sets.len()).map(of).collect(), self.copied)
    }
}
