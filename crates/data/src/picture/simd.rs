//! The loops over bytes that take the time, with and without AVX2: sums of bytes by weights of 22 bits. Whole numbers,
//! so that the results are the same.

use phalanx_host::Isa;

use super::resize::BITS;

/// Says that this processor has AVX2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        Isa::Avx2.available().then_some(Avx2(()))
    }
}

/// Bytes past its end that [`along`] may write.
pub(super) const SLACK: usize = 4;

/// Half of the last place, for rounding.
const HALF: i32 = 1 << (BITS - 1);

fn narrow(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Resizes a row: output pixel `x` is the sum of the `taps` pixels from `first[x]` on by its weights. `to` is longer by
/// [`SLACK`] than the pixels that are made.
pub(super) fn along(
    avx2: Option<Avx2>,
    row: &[u8],
    channels: usize,
    first: &[usize],
    (taps, weights): (usize, &[i32]),
    to: &mut [u8],
) {
    #[cfg(target_arch = "x86_64")]
    if avx2.is_some() && channels == 3 && taps > 0 {
        let furthest = first.iter().max().map_or(0, |x| (x + taps) * 3);
        if furthest < row.len() && to.len() >= first.len() * 3 + SLACK && weights.len() >= first.len() * taps
        {
            // SAFETY: AVX2 was found; a pixel is read with the byte behind it, which is within the row by the test
            // above, and written with the one behind it, which is within `to` by the next.
            return unsafe { x86::along(row, first, taps, weights, to) };
        }
    }
    let _ = avx2;
    let pixels = to.chunks_exact_mut(channels.max(1)).zip(first).zip(weights.chunks_exact(taps.max(1)));
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
    /// AVX2 is there; `row` has a byte behind the last pixel that is read, and `to` one behind the last that is written.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn along(row: &[u8], first: &[usize], taps: usize, weights: &[i32], to: &mut [u8]) {
        // The low byte of each of four sums.
        let pick = _mm_set1_epi32(0x0c08_0400);
        for (x, &first) in first.iter().enumerate() {
            let mut sum = _mm_set1_epi32(HALF);
            for tap in 0..taps {
                // SAFETY: by the function's contract.
                let (pixel, weight) = unsafe {
                    let at = row.as_ptr().add((first + tap) * 3).cast::<i32>();
                    (at.read_unaligned(), *weights.get_unchecked(x * taps + tap))
                };
                let pixel = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(pixel));
                sum = _mm_add_epi32(sum, _mm_mullo_epi32(pixel, _mm_set1_epi32(weight)));
            }
            let sum = _mm_srai_epi32::<{ BITS as i32 }>(sum);
            let sum = _mm_min_epi32(_mm_max_epi32(sum, _mm_setzero_si128()), _mm_set1_epi32(255));
            let bytes = _mm_cvtsi128_si32(_mm_shuffle_epi8(sum, pick));
            // SAFETY: by the function's contract.
            unsafe { to.as_mut_ptr().add(x * 3).cast::<i32>().write_unaligned(bytes) };
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
