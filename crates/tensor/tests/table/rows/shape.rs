//! Views and copies.

use crate::naive as n;
use crate::row::{Array, Row, input, row};

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for (from, to) in
        [(&[6usize, 4][..], &[2usize, 12][..]), (&[3, 1, 5], &[15]), (&[1], &[]), (&[0, 3], &[3, 0, 2])]
    {
        let same = move |x: &[Array]| Array { shape: to.to_vec(), data: x[0].data.clone() };
        let row = row("reshape", vec![input(from)], move |x| x[0].reshape(to), same).any_type().second();
        rows.push(row.bad(&[&[3, 2]], |x| x[0].reshape(&[7])));
    }
    for (shape, axes) in
        [(&[3usize, 4][..], &[1usize, 0][..]), (&[2, 3, 4], &[1, 2, 0]), (&[70, 50], &[1, 0])]
    {
        let turned = move |x: &[Array]| n::permute(&x[0], axes);
        let row = row("permute", vec![input(shape)], move |x| x[0].permute(axes), turned).any_type().second();
        rows.push(row.bad(&[&[3, 2]], |x| x[0].permute(&[0, 0])).bad(&[&[3, 2]], |x| x[0].permute(&[0])));
        let copy = row_of_contiguous(shape, axes);
        rows.push(copy);
    }
    for (shape, axis, start, len, step) in
        [(&[9usize, 4][..], 0, 1, 3, 3), (&[2, 7], 1, 6, 1, 4), (&[5], 0, 5, 0, 1), (&[60, 70], 1, 3, 22, 3)]
    {
        let list: Vec<i64> = (0..len).map(|i| (start + i * step) as i64).collect();
        let cut = move |x: &[Array]| n::index_select(&x[0], axis, &list);
        let row = row("slice", vec![input(shape)], move |x| x[0].slice_by(axis, start, len, step), cut);
        let row = row.bad(&[&[5]], |x| x[0].slice(0, 3, 3)).bad(&[&[5]], |x| x[0].slice(1, 0, 1));
        rows.push(row.bad(&[&[5]], |x| x[0].slice_by(0, 0, 1, 0)).any_type().second());
    }
    for (from, to) in [
        (&[4usize][..], &[3usize, 4][..]),
        (&[3, 1, 5], &[2, 3, 4, 5]),
        (&[], &[2, 2]),
        (&[1, 90], &[80, 90]),
    ] {
        let wide = move |x: &[Array]| n::build(to, |at| n::pick(&x[0], at));
        let row = row("expand", vec![input(from)], move |x| x[0].expand(to), wide).any_type().second();
        rows.push(row.bad(&[&[3]], |x| x[0].expand(&[4])).bad(&[&[3, 1]], |x| x[0].expand(&[3])));
    }
    rows
}

fn row_of_contiguous(shape: &'static [usize], axes: &'static [usize]) -> Row {
    let turned = move |x: &[Array]| n::permute(&x[0], axes);
    row("contiguous", vec![input(shape)], move |x| x[0].permute(axes)?.contiguous(), turned)
        .any_type()
        .second()
}
