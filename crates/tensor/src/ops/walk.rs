//! Walking several operands of one shape together.

use crate::Layout;

/// `N` layouts of one shape, with neighbouring axes merged wherever all of them allow it.
#[derive(Clone, Debug)]
pub(crate) struct Walk<const N: usize> {
    sizes: Vec<usize>,
    strides: Vec<[usize; N]>,
}

impl<const N: usize> Walk<N> {
    /// The layouts must have one shape. Their offsets are not looked at: views start at theirs.
    pub(crate) fn new(layouts: [&Layout; N]) -> Self {
        let mut walk = Walk { sizes: Vec::new(), strides: Vec::new() };
        for axis in 0..layouts[0].shape.len() {
            let size = layouts[0].shape[axis];
            let steps = layouts.map(|l| l.strides()[axis]);
            if size == 1 {
                continue;
            }
            match (walk.sizes.last_mut(), walk.strides.last_mut()) {
                (Some(outer), Some(last)) if (0..N).all(|k| last[k] == steps[k] * size) => {
                    *outer *= size;
                    *last = steps;
                }
                _ => {
                    walk.sizes.push(size);
                    walk.strides.push(steps);
                }
            }
        }
        if walk.sizes.is_empty() {
            walk.sizes.push(1);
            walk.strides.push([0; N]);
        }
        walk
    }

    /// Length of the innermost run.
    pub(crate) fn inner(&self) -> usize {
        *self.sizes.last().unwrap_or(&1)
    }

    /// Steps inside a run.
    pub(crate) fn steps(&self) -> [usize; N] {
        *self.strides.last().unwrap_or(&[0; N])
    }

    /// The number of runs.
    pub(crate) fn runs(&self) -> usize {
        self.sizes[..self.sizes.len() - 1].iter().product()
    }

    /// As the `Walk` of CUDA kernels (`prelude.cuh`): axes, elements, sizes, each operand's strides.
    pub(crate) fn cuda(&self) -> [i64; 64] {
        let mut v = [0; 64];
        v[0] = self.sizes.len() as i64;
        v[1] = self.sizes.iter().product::<usize>() as i64;
        for (axis, (size, strides)) in self.sizes.iter().zip(&self.strides).enumerate() {
            v[2 + axis] = *size as i64;
            (0..N).for_each(|k| v[10 + 8 * k + axis] = strides[k] as i64);
        }
        v
    }

    /// All places, in row-major order.
    pub(crate) fn places(&self) -> Vec<[usize; N]> {
        let (n, steps) = (self.inner(), self.steps());
        let mut places = Vec::with_capacity(self.runs() * n);
        self.for_runs(0, self.runs(), |_, at| {
            places.extend((0..n).map(|i| std::array::from_fn(|k| at[k] + i * steps[k])));
        });
        places
    }

    /// Calls `run(i, starts)` for runs `from..to`, where `starts` are the operands' first elements.
    pub(crate) fn for_runs(&self, from: usize, to: usize, mut run: impl FnMut(usize, [usize; N])) {
        let outer = self.sizes.len() - 1;
        let mut index = vec![0; outer];
        let mut at = [0; N];
        let mut rest = from;
        for axis in (0..outer).rev() {
            index[axis] = rest % self.sizes[axis].max(1);
            rest /= self.sizes[axis].max(1);
            (0..N).for_each(|k| at[k] += index[axis] * self.strides[axis][k]);
        }
        for i in from..to {
            run(i, at);
            for axis in (0..outer).rev() {
                index[axis] += 1;
                (0..N).for_each(|k| at[k] += self.strides[axis][k]);
                if index[axis] < self.sizes[axis] {
                    break;
                }
                index[axis] = 0;
                (0..N).for_each(|k| at[k] -= self.sizes[axis] * self.strides[axis][k]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_visit_every_element_once_in_row_major_order() {
        let dense = Layout::contiguous([2, 3, 4].into());
        let swapped = Layout::with([2, 3, 4].into(), &[4, 8, 1], 0);
        for layouts in [[&dense, &dense], [&dense, &swapped]] {
            let walk = Walk::new(layouts);
            let (mut seen, [a, b]) = (Vec::new(), walk.steps());
            walk.for_runs(0, walk.runs(), |_, [x, y]| {
                (0..walk.inner()).for_each(|i| seen.push((x + i * a, y + i * b)));
            });
            assert_eq!(seen.iter().map(|p| p.0).collect::<Vec<_>>(), (0..24).collect::<Vec<_>>());
            let mut second: Vec<_> = seen.iter().map(|p| p.1).collect();
            second.sort_unstable();
            assert_eq!(second, (0..24).collect::<Vec<_>>());
            // Starting in the middle gives the same starts.
            let mut late = Vec::new();
            walk.for_runs(walk.runs() / 2, walk.runs(), |i, s| late.push((i, s)));
            let mut all = Vec::new();
            walk.for_runs(0, walk.runs(), |i, s| all.push((i, s)));
            assert_eq!(late, all[walk.runs() / 2..]);
        }
    }

    #[test]
    fn empty_and_scalar_shapes() {
        let scalar = Layout::contiguous([].into());
        assert_eq!((Walk::new([&scalar]).runs(), Walk::new([&scalar]).inner()), (1, 1));
        let empty = Layout::contiguous([0, 3].into());
        let walk = Walk::new([&empty]);
        assert_eq!(walk.runs() * walk.inner(), 0);
    }
}
