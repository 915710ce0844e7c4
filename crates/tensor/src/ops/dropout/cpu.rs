//! Dropout on the CPU.

use phalanx_host::Cpu;
use phalanx_host::rng::Key;
use phalanx_host::simd::{Kernel, Real, Simd};

use super::Dropout;

/// Philox blocks that are made together: four vectors' worth of words.
const BLOCKS: usize = 16;
/// Elements that one task computes.
const PIECE: usize = 16 * 1024;

struct Drop<'a, E> {
    key: Key,
    /// The first Philox block.
    block: u64,
    /// Words from this one on keep their element.
    from: u32,
    scale: E,
    shift: E,
    low: E,
    x: &'a [E],
    y: &'a mut [E],
    accumulate: bool,
}

impl<E: Real> Kernel<E> for Drop<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let n = 4 * BLOCKS;
        for (i, (x, y)) in self.x.chunks(n).zip(self.y.chunks_mut(n)).enumerate() {
            // Plain loops: the compiler turns them into the vectors of the set.
            let mut words = [0u32; 4 * BLOCKS];
            let start = self.block + (i * BLOCKS) as u64;
            for (b, w) in words.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *w = self.key.block(start + b as u64);
            }
            for ((&x, y), &w) in x.iter().zip(y).zip(&words) {
                let kept = if w >= self.from { x * self.scale + self.shift } else { self.low };
                *y = if self.accumulate { *y + kept } else { kept };
            }
        }
    }
}

/// Words from this one on keep their element; none when all are dropped.
pub(crate) fn threshold(p: f64) -> Option<u32> {
    let from = (p * 4_294_967_296.0).round();
    (from < 4_294_967_296.0).then_some(from as u32)
}

/// `y (+)=` what becomes of the elements of `x`.
pub(super) fn drop<E: Real>(cpu: &Cpu, op: &Dropout, x: &[E], y: &mut [E], accumulate: bool) {
    let Some(from) = threshold(op.p) else {
        if !accumulate {
            y.fill(E::ZERO);
        }
        return;
    };
    let key = op.key;
    let [scale, shift, low] = [op.affine.scale, op.affine.shift, op.affine.low].map(E::from_f64);
    cpu.workers.chunks(y, PIECE, |i, y| {
        let x = &x[i * PIECE..i * PIECE + y.len()];
        let block = (i * PIECE / 4) as u64;
        E::dispatch(cpu.isa, Drop { key, block, from, scale, shift, low, x, y, accumulate });
    });
}

/// `x ← x · mask / (1 − p)` for numbers that begin at element `start` of what the mask is for.
pub(crate) fn drop_from<E: Real>(p: f64, key: Key, start: u64, x: &mut [E]) {
    let Some(from) = threshold(p) else { return x.fill(E::ZERO) };
    let scale = E::from_f64(1.0 / (1.0 - p));
    let mut words = key.block(start / 4);
    for (i, x) in (start..).zip(x) {
        if i % 4 == 0 {
            words = key.block(i / 4);
        }
        *x = if words[(i % 4) as usize] >= from { *x * scale } else { E::ZERO };
    }
}
