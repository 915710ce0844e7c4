//! Device work that is recorded once and launched as a whole.

use std::fmt;
use std::sync::Arc;

use crate::ffi::{Handle, driver};
use crate::recording::ROOM;
use crate::{Args, Buffer, Context, Error, Grid, Pinned, Result, Source, Trace};

/// The kernel that sets changing numbers.
pub static GRAPH_KERNELS: Source = Source { name: "graph", text: include_str!("graph.cu") };

/// Words that one launch of it sets.
const WORDS: usize = 120;

/// Memory for the work of graphs, which several of them can share: launched one after the other, they are like calls of
/// functions over one stack. What is allocated while it is in use is nobody else's until all clones, and all graphs that
/// were recorded in it, are gone. A clone is the same memory.
#[derive(Clone)]
pub struct GraphMemory(Arc<Reserved>);

struct Reserved {
    context: Context,
    tag: u32,
    /// Numbers that change from launch to launch.
    values: Buffer,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.context.core().memory.retire(self.tag);
    }
}

/// While it lives, blocks come from graphs' memory.
pub struct InUse {
    memory: GraphMemory,
    before: u32,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.memory.0.context.core().memory.switch(self.before);
    }
}

impl GraphMemory {
    /// Whatever is allocated from now on is this memory's, until the result is dropped: work that is not recorded can use
    /// it, too, if it leaves nothing there that is to outlive the next launch.
    pub fn enter(&self) -> InUse {
        let before = self.0.context.core().memory.switch(self.0.tag);
        InUse { memory: self.clone(), before }
    }

    /// Bytes in blocks that are in use.
    pub fn used(&self) -> u64 {
        self.0.context.core().memory.of_tag(self.0.tag).0
    }

    /// Bytes held from the device.
    pub fn held(&self) -> u64 {
        self.0.context.core().memory.of_tag(self.0.tag).1
    }

    /// The block of the numbers that change from launch to launch.
    pub fn values(&self) -> &Buffer {
        &self.0.values
    }

    /// Queues the writing of `bytes`, whole words, to the block of changing numbers.
    fn set(&self, bytes: &[u8]) -> Result<()> {
        let mut to = self.0.values.ptr();
        for part in bytes.chunks(4 * WORDS) {
            let mut words = [0u8; 4 * WORDS];
            words[..part.len()].copy_from_slice(part);
            let grid = Grid { blocks: [1, 1, 1], threads: 128, shared: 0 };
            let args = Args::new().ptr(to).u32(part.len().div_ceil(4) as u32).bytes(&words);
            self.0.context.launch(&GRAPH_KERNELS, "set_words", grid, args)?;
            to = to.offset(part.len());
        }
        Ok(())
    }
}

/// A recorded piece of the compute stream's work, with the memory that was allocated for it: a block that was given
/// back while it was recorded stays the graph's until the graph is dropped. What it reads and writes beyond that must
/// live as long as it is launched.
pub struct Graph {
    memory: GraphMemory,
    executable: Handle,
    trace: Trace,
    /// Sources of recorded uploads.
    _pinned: Vec<Pinned>,
}

/// A recording that is going on. Dropped without [`Capture::end`], it is thrown away.
pub struct Capture {
    in_use: InUse,
    ended: bool,
}

impl Context {
    /// Whether the compute stream is being recorded.
    pub fn is_capturing(&self) -> bool {
        self.core().memory.is_capturing()
    }

    /// Memory for graphs. Fails when a recording is going on.
    pub fn graph_memory(&self) -> Result<GraphMemory> {
        self.refuse_while_capturing("memory for another graph was asked for")?;
        let values = self.alloc_lasting(ROOM)?;
        Ok(GraphMemory(Arc::new(Reserved {
            context: self.clone(),
            tag: self.core().memory.new_tag(),
            values,
        })))
    }

    /// Begins to record: from now on what is queued on the compute stream, and on streams that wait for it, is not
    /// done but becomes part of a graph, which has its memory for itself. Fails when a recording is going on.
    pub fn capture(&self) -> Result<Capture> {
        self.refuse_while_capturing("another recording was begun")?;
        self.capture_in(&self.graph_memory()?)
    }

