//! Foreign functions of MPI: the only file that calls them.
//!
//! A [`Mpi`] exists on one thread, the one that initialised MPI, and all calls are its methods: so a
//! library that grants no more than `MPI_THREAD_FUNNELED` is enough. Errors return, as the error handler
//! says; nothing here waits but the set-up calls, which say so.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr;

use mpi_sys as sys;

use crate::{Error, Result};

/// Arenas begin on a page.
const PAGE: usize = 4096;

/// MPI, on the thread that owns it.
pub(super) struct Mpi {
    /// What the library calls itself.
    pub(super) library: String,
    /// Not to be sent to another thread.
    _here: PhantomData<*const ()>,
}

/// A communicator's handle.
#[derive(Clone, Copy)]
pub(super) struct Comm(sys::MPI_Comm);

// SAFETY: a handle is a name; it is used by methods of `Mpi` alone, which stays on one thread.
unsafe impl Send for Comm {}
// SAFETY: as above.
unsafe impl Sync for Comm {}

/// An operation that MPI works on. Its buffers must stay where they are until [`Mpi::test`] or
/// [`Mpi::test_some`] says that it is done.
pub(super) struct Request(sys::MPI_Request);

// SAFETY: as for `Comm`.
unsafe impl Send for Request {}

/// Operations that are looked at together: one look costs the same however many they are.
#[derive(Default)]
pub(super) struct Requests {
    open: Vec<sys::MPI_Request>,
    /// Whose each is: any number.
    of: Vec<usize>,
    done: Vec<c_int>,
}

// SAFETY: as for `Comm`.
unsafe impl Send for Requests {}

impl Requests {
    pub(super) fn push(&mut self, request: Request, of: usize) {
        self.open.push(request.0);
        self.of.push(of);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// An operation with its buffers, which it keeps: they are leaked if it is given up, as MPI may still write
/// to them.
pub(super) struct Moving {
    request: Request,
    from: ManuallyDrop<Vec<u8>>,
    to: ManuallyDrop<Vec<u8>>,
    done: bool,
}

impl Moving {
    fn new(from: Vec<u8>, to: Vec<u8>) -> Self {
        let (from, to) = (ManuallyDrop::new(from), ManuallyDrop::new(to));
        Moving { request: Request(null_request()), from, to, done: false }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        if self.done {
            drop(std::mem::take(&mut *self.from));
        }
    }
}

/// A shared-memory window, as this process sees it.
pub(super) struct Window {
    /// By rank of its communicator: where that rank's segment begins here, and its bytes.
    pub(super) segments: Vec<(*mut u8, usize)>,
}

// SAFETY: addresses of memory that all processes of a node may use; `peer_window` says how uses are kept
// apart.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

/// Keeps Open MPI from its own shared-memory transport: it leaves a file in /dev/shm when a process is
/// killed, and ranks of one machine have their own window. Who has chosen transports keeps them.
fn prepare() {
    const CHOICE: &str = "OMPI_MCA_btl";
    if std::env::var_os(CHOICE).is_none() {
        // SAFETY: Rust's own readers of the environment are locked out; no foreign code of this process runs
        // on another thread, as joining its job is the first thing that a rank does.
        unsafe { std::env::set_var(CHOICE, "^vader") };
    }
}

/// Lets the others come out of MPI_Init too. Under Slurm's PMIx (seen with PMIx 4.2 and Open MPI 4.1.4, in one of
/// seventy starts on a busy machine) the barrier at its end may let one process go while another has not yet said how
/// it takes messages, and a message that comes then ends that one with a segmentation fault.
fn settle() {
    let slurm = std::env::var("PMIX_NAMESPACE").is_ok_and(|name| name.starts_with("slurm"));
    if slurm {
        std::thread::sleep(SETTLE);
    }
}

/// A process that is ready has this long to get a turn on its processor.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(150);

/// Turns a return code into a result.
fn check(call: &'static str, code: c_int) -> Result<()> {
    if code == sys::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0u8; sys::MPI_MAX_ERROR_STRING as usize + 1];
    let mut len: c_int = 0;
    // SAFETY: the buffer has room for the longest text.
    let said = unsafe { sys::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut len) };
    let len = usize::try_from(len).unwrap_or(0).min(text.len());
    let reason = match said == sys::MPI_SUCCESS as c_int {
        true => String::from_utf8_lossy(&text[..len]).into_owned(),
        false => format!("code {code}"),
    };
    Err(Error::Mpi { call, reason })
}

