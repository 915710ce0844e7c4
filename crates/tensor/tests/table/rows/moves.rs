//! Padding, windows and parts: sizes that PyTorch's cases leave out, and what is refused.

use phalanx_tensor::{PadMode, Tensor, fold};

use crate::naive as n;
use crate::row::{Array, Row, input, row};

/// The element `from(place)` of `x` at each place, or 0.
fn moved(x: &Array, shape: &[usize], from: impl Fn(&[usize]) -> Option<Vec<usize>>) -> Array {
    n::build(shape, |at| from(at).map_or(0.0, |at| n::pick(x, &at)))
}

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    // Large enough for several tasks; axes far apart; a last axis alone; nothing to be padded with.
    for (shape, axis, amounts) in [
        (&[2usize, 40, 30, 9][..], 1, &[[3isize, 4], [5, -2]][..]),
        (&[3, 4, 2, 5, 2], 0, &[[1, 0], [0, 0], [0, 2], [1, 1], [2, 0]]),
        (&[7, 300], 1, &[[100, 100]]),
        (&[0, 3], 0, &[[1, 1]]),
        (&[2, 3, 0], 1, &[[1, 1]]),
        (&[4, 3], 0, &[[-4, 0]]),
    ] {
        let mut grown = shape.to_vec();
        amounts.iter().enumerate().for_each(|(i, a)| {
            grown[axis + i] = (shape[axis + i] as isize + a[0] + a[1]) as usize;
        });
        let padded = move |x: &[Array]| {
            moved(&x[0], &grown, |at| {
                let from = at.iter().enumerate().map(|(a, &p)| {
                    let before = a.checked_sub(axis).and_then(|i| amounts.get(i)).map_or(0, |a| a[0]);
                    usize::try_from(p as isize - before).ok().filter(|&p| p < shape[a])
                });
                from.collect()
            })
        };
        let run = move |x: &[Tensor]| x[0].pad(axis, amounts, PadMode::Constant(0.0));
        let row = row("pad", vec![input(shape)], run, padded).any_type().second();
        let row = row.bad(&[&[4, 3]], |x| x[0].pad(1, &[[1, 1], [1, 1]], PadMode::Replicate));
        let row = row.bad(&[&[4, 3]], |x| x[0].pad(1, &[[3, 0]], PadMode::Reflect));
        rows.push(row.bad(&[&[4, 3]], |x| x[0].pad(0, &[[-2, -3]], PadMode::Constant(1.0))));
    }
    for (shape, kernel, stride, padding) in [([2, 9, 3], 3, 2, 1), ([1, 200, 40], 5, 1, 2)] {
        let run = move |x: &[Tensor]| x[0].unfold(&[kernel], &[stride], &[padding], &[1]);
        let (count, channels) = ((shape[1] + 2 * padding - kernel) / stride + 1, shape[2]);
        let taken = move |x: &[Array]| {
            moved(&x[0], &[shape[0], count, kernel * channels], |at| {
                let place = (at[1] * stride + at[2] / channels).checked_sub(padding)?;
                (place < shape[1]).then(|| vec![at[0], place, at[2] % channels])
            })
        };
        let row = row("unfold", vec![input(&shape)], run, taken).any_type().second();
        let row = row.bad(&[&[1, 4, 2]], |x| x[0].unfold(&[5], &[1], &[0], &[1]));
        let row = row.bad(&[&[1, 4, 2]], |x| x[0].unfold(&[2], &[0], &[0], &[1]));
        let row = row.bad(&[&[1, 4, 2]], |x| x[0].unfold(&[2, 2], &[1, 1], &[0, 0], &[1, 1]));
        rows.push(row.bad(&[&[1, 4, 2]], |x| x[0].unfold(&[2], &[1, 1], &[0], &[1])));
        let back = move |x: &[Array]| {
            let mut y = Array::new(&shape, |_| 0.0);
            for (i, &v) in x[0].data.iter().enumerate() {
                let (cell, window) = (i % (kernel * channels), i / (kernel * channels));
                let place = (window % count * stride + cell / channels).wrapping_sub(padding);
                if place < shape[1] {
                    y.data[(window / count * shape[1] + place) * channels + cell % channels] += v;
                }
            }
            y
        };
        let run = move |x: &[Tensor]| fold(&x[0], &[shape[1]], &[kernel], &[stride], &[padding], &[1]);
        let row = crate::row::row("fold", vec![input(&[shape[0], count, kernel * channels])], run, back);
        let row = row.bad(&[&[1, 3, 4]], |x| fold(&x[0], &[5], &[2], &[1], &[0], &[1]));
        let row = row.bad(&[&[1, 4, 3]], |x| fold(&x[0], &[5], &[2], &[1], &[0], &[1]));
        rows.push(row.bad(&[&[1, 4, 4]], |x| fold(&x[0], &[5, 1], &[2], &[1], &[0], &[1])).second());
    }
    let same = |shape: &'static [usize]| move |x: &[Array]| Array { shape: shape.to_vec(), ..x[0].clone() };
    let row = row(
        "flip",
        vec![input(&[3, 70, 5])],
        |x| x[0].flip(&[1]),
        |x| moved(&x[0], &[3, 70, 5], |at| Some(vec![at[0], 69 - at[1], at[2]])),
    );
    rows.push(row.bad(&[&[2, 2]], |x| x[0].flip(&[2])).any_type().second());
    let row = crate::row::row("roll", vec![input(&[0, 3])], |x| x[0].roll(0, 5), same(&[0, 3]));
    rows.push(row.bad(&[&[2, 2]], |x| x[0].roll(2, 1)).any_type().second());
    let row = crate::row::row("repeat", vec![input(&[3, 1])], |x| x[0].repeat(&[1, 1]), same(&[3, 1]));
    rows.push(row.bad(&[&[2, 2]], |x| x[0].repeat(&[2])).any_type().second());
    rows.extend(parts());
    rows
}

