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

/// Memory of another kind than the system's, for a pool to hand out: page-locked memory, which a GPU copies from by itself.
/// The bytes begin at a multiple of [`ALIGN`] and always are the same.
pub trait Foreign: Send + Sync {
    /// The bytes.
    fn bytes(&self) -> &[u8];

    /// The bytes, for writing.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// Gives so many bytes of such memory, while there are any.
pub type ForeignMemory = dyn Fn(usize) -> Option<Box<dyn Foreign>> + Send + Sync;

enum Block {
    System(System),
    Foreign(Box<dyn Foreign>, usize),
}

impl Block {
    /// The size that was asked for.
    fn size(&self) -> usize {
        match self {
            Block::System(block) => block.layout.size(),
            Block::Foreign(_, size) => *size,
        }
    }
}

struct System {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is plain memory with a single owner.
unsafe impl Send for System {}
// SAFETY: shared references to it give no access to the memory.
unsafe impl Sync for System {}

impl Drop for System {
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
    foreign: Option<Arc<ForeignMemory>>,
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

/// A new block of the system's memory for a request of that class.
fn system(class: usize, bytes: usize) -> Result<Block> {
    let out = Error::OutOfMemory { bytes };
    let layout = Layout::from_size_align(class, ALIGN).map_err(|_| out.clone())?;
    // SAFETY: the layout's size is at least `ALIGN`. Zeroed, because a slice over
    // uninitialised memory would be undefined behaviour.
    let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(out)?;
    Ok(Block::System(System { base, layout }))
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty pool of memory that `foreign` gives, and of the system's where that has none left.
    pub fn of(foreign: Arc<ForeignMemory>) -> Self {
        Pool(Arc::new(Mutex::new(State { foreign: Some(foreign), ..State::default() })))
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
                state.stats.large_system_allocs += usize::from(bytes >= LARGE);
                let fits = |b: &[u8]| b.len() >= class && (b.as_ptr() as usize).is_multiple_of(ALIGN);
                let foreign = state.foreign.as_ref().and_then(|f| f(class)).filter(|m| fits(m.bytes()));
                foreign.map_or_else(|| system(class, bytes), |m| Ok(Block::Foreign(m, class)))?
            }
        };
        state.stats.live += block.size();
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
            let class = block.size();
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

    /// Leaves the first `bytes` bytes; of a shorter buffer all.
    pub fn truncate(&mut self, bytes: usize) {
        self.bytes = self.bytes.min(bytes);
    }

    /// Whether it is memory of the pool's own kind and not the system's.
    pub fn is_foreign(&self) -> bool {
        matches!(self.block, Some(Block::Foreign(..)))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.block {
            // SAFETY: the block is at least `bytes` long, initialised, and owned by this buffer.
            Some(Block::System(b)) => unsafe { std::slice::from_raw_parts(b.base.as_ptr(), self.bytes) },
            Some(Block::Foreign(m, _)) => &m.bytes()[..self.bytes],
            None => &[],
        }
    }

    /// The bytes, for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.block {
            // SAFETY: as in `bytes`, and `&mut self` makes this the only access.
            Some(Block::System(b)) => unsafe { std::slice::from_raw_parts_mut(b.base.as_ptr(), self.bytes) },
            Some(Block::Foreign(m, _)) => &mut m.bytes_mut()[..self.bytes],
            None => &mut [],
        }
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

    /// A page, of which there are as many as are left.
    struct Page(Box<[Line; 64]>);
    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct Line([u8; 64]);

    impl Foreign for Page {
        fn bytes(&self) -> &[u8] {
            self.0[0].0.as_slice()
        }
        fn bytes_mut(&mut self) -> &mut [u8] {
            self.0[0].0.as_mut_slice()
        }
    }

    #[test]
    fn memory_of_another_kind_is_kept_and_the_systems_takes_its_place_when_there_is_no_more() {
        let left = std::sync::atomic::AtomicUsize::new(2);
        let take = move |_: usize| {
            let order = std::sync::atomic::Ordering::Relaxed;
            let one = left.fetch_update(order, order, |n| n.checked_sub(1));
            one.ok().map(|_| Box::new(Page(Box::new([Line([7; 64]); 64]))) as Box<dyn Foreign>)
        };
        let pool = Pool::of(Arc::new(take));
        let mut a = pool.alloc(10).unwrap();
        assert!(a.is_foreign() && a.bytes() == [7; 10]);
        a.bytes_mut()[0] = 1;
        // One that is too small is not taken.
        assert!(!pool.alloc(100).unwrap().is_foreign());
        drop(a);
        let a = pool.alloc(20).unwrap();
        assert!(a.is_foreign() && a.bytes()[0] == 1);
        assert!(!pool.alloc(20).unwrap().is_foreign());
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
