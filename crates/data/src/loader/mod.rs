//! Batches, made ahead by threads and delivered in the plan's order.

mod bad;
mod crew;
mod make;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::iter::Peekable;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) use bad::is_of_record;
pub use bad::{BadRecords, BadSample, substitutes, too_many_bad};
pub use crew::{Cores, Threads};
use crew::{Crew, Interval};
use make::Maker;
use phalanx_host::Pool;
use stats::Counters;
pub use stats::LoaderStats;

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
    /// The samples at those positions, in order; the ledger writes them down.
    pub ids: Vec<u64>,
    /// What there is of them: less those whose records are bad and have no substitute. Empty for a shard that gets none of a
    /// short last step.
    pub batch: Batch,
    /// The bad ones, where they do not end the run.
    pub bad: Vec<BadSample>,
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
    counters: Arc<Counters>,
    /// What the consumer has waited so far, in all and before the present interval.
    waited: Duration,
    delivered: u64,
    look: Look,
}

/// When the number of threads was last thought about.
struct Look {
    at: Instant,
    waited: Duration,
    delivered: u64,
}

/// An interval is at least so long, and has so many batches.
const LOOK_EVERY: (Duration, u64) = (Duration::from_millis(500), 16);

enum Engine {
    /// No threads: batches are made when they are asked for.
    Caller { maker: Box<Maker>, plan: Plan },
    Threads {
        shared: Arc<Shared>,
        handles: Vec<JoinHandle<()>>,
        crew: Crew,
        hire: Box<dyn Fn() -> Result<Maker> + Send>,
        prefetch: usize,
    },
}

struct Shared {
    state: Mutex<State>,
    /// Told when the window has room.
    room: Condvar,
    /// Told when the batch that is due is there.
    ready: Condvar,
    /// Told at the end, and when those that do not load are to begin.
    more: Condvar,
    stop: AtomicBool,
}

struct State {
    plan: Peekable<Plan>,
    /// Items taken from the plan and not yet delivered, in order; `None` while one is in work.
    window: VecDeque<Option<Result<Loaded>>>,
    capacity: usize,
    delivered: u64,
    /// Threads that load; those with higher numbers rest.
    threads: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life. It takes the lock once a batch: to put one away and take the next item.
    fn work(&self, number: usize, maker: &mut Maker) {
        let mut state = self.state();
        loop {
            if self.stop.load(Ordering::Relaxed) || state.plan.peek().is_none() {
                // Those that rest have nothing to wait for any more.
                self.more.notify_all();
                return;
            }
            if number >= state.threads {
                // A call for room that has woken this thread is for another.
                self.room.notify_one();
                state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
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

    /// Whether the next `count` batches are made.
    fn ready(&self, count: usize) -> bool {
        let state = self.state();
        let made = state.window.iter().take_while(|made| matches!(made, Some(Ok(_)))).count();
        made >= count
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
        let counters = Arc::new(Counters::default());
        let hire = {
            let (config, pool, counters) = (config.clone(), pool.clone(), counters.clone());
            move || Maker::new(source.clone(), &config, mode, config.pixels, pool.clone(), counters.clone())
        };
        let crew = Crew::new(config.threads);
        let engine = if crew.now() == 0 {
            Engine::Caller { maker: Box::new(hire()?), plan }
        } else {
            let (threads, prefetch) = (crew.now(), config.prefetch);
            let capacity = prefetch.max(threads);
            let window = VecDeque::with_capacity(capacity);
            let state = State { plan: plan.peekable(), window, capacity, delivered: 0, threads };
            let shared = Shared {
                state: Mutex::new(state),
                room: Condvar::new(),
                ready: Condvar::new(),
                more: Condvar::new(),
                stop: AtomicBool::new(false),
            };
            let (shared, hire) = (Arc::new(shared), Box::new(hire));
            Engine::Threads { shared, handles: Vec::new(), crew, hire, prefetch }
        };
        // Built first: an early return then drops the loader, which stops the threads there are.
        let (waited, look) =
            (Duration::ZERO, Look { at: Instant::now(), waited: Duration::ZERO, delivered: 0 });
        let mut loader = Loader { engine, finished: false, counters, waited, delivered: 0, look };
        loader.engine.fill()?;
        Ok(loader)
    }

    /// Whether the next `count` batches are there and whole: nobody would wait for them. Never without threads.
    pub fn is_ready(&self, count: usize) -> bool {
        match &self.engine {
            Engine::Caller { .. } => false,
            Engine::Threads { shared, .. } => !self.finished && shared.ready(count),
        }
    }

    /// What it has done so far.
    pub fn stats(&self) -> LoaderStats {
        let threads = match &self.engine {
            Engine::Caller { .. } => 0,
            Engine::Threads { crew, .. } => crew.now(),
        };
        self.counters.read(self.waited, threads)
    }

    /// Lets more or fewer threads load, where that is left open and it is time to think about it.
    fn adapt(&mut self) {
        let Engine::Threads { shared, crew, prefetch, .. } = &mut self.engine else { return };
        let (long, many) = LOOK_EVERY;
        let (seconds, batches) = (self.look.at.elapsed(), self.delivered - self.look.delivered);
        if !crew.is_open() || seconds < long || batches < many {
            return;
        }
        let waited = (self.waited - self.look.waited).as_secs_f64();
        crew.observe(&Interval { seconds: seconds.as_secs_f64(), waited, batches });
        {
            let mut state = shared.state();
            (state.threads, state.capacity) = (crew.now(), crew.now().max(*prefetch));
        }
        shared.more.notify_all();
        shared.room.notify_all();
        self.look = Look { at: Instant::now(), waited: self.waited, delivered: self.delivered };
        // What cannot be had is done without.
        let _ = self.engine.fill();
    }
}

impl Engine {
    /// Starts the threads that there should be and are not.
    fn fill(&mut self) -> Result<()> {
        let Engine::Threads { shared, handles, crew, hire, .. } = self else { return Ok(()) };
        while handles.len() < crew.now() {
            let number = handles.len();
            let started = hire().and_then(|mut maker| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("loader-{number}"))
                    .spawn(move || shared.work(number, &mut maker))
                    .map_err(|e| {
                        let (threads, reason) = (number + 1, e.to_string());
                        phalanx_host::Error::Threads { threads, reason }.into()
                    })
            });
            match started {
                Ok(handle) => handles.push(handle),
                Err(e) => {
                    crew.settle_at(number);
                    return Err(e);
                }
            }
        }
        Ok(())
    }
}

impl Iterator for Loader {
    type Item = Result<Loaded>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let begun = Instant::now();
        let next = match &mut self.engine {
            Engine::Caller { maker, plan } => {
                plan.next().and_then(|item| maker.make(item, &AtomicBool::new(false)))
            }
            Engine::Threads { shared, .. } => shared.next(),
        };
        self.waited += begun.elapsed();
        self.delivered += 1;
        self.finished = !matches!(next, Some(Ok(_)));
        if !self.finished {
            self.adapt();
        }
        next
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        if let Engine::Threads { shared, handles, .. } = &mut self.engine {
            {
                // Under the lock, so that no thread is between looking at the flag and waiting.
                let _state = shared.state();
                shared.stop.store(true, Ordering::Relaxed);
            }
            shared.room.notify_all();
            shared.more.notify_all();
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
