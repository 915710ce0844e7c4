//! NCCL's interface (`nccl.h`).

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::{Handle, table};

/// `ncclResult_t`.
pub(crate) type Status = c_int;

/// `ncclUniqueId`: what the ranks of a communicator know each other by.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UniqueId(pub(crate) [u8; UNIQUE_ID_BYTES]);

/// `NCCL_UNIQUE_ID_BYTES`.
pub(crate) const UNIQUE_ID_BYTES: usize = 128;

/// `ncclConfig_t` as version 2.18 has it. Newer ones take `version` at its word and fill the rest in themselves.
#[repr(C)]
pub(crate) struct Config {
    pub(crate) size: usize,
    pub(crate) magic: c_uint,
    pub(crate) version: c_uint,
    pub(crate) blocking: c_int,
    pub(crate) cga_cluster_size: c_int,
    pub(crate) min_ctas: c_int,
    pub(crate) max_ctas: c_int,
    pub(crate) net_name: *const c_char,
    pub(crate) split_share: c_int,
    /// Of later versions: `size` reaches over it, as it would over padding.
    pub(crate) later: c_int,
}

impl Config {
    /// `NCCL_CONFIG_INITIALIZER` of 2.18, but calls do not wait for other ranks.
    pub(crate) fn non_blocking() -> Self {
        Config {
            size: size_of::<Config>(),
            magic: MAGIC,
            version: CONFIG_VERSION,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
            later: UNDEFINED,
        }
    }
}

/// `NCCL_API_MAGIC`.
const MAGIC: c_uint = 0xcafe_beef;
/// `NCCL_CONFIG_UNDEF_INT`.
const UNDEFINED: c_int = c_int::MIN;
/// The version whose [`Config`] this is, in the form of `NCCL_VERSION_CODE`.
const CONFIG_VERSION: c_uint = 21_800;

/// `ncclSuccess`.
pub(crate) const SUCCESS: Status = 0;
/// `ncclInternalError`.
pub(crate) const INTERNAL_ERROR: Status = 3;
/// `ncclInProgress`.
pub(crate) const IN_PROGRESS: Status = 7;
/// `ncclFloat32`.
pub(crate) const FLOAT32: c_int = 7;
/// `ncclSum`.
pub(crate) const SUM: c_int = 0;

table! {
    /// `libnccl.so.2`.
    Library {
        ncclGetErrorString: fn(Status) -> *const c_char;
        ncclGetLastError: fn(Handle) -> *const c_char;
        ncclGetUniqueId: fn(*mut UniqueId) -> Status;
        ncclCommInitRankConfig: fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> Status;
        ncclCommFinalize: fn(Handle) -> Status;
        ncclCommDestroy: fn(Handle) -> Status;
        ncclCommAbort: fn(Handle) -> Status;
        ncclCommGetAsyncError: fn(Handle, *mut Status) -> Status;
        ncclAllReduce: fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> Status;
        ncclReduceScatter: fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> Status;
        ncclAllGather: fn(*const c_void, *mut c_void, usize, c_int, Handle, Handle) -> Status;
        ncclBroadcast: fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> Status;
        ncclSend: fn(*const c_void, usize, c_int, c_int, Handle, Handle) -> Status;
        ncclRecv: fn(*mut c_void, usize, c_int, c_int, Handle, Handle) -> Status;
        ncclGroupStart: fn() -> Status;
        ncclGroupEnd: fn() -> Status;
    }
}
