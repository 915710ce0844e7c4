use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::{DRIVER, call_error};
use crate::ffi::Handle;
use crate::ffi::driver::{self, Driver, Status};
use crate::library::{self, Loaded, Wanted};
use crate::{Error, Result};

/// The oldest driver that will do: CUDA 12.2.
const OLDEST_DRIVER: i32 = 12_020;

/// The oldest compute capability that will do: kernels use bf16 arithmetic, which came with Ampere.
const OLDEST_DEVICE: (u32, u32) = (8, 0);

/// What drivers have from CUDA 12.4 on to put kernels onto the device before they are launched.
struct Preloading {
    /// `cuModuleGetFunctionCount`.
    count: unsafe extern "C" fn(*mut c_uint, Handle) -> Status,
    /// `cuModuleEnumerateFunctions`.
    list: unsafe extern "C" fn(*mut Handle, c_uint, Handle) -> Status,
    /// `cuFuncLoad`.
    load: unsafe extern "C" fn(Handle) -> Status,
}

static PRELOADING: OnceLock<Option<Preloading>> = OnceLock::new();

impl Preloading {
    fn of(driver: &Loaded) -> Option<Self> {
        let count = driver.symbol("cuModuleGetFunctionCount").ok()?;
        let list = driver.symbol("cuModuleEnumerateFunctions").ok()?;
        let load = driver.symbol("cuFuncLoad").ok()?;
        // SAFETY: the functions of these names, whose signatures in NVIDIA's header are those that are written above.
        Some(unsafe {
            Preloading {
                count: std::mem::transmute::<usize, unsafe extern "C" fn(*mut c_uint, Handle) -> Status>(
                    count,
                ),
                list: std::mem::transmute::<usize, unsafe extern "C" fn(*mut Handle, c_uint, Handle) -> Status>(
                    list,
                ),
                load: std::mem::transmute::<usize, unsafe extern "C" fn(Handle) -> Status>(load),
            }
        })
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name, e.g. `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Its identity, the same in every process.
    pub uuid: [u8; 16],
    /// Compute capability, major and minor.
    pub compute: (u32, u32),
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// CUDA version of the driver, major and minor.
    pub driver: (u32, u32),
    /// Second-level cache in bytes.
    pub l2: u64,
    /// Shared memory that a block may have at most, in bytes.
    pub shared_per_block: u32,
}

impl DeviceInfo {
    /// Name of the architecture for the compiler: `sm_80`, and `sm_90a` with what is only in that one.
    pub fn arch(&self) -> String {
        let (major, minor) = self.compute;
        format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
    }
}

impl Driver {
    /// The driver, loaded and initialised once.
    pub(crate) fn get() -> Result<&'static Driver> {
        static DRIVER: OnceLock<Result<&'static Driver>> = OnceLock::new();
        DRIVER.get_or_init(Driver::load).clone()
    }

    fn load() -> Result<&'static Driver> {
        let mut loaded = library::open(&Wanted {
            library: DRIVER,
            names: &["libcuda.so.1"],
            parts: None,
            packaged: false,
            hint: "install NVIDIA's driver, or use --device cpu",
        })?;
        let mut version: c_int = 0;
        if let Ok(address) = loaded.symbol("cuDriverGetVersion") {
            // SAFETY: the function of this name, which every driver has had with this signature.
            let get: unsafe extern "C" fn(*mut c_int) -> Status = unsafe { std::mem::transmute(address) };
            // SAFETY: writes one integer; may be called before cuInit.
            unsafe { get(&mut version) };
            loaded.version = format!("{}.{}", version / 1000, version % 1000 / 10);
            // Before the functions are bound: an old driver lacks some, and its age is the better message.
            if version < OLDEST_DRIVER {
                return Err(Error::OldDriver { found: version, needed: OLDEST_DRIVER });
            }
        }
        let table = Box::leak(Box::new(Driver::bind(&loaded)?));
        PRELOADING.get_or_init(|| Preloading::of(&loaded));
        std::mem::forget(loaded);
        // SAFETY: no preconditions.
        match unsafe { (table.cuInit)(0) } {
            driver::NO_DEVICE => Err(Error::NoDevice { ordinal: 0, count: 0 }),
            status => table.check(status, "cuInit").map(|()| &*table),
        }
    }

    /// Puts all kernels of a module onto the device now. Else the driver may do so at a first launch, which then waits for all
    /// that runs on the device: also for a sum that waits for another rank. False where the driver is too old for it.
    pub(crate) fn preload(&self, module: Handle) -> Result<bool> {
        let Some(of) = PRELOADING.get().and_then(Option::as_ref) else { return Ok(false) };
        let mut count: c_uint = 0;
        // SAFETY: a live module of the current context; writes one number.
        self.check(unsafe { (of.count)(&mut count, module) }, "cuModuleGetFunctionCount")?;
        let mut functions: Vec<Handle> = vec![0; count as usize];
        // SAFETY: the same; writes at most `count` handles, for which there is room.
        let status = unsafe { (of.list)(functions.as_mut_ptr(), count, module) };
        self.check(status, "cuModuleEnumerateFunctions")?;
        for function in functions {
            // SAFETY: a live function of the current context.
            self.check(unsafe { (of.load)(function) }, "cuFuncLoad")?;
        }
        Ok(true)
    }

    /// Whether the driver is for CUDA 12, which cannot run what libraries of CUDA 13 bring. False without a driver.
    pub(crate) fn is_of_cuda_12() -> bool {
        let mut version: c_int = 0;
        // SAFETY: writes one integer.
        let status = Driver::get().map(|d| unsafe { (d.cuDriverGetVersion)(&mut version) });
        status.is_ok_and(|s| s == 0) && version < 13_000
    }

    /// An error unless `status` is success.
    #[inline]
    pub(crate) fn check(&self, status: Status, call: &'static str) -> Result<()> {
        if status == 0 { Ok(()) } else { Err(self.error(status, call)) }
    }

    #[cold]
    fn error(&self, status: Status, call: &'static str) -> Error {
        let (mut name, mut text): (*const c_char, *const c_char) = (std::ptr::null(), std::ptr::null());
        // SAFETY: both write the address of a static text.
        unsafe {
            (self.cuGetErrorName)(status, &mut name);
            (self.cuGetErrorString)(status, &mut text);
        }
        match (call_error(call, status, name), call_error(call, status, text)) {
            (Error::Call { message: name, .. }, Error::Call { message: text, .. }) => {
                Error::Call { call, code: status, message: format!("{name}: {text}") }
            }
            (other, _) => other,
        }
    }

    /// Number of devices.
    pub(crate) fn count(&self) -> Result<usize> {
        let mut count: c_int = 0;
        // SAFETY: writes one integer.
        self.check(unsafe { (self.cuDeviceGetCount)(&mut count) }, "cuDeviceGetCount")?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    fn info(&self, device: c_int) -> Result<DeviceInfo> {
        let attribute = |which: c_int| -> Result<u32> {
            let mut value: c_int = 0;
            // SAFETY: writes one integer.
            let status = unsafe { (self.cuDeviceGetAttribute)(&mut value, which, device) };
            self.check(status, "cuDeviceGetAttribute")?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        let mut name = [0u8; 256];
        // SAFETY: writes at most 256 bytes, the last of them NUL.
        let status = unsafe { (self.cuDeviceGetName)(name.as_mut_ptr().cast(), 256, device) };
        self.check(status, "cuDeviceGetName")?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        let mut uuid = [0u8; 16];
        // SAFETY: writes 16 bytes.
        self.check(unsafe { (self.cuDeviceGetUuid_v2)(&mut uuid, device) }, "cuDeviceGetUuid_v2")?;
        let (mut memory, mut version) = (0usize, 0);
        // SAFETY: writes one size.
        self.check(unsafe { (self.cuDeviceTotalMem_v2)(&mut memory, device) }, "cuDeviceTotalMem_v2")?;
        // SAFETY: writes one integer.
        self.check(unsafe { (self.cuDriverGetVersion)(&mut version) }, "cuDriverGetVersion")?;
        Ok(DeviceInfo {
            name: String::from_utf8_lossy(&name[..end]).into_owned(),
            uuid,
            compute: (
                attribute(driver::COMPUTE_CAPABILITY_MAJOR)?,
                attribute(driver::COMPUTE_CAPABILITY_MINOR)?,
            ),
            sms: attribute(driver::MULTIPROCESSOR_COUNT)?,
            memory: memory as u64,
            driver: (version as u32 / 1000, version as u32 % 1000 / 10),
            l2: u64::from(attribute(driver::L2_CACHE_SIZE)?),
            shared_per_block: attribute(driver::MAX_SHARED_MEMORY_OPTIN)?,
        })
    }
}

/// A device's primary context, held.
pub(crate) struct Primary {
    pub(crate) driver: &'static Driver,
    device: c_int,
    context: Handle,
    /// How often the host has waited for the device.
    waits: AtomicU64,
}

impl Primary {
    /// Takes note of a wait of the host's.
    pub(crate) fn waits(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn waited(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    pub(crate) fn open(ordinal: usize) -> Result<(Arc<Self>, DeviceInfo)> {
        let driver = Driver::get()?;
        let count = driver.count()?;
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        let mut device: c_int = 0;
        // SAFETY: writes one integer; the ordinal exists.
        driver.check(unsafe { (driver.cuDeviceGet)(&mut device, ordinal as c_int) }, "cuDeviceGet")?;
        let info = driver.info(device)?;
        if info.compute < OLDEST_DEVICE {
            return Err(Error::OldDevice { name: info.name, found: info.compute, needed: OLDEST_DEVICE });
        }
        let mut context: Handle = 0;
        // SAFETY: writes one handle; released in `drop`.
        let status = unsafe { (driver.cuDevicePrimaryCtxRetain)(&mut context, device) };
        driver.check(status, "cuDevicePrimaryCtxRetain")?;
        Ok((Arc::new(Primary { driver, device, context, waits: AtomicU64::new(0) }), info))
    }

    /// Makes the context the calling thread's and gives the driver's functions. Some tens of nanoseconds.
    #[inline]
    pub(crate) fn enter(&self) -> Result<&'static Driver> {
        // SAFETY: the context is retained for as long as `self` lives.
        let status = unsafe { (self.driver.cuCtxSetCurrent)(self.context) };
        self.driver.check(status, "cuCtxSetCurrent")?;
        Ok(self.driver)
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        // SAFETY: retained in `open`; nothing that lives in it is left, as each holds an `Arc` of this.
        unsafe { (self.driver.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}
