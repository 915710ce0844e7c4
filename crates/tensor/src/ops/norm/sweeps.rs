//! Launches of the sweeps of `kernel.cu` over matrices of channels, and how these are cut into blocks.

use phalanx_gpu::{Args, Buffer, Context, DevicePtr, Grid, Source};

use crate::ops::cuda::{code, launch, source, suffix};
use crate::ops::shape::cuda::convert;
use crate::sink::GradSink;
use crate::{DType, MemoryMut, Result, Shape, View, ViewMut};

pub(crate) static SOURCE: Source = source!("norm");

/// Threads of a block at most (`THREADS`).
const THREADS: usize = 256;
/// Packs that a block has side by side at most: half a kilobyte of a row.
const WIDEST: usize = 32;
/// Rows of a tile for each lane, of the passes over x alone and of those over more (`UNROLL`, `U`).
const ROWS_OF_X: usize = 4;
const ROWS_OF_ALL: usize = 2;
/// Blocks that sum the moments and the gradients: what an H100's or H200's 132 multiprocessors hold at a time. It is
/// the same for every GPU, as the order of the sums follows from it.
const MOMENT_BLOCKS: usize = 4 * 132;
const SUM_BLOCKS: usize = 3 * 132;
/// Channels or groups that a block finishes (`UNITS`).
const UNITS: usize = 4;
/// The largest number of blocks along y and z.
const DEEPEST: usize = 65_535;

/// Rows of channels of each sample; the samples of a batch that is normalised together are one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) samples: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Matrix {
    /// All rows of a batch together.
    pub(super) fn batch(shape: Shape) -> Self {
        Matrix { samples: 1, rows: super::rows(shape), cols: shape[shape.len() - 1] }
    }

    fn is_empty(self) -> bool {
        self.samples * self.rows * self.cols == 0
    }

    /// The numbers of a pass of `kernel.cu`, and its grid. It takes packs of as many elements as the number of channels and
    /// the addresses, or-ed in `bits`, allow.
    fn sweep(self, dtype: DType, bits: u64, rows_at_once: usize, blocks: usize) -> Sweep {
        let size = dtype.size();
        let fits =
            |pack: &usize| self.cols.is_multiple_of(*pack) && bits.is_multiple_of((pack * size) as u64);
        let pack = [16 / size, 4 / size].into_iter().find(fits).unwrap_or(1);
        let packs = (self.cols / pack).max(1);
        let strips = packs.div_ceil(WIDEST);
        let width = packs.div_ceil(strips);
        let lanes = THREADS / width;
        let tiles = self.rows.div_ceil(rows_at_once * lanes);
        let parts = blocks.div_ceil(strips * self.samples.max(1)).min(tiles).min(DEEPEST);
        Sweep { matrix: self, pack, strips, width, lanes, parts }
    }
}

/// How a matrix is cut.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    matrix: Matrix,
    pack: usize,
    strips: usize,
    width: usize,
    lanes: usize,
    parts: usize,
}

impl Sweep {
    /// `Matrix` of `kernel.cu`.
    fn cuda(&self) -> [i64; 6] {
        let m = self.matrix;
        [m.samples, m.rows, m.cols, self.width, self.lanes, self.parts].map(|n| n as i64)
    }

    fn launch(&self, gpu: &Context, name: &str, dtype: DType, args: Args) -> Result<()> {
        if self.matrix.is_empty() {
            return Ok(());
        }
        let kernel = format!("{name}_{}_{}", suffix("norm", dtype)?, self.pack);
        let blocks = [self.strips, self.parts, self.matrix.samples.min(DEEPEST)].map(|n| n as u32);
        let threads = (self.width * self.lanes) as u32;
        Ok(gpu.launch(&SOURCE, &kernel, Grid { blocks, threads, shared: 0 }, args)?)
    }

    /// Two numbers of each column of each part of each sample.
    fn room(&self, gpu: &Context) -> Result<Buffer> {
        Ok(gpu.alloc(self.matrix.samples * self.parts * 2 * self.matrix.cols * size_of::<f32>())?)
    }
}

