//! Elementary functions on vectors.
//!
//! Single precision uses polynomials after the Cephes library (S. L. Moshier), within 2 ulp over the
//! whole range, so that results depend on nothing but the instruction set; double precision goes
//! through the standard library. The error function, which that lacks, is fitted here for both: within
//! 4 ulp, in its tails too (`erfc`).

use phalanx_host::simd::{Real, Simd};

/// Elementary functions of a compute type.
pub(crate) trait Math: Real {
    /// e^x; not a number stays one.
    fn exp<V: Simd<Self>>(x: V) -> V;
    /// Natural logarithm: −∞ at 0, not a number below.
    fn log<V: Simd<Self>>(x: V) -> V;
    /// Hyperbolic tangent.
    fn tanh<V: Simd<Self>>(x: V) -> V;
    /// e^x − 1 without cancellation around 0.
    fn expm1<V: Simd<Self>>(x: V) -> V;
    /// ln(1 + x) without cancellation around 0: −∞ at −1, not a number below.
    fn log1p<V: Simd<Self>>(x: V) -> V;
    /// erf(x) / x as a polynomial in x², for |x| ≤ 1, highest power first.
    const ERF: &'static [Self];
    /// (1 + 2x) · e^(x²) · erfc(x) as a polynomial in (x − 3) / (x + 3), for x ≥ 0: the form of Shepherd
    /// and Laframboise, "Chebyshev approximation of (1 + 2x) exp(x²) erfc x", Math. Comp. 36 (1981).
    const ERFC: &'static [Self];
    /// From here on erfc is below the smallest normal number.
    const ERFC_ENDS: f64;
    /// The grain of numbers below [`Math::ERFC_ENDS`] whose squares are exact.
    const GRAIN: f64;
}

/// All lanes a constant.
#[inline(always)]
pub(crate) fn c<E: Math, V: Simd<E>>(x: f64) -> V {
    V::splat(E::from_f64(x))
}

/// |x|
#[inline(always)]
pub(crate) fn abs<E: Math, V: Simd<E>>(x: V) -> V {
    x.max(c::<E, V>(0.0).sub(x))
}

/// e^(−factor · x²) for a power of two, exact to a few ulp where a rounded square would not be.
#[inline(always)]
fn exp_minus_square<E: Math, V: Simd<E>>(x: V, factor: f64) -> V {
    // |x| = high + low with an exact high²: e^(−x²) = e^(−high²) · e^(−(|x| − high)(|x| + high)), and the second
    // exponent is so small that a few terms of the series do.
    let end = c::<E, V>(4.0 * E::ERFC_ENDS).min(abs::<E, V>(x));
    let high = end.mul(c::<E, V>(E::GRAIN)).round().mul(c::<E, V>(1.0 / E::GRAIN));
    let low = high.sub(end).mul(high.add(end)).mul(c::<E, V>(factor));
    let series = poly(low, &[1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0].map(E::from_f64));
    E::exp(high.mul(high).mul(c::<E, V>(-factor))).mul(series)
}

/// e^(−x²)
#[inline(always)]
pub(crate) fn gaussian<E: Math, V: Simd<E>>(x: V) -> V {
    exp_minus_square(x, 1.0)
}

/// e^(−x²/2)
#[inline(always)]
pub(crate) fn bell<E: Math, V: Simd<E>>(x: V) -> V {
    exp_minus_square(x, 0.5)
}

/// e^(x²) · erfc(x) for x ≥ 0.
#[inline(always)]
fn scaled_erfc<E: Math, V: Simd<E>>(x: V) -> V {
    let x = c::<E, V>(E::ERFC_ENDS).min(x);
    let three = c::<E, V>(3.0);
    let t = x.sub(three).div(x.add(three));
    poly(t, E::ERFC).div(x.add(x).add(c::<E, V>(1.0)))
}

/// The error function, 2/√π ∫₀ˣ e^(−t²) dt.
#[inline(always)]
pub(crate) fn erf<E: Math, V: Simd<E>>(x: V) -> V {
    let (zero, one) = (c::<E, V>(0.0), c::<E, V>(1.0));
    let size = abs::<E, V>(x);
    let small = x.mul(poly(x.mul(x), E::ERF));
    let large = one.sub(scaled_erfc::<E, V>(size).mul(gaussian::<E, V>(x)));
    size.if_gt(one, zero.if_gt(x, zero.sub(large), large), small)
}

