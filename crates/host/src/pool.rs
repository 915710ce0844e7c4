//! The caching allocator of one rank: a step's activations are freed and asked for again in the same
//! sizes, so after the first step nothing large comes from the system.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{ALIGN, Element, Error, Result};

/// Requests from this size on count as large in [`PoolStats::large_system_allocs`].
const LARGE: usize = 64 * 1024;

/// What a pool has done so far; sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// In use now.
    pub live: usize,
    /// The most that was in use at once.
    pub peak: usize,
    /// Kept for the next request.
    pub cached: usize,
    /// Requests of at least 64 KiB that had to go to the system.
    pub large_system_allocs: usize,
}

struct Block {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a `Block` is plain memory with a single owner.
unsafe impl Send for Block {}
// SAFETY: shared references to a `Block` give no access to the memory.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc_zeroed` with this layout and is freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

#[derive(Default)]
struct State {
    /// By size; no list is empty.
    free: BTreeMap<usize, Vec<Block>>,
    stats: PoolStats,
}

impl State {
    /// A free block for a request of that class. A large request takes one of up to half as much again where its class
    /// has none: the gradients of a backward pass then lie where larger activations were before, and do not add to them.
    fn take(&mut self, class: usize) -> Option<Block> {
        let most = if class < LARGE { class } else { class.saturating_add(class / 2) };
        let size = *self.free.range(class..=most).next()?.0;
        let blocks = self.free.get_mut(&size)?;
        let block = blocks.pop()?;
        if blocks.is_empty() {
            self.free.remove(&size);
        }
        self.stats.cached -= size;
        Some(block)
    }
}

/// A caching allocator; cloning it clones the reference.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<State>>);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}

/// Rounds a request up so that nearly equal sizes share blocks: at most an eighth is lost.
fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(ALIGN);
    let step = (bytes.next_power_of_two() / 16).max(ALIGN);
    bytes.div_ceil(step) * step
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `bytes` bytes with arbitrary (but initialised) contents, aligned to [`ALIGN`].
    pub fn alloc(&self, bytes: usize) -> Result<Buffer> {
        // No layout is larger, and the class of such a request would overflow.
        if isize::try_from(bytes).is_err() {
            return Err(Error::OutOfMemory { bytes });
        }
        let class = size_class(bytes);
        let mut state = self.state();
        let block = match state.take(class) {
            Some(block) => block,
            None => {
                let out = Error::OutOfMemory { bytes };
                let layout = Layout::from_size_align(class, ALIGN).map_err(|_| out.clone())?;
                // SAFETY: the layout's size is at least `ALIGN`. Zeroed, because a slice over
                // uninitialised memory would be undefined behaviour.
                let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(out)?;
                state.stats.large_system_allocs += usize::from(bytes >= LARGE);
                Block { base, layout }
            }
        };
        state.stats.live += block.layout.size();
        state.stats.peak = state.stats.peak.max(state.stats.live);
        drop(state);
        Ok(Buffer { block: Some(block), bytes, pool: self.clone() })
    }

    /// As [`Pool::alloc`], all zero.
    pub fn alloc_zeroed(&self, bytes: usize) -> Result<Buffer> {
        let mut buffer = self.alloc(bytes)?;
        buffer.bytes_mut().fill(0);
        Ok(buffer)
    }

    /// What the pool has done so far.
    pub fn stats(&self) -> PoolStats {
        self.state().stats
    }

    /// Gives all cached blocks back to the system.
    pub fn trim(&self) {
        let mut state = self.state();
        state.free.clear();
        state.stats.cached = 0;
    }
}

/// A block of a [`Pool`]; goes back to it when dropped.
pub struct Buffer {
    block: Option<Block>,
    bytes: usize,
    pool: Pool,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            let class = block.layout.size();
            let mut state = self.pool.state();
            state.stats.live -= class;
            state.stats.cached += class;
            state.free.entry(class).or_default().push(block);
        }
    }
}

impl Buffer {
    /// Size in bytes, as asked for.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn base(&self) -> *mut u8 {
        self.block.as_ref().map_or(NonNull::<u64>::dangling().as_ptr().cast(), |b| b.base.as_ptr())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block is at least `bytes` long, initialised, and owned by this buffer; it is
        // there until `drop`.
        unsafe { std::slice::from_raw_parts(self.base(), self.bytes) }
    }

    /// The bytes, for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.bytes) }
    }

    /// The contents as elements; a tail that is no whole element is left out.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        let whole = self.bytes - self.bytes % size_of::<T>();
        bytemuck::cast_slice(&self.bytes()[..whole])
    }

    /// The contents as elements, for writing; a tail that is no whole element is left out.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        let whole = self.bytes - self.bytes % size_of::<T>();
        bytemuck::cast_slice_mut(&mut self.bytes_mut()[..whole])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_round_of_the_same_sizes_asks_the_system_for_nothing() {
        let pool = Pool::new();
        let round = || {
            let b: Vec<_> = [1, 100_000, 70_000, 0, 100_010].map(|n| pool.alloc(n).unwrap()).into();
            b.iter().for_each(|b| assert_eq!(b.bytes().as_ptr() as usize % ALIGN, 0));
        };
        round();
        let first = pool.stats();
        assert_eq!((first.live, first.large_system_allocs), (0, 3));
        round();
        assert_eq!(pool.stats(), first);
        pool.trim();
        assert_eq!(pool.stats().cached, 0);
    }

    #[test]
    fn large_requests_take_blocks_that_are_somewhat_larger() {
        let pool = Pool::new();
        drop((pool.alloc(3_000_000).unwrap(), pool.alloc(12_000_000).unwrap(), pool.alloc(1500).unwrap()));
        let cached = pool.stats().cached;
        let somewhat = pool.alloc(2_500_000).unwrap();
        assert_eq!((somewhat.len(), pool.stats().large_system_allocs), (2_500_000, 2));
        assert_eq!(pool.stats().live + pool.stats().cached, cached);
        // Nothing near is left, and small requests keep to their class.
        let (_much, _small) = (pool.alloc(2_500_000).unwrap(), pool.alloc(1100).unwrap());
        assert_eq!(pool.stats().large_system_allocs, 3);
        drop(somewhat);
        drop(pool.alloc(3_000_000).unwrap());
        assert_eq!(pool.stats().large_system_allocs, 3);
    }

    #[test]
    fn absurd_requests_are_refused() {
        for bytes in [usize::MAX, usize::MAX / 2 + 2, usize::MAX / 2] {
            assert!(Pool::new().alloc(bytes).is_err(), "{bytes}");
        }
    }

    #[test]
    fn classes_lose_at_most_an_eighth() {
        for n in [64usize, 65, 1000, 4097, 1 << 20, (1 << 20) + 1, 123_456_789] {
            let c = size_class(n);
            assert!(c >= n && c <= n + n / 8 + ALIGN, "{n} -> {c}");
        }
    }
}