/// An operand as its kernel takes it, with the memory of its copy if it had to be made.
#[derive(Debug)]
pub(super) struct Operand {
    pub(super) ptr: DevicePtr,
    _copy: Option<Buffer>,
}

impl Operand {
    /// No operand.
    pub(super) fn none() -> Self {
        Operand { ptr: DevicePtr(0), _copy: None }
    }

    /// A dense operand as elements of `dtype` at a multiple of `align` bytes.
    pub(super) fn of(gpu: &Context, view: &View, dtype: DType, align: u64) -> Result<Self> {
        let ptr = view.ptr()?;
        if view.dtype == dtype && ptr.0.is_multiple_of(align) {
            return Ok(Operand { ptr, _copy: None });
        }
        let bytes = view.shape().numel() * dtype.size();
        let copy = gpu.alloc(bytes)?;
        match view.dtype == dtype {
            true => gpu.copy(copy.ptr(), ptr, bytes)?,
            false => {
                let to = MemoryMut::Device(copy.ptr(), bytes);
                convert(gpu, view, &mut ViewMut::of(dtype, view.shape(), to))?;
            }
        }
        Ok(Operand { ptr: copy.ptr(), _copy: Some(copy) })
    }

    /// Numbers of the channels: f32, for packs of 16 bytes.
    pub(super) fn numbers(gpu: &Context, view: &View) -> Result<Self> {
        Operand::of(gpu, view, DType::F32, 16)
    }

    /// The same, when there are any.
    pub(super) fn perhaps(gpu: &Context, view: Option<&View>) -> Result<Self> {
        view.map_or(Ok(Operand::none()), |v| Operand::numbers(gpu, v))
    }
}

/// Addresses of the channels' numbers; null for a gamma or beta that is not given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Channels {
    pub(super) mean: DevicePtr,
    pub(super) inverse: DevicePtr,
    pub(super) gamma: DevicePtr,
    pub(super) beta: DevicePtr,
    /// Numbers from one sample's mean or deviation to the next one's.
    pub(super) step: usize,
}

impl Channels {
    /// With moments by channel of each sample, `[samples, 2, cols]`, and no gamma and beta.
    pub(super) fn spread(moments: &Buffer, cols: usize) -> Self {
        let (mean, null) = (moments.ptr(), DevicePtr(0));
        Channels { mean, inverse: mean.offset(cols * 4), gamma: null, beta: null, step: 2 * cols }
    }

    fn cuda(self) -> [u64; 5] {
        [self.mean.0, self.inverse.0, self.gamma.0, self.beta.0, self.step as u64]
    }

    fn bits(self) -> u64 {
        self.mean.0 | self.inverse.0 | self.gamma.0 | self.beta.0
    }
}

/// Where the moments of groups of channels go.
#[derive(Clone, Copy, Debug)]
pub(super) struct MomentsOut {
    pub(super) groups: usize,
    pub(super) mean: DevicePtr,
    pub(super) variance: DevicePtr,
    pub(super) inverse: DevicePtr,
    /// Moments by channel, or null.
    pub(super) spread: DevicePtr,
}

/// A grid of blocks that finish `units` channels or groups of each sample.
fn finishing(units: usize, samples: usize) -> Grid {
    let blocks = [units.div_ceil(UNITS) as u32, samples.min(DEEPEST) as u32, 1];
    Grid { blocks, threads: THREADS as u32, shared: 0 }
}

/// Mean, biased variance and 1/√(variance + eps) of groups of neighbouring channels, of each sample.
pub(super) fn moments(gpu: &Context, x: &View, m: Matrix, eps: f64, out: MomentsOut) -> Result<()> {
    if m.samples * out.groups == 0 {
        return Ok(());
    }
    let from = x.ptr()?;
    let sweep = m.sweep(x.dtype, from.0, ROWS_OF_X, MOMENT_BLOCKS);
    let parts = sweep.room(gpu)?;
    sweep.launch(gpu, "moments", x.dtype, Args::new().ptr(from).ptr(parts.ptr()).pod(sweep.cuda()))?;
    let args = Args::new().ptr(parts.ptr()).ptr(out.mean).ptr(out.variance).ptr(out.inverse).ptr(out.spread);
    let args = args.i64(out.groups as i64).f64(eps).pod(sweep.cuda());
    Ok(gpu.launch(&SOURCE, "finish_moments", finishing(out.groups, m.samples), args)?)
}

