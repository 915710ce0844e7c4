//! The flat arena: one aligned block of host memory, handed out in ranges whose use is checked at
//! run time.
//!
//! Gradients are written by the backward pass straight into an arena; a bucket is a range of it that
//! moves into a collective and comes back reduced. Rust's borrow checker cannot follow a range across
//! threads and steps, so the arena keeps a small table of the ranges in use, and an overlap is an
//! error instead of a race. Guards own a reference to the arena: they may outlive the scope that made
//! them and travel to another thread.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Element, Error, Result};

/// Arenas start on a page so that a shared-memory window or a pinned block can take their place.
const PAGE: usize = 4096;

struct Inner {
    base: NonNull<u8>,
    bytes: usize,
    backing: Backing,
    borrows: Mutex<Vec<Borrow>>,
}

/// Whose memory it is.
enum Backing {
    /// The arena's own, from the global allocator.
    Own(Layout),
    /// Somebody else's: it is there as long as this value.
    Lent { _owner: Box<dyn Send + Sync> },
    /// A device's, which this machine's processor cannot read; `base` is an address over there.
    Device { _owner: Box<dyn Send + Sync> },
}

#[derive(Clone)]
struct Borrow {
    range: Range<usize>,
    exclusive: bool,
}

// SAFETY: `base` is plain memory that `Inner` owns or keeps alive; every access goes through a guard, and the
// table of borrows admits either one writer or many readers of any byte.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Backing::Own(layout) = self.backing {
            // SAFETY: `base` came from `alloc_zeroed` with this very layout, and no guard is left, since
            // each guard holds an `Arc` of this `Inner`.
            unsafe { dealloc(self.base.as_ptr(), layout) }
        }
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Vec<Borrow>> {
        // The table is never left half written, so a panic elsewhere does not spoil it.
        self.borrows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A block of host memory shared by reference; cloning it clones the reference.
#[derive(Clone)]
pub struct Arena(Arc<Inner>);

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} bytes)", self.0.bytes)
    }
}

impl Arena {
    /// An arena of `bytes` zero bytes.
    pub fn zeroed(bytes: usize) -> Result<Self> {
        let out = Error::OutOfMemory { bytes };
        let layout = Layout::from_size_align(bytes.max(1), PAGE).map_err(|_| out.clone())?;
        // SAFETY: the layout has a size of at least one byte.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(out)?;
        Ok(Arena(Arc::new(Inner { base, bytes, backing: Backing::Own(layout), borrows: Mutex::default() })))
    }

    /// An arena over memory of somebody else, such as a shared-memory window, which `owner` keeps there.
    ///
    /// # Safety
    /// `bytes` bytes from `base` on, which is aligned to a page, must be initialised and valid for reading
    /// and writing as long as `owner` lives. While a guard of a range exists, nobody but its holder may use
    /// that range; a transport to which the holder has handed the guard is part of the holder.
    pub unsafe fn lent(base: NonNull<u8>, bytes: usize, owner: Box<dyn Send + Sync>) -> Self {
        Arena(Arc::new(Inner {
            base,
            bytes,
            backing: Backing::Lent { _owner: owner },
            borrows: Mutex::default(),
        }))
    }

    /// An arena of `bytes` bytes from `address` on in a device's memory, which `owner` keeps there. Its ranges are
    /// borrowed as those of host memory are, and give addresses instead of slices.
    pub fn on_device(address: u64, bytes: usize, owner: Box<dyn Send + Sync>) -> Self {
        // No access goes through it: where there is no memory at all, any address does.
        let base = NonNull::new(address as *mut u8).unwrap_or(NonNull::dangling());
        let backing = Backing::Device { _owner: owner };
        Arena(Arc::new(Inner { base, bytes, backing, borrows: Mutex::default() }))
    }

    /// Whether it is a device's memory: only then have ranges a [`ArenaRef::device_address`], and only otherwise bytes.
    pub fn is_on_device(&self) -> bool {
        matches!(self.0.backing, Backing::Device { .. })
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.0.bytes
    }

    /// Whether the arena has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.bytes == 0
    }

    /// Whether both are the same block.
    pub fn same(&self, other: &Arena) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Borrows a byte range for reading. Fails with [`Error::Borrowed`] while any byte of it is
    /// borrowed for writing.
    pub fn read(&self, range: Range<usize>) -> Result<ArenaRef> {
        self.borrow(&range, false)?;
        Ok(ArenaRef { arena: self.clone(), range })
    }

    /// Borrows a byte range for writing. Fails with [`Error::Borrowed`] while any byte of it is
    /// borrowed at all.
    pub fn write(&self, range: Range<usize>) -> Result<ArenaMut> {
        self.borrow(&range, true)?;
        Ok(ArenaMut { arena: self.clone(), range })
    }

    fn borrow(&self, range: &Range<usize>, exclusive: bool) -> Result<()> {
        if range.start > range.end || range.end > self.0.bytes {
            return Err(Error::OutOfRange { range: range.clone(), len: self.0.bytes });
        }
        let mut table = self.0.table();
        let clash = |b: &&Borrow| {
            (b.exclusive || exclusive) && b.range.start < range.end && range.start < b.range.end
        };
        if let Some(held) = table.iter().find(clash) {
            return Err(Error::Borrowed {
                wanted: range.clone(),
                held: held.range.clone(),
                how: if held.exclusive { "for writing" } else { "for reading" },
            });
        }
        table.push(Borrow { range: range.clone(), exclusive });
        Ok(())
    }

    fn release(&self, range: &Range<usize>, exclusive: bool) {
        let mut table = self.0.table();
        if let Some(i) = table.iter().rposition(|b| b.exclusive == exclusive && b.range == *range) {
            table.swap_remove(i);
        }
    }
}

