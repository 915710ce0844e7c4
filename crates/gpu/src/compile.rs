//! Kernel sources and their compiler, NVRTC. Works without a device.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::call_error;
use crate::ffi::Handle;
use crate::ffi::driver::Driver;
use crate::ffi::nvrtc::{self, Nvrtc};
use crate::library::{self, Wanted};
use crate::{Error, Result, cache, versions};

/// What stands before every source.
pub const PRELUDE: &str = include_str!("prelude.cuh");

/// CUDA C++ of one family of kernels, without the prelude.
#[derive(Debug)]
pub struct Source {
    /// Its name in messages.
    pub name: &'static str,
    /// The text; kernels are `extern "C" __global__`.
    pub text: &'static str,
}

/// What the compiler is told besides the architecture.
const OPTIONS: [&str; 4] = ["--std=c++17", "-default-device", "--fmad=true", "-lineinfo"];

/// The oldest compiler that will do, as 1000 · major + 10 · minor: that of the oldest driver's toolkit, CUDA 12.2.
const OLDEST: usize = 12_020;

/// The compiler and what it is.
pub(crate) struct Compiler {
    table: Nvrtc,
    /// Version and file, as part of the cache's key: the same version may come from elsewhere with other bits.
    pub(crate) identity: String,
}

impl Compiler {
    /// The compiler, loaded once.
    pub(crate) fn get() -> Result<&'static Compiler> {
        static COMPILER: OnceLock<Result<&'static Compiler>> = OnceLock::new();
        COMPILER.get_or_init(Compiler::load).clone()
    }

    fn load() -> Result<&'static Compiler> {
        let mut loaded = library::open(&Wanted {
            library: "run-time compiler (NVRTC)",
            names: if Driver::is_of_cuda_12() {
                &["libnvrtc.so.12"]
            } else {
                &["libnvrtc.so.13", "libnvrtc.so.12"]
            },
            parts: Some("libnvrtc-builtins.so"),
            packaged: true,
            hint: "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc` (nvidia-cuda-nvrtc-cu12 for a driver of CUDA 12); PHALANX_CUDA_PATH may name its folder",
        })?;
        let table = Nvrtc::bind(&loaded)?;
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        // SAFETY: writes two integers.
        unsafe { (table.nvrtcVersion)(&mut major, &mut minor) };
        loaded.version = format!("{major}.{minor}");
        versions::note("nvrtc", &loaded.version);
        loaded.at_least(usize::try_from(1000 * major + 10 * minor).unwrap_or(0), OLDEST, "12.2")?;
        let file = std::fs::metadata(&loaded.path).ok();
        let written = file
            .as_ref()
            .and_then(|m| m.modified().ok())
            .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let identity = format!(
            "{major}.{minor} {} {} {}",
            loaded.path,
            file.map_or(0, |m| m.len()),
            written.map_or(0, |t| t.as_nanos())
        );
        std::mem::forget(loaded);
        Ok(Box::leak(Box::new(Compiler { table, identity })))
    }

    fn check(&self, status: nvrtc::Status, call: &'static str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: gives a static text.
        Err(call_error(call, status, unsafe { (self.table.nvrtcGetErrorString)(status) }))
    }

    /// Compiles prelude and source for `arch`.
    pub(crate) fn compile(&self, source: &Source, arch: &str) -> Result<Vec<u8>> {
        let text = c_string([PRELUDE, "\n#line 1 \"", source.name, ".cu\"\n", source.text].concat())?;
        let name = c_string(format!("{}.cu", source.name))?;
        let mut program = Program { compiler: self, raw: 0 };
        // SAFETY: two C strings that live through the call, no headers; writes one handle, destroyed on drop.
        let status = unsafe {
            (self.table.nvrtcCreateProgram)(
                &mut program.raw,
                text.as_ptr(),
                name.as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        self.check(status, "nvrtcCreateProgram")?;
        let mut options = vec![c_string(format!("--gpu-architecture={arch}"))?];
        for option in OPTIONS {
            options.push(c_string(String::from(option))?);
        }
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: as many C strings as said, alive through the call.
        let status = unsafe {
            (self.table.nvrtcCompileProgram)(program.raw, pointers.len() as c_int, pointers.as_ptr())
        };
        if status == nvrtc::INVALID_OPTION {
            let version = self.identity.split(' ').next().map(String::from).unwrap_or_default();
            return Err(Error::OldCompiler { version, arch: String::from(arch) });
        }
        if status == nvrtc::COMPILATION {
            return Err(Error::Compile {
                source_name: source.name,
                arch: String::from(arch),
                log: program.log().unwrap_or_default(),
            });
        }
        self.check(status, "nvrtcCompileProgram")?;
        let mut size = 0usize;
        // SAFETY: writes one size.
        self.check(unsafe { (self.table.nvrtcGetCUBINSize)(program.raw, &mut size) }, "nvrtcGetCUBINSize")?;
        let mut cubin = vec![0u8; size];
        // SAFETY: writes as many bytes as it has just said.
        let status = unsafe { (self.table.nvrtcGetCUBIN)(program.raw, cubin.as_mut_ptr().cast()) };
        self.check(status, "nvrtcGetCUBIN")?;
        Ok(cubin)
    }
}

/// A program that is destroyed when dropped.
struct Program<'a> {
    compiler: &'a Compiler,
    raw: Handle,
}

