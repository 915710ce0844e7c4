//! Mean and deviation of the channels of a set's images: what `normalise` is set to.
//!
//! Images are taken in blocks of [`STATS_BLOCK`] samples, and the blocks put together in order: the result is the same,
//! bit for bit, for any number of threads and ranks.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use phalanx_host::DType;
use serde::{Deserialize, Serialize};

use crate::inspect::pixels;
use crate::threads::on_threads;
use crate::{Error, FieldSpec, Record, Result, Role, Source};

/// Samples of a block.
pub const STATS_BLOCK: u64 = 1024;

/// The blocks that a set of `len` samples has. Rank `r` of `w` takes the range `blocks * r / w .. blocks * (r + 1) / w`.
pub fn stats_blocks(len: u64) -> u64 {
    len.div_ceil(STATS_BLOCK)
}

/// Images, pixels, and each channel's mean and sum of squared deviations from it, in stored values.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockStats {
    /// Images.
    pub images: u64,
    /// Pixels of them.
    pub pixels: u64,
    /// One a channel.
    pub mean: Vec<f64>,
    /// One a channel.
    pub squares: Vec<f64>,
}

impl BlockStats {
    /// Adds what follows. Source: T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for
    /// computing sample variances", 1979.
    pub fn add(&mut self, next: &BlockStats) {
        if next.pixels == 0 {
            return;
        }
        let (a, b) = (self.pixels as f64, next.pixels as f64);
        self.mean.resize(next.mean.len(), 0.0);
        self.squares.resize(next.mean.len(), 0.0);
        for (c, (mean, squares)) in self.mean.iter_mut().zip(&mut self.squares).enumerate() {
            let apart = next.mean[c] - *mean;
            *mean += apart * (b / (a + b));
            *squares += next.squares[c] + apart * apart * (a * b / (a + b));
        }
        self.images += next.images;
        self.pixels += next.pixels;
    }
}

/// Mean and deviation of each channel, with the largest stored value as 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChannelStats {
    /// Images.
    pub images: u64,
    /// Pixels of them.
    pub pixels: u64,
    /// One a channel.
    pub mean: Vec<f64>,
    /// One a channel: the root of the mean squared deviation over all pixels.
    pub std: Vec<f64>,
}

impl ChannelStats {
    /// Of all blocks of a set, in order; `max` is the largest value that its images can have.
    pub fn of(blocks: &[BlockStats], max: f32) -> Self {
        let mut all = BlockStats::default();
        blocks.iter().for_each(|b| all.add(b));
        let max = f64::from(max);
        let std = |squares: &f64| (squares / all.pixels as f64).sqrt() / max;
        ChannelStats {
            images: all.images,
            pixels: all.pixels,
            mean: all.mean.iter().map(|m| m / max).collect(),
            std: all.squares.iter().map(std).collect(),
        }
    }
}