/// `inverse` = 1/√(variance + eps) of n channels.
pub(super) fn deviations(
    gpu: &Context,
    variance: DevicePtr,
    inverse: DevicePtr,
    n: usize,
    eps: f64,
) -> Result<()> {
    launch(gpu, &SOURCE, "deviations", n, Args::new().ptr(variance).ptr(inverse).i64(n as i64).f64(eps))
}

/// Moments by channel, `[samples, 2, cols]`, from those of groups.
pub(super) fn spread_groups(
    gpu: &Context,
    [mean, inverse]: [DevicePtr; 2],
    m: Matrix,
    groups: usize,
) -> Result<Buffer> {
    let spread = gpu.alloc(m.samples * 2 * m.cols * size_of::<f32>())?;
    let args = Args::new().ptr(mean).ptr(inverse).ptr(spread.ptr());
    let args = args.i64(m.samples as i64).i64(m.cols as i64).i64(groups as i64);
    launch(gpu, &SOURCE, "spread_groups", m.samples * m.cols, args)?;
    Ok(spread)
}

/// A grid for passes whose blocks may be as many as the GPU holds.
fn blocks(gpu: &Context) -> usize {
    3 * gpu.info().sms as usize
}

/// `y = (x − mean) · inverse · gamma + beta`, plus the residual, cut off at 0, as is asked for.
pub(super) fn normalise(
    gpu: &Context,
    x: &View,
    residual: Option<&View>,
    y: &ViewMut,
    of: Channels,
    relu: bool,
    m: Matrix,
) -> Result<()> {
    let residual = match residual {
        Some(r) => Operand::of(gpu, r, x.dtype, 1)?,
        None => Operand::none(),
    };
    let (from, to) = (x.ptr()?, y.ptr()?);
    let bits = from.0 | to.0 | residual.ptr.0 | of.bits();
    let sweep = m.sweep(x.dtype, bits, ROWS_OF_X, blocks(gpu));
    let args = Args::new().ptr(from).ptr(residual.ptr).ptr(to).pod(of.cuda()).i32(i32::from(relu));
    sweep.launch(gpu, "normalise", x.dtype, args.pod(sweep.cuda()))
}

/// How the gradient behind a ReLU is found (`PLAIN` and so on in `kernel.cu`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mask {
    /// There is no ReLU.
    Plain,
    /// The output is computed again.
    Again,
    /// It is read, and the residual's gradient is written.
    Kept { y: DevicePtr, passed: DevicePtr },
    /// There is none, and the channels' `mean` are each row's mean and inverse deviation, one after the other.
    Rows,
}

impl Mask {
    fn name(self) -> &'static str {
        match self {
            Mask::Plain => "plain",
            Mask::Again => "again",
            Mask::Kept { .. } => "kept",
            Mask::Rows => "rows",
        }
    }
}

/// What a backward pass reads: dense, of one type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behind {
    pub(super) dtype: DType,
    pub(super) g: DevicePtr,
    pub(super) x: DevicePtr,
    pub(super) of: Channels,
    pub(super) mask: Mask,
    pub(super) m: Matrix,
}

/// Sums of each channel that are still in parts.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) memory: Buffer,
    pub(super) count: usize,
}

