//! The folder that a set is packed into: what is there already, and what is left there for a packing that goes on.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Job, Skipped, shown};
use crate::files::{TEMPORARY, remove_file, write_whole};
use crate::shards::{MANIFEST, PACKING as STATE, SetInfo, ShardSet, index_path};
use crate::{Error, Result};

/// The list of left-out samples in a finished set: a report for people, which training never reads. So the set's root does not
/// stand for it, and who deletes it has the same set.
pub(super) const SKIPPED: &str = "skipped.json";

/// In the root of a file system of its own.
const LOST_AND_FOUND: &str = "lost+found";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    plan: String,
    /// By shard, when its samples were written: no part of the plan, since copies of a source give the same set.
    #[serde(default)]
    written: Vec<u64>,
}

/// One set's folder, for one plan.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    plan: String,
}

/// What is in a folder.
enum Found {
    /// No part of a set.
    Nothing,
    /// The beginning of a set, or a set, of this plan.
    Same,
    /// Something else, in words.
    Other(String),
    /// A file or folder that is no part of any set.
    Foreign(String),
}

impl Folder {
    pub(super) fn new(dir: PathBuf, info: &SetInfo) -> Self {
        Folder { dir, plan: info.meta.get("plan").cloned().unwrap_or_default() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder ready. What an interrupted packing left under temporary names goes; finished shards stay if
    /// they are of this plan and nothing in them was written since. With `force` a set of another plan is removed. The folder is
    /// this packing's until the result is dropped, or the process has ended.
    pub(super) fn begin(&self, job: &Job, force: bool) -> Result<File> {
        fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        let lock = self.lock()?;
        let shards = (0..job.plan.shards()).map(|shard| job.plan.samples(shard));
        let written = job.listing.written_marks(shards)?;
        match self.found()? {
            Found::Other(_) if force => self.remove(&|name| is_part(name) || name.ends_with(TEMPORARY))?,
            Found::Other(what) => {
                let problem = format!("{what}; pack into another folder, or remove it with --force");
                return Err(Error::usage(shown(&self.dir), problem));
            }
            Found::Foreign(name) if !force => {
                return Err(foreign(&self.dir, &name));
            }
            Found::Nothing | Found::Same | Found::Foreign(_) => {
                self.remove(&|name| is_part(name) && name.ends_with(TEMPORARY))?;
                self.remove_outdated(&written)?;
            }
        }
        let text = serde_json::to_string(&State { plan: self.plan.clone(), written });
        let text = text.map_err(|e| Error::format(self.dir.join(STATE), e.to_string()))?;
        write_whole(&self.dir.join(STATE), text.as_bytes())?;
        Ok(lock)
    }

    /// Removes the indexes of shards whose samples were written since, so that they are packed again.
    fn remove_outdated(&self, written: &[u64]) -> Result<()> {
        let Some(state) = self.state()? else { return Ok(()) };
        if self.dir.join(MANIFEST).exists() {
            return Ok(());
        }
        for (shard, mark) in (0..).zip(written) {
            if state.written.get(shard as usize) != Some(mark) {
                remove_file(&index_path(&self.dir, shard))?;
            }
        }
        Ok(())
    }

    /// Keeps other packings out: two that write the same names would end each other, at best.
    fn lock(&self) -> Result<File> {
        let dir = File::open(&self.dir).map_err(Error::io("open", &self.dir))?;
        match dir.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let problem = "another process packs into it; wait until it is done, or name another folder";
                Err(Error::usage(shown(&self.dir), problem))
            }
            // A file system without locks for folders is no reason not to pack.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(dir),
        }
    }

    fn found(&self) -> Result<Found> {
        match self.sealed() {
            Ok(Some(set)) if set.meta().get("plan") == Some(&self.plan) => return Ok(Found::Same),
            Ok(Some(_)) => return Ok(Found::Other("holds another set".into())),
            Ok(None) => {}
            Err(e) => return Ok(Found::Other(format!("holds a set that cannot be opened ({e})"))),
        }
        if let Some(state) = self.state()? {
            let same = state.plan == self.plan;
            let what = "holds the beginning of another set, or the source has changed since";
            return Ok(if same { Found::Same } else { Found::Other(what.into()) });
        }
        let names = names(&self.dir)?;
        if let Some(name) = names.iter().find(|name| is_part(name) && !name.ends_with(TEMPORARY)) {
            return Ok(Found::Other(format!("holds {name}, which is not this packing's")));
        }
        let foreign = |name: &&String| !is_part(name) && !is_systems(name);
        Ok(names.iter().find(foreign).map_or(Found::Nothing, |name| Found::Foreign(name.clone())))
    }

