//! Weighted sums over boxes on a GPU.

use half::{bf16, f16};
use phalanx_gpu::{Args, Buffer, Context, Source};

use super::{BoxSum, Boxes, Taps};
use crate::op::{CudaOp, Exec, Op, Saved};
use crate::ops::cuda::{self, divisor, launch, runs, source, suffix};
use crate::ops::reduce::cuda::{Spread, middle_sums, spread};
use crate::sink::GradSink;
use crate::{DType, Error, Result, Shape, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("boxes");

/// An axis that is not summed over.
fn single() -> Taps {
    let mut taps = Taps::new(1);
    taps.push([(0, 1.0)].into_iter(), 1.0);
    taps
}

/// The taps along three axes, those that are missing in front.
fn three(taps: &[Taps]) -> [Taps; 3] {
    let lead = 3 - taps.len();
    std::array::from_fn(|i| i.checked_sub(lead).map_or_else(single, |i| taps[i].clone()))
}

/// Words of 4 bytes for a kernel to look up.
#[derive(Default)]
struct Table(Vec<u32>);

impl Table {
    /// Adds words, and gives the number of the first.
    fn add(&mut self, words: impl Iterator<Item = u32>) -> u32 {
        let at = self.0.len() as u32;
        self.0.extend(words);
        at
    }

    fn upload(&self, gpu: &Context) -> Result<Buffer> {
        let bytes = bytemuck::cast_slice(&self.0);
        let buffer = gpu.alloc(bytes.len())?;
        gpu.upload(&buffer, 0, bytes)?;
        Ok(buffer)
    }
}

/// Checks that places, results and list entries can be counted in 31 bits.
fn want_counted(op: &'static str, shape: Shape, taps: &[Taps]) -> Result<()> {
    let fits = |n: usize| n < 1 << 28;
    match taps.iter().all(|t| fits(t.size.div_ceil(8)) && fits(t.len()) && fits(t.list.len())) {
        true => Ok(()),
        false => Err(Error::Invalid { op, shape, why: "an axis is too long for a GPU's kernels".to_owned() }),
    }
}

/// What the sum is divided by where it is the sum over the whole of each axis.
fn whole(taps: &[Taps]) -> Option<f64> {
    let all = |t: &Taps| t.len() == 1 && t.list.len() == t.size && t.list.iter().all(|l| l.1 == 1.0);
    taps.iter().all(all).then(|| taps.iter().map(|t| t.divisors[0]).product())
}

/// The weight with which every result is the one place that there is.
fn alike(taps: &[Taps]) -> Option<f64> {
    let weight = |t: &Taps| match t.list.first() {
        Some(&first) if t.size == 1 && t.list.len() == t.len() => {
            let same = t.list.iter().all(|&l| l == first) && t.divisors.iter().all(|&d| d == 1.0);
            same.then_some(first.1)
        }
        _ => None,
    };
    taps.iter().map(weight).product()
}

/// `y (+)=` the sums over `x`, both dense.
fn sums(gpu: &Context, op: &'static str, taps: &[Taps], x: &View, y: &mut ViewMut, add: bool) -> Result<()> {
    let shape = y.shape;
    if shape.numel() == 0 {
        return Ok(());
    }
    let (samples, channels) = (shape[0], shape[shape.len() - 1]);
    let [places, results] = [x.shape(), shape].map(|s| s.numel() / (samples * channels));
    if places > 0
        && let Some(divisor) = whole(taps)
    {
        return middle_sums(gpu, op, x, [samples, places, channels], 1.0 / divisor, y, add);
    }
    if shape.numel() < 1 << 31
        && let Some(scale) = alike(taps)
    {
        return spread(gpu, x, y, Spread { sizes: [samples, results, channels], scale, add });
    }
    want_counted(op, x.shape(), taps)?;
    cuda::want_type(op, x, 0, y.dtype)?;
    let mut table = Table::default();
    let wide = cuda::wide(y.dtype, channels, &[x.ptr()?, y.ptr()?]);
    let mut words: Vec<u32> = Vec::with_capacity(27);
    for t in &three(taps) {
        words.extend(divisor(t.len()));
        words.push(t.size as u32);
        words.push(table.add(t.ends.iter().map(|&e| e as u32)));
        words.push(table.add(t.divisors.iter().map(|&d| (d as f32).to_bits())));
        words.push(table.add(t.list.iter().map(|l| l.0 as u32)));
        words.push(table.add(t.list.iter().map(|l| (l.1 as f32).to_bits())));
    }
    words.extend(divisor(channels / wide));
    let table = table.upload(gpu)?;
    let kernel = format!("sums_{}{}", if wide > 1 { "" } else { "one_" }, suffix(op, y.dtype)?);
    let size = y.dtype.size() * channels;
    for [first, count] in runs(op, shape, samples, results * channels / wide)? {
        let total = count * results * channels / wide;
        let args = Args::new().bytes(bytemuck::cast_slice(&words)).ptr(table.ptr());
        let args =
            args.ptr(x.ptr()?.offset(first * places * size)).ptr(y.ptr()?.offset(first * results * size));
        launch(gpu, &SOURCE, &kernel, total, args.u32(total as u32).i32(i32::from(add)))?;
    }
    Ok(())
}

/// The element that a number is, over and over in 16 bytes.
fn filled(value: f64, dtype: DType) -> [u64; 2] {
    let bytes = match dtype {
        DType::F32 => (value as f32).to_ne_bytes().to_vec(),
        DType::F64 => value.to_ne_bytes().to_vec(),
        DType::U8 => vec![value as u8],
        DType::I64 => (value as i64).to_ne_bytes().to_vec(),
        DType::F16 => f16::from_f32(value as f32).to_ne_bytes().to_vec(),
        DType::BF16 => bf16::from_f32(value as f32).to_ne_bytes().to_vec(),
    };
    let word = std::array::from_fn(|i| bytes[i % bytes.len()]);
    [u64::from_ne_bytes(word); 2]
}

/// `y` = the places of `x` that the results are, both dense; a result without one is `fill`.
fn moves(
    gpu: &Context,
    op: &'static str,
    taps: &[Taps],
    x: &View,
    y: &mut ViewMut,
    fill: [u64; 2],
) -> Result<()> {
    if y.shape.numel() == 0 {
        return Ok(());
    }
    want_counted(op, x.shape(), taps)?;
    let (from, to) = (x.ptr()?, y.ptr()?);
    let pixel = y.shape[y.shape.len() - 1] * y.dtype.size();
    // The widest unit that all rows and addresses are whole numbers of: at least one element.
    let unit = 1usize << (pixel as u64 | from.0 | to.0 | 16).trailing_zeros();
    let units = pixel / unit;
    if units >= 1 << 31 {
        let why = "its pixels are too large for a GPU's kernels".to_owned();
        return Err(Error::Invalid { op, shape: y.shape, why });
    }
    let mut table = Table::default();
    let taps = three(taps);
    let mut words = divisor(units).to_vec();
    words.extend(taps.iter().flat_map(|t| divisor(t.len())));
    words.extend(taps.iter().map(|t| t.size as u32));
    for t in &taps {
        // No place is −1.
        words.push(table.add((0..t.len()).map(|o| t.place(o).map_or(u32::MAX, |p| p as u32))));
    }
    let table = table.upload(gpu)?;
    let total = y.shape.numel() * y.dtype.size() / unit;
    let args = Args::new().bytes(bytemuck::cast_slice(&words)).ptr(table.ptr()).ptr(from).ptr(to);
    launch(gpu, &SOURCE, &format!("moves_{unit}"), total, args.pod(fill).u64(total as u64))
}

impl<B: Boxes> CudaOp for BoxSum<B> {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let taps = self.taps(ins[0].shape(), false)?;
        match self.moves() {
            true => {
                let fill = filled(self.fill, ins[0].dtype);
                moves(gpu, self.name(), &taps, &ins[0], &mut outs[0], fill)
            }
            false => sums(gpu, self.name(), &taps, &ins[0], &mut outs[0], false),
        }
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let x = sink.shape(0);
        let g = g.to(saved.metas[0].dtype)?.contiguous()?;
        let read = g.read()?;
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let (taps, add) = (self.taps(x, true)?, slot.accumulate());
        sums(cx.gpu()?, self.name(), &taps, &read.view(), &mut slot.view(), add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn global_averages_are_known_in_both_directions() {
        let mut taps = Taps::new(7);
        taps.push((0..7).map(|i| (i, 1.0)), 7.0);
        let pair = [taps.clone(), taps.clone()];
        assert_eq!(whole(&pair), Some(49.0));
        let back = pair.each_ref().map(Taps::transposed);
        assert!((alike(&back).unwrap() - 1.0 / 49.0).abs() < 1e-12);
        assert_eq!((alike(&pair), whole(&back)), (None, None));
        taps.push([(0, 1.0)].into_iter(), 1.0);
        assert_eq!((whole(&[taps.clone()]), alike(&[taps.transposed()])), (None, None));
    }

    #[test]
    fn an_element_fills_its_unit() {
        assert_eq!(filled(1.0, DType::BF16), [0x3f80_3f80_3f80_3f80; 2]);
        assert_eq!(filled(3.0, DType::I64), [3; 2]);
        assert_eq!(filled(2.0, DType::U8), [0x0202_0202_0202_0202; 2]);
    }
}
