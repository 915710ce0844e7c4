//! Batch and layer norm on a GPU as training in half precision uses them: activations in halves, parameters single. Needs a GPU or its stand-in.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap too")]

use phalanx_host::{Cpu, Isa};
use phalanx_tensor::{DType, Device, Fuse, Gradients, Tensor};

/// Numbers about `mean`, the same for the same seed.
fn numbers(n: usize, seed: u64, mean: f64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 24) - 0.5
    };
    (0..n).map(|_| (mean + next() + next() + next()) as f32).collect()
}

struct Case {
    shape: [usize; 2],
    relu: bool,
    residual: bool,
}

/// Output, gradients of x, gamma, beta and the residual, mean, variance. The gradient of x is added to another one.
fn run(device: &Device, half: DType, wide: DType, case: &Case) -> Vec<Vec<f64>> {
    let [rows, cols] = case.shape;
    let make = |shape: &[usize], seed, mean| {
        let n = shape.iter().product();
        let t = Tensor::from_slice(&numbers(n, seed, mean), shape, device).unwrap();
        t.to(half).unwrap().to(wide).unwrap()
    };
    let single = |seed, mean| Tensor::from_slice(&numbers(cols, seed, mean), [cols], device).unwrap().leaf();
    let x = make(&case.shape, 1, 0.3).leaf();
    let (gamma, beta) = (single(2, 1.0), single(3, 0.1));
    let residual = case.residual.then(|| make(&[rows, cols], 4, 0.0).leaf());
    let fuse = Fuse { residual: residual.as_ref(), relu: case.relu };
    let out = x.batch_norm_train_with(&gamma, &beta, 1e-5, fuse).unwrap();
    let mut all = Gradients::default();
    out.y.add(&x).unwrap().backward_from(make(&case.shape, 5, 0.05), &mut all).unwrap();
    let mut found = vec![&out.y];
    found.extend([&x, &gamma, &beta].map(|t| all.get(t).unwrap()));
    found.extend(residual.as_ref().map(|t| all.get(t).unwrap()));
    found.extend([&out.mean, &out.variance]);
    let doubles = |t: &Tensor| t.detach().to(DType::F32).unwrap().to(DType::F64).unwrap().to_vec().unwrap();
    found.into_iter().map(doubles).collect()
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn batch_norm_of_halves_with_single_parameters_is_the_cpus() {
    let (gpu, cpu) = (Device::cuda(0).unwrap(), Device::cpu(Cpu::new(Isa::detect(), 1).unwrap()));
    // Packs of eight with many parts and with many strips; channel numbers of which packs do not fit.
    for shape in [[6000, 64], [100, 1032], [90, 116], [64, 45]] {
        for (half, ulp) in [(DType::F32, 1e-6f64), (DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
            for (relu, residual) in [(false, false), (true, false), (false, true), (true, true)] {
                let case = Case { shape, relu, residual };
                let want = run(&cpu, half, DType::F32, &case);
                let got = run(&gpu, half, half, &case);
                assert_eq!(got, run(&gpu, half, half, &case), "a second run gives other bits");
                let want_len = want.len();
                for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                    let scale = want.iter().fold(0.1f64, |m, v| m.max(v.abs()));
                    // Parameters' gradients and the statistics are single whatever the activations are.
                    let single = k == 2 || k == 3 || k + 2 >= want_len;
                    let tolerance = if single { 2e-4 } else { 4.0 * ulp };
                    for (i, (g, w)) in got.iter().zip(want).enumerate() {
                        let what =
                            format!("{shape:?} {half} relu {relu} residual {residual}: result {k} at {i}");
                        assert!((g - w).abs() <= tolerance * scale, "{what}: {g}, must be {w}");
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn moments_far_from_zero_are_the_exact_ones() {
    let gpu = Device::cuda(0).unwrap();
    let (rows, cols) = (5000, 64);
    // The first rows lie elsewhere, so that no sum shifted by one of them would do.
    let mut x = numbers(rows * cols, 7, 1000.0);
    x[..4 * cols].fill(0.0);
    let t = Tensor::from_slice(&x, [rows, cols], &gpu).unwrap();
    let ones = Tensor::full(1.0f32, [cols], &gpu).unwrap();
    let out = t.batch_norm_train(&ones, &ones, 1e-5).unwrap();
    let (mean, variance) = (out.mean.to_vec::<f32>().unwrap(), out.variance.to_vec::<f32>().unwrap());
    for c in 0..cols {
        let column = || (0..rows).map(|r| f64::from(x[r * cols + c]));
        let m = column().sum::<f64>() / rows as f64;
        let v = column().map(|x| (x - m) * (x - m)).sum::<f64>() / rows as f64;
        assert!((f64::from(mean[c]) - m).abs() < 2e-7 * m, "mean {} {m}", mean[c]);
        assert!((f64::from(variance[c]) - v).abs() < 1e-6 * v, "variance {} {v}", variance[c]);
    }
    let x = numbers(rows * cols, 8, 1000.0);
    let out = Tensor::from_slice(&x, [rows, cols], &gpu).unwrap();
    let variance = out.batch_norm_train(&ones, &ones, 1e-5).unwrap().variance.to_vec::<f32>().unwrap();
    for c in 0..cols {
        let column = || (0..rows).map(|r| f64::from(x[r * cols + c]));
        let m = column().sum::<f64>() / rows as f64;
        let v = column().map(|x| (x - m) * (x - m)).sum::<f64>() / rows as f64;
        assert!((f64::from(variance[c]) - v).abs() < 1e-5 * v, "variance {} {v}", variance[c]);
    }
}

/// Layer norm's output and gradients of x (added to another one), gamma and beta.
fn layer(device: &Device, half: DType, wide: DType, [rows, cols]: [usize; 2]) -> Vec<Vec<f64>> {
    let make = |seed, mean| {
        let t = Tensor::from_slice(&numbers(rows * cols, seed, mean), [rows, cols], device).unwrap();
        t.to(half).unwrap().to(wide).unwrap()
    };
    let single = |seed, mean| Tensor::from_slice(&numbers(cols, seed, mean), [cols], device).unwrap().leaf();
    let (x, gamma, beta) = (make(1, 0.3).leaf(), single(2, 1.0), single(3, 0.1));
    let y = x.layer_norm(1, Some(&gamma), Some(&beta), 1e-5).unwrap();
    let mut all = Gradients::default();
    y.add(&x).unwrap().backward_from(make(5, 0.05), &mut all).unwrap();
    let found = [&y].into_iter().chain([&x, &gamma, &beta].map(|t| all.get(t).unwrap()));
    let doubles = |t: &Tensor| t.detach().to(DType::F32).unwrap().to(DType::F64).unwrap().to_vec().unwrap();
    found.map(doubles).collect()
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn layer_norm_of_halves_with_single_parameters_is_the_cpus() {
    let (gpu, cpu) = (Device::cuda(0).unwrap(), Device::cpu(Cpu::new(Isa::detect(), 1).unwrap()));
    // The widest rows that are held, one more, less than a warp's and a thread's share, odd numbers of columns and of rows;
    // many blocks; a single row and none.
    for shape in [
        [37, 1024],
        [5, 1025],
        [67, 1023],
        [45, 1000],
        [130, 520],
        [301, 40],
        [2000, 8],
        [700, 1],
        [1, 768],
        [0, 64],
    ] {
        for (half, ulp) in [(DType::F32, 1e-6f64), (DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
            let want = layer(&cpu, half, DType::F32, shape);
            let got = layer(&gpu, half, half, shape);
            assert_eq!(got, layer(&gpu, half, half, shape), "a second run gives other bits");
            for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                let scale = want.iter().fold(0.1f64, |m, v| m.max(v.abs()));
                let tolerance = if k >= 2 { 2e-4 } else { 4.0 * ulp };
                assert_eq!(got.len(), want.len());
                for (i, (g, w)) in got.iter().zip(want).enumerate() {
                    let what = format!("{shape:?} {half}: result {k} at {i}");
                    assert!((g - w).abs() <= tolerance * scale, "{what}: {g}, must be {w}");
                }
            }
        }
    }
}
