//! One source for every instruction set.
//!
//! A kernel is written once over [`Simd`] and run through [`Real::dispatch`], which enters a function
//! compiled for the chosen [`Isa`]; everything below it is inlined there. Every method and every
//! [`Kernel::run`] must therefore be `#[inline(always)]`. Double precision has one implementation
//! (plain arrays, no fused multiply-add), so its bits do not depend on the set.

use std::fmt;

use crate::{Element, Isa};

/// A vector of `LANES` numbers.
pub trait Simd<E: Copy>: Copy + Send + Sync + 'static {
    /// Numbers in one vector.
    const LANES: usize;

    /// All lanes `x`.
    fn splat(x: E) -> Self;
    /// Reads `LANES` numbers.
    ///
    /// # Safety
    /// `p` must be valid for reading `LANES` numbers; it need not be aligned.
    unsafe fn load(p: *const E) -> Self;
    /// Writes `LANES` numbers.
    ///
    /// # Safety
    /// `p` must be valid for writing `LANES` numbers; it need not be aligned.
    unsafe fn store(self, p: *mut E);
    /// Reads `n` numbers (at most `LANES`); the other lanes are zero.
    ///
    /// # Safety
    /// `p` must be valid for reading `n` numbers, and `n <= LANES`.
    unsafe fn load_first(p: *const E, n: usize) -> Self;
    /// Writes the first `n` lanes (at most `LANES`).
    ///
    /// # Safety
    /// `p` must be valid for writing `n` numbers, and `n <= LANES`.
    unsafe fn store_first(self, p: *mut E, n: usize);

    /// `self + b`
    fn add(self, b: Self) -> Self;
    /// `self - b`
    fn sub(self, b: Self) -> Self;
    /// `self * b`
    fn mul(self, b: Self) -> Self;
    /// `self / b`
    fn div(self, b: Self) -> Self;
    /// `self * b + c`, fused where the set has it.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger of each lane; `b` where either is not a number.
    fn max(self, b: Self) -> Self;
    /// The smaller of each lane; `b` where either is not a number.
    fn min(self, b: Self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// To the nearest whole number, ties to even; for magnitudes below 2²².
    fn round(self) -> Self;
    /// `yes` where `self > b`, else `no` (`no` where either is not a number).
    fn if_gt(self, b: Self, yes: Self, no: Self) -> Self;
    /// `2^self` for whole lanes in the range of the type's normal exponents.
    fn exp2_whole(self) -> Self;
    /// Splits positive normal lanes into a mantissa in [√½, √2) and a whole exponent.
    fn frexp_sqrt(self) -> (Self, Self);
    /// The sum of all lanes, by halves (the order is fixed for a given `LANES`).
    fn sum(self) -> E;
}

/// Work that is compiled once per instruction set.
pub trait Kernel<E: Copy> {
    /// What it returns.
    type Out;
    /// The work; must be `#[inline(always)]`.
    fn run<V: Simd<E>>(self) -> Self::Out;
}

/// A type that kernels compute in: `f32` or `f64`.
pub trait Real:
    Element
    + PartialOrd
    + Default
    + fmt::Display
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// −∞
    const NEG_INFINITY: Self;
    /// Rounds a double.
    fn from_f64(x: f64) -> Self;
    /// Widens to a double.
    fn to_f64(self) -> f64;
    /// Runs `kernel` compiled for `isa`; a set that this processor lacks falls back to the portable one.
    fn dispatch<K: Kernel<Self>>(isa: Isa, kernel: K) -> K::Out;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline]
    fn dispatch<K: Kernel<f32>>(isa: Isa, kernel: K) -> K::Out {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512<K: Kernel<f32>>(kernel: K) -> K::Out {
                kernel.run::<x86::F32x16>()
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2<K: Kernel<f32>>(kernel: K) -> K::Out {
                kernel.run::<x86::F32x8>()
            }
            if isa.available() {
                match isa {
                    // SAFETY: the set was just found to be available.
                    Isa::Avx512 => return unsafe { avx512(kernel) },
                    // SAFETY: the set was just found to be available.
                    Isa::Avx2 => return unsafe { avx2(kernel) },
                    Isa::Portable => {}
                }
            }
        }
        let _ = isa;
        kernel.run::<Lanes<f32, 8>>()
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    fn from_f64(x: f64) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        self
    }
    #[inline]
    fn dispatch<K: Kernel<f64>>(_: Isa, kernel: K) -> K::Out {
        kernel.run::<Lanes<f64, 8>>()
    }
}

