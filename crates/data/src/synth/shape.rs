//! The shapes that are drawn over a ground.

use super::noise::wave;

/// A sort of shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Disc,
    Ring,
    Square,
    Frame,
    Triangle,
    Cross,
    Bar,
    Hexagon,
    Star,
    Crescent,
}

pub(super) const FAMILIES: [Family; 10] = [
    Family::Disc,
    Family::Cross,
    Family::Frame,
    Family::Triangle,
    Family::Star,
    Family::Ring,
    Family::Bar,
    Family::Hexagon,
    Family::Crescent,
    Family::Square,
];

/// sqrt(3) / 2.
const HIGH: f32 = 0.866_025_4;

impl Family {
    /// For people.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Family::Disc => "disc",
            Family::Ring => "ring",
            Family::Square => "square",
            Family::Frame => "frame",
            Family::Triangle => "triangle",
            Family::Cross => "cross",
            Family::Bar => "bar",
            Family::Hexagon => "hexagon",
            Family::Star => "star",
            Family::Crescent => "crescent",
        }
    }

    /// About how far (x, y) is outside of the shape of radius 1 around the origin; negative inside.
    #[inline(always)]
    fn outside(self, x: f32, y: f32) -> f32 {
        let (ax, ay) = (x.abs(), y.abs());
        let length = |x: f32, y: f32| (x * x + y * y).sqrt();
        match self {
            Family::Disc => length(x, y) - 0.95,
            Family::Ring => (length(x, y) - 0.75).abs() - 0.22,
            Family::Square => ax.max(ay) - 0.8,
            Family::Frame => (ax.max(ay) - 0.65).abs() - 0.18,
            Family::Triangle => (ax * HIGH + y * 0.5).max(-y) - 0.55,
            Family::Cross => (ax.max(ay) - 1.0).max(ax.min(ay) - 0.3),
            Family::Bar => (ax - 1.1).max(ay - 0.3),
            Family::Hexagon => (ax * HIGH + ay * 0.5).max(ay) - 0.85,
            Family::Star => (ax.sqrt() + ay.sqrt() - 1.05) * 0.7,
            Family::Crescent => (length(x, y) - 1.0).max(0.8 - length(x - 0.5, y)),
        }
    }
}

/// How far from its centre a shape of radius 1 may reach.
const REACH: f32 = 1.25;

/// One shape of a picture; lengths in pixels.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) family: Family,
    /// Down and across.
    pub(super) centre: [f32; 2],
    pub(super) radius: f32,
    /// In turns.
    pub(super) turn: f32,
    /// Between which its own waves go.
    pub(super) colours: [[f32; 3]; 2],
    /// Waves in its radius.
    pub(super) waves: f32,
    pub(super) phase: f32,
}

impl Shape {
    /// Draws what row `y` has of it over the row's red, green and blue.
    pub(super) fn draw(&self, y: usize, planes: &mut [Vec<f32>; 3]) {
        let (reach, down) = (self.radius * REACH, y as f32 - self.centre[0]);
        if down.abs() > reach {
            return;
        }
        let width = planes[0].len();
        let first = (self.centre[1] - reach).clamp(0.0, width as f32) as usize;
        let last = (self.centre[1] + reach + 1.0).clamp(0.0, width as f32) as usize;
        let [sine, cosine] = [wave(self.turn), wave(self.turn + 0.25)].map(|v| v / self.radius);
        for x in first..last {
            let across = x as f32 - self.centre[1];
            let (a, b) = (across * cosine + down * sine, down * cosine - across * sine);
            let cover = (0.5 - self.family.outside(a, b) * self.radius).clamp(0.0, 1.0);
            if cover > 0.0 {
                let t = (0.5 + wave(self.phase + a * self.waves)).clamp(0.0, 1.0);
                for ((plane, &from), &to) in planes.iter_mut().zip(&self.colours[0]).zip(&self.colours[1]) {
                    plane[x] += cover * (from + t * (to - from) - plane[x]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_differ_and_stay_within_reach() {
        let side = 101usize;
        let mut seen = std::collections::BTreeSet::new();
        for family in FAMILIES {
            let mut area = Vec::new();
            for y in 0..side {
                let mut planes = [0; 3].map(|_| vec![0.0; side]);
                let shape = Shape {
                    family,
                    centre: [50.0, 50.0],
                    radius: 40.0,
                    turn: 0.0,
                    colours: [[1.0; 3]; 2],
                    waves: 0.0,
                    phase: 0.0,
                };
                shape.draw(y, &mut planes);
                area.extend(planes[0].iter().map(|&v| u8::from(v > 0.5)));
            }
            let inside: usize = area.iter().map(|&v| usize::from(v)).sum();
            assert!((700..5200).contains(&inside), "{family:?} has {inside} pixels");
            let at_the_edge = (0..side).any(|i| area[i] + area[i * side] + area[(side - 1) * side + i] > 0);
            assert!(!at_the_edge, "{family:?} reaches further than it says");
            assert!(seen.insert(area), "{family:?} looks like another one");
        }
    }
}
