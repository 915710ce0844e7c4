use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::context::Core;
use crate::error::call_error;
use crate::ffi::Handle;
use crate::ffi::blas_lt::{self as ffi, BlasLt, Heuristic};
use crate::ffi::driver::Driver;
use crate::library::{self, Wanted};
use crate::memory::Block;
use crate::{Context, DevicePtr, Error, Gemm, Math, Result, Type, versions};

impl Type {
    /// CUDA's number (`cudaDataType`).
    const fn cuda(self) -> c_int {
        match self {
            Type::F32 => ffi::R_32F,
            Type::Bf16 => ffi::R_16BF,
            Type::F16 => ffi::R_16F,
        }
    }
}

/// The oldest version that will do, as `cublasLtGetVersion` gives it: that of the oldest driver's toolkit, CUDA 12.2.
const OLDEST: usize = 120_200;

/// Memory that an algorithm may use beside its operands, in bytes: what cuBLAS's manual advises for compute capability 9.0
/// (`cublasSetWorkspace`).
const WORKSPACE: usize = 32 << 20;

/// Alignment beyond which no algorithm asks for more, in bytes.
const ALIGNED: u64 = 16;

/// cuBLASLt: matrix products, each with the first algorithm that its heuristics name.
pub struct Blas {
    table: &'static BlasLt,
    core: Arc<Core>,
    handle: Handle,
    workspace: Block,
    plans: Mutex<HashMap<Gemm, Vec<Plan>>>,
    /// Whether a product with a ReLU behind it passes on what is not a number, for pointers of these alignments.
    passing: Mutex<HashMap<(Gemm, [u32; 4]), bool>>,
}

/// Descriptors and algorithm of a product for pointers of one alignment.
struct Plan {
    table: &'static BlasLt,
    /// Logarithms, of A, B, C and the bias.
    aligned: [u32; 4],
    product: Handle,
    /// Of the library's A and B, which are our B and A, and of C.
    layouts: [Handle; 3],
    algorithm: [u64; 8],
}

impl BlasLt {
    /// The library, loaded once.
    pub(crate) fn get() -> Result<&'static BlasLt> {
        static TABLE: OnceLock<Result<&'static BlasLt>> = OnceLock::new();
        TABLE.get_or_init(BlasLt::load).clone()
    }

    fn load() -> Result<&'static BlasLt> {
        let mut loaded = library::open(&Wanted {
            library: "cuBLASLt",
            names: if Driver::is_of_cuda_12() {
                &["libcublasLt.so.12"]
            } else {
                &["libcublasLt.so.13", "libcublasLt.so.12"]
            },
            parts: None,
            packaged: true,
            hint: "install the CUDA toolkit, or `pip install nvidia-cublas` (nvidia-cublas-cu12 for a driver of CUDA 12); PHALANX_CUDA_PATH may name its folder",
        })?;
        if let Ok(address) = loaded.symbol("cublasLtGetVersion") {
            // SAFETY: the function of this name.
            let version: unsafe extern "C" fn() -> usize = unsafe { std::mem::transmute(address) };
            // SAFETY: no preconditions.
            let version = unsafe { version() };
            loaded.version = version.to_string();
            versions::note("cublaslt", &loaded.version);
            // Before the functions are bound, as with the driver: that of the oldest driver's toolkit.
            loaded.at_least(version, OLDEST, "120200 (of CUDA 12.2)")?;
        }
        let table = BlasLt::bind(&loaded)?;
        std::mem::forget(loaded);
        Ok(Box::leak(Box::new(table)))
    }

    fn check(&self, status: ffi::Status, call: &'static str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: gives a static text.
        Err(call_error(call, status, unsafe { (self.cublasLtGetStatusString)(status) }))
    }
}

impl Blas {
    pub(crate) fn open(core: &Arc<Core>) -> Result<Self> {
        let table = BlasLt::get()?;
        core.primary.enter()?;
        let workspace = core.memory.take_lasting(WORKSPACE)?;
        let mut blas = Blas {
            table,
            core: core.clone(),
            handle: 0,
            workspace,
            plans: Mutex::default(),
            passing: Mutex::default(),
        };
        // SAFETY: writes one handle, destroyed on drop.
        table.check(unsafe { (table.cublasLtCreate)(&mut blas.handle) }, "cublasLtCreate")?;
        Ok(blas)
    }

