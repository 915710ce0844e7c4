//! What distinguishes the classes, and what distinguishes the images of a class.

use phalanx_host::rng::{Key, Stream};

use super::noise::{Bits, Octave, wave};
use super::shape::{FAMILIES, Family, Shape};

/// Separate the random streams of classes and of images from all others of a seed.
const CLASSES: u64 = 0x7379_6E74_6800;
const IMAGES: u64 = 0x7379_6E74_6801;

/// Square roots of these step through the properties of classes (Kronecker's sequence): neighbouring classes are far
/// from each other, and any number of them fills the space evenly.
const PRIMES: [f64; 11] = [2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0, 29.0, 31.0];

/// A class: a pure function of seed and class.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Look {
    pub(super) family: Family,
    /// Shapes in a picture, about.
    count: f32,
    /// Of a shape, in shorter sides.
    radius: f32,
    /// Waves of a shape, in its radius.
    filling: f32,
    /// Waves of the ground, in the shorter side.
    waves: f32,
    /// Where they go, in turns.
    angle: f32,
    /// From waves (1) to stripes.
    sharpness: f32,
    /// How much of the ground is waves; the rest is noise.
    share: f32,
    /// How much weaker the noise is from scale to scale.
    persistence: f32,
    /// How much longer than high its spots are.
    stretch: f32,
    /// Of ground and shapes, in turns.
    hues: [f32; 2],
}

impl Look {
    pub(super) fn of(seed: u64, class: u64) -> Self {
        let mut start = Key::new(seed).derive(CLASSES, 0).stream();
        let mut each = PRIMES.into_iter().map(|p| {
            let step = p.sqrt();
            (start.f64() + step.fract() * class as f64).fract() as f32
        });
        // As many as there are properties.
        let mut next = || each.next().unwrap_or(0.0);
        let family = FAMILIES[((next() * FAMILIES.len() as f32) as usize).min(FAMILIES.len() - 1)];
        let between = |x: f32, from: f32, to: f32| from + x * (to - from);
        // Fewer ones are larger.
        let many = next();
        Look {
            family,
            count: between(many * many, 1.0, 8.0),
            radius: between(1.0 - many, 0.13, 0.27),
            filling: between(next(), 0.0, 2.0),
            waves: between(next(), 2.5, 11.0),
            angle: between(next(), 0.0, 0.5),
            sharpness: between(next(), 1.0, 4.0),
            share: between(next(), 0.2, 0.75),
            persistence: between(next(), 0.45, 0.8),
            stretch: between(next(), 0.4, 2.5),
            hues: [next(), next()],
        }
    }
}

/// An image: a pure function of seed, split, class and index.
#[derive(Debug)]
pub(super) struct Draw {
    /// Rows and columns.
    pub(super) size: [usize; 2],
    /// The ground's waves in a pixel, down and across.
    pub(super) step: [f32; 2],
    pub(super) phase: f32,
    /// How far the coarsest noise moves the waves, in turns.
    pub(super) bend: f32,
    pub(super) sharpness: f32,
    pub(super) share: f32,
    /// The ground's noise, coarsest first, with the amplitudes.
    pub(super) octaves: Vec<(Octave, f32)>,
    /// Between which the ground lies.
    pub(super) colours: [[f32; 3]; 2],
    pub(super) shapes: Vec<Shape>,
    /// How much brighter it becomes in a pixel, down and across.
    pub(super) gradient: [f32; 2],
    /// The amplitude of noise from pixel to pixel.
    pub(super) grain: f32,
    /// Where that noise comes from.
    pub(super) bits: Bits,
}

/// Where an image is in its set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) seed: u64,
    /// 0 for training, 1 for validation: streams of their own.
    pub(super) split: u64,
    pub(super) class: u64,
    pub(super) index: u64,
}

impl Place {
    fn stream(self) -> Stream {
        Key::new(self.seed).derive(IMAGES, self.split).derive(self.class, self.index).stream()
    }
}

/// Rows and columns of the image: around `size` by the factor `vary`, and sometimes upright instead.
fn size_from(r: &mut Stream, [height, width]: [usize; 2], vary: f32) -> [usize; 2] {
    let mut side = |n: usize| ((n as f32 * (1.0 + vary * (2.0 * r.f32() - 1.0)) + 0.5) as usize).max(1);
    let (height, width) = (side(height), side(width));
    let upright = r.f32() < 0.2 && vary > 0.0;
    if upright { [width, height] } else { [height, width] }
}

