//! Where a loader's time goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a loader has done since its start. Differences of two say what happened in between.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LoaderStats {
    /// Seconds of all threads in reading records.
    pub read_s: f64,
    /// Seconds of all threads in decoding and transforming them.
    pub make_s: f64,
    /// Seconds that the consumer waited for batches.
    pub wait_s: f64,
    /// Bytes of the records.
    pub bytes: u64,
    /// Records.
    pub samples: u64,
    /// Threads now.
    pub threads: usize,
}

impl LoaderStats {
    /// What has happened since `before`.
    pub fn since(&self, before: &LoaderStats) -> LoaderStats {
        LoaderStats {
            read_s: self.read_s - before.read_s,
            make_s: self.make_s - before.make_s,
            wait_s: self.wait_s - before.wait_s,
            bytes: self.bytes - before.bytes,
            samples: self.samples - before.samples,
            threads: self.threads,
        }
    }
}

/// What the threads add to, once a batch.
#[derive(Debug, Default)]
pub(super) struct Counters {
    read_ns: AtomicU64,
    make_ns: AtomicU64,
    bytes: AtomicU64,
    samples: AtomicU64,
}

/// What one batch has taken.
#[derive(Debug, Default)]
pub(super) struct Spent {
    pub(super) read: Duration,
    pub(super) make: Duration,
    pub(super) bytes: u64,
    pub(super) samples: u64,
}

impl Counters {
    pub(super) fn add(&self, spent: &Spent) {
        let add = |to: &AtomicU64, n: u64| to.fetch_add(n, Ordering::Relaxed);
        add(&self.read_ns, spent.read.as_nanos() as u64);
        add(&self.make_ns, spent.make.as_nanos() as u64);
        add(&self.bytes, spent.bytes);
        add(&self.samples, spent.samples);
    }

    pub(super) fn read(&self, waited: Duration, threads: usize) -> LoaderStats {
        let get = |from: &AtomicU64| from.load(Ordering::Relaxed);
        LoaderStats {
            read_s: get(&self.read_ns) as f64 / 1e9,
            make_s: get(&self.make_ns) as f64 / 1e9,
            wait_s: waited.as_secs_f64(),
            bytes: get(&self.bytes),
            samples: get(&self.samples),
            threads,
        }
    }
}
