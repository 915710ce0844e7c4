//! What the ops' CUDA kernels share on the host's side: types by name, launches over elements, operands walked together.

pub(crate) use phalanx_gpu::THREADS;
use phalanx_gpu::{Args, Context, Grid, Source};

use super::walk::Walk;
use crate::{DType, Error, Layout, Result, View};

/// A source of kernels: the `kernel.cu` of the folder that names it.
macro_rules! source {
    ($name:literal) => {
        source!($name, "kernel.cu")
    };
    ($name:literal, $file:literal) => {
        phalanx_gpu::Source { name: $name, text: include_str!($file) }
    };
}
pub(crate) use source;

/// The number by which kernels know a type (`prelude.cuh`).
pub(crate) fn code(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => 0,
        DType::F64 => 1,
        DType::U8 => 2,
        DType::I64 => 3,
        DType::F16 => 4,
        DType::BF16 => 5,
    }
}

/// The ending of the names of kernels for a float type; f64 is for the CPU.
pub(crate) fn suffix(op: &'static str, dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        got => Err(Error::DTypes { op, operand: 0, got, want: "f32, bf16 or f16 on a GPU".into() }),
    }
}

/// A grid for `items` items of work, one a thread at a time, that is no larger than keeps the GPU busy.
pub(crate) fn grid(gpu: &Context, items: usize) -> Grid {
    // Sixteen blocks are all that a multiprocessor of 2048 threads and more can hold twice over.
    Grid::strided(items, THREADS as usize, 16 * gpu.info().sms)
}

/// Launches a kernel over `items` items; none at all when there are none.
pub(crate) fn launch(
    gpu: &Context,
    source: &'static Source,
    kernel: &str,
    items: usize,
    args: Args,
) -> Result<()> {
    match items {
        0 => Ok(()),
        _ => Ok(gpu.launch(source, kernel, grid(gpu, items), args)?),
    }
}

/// Layouts of one shape as a kernel's `Walk`.
pub(crate) fn walk<const N: usize>(layouts: [&Layout; N]) -> [i64; 64] {
    Walk::new(layouts).cuda()
}

/// Checks that a gradient's or operand's type is the one that a kernel is about to take for granted.
pub(crate) fn want_type(op: &'static str, view: &View, operand: usize, want: DType) -> Result<()> {
    match view.dtype == want {
        true => Ok(()),
        false => Err(Error::DTypes { op, operand, got: view.dtype, want: want.to_string() }),
    }
}
