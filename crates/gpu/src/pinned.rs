use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::context::Core;
use crate::device::Primary;
use crate::ffi::driver;
use crate::{Context, DevicePtr, Result, Stream};

/// The smallest block of host memory in bytes; sizes are multiples of it.
const SMALLEST: usize = 4096;

/// Host memory that the device copies to and from without a detour, from a cache. It must outlive the copies: wait
/// for them before it is dropped or written to.
pub struct Pinned {
    address: usize,
    len: usize,
    core: Arc<Core>,
}

/// Bytes that may lie idle: batches of sizes that are no more asked for would else stay locked for good. Or as many as were in
/// use at once: those of a step, which the next one asks for again; to lock memory anew takes long and stops the device.
const MOST_IDLE: usize = 1 << 30;

/// Pinned blocks without an owner.
pub(crate) struct HostCache {
    primary: Arc<Primary>,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    by_size: HashMap<usize, Vec<usize>>,
    bytes: usize,
    in_use: usize,
    most_in_use: usize,
}

impl Free {
    fn take(&mut self, size: usize) -> Option<usize> {
        let address = self.by_size.get_mut(&size).and_then(Vec::pop)?;
        self.bytes -= size;
        Some(address)
    }

    /// Takes note of a block that has got an owner.
    fn lend(&mut self, size: usize) {
        self.in_use += size;
        self.most_in_use = self.most_in_use.max(self.in_use);
    }

    /// Keeps a block that had an owner, and gives those that are to go for it where some `may_go`: of other sizes first.
    fn keep(
        &mut self,
        size: usize,
        address: usize,
        most: usize,
        may_go: impl FnOnce() -> bool,
    ) -> Vec<usize> {
        self.in_use = self.in_use.saturating_sub(size);
        let most = most.max(self.most_in_use);
        self.by_size.entry(size).or_default().push(address);
        self.bytes += size;
        let mut gone = Vec::new();
        let too_many = self.bytes > most && may_go();
        while too_many && self.bytes > most {
            let other = self.by_size.iter().filter(|(_, blocks)| !blocks.is_empty()).map(|(s, _)| *s);
            let Some(next) = other.max_by_key(|s| (*s != size, *s)) else { break };
            gone.extend(self.take(next));
        }
        gone
    }
}

impl HostCache {
    pub(crate) fn new(primary: &Arc<Primary>) -> Self {
        HostCache { primary: primary.clone(), free: Mutex::default() }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, size: usize) -> Result<usize> {
        let mut free = self.free();
        if let Some(address) = free.take(size) {
            free.lend(size);
            return Ok(address);
        }
        drop(free);
        let d = self.primary.enter()?;
        let mut address: *mut c_void = std::ptr::null_mut();
        // SAFETY: writes one address.
        let status = unsafe { (d.cuMemHostAlloc)(&mut address, size, driver::HOST_PORTABLE) };
        d.check(status, "cuMemHostAlloc")?;
        self.free().lend(size);
        // SAFETY: `size` bytes were just allocated; they are read as bytes from now on, so they must have values.
        unsafe { address.cast::<u8>().write_bytes(0, size) };
        Ok(address as usize)
    }

    /// To let go of memory waits for all that runs on the device, without a deadline: so not while sums with other ranks are under
    /// way, which `sums` carries.
    fn give(&self, size: usize, address: usize, sums: &Stream) {
        let gone = self.free().keep(size, address, MOST_IDLE, || matches!(sums.query(), Ok(true)));
        if !gone.is_empty() {
            self.let_go(gone);
        }
    }

    fn let_go(&self, blocks: Vec<usize>) {
        let Ok(d) = self.primary.enter() else { return };
        for address in blocks {
            // SAFETY: allocated in `take`, and nobody owns it.
            unsafe { (d.cuMemFreeHost)(address as *mut c_void) };
        }
    }
}

impl Drop for HostCache {
    fn drop(&mut self) {
        let all = self.free().by_size.drain().flat_map(|(_, blocks)| blocks).collect();
        self.let_go(all);
    }
}

