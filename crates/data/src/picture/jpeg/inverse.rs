//! From a block's coefficients to its pixels: the inverse cosine transform of Loeffler, Ligtenberg and Moshovitz
//! ("Practical fast 1-D DCT algorithms with 11 multiplications", 1989) in whole numbers of 13 bits behind the point,
//! columns first, with two bits kept between the passes. That is what libjpeg's exact method computes, so the
//! pixels are those that Pillow gives. Smaller blocks are the means of their squares, as if the image were made smaller
//! after it was decoded.

use super::simd;
use crate::picture::simd::Avx2;

/// Puts the pixels of a block into a plane whose rows are `stride` bytes apart: a square of `side` (1, 2, 4 or 8).
pub(super) fn block(
    avx2: Option<Avx2>,
    coefficients: &[i16; 64],
    side: usize,
    out: &mut [u8],
    stride: usize,
) {
    match side {
        8 => full(avx2, coefficients, out, stride),
        1 => out[0] = level(coefficients[0], 3),
        _ => {
            let mut pixels = [0; 64];
            full(avx2, coefficients, &mut pixels, 8);
            match side {
                4 => means::<2>(&pixels, out, stride),
                _ => means::<4>(&pixels, out, stride),
            }
        }
    }
}

fn full(avx2: Option<Avx2>, coefficients: &[i16; 64], out: &mut [u8], stride: usize) {
    if !simd::inverse(avx2, coefficients, out, stride) {
        eight(coefficients, out, stride);
    }
}

/// The means of squares of `SIDE` pixels.
fn means<const SIDE: usize>(pixels: &[u8; 64], out: &mut [u8], stride: usize) {
    let all = (SIDE * SIDE) as u16;
    for (rows, to) in pixels.chunks_exact(8 * SIDE).zip(out.chunks_mut(stride)) {
        let mut sums = [0u16; 8];
        for row in rows.as_chunks::<8>().0 {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += u16::from(*x));
        }
        for (sums, to) in sums.as_chunks::<SIDE>().0.iter().zip(to) {
            *to = ((sums.iter().sum::<u16>() + all / 2) / all) as u8;
        }
    }
}

/// The pixels of a block whose mean is its only coefficient.
pub(super) fn even(mean: i16, side: usize, out: &mut [u8], stride: usize) {
    let pixel = level(mean, 3);
    for row in out.chunks_mut(stride).take(side) {
        row[..side].fill(pixel);
    }
}

/// A sum of which the last `bits` are behind the point, as a pixel.
fn level(sum: impl Into<i32>, bits: u32) -> u8 {
    ((sum.into().wrapping_add(1 << (bits - 1)) >> bits) + 128).clamp(0, 255) as u8
}

/// The factors of the transform, in 13 bits: cosines and their sums, in the pairs in which they are used.
pub(super) mod factor {
    pub(in super::super) const EVEN: [[i16; 2]; 2] = [[4433, 4433 - 15137], [4433 + 6270, 4433]];
    pub(in super::super) const SUMS: [[i16; 2]; 2] = [[9633 - 16069, 9633], [9633, 9633 - 3196]];
    pub(in super::super) const OUTER: [[i16; 2]; 2] = [[2446 - 7373, -7373], [-7373, 12299 - 7373]];
    pub(in super::super) const INNER: [[i16; 2]; 2] = [[16819 - 20995, -20995], [-20995, 25172 - 20995]];
}

/// One column or row, without its rounding. Sums of two inputs are those of 16 bits, as vectors have them.
fn one([x0, x1, x2, x3, x4, x5, x6, x7]: [i16; 8]) -> [i32; 8] {
    let pair = |[a, b]: [i16; 2], x: i16, y: i16| i32::from(a) * i32::from(x) + i32::from(b) * i32::from(y);
    let pairs = |[a, b]: [[i16; 2]; 2], x, y| [pair(a, x, y), pair(b, x, y)];
    let [low, high] = pairs(factor::EVEN, x2, x6);
    let (sum, difference) = (i32::from(x0.wrapping_add(x4)) << 13, i32::from(x0.wrapping_sub(x4)) << 13);
    let even = [sum + high, difference + low, difference - low, sum - high];
    let [a, b] = pairs(factor::SUMS, x7.wrapping_add(x3), x5.wrapping_add(x1));
    let [o0, o3] = pairs(factor::OUTER, x7, x1);
    let [o1, o2] = pairs(factor::INNER, x5, x3);
    let odd = [o3.wrapping_add(b), o2.wrapping_add(a), o1.wrapping_add(b), o0.wrapping_add(a)];
    let mut out = [0; 8];
    for i in 0..4 {
        out[i] = even[i].wrapping_add(odd[i]);
        out[7 - i] = even[i].wrapping_sub(odd[i]);
    }
    out
}

fn eight(coefficients: &[i16; 64], out: &mut [u8], stride: usize) {
    let mut middle = [0i16; 64];
    for x in 0..8 {
        let column = one([0, 1, 2, 3, 4, 5, 6, 7].map(|y| coefficients[8 * y + x]));
        for (y, sum) in column.into_iter().enumerate() {
            middle[8 * y + x] = (sum.wrapping_add(1 << 10) >> 11).clamp(-32768, 32767) as i16;
        }
    }
    for (row, to) in middle.as_chunks::<8>().0.iter().zip(out.chunks_mut(stride)) {
        for (sum, to) in one(*row).into_iter().zip(to) {
            *to = level(sum, 18);
        }
    }
}
