//! Times the matrix products and convolutions of one CPU rank on the shapes that training runs.
//!
//!     cargo run --release -p phalanx-host --example kernels [threads] [isa] [part of a name]
//!
//! Prints `name  milliseconds  GFLOP/s  fraction of the core's peak` (medians); the peak is measured first, with
//! multiply-adds on registers alone. `bench/peers/kernels.py` times PyTorch on the same shapes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use phalanx_host::simd::{Kernel, Real, Simd};
use phalanx_host::{
    ConvShape, Cpu, Isa, Mat, MatMut, conv_forward, conv_input_gradient, conv_weight_gradient, gemm,
};

/// Name, m, n, k and layout of C[m,n] = A[m,k] B[k,n]; `nt`: B is stored as [n,k], `tn`: A as [k,m].
const GEMM: [(&str, usize, usize, usize, &str); 12] = [
    ("gemm 512", 512, 512, 512, "nn"),
    ("gemm 1024", 1024, 1024, 1024, "nn"),
    ("gemm 2048", 2048, 2048, 2048, "nn"),
    ("mlp forward 1", 128, 512, 784, "nt"),
    ("mlp weight gradient 1", 512, 784, 128, "tn"),
    ("mlp input gradient 1", 128, 784, 512, "nn"),
    ("mlp forward 2", 128, 10, 512, "nt"),
    ("mlp weight gradient 2", 10, 512, 128, "tn"),
    ("mlp input gradient 2", 128, 512, 10, "nn"),
    ("lenet forward fc1", 128, 120, 400, "nt"),
    ("lenet weight gradient fc1", 120, 400, 128, "tn"),
    ("vector 784-512", 1, 512, 784, "nt"),
];

/// Name, batch, height and width, channels in and out, kernel, stride, padding, groups.
const CONV: [(&str, [usize; 8]); 26] = [
    ("lenet conv1", [128, 28, 1, 6, 5, 1, 2, 1]),
    ("lenet conv2", [128, 14, 6, 16, 5, 1, 0, 1]),
    ("3x3 64-64 56", [8, 56, 64, 64, 3, 1, 1, 1]),
    ("3x3 128-128 28", [8, 28, 128, 128, 3, 1, 1, 1]),
    ("3x3 256-256 14", [8, 14, 256, 256, 3, 1, 1, 1]),
    ("3x3 512-512 7", [8, 7, 512, 512, 3, 1, 1, 1]),
    ("3x3 128-32 28", [8, 28, 128, 32, 3, 1, 1, 1]),
    ("3x3 128-32 7", [8, 7, 128, 32, 3, 1, 1, 1]),
    ("3x3/2 128-256 28", [8, 28, 128, 256, 3, 2, 1, 1]),
    ("3x3/2 128-128 56", [8, 56, 128, 128, 3, 2, 1, 1]),
    ("3x3/2 3-32 224", [4, 224, 3, 32, 3, 2, 1, 1]),
    ("1x1 256-64 56", [8, 56, 256, 64, 1, 1, 0, 1]),
    ("1x1 64-256 56", [8, 56, 64, 256, 1, 1, 0, 1]),
    ("1x1 1024-256 14", [8, 14, 1024, 256, 1, 1, 0, 1]),
    ("1x1 2048-512 7", [8, 7, 2048, 512, 1, 1, 0, 1]),
    ("1x1 512-128 14", [8, 14, 512, 128, 1, 1, 0, 1]),
    ("1x1/2 256-512 56", [8, 56, 256, 512, 1, 2, 0, 1]),
    ("5x5 64-192 27", [8, 27, 64, 192, 5, 1, 2, 1]),
    ("7x7/2 3-64 224", [4, 224, 3, 64, 7, 2, 3, 1]),
    ("11x11/4 3-64 224", [8, 224, 3, 64, 11, 4, 2, 1]),
    ("3x3 depthwise 144 56", [8, 56, 144, 144, 3, 1, 1, 144]),
    ("3x3/2 depthwise 144 56", [8, 56, 144, 144, 3, 2, 1, 144]),
    ("3x3 depthwise 960 7", [8, 7, 960, 960, 3, 1, 1, 960]),
    ("5x5 depthwise 120 28", [8, 28, 120, 120, 5, 1, 2, 120]),
    ("3x3 32 groups 128-128 56", [4, 56, 128, 128, 3, 1, 1, 32]),
    ("5x5 2 groups 96-256 27", [8, 27, 96, 256, 5, 1, 2, 2]),
];

/// Multiply-adds on sixteen registers: the floor under every kernel.
struct Peak(usize);

