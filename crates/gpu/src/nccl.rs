//! Sums between devices: a communicator of NCCL's, one device a rank.
//!
//! No call here waits for another rank: a communicator is joined and used without blocking, and who waits asks
//! [`Nccl::settled`] again and again, against a deadline of its own.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use crate::context::Core;
use crate::error::call_error;
use crate::ffi::Handle;
use crate::ffi::nccl::{self as ffi, Config, FLOAT32, IN_PROGRESS, Library, SUCCESS, SUM, Status, UniqueId};
use crate::library::{self, Wanted};
use crate::{Context, DevicePtr, Error, Result};

/// The oldest version that will do, in the form of `NCCL_VERSION_CODE`: calls that do not block came to all of them
/// with it.
const OLDEST: c_int = 21_800;

/// What taking a communicator down in order may take; what is left then ends with the process.
const FAREWELL: Duration = Duration::from_secs(10);

/// The library, loaded once, and its version.
struct Loaded {
    table: Library,
    version: c_int,
}

impl Loaded {
    fn get() -> Result<&'static Loaded> {
        static LIBRARY: OnceLock<Result<&'static Loaded>> = OnceLock::new();
        LIBRARY.get_or_init(Loaded::load).clone()
    }

    fn load() -> Result<&'static Loaded> {
        let mut loaded = library::open(&Wanted {
            library: "NCCL",
            names: &["libnccl.so.2"],
            parts: None,
            packaged: true,
            hint: "`pip install nvidia-nccl-cu13` (nvidia-nccl-cu12 for a driver of CUDA 12); PHALANX_CUDA_PATH may name its folder",
        })?;
        let mut version: c_int = 0;
        let address = loaded.symbol("ncclGetVersion")?;
        // SAFETY: the function of this name, which every version has had with this signature.
        let get: unsafe extern "C" fn(*mut c_int) -> Status = unsafe { std::mem::transmute(address) };
        // SAFETY: writes one integer; no preconditions.
        unsafe { get(&mut version) };
        loaded.version = text_of(version);
        // Before the functions are bound: an old version lacks some, and its age is the better message.
        loaded.at_least(version as usize, OLDEST as usize, &text_of(OLDEST))?;
        let table = Library::bind(&loaded)?;
        std::mem::forget(loaded);
        Ok(Box::leak(Box::new(Loaded { table, version })))
    }
}

/// A version as people write it.
fn text_of(version: c_int) -> String {
    // Up to 2.8 the minor number had two digits less.
    let (major, minor) = if version < 10_000 { (1000, 100) } else { (10_000, 100) };
    format!("{}.{}.{}", version / major, version % major / minor, version % minor)
}

/// What the ranks of one communicator know each other by. It is small and not secret: send it to all of them.
pub type NcclId = [u8; ffi::UNIQUE_ID_BYTES];

/// One rank of a communicator over devices. All its work goes to the context's communication stream, so several
/// communicators of a context have one order, which must be the same on all ranks.
pub struct Nccl {
    table: &'static Library,
    core: Arc<Core>,
    /// 0 once it was aborted.
    handle: AtomicUsize,
    rank: usize,
    ranks: usize,
}

impl Nccl {
    /// The library's version; fails when there is none that will do.
    pub fn version() -> Result<String> {
        Loaded::get().map(|l| text_of(l.version))
    }

    /// A new communicator's identity, made by one rank for all.
    pub fn unique_id() -> Result<NcclId> {
        let table = &Loaded::get()?.table;
        let mut id = UniqueId([0; ffi::UNIQUE_ID_BYTES]);
        // SAFETY: writes one identity.
        check(table, 0, unsafe { (table.ncclGetUniqueId)(&mut id) }, "ncclGetUniqueId")?;
        Ok(id.0)
    }

