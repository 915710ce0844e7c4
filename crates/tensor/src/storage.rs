use std::sync::Arc;

use phalanx_gpu::DevicePtr;
use phalanx_host::{Arena, ArenaMut, ArenaRef, Buffer};

use crate::{Device, Error, Result};

/// The memory behind a tensor: one closed enum, matched here and in [`crate::Exec`] only.
#[derive(Clone, Debug)]
pub enum Storage {
    /// A block of the rank's host pool. Immutable from the moment that it becomes a tensor.
    Host(Arc<Buffer>),
    /// A range of a flat arena, of the host or of the GPU: a parameter. The optimizer rewrites it between steps.
    Arena(ArenaSlice),
    /// A block of the GPU's memory, likewise immutable.
    Cuda(Arc<phalanx_gpu::Buffer>),
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

/// Memory that a kernel reads: bytes of the host, or an address on the GPU.
#[derive(Clone, Copy, Debug)]
pub enum Memory<'a> {
    /// The host's.
    Host(&'a [u8]),
    /// The GPU's: an address and the number of bytes.
    Device(DevicePtr, usize),
}

/// Memory that a kernel writes.
#[derive(Debug)]
pub enum MemoryMut<'a> {
    /// The host's.
    Host(&'a mut [u8]),
    /// The GPU's: an address and the number of bytes.
    Device(DevicePtr, usize),
}

impl MemoryMut<'_> {
    /// The same memory for a shorter time.
    pub fn reborrow(&mut self) -> MemoryMut<'_> {
        match self {
            MemoryMut::Host(bytes) => MemoryMut::Host(bytes),
            MemoryMut::Device(ptr, len) => MemoryMut::Device(*ptr, *len),
        }
    }

    /// Of a borrowed range of an arena.
    pub fn of_arena(range: &mut ArenaMut) -> MemoryMut<'_> {
        match range.device_address() {
            Some(address) => MemoryMut::Device(DevicePtr(address), range.len()),
            None => MemoryMut::Host(range.bytes_mut()),
        }
    }
}

/// Memory of a device's allocator that nobody reads yet.
#[derive(Debug)]
pub enum Block {
    /// The host's.
    Host(Buffer),
    /// The GPU's.
    Cuda(phalanx_gpu::Buffer),
}

impl Block {
    /// Size in bytes.
    pub fn len(&self) -> usize {
        match self {
            Block::Host(b) => b.len(),
            Block::Cuda(b) => b.len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory, for writing.
    pub fn memory(&mut self) -> MemoryMut<'_> {
        match self {
            Block::Host(b) => MemoryMut::Host(b.bytes_mut()),
            Block::Cuda(b) => MemoryMut::Device(b.ptr(), b.len()),
        }
    }

    /// Writes `bytes`, which must have the block's size, to it.
    pub fn fill_from(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Block::Host(b) => b.bytes_mut().copy_from_slice(bytes),
            Block::Cuda(b) => b.context().upload(b, 0, bytes)?,
        }
        Ok(())
    }

    pub(crate) fn into_storage(self) -> Storage {
        match self {
            Block::Host(b) => Storage::Host(Arc::new(b)),
            Block::Cuda(b) => Storage::Cuda(Arc::new(b)),
        }
    }
}

impl Device {
    /// Memory for a result; the contents are arbitrary.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<Block> {
        Ok(match self {
            Device::Cpu(cpu) => Block::Host(cpu.pool.alloc(bytes)?),
            Device::Cuda(gpu) => Block::Cuda(gpu.alloc(bytes)?),
        })
    }
}

/// A tensor's memory, held for reading: a block by reference count, an arena range by its borrow.
#[derive(Debug)]
pub enum Held {
    /// A block of the host's pool.
    Host(Arc<Buffer>),
    /// A borrowed arena range.
    Arena(ArenaRef),
    /// A block of the GPU's memory.
    Cuda(Arc<phalanx_gpu::Buffer>),
}

impl Held {
    /// The memory.
    pub fn memory(&self) -> Memory<'_> {
        match self {
            Held::Host(b) => Memory::Host(b.bytes()),
            Held::Cuda(b) => Memory::Device(b.ptr(), b.len()),
            Held::Arena(r) => match r.device_address() {
                Some(address) => Memory::Device(DevicePtr(address), r.len()),
                None => Memory::Host(r.bytes()),
            },
        }
    }

    /// The bytes of host memory. Fails on a GPU's.
    pub fn bytes(&self) -> Result<&[u8]> {
        match self.memory() {
            Memory::Host(bytes) => Ok(bytes),
            Memory::Device(..) => Err(Error::WrongMemory { op: "read", device: "CPU" }),
        }
    }
}

impl Storage {
    /// Borrows the memory for reading. Fails while the arena range is borrowed for writing.
    pub fn hold(&self) -> Result<Held> {
        Ok(match self {
            Storage::Host(b) => Held::Host(b.clone()),
            Storage::Arena(s) => Held::Arena(s.arena.read(s.start..s.start + s.len)?),
            Storage::Cuda(b) => Held::Cuda(b.clone()),
        })
    }
}