fn count(call: &'static str, bytes: usize) -> Result<c_int> {
    let reason = || format!("{bytes} bytes in one message are more than MPI can count");
    c_int::try_from(bytes).map_err(|_| Error::Mpi { call, reason: reason() })
}

/// What the library calls itself: `Open MPI v4.1.4`, `MPICH Version: 4.0.2`. MPI need not be initialised.
pub fn library() -> Result<String> {
    let mut text = vec![0u8; sys::MPI_MAX_LIBRARY_VERSION_STRING as usize + 1];
    let mut len: c_int = 0;
    // SAFETY: the buffer has room for the longest text; the call is allowed at any time (MPI-3.1, section 8.1).
    check("MPI_Get_library_version", unsafe {
        sys::MPI_Get_library_version(text.as_mut_ptr().cast(), &mut len)
    })?;
    text.truncate(usize::try_from(len).unwrap_or(0));
    let library = String::from_utf8_lossy(&text);
    // The first words: Open MPI goes on about its package, MPICH with a table.
    let library = library.lines().next().unwrap_or_default();
    let library = library.split(", package").next().unwrap_or_default().split_whitespace();
    Ok(library.collect::<Vec<_>>().join(" "))
}

impl Mpi {
    /// Initialises MPI on this thread, which owns it from now on. Waits for the other processes.
    pub(super) fn init() -> Result<Mpi> {
        prepare();
        let (mut done, mut granted): (c_int, c_int) = (0, 0);
        // SAFETY: out-pointers are valid; MPI_Initialized may be called at any time.
        check("MPI_Initialized", unsafe { sys::MPI_Initialized(&mut done) })?;
        if done != 0 {
            return Err(Error::Mpi { call: "MPI_Init_thread", reason: "MPI is initialised already".into() });
        }
        // SAFETY: MPI is not initialised; null arguments are allowed since MPI-2.
        let code = unsafe {
            let wanted = sys::RSMPI_THREAD_FUNNELED;
            sys::MPI_Init_thread(ptr::null_mut(), ptr::null_mut(), wanted, &mut granted)
        };
        check("MPI_Init_thread", code)?;
        // SAFETY: constants of the library.
        let needed = unsafe { sys::RSMPI_THREAD_FUNNELED };
        if granted < needed {
            let reason = format!(
                "the library grants thread level {granted}, but {needed} (MPI_THREAD_FUNNELED) is needed"
            );
            return Err(Error::Mpi { call: "MPI_Init_thread", reason });
        }
        settle();
        let mpi = Mpi { library: library()?, _here: PhantomData };
        mpi.errors_return(mpi.world())?;
        Ok(mpi)
    }

    /// All processes of the job.
    pub(super) fn world(&self) -> Comm {
        // SAFETY: a constant of the library.
        Comm(unsafe { sys::RSMPI_COMM_WORLD })
    }

    fn errors_return(&self, comm: Comm) -> Result<()> {
        // SAFETY: a valid communicator and a constant.
        check("MPI_Comm_set_errhandler", unsafe {
            sys::MPI_Comm_set_errhandler(comm.0, sys::RSMPI_ERRORS_RETURN)
        })
    }