    /// Begins to join communicator `id` as `rank` of `ranks`, each on a device of its own. It can be used once
    /// [`Nccl::settled`] says so.
    pub fn join(gpu: &Context, id: &NcclId, rank: usize, ranks: usize) -> Result<Self> {
        let table = &Loaded::get()?.table;
        let core = gpu.core().clone();
        // The device is that of the thread's context.
        core.primary.enter()?;
        let wrong = || Error::Invalid { what: format!("rank {rank} of {ranks} of a communicator") };
        let number = |n: usize| c_int::try_from(n).map_err(|_| wrong());
        let (of, all) = (number(rank)?, number(ranks)?);
        let (mut handle, mut config): (Handle, Config) = (0, Config::non_blocking());
        // SAFETY: writes one handle, which `abort` or `drop` gives back; the configuration is only read.
        let status =
            unsafe { (table.ncclCommInitRankConfig)(&mut handle, all, UniqueId(*id), of, &mut config) };
        let nccl = Nccl { table, core, handle: AtomicUsize::new(handle), rank, ranks };
        nccl.check(status, "ncclCommInitRankConfig")?;
        Ok(nccl)
    }

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Whether what was asked for last has come to the stream, and joining to its end: only then more may be asked for
    /// and events be recorded. Errors of work in flight, other ranks' among them, come out here.
    pub fn settled(&self) -> Result<bool> {
        let handle = self.live()?;
        let mut state: Status = SUCCESS;
        // SAFETY: a live handle; writes one number.
        let status = unsafe { (self.table.ncclCommGetAsyncError)(handle, &mut state) };
        self.check(status, "ncclCommGetAsyncError")?;
        self.check(state, "NCCL")?;
        Ok(state != IN_PROGRESS)
    }

    /// Calls that begin together: only so may sends and receives to several ranks be asked for.
    pub fn group(&self, body: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        self.enter()?;
        // SAFETY: no preconditions; ended below on every path.
        self.check(unsafe { (self.table.ncclGroupStart)() }, "ncclGroupStart")?;
        let asked = body(self);
        // SAFETY: begun above, on this thread.
        let ended = self.check(unsafe { (self.table.ncclGroupEnd)() }, "ncclGroupEnd");
        asked.and(ended)
    }

    /// Sums `count` single-precision numbers over all ranks, in any order; `from` and `to` may be one.
    pub fn all_reduce(&self, from: DevicePtr, to: DevicePtr, count: usize) -> Result<()> {
        let (handle, stream) = self.enter()?;
        // SAFETY: a live handle and stream; that addresses reach so far is the caller's part, as with a launch.
        let status = unsafe {
            (self.table.ncclAllReduce)(source(from), target(to), count, FLOAT32, SUM, handle, stream)
        };
        self.check(status, "ncclAllReduce")
    }

    /// Sums `ranks * count` numbers over all ranks, in any order; this one gets its `count` of them.
    pub fn reduce_scatter(&self, from: DevicePtr, to: DevicePtr, count: usize) -> Result<()> {
        let (handle, stream) = self.enter()?;
        // SAFETY: as in `all_reduce`.
        let status = unsafe {
            (self.table.ncclReduceScatter)(source(from), target(to), count, FLOAT32, SUM, handle, stream)
        };
        self.check(status, "ncclReduceScatter")
    }

    /// Puts `count` numbers of each rank one after the other; `from` may be this rank's place in `to`.
    pub fn all_gather(&self, from: DevicePtr, to: DevicePtr, count: usize) -> Result<()> {
        let (handle, stream) = self.enter()?;
        // SAFETY: as in `all_reduce`.
        let status =
            unsafe { (self.table.ncclAllGather)(source(from), target(to), count, FLOAT32, handle, stream) };
        self.check(status, "ncclAllGather")
    }

    /// Gives `count` numbers of rank `root` to all, in place.
    pub fn broadcast(&self, at: DevicePtr, count: usize, root: usize) -> Result<()> {
        let root = self.peer(root)?;
        let (handle, stream) = self.enter()?;
        // SAFETY: as in `all_reduce`.
        let status = unsafe {
            (self.table.ncclBroadcast)(source(at), target(at), count, FLOAT32, root, handle, stream)
        };
        self.check(status, "ncclBroadcast")
    }

    /// Sends `count` numbers to rank `to`, which must receive as many.
    pub fn send(&self, from: DevicePtr, count: usize, to: usize) -> Result<()> {
        let peer = self.peer(to)?;
        let (handle, stream) = self.enter()?;
        // SAFETY: as in `all_reduce`.
        let status = unsafe { (self.table.ncclSend)(source(from), count, FLOAT32, peer, handle, stream) };
        self.check(status, "ncclSend")
    }

    /// Receives `count` numbers from rank `from`.
    pub fn receive(&self, to: DevicePtr, count: usize, from: usize) -> Result<()> {
        let peer = self.peer(from)?;
        let (handle, stream) = self.enter()?;
        // SAFETY: as in `all_reduce`.
        let status = unsafe { (self.table.ncclRecv)(target(to), count, FLOAT32, peer, handle, stream) };
        self.check(status, "ncclRecv")
    }

    /// Ends what is in flight, with any result, and the communicator. Every later call fails. Waits for it `limit` at
    /// most and tells whether it came to its end by then.
    pub fn abort(&self, limit: Duration) -> bool {
        self.end(limit, |table, handle| {
            // SAFETY: a handle that was live and that nobody else has any more.
            unsafe { (table.ncclCommAbort)(handle) };
        })
    }

