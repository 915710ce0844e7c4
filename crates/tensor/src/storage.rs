use std::sync::Arc;

use phalanx_host::{Arena, ArenaRef, Buffer};

use crate::Result;

/// The memory behind a tensor: one closed enum, matched here and in [`crate::Exec`] only.
#[derive(Clone, Debug)]
pub enum Storage {
    /// A block of the rank's host pool. Immutable from the moment that it becomes a tensor.
    Host(Arc<Buffer>),
    /// A range of a flat arena: a parameter. The optimizer rewrites it between steps.
    Arena(ArenaSlice),
    /// Device memory.
    Cuda(phalanx_gpu::Buffer),
}

/// A byte range of an arena that a tensor reads.
#[derive(Clone, Debug)]
pub struct ArenaSlice {
    /// The arena.
    pub arena: Arena,
    /// First byte.
    pub start: usize,
    /// Size in bytes.
    pub len: usize,
}

/// A tensor's bytes, held for reading: a pooled block by reference count, an arena range by its borrow.
#[derive(Debug)]
pub enum Held {
    /// A pooled block.
    Host(Arc<Buffer>),
    /// A borrowed arena range.
    Arena(ArenaRef),
}

impl Held {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Held::Host(b) => b.bytes(),
            Held::Arena(r) => r.bytes(),
        }
    }
}

impl Storage {
    /// Borrows the bytes for reading. Fails while the arena range is borrowed for writing.
    pub fn hold(&self) -> Result<Held> {
        Ok(match self {
            Storage::Host(b) => Held::Host(b.clone()),
            Storage::Arena(s) => Held::Arena(s.arena.read(s.start..s.start + s.len)?),
            Storage::Cuda(c) => c.never(),
        })
    }
}
