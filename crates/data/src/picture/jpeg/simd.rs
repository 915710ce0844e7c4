//! The loops over pixels of JPEG files with AVX2. Whole numbers: the results are those without.

use super::Damage;
use super::codes::{Bits, Steps, Table};
use crate::picture::simd::Avx2;

/// Puts the eight rows of a block's pixels into `out`. Whether it could.
#[inline]
pub(super) fn inverse(avx2: Option<Avx2>, coefficients: &[i16; 64], out: &mut [u8], stride: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if avx2.is_some() && stride.checked_mul(7).is_some_and(|last| out.len() >= last + 8) {
        // SAFETY: AVX2 was found, and all eight rows have their eight bytes.
        unsafe { x86::inverse(coefficients, out, stride) };
        return true;
    }
    let _ = (avx2, coefficients, out, stride);
    false
}

/// Makes pixels of brightness and differences, for as many as vectors of 16 hold; returns their number.
pub(super) fn rgb(avx2: Option<Avx2>, y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if avx2.is_some() && cb.len() >= y.len() && cr.len() >= y.len() && out.len() / 3 >= y.len() {
        // SAFETY: AVX2 was found, and the lengths were just compared.
        return unsafe { x86::rgb(y, cb, cr, out) };
    }
    let _ = (avx2, y, cb, cr, out);
    0
}

/// As [`both_ways`](super::colours::both_ways).
pub(super) fn both_ways(avx2: Option<Avx2>, near: &[u8], far: &[u8], sums: &mut [u16], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if avx2.is_some() {
        // SAFETY: AVX2 was found.
        return unsafe { x86::both_ways(near, far, sums, out) };
    }
    let _ = avx2;
    super::colours::both_ways(near, far, sums, out);
}

/// As [`across`](super::colours::across).
pub(super) fn across(avx2: Option<Avx2>, row: &[u8], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if avx2.is_some() {
        // SAFETY: AVX2 was found.
        return unsafe { x86::across(row, out) };
    }
    let _ = avx2;
    super::colours::across(row, out);
}

/// As [`Bits::block`].
#[inline]
pub(super) fn read<const KEEP: bool>(
    avx2: Option<Avx2>,
    bits: &mut Bits<'_>,
    tables: [&Table; 2],
    steps: &Steps,
    mean: &mut i32,
    block: &mut [i16; 64],
) -> Result<usize, Damage> {
    #[cfg(target_arch = "x86_64")]
    if avx2.is_some() {
        // SAFETY: AVX2 was found, and what comes with it.
        return unsafe { x86::read::<KEEP>(bits, tables, steps, mean, block) };
    }
    let _ = avx2;
    bits.block::<KEEP>(tables, steps, mean, block)
}

