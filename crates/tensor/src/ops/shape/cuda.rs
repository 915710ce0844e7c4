//! Strided copies and sums, and conversions, on a GPU.

use phalanx_gpu::{Args, Buffer, Context, DevicePtr, Grid, Source};

use super::{Contiguous, Scatter};
use crate::op::CudaOp;
use crate::ops::cuda::{self, launch, source, suffix};
use crate::{DType, Error, Layout, Result, View, ViewMut};

pub(crate) static SOURCE: Source = source!("shape");

/// Writes `from` row-major to `to`, of its type and shape, or adds it.
pub(crate) fn copy(gpu: &Context, from: &View, to: &mut ViewMut, add: bool) -> Result<()> {
    let whole = Layout::contiguous(to.shape);
    place(gpu, from, &whole, to, add)
}

/// Writes `from` to the places of `to` that `target` names, or adds it.
pub(crate) fn place(gpu: &Context, from: &View, target: &Layout, to: &mut ViewMut, add: bool) -> Result<()> {
    if from.dtype != to.dtype {
        return Err(Error::DTypes { op: "copy", operand: 0, got: from.dtype, want: to.dtype.to_string() });
    }
    let (n, size) = (from.shape().numel(), from.dtype.size());
    let (source, start) = (from.ptr()?, to.ptr()?.offset(target.offset * size));
    let dense = from.layout.is_contiguous() && target.is_contiguous();
    if n == 0 {
        return Ok(());
    }
    if dense && !add {
        return Ok(gpu.copy(start, source, n * size)?);
    }
    // Packs of 16 bytes need their alignment.
    if dense && add && source.0 % 16 == 0 && start.0 % 16 == 0 && from.dtype != DType::F64 {
        let kernel = format!("add_dense_{}", suffix("add gradient", from.dtype)?);
        return launch(
            gpu,
            &SOURCE,
            &kernel,
            n.div_ceil(4),
            Args::new().ptr(source).ptr(start).i64(n as i64),
        );
    }
    if !add
        && matches!(size, 2 | 4)
        && let Some([batch, rows, columns]) = transposed(from, target)
    {
        let grid = Grid {
            blocks: [columns.div_ceil(32) as u32, rows.div_ceil(32) as u32, batch as u32],
            threads: 256,
            shared: 0,
        };
        let args = Args::new().ptr(source).ptr(start).i32(rows as i32).i32(columns as i32);
        return Ok(gpu.launch(&SOURCE, &format!("transpose_{size}"), grid, args)?);
    }
    let mut places = cuda::walk([target, &from.layout]);
    let aligned = source.0 % 16 == 0 && start.0 % 16 == 0;
    let packs = aligned && by_packs(&mut places, 16 / size);
    let kernel = match (add, packs, from.dtype) {
        (true, true, DType::F64) => "add_packs_f64".to_owned(),
        (true, false, DType::F64) => "add_f64".to_owned(),
        (true, true, dtype) => format!("add_packs_{}", suffix("add gradient", dtype)?),
        (true, false, dtype) => format!("add_{}", suffix("add gradient", dtype)?),
        (false, true, _) => "move_16".to_owned(),
        (false, false, _) => format!("move_{size}"),
    };
    launch(gpu, &SOURCE, &kernel, places[1] as usize, Args::new().ptr(source).ptr(start).pod(places))
}

/// Makes a walk over two operands one over packs of `pack` elements, where rows and the ways between them are whole
/// packs; says whether it did.
fn by_packs(places: &mut [i64; 64], pack: usize) -> bool {
    let (pack, inner) = (pack as i64, places[0] as usize - 1);
    let strides = |axis: usize| [places[10 + axis], places[18 + axis]];
    let whole = |n: i64| n % pack == 0;
    let rows = strides(inner) == [1, 1] && whole(places[2 + inner]);
    if !rows || !(0..inner).all(|axis| strides(axis).into_iter().all(whole)) {
        return false;
    }
    places[1] /= pack;
    places[2 + inner] /= pack;
    for axis in 0..inner {
        places[10 + axis] /= pack;
        places[18 + axis] /= pack;
    }
    true
}