impl Draw {
    pub(super) fn of(place: Place, look: &Look, size: [usize; 2], vary: f32) -> Self {
        let mut r = place.stream();
        let size = size_from(&mut r, size, vary);
        let mut bits = Bits::new(r.u64());
        let mut between = |from: f32, to: f32| from + r.f32() * (to - from);
        let shorter = size[0].min(size[1]) as f32;
        let scale = between(0.75, 1.3);
        let turn = look.angle + between(-0.06, 0.06);
        let step = look.waves / (scale * shorter);
        let (phase, bend) = (between(0.0, 1.0), between(0.0, 0.35));

        // Colours are near the class's, if at all: what is drawn matters, not how it is lit.
        let hue = between(-0.25, 0.25);
        let [middle, contrast] = [between(95.0, 160.0), between(35.0, 70.0)];
        let tint = [between(-18.0, 18.0), between(-18.0, 18.0), between(-18.0, 18.0)];
        let turned = if between(0.0, 1.0) < 0.5 { -1.0 } else { 1.0 };
        let strength = between(10.0, 45.0);
        let colour = |hue: f32, light: f32| {
            std::array::from_fn(|c| light + tint[c] + strength * wave(hue + c as f32 / 3.0))
        };
        let [ground, shapes] = look.hues.map(|h| h + hue);
        let colours = [colour(ground, middle - contrast), colour(ground + 0.1, middle + contrast * 0.5)];
        let bright = if turned > 0.0 { middle + contrast } else { middle - contrast };
        let of_shapes = [colour(shapes, bright), colour(shapes - 0.1, bright - turned * contrast)];

        let count = (look.count * between(0.75, 1.25) + between(0.0, 1.0)).max(1.0) as usize;
        let mut placed = Vec::with_capacity(count + 2);
        for _ in 0..count {
            placed.push(Shape {
                family: look.family,
                centre: [between(0.1, 0.9) * size[0] as f32, between(0.1, 0.9) * size[1] as f32],
                radius: (look.radius * scale * between(0.75, 1.25) * shorter).max(1.0),
                turn: between(0.0, 1.0),
                colours: of_shapes,
                waves: look.filling,
                phase: between(0.0, 1.0),
            });
        }
        // What is in the picture and says nothing of its class.
        for _ in 0..(between(0.0, 3.0) as usize) {
            let family = FAMILIES[(between(0.0, FAMILIES.len() as f32) as usize).min(FAMILIES.len() - 1)];
            let hue = between(0.0, 1.0);
            placed.push(Shape {
                family,
                centre: [between(0.0, 1.0) * size[0] as f32, between(0.0, 1.0) * size[1] as f32],
                radius: (between(0.04, 0.08) * shorter).max(1.0),
                turn: between(0.0, 1.0),
                colours: [colour(hue, between(40.0, 215.0)), colour(hue, between(40.0, 215.0))],
                waves: between(0.0, 2.0),
                phase: between(0.0, 1.0),
            });
        }
        Draw {
            size,
            step: [wave(turn) * step, wave(turn + 0.25) * step],
            phase,
            bend,
            sharpness: look.sharpness,
            share: look.share,
            octaves: octaves(&mut bits, look, size, shorter * scale),
            colours,
            shapes: placed,
            gradient: [between(-0.3, 0.3) / size[0] as f32, between(-0.3, 0.3) / size[1] as f32],
            grain: between(4.0, 15.5),
            bits,
        }
    }
}

/// Noise from thirds of the picture down to a few pixels, each scale half the one before.
fn octaves(bits: &mut Bits, look: &Look, size: [usize; 2], shorter: f32) -> Vec<(Octave, f32)> {
    let mut all = Vec::new();
    let (mut spacing, mut amplitude, mut sum) = (shorter / 3.0, 1.0, 0.0);
    let longer = look.stretch.sqrt();
    while spacing >= 2.5 || all.is_empty() {
        let lattice = [spacing / longer, spacing * longer].map(|s| s.max(1.0));
        all.push((Octave::new(bits, size, lattice), amplitude));
        sum += amplitude;
        (spacing, amplitude) = (spacing * 0.5, amplitude * look.persistence);
    }
    all.iter_mut().for_each(|(_, amplitude)| *amplitude *= 2.0 / sum);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_differ_in_what_a_network_can_see() {
        let looks: Vec<Look> = (0..1000).map(|class| Look::of(5, class)).collect();
        assert_eq!(looks[7], Look::of(5, 7));
        assert_ne!(looks[7], Look::of(6, 7));
        // No two are near in everything.
        let apart = |a: &Look, b: &Look| {
            let turn = (a.angle - b.angle).abs() * 2.0;
            let places = [
                f32::from(u8::from(a.family != b.family)),
                (a.waves - b.waves).abs() / 8.5,
                turn.min(1.0 - turn) * 2.0,
                (a.count - b.count).abs() / 7.0,
                (a.filling - b.filling).abs() / 2.0,
                (a.share - b.share).abs() / 0.55,
            ];
            places.into_iter().fold(0.0, f32::max)
        };
        let near = (0..1000).flat_map(|i| (0..i).map(move |j| (i, j)));
        let least = near.map(|(i, j)| apart(&looks[i], &looks[j])).fold(1.0, f32::min);
        assert!(least > 0.03, "{least}");
        // Each of ten neighbours has another family, nearly.
        let families = |from: usize| {
            let mut names: Vec<_> = looks[from..from + 10].iter().map(|l| l.family.name()).collect();
            names.sort_unstable();
            names.dedup();
            names.len()
        };
        assert!((0..50).map(|k| families(k * 10)).min().unwrap() >= 6);
    }

    #[test]
    fn sizes_stay_within_what_they_may_vary() {
        let size = |index, vary| {
            size_from(&mut Place { seed: 1, split: 0, class: 3, index }.stream(), [375, 500], vary)
        };
        let mut upright = 0;
        for index in 0..500 {
            assert_eq!(size(index, 0.0), [375, 500]);
            let [h, w] = size(index, 0.1);
            upright += usize::from(h > w);
            let [least, most] = [h.min(w), h.max(w)];
            assert!((337..=413).contains(&least) && (450..=550).contains(&most), "{h}x{w}");
        }
        assert!((60..140).contains(&upright), "{upright}");
    }
}
