//! What the ops' CUDA kernels share on the host's side: types by name, launches over elements, operands walked together.

pub(crate) mod faults;

pub(crate) use phalanx_gpu::THREADS;
use phalanx_gpu::{Args, Context, DevicePtr, Grid, Source};

use super::walk::Walk;
use crate::{DType, Error, Layout, Result, Shape, View};

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

/// Threads that share the rows of a matrix (`Team` in the prelude). Which, the rows' length and type say, never the device:
/// the order of a row's sum follows from it.
pub(crate) struct Teams {
    k: i32,
    size: i32,
    /// Packs of 16 bytes, or elements where rows are short and odd.
    wide: bool,
    grid: Grid,
}

impl Teams {
    /// For `rows` rows of `k` elements of `dtype`.
    pub(crate) fn new(op: &'static str, shape: Shape, rows: usize, k: usize, dtype: DType) -> Result<Self> {
        /// Units of a thread, which it keeps in registers.
        const HELD: usize = 4;
        let refuse = || Error::Invalid { op, shape, why: format!("rows of {k} are longer than kernels can count") };
        let count = i32::try_from(k).ok().filter(|&k| k <= 1 << 30).ok_or_else(refuse)?;
        let pack = 16 / dtype.size();
        let wide = k.is_multiple_of(pack) || k > 128;
        let each = k.div_ceil(if wide { pack } else { 1 }).div_ceil(HELD).max(1);
        let (size, threads) = match each {
            ..=32 => (each.next_power_of_two(), 128),
            _ => (each.next_multiple_of(32).min(512), each.next_multiple_of(32).min(512)),
        };
        let grid = Grid::linear(rows, threads / size).threads(threads as u32);
        Ok(Teams { k: count, size: size as i32, wide, grid })
    }

    /// Launches the kernel `NAME_type_one` or `NAME_type_wide`.
    pub(crate) fn launch(
        &self,
        gpu: &Context,
        source: &'static Source,
        (name, suffix): (&str, &str),
        args: Args,
    ) -> Result<()> {
        let width = if self.wide { "wide" } else { "one" };
        Ok(gpu.launch(source, &format!("{name}_{suffix}_{width}"), self.grid, args)?)
    }

    /// Adds the rows, their length and the size of a team, which kernels take in this order.
    pub(crate) fn args(&self, args: Args, rows: usize) -> Args {
        args.i64(rows as i64).i32(self.k).i32(self.size)
    }
}

/// A null pointer, for an operand that is not there.
pub(crate) const NONE: DevicePtr = DevicePtr(0);

/// An operand that may not be there, as two arguments: its address and type.
pub(crate) fn optional(args: Args, view: Option<&View>) -> Result<Args> {
    Ok(match view {
        Some(v) => args.ptr(v.ptr()?).i32(code(v.dtype)),
        None => args.ptr(NONE).i32(0),
    })
}
