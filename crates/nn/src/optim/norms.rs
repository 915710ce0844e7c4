//! Norms in double precision: cut by length, added in one order, so their bits depend on no thread.

use phalanx_host::Cpu;
use phalanx_host::Isa;
use phalanx_host::simd::{Kernel, Real, Simd};

use super::cpu::PIECE;

/// Sums that run side by side; a power of two so that they fill vectors of any width.
const SUMS: usize = 16;

/// The sum over the elements of the squares of `f`, which is given the elements of all `of` at one place. A
/// square of a single-precision number is exact in a double.
struct Squares<'a, F, const K: usize> {
    of: [&'a [f32]; K],
    f: F,
}

impl<F: Fn([f32; K]) -> f32, const K: usize> Kernel<f32> for Squares<'_, F, K> {
    type Out = f64;
    // The compiler makes vectors of it by itself; it knows the instruction set here.
    #[inline(always)]
    fn run<V: Simd<f32>>(self) -> f64 {
        let n = self.of.iter().map(|x| x.len()).min().unwrap_or(0);
        let parts = self.of.map(|x| x[..n].as_chunks::<SUMS>());
        let mut sums = [0.0f64; SUMS];
        for i in 0..n / SUMS {
            let block = parts.map(|(whole, _)| &whole[i]);
            for (j, sum) in sums.iter_mut().enumerate() {
                let x = f64::from((self.f)(block.map(|b| b[j])));
                *sum += x * x;
            }
        }
        for i in 0..n % SUMS {
            let x = f64::from((self.f)(parts.map(|(_, rest)| rest[i])));
            sums[i] += x * x;
        }
        sums.iter().sum()
    }
}

/// Σ f(x, …)² over neighbouring elements, by the calling thread.
pub(super) fn squares<const K: usize>(isa: Isa, of: [&[f32]; K], f: impl Fn([f32; K]) -> f32) -> f64 {
    f32::dispatch(isa, Squares { of, f })
}

/// The Euclidean norm of `x`, by all threads.
pub(super) fn norm(cpu: &Cpu, x: &[f32]) -> f64 {
    let mut sums = vec![0.0; x.len().div_ceil(PIECE)];
    cpu.workers.chunks(&mut sums, 1, |i, sum| {
        sum.fill(squares(cpu.isa, [&x[i * PIECE..x.len().min((i + 1) * PIECE)]], |[x]| x));
    });
    sums.iter().sum::<f64>().sqrt()
}

/// What gradients of the norm `norm` are multiplied by so that it is at most `most`: PyTorch's
/// `min(1, most / (norm + 1e-6))` (Pascanu et al., 2013).
pub fn clip_factor(norm: f64, most: f64) -> f64 {
    (most / (norm + 1e-6)).min(1.0)
}
