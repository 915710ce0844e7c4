use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::planner::{self, Planner, Tag};
use crate::device::Primary;
use crate::ffi::driver::{self, Driver};
use crate::{Error, Event, Result, Stream};

/// How many of the largest live blocks an error names.
const NAMED: usize = 10;

/// How long full memory waits for sums with other ranks unless somebody says otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much device memory a context holds and uses. Sizes in bytes, of blocks as handed out (multiples of 512).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// In live blocks.
    pub live: u64,
    /// The most that was live since the start.
    pub peak_live: u64,
    /// Held from the device without a use.
    pub cached: u64,
    /// The largest block that was handed out.
    pub largest: u64,
    /// Blocks handed out.
    pub allocations: u64,
    /// Segments that the device was asked for.
    pub device_allocations: u64,
}

/// A block that is in use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) address: u64,
}

/// A context's device memory.
pub(crate) struct Memory {
    primary: Arc<Primary>,
    state: Mutex<State>,
    /// What is handed out now belongs to: 0, or the memory of graphs.
    tag: AtomicU32,
    capturing: AtomicBool,
    /// Whether each block is an allocation of the device's own, so that checkers see every byte beyond it.
    apart: bool,
    /// Where sums wait for other ranks.
    sums: Arc<Stream>,
    /// How long to wait for them, in milliseconds.
    patience: AtomicU64,
}

/// Set to 1, it gives each block an allocation of its own (slow): for compute-sanitizer and the tests' stand-ins.
const APART: &str = "PHALANX_CUDA_APART";

#[derive(Default)]
struct State {
    planner: Planner,
    stats: MemoryStats,
    /// Blocks without an owner that another stream may still use.
    kept: Vec<(Block, Vec<Event>)>,
    last_tag: Tag,
}

