//! What the ops' CUDA kernels share on the host's side: types by name, launches over elements, operands walked together.

pub(crate) mod faults;
mod teams;

pub(crate) use phalanx_gpu::THREADS;
use phalanx_gpu::{Args, Buffer, Context, DevicePtr, Grid, Source, Type};
use phalanx_host::rng::Key;

pub(crate) use self::teams::{NONE, Teams, blank, optional};
use super::walk::Walk;
use crate::storage::{Memory, MemoryMut};
use crate::{DType, Error, Layout, Result, Shape, View, ViewMut};

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

/// All sources of the op table's kernels.
pub fn sources() -> [&'static Source; 20] {
    [
        &super::attention::cuda::SOURCE,
        &super::boxes::cuda::SOURCE,
        &super::conv::cuda::SOURCE,
        &super::conv::direct::SOURCE,
        &super::dropout::cuda::SOURCE,
        &super::elementwise::cuda::SOURCE,
        &super::images::cuda::SOURCE,
        &super::index::cuda::SOURCE,
        &super::loss::cuda::SOURCE,
        &super::loss::point_cuda::SOURCE,
        &super::matmul::cuda::SOURCE,
        &super::norm::row_cuda::SOURCE,
        &super::norm::sweeps::SOURCE,
        &super::pool::cuda::FRACTIONAL,
        &super::pool::cuda::SOURCE,
        &super::recurrent::cuda::SOURCE,
        &super::reduce::along_cuda::SOURCE,
        &super::reduce::cuda::SOURCE,
        &super::response::cuda::SOURCE,
        &super::shape::cuda::SOURCE,
    ]
}

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

/// The same type as the libraries name it.
pub(crate) fn library_type(op: &'static str, dtype: DType) -> Result<Type> {
    match dtype {
        DType::F32 => Ok(Type::F32),
        DType::F16 => Ok(Type::F16),
        DType::BF16 => Ok(Type::Bf16),
        got => Err(Error::DTypes { op, operand: 0, got, want: "f32, bf16 or f16 on a GPU".into() }),
    }
}

/// Memory for the time of an op's kernels, which holds a dense tensor. Work on it may still be waiting when it is dropped:
/// who gets the memory next writes it after that.
pub(crate) struct Scratch {
    memory: Buffer,
    dtype: DType,
    shape: Shape,
}

impl Scratch {
    /// Its contents are arbitrary.
    pub(crate) fn new(gpu: &Context, dtype: DType, shape: Shape) -> Result<Self> {
        Ok(Scratch { memory: gpu.alloc(shape.numel() * dtype.size())?, dtype, shape })
    }

    pub(crate) fn ptr(&self) -> DevicePtr {
        self.memory.ptr()
    }

    pub(crate) fn view(&self) -> View<'_> {
        let len = self.shape.numel() * self.dtype.size();
        View::of(self.dtype, Layout::contiguous(self.shape), Memory::Device(self.memory.ptr(), len))
    }

    pub(crate) fn view_mut(&mut self) -> ViewMut<'_> {
        let len = self.shape.numel() * self.dtype.size();
        ViewMut::of(self.dtype, self.shape, MemoryMut::Device(self.memory.ptr(), len))
    }
}

/// An operand as a kernel wants it: the view that came in, or a copy.
pub(crate) enum Operand<'a> {
    As(View<'a>),
    Copy(Scratch),
}

impl Operand<'_> {
    pub(crate) fn view(&self) -> View<'_> {
        match self {
            Operand::As(view) => *view,
            Operand::Copy(copy) => copy.view(),
        }
    }

    pub(crate) fn ptr(&self) -> Result<DevicePtr> {
        self.view().ptr()
    }
}

/// The view with elements of `dtype`: itself, or a dense copy.
pub(crate) fn typed<'a>(gpu: &Context, view: &View<'a>, dtype: DType) -> Result<Operand<'a>> {
    if view.dtype == dtype {
        return Ok(Operand::As(*view));
    }
    let from = dense(gpu, view)?;
    let mut to = Scratch::new(gpu, dtype, view.shape())?;
    super::shape::cuda::convert(gpu, &from.view(), &mut to.view_mut())?;
    Ok(Operand::Copy(to))
}

/// The view row-major without gaps: itself, or a copy.
pub(crate) fn dense<'a>(gpu: &Context, view: &View<'a>) -> Result<Operand<'a>> {
    if view.layout.is_contiguous() {
        return Ok(Operand::As(*view));
    }
    let mut to = Scratch::new(gpu, view.dtype, view.shape())?;
    super::shape::cuda::copy(gpu, view, &mut to.view_mut(), false)?;
    Ok(Operand::Copy(to))
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

/// The elements that a thread reads at once, 16 bytes, where all addresses and the length of a row allow it; else 1.
pub(crate) fn wide(dtype: DType, row: usize, all: &[DevicePtr]) -> usize {
    let pack = 16 / dtype.size();
    if row.is_multiple_of(pack) && all.iter().all(|p| p.0 % 16 == 0) { pack } else { 1 }
}

