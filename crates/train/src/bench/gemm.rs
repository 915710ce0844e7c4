//! Matrix products, on the CPU and by the GPU's library.

use std::time::{Duration, Instant};

use phalanx_host::rng::Key;
use phalanx_host::{Cpu, Isa, Mat, MatMut, gemm as product};
use phalanx_tensor::DType;
use serde::Serialize;

use super::device::{Timed, tiled};
use super::noise;
use crate::Result;
use crate::config::Precision;
use crate::machine::DeviceChoice;
use crate::report::quantile;

/// What `bench gemm` is asked to do: `C[m,n] = A[m,k] · B[k,n]`.
#[derive(Debug, Clone)]
pub struct GemmRequest {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Where to compute.
    pub device: DeviceChoice,
    /// The type of all three, and how numbers are multiplied.
    pub precision: Precision,
    /// Compute threads of the CPU.
    pub threads: usize,
    /// The instruction set's name.
    pub isa: String,
}

/// What `bench gemm` measured.
#[derive(Debug, Clone, Serialize)]
pub struct GemmReport {
    /// Rows, columns, length of the sums.
    pub shape: [usize; 3],
    /// What it is computed on: `cpu` or `cuda`.
    pub device: String,
    /// What that is called.
    pub device_name: String,
    /// The type of the matrices.
    pub precision: Precision,
    /// Compute threads.
    pub threads: usize,
    /// The instruction set.
    pub isa: &'static str,
    /// Median time.
    pub seconds_p50: f64,
    /// 2 m n k by time, in 10⁹ a second.
    pub gflops: f64,
}

/// Measures a product, on random numbers.
pub fn gemm(request: &GemmRequest) -> Result<GemmReport> {
    let isa = Isa::choose(&request.isa)?;
    let (device, device_name, seconds_p50) = if request.device.name == "cpu" {
        // On the CPU there is single precision alone; the machine's own message says so.
        Timed::machine(request.device.clone(), isa, request.threads, request.precision)?;
        ("cpu".to_owned(), "cpu".to_owned(), on_cpu(request, isa)?)
    } else {
        let timed = Timed::open(request.device.clone(), isa, request.threads, request.precision)?;
        ("cuda".to_owned(), timed.name(), on_gpu(request, &timed)?)
    };
    let flop = 2.0 * request.m as f64 * request.n as f64 * request.k as f64;
    Ok(GemmReport {
        shape: [request.m, request.n, request.k],
        device,
        device_name,
        precision: request.precision,
        threads: request.threads,
        isa: isa.name(),
        seconds_p50,
        gflops: flop / seconds_p50 / 1e9,
    })
}

fn on_cpu(request: &GemmRequest, isa: Isa) -> Result<f64> {
    let (m, n, k) = (request.m, request.n, request.k);
    let cpu = Cpu::new(isa, request.threads)?;
    let mut stream = Key::new(1).stream();
    let (a, b) = (noise(&mut stream, m * k), noise(&mut stream, k * n));
    let mut c = vec![0.0f32; m * n];
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < 5 || begun.elapsed() < Duration::from_secs(1) {
        let since = Instant::now();
        let (a, b) = (Mat::row_major(&a, m, k)?, Mat::row_major(&b, k, n)?);
        product(&cpu, a, b, MatMut::row_major(&mut c, m, n)?, false)?;
        times.push(since.elapsed().as_secs_f64());
    }
    Ok(quantile(&mut times[1..], 0.5))
}

/// By the op that layers use, some products between two marks, so that marks and launches do not count.
fn on_gpu(request: &GemmRequest, timed: &Timed) -> Result<f64> {
    let dtype = request.precision.activations().unwrap_or(DType::F32);
    let a = tiled(&timed.device, dtype, [request.m, request.k])?;
    let b = tiled(&timed.device, dtype, [request.k, request.n])?;
    let once = || a.matmul(&b).map(drop).map_err(Into::into);
    let about = timed.seconds(3, 1, once)?;
    timed.seconds(10, ((5e-3 / about) as usize).clamp(1, 200), once)
}
