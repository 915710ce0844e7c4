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

/// `y (+)=` what becomes of the elements of `x`.
pub(super) fn drop<E: Real>(cpu: &Cpu, op: &Dropout, x: &[E], y: &mut [E], accumulate: bool) {
    let from = (op.p * 4_294_967_296.0).round();
    if from >= 4_294_967_296.0 {
        if !accumulate {
            y.fill(E::ZERO);
        }
        return;
    }
    let (key, from) = (op.key, from as u32);
    let [scale, shift, low] = [op.affine.scale, op.affine.shift, op.affine.low].map(E::from_f64);
    cpu.workers.chunks(y, PIECE, |i, y| {
        let x = &x[i * PIECE..i * PIECE + y.len()];
        let block = (i * PIECE / 4) as u64;
        E::dispatch(cpu.isa, Drop { key, block, from, scale, shift, low, x, y, accumulate });
    });
}
