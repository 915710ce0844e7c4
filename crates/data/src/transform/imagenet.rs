//! What the ImageNet recipes do to images: a random piece at the image's size, and changes of colour.

use phalanx_host::rng::Stream;

use super::ops::at;
use super::{Image, Step, Value};
use crate::{Error, FieldSpec, Result};

/// A random piece of random size and shape, scaled to the image's own size (Szegedy et al., 2015), as torchvision's
/// `RandomResizedCrop`.
pub(super) struct RandomResizedCrop {
    /// The piece's part of the image's area.
    area: [f64; 2],
    /// Natural logarithm of the largest width by height; the least is its inverse.
    ratio: f64,
}

/// Places that are tried before the largest piece in the middle is taken.
const TRIES: usize = 10;

impl RandomResizedCrop {
    pub(super) fn build(values: &[Value], _: &FieldSpec) -> Result<Box<dyn Step>> {
        let (area, ratio) = ([at(values, 0), at(values, 1)], at(values, 2));
        if area[0] > area[1] {
            let problem = format!("scale_min {} is above scale_max {}", area[0], area[1]);
            return Err(Error::usage("transform random-resized-crop", problem));
        }
        Ok(Box::new(RandomResizedCrop { area, ratio: ratio.ln() }))
    }

    /// Top, left, height and width of a piece of an image of height `h` and width `w`.
    fn place(&self, [h, w]: [usize; 2], stream: &mut Stream) -> [usize; 4] {
        let mut between = |[a, b]: [f64; 2]| a + (b - a) * stream.f64();
        let sizes = (0..TRIES).find_map(|_| {
            let area = between(self.area) * (h * w) as f64;
            let ratio = between([-self.ratio, self.ratio]).exp();
            let (tall, wide) =
                ((area / ratio).sqrt().round() as usize, (area * ratio).sqrt().round() as usize);
            ((1..=h).contains(&tall) && (1..=w).contains(&wide)).then_some([tall, wide])
        });
        let Some([tall, wide]) = sizes else {
            let most = self.ratio.exp();
            let tall = h.min(((w as f64) * most).round() as usize).max(1);
            let wide = w.min(((h as f64) * most).round() as usize).max(1);
            return [(h - tall) / 2, (w - wide) / 2, tall, wide];
        };
        let top = stream.below((h - tall + 1) as u64) as usize;
        [top, stream.below((w - wide + 1) as u64) as usize, tall, wide]
    }
}

impl Step for RandomResizedCrop {
    fn apply(&self, image: &mut Image, stream: &mut Stream) {
        let [h, w, _] = image.shape;
        if h * w > 0 {
            let place = self.place([h, w], stream);
            enlarge(image, place);
        }
    }
}

/// For each of `out` places the two of `size` (from `from` on) that it lies between and the second one's weight:
/// pixels are areas, so that the first pixel's middle is at ½.
fn between(from: usize, size: usize, out: usize) -> Vec<(usize, usize, f32)> {
    let one = |i: usize| {
        let at = ((i as f64 + 0.5) * size as f64 / out as f64 - 0.5).clamp(0.0, (size - 1) as f64);
        let low = at as usize;
        (from + low, from + (low + 1).min(size - 1), (at - low as f64) as f32)
    };
    (0..out).map(one).collect()
}

/// Scales a piece `[top, left, height, width]` of an image to the image's size, bilinear.
pub(super) fn enlarge(image: &mut Image, [top, left, tall, wide]: [usize; 4]) {
    let [h, w, c] = image.shape;
    if [top, left, tall, wide] == [0, 0, h, w] {
        return;
    }
    let columns = between(left, wide, w);
    let (pixels, scratch) = (&image.pixels, &mut image.scratch);
    scratch.clear();
    for (above, below, down) in between(top, tall, h) {
        let row = |y: usize| &pixels[y * w * c..(y + 1) * w * c];
        let (above, below) = (row(above), row(below));
        for &(a, b, across) in &columns {
            let mix = |row: &[f32], k: usize| {
                let (a, b) = (row[a * c + k], row[b * c + k]);
                a + (b - a) * across
            };
            scratch.extend((0..c).map(|k| {
                let (x, y) = (mix(above, k), mix(below, k));
                x + (y - x) * down
            }));
        }
    }
    std::mem::swap(&mut image.pixels, &mut image.scratch);
}

