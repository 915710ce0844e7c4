//! Where windows lie.

use std::ops::Range;

use crate::ops::boxes::Taps;
use crate::{Error, Result, Shape};

/// Windows that slide over the 1 to 3 axes between samples and channels, as many axes as the kernel has
/// sizes: `[N, T, C]`, `[N, H, W, C]`, `[N, D, H, W, C]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    kernel: Shape,
    stride: Option<Shape>,
    padding: Option<Shape>,
    dilation: Option<Shape>,
    ceil: bool,
    pub(super) count_include_pad: bool,
    pub(super) divisor: Option<usize>,
}

impl Pool {
    /// Windows of `kernel` places, side by side: the stride is the kernel.
    pub fn new(kernel: &[usize]) -> Self {
        Pool {
            kernel: Shape::new(kernel),
            stride: None,
            padding: None,
            dilation: None,
            ceil: false,
            count_include_pad: true,
            divisor: None,
        }
    }

    /// Steps from window to window.
    pub fn stride(self, stride: &[usize]) -> Self {
        Pool { stride: Some(Shape::new(stride)), ..self }
    }

    /// Places before and after each axis, at most half of a window: −∞ for the largest number, 0 for the
    /// average.
    pub fn padding(self, padding: &[usize]) -> Self {
        Pool { padding: Some(Shape::new(padding)), ..self }
    }

    /// Steps from place to place in a window (largest number only).
    pub fn dilation(self, dilation: &[usize]) -> Self {
        Pool { dilation: Some(Shape::new(dilation)), ..self }
    }

    /// Whether a rest that does not fill a window makes one too. It must begin before the axis ends:
    /// a window in the right padding alone is left out, as PyTorch does.
    pub fn ceil(self, ceil: bool) -> Self {
        Pool { ceil, ..self }
    }

    /// Whether an average counts the padding (it does unless told otherwise, as in PyTorch). What a window
    /// of ceil mode has beyond the padding never counts.
    pub fn count_include_pad(self, yes: bool) -> Self {
        Pool { count_include_pad: yes, ..self }
    }

    /// Divides the sums of an average by `divisor` instead of by the number of places.
    pub fn divisor(self, divisor: usize) -> Self {
        Pool { divisor: Some(divisor), ..self }
    }

    /// The number of windows along each of the axes of `sizes` (without samples and channels). Fails as
    /// the ops do when the windows do not fit.
    pub fn output(&self, sizes: &[usize]) -> Result<Shape> {
        let axes = Tiling::Sliding(*self).axes("pool", sizes.into(), sizes)?;
        Ok(Shape::new(&axes.iter().map(|a| a.spans.len()).collect::<Vec<_>>()))
    }

    /// The kernel's size, step, padding and dilation along `axis`.
    fn along(&self, axis: usize) -> [usize; 4] {
        let or = |list: Option<Shape>, default| list.map_or(default, |l| l[axis]);
        let k = self.kernel[axis];
        [k, or(self.stride, k), or(self.padding, 0), or(self.dilation, 1)]
    }
}

/// How windows cover the axes.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::large_enum_variant, reason = "there is one for a call of an op, and it is copied once")]
pub(super) enum Tiling {
    Sliding(Pool),
    /// So many windows along each axis, as alike as possible: window i goes from ⌊i·in/out⌋ to
    /// ⌈(i + 1)·in/out⌉.
    Adaptive(Shape),
}

/// The windows along one axis.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// Numbers on the axis.
    pub(super) size: usize,
    /// Places of the largest window.
    pub(super) kernel: usize,
    /// From place to place.
    pub(super) step: usize,
    pub(super) spans: Vec<Span>,
}

/// One window along one axis.
#[derive(Debug, Clone)]
pub(super) struct Span {
    /// Where its first place lies; negative in the padding.
    pub(super) start: isize,
    /// Its places that lie on the axis; never none.
    pub(super) inside: Range<usize>,
    /// Its places on the axis and in the padding.
    pub(super) extent: usize,
}

impl Axis {
    /// An axis that is not pooled over.
    pub(super) fn single() -> Self {
        let span = Span { start: 0, inside: 0..1, extent: 1 };
        Axis { size: 1, kernel: 1, step: 1, spans: vec![span] }
    }

    /// Where place `place` of a window lies, which is inside.
    #[inline(always)]
    pub(super) fn at(&self, span: &Span, place: usize) -> usize {
        (span.start + (place * self.step) as isize) as usize
    }

