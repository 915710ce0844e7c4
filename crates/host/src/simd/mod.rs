//! One source for every instruction set.
//!
//! A kernel is written once over [`Simd`] and run through [`Real::dispatch`], which enters a function
//! compiled for the chosen [`Isa`]; everything below it is inlined there. Every method and every
//! [`Kernel::run`] must therefore be `#[inline(always)]`. Double precision has one implementation
//! (plain arrays, no fused multiply-add), so its bits do not depend on the set.

use std::fmt;

use crate::{Element, Isa};

mod lanes;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use lanes::Lanes;

/// A vector of `LANES` numbers.
pub trait Simd<E: Copy>: Copy + Send + Sync + 'static {
    /// Numbers in one vector, a power of two.
    const LANES: usize;
    /// Vectors of this type that the processor's registers hold at once: how large a register tile
    /// may be.
    const REGISTERS: usize;

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
    /// Interleaves the lanes: `a0 b0 a1 b1 …`, cut into its first and its second half.
    fn zip(self, b: Self) -> (Self, Self);
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
    /// The entry to kernels of type `K` compiled for `isa`, for a loop that runs many; a set that this
    /// processor lacks falls back to the portable one.
    fn select<K: Kernel<Self>>(isa: Isa) -> fn(K) -> K::Out;
    /// Runs one `kernel` compiled for `isa`, as [`Real::select`].
    #[inline]
    fn dispatch<K: Kernel<Self>>(isa: Isa, kernel: K) -> K::Out {
        Self::select::<K>(isa)(kernel)
    }
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
    fn select<K: Kernel<f32>>(isa: Isa) -> fn(K) -> K::Out {
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
                    // SAFETY: the set was just found to be available, and stays so.
                    Isa::Avx512 => return |kernel| unsafe { avx512(kernel) },
                    // SAFETY: the set was just found to be available, and stays so.
                    Isa::Avx2 => return |kernel| unsafe { avx2(kernel) },
                    Isa::Portable => {}
                }
            }
        }
        let _ = isa;
        |kernel| kernel.run::<Lanes<f32, 8>>()
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
    fn select<K: Kernel<f64>>(_: Isa) -> fn(K) -> K::Out {
        |kernel| kernel.run::<Lanes<f64, 8>>()
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
