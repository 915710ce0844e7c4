//! The entry points of the kernels for one instruction set, and what the drivers share.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::simd::{Kernel, Real, Simd};
use crate::{Buffer, Cpu, Result};

use super::dot::Dot;
use super::pack::Pack;
use super::tile::{Tile, largest};

/// Products of fewer multiply-adds than this run on the caller's thread: waking others costs more.
const PARALLEL: usize = 1 << 18;

/// The kernels for one instruction set and one type, and the sizes of their tiles.
#[derive(Clone, Copy)]
pub(crate) struct Engine<E: Real> {
    pub lanes: usize,
    /// The largest tile: rows and columns.
    pub rows: usize,
    pub cols: usize,
    tile: fn(At<Tile<E>>),
    pack: fn(At<Pack<E>>),
    dot: fn(At<Dot<E>>),
    /// The largest tile of dot products.
    pub dots: (usize, usize),
}

/// A kernel handed over by address: it is larger than what passes in registers.
pub(crate) struct At<K>(pub(crate) *const K);

impl<E: Copy, K: Kernel<E> + Copy> Kernel<E> for At<K> {
    type Out = K::Out;
    #[inline(always)]
    fn run<V: Simd<E>>(self) -> K::Out {
        // SAFETY: made from a reference in the call that runs it.
        unsafe { *self.0 }.run::<V>()
    }
}

struct Sizes;

impl<E: Real> Kernel<E> for Sizes {
    /// Lanes, the largest tile in rows and vectors, the largest tile of dot products.
    type Out = (usize, (usize, usize), (usize, usize));
    #[inline(always)]
    fn run<V: Simd<E>>(self) -> Self::Out {
        (V::LANES, largest::<E, V>(), super::dot::largest::<E, V>())
    }
}

impl<E: Real> Engine<E> {
    pub(crate) fn new(cpu: &Cpu) -> Self {
        let (lanes, (rows, vectors), dots) = E::dispatch(cpu.isa, Sizes);
        Engine {
            lanes,
            rows,
            cols: vectors * lanes,
            tile: E::select(cpu.isa),
            pack: E::select(cpu.isa),
            dot: E::select(cpu.isa),
            dots,
        }
    }

    pub(crate) fn tile(&self, tile: Tile<E>) {
        (self.tile)(At(&tile));
    }

    pub(crate) fn pack(&self, pack: Pack<E>) {
        (self.pack)(At(&pack));
    }

    pub(crate) fn dot(&self, dot: Dot<E>) {
        (self.dot)(At(&dot));
    }
}

/// A base address that threads share; each touches only its own part of what lies behind it.
#[derive(Clone, Copy)]
pub(crate) struct Shared<E>(*mut E);

// SAFETY: it is only an address; every use is unsafe and vouches for disjoint parts.
unsafe impl<E: Send> Send for Shared<E> {}
// SAFETY: as above.
unsafe impl<E: Send> Sync for Shared<E> {}

impl<E> Shared<E> {
    pub(crate) fn new(data: &mut [E]) -> Self {
        Shared(data.as_mut_ptr())
    }

    /// The same from element `i` on.
    pub(crate) fn from(self, i: usize) -> Self {
        Shared(self.at(i))
    }

    /// The address of element `i`.
    pub(crate) fn at(self, i: usize) -> *mut E {
        self.0.wrapping_add(i)
    }
}

/// Runs `task(0) … task(tasks - 1)` on the workers, or here if all of them together are but `work`
/// multiply-adds. What a task computes must not depend on where it runs.
pub(crate) fn run(cpu: &Cpu, tasks: usize, work: usize, task: impl Fn(usize) + Sync) {
    if work < PARALLEL { (0..tasks).for_each(task) } else { cpu.workers.run(tasks, task) }
}

/// Workspace for tasks: as many buffers as tasks can run at once, all from the pool before any starts,
/// so that a task cannot fail and a second call asks the system for nothing.
pub(crate) struct Scratch {
    free: Mutex<Vec<Buffer>>,
    /// Whether the buffers have no length, and there are none.
    none: bool,
}

impl Scratch {
    pub(crate) fn new<E>(cpu: &Cpu, tasks: usize, len: usize) -> Result<Self> {
        if len == 0 {
            return Ok(Scratch { free: Mutex::default(), none: true });
        }
        let buffers = tasks.min(cpu.workers.threads()).max(1);
        let free: Result<Vec<_>> = (0..buffers).map(|_| cpu.pool.alloc(len * size_of::<E>())).collect();
        Ok(Scratch { free: Mutex::new(free?), none: false })
    }

    /// Runs `f` with a buffer that nobody else has meanwhile; its contents are arbitrary.
    pub(crate) fn with<E: Real, R>(&self, f: impl FnOnce(&mut [E]) -> R) -> R {
        if self.none {
            return f(&mut []);
        }
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = loop {
            // There are as many buffers as threads, so the first look finds one.
            match free().pop() {
                Some(buffer) => break buffer,
                None => std::thread::yield_now(),
            }
        };
        let out = f(buffer.as_mut_slice());
        free().push(buffer);
        out
    }
}

/// Part `i` of `0..n` cut into `parts` parts that differ by at most one.
pub(crate) fn part(n: usize, parts: usize, i: usize) -> Range<usize> {
    n * i / parts..n * (i + 1) / parts
}
