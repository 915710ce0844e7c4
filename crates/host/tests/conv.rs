//! Convolutions against plain sums in double precision: every instruction set, odd sizes, poisoned
//! outputs, and the same bits on any number of threads.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use phalanx_host::simd::Real;
use phalanx_host::{ConvShape, Cpu, Isa, conv2d_forward, conv2d_input_gradient, conv2d_weight_gradient};
use proptest::prelude::*;

const SETS: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

fn numbers<T: Real>(seed: u64, n: usize) -> Vec<T> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            T::from_f64((state >> 40) as f64 / (1u64 << 23) as f64 - 1.0)
        })
        .collect()
}

/// Sums in double precision, with the sum of magnitudes that rounding errors are measured by.
struct Sums(Vec<(f64, f64)>);

impl Sums {
    fn of<T: Real>(start: &[T], n: usize) -> Self {
        Sums((0..n).map(|i| start.get(i).map_or((0.0, 0.0), |x| (x.to_f64(), x.to_f64().abs()))).collect())
    }

    fn add<T: Real>(&mut self, at: usize, x: T, y: T) {
        let p = x.to_f64() * y.to_f64();
        self.0[at].0 += p;
        self.0[at].1 += p.abs();
    }

    fn check<T: Real>(&self, what: &str, found: &[T], tolerance: f64) -> Result<(), TestCaseError> {
        prop_assert_eq!(found.len(), self.0.len());
        for (i, (x, (want, size))) in found.iter().zip(&self.0).enumerate() {
            let error = (x.to_f64() - want).abs();
            prop_assert!(error <= tolerance * (size + 1e-30), "{} {}: {} is not {}", what, i, x, want);
        }
        Ok(())
    }
}

/// Calls `f(y index, x index, w index)` for each product of the definition.
fn products(s: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    let (oh, ow) = (s.out_h().unwrap(), s.out_w().unwrap());
    let [kh, kw] = s.kernel;
    for n in 0..s.batch {
        for (y, x) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
            for (ky, kx) in (0..kh).flat_map(|a| (0..kw).map(move |b| (a, b))) {
                let iy = (y * s.stride[0] + ky).wrapping_sub(s.padding[0]);
                let ix = (x * s.stride[1] + kx).wrapping_sub(s.padding[1]);
                if iy >= s.in_h || ix >= s.in_w {
                    continue;
                }
                for (o, c) in (0..s.out_c).flat_map(|o| (0..s.in_c).map(move |c| (o, c))) {
                    f(
                        ((n * oh + y) * ow + x) * s.out_c + o,
                        ((n * s.in_h + iy) * s.in_w + ix) * s.in_c + c,
                        ((o * kh + ky) * kw + kx) * s.in_c + c,
                    );
                }
            }
        }
    }
}

/// Runs all three functions on 1, 2 and 3 threads; their outputs start as not-a-number, or as numbers to
/// add to where `accumulate` is set.
fn check<T: Real>(
    s: &ConvShape,
    isa: Isa,
    accumulate: bool,
    bias: bool,
    tolerance: f64,
) -> Result<(), TestCaseError> {
    let (xn, wn, yn) = (s.in_len(), s.weight_len(), s.out_len().unwrap());
    let (x, w, dy) = (numbers::<T>(1, xn), numbers::<T>(2, wn), numbers::<T>(3, yn));
    let b = bias.then(|| numbers::<T>(4, s.out_c));
    let nan = T::from_f64(f64::NAN);
    let start = |seed, n| if accumulate { numbers::<T>(seed, n) } else { vec![nan; n] };
    let (w0, x0) = (start(5, wn), start(6, xn));

    let results: Vec<_> = [1, 2, 3]
        .map(|threads| {
            let cpu = Cpu::new(isa, threads).unwrap();
            let (mut y, mut dw, mut dx) = (vec![nan; yn], w0.clone(), x0.clone());
            conv2d_forward(&cpu, s, &x, &w, b.as_deref(), &mut y).unwrap();
            conv2d_weight_gradient(&cpu, s, &x, &dy, &mut dw, accumulate).unwrap();
            conv2d_input_gradient(&cpu, s, &w, &dy, &mut dx, accumulate).unwrap();
            assert_eq!(cpu.pool.stats().live, 0, "all workspace went back");
            [y, dw, dx]
        })
        .into();
    let bits = |r: &[Vec<T>; 3]| r.each_ref().map(|v| bytemuck::cast_slice::<T, u8>(v).to_vec());
    prop_assert!(bits(&results[0]) == bits(&results[1]), "two threads differ from one");
    prop_assert!(bits(&results[0]) == bits(&results[2]), "three threads differ from one");

    let [y, dw, dx] = &results[0];
    let rows: Vec<T> = (0..yn).map(|i| b.as_ref().map_or(T::ZERO, |b| b[i % s.out_c])).collect();
    let (mut ys, mut ws, mut xs) = (
        Sums::of(&rows, yn),
        Sums::of(if accumulate { &w0 } else { &[] }, wn),
        Sums::of(if accumulate { &x0 } else { &[] }, xn),
    );
    products(s, |yi, xi, wi| {
        ys.add(yi, x[xi], w[wi]);
        ws.add(wi, x[xi], dy[yi]);
        xs.add(xi, w[wi], dy[yi]);
    });
    ys.check("y", y, tolerance)?;
    ws.check("dw", dw, tolerance)?;
    xs.check("dx", dx, tolerance)
}

