//! Rows that change colours.

use phalanx_host::rng::Stream;

use super::ops::at;
use super::{Image, Step, Value};
use crate::picture::luma;
use crate::{Error, FieldSpec, Result};

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
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
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

/// Random changes of brightness, contrast, saturation and hue in random order, as torchvision's `ColorJitter`: mixing
/// with black, with the mean grey and with the pixel's grey, and turning the circle of colours.
pub(super) struct ColorJitter {
    most: [f64; 4],
    max: f32,
}

impl ColorJitter {
    pub(super) fn build(values: &[Value], spec: &FieldSpec) -> Result<Box<dyn Step>> {
        want_colours("color-jitter", spec)?;
        Ok(Box::new(ColorJitter { most: [0, 1, 2, 3].map(|i| at(values, i)), max: spec.max }))
    }
}

/// How bright a pixel is (ITU-R BT.601).
fn grey(&[r, g, b]: &[f32; 3]) -> f32 {
    0.299 * r + 0.587 * g + 0.114 * b
}

/// Turns a pixel's hue by a part of the circle; value and saturation stay (the hexcone of Smith, 1978).
fn turn(pixel: &mut [f32; 3], by: f32) {
    let [r, g, b] = *pixel;
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = most - least;
    if chroma <= 0.0 {
        return;
    }
    let sector = if most == r {
        (g - b) / chroma
    } else if most == g {
        (b - r) / chroma + 2.0
    } else {
        (r - g) / chroma + 4.0
    };
    let at = sector + 6.0 * by;
    // How far channel `n` is below the largest, by its distance on the circle of six.
    let channel = |n: f32| {
        let k = (n + at).rem_euclid(6.0);
        most - chroma * k.min(4.0 - k).clamp(0.0, 1.0)
    };
    *pixel = [5.0, 3.0, 1.0].map(channel);
}

impl Step for ColorJitter {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        let mut order = [0, 1, 2, 3];
        // Without hue there are three, which draw what they drew before there was a fourth.
        let order = &mut order[..if self.most[3] > 0.0 { 4 } else { 3 }];
        for i in (1..order.len()).rev() {
            order.swap(i, stream.below(i as u64 + 1) as usize);
        }
        let pixels = image.pixels.as_chunks_mut::<3>().0;
        for &mut what in order {
            let most = self.most[what];
            let off = 2.0 * most * stream.f64();
            if what == 3 {
                pixels.iter_mut().for_each(|p| turn(p, (off - most) as f32));
                continue;
            }
            let factor = (1.0 - most + off).max(0.0) as f32;
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

/// Takes the colours away at random, as torchvision's `RandomGrayscale`.
pub(super) struct Grey {
    p: f64,
}

impl Grey {
    pub(super) fn build(values: &[Value], spec: &FieldSpec) -> Result<Box<dyn Step>> {
        want_colours("grey", spec)?;
        Ok(Box::new(Grey { p: at(values, 0) }))
    }
}

impl Step for Grey {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        if stream.f64() < self.p {
            image.pixels.as_chunks_mut::<3>().0.iter_mut().for_each(|p| *p = [grey(p); 3]);
        }
    }

    fn on_bytes(&self) -> bool {
        true
    }

    fn apply_bytes(&self, image: &mut Image<u8>, stream: &mut Stream) {
        if stream.f64() < self.p {
            image.pixels.as_chunks_mut::<3>().0.iter_mut().for_each(|p| *p = [luma(p); 3]);
        }
    }
}
