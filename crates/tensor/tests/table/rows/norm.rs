//! Norms and dropout.

use phalanx_host::rng::Key;
use phalanx_tensor::{Fuse, Tensor};

use crate::naive as n;
use crate::row::{Array, Row, frozen, input, row};

/// Batch norms with what can follow them in the same pass.
fn fused() -> Vec<Row> {
    let mut rows = Vec::new();
    for (shape, residual, relu) in [
        (&[7usize, 3][..], false, true),
        (&[3, 5, 5, 6], true, false),
        (&[3, 5, 5, 6], true, true),
        (&[40, 65], true, true),
        (&[2, 9, 9, 17], false, true),
        (&[1500, 6], true, true),
    ] {
        let c = [*shape.last().unwrap()];
        let inputs = |statistics: usize| {
            let mut all = vec![input(shape), input(&c), input(&c)];
            all.extend((0..statistics).map(|_| frozen(&c)));
            all.extend(residual.then(|| input(shape)));
            all
        };
        let after = move |y: Array, x: &[Array]| {
            let sum = if residual { n::zip(&y, x.last().unwrap(), |a, b| a + b) } else { y };
            if relu { n::map(&sum, |v| v.max(0.0)) } else { sum }
        };
        let fuse = move |x: &[Tensor]| -> Option<Tensor> { residual.then(|| x.last().unwrap().clone()) };
        let train = row(
            "batch_norm_train",
            inputs(0),
            move |x| {
                let residual = fuse(x);
                let fuse = Fuse { residual: residual.as_ref(), relu };
                Ok(x[0].batch_norm_train_with(&x[1], &x[2], 1e-3, fuse)?.y)
            },
            move |x| after(n::batch_norm_train(&x[0], &x[1], &x[2], 1e-3), x),
        );
        let eval = row(
            "batch_norm_eval",
            inputs(2),
            move |x| {
                let residual = fuse(x);
                let fuse = Fuse { residual: residual.as_ref(), relu };
                x[0].batch_norm_eval_with([&x[1], &x[2]], [&x[3], &x[4]], 1e-3, fuse)
            },
            move |x| after(n::batch_norm_eval(x, 1e-3), x),
        );
        let batch = |mut row: Row| {
            row.batch = vec![0];
            row.batch.extend(residual.then(|| row.inputs.len() - 1));
            row
        };
        rows.push(batch(match residual {
            true => train.refuses(&[&[2, 4], &[4], &[4], &[1, 4]]),
            false => train,
        }));
        rows.push(batch(match residual {
            true => eval.refuses(&[&[2, 4], &[4], &[4], &[4], &[4], &[4]]),
            false => eval,
        }));
    }
    rows
}

