//! Modules of compiled kernels and their launch.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::device::Primary;
use crate::ffi::{Handle, driver};
use crate::{Args, Context, Error, Grid, Result, Source, Stream, compile, cubin};

/// Dynamic shared memory that a kernel may have without being allowed more, in bytes.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// Of few and short keys, which every launch looks up (FNV-1a, Fowler, Noll and Vo).
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn write_usize(&mut self, n: usize) {
        self.0 = (self.0 ^ n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

type Table<K, V> = HashMap<K, V, BuildHasherDefault<Fnv>>;

/// A loaded module and the kernels that were asked for so far.
struct Module {
    primary: Arc<Primary>,
    raw: Handle,
    kernels: RwLock<Table<String, Arc<Kernel>>>,
}

struct Kernel {
    raw: Handle,
    /// Dynamic shared memory that it is allowed, in bytes.
    shared: AtomicU32,
}

/// The modules of a context, by the address of their source.
#[derive(Default)]
pub(crate) struct Modules(RwLock<Table<usize, Arc<Module>>>);

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(d) = self.primary.enter() {
            // SAFETY: loaded by cuModuleLoadData; no launch can follow.
            unsafe { (d.cuModuleUnload)(self.raw) };
        }
    }
}

impl Context {
    /// Compiles the source for this device, or takes it from the cache of compiled kernels, and loads it.
    pub fn load(&self, source: &'static Source) -> Result<()> {
        self.module(source).map(|_| ())
    }

    /// As [`Context::load`] for many sources, on as many threads as there are cores: what a first start on a machine
    /// waits for is the compiler.
    pub fn load_all(&self, sources: &[&'static Source]) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.load(source)?;
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(sources.len());
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            // A thread that panicked has left nothing undone that a launch would not do.
            all.into_iter().try_for_each(|t| t.join().unwrap_or(Ok(())))
        })
    }

    /// Launches a kernel on the compute stream, loading its module if needed. Without blocks nothing happens.
    /// Errors while it runs come out at a later wait.
    pub fn launch(&self, source: &'static Source, kernel: &str, grid: Grid, args: Args) -> Result<()> {
        let name = || format!("{}/{kernel}", source.name);
        // They are gone with the launch.
        let of = if self.core().recording.is_on() { args.contents() } else { Vec::new() };
        let print = || (grid.blocks, grid.threads, grid.shared, of);
        self.core().queue(name, print, || self.launch_on(self.compute(), source, kernel, grid, args))
    }

    /// The same on another stream of this context.
    pub fn launch_on(
        &self,
        stream: &Stream,
        source: &'static Source,
        kernel: &str,
        grid: Grid,
        mut args: Args,
    ) -> Result<()> {
        if grid.is_empty() {
            return Ok(());
        }
        let kernel = self.module(source)?.kernel(source, kernel)?;
        let d = self.primary().enter()?;
        if grid.shared > kernel.shared.load(Ordering::Relaxed) {
            // SAFETY: a live function.
            let status = unsafe {
                (d.cuFuncSetAttribute)(kernel.raw, driver::FUNCTION_MAX_DYNAMIC_SHARED, grid.shared as c_int)
            };
            d.check(status, "cuFuncSetAttribute")?;
            kernel.shared.store(grid.shared, Ordering::Relaxed);
        }
        let mut pointers = args.pointers();
        let [x, y, z] = grid.blocks;
        // SAFETY: a live function and stream; the driver copies the arguments before it returns. That they are what
        // the kernel takes, and that its pointers reach as far as it goes, is the caller's part: as with every
        // foreign code it cannot be checked here.
        let status = unsafe {
            (d.cuLaunchKernel)(
                kernel.raw,
                x,
                y,
                z,
                grid.threads,
                1,
                1,
                grid.shared,
                stream.raw,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        d.check(status, "cuLaunchKernel")
    }

    fn module(&self, source: &'static Source) -> Result<Arc<Module>> {
        let key = std::ptr::from_ref(source).addr();
        let modules = &self.modules().0;
        if let Some(m) = modules.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(m.clone());
        }
        // Outside the lock: several sources are compiled at once. Two that ask for one compile it twice.
        let cubin = compile::compile_cached(source, &self.info().arch())?;
        let mut modules = modules.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(m) = modules.get(&key) {
            return Ok(m.clone());
        }
        let d = self.primary().enter()?;
        let mut raw: Handle = 0;
        // SAFETY: an image in memory that carries its own size; writes one handle, unloaded on drop.
        let status = unsafe { (d.cuModuleLoadData)(&mut raw, cubin.as_ptr().cast::<c_void>()) };
        d.check(status, "cuModuleLoadData")?;
        let module = Arc::new(Module { primary: self.primary().clone(), raw, kernels: RwLock::default() });
        // Before training starts, and not at a first launch in the middle of it. Older drivers load what is asked for by name.
        if !d.preload(raw)? {
            for kernel in cubin::resources(&cubin).unwrap_or_default() {
                module.kernel(source, &kernel.kernel)?;
            }
        }
        modules.insert(key, module.clone());
        Ok(module)
    }
}

impl Module {
    fn kernel(&self, source: &Source, name: &str) -> Result<Arc<Kernel>> {
        if let Some(k) = self.kernels.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(k.clone());
        }
        let missing = || Error::NoKernel { source_name: source.name, kernel: String::from(name) };
        let c_name = CString::new(name).map_err(|_| missing())?;
        let d = self.primary.enter()?;
        let mut raw: Handle = 0;
        // SAFETY: a live module and a C string; writes one handle, which lives as long as the module.
        let status = unsafe { (d.cuModuleGetFunction)(&mut raw, self.raw, c_name.as_ptr()) };
        match status {
            driver::NOT_FOUND => return Err(missing()),
            status => d.check(status, "cuModuleGetFunction")?,
        }
        let kernel = Arc::new(Kernel { raw, shared: AtomicU32::new(SHARED_WITHOUT_ASKING) });
        let mut kernels = self.kernels.write().unwrap_or_else(PoisonError::into_inner);
        Ok(kernels.entry(String::from(name)).or_insert(kernel).clone())
    }
}
