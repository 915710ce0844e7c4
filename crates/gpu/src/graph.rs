//! Device work that is recorded once and launched as a whole.

use std::fmt;

use crate::ffi::{Handle, driver};
use crate::{Context, Error, Pinned, Result};

/// A recorded piece of the compute stream's work, with the memory that was allocated for it: a block that was given
/// back while it was recorded stays the graph's until the graph is dropped. What it reads and writes beyond that must
/// live as long as it is launched.
pub struct Graph {
    context: Context,
    executable: Handle,
    tag: u32,
    /// Sources of recorded uploads.
    _pinned: Vec<Pinned>,
}

/// A recording that is going on. Dropped without [`Capture::end`], it is thrown away.
pub struct Capture {
    context: Context,
    tag: u32,
    ended: bool,
}

impl Context {
    /// Whether the compute stream is being recorded.
    pub fn is_capturing(&self) -> bool {
        self.core().memory.is_capturing()
    }

    /// Begins to record: from now on what is queued on the compute stream, and on streams that wait for it, is not
    /// done but becomes part of a graph. Fails when a recording is going on.
    pub fn capture(&self) -> Result<Capture> {
        if self.is_capturing() {
            return Err(Error::Capturing { what: "another recording was begun" });
        }
        let d = self.primary().enter()?;
        // Relaxed: the allocator may ask the device for memory on the way.
        // SAFETY: a live stream.
        let status = unsafe { (d.cuStreamBeginCapture_v2)(self.compute().raw, driver::CAPTURE_RELAXED) };
        d.check(status, "cuStreamBeginCapture_v2")?;
        Ok(Capture { context: self.clone(), tag: self.core().memory.begin_graph(), ended: false })
    }
}

impl Capture {
    /// Ends the recording and gives the graph. Fails when something in it could not be recorded.
    pub fn end(mut self) -> Result<Graph> {
        let (recorded, pinned) = self.stop();
        let template = match recorded {
            Ok(t) => t,
            Err(e) => {
                self.context.core().memory.retire_graph(self.tag);
                return Err(e);
            }
        };
        // From here on the graph owns the tag, so that any failure retires it.
        let mut graph =
            Graph { context: self.context.clone(), executable: 0, tag: self.tag, _pinned: pinned };
        let d = self.context.primary().enter()?;
        // SAFETY: a live graph; writes one handle, destroyed with `graph`.
        let status = unsafe { (d.cuGraphInstantiateWithFlags)(&mut graph.executable, template, 0) };
        // SAFETY: the template is not needed any more.
        unsafe { (d.cuGraphDestroy)(template) };
        d.check(status, "cuGraphInstantiateWithFlags")?;
        Ok(graph)
    }

    fn stop(&mut self) -> (Result<Handle>, Vec<Pinned>) {
        self.ended = true;
        let context = &self.context;
        let stopped = || -> Result<Handle> {
            let d = context.primary().enter()?;
            let mut template: Handle = 0;
            // SAFETY: a stream that is being captured; writes one handle.
            let status = unsafe { (d.cuStreamEndCapture)(context.compute().raw, &mut template) };
            d.check(status, "cuStreamEndCapture")?;
            Ok(template)
        };
        let recorded = stopped();
        context.core().memory.end_graph();
        (recorded, context.staging().recorded())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (recorded, _) = self.stop();
        if let (Ok(template), Ok(d)) = (recorded, self.context.primary().enter()) {
            // SAFETY: the template has no other user.
            unsafe { (d.cuGraphDestroy)(template) };
        }
        self.context.core().memory.retire_graph(self.tag);
    }
}

impl Graph {
    /// Queues the recorded work on the compute stream.
    pub fn launch(&self) -> Result<()> {
        let d = self.context.primary().enter()?;
        // SAFETY: live handles; the graph's own memory is reserved for it.
        d.check(unsafe { (d.cuGraphLaunch)(self.executable, self.context.compute().raw) }, "cuGraphLaunch")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.synchronize();
        if let (Ok(d), true) = (self.context.primary().enter(), self.executable != 0) {
            // SAFETY: instantiated in `end`, and not running any more.
            unsafe { (d.cuGraphExecDestroy)(self.executable) };
        }
        self.context.core().memory.retire_graph(self.tag);
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph(on {:?})", self.context)
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capture(on {:?})", self.context)
    }
}
