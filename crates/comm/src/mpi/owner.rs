//! The thread that owns MPI: nobody else calls it.
//!
//! Other threads hand it tasks. It polls all of them, in the order in which they came, and sleeps longer
//! the longer nothing moves, so that a rank's compute thread keeps its core. A task that waits for a rank
//! that is gone holds up nothing: whoever awaits its result has a deadline.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::ffi::{self, Mpi};
use crate::signal::{Patience, Poison, Signal, lock};
use crate::{Deadline, Error, Result};

/// What a poll has found.
pub(super) enum Progress {
    /// Nothing has moved.
    None,
    /// Something has moved; there is more to do.
    Some,
    /// The task has told its result.
    Done,
}

/// Work that is done by polling.
pub(super) trait Task: Send {
    fn poll(&mut self, mpi: &Mpi) -> Progress;
}

/// Where a task's result is awaited.
pub(super) struct Slot<T> {
    value: Mutex<Option<Result<T>>>,
    full: AtomicBool,
    signal: Arc<Signal>,
}

impl<T> Slot<T> {
    pub(super) fn new(poison: &Poison) -> Arc<Self> {
        Arc::new(Slot { value: Mutex::default(), full: AtomicBool::new(false), signal: poison.signal() })
    }

    pub(super) fn put(&self, value: Result<T>) {
        *lock(&self.value) = Some(value);
        self.full.store(true, Ordering::Release);
        self.signal.ring();
    }

    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// The result, once it is there; None when the deadline has passed or the world is poisoned.
    pub(super) fn wait(&self, poison: &Poison, deadline: Deadline) -> Option<Result<T>> {
        let over = || self.is_full() || poison.is_set();
        self.signal.wait(Patience::of_waiter(1), deadline, over);
        lock(&self.value).take()
    }
}

#[derive(Default)]
struct Inbox {
    tasks: Mutex<VecDeque<Box<dyn Task>>>,
    bell: Condvar,
    /// Set once MPI has ended.
    ended: AtomicBool,
}

/// The way to the owning thread. It ends, without a word to MPI, when the world is poisoned; only
/// [`Owner::finalize`] ends MPI.
#[derive(Clone)]
pub(super) struct Owner {
    inbox: Arc<Inbox>,
    poison: Arc<Poison>,
}

/// Runs once.
struct Once<T, F> {
    work: Option<F>,
    slot: Arc<Slot<T>>,
}

impl<T: Send, F: FnOnce(&Mpi) -> Result<T> + Send> Task for Once<T, F> {
    fn poll(&mut self, mpi: &Mpi) -> Progress {
        if let Some(work) = self.work.take() {
            self.slot.put(work(mpi));
        }
        Progress::Done
    }
}

impl Owner {
    /// Starts the thread, which initialises MPI. The slot is filled when it has.
    pub(super) fn start(poison: &Arc<Poison>) -> Result<(Owner, Arc<Slot<String>>)> {
        let owner = Owner { inbox: Arc::default(), poison: poison.clone() };
        let ready = Slot::new(poison);
        let (mine, told) = (owner.clone(), ready.clone());
        let body = move || match Mpi::init() {
            Ok(mpi) => {
                told.put(Ok(mpi.library.clone()));
                mine.serve(mpi);
            }
            Err(e) => told.put(Err(e)),
        };
        thread::Builder::new()
            .name("mpi".into())
            .spawn(body)
            .map_err(|e| Error::Thread { rank: 0, reason: e.to_string() })?;
        Ok((owner, ready))
    }

    pub(super) fn submit(&self, task: impl Task + 'static) {
        lock(&self.inbox.tasks).push_back(Box::new(task));
        self.inbox.bell.notify_one();
    }

    /// A call that may wait for other processes, with a deadline on this side.
    pub(super) fn call<T: Send + 'static>(
        &self,
        what: &str,
        rank: u32,
        deadline: Deadline,
        work: impl FnOnce(&Mpi) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let slot = Slot::new(&self.poison);
        self.submit(Once { work: Some(work), slot: slot.clone() });
        self.outcome(&slot, what, rank, deadline)
    }

    /// A task's result, or why there is none.
    pub(super) fn outcome<T>(&self, slot: &Slot<T>, what: &str, rank: u32, deadline: Deadline) -> Result<T> {
        match slot.wait(&self.poison, deadline) {
            Some(result) => result,
            None => Err(self.poison.error().unwrap_or_else(|| Error::Deadline {
                rank,
                allowed: deadline.allowed(),
                what: what.to_string(),
                missing: Vec::new(),
                report: "not all ranks have come to it".into(),
            })),
        }
    }

    /// Ends MPI, together with all other processes.
    pub(super) fn finalize(&self, rank: u32, deadline: Deadline) -> Result<()> {
        let inbox = self.inbox.clone();
        let end = move |mpi: &Mpi| {
            inbox.ended.store(true, Ordering::Relaxed);
            mpi.finalize()
        };
        self.call("the end of MPI", rank, deadline, end)
    }

    fn serve(&self, mpi: Mpi) {
        ffi::ask_to_be_prompt();
        let mut tasks: VecDeque<Box<dyn Task>> = VecDeque::new();
        let mut still = Instant::now();
        while !self.inbox.ended.load(Ordering::Relaxed) {
            if self.poison.is_set() {
                // Their buffers may be in MPI's hands: they are never given back.
                tasks.into_iter().for_each(std::mem::forget);
                return;
            }
            if self.receive(&mut tasks, still) {
                still = Instant::now();
            }
            let mut left = VecDeque::with_capacity(tasks.len());
            for mut task in tasks {
                let progress = task.poll(&mpi);
                if !matches!(progress, Progress::None) {
                    still = Instant::now();
                }
                if !matches!(progress, Progress::Done) {
                    left.push_back(task);
                }
            }
            tasks = left;
        }
    }

    /// Takes new tasks, after a rest when nothing has moved since `still`. Returns whether there were any.
    fn receive(&self, tasks: &mut VecDeque<Box<dyn Task>>, still: Instant) -> bool {
        let mut inbox = lock(&self.inbox.tasks);
        if inbox.is_empty() {
            let rest = match tasks.is_empty() {
                // Poison is looked for now and then.
                true => Some(Duration::from_millis(100)),
                false => rest(still.elapsed()),
            };
            match rest {
                Some(time) => {
                    let woken = self.inbox.bell.wait_timeout(inbox, time);
                    inbox = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
                None => {
                    drop(inbox);
                    thread::yield_now();
                    inbox = lock(&self.inbox.tasks);
                }
            }
        }
        let any = !inbox.is_empty();
        tasks.append(&mut inbox);
        any
    }
}

/// How long to sleep when nothing has moved for so long: at first not at all, the core is only offered;
/// then a quarter of that time, so that a poll is late by no more.
fn rest(still: Duration) -> Option<Duration> {
    const AWAKE: Duration = Duration::from_micros(50);
    const SHORTEST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_micros(500);
    (still > AWAKE).then(|| (still / 4).clamp(SHORTEST, LONGEST))
}