/// The most tensors that one launch gathers.
const PARTS: usize = 96;

/// Gathers ranges (address, bytes) into one block, one after the other. None where that is not worth a launch or not all
/// of them are few whole words.
pub(crate) fn gather(gpu: &Context, parts: &[(DevicePtr, usize)]) -> Result<Option<Buffer>> {
    const WORD: usize = size_of::<u32>();
    let total: usize = parts.iter().map(|p| p.1).sum();
    let words = parts.iter().all(|(at, len)| len.is_multiple_of(WORD) && at.0.is_multiple_of(WORD as u64));
    if parts.len() < 4 || !words || total > 1 << 24 {
        return Ok(None);
    }
    let block = gpu.alloc(total)?;
    gather_to(gpu, parts, None, block.ptr())?;
    Ok(Some(block))
}

/// Gathers ranges of whole words to `to`, which may be pinned memory of the host; in a recording it may be another address
/// at each launch where `varying` names it.
pub fn gather_to(
    gpu: &Context,
    parts: &[(DevicePtr, usize)],
    varying: Option<&'static str>,
    to: DevicePtr,
) -> Result<()> {
    const WORD: usize = size_of::<u32>();
    let mut first = 0;
    for parts in parts.chunks(PARTS) {
        let (mut from, mut start, mut len) = ([0u64; PARTS], [0u32; PARTS + 1], 0);
        for (i, (address, bytes)) in parts.iter().enumerate() {
            from[i] = address.0;
            len += bytes / WORD;
            start[i + 1] = len as u32;
        }
        let mut args = Vec::with_capacity(2 * size_of_val(&from));
        args.extend(from.iter().flat_map(|p| p.to_ne_bytes()));
        args.extend(start.iter().flat_map(|s| s.to_ne_bytes()));
        // As the struct is padded.
        args.resize(args.len().next_multiple_of(size_of::<u64>()), 0);
        let grid = Grid { blocks: [parts.len() as u32, 1, 1], threads: 256, shared: 0 };
        let args = Args::new().bytes(&args).u32(first);
        let args = match varying {
            Some(what) => args.varying(gpu, what, &to.0.to_ne_bytes())?,
            None => args.ptr(DevicePtr(0)).ptr(to),
        };
        gpu.launch(&SOURCE, "gather_words", grid, args)?;
        first += len as u32;
    }
    Ok(())
}

/// The sizes of a copy that is [batch, rows, columns] dense, read from [batch, columns, rows] dense.
fn transposed(from: &View, target: &Layout) -> Option<[usize; 3]> {
    if !target.is_contiguous() {
        return None;
    }
    let [rank, n, rest @ ..] = cuda::walk([target, &from.layout]);
    let (sizes, strides) = (&rest[..8], &rest[16..24]);
    let [batch, rows, columns] = match rank {
        2 => [1, sizes[0], sizes[1]],
        3 if strides[0] == sizes[1] * sizes[2] => [sizes[0], sizes[1], sizes[2]],
        _ => return None,
    };
    let at = rank as usize - 2;
    // Columns are told to the kernel as 32 bits.
    let fits = columns < 1 << 31
        && strides[at] == 1
        && strides[at + 1] == rows
        && batch <= 65_535
        && rows.div_euclid(32) < 65_535;
    (fits && rows >= 8 && columns >= 8 && n == batch * rows * columns).then_some([
        batch as usize,
        rows as usize,
        columns as usize,
    ])
}

/// Writes the same values in another type; both are dense and of one shape.
pub(crate) fn convert(gpu: &Context, from: &View, to: &mut ViewMut) -> Result<()> {
    let n = from.shape().numel();
    let (a, b) = (from.ptr()?, to.ptr()?);
    let kernel = match (from.dtype, to.dtype) {
        _ if a.0 % 16 != 0 || b.0 % 16 != 0 => None,
        (DType::F32, DType::BF16) => Some("convert_f32_bf16"),
        (DType::F32, DType::F16) => Some("convert_f32_f16"),
        (DType::BF16, DType::F32) => Some("convert_bf16_f32"),
        (DType::F16, DType::F32) => Some("convert_f16_f32"),
        _ => None,
    };
    if let Some(kernel) = kernel {
        return launch(gpu, &SOURCE, kernel, n.div_ceil(4), Args::new().ptr(a).ptr(b).i64(n as i64));
    }
    let args = Args::new().ptr(a).i32(cuda::code(from.dtype)).ptr(b).i32(cuda::code(to.dtype)).i64(n as i64);
    launch(gpu, &SOURCE, "convert_any", n, args)
}