/// The distribution function of the standard normal distribution, ½ erfc(−x/√2): to a few ulp in the lower
/// tail too.
#[inline(always)]
pub(crate) fn normal<E: Math, V: Simd<E>>(x: V) -> V {
    // The exponential is taken of x itself: the rounding of x/√2 would cost the tail its digits.
    let half = scaled_erfc::<E, V>(abs::<E, V>(x).mul(c::<E, V>(std::f64::consts::FRAC_1_SQRT_2)));
    let half = half.mul(bell::<E, V>(x)).mul(c::<E, V>(0.5));
    x.if_gt(c::<E, V>(0.0), c::<E, V>(1.0).sub(half), half)
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub(crate) fn sigmoid<E: Math, V: Simd<E>>(x: V) -> V {
    let one = V::splat(E::ONE);
    one.div(one.add(E::exp(V::splat(E::ZERO).sub(x))))
}

#[inline(always)]
fn poly<E: Real, V: Simd<E>>(x: V, coefficients: &[E]) -> V {
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

    #[inline(always)]
    fn expm1<V: Simd<f32>>(x: V) -> V {
        let one = V::splat(1.0);
        let large = <f32 as Math>::exp(x).sub(one);
        let p = poly(
            x,
            &[
                2.806_280_2e-6,
                2.535_851_1e-5,
                1.983_810_2e-4,
                1.388_539_7e-3,
                8.333_34e-3,
                4.166_674e-2,
                1.666_666_7e-1,
                5e-1,
            ],
        );
        let small = p.mul(x).mul_add(x, x);
        one.if_gt(abs::<f32, V>(x), small, large)
    }

    #[inline(always)]
    fn log1p<V: Simd<f32>>(x: V) -> V {
        // What the rounding of 1 + x has lost is made good (W. Kahan): log(u) · x / (u − 1).
        let (one, zero) = (V::splat(1.0), V::splat(0.0));
        let u = x.add(one);
        let d = u.sub(one);
        let y = <f32 as Math>::log(u).mul(x.div(d));
        // Where u is 1 the quotient is none; where x is infinite it is none either.
        let y = abs::<f32, V>(d).if_gt(zero, y, x);
        x.if_gt(V::splat(f32::MAX), x, y)
    }

    const ERF: &'static [f32] = &[
        7.875_875e-5,
        -8.016_864e-4,
        5.189_087_2e-3,
        -2.685_421_1e-2,
        1.128_359_5e-1,
        -3.761_262_6e-1,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    const ERFC: &'static [f32] = &[
        8.007_455e-5,
        -9.253_769e-5,
        -7.340_82e-4,
        1.875_060_3e-3,
        2.506_778_8e-3,
        -2.376_356e-2,
        6.831_32e-2,
        -1.192_752_8e-1,
        1.296_447_2e-1,
        -4.756_215_6e-2,
        -1.356_211e-1,
        1.253_008,
    ];
    const ERFC_ENDS: f64 = 9.5;
    const GRAIN: f64 = 256.0;
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
    #[inline(always)]
    fn expm1<V: Simd<f64>>(x: V) -> V {
        lanes(x, f64::exp_m1)
    }
    #[inline(always)]
    fn log1p<V: Simd<f64>>(x: V) -> V {
        lanes(x, f64::ln_1p)
    }

    const ERF: &'static [f64] = &[
        5.957_176_147_748_911e-11,
        -1.137_284_885_679_167_4e-9,
        1.465_977_527_404_743_6e-8,
        -1.635_031_270_105_469_5e-7,
        1.646_100_048_412_136_8e-6,
        -1.492_559_526_683_118_2e-5,
        1.205_533_111_164_271e-4,
        -8.548_326_980_833_79e-4,
        5.223_977_624_818_014_5e-3,
        -2.686_617_064_507_679_2e-2,
        1.128_379_167_095_487_9e-1,
        -3.761_263_890_318_375e-1,
        std::f64::consts::FRAC_2_SQRT_PI,
    ];
    const ERFC: &'static [f64] = &[
        8.864_276_778_737_717e-10,
        9.885_855_570_320_66e-10,
        -8.500_428_457_799_317e-9,
        -1.332_639_480_029_524_9e-8,
        4.180_791_681_129_317e-8,
        1.018_700_745_868_117_8e-7,
        -1.416_007_399_752_431_4e-7,
        -6.166_496_967_287_291e-7,
        3.568_384_649_111_748e-7,
        3.472_414_674_947_892e-6,
        -7.315_105_549_399_826e-7,
        -2.010_056_796_913_093_6e-5,
        4.949_485_005_743_759e-6,
        1.250_993_523_685_709e-4,
        -1.051_597_998_178_839_9e-4,
        -7.798_322_721_112_205e-4,
        1.888_690_359_156_534_8e-3,
        2.529_391_816_066_612e-3,
        -2.377_051_491_864_594_7e-2,
        6.830_802_734_397_845e-2,
        -1.192_736_634_153_07e-1,
        1.296_451_587_027_606e-1,
        -4.756_229_435_345_087e-2,
        -1.356_211_061_245_811_7e-1,
        1.253_008_058_269_729_6,
    ];
    const ERFC_ENDS: f64 = 28.0;
    const GRAIN: f64 = 1_048_576.0;
}

