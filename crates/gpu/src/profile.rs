//! Where a device's time goes: how long each kernel and each call of a library took, by name.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::context::Core;
use crate::{Context, Event, Result};

/// What has been marked since profiling began.
#[derive(Default)]
pub(crate) struct Profile {
    on: AtomicBool,
    marks: Mutex<Vec<(String, Event, Event)>>,
}

/// All runs of one kernel, or of one kind of call.
#[derive(Debug, Clone, PartialEq)]
pub struct Spent {
    /// The kernel's name, or what the library was asked for.
    pub name: String,
    /// How often it ran.
    pub runs: u64,
    /// What all runs took, in milliseconds.
    pub milliseconds: f64,
}

impl Profile {
    fn marks(&self) -> MutexGuard<'_, Vec<(String, Event, Event)>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Queues work on the compute stream by `run`: between two marks while profiling is on, and noted with what `of`
    /// gives, which is all that it depends on, while it is recorded.
    pub(crate) fn queue<H: Hash>(
        &self,
        name: impl Fn() -> String,
        of: impl FnOnce() -> H,
        run: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.recording.note(&name, of);
        // An event of a recording has no time.
        if !self.profile.on.load(Ordering::Relaxed) || self.memory.is_capturing() {
            return run();
        }
        let [from, to] = [Event::new(&self.primary, true)?, Event::new(&self.primary, true)?];
        from.record(&self.compute)?;
        run()?;
        to.record(&self.compute)?;
        self.profile.marks().push((name(), from, to));
        Ok(())
    }
}

impl Context {
    /// Begins to mark all work on the compute stream, which takes its own time: some microseconds a kernel.
    pub fn begin_profile(&self) {
        self.core().profile.marks().clear();
        self.core().profile.on.store(true, Ordering::Relaxed);
    }

    /// Whether work is marked.
    pub fn is_profiling(&self) -> bool {
        self.core().profile.on.load(Ordering::Relaxed)
    }

    /// Waits for the marked work and tells what it took, the most costly first.
    pub fn end_profile(&self) -> Result<Vec<Spent>> {
        self.core().profile.on.store(false, Ordering::Relaxed);
        self.synchronize()?;
        let mut by_name: BTreeMap<String, (u64, f64)> = BTreeMap::new();
        for (name, from, to) in std::mem::take(&mut *self.core().profile.marks()) {
            let (runs, sum) = by_name.entry(name).or_default();
            *runs += 1;
            *sum += f64::from(from.elapsed(&to)?);
        }
        let spent = |(name, (runs, milliseconds))| Spent { name, runs, milliseconds };
        let mut all: Vec<Spent> = by_name.into_iter().map(spent).collect();
        all.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        Ok(all)
    }
}