/// The portable vector: an array that the compiler maps to what the target has.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub struct Lanes<E, const N: usize>([E; N]);

macro_rules! lanes {
    ($e:ty, $bits:ty, $mant:expr, $bias:expr) => {
        impl<const N: usize> Simd<$e> for Lanes<$e, N> {
            const LANES: usize = N;
            #[inline(always)]
            fn splat(x: $e) -> Self {
                Lanes([x; N])
            }
            #[inline(always)]
            unsafe fn load(p: *const $e) -> Self {
                // SAFETY: the caller vouches for N readable numbers.
                Lanes(unsafe { p.cast::<[$e; N]>().read_unaligned() })
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $e) {
                // SAFETY: the caller vouches for N writable numbers.
                unsafe { p.cast::<[$e; N]>().write_unaligned(self.0) }
            }
            #[inline(always)]
            unsafe fn load_first(p: *const $e, n: usize) -> Self {
                // SAFETY: the caller vouches for n readable numbers and n <= N.
                Lanes(std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 }))
            }
            #[inline(always)]
            unsafe fn store_first(self, p: *mut $e, n: usize) {
                for (i, &x) in self.0.iter().enumerate().take(n) {
                    // SAFETY: the caller vouches for n writable numbers.
                    unsafe { *p.add(i) = x };
                }
            }
            #[inline(always)]
            fn add(self, b: Self) -> Self {
                Lanes(std::array::from_fn(|i| self.0[i] + b.0[i]))
            }
            #[inline(always)]
            fn sub(self, b: Self) -> Self {
                Lanes(std::array::from_fn(|i| self.0[i] - b.0[i]))
            }
            #[inline(always)]
            fn mul(self, b: Self) -> Self {
                Lanes(std::array::from_fn(|i| self.0[i] * b.0[i]))
            }
            #[inline(always)]
            fn div(self, b: Self) -> Self {
                Lanes(std::array::from_fn(|i| self.0[i] / b.0[i]))
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                Lanes(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
            }
            #[inline(always)]
            fn max(self, b: Self) -> Self {
                Lanes(std::array::from_fn(|i| if self.0[i] > b.0[i] { self.0[i] } else { b.0[i] }))
            }
            #[inline(always)]
            fn min(self, b: Self) -> Self {
                Lanes(std::array::from_fn(|i| if self.0[i] < b.0[i] { self.0[i] } else { b.0[i] }))
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                Lanes(self.0.map(<$e>::sqrt))
            }
            #[inline(always)]
            fn round(self) -> Self {
                // Adding and taking away 1.5 · 2^mantissa leaves the nearest whole number.
                const MAGIC: $e = 1.5 * (1u64 << $mant) as $e;
                Lanes(self.0.map(|x| (x + MAGIC) - MAGIC))
            }
            #[inline(always)]
            fn if_gt(self, b: Self, yes: Self, no: Self) -> Self {
                Lanes(std::array::from_fn(|i| if self.0[i] > b.0[i] { yes.0[i] } else { no.0[i] }))
            }
            #[inline(always)]
            fn exp2_whole(self) -> Self {
                Lanes(self.0.map(|x| <$e>::from_bits(((x as i64 + $bias) as $bits) << $mant)))
            }
            #[inline(always)]
            fn frexp_sqrt(self) -> (Self, Self) {
                const SQRT_HALF: $bits = (std::f64::consts::FRAC_1_SQRT_2 as $e).to_bits();
                let whole = |x: $e| (x.to_bits().wrapping_sub(SQRT_HALF) >> $mant) as $bits;
                // The shift is arithmetic in spirit: sign-extend by hand.
                let signed = |x: $e| {
                    let shift = <$bits>::BITS - 1 - $mant;
                    ((whole(x) as i64) << (63 - shift)) >> (63 - shift)
                };
                (
                    Lanes(self.0.map(|x| {
                        <$e>::from_bits(x.to_bits().wrapping_sub((signed(x) as $bits) << $mant))
                    })),
                    Lanes(self.0.map(|x| signed(x) as $e)),
                )
            }
            #[inline(always)]
            fn sum(self) -> $e {
                let mut a = self.0;
                let mut half = N / 2;
                while half > 0 {
                    for i in 0..half {
                        a[i] += a[i + half];
                    }
                    half /= 2;
                }
                a[0]
            }
        }
    };
}
lanes!(f32, u32, 23, 127);
lanes!(f64, u64, 52, 1023);

