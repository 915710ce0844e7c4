use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::blas::Blas;
use crate::device::Primary;
use crate::dnn::Dnn;
use crate::fallback::Fallbacks;
use crate::faults::Faults;
use crate::input::Inputs;
use crate::launch::Modules;
use crate::memory::Memory;
use crate::pinned::HostCache;
use crate::profile::Profile;
use crate::recording::Recording;
use crate::transfer::Staging;
use crate::{DeviceInfo, Event, Math, Result, Stream};

/// Priority of the streams beside compute: higher, as what they do is short and others wait for it.
const URGENT: i32 = -1;

/// An open GPU: its context, streams, memory and libraries. A clone is the same one.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

/// In the order in which it is taken down.
struct Inner {
    modules: Modules,
    blas: Once<Blas>,
    dnn: Once<Dnn>,
    faults: Once<Faults>,
    fallbacks: Fallbacks,
    staging: Mutex<Staging>,
    inputs: Inputs,
    tf32: AtomicBool,
    exact: AtomicBool,
    core: Arc<Core>,
}

/// What is made when it is first asked for. A failure is not kept: memory that was not there may be there later.
pub(crate) struct Once<T> {
    made: OnceLock<T>,
    turn: Mutex<()>,
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Once { made: OnceLock::new(), turn: Mutex::default() }
    }
}

impl<T> Once<T> {
    pub(crate) fn get(&self, make: impl FnOnce() -> Result<T>) -> Result<&T> {
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let new = make()?;
        Ok(self.made.get_or_init(|| new))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Modules and libraries go next; nothing of them may still run.
        self.core.finish();
    }
}

/// What blocks of memory and the libraries share.
pub(crate) struct Core {
    pub(crate) ordinal: usize,
    pub(crate) info: DeviceInfo,
    pub(crate) memory: Memory,
    pub(crate) host: HostCache,
    pub(crate) compute: Stream,
    copies: Stream,
    communication: Arc<Stream>,
    pub(crate) profile: Profile,
    pub(crate) recording: Recording,
    pub(crate) primary: Arc<Primary>,
}

impl Core {
    pub(crate) fn communication(&self) -> &Stream {
        &self.communication
    }

    /// Waits for all work, of which nobody is left to hear errors. Kernels run on the communication stream, too.
    fn finish(&self) {
        for stream in [&self.compute, &self.copies, &*self.communication] {
            let _ = stream.synchronize();
        }
    }

    /// Writes zeros on the compute stream.
    pub(crate) fn fill_zero(&self, at: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let d = self.primary.enter()?;
        // SAFETY: a device address; that it reaches so far is the caller's part, as with a launch.
        d.check(unsafe { (d.cuMemsetD8Async)(at, 0, bytes, self.compute.raw) }, "cuMemsetD8Async")
    }

    /// Copies within device memory on the compute stream.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        let d = self.primary.enter()?;
        // SAFETY: device addresses; that they reach so far is the caller's part, as with a launch.
        let status = unsafe { (d.cuMemcpyDtoDAsync_v2)(to, from, bytes, self.compute.raw) };
        d.check(status, "cuMemcpyDtoDAsync_v2")
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // Memory goes back to the device next; nothing may still work on it.
        self.finish();
    }
}

impl Context {
    /// Opens device `ordinal`. Fails without a driver (CUDA 12.2 or newer) or such a device; NVRTC, cuBLASLt and
    /// cuDNN are looked for when they are used first.
    pub fn open(ordinal: usize) -> Result<Self> {
        let (primary, info) = Primary::open(ordinal)?;
        let communication = Arc::new(Stream::new(&primary, URGENT)?);
        let core = Arc::new(Core {
            ordinal,
            info,
            memory: Memory::new(&primary, &communication),
            host: HostCache::new(&primary),
            compute: Stream::new(&primary, 0)?,
            copies: Stream::new(&primary, URGENT)?,
            communication,
            profile: Profile::default(),
            recording: Recording::default(),
            primary,
        });
        Ok(Context(Arc::new(Inner {
            modules: Modules::default(),
            blas: Once::default(),
            dnn: Once::default(),
            faults: Once::default(),
            fallbacks: Fallbacks::default(),
            staging: Mutex::default(),
            inputs: Inputs::default(),
            tf32: AtomicBool::new(false),
            exact: AtomicBool::new(false),
            core,
        })))
    }

