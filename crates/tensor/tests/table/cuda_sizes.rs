//! Losses, dropout and indices on a GPU in sizes that the table's rows do not have: rows of every length class, sums over
//! several blocks, places that are named very often. Ignored like the tests of `cuda.rs`.

use phalanx_host::Isa;
use phalanx_host::rng::Key;
use phalanx_tensor::{
    Cell, CrossEntropy, DType, Device, Error, PointLoss, Recurrence, Result, Tensor, top_k_errors,
};

use super::row::device;

fn devices() -> [Device; 2] {
    [device(Isa::detect(), 1), Device::cuda(0).unwrap_or_else(|e| panic!("{e}"))]
}

/// Numbers that look random, from −2 to 2.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut stream = Key::new(seed).stream();
    (0..n).map(|_| stream.f32() * 4.0 - 2.0).collect()
}

fn labels(n: usize, k: usize, seed: u64) -> Vec<i64> {
    let mut stream = Key::new(seed).stream();
    (0..n).map(|_| stream.below(k as u64) as i64).collect()
}

fn singles(t: &Tensor) -> Result<Vec<f32>> {
    t.detach().to(DType::F32)?.to_vec()
}

/// Runs on both devices and compares by the largest number.
fn same(what: &str, tolerance: f32, run: impl Fn(&Device) -> Result<Vec<Vec<f32>>>) {
    let [want, got] = devices().map(|d| run(&d).unwrap_or_else(|e| panic!("{what}: {e}")));
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(got.len(), want.len(), "{what}");
        let scale = want.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
        let off = got.iter().zip(want).position(|(g, w)| {
            (g - w).abs().partial_cmp(&(tolerance * scale)) != Some(std::cmp::Ordering::Less) && g != w
        });
        if let Some(at) = off {
            panic!("{what}: part {i}: element {at} is {}, must be {}", got[at], want[at]);
        }
    }
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn rows_of_every_length() {
    for k in [1, 3, 21, 64, 127, 129, 1000, 1003, 2048, 5001, 40_000] {
        for dtype in [DType::F32, DType::BF16] {
            let n = if k < 30 { 700 } else { 5 };
            let (x, w, l) = (numbers(n * k, k as u64), numbers(n * k, 7), labels(n, k, 3));
            same(&format!("rows of {k} {dtype}"), if dtype == DType::F32 { 2e-5 } else { 1e-2 }, |d| {
                let x = Tensor::from_slice(&x, [n, k], d)?.to(dtype)?.leaf();
                let w = Tensor::from_slice(&w, [n, k], d)?.to(dtype)?;
                let l = Tensor::from_slice(&l, [n], d)?;
                let mut all = Vec::new();
                for y in [x.softmax()?, x.log_softmax()?] {
                    let gradients = y.mul(&w)?.sum_all()?.gradients()?;
                    all.push(singles(&y)?);
                    all.push(singles(gradients.get(&x).unwrap())?);
                }
                for smoothing in [0.0, 0.1] {
                    let how = CrossEntropy {
                        label_smoothing: smoothing,
                        ignore_index: Some(0),
                        ..Default::default()
                    };
                    let loss = x.cross_entropy_with(&l, &how)?;
                    let gradients = loss.gradients()?;
                    all.push(singles(&loss)?);
                    all.push(singles(gradients.get(&x).unwrap())?);
                }
                Ok(all)
            });
        }
    }
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn losses_of_many_rows_and_elements() {
    let (n, k) = (9000, 5);
    let (x, y, l) = (numbers(n * k, 1), numbers(n * k, 2), labels(n, k, 3));
    same("many rows", 3e-5, |d| {
        let x = Tensor::from_slice(&x, [n, k], d)?.leaf();
        let (y, l) = (Tensor::from_slice(&y, [n, k], d)?, Tensor::from_slice(&l, [n], d)?);
        let weights = Tensor::from_slice(&numbers(n, 9), [n], d)?;
        let classes = Tensor::from_slice(&[1.0f32, 2.0, 0.5, 0.25, 3.0], [k], d)?;
        let how = CrossEntropy {
            class_weights: Some(&classes),
            weights: Some(&weights),
            ignore_index: Some(4),
            ..Default::default()
        };
        let mut all = Vec::new();
        let losses = [
            x.cross_entropy_with(&l, &how)?,
            x.nll(&l, &how)?,
            x.multi_margin(&l, 2, 1.0, &how)?,
            x.mse(&y, Some(&weights))?,
            x.point_loss(&y, PointLoss::Huber { delta: 0.7 }, None)?,
            x.bce_with_logits(&y.sigmoid()?, Some(&classes), Some(&weights))?,
        ];
        for loss in losses {
            let gradients = loss.gradients()?;
            all.push(singles(&loss)?);
            all.push(singles(gradients.get(&x).unwrap())?);
        }
        let wrong = top_k_errors(&x, &l, &[1, 3], Some(2))?;
        all.extend(wrong.iter().map(|w| w.iter().map(|&w| f32::from(u8::from(w))).collect()));
        Ok(all)
    });
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn places_named_often_and_seldom() {
    // A place that every other index names, and more keys than one block sorts.
    for (rows, columns, n) in [(50, 3, 70), (7, 130, 40), (1, 2, 1000), (3000, 5, 9000)] {
        let list: Vec<i64> =
            labels(n, rows, 5).into_iter().enumerate().map(|(i, l)| if i % 2 == 0 { 0 } else { l }).collect();
        let (x, w) = (numbers(rows * columns, 1), numbers(n * columns, 2));
        same(&format!("{n} of {rows}"), 1e-5, |d| {
            let x = Tensor::from_slice(&x, [rows, columns], d)?.leaf();
            let list = Tensor::from_slice(&list, [n], d)?;
            let w = Tensor::from_slice(&w, [n, columns], d)?;
            let mut all = Vec::new();
            let spread = list.reshape(&[n, 1])?.expand(&[n, columns])?.contiguous()?;
            let picks = [
                x.index_select(0, &list)?,
                x.embedding(&list, Some(0))?,
                x.t()?.index_select(1, &list)?.t()?,
                x.expand(&[rows, columns])?.gather(0, &spread)?,
            ];
            for y in picks {
                let gradients = y.mul(&w)?.sum_all()?.gradients()?;
                all.push(singles(&y)?);
                all.push(singles(gradients.get(&x).unwrap())?);
            }
            all.push(singles(&x.index_add(0, &list, &w)?)?);
            all.push(singles(&x.scatter_add(0, &spread, &w)?)?);
            Ok(all)
        });
    }
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn masks_are_those_of_the_cpu() {
    for (n, dtype) in [(1, DType::F32), (70_001, DType::F32), (70_003, DType::BF16), (4096, DType::F16)] {
        let tolerance = if dtype == DType::F32 { 1e-6 } else { 5e-3 };
        same(&format!("{n} {dtype}"), tolerance, |d| {
            let x = Tensor::from_slice(&numbers(n, 1), [n], d)?.to(dtype)?.leaf();
            let y = x.dropout(0.3, Key::new(5))?;
            let gradients = y.sum_all()?.gradients()?;
            let noise = Tensor::normal(DType::F32, [n], Key::new(3), d)?;
            let kept = singles(&y)?.iter().map(|&y| f32::from(u8::from(y != 0.0))).collect();
            Ok(vec![kept, singles(&y)?, singles(gradients.get(&x).unwrap())?, noise.to_vec()?])
        });
    }
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn gradients_of_products_along_long_rows() {
    for (rows, length) in [(3, 512), (4, 2047), (2, 2048), (3, 5000), (5000, 7)] {
        for zeros in 0..3 {
            same(&format!("products of {rows} x {length}, {zeros} zeros"), 2e-4, |d| {
                let mut x: Vec<f32> = numbers(rows * length, 9).iter().map(|x| 1.0 + 0.004 * x).collect();
                for row in x.chunks_mut(length) {
                    (0..zeros).for_each(|z| row[(z + 1) * length / 3] = 0.0);
                }
                let x = Tensor::from_slice(&x, [rows, length], d)?.leaf();
                let w = Tensor::from_slice(&numbers(rows * length, 2), [rows, length], d)?;
                let along = x.cumprod(1)?.mul(&w)?.sum_all()?.gradients()?;
                let across = x.prod(&[1], false)?.square()?.sum_all()?.gradients()?;
                let turned = x.permute(&[1, 0])?.contiguous()?.cumprod(0)?.mul(&w.permute(&[1, 0])?)?;
                let turned = turned.sum_all()?.gradients()?;
                let of = |g: &phalanx_tensor::Gradients| singles(g.get(&x).unwrap());
                Ok(vec![of(&along)?, of(&across)?, of(&turned)?])
            });
        }
    }
}

/// The error of an index outside its axis, which the CPU finds at once and the GPU when somebody reads.
fn index_error(what: &str, made: Result<Tensor>, want: (i64, usize, usize)) {
    let error = made.and_then(|t| t.to(DType::F32)?.to_vec::<f32>());
    let Err(Error::Index { index, position, limit, .. }) = error else { panic!("{what}: {error:?}") };
    assert_eq!((index, position, limit), want, "{what}");
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn an_index_outside_its_axis_is_an_error_when_something_is_read() {
    for d in devices() {
        let x = Tensor::from_slice(&numbers(12, 1), [4, 3], &d).unwrap().leaf();
        let list = |l: &[i64]| Tensor::from_slice(l, [l.len()], &d).unwrap();
        let bad = list(&[0, 1, 7, 2]);
        index_error("cross_entropy", x.cross_entropy(&bad, None), (7, 2, 3));
        index_error("nll", x.nll(&bad, &CrossEntropy::default()), (7, 2, 3));
        index_error("multi_margin", x.multi_margin(&bad, 1, 1.0, &CrossEntropy::default()), (7, 2, 3));
        index_error("index_select", x.index_select(0, &bad), (7, 2, 4));
        index_error("embedding", x.embedding(&list(&[-1]), None), (-1, 0, 4));
        index_error("gather", x.gather(1, &list(&[5]).reshape(&[1, 1]).unwrap()), (5, 0, 3));
        index_error("one_hot", bad.one_hot(3, DType::F32), (7, 2, 3));
        index_error("index_add", x.index_add(0, &bad, &x), (7, 2, 4));
        let column = list(&[4]).reshape(&[1, 1]).unwrap();
        index_error(
            "scatter_add",
            x.scatter_add(
                0,
                &column,
                &x.slice(0, 0, 1).unwrap().slice(1, 0, 1).unwrap().contiguous().unwrap(),
            ),
            (4, 0, 4),
        );
        let sequences = Tensor::from_slice(&numbers(12, 1), [2, 3, 2], &d).unwrap();
        let weight = Tensor::from_slice(&numbers(4, 2), [2, 2], &d).unwrap();
        let by = Recurrence {
            cell: Cell::Tanh,
            weight_ih: &weight,
            weight_hh: &weight,
            bias: None,
            reverse: true,
        };
        for (lengths, want) in [([2, 4], (4, 1, 4)), ([-1, 3], (-1, 0, 4))] {
            let made = sequences.recurrent(&by, None, Some(&list(&lengths)));
            index_error("rnn", made.map(|r| r.outputs), want);
        }
        // It is said once, and the device goes on.
        d.check().unwrap();
        assert!(x.cross_entropy(&list(&[0, 1, 2, 0]), None).unwrap().item().unwrap().is_finite());
        let top = top_k_errors(&x.detach(), &bad, &[1], None);
        assert!(matches!(top, Err(Error::Index { index: 7, position: 2, limit: 3, .. })), "{top:?}");
    }
}
