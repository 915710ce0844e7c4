//! cuBLASLt's interface (`cublasLt.h`).

use std::ffi::{c_char, c_int, c_void};

use super::{Handle, table};

/// `cublasStatus_t`.
pub(crate) type Status = c_int;

/// `cublasLtMatmulHeuristicResult_t`: an algorithm (eight opaque words) and what it takes.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Heuristic {
    pub(crate) algorithm: [u64; 8],
    pub(crate) workspace: usize,
    pub(crate) state: Status,
    pub(crate) waves: f32,
    pub(crate) reserved: [c_int; 4],
}

/// `CUBLAS_STATUS_NOT_SUPPORTED`.
pub(crate) const NOT_SUPPORTED: Status = 15;
/// `CUDA_R_32F`.
pub(crate) const R_32F: c_int = 0;
/// `CUDA_R_16F`.
pub(crate) const R_16F: c_int = 2;
/// `CUDA_R_16BF`.
pub(crate) const R_16BF: c_int = 14;
/// `CUBLAS_COMPUTE_32F`.
pub(crate) const COMPUTE_32F: c_int = 68;
/// `CUBLAS_COMPUTE_32F_FAST_TF32`.
pub(crate) const COMPUTE_32F_FAST_TF32: c_int = 77;
/// `CUBLASLT_MATMUL_DESC_TRANSA`.
pub(crate) const DESC_TRANSA: c_int = 3;
/// `CUBLASLT_MATMUL_DESC_TRANSB`.
pub(crate) const DESC_TRANSB: c_int = 4;
/// `CUBLASLT_MATMUL_DESC_EPILOGUE`.
pub(crate) const DESC_EPILOGUE: c_int = 7;
/// `CUBLASLT_MATMUL_DESC_BIAS_POINTER`.
pub(crate) const DESC_BIAS_POINTER: c_int = 8;
/// `CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE`.
pub(crate) const DESC_BIAS_DATA_TYPE: c_int = 26;
/// `CUBLASLT_EPILOGUE_DEFAULT`.
pub(crate) const EPILOGUE_DEFAULT: c_int = 1;
/// `CUBLASLT_EPILOGUE_RELU`.
pub(crate) const EPILOGUE_RELU: c_int = 2;
/// `CUBLASLT_EPILOGUE_BIAS`.
pub(crate) const EPILOGUE_BIAS: c_int = 4;
/// `CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT`.
pub(crate) const LAYOUT_BATCH_COUNT: c_int = 5;
/// `CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET`.
pub(crate) const LAYOUT_BATCH_STRIDE: c_int = 6;
/// `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES`.
pub(crate) const PREFER_WORKSPACE: c_int = 1;
/// `CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK`.
pub(crate) const PREFER_REDUCTIONS: c_int = 3;
/// `CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES`; B, C and D follow.
pub(crate) const PREFER_ALIGNMENT_A: c_int = 5;
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`.
pub(crate) const REDUCTION_COMPUTE_TYPE: u32 = 2;

table! {
    /// `libcublasLt.so`.
    BlasLt {
        cublasLtCreate: fn(*mut Handle) -> Status;
        cublasLtDestroy: fn(Handle) -> Status;
        cublasLtGetVersion: fn() -> usize;
        cublasLtGetStatusString: fn(Status) -> *const c_char;
        cublasLtMatmulDescCreate: fn(*mut Handle, c_int, c_int) -> Status;
        cublasLtMatmulDescDestroy: fn(Handle) -> Status;
        cublasLtMatmulDescSetAttribute: fn(Handle, c_int, *const c_void, usize) -> Status;
        cublasLtMatrixLayoutCreate: fn(*mut Handle, c_int, u64, u64, i64) -> Status;
        cublasLtMatrixLayoutDestroy: fn(Handle) -> Status;
        cublasLtMatrixLayoutSetAttribute: fn(Handle, c_int, *const c_void, usize) -> Status;
        cublasLtMatmulPreferenceCreate: fn(*mut Handle) -> Status;
        cublasLtMatmulPreferenceDestroy: fn(Handle) -> Status;
        cublasLtMatmulPreferenceSetAttribute: fn(Handle, c_int, *const c_void, usize) -> Status;
        cublasLtMatmulAlgoGetHeuristic: fn(
            Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Heuristic, *mut c_int,
        ) -> Status;
        cublasLtMatmul: fn(
            Handle, Handle, *const f32, u64, Handle, u64, Handle, *const f32, u64, Handle, u64, Handle,
            *const [u64; 8], u64, usize, Handle,
        ) -> Status;
    }
}
