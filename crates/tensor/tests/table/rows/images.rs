//! Pooling of images.

use crate::naive as n;
use crate::row::{Row, input, row};

/// Images, a kernel, stride and padding.
type Sizes = ([usize; 4], [usize; 2], [usize; 2], [usize; 2]);

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    let cases: [Sizes; 8] = [
        ([3, 14, 12, 6], [2, 2], [2, 2], [0, 0]),
        ([2, 7, 9, 16], [2, 2], [2, 2], [0, 0]),
        ([2, 9, 9, 64], [3, 3], [2, 2], [1, 1]),
        ([1, 6, 5, 33], [3, 3], [1, 1], [1, 1]),
        ([1, 5, 8, 1], [1, 3], [2, 1], [0, 1]),
        ([1, 20, 19, 2], [17, 16], [1, 2], [8, 0]),
        ([1, 2, 2, 3], [2, 2], [5, 5], [0, 0]),
        ([1, 4, 4, 0], [2, 2], [2, 2], [0, 0]),
    ];
    for (x, kernel, stride, padding) in cases {
        let row = row(
            "max_pool2d",
            vec![input(&x)],
            move |x| x[0].max_pool2d(kernel, stride, padding),
            move |x| n::max_pool2d(&x[0], kernel, stride, padding),
        );
        let row =
            row.refuses(&[&[4, 4, 2]]).bad(&[&[1, 2, 2, 1]], |x| x[0].max_pool2d([3, 3], [1, 1], [0, 0]));
        let row = row.bad(&[&[1, 4, 4, 1]], |x| x[0].max_pool2d([2, 2], [0, 1], [0, 0]));
        let row = row.bad(&[&[1, 4, 4, 1]], |x| x[0].max_pool2d([0, 2], [1, 1], [0, 0]));
        rows.push(row.bad(&[&[1, 4, 4, 1]], |x| x[0].max_pool2d([2, 2], [1, 1], [2, 0])).batch(&[0]));
    }
    rows
}