    /// Queues the product on the compute stream. Without elements nothing happens; with `k` = 0 C must be dense.
    pub fn gemm(
        &self,
        g: &Gemm,
        alpha: f32,
        a: DevicePtr,
        b: DevicePtr,
        c: DevicePtr,
        bias: Option<DevicePtr>,
    ) -> Result<()> {
        let name = || format!("product {}x{}x{} of {}", g.m, g.n, g.k, g.batch);
        let of = || (*g, alpha.to_bits(), [a.0, b.0, c.0], bias.map(|b| b.0));
        self.core.queue(name, of, || self.multiply(g, alpha, a, b, c, bias))
    }

    fn passing(&self) -> MutexGuard<'_, HashMap<(Gemm, [u32; 4]), bool>> {
        self.passing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn multiply(
        &self,
        g: &Gemm,
        alpha: f32,
        a: DevicePtr,
        b: DevicePtr,
        c: DevicePtr,
        bias: Option<DevicePtr>,
    ) -> Result<()> {
        if g.m == 0 || g.n == 0 || g.batch == 0 {
            return Ok(());
        }
        if bias.is_some() != g.bias.is_some() {
            return Err(Error::Invalid {
                what: String::from("a product whose bias has no type or no address"),
            });
        }
        self.core.primary.enter()?;
        if g.k == 0 {
            let dense = g.ldc == g.n && (g.batch == 1 || g.stride_c == g.m * g.n);
            if !dense || g.bias.is_some() || (g.accumulate && g.relu) {
                return Err(Error::NoAlgorithm { library: "cuBLASLt", what: format!("{g:?}") });
            }
            let bytes = g.batch * g.m * g.n * g.c.size();
            if g.accumulate {
                return Ok(());
            }
            return self.core.fill_zero(c.0, bytes);
        }
        let aligned = aligned([a, b, c], bias);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let found = plans.get(g).and_then(|of| of.iter().position(|p| p.aligned == aligned));
        let of = match found {
            Some(_) => plans.get(g),
            None => {
                let plan = self.plan(g, aligned, bias)?;
                let of = plans.entry(*g).or_default();
                of.push(plan);
                Some(&*of)
            }
        };
        // A new plan is the last.
        let plan = of.and_then(|of| found.map_or(of.last(), |i| of.get(i)));
        let Some(plan) = plan else { return Ok(()) };
        if let Some(bias) = bias {
            plan.set(ffi::DESC_BIAS_POINTER, &bias.0.to_ne_bytes())?;
        }
        let beta = if g.accumulate { 1.0f32 } else { 0.0 };
        let [left, right, out] = plan.layouts;
        let t = self.table;
        // SAFETY: live handles of this library and stream; scalars on the host; the workspace is ours and used in the
        // stream's order. That the operands reach as far as their layouts is the caller's part, as with a launch.
        let status = unsafe {
            (t.cublasLtMatmul)(
                self.handle,
                plan.product,
                &alpha,
                b.0,
                left,
                a.0,
                right,
                &beta,
                c.0,
                out,
                c.0,
                out,
                &plan.algorithm,
                self.workspace.address,
                WORKSPACE,
                self.core.compute.raw,
            )
        };
        t.check(status, "cublasLtMatmul")
    }