    /// This process's rank, and the number of processes.
    pub(super) fn place(&self, comm: Comm) -> Result<(u32, u32)> {
        let (mut rank, mut size): (c_int, c_int) = (0, 0);
        // SAFETY: a valid communicator and valid out-pointers.
        check("MPI_Comm_rank", unsafe { sys::MPI_Comm_rank(comm.0, &mut rank) })?;
        // SAFETY: as above.
        check("MPI_Comm_size", unsafe { sys::MPI_Comm_size(comm.0, &mut size) })?;
        let number = |n: c_int| u32::try_from(n).unwrap_or(0);
        Ok((number(rank), number(size)))
    }

    /// A communicator of those that give the same colour, ordered by key, then by rank. Waits for the others.
    pub(super) fn split(&self, comm: Comm, color: u32, key: u32) -> Result<Comm> {
        // MPI's colours and keys are not negative ints; only equality and order matter.
        let number = |call, n: u32| {
            c_int::try_from(n).map_err(|_| Error::Usage(format!("{call}: {n} is above {}", c_int::MAX)))
        };
        let (color, key) = (number("split by color", color)?, number("split by key", key)?);
        let mut new = comm;
        // SAFETY: a valid communicator and out-pointer.
        check("MPI_Comm_split", unsafe { sys::MPI_Comm_split(comm.0, color, key, &mut new.0) })?;
        self.errors_return(new)?;
        Ok(new)
    }

    /// A communicator of the processes that share memory with this one. Waits for the others.
    pub(super) fn split_node(&self, comm: Comm, key: u32) -> Result<Comm> {
        let mut new = comm;
        let key = c_int::try_from(key).unwrap_or(c_int::MAX);
        // SAFETY: a valid communicator, constants and an out-pointer.
        check("MPI_Comm_split_type", unsafe {
            let (kind, info) = (sys::RSMPI_COMM_TYPE_SHARED, sys::RSMPI_INFO_NULL);
            sys::MPI_Comm_split_type(comm.0, kind, key, info, &mut new.0)
        })?;
        self.errors_return(new)?;
        Ok(new)
    }

    /// `bytes` bytes of memory that all processes of `node` can reach, on page bounds. Waits for them. The
    /// memory is there until MPI is finalised.
    pub(super) fn shared_window(&self, node: Comm, bytes: usize) -> Result<Window> {
        let (_, size) = self.place(node)?;
        let mut base: *mut c_void = ptr::null_mut();
        // Room to begin on a page.
        let asked = sys::MPI_Aint::try_from(bytes.next_multiple_of(PAGE) + PAGE)
            .map_err(|_| Error::Usage(format!("{bytes} bytes of shared memory")))?;
        // SAFETY: the out-pointers are valid for their types; the info is a constant.
        let win = unsafe {
            let mut win = sys::RSMPI_WIN_NULL;
            let info = sys::RSMPI_INFO_NULL;
            let at: *mut *mut c_void = &mut base;
            let code = sys::MPI_Win_allocate_shared(asked, 1, info, node.0, at.cast(), &mut win);
            check("MPI_Win_allocate_shared", code)?;
            // Not fatal either.
            check("MPI_Win_set_errhandler", sys::MPI_Win_set_errhandler(win, sys::RSMPI_ERRORS_RETURN))?;
            win
        };
        let mut segments = Vec::new();
        for rank in 0..size {
            let (mut len, mut unit): (sys::MPI_Aint, c_int) = (0, 0);
            let mut start: *mut c_void = ptr::null_mut();
            let rank = c_int::try_from(rank).unwrap_or(0);
            // SAFETY: a window that was just made, a rank of it and valid out-pointers.
            check("MPI_Win_shared_query", unsafe {
                let at: *mut *mut c_void = &mut start;
                sys::MPI_Win_shared_query(win, rank, &mut len, &mut unit, at.cast())
            })?;
            // Every process maps a segment at the same place of a page.
            let (start, len): (*mut u8, _) = (start.cast(), usize::try_from(len).unwrap_or(0));
            let skew = start.align_offset(PAGE).min(len);
            segments.push((start.wrapping_add(skew), len - skew));
        }
        Ok(Window { segments })
    }