impl Behind {
    /// Sums over the rows of g times x's distance from the mean (or times the normalised x, for rows), and of g.
    pub(super) fn sums(&self, gpu: &Context) -> Result<Parts> {
        let (y, passed) = match self.mask {
            Mask::Kept { y, passed } => (y, passed),
            _ => (DevicePtr(0), DevicePtr(0)),
        };
        let of = if self.mask == Mask::Rows { 0 } else { self.of.bits() };
        let bits = self.g.0 | self.x.0 | y.0 | passed.0 | of;
        let sweep = self.m.sweep(self.dtype, bits, ROWS_OF_ALL, SUM_BLOCKS);
        let parts = sweep.room(gpu)?;
        let args = Args::new().ptr(self.g).ptr(self.x).ptr(y).ptr(passed).pod(self.of.cuda());
        let args = args.ptr(parts.ptr()).pod(sweep.cuda());
        sweep.launch(gpu, &format!("gradient_sums_{}", self.mask.name()), self.dtype, args)?;
        Ok(Parts { memory: parts, count: sweep.parts })
    }

    /// `dx (+)= inverse · gamma · g + slope · (x − mean) + shift`; slope and shift, `[samples, 2, cols]`, are 0 when `rule` is null.
    pub(super) fn input_gradient(&self, gpu: &Context, rule: DevicePtr, dx: Target) -> Result<()> {
        let bits = self.g.0 | self.x.0 | dx.ptr.0 | rule.0 | self.of.bits();
        let sweep = self.m.sweep(self.dtype, bits, ROWS_OF_ALL, blocks(gpu));
        let args = Args::new().ptr(self.g).ptr(self.x).ptr(dx.ptr).pod(self.of.cuda()).ptr(rule);
        let args = args.i32(i32::from(dx.add)).pod(sweep.cuda());
        sweep.launch(gpu, &format!("input_gradient_{}", self.mask.name()), self.dtype, args)
    }
}

/// Where a gradient goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) ptr: DevicePtr,
    dtype: DType,
    pub(super) add: bool,
}

impl Target {
    /// Nowhere.
    pub(super) const NONE: Target = Target { ptr: DevicePtr(0), dtype: DType::F32, add: false };

    /// The place of input `i`'s gradient, which is written by the next launches on the stream; nowhere when none is wanted.
    pub(super) fn of(sink: &mut GradSink, i: Option<usize>) -> Result<Self> {
        let Some(i) = i else { return Ok(Target::NONE) };
        let Some(mut slot) = sink.slot(i)? else { return Ok(Target::NONE) };
        let add = slot.accumulate();
        let view = slot.view();
        Ok(Target { ptr: view.ptr()?, dtype: view.dtype, add })
    }

    /// Whether it is a place.
    pub(super) fn wanted(self) -> bool {
        self.ptr != DevicePtr(0)
    }

    /// `Target` of `kernel.cu`.
    fn cuda(self) -> [u64; 2] {
        [self.ptr.0, code(self.dtype) as u64 | u64::from(self.add) << 32]
    }
}

/// What becomes of sums.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finish {
    /// Null inverse: the first sums are of normalised numbers already. Gamma is read for `rule`.
    pub(super) of: Channels,
    /// One over the numbers that each mean is of, for `rule`.
    pub(super) share: f32,
    /// The sums themselves, `[samples, 2, cols]`, or null.
    pub(super) sums: DevicePtr,
    pub(super) gamma: Target,
    pub(super) beta: Target,
    /// Slope and shift of the input's gradient, `[2, cols]`, or null.
    pub(super) rule: DevicePtr,
}

impl Finish {
    /// Nothing yet.
    pub(super) const NONE: Finish = Finish {
        of: Channels {
            mean: DevicePtr(0),
            inverse: DevicePtr(0),
            gamma: DevicePtr(0),
            beta: DevicePtr(0),
            step: 0,
        },
        share: 0.0,
        sums: DevicePtr(0),
        gamma: Target::NONE,
        beta: Target::NONE,
        rule: DevicePtr(0),
    };

    /// Adds up `count` parts `[2, cols]` of each sample.
    pub(super) fn run(
        &self,
        gpu: &Context,
        parts: DevicePtr,
        count: usize,
        [samples, cols]: [usize; 2],
    ) -> Result<()> {
        if samples * cols == 0 {
            return Ok(());
        }
        let args = Args::new().ptr(parts).i64(count as i64).i64(cols as i64).i64(samples as i64);
        let args = args.pod(self.of.cuda()).f32(self.share).ptr(self.sums).pod(self.gamma.cuda());
        let args = args.pod(self.beta.cuda()).ptr(self.rule);
        Ok(gpu.launch(&SOURCE, "finish_sums", finishing(cols, samples), args)?)
    }
}