/// A kernel's `Divisor` (`prelude.cuh`): 2^p / d rounded up for p = 31 + ⌈log2 d⌉ is exact for numbers below 2^31.
pub(crate) fn divisor(d: usize) -> [u32; 3] {
    let d = d.clamp(1, 1 << 31) as u64;
    let bits = u64::BITS - (d - 1).leading_zeros();
    [d as u32, (1u64 << (31 + bits)).div_ceil(d) as u32, bits.saturating_sub(1)]
}

/// Samples of `per` items each, in runs of fewer than 2^31 items: the first of each run and their number.
pub(crate) fn runs(op: &'static str, shape: Shape, samples: usize, per: usize) -> Result<Vec<[usize; 2]>> {
    let most = ((1usize << 31) - 1).checked_div(per).unwrap_or(samples);
    if most == 0 && samples > 0 {
        return Err(Error::Invalid {
            op,
            shape,
            why: "a sample is too large for a GPU's kernels".to_owned(),
        });
    }
    Ok((0..samples).step_by(most.max(1)).map(|first| [first, most.min(samples - first)]).collect())
}

/// A number of blocks, or the shape that would need more than a launch takes.
pub(crate) fn blocks(op: &'static str, shape: Shape, n: usize) -> Result<u32> {
    let why = || format!("{n} blocks of threads are more than a GPU takes");
    u32::try_from(n).ok().filter(|&n| n < 1 << 31).ok_or_else(|| Error::Invalid { op, shape, why: why() })
}

/// What [`phalanx_gpu::Varying::what`] says of random streams' keys.
pub const RANDOM: &str = "random";

/// A kernel's arguments for a random stream: where its key is, and the key.
pub(crate) fn random(gpu: &Context, args: Args, key: Key) -> Result<Args> {
    Ok(args.varying(gpu, RANDOM, &key.to_u64().to_ne_bytes())?)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_divisor_divides_all_that_a_kernel_counts(d in 1u64..1 << 31, n in 0u64..1 << 31, near in -2i64..3) {
            let [of, factor, shift] = divisor(d as usize);
            prop_assert_eq!(u64::from(of), d);
            // Multiples and their neighbours are where rounding would show.
            for n in [n, (n / d * d).saturating_add_signed(near), (1 << 31) - 1] {
                let n = n.min((1 << 31) - 1);
                let quotient = if d == 1 { n } else { (n * u64::from(factor)) >> 32 >> shift };
                prop_assert_eq!(quotient, n / d, "{} / {}", n, d);
            }
        }

        #[test]
        fn runs_hold_every_sample_once_and_none_too_many(samples in 0usize..5000, per in 0usize..1 << 31) {
            let mut next = 0;
            for [first, count] in runs("test", [samples].into(), samples, per).unwrap() {
                prop_assert!(first == next && count >= 1 && count * per < 1 << 31);
                next += count;
            }
            prop_assert_eq!(next, samples);
        }

        #[test]
        fn wide_reads_are_aligned_and_within_a_row(row in 0usize..1 << 20, at in prop::collection::vec(0u64..1 << 40, 1..4)) {
            let all: Vec<DevicePtr> = at.iter().map(|&p| DevicePtr(p)).collect();
            for dtype in [DType::F32, DType::BF16, DType::F64, DType::U8] {
                let pack = wide(dtype, row, &all);
                prop_assert!(row.is_multiple_of(pack) && pack * dtype.size() <= 16);
                prop_assert!(pack == 1 || at.iter().all(|p| p.is_multiple_of(16)));
            }
        }
    }

    #[test]
    fn a_sample_that_no_kernel_can_count_is_refused() {
        assert!(runs("test", [1].into(), 1, (1 << 31) - 1).is_ok());
        assert!(runs("test", [1].into(), 1, 1 << 31).is_err());
        assert!(runs("test", [0].into(), 0, 1 << 31).unwrap().is_empty());
    }

    #[test]
    fn a_divisor_divides() {
        let odd = [1usize, 2, 3, 5, 7, 8, 56, 112, 641, 4096, 65_537, (1 << 31) - 1, 1 << 30];
        for d in odd {
            let [_, factor, shift] = divisor(d);
            for n in odd.iter().flat_map(|&n| [n - 1, n, d - 1, d, d + 1, n * d, (n * d).wrapping_sub(1)]) {
                let n = n as u64 & ((1 << 31) - 1);
                let quotient = if d == 1 { n } else { (n * u64::from(factor)) >> 32 >> shift };
                assert_eq!(quotient, n / d as u64, "{n} / {d}");
            }
        }
    }

    #[test]
    fn every_file_of_kernels_is_among_the_sources() {
        let ops = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
        let mut files = Vec::new();
        for family in std::fs::read_dir(ops).unwrap().flatten().filter(|f| f.path().is_dir()) {
            let names = std::fs::read_dir(family.path()).unwrap().flatten().map(|f| f.path());
            files.extend(names.filter(|f| f.extension().is_some_and(|e| e == "cu")));
        }
        for file in &files {
            let text = std::fs::read_to_string(file).unwrap();
            assert!(sources().iter().any(|s| s.text == text), "{}", file.display());
        }
        assert_eq!(files.len(), sources().len());
    }
}