impl CudaOp for Contiguous {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        copy(gpu, &ins[0], &mut outs[0], false)
    }
}

impl CudaOp for Scatter {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        gpu.fill_zero(outs[0].ptr()?, outs[0].shape.numel() * outs[0].dtype.size())?;
        let target = super::part(outs[0].shape, ins[0].shape(), self.axis, self.start, self.step);
        place(gpu, &ins[0], &target, &mut outs[0], false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Shape;

    /// Where both operands of a walk are, in its order, in elements: each place stands for `pack` elements behind each other.
    fn places(walk: &[i64; 64], pack: i64) -> Vec<[i64; 2]> {
        let axes = walk[0] as usize;
        let mut all = Vec::new();
        for n in 0..walk[1] {
            let (mut rest, mut at) = (n, [0, 0]);
            for axis in (0..axes).rev() {
                let i = rest % walk[2 + axis];
                rest /= walk[2 + axis];
                at = [at[0] + i * walk[10 + axis], at[1] + i * walk[18 + axis]];
            }
            all.extend((0..pack).map(|e| at.map(|a| a * pack + e)));
        }
        all
    }

    proptest! {
        #[test]
        fn packs_are_at_the_elements_places(sizes in prop::collection::vec(1usize..5, 0..3), packs in 1usize..4,
            odd in 0usize..8, gaps in prop::collection::vec(0usize..20, 3)) {
            // A part of something larger on one side, dense on the other; now and then of odd rows or odd gaps.
            let mut shape = sizes;
            shape.push(packs * 8 + if odd < 6 { 0 } else { odd });
            let mut strides = vec![1; shape.len()];
            for axis in (0..shape.len() - 1).rev() {
                let gap = if odd < 5 { gaps[axis] * 8 } else { gaps[axis] };
                strides[axis] = strides[axis + 1] * shape[axis + 1] + gap;
            }
            let shape = Shape::new(&shape);
            let part = Layout::with(shape, &strides, 0);
            let mut walk = cuda::walk([&part, &Layout::contiguous(shape)]);
            let before = places(&walk, 1);
            if by_packs(&mut walk, 8) {
                prop_assert_eq!(places(&walk, 8), before);
            } else {
                prop_assert!(odd >= 5, "{:?} {:?}", shape, strides);
                prop_assert_eq!(places(&walk, 1), before);
            }
        }
    }

    #[test]
    fn rows_of_whole_packs_are_walked_by_packs() {
        let whole = Layout::contiguous([6, 4, 64].into());
        let part = Layout::with([6, 4, 32].into(), &[256, 64, 1], 0);
        let dense = Layout::contiguous([6, 4, 32].into());
        let mut walk = cuda::walk([&part, &dense]);
        assert!(by_packs(&mut walk, 8));
        // The two outer axes are one: 24 rows of four packs, eight and four packs apart.
        assert_eq!(
            (walk[0], walk[1], &walk[2..4], &walk[10..12], &walk[18..20]),
            (2, 96, &[24, 4][..], &[8, 1][..], &[4, 1][..])
        );
        let mut odd = cuda::walk([
            &Layout::with([6, 4, 30].into(), &[256, 64, 1], 0),
            &Layout::contiguous([6, 4, 30].into()),
        ]);
        assert!(!by_packs(&mut odd, 8));
        let mut turned = cuda::walk([&whole, &Layout::with([6, 4, 64].into(), &[256, 1, 4], 0)]);
        assert!(!by_packs(&mut turned, 8));
    }
}