    /// Begins to send `bytes` bytes.
    ///
    /// # Safety
    /// They must be valid for reading, and not be written, until the request is done.
    pub(super) unsafe fn isend(
        &self,
        comm: Comm,
        from: *const u8,
        bytes: usize,
        to: u32,
        tag: u32,
    ) -> Result<Request> {
        let mut request = Request(null_request());
        let n = count("MPI_Isend", bytes)?;
        // SAFETY: the caller vouches for the memory.
        check("MPI_Isend", unsafe {
            sys::MPI_Isend(
                from.cast(),
                n,
                sys::RSMPI_UINT8_T,
                to as c_int,
                tag as c_int,
                comm.0,
                &mut request.0,
            )
        })?;
        Ok(request)
    }

    /// Begins to receive up to `bytes` bytes.
    ///
    /// # Safety
    /// They must be valid for writing, and nobody else may use them, until the request is done.
    pub(super) unsafe fn irecv(
        &self,
        comm: Comm,
        to: *mut u8,
        bytes: usize,
        from: u32,
        tag: u32,
    ) -> Result<Request> {
        let mut request = Request(null_request());
        let n = count("MPI_Irecv", bytes)?;
        // SAFETY: the caller vouches for the memory.
        check("MPI_Irecv", unsafe {
            sys::MPI_Irecv(
                to.cast(),
                n,
                sys::RSMPI_UINT8_T,
                from as c_int,
                tag as c_int,
                comm.0,
                &mut request.0,
            )
        })?;
        Ok(request)
    }

    /// Every rank's bytes, of which all give as many. Waits for the others.
    pub(super) fn gather_now(&self, comm: Comm, from: Vec<u8>) -> Result<Vec<u8>> {
        let mut moving = self.all_gather(comm, from)?;
        loop {
            match self.arrived(&mut moving)? {
                Some(all) => return Ok(all),
                None => std::thread::yield_now(),
            }
        }
    }

    /// Begins to gather the same number of bytes of every rank to every rank.
    pub(super) fn all_gather(&self, comm: Comm, from: Vec<u8>) -> Result<Moving> {
        let (_, size) = self.place(comm)?;
        let n = count("MPI_Iallgather", from.len())?;
        let to = vec![0; from.len() * size as usize];
        let mut moving = Moving::new(from, to);
        // SAFETY: `Moving` keeps both buffers where they are until the request is done; the second has room
        // for every rank's bytes.
        check("MPI_Iallgather", unsafe {
            let byte = sys::RSMPI_UINT8_T;
            let (from, to) = (moving.from.as_ptr().cast(), moving.to.as_mut_ptr().cast());
            sys::MPI_Iallgather(from, n, byte, to, n, byte, comm.0, &mut moving.request.0)
        })?;
        Ok(moving)
    }

    /// Begins to copy the bytes of `root` to every rank; the others give as many.
    pub(super) fn broadcast(&self, comm: Comm, bytes: Vec<u8>, root: u32) -> Result<Moving> {
        let n = count("MPI_Ibcast", bytes.len())?;
        let mut moving = Moving::new(Vec::new(), bytes);
        // SAFETY: as in `all_gather`.
        check("MPI_Ibcast", unsafe {
            let at = moving.to.as_mut_ptr().cast();
            sys::MPI_Ibcast(at, n, sys::RSMPI_UINT8_T, root as c_int, comm.0, &mut moving.request.0)
        })?;
        Ok(moving)
    }

    /// The result of an operation once it is done; never waits.
    pub(super) fn arrived(&self, moving: &mut Moving) -> Result<Option<Vec<u8>>> {
        if !moving.done && self.test(&mut moving.request)? {
            moving.done = true;
            return Ok(Some(std::mem::take(&mut *moving.to)));
        }
        Ok(None)
    }