    /// Row-major matrices are the library's transposed ones: it computes Cᵀ = op(B)ᵀ · op(A)ᵀ.
    fn plan(&self, g: &Gemm, aligned: [u32; 4], bias: Option<DevicePtr>) -> Result<Plan> {
        let t = self.table;
        let mut plan = Plan { table: t, aligned, product: 0, layouts: [0; 3], algorithm: [0; 8] };
        let tf32 = g.math == Math::Tf32 && g.a == Type::F32 && g.b == Type::F32;
        let compute = if tf32 { ffi::COMPUTE_32F_FAST_TF32 } else { ffi::COMPUTE_32F };
        // SAFETY: writes one handle, destroyed with the plan.
        let status = unsafe { (t.cublasLtMatmulDescCreate)(&mut plan.product, compute, ffi::R_32F) };
        t.check(status, "cublasLtMatmulDescCreate")?;
        plan.set(ffi::DESC_TRANSA, &c_int::from(g.trans_b).to_ne_bytes())?;
        plan.set(ffi::DESC_TRANSB, &c_int::from(g.trans_a).to_ne_bytes())?;
        let mut epilogue = 0;
        if let (Some(of), Some(at)) = (g.bias, bias) {
            epilogue |= ffi::EPILOGUE_BIAS;
            plan.set(ffi::DESC_BIAS_DATA_TYPE, &of.cuda().to_ne_bytes())?;
            plan.set(ffi::DESC_BIAS_POINTER, &at.0.to_ne_bytes())?;
        }
        if g.relu {
            epilogue |= ffi::EPILOGUE_RELU;
        }
        if epilogue == 0 {
            epilogue = ffi::EPILOGUE_DEFAULT;
        }
        plan.set(ffi::DESC_EPILOGUE, &epilogue.to_ne_bytes())?;
        let stored =
            |trans: bool, rows: usize, columns: usize| if trans { (rows, columns) } else { (columns, rows) };
        let matrices = [
            (g.b, stored(g.trans_b, g.k, g.n), g.ldb, g.stride_b),
            (g.a, stored(g.trans_a, g.m, g.k), g.lda, g.stride_a),
            (g.c, (g.n, g.m), g.ldc, g.stride_c),
        ];
        for (layout, (of, (rows, columns), ld, stride)) in plan.layouts.iter_mut().zip(matrices) {
            // SAFETY: writes one handle, destroyed with the plan.
            let status = unsafe {
                (t.cublasLtMatrixLayoutCreate)(layout, of.cuda(), rows as u64, columns as u64, ld as i64)
            };
            t.check(status, "cublasLtMatrixLayoutCreate")?;
            if g.batch > 1 {
                let count = g.batch as c_int;
                // SAFETY: a live handle; an attribute of four bytes.
                let status = unsafe {
                    (t.cublasLtMatrixLayoutSetAttribute)(
                        *layout,
                        ffi::LAYOUT_BATCH_COUNT,
                        (&raw const count).cast(),
                        4,
                    )
                };
                t.check(status, "cublasLtMatrixLayoutSetAttribute")?;
                let stride = stride as i64;
                // SAFETY: a live handle; an attribute of eight bytes.
                let status = unsafe {
                    (t.cublasLtMatrixLayoutSetAttribute)(
                        *layout,
                        ffi::LAYOUT_BATCH_STRIDE,
                        (&raw const stride).cast(),
                        8,
                    )
                };
                t.check(status, "cublasLtMatrixLayoutSetAttribute")?;
            }
        }
        plan.algorithm = self.first_algorithm(&plan, g)?;
        Ok(plan)
    }

