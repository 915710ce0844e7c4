//! The driver's interface (`cuda.h`).

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::{Handle, table};

/// `CUresult`.
pub(crate) type Status = c_int;

/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(crate) const OUT_OF_MEMORY: Status = 2;
/// `CUDA_ERROR_NO_DEVICE`.
pub(crate) const NO_DEVICE: Status = 100;
/// `CUDA_ERROR_NOT_FOUND`.
pub(crate) const NOT_FOUND: Status = 500;
/// `CUDA_ERROR_NOT_READY`: what a query says of work that is not done.
pub(crate) const NOT_READY: Status = 600;

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
pub(crate) const MULTIPROCESSOR_COUNT: c_int = 16;
/// `CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE`.
pub(crate) const L2_CACHE_SIZE: c_int = 38;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`.
pub(crate) const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`.
pub(crate) const COMPUTE_CAPABILITY_MINOR: c_int = 76;
/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`.
pub(crate) const MAX_SHARED_MEMORY_OPTIN: c_int = 97;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub(crate) const FUNCTION_MAX_DYNAMIC_SHARED: c_int = 8;
/// `CU_STREAM_NON_BLOCKING`.
pub(crate) const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DEFAULT`.
pub(crate) const EVENT_TIMED: c_uint = 0;
/// `CU_EVENT_DISABLE_TIMING`.
pub(crate) const EVENT_UNTIMED: c_uint = 2;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
pub(crate) const CAPTURE_RELAXED: c_int = 2;
/// `CU_MEMHOSTALLOC_PORTABLE`.
pub(crate) const HOST_PORTABLE: c_uint = 1;

table! {
    /// `libcuda.so.1`.
    Driver {
        cuInit: fn(c_uint) -> Status;
        cuDriverGetVersion: fn(*mut c_int) -> Status;
        cuGetErrorName: fn(Status, *mut *const c_char) -> Status;
        cuGetErrorString: fn(Status, *mut *const c_char) -> Status;
        cuDeviceGetCount: fn(*mut c_int) -> Status;
        cuDeviceGet: fn(*mut c_int, c_int) -> Status;
        cuDeviceGetName: fn(*mut c_char, c_int, c_int) -> Status;
        cuDeviceGetUuid_v2: fn(*mut [u8; 16], c_int) -> Status;
        cuDeviceGetAttribute: fn(*mut c_int, c_int, c_int) -> Status;
        cuDeviceTotalMem_v2: fn(*mut usize, c_int) -> Status;
        cuDevicePrimaryCtxRetain: fn(*mut Handle, c_int) -> Status;
        cuDevicePrimaryCtxRelease_v2: fn(c_int) -> Status;
        cuCtxSetCurrent: fn(Handle) -> Status;
        cuMemAlloc_v2: fn(*mut u64, usize) -> Status;
        cuMemFree_v2: fn(u64) -> Status;
        cuMemGetInfo_v2: fn(*mut usize, *mut usize) -> Status;
        cuMemHostAlloc: fn(*mut *mut c_void, usize, c_uint) -> Status;
        cuMemFreeHost: fn(*mut c_void) -> Status;
        cuMemcpyHtoDAsync_v2: fn(u64, *const c_void, usize, Handle) -> Status;
        cuMemcpyDtoHAsync_v2: fn(*mut c_void, u64, usize, Handle) -> Status;
        cuMemcpyDtoDAsync_v2: fn(u64, u64, usize, Handle) -> Status;
        cuMemsetD8Async: fn(u64, u8, usize, Handle) -> Status;
        cuStreamCreateWithPriority: fn(*mut Handle, c_uint, c_int) -> Status;
        cuStreamDestroy_v2: fn(Handle) -> Status;
        cuStreamSynchronize: fn(Handle) -> Status;
        cuStreamQuery: fn(Handle) -> Status;
        cuStreamWaitEvent: fn(Handle, Handle, c_uint) -> Status;
        cuStreamBeginCapture_v2: fn(Handle, c_int) -> Status;
        cuStreamEndCapture: fn(Handle, *mut Handle) -> Status;
        cuEventCreate: fn(*mut Handle, c_uint) -> Status;
        cuEventDestroy_v2: fn(Handle) -> Status;
        cuEventRecord: fn(Handle, Handle) -> Status;
        cuEventSynchronize: fn(Handle) -> Status;
        cuEventQuery: fn(Handle) -> Status;
        cuEventElapsedTime: fn(*mut f32, Handle, Handle) -> Status;
        cuModuleLoadData: fn(*mut Handle, *const c_void) -> Status;
        cuModuleUnload: fn(Handle) -> Status;
        cuModuleGetFunction: fn(*mut Handle, Handle, *const c_char) -> Status;
        cuFuncSetAttribute: fn(Handle, c_int, c_int) -> Status;
        cuLaunchKernel: fn(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void,
        ) -> Status;
        cuGraphInstantiateWithFlags: fn(*mut Handle, Handle, u64) -> Status;
        cuGraphLaunch: fn(Handle, Handle) -> Status;
        cuGraphExecDestroy: fn(Handle) -> Status;
        cuGraphDestroy: fn(Handle) -> Status;
    }
}