/// As [`copy_until_255`](super::codes::copy_until_255).
pub(super) fn copy_until_255(avx2: Option<Avx2>, from: &[u8], to: &mut [u8]) -> usize {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if avx2.is_some() {
        let whole = from.len().min(to.len()) / 32 * 32;
        // SAFETY: AVX2 was found; both have as many bytes.
        done = unsafe { x86::copy_until_255(&from[..whole], &mut to[..whole]) };
        if done < whole {
            return done;
        }
    }
    let _ = avx2;
    done += super::codes::copy_until_255(&from[done..], &mut to[done..]);
    done
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::codes::{Bits, Steps, Table};
    use super::super::inverse::factor;
    use super::super::{Damage, colours};

    /// As `Bits::block` compiled for AVX2.
    ///
    /// # Safety
    /// AVX2 and BMI2 are there.
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    pub(super) unsafe fn read<const KEEP: bool>(
        bits: &mut Bits<'_>,
        tables: [&Table; 2],
        steps: &Steps,
        mean: &mut i32,
        block: &mut [i16; 64],
    ) -> Result<usize, Damage> {
        bits.block::<KEEP>(tables, steps, mean, block)
    }

    /// Copies bytes up to the first that is 255; returns their number.
    ///
    /// # Safety
    /// AVX2 is there, and both are as long: a multiple of 32.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn copy_until_255(from: &[u8], to: &mut [u8]) -> usize {
        for at in (0..from.len()).step_by(32) {
            // SAFETY: `at + 32` is at most the length of both.
            let full = unsafe {
                let bytes = _mm256_loadu_si256(from.as_ptr().add(at).cast());
                _mm256_storeu_si256(to.as_mut_ptr().add(at).cast(), bytes);
                _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(-1)))
            };
            if full != 0 {
                return at + full.trailing_zeros() as usize;
            }
        }
        from.len()
    }

    /// A pair of factors for every lane.
    #[target_feature(enable = "avx2")]
    fn pair([a, b]: [i16; 2]) -> __m256i {
        _mm256_set1_epi32(i32::from(b) << 16 | i32::from(a) & 0xffff)
    }

    /// x and y in turns.
    #[target_feature(enable = "avx2")]
    fn zipped(x: __m128i, y: __m128i) -> __m256i {
        _mm256_set_m128i(_mm_unpackhi_epi16(x, y), _mm_unpacklo_epi16(x, y))
    }

    /// Eight columns, without their rounding; see `one` beside.
    #[target_feature(enable = "avx2")]
    fn columns([x0, x1, x2, x3, x4, x5, x6, x7]: [__m128i; 8]) -> [__m256i; 8] {
        let even = zipped(x2, x6);
        let (low, high) =
            (_mm256_madd_epi16(even, pair(factor::EVEN[0])), _mm256_madd_epi16(even, pair(factor::EVEN[1])));
        let sum = _mm256_slli_epi32::<13>(_mm256_cvtepi16_epi32(_mm_add_epi16(x0, x4)));
        let difference = _mm256_slli_epi32::<13>(_mm256_cvtepi16_epi32(_mm_sub_epi16(x0, x4)));
        let even = [
            _mm256_add_epi32(sum, high),
            _mm256_add_epi32(difference, low),
            _mm256_sub_epi32(difference, low),
            _mm256_sub_epi32(sum, high),
        ];
        let sums = zipped(_mm_add_epi16(x7, x3), _mm_add_epi16(x5, x1));
        let (a, b) =
            (_mm256_madd_epi16(sums, pair(factor::SUMS[0])), _mm256_madd_epi16(sums, pair(factor::SUMS[1])));
        let (outer, inner) = (zipped(x7, x1), zipped(x5, x3));
        let odd = [
            _mm256_add_epi32(_mm256_madd_epi16(outer, pair(factor::OUTER[1])), b),
            _mm256_add_epi32(_mm256_madd_epi16(inner, pair(factor::INNER[1])), a),
            _mm256_add_epi32(_mm256_madd_epi16(inner, pair(factor::INNER[0])), b),
            _mm256_add_epi32(_mm256_madd_epi16(outer, pair(factor::OUTER[0])), a),
        ];
        [
            _mm256_add_epi32(even[0], odd[0]),
            _mm256_add_epi32(even[1], odd[1]),
            _mm256_add_epi32(even[2], odd[2]),
            _mm256_add_epi32(even[3], odd[3]),
            _mm256_sub_epi32(even[3], odd[3]),
            _mm256_sub_epi32(even[2], odd[2]),
            _mm256_sub_epi32(even[1], odd[1]),
            _mm256_sub_epi32(even[0], odd[0]),
        ]
    }

    #[target_feature(enable = "avx2")]
    fn turned([a, b, c, d, e, f, g, h]: [__m128i; 8]) -> [__m128i; 8] {
        let (ab, cd) = (_mm_unpacklo_epi16(a, b), _mm_unpacklo_epi16(c, d));
        let (ef, gh) = (_mm_unpacklo_epi16(e, f), _mm_unpacklo_epi16(g, h));
        let (ab2, cd2) = (_mm_unpackhi_epi16(a, b), _mm_unpackhi_epi16(c, d));
        let (ef2, gh2) = (_mm_unpackhi_epi16(e, f), _mm_unpackhi_epi16(g, h));
        let (p, q) = (_mm_unpacklo_epi32(ab, cd), _mm_unpackhi_epi32(ab, cd));
        let (r, s) = (_mm_unpacklo_epi32(ef, gh), _mm_unpackhi_epi32(ef, gh));
        let (p2, q2) = (_mm_unpacklo_epi32(ab2, cd2), _mm_unpackhi_epi32(ab2, cd2));
        let (r2, s2) = (_mm_unpacklo_epi32(ef2, gh2), _mm_unpackhi_epi32(ef2, gh2));
        [
            _mm_unpacklo_epi64(p, r),
            _mm_unpackhi_epi64(p, r),
            _mm_unpacklo_epi64(q, s),
            _mm_unpackhi_epi64(q, s),
            _mm_unpacklo_epi64(p2, r2),
            _mm_unpackhi_epi64(p2, r2),
            _mm_unpacklo_epi64(q2, s2),
            _mm_unpackhi_epi64(q2, s2),
        ]
    }

    /// The eight rows of a block.
    ///
    /// # Safety
    /// AVX2 is there, and `out` has `7 · stride + 8` bytes.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn inverse(coefficients: &[i16; 64], out: &mut [u8], stride: usize) {
        // SAFETY: eight vectors of eight are the 64 numbers.
        let row = |y: usize| unsafe { _mm_loadu_si128(coefficients.as_ptr().add(8 * y).cast()) };
        let sums = columns([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)]);
        let half = _mm256_set1_epi32(1 << 10);
        let round = |x| _mm256_srai_epi32::<11>(_mm256_add_epi32(x, half));
        // Packing works within halves: the quarters are put into their order.
        let two = |a, b| {
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(round(a), round(b)));
            (_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed))
        };
        let ((a, b), (c, d)) = (two(sums[0], sums[1]), two(sums[2], sums[3]));
        let ((e, f), (g, h)) = (two(sums[4], sums[5]), two(sums[6], sums[7]));
        let sums = columns(turned([a, b, c, d, e, f, g, h]));
        let half = _mm256_set1_epi32(1 << 17);
        let round = |x| _mm256_srai_epi32::<18>(_mm256_add_epi32(x, half));
        let order = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
        // Columns a and c, b and d, as bytes.
        let four = |a, b, c, d| {
            let (ab, cd) = (_mm256_packs_epi32(round(a), round(b)), _mm256_packs_epi32(round(c), round(d)));
            let packed = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order);
            let packed = _mm256_xor_si256(packed, _mm256_set1_epi8(-128));
            (_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed))
        };
        let (x04, x15) = four(sums[0], sums[1], sums[4], sums[5]);
        let (x26, x37) = four(sums[2], sums[3], sums[6], sums[7]);
        let (p, q) = (_mm_unpacklo_epi8(x04, x15), _mm_unpacklo_epi8(x26, x37));
        let (r, s) = (_mm_unpackhi_epi8(x04, x15), _mm_unpackhi_epi8(x26, x37));
        let (t0, t1) = (_mm_unpacklo_epi16(p, q), _mm_unpackhi_epi16(p, q));
        let (u0, u1) = (_mm_unpacklo_epi16(r, s), _mm_unpackhi_epi16(r, s));
        let rows = [
            _mm_unpacklo_epi32(t0, u0),
            _mm_unpackhi_epi32(t0, u0),
            _mm_unpacklo_epi32(t1, u1),
            _mm_unpackhi_epi32(t1, u1),
        ];
        for (i, both) in rows.into_iter().enumerate() {
            // SAFETY: the last of these ends at `7 · stride + 8`.
            unsafe {
                _mm_storel_epi64(out.as_mut_ptr().add(2 * i * stride).cast(), both);
                _mm_storel_epi64(
                    out.as_mut_ptr().add((2 * i + 1) * stride).cast(),
                    _mm_unpackhi_epi64(both, both),
                );
            }
        }
    }

    /// As `colours::rgb_portable`, for as many pixels as vectors of 16 hold; returns their number.
    ///
    /// # Safety
    /// AVX2 is there; `y`, `cb` and `cr` have as many bytes, `out` three times as many.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn rgb(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) -> usize {
        const THIRDS: [[[i8; 16]; 3]; 3] = thirds();
        let whole = y.len() / 16 * 16;
        let centre = _mm256_set1_epi16(128);
        let one = _mm256_set1_epi16(1);
        for x in (0..whole).step_by(16) {
            // SAFETY: `x + 16` is at most the length of all three.
            let load =
                |from: &[u8]| unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(from.as_ptr().add(x).cast())) };
            let y = load(y);
            let (cb, cr) = (_mm256_sub_epi16(load(cb), centre), _mm256_sub_epi16(load(cr), centre));
            // A product's upper 16 bits, rounded: of twice the number, and half of that.
            let times = |x: __m256i, factor: i16| {
                let high = _mm256_mulhi_epi16(_mm256_add_epi16(x, x), _mm256_set1_epi16(factor));
                _mm256_srai_epi16::<1>(_mm256_add_epi16(high, one))
            };
            let red = _mm256_add_epi16(_mm256_add_epi16(y, cr), times(cr, 26345));
            let blue = _mm256_add_epi16(_mm256_add_epi16(y, _mm256_add_epi16(cb, cb)), times(cb, -14942));
            let factors = pair([-22554, 18734]);
            let half = _mm256_set1_epi32(1 << 15);
            let sum =
                |both| _mm256_srai_epi32::<16>(_mm256_add_epi32(_mm256_madd_epi16(both, factors), half));
            let green =
                _mm256_packs_epi32(sum(_mm256_unpacklo_epi16(cb, cr)), sum(_mm256_unpackhi_epi16(cb, cr)));
            let green = _mm256_add_epi16(_mm256_sub_epi16(y, cr), green);
            let bytes = |x: __m256i| {
                let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(x, x));
                _mm256_castsi256_si128(packed)
            };
            let colours = [bytes(red), bytes(green), bytes(blue)];
            for (i, masks) in THIRDS.iter().enumerate() {
                let mut third = _mm_setzero_si128();
                for (colour, mask) in colours.iter().zip(masks) {
                    // SAFETY: a mask is 16 bytes.
                    let mask = unsafe { _mm_loadu_si128(mask.as_ptr().cast()) };
                    third = _mm_or_si128(third, _mm_shuffle_epi8(*colour, mask));
                }
                // SAFETY: `3 (x + 16)` is at most `out`'s length.
                unsafe { _mm_storeu_si128(out.as_mut_ptr().add(3 * x + 16 * i).cast(), third) };
            }
        }
        whole
    }

    /// For each third of 16 pixels and each colour: which pixel's value goes to each byte; −128 for none.
    const fn thirds() -> [[[i8; 16]; 3]; 3] {
        let mut masks = [[[-128; 16]; 3]; 3];
        let mut byte = 0;
        while byte < 48 {
            masks[byte / 16][byte % 3][byte % 16] = (byte / 3) as i8;
            byte += 1;
        }
        masks
    }

    /// As `colours::both_ways` compiled for AVX2.
    ///
    /// # Safety
    /// AVX2 is there.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn both_ways(near: &[u8], far: &[u8], sums: &mut [u16], out: &mut [u8]) {
        colours::both_ways(near, far, sums, out);
    }

    /// As `colours::across` compiled for AVX2.
    ///
    /// # Safety
    /// AVX2 is there.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn across(row: &[u8], out: &mut [u8]) {
        colours::across(row, out);
    }
}
