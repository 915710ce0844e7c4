//! Rows that turn, scale and slant images.

use phalanx_host::rng::Stream;

use super::ops::{at, range};
use super::{Image, Step, Value};
use crate::{FieldSpec, Result};

pub(super) struct Rotate {
    pub(super) radians: f64,
}

impl Step for Rotate {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        let angle = (2.0 * stream.f64() - 1.0) * self.radians;
        if angle == 0.0 {
            return;
        }
        let (sin, cos) = angle.sin_cos();
        rotate(image, sin as f32, cos as f32);
    }
}

/// A random affine map about the centre, as torchvision's `RandomAffine`.
pub(super) struct Affine {
    radians: f64,
    fraction: f64,
    scale: [f64; 2],
    shear: f64,
}

impl Affine {
    pub(super) fn build(values: &[Value], _: &FieldSpec) -> Result<Box<dyn Step>> {
        let scale = range("affine", ["scale_min", "scale_max"], [at(values, 2), at(values, 3)])?;
        let [radians, shear] = [0, 4].map(|i| at(values, i).to_radians());
        Ok(Box::new(Affine { radians, fraction: at(values, 1), scale, shear }))
    }
}

impl Step for Affine {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        let mut within = |most: f64| (2.0 * stream.f64() - 1.0) * most;
        let [h, w, _] = image.shape;
        let (angle, down, right) =
            (within(self.radians), within(self.fraction) * h as f64, within(self.fraction) * w as f64);
        let shear = within(self.shear).tan();
        let scale = self.scale[0] + (self.scale[1] - self.scale[0]) * stream.f64();
        let (sin, cos) = angle.sin_cos();
        // Out of the image: slanted along x, scaled, turned counter-clockwise, shifted. Where a pixel comes from is the
        // inverse: shifted back, turned back, made smaller, straightened.
        let [a, b, c, d] = [cos, -sin, sin, cos].map(|x| x / scale);
        let matrix = [a - shear * c, b - shear * d, c, d];
        let back = [-(matrix[0] * right + matrix[1] * down), -(matrix[2] * right + matrix[3] * down)];
        warp(image, matrix.map(|x| x as f32), back.map(|x| x as f32));
    }
}

/// The next whole number below; `f32::floor` is a library call on the oldest processors.
#[inline(always)]
fn floor(x: f32) -> i64 {
    let cut = x as i64;
    cut - i64::from((cut as f32) > x)
}

/// Turns an image about its centre, counter-clockwise as it is seen (y points down).
pub(super) fn rotate(image: &mut Image<f32>, sin: f32, cos: f32) {
    warp(image, [cos, -sin, sin, cos], [0.0; 2]);
}

/// Takes the pixel at (x, y) from the centre out of the place `matrix · (x, y) + shift` from it.
fn warp(image: &mut Image<f32>, [xx, xy, yx, yy]: [f32; 4], shift: [f32; 2]) {
    let [h, w, c] = image.shape;
    let (cx, cy) = ((w as f32 - 1.0) / 2.0, (h as f32 - 1.0) / 2.0);
    let (to_x, to_y) = (cx + shift[0], cy + shift[1]);
    image.scratch.clear();
    let (pixels, scratch) = (&image.pixels, &mut image.scratch);
    let value = |x: i64, y: i64, channel: usize| {
        let inside = (0..w as i64).contains(&x) && (0..h as i64).contains(&y);
        if inside { pixels[(y as usize * w + x as usize) * c + channel] } else { 0.0 }
    };
    for y in 0..h {
        for x in 0..w {
            let (dx, dy) = (x as f32 - cx, y as f32 - cy);
            // Where this pixel comes from.
            let (sx, sy) = (xx * dx + xy * dy + to_x, yx * dx + yy * dy + to_y);
            let (x0, y0) = (floor(sx), floor(sy));
            let (fx, fy) = (sx - x0 as f32, sy - y0 as f32);
            let mix = |[a, b, c, d]: [f32; 4]| {
                let (top, bottom) = (a * (1.0 - fx) + b * fx, c * (1.0 - fx) + d * fx);
                top * (1.0 - fy) + bottom * fy
            };
            if (0..w as i64 - 1).contains(&x0) && (0..h as i64 - 1).contains(&y0) {
                // All four neighbours are inside.
                let above = &pixels[(y0 as usize * w + x0 as usize) * c..][..2 * c];
                let below = &pixels[((y0 as usize + 1) * w + x0 as usize) * c..][..2 * c];
                scratch.extend((0..c).map(|k| mix([above[k], above[k + c], below[k], below[k + c]])));
            } else {
                scratch.extend((0..c).map(|k| {
                    let (x1, y1) = (x0 + 1, y0 + 1);
                    mix([value(x0, y0, k), value(x1, y0, k), value(x0, y1, k), value(x1, y1, k)])
                }));
            }
        }
    }
    std::mem::swap(&mut image.pixels, &mut image.scratch);
}
