//! Convolution and pooling.

use crate::naive as n;
use crate::row::{Row, input, row};

/// Images, a kernel, stride and padding.
type Sizes<const K: usize> = ([usize; 4], [usize; K], [usize; 2], [usize; 2]);

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    let cases: [Sizes<3>; 9] = [
        ([2, 17, 13, 5], [7, 3, 3], [1, 1], [1, 1]),
        ([3, 12, 12, 6], [16, 5, 5], [1, 1], [0, 0]),
        ([2, 28, 28, 1], [6, 5, 5], [1, 1], [2, 2]),
        ([1, 9, 9, 3], [4, 7, 7], [2, 2], [3, 3]),
        ([2, 6, 5, 18], [33, 1, 1], [1, 1], [0, 0]),
        ([2, 7, 8, 4], [5, 1, 1], [2, 2], [0, 0]),
        ([1, 5, 3, 2], [3, 5, 3], [1, 1], [0, 0]),
        ([1, 4, 9, 16], [16, 1, 7], [1, 3], [0, 3]),
        ([1, 1, 1, 1], [1, 3, 3], [1, 1], [1, 1]),
    ];
    for (x, [o, kh, kw], stride, padding) in cases {
        let w = [o, kh, kw, x[3]];
        let with = row(
            "conv2d",
            vec![input(&x), input(&w), input(&[o])],
            move |x| x[0].conv2d(&x[1], Some(&x[2]), stride, padding),
            move |x| n::conv2d(&x[0], &x[1], Some(&x[2]), stride, padding),
        );
        let with =
            with.refuses(&[&[1, 4, 4, 2], &[3, 1, 1, 3], &[3]]).refuses(&[&[4, 4, 2], &[3, 1, 1, 2], &[3]]);
        let with = with.refuses(&[&[1, 4, 4, 2], &[3, 1, 1, 2], &[2]]).refuses(&[
            &[1, 2, 2, 1],
            &[1, 90, 90, 1],
            &[1],
        ]);
        let with = with.bad(&[&[1, 4, 4, 2], &[3, 1, 1, 2]], |x| x[0].conv2d(&x[1], None, [0, 1], [0, 0]));
        let with = with.bad(&[&[1, 4, 4, 2], &[3, 0, 1, 2]], |x| x[0].conv2d(&x[1], None, [1, 1], [0, 0]));
        let bare = row(
            "conv2d",
            vec![input(&x), input(&w)],
            move |x| x[0].conv2d(&x[1], None, stride, padding),
            move |x| n::conv2d(&x[0], &x[1], None, stride, padding),
        );
        rows.extend([with.batch(&[0]), bare.batch(&[0])]);
    }
    let cases: [Sizes<2>; 8] = [
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
