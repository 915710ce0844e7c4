//! From planes of brightness and colour differences to pixels: differences that were sampled at half the rate are
//! interpolated (three parts of the nearer sample, one of the other), then all become red, green and blue (JFIF). Both
//! are libjpeg's, to the last bit.

use super::simd;
use crate::picture::simd::Avx2;

/// Samples of one row at twice the rate: `out` has two for each of `row`.
#[inline(always)]
pub(super) fn across(row: &[u8], out: &mut [u8]) {
    let n = row.len();
    let at = |i: usize| u16::from(row[i]);
    let put = |own: u16, other: u16, more: u16| ((3 * own + other + more) >> 2) as u8;
    if n == 0 {
        return;
    }
    out[0] = put(at(0), at(0), 1);
    out[2 * n - 1] = put(at(n - 1), at(n - 1), 2);
    for ((pair, own), next) in out[1..2 * n - 1].as_chunks_mut::<2>().0.iter_mut().zip(row).zip(&row[1..]) {
        let (own, next) = (u16::from(*own), u16::from(*next));
        *pair = [put(own, next, 2), put(next, own, 1)];
    }
}

/// The same at twice the rate both ways: of a nearer and a further row. `sums` is as long as they are.
#[inline(always)]
pub(super) fn both_ways(near: &[u8], far: &[u8], sums: &mut [u16], out: &mut [u8]) {
    let n = near.len();
    if n == 0 {
        return;
    }
    for ((sum, near), far) in sums.iter_mut().zip(near).zip(far) {
        *sum = 3 * u16::from(*near) + u16::from(*far);
    }
    let sums = &sums[..n];
    let put = |own: u16, other: u16, more: u16| ((3 * own + other + more) >> 4) as u8;
    out[0] = put(sums[0], sums[0], 8);
    out[2 * n - 1] = put(sums[n - 1], sums[n - 1], 7);
    for ((pair, own), next) in out[1..2 * n - 1].as_chunks_mut::<2>().0.iter_mut().zip(sums).zip(&sums[1..]) {
        *pair = [put(*own, *next, 7), put(*next, *own, 8)];
    }
}

/// Samples of one row between two: `more` is 1 where the other row is above, 2 where it is below.
pub(super) fn down(near: &[u8], far: &[u8], more: u16, out: &mut [u8]) {
    for ((to, near), far) in out.iter_mut().zip(near).zip(far) {
        *to = ((3 * u16::from(*near) + u16::from(*far) + more) >> 2) as u8;
    }
}

/// Red, green and blue of brightness and differences.
pub(super) fn rgb(avx2: Option<Avx2>, y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    let done = simd::rgb(avx2, y, cb, cr, out);
    let (y, cb, cr, out) = (&y[done..], &cb[done..], &cr[done..], &mut out[3 * done..]);
    for (((pixel, y), cb), cr) in out.as_chunks_mut::<3>().0.iter_mut().zip(y).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(*y), i32::from(*cb) - 128, i32::from(*cr) - 128);
        let sums = [91881 * cr + HALF, HALF - 22554 * cb - 46802 * cr, 116_130 * cb + HALF];
        *pixel = sums.map(|s| (y + (s >> 16)).clamp(0, 255) as u8);
    }
}