/// A range of an [`Arena`] borrowed for reading until it is dropped.
#[derive(Debug)]
pub struct ArenaRef {
    arena: Arena,
    range: Range<usize>,
}

/// A range of an [`Arena`] borrowed for writing until it is dropped.
#[derive(Debug)]
pub struct ArenaMut {
    arena: Arena,
    range: Range<usize>,
}

macro_rules! guard {
    ($t:ident, $exclusive:literal) => {
        impl $t {
            /// The borrowed bytes' place in the arena.
            pub fn range(&self) -> Range<usize> {
                self.range.clone()
            }

            /// The arena that the range belongs to.
            pub fn arena(&self) -> &Arena {
                &self.arena
            }

            /// Size in bytes.
            pub fn len(&self) -> usize {
                self.range.len()
            }

            /// Whether the range has no bytes.
            pub fn is_empty(&self) -> bool {
                self.range.is_empty()
            }

            /// Where the range begins in a device's memory; none for host memory.
            pub fn device_address(&self) -> Option<u64> {
                let base = self.arena.0.base.as_ptr() as u64;
                self.arena.is_on_device().then(|| base + self.range.start as u64)
            }

            /// The bytes; of a device's memory there are none to see ([`Arena::is_on_device`]).
            ///
            /// # Panics
            /// On a device's memory.
            pub fn bytes(&self) -> &[u8] {
                assert!(!self.arena.is_on_device(), "bytes of an arena in a device's memory");
                // SAFETY: the range lies inside the block (checked by `borrow`), which is host memory, the block is
                // initialised, and the table keeps writers other than this guard away.
                unsafe {
                    std::slice::from_raw_parts(self.arena.0.base.as_ptr().add(self.range.start), self.len())
                }
            }

            /// The range as elements. Fails with [`Error::OutOfRange`] when it is not a whole number
            /// of aligned elements.
            pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
                bytemuck::try_cast_slice(self.bytes())
                    .map_err(|_| Error::OutOfRange { range: self.range.clone(), len: self.arena.len() })
            }
        }

        impl Drop for $t {
            fn drop(&mut self) {
                self.arena.release(&self.range, $exclusive);
            }
        }
    };
}
guard!(ArenaRef, false);
guard!(ArenaMut, true);

impl ArenaMut {
    /// The bytes, for writing.
    ///
    /// # Panics
    /// On a device's memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(!self.arena.is_on_device(), "bytes of an arena in a device's memory");
        // SAFETY: as in `bytes`; this guard is the only borrow of the range, and `&mut self` makes
        // the slice the only use of the guard.
        unsafe {
            std::slice::from_raw_parts_mut(self.arena.0.base.as_ptr().add(self.range.start), self.range.len())
        }
    }

    /// The range as elements, for writing; errors as [`ArenaMut::as_slice`].
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        let (range, len) = (self.range.clone(), self.arena.len());
        bytemuck::try_cast_slice_mut(self.bytes_mut()).map_err(|_| Error::OutOfRange { range, len })
    }

    /// Where the range starts, for a transport that reads and writes it from other threads while the
    /// guard is parked in a collective. The guard must outlive every such access.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes_mut().as_mut_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_writers_are_refused_until_the_guard_is_dropped() {
        let arena = Arena::zeroed(256).unwrap();
        let first = arena.write(0..128).unwrap();
        assert!(matches!(arena.write(64..192), Err(Error::Borrowed { .. })));
        assert!(matches!(arena.read(127..128), Err(Error::Borrowed { .. })));
        let second = arena.write(128..256).unwrap();
        drop(first);
        let (a, b) = (arena.read(0..64).unwrap(), arena.read(32..64).unwrap());
        assert!(matches!(arena.write(0..33), Err(Error::Borrowed { .. })));
        drop((a, b, second));
        assert!(arena.write(0..256).is_ok());
    }

    #[test]
    fn ranges_and_casts_are_checked() {
        let arena = Arena::zeroed(64).unwrap();
        assert!(matches!(arena.read(0..65), Err(Error::OutOfRange { .. })));
        assert!(arena.read(0..6).unwrap().as_slice::<f32>().is_err());
        assert!(arena.read(2..6).unwrap().as_slice::<f32>().is_err());
        let mut w = arena.write(4..12).unwrap();
        w.as_mut_slice::<f32>().unwrap().copy_from_slice(&[1.5, 2.5]);
        drop(w);
        assert_eq!(arena.read(0..16).unwrap().as_slice::<f32>().unwrap(), [0.0, 1.5, 2.5, 0.0]);
    }

    #[test]
    fn an_empty_arena_and_an_empty_range_are_fine() {
        let arena = Arena::zeroed(0).unwrap();
        assert!(arena.is_empty());
        let w = arena.write(0..0).unwrap();
        assert!(arena.write(0..0).is_ok());
        assert_eq!(w.bytes(), &[] as &[u8]);
    }
}
