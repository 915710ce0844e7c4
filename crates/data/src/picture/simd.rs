//! The loops over bytes that take the time, with and without AVX2: sums of bytes by weights of 22 bits. Whole numbers,
//! so that the results are the same.

use phalanx_host::Isa;

use super::resize::BITS;

/// Says that this processor has AVX2 and BMI2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        let all = Isa::Avx2.available()
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt");
        #[cfg(not(target_arch = "x86_64"))]
        let all = Isa::Avx2.available();
        all.then_some(Avx2(()))
    }
}

/// Bytes past its end that [`along`] may read of a row and write of another.
pub(super) const SLACK: usize = 8;

/// Half of the last place, for rounding.
const HALF: i32 = 1 << (BITS - 1);

fn narrow(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The weights of a row's pixels, for [`along`].
#[derive(Debug, Default)]
pub(super) struct Weights {
    /// For each pixel as many.
    pub taps: usize,
    /// In 22 bits behind the point.
    pub all: Vec<i32>,
    /// For vectors, for each two pixels and each two taps: the lower 15 bits of both weights, four times for each pixel,
    /// and likewise the bits above.
    pairs: Vec<[[i16; 16]; 2]>,
    /// The furthest pixel that any needs, and one more.
    furthest: usize,
}

impl Weights {
    /// To be called when `taps` and `all` are there, for pixels that begin at `first`.
    pub(super) fn prepare(&mut self, first: &[usize]) {
        self.furthest = first.iter().max().map_or(0, |x| x + self.taps);
        self.pairs.clear();
        if self.taps == 0 {
            return;
        }
        let half = self.taps.div_ceil(2);
        for two in self.all.chunks(2 * self.taps) {
            for pair in 0..half {
                let mut both = [[0; 16]; 2];
                for (p, weights) in two.chunks_exact(self.taps).enumerate() {
                    for (t, &w) in weights.iter().skip(2 * pair).take(2).enumerate() {
                        for lane in 0..4 {
                            both[0][8 * p + 2 * lane + t] = (w & 0x7fff) as i16;
                            both[1][8 * p + 2 * lane + t] = (w >> 15) as i16;
                        }
                    }
                }
                self.pairs.push(both);
            }
        }
    }
}

/// Resizes a row of `columns` pixels, at the beginning of `row`: output pixel `x` is the sum of the pixels from
/// `first[x]` on by its weights. `to` is longer by [`SLACK`] than the pixels that are made.
pub(super) fn along(
    avx2: Option<Avx2>,
    row: &[u8],
    channels: usize,
    first: &[usize],
    weights: &Weights,
    to: &mut [u8],
) {
    let taps = weights.taps;
    #[cfg(target_arch = "x86_64")]
    if avx2.is_some() && channels == 3 && taps > 0 {
        let fits = weights.furthest * 3 + SLACK <= row.len()
            && to.len() >= first.len() * 3 + SLACK
            && weights.pairs.len() >= first.len().div_ceil(2) * taps.div_ceil(2);
        if fits {
            // SAFETY: AVX2 was found. Of two taps eight bytes are read, the second of which may be one behind the
            // furthest, and of a pixel eight bytes are written: all within what the test above asks for.
            return unsafe { x86::along(row, first, taps, &weights.pairs, to) };
        }
    }
    let _ = avx2;
    let pixels = to.chunks_exact_mut(channels.max(1)).zip(first).zip(weights.all.chunks_exact(taps.max(1)));
    for ((pixel, &first), weights) in pixels {
        for (c, x) in pixel.iter_mut().enumerate() {
            let taken = row[first * channels + c..].iter().step_by(channels);
            *x = narrow(taken.zip(weights).fold(HALF, |sum, (&x, w)| sum + i32::from(x) * w));
        }
    }
}

/// The sum of rows, `pitch` bytes apart, by their weights.
pub(super) fn across(avx2: Option<Avx2>, rows: &[u8], pitch: usize, weights: &[i32], to: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if avx2.is_some() && !weights.is_empty() && rows.len() >= (weights.len() - 1) * pitch + to.len() {
        // SAFETY: AVX2 was found, and every row has as many bytes as `to`.
        return unsafe { x86::across(rows, pitch, weights, to) };
    }
    let _ = avx2;
    for (x, to) in to.iter_mut().enumerate() {
        let taken = rows[x..].iter().step_by(pitch);
        *to = narrow(taken.zip(weights).fold(HALF, |sum, (&x, w)| sum + i32::from(x) * w));
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BITS, HALF, narrow};

    /// # Safety
    /// AVX2 is there; `first` is within `row` with all taps and [`super::SLACK`] bytes; `to` has room for a pixel of each
    /// `first` and as many bytes; `pairs` are those of as many pixels and taps.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn along(
        row: &[u8],
        first: &[usize],
        taps: usize,
        pairs: &[[[i16; 16]; 2]],
        to: &mut [u8],
    ) {
        // Red, green and blue of two pixels become red and red, green and green, blue and blue.
        let order = _mm256_setr_epi8(
            0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, -1, -1, -1, -1, 0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, -1,
            -1, -1, -1,
        );
        let half = taps.div_ceil(2);
        let mut weights = pairs.as_ptr();
        for (i, two) in first.chunks(2).enumerate() {
            let (a, b) = (two[0], two[two.len() - 1]);
            let (mut low, mut high) = (_mm256_set1_epi32(HALF), _mm256_setzero_si256());
            for pair in 0..half {
                // SAFETY: by the function's contract; a last pixel by itself is read twice.
                let (pixels, lower, upper) = unsafe {
                    let at = |x: usize| row.as_ptr().add((x + 2 * pair) * 3).cast::<i64>().read_unaligned();
                    let pixels = _mm256_cvtepu8_epi16(_mm_set_epi64x(at(b), at(a)));
                    let [lower, upper] = &*weights;
                    weights = weights.add(1);
                    (
                        pixels,
                        _mm256_loadu_si256(lower.as_ptr().cast()),
                        _mm256_loadu_si256(upper.as_ptr().cast()),
                    )
                };
                let pixels = _mm256_shuffle_epi8(pixels, order);
                low = _mm256_add_epi32(low, _mm256_madd_epi16(pixels, lower));
                high = _mm256_add_epi32(high, _mm256_madd_epi16(pixels, upper));
            }
            let sum = _mm256_add_epi32(low, _mm256_slli_epi32::<15>(high));
            let sum = _mm256_srai_epi32::<{ BITS as i32 }>(sum);
            let bytes = _mm256_packus_epi16(_mm256_packs_epi32(sum, sum), sum);
            let (a, b) = (_mm256_extract_epi32::<0>(bytes), _mm256_extract_epi32::<4>(bytes));
            // SAFETY: by the function's contract; the second of a last pixel by itself goes to the bytes behind it.
            unsafe {
                let to = to.as_mut_ptr().add(6 * i);
                to.cast::<i32>().write_unaligned(a);
                to.add(3).cast::<i32>().write_unaligned(b);
            }
        }
    }

    /// # Safety
    /// AVX2 is there, and `rows` has `to.len()` bytes from each of `weights.len()` places `pitch` apart on.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn across(rows: &[u8], pitch: usize, weights: &[i32], to: &mut [u8]) {
        const STEP: usize = 32;
        let whole = to.len() / STEP * STEP;
        for x in (0..whole).step_by(STEP) {
            let mut sums = [_mm256_set1_epi32(HALF); 4];
            for (k, &weight) in weights.iter().enumerate() {
                let weight = _mm256_set1_epi32(weight);
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `x + 32` is at most `to.len()`, which each row has.
                    let bytes = unsafe { _mm_loadl_epi64(rows.as_ptr().add(k * pitch + x + 8 * i).cast()) };
                    *sum = _mm256_add_epi32(*sum, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), weight));
                }
            }
            let [a, b, c, d] = sums.map(|s| _mm256_srai_epi32::<{ BITS as i32 }>(s));
            // Packing works within halves; the last step puts the pieces of four bytes into their order.
            let packed = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let packed = _mm256_permutevar8x32_epi32(packed, order);
            // SAFETY: `x + 32` is at most `to.len()`.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().add(x).cast(), packed) };
        }
        for x in whole..to.len() {
            let sum =
                weights.iter().enumerate().fold(HALF, |sum, (k, w)| sum + i32::from(rows[k * pitch + x]) * w);
            to[x] = narrow(sum);
        }
    }
}