/// The statistics of some blocks of a set, in order, of each sample's first image, on `threads` threads (at least one).
/// `progress` is told the images as they are done.
///
/// Fails with [`Error::Field`] when the set has no images, and with [`Error::Sample`] on the first image that cannot be read.
pub fn block_stats(
    set: &dyn Source,
    blocks: Range<u64>,
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<BlockStats>> {
    let fields = &set.schema().fields;
    let Some(at) = fields.iter().position(|f| f.role == Role::Image) else {
        return Err(Error::field("image", format!("{} has none", set.name())));
    };
    let blocks = blocks.start..blocks.end.min(stats_blocks(set.len()));
    let slots: Vec<Mutex<Option<Result<BlockStats>>>> = blocks.clone().map(|_| Mutex::default()).collect();
    let (taken, failed) = (AtomicU64::new(blocks.start), AtomicBool::new(false));
    let work = || {
        let mut record = Record::default();
        loop {
            let block = taken.fetch_add(1, Ordering::Relaxed);
            // Blocks are taken in order, so those before a failed one are in work: the first failure is found.
            if block >= blocks.end || failed.load(Ordering::Relaxed) {
                return;
            }
            let result = one_block(set, &fields[at], at, block, &mut record, progress);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            let slot = &slots[(block - blocks.start) as usize];
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        }
    };
    on_threads(threads, "sum up", work)?;
    let results = slots.into_iter().map(|s| s.into_inner().unwrap_or_else(PoisonError::into_inner));
    // What follows a failure may be missing; the failure comes first.
    results.map_while(|r| r).collect()
}

fn one_block(
    set: &dyn Source,
    spec: &FieldSpec,
    at: usize,
    block: u64,
    record: &mut Record,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<BlockStats> {
    let ids = block * STATS_BLOCK..set.len().min((block + 1) * STATS_BLOCK);
    let mut floats = BlockStats::default();
    let mut bytes = Bytes::default();
    for id in ids {
        let named = |e| Error::Sample { set: set.name().to_owned(), sample: id, cause: Box::new(e) };
        set.read(id, record).map_err(named)?;
        let ([h, w, c], data) = pixels(spec, &record.fields[at]).map_err(named)?;
        match spec.dtype {
            DType::F32 => floats.add(&of_floats(&bytemuck::pod_collect_to_vec(&data), h * w, c)),
            _ => bytes.add(&data, h * w, c),
        }
        progress(1);
    }
    Ok(if spec.dtype == DType::F32 { floats } else { bytes.stats() })
}

fn of_floats(values: &[f32], pixels: usize, channels: usize) -> BlockStats {
    let channel = |c: usize| values.iter().skip(c).step_by(channels).map(|&v| f64::from(v));
    let mean: Vec<f64> = (0..channels).map(|c| channel(c).sum::<f64>() / pixels as f64).collect();
    let squares = (0..channels).map(|c| channel(c).map(|v| (v - mean[c]).powi(2)).sum()).collect();
    BlockStats { images: 1, pixels: pixels as u64, squares, mean }
}

/// Sums of bytes, which are exact.
#[derive(Debug, Default)]
struct Bytes {
    images: u64,
    pixels: u64,
    /// Of each channel, the sum and that of the squares: a block of the largest images stays below 2^64.
    sums: Vec<[u64; 2]>,
}

impl Bytes {
    fn add(&mut self, values: &[u8], pixels: usize, channels: usize) {
        self.images += 1;
        self.pixels += pixels as u64;
        self.sums.resize(channels, [0; 2]);
        match channels {
            1 => self.add_pixels::<1>(values),
            3 => self.add_pixels::<3>(values),
            _ => {
                for pixel in values.chunks_exact(channels) {
                    for (sums, &v) in self.sums.iter_mut().zip(pixel) {
                        *sums = [sums[0] + u64::from(v), sums[1] + u64::from(v).pow(2)];
                    }
                }
            }
        }
    }

    /// For the usual numbers of channels: a few pixels at a time are summed in 32 bits, which have room for them.
    fn add_pixels<const C: usize>(&mut self, values: &[u8]) {
        for pixels in values.as_chunks::<C>().0.chunks(1 << 15) {
            let mut sums = [[0u32; 2]; C];
            for pixel in pixels {
                for (sums, &v) in sums.iter_mut().zip(pixel) {
                    let v = u32::from(v);
                    *sums = [sums[0] + v, sums[1] + v * v];
                }
            }
            for (all, sums) in self.sums.iter_mut().zip(sums) {
                *all = [all[0] + u64::from(sums[0]), all[1] + u64::from(sums[1])];
            }
        }
    }

    fn stats(self) -> BlockStats {
        let n = self.pixels;
        let mean = self.sums.iter().map(|s| s[0] as f64 / n as f64).collect();
        let squares = self.sums.iter().map(|&[sum, squares]| {
            let n = u128::from(n);
            // n · squares is at least sum², by Cauchy and Schwarz.
            (n * u128::from(squares) - u128::from(sum).pow(2)) as f64 / n as f64
        });
        BlockStats { images: self.images, pixels: n, squares: squares.collect(), mean }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Column, Memory};

    fn set(column: Column) -> Arc<dyn Source> {
        Memory::new("s", vec![column], vec![]).unwrap().shared()
    }

    /// 2500 images of 3 by 2 pixels.
    fn bytes() -> Arc<dyn Source> {
        let values = (0..2500 * 6 * 3u64).map(|i| (i * i % 251 + i % 3) as u8).collect();
        set(Column::fixed(FieldSpec::image([3, 2, 3], 255.0), values).unwrap())
    }

    /// The same by the definition.
    fn plain(values: impl Iterator<Item = f64> + Clone, max: f64) -> (f64, f64) {
        let n = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / n;
        (mean / max, (values.map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt() / max)
    }

    #[test]
    fn bytes_have_their_mean_and_deviation_for_any_split_of_the_work() {
        let set = bytes();
        let blocks = stats_blocks(set.len());
        assert_eq!(blocks, 3);
        let all = block_stats(&*set, 0..blocks, 1, &|_| {}).unwrap();
        for (ranks, threads) in [(1, 3), (2, 1), (3, 2), (5, 7)] {
            let range = |r| blocks * r / ranks..blocks * (r + 1) / ranks;
            let parts = (0..ranks).map(|r| block_stats(&*set, range(r), threads, &|_| {}).unwrap());
            assert_eq!(parts.collect::<Vec<_>>().concat(), all, "{ranks} ranks");
        }
        let found = ChannelStats::of(&all, 255.0);
        assert_eq!((found.images, found.pixels), (2500, 15_000));
        for c in 0..3u64 {
            let values = (0..15_000u64).map(|p| p * 3 + c).map(|i| (i * i % 251 + i % 3) as f64);
            let (mean, std) = plain(values, 255.0);
            let (got_mean, got_std) = (found.mean[c as usize], found.std[c as usize]);
            assert!((got_mean - mean).abs() < 1e-12 && (got_std - std).abs() < 1e-12, "{found:?}");
        }
    }

    #[test]
    fn floats_far_from_zero_keep_their_deviation() {
        let value = |i: usize| 1000.0 + (i % 7) as f32 / 64.0;
        let spec = FieldSpec { dtype: DType::F32, ..FieldSpec::image([4, 4, 1], 1000.0) };
        let set = set(Column::fixed(spec, (0..1500 * 16).map(value).collect()).unwrap());
        let found = ChannelStats::of(&block_stats(&*set, 0..9, 2, &|_| {}).unwrap(), 1000.0);
        let (mean, std) = plain((0..1500 * 16).map(|i| f64::from(value(i))), 1000.0);
        assert_eq!(found.images, 1500);
        assert!((found.mean[0] - mean).abs() < 1e-13 && (found.std[0] / std - 1.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn sets_without_images_or_samples() {
        let labels = set(Column::fixed(FieldSpec::array("a", DType::U8, &[1], false), vec![1u8]).unwrap());
        assert!(matches!(block_stats(&*labels, 0..1, 1, &|_| {}), Err(Error::Field { .. })));
        let empty = set(Column::fixed(FieldSpec::image([1, 1, 1], 1.0), Vec::<u8>::new()).unwrap());
        assert_eq!(block_stats(&*empty, 0..5, 2, &|_| {}).unwrap(), []);
        assert_eq!(ChannelStats::of(&[], 1.0).images, 0);
    }
}
