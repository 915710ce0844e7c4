use std::sync::Arc;

use crate::device::Primary;
use crate::{Event, Result};

/// How much device memory a context holds and uses. Sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// In live blocks.
    pub live: u64,
    /// The most that was live since the start.
    pub peak_live: u64,
    /// Held from the device without a use.
    pub cached: u64,
    /// The largest block that was asked for.
    pub largest: u64,
    /// Blocks handed out.
    pub allocations: u64,
    /// Calls to the device for memory.
    pub device_allocations: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) address: u64,
}

pub(crate) struct Memory {
    primary: Arc<Primary>,
}

impl Memory {
    pub(crate) fn new(primary: &Arc<Primary>) -> Self {
        Memory { primary: primary.clone() }
    }

    pub(crate) fn take(&self, bytes: usize) -> Result<Block> {
        let d = self.primary.enter()?;
        let mut address = 0u64;
        // SAFETY: writes one address.
        d.check(unsafe { (d.cuMemAlloc_v2)(&mut address, bytes.max(512)) }, "cuMemAlloc_v2")?;
        Ok(Block { address })
    }

    pub(crate) fn give(&self, block: Block, _keep: Vec<Event>) {
        if let Ok(d) = self.primary.enter() {
            // SAFETY: allocated in `take`.
            unsafe { (d.cuMemFree_v2)(block.address) };
        }
    }

    pub(crate) fn stats(&self) -> MemoryStats {
        MemoryStats::default()
    }

    pub(crate) fn trim(&self) -> Result<()> {
        Ok(())
    }
}
