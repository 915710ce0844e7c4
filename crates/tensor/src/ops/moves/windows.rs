//! Windows taken out of an axis and put back: im2col and its inverse.

use super::super::boxes::{BoxSum, want_image};
use super::{Along, Moves};
use crate::op::Meta;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor};

/// Windows along one axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Window {
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
}

impl Window {
    /// How many there are on an axis of `size`.
    fn count(self, size: usize) -> std::result::Result<usize, String> {
        let Window { kernel, stride, padding, dilation } = self;
        if kernel == 0 || stride == 0 || dilation == 0 {
            return Err("kernel, stride and dilation must be at least 1".into());
        }
        let reach = (kernel - 1).checked_mul(dilation).and_then(|r| r.checked_add(1));
        let wide = padding.checked_mul(2).and_then(|p| p.checked_add(size));
        match reach.zip(wide).and_then(|(reach, wide)| wide.checked_sub(reach)) {
            Some(room) => Ok(room / stride + 1),
            None => Err(format!(
                "a window of {kernel} places {dilation} apart is larger than {size} padded by {padding}"
            )),
        }
    }

    /// The number of places of all windows; none when there are more than can be counted.
    pub(super) fn length(self, size: usize) -> std::result::Result<Option<usize>, String> {
        Ok(self.count(size)?.checked_mul(self.kernel))
    }

    /// The places of all windows, one window after the other; none in the padding.
    pub(super) fn places(self, size: usize) -> std::result::Result<Vec<Option<usize>>, String> {
        let count = self.count(size)?;
        let place = |w: usize, k: usize| {
            (w * self.stride + k * self.dilation).checked_sub(self.padding).filter(|&p| p < size)
        };
        Ok((0..count).flat_map(|w| (0..self.kernel).map(move |k| place(w, k))).collect())
    }
}

/// The windows along each axis, from lists of as many numbers.
fn windows(
    op: &'static str,
    shape: Shape,
    kernel: &[usize],
    [stride, padding, dilation]: [&[usize]; 3],
) -> Result<Vec<Window>> {
    if let Some(list) = [stride, padding, dilation].iter().find(|l| l.len() != kernel.len()) {
        let why = format!("{list:?} has not one number for each axis of the kernel {kernel:?}");
        return Err(Error::Invalid { op, shape, why });
    }
    let one = |i: usize| Window {
        kernel: kernel[i],
        stride: stride[i],
        padding: padding[i],
        dilation: dilation[i],
    };
    Ok((0..kernel.len()).map(one).collect())
}

/// The order of axes `[N, o₀, k₀, o₁, k₁, …, C]` when all windows come first, then all places.
fn windows_first(rank: usize) -> Vec<usize> {
    let (windows, places) = ((0..rank).map(|i| 1 + 2 * i), (0..rank).map(|i| 2 + 2 * i));
    [0].into_iter().chain(windows).chain(places).chain([2 * rank + 1]).collect()
}

impl Tensor {
    /// Every window of `[N, …, C]` as a vector: `[N, …, K·C]`, where the axes between are those of the
    /// windows and K counts a window's places row by row (im2col; `torch.nn.Unfold` with channels last).
    /// Places in the padding are 0. 1 to 3 axes, one number for each of them in every list.
    pub fn unfold(
        &self,
        kernel: &[usize],
        stride: &[usize],
        padding: &[usize],
        dilation: &[usize],
    ) -> Result<Tensor> {
        const OP: &str = "unfold";
        let x = self.shape();
        want_image(OP, &[Meta { dtype: self.dtype(), layout: *self.layout() }], kernel.len())?;
        let windows = windows(OP, x, kernel, [stride, padding, dilation])?;
        let rank = windows.len();
        let (n, channels) = (x[0], x[rank + 1]);
        let rule = Moves { op: OP, axes: windows.iter().map(|&w| Along::Windows(w)).collect() };
        let y = apply_one(BoxSum::new(rule), &[self])?;
        let counts: Vec<usize> = (0..rank).map(|i| y.shape()[i + 1] / kernel[i]).collect();
        let split: Vec<usize> = counts.iter().zip(kernel).flat_map(|(&o, &k)| [o, k]).collect();
        let y = y.reshape(&[&[n], &split[..], &[channels]].concat())?.permute(&windows_first(rank))?;
        let cells = kernel.iter().product::<usize>() * channels;
        y.reshape(&[&[n], &counts[..], &[cells]].concat())
    }
}

/// Puts windows `[N, …, K·C]` back to where [`Tensor::unfold`] took them from in `[N, sizes…, C]`, and adds
/// up what falls on one place (col2im; `torch.nn.Fold` with channels last). What falls into the padding is
/// dropped.
pub fn fold(
    x: &Tensor,
    sizes: &[usize],
    kernel: &[usize],
    stride: &[usize],
    padding: &[usize],
    dilation: &[usize],
) -> Result<Tensor> {
    const OP: &str = "fold";
    let shape = x.shape();
    let refuse = |why: String| Err(Error::Invalid { op: OP, shape, why });
    want_image(OP, &[Meta { dtype: x.dtype(), layout: *x.layout() }], kernel.len())?;
    let windows = windows(OP, shape, kernel, [stride, padding, dilation])?;
    let rank = windows.len();
    if sizes.len() != rank {
        return refuse(format!(
            "the sizes {sizes:?} have not one number for each axis of the kernel {kernel:?}"
        ));
    }
    let counts = windows.iter().zip(sizes).map(|(w, &size)| w.count(size));
    let counts = match counts.collect::<std::result::Result<Vec<_>, _>>() {
        Ok(counts) => counts,
        Err(why) => return refuse(why),
    };
    let places: usize = kernel.iter().product();
    if counts[..] != shape[1..=rank] || !shape[rank + 1].is_multiple_of(places) {
        return refuse(format!(
            "images of {sizes:?} have {counts:?} such windows of {places} places, and the last axis must be a multiple \
             of that"
        ));
    }
    let (n, channels) = (shape[0], shape[rank + 1] / places);
    let apart = x.reshape(&[&[n], &counts[..], kernel, &[channels]].concat())?;
    let mut back = vec![0; 2 * rank + 2];
    windows_first(rank).iter().enumerate().for_each(|(i, &a)| back[a] = i);
    let lined: Vec<usize> = counts.iter().zip(kernel).map(|(o, k)| o * k).collect();
    let lined = apart.permute(&back)?.reshape(&[&[n], &lined[..], &[channels]].concat())?;
    let rule = Moves { op: OP, axes: windows.iter().map(|&w| Along::Windows(w)).collect() };
    apply_one(BoxSum::back(rule, Shape::new(&[&[n], sizes, &[channels]].concat())), &[&lined])
}