    /// As [`Context::capture`] for a graph that shares its memory: with graphs that are never launched before it is done,
    /// and of which nothing is needed after.
    pub fn capture_in(&self, memory: &GraphMemory) -> Result<Capture> {
        self.refuse_while_capturing("another recording was begun")?;
        let d = self.primary().enter()?;
        // Relaxed: the allocator may ask the device for memory on the way.
        // SAFETY: a live stream.
        let status = unsafe { (d.cuStreamBeginCapture_v2)(self.compute().raw, driver::CAPTURE_RELAXED) };
        d.check(status, "cuStreamBeginCapture_v2")?;
        self.core().memory.set_capturing(true);
        self.core().recording.begin(memory.0.values.ptr());
        Ok(Capture { in_use: memory.enter(), ended: false })
    }
}

impl Capture {
    fn context(&self) -> &Context {
        &self.in_use.memory.0.context
    }

    /// Ends the recording and gives the graph. Fails when something in it could not be recorded.
    pub fn end(mut self) -> Result<Graph> {
        let (recorded, trace, pinned) = self.stop();
        let template = recorded?;
        let memory = self.in_use.memory.clone();
        let mut graph = Graph { memory, executable: 0, trace, _pinned: pinned };
        let d = self.context().primary().enter()?;
        // SAFETY: a live graph; writes one handle, destroyed with `graph`.
        let status = unsafe { (d.cuGraphInstantiateWithFlags)(&mut graph.executable, template, 0) };
        // SAFETY: the template is not needed any more.
        unsafe { (d.cuGraphDestroy)(template) };
        d.check(status, "cuGraphInstantiateWithFlags")?;
        Ok(graph)
    }

    /// Throws the recording away, and tells what it was made of.
    pub fn discard(mut self) -> Result<Trace> {
        let (recorded, trace, _) = self.stop();
        self.destroy(recorded?)?;
        Ok(trace)
    }

    fn destroy(&self, template: Handle) -> Result<()> {
        let d = self.context().primary().enter()?;
        // SAFETY: the template has no other user.
        unsafe { (d.cuGraphDestroy)(template) };
        Ok(())
    }

    fn stop(&mut self) -> (Result<Handle>, Trace, Vec<Pinned>) {
        self.ended = true;
        let context = self.context();
        let stopped = || -> Result<Handle> {
            let d = context.primary().enter()?;
            let mut template: Handle = 0;
            // SAFETY: a stream that is being captured; writes one handle.
            let status = unsafe { (d.cuStreamEndCapture)(context.compute().raw, &mut template) };
            d.check(status, "cuStreamEndCapture")?;
            Ok(template)
        };
        let recorded = stopped();
        context.core().memory.set_capturing(false);
        let trace = context.core().recording.end();
        let pinned = context.staging().recorded();
        (recorded, trace, pinned)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let (Ok(template), ..) = self.stop() {
            let _ = self.destroy(template);
        }
    }
}

impl Graph {
    /// What it was made of.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Queues the recorded work on the compute stream. Numbers that change are those of the launch before.
    pub fn launch(&self) -> Result<()> {
        let context = &self.memory.0.context;
        context.refuse_while_capturing("a graph was launched")?;
        let d = context.primary().enter()?;
        // SAFETY: live handles; the graph's own memory is reserved for it.
        d.check(unsafe { (d.cuGraphLaunch)(self.executable, context.compute().raw) }, "cuGraphLaunch")
    }

    /// The same with new numbers, which lie in `values` where [`Trace::varying`] says. Fails when it has another size than
    /// [`Trace::room`].
    pub fn launch_with(&self, values: &[u8]) -> Result<()> {
        if values.len() != self.trace.room() {
            let what = format!("{} bytes of changing numbers, not {}", values.len(), self.trace.room());
            return Err(Error::Invalid { what });
        }
        self.memory.set(values)?;
        self.launch()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let context = &self.memory.0.context;
        let _ = context.synchronize();
        if let (Ok(d), true) = (context.primary().enter(), self.executable != 0) {
            // SAFETY: instantiated in `end`, and not running any more.
            unsafe { (d.cuGraphExecDestroy)(self.executable) };
        }
    }
}

impl fmt::Debug for GraphMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GraphMemory({} bytes on {:?})", self.held(), self.0.context)
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({} pieces of work on {:?})", self.trace.len(), self.memory.0.context)
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capture(on {:?})", self.context())
    }
}