/// Rounds a size up so that nearly equal ones share blocks: at most an eighth is lost.
fn class(bytes: usize) -> usize {
    let bytes = bytes.max(SMALLEST);
    let step = (bytes.next_power_of_two() / 16).max(SMALLEST);
    bytes.next_multiple_of(step)
}

impl Context {
    /// A block of `bytes` bytes of pinned host memory, whose content is whatever was there.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned> {
        Pinned::new(self.core(), bytes)
    }

    /// [`Context::pinned`] for others, who do not keep the context open by it.
    pub fn pinner(&self) -> impl Fn(usize) -> Result<Pinned> + Send + Sync + use<> {
        let core = self.core().clone();
        move |bytes| Pinned::new(&core, bytes)
    }
}

impl Pinned {
    fn new(core: &Arc<Core>, bytes: usize) -> Result<Self> {
        let core = core.clone();
        Ok(Pinned { address: core.host.take(class(bytes))?, len: bytes, core })
    }

    /// The address for kernels: pinned memory has one on all sides.
    pub fn ptr(&self) -> DevicePtr {
        DevicePtr(self.address as u64)
    }

    pub(crate) fn address(&self) -> *mut c_void {
        self.address as *mut c_void
    }
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: at least `len` bytes, initialised when allocated, owned by `self` alone.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.len) }
    }
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.len) }
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} bytes)", self.len)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.core.host.give(class(self.len), self.address, self.core.communication());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sizes_that_share_blocks_lose_an_eighth_at_most(bytes in 0usize..1 << 36, more in 0usize..1 << 20) {
            let (size, least) = (class(bytes), bytes.max(SMALLEST));
            prop_assert!(size >= least && size.is_multiple_of(SMALLEST) && class(size) == size);
            prop_assert!(size - least < (least / 8).max(SMALLEST));
            prop_assert!(class(bytes + more) >= size);
        }

        #[test]
        fn every_block_is_idle_or_gone_once(turns in prop::collection::vec((1usize..6, any::<bool>()), 1..60)) {
            let (mut free, mut out, mut made) = (Free::default(), Vec::new(), 0);
            let mut idle = std::collections::BTreeMap::new();
            for (size, take) in turns {
                let size = size * 10;
                if take {
                    let at = free.take(size).inspect(|at| assert_eq!(idle.remove(at), Some(size)));
                    free.lend(size);
                    out.push((size, at.unwrap_or_else(|| { made += 1; made })));
                } else if let Some((size, at)) = out.pop() {
                    idle.insert(at, size);
                    free.keep(size, at, 50, || true).iter().for_each(|gone| assert!(idle.remove(gone).is_some()));
                }
                prop_assert_eq!(free.bytes, idle.values().sum::<usize>());
                prop_assert_eq!(free.in_use, out.iter().map(|(size, _)| size).sum::<usize>());
                prop_assert!(free.bytes <= free.most_in_use.max(50));
            }
        }
    }

    #[test]
    fn idle_blocks_are_bounded_and_those_of_other_sizes_go_first() {
        let mut free = Free::default();
        assert!(free.keep(40, 1, 100, || true).is_empty() && free.keep(40, 2, 100, || true).is_empty());
        // Not while somebody would wait for it; the next time then.
        assert!(free.keep(50, 3, 100, || false).is_empty() && free.take(50) == Some(3));
        assert_eq!(free.keep(50, 3, 100, || true), [2]);
        assert_eq!((free.bytes, free.take(50), free.take(40), free.take(40)), (90, Some(3), Some(1), None));
        assert_eq!(free.keep(200, 4, 100, || true), [4]);
        assert_eq!(free.bytes, 0);
    }

    #[test]
    fn what_one_step_uses_lies_idle_for_the_next() {
        let mut free = Free::default();
        let step = [1, 2, 3, 4];
        step.iter().for_each(|_| free.lend(50));
        for at in step {
            assert!(free.keep(50, at, 100, || true).is_empty());
        }
        assert_eq!((free.bytes, free.in_use), (200, 0));
        // No more than that.
        assert_eq!(free.keep(20, 5, 100, || true), [4]);
    }
}
