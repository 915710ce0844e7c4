//! Rows that move or fill whole pixels, the same on bytes and floats.

use phalanx_host::rng::Stream;

use super::left::{Later, Part};
use super::ops::{at, range};
use super::{Image, Step, Value};
use crate::{Error, FieldSpec, Result};

/// A random shift. Padding by p and cropping at a random place is the same as a shift by at most p.
pub(super) struct Translate {
    most: Most,
}

/// How far it may shift, either way.
enum Most {
    Pixels(i64),
    Fraction(f64),
}

impl Translate {
    pub(super) fn pixels(most: f64) -> Self {
        Translate { most: Most::Pixels(most as i64) }
    }

    pub(super) fn build(values: &[Value], _: &FieldSpec) -> Result<Box<dyn Step>> {
        let most = match (&values[0], &values[1]) {
            (Value::Number(_), Value::Number(_)) => {
                return Err(Error::usage("transform translate", "takes `pixels` or `fraction`, not both"));
            }
            (Value::Number(pixels), _) => Most::Pixels(*pixels as i64),
            (_, Value::Number(f)) => Most::Fraction(*f),
            _ => Most::Fraction(0.1),
        };
        Ok(Box::new(Translate { most }))
    }

    /// How far an image of that height and width goes down and to the right.
    fn draw(&self, size: [usize; 2], stream: &mut Stream) -> [i64; 2] {
        let most = match self.most {
            Most::Pixels(most) => [most; 2],
            Most::Fraction(f) => size.map(|of| (of as f64 * f).round() as i64),
        };
        most.map(|most| stream.below(2 * most as u64 + 1) as i64 - most)
    }

    fn shift<T: Copy + Default>(&self, image: &mut Image<T>, stream: &mut Stream) {
        let [h, w, c] = image.shape;
        let [dy, dx] = self.draw([h, w], stream);
        if (dy, dx) == (0, 0) {
            return;
        }
        image.scratch.clear();
        image.scratch.resize(image.pixels.len(), T::default());
        // The columns that stay inside: from `from` in the old image to `to` in the new one.
        let kept = w.saturating_sub(dx.unsigned_abs() as usize) * c;
        let (from, to) = ((-dx).max(0) as usize * c, dx.max(0) as usize * c);
        for y in 0..h {
            let source = y as i64 - dy;
            if (0..h as i64).contains(&source) && kept > 0 {
                let old = &image.pixels[source as usize * w * c..][from..from + kept];
                image.scratch[y * w * c..][to..to + kept].copy_from_slice(old);
            }
        }
        std::mem::swap(&mut image.pixels, &mut image.scratch);
    }
}

impl Step for Translate {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        self.shift(image, stream);
    }

    fn on_bytes(&self) -> bool {
        true
    }

    fn apply_bytes(&self, image: &mut Image<u8>, stream: &mut Stream) {
        self.shift(image, stream);
    }

    fn later(&self) -> Option<Later> {
        Some(Later::Shifts)
    }

    fn place(&self, part: &mut Part, stream: &mut Stream) {
        part.cut(self.draw(part.size, stream).map(|by| -by), part.size);
    }
}

/// Fills a random rectangle (Zhong et al., "Random erasing data augmentation", 2017), as torchvision's `RandomErasing`.
pub(super) struct Erase {
    p: f64,
    area: [f64; 2],
    /// Natural logarithm of the largest width by height; the least is its inverse.
    ratio: f64,
    value: f32,
}

impl Erase {
    pub(super) fn build(values: &[Value], _: &FieldSpec) -> Result<Box<dyn Step>> {
        let names = ["scale_min", "scale_max"];
        let area = range("random-erasing", names, [at(values, 1), at(values, 2)])?;
        Ok(Box::new(Erase { p: at(values, 0), area, ratio: at(values, 3).ln(), value: at(values, 4) as f32 }))
    }

    fn fill<T: Copy>(&self, image: &mut Image<T>, value: T, stream: &mut Stream) {
        if stream.f64() >= self.p {
            return;
        }
        let [h, w, c] = image.shape;
        // As often as torchvision tries.
        for _ in 0..10 {
            let mut between = |[a, b]: [f64; 2]| a + (b - a) * stream.f64();
            let area = between(self.area) * (h * w) as f64;
            let ratio = between([-self.ratio, self.ratio]).exp();
            let (tall, wide) =
                ((area / ratio).sqrt().round() as usize, (area * ratio).sqrt().round() as usize);
            if tall >= h || wide >= w {
                continue;
            }
            let top = stream.below((h - tall + 1) as u64) as usize;
            let left = stream.below((w - wide + 1) as u64) as usize;
            for row in image.pixels.chunks_exact_mut(w * c).skip(top).take(tall) {
                row[left * c..][..wide * c].fill(value);
            }
            return;
        }
    }
}

impl Step for Erase {
    fn apply(&self, image: &mut Image<f32>, stream: &mut Stream) {
        self.fill(image, self.value, stream);
    }

    fn on_bytes(&self) -> bool {
        self.value.fract() == 0.0 && (0.0..=255.0).contains(&self.value)
    }

    fn apply_bytes(&self, image: &mut Image<u8>, stream: &mut Stream) {
        self.fill(image, self.value as u8, stream);
    }
}
