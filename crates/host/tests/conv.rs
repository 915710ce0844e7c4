//! Convolutions against plain sums in double precision: every instruction set, odd sizes, poisoned
//! outputs, and the same bits on any number of threads.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use phalanx_host::simd::Real;
use phalanx_host::{ConvShape, Cpu, Isa, conv_forward, conv_input_gradient, conv_weight_gradient};
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
    let out = s.out_size().unwrap();
    let grid = |[d, h, w]: [usize; 3]| {
        (0..d).flat_map(move |a| (0..h).flat_map(move |b| (0..w).map(move |c| [a, b, c])))
    };
    let at = |[d, h, w]: [usize; 3], size: [usize; 3]| (d * size[1] + h) * size[2] + w;
    let (share, out_share) = (s.in_c / s.groups, s.out_c / s.groups);
    for (o, k) in grid(out).flat_map(|o| grid(s.kernel).map(move |k| (o, k))) {
        let i = [0, 1, 2].map(|a| (o[a] * s.stride[a] + k[a] * s.dilation[a]).wrapping_sub(s.padding[a][0]));
        if (0..3).any(|a| i[a] >= s.size[a]) {
            continue;
        }
        for n in 0..s.batch {
            let (y, x) = (
                (n * out.iter().product::<usize>() + at(o, out)) * s.out_c,
                (n * s.size.iter().product::<usize>() + at(i, s.size)) * s.in_c,
            );
            for (to, from) in (0..s.out_c).flat_map(|o| (0..share).map(move |c| (o, c))) {
                let w = (to * s.kernel.iter().product::<usize>() + at(k, s.kernel)) * share + from;
                f(y + to, x + to / out_share * share + from, w);
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
    let (w0, x0, y0) = (start(5, wn), start(6, xn), start(7, yn));

    let results: Vec<_> = [1, 2, 3]
        .map(|threads| {
            let cpu = Cpu::new(isa, threads).unwrap();
            let (mut y, mut dw, mut dx) = (y0.clone(), w0.clone(), x0.clone());
            conv_forward(&cpu, s, &x, &w, b.as_deref(), &mut y, accumulate).unwrap();
            conv_weight_gradient(&cpu, s, &x, &dy, &mut dw, accumulate).unwrap();
            conv_input_gradient(&cpu, s, &w, &dy, &mut dx, accumulate).unwrap();
            assert_eq!(cpu.pool.stats().live, 0, "all workspace went back");
            [y, dw, dx]
        })
        .into();
    let bits = |r: &[Vec<T>; 3]| r.each_ref().map(|v| bytemuck::cast_slice::<T, u8>(v).to_vec());
    prop_assert!(bits(&results[0]) == bits(&results[1]), "two threads differ from one");
    prop_assert!(bits(&results[0]) == bits(&results[2]), "three threads differ from one");

    let [y, dw, dx] = &results[0];
    let (mut ys, mut ws, mut xs) = (
        Sums::of(if accumulate { &y0 } else { &[] }, yn),
        Sums::of(if accumulate { &w0 } else { &[] }, wn),
        Sums::of(if accumulate { &x0 } else { &[] }, xn),
    );
    for (i, &b) in b.iter().flat_map(|b| b.iter().cycle().take(yn).enumerate()) {
        ys.add(i, b, T::ONE);
    }
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

/// Channels of input and output, and groups that divide them.
fn channels() -> impl Strategy<Value = [usize; 3]> {
    let any = || prop_oneof![2 => Just(1usize), 4 => 1..9usize, 1 => 9..40usize, 1 => Just(16usize), 1 => Just(32usize)];
    prop_oneof![
        4 => (any(), any()).prop_map(|(i, o)| [i, o, 1]),
        2 => (1..5usize, 1..5usize, 2..6usize).prop_map(|(i, o, g)| [i * g, o * g, g]),
        2 => (2..40usize).prop_map(|c| [c, c, c]),
        1 => (2..9usize, 2..4usize).prop_map(|(c, m)| [c, c * m, c]),
    ]
}

/// One axis: size, kernel, stride, padding before and after, dilation.
fn axis() -> impl Strategy<Value = [usize; 6]> {
    let size = prop_oneof![1 => Just(1usize), 6 => 1..14usize, 1 => 14..40usize];
    let kernel = prop_oneof![6 => 1..8usize, 1 => 8..12usize];
    let dilation = prop_oneof![4 => Just(1usize), 1 => 2..4usize];
    (size, kernel, 1..5usize, 0..6usize, 0..6usize, dilation).prop_map(|(n, k, s, b, a, d)| {
        // Mostly, the kernel fits.
        [n.max(((k - 1) * d + 1).saturating_sub(b + a)), k, s, b, a, d]
    })
}

fn shape(batch: usize, [d, h, w]: [[usize; 6]; 3], [i, o, groups]: [usize; 3]) -> ConvShape {
    let of = |k: usize| [d[k], h[k], w[k]];
    let [before, after] = [of(3), of(4)];
    ConvShape::new([batch, d[0], h[0], w[0], i], o, of(1))
        .with_stride(of(2))
        .with_padding([0, 1, 2].map(|a| [before[a], after[a]]))
        .with_dilation(of(5))
        .with_groups(groups)
}

const FLAT: [usize; 6] = [1, 1, 1, 0, 0, 1];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_images(
        (batch, axes, channels) in (0..3usize, [axis(), axis()], channels()),
        fewer in prop::option::of(1..4usize),
        accumulate: bool,
        bias: bool,
    ) {
        let mut s = shape(batch, [FLAT, axes[0], axes[1]], channels);
        if let (Some(fewer), Ok(out)) = (fewer, s.out_size()) {
            s = s.with_outputs(out.map(|n| n.saturating_sub(fewer).max(1)));
        }
        prop_assume!(s.out_size().is_ok());
        check_all(&s, accumulate, bias)?;
    }

    #[test]
    fn any_volumes(
        (batch, axes, channels) in (1..3usize, [axis(), axis(), axis()], channels()),
        accumulate: bool,
        bias: bool,
    ) {
        // Small ones: the reference takes its time.
        let axes = axes.map(|[n, k, s, b, a, d]| [n.min(7), k.min(4), s, b.min(2), a.min(2), d]);
        let s = shape(batch, axes, channels.map(|c| c.min(8)));
        prop_assume!(s.out_size().is_ok());
        check_all(&s, accumulate, bias)?;
    }
}

/// The paths that few random shapes take: many images in one piece of work, pieces of one image, one
/// channel with large batches, kernels of one pixel, padding past the kernel, large groups, weights larger than any
/// cache.
#[test]
fn chosen_shapes() {
    for (input, out, kernel, stride, padding, groups) in [
        ([40, 7, 7, 20], 33, [3, 3], 1, [1, 1], 1),
        ([1, 60, 50, 17], 20, [3, 5], 1, [1, 2], 1),
        ([33, 28, 28, 1], 6, [5, 5], 1, [2, 2], 1),
        ([20, 14, 14, 6], 16, [5, 5], 1, [0, 0], 1),
        ([3, 9, 9, 40], 24, [1, 1], 1, [0, 0], 1),
        ([3, 9, 9, 40], 24, [1, 1], 2, [0, 0], 1),
        ([2, 4, 4, 16], 8, [1, 1], 1, [2, 2], 1),
        ([2, 70, 66, 3], 18, [7, 7], 2, [3, 3], 1),
        ([1, 300, 200, 4], 5, [3, 3], 1, [1, 1], 1),
        ([2, 1, 1, 5], 7, [1, 1], 3, [0, 0], 1),
        ([2, 30, 31, 64], 66, [3, 3], 2, [1, 1], 1),
        ([2, 12, 13, 80], 96, [3, 3], 2, [1, 1], 2),
        ([1, 80, 70, 70], 70, [3, 3], 1, [1, 1], 70),
        ([3, 2, 2, 3200], 40, [3, 3], 1, [1, 1], 1),
        ([2, 3, 4, 3200], 40, [3, 3], 1, [0, 0], 1),
        ([2, 5, 5, 0], 3, [3, 3], 1, [1, 1], 1),
        ([2, 5, 5, 3], 0, [3, 3], 1, [1, 1], 1),
        ([0, 5, 5, 3], 2, [3, 3], 1, [1, 1], 1),
    ] {
        let s = ConvShape::images(input, out, kernel).with_stride([1, stride, stride]).with_groups(groups);
        let s = s.with_padding([[0, 0], [padding[0]; 2], [padding[1]; 2]]);
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
    let s = ConvShape::images([1, 4, 4, 1], 2, [3, 3]);
    let (x, w, mut y) = ([0.0f32; 16], [0.0f32; 18], [0.0f32; 8]);
    assert!(conv_forward(&cpu, &s, &x, &w, None, &mut y, false).is_ok());
    for (error, name) in [
        (conv_forward(&cpu, &s, &x[1..], &w, None, &mut y, false), "input has 15"),
        (conv_forward(&cpu, &s, &x, &w[1..], None, &mut y, false), "weight has 17"),
        (conv_forward(&cpu, &s, &x, &w, Some(&[0.0]), &mut y, false), "bias has 1"),
        (conv_forward(&cpu, &s, &x, &w, None, &mut y[1..], false), "output has 7"),
    ] {
        let text = error.unwrap_err().to_string();
        assert!(text.contains(name), "{text}");
    }
    let far = s.with_padding([[0, 0], [usize::MAX / 2; 2], [0, 0]]).with_stride([1, usize::MAX, 1]);
    assert!(conv_forward(&cpu, &far, &x, &w, None, &mut y, false).is_err());
}

#[test]
fn workspace_comes_from_the_pool() {
    let cpu = Cpu::new(Isa::detect(), 2).unwrap();
    let s = ConvShape::images([32, 16, 16, 20], 24, [3, 3]).with_padding([[0, 0], [1, 1], [1, 1]]);
    let (mut x, mut w, mut y) =
        (numbers::<f32>(1, s.in_len()), numbers::<f32>(2, s.weight_len()), vec![0.0; s.out_len().unwrap()]);
    let mut run = || {
        conv_forward(&cpu, &s, &x, &w, None, &mut y, false).unwrap();
        conv_weight_gradient(&cpu, &s, &x, &y, &mut w, false).unwrap();
        conv_input_gradient(&cpu, &s, &w, &y, &mut x, false).unwrap();
        cpu.pool.stats()
    };
    let first = run();
    assert!(first.cached > 0);
    assert_eq!(run(), first);
}
