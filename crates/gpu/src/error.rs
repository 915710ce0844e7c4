use std::time::Duration;

/// Why work on a GPU failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A library was not found or not loadable.
    #[error("no {library}: tried {}; {hint}", .tried.join(", "))]
    NoLibrary {
        /// What it is.
        library: &'static str,
        /// Every name and folder that was tried with the loader's answer.
        tried: Vec<String>,
        /// How to get it.
        hint: &'static str,
    },
    /// A library lacks a function that is needed.
    #[error("{library} (version {version}) has no function {function}; a newer one is needed")]
    MissingFunction {
        /// The file that was loaded.
        library: String,
        /// Its version, as it says itself.
        version: String,
        /// The function.
        function: &'static str,
    },
    /// The driver is older than what this build needs.
    #[error(
        "the CUDA driver is for CUDA {}.{}, and {}.{} or newer is needed; update it, or use --device cpu",
        .found / 1000, .found % 1000 / 10, .needed / 1000, .needed % 1000 / 10
    )]
    OldDriver {
        /// Version that the driver gives: 1000 · major + 10 · minor.
        found: i32,
        /// The oldest that will do, in the same form.
        needed: i32,
    },
    /// A library is older than what this build needs.
    #[error("{library} is version {found}, and {needed} or newer is needed")]
    OldLibrary {
        /// The file that was loaded.
        library: String,
        /// Its version, as it says itself.
        found: String,
        /// The oldest that will do.
        needed: String,
    },
    /// The device is older than what kernels need.
    #[error(
        "{name} has compute capability {}.{}, and {}.{} or newer is needed; use --device cpu, or name another GPU in CUDA_VISIBLE_DEVICES",
        .found.0, .found.1, .needed.0, .needed.1
    )]
    OldDevice {
        /// The device.
        name: String,
        /// Its compute capability, major and minor.
        found: (u32, u32),
        /// The least that will do.
        needed: (u32, u32),
    },
    /// There is no such device.
    #[error(
        "no CUDA device {ordinal}: the driver shows {count}; see nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"
    )]
    NoDevice {
        /// What was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A call of one of the libraries failed. After an error in a kernel, every later call gives it again.
    #[error("{call}: {message} (error {code})")]
    Call {
        /// The function.
        call: &'static str,
        /// The library's number.
        code: i32,
        /// What the library says of it.
        message: String,
    },
    /// A sum between devices failed, here or on another rank.
    #[error("{call}: {message} (error {code})")]
    Collective {
        /// The function; `NCCL` for work in flight.
        call: &'static str,
        /// NCCL's number.
        code: i32,
        /// What NCCL says of it.
        message: String,
    },
    /// A kernel source does not compile.
    #[error("kernels {source_name} for {arch} do not compile:\n{log}")]
    Compile {
        /// Name of the source.
        source_name: &'static str,
        /// The architecture.
        arch: String,
        /// The compiler's log.
        log: String,
    },
    /// The compiler of kernels knows no such device.
    #[error(
        "NVRTC {version} knows no {arch}, which this GPU is: a newer one is needed, as `pip install --upgrade nvidia-cuda-nvrtc` gives it, or the CUDA toolkit of the GPU's driver; PHALANX_CUDA_PATH may name its folder"
    )]
    OldCompiler {
        /// The compiler's version.
        version: String,
        /// The architecture.
        arch: String,
    },
    /// A module has no such kernel.
    #[error("kernels {source_name} have no {kernel}")]
    NoKernel {
        /// Name of the source.
        source_name: &'static str,
        /// The kernel.
        kernel: String,
    },
    /// Device memory is used up, with every cached block given back.
    #[error(
        "out of device memory: {wanted} bytes wanted, and at most {fits} would fit; {live} live in blocks of this process (largest: {largest:?}), {graphs} kept for CUDA graphs, {cached} free in smaller pieces, {free} free of {total} on the device"
    )]
    OutOfMemory {
        /// Bytes of the request.
        wanted: u64,
        /// The largest request that there would be room for.
        fits: u64,
        /// Bytes in live blocks.
        live: u64,
        /// Bytes that steps which were recorded as CUDA graphs hold, and that are not live.
        graphs: u64,
        /// Bytes held from the device in pieces that are not live, each smaller than what was wanted.
        cached: u64,
        /// Bytes that the device has left.
        free: u64,
        /// Bytes of the device.
        total: u64,
        /// Sizes of the largest live blocks in bytes.
        largest: Vec<u64>,
    },
    /// A range lies outside its buffer.
    #[error("bytes {at}..{} of a device buffer of {len}", .at.saturating_add(*.bytes))]
    OutOfBounds {
        /// First byte.
        at: usize,
        /// Number of bytes.
        bytes: usize,
        /// Size of the buffer in bytes.
        len: usize,
    },
    /// Work was not done in time.
    #[error("device work was not done within {limit:?}")]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// No library has an algorithm for this.
    #[error("{library} has no algorithm for {what}")]
    NoAlgorithm {
        /// Which library.
        library: &'static str,
        /// The work.
        what: String,
    },
    /// An algorithm that must be taken is not there.
    #[error(
        "cuDNN has no more the algorithm {algorithm} for {what}, by which this was computed before ({why}): go on with the device and the libraries of before, or let algorithms be chosen anew, as --allow-fingerprint-change does, with other bits"
    )]
    Unpinned {
        /// The convolution.
        what: String,
        /// What it was computed by.
        algorithm: String,
        /// What is wrong with it here.
        why: String,
    },
    /// Sizes or pointers that contradict each other.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
    /// Something that cannot be part of a captured graph.
    #[error("{what} while a CUDA graph is being captured")]
    Capturing {
        /// What was asked.
        what: &'static str,
    },
    /// A compiled object that is none.
    #[error("not a CUDA object: {what}")]
    Cubin {
        /// What is wrong.
        what: &'static str,
    },
}

impl Error {
    /// The same in few words: without everything that was tried.
    pub fn brief(&self) -> String {
        match self {
            Error::NoLibrary { library, hint, .. } => format!("no {library}; {hint}"),
            other => other.to_string(),
        }
    }

    /// Whether there is no driver, as on every machine without a GPU.
    pub fn is_no_driver(&self) -> bool {
        matches!(self, Error::NoLibrary { library: DRIVER, .. })
    }

    /// Whether device memory is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Error::OutOfMemory { .. })
    }

    /// Whether a library cannot do what it was asked for (of cuDNN `CUDNN_STATUS_NOT_SUPPORTED` and its kin), so that a
    /// kernel of ours may.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Error::NoAlgorithm { .. } | Error::Call { code: 3000..=3999, .. })
    }
}

/// What the driver is called in messages.
pub(crate) const DRIVER: &str = "CUDA driver";

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An [`Error::Call`] with a C string's text.
#[cold]
pub(crate) fn call_error(call: &'static str, code: i32, text: *const std::ffi::c_char) -> Error {
    let message = if text.is_null() {
        String::from("unknown error")
    } else {
        // SAFETY: the libraries give static NUL-terminated texts.
        unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    Error::Call { call, code, message }
}
