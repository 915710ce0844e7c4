//! Device memory: blocks from a caching allocator, handed out in the order of the compute stream.

mod planner;
mod pool;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use pool::MemoryStats;
pub(crate) use pool::{Block, Memory};

use crate::context::Core;
use crate::{Context, Error, Event, Result};

/// An address in device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// The address `bytes` further on.
    pub const fn offset(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + bytes as u64)
    }
}

/// A block of device memory; a clone is the same block. When the last is dropped, the block goes back to the
/// context's cache and is handed out again at once: work that is queued on the compute stream by then comes before
/// whatever the next owner queues there. For other streams see [`Buffer::keep_until`].
#[derive(Clone)]
pub struct Buffer(Arc<Owned>);

struct Owned {
    block: Block,
    len: usize,
    keep: Mutex<Vec<Event>>,
    context: Context,
    /// Whether it is for what comes from the host (`input.rs`).
    input: bool,
}

impl Buffer {
    pub(crate) fn of_input(context: &Context, block: Block, len: usize) -> Self {
        Buffer(Arc::new(Owned { block, len, keep: Mutex::default(), context: context.clone(), input: true }))
    }

    /// Address of the first byte, a multiple of 512.
    pub fn ptr(&self) -> DevicePtr {
        DevicePtr(self.0.block.address)
    }

    /// Size in bytes, as asked for.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The context that it belongs to.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// Whether both are the same block.
    pub fn same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether no other clone is alive.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// After the last drop the block stays reserved until `event`, recorded on another stream that uses it, is done.
    pub fn keep_until(&self, event: &Event) {
        self.0.keep.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes on {:?})", self.0.len, self.0.context)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let keep = std::mem::take(self.keep.get_mut().unwrap_or_else(PoisonError::into_inner));
        match self.input {
            true => self.context.give_input(self.block, self.len, keep),
            false => self.context.core().memory.give(self.block, keep),
        }
    }
}

impl Context {
    /// A block of at least `bytes` bytes, whose content is whatever was there. Fails with [`Error::OutOfMemory`],
    /// after the cache was given back to the device and did not suffice.
    pub fn alloc(&self, bytes: usize) -> Result<Buffer> {
        Ok(self.buffer(self.relieved(|memory| memory.take(bytes))?, bytes))
    }

    /// As [`Context::alloc`] for what stays while graphs' memory is in use for all else ([`crate::GraphMemory`]).
    pub fn alloc_lasting(&self, bytes: usize) -> Result<Buffer> {
        Ok(self.buffer(self.relieved(|memory| memory.take_lasting(bytes))?, bytes))
    }

    fn buffer(&self, block: Block, len: usize) -> Buffer {
        let context = self.clone();
        Buffer(Arc::new(Owned { block, len, keep: Mutex::default(), context, input: false }))
    }

    /// Takes a block, where there is no room once blocks for input that wait have been given up.
    pub(crate) fn relieved(&self, take: impl Fn(&Memory) -> Result<Block>) -> Result<Block> {
        match take(&self.core().memory) {
            Err(Error::OutOfMemory { .. }) if !self.is_capturing() && self.release_inputs() => {
                take(&self.core().memory)
            }
            taken => taken,
        }
    }

    /// How much device memory this context holds and uses.
    pub fn memory(&self) -> MemoryStats {
        self.core().memory.stats()
    }

    /// Bytes that this context can still have: what the device has left, and what is cached.
    pub fn free_memory(&self) -> Result<u64> {
        self.core().memory.free()
    }

    /// How long full memory waits for sums with other ranks, before it is an error.
    pub fn set_patience(&self, limit: Duration) {
        self.core().memory.set_patience(limit);
    }

    /// Gives cached memory back to the device; first waits for the compute stream.
    pub fn trim(&self) -> Result<()> {
        self.refuse_while_capturing("memory was to be given back")?;
        self.core().memory.outwait_sums()?;
        self.synchronize()?;
        self.release_inputs();
        self.core().memory.trim()
    }
}

/// Memory for one call of a library, given back at the end of the scope.
pub(crate) struct Scratch<'a> {
    core: &'a Core,
    block: Block,
}

impl<'a> Scratch<'a> {
    pub(crate) fn new(core: &'a Core, bytes: usize) -> Result<Self> {
        Ok(Scratch { core, block: core.memory.take(bytes)? })
    }

    pub(crate) fn address(&self) -> u64 {
        self.block.address
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        self.core.memory.give(self.block, Vec::new());
    }
}

/// Checks a range of a buffer.
pub(crate) fn within(at: usize, bytes: usize, len: usize) -> Result<()> {
    match at.checked_add(bytes) {
        Some(end) if end <= len => Ok(()),
        _ => Err(Error::OutOfBounds { at, bytes, len }),
    }
}
