//! What a rank is doing, kept where its other threads can read it: a watchdog tells it to the others
//! when the rank itself no longer can.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::signal::lock;

/// What a rank is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Activity {
    /// Setting the run up.
    Starting,
    /// Waiting for the loader's next batch.
    Loader,
    /// Forward and backward.
    Compute,
    /// Waiting for the sums of a step.
    Reduce,
    /// Changing parameters.
    Optimizer,
    /// Evaluating.
    Evaluation,
    /// Taking or writing a checkpoint.
    Checkpoint,
    /// Comparing replicas.
    Audit,
    /// Ending the run.
    Finishing,
}

impl Activity {
    const ALL: [Activity; 9] = [
        Activity::Starting,
        Activity::Loader,
        Activity::Compute,
        Activity::Reduce,
        Activity::Optimizer,
        Activity::Evaluation,
        Activity::Checkpoint,
        Activity::Audit,
        Activity::Finishing,
    ];

    /// Where the rank is, for messages.
    pub const fn place(self) -> &'static str {
        match self {
            Activity::Starting => "starting",
            Activity::Loader => "in the loader",
            Activity::Compute => "in forward and backward",
            Activity::Reduce => "waiting for sums",
            Activity::Optimizer => "in the optimizer",
            Activity::Evaluation => "in the evaluation",
            Activity::Checkpoint => "in a checkpoint",
            Activity::Audit => "in the replica audit",
            Activity::Finishing => "finishing",
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.place())
    }
}

/// One call that all ranks must make alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which call of its kind it is, from 0.
    pub number: u64,
    /// `"collective"` or `"control call"`.
    pub kind: &'static str,
    /// What it does, as compared across ranks: operation, size, type.
    pub what: String,
    /// How long ago it was begun.
    pub begun: Duration,
    /// Whether it is done.
    pub done: bool,
}

struct Entry {
    number: u64,
    kind: &'static str,
    what: Box<dyn Fn() -> String + Send>,
    begun: Instant,
    done: bool,
}

/// Calls that are remembered.
const CALLS: usize = 8;

/// Where a rank is. Written by the rank in passing, read by whoever asks.
pub struct Whereabouts {
    epoch: Instant,
    activity: AtomicU8,
    /// One above the step; 0 outside of any.
    step: AtomicU64,
    /// Microseconds after `epoch` at which the activity began.
    since: AtomicU64,
    calls: Mutex<VecDeque<Entry>>,
}

impl Default for Whereabouts {
    fn default() -> Self {
        Whereabouts {
            epoch: Instant::now(),
            activity: AtomicU8::new(0),
            step: AtomicU64::new(0),
            since: AtomicU64::new(0),
            calls: Mutex::default(),
        }
    }
}

impl fmt::Debug for Whereabouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Whereabouts({} at step {:?})", self.activity(), self.step())
    }
}

impl Whereabouts {
    /// The rank begins something.
    pub fn enter(&self, activity: Activity) {
        let micros = u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.since.store(micros, Ordering::Relaxed);
        self.activity.store(activity as u8, Ordering::Relaxed);
    }

    /// The rank begins a step, or is outside of any.
    pub fn at_step(&self, step: Option<u64>) {
        self.step.store(step.map_or(0, |s| s.saturating_add(1)), Ordering::Relaxed);
    }

    /// What the rank is doing.
    pub fn activity(&self) -> Activity {
        Activity::ALL[usize::from(self.activity.load(Ordering::Relaxed)) % Activity::ALL.len()]
    }

    /// The step that it is in.
    pub fn step(&self) -> Option<u64> {
        self.step.load(Ordering::Relaxed).checked_sub(1)
    }

    /// How long it has been doing that.
    pub fn since(&self) -> Duration {
        self.epoch.elapsed().saturating_sub(Duration::from_micros(self.since.load(Ordering::Relaxed)))
    }

    /// A call begins. For transports; the text is made when somebody asks for it.
    pub fn begin_call(&self, kind: &'static str, number: u64, what: impl Fn() -> String + Send + 'static) {
        let mut calls = lock(&self.calls);
        if calls.len() == CALLS {
            calls.pop_front();
        }
        calls.push_back(Entry { number, kind, what: Box::new(what), begun: Instant::now(), done: false });
    }

    /// A call is done. For transports.
    pub fn end_call(&self, kind: &'static str, number: u64) {
        let mut calls = lock(&self.calls);
        if let Some(e) = calls.iter_mut().rev().find(|e| e.kind == kind && e.number == number) {
            e.done = true;
        }
    }

    /// The last calls, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        let tell = |e: &Entry| Call {
            number: e.number,
            kind: e.kind,
            what: (e.what)(),
            begun: e.begun.elapsed(),
            done: e.done,
        };
        lock(&self.calls).iter().map(tell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_s_last_place_and_calls_can_be_read() {
        let w = Whereabouts::default();
        assert_eq!((w.activity(), w.step()), (Activity::Starting, None));
        w.at_step(Some(0));
        for activity in Activity::ALL {
            w.enter(activity);
            assert_eq!(w.activity(), activity);
        }
        assert_eq!(w.step(), Some(0));
        for n in 0..20 {
            w.begin_call("collective", n, move || format!("sum {n}"));
            if n < 19 {
                w.end_call("collective", n);
            }
        }
        let calls = w.calls();
        assert_eq!((calls.len(), calls[0].number, calls[0].done), (CALLS, 12, true));
        assert_eq!((calls[7].what.as_str(), calls[7].done), ("sum 19", false));
    }
}