    fn state(&self) -> Result<Option<State>> {
        let path = self.dir.join(STATE);
        match fs::read(&path) {
            Ok(bytes) => {
                let state = serde_json::from_slice(&bytes);
                state.map(Some).map_err(|e| Error::format(path, format!("is no state of a packing: {e}")))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", path)(e)),
        }
    }

    /// The finished set that is in the folder.
    pub(super) fn sealed(&self) -> Result<Option<ShardSet>> {
        match self.dir.join(MANIFEST).exists() {
            true => ShardSet::open(&self.dir).map(Some),
            false => Ok(None),
        }
    }

    /// That rank 0 has prepared this folder for what this rank is about to write.
    pub(super) fn check(&self) -> Result<()> {
        if self.state()?.is_some_and(|s| s.plan == self.plan) {
            return Ok(());
        }
        let problem = "rank 0 packs something else into it: the ranks do not see the same source, or not the same folder";
        Err(Error::format(&self.dir, problem))
    }

    fn remove(&self, which: &dyn Fn(&str) -> bool) -> Result<()> {
        let mut names = names(&self.dir)?;
        // The manifest first: what is half removed must not look like a set.
        names.sort_unstable_by_key(|name| !name.starts_with("dataset"));
        for name in names.iter().filter(|name| which(name)) {
            let path = self.dir.join(name);
            fs::remove_file(&path).map_err(Error::io("remove", path))?;
        }
        Ok(())
    }

    fn skipped_path(&self, shard: u32) -> PathBuf {
        self.dir.join(format!(".pack-skipped-{shard:05}.json"))
    }

    /// Keeps what shard `shard` leaves out until the set is finished.
    pub(super) fn keep_skipped(&self, shard: u32, skipped: &[Skipped]) -> Result<()> {
        let path = self.skipped_path(shard);
        if skipped.is_empty() {
            return remove_file(&path);
        }
        write_whole(&path, &to_json(&path, skipped)?)
    }

    /// What all shards left out, which is written into the set if there is any.
    pub(super) fn skipped(&self, job: &Job, shards: u32) -> Result<Vec<Skipped>> {
        let list = self.dir.join(SKIPPED);
        if self.sealed()?.is_some() {
            return read_json(&list);
        }
        let missing = job.listing.missing.iter();
        let mut all: Vec<Skipped> =
            missing.map(|m| Skipped { key: m.key.clone(), problem: m.problem.clone() }).collect();
        for shard in 0..shards {
            all.extend(read_json(&self.skipped_path(shard))?);
        }
        match all.is_empty() {
            true => drop(fs::remove_file(&list)),
            false => write_whole(&list, &to_json(&list, &all)?)?,
        }
        Ok(all)
    }

    /// Removes what only a packing that goes on would need.
    pub(super) fn end(&self) -> Result<()> {
        self.remove(&|name| name.starts_with(".pack"))
    }
}

/// The names in a folder that are text, sorted: one that is none is none of ours.
fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        names.extend(entry.map_err(Error::io("read", dir))?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// Fails when the folder of several splits holds something that is none: what is packed would lie among files of somebody
/// else's. Sets may lie there that other packings have put beside.
pub(super) fn check_above(out: &Path) -> Result<()> {
    if !out.is_dir() {
        return Ok(());
    }
    for name in names(out)?.into_iter().filter(|name| !is_systems(name)) {
        if is_part(&name) {
            let problem = format!("holds {name}, so is a set itself; splits go into folders of another one");
            return Err(Error::usage(shown(out), problem));
        }
        let dir = out.join(&name);
        // A packing may have been ended before its folder looked like a set.
        let ours = |name: &String| is_part(name) || is_systems(name);
        if !dir.is_dir() || !(crate::shards::looks_like(&dir) || names(&dir)?.iter().all(ours)) {
            return Err(foreign(out, &name));
        }
    }
    Ok(())
}

/// Names of what a file system, a desktop or a version control keeps in a folder.
fn is_systems(name: &str) -> bool {
    name == LOST_AND_FOUND || name.starts_with('.') && !name.starts_with(".pack")
}

fn foreign(dir: &Path, name: &str) -> Error {
    let problem = format!(
        "holds {name:?}, which is no part of a set; name an empty folder, or write beside it with --force"
    );
    Error::usage(shown(dir), problem)
}

/// Whether a file belongs to a set, or to its packing.
fn is_part(name: &str) -> bool {
    let of_set = name.starts_with("shard-") || name.starts_with("dataset.");
    of_set || name.starts_with(".pack") || name.starts_with(SKIPPED) || name.starts_with("quarantine.json")
}

fn to_json(path: &Path, skipped: &[Skipped]) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(skipped).map_err(|e| Error::format(path, e.to_string()))
}

/// The samples that a list names; none where there is no list.
fn read_json(path: &Path) -> Result<Vec<Skipped>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| Error::format(path, format!("is no list of left-out samples: {e}"))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}