/// Norms of each sample by itself, of sizes that make several tasks and full vectors.
fn by_sample() -> Vec<Row> {
    let mut rows = Vec::new();
    for (shape, axes) in [(&[500usize, 40][..], 1), (&[3, 20, 21], 2), (&[70, 3], 1), (&[2, 20_000], 1)] {
        let over = shape[shape.len() - axes..].to_vec();
        let k: usize = over.iter().product();
        let layer = row(
            "layer_norm",
            vec![input(shape), input(&over), input(&over)],
            move |x| x[0].layer_norm(axes, Some(&x[1]), Some(&x[2]), 1e-3),
            move |x| n::norm_of_blocks(x, |i| i / k, |i| i % k, true, 1e-3),
        );
        rows.push(layer.batch(&[0]));
        let rms = row(
            "rms_norm",
            vec![input(shape), input(&over)],
            move |x| x[0].rms_norm(axes, Some(&x[1]), 1e-3),
            move |x| n::norm_of_blocks(x, |i| i / k, |i| i % k, false, 1e-3),
        );
        rows.push(rms.batch(&[0]));
    }
    let layer = rows[0].clone().refuses(&[&[], &[], &[]]).refuses(&[&[2, 4], &[3], &[4]]);
    rows[0] = layer
        .refuses(&[&[2, 4], &[4], &[1, 4]])
        .bad(&[&[3, 4]], |x| x[0].layer_norm(3, None, None, 1e-5))
        .bad(&[&[3, 4]], |x| x[0].layer_norm(0, None, None, 1e-5))
        .bad(&[&[3, 4]], |x| x[0].layer_norm(1, None, None, f64::NAN));
    rows[1] = rows[1].clone().refuses(&[&[2, 4], &[3]]).bad(&[&[3, 4]], |x| x[0].rms_norm(1, None, -1.0));
    for (shape, groups) in [(&[2usize, 300, 65][..], 5), (&[3, 9, 9, 32], 32), (&[5, 40, 6], 1)] {
        let c = *shape.last().unwrap();
        let each: usize = shape[1..].iter().product();
        let block = move |i: usize| i / each * groups + i % c / (c / groups);
        let group = row(
            "group_norm",
            vec![input(shape), input(&[c]), input(&[c])],
            move |x| x[0].group_norm(groups, Some(&x[1]), Some(&x[2]), 1e-3),
            move |x| n::norm_of_blocks(x, block, |i| i % c, true, 1e-3),
        );
        rows.push(group.batch(&[0]));
    }
    let last = rows.len() - 1;
    rows[last] = rows[last]
        .clone()
        .refuses(&[&[6], &[6], &[6]])
        .refuses(&[&[2, 6], &[5], &[6]])
        .bad(&[&[2, 6]], |x| x[0].group_norm(4, None, None, 1e-5))
        .bad(&[&[2, 6]], |x| x[0].group_norm(0, None, None, 1e-5))
        .bad(&[&[2, 6]], |x| x[0].group_norm(2, None, None, -1.0));
    rows
}

pub(super) fn all() -> Vec<Row> {
    let mut rows = fused();
    rows.extend(by_sample());
    for shape in
        [&[7usize, 3][..], &[500, 1], &[3, 5, 5, 6], &[40, 65], &[2, 9, 9, 17], &[5000, 6], &[2, 3, 64]]
    {
        let c = [*shape.last().unwrap()];
        let inputs = || vec![input(shape), input(&c), input(&c)];
        let train = row(
            "batch_norm_train",
            inputs(),
            |x| Ok(x[0].batch_norm_train(&x[1], &x[2], 1e-3)?.y),
            |x| n::batch_norm_train(&x[0], &x[1], &x[2], 1e-3),
        );
        let train = train.refuses(&[&[4], &[4], &[4]]).refuses(&[&[2, 4], &[3], &[4]]).refuses(&[
            &[2, 4],
            &[4],
            &[1, 4],
        ]);
        let bad = |x: &[Tensor]| Ok(x[0].batch_norm_train(&x[1], &x[1], -1.0)?.y);
        rows.push(train.bad(&[&[2, 3], &[3]], bad).batch(&[0]));
        let eval = row(
            "batch_norm_eval",
            [inputs(), vec![frozen(&c), frozen(&c)]].concat(),
            |x| x[0].batch_norm_eval(&x[1], &x[2], &x[3], &x[4], 1e-3),
            |x| n::batch_norm_eval(x, 1e-3),
        );
        rows.push(eval.refuses(&[&[2, 4], &[4], &[4], &[3], &[4]]).batch(&[0]));
    }
    for (shape, p) in [
        (&[1usize][..], 0.5),
        (&[3, 21], 0.25),
        (&[3, 20_011], 0.5),
        (&[65], 0.0),
        (&[65], 1.0),
        (&[4, 64], 0.9),
    ] {
        let key = Key::new(5).derive(1, 2);
        let kept = move |i: usize| f64::from(key.block(i as u64 / 4)[i % 4]) >= p * 4_294_967_296.0;
        let row = row(
            "dropout",
            vec![input(shape)],
            move |x| x[0].dropout(p, key),
            move |x| Array::new(&x[0].shape, |i| if kept(i) { x[0].data[i] / (1.0 - p) } else { 0.0 }),
        );
        let row =
            row.bad(&[&[3]], move |x| x[0].dropout(1.5, key)).bad(&[&[3]], move |x| x[0].dropout(-0.1, key));
        rows.push(row.bad(&[&[3]], move |x| x[0].dropout(f64::NAN, key)).batch(&[0]).second());
    }
    rows
}
