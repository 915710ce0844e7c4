//! Zero padding, done once by copy so that no kernel has to know of borders.

use crate::simd::Real;

use super::shape::{ConvShape, Sizes};

/// Writes rows `first..first + rows` of image `n`, padded, to `out`.
pub(super) fn pad_rows<T: Real>(
    shape: &ConvShape,
    z: &Sizes,
    x: &[T],
    n: usize,
    first: usize,
    rows: usize,
    out: &mut [T],
) {
    let (side, row) = (shape.padding[1] * shape.in_c, shape.in_w * shape.in_c);
    for (r, out) in out[..rows * z.pad_row].chunks_exact_mut(z.pad_row).enumerate() {
        let y = (first + r).wrapping_sub(shape.padding[0]);
        if y < shape.in_h {
            let at = (n * shape.in_h + y) * row;
            out[..side].fill(T::ZERO);
            out[side..side + row].copy_from_slice(&x[at..at + row]);
            out[side + row..].fill(T::ZERO);
        } else {
            out.fill(T::ZERO);
        }
    }
}

/// Writes (or adds) the inside of a padded image to an image.
pub(super) fn crop<T: Real>(shape: &ConvShape, z: &Sizes, padded: &[T], image: &mut [T], add: bool) {
    let (side, row) = (shape.padding[1] * shape.in_c, shape.in_w * shape.in_c);
    for (y, out) in image.chunks_exact_mut(row).enumerate() {
        let at = (y + shape.padding[0]) * z.pad_row + side;
        let from = &padded[at..at + row];
        if add {
            out.iter_mut().zip(from).for_each(|(o, &f)| *o += f);
        } else {
            out.copy_from_slice(from);
        }
    }
}
