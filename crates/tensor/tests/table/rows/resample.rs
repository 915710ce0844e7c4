//! Resizing, and pooling that tells its places: what golden cases do not tell.

use phalanx_host::rng::Key;
use phalanx_tensor::{DType, FractionalPool, Interpolation, Resample, Tensor};

use crate::naive as n;
use crate::row::{Array, Row, input, row};

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    // Twice as large, as most decoders need it; the last is large enough for several tasks.
    for shape in [[2, 3, 4, 5], [1, 2, 1, 1], [1, 40, 30, 17], [1, 3, 3, 0]] {
        let big = [shape[0], 2 * shape[1], 2 * shape[2], shape[3]];
        let twice = |mode| move |x: &[Tensor]| x[0].interpolate(&Resample::by(mode, &[2.0, 2.0]));
        let nearest =
            move |x: &[Array]| n::build(&big, |at| n::pick(&x[0], &[at[0], at[1] / 2, at[2] / 2, at[3]]));
        let near = row("interpolate", vec![input(&shape)], twice(Interpolation::Nearest), nearest).any_type();
        // Between the middles of places a quarter from each other.
        let between = move |x: &[Array]| {
            let along = |o: usize, size: usize| {
                let other =
                    if o.is_multiple_of(2) { (o / 2).saturating_sub(1) } else { (o / 2 + 1).min(size - 1) };
                [(o / 2, 0.75), (other, 0.25)]
            };
            n::build(&big, |at| {
                let (ys, xs) = (along(at[1], shape[1]), along(at[2], shape[2]));
                let part = |y: (usize, f64), x_: (usize, f64)| {
                    y.1 * x_.1 * n::pick(&x[0], &[at[0], y.0, x_.0, at[3]])
                };
                ys.iter().map(|&y| xs.iter().map(|&x| part(y, x)).sum::<f64>()).sum()
            })
        };
        let linear = row("interpolate", vec![input(&shape)], twice(Interpolation::Linear), between);
        let linear = linear.refuses(&[&[2, 3, 4]]).refuses(&[&[1, 0, 3, 2]]);
        rows.extend([near.second().batch(&[0]), linear.second().batch(&[0])]);
    }
    let same = |x: &[Array]| x[0].clone();
    let cubic =
        |x: &[Tensor]| x[0].interpolate(&Resample::to_size(Interpolation::Cubic, &[4, 5, 6]).antialias(true));
    let row_of = row("interpolate", vec![input(&[1, 4, 5, 6, 2])], cubic, same);
    let refused: [fn() -> Resample; 7] = [
        || Resample::to_size(Interpolation::Linear, &[0, 2]),
        || Resample::to_size(Interpolation::Linear, &[2]),
        || Resample::to_size(Interpolation::Nearest, &[2, 2]).align_corners(true),
        || Resample::to_size(Interpolation::NearestExact, &[2, 2]).antialias(true),
        || Resample::by(Interpolation::Linear, &[0.1, 1.0]),
        || Resample::by(Interpolation::Cubic, &[f64::NAN, 1.0]),
        || Resample::by(Interpolation::Nearest, &[1e18, 1.0]),
    ];
    let row_of = refused
        .into_iter()
        .fold(row_of, |row, how| row.bad(&[&[1, 4, 4, 2]], move |x| x[0].interpolate(&how())));
    rows.push(row_of.second().batch(&[0]));
    rows.extend(fractional());
    rows.extend(channels());
    rows
}

