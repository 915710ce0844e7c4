//! How threads wait for each other, and how a failure reaches every one that waits.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::{AbortReason, Deadline, Error};

/// Locks, also after a panic elsewhere: no critical section here leaves its data half written.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a thread stays awake before it parks. Waking a parked thread costs the waker a system call
/// and the sleeper tens of microseconds; staying awake takes the core from whoever could use it.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    spin: Duration,
    offer: Duration,
}

impl Patience {
    /// Parks at once: for threads that nobody waits for.
    pub(crate) const NONE: Patience = Patience { spin: Duration::ZERO, offer: Duration::ZERO };

    /// For a thread that has nothing else to do. With a core for every rank it spins, but not for
    /// longer than it takes to give the core away, as another process may have taken the peer's; then
    /// it keeps offering its core to others. With fewer cores it offers from the start.
    pub(crate) fn of_waiter(ranks: usize) -> Self {
        let cores = thread::available_parallelism().map_or(1, |n| n.get());
        let spin = if ranks <= cores { Duration::from_micros(2) } else { Duration::ZERO };
        Patience { spin, offer: Duration::from_micros(200) }
    }

    /// Whether `ready` came to hold while the thread was awake. Far shorter than any deadline.
    pub(crate) fn awake(self, ready: &impl Fn() -> bool) -> bool {
        let whole = self.spin + self.offer;
        if whole.is_zero() {
            return false;
        }
        let since = Instant::now();
        loop {
            let waited = since.elapsed();
            if waited >= whole {
                return false;
            }
            if waited < self.spin {
                for _ in 0..16 {
                    std::hint::spin_loop();
                    if ready() {
                        return true;
                    }
                }
            } else {
                thread::yield_now();
                if ready() {
                    return true;
                }
            }
        }
    }
}

/// A bell for threads that wait until something about shared atomics is so.
#[derive(Default)]
pub(crate) struct Signal {
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    bell: Condvar,
}

impl Signal {
    /// Waits until `ready` holds or the deadline passes. `ready` may take locks that no one holds while
    /// ringing.
    pub(crate) fn wait(&self, patience: Patience, deadline: Deadline, ready: impl Fn() -> bool) {
        if ready() || patience.awake(&ready) {
            return;
        }
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `ring`: either the ringer sees this sleeper, or the sleeper sees in
        // `ready` what the ringer wrote before it rang. A ringer that sees the sleeper takes the lock,
        // which is held here until the bell is being waited for, so its ring cannot fall in between.
        fence(Ordering::SeqCst);
        while !ready() {
            guard = match deadline.remaining() {
                None => self.bell.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => break,
                Some(left) => self.bell.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wakes all that wait, so that they look again. To be called after what they wait for was written.
    pub(crate) fn ring(&self) {
        // See `wait`.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            drop(lock(&self.lock));
            self.bell.notify_all();
        }
    }
}

struct Cause {
    reason: AbortReason,
    /// What the waits of all ranks return.
    error: Error,
}

/// The fate shared by a world and all that was split from it. Set once; the first cause stays.
#[derive(Default)]
pub(crate) struct Poison {
    cause: OnceLock<Cause>,
    signals: Mutex<Vec<Weak<Signal>>>,
}

impl Poison {
    /// A bell that is also rung when the world is poisoned.
    pub(crate) fn signal(&self) -> Arc<Signal> {
        let signal = Arc::new(Signal::default());
        let mut signals = lock(&self.signals);
        signals.retain(|s| s.strong_count() > 0);
        signals.push(Arc::downgrade(&signal));
        signal
    }

    /// Poisons the world unless it is; returns whether this was the first cause. The caller must hold
    /// no lock that a waiting thread's condition takes.
    pub(crate) fn set(&self, reason: AbortReason, error: Option<Error>) -> bool {
        let error = error.unwrap_or_else(|| Error::Aborted { reason: reason.clone() });
        let first = self.cause.set(Cause { reason, error }).is_ok();
        if first {
            let signals: Vec<_> = lock(&self.signals).iter().filter_map(Weak::upgrade).collect();
            signals.iter().for_each(|s| s.ring());
        }
        first
    }

    pub(crate) fn is_set(&self) -> bool {
        self.cause.get().is_some()
    }

    pub(crate) fn error(&self) -> Option<Error> {
        self.cause.get().map(|c| c.error.clone())
    }

    pub(crate) fn reason(&self) -> Option<AbortReason> {
        self.cause.get().map(|c| c.reason.clone())
    }
}
