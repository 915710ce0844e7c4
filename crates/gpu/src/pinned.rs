use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::context::Core;
use crate::device::Primary;
use crate::ffi::driver;
use crate::{Context, Result};

/// The smallest block of host memory in bytes; sizes are multiples of it.
const SMALLEST: usize = 4096;

/// Host memory that the device copies to and from without a detour, from a cache. It must outlive the copies: wait
/// for them before it is dropped or written to.
pub struct Pinned {
    address: usize,
    len: usize,
    core: Arc<Core>,
}

/// Pinned blocks without an owner, by size.
pub(crate) struct HostCache {
    primary: Arc<Primary>,
    free: Mutex<HashMap<usize, Vec<usize>>>,
}

impl HostCache {
    pub(crate) fn new(primary: &Arc<Primary>) -> Self {
        HostCache { primary: primary.clone(), free: Mutex::default() }
    }

    fn take(&self, size: usize) -> Result<usize> {
        let cached =
            self.free.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&size).and_then(Vec::pop);
        if let Some(address) = cached {
            return Ok(address);
        }
        let d = self.primary.enter()?;
        let mut address: *mut c_void = std::ptr::null_mut();
        // SAFETY: writes one address.
        let status = unsafe { (d.cuMemHostAlloc)(&mut address, size, driver::HOST_PORTABLE) };
        d.check(status, "cuMemHostAlloc")?;
        // SAFETY: `size` bytes were just allocated; they are read as bytes from now on, so they must have values.
        unsafe { address.cast::<u8>().write_bytes(0, size) };
        Ok(address as usize)
    }

    fn give(&self, size: usize, address: usize) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).entry(size).or_default().push(address);
    }
}

impl Drop for HostCache {
    fn drop(&mut self) {
        let Ok(d) = self.primary.enter() else { return };
        let free = self.free.get_mut().unwrap_or_else(PoisonError::into_inner);
        for address in free.drain().flat_map(|(_, blocks)| blocks) {
            // SAFETY: allocated in `take`, and nobody owns it.
            unsafe { (d.cuMemFreeHost)(address as *mut c_void) };
        }
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
        self.core.host.give(class(self.len), self.address);
    }
}