/// Fails unless images are red, green, blue.
fn want_colours(name: &str, spec: &FieldSpec) -> Result<()> {
    match spec.shape.last() {
        Some(3) => Ok(()),
        _ => {
            let problem = format!("takes images of red, green and blue, not {:?}", spec.shape);
            Err(Error::usage(format!("transform {name}"), problem))
        }
    }
}

/// Random shifts along the principal components of ImageNet's colours (Krizhevsky et al., 2012, section 4.1).
pub(super) struct Lighting {
    deviation: f64,
    max: f64,
}

/// The components of ImageNet's red, green and blue in [0, 1], each with the root of its share of the variance, as
/// fb.resnet.torch has them.
const COMPONENTS: [(f64, [f64; 3]); 3] = [
    (0.2175, [-0.5675, -0.5808, -0.5836]),
    (0.0188, [0.7192, -0.0045, -0.6948]),
    (0.0045, [0.4009, -0.8140, 0.4203]),
];

impl Lighting {
    pub(super) fn build(values: &[Value], spec: &FieldSpec) -> Result<Box<dyn Step>> {
        want_colours("lighting", spec)?;
        Ok(Box::new(Lighting { deviation: at(values, 0), max: f64::from(spec.max) }))
    }
}

impl Step for Lighting {
    fn apply(&self, image: &mut Image, stream: &mut Stream) {
        let mut shift = [0.0; 3];
        for (size, component) in COMPONENTS {
            let by = size * self.deviation * stream.normal() * self.max;
            shift.iter_mut().zip(component).for_each(|(s, c)| *s += by * c);
        }
        for pixel in image.pixels.as_chunks_mut::<3>().0 {
            pixel.iter_mut().zip(shift).for_each(|(x, s)| *x += s as f32);
        }
    }
}

/// Random changes of brightness, contrast and saturation in random order, as torchvision's `ColorJitter`: mixing with
/// black, with the mean grey and with the pixel's grey.
pub(super) struct ColorJitter {
    most: [f64; 3],
    max: f32,
}

impl ColorJitter {
    pub(super) fn build(values: &[Value], spec: &FieldSpec) -> Result<Box<dyn Step>> {
        want_colours("color-jitter", spec)?;
        Ok(Box::new(ColorJitter { most: [0, 1, 2].map(|i| at(values, i)), max: spec.max }))
    }
}

/// How bright a pixel is (ITU-R BT.601).
fn grey(&[r, g, b]: &[f32; 3]) -> f32 {
    0.299 * r + 0.587 * g + 0.114 * b
}

impl Step for ColorJitter {
    fn apply(&self, image: &mut Image, stream: &mut Stream) {
        let mut order = [0, 1, 2];
        for i in (1..order.len()).rev() {
            order.swap(i, stream.below(i as u64 + 1) as usize);
        }
        let pixels = image.pixels.as_chunks_mut::<3>().0;
        for what in order {
            let most = self.most[what];
            let factor = (1.0 - most + 2.0 * most * stream.f64()).max(0.0) as f32;
            let mean = match what {
                1 => pixels.iter().map(|p| f64::from(grey(p))).sum::<f64>() / pixels.len().max(1) as f64,
                _ => 0.0,
            };
            for pixel in &mut *pixels {
                let other = if what == 2 { grey(pixel) } else { mean as f32 };
                pixel.iter_mut().for_each(|x| *x = (other + (*x - other) * factor).clamp(0.0, self.max));
            }
        }
    }
}
