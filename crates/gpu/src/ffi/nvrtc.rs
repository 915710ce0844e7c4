//! The run-time compiler's interface (`nvrtc.h`).

use std::ffi::{c_char, c_int};

use super::{Handle, table};

/// `nvrtcResult`.
pub(crate) type Status = c_int;

/// `NVRTC_ERROR_COMPILATION`: the log says why.
pub(crate) const COMPILATION: Status = 6;

/// `NVRTC_ERROR_INVALID_OPTION`: of those that are given, only the architecture is not the same everywhere.
pub(crate) const INVALID_OPTION: Status = 5;

table! {
    /// `libnvrtc.so`.
    Nvrtc {
        nvrtcVersion: fn(*mut c_int, *mut c_int) -> Status;
        nvrtcGetErrorString: fn(Status) -> *const c_char;
        nvrtcCreateProgram: fn(
            *mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
        ) -> Status;
        nvrtcCompileProgram: fn(Handle, c_int, *const *const c_char) -> Status;
        nvrtcDestroyProgram: fn(*mut Handle) -> Status;
        nvrtcGetProgramLogSize: fn(Handle, *mut usize) -> Status;
        nvrtcGetProgramLog: fn(Handle, *mut c_char) -> Status;
        nvrtcGetCUBINSize: fn(Handle, *mut usize) -> Status;
        nvrtcGetCUBIN: fn(Handle, *mut c_char) -> Status;
    }
}