/// Views by parts and names of axes.
fn parts() -> Vec<Row> {
    let named = |op,
                 shape: &[usize],
                 run: fn(&Tensor) -> phalanx_tensor::Result<Tensor>,
                 want: fn(&Array) -> Array| {
        row(op, vec![input(shape)], move |x| run(&x[0]), move |x| want(&x[0])).any_type().second()
    };
    vec![
        named(
            "split",
            &[5, 4],
            |x| Ok(x.split(0, &[2, 0, 3])?.remove(2)),
            |x| n::index_select(x, 0, &[2, 3, 4]),
        )
        .bad(&[&[4, 2]], |x| Ok(x[0].split(0, &[2, 1])?.remove(0)))
        .bad(&[&[4, 2]], |x| Ok(x[0].split(2, &[2])?.remove(0))),
        named("chunk", &[3, 7], |x| Ok(x.chunk(1, 3)?.remove(2)), |x| n::index_select(x, 1, &[6]))
            .bad(&[&[4, 2]], |x| Ok(x[0].chunk(0, 0)?.remove(0))),
        named("chunk", &[3, 4], |x| Ok(x.chunk(1, 3)?.remove(1)), |x| n::index_select(x, 1, &[2, 3])),
        named(
            "squeeze",
            &[3, 1, 4, 1],
            |x| x.permute(&[2, 1, 0, 3])?.squeeze(&[1, 3]),
            |x| n::permute(&Array { shape: vec![3, 4], data: x.data.clone() }, &[1, 0]),
        )
        .bad(&[&[1, 2]], |x| x[0].squeeze(&[1]))
        .bad(&[&[1, 2]], |x| x[0].squeeze(&[2])),
        named("unsqueeze", &[3, 4], |x| x.t()?.unsqueeze(1), |x| n::split(&n::permute(x, &[1, 0]), 1, 3))
            .bad(&[&[1, 2]], |x| x[0].unsqueeze(3))
            .bad(&[&[1; 8]], |x| x[0].unsqueeze(0)),
        named("movedim", &[2, 3, 4], |x| x.movedim(2, 0), |x| n::permute(x, &[2, 0, 1]))
            .bad(&[&[1, 2]], |x| x[0].movedim(0, 2)),
        named("movedim", &[2, 3, 4], |x| x.movedim(0, 1), |x| n::permute(x, &[1, 0, 2])),
        named(
            "pixel_shuffle",
            &[1, 2, 3, 18],
            |x| x.pixel_shuffle(3),
            |x| {
                n::build(&[1, 6, 9, 2], |at| {
                    n::pick(x, &[0, at[1] / 3, at[2] / 3, at[3] * 9 + at[1] % 3 * 3 + at[2] % 3])
                })
            },
        )
        .bad(&[&[1, 2, 2, 6]], |x| x[0].pixel_shuffle(2))
        .bad(&[&[1, 2, 2, 6]], |x| x[0].pixel_shuffle(0))
        .bad(&[&[2, 2, 4]], |x| x[0].pixel_shuffle(2)),
        named("pixel_unshuffle", &[1, 4, 2, 3], |x| x.pixel_unshuffle(1), |x| x.clone())
            .bad(&[&[1, 3, 2, 6]], |x| x[0].pixel_unshuffle(2)),
    ]
}