fn check_all(s: &ConvShape, accumulate: bool, bias: bool) -> Result<(), TestCaseError> {
    for isa in SETS.into_iter().filter(|i| i.available()) {
        check::<f32>(s, isa, accumulate, bias, 2e-6)?;
    }
    check::<f64>(s, Isa::detect(), accumulate, bias, 1e-14)
}

fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(1usize), 4 => 1..9usize, 1 => 9..40usize, 1 => Just(16usize), 1 => Just(32usize)]
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(1usize), 6 => 1..14usize, 1 => 14..40usize]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_shape(
        (batch, h, w) in (0..3usize, size(), size()),
        (cin, cout) in (channels(), channels()),
        (kh, kw) in (1..8usize, 1..8usize),
        stride in [1..4usize, 1..4usize],
        padding in [0..4usize, 0..4usize],
        accumulate: bool,
        bias: bool,
    ) {
        let s = ConvShape::new([batch, h, w, cin], cout, [kh, kw]).with_stride(stride).with_padding(padding);
        prop_assume!(s.out_h().is_ok() && s.out_w().is_ok());
        check_all(&s, accumulate, bias)?;
    }
}

/// The paths that few random shapes take: many images in one piece of work, pieces of one image, one
/// channel with large batches, kernels of one pixel, padding past the kernel.
#[test]
fn chosen_shapes() {
    for (input, out, kernel, stride, padding) in [
        ([40, 7, 7, 20], 33, [3, 3], [1, 1], [1, 1]),
        ([1, 60, 50, 17], 20, [3, 5], [1, 1], [1, 2]),
        ([33, 28, 28, 1], 6, [5, 5], [1, 1], [2, 2]),
        ([20, 14, 14, 6], 16, [5, 5], [1, 1], [0, 0]),
        ([3, 9, 9, 40], 24, [1, 1], [1, 1], [0, 0]),
        ([3, 9, 9, 40], 24, [1, 1], [2, 2], [0, 0]),
        ([2, 4, 4, 16], 8, [1, 1], [1, 1], [2, 2]),
        ([2, 70, 66, 3], 18, [7, 7], [2, 2], [3, 3]),
        ([1, 300, 200, 4], 5, [3, 3], [1, 1], [1, 1]),
        ([2, 1, 1, 5], 7, [1, 1], [3, 3], [0, 0]),
        ([2, 5, 5, 0], 3, [3, 3], [1, 1], [1, 1]),
        ([2, 5, 5, 3], 0, [3, 3], [1, 1], [1, 1]),
        ([0, 5, 5, 3], 2, [3, 3], [1, 1], [1, 1]),
    ] {
        let s = ConvShape::new(input, out, kernel).with_stride(stride).with_padding(padding);
        for accumulate in [false, true] {
            if let Err(e) = check_all(&s, accumulate, !accumulate) {
                panic!("{s:?}: {e}");
            }
        }
    }
}

#[test]
fn operands_of_the_wrong_size_are_named() {
    let cpu = Cpu::new(Isa::detect(), 1).unwrap();
    let s = ConvShape::new([1, 4, 4, 1], 2, [3, 3]);
    let (x, w, mut y) = ([0.0f32; 16], [0.0f32; 18], [0.0f32; 8]);
    assert!(conv2d_forward(&cpu, &s, &x, &w, None, &mut y).is_ok());
    for (error, name) in [
        (conv2d_forward(&cpu, &s, &x[1..], &w, None, &mut y), "input has 15"),
        (conv2d_forward(&cpu, &s, &x, &w[1..], None, &mut y), "weight has 17"),
        (conv2d_forward(&cpu, &s, &x, &w, Some(&[0.0]), &mut y), "bias has 1"),
        (conv2d_forward(&cpu, &s, &x, &w, None, &mut y[1..]), "output has 7"),
    ] {
        let text = error.unwrap_err().to_string();
        assert!(text.contains(name), "{text}");
    }
    let far = s.with_padding([usize::MAX / 2, 0]).with_stride([usize::MAX, 1]);
    assert!(conv2d_forward(&cpu, &far, &x, &w, None, &mut y).is_err());
}

#[test]
fn workspace_comes_from_the_pool() {
    let cpu = Cpu::new(Isa::detect(), 2).unwrap();
    let s = ConvShape::new([32, 16, 16, 20], 24, [3, 3]).with_padding([1, 1]);
    let (mut x, mut w, mut y) =
        (numbers::<f32>(1, s.in_len()), numbers::<f32>(2, s.weight_len()), vec![0.0; s.out_len().unwrap()]);
    let mut run = || {
        conv2d_forward(&cpu, &s, &x, &w, None, &mut y).unwrap();
        conv2d_weight_gradient(&cpu, &s, &x, &y, &mut w, false).unwrap();
        conv2d_input_gradient(&cpu, &s, &w, &y, &mut x, false).unwrap();
        cpu.pool.stats()
    };
    let first = run();
    assert!(first.cached > 0);
    assert_eq!(run(), first);
}
