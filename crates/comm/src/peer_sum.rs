//! The one kernel that sums the parts of several ranks, wherever their memory is: threads' arenas, a
//! shared-memory window, or what has come over the network.

use phalanx_host::simd::{Kernel, Real, Simd};
use phalanx_host::{DType, Isa};

use crate::{Fold, FoldStep, Operand, Wire};

/// Elements that are summed before the next ones are looked at, so that scratch values stay in the
/// first-level cache.
const BLOCK: usize = 512;

/// How a collective's parts are added.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) isa: Isa,
    pub(crate) dtype: DType,
    pub(crate) wire: Wire,
}

/// How many elements a piece of a sum of `len` elements over `world` ranks has: a multiple of 16, one
/// cache line. Small sums are one piece, for the last rank that comes; others are cut finely enough
/// that a rank which is late or has lost its core does not hold up the rest.
pub(crate) fn piece(len: usize, world: usize) -> usize {
    const SMALL: usize = 4096;
    const MOST: usize = 1 << 16;
    match len {
        0..=SMALL => SMALL,
        _ => len.div_ceil(world * 4).clamp(SMALL, MOST).next_multiple_of(16),
    }
}

impl Rule {
    /// `outs[k][i] = the fold of parts[..][i]`, for `i` in `0..n`. A fold without steps copies nothing: its
    /// one part is the total.
    ///
    /// # Safety
    /// `parts` has at least as many entries as the fold has parts, each valid for reading `n` elements of
    /// `dtype`, aligned to them; `outs` are likewise valid for writing; no other thread may use any of it
    /// meanwhile. An output may be one of the parts, else none may overlap.
    pub(crate) unsafe fn sum(&self, fold: &Fold, parts: &[*const u8], outs: &[*mut u8], n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.dtype {
                DType::F64 => self.sum_as::<f64>(fold, parts, outs, n),
                _ => self.sum_as::<f32>(fold, parts, outs, n),
            }
        }
    }

    /// # Safety
    /// As [`Rule::sum`].
    unsafe fn sum_as<E: Real>(&self, fold: &Fold, parts: &[*const u8], outs: &[*mut u8], n: usize) {
        let Some((last, before)) = fold.steps.split_last() else { return };
        // A rounded total is made in scratch, so that it is rounded once for all outputs.
        let rounds = E::DTYPE == DType::F32 && self.wire != Wire::F32;
        let scratch = if before.is_empty() && !rounds { 0 } else { fold.temps * BLOCK };
        let mut temps = vec![E::ZERO; scratch];
        let temps = temps.as_mut_ptr();
        let mut at = 0;
        while at < n {
            let len = BLOCK.min(n - at);
            let operand = |o: Operand| match o {
                // SAFETY: `at` lies inside every part.
                Operand::Part(i) => unsafe { parts[i].cast::<E>().add(at) },
                // SAFETY: there are `fold.temps` blocks of scratch when a step uses any.
                Operand::Temp(i) => unsafe { temps.add(i * BLOCK).cast_const() },
            };
            let to_scratch = |step: &FoldStep| {
                // SAFETY: as for the operands.
                let dst = unsafe { temps.add(step.dst * BLOCK) };
                let (a, b, outs) = (operand(step.a), operand(step.b), [dst]);
                E::dispatch(self.isa, Add { a, b, outs: &outs, n: len });
                if rounds {
                    // SAFETY: the block was just written by this thread, which alone has it; E is f32.
                    self.wire.round(self.isa, unsafe { std::slice::from_raw_parts_mut(dst.cast(), len) });
                }
                dst.cast_const()
            };
            before.iter().for_each(|step| {
                to_scratch(step);
            });
            // SAFETY: outputs have `n` elements.
            let outs = outs.iter().map(|o| unsafe { o.cast::<E>().add(at) });
            if rounds {
                let total = to_scratch(last);
                for out in outs {
                    // SAFETY: `len` elements each; scratch overlaps nothing.
                    unsafe { std::ptr::copy_nonoverlapping(total, out, len) };
                }
            } else {
                let outs: Vec<*mut E> = outs.collect();
                let (a, b) = (operand(last.a), operand(last.b));
                E::dispatch(self.isa, Add { a, b, outs: &outs, n: len });
            }
            at += len;
        }
    }
}

/// `outs[k][i] = a[i] + b[i]` for `i` in `0..n`. Exists only inside [`Rule::sum`], whose caller vouches for
/// the pointers.
struct Add<'a, E> {
    a: *const E,
    b: *const E,
    outs: &'a [*mut E],
    n: usize,
}

impl<E: Real> Kernel<E> for Add<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let Add { a, b, outs, n } = self;
        let whole = n - n % V::LANES;
        let mut i = 0;
        while i < whole {
            // SAFETY: `i + LANES <= n`, and `Rule::sum`'s caller vouches for `n`. Inputs are read before
            // outputs are written, so they may be the same.
            unsafe {
                let sum = V::load(a.add(i)).add(V::load(b.add(i)));
                for out in outs {
                    sum.store(out.add(i));
                }
            }
            i += V::LANES;
        }
        if i < n {
            // SAFETY: the last `n - i < LANES` elements.
            unsafe {
                let sum = V::load_first(a.add(i), n - i).add(V::load_first(b.add(i), n - i));
                for out in outs {
                    sum.store_first(out.add(i), n - i);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_cache_lines_and_cover_large_sums_finely() {
        for world in 1..9 {
            for len in [0, 1, 17, 4096, 4097, 100_003, 25 << 20] {
                let piece = piece(len, world);
                assert!(piece.is_multiple_of(16) && piece > 0, "{len} over {world}");
                assert!(len <= 4096 || len.div_ceil(piece) >= 2, "{len} over {world}");
            }
        }
    }
}