#[cfg(test)]
mod tests {
    use phalanx_host::Isa;
    use phalanx_host::simd::Kernel;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Which {
        Exp,
        Log,
        Tanh,
        Sigmoid,
        Expm1,
        Log1p,
        Erf,
        Gaussian,
        Normal,
    }

    struct Apply<'a, E>(Which, &'a [E], &'a mut [E]);

    impl<E: Math> Kernel<E> for Apply<'_, E> {
        type Out = ();
        #[inline(always)]
        fn run<V: Simd<E>>(self) {
            for (x, y) in self.1.chunks(V::LANES).zip(self.2.chunks_mut(V::LANES)) {
                // SAFETY: reads as many as the chunk has.
                let v = unsafe { V::load_first(x.as_ptr(), x.len()) };
                let r = match self.0 {
                    Which::Exp => E::exp(v),
                    Which::Log => E::log(v),
                    Which::Tanh => E::tanh(v),
                    Which::Sigmoid => sigmoid::<E, V>(v),
                    Which::Expm1 => E::expm1(v),
                    Which::Log1p => E::log1p(v),
                    Which::Erf => erf::<E, V>(v),
                    Which::Gaussian => gaussian::<E, V>(v),
                    Which::Normal => normal::<E, V>(v),
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
                (worst(isa, Which::Expm1, &x, f64::exp_m1), 3.0),
                (worst(isa, Which::Log1p, &positive, f64::ln_1p), 3.0),
                (worst(isa, Which::Erf, &x, |v| double(Which::Erf, v)), 2.0),
                (worst(isa, Which::Gaussian, &x, |v| double(Which::Gaussian, v)), 4.0),
                (worst(isa, Which::Normal, &x, |v| double(Which::Normal, v)), 6.0),
            ];
            println!("{isa}: {:?}", checks.map(|c| c.0));
            for (i, (ulps, most)) in checks.into_iter().enumerate() {
                assert!(ulps <= most, "function {i} on {isa}: {ulps} ulp");
            }
        }
    }

    fn double(which: Which, x: f64) -> f64 {
        let mut y = [0.0];
        f64::dispatch(Isa::Portable, Apply(which, &[x], &mut y));
        y[0]
    }

    #[test]
    fn the_error_function_has_the_digits_of_a_double() {
        // x, erf(x), Φ(−x), e^(−x²) to 17 digits, by mpmath.
        let known = [
            (0.1, 0.112_462_916_018_284_9, 0.460_172_162_722_971, 0.990_049_833_749_168),
            (0.9, 0.796_908_212_422_832, 0.184_060_125_346_759_5, 0.444_858_066_222_941_1),
            (1.1, 0.880_205_069_574_081_7, 0.135_666_060_946_382_67, 0.298_197_279_429_887_3),
            (2.5, 0.999_593_047_982_555, 0.006_209_665_325_776_135, 0.001_930_454_136_227_709_3),
            (4.0, 0.999_999_984_582_742_1, 3.167_124_183_311_992e-5, 1.125_351_747_192_591_2e-7),
            (5.5, 0.999_999_999_999_992_6, 1.898_956_246_588_772e-8, 7.287_724_095_819_692e-14),
            (12.0, 1.0, 1.776_482_112_077_679e-33, 2.894_640_311_648_3e-63),
            (26.0, 1.0, 2.476_063_315_503_389e-149, 2.611_741_761_284_055_5e-294),
            (37.0, 1.0, 5.725_571_222_524_577e-300, 0.0),
        ];
        let near = |got: f64, want: f64| (got - want).abs() <= 6.0 * f64::EPSILON * want.abs();
        for (x, erf, tail, gaussian) in known {
            for (which, x, want) in [
                (Which::Erf, x, erf),
                (Which::Erf, -x, -erf),
                (Which::Normal, -x, tail),
                (Which::Normal, x, 1.0 - tail),
                (Which::Gaussian, x, gaussian),
                (Which::Gaussian, -x, gaussian),
            ] {
                let got = double(which, x);
                assert!(near(got, want), "{which:?} at {x} is {got:e}, must be {want:e}");
            }
        }
        for (x, erf, normal) in [(f64::INFINITY, 1.0, 1.0), (f64::NEG_INFINITY, -1.0, 0.0), (0.0, 0.0, 0.5)] {
            assert!(double(Which::Erf, x) == erf && near(double(Which::Normal, x), normal), "{x}");
        }
        assert!(double(Which::Erf, f64::NAN).is_nan() && double(Which::Normal, f64::NAN).is_nan());
        assert!(double(Which::Gaussian, f64::NAN).is_nan());
    }
}
