//! AVX2 and AVX-512 registers as vectors.

use std::arch::x86_64::*;

use super::Simd;

/// Eight floats in a YMM register.
#[derive(Clone, Copy)]
pub(super) struct F32x8(__m256);
/// Sixteen floats in a ZMM register.
#[derive(Clone, Copy)]
pub(super) struct F32x16(__m512);

/// The bits of √½.
const SQRT_HALF: i32 = std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32;

/// Wraps intrinsics whose only precondition is the instruction set.
macro_rules! raw {
    ($e:expr) => {
        // SAFETY: these types are made only inside functions compiled for their set, which
        // `Real::dispatch` enters after it has found the set to be available.
        unsafe { $e }
    };
}

#[inline(always)]
fn mask8(n: usize) -> __m256i {
    raw!(_mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)))
}

impl Simd<f32> for F32x8 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        raw!(F32x8(_mm256_set1_ps(x)))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for eight readable numbers.
        F32x8(unsafe { _mm256_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for eight writable numbers.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        // SAFETY: lanes from n on are not touched; the caller vouches for the others.
        F32x8(unsafe { _mm256_maskload_ps(p, mask8(n)) })
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        // SAFETY: lanes from n on are not touched; the caller vouches for the others.
        unsafe { _mm256_maskstore_ps(p, mask8(n), self.0) }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        raw!(F32x8(_mm256_add_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        raw!(F32x8(_mm256_sub_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        raw!(F32x8(_mm256_mul_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        raw!(F32x8(_mm256_div_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        raw!(F32x8(_mm256_fmadd_ps(self.0, b.0, c.0)))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        raw!(F32x8(_mm256_max_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        raw!(F32x8(_mm256_min_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        raw!(F32x8(_mm256_sqrt_ps(self.0)))
    }
    #[inline(always)]
    fn round(self) -> Self {
        raw!(F32x8(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)))
    }
    #[inline(always)]
    fn if_gt(self, b: Self, yes: Self, no: Self) -> Self {
        raw!(F32x8(_mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, b.0))))
    }
    #[inline(always)]
    fn exp2_whole(self) -> Self {
        raw!({
            let n = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
            F32x8(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(n)))
        })
    }
    #[inline(always)]
    fn frexp_sqrt(self) -> (Self, Self) {
        raw!({
            let bits = _mm256_castps_si256(self.0);
            let e = _mm256_srai_epi32::<23>(_mm256_sub_epi32(bits, _mm256_set1_epi32(SQRT_HALF)));
            let m = _mm256_sub_epi32(bits, _mm256_slli_epi32::<23>(e));
            (F32x8(_mm256_castsi256_ps(m)), F32x8(_mm256_cvtepi32_ps(e)))
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        raw!({
            let a = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
        })
    }
    #[inline(always)]
    fn zip(self, b: Self) -> (Self, Self) {
        raw!({
            let (low, high) = (_mm256_unpacklo_ps(self.0, b.0), _mm256_unpackhi_ps(self.0, b.0));
            (
                F32x8(_mm256_permute2f128_ps::<0x20>(low, high)),
                F32x8(_mm256_permute2f128_ps::<0x31>(low, high)),
            )
        })
    }
}

#[inline(always)]
fn mask16(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

impl Simd<f32> for F32x16 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        raw!(F32x16(_mm512_set1_ps(x)))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for sixteen readable numbers.
        F32x16(unsafe { _mm512_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for sixteen writable numbers.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        // SAFETY: lanes from n on are not touched; the caller vouches for the others.
        F32x16(unsafe { _mm512_maskz_loadu_ps(mask16(n), p) })
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        // SAFETY: lanes from n on are not touched; the caller vouches for the others.
        unsafe { _mm512_mask_storeu_ps(p, mask16(n), self.0) }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        raw!(F32x16(_mm512_add_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        raw!(F32x16(_mm512_sub_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        raw!(F32x16(_mm512_mul_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        raw!(F32x16(_mm512_div_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        raw!(F32x16(_mm512_fmadd_ps(self.0, b.0, c.0)))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        raw!(F32x16(_mm512_max_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        raw!(F32x16(_mm512_min_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        raw!(F32x16(_mm512_sqrt_ps(self.0)))
    }
    #[inline(always)]
    fn round(self) -> Self {
        raw!(F32x16(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)))
    }
    #[inline(always)]
    fn if_gt(self, b: Self, yes: Self, no: Self) -> Self {
        raw!({
            let m = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, b.0);
            F32x16(_mm512_mask_blend_ps(m, no.0, yes.0))
        })
    }
    #[inline(always)]
    fn exp2_whole(self) -> Self {
        raw!({
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            F32x16(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(n)))
        })
    }
    #[inline(always)]
    fn frexp_sqrt(self) -> (Self, Self) {
        raw!({
            let bits = _mm512_castps_si512(self.0);
            let e = _mm512_srai_epi32::<23>(_mm512_sub_epi32(bits, _mm512_set1_epi32(SQRT_HALF)));
            let m = _mm512_sub_epi32(bits, _mm512_slli_epi32::<23>(e));
            (F32x16(_mm512_castsi512_ps(m)), F32x16(_mm512_cvtepi32_ps(e)))
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        raw!({
            let low = _mm512_castps512_ps256(self.0);
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            F32x8(_mm256_add_ps(low, high)).sum()
        })
    }
    #[inline(always)]
    fn zip(self, b: Self) -> (Self, Self) {
        raw!({
            let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
            (
                F32x16(_mm512_permutex2var_ps(self.0, first, b.0)),
                F32x16(_mm512_permutex2var_ps(self.0, second, b.0)),
            )
        })
    }
}
