//! Gathering, adding to indexed places, embedding, concatenating, stacking.

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
        (&[90, 300], 0, &[88; 70]),
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
        let row = row.bad(&[&[0], &[1]], |x| x[0].index_select(0, &x[1].to(DType::I64)?));
        let row = row.bad(&[&[3], &[1]], |x| x[0].index_select(0, &x[1])).second().any_type();
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
        let row = row.bad(&[&[3, 2], &[3, 1]], |x| x[0].gather(2, &x[1].to(DType::I64)?));
        let row = row.bad(&[&[3, 2], &[3, 2]], |x| x[0].gather(1, &x[1])).second().any_type();
        rows.push(if axis > 0 { row.batch(&[0, 1]) } else { row });
    }
    rows.extend(additions());
    rows.extend(embeddings());
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

/// A tensor with what indices name added to it.
fn additions() -> Vec<Row> {
    let mut rows = Vec::new();
    for (shape, axis, list) in [
        (&[6usize, 3][..], 0, vec![5i64, 0, 0, 2, 5]),
        (&[2, 4, 3], 1, vec![3, 3, 0]),
        (&[3, 7], 1, vec![6, 0, 6, 1]),
        (&[90, 300], 0, [89, 3, 3, 41, 0, 3, 88].repeat(12)),
        (&[40, 9, 30], 1, [8, 0, 8].repeat(20)),
    ] {
        let mut added = shape.to_vec();
        added[axis] = list.len();
        let inputs = vec![input(shape), indices(&[list.len()], &list), input(&added)];
        let row = row(
            "index_add",
            inputs,
            move |x| x[0].index_add(axis, &x[1], &x[2]),
            move |x| {
                let mut y = x[0].clone();
                let inner: usize = shape[axis + 1..].iter().product();
                for (i, v) in x[2].data.iter().enumerate() {
                    let (o, j, k) = (i / inner / list.len(), i / inner % list.len(), i % inner);
                    y.data[(o * shape[axis] + list[j] as usize) * inner + k] += v;
                }
                y
            },
        );
        let add = |axis, x: &[Tensor]| x[0].index_add(axis, &x[1].to(DType::I64)?, &x[2]);
        let row = row.bad(&[&[3], &[1], &[1]], move |x| add(1, x));
        let row = row.bad(&[&[3, 2], &[1], &[2, 2]], move |x| add(0, x));
        let row = row.bad(&[&[0, 2], &[1], &[1, 2]], move |x| add(0, x)).second();
        rows.push(if axis > 0 { row.batch(&[0, 2]) } else { row });
    }
    for (shape, axis, of, list) in [
        (&[4usize, 3][..], 1, &[4usize, 2][..], vec![2i64, 0, 1, 1, 0, 0, 2, 2]),
        (&[4, 3], 0, &[2, 3], vec![3, 3, 0, 1, 2, 0]),
        (&[2, 5, 3], 1, &[2, 1, 2], vec![4, 0, 2, 2]),
        (&[6], 0, &[8], vec![5, 5, 5, 0, 1, 2, 3, 4]),
        (&[30, 5, 40], 1, &[30, 30, 40], (0..36000).map(|i| i * i % 5).collect()),
    ] {
        let inputs = vec![input(shape), indices(of, &list), input(of)];
        let row = row(
            "scatter_add",
            inputs,
            move |x| x[0].scatter_add(axis, &x[1], &x[2]),
            move |x| {
                let mut y = x[0].clone();
                let places = n::build(of, |at| {
                    let mut to = at.to_vec();
                    to[axis] = n::pick(&x[1], at) as usize;
                    shape.iter().zip(&to).fold(0, |i, (&n, &p)| i * n + p) as f64
                });
                places.data.iter().zip(&x[2].data).for_each(|(&at, v)| y.data[at as usize] += v);
                y
            },
        );
        let add = |axis, x: &[Tensor]| x[0].scatter_add(axis, &x[1].to(DType::I64)?, &x[2]);
        let row = row.bad(&[&[3, 2], &[3], &[3]], move |x| add(0, x));
        let row = row.bad(&[&[3, 2], &[4, 1], &[4, 1]], move |x| add(1, x));
        let row = row.bad(&[&[3, 2], &[3, 1], &[3, 2]], move |x| add(1, x)).second();
        rows.push(if axis > 0 { row.batch(&[0, 1, 2]) } else { row });
    }
    rows
}

/// Rows of a table, and classes as vectors.
fn embeddings() -> Vec<Row> {
    let mut rows = Vec::new();
    for (table, of, list, padding) in [
        ([5usize, 3], &[2usize, 4][..], vec![0i64, 4, 4, 1, 3, 0, 2, 4], None),
        ([5, 3], &[2, 4], vec![0, 4, 4, 1, 3, 0, 2, 4], Some(4)),
        ([4, 1], &[3], vec![2, 2, 2], Some(0)),
        ([3, 6], &[], vec![1], None),
        ([200, 130], &[40, 5], (0..200).map(|i| i * i % 199).collect(), Some(1)),
    ] {
        let own = list.clone();
        let row = row(
            "embedding",
            vec![input(&table), indices(of, &list)],
            move |x| x[0].embedding(&x[1], padding),
            move |x| Array { shape: [of, &[table[1]]].concat(), ..n::index_select(&x[0], 0, &own) },
        );
        let row = row.bad(&[&[3], &[1]], |x| x[0].embedding(&x[1].to(DType::I64)?, None));
        let row = row.bad(&[&[3, 2], &[1]], |x| x[0].embedding(&x[1].to(DType::I64)?, Some(3)));
        let row = row.bad(&[&[3, 2], &[1]], |x| x[0].embedding(&x[1], None));
        let row = row.bad(&[&[3, 2], &[1]], |x| x[0].to(DType::U8)?.embedding(&x[1].to(DType::I64)?, None));
        // The gradient of a padding row is not its slope; PyTorch's values test it.
        let row = if padding.is_some() { row.no_slopes() } else { row };
        rows.push(row.second().any_type());
    }
    for (of, list, classes) in [(&[4usize][..], vec![1i64, 0, 2, 2], 3usize), (&[2, 3], vec![0; 6], 1)] {
        let row = row(
            "one_hot",
            vec![indices(of, &list)],
            move |x| x[0].one_hot(classes, DType::F64),
            move |x| {
                n::build(&[of, &[classes]].concat(), |at| {
                    let (class, place) = (at[at.len() - 1], &at[..at.len() - 1]);
                    f64::from(n::pick(&x[0], place) as usize == class)
                })
            },
        );
        let row = row.bad(&[&[3]], |x| x[0].to(DType::I64)?.one_hot(3, DType::I64));
        rows.push(row.batch(&[0]).no_gradient());
    }
    rows
}
