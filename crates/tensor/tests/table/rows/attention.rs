//! Scaled dot-product attention.

use phalanx_host::rng::Key;
use phalanx_tensor::{Attention, DType, Tensor};

use crate::naive as n;
use crate::row::{Array, In, Kind, Row, frozen, input, mask, row};

/// The definition, with the whole matrix of weights.
fn naive(x: &[Array], mask: Option<&Array>, bias: Option<&Array>, causal: bool, scale: f64) -> Array {
    let (q, k, v) = (&x[0], &x[1], &x[2]);
    let lead = q.shape.len() - 2;
    let [queries, keys] = [q.shape[lead], k.shape[lead]];
    let weights = n::build(&[&q.shape[..lead], &[queries, keys]].concat(), |at| {
        let (i, j) = (at[lead], at[lead + 1]);
        let place = |r: usize, c: usize| [&at[..lead], &[r, c]].concat();
        let dot: f64 =
            (0..q.shape[lead + 1]).map(|c| n::pick(q, &place(i, c)) * n::pick(k, &place(j, c))).sum();
        let hidden = (causal && j > i) || mask.is_some_and(|m| n::pick(m, at) == 0.0);
        if hidden { f64::NEG_INFINITY } else { dot * scale + bias.map_or(0.0, |b| n::pick(b, at)) }
    });
    n::build(&[&q.shape[..=lead], &v.shape[lead + 1..]].concat(), |at| {
        let place = |r: usize, c: usize| [&at[..lead], &[r, c]].concat();
        let row: Vec<f64> = (0..keys).map(|j| n::pick(&weights, &place(at[lead], j))).collect();
        let top = n::largest(&row);
        let e: Vec<f64> =
            row.iter().map(|s| if top == f64::NEG_INFINITY { 0.0 } else { (s - top).exp() }).collect();
        let sum = n::sum(&e).max(f64::MIN_POSITIVE);
        e.iter().enumerate().map(|(j, e)| e / sum * n::pick(v, &place(j, at[lead + 1]))).sum()
    })
}

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    let plain = Attention::default();
    for (lead, [l, s, e, v], causal, scale) in [
        (&[2usize, 3][..], [4usize, 5, 3, 2], false, None),
        (&[2], [5, 5, 4, 4], true, None),
        (&[2], [3, 6, 1, 3], true, Some(0.3)),
        (&[1], [6, 3, 2, 1], true, None),
        (&[], [3, 4, 2, 5], false, Some(-1.5)),
        // Several blocks of queries and of keys.
        (&[2], [70, 300, 8, 6], false, None),
        (&[3], [200, 200, 5, 40], true, None),
    ] {
        let shape = |rest: [usize; 2]| [lead, &rest].concat();
        let inputs = || vec![input(&shape([l, e])), input(&shape([s, e])), input(&shape([s, v]))];
        let used = scale.unwrap_or(1.0 / (e as f64).sqrt());
        let base = row(
            "attention",
            inputs(),
            move |x| x[0].attention(&x[1], &x[2], &Attention { causal, scale, ..plain }),
            move |x| naive(x, None, None, causal, used),
        );
        let batch: &[usize] = if lead.is_empty() { &[] } else { &[0, 1, 2] };
        let base = base.refuses(&[&[2, 3, 4], &[2, 3, 5], &[2, 3, 4]]).refuses(&[&[3], &[3], &[3]]);
        let base = base.refuses(&[&[2, 3, 4], &[1, 3, 4], &[2, 3, 4]]);
        rows.push(base.refuses(&[&[2, 3, 4], &[2, 5, 4], &[2, 3, 4]]).batch(batch));
        let bias = row(
            "attention",
            [inputs(), vec![frozen(&[l, s])]].concat(),
            move |x| x[0].attention(&x[1], &x[2], &Attention { causal, scale, bias: Some(&x[3]), ..plain }),
            move |x| naive(x, None, Some(&x[3]), causal, used),
        );
        rows.push(bias.refuses(&[&[2, 3, 4], &[2, 3, 4], &[2, 3, 4], &[2, 4]]).batch(batch));
        let masked = row(
            "attention",
            [inputs(), vec![mask(&[1, s])]].concat(),
            move |x| x[0].attention(&x[1], &x[2], &Attention { causal, scale, mask: Some(&x[3]), ..plain }),
            move |x| naive(x, Some(&x[3]), None, causal, used),
        );
        rows.push(masked.refuses(&[&[2, 3, 4], &[2, 3, 4], &[2, 3, 4], &[5]]).batch(batch));
    }
    // A query that looks at nothing, and a mask together with a bias.
    let holes = In { shape: vec![3, 4], kind: Kind::Mask(vec![0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1]) };
    rows.push(
        row(
            "attention",
            vec![input(&[2, 3, 5]), input(&[2, 4, 5]), input(&[2, 4, 3]), holes, frozen(&[2, 1, 4])],
            move |x| {
                let options = Attention { mask: Some(&x[3]), bias: Some(&x[4]), ..plain };
                x[0].attention(&x[1], &x[2], &options)
            },
            |x| naive(x, Some(&x[3]), Some(&x[4]), false, 1.0 / 5f64.sqrt()),
        )
        .bad(&[&[2, 3, 4], &[2, 3, 4], &[2, 3, 4]], move |x| {
            x[0].attention(&x[1], &x[2], &Attention { dropout: Some((1.5, Key::new(1))), ..plain })
        }),
    );
    // Dropping is what dropout does to the weights.
    for [l, s] in [[5usize, 7usize], [70, 140]] {
        let dropout = Some((0.4, Key::new(9)));
        rows.push(row(
            "attention",
            vec![input(&[2, l, 3]), input(&[2, s, 3]), input(&[2, s, 4])],
            move |x| x[0].attention(&x[1], &x[2], &Attention { dropout, ..plain }),
            move |x| {
                let device = crate::row::device(phalanx_host::Isa::detect(), 1);
                let [q, k, v] = [0, 1, 2].map(|i| crate::row::real(&x[i], DType::F64, &device));
                let weights = || -> phalanx_tensor::Result<Tensor> {
                    let scores = q.matmul(&k.t()?)?.scale(1.0 / 3f64.sqrt())?;
                    scores.softmax()?.dropout(0.4, Key::new(9))?.matmul(&v)
                };
                Array { shape: vec![2, l, 4], data: weights().unwrap().to_vec().unwrap() }
            },
        ));
    }
    rows
}
