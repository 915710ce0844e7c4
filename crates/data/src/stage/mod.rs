//! Staging: one process of a node copies the files that the node will read to a disk of its own, or into memory, before
//! the first step. Nothing that goes wrong here ends a run: what is not copied is read where it lies.

mod copy;
mod plan;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use copy::{Area, Copying, Lock};
use plan::{Plan, Wanted, plan};
use serde::{Deserialize, Serialize};

use crate::files::hex;
use crate::{Result, Source};

/// Where files are copied to (`data.stage`).
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Stage {
    /// Nowhere.
    #[default]
    Off,
    /// To `$SLURM_TMPDIR` or the system's directory for temporary files, where that is another file system than the
    /// set's.
    Auto,
    /// To this directory.
    Dir(PathBuf),
}

impl From<String> for Stage {
    fn from(text: String) -> Self {
        match &*text {
            "off" => Stage::Off,
            "auto" => Stage::Auto,
            _ => Stage::Dir(text.into()),
        }
    }
}

impl From<Stage> for String {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Off => "off".into(),
            Stage::Auto => "auto".into(),
            Stage::Dir(dir) => dir.to_string_lossy().into_owned(),
        }
    }
}

impl Stage {
    /// Whether nothing is copied.
    pub fn is_off(&self) -> bool {
        *self == Stage::Off
    }

    fn places(&self) -> Vec<PathBuf> {
        match self {
            Stage::Off => Vec::new(),
            Stage::Dir(dir) => vec![dir.clone()],
            // Not memory, which a run may need: that must be asked for by its name.
            Stage::Auto => std::env::var_os("SLURM_TMPDIR")
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
                .into_iter()
                .chain([std::env::temp_dir()])
                .filter(|dir| !is_memory(dir))
                .collect(),
        }
    }
}

/// Whether a folder's files are kept in memory, as those of /dev/shm and often of /tmp.
fn is_memory(dir: &Path) -> bool {
    // `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
    rustix::fs::statfs(dir)
        .is_ok_and(|of| [0x0102_1994, 0x8584_58f6].contains(&(of.f_type as u64 & 0xffff_ffff)))
}

/// What a node has copies of. Its other processes are told, and use them too.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// By set.
    pub sets: Vec<StagedSet>,
    /// Bytes of all copies.
    pub bytes: u64,
    /// Those of them that were not there before.
    pub copied: u64,
    /// Bytes that are read where they lie.
    pub left: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Copies of a set's shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedSet {
    /// The set's BLAKE3 root.
    pub root: String,
    /// Where they are.
    pub dir: PathBuf,
    /// Which.
    pub shards: Vec<u32>,
}

impl Staged {
    /// Lets a source read from the copies.
    pub fn apply(&self, source: &dyn Source) {
        let Some(set) = source.shard_set() else { return };
        let root = hex(&set.root());
        if let Some(staged) = self.sets.iter().find(|s| s.root == root) {
            set.use_copies(&staged.dir, &staged.shards);
        }
    }
}

/// How long another process of this user may copy before this one goes on without copies.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks whether it has ended.
const REST: Duration = Duration::from_millis(20);

/// The work of staging, in pieces, so that whoever does it can tell others in between that it is alive.
#[derive(Debug)]
pub struct Stager {
    sets: Vec<Set>,
    places: Vec<PathBuf>,
    /// Whether a place must be another file system than the sets'.
    elsewhere: bool,
    limit: u64,
    since: Instant,
    state: State,
    staged: Staged,
    /// Until it is finished and whoever reads the copies holds them.
    held: Vec<File>,
}

/// A set's shards that will be read.
#[derive(Debug)]
struct Set {
    root: String,
    dir: PathBuf,
    shards: Vec<(u32, u64)>,
}

#[derive(Debug)]
enum State {
    /// For a place that no other process is copying to.
    Waiting,
    Copying {
        lock: Lock,
        copying: Box<Copying>,
    },
    Done,
}

impl Stager {
    /// Gets ready to copy what `sources` will read, the more important ones first, at most `limit` bytes of it. `None`
    /// when there is nothing to do.
    pub fn new(sources: &[&dyn Source], stage: &Stage, limit: Option<u64>) -> Result<Option<Self>> {
        let mut sets: Vec<Set> = Vec::new();
        for source in sources.iter().filter(|_| !stage.is_off()) {
            let Some(set) = source.shard_set() else { continue };
            let (root, touched) = (hex(&set.root()), touched(*source)?);
            let at = match sets.iter().position(|s| s.root == root) {
                Some(at) => at,
                None => {
                    sets.push(Set { root, dir: set.dir().to_owned(), shards: Vec::new() });
                    sets.len() - 1
                }
            };
            for shard in set.shards().iter().filter(|s| touched[s.number as usize]) {
                let shard = (shard.number, shard.bytes);
                if !sets[at].shards.contains(&shard) {
                    sets[at].shards.push(shard);
                }
            }
        }
        Ok((!sets.is_empty()).then(|| Stager {
            sets,
            places: stage.places(),
            elsewhere: *stage == Stage::Auto,
            limit: limit.unwrap_or(u64::MAX),
            since: Instant::now(),
            state: State::Waiting,
            staged: Staged::default(),
            held: Vec::new(),
        }))
    }

