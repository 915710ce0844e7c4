//! Normal random numbers, each a function of a key and its place.

use std::f64::consts::TAU;

use phalanx_host::rng::Key;
use phalanx_host::simd::Real;
use phalanx_host::{Cpu, DType};

use crate::op::Exec;
use crate::{Device, Result, Shape, Tensor, ops};

/// Elements that one task makes: whole pairs.
const PIECE: usize = 16 * 1024;

/// Numbers 2b and 2b + 1 are made of block b (Box and Muller, 1958), in double precision.
fn fill<E: Real>(cpu: &Cpu, key: Key, out: &mut [E]) {
    let unit = |low: u32, high: u32| {
        let word = u64::from(low) | u64::from(high) << 32;
        (word >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
    };
    cpu.workers.chunks(out, PIECE, |i, out| {
        for (b, pair) in out.chunks_mut(2).enumerate() {
            let [a, b, c, d] = key.block((i * PIECE / 2 + b) as u64);
            let radius = (-2.0 * (1.0 - unit(a, b)).ln()).sqrt();
            let (sin, cos) = (TAU * unit(c, d)).sin_cos();
            pair.iter_mut().zip([cos, sin]).for_each(|(x, y)| *x = E::from_f64(radius * y));
        }
    });
}

impl Tensor {
    /// Normal numbers of mean 0 and variance 1, of type f32 or f64, outside the graph. They depend on `key` and
    /// their place alone.
    pub fn normal(dtype: DType, shape: impl Into<Shape>, key: Key, device: &Device) -> Result<Tensor> {
        let cx = Exec::new(device);
        cx.make(dtype, shape.into(), |mut out| {
            ops::real!("normal", dtype, T => match device {
                Device::Cpu(cpu) => {
                    fill::<T>(cpu, key, out.slice()?);
                    Ok(())
                }
                Device::Cuda(gpu) => super::cuda::normal(gpu, key, &out),
            })
        })
    }
}
