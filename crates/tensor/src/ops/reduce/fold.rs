//! The walk that reductions other than the sum share: every kept place has a state of two doubles, into which
//! its elements are folded in row-major order. Long reductions are cut into blocks by the shape alone, and the
//! blocks' states are merged in order, so any number of threads gives the same bits.

use phalanx_host::Cpu;

use crate::Layout;
use crate::ops::walk::Walk;

/// What is known of the elements seen so far.
pub(super) type State = [f64; 2];

/// A reduction.
pub(super) trait Fold: Sync {
    /// The state before any element of kept place `i`.
    fn start(&self, i: usize) -> State;
    /// Folds in element number `place` (row-major among the reduced elements).
    fn step(&self, state: &mut State, x: f64, place: usize);
    /// Folds in the state of a block that lies behind this one's.
    fn merge(&self, state: &mut State, next: State);
}

/// Elements of one block.
const BLOCK: usize = 16 * 1024;
/// Kept places that are walked side by side where their neighbours are neighbours in memory.
const SIDE: usize = 64;

/// The states of all kept places in row-major order, where the two layouts walk the kept and the reduced axes.
pub(super) fn fold<T: Copy + Into<f64> + Sync>(
    cpu: &Cpu,
    src: &[T],
    kept: &Layout,
    reduced: &Layout,
    rule: &impl Fold,
) -> Vec<State> {
    let (count, length) = (kept.shape.numel(), reduced.shape.numel());
    if count == 0 {
        return Vec::new();
    }
    let mut out: Vec<State> = (0..count).map(|i| rule.start(i)).collect();
    if length == 0 {
        return out;
    }
    let (outer, inner) = (Walk::new([kept]), Walk::new([reduced]));
    let (n, [step]) = (outer.inner(), outer.steps());
    let (m, [inner_step]) = (inner.inner(), inner.steps());
    let beside = step == 1 && inner_step != 1 && n > 1;
    let side = (BLOCK / length.min(BLOCK)).max(if beside { SIDE } else { 1 }).min(count);
    let (blocks, pieces) = (length.div_ceil(BLOCK), count.div_ceil(side));
    // The states of a piece of one block, from kept place `first` on.
    let piece = |block: usize, first: usize, states: &mut [State]| {
        let (from, to) = (block * BLOCK, length.min((block + 1) * BLOCK));
        let last = first + states.len();
        outer.for_runs(first / n, last.div_ceil(n), |r, [base]| {
            let (low, high) = (first.max(r * n), last.min((r + 1) * n));
            let states = &mut states[low - first..high - first];
            inner.for_runs(from / m, to.div_ceil(m), |q, [at]| {
                let range = from.max(q * m) - q * m..to.min((q + 1) * m) - q * m;
                let at = base + (low - r * n) * step + at;
                if beside {
                    for i in range {
                        let row = &src[at + i * inner_step..][..states.len()];
                        states.iter_mut().zip(row).for_each(|(s, &x)| rule.step(s, x.into(), q * m + i));
                    }
                } else {
                    for (k, state) in states.iter_mut().enumerate() {
                        let mut s = *state;
                        for i in range.clone() {
                            rule.step(&mut s, src[at + k * step + i * inner_step].into(), q * m + i);
                        }
                        *state = s;
                    }
                }
            });
        });
    };
    if blocks == 1 {
        each(cpu, &mut out, side, &|i, states| piece(0, i * side, states));
        return out;
    }
    // A piece a block and a side, the last side of each block with room to spare.
    let mut parts: Vec<State> = vec![[0.0; 2]; blocks * pieces * side];
    each(cpu, &mut parts, side, &|i, states| {
        let (block, first) = (i / pieces, i % pieces * side);
        let states = &mut states[..side.min(count - first)];
        states.iter_mut().enumerate().for_each(|(k, s)| *s = rule.start(first + k));
        piece(block, first, states);
    });
    for block in parts.chunks_exact(pieces * side) {
        out.iter_mut().zip(block).for_each(|(s, &next)| rule.merge(s, next));
    }
    out
}

/// Runs `task(i, piece i)` on pieces of the states; compiled once for all reductions.
fn each(cpu: &Cpu, states: &mut [State], piece: usize, task: &(dyn Fn(usize, &mut [State]) + Sync)) {
    cpu.workers.chunks(states, piece, task);
}

#[cfg(test)]
mod tests {
    use phalanx_host::Isa;

    use super::*;

    /// The number of elements, and the sum of (place + 1) times them: exact for small whole numbers.
    struct Weighted;

    impl Fold for Weighted {
        fn start(&self, _: usize) -> State {
            [0.0; 2]
        }
        fn step(&self, s: &mut State, x: f64, place: usize) {
            s[0] += 1.0;
            s[1] += x * (place + 1) as f64;
        }
        fn merge(&self, s: &mut State, next: State) {
            s[0] += next[0];
            s[1] += next[1];
        }
    }

    #[test]
    fn every_element_is_seen_once_at_its_place_for_any_shape_and_cut() {
        for (shape, axis) in [
            ([3usize, 70, 5], 1usize),
            ([3, 70, 5], 0),
            ([3, 70, 5], 2),
            ([1, 40_000, 1], 1),
            ([2, 40_000, 3], 1),
            ([40_000, 1, 2], 0),
            ([1, 2, 50_000], 2),
            ([3, 0, 5], 1),
            ([3, 0, 5], 0),
            ([200, 3, 130], 1),
        ] {
            let whole = Layout::contiguous(shape.into());
            let x: Vec<f32> = (0..shape.iter().product()).map(|i| (i % 13) as f32).collect();
            let strides = whole.strides();
            let part = |axes: &[usize]| {
                let of = |v: &[usize]| axes.iter().map(|&a| v[a]).collect::<Vec<_>>();
                Layout::with((&of(&shape)[..]).into(), &of(strides), 0)
            };
            let others: Vec<usize> = (0..3).filter(|&a| a != axis).collect();
            let (kept, reduced) = (part(&others), part(&[axis]));
            let want: Vec<State> = (0..kept.shape.numel())
                .map(|i| {
                    let (a, b) = (i / kept.shape[1], i % kept.shape[1]);
                    let base = a * strides[others[0]] + b * strides[others[1]];
                    let sum =
                        (0..shape[axis]).map(|j| f64::from(x[base + j * strides[axis]]) * (j + 1) as f64);
                    [shape[axis] as f64, sum.sum()]
                })
                .collect();
            for threads in [1, 3] {
                let cpu = Cpu::new(Isa::Portable, threads).unwrap();
                assert_eq!(fold(&cpu, &x, &kept, &reduced, &Weighted), want, "{shape:?} over {axis}");
            }
        }
    }
}