impl Kernel<f32> for Peak {
    type Out = (f64, f32);
    #[inline(always)]
    fn run<V: Simd<f32>>(self) -> Self::Out {
        let n = (V::REGISTERS / 2).min(16);
        let (x, y) = (V::splat(black_box(0.999)), V::splat(black_box(0.001)));
        let mut acc = [V::splat(0.5); 16];
        for _ in 0..self.0 {
            for a in acc.iter_mut().take(n) {
                *a = a.mul_add(x, y);
            }
        }
        let sum = acc.into_iter().fold(V::splat(0.0), V::add).sum();
        ((self.0 * n * V::LANES * 2) as f64, sum)
    }
}

/// The rate in GFLOP/s of `rounds` rounds of the register loop.
fn peak(isa: Isa, rounds: usize) -> f64 {
    let t = Instant::now();
    let (flops, sum) = f32::dispatch(isa, Peak(rounds));
    black_box(sum);
    flops / t.elapsed().as_secs_f64() / 1e9
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// The median time of enough runs in seconds and the median peak in GFLOP/s, after a warm-up. The clock
/// of a shared machine wanders, so a bit of the register loop runs between any two runs.
fn measure(isa: Isa, mut run: impl FnMut()) -> (f64, f64) {
    run();
    run();
    let (begin, mut times, mut peaks) = (Instant::now(), Vec::new(), Vec::new());
    while times.len() < 5 || (begin.elapsed() < Duration::from_millis(400) && times.len() < 2000) {
        let t = Instant::now();
        run();
        times.push(t.elapsed().as_secs_f64());
        peaks.push(peak(isa, 10_000));
    }
    (median(times), median(peaks))
}

fn main() -> phalanx_host::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads = args.first().and_then(|a| a.parse().ok()).unwrap_or(1);
    let isa = Isa::choose(args.get(1).map_or("auto", String::as_str))?;
    let only = args.get(2).map_or("", String::as_str);
    let cpu = Cpu::new(isa, threads)?;
    let mut state = 1u32;
    let mut random = |n: usize| -> Vec<f32> {
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    };
    println!("{isa}, {threads} threads; one core's peak {:.1} GFLOP/s", peak(isa, 10_000_000));
    let line = |name: &str, flops: usize, run: &mut dyn FnMut()| {
        let (s, peak) = measure(isa, run);
        let rate = flops as f64 / s / 1e9;
        println!("{name:<44}{:>10.4} ms{rate:>9.1} GFLOP/s{:>7.2}", s * 1e3, rate / (peak * threads as f64));
    };

    for (name, m, n, k, layout) in GEMM {
        if !name.contains(only) {
            continue;
        }
        let (a, b, mut c) = (random(m * k), random(k * n), vec![0.0; m * n]);
        line(name, 2 * m * n * k, &mut || {
            let mut product = || {
                let a =
                    if layout == "tn" { Mat::row_major(&a, k, m)?.t() } else { Mat::row_major(&a, m, k)? };
                let b =
                    if layout == "nt" { Mat::row_major(&b, n, k)?.t() } else { Mat::row_major(&b, k, n)? };
                gemm(&cpu, a, b, MatMut::row_major(&mut c, m, n)?, false)
            };
            if let Err(e) = product() {
                println!("{e}");
            }
        });
    }
    for (name, [batch, size, cin, cout, kernel, stride, padding, groups]) in CONV {
        if !name.contains(only) {
            continue;
        }
        let shape = ConvShape::images([batch, size, size, cin], cout, [kernel, kernel])
            .with_stride([1, stride, stride])
            .with_padding([[0, 0], [padding; 2], [padding; 2]])
            .with_groups(groups);
        let (mut x, mut w, bias) = (random(shape.in_len()), random(shape.weight_len()), random(cout));
        let mut y = random(shape.out_len()?);
        let flops = 2 * y.len() * kernel * kernel * cin / groups;
        let report = |what: &str, run: &mut dyn FnMut() -> phalanx_host::Result<()>| {
            line(&format!("{name} {what}"), flops, &mut || {
                if let Err(e) = run() {
                    println!("{e}");
                }
            });
        };
        report("forward", &mut || conv_forward(&cpu, &shape, &x, &w, Some(&bias), &mut y, false));
        report("weight gradient", &mut || conv_weight_gradient(&cpu, &shape, &x, &y, &mut w, false));
        report("input gradient", &mut || conv_input_gradient(&cpu, &shape, &w, &y, &mut x, false));
    }
    Ok(())
}
