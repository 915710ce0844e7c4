//! Local response normalisation on the CPU: vectors run over the channels of one pixel.

use phalanx_host::Cpu;
use phalanx_host::simd::{Kernel, Simd};

use super::LocalResponseNorm;
use crate::ops::columns::{load, store};
use crate::ops::elementwise::math::Math;

/// What a pixel is computed in.
struct Scratch<E> {
    /// Squares, with zeros where the window reaches over the channels.
    squares: Vec<E>,
    /// What each channel gives to the gradients of its window, likewise.
    parts: Vec<E>,
    /// The output's gradient times the powers that the channels are multiplied with.
    scaled: Vec<E>,
}

impl<E: Math> Scratch<E> {
    fn new(channels: usize, size: usize) -> Self {
        let row = vec![E::ZERO; channels + size - 1];
        Scratch { squares: row.clone(), parts: row, scaled: vec![E::ZERO; channels] }
    }
}

/// Neighbouring pixels.
struct Pixels<'a, E> {
    of: &'a LocalResponseNorm,
    channels: usize,
    x: &'a [E],
    /// The output's gradient; without one the output is computed.
    g: Option<&'a [E]>,
    out: &'a mut [E],
    accumulate: bool,
    scratch: Scratch<E>,
}

/// The sum of `size` numbers from each of `i, i + 1, …` on, in their order.
#[inline(always)]
fn window<E: Math, V: Simd<E>>(x: &[E], i: usize, w: usize, size: usize) -> V {
    (1..size).fold(load(x, i, w), |sum: V, t| sum.add(load(x, i + t, w)))
}

impl<E: Math> Kernel<E> for Pixels<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let Pixels { of, channels, x, g, out, accumulate, mut scratch } = self;
        let Scratch { squares, parts, scaled } = &mut scratch;
        let (before, after) = (of.size / 2, (of.size - 1) / 2);
        let number = |v: f64| V::splat(E::from_f64(v));
        let (k, share, power) = (number(of.k), number(of.alpha / of.size as f64), number(-of.beta));
        let twice = number(-2.0 * of.beta * of.alpha / of.size as f64);
        let steps = || (0..channels).step_by(V::LANES).map(|i| (i, V::LANES.min(channels - i)));
        for (p, out) in out.chunks_exact_mut(channels).enumerate() {
            let pixel = p * channels..(p + 1) * channels;
            let x = &x[pixel.clone()];
            for (i, w) in steps() {
                let v: V = load(x, i, w);
                store(v.mul(v), squares, before + i, w);
            }
            let Some(g) = g.map(|g| &g[pixel]) else {
                for (i, w) in steps() {
                    let sum = window::<E, V>(squares, i, w, of.size).mul_add(share, k);
                    store(load::<E, V>(x, i, w).mul(E::exp(E::log(sum).mul(power))), out, i, w);
                }
                continue;
            };
            for (i, w) in steps() {
                let sum = window::<E, V>(squares, i, w, of.size).mul_add(share, k);
                let part = load::<E, V>(g, i, w).mul(E::exp(E::log(sum).mul(power)));
                store(part, scaled, i, w);
                store(part.mul(load(x, i, w)).div(sum), parts, after + i, w);
            }
            for (i, w) in steps() {
                let sum = window::<E, V>(parts, i, w, of.size).mul(twice);
                let mut dx = load::<E, V>(x, i, w).mul_add(sum, load(scaled, i, w));
                if accumulate {
                    dx = load::<E, V>(out, i, w).add(dx);
                }
                store(dx, out, i, w);
            }
        }
    }
}

/// Elements that one task computes at least.
const PIECE: usize = 16 * 1024;

fn run<E: Math>(
    cpu: &Cpu,
    of: &LocalResponseNorm,
    channels: usize,
    x: &[E],
    g: Option<&[E]>,
    out: &mut [E],
    accumulate: bool,
) {
    if out.is_empty() {
        return;
    }
    let piece = PIECE.div_ceil(channels) * channels;
    cpu.workers.chunks(out, piece, |i, out| {
        let part = i * piece..i * piece + out.len();
        let (x, g) = (&x[part.clone()], g.map(|g| &g[part]));
        let scratch = Scratch::new(channels, of.size);
        E::dispatch(cpu.isa, Pixels { of, channels, x, g, out, accumulate, scratch });
    });
}

/// The output.
pub(super) fn normalise<E: Math>(cpu: &Cpu, of: &LocalResponseNorm, channels: usize, x: &[E], y: &mut [E]) {
    run(cpu, of, channels, x, None, y, false);
}

/// `dx (+)=` the gradient.
pub(super) fn gradient<E: Math>(
    cpu: &Cpu,
    of: &LocalResponseNorm,
    channels: usize,
    x: &[E],
    g: &[E],
    dx: &mut [E],
    accumulate: bool,
) {
    run(cpu, of, channels, x, Some(g), dx, accumulate);
}
