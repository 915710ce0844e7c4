use crate::{Error, Result};

/// A matrix read from a slice: element (i, j) is at `i * row_stride + j * col_stride`.
///
/// Any strides are allowed, also 0 (a broadcast row or column); a transpose is a swap of strides.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

/// A matrix written to a slice; no two elements may share a place.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    pub(crate) data: &'a mut [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

/// Fails unless the last element of a `rows` x `cols` matrix lies inside `len` elements.
fn check(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Result<()> {
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let end = (rows - 1)
        .checked_mul(row_stride)
        .zip((cols - 1).checked_mul(col_stride))
        .and_then(|(r, c)| r.checked_add(c));
    match end {
        Some(end) if end < len => Ok(()),
        _ => Err(Error::Matrix {
            rows,
            cols,
            row_stride,
            col_stride,
            len,
            why: "its last element lies past the end of the slice",
        }),
    }
}

impl<'a, T> Mat<'a, T> {
    /// A matrix with explicit strides. Fails with [`Error::Matrix`] when it reaches past `data`.
    pub fn new(
        data: &'a [T],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Result<Self> {
        check(data.len(), rows, cols, row_stride, col_stride)?;
        Ok(Mat { data, rows, cols, row_stride, col_stride })
    }

    /// A matrix whose rows follow each other without a gap; fails as [`Mat::new`].
    pub fn row_major(data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        Self::new(data, rows, cols, cols, 1)
    }

    /// The transpose, of the same data.
    pub fn t(self) -> Self {
        let Mat { data, rows, cols, row_stride, col_stride } = self;
        Mat { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

impl<'a, T> MatMut<'a, T> {
    /// A matrix with explicit strides. Fails with [`Error::Matrix`] when it reaches past `data`, or
    /// when its rows and columns interleave so that elements could coincide.
    pub fn new(
        data: &'a mut [T],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Result<Self> {
        check(data.len(), rows, cols, row_stride, col_stride)?;
        // One direction's stride must step over the whole extent of the other. Threads write disjoint
        // tiles of the matrix, so this check is what keeps them off each other's memory.
        let clear = |outer: usize, inner: usize, n: usize| inner > 0 && outer > (n - 1) * inner;
        let distinct = match (rows, cols) {
            (0, _) | (_, 0) | (1, 1) => true,
            (1, _) => col_stride > 0,
            (_, 1) => row_stride > 0,
            _ => clear(row_stride, col_stride, cols) || clear(col_stride, row_stride, rows),
        };
        if !distinct {
            let why = "its elements overlap; an output needs a place of its own for each";
            return Err(Error::Matrix { rows, cols, row_stride, col_stride, len: data.len(), why });
        }
        Ok(MatMut { data, rows, cols, row_stride, col_stride })
    }

    /// A matrix whose rows follow each other without a gap; fails as [`MatMut::new`].
    pub fn row_major(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self> {
        Self::new(data, rows, cols, cols, 1)
    }

    /// The transpose, of the same data.
    pub fn t(self) -> Self {
        let MatMut { data, rows, cols, row_stride, col_stride } = self;
        MatMut { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// Adds `bias` to each row.
    pub(crate) fn add_to_rows(&mut self, bias: Option<&[T]>)
    where
        T: Copy + std::ops::AddAssign,
    {
        for i in 0..self.rows {
            for (j, &x) in bias.unwrap_or_default().iter().enumerate() {
                self.data[i * self.row_stride + j * self.col_stride] += x;
            }
        }
    }

    /// Sets every element, and nothing between them.
    pub(crate) fn fill(&mut self, x: T)
    where
        T: Copy,
    {
        for i in 0..self.rows {
            for j in 0..self.cols {
                self.data[i * self.row_stride + j * self.col_stride] = x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_past_the_slice_are_refused() {
        let data = [0.0f32; 12];
        assert!(Mat::row_major(&data, 3, 4).is_ok());
        assert!(Mat::row_major(&data, 4, 4).is_err());
        assert!(Mat::new(&data, 3, 2, 5, 1).is_ok());
        assert!(Mat::new(&data, 3, 2, 5, 2).is_err());
        assert!(Mat::new(&data, 100, 12, 0, 1).is_ok(), "a broadcast row");
        assert!(Mat::new(&data, 0, 7, 100, 100).is_ok(), "an empty matrix has no last element");
        let huge = Mat::new(&data, 3, 3, usize::MAX, usize::MAX);
        assert!(huge.unwrap_err().to_string().contains("past the end"));
    }

    #[test]
    fn outputs_with_coinciding_elements_are_refused() {
        let mut data = [0.0f32; 64];
        for (rows, cols, rs, cs, ok) in [
            (4, 4, 4, 1, true),
            (4, 4, 1, 4, true),
            (4, 4, 1, 1, false),
            (4, 4, 0, 1, false),
            (4, 4, 3, 1, false),
            (4, 1, 0, 1, false),
            (1, 4, 0, 1, true),
            (1, 4, 1, 0, false),
            (4, 4, 9, 2, true),
            (4, 4, 5, 2, false),
        ] {
            assert_eq!(MatMut::new(&mut data, rows, cols, rs, cs).is_ok(), ok, "{rows}x{cols} {rs} {cs}");
        }
    }
}
