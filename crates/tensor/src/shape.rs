use std::fmt;
use std::ops::Deref;

/// The most axes that a tensor can have: a batch of videos with one to spare for a view.
pub const MAX_AXES: usize = 8;

/// The sizes of a tensor's axes, outermost first. No axes means a scalar.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    axes: u8,
    sizes: [usize; MAX_AXES],
}

impl Shape {
    /// A shape of the given sizes; axes past [`MAX_AXES`] are an internal error of the caller and cut
    /// off, which every op's shape rule then reports as a mismatch.
    pub fn new(sizes: &[usize]) -> Self {
        let n = sizes.len().min(MAX_AXES);
        let mut s = Shape { axes: n as u8, sizes: [0; MAX_AXES] };
        s.sizes[..n].copy_from_slice(&sizes[..n]);
        s
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.iter().product()
    }

    /// This shape with axis `axis` of size `size`.
    pub fn with(mut self, axis: usize, size: usize) -> Self {
        self.sizes[..self.axes as usize][axis] = size;
        self
    }

    /// This shape without axis `axis`.
    pub fn without(&self, axis: usize) -> Self {
        let kept: Vec<usize> = self.iter().enumerate().filter(|&(i, _)| i != axis).map(|(_, &s)| s).collect();
        Shape::new(&kept)
    }

    /// The shape that both broadcast to: axes are matched from the last, and a size of 1 stretches.
    pub fn broadcast(&self, other: &Shape) -> Option<Shape> {
        let n = self.len().max(other.len());
        let mut out = Shape { axes: n as u8, sizes: [0; MAX_AXES] };
        for i in 0..n {
            let a = if i + self.len() >= n { self[i + self.len() - n] } else { 1 };
            let b = if i + other.len() >= n { other[i + other.len() - n] } else { 1 };
            out.sizes[i] = match (a, b) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => return None,
            };
        }
        Some(out)
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.sizes[..self.axes as usize]
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(sizes: [usize; N]) -> Self {
        Shape::new(&sizes)
    }
}

impl From<&[usize]> for Shape {
    fn from(sizes: &[usize]) -> Self {
        Shape::new(sizes)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[")?;
        for (i, s) in self.iter().enumerate() {
            write!(f, "{}{s}", if i > 0 { "," } else { "" })?;
        }
        write!(f, "]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// How a tensor's elements lie in its storage: sizes, strides and the first element's place, all
/// counted in elements. A stride of 0 repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sizes of the axes.
    pub shape: Shape,
    strides: [usize; MAX_AXES],
    /// The first element's place in the storage.
    pub offset: usize,
}

impl Layout {
    /// Row-major from the storage's start.
    pub fn contiguous(shape: Shape) -> Self {
        let mut strides = [0; MAX_AXES];
        let mut step = 1;
        for i in (0..shape.len()).rev() {
            strides[i] = step;
            step *= shape[i];
        }
        Layout { shape, strides, offset: 0 }
    }

    /// This layout starting at element `offset` of the storage.
    pub fn at(self, offset: usize) -> Self {
        Layout { offset, ..self }
    }

    /// The same elements read with other sizes and strides.
    pub fn with(shape: Shape, strides: &[usize], offset: usize) -> Self {
        let mut all = [0; MAX_AXES];
        all[..strides.len()].copy_from_slice(strides);
        Layout { shape, strides: all, offset }
    }

    /// Steps between neighbours along each axis.
    pub fn strides(&self) -> &[usize] {
        &self.strides[..self.shape.len()]
    }

    /// Whether the elements lie row-major without gaps (from any offset).
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        for i in (0..self.shape.len()).rev() {
            if self.shape[i] != 1 && self.strides[i] != step {
                return false;
            }
            step *= self.shape[i];
        }
        true
    }

    /// The layout stretched to `shape` (see [`Shape::broadcast`]), or nothing when it does not fit.
    pub fn expand(&self, shape: Shape) -> Option<Layout> {
        let lead = shape.len().checked_sub(self.shape.len())?;
        let mut out = Layout { shape, strides: [0; MAX_AXES], offset: self.offset };
        for i in 0..self.shape.len() {
            if self.shape[i] == shape[lead + i] {
                out.strides[lead + i] = if self.shape[i] == 1 { 0 } else { self.strides[i] };
            } else if self.shape[i] != 1 {
                return None;
            }
        }
        Some(out)
    }

    /// The number of storage elements that the layout spans from its offset (0 when it is empty).
    pub fn span(&self) -> usize {
        if self.shape.numel() == 0 {
            return 0;
        }
        1 + self.shape.iter().zip(self.strides()).map(|(&n, &s)| (n - 1) * s).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_matches_axes_from_the_last() {
        let b = |a: &[usize], b: &[usize]| Shape::new(a).broadcast(&Shape::new(b));
        assert_eq!(b(&[2, 1, 3], &[4, 1]), Some([2, 4, 3].into()));
        assert_eq!(b(&[], &[5]), Some([5].into()));
        assert_eq!(b(&[0], &[1]), Some([0].into()));
        assert_eq!(b(&[2], &[3]), None);
    }

    #[test]
    fn layouts_know_whether_they_have_gaps() {
        let l = Layout::contiguous([2, 3, 4].into());
        assert_eq!((l.strides(), l.is_contiguous(), l.span()), (&[12, 4, 1][..], true, 24));
        let t = Layout::with([4, 2].into(), &[1, 4], 3);
        assert!(!t.is_contiguous());
        assert_eq!(t.span(), 8);
        let e = Layout::contiguous([3, 1].into()).expand([2, 3, 5].into()).unwrap();
        assert_eq!(e.strides(), &[0, 1, 0]);
        assert!(Layout::contiguous([3].into()).expand([4].into()).is_none());
        assert_eq!(Shape::new(&[7, 8, 9]).without(1), [7, 9].into());
    }
}
