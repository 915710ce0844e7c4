//! The portable vector.

use super::Simd;

/// The portable vector: an array that the compiler maps to what the target has.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub struct Lanes<E, const N: usize>([E; N]);

macro_rules! lanes {
    ($e:ty, $bits:ty, $mant:expr, $bias:expr) => {
        impl<const N: usize> Simd<$e> for Lanes<$e, N> {
            const LANES: usize = N;
            // Every target has at least sixteen registers of sixteen bytes.
            const REGISTERS: usize = 16 * 16 / (N * size_of::<$e>());
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
                if n == N {
                    // SAFETY: the caller vouches for n readable numbers.
                    return unsafe { Self::load(p) };
                }
                // SAFETY: the caller vouches for n readable numbers and n <= N.
                Lanes(std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 }))
            }
            #[inline(always)]
            unsafe fn store_first(self, p: *mut $e, n: usize) {
                if n == N {
                    // SAFETY: the caller vouches for n writable numbers.
                    return unsafe { self.store(p) };
                }
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
            #[inline(always)]
            fn zip(self, b: Self) -> (Self, Self) {
                let pick = |i: usize| if i % 2 == 0 { self.0[i / 2] } else { b.0[i / 2] };
                (Lanes(std::array::from_fn(pick)), Lanes(std::array::from_fn(|i| pick(i + N))))
            }
        }
    };
}
lanes!(f32, u32, 23, 127);
lanes!(f64, u64, 52, 1023);