    /// Whether the operation is done; never waits. Lets MPI make progress.
    pub(super) fn test(&self, request: &mut Request) -> Result<bool> {
        let mut flag: c_int = 0;
        // SAFETY: a request that this process began, or the null request, which is done.
        check("MPI_Test", unsafe { sys::MPI_Test(&mut request.0, &mut flag, sys::RSMPI_STATUS_IGNORE) })?;
        Ok(flag != 0)
    }

    /// Takes out the operations that are done and tells whose they were; never waits. Lets MPI make progress.
    pub(super) fn test_some(&self, requests: &mut Requests, mut tell: impl FnMut(usize)) -> Result<()> {
        let Requests { open, of, done } = requests;
        done.resize(open.len(), 0);
        let mut count: c_int = 0;
        // SAFETY: requests that this process began, and as many places for their indices.
        check("MPI_Testsome", unsafe {
            let n = open.len() as c_int;
            let ignore = sys::RSMPI_STATUSES_IGNORE;
            sys::MPI_Testsome(n, open.as_mut_ptr(), &mut count, done.as_mut_ptr(), ignore)
        })?;
        // The count is negative where there was nothing to look at.
        done.truncate(usize::try_from(count).unwrap_or(0).min(open.len()));
        done.sort_unstable();
        for &i in done.iter().rev() {
            open.swap_remove(i as usize);
            tell(of.swap_remove(i as usize));
        }
        Ok(())
    }

    /// Ends MPI, after which nothing else may be called. Waits for the other processes.
    pub(super) fn finalize(&self) -> Result<()> {
        // SAFETY: initialised on this thread, which calls nothing afterwards (`Owner::serve`).
        check("MPI_Finalize", unsafe { sys::MPI_Finalize() })
    }
}

fn null_request() -> sys::MPI_Request {
    // SAFETY: a constant of the library.
    unsafe { sys::RSMPI_REQUEST_NULL }
}

/// `struct sched_attr` of sched_setattr(2), in its first version.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Asks the system for short turns of the calling thread that come soon: it has little to do at a time, and the network waits
/// for it while compute threads have all cores. Linux 6.12 and later listen; others lose nothing.
pub(super) fn ask_to_be_prompt() {
    const TURN_NS: u64 = 100_000;
    let mut attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..SchedAttr::default() };
    // SAFETY: the calls read and write an attribute block of the size that it says.
    unsafe {
        let size = size_of::<SchedAttr>();
        if libc::syscall(libc::SYS_sched_getattr, 0, &mut attr, size, 0) != 0 || attr.policy != 0 {
            return;
        }
        attr.runtime = TURN_NS;
        libc::syscall(libc::SYS_sched_setattr, 0, &attr, 0);
    }
}

/// Ends this process at once: no destructors, no handlers, no goodbye to MPI, which could wait for
/// processes that are gone.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: `_exit` may be called at any time.
    unsafe { libc::_exit(code.into()) }
}

/// Sleeps until somebody calls [`futex_wake`] on the word, which may lie in shared memory, unless it no
/// longer holds `seen`; at most `limit`.
pub(super) fn futex_wait(word: &std::sync::atomic::AtomicU32, seen: u32, limit: std::time::Duration) {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(1),
        tv_nsec: limit.subsec_nanos().into(),
    };
    // SAFETY: the word is valid, the time-out too; FUTEX_WAIT writes nothing. Any outcome is a wake-up.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, ptr::from_ref(&time));
    }
}

/// Wakes all that sleep on the word, in all processes.
pub(super) fn futex_wake(word: &std::sync::atomic::AtomicU32) {
    // SAFETY: the word is valid; FUTEX_WAKE does not touch it.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, c_int::MAX);
    }
}

/// Free bytes of the file system that holds `path`; None where it does not say.
pub(super) fn free_bytes(path: &std::ffi::CStr) -> Option<u64> {
    // SAFETY: all-zero is a valid statvfs, which the call fills.
    let mut info: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a string with its final zero and a valid out-pointer.
    let code = unsafe { libc::statvfs(path.as_ptr(), &mut info) };
    (code == 0).then(|| info.f_bavail.saturating_mul(info.f_frsize))
}