fn fractional() -> Vec<Row> {
    // One window an axis, as wide as the axis: the largest of all.
    let whole = row(
        "fractional_max_pool2d",
        vec![input(&[2, 4, 3, 5])],
        |x| {
            let dtype = if x[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
            let samples = Tensor::scalar(0.5, dtype, x[0].device())?.expand(&[x[0].shape()[0], 5, 2])?;
            Ok(x[0].fractional_max_pool(&FractionalPool::new(&[4, 3], &[1, 1]), &samples)?.0)
        },
        |x| n::reduce(&x[0], &[1, 2], true, n::largest),
    );
    let whole = whole.bad(&[&[1, 4, 4, 2], &[1, 2]], |x| {
        Ok(x[0].fractional_max_pool(&FractionalPool::new(&[2, 2], &[2, 2]), &x[1])?.0)
    });
    let whole = whole.bad(&[&[1, 4, 4, 2], &[1, 2, 2]], |x| {
        Ok(x[0].fractional_max_pool(&FractionalPool::new(&[2, 2], &[4, 2]), &x[1])?.0)
    });
    // The formula's numbers are negative, too.
    let whole = whole.bad(&[&[1, 4, 4, 9], &[1, 9, 2]], |x| {
        Ok(x[0].fractional_max_pool(&FractionalPool::new(&[2, 2], &[2, 2]), &x[1])?.0)
    });
    let one = row(
        "fractional_max_pool1d",
        vec![input(&[2, 6, 3])],
        |x| {
            let dtype = if x[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
            let samples = Tensor::zeros(dtype, [x[0].shape()[0], 3, 1], x[0].device())?;
            Ok(x[0].fractional_max_pool(&FractionalPool::new(&[2], &[3]), &samples)?.0)
        },
        |x| n::reduce(&n::split(&x[0], 1, 2), &[2], false, n::largest),
    );
    let put = row(
        "max_unpool1d",
        vec![input(&[2, 3, 2])],
        |x| {
            let places = Tensor::from_slice(&[3i64, 1], [1, 1, 2], x[0].device())?;
            let places = places.to(DType::F64)?.add(&Tensor::from_slice(
                &[0.0, 4.0, 8.0],
                [1, 3, 1],
                x[0].device(),
            )?)?;
            x[0].max_unpool(&places.expand(&x[0].shape())?.to(DType::I64)?, &[12])
        },
        |x| {
            n::build(&[2, 12, 2], |at| {
                let own = if at[2] == 0 { 3 } else { 1 };
                if at[1] % 4 == own { n::pick(&x[0], &[at[0], at[1] / 4, at[2]]) } else { 0.0 }
            })
        },
    );
    let bad = |x: &[Tensor], place: i64, shape: &[usize]| {
        x[0].max_unpool(&Tensor::full(place, shape, x[0].device())?, &[3])
    };
    let put = put
        .bad(&[&[1, 2, 1]], move |x| bad(x, 3, &[1, 2, 1]))
        .bad(&[&[1, 2, 1]], move |x| bad(x, -1, &[1, 2, 1]));
    let put = put.bad(&[&[1, 2, 1]], move |x| bad(x, 0, &[1, 2, 2]));
    vec![whole.batch(&[0]), one.batch(&[0]), put.second().batch(&[0])]
}

/// Dropout's relatives.
fn channels() -> Vec<Row> {
    let (p, key) = (0.4, Key::new(11));
    let kept = move |i: usize| f64::from(key.block((i / 4) as u64)[i % 4]) >= p * 4_294_967_296.0;
    let mut rows = Vec::new();
    for shape in [&[3usize, 4, 5, 6][..], &[5, 3, 2], &[2, 2, 1, 3, 7], &[6, 4]] {
        let c = shape[shape.len() - 1];
        let per: usize = shape[1..].iter().product();
        let want = move |x: &[Array]| {
            Array::new(
                &x[0].shape,
                |i| if kept(i / per * c + i % c) { x[0].data[i] / (1.0 - p) } else { 0.0 },
            )
        };
        let row = row("channel_dropout", vec![input(shape)], move |x| x[0].channel_dropout(p, key), want);
        let row = row.bad(&[&[3]], move |x| x[0].channel_dropout(p, key));
        rows.push(row.bad(&[&[3, 2]], move |x| x[0].channel_dropout(1.5, key)).second().batch(&[0]));
    }
    let alpha = move |x: &[Array]| {
        let low = -1.7580993408473766;
        let a = 1.0 / ((1.0 - p) * (1.0 + p * low * low)).sqrt();
        Array::new(&x[0].shape, |i| a * if kept(i) { x[0].data[i] } else { low } - a * p * low)
    };
    let row_of = row("alpha_dropout", vec![input(&[40, 50])], move |x| x[0].alpha_dropout(p, key), alpha);
    rows.push(row_of.bad(&[&[3]], move |x| x[0].alpha_dropout(-0.1, key)).second().batch(&[0]));
    let all = row(
        "alpha_dropout",
        vec![input(&[3, 5])],
        move |x| x[0].alpha_dropout(1.0, key),
        |x| n::map(&x[0], |_| 0.0),
    );
    rows.push(all.second().batch(&[0]));
    let noisy = move |x: &[Array]| {
        Array::new(&x[0].shape, |i| {
            let [a, b, c, d] = key.block((i / 2) as u64).map(u64::from);
            let unit = |low: u64, high: u64| ((low | high << 32) >> 11) as f64 / 2f64.powi(53);
            let angle = std::f64::consts::TAU * unit(c, d);
            let radius = (-2.0 * (1.0 - unit(a, b)).ln()).sqrt();
            x[0].data[i] + 0.3 * radius * if i % 2 == 0 { angle.cos() } else { angle.sin() }
        })
    };
    let row_of = row("gaussian_noise", vec![input(&[30, 7])], move |x| x[0].gaussian_noise(0.3, key), noisy);
    rows.push(row_of.bad(&[&[3]], move |x| x[0].gaussian_noise(-1.0, key)).second().batch(&[0]));
    for (op, keep) in [("tril", true), ("triu", false)] {
        for (shape, diagonal) in [(&[4usize, 5][..], 0isize), (&[2, 5, 3], -1), (&[3, 3], 2)] {
            let run = move |x: &[Tensor]| if keep { x[0].tril(diagonal) } else { x[0].triu(diagonal) };
            let want = move |x: &[Array]| {
                let (m, n) = (shape[shape.len() - 2], shape[shape.len() - 1]);
                Array::new(shape, |i| {
                    let above = (i % n) as isize - (i / n % m) as isize;
                    if (keep && above <= diagonal) || (!keep && above >= diagonal) {
                        x[0].data[i]
                    } else {
                        0.0
                    }
                })
            };
            let row = row(op, vec![input(shape)], run, want);
            rows.push(row.refuses(&[&[3]]).second());
        }
    }
    let odd = row(
        "masked_select",
        vec![input(&[3, 4])],
        |x| x[0].masked_select(&Tensor::from_slice(&[1u8, 0, 0, 9], [4], x[0].device())?),
        |x| Array::new(&[6], |i| n::pick(&x[0], &[i / 2, i % 2 * 3])),
    );
    let odd = odd.bad(&[&[3, 4]], |x| x[0].masked_select(&Tensor::full(1u8, [3], x[0].device())?));
    rows.push(odd.bad(&[&[3, 4]], |x| x[0].masked_select(&x[0])).second());
    rows
}
