//! Blocks of device memory that the host fills on the copy stream, while the computation before goes on.

use std::collections::VecDeque;
use std::fmt;

use crate::{Buffer, Context, Event, Pinned, Result};

/// Blocks of one size that may be there at once; more while all of them together are small.
const BLOCKS: usize = 3;
/// What is small, in bytes.
const SMALL: usize = 64 << 20;

/// A ring of blocks for what a computation reads, such as the batches of a training. Its memory is its own: a block from
/// the common cache would have to wait for the work of its last owner.
pub struct Feed {
    context: Context,
    /// In the order in which they came free, or were filled.
    blocks: VecDeque<Block>,
}

struct Block {
    buffer: Buffer,
    /// A mark behind the last work on it, once nobody has it any more.
    free: Option<Event>,
    /// What it was filled from, and a mark behind the copy.
    _source: Option<(Pinned, Event)>,
}

impl Feed {
    /// Without any memory yet.
    pub fn new(context: &Context) -> Self {
        Feed { context: context.clone(), blocks: VecDeque::new() }
    }

    /// A block with these bytes. They are on their way; the compute stream's work from now on comes after them. When all
    /// clones of the block are dropped, it is filled again.
    pub fn send(&mut self, bytes: &[u8]) -> Result<Buffer> {
        self.context.refuse_while_capturing("a batch was sent")?;
        self.mark()?;
        let mut block = self.block(bytes.len())?;
        let mut pinned = self.context.pinned(bytes.len())?;
        pinned.copy_from_slice(bytes);
        let copies = self.context.copies();
        if let Some(free) = block.free.take() {
            copies.wait(&free)?;
        }
        let done = self.context.event()?;
        self.context.copy_in(copies, block.buffer.ptr(), &pinned)?;
        if let Err(e) = done.record(copies) {
            let _ = copies.synchronize();
            return Err(e);
        }
        let buffer = block.buffer.clone();
        block._source = Some((pinned, done.clone()));
        self.blocks.push_back(block);
        self.context.compute().wait(&done)?;
        Ok(buffer)
    }

    /// Marks the blocks that have come free: all work on them has been queued by now.
    fn mark(&mut self) -> Result<()> {
        let mut now = None;
        for block in self.blocks.iter_mut().filter(|b| b.free.is_none() && b.buffer.is_unique()) {
            let event = match &now {
                Some(event) => Event::clone(event),
                None => {
                    let event = self.context.event()?;
                    event.record(self.context.compute())?;
                    now.insert(event).clone()
                }
            };
            block.free = Some(event);
        }
        Ok(())
    }

    /// A block that nobody has: one whose last work is done, else a new one, else the one that is free first.
    fn block(&mut self, bytes: usize) -> Result<Block> {
        let all: usize = self.blocks.iter().map(|b| b.buffer.len()).sum();
        let alike = self.blocks.iter().filter(|b| b.buffer.len() == bytes).count();
        let first = self.blocks.iter().position(|b| b.buffer.len() == bytes && b.free.is_some());
        if let Some(at) = first {
            let done = match &self.blocks[at].free {
                Some(event) => event.query()?,
                None => false,
            };
            let full = alike >= BLOCKS && all + bytes > SMALL;
            if let Some(block) = (done || full).then(|| self.blocks.remove(at)).flatten() {
                return Ok(block);
            }
        } else if all + bytes > SMALL {
            // Of sizes that do not come any more.
            self.blocks.retain(|b| b.free.is_none() || b.buffer.len() == bytes);
        }
        let buffer = self.context.alloc_lasting(bytes)?;
        let event = self.context.event()?;
        event.record(self.context.compute())?;
        Ok(Block { buffer, free: Some(event), _source: None })
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // What is copied from goes back to the cache now.
        let _ = self.context.copies().synchronize();
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Feed({} blocks on {:?})", self.blocks.len(), self.context)
    }
}
