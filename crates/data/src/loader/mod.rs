//! Batches, made ahead by threads and delivered in the plan's order.

mod make;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::iter::Peekable;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use make::Maker;
use phalanx_host::Pool;

use crate::{Batch, LoaderConfig, Plan, Result, Source, WorkItem};

/// What the batches are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Samples in the epoch's random order, images through all transforms; random numbers are keyed by
    /// this seed, the epoch and the sample.
    Train {
        /// The run's seed.
        seed: u64,
    },
    /// Samples in the set's order, no random transforms.
    Eval,
}

/// One delivered batch and the part of the plan that it is.
#[derive(Debug)]
pub struct Loaded {
    /// Epoch, step, shard and positions.
    pub item: WorkItem,
    /// The samples; empty for a shard that gets none of a short last step.
    pub batch: Batch,
}

/// An iterator over the batches of a [`Plan`], in its order, whatever the number of threads.
///
/// Threads take items from the plan and put their batches into a window of bounded size; the window
/// gives them out in order. What is in a batch is a function of the set, the plan, the mode and the
/// transforms. The first error ends the iteration. Dropping the loader stops and joins its threads,
/// after at most the one sample that each has in work.
pub struct Loader {
    engine: Engine,
    finished: bool,
}

enum Engine {
    /// No threads: batches are made when they are asked for.
    Caller {
        maker: Box<Maker>,
        plan: Plan,
    },
    Threads {
        shared: Arc<Shared>,
        handles: Vec<JoinHandle<()>>,
    },
}

struct Shared {
    state: Mutex<State>,
    /// Told when the window has room.
    room: Condvar,
    /// Told when the batch that is due is there.
    ready: Condvar,
    stop: AtomicBool,
}

struct State {
    plan: Peekable<Plan>,
    /// Items taken from the plan and not yet delivered, in order; `None` while one is in work.
    window: VecDeque<Option<Result<Loaded>>>,
    capacity: usize,
    delivered: u64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life. It takes the lock once a batch: to put one away and take the next item.
    fn work(&self, maker: &mut Maker) {
        let mut state = self.state();
        loop {
            if self.stop.load(Ordering::Relaxed) || state.plan.peek().is_none() {
                return;
            }
            if state.window.len() >= state.capacity {
                state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let Some(item) = state.plan.next() else { return };
            let ticket = state.delivered + state.window.len() as u64;
            state.window.push_back(None);
            drop(state);
            let Some(made) = maker.make(item, &self.stop) else { return };
            state = self.state();
            let place = (ticket - state.delivered) as usize;
            if let Some(slot) = state.window.get_mut(place) {
                *slot = Some(made);
            }
            if place == 0 {
                self.ready.notify_one();
            }
        }
    }

    fn next(&self) -> Option<Result<Loaded>> {
        let mut state = self.state();
        loop {
            match state.window.front_mut().map(Option::take) {
                Some(Some(made)) => {
                    state.window.pop_front();
                    state.delivered += 1;
                    drop(state);
                    self.room.notify_one();
                    return Some(made);
                }
                None if state.plan.peek().is_none() => return None,
                _ => state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Loader {
    /// Starts loading the batches of `plan` from `source` into buffers of `pool`.
    ///
    /// Fails on transforms that do not fit the set's images, and when a thread cannot be started.
    pub fn new(
        source: Arc<dyn Source>,
        config: &LoaderConfig,
        mode: Mode,
        plan: Plan,
        pool: &Pool,
    ) -> Result<Self> {
        let maker = || Maker::new(source.clone(), config, mode, config.pixels, pool.clone());
        if config.threads == 0 {
            let engine = Engine::Caller { maker: Box::new(maker()?), plan };
            return Ok(Loader { engine, finished: false });
        }
        let capacity = config.prefetch.max(config.threads);
        let window = VecDeque::with_capacity(capacity);
        let state = Mutex::new(State { plan: plan.peekable(), window, capacity, delivered: 0 });
        let (room, ready, stop) = (Condvar::new(), Condvar::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { state, room, ready, stop });
        // Built first: an early return then drops the loader, which stops the threads there are.
        let mut loader = Loader {
            engine: Engine::Threads { shared: shared.clone(), handles: Vec::new() },
            finished: false,
        };
        for i in 0..config.threads {
            let (mut maker, shared) = (maker()?, shared.clone());
            let handle = std::thread::Builder::new()
                .name(format!("loader-{i}"))
                .spawn(move || shared.work(&mut maker))
                .map_err(|e| phalanx_host::Error::Threads {
                    threads: config.threads,
                    reason: e.to_string(),
                })?;
            if let Engine::Threads { handles, .. } = &mut loader.engine {
                handles.push(handle);
            }
        }
        Ok(loader)
    }
}

impl Iterator for Loader {
    type Item = Result<Loaded>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = match &mut self.engine {
            Engine::Caller { maker, plan } => {
                plan.next().and_then(|item| maker.make(item, &AtomicBool::new(false)))
            }
            Engine::Threads { shared, .. } => shared.next(),
        };
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        if let Engine::Threads { shared, handles } = &mut self.engine {
            {
                // Under the lock, so that no thread is between looking at the flag and waiting.
                let _state = shared.state();
                shared.stop.store(true, Ordering::Relaxed);
            }
            shared.room.notify_all();
            for handle in handles.drain(..) {
                // A thread's panics were caught and delivered; there is nothing left to learn here.
                let _ = handle.join();
            }
        }
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let threads = match &self.engine {
            Engine::Caller { .. } => 0,
            Engine::Threads { handles, .. } => handles.len(),
        };
        write!(f, "Loader({threads} threads)")
    }
}