/// Slope and shift of the input's gradient by groups of channels, `[samples, 2, cols]`, from the sums of each sample's channels.
pub(super) fn group_rule(
    gpu: &Context,
    sums: &Buffer,
    of: Channels,
    m: Matrix,
    groups: usize,
) -> Result<Buffer> {
    let rule = gpu.alloc(m.samples * 2 * m.cols * size_of::<f32>())?;
    let share = 1.0 / (m.rows * (m.cols / groups)).max(1) as f32;
    let args = Args::new().ptr(sums.ptr()).pod(of.cuda()).ptr(rule.ptr());
    let args = args.i64(m.samples as i64).i64(m.cols as i64).i64(groups as i64).f32(share);
    launch(gpu, &SOURCE, "group_rule", m.samples * groups * 32, args)?;
    Ok(rule)
}

/// Whether rows can be read by packs of 16 bytes.
pub(super) fn packs(cols: usize, dtype: DType, pointers: &[DevicePtr]) -> bool {
    cols.is_multiple_of(16 / dtype.size()) && pointers.iter().all(|p| p.0.is_multiple_of(16))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sweep_has_every_column_once_and_no_part_without_rows() {
        for (samples, rows, cols) in [
            (1, 256 * 56 * 56, 64),
            (1, 256 * 7 * 7, 2048),
            (1, 5000, 6),
            (1, 3, 1),
            (1, 1, 4097),
            (300, 49, 288),
            (1, 7, 116),
        ] {
            for (dtype, bits) in [(DType::F32, 0), (DType::BF16, 0), (DType::BF16, 4), (DType::F16, 2)] {
                let s = Matrix { samples, rows, cols }.sweep(dtype, bits, ROWS_OF_X, MOMENT_BLOCKS);
                assert_eq!(cols % s.pack, 0);
                assert!(s.strips * s.width * s.pack >= cols && (s.strips - 1) * s.width * s.pack < cols);
                assert!(s.width * s.lanes <= THREADS && s.width * s.lanes > THREADS / 2);
                assert!(s.parts >= 1 && (s.parts - 1) * s.lanes * ROWS_OF_X < rows);
            }
        }
        // The ends of a residual network fill the GPU alike.
        for (rows, cols) in [(256 * 56 * 56, 64), (256 * 7 * 7, 2048)] {
            let s = Matrix { samples: 1, rows, cols }.sweep(DType::BF16, 0, ROWS_OF_X, MOMENT_BLOCKS);
            assert_eq!((s.pack, s.strips * s.parts), (8, MOMENT_BLOCKS));
        }
    }

    proptest! {
        #[test]
        fn a_sweep_reaches_every_column_and_row(
            samples in 1usize..100, rows in 1usize..1 << 22, cols in 1usize..1 << 14, at in 0u64..64, half: bool
        ) {
            let dtype = if half { DType::BF16 } else { DType::F32 };
            for (at_once, blocks) in [(ROWS_OF_X, MOMENT_BLOCKS), (ROWS_OF_ALL, SUM_BLOCKS)] {
                let s = Matrix { samples, rows, cols }.sweep(dtype, at, at_once, blocks);
                prop_assert!(cols.is_multiple_of(s.pack) && at.is_multiple_of((s.pack * dtype.size()) as u64) || s.pack == 1);
                prop_assert!(s.strips * s.width * s.pack >= cols && s.width <= WIDEST);
                prop_assert!(s.width * s.lanes <= THREADS && s.lanes >= THREADS / WIDEST);
                prop_assert!((1..=DEEPEST).contains(&s.parts));
                // No part is without a row; and no more of them than fill a GPU, but for one of each strip and sample.
                prop_assert!((s.parts - 1) * at_once * s.lanes < rows);
                prop_assert!(s.parts == 1 || (s.parts - 1) * s.strips * samples < blocks);
            }
        }
    }
}
