//! Streams and events.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::device::Primary;
use crate::ffi::{Handle, driver};
use crate::{Error, Result};

/// A queue of device work, done in order.
pub struct Stream {
    pub(crate) primary: Arc<Primary>,
    pub(crate) raw: Handle,
}

impl Stream {
    pub(crate) fn new(primary: &Arc<Primary>, priority: i32) -> Result<Self> {
        let d = primary.enter()?;
        let mut raw: Handle = 0;
        // SAFETY: writes one handle; destroyed in `drop`.
        let status =
            unsafe { (d.cuStreamCreateWithPriority)(&mut raw, driver::STREAM_NON_BLOCKING, priority) };
        d.check(status, "cuStreamCreateWithPriority")?;
        Ok(Stream { primary: primary.clone(), raw })
    }

    /// What is queued from now on waits for all work that was queued before `event` was last recorded.
    pub fn wait(&self, event: &Event) -> Result<()> {
        let d = self.primary.enter()?;
        // SAFETY: both handles are live.
        d.check(unsafe { (d.cuStreamWaitEvent)(self.raw, event.0.raw, 0) }, "cuStreamWaitEvent")
    }

    /// Whether all queued work is done. Asynchronous errors come out here.
    pub fn query(&self) -> Result<bool> {
        let d = self.primary.enter()?;
        // SAFETY: a live handle.
        match unsafe { (d.cuStreamQuery)(self.raw) } {
            driver::NOT_READY => Ok(false),
            status => d.check(status, "cuStreamQuery").map(|()| true),
        }
    }

    /// Waits for all queued work. Asynchronous errors come out here.
    pub fn synchronize(&self) -> Result<()> {
        self.primary.waits();
        let d = self.primary.enter()?;
        // SAFETY: a live handle.
        d.check(unsafe { (d.cuStreamSynchronize)(self.raw) }, "cuStreamSynchronize")
    }

    /// The same, but gives up with [`Error::TimedOut`] after `limit`; the work goes on.
    pub fn synchronize_within(&self, limit: Duration) -> Result<()> {
        self.primary.waits();
        poll(limit, || self.query())
    }

    /// The driver's `CUstream`, for other libraries.
    pub fn raw(&self) -> usize {
        self.raw
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(d) = self.primary.enter() {
            // SAFETY: made in `new`; queued work is still done.
            unsafe { (d.cuStreamDestroy_v2)(self.raw) };
        }
    }
}

/// A mark in a stream. A clone is the same mark.
#[derive(Clone)]
pub struct Event(Arc<Mark>);

struct Mark {
    primary: Arc<Primary>,
    raw: Handle,
}

impl Event {
    pub(crate) fn new(primary: &Arc<Primary>, timed: bool) -> Result<Self> {
        let d = primary.enter()?;
        let mut raw: Handle = 0;
        let flags = if timed { driver::EVENT_TIMED } else { driver::EVENT_UNTIMED };
        // SAFETY: writes one handle; destroyed when the last clone is dropped.
        d.check(unsafe { (d.cuEventCreate)(&mut raw, flags) }, "cuEventCreate")?;
        Ok(Event(Arc::new(Mark { primary: primary.clone(), raw })))
    }

    /// Marks the work that is queued on `stream` so far, instead of what was marked before.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        let d = self.0.primary.enter()?;
        // SAFETY: both handles are live.
        d.check(unsafe { (d.cuEventRecord)(self.0.raw, stream.raw) }, "cuEventRecord")
    }

    /// Whether the marked work is done; true when none was marked.
    pub fn query(&self) -> Result<bool> {
        let d = self.0.primary.enter()?;
        // SAFETY: a live handle.
        match unsafe { (d.cuEventQuery)(self.0.raw) } {
            driver::NOT_READY => Ok(false),
            status => d.check(status, "cuEventQuery").map(|()| true),
        }
    }

    /// Waits for the marked work.
    pub fn synchronize(&self) -> Result<()> {
        self.0.primary.waits();
        let d = self.0.primary.enter()?;
        // SAFETY: a live handle.
        d.check(unsafe { (d.cuEventSynchronize)(self.0.raw) }, "cuEventSynchronize")
    }

    /// The same, but gives up with [`Error::TimedOut`] after `limit`; the work goes on.
    pub fn synchronize_within(&self, limit: Duration) -> Result<()> {
        self.0.primary.waits();
        poll(limit, || self.query())
    }

    /// Milliseconds of device time from this mark to `later`; both done, and made for timing.
    pub fn elapsed(&self, later: &Event) -> Result<f32> {
        let d = self.0.primary.enter()?;
        let mut milliseconds = 0.0f32;
        // SAFETY: writes one number; both handles are live.
        let status = unsafe { (d.cuEventElapsedTime)(&mut milliseconds, self.0.raw, later.0.raw) };
        d.check(status, "cuEventElapsedTime")?;
        Ok(milliseconds)
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Event")
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Ok(d) = self.primary.enter() {
            // SAFETY: made in `new`, and this was the last user.
            unsafe { (d.cuEventDestroy_v2)(self.raw) };
        }
    }
}

/// Asks until `done` says so, at first without a rest, then with growing ones up to a millisecond.
fn poll(limit: Duration, done: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    let mut rest = Duration::ZERO;
    loop {
        if done()? {
            return Ok(());
        }
        let waited = start.elapsed();
        if waited >= limit {
            return Err(Error::TimedOut { limit });
        }
        if waited > Duration::from_micros(100) {
            rest = (rest + Duration::from_micros(20)).min(Duration::from_millis(1));
            std::thread::sleep(rest);
        }
    }
}