impl Program<'_> {
    fn log(&self) -> Result<String> {
        let c = self.compiler;
        let mut size = 0usize;
        // SAFETY: writes one size.
        c.check(unsafe { (c.table.nvrtcGetProgramLogSize)(self.raw, &mut size) }, "nvrtcGetProgramLogSize")?;
        let mut log = vec![0u8; size];
        // SAFETY: writes as many bytes as it has just said.
        let status = unsafe { (c.table.nvrtcGetProgramLog)(self.raw, log.as_mut_ptr().cast()) };
        c.check(status, "nvrtcGetProgramLog")?;
        while log.last() == Some(&0) {
            log.pop();
        }
        Ok(String::from_utf8_lossy(&log).into_owned())
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        if self.raw != 0 {
            // SAFETY: made by nvrtcCreateProgram and not used after.
            unsafe { (self.compiler.table.nvrtcDestroyProgram)(&mut self.raw) };
        }
    }
}

fn c_string(text: String) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Invalid { what: String::from("a kernel source with a NUL") })
}

/// Compiles a source for an architecture such as `sm_80` or `sm_90a` and gives the cubin. Needs NVRTC, no device;
/// does not look into the cache. Fails with [`Error::Compile`] and the compiler's log.
pub fn compile(source: &Source, arch: &str) -> Result<Vec<u8>> {
    Compiler::get()?.compile(source, arch)
}

/// Looks for NVRTC, which all kernels need, without compiling any.
pub fn check_compiler() -> Result<()> {
    Compiler::get().map(|_| ())
}

/// As [`compile`], from the user's cache of compiled kernels when it is there, and into it when not.
pub(crate) fn compile_cached(source: &Source, arch: &str) -> Result<Vec<u8>> {
    let compiler = Compiler::get()?;
    let mut key: Vec<&str> = vec![PRELUDE, source.name, source.text, arch, &compiler.identity];
    key.extend(OPTIONS);
    let name = cache::file_name(&key);
    // Ranks as threads want the same kernels at once: the first compiles, the others read what it wrote.
    static AT_WORK: Mutex<BTreeMap<String, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let mine =
        AT_WORK.lock().unwrap_or_else(PoisonError::into_inner).entry(name.clone()).or_default().clone();
    let _turn = mine.lock().unwrap_or_else(PoisonError::into_inner);
    let file = cache::folder(&|name| std::env::var_os(name)).map(|f| f.join(&name));
    if let Some(cubin) = file.as_deref().and_then(cache::read) {
        return Ok(cubin);
    }
    let cubin = compiler.compile(source, arch)?;
    if let Some(file) = file {
        cache::write(&file, &cubin);
    }
    Ok(cubin)
}
