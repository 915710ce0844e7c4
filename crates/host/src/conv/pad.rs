//! Zero padding, done once by copy so that no kernel has to know of borders.

use crate::simd::Real;

use super::windows::Windows;

/// Writes the input rows of `rows` neighbouring rows of an image as windows see them, `out.len()` numbers in
/// all: from the first place of output row `row`'s windows on.
pub(super) fn pad_rows<T: Real>(w: &Windows, image: &[T], row: usize, out: &mut [T]) {
    let row_len = w.row_len();
    let (width, channels) = (w.size[1], w.channels);
    // The first pixel that a padded row has of the image's row, and where it stands there.
    let from = w.origin[1].max(0) as usize;
    let side = (-w.origin[1]).max(0) as usize * channels;
    let len = (width.saturating_sub(from) * channels).min(row_len.saturating_sub(side));
    let first = w.origin[0] + (row * w.stride[0]) as isize;
    for (r, out) in out.chunks_exact_mut(row_len).enumerate() {
        let y = first + r as isize;
        if y >= 0 && (y as usize) < w.size[0] && len > 0 {
            let at = (y as usize * width + from) * channels;
            out[..side].fill(T::ZERO);
            out[side..side + len].copy_from_slice(&image[at..at + len]);
            out[side + len..].fill(T::ZERO);
        } else {
            out.fill(T::ZERO);
        }
    }
}