    /// Goes on until `until` or the end; returns whether it has come to its end.
    pub fn advance(&mut self, until: Instant) -> bool {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Done) {
                State::Waiting => self.begin(),
                State::Copying { lock, mut copying } => match copying.advance(until) {
                    Ok(true) => {
                        self.end(&copying, None);
                        drop(lock);
                        State::Done
                    }
                    Ok(false) => State::Copying { lock, copying },
                    Err(e) => {
                        self.end(&copying, Some(e.to_string()));
                        drop(lock);
                        State::Done
                    }
                },
                State::Done => return true,
            };
            if matches!(self.state, State::Done) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            if matches!(self.state, State::Waiting) {
                std::thread::sleep(REST);
            }
        }
    }

    /// What came of it.
    pub fn finish(mut self) -> Staged {
        let all: u64 = self.sets.iter().flat_map(|s| &s.shards).map(|s| s.1).sum();
        self.staged.left = all.saturating_sub(self.staged.bytes);
        self.staged
    }

    /// Chooses a place and makes the plan, unless another process is copying there.
    fn begin(&mut self) -> State {
        let mut problems = Vec::new();
        let mut best: Option<(Lock, Area, Plan)> = None;
        for place in &self.places {
            match self.try_place(place) {
                Ok(Some((lock, area, plan))) => {
                    // The first that holds all, or else the one that holds most.
                    let whole = plan.left == 0;
                    if best.as_ref().is_none_or(|(.., b)| b.bytes < plan.bytes) {
                        best = Some((lock, area, plan));
                    }
                    if whole {
                        break;
                    }
                }
                Ok(None) if self.since.elapsed() < PATIENCE => return State::Waiting,
                Ok(None) => {
                    problems.push(format!("another process has been copying to {} for long", place.display()))
                }
                Err(problem) => problems.push(problem),
            }
        }
        match best {
            Some((lock, area, plan)) => {
                let sets = self.sets.iter().map(|s| (s.root.clone(), s.dir.clone())).collect();
                self.held = self.sets.iter().filter_map(|s| area.hold(&s.root)).collect();
                State::Copying { lock, copying: Box::new(Copying::new(area, sets, plan)) }
            }
            None => {
                let why =
                    if problems.is_empty() { "no place is fit".to_owned() } else { problems.join("; ") };
                self.staged.warnings.push(format!("nothing is staged: {why}"));
                State::Done
            }
        }
    }

    /// The plan for a place; `None` while another process has it.
    fn try_place(&self, place: &Path) -> std::result::Result<Option<(Lock, Area, Plan)>, String> {
        if self.elsewhere && self.sets.iter().any(|set| copy::same_file_system(place, &set.dir)) {
            return Err(format!("{} is on the set's own file system", place.display()));
        }
        let area = Area::open(place)?;
        let Some(lock) = area.lock()? else { return Ok(None) };
        let mut wanted = Vec::new();
        for (set, of) in self.sets.iter().enumerate() {
            for &(number, bytes) in &of.shards {
                let there = area.has(&of.root, number, bytes);
                wanted.push(Wanted { set, number, bytes, there });
            }
        }
        let need: u64 = wanted.iter().filter(|w| !w.there).map(|w| w.bytes).sum();
        let need = need.min(self.limit);
        if need > area.free()? {
            area.make_room(&self.sets.iter().map(|s| s.root.as_str()).collect::<Vec<_>>(), need)?;
        }
        let plan = plan(&wanted, area.free()?, self.limit);
        if plan.bytes == 0 {
            return Err(format!("{} has no room within the limit", place.display()));
        }
        Ok(Some((lock, area, plan)))
    }

    fn end(&mut self, copying: &Copying, problem: Option<String>) {
        let (sets, copied) = copying.finish();
        let bytes = |s: &Set, there: &[u32]| -> u64 {
            s.shards.iter().filter(|(n, _)| there.contains(n)).map(|(_, bytes)| bytes).sum()
        };
        for (set, (dir, shards)) in self.sets.iter().zip(sets) {
            self.staged.bytes += bytes(set, &shards);
            if !shards.is_empty() {
                self.staged.sets.push(StagedSet { root: set.root.clone(), dir, shards });
            }
        }
        self.staged.copied = copied;
        let warning =
            problem.map(|p| format!("staging has ended early, the rest is read where it lies: {p}"));
        self.staged.warnings.extend(warning);
    }
}

/// Which shards a source will read from, by number: all, unless it is a view of some samples.
fn touched(source: &dyn Source) -> Result<Vec<bool>> {
    let Some(set) = source.shard_set() else { return Ok(Vec::new()) };
    let all = source.len() >= set.len();
    let mut touched = vec![all; set.shards().len()];
    for id in 0..if all { 0 } else { source.len() } {
        touched[set.shard_of(source.id_in_shards(id))? as usize] = true;
    }
    Ok(touched)
}