#[cfg(target_arch = "x86_64")]
mod x86 {
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
    }

    #[inline(always)]
    fn mask16(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }

    impl Simd<f32> for F32x16 {
        const LANES: usize = 16;
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Probe<'a> {
        x: &'a [f32],
    }

    impl Kernel<f32> for Probe<'_> {
        type Out = Vec<f32>;
        #[inline(always)]
        fn run<V: Simd<f32>>(self) -> Vec<f32> {
            let mut out = Vec::new();
            for c in self.x.chunks(V::LANES) {
                // SAFETY: `load_first` reads as many as the chunk has.
                let v = unsafe { V::load_first(c.as_ptr(), c.len()) };
                let (m, e) = v.frexp_sqrt();
                let r = m.mul(e.exp2_whole());
                let two = V::splat(2.0);
                let big = v.if_gt(two, V::splat(1.0), V::splat(0.0));
                for w in [r, m, e, v.sqrt(), v.round(), big, v.min(two), v.max(two), v.div(two), v.sub(two)] {
                    let mut buf = vec![-7.0; c.len() + 1];
                    // SAFETY: `store_first` writes as many as the chunk has.
                    unsafe { w.store_first(buf.as_mut_ptr(), c.len()) };
                    assert_eq!(buf[c.len()], -7.0, "a lane past the end was written");
                    buf.pop();
                    out.push(buf);
                }
            }
            // Column by column, so that sets of different widths can be compared.
            let per = 10;
            (0..per)
                .flat_map(|k| out.iter().skip(k).step_by(per).flatten().copied().collect::<Vec<_>>())
                .collect()
        }
    }

    #[test]
    fn all_sets_agree_on_exact_operations() {
        let x: Vec<f32> = (1..=37).map(|i| (i as f32 * 0.37).powi(3) + 1e-6).collect();
        let want = f32::dispatch(Isa::Portable, Probe { x: &x });
        assert_eq!(&want[..37], &x[..], "frexp and exp2 undo each other");
        assert!(want[37..74].iter().all(|m| (0.707..1.4143).contains(m)), "{:?}", &want[37..74]);
        for isa in [Isa::Avx2, Isa::Avx512].into_iter().filter(|i| i.available()) {
            assert_eq!(f32::dispatch(isa, Probe { x: &x }), want, "{isa}");
        }
    }

    struct Sum<'a>(&'a [f32]);
    impl Kernel<f32> for Sum<'_> {
        type Out = f32;
        #[inline(always)]
        fn run<V: Simd<f32>>(self) -> f32 {
            let mut acc = V::splat(0.0);
            for c in self.0.chunks(V::LANES) {
                // SAFETY: `load_first` reads as many as the chunk has.
                acc = unsafe { V::load_first(c.as_ptr(), c.len()) }.mul_add(V::splat(2.0), acc);
            }
            acc.sum()
        }
    }

    #[test]
    fn sums_of_whole_numbers_are_exact_on_every_set() {
        let x: Vec<f32> = (0..100).map(|i| i as f32).collect();
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
            assert_eq!(f32::dispatch(isa, Sum(&x)), 9900.0, "{isa}");
        }
    }
}
