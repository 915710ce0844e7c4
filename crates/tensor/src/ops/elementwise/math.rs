//! Elementary functions on vectors.
//!
//! Single precision uses polynomials after the Cephes library (S. L. Moshier), within 2 ulp over the
//! whole range, so that results depend on nothing but the instruction set; double precision goes
//! through the standard library.

use phalanx_host::simd::{Real, Simd};

/// Elementary functions of a compute type.
pub(crate) trait Math: Real {
    /// e^x; not a number stays one.
    fn exp<V: Simd<Self>>(x: V) -> V;
    /// Natural logarithm: −∞ at 0, not a number below.
    fn log<V: Simd<Self>>(x: V) -> V;
    /// Hyperbolic tangent.
    fn tanh<V: Simd<Self>>(x: V) -> V;
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub(crate) fn sigmoid<E: Math, V: Simd<E>>(x: V) -> V {
    let one = V::splat(E::ONE);
    one.div(one.add(E::exp(V::splat(E::ZERO).sub(x))))
}

#[inline(always)]
fn poly<V: Simd<f32>>(x: V, coefficients: &[f32]) -> V {
    coefficients.iter().skip(1).fold(V::splat(coefficients[0]), |acc, &c| acc.mul_add(x, V::splat(c)))
}

impl Math for f32 {
    #[inline(always)]
    fn exp<V: Simd<f32>>(x: V) -> V {
        const HIGH: f32 = 88.722_84;
        const LOW: f32 = -87.336_55;
        // Written so that the second operand, which is what a comparison with NaN gives, is x.
        let c = V::splat(LOW).max(V::splat(HIGH).min(x));
        let n = c.mul(V::splat(std::f32::consts::LOG2_E)).round();
        let r = n.mul_add(V::splat(-0.693_359_4), c);
        let r = n.mul_add(V::splat(2.121_944_4e-4), r);
        let p = poly(r, &[1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
        let y = p.mul_add(r.mul(r), r.add(V::splat(1.0)));
        // 2^128 does not exist: scale in two halves.
        let half = n.mul(V::splat(0.5)).round();
        let y = y.mul(half.exp2_whole()).mul(n.sub(half).exp2_whole());
        let y = V::splat(LOW).if_gt(x, V::splat(0.0), y);
        x.if_gt(V::splat(HIGH), V::splat(f32::INFINITY), y)
    }

    #[inline(always)]
    fn log<V: Simd<f32>>(x: V) -> V {
        // Subnormals are scaled into the normal range first.
        let tiny = V::splat(f32::MIN_POSITIVE);
        let scaled = tiny.if_gt(x, x.mul(V::splat(8_388_608.0)), x);
        let shift = tiny.if_gt(x, V::splat(23.0), V::splat(0.0));
        let (m, e) = scaled.frexp_sqrt();
        let (m, e) = (m.sub(V::splat(1.0)), e.sub(shift));
        let z = m.mul(m);
        let p = poly(
            m,
            &[
                7.037_683_6e-2,
                -1.151_461e-1,
                1.167_699_9e-1,
                -1.242_014_1e-1,
                1.424_932_3e-1,
                -1.666_805_8e-1,
                2.000_071_5e-1,
                -2.499_999_4e-1,
                3.333_333e-1,
            ],
        );
        let y = p.mul(m).mul(z);
        let y = e.mul_add(V::splat(-2.121_944_4e-4), y);
        let y = z.mul_add(V::splat(-0.5), y);
        let y = e.mul_add(V::splat(0.693_359_4), m.add(y));
        let zero = V::splat(0.0);
        // Positive: y, or x itself at infinity; zero: −∞; below or not a number: not a number.
        let y = x.if_gt(V::splat(f32::MAX), x, y);
        let not_positive = zero.if_gt(x, V::splat(f32::NAN), x.sub(x).add(V::splat(f32::NEG_INFINITY)));
        x.if_gt(zero, y, not_positive)
    }

    #[inline(always)]
    fn tanh<V: Simd<f32>>(x: V) -> V {
        let zero = V::splat(0.0);
        let size = zero.sub(x).max(x);
        let one = V::splat(1.0);
        // Not a number reaches `x` through the polynomial below.
        let e = <f32 as Math>::exp(size.add(size));
        let large = one.sub(V::splat(2.0).div(e.add(one)));
        let large = zero.if_gt(x, zero.sub(large), large);
        let z = x.mul(x);
        let p = poly(z, &[-5.704_988_7e-3, 2.063_909e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1]);
        let small = p.mul(z).mul_add(x, x);
        size.if_gt(V::splat(0.625), large, small)
    }
}

/// Applies a scalar function to the lanes of a vector of doubles.
#[inline(always)]
fn lanes<V: Simd<f64>>(x: V, f: impl Fn(f64) -> f64) -> V {
    const MOST: usize = 16;
    const { assert!(V::LANES <= MOST) };
    let mut a = [0.0; MOST];
    // SAFETY: the array has room for `LANES` numbers, as was just asserted.
    unsafe { x.store(a.as_mut_ptr()) };
    a[..V::LANES].iter_mut().for_each(|v| *v = f(*v));
    // SAFETY: as above.
    unsafe { V::load(a.as_ptr()) }
}

impl Math for f64 {
    #[inline(always)]
    fn exp<V: Simd<f64>>(x: V) -> V {
        lanes(x, f64::exp)
    }
    #[inline(always)]
    fn log<V: Simd<f64>>(x: V) -> V {
        lanes(x, f64::ln)
    }
    #[inline(always)]
    fn tanh<V: Simd<f64>>(x: V) -> V {
        lanes(x, f64::tanh)
    }
}

#[cfg(test)]
mod tests {
    use phalanx_host::Isa;
    use phalanx_host::simd::Kernel;

    use super::*;

    #[derive(Clone, Copy)]
    enum Which {
        Exp,
        Log,
        Tanh,
        Sigmoid,
    }

    struct Apply<'a>(Which, &'a [f32], &'a mut [f32]);

    impl Kernel<f32> for Apply<'_> {
        type Out = ();
        #[inline(always)]
        fn run<V: Simd<f32>>(self) {
            for (x, y) in self.1.chunks(V::LANES).zip(self.2.chunks_mut(V::LANES)) {
                // SAFETY: reads as many as the chunk has.
                let v = unsafe { V::load_first(x.as_ptr(), x.len()) };
                let r = match self.0 {
                    Which::Exp => <f32 as Math>::exp(v),
                    Which::Log => <f32 as Math>::log(v),
                    Which::Tanh => <f32 as Math>::tanh(v),
                    Which::Sigmoid => sigmoid::<f32, V>(v),
                };
                // SAFETY: writes as many as the chunk has.
                unsafe { r.store_first(y.as_mut_ptr(), y.len()) };
            }
        }
    }

    fn worst(isa: Isa, which: Which, x: &[f32], exact: impl Fn(f64) -> f64) -> f64 {
        let mut y = vec![0.0; x.len()];
        f32::dispatch(isa, Apply(which, x, &mut y));
        let mut worst = 0.0f64;
        for (&x, &y) in x.iter().zip(&y) {
            let want = exact(f64::from(x));
            let rounded = want as f32;
            if y.to_bits() == rounded.to_bits() || (y.is_nan() && want.is_nan()) {
                continue;
            }
            // Results below the normal range are flushed to zero.
            if want.abs() < f64::from(f32::MIN_POSITIVE) && y.abs() <= f32::MIN_POSITIVE {
                continue;
            }
            let ulp = f64::from(f32::from_bits(rounded.abs().to_bits() + 1) - rounded.abs());
            worst = worst.max((f64::from(y) - want).abs() / ulp);
        }
        worst
    }

    #[test]
    fn within_a_few_units_in_the_last_place_on_every_set() {
        let mut x: Vec<f32> = (-40_000..40_000).map(|i| i as f32 * 0.002_3).collect();
        x.extend([0.0, -0.0, 1e-30, -1e-30, 1e-42, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
        x.extend([88.7, 88.8, -87.3, -87.4, 0.5, 0.75, 0.625]);
        let positive: Vec<f32> = x.iter().map(|v| v.exp()).chain(x.iter().copied()).collect();
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|i| i.available()) {
            let checks = [
                (worst(isa, Which::Exp, &x, f64::exp), 2.0),
                (worst(isa, Which::Log, &positive, f64::ln), 2.0),
                (worst(isa, Which::Tanh, &x, f64::tanh), 3.0),
                (worst(isa, Which::Sigmoid, &x, |v| 1.0 / (1.0 + (-v).exp())), 4.0),
            ];
            for (i, (ulps, most)) in checks.into_iter().enumerate() {
                assert!(ulps <= most, "function {i} on {isa}: {ulps} ulp");
            }
        }
    }
}
