//! Images on the CPU.

use phalanx_host::Cpu;
use phalanx_host::simd::Real;

use super::Normalisation;

/// Which part of each image is read.
pub(super) struct Look<'a> {
    /// Height, width and channels of the images.
    pub(super) from: [usize; 3],
    /// Height and width of the parts.
    pub(super) to: [usize; 2],
    /// First row, first column and whether it is mirrored, for each image.
    pub(super) places: Option<&'a [i64]>,
}

/// What each byte of each channel becomes: `[C][256]`.
pub(super) fn table<T>(how: &Normalisation, round: fn(f32) -> T) -> Vec<T> {
    (0..how.mean.len()).flat_map(|c| (0..=u8::MAX).map(move |x| round(how.of(c, x)))).collect()
}

/// Writes what the table has for each byte that is looked at.
pub(super) fn look_up<T: Copy + Send + Sync>(cpu: &Cpu, look: &Look, table: &[T], x: &[u8], y: &mut [T]) {
    let ([h, w, channels], [rows, columns]) = (look.from, look.to);
    let row = columns * channels;
    if row == 0 {
        return;
    }
    cpu.workers.chunks(y, row, |i, y| {
        let (n, r) = (i / rows, i % rows);
        let [top, left, mirrored] = match look.places {
            Some(p) => [p[3 * n], p[3 * n + 1], p[3 * n + 2]],
            None => [0; 3],
        };
        let inside = |at: i64, first: usize, size: usize| {
            at.checked_add(first as i64).and_then(|at| usize::try_from(at).ok()).filter(|at| *at < size)
        };
        let line = inside(top, r, h).map(|line| &x[(n * h + line) * w * channels..][..w * channels]);
        for (j, y) in y.chunks_exact_mut(channels).enumerate() {
            let j = if mirrored != 0 { columns - 1 - j } else { j };
            let pixel = line.zip(inside(left, j, w)).map(|(line, at)| &line[at * channels..][..channels]);
            for (c, y) in y.iter_mut().enumerate() {
                *y = table[c * 256 + pixel.map_or(0, |p| usize::from(p[c]))];
            }
        }
    });
}

/// How a batch is mixed; see [`crate::Tensor::mix`].
pub(super) struct Mixing<'a, T> {
    pub(super) partners: &'a [i64],
    pub(super) factors: &'a [T],
    pub(super) boxes: &'a [i64],
}

/// Writes the images mixed with their partners, which lie in the batch.
pub(super) fn mix<T: Real>(cpu: &Cpu, plan: &Mixing<T>, [h, w, channels]: [usize; 3], x: &[T], y: &mut [T]) {
    let row = w * channels;
    if row == 0 {
        return;
    }
    cpu.workers.chunks(y, row, |i, y| {
        let (n, r) = (i / h, i % h);
        let (a, b) = (&x[i * row..][..row], &x[(plan.partners[n] as usize * h + r) * row..][..row]);
        let [top, left, bottom, right] = [0, 1, 2, 3].map(|k| plan.boxes[4 * n + k]);
        if bottom > top && right > left {
            y.copy_from_slice(a);
            if (top..bottom).contains(&(r as i64)) {
                let [left, right] = [left, right].map(|at| at.clamp(0, w as i64) as usize * channels);
                y[left..right].copy_from_slice(&b[left..right]);
            }
        } else {
            let share = plan.factors[n];
            let rest = T::from_f64(1.0) - share;
            y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = share * a + rest * b);
        }
    });
}
