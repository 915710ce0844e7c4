//! Matrix products.

use crate::naive as n;
use crate::row::{Row, input, row};

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for (m, k, l) in [(1, 1, 1), (37, 129, 65), (128, 64, 10), (5, 0, 3), (2, 300, 1)] {
        let row = row(
            "matmul",
            vec![input(&[m, k]), input(&[k, l])],
            |x| x[0].matmul(&x[1]),
            |x| n::matmul(&x[0], &x[1]),
        );
        let row = row.refuses(&[&[3, 4], &[3, 4]]).refuses(&[&[4], &[4, 2]]).refuses(&[&[2, 3, 4], &[4, 2]]);
        rows.push(row.batch(&[0]).second());
    }
    for (lead, i, o) in [
        (&[7usize][..], 5, 3),
        (&[130], 70, 33),
        (&[], 4, 6),
        (&[2, 3, 2], 8, 17),
        (&[4], 0, 3),
        (&[3], 2, 1),
    ] {
        let x = [lead, &[i]].concat();
        let with = row(
            "linear",
            vec![input(&x), input(&[o, i]), input(&[o])],
            |x| x[0].linear(&x[1], Some(&x[2])),
            |x| n::linear(&x[0], &x[1], Some(&x[2])),
        );
        let with = with.refuses(&[&[2, 5], &[3, 4], &[3]]).refuses(&[&[2, 5], &[3, 5], &[4]]);
        let with = with.refuses(&[&[2, 5], &[5], &[3]]).refuses(&[&[], &[3, 5], &[3]]);
        let bare = row(
            "linear",
            vec![input(&x), input(&[o, i])],
            |x| x[0].linear(&x[1], None),
            |x| n::linear(&x[0], &x[1], None),
        );
        let bare = bare.refuses(&[&[2, 5], &[3, 4]]);
        // With a bias a batch of none is empty all the same.
        let batch: &[usize] = if lead.is_empty() { &[] } else { &[0] };
        rows.extend([with.batch(batch).second(), bare.batch(batch).second()]);
    }
    rows
}
