//! Softmax and losses.

use crate::naive as n;
use crate::row::{Array, Row, frozen, indices, input, row};

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for shape in [&[5usize][..], &[3, 1], &[130, 10], &[4, 16], &[2, 3, 33], &[7, 1000]] {
        rows.push(
            row(
                "softmax",
                vec![input(shape)],
                |x| x[0].softmax(),
                |x| n::map(&n::log_softmax(&x[0]), f64::exp),
            )
            .refuses(&[&[]])
            .batch(if shape.len() > 1 { &[0] } else { &[] })
            .second(),
        );
        rows.push(
            row("log_softmax", vec![input(shape)], |x| x[0].log_softmax(), |x| n::log_softmax(&x[0]))
                .refuses(&[&[]])
                .batch(if shape.len() > 1 { &[0] } else { &[] })
                .second(),
        );
    }
    for (shape, axis) in [(&[3usize, 4, 5][..], 1usize), (&[6, 3], 0), (&[2, 3, 4], 2), (&[4, 1, 3], 0)] {
        let turned = move |x: &Array, f: &dyn Fn(&Array) -> Array| {
            let mut axes: Vec<usize> = (0..shape.len()).collect();
            axes.swap(axis, shape.len() - 1);
            n::permute(&f(&n::permute(x, &axes)), &axes)
        };
        let inputs = || vec![input(shape)];
        let plain = row(
            "softmax",
            inputs(),
            move |x| x[0].softmax_over(axis),
            move |x| turned(&x[0], &|x| n::map(&n::log_softmax(x), f64::exp)),
        );
        let log = row(
            "log_softmax",
            inputs(),
            move |x| x[0].log_softmax_over(axis),
            move |x| turned(&x[0], &n::log_softmax),
        );
        let batch: &[usize] = if axis > 0 { &[0] } else { &[] };
        rows.extend([plain, log].map(|row| row.refuses(&[&[]]).batch(batch).second()));
    }
    for (samples, classes) in [(1usize, 1usize), (3, 5), (128, 10), (40, 1000), (3000, 17)] {
        let labels: Vec<i64> = (0..samples).map(|i| ((7 * i + 2) % classes) as i64).collect();
        let (x, of) = (input(&[samples, classes]), indices(&[samples], &labels));
        let list = labels.clone();
        let plain = row(
            "cross_entropy",
            vec![x.clone(), of.clone()],
            |x| x[0].cross_entropy(&x[1], None),
            move |x| n::cross_entropy(&x[0], &list, None),
        );
        let weighted = row(
            "cross_entropy",
            vec![x, of, frozen(&[samples])],
            |x| x[0].cross_entropy(&x[1], Some(&x[2])),
            move |x| n::cross_entropy(&x[0], &labels, Some(&x[2])),
        );
        rows.push(plain.batch(&[0, 1]));
        rows.push(weighted.batch(&[0, 1, 2]));
    }
    for row in &mut rows {
        if row.op == "cross_entropy" && row.inputs[0].shape == [3, 5] {
            *row = match row.inputs.len() {
                2 => row.clone().refuses(&[&[2, 4], &[3]]).refuses(&[&[3], &[3]]),
                _ => row.clone().refuses(&[&[3, 4], &[3], &[2]]),
            };
        }
    }
    for shape in [&[6usize][..], &[5, 3, 4], &[300, 70], &[]] {
        let plain = row(
            "mse",
            vec![input(shape), input(shape)],
            |x| x[0].mse(&x[1], None),
            |x| n::mse(&x[0], &x[1], None),
        );
        let plain = plain.refuses(&[&[3], &[4]]).refuses(&[&[3, 2], &[2]]).second();
        if let Some(&samples) = shape.first() {
            let inputs = vec![input(shape), input(shape), frozen(&[samples])];
            let row =
                row("mse", inputs, |x| x[0].mse(&x[1], Some(&x[2])), |x| n::mse(&x[0], &x[1], Some(&x[2])));
            rows.push(
                row.batch(&[0, 1, 2]).refuses(&[&[3, 2], &[3, 2], &[2]]).refuses(&[&[], &[], &[1]]).second(),
            );
            rows.push(plain.batch(&[0, 1]));
        } else {
            rows.push(plain);
        }
    }
    rows
}
