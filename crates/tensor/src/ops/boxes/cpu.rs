//! Weighted sums over boxes on the CPU: vectors run over the channels of one result.

use phalanx_host::Cpu;
use phalanx_host::simd::{Kernel, Real, Simd};

use super::Taps;
use crate::ops::columns::{load, store};

/// [`Taps`] in the type that is computed in.
struct Axis<E> {
    size: usize,
    /// For each result its list and its divisor.
    results: Vec<(Vec<(usize, E)>, E)>,
}

impl<E: Real> Axis<E> {
    fn of(taps: &Taps) -> Self {
        let one = |(o, &divisor): (usize, &f64)| {
            let list = taps.list[taps.range(o)].iter().map(|&(i, w)| (i, E::from_f64(w)));
            (list.collect(), E::from_f64(divisor))
        };
        Axis { size: taps.size, results: taps.divisors.iter().enumerate().map(one).collect() }
    }
}

/// One row of results.
struct Row<'a, E> {
    axes: &'a [Axis<E>; 3],
    channels: usize,
    /// Its place along the two outer axes.
    at: [usize; 2],
    /// The operand's sample.
    x: &'a [E],
    y: &'a mut [E],
    accumulate: bool,
}

impl<E: Real> Kernel<E> for Row<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let Row { axes: [outer, middle, inner], channels, at, x, y, accumulate } = self;
        let ((planes, d0), (lines, d1)) = (&outer.results[at[0]], &middle.results[at[1]]);
        for ((places, d2), y) in inner.results.iter().zip(y.chunks_exact_mut(channels)) {
            let divisor = *d0 * *d1 * *d2;
            let mut from = 0;
            while from < channels {
                let width = (channels - from).min(V::LANES);
                let mut total = V::splat(E::ZERO);
                for &(plane, w0) in planes {
                    for &(line, w1) in lines {
                        let start = (plane * middle.size + line) * inner.size;
                        let mut sum = V::splat(E::ZERO);
                        for &(place, w2) in places {
                            let v: V = load(x, (start + place) * channels + from, width);
                            sum = v.mul_add(V::splat(w2), sum);
                        }
                        total = sum.mul_add(V::splat(w0 * w1), total);
                    }
                }
                if divisor != E::ONE {
                    total = total.div(V::splat(divisor));
                }
                if accumulate {
                    total = load::<E, V>(y, from, width).add(total);
                }
                store(total, y, from, width);
                from += width;
            }
        }
    }
}

/// Elements that one task computes at least.
const PIECE: usize = 16 * 1024;

/// `y (+)=` the sums over `x`; both are samples of images of so many channels.
pub(super) fn sums<E: Real>(
    cpu: &Cpu,
    taps: &[Taps],
    channels: usize,
    x: &[E],
    y: &mut [E],
    accumulate: bool,
) {
    if y.is_empty() {
        return;
    }
    // Axes that are not summed over stand in front.
    let mut axes = [(); 3].map(|()| Axis { size: 1, results: vec![(vec![(0, E::ONE)], E::ONE)] });
    let lead = axes.len() - taps.len();
    axes[lead..].iter_mut().zip(taps).for_each(|(axis, taps)| *axis = Axis::of(taps));
    let [outer, middle, inner] = axes.each_ref().map(|a| a.results.len());
    let sample = axes.iter().map(|a| a.size).product::<usize>() * channels;
    let row = inner * channels;
    let rows = PIECE.div_ceil(row);
    cpu.workers.chunks(y, rows * row, |i, y| {
        let run = E::select::<Row<E>>(cpu.isa);
        for (r, y) in y.chunks_exact_mut(row).enumerate() {
            let r = i * rows + r;
            let (n, at) = (r / (outer * middle), [r / middle % outer, r % middle]);
            let x = &x[n * sample..(n + 1) * sample];
            run(Row { axes: &axes, channels, at, x, y, accumulate });
        }
    });
}
