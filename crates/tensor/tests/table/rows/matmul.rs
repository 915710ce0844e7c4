//! Matrix products.

use crate::naive as n;
use crate::row::{Array, Row, input, row};

/// The product by its definition; vectors get an axis that is taken away again.
fn batched(a: &Array, b: &Array) -> Array {
    let with = |x: &Array, shape: &[usize]| Array { shape: shape.to_vec(), data: x.data.clone() };
    if a.shape.len() == 1 {
        let mut y = batched(&with(a, &[1, a.shape[0]]), b);
        let at = y.shape.len() - if b.shape.len() == 1 { 1 } else { 2 };
        y.shape.remove(at);
        return y;
    }
    if b.shape.len() == 1 {
        let mut y = batched(a, &with(b, &[b.shape[0], 1]));
        y.shape.pop();
        return y;
    }
    let (p, q) = (a.shape.len() - 2, b.shape.len() - 2);
    let lead = |x: &Array, n: usize| Array { shape: x.shape[..n].to_vec(), data: vec![] };
    let shape = n::stretched(&lead(a, p).shape, &lead(b, q).shape);
    let k = a.shape[p + 1];
    n::build(&[&shape[..], &[a.shape[p], b.shape[q + 1]]].concat(), |at| {
        let (batch, last) = at.split_at(at.len() - 2);
        let place = |i: usize, j: usize| [batch, &[i, j]].concat();
        (0..k).map(|i| n::pick(a, &place(last[0], i)) * n::pick(b, &place(i, last[1]))).sum()
    })
}

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for (m, k, l) in [(1, 1, 1), (37, 129, 65), (128, 64, 10), (5, 0, 3), (2, 300, 1)] {
        let row = row(
            "matmul",
            vec![input(&[m, k]), input(&[k, l])],
            |x| x[0].matmul(&x[1]),
            |x| n::matmul(&x[0], &x[1]),
        );
        let row = row.refuses(&[&[3, 4], &[3, 4]]).refuses(&[&[], &[4, 2]]).refuses(&[&[3, 4], &[5]]);
        rows.push(row.batch(&[0]).second());
    }
    for (a, b, samples) in [
        (&[3usize, 4, 5][..], &[3usize, 5, 2][..], &[0usize, 1][..]),
        (&[2, 3, 4, 5], &[2, 3, 5, 6], &[0, 1]),
        (&[5, 7, 3], &[3, 4], &[0]),
        (&[7, 3], &[5, 3, 4], &[1]),
        (&[2, 1, 4, 3], &[5, 3, 6], &[0]),
        (&[6, 1, 3], &[3, 4], &[0]),
        (&[3, 1, 2, 4], &[1, 2, 4, 3], &[]),
        (&[2, 3, 4, 5], &[3, 5, 2], &[0]),
        (&[1, 3, 4], &[2, 4, 5], &[]),
        (&[40, 30, 50], &[40, 50, 20], &[0, 1]),
        (&[3, 70, 90], &[3, 90, 110], &[0, 1]),
        (&[5], &[5], &[]),
        (&[5], &[5, 3], &[]),
        (&[4, 5], &[5], &[0]),
        (&[2, 3, 4], &[4], &[0]),
        (&[4], &[3, 2, 4, 5], &[1]),
        (&[3, 4, 0], &[3, 0, 2], &[]),
    ] {
        let row = row("matmul", vec![input(a), input(b)], |x| x[0].matmul(&x[1]), |x| batched(&x[0], &x[1]));
        let row = row.refuses(&[&[2, 3, 4], &[3, 4, 5]]).refuses(&[&[2, 3, 4], &[2, 5, 4]]);
        let row = row.refuses(&[&[4], &[3]]).refuses(&[&[4], &[2, 3, 5]]);
        rows.push(row.batch(samples).second());
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
        let relu = |y: Array| n::map(&y, |v| v.max(0.0));
        let cut = row(
            "linear_relu",
            vec![input(&x), input(&[o, i]), input(&[o])],
            |x| x[0].linear_relu(&x[1], Some(&x[2])),
            move |x| relu(n::linear(&x[0], &x[1], Some(&x[2]))),
        );
        let cut = cut.refuses(&[&[2, 5], &[3, 4], &[3]]);
        let bare_cut = row(
            "linear_relu",
            vec![input(&x), input(&[o, i])],
            |x| x[0].linear_relu(&x[1], None),
            move |x| relu(n::linear(&x[0], &x[1], None)),
        );
        let bare_cut = bare_cut.refuses(&[&[2, 5], &[3, 4]]);
        for row in [with, bare, cut, bare_cut] {
            rows.push(row.batch(batch).second());
        }
    }
    rows
}
