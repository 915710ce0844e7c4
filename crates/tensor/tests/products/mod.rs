//! The products that a convolution is made of, from its definition, over any number of axes.

/// How windows lie, a number an axis.
#[derive(Debug, Clone)]
pub(crate) struct Windows {
    pub(crate) stride: Vec<usize>,
    /// Before and after.
    pub(crate) padding: Vec<[usize; 2]>,
    pub(crate) dilation: Vec<usize>,
    pub(crate) groups: usize,
}

impl Windows {
    /// The sizes of the output along the axes of `sizes`; none when a kernel does not fit.
    pub(crate) fn output(&self, sizes: &[usize], kernel: &[usize]) -> Option<Vec<usize>> {
        let one = |a: usize| {
            let room = sizes[a] + self.padding[a].iter().sum::<usize>();
            Some(room.checked_sub((kernel[a] - 1) * self.dilation[a] + 1)? / self.stride[a] + 1)
        };
        (0..sizes.len()).map(one).collect()
    }

    /// The sizes of a transposed convolution's output; none when there is none.
    pub(crate) fn transposed(&self, sizes: &[usize], kernel: &[usize], more: &[usize]) -> Option<Vec<usize>> {
        let one = |a: usize| {
            let all = (sizes[a] - 1) * self.stride[a] + (kernel[a] - 1) * self.dilation[a] + 1 + more[a];
            all.checked_sub(self.padding[a].iter().sum()).filter(|&n| n > 0)
        };
        (0..sizes.len()).map(one).collect()
    }

    /// Calls `f(output, input, weight)` with the places of each product of a convolution of `x` `[N, .., I]`
    /// with `w` `[O, .., I / groups]` to `y` `[N, .., O]`, shapes with as many axes between.
    pub(crate) fn each(&self, x: &[usize], w: &[usize], y: &[usize], mut f: impl FnMut(usize, usize, usize)) {
        let rank = x.len() - 2;
        let (kernel, out) = (&w[1..=rank], &y[1..=rank]);
        let (share, part) = (w[rank + 1], w[0] / self.groups);
        for (o, k) in grid(out).flat_map(|o| grid(kernel).map(move |k| (o.clone(), k))) {
            let at =
                |a: usize| (o[a] * self.stride[a] + k[a] * self.dilation[a]).wrapping_sub(self.padding[a][0]);
            let i: Vec<usize> = (0..rank).map(at).collect();
            if (0..rank).any(|a| i[a] >= x[a + 1]) {
                continue;
            }
            let (o, i, k) = (place(&o, out), place(&i, &x[1..=rank]), place(&k, kernel));
            let [outs, ins, taps] = [out, &x[1..=rank], kernel].map(|s| s.iter().product::<usize>());
            for (n, c, from) in
                (0..x[0]).flat_map(|n| (0..w[0]).flat_map(move |c| (0..share).map(move |from| (n, c, from))))
            {
                f(
                    (n * outs + o) * w[0] + c,
                    (n * ins + i) * x[rank + 1] + c / part * share + from,
                    (c * taps + k) * share + from,
                );
            }
        }
    }
}

/// All places of a box, in order.
fn grid(sizes: &[usize]) -> impl Iterator<Item = Vec<usize>> + use<> {
    let sizes = sizes.to_vec();
    (0..sizes.iter().product()).map(move |mut i: usize| {
        let mut at = vec![0; sizes.len()];
        for (a, n) in sizes.iter().enumerate().rev() {
            at[a] = i % n;
            i /= n;
        }
        at
    })
}

fn place(at: &[usize], sizes: &[usize]) -> usize {
    at.iter().zip(sizes).fold(0, |i, (a, n)| i * n + a)
}
