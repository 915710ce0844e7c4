//! What comes from the host beside the computation: copies on the copy stream while the compute stream goes on.
//!
//! Memory is handed out in the order of the compute stream, so a copy into a new block would wait for all that is queued
//! there. Blocks for input therefore keep to themselves: one that is given back waits for the next copy, which begins as
//! soon as the computation that read it last is done.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::memory::Block;
use crate::{Buffer, Context, Event, Result};

/// Blocks that may wait for their next use; older ones go back to everybody. Or twice as many as were in use at once: those of
/// a step while the next one's arrive.
const MOST_IDLE: usize = 16;

/// A copy's source, which lives until the copy is done.
pub type Source = Box<dyn AsRef<[u8]> + Send>;

#[derive(Default)]
pub(crate) struct Inputs {
    idle: Mutex<VecDeque<Idle>>,
    flying: Mutex<VecDeque<(Source, Event)>>,
    in_use: AtomicUsize,
    most_in_use: AtomicUsize,
}

/// A block that waits for its next use.
struct Idle {
    block: Block,
    bytes: usize,
    /// Copies and computation that may still be at it.
    after: Vec<Event>,
    /// Whether computation may be at it that no event marks.
    unmarked: bool,
}

impl Inputs {
    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn most_idle(&self) -> usize {
        MOST_IDLE.max(2 * self.most_in_use.load(Ordering::Relaxed))
    }

    /// A waiting block of that size: one that nothing is at any more, or the one that has waited longest.
    fn take(&self, bytes: usize) -> Result<Option<Idle>> {
        let mut idle = self.idle();
        let mut found = None;
        for (i, one) in idle.iter().enumerate().filter(|(_, one)| one.bytes == bytes) {
            let mut free = !one.unmarked;
            for event in &one.after {
                free = free && event.query()?;
            }
            if free {
                found = Some(i);
                break;
            }
            found = found.or(Some(i));
        }
        Ok(found.and_then(|i| idle.remove(i)))
    }
}

/// What a block for so many bytes has: nearly equal batches share blocks, and at most an eighth is lost.
fn class(bytes: usize) -> usize {
    let bytes = bytes.max(512);
    bytes.next_multiple_of((bytes.next_power_of_two() / 16).max(512))
}

impl Context {
    /// Copies what `source` holds to a block for it on the copy stream, while the compute stream goes on. Who reads the block
    /// first makes the compute stream wait for the event. Not while a graph is captured.
    pub fn bring(&self, source: Source) -> Result<(Buffer, Event)> {
        self.refuse_while_capturing("a copy beside the computation")?;
        self.land()?;
        let len = (*source).as_ref().len();
        let bytes = class(len);
        let waits = self.inputs().take(bytes)?;
        let (block, fresh, after) = match waits {
            Some(idle) => (idle.block, idle.unmarked, idle.after),
            None => (self.relieved(|memory| memory.take_lasting(bytes))?, true, Vec::new()),
        };
        let buffer = Buffer::of_input(self, block, len);
        let in_use = self.inputs().in_use.fetch_add(1, Ordering::Relaxed) + 1;
        self.inputs().most_in_use.fetch_max(in_use, Ordering::Relaxed);
        for event in &after {
            self.copies().wait(event)?;
        }
        if fresh {
            // Whoever had the memory before may still be at it.
            let event = self.event()?;
            event.record(self.compute())?;
            self.copies().wait(&event)?;
        }
        let copied = self.event()?;
        self.copy_bytes_in(self.copies(), buffer.ptr(), (*source).as_ref())?;
        if let Err(e) = copied.record(self.copies()) {
            let _ = self.copies().synchronize();
            return Err(e);
        }
        buffer.keep_until(&copied);
        self.inputs()
            .flying
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back((source, copied.clone()));
        Ok((buffer, copied))
    }

    /// Lets go of the sources of copies that are done.
    fn land(&self) -> Result<()> {
        let mut landed = Vec::new();
        let mut flying = self.inputs().flying.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((_, event)) = flying.front() {
            if !event.query()? {
                break;
            }
            landed.extend(flying.pop_front());
        }
        // Their own way back to where they come from is not for others to wait for.
        drop(flying);
        Ok(())
    }

    /// Takes back a block for input. Computation that is queued by now may be at it, and what `after` marks.
    pub(crate) fn give_input(&self, block: Block, len: usize, mut after: Vec<Event>) {
        let mark = || -> Result<Event> {
            let event = self.event()?;
            event.record(self.compute())?;
            Ok(event)
        };
        // A mark that is captured would be the graph's.
        let marked = if self.is_capturing() { None } else { mark().ok() };
        let unmarked = marked.is_none();
        after.extend(marked);
        self.inputs().in_use.fetch_sub(1, Ordering::Relaxed);
        let most = self.inputs().most_idle();
        let mut idle = self.inputs().idle();
        idle.push_back(Idle { block, bytes: class(len), after, unmarked });
        if idle.len() > most
            && let Some(oldest) = idle.pop_front()
        {
            self.core().memory.give(oldest.block, oldest.after);
        }
    }

    /// Gives all waiting blocks to everybody. Whether there was one.
    pub(crate) fn release_inputs(&self) -> bool {
        let idle: Vec<Idle> = self.inputs().idle().drain(..).collect();
        let any = !idle.is_empty();
        idle.into_iter().for_each(|one| self.core().memory.give(one.block, one.after));
        any
    }
}
