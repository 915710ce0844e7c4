//! Softmax and losses.

use phalanx_tensor::{CrossEntropy, PointLoss, Tensor, Triplet};

use crate::naive as n;
use crate::row::{Array, Row, frozen, indices, input, row};

/// Losses with all their choices, of sizes that make several tasks; and what they refuse.
fn with_choices() -> Vec<Row> {
    let mut rows = Vec::new();
    for (shape, smoothing, ignore) in
        [(&[300usize, 65][..], 0.1, Some(3)), (&[3, 20, 1000], 0.0, Some(-100)), (&[40, 9, 17], 0.25, None)]
    {
        let k = *shape.last().unwrap();
        let of = shape[..shape.len() - 1].to_vec();
        let labels: Vec<i64> = (0..of.iter().product())
            .map(|i: usize| if i % 5 == 1 { ignore.unwrap_or(0) } else { ((7 * i + 2) % k) as i64 })
            .collect();
        let list = labels.clone();
        let entropy = row(
            "cross_entropy",
            vec![input(shape), frozen(&shape[..1]), frozen(&[k])],
            move |x| {
                let how = CrossEntropy {
                    weights: Some(&x[1]),
                    class_weights: Some(&x[2]),
                    ignore_index: ignore,
                    label_smoothing: smoothing,
                };
                x[0].cross_entropy_with(&Tensor::from_slice(&list, &of[..], x[0].device())?, &how)
            },
            move |x| n::cross_entropy_with(x, &labels, smoothing, ignore),
        );
        rows.push(entropy);
    }
    let last = rows.len() - 1;
    let shares = |how: CrossEntropy<'static>| move |x: &[Tensor]| x[0].cross_entropy_with(&x[1], &how);
    let plain = CrossEntropy::default();
    rows[last] = rows[last]
        .clone()
        .bad(&[&[2, 3], &[2, 4]], shares(plain))
        .bad(&[&[2, 3], &[2]], shares(plain))
        .bad(&[&[2, 3], &[2, 3]], shares(CrossEntropy { ignore_index: Some(1), ..plain }))
        .bad(&[&[2, 3], &[2, 3]], shares(CrossEntropy { label_smoothing: 1.5, ..plain }))
        .bad(&[&[2, 3], &[2, 3], &[2]], |x| {
            let how = CrossEntropy { class_weights: Some(&x[2]), ..CrossEntropy::default() };
            x[0].cross_entropy_with(&x[1], &how)
        });
    let huber = |d: f64| if d.abs() <= 0.5 { 0.5 * d * d } else { 0.5 * (d.abs() - 0.25) };
    let points = row(
        "huber",
        vec![input(&[300, 70]), input(&[300, 70]), frozen(&[300])],
        |x| x[0].point_loss(&x[1], PointLoss::Huber { delta: 0.5 }, Some(&x[2])),
        move |x| {
            let each = n::zip(&x[0], &x[1], |a, b| huber(a - b));
            let of = |i: usize| x[2].data[i / 70] * each.data[i];
            Array { shape: vec![], data: vec![(0..each.data.len()).map(of).sum()] }
        },
    );
    let loss = |loss: PointLoss| move |x: &[Tensor]| x[0].point_loss(&x[1], loss, None);
    let pair: &[&[usize]] = &[&[3], &[3]];
    rows.push(points.batch(&[0, 1, 2]).bad(pair, loss(PointLoss::Huber { delta: 0.0 })));
    let margins = row(
        "triplet_margin",
        vec![input(&[30, 70]), input(&[30, 70]), input(&[30, 70]), frozen(&[30])],
        |x| x[0].triplet_margin(&x[1], &x[2], &Triplet::default(), Some(&x[3])),
        |x| {
            let far = |a: &Array, b: &Array, r: usize| {
                let of = |j: usize| (a.data[r * 70 + j] - b.data[r * 70 + j] + 1e-6).powi(2);
                (0..70).map(of).sum::<f64>().sqrt()
            };
            let each = |r: usize| (far(&x[0], &x[1], r) - far(&x[0], &x[2], r) + 1.0).max(0.0);
            Array { shape: vec![], data: vec![(0..30).map(|r| x[3].data[r] * each(r)).sum()] }
        },
    );
    let margins = margins.refuses(&[&[2, 3], &[2, 4], &[2, 3], &[2]]).refuses(&[&[3], &[3], &[3], &[3]]);
    rows.push(margins.second().bad(&[&[2, 3]], |x| {
        x[0].triplet_margin(&x[0], &x[0], &Triplet { p: 0.5, ..Triplet::default() }, None)
    }));
    rows
}

pub(super) fn all() -> Vec<Row> {
    let mut rows = with_choices();
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