    /// Takes the handle and ends it on a thread of its own, as the library may wait for whom it likes.
    fn end(&self, limit: Duration, how: impl FnOnce(&'static Library, Handle) + Send + 'static) -> bool {
        let handle = self.handle.swap(0, Ordering::AcqRel);
        if handle == 0 {
            return true;
        }
        let (table, core) = (self.table, self.core.clone());
        let (tell, ended) = mpsc::channel();
        let work = move || {
            // Without its context the device is lost, and the library will say so itself.
            let _ = core.primary.enter();
            how(table, handle);
            // Here and not later: the caller may wait for the streams, and the last owner of the core does.
            drop(core);
            let _ = tell.send(());
        };
        // Without a thread the communicator stays as it is: that ends with the process.
        let begun = std::thread::Builder::new().name("nccl-end".into()).spawn(work);
        begun.is_ok() && ended.recv_timeout(limit).is_ok()
    }

    fn live(&self) -> Result<Handle> {
        match self.handle.load(Ordering::Acquire) {
            0 => Err(Error::Collective {
                call: "NCCL",
                code: ffi::INTERNAL_ERROR,
                message: String::from("the communicator was aborted"),
            }),
            handle => Ok(handle),
        }
    }

    /// Makes the device this thread's; gives the communicator and the stream.
    fn enter(&self) -> Result<(Handle, Handle)> {
        let handle = self.live()?;
        self.core.primary.enter()?;
        Ok((handle, self.core.communication().raw))
    }

    fn peer(&self, rank: usize) -> Result<c_int> {
        let wrong = || Error::Invalid { what: format!("rank {rank} of {} of a communicator", self.ranks) };
        c_int::try_from(rank).ok().filter(|_| rank < self.ranks).ok_or_else(wrong)
    }

    fn check(&self, status: Status, call: &'static str) -> Result<()> {
        check(self.table, self.handle.load(Ordering::Acquire), status, call)
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nccl(rank {} of {})", self.rank, self.ranks)
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // In order only when nothing is in flight: else somebody has failed, and it would be waited for.
        let idle = self.settled().is_ok_and(|s| s) && self.core.communication().query().is_ok_and(|q| q);
        if !idle {
            self.abort(FAREWELL);
            return;
        }
        self.end(FAREWELL, |table, handle| {
            let begun = Instant::now();
            let mut state = SUCCESS;
            // SAFETY: a handle that was live and that nobody else has any more; the state is one number.
            let finalized = unsafe {
                let mut status = (table.ncclCommFinalize)(handle);
                while matches!(status, SUCCESS | IN_PROGRESS) && begun.elapsed() < FAREWELL {
                    status = (table.ncclCommGetAsyncError)(handle, &mut state);
                    if status != SUCCESS || state != IN_PROGRESS {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                status == SUCCESS && state == SUCCESS
            };
            // SAFETY: as above; the last use of the handle.
            unsafe {
                if finalized { (table.ncclCommDestroy)(handle) } else { (table.ncclCommAbort)(handle) }
            };
        });
    }
}

fn source(at: DevicePtr) -> *const c_void {
    at.0 as *const c_void
}

fn target(at: DevicePtr) -> *mut c_void {
    at.0 as *mut c_void
}

/// An error unless a call has succeeded or goes on by itself.
fn check(table: &Library, handle: Handle, status: Status, call: &'static str) -> Result<()> {
    if matches!(status, SUCCESS | IN_PROGRESS) {
        return Ok(());
    }
    // SAFETY: gives a static text.
    let what = call_error(call, status, unsafe { (table.ncclGetErrorString)(status) });
    // SAFETY: gives the text of this thread's last error, which stays until the next; the handle is not looked at.
    let last = call_error(call, status, unsafe { (table.ncclGetLastError)(handle) });
    Err(match (what, last) {
        (Error::Call { message, .. }, Error::Call { message: last, .. }) => {
            let message = if last.is_empty() { message } else { format!("{message}: {last}") };
            Error::Collective { call, code: status, message }
        }
        (other, _) => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_both_forms() {
        assert_eq!([21_805, 22_800, 2_708].map(text_of), ["2.18.5", "2.28.0", "2.7.8"]);
    }

    #[test]
    fn the_configuration_is_laid_out_as_in_the_header() {
        assert_eq!((size_of::<Config>(), std::mem::offset_of!(Config, blocking)), (48, 16));
        assert_eq!(
            (std::mem::offset_of!(Config, net_name), std::mem::offset_of!(Config, split_share)),
            (32, 40)
        );
    }
}
