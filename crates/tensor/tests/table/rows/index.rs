//! Gathering, concatenating, stacking.

use phalanx_tensor::{DType, Tensor, concat, stack};

use crate::naive as n;
use crate::row::{Array, In, Row, indices, input, row};

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for (shape, axis, list) in [
        (&[6usize, 3][..], 0, &[5i64, 0, 0, 2, 5][..]),
        (&[2, 4, 3], 1, &[3, 3, 0]),
        (&[5], 0, &[]),
        (&[3, 7], 1, &[6, 0, 6, 1]),
        (&[50, 90], 0, &[7; 70]),
    ] {
        let of = indices(&[list.len()], list);
        let row = row(
            "index_select",
            vec![input(shape), of],
            move |x| x[0].index_select(axis, &x[1]),
            move |x| n::index_select(&x[0], axis, list),
        );
        let row = row.bad(&[&[3], &[1]], |x| x[0].index_select(1, &x[1].to(DType::I64)?));
        let row = row.bad(&[&[3], &[1, 1]], |x| x[0].index_select(0, &x[1].to(DType::I64)?));
        let row = row.bad(&[&[0], &[1]], |x| x[0].index_select(0, &x[1].to(DType::I64)?)).second();
        rows.push(if axis > 0 { row.batch(&[0]) } else { row });
    }
    for (shape, axis, of, list) in [
        (&[4usize, 3][..], 1, &[4usize, 2][..], &[2i64, 0, 1, 1, 0, 0, 2, 2][..]),
        (&[4, 3], 0, &[2, 3], &[3, 3, 0, 1, 2, 0]),
        (&[2, 5, 3], 1, &[2, 1, 2], &[4, 0, 2, 2]),
        (&[6], 0, &[8], &[5, 5, 5, 0, 1, 2, 3, 4]),
    ] {
        let inputs = vec![input(shape), indices(of, list)];
        let row =
            row("gather", inputs, move |x| x[0].gather(axis, &x[1]), move |x| n::gather(&x[0], axis, &x[1]));
        let row = row.bad(&[&[3, 2], &[3]], |x| x[0].gather(0, &x[1].to(DType::I64)?));
        let row = row.bad(&[&[3, 2], &[4, 1]], |x| x[0].gather(1, &x[1].to(DType::I64)?));
        let row = row.bad(&[&[3, 2], &[3, 1]], |x| x[0].gather(2, &x[1].to(DType::I64)?)).second();
        rows.push(if axis > 0 { row.batch(&[0, 1]) } else { row });
    }
    let all = |x: &[Tensor], axis| concat(&x.iter().collect::<Vec<_>>(), axis);
    let cases: [(Vec<In>, usize); 4] = [
        (vec![input(&[3, 2]), input(&[3, 5])], 1),
        (vec![input(&[1, 4]), input(&[0, 4]), input(&[7, 4])], 0),
        (vec![input(&[2, 3, 2]), input(&[2, 3, 1])], 2),
        (vec![input(&[50, 40]), input(&[30, 40])], 0),
    ];
    for (inputs, axis) in cases {
        let row = row("concat", inputs, move |x| all(x, axis), move |x| n::concat(x, axis));
        let row = row.bad(&[&[3, 2], &[2, 3]], move |x| all(x, 0)).bad(&[&[3, 2], &[3]], move |x| all(x, 0));
        let row = row.bad(&[&[3], &[3]], move |x| all(x, 1)).bad(&[], move |x| all(x, 0)).second();
        rows.push(if axis > 0 { row.batch(&[0, 1]) } else { row });
    }
    for (shape, axis) in [(&[3usize, 2][..], 0), (&[3, 2], 1), (&[4], 1), (&[], 0)] {
        let pair = |x: &[Tensor], axis| stack(&[&x[0], &x[1]], axis);
        let row = row(
            "stack",
            vec![input(shape), input(shape)],
            move |x| pair(x, axis),
            move |x| {
                let mut sizes = shape.to_vec();
                sizes.insert(axis, 1);
                n::concat(&[0, 1].map(|i| Array { shape: sizes.clone(), data: x[i].data.clone() }), axis)
            },
        );
        let row = row.bad(&[&[3], &[2]], move |x| pair(x, 0)).bad(&[&[3], &[3]], move |x| pair(x, 2));
        rows.push(row.bad(&[], |_| stack(&[], 0)).second());
    }
    rows
}