    /// Number of devices that the driver shows (`CUDA_VISIBLE_DEVICES` is its affair).
    pub fn count() -> Result<usize> {
        crate::ffi::driver::Driver::get()?.count()
    }

    /// The device's number.
    pub fn ordinal(&self) -> usize {
        self.core().ordinal
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        &self.core().info
    }

    /// The stream of all computation. Memory is handed out and taken back in its order.
    pub fn compute(&self) -> &Stream {
        &self.core().compute
    }

    /// A stream for copies beside the computation.
    pub fn copies(&self) -> &Stream {
        &self.core().copies
    }

    /// A stream for sums between devices.
    pub fn communication(&self) -> &Stream {
        &self.core().communication
    }

    /// What is queued on the communication stream from here on comes after what the compute stream has so far.
    pub fn communicate_after_compute(&self) -> Result<()> {
        let ready = self.event()?;
        ready.record(self.compute())?;
        self.communication().wait(&ready)
    }

    /// How often somebody has waited for work of this device, whether it was done or not.
    pub fn host_waits(&self) -> u64 {
        self.primary().waited()
    }

    /// Waits for the compute stream. Asynchronous errors come out here; an illegal address makes every later call
    /// fail, too.
    pub fn synchronize(&self) -> Result<()> {
        self.compute().synchronize()
    }

    /// An event without time, as cheap as they come.
    pub fn event(&self) -> Result<Event> {
        Event::new(self.primary(), false)
    }

    /// An event for [`Event::elapsed`].
    pub fn timed_event(&self) -> Result<Event> {
        Event::new(self.primary(), true)
    }

    /// Two events that measure work on the compute stream.
    pub fn timer(&self) -> Result<Timer> {
        Ok(Timer { context: self.clone(), start: self.timed_event()?, stop: self.timed_event()? })
    }

    /// How ops are to multiply f32 numbers; in f32 until [`Context::set_math`] says otherwise.
    pub fn math(&self) -> Math {
        if self.0.tf32.load(Ordering::Relaxed) { Math::Tf32 } else { Math::F32 }
    }

    /// For the products of all ops from now on.
    pub fn set_math(&self, math: Math) {
        self.0.tf32.store(math == Math::Tf32, Ordering::Relaxed);
    }

    /// Whether ops are to take convolutions that give the same bits every time only, chosen without timing; not until
    /// [`Context::set_exact`] says so.
    pub fn exact(&self) -> bool {
        self.0.exact.load(Ordering::Relaxed)
    }

    /// For the convolutions of all ops from now on.
    pub fn set_exact(&self, exact: bool) {
        self.0.exact.store(exact, Ordering::Relaxed);
    }

    /// cuBLASLt, loaded at the first use.
    pub fn blas(&self) -> Result<&Blas> {
        self.0.blas.get(|| Blas::open(self.core()))
    }

    /// cuDNN, loaded at the first use.
    pub fn dnn(&self) -> Result<&Dnn> {
        self.0.dnn.get(|| Dnn::open(self.core()))
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }

    pub(crate) fn primary(&self) -> &Arc<Primary> {
        &self.0.core.primary
    }

    pub(crate) fn modules(&self) -> &Modules {
        &self.0.modules
    }

    pub(crate) fn faults_once(&self) -> &Once<Faults> {
        &self.0.faults
    }

    pub(crate) fn inputs(&self) -> &Inputs {
        &self.0.inputs
    }

    pub(crate) fn fallen(&self) -> &Fallbacks {
        &self.0.fallbacks
    }

    pub(crate) fn staging(&self) -> MutexGuard<'_, Staging> {
        self.0.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{}", self.ordinal())
    }
}

/// Measures device time of what the compute stream does.
#[derive(Debug)]
pub struct Timer {
    context: Context,
    start: Event,
    stop: Event,
}

impl Timer {
    /// Begins; what is queued from now on is measured.
    pub fn start(&self) -> Result<()> {
        self.start.record(self.context.compute())
    }

    /// Ends, waits, and gives the milliseconds since [`Timer::start`].
    pub fn stop(&self) -> Result<f32> {
        self.stop.record(self.context.compute())?;
        self.stop.synchronize()?;
        self.start.elapsed(&self.stop)
    }
}
