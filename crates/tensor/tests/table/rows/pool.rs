//! Pooling and local response normalisation: what golden cases do not tell. Random grids of shapes are in
//! pool_grid.rs.

use phalanx_tensor::Pool;

use crate::naive as n;
use crate::row::{Array, Row, input, row};

/// `f` of the numbers in each window of images: of `kernel` numbers from every `stride`-th on.
fn windows(x: &Array, kernel: [usize; 2], stride: [usize; 2], f: fn(&[f64]) -> f64) -> Array {
    let [h, w] = [0, 1].map(|i| (x.shape[i + 1] - kernel[i]) / stride[i] + 1);
    n::build(&[x.shape[0], h, w, x.shape[3]], |at| {
        let places = (0..kernel[0] * kernel[1]).map(|k| [k / kernel[1], k % kernel[1]]);
        let number =
            |[y, z]: [usize; 2]| n::pick(x, &[at[0], at[1] * stride[0] + y, at[2] * stride[1] + z, at[3]]);
        f(&places.map(number).collect::<Vec<_>>())
    })
}

/// Local response normalisation by its definition.
fn normalised(x: &Array, size: usize, [alpha, beta, k]: [f64; 3]) -> Array {
    let channels = x.shape[x.shape.len() - 1];
    Array::new(&x.shape, |i| {
        let near = |d: usize| (i % channels + d).checked_sub(size / 2).filter(|&c| c < channels);
        let squares = (0..size).filter_map(near).map(|c| x.data[i - i % channels + c].powi(2));
        x.data[i] / (k + alpha / size as f64 * squares.sum::<f64>()).powf(beta)
    })
}

fn response() -> Vec<Row> {
    let cases = [
        (vec![2, 5, 3, 37], 5, [1.5, 0.75, 2.0]),
        (vec![3, 6], 4, [2.0, 0.5, 1.0]),
        (vec![1, 40, 30, 16], 5, [0.7, 0.75, 1.0]),
        (vec![2, 3], 9, [1.0, 1.2, 0.5]),
        (vec![4, 2, 1], 1, [1.0, 0.75, 1.0]),
    ];
    let made = cases.map(|(shape, size, [alpha, beta, k])| {
        let row = row(
            "local_response_norm",
            vec![input(&shape)],
            move |x| x[0].local_response_norm(size, alpha, beta, k),
            move |x| normalised(&x[0], size, [alpha, beta, k]),
        );
        let row = row.refuses(&[&[]]).bad(&[&[2, 3]], |x| x[0].local_response_norm(0, 1.0, 0.75, 1.0));
        let row = row.bad(&[&[2, 3]], |x| x[0].local_response_norm(1000, 1.0, 0.75, 1.0));
        row.bad(&[&[2, 3]], |x| x[0].local_response_norm(5, 1.0, 0.75, 0.0)).batch(&[0])
    });
    made.to_vec()
}

pub(super) fn all() -> Vec<Row> {
    let mut rows = response();
    // The first is large enough to be cut into tasks along its first axis, the second of a window with more than
    // 256 places.
    for (x, kernel, stride) in [
        ([1, 70, 60, 17], [3, 3], [2, 2]),
        ([1, 40, 20, 3], [19, 14], [3, 1]),
        ([3, 13, 13, 40], [13, 13], [1, 1]),
        ([1, 4, 4, 0], [2, 2], [2, 2]),
    ] {
        let pool = Pool::new(&kernel).stride(&stride);
        let max = row(
            "max_pool2d",
            vec![input(&x)],
            move |x| x[0].max_pool(&pool),
            move |x| windows(&x[0], kernel, stride, n::largest),
        );
        let mean = row(
            "avg_pool2d",
            vec![input(&x)],
            move |x| x[0].avg_pool(&pool),
            move |x| windows(&x[0], kernel, stride, n::mean),
        );
        for row in [max, mean.second()] {
            let row = row.refuses(&[&[40, 40, 2]]).refuses(&[&[1, 1, 70, 2]]).refuses(&[&[1, 40, 40, 40, 1]]);
            rows.push(row.batch(&[0]));
        }
    }
    let halves = row(
        "max_pool1d",
        vec![input(&[2, 10, 3])],
        |x| x[0].max_pool(&Pool::new(&[2])),
        |x| n::reduce(&n::split(&x[0], 1, 2), &[2], false, n::largest),
    );
    let refused: [fn() -> Pool; 9] = [
        || Pool::new(&[0]),
        || Pool::new(&[2]).stride(&[0]),
        || Pool::new(&[2]).dilation(&[0]),
        || Pool::new(&[2]).padding(&[2]),
        || Pool::new(&[2]).padding(&[1, 1]),
        || Pool::new(&[9]),
        || Pool::new(&[2]).dilation(&[usize::MAX]),
        // Its only window has a place on either side of the axis.
        || Pool::new(&[2]).dilation(&[9]).padding(&[5]),
        || Pool::new(&[1 << 23]).padding(&[1 << 22]),
    ];
    rows.push(
        refused
            .into_iter()
            .fold(halves.batch(&[0]), |row, pool| row.bad(&[&[1, 8, 2]], move |x| x[0].max_pool(&pool()))),
    );
    let pairs = row(
        "avg_pool1d",
        vec![input(&[2, 10, 3])],
        |x| x[0].avg_pool(&Pool::new(&[2])),
        |x| n::reduce(&n::split(&x[0], 1, 2), &[2], false, n::mean),
    );
    let pairs = pairs.bad(&[&[1, 8, 2]], |x| x[0].avg_pool(&Pool::new(&[2]).dilation(&[2])));
    rows.push(pairs.bad(&[&[1, 8, 2]], |x| x[0].avg_pool(&Pool::new(&[2]).divisor(0))).second().batch(&[0]));
    let whole = row(
        "adaptive_avg_pool3d",
        vec![input(&[2, 2, 3, 4, 5])],
        |x| x[0].adaptive_avg_pool(&[1, 1, 1]),
        |x| n::reduce(&x[0], &[1, 2, 3], true, n::mean),
    );
    let whole = whole.refuses(&[&[2, 0, 3, 4, 5]]).refuses(&[&[2, 3, 4, 5]]);
    rows.push(whole.second().batch(&[0]));
    let whole = row(
        "adaptive_max_pool3d",
        vec![input(&[2, 2, 3, 4, 5])],
        |x| x[0].adaptive_max_pool(&[1, 1, 1]),
        |x| n::reduce(&x[0], &[1, 2, 3], true, n::largest),
    );
    let whole = whole.refuses(&[&[2, 0, 3, 4, 5]]).refuses(&[&[2, 3, 4, 5]]);
    rows.push(whole.bad(&[&[2, 1, 1, 1, 1]], |x| x[0].adaptive_max_pool(&[1, 0, 1])).batch(&[0]));
    rows
}
