//! Matrix products.

mod mat;

pub use mat::{Mat, MatMut};

use crate::simd::Real;
use crate::{Cpu, Error, Result};

/// C = A·B, or C += A·B where `accumulate` is set; A is m x k, B is k x n, C is m x n.
///
/// With k = 0 the product is zero. Fails with [`Error::Product`] when the sizes do not fit each other.
pub fn gemm<T: Real>(_cpu: &Cpu, a: Mat<T>, b: Mat<T>, c: MatMut<T>, accumulate: bool) -> Result<()> {
    if a.cols != b.rows || a.rows != c.rows || b.cols != c.cols {
        return Err(Error::Product { a: (a.rows, a.cols), b: (b.rows, b.cols), c: (c.rows, c.cols) });
    }
    for i in 0..c.rows {
        for j in 0..c.cols {
            let place = &mut c.data[i * c.row_stride + j * c.col_stride];
            let mut sum = if accumulate { *place } else { T::ZERO };
            for p in 0..a.cols {
                sum +=
                    a.data[i * a.row_stride + p * a.col_stride] * b.data[p * b.row_stride + j * b.col_stride];
            }
            *place = sum;
        }
    }
    Ok(())
}
