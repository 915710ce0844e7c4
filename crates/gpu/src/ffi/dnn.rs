//! cuDNN's backend interface (`cudnn_graph.h`).

use std::ffi::{c_char, c_int, c_void};

use super::{Handle, table};

/// `cudnnStatus_t`.
pub(crate) type Status = c_int;

table! {
    /// `libcudnn.so.9`.
    CuDnn {
        cudnnGetVersion: fn() -> usize;
        cudnnGetErrorString: fn(Status) -> *const c_char;
        cudnnGetLastErrorString: fn(*mut c_char, usize) -> ();
        cudnnCreate: fn(*mut Handle) -> Status;
        cudnnDestroy: fn(Handle) -> Status;
        cudnnSetStream: fn(Handle, Handle) -> Status;
        cudnnBackendCreateDescriptor: fn(c_int, *mut Handle) -> Status;
        cudnnBackendDestroyDescriptor: fn(Handle) -> Status;
        cudnnBackendSetAttribute: fn(Handle, c_int, c_int, i64, *const c_void) -> Status;
        cudnnBackendGetAttribute: fn(Handle, c_int, c_int, i64, *mut i64, *mut c_void) -> Status;
        cudnnBackendFinalize: fn(Handle) -> Status;
        cudnnBackendExecute: fn(Handle, Handle, Handle) -> Status;
    }
}