    fn sliding(
        size: usize,
        [kernel, stride, padding, dilation]: [usize; 4],
        ceil: bool,
    ) -> std::result::Result<Self, String> {
        if kernel == 0 || stride == 0 || dilation == 0 {
            return Err("kernel, stride and dilation must be at least 1".into());
        }
        let reach = (kernel - 1).checked_mul(dilation).and_then(|r| r.checked_add(1));
        let reach =
            reach.ok_or_else(|| format!("a window of {kernel} places {dilation} apart is too large"))?;
        // Otherwise a window could lie in the padding alone.
        if padding > reach / 2 {
            return Err(format!("padding {padding} is more than half of the kernel's {reach}"));
        }
        let room = (size + 2 * padding).checked_sub(reach);
        let room =
            room.ok_or_else(|| format!("a window of {reach} is larger than {size} padded by {padding}"))?;
        let mut windows = if ceil { room.div_ceil(stride) } else { room / stride } + 1;
        if ceil && (windows - 1).checked_mul(stride).is_none_or(|start| start >= size + padding) {
            windows -= 1;
        }
        let span = |o: usize| {
            let start = (o * stride) as isize - padding as isize;
            let first = (-start).max(0) as usize;
            let end = (size as isize - start).max(0) as usize;
            let inside = first.div_ceil(dilation)..end.div_ceil(dilation).min(kernel);
            let extent = kernel.min(((size + padding) as isize - start) as usize);
            Span { start, inside, extent }
        };
        let spans: Vec<Span> = (0..windows).map(span).collect();
        match spans.iter().position(|s| s.inside.is_empty()) {
            Some(o) => Err(format!("window {o} of {kernel} places {dilation} apart meets only padding")),
            None => Ok(Axis { size, kernel, step: dilation, spans }),
        }
    }

    fn adaptive(size: usize, windows: usize) -> std::result::Result<Self, String> {
        if windows == 0 || size == 0 {
            return Err(format!("{size} cannot be cut into {windows} windows"));
        }
        let edge = |o: usize| (o as u128 * size as u128, windows as u128);
        let span = |o: usize| {
            let (start, (end, n)) = (edge(o).0 / windows as u128, edge(o + 1));
            let len = (end.div_ceil(n) - start) as usize;
            Span { start: start as isize, inside: 0..len, extent: len }
        };
        let spans: Vec<Span> = (0..windows).map(span).collect();
        let kernel = spans.iter().map(|s| s.extent).max().unwrap_or(1);
        Ok(Axis { size, kernel, step: 1, spans })
    }

    /// The places of each window, to be added up and divided by `count` of them.
    pub(super) fn taps(&self, count: impl Fn(&Span) -> usize) -> Taps {
        let mut taps = Taps::new(self.size);
        for span in &self.spans {
            let places = span.inside.clone().map(|p| (self.at(span, p), 1.0));
            taps.push(places, count(span) as f64);
        }
        taps
    }
}

impl Tiling {
    /// The number of axes that windows cover.
    pub(super) fn rank(&self) -> usize {
        match self {
            Tiling::Sliding(pool) => pool.kernel.len(),
            Tiling::Adaptive(out) => out.len(),
        }
    }

    /// The windows along each of the axes of `sizes`, which are those of `x` between samples and
    /// channels.
    pub(super) fn axes(&self, op: &'static str, x: Shape, sizes: &[usize]) -> Result<Vec<Axis>> {
        let refuse = |why: String| Error::Invalid { op, shape: x, why };
        if let Tiling::Sliding(pool) = self
            && let Some(list) = [pool.stride, pool.padding, pool.dilation]
                .iter()
                .flatten()
                .find(|list| list.len() != pool.kernel.len())
        {
            return Err(refuse(format!(
                "{list} has not one number for each axis of the kernel {}",
                pool.kernel
            )));
        }
        if sizes.len() != self.rank() {
            return Err(refuse(format!("{} axes cannot be pooled by {}", sizes.len(), self.rank())));
        }
        let one = |(axis, &size): (usize, &usize)| match self {
            Tiling::Sliding(pool) => Axis::sliding(size, pool.along(axis), pool.ceil),
            Tiling::Adaptive(out) => Axis::adaptive(size, out[axis]),
        };
        sizes.iter().enumerate().map(|a| one(a).map_err(refuse)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_makes_a_window_in_ceil_mode_unless_it_begins_in_the_right_padding() {
        let pool = Pool::new(&[3]).stride(&[2]);
        let out = |p: Pool, n: usize| p.output(&[n]).unwrap()[0];
        assert_eq!([5, 6, 7].map(|n| out(pool, n)), [2, 2, 3]);
        assert_eq!([5, 6, 7].map(|n| out(pool.ceil(true), n)), [2, 3, 3]);
        // 3 places every 3 of 4 padded by 1 on both sides: the third would begin at 5.
        assert_eq!(out(Pool::new(&[3]).padding(&[1]).ceil(true), 4), 2);
        assert_eq!(out(Pool::new(&[2]).stride(&[4]).padding(&[1]).ceil(true), 3), 1);
        assert_eq!(out(Pool::new(&[1]).stride(&[usize::MAX]).ceil(true), 5), 1);
    }

    #[test]
    fn adaptive_windows_cover_the_axis_and_may_overlap() {
        let ranges = |size, out| {
            let axis = Axis::adaptive(size, out).unwrap();
            axis.spans.iter().map(|s| (s.start, s.extent)).collect::<Vec<_>>()
        };
        assert_eq!(ranges(7, 3), [(0, 3), (2, 3), (4, 3)]);
        assert_eq!(ranges(2, 3), [(0, 1), (0, 2), (1, 1)]);
        assert_eq!(ranges(4, 1), [(0, 4)]);
    }
}