impl Memory {
    pub(crate) fn new(primary: &Arc<Primary>, sums: &Arc<Stream>) -> Self {
        Memory {
            primary: primary.clone(),
            state: Mutex::default(),
            tag: AtomicU32::new(0),
            capturing: AtomicBool::new(false),
            apart: std::env::var_os(APART).is_some_and(|v| v == "1"),
            sums: sums.clone(),
            patience: AtomicU64::new(PATIENCE.as_millis() as u64),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self, bytes: usize) -> Result<Block> {
        self.take_of(self.tag.load(Ordering::Relaxed), bytes)
    }

    /// As [`Memory::take`], for what outlives the use of graphs' memory that is going on.
    pub(crate) fn take_lasting(&self, bytes: usize) -> Result<Block> {
        self.take_of(0, bytes)
    }

    fn take_of(&self, tag: Tag, bytes: usize) -> Result<Block> {
        let mut state = self.state();
        // Events must not be asked while a graph is captured.
        if !self.is_capturing() && !state.kept.is_empty() {
            state.sweep(false)?;
        }
        let found = match state.planner.take(tag, bytes) {
            Some(found) => found,
            None => self.grow(&mut state, tag, bytes)?,
        };
        let stats = &mut state.stats;
        stats.live += found.1;
        stats.peak_live = stats.peak_live.max(stats.live);
        stats.largest = stats.largest.max(found.1);
        stats.allocations += 1;
        Ok(Block { address: found.0 })
    }

    /// Asks the device for a segment; when it has none, gives back what is cached and asks again.
    #[cold]
    fn grow(&self, state: &mut State, tag: Tag, bytes: usize) -> Result<(u64, u64)> {
        let d = self.primary.enter()?;
        // No more than was asked for: what lies beyond it is nobody's.
        let usual = if self.apart { bytes.max(1) as u64 } else { planner::segment_size(bytes) };
        let mut segment = state.ask(d, usual)?.map(|address| (address, usual));
        if segment.is_none() && !self.is_capturing() {
            self.outwait_sums()?;
            state.sweep(true)?;
            if let Some(found) = state.planner.take(tag, bytes) {
                return Ok(found);
            }
            state.release(d);
            let least = planner::rounded(bytes).next_multiple_of(planner::SEGMENT_UNIT);
            for size in [usual, least] {
                if segment.is_none() {
                    segment = state.ask(d, size)?.map(|address| (address, size));
                }
            }
        }
        if let Some((address, size)) = segment {
            state.planner.insert(tag, address, size.next_multiple_of(planner::UNIT), bytes);
        }
        match state.planner.take(tag, bytes) {
            Some(found) => Ok(found),
            None => Err(state.exhausted(d, tag, bytes)),
        }
    }

    /// What takes memory back waits for all that runs on the device, and has no deadline: so first for what may wait for another
    /// rank, with one.
    pub(crate) fn outwait_sums(&self) -> Result<()> {
        self.sums.synchronize_within(Duration::from_millis(self.patience.load(Ordering::Relaxed)))
    }

    pub(crate) fn set_patience(&self, limit: Duration) {
        self.patience.store(limit.as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Takes a block back; it is handed out again when all of `keep` are done.
    pub(crate) fn give(&self, block: Block, keep: Vec<Event>) {
        let mut state = self.state();
        if keep.is_empty() {
            state.give(block);
            if self.apart
                && !self.is_capturing()
                && let Ok(d) = self.primary.enter()
            {
                state.release(d);
            }
        } else {
            state.kept.push((block, keep));
        }
    }

    pub(crate) fn stats(&self) -> MemoryStats {
        let state = self.state();
        MemoryStats { cached: state.planner.held() - state.stats.live, ..state.stats }
    }

    /// What the device has left, and what is held from it without a use.
    pub(crate) fn free(&self) -> Result<u64> {
        let d = self.primary.enter()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: writes two sizes.
        d.check(unsafe { (d.cuMemGetInfo_v2)(&mut free, &mut total) }, "cuMemGetInfo_v2")?;
        Ok(free as u64 + self.stats().cached)
    }

    /// Gives cached segments back to the device.
    pub(crate) fn trim(&self) -> Result<()> {
        let d = self.primary.enter()?;
        let mut state = self.state();
        state.sweep(true)?;
        state.release(d);
        Ok(())
    }

    /// A tag for memory of graphs, which nothing belongs to yet.
    pub(crate) fn new_tag(&self) -> Tag {
        let mut state = self.state();
        state.last_tag += 1;
        state.last_tag
    }

    /// From now on blocks are of this tag; gives the one before.
    pub(crate) fn switch(&self, tag: Tag) -> Tag {
        self.tag.swap(tag, Ordering::Relaxed)
    }

    /// Graphs are gone: their segments serve everybody.
    pub(crate) fn retire(&self, tag: Tag) {
        self.state().planner.retire(tag);
    }

    /// Bytes of one tag: in used blocks, and held in all.
    pub(crate) fn of_tag(&self, tag: Tag) -> (u64, u64) {
        let state = self.state();
        (state.planner.used(tag), state.planner.held_by(tag))
    }

    pub(crate) fn is_capturing(&self) -> bool {
        self.capturing.load(Ordering::Relaxed)
    }

    pub(crate) fn set_capturing(&self, on: bool) {
        self.capturing.store(on, Ordering::Relaxed);
    }
}

impl State {
    fn give(&mut self, block: Block) {
        if let Some(size) = self.planner.give(block.address) {
            self.stats.live -= size;
        }
    }

    /// Takes back the kept blocks whose events are done; waits for all of them with `wait`.
    fn sweep(&mut self, wait: bool) -> Result<()> {
        let mut i = 0;
        while i < self.kept.len() {
            let mut done = true;
            for event in &self.kept[i].1 {
                if wait {
                    event.synchronize()?;
                }
                done &= event.query()?;
            }
            if done {
                let (block, _) = self.kept.swap_remove(i);
                self.give(block);
            } else {
                i += 1;
            }
        }
        Ok(())
    }

    /// A segment from the device; `None` when it has no room.
    fn ask(&mut self, d: &Driver, size: u64) -> Result<Option<u64>> {
        let mut address = 0u64;
        // SAFETY: writes one address; freed in `release` or when the memory is dropped.
        let status = unsafe { (d.cuMemAlloc_v2)(&mut address, size as usize) };
        if status == driver::OUT_OF_MEMORY {
            return Ok(None);
        }
        d.check(status, "cuMemAlloc_v2")?;
        self.stats.device_allocations += 1;
        Ok(Some(address))
    }

    fn release(&mut self, d: &Driver) {
        for address in self.planner.release() {
            // SAFETY: a segment of ours without a used block; the driver waits for work that may still use it.
            unsafe { (d.cuMemFree_v2)(address) };
        }
    }

    fn exhausted(&self, d: &Driver, tag: Tag, bytes: usize) -> Error {
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: writes two sizes.
        unsafe { (d.cuMemGetInfo_v2)(&mut free, &mut total) };
        let (live, graphs) = (self.stats.live, self.planner.idle_of_others(tag));
        let new = free as u64 / planner::SEGMENT_UNIT * planner::SEGMENT_UNIT;
        Error::OutOfMemory {
            wanted: bytes as u64,
            fits: self.planner.largest_free(tag).max(new),
            live,
            graphs,
            cached: self.planner.held() - live - graphs,
            free: free as u64,
            total: total as u64,
            largest: self.planner.largest(NAMED),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Ok(d) = self.primary.enter() else { return };
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for address in state.planner.clear() {
            // SAFETY: a segment of ours; no buffer is left, as each holds the context.
            unsafe { (d.cuMemFree_v2)(address) };
        }
    }
}