    fn first_algorithm(&self, plan: &Plan, g: &Gemm) -> Result<[u64; 8]> {
        let t = self.table;
        let mut preference = Preference { table: t, raw: 0 };
        // SAFETY: writes one handle, destroyed on drop.
        let status = unsafe { (t.cublasLtMatmulPreferenceCreate)(&mut preference.raw) };
        t.check(status, "cublasLtMatmulPreferenceCreate")?;
        preference.set(ffi::PREFER_WORKSPACE, &WORKSPACE.to_ne_bytes())?;
        // Sums that are cut into pieces meet in f32: in place they would meet in C's type.
        preference.set(ffi::PREFER_REDUCTIONS, &ffi::REDUCTION_COMPUTE_TYPE.to_ne_bytes())?;
        let [a, b, c, _] = plan.aligned.map(|log| 1u32 << log);
        for (i, aligned) in [b, a, c, c].into_iter().enumerate() {
            preference.set(ffi::PREFER_ALIGNMENT_A + i as c_int, &aligned.to_ne_bytes())?;
        }
        let [left, right, out] = plan.layouts;
        let mut found = [Heuristic::default(); 4];
        let mut count: c_int = 0;
        // SAFETY: live handles; writes at most four results and their number.
        let status = unsafe {
            (t.cublasLtMatmulAlgoGetHeuristic)(
                self.handle,
                plan.product,
                left,
                right,
                out,
                out,
                preference.raw,
                found.len() as c_int,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        if status != ffi::NOT_SUPPORTED {
            t.check(status, "cublasLtMatmulAlgoGetHeuristic")?;
        }
        let first = found.iter().take(usize::try_from(count).unwrap_or(0)).find(|h| h.state == 0);
        let none = || Error::NoAlgorithm { library: "cuBLASLt", what: format!("{g:?}") };
        first.map(|h| h.algorithm).ok_or_else(none)
    }
}

/// The alignments of a product's pointers, as logarithms. A bias counts, too: an epilogue may read it in vectors.
fn aligned([a, b, c]: [DevicePtr; 3], bias: Option<DevicePtr>) -> [u32; 4] {
    [a, b, c, bias.unwrap_or(c)].map(|p| (p.0 | ALIGNED).trailing_zeros())
}

impl Context {
    /// The single product `g`, with a ReLU behind it where the library's passes on what is not a number: whether it did. Where not,
    /// the ReLU is still to be done.
    ///
    /// Nothing says what the library's epilogue makes of such a value, and it may be another thing for each of its algorithms. One
    /// that makes 0 of it would hide that a run diverges. So at its first use the product is done once with a factor that is not a
    /// number; while a graph is recorded, which cannot wait for that, the library does the product alone.
    pub fn gemm_relu(
        &self,
        g: &Gemm,
        a: DevicePtr,
        b: DevicePtr,
        c: DevicePtr,
        bias: Option<DevicePtr>,
    ) -> Result<bool> {
        let (blas, with) = (self.blas()?, Gemm { relu: true, ..*g });
        let key = (with, aligned([a, b, c], bias));
        let known = blas.passing().get(&key).copied();
        let fused = match known {
            Some(passes) => passes,
            None if g.accumulate || g.m * g.n * g.k == 0 || self.is_capturing() => false,
            None => {
                let passes = match blas.multiply(&with, f32::NAN, a, b, c, bias) {
                    Ok(()) => {
                        let mut last = [0; 4];
                        let last = &mut last[..g.c.size()];
                        let at = ((g.m - 1) * g.ldc + g.n - 1) * g.c.size();
                        self.download(c.offset(at), last)?;
                        g.c.is_nan(last)
                    }
                    Err(Error::NoAlgorithm { .. }) => false,
                    Err(e) => return Err(e),
                };
                blas.passing().insert(key, passes);
                if !passes {
                    let of = format!("in {:?}", g.c).to_lowercase();
                    self.note_fallback(format!(
                        "a ReLU behind products {of}: the library's hides what is not a number"
                    ));
                }
                passes
            }
        };
        blas.gemm(&Gemm { relu: fused, ..*g }, 1.0, a, b, c, bias)?;
        Ok(fused)
    }
}

impl fmt::Debug for Blas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blas")
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        if self.core.primary.enter().is_ok() && self.handle != 0 {
            // SAFETY: made in `open`; its plans are gone.
            unsafe { (self.table.cublasLtDestroy)(self.handle) };
        }
        self.core.memory.give(self.workspace, Vec::new());
    }
}

impl Plan {
    fn set(&self, attribute: c_int, value: &[u8]) -> Result<()> {
        let at = value.as_ptr().cast::<c_void>();
        // SAFETY: a live handle; the library reads as many bytes as are there.
        let status =
            unsafe { (self.table.cublasLtMatmulDescSetAttribute)(self.product, attribute, at, value.len()) };
        self.table.check(status, "cublasLtMatmulDescSetAttribute")
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        for layout in self.layouts.into_iter().filter(|l| *l != 0) {
            // SAFETY: made by this library, not used after.
            unsafe { (self.table.cublasLtMatrixLayoutDestroy)(layout) };
        }
        if self.product != 0 {
            // SAFETY: as above.
            unsafe { (self.table.cublasLtMatmulDescDestroy)(self.product) };
        }
    }
}

/// What an algorithm may use; destroyed on drop.
struct Preference {
    table: &'static BlasLt,
    raw: Handle,
}

impl Preference {
    fn set(&self, attribute: c_int, value: &[u8]) -> Result<()> {
        let at = value.as_ptr().cast::<c_void>();
        // SAFETY: a live handle; the library reads as many bytes as are there.
        let status = unsafe {
            (self.table.cublasLtMatmulPreferenceSetAttribute)(self.raw, attribute, at, value.len())
        };
        self.table.check(status, "cublasLtMatmulPreferenceSetAttribute")
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        if self.raw != 0 {
            // SAFETY: made by this library, not used after.
            unsafe { (self.table.cublasLtMatmulPreferenceDestroy)(self.raw) };
        }
    }
}
