//! Cheap arithmetic for pictures. Every operation is exactly rounded (no library sine), so that pictures are the same on
//! every machine.

/// Random bits in sequence: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub(super) struct Bits(u64);

impl Bits {
    pub(super) fn new(key: u64) -> Self {
        Bits(key)
    }

    pub(super) fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1), in 256 steps.
    pub(super) fn fill(&mut self, values: &mut [f32]) {
        for eight in values.chunks_mut(8) {
            let bytes = self.u64().to_le_bytes();
            for (value, byte) in eight.iter_mut().zip(bytes) {
                *value = (f32::from(byte) - 127.5) * (1.0 / 128.0);
            }
        }
    }
}

/// Nearly sin(2π·x), x in turns, |x| below a million: a parabola on each half of the period, bent once more.
#[inline(always)]
pub(super) fn wave(x: f32) -> f32 {
    // Added and taken away, it rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let part = x - ((x + ROUND) - ROUND);
    let y = part * (8.0 - 16.0 * part.abs());
    y * (0.775 + 0.225 * y.abs())
}

/// From 0 to 1 with no slope at either end.
fn smooth(x: f32) -> f32 {
    x * x * (3.0 - 2.0 * x)
}

/// Noise of one scale: random values on a lattice and smooth transitions between them, made row by row.
#[derive(Debug)]
pub(super) struct Octave {
    cells: Vec<f32>,
    across: usize,
    /// Rows of the lattice in a row of pixels.
    step: f32,
    /// For each pixel of a row the lattice's column to its left, and how far it is from there to the next.
    columns: Vec<(u32, f32)>,
    /// Two rows of the lattice, spread over the pixels; the first is row `row`.
    spread: [Vec<f32>; 2],
    row: Option<usize>,
}

impl Octave {
    /// For pictures of `height` x `width`; `spacing` is that of the lattice, down and across, in pixels, at least 1.
    pub(super) fn new(bits: &mut Bits, [height, width]: [usize; 2], spacing: [f32; 2]) -> Self {
        let [down, across] =
            [(height, spacing[0]), (width, spacing[1])].map(|(n, s)| (n as f32 / s) as usize + 2);
        let mut cells = vec![0.0; down * across];
        bits.fill(&mut cells);
        let step = 1.0 / spacing[1];
        let column = |x: usize| {
            let place = x as f32 * step;
            let left = place as u32;
            (left, smooth(place - left as f32))
        };
        let columns = (0..width).map(column).collect();
        let spread = [vec![0.0; width], vec![0.0; width]];
        Octave { cells, across, step: 1.0 / spacing[0], columns, spread, row: None }
    }

    fn spread(&mut self, which: usize, row: usize) {
        let cells = &self.cells[row * self.across..][..self.across];
        for (value, &(left, part)) in self.spread[which].iter_mut().zip(&self.columns) {
            let (a, b) = (cells[left as usize], cells[left as usize + 1]);
            *value = a + part * (b - a);
        }
    }

    /// Adds row `y` of the noise, which is in [-1, 1), times `amplitude`.
    pub(super) fn add(&mut self, y: usize, amplitude: f32, row: &mut [f32]) {
        let place = y as f32 * self.step;
        let above = place as usize;
        if self.row != Some(above) {
            if above > 0 && self.row == Some(above - 1) {
                self.spread.swap(0, 1);
            } else {
                self.spread(0, above);
            }
            self.spread(1, above + 1);
            self.row = Some(above);
        }
        let part = smooth(place - above as f32);
        let [first, second] = &self.spread;
        for ((value, &a), &b) in row.iter_mut().zip(first).zip(second) {
            *value += amplitude * (a + part * (b - a));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wave_is_nearly_a_sine() {
        for i in -40_000..40_000 {
            let x = i as f32 / 1000.0;
            let wanted = (std::f64::consts::TAU * f64::from(x)).sin() as f32;
            assert!((wave(x) - wanted).abs() < 2e-3, "{x}");
        }
    }

    #[test]
    fn noise_is_the_lattice_at_its_points_and_between_its_points_elsewhere() {
        let mut octave = Octave::new(&mut Bits::new(3), [9, 13], [4.0, 3.0]);
        let cells = octave.cells.clone();
        assert_eq!(cells.len(), 4 * 6);
        let mut rows = Vec::new();
        for y in 0..9 {
            let mut row = vec![0.0; 13];
            octave.add(y, 1.0, &mut row);
            rows.push(row);
        }
        for (y, x) in [(0, 0), (4, 3), (8, 12), (4, 9)] {
            assert!((rows[y][x] - cells[y / 4 * 6 + x / 3]).abs() < 1e-6, "{y} {x}");
        }
        let (least, most) = cells.iter().fold((1.0f32, -1.0f32), |(l, m), &c| (l.min(c), m.max(c)));
        assert!(rows.iter().flatten().all(|&v| (least..=most).contains(&v)));
        // Rows in any order are the same rows.
        let mut again = vec![0.0; 13];
        octave.add(2, 1.0, &mut again);
        assert_eq!(again, rows[2]);
    }

    #[test]
    fn bits_are_splitmix64s() {
        // The first outputs of the reference implementation for the seed 1234567.
        let mut bits = Bits::new(1_234_567);
        assert_eq!([bits.u64(), bits.u64()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}
