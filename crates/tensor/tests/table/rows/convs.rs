//! Convolutions, as they are and transposed.

use phalanx_tensor::{Conv, Result, Tensor};

use crate::products::Windows;
use crate::row::{Array, Row, input, row};

fn options(w: &Windows) -> Conv {
    Conv::new().stride(&w.stride).padding_each(&w.padding).dilation(&w.dilation).groups(w.groups)
}

fn bias(b: Option<&Array>, i: usize) -> f64 {
    b.map_or(0.0, |b| b.data[i % b.data.len()])
}

/// The convolution of `x` with `w`, plus a bias, from its definition.
fn naive(x: &[Array], windows: &Windows) -> Array {
    let (x, w, b) = (&x[0], &x[1], x.get(2));
    let rank = x.shape.len() - 2;
    let out = windows.output(&x.shape[1..=rank], &w.shape[1..=rank]).unwrap();
    let mut y = Array::new(&[&[x.shape[0]], &out[..], &[w.shape[0]]].concat(), |i| bias(b, i));
    let shape = y.shape.clone();
    windows.each(&x.shape, &w.shape, &shape, |yi, xi, wi| y.data[yi] += x.data[xi] * w.data[wi]);
    y
}

/// The transposed convolution, likewise.
fn naive_transposed(x: &[Array], windows: &Windows, more: &[usize]) -> Array {
    let (x, w, b) = (&x[0], &x[1], x.get(2));
    let rank = x.shape.len() - 2;
    let out = windows.transposed(&x.shape[1..=rank], &w.shape[1..=rank], more).unwrap();
    let channels = w.shape[rank + 1] * windows.groups;
    let mut y = Array::new(&[&[x.shape[0]], &out[..], &[channels]].concat(), |i| bias(b, i));
    let shape = y.shape.clone();
    windows.each(&shape, &w.shape, &x.shape, |xi, yi, wi| y.data[yi] += x.data[xi] * w.data[wi]);
    y
}

fn run(rank: usize, x: &[Tensor], conv: &Conv) -> Result<Tensor> {
    match rank {
        1 => x[0].conv1d(&x[1], x.get(2), conv),
        2 => x[0].conv2d(&x[1], x.get(2), conv),
        _ => x[0].conv3d(&x[1], x.get(2), conv),
    }
}

fn run_transposed(rank: usize, x: &[Tensor], conv: &Conv) -> Result<Tensor> {
    match rank {
        1 => x[0].conv_transpose1d(&x[1], x.get(2), conv),
        2 => x[0].conv_transpose2d(&x[1], x.get(2), conv),
        _ => x[0].conv_transpose3d(&x[1], x.get(2), conv),
    }
}

/// With a bias and without.
fn both(x: &[usize], w: &[usize], out: usize, make: impl Fn(Vec<crate::row::In>) -> Row) -> [Row; 2] {
    let bare = vec![input(x), input(w)];
    let with = [bare.clone(), vec![input(&[out])]].concat();
    [make(with), make(bare)].map(|r| r.batch(&[0]).second())
}

/// Images `[N, H, W, I]` with square options: weight [O, KH, KW], stride, padding.
type Plain = ([usize; 4], [usize; 3], [usize; 2], [usize; 2]);

fn plain() -> Vec<Row> {
    let cases: [Plain; 9] = [
        ([2, 17, 13, 5], [7, 3, 3], [1, 1], [1, 1]),
        ([3, 12, 12, 6], [16, 5, 5], [1, 1], [0, 0]),
        ([2, 28, 28, 1], [6, 5, 5], [1, 1], [2, 2]),
        ([1, 9, 9, 3], [4, 7, 7], [2, 2], [3, 3]),
        ([2, 6, 5, 18], [33, 1, 1], [1, 1], [0, 0]),
        ([2, 7, 8, 4], [5, 1, 1], [2, 2], [0, 0]),
        ([1, 5, 3, 2], [3, 5, 3], [1, 1], [0, 0]),
        ([1, 4, 9, 16], [16, 1, 7], [1, 3], [0, 3]),
        ([1, 1, 1, 1], [1, 3, 3], [1, 1], [1, 1]),
    ];
    let one = |(x, [o, kh, kw], stride, padding): Plain| {
        let windows = Windows {
            stride: stride.to_vec(),
            padding: padding.map(|p| [p, p]).to_vec(),
            dilation: vec![1; 2],
            groups: 1,
        };
        let rows = both(&x, &[o, kh, kw, x[3]], o, |inputs| {
            let (conv, windows) = (options(&windows), windows.clone());
            row("conv2d", inputs, move |x| run(2, x, &conv), move |x| naive(x, &windows))
        });
        let [with, bare] = rows;
        let with = with
            .refuses(&[&[1, 4, 4, 2], &[3, 1, 1, 3], &[3]])
            .refuses(&[&[4, 4, 2], &[3, 1, 1, 2], &[3]])
            .refuses(&[&[1, 4, 4, 2], &[3, 1, 1, 2], &[2]])
            .refuses(&[&[1, 2, 2, 1], &[1, 90, 90, 1], &[1]])
            .bad(&[&[1, 4, 4, 2], &[3, 1, 1, 2]], |x| x[0].conv2d(&x[1], None, &Conv::new().stride(&[0, 1])))
            .bad(&[&[1, 4, 4, 2], &[3, 0, 1, 2]], |x| x[0].conv2d(&x[1], None, &Conv::new()))
            .bad(&[&[1, 4, 4, 4], &[3, 1, 1, 2]], |x| x[0].conv2d(&x[1], None, &Conv::new().groups(2)))
            .bad(&[&[1, 4, 4, 4], &[4, 1, 1, 2]], |x| {
                x[0].conv2d(&x[1], None, &Conv::new().stride(&[1, 1, 1]))
            })
            .bad(&[&[1, 4, 4, 2], &[3, 3, 3, 2]], |x| {
                x[0].conv2d(&x[1], None, &Conv::new().same().stride(&[2]))
            });
        [with, bare]
    };
    cases.into_iter().flat_map(one).collect()
}

/// Images, kernel, filters and stride of locally connected ones.
type Local = ([usize; 4], [usize; 2], usize, [usize; 2]);

fn local() -> Vec<Row> {
    let cases: [Local; 4] = [
        ([2, 5, 6, 3], [3, 2], 4, [1, 2]),
        ([3, 4, 4, 1], [2, 2], 17, [2, 1]),
        ([1, 1, 1, 5], [1, 1], 3, [1, 1]),
        ([2, 7, 3, 2], [1, 3], 1, [3, 1]),
    ];
    let one = |(x, kernel, filters, stride): Local| {
        let [oh, ow] = [0, 1].map(|a| (x[a + 1] - kernel[a]) / stride[a] + 1);
        let w = [oh * ow, kernel[0] * kernel[1] * x[3], filters];
        let naive = move |t: &[Array]| {
            Array::new(&[x[0], oh, ow, filters], |i| {
                let (f, p, n) = (i % filters, i / filters % (oh * ow), i / filters / (oh * ow));
                let at = |j: usize| {
                    let (c, kx, ky) = (j % x[3], j / x[3] % kernel[1], j / x[3] / kernel[1]);
                    let (y, across) = (p / ow * stride[0] + ky, p % ow * stride[1] + kx);
                    ((n * x[1] + y) * x[2] + across) * x[3] + c
                };
                let sum: f64 =
                    (0..w[1]).map(|j| t[0].data[at(j)] * t[1].data[(p * w[1] + j) * filters + f]).sum();
                sum + t.get(2).map_or(0.0, |b| b.data[p * filters + f])
            })
        };
        let made = |inputs: Vec<crate::row::In>| {
            let run = move |t: &[Tensor]| t[0].locally_connected2d(&t[1], t.get(2), kernel, stride);
            row("locally_connected2d", inputs, run, naive).batch(&[0])
        };
        let bare = vec![input(&x), input(&w)];
        let with = [bare.clone(), vec![input(&[oh, ow, filters])]].concat();
        let more = [w[0] + 1, w[1], w[2]];
        let with = made(with)
            .refuses(&[&x, &more, &[oh, ow, filters]])
            .refuses(&[&x, &w, &[filters]])
            .bad(&[&[1, 2, 2, 1], &[1, 9, 1]], |t| t[0].locally_connected2d(&t[1], None, [3, 3], [1, 1]))
            .bad(&[&[1, 2, 2, 1], &[4, 1, 1]], |t| t[0].locally_connected2d(&t[1], None, [1, 1], [0, 1]));
        [with, made(bare)]
    };
    cases.into_iter().flat_map(one).collect()
}

/// Input, weight, windows.
type Case = (&'static [usize], &'static [usize], Windows);

pub(super) fn all() -> Vec<Row> {
    let mut rows = plain();
    rows.extend(local());
    let lay = |stride: &[usize], padding: &[[usize; 2]], dilation: &[usize], groups| Windows {
        stride: stride.to_vec(),
        padding: padding.to_vec(),
        dilation: dilation.to_vec(),
        groups,
    };
    let cases: [Case; 12] = [
        (&[2, 11, 3], &[4, 3, 3], lay(&[2], &[[1, 2]], &[1], 1)),
        (&[1, 30, 1], &[5, 7, 1], lay(&[1], &[[3, 3]], &[1], 1)),
        (&[2, 9, 6], &[6, 3, 1], lay(&[1], &[[2, 2]], &[2], 6)),
        (&[2, 8, 7, 6], &[4, 3, 2, 3], lay(&[1, 2], &[[1, 0], [2, 1]], &[2, 1], 2)),
        (&[2, 9, 8, 20], &[20, 3, 3, 1], lay(&[1, 1], &[[1, 1], [1, 1]], &[1, 1], 20)),
        (&[1, 10, 9, 3], &[6, 3, 3, 1], lay(&[2, 2], &[[1, 1], [0, 1]], &[1, 1], 3)),
        (&[1, 9, 9, 33], &[33, 5, 5, 1], lay(&[2, 2], &[[2, 2], [2, 2]], &[1, 1], 33)),
        (&[2, 7, 7, 16], &[18, 3, 3, 16], lay(&[2, 2], &[[1, 1], [1, 1]], &[1, 1], 1)),
        (&[1, 6, 7, 4], &[5, 2, 3, 4], lay(&[1, 1], &[[2, 3], [4, 0]], &[3, 2], 1)),
        (&[2, 4, 5, 6, 2], &[3, 2, 3, 3, 2], lay(&[1, 1, 1], &[[0, 0], [1, 1], [1, 1]], &[1, 1, 1], 1)),
        (&[1, 5, 5, 6, 4], &[6, 3, 2, 3, 2], lay(&[2, 1, 2], &[[1, 1], [0, 1], [1, 1]], &[1, 2, 1], 2)),
        (&[2, 3, 1, 1, 4], &[4, 3, 3, 1, 1], lay(&[1, 1, 1], &[[1, 1], [1, 1], [0, 0]], &[1, 1, 1], 4)),
    ];
    for (x, w, windows) in cases {
        let rank = x.len() - 2;
        let name = ["conv1d", "conv2d", "conv3d"][rank - 1];
        let made = both(x, w, w[0], |inputs| {
            let (conv, windows) = (options(&windows), windows.clone());
            let row = row(name, inputs, move |x| run(rank, x, &conv), move |x| naive(x, &windows));
            row.refuses(&[&[1, 9], w, &[w[0]]]).refuses(&[&[&[1; 2], &x[1..]].concat(), w, &[w[0]]])
        });
        rows.extend(made);
    }
    // And what the output has beyond its windows; the weight is [I, .., O / groups].
    let cases: [(Case, &[usize]); 9] = [
        ((&[2, 5, 3], &[3, 3, 4], lay(&[2], &[[1, 1]], &[1], 1)), &[1]),
        ((&[1, 4, 4], &[4, 5, 2], lay(&[1], &[[2, 0]], &[2], 2)), &[1]),
        ((&[2, 4, 5, 6], &[6, 3, 3, 4], lay(&[2, 2], &[[1, 1], [1, 1]], &[1, 1], 1)), &[1, 0]),
        ((&[1, 3, 4, 16], &[16, 4, 4, 20], lay(&[2, 2], &[[1, 1], [1, 1]], &[1, 1], 1)), &[0, 0]),
        ((&[2, 3, 4, 6], &[6, 2, 3, 2], lay(&[3, 1], &[[0, 1], [2, 0]], &[1, 2], 3)), &[2, 1]),
        ((&[1, 5, 5, 8], &[8, 3, 3, 1], lay(&[2, 2], &[[1, 1], [1, 1]], &[1, 1], 8)), &[1, 1]),
        ((&[1, 1, 1, 4], &[4, 5, 5, 3], lay(&[1, 1], &[[0, 0], [1, 1]], &[1, 1], 1)), &[0, 0]),
        (
            (&[1, 3, 2, 4, 2], &[2, 2, 3, 2, 3], lay(&[2, 1, 2], &[[0, 1], [1, 1], [0, 0]], &[1, 1, 1], 1)),
            &[1, 0, 1],
        ),
        (
            (&[2, 2, 3, 3, 4], &[4, 3, 1, 3, 1], lay(&[1, 2, 1], &[[1, 1], [0, 0], [1, 1]], &[2, 1, 1], 2)),
            &[1, 1, 0],
        ),
    ];
    for ((x, w, windows), more) in cases {
        let rank = x.len() - 2;
        let name = ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"][rank - 1];
        let out = w[w.len() - 1] * windows.groups;
        let made = both(x, w, out, |inputs| {
            let (conv, windows) = (options(&windows).output_padding(more), windows.clone());
            let row = row(
                name,
                inputs,
                move |x| run_transposed(rank, x, &conv),
                move |x| naive_transposed(x, &windows, more),
            );
            row.refuses(&[&[1, 9], w, &[out]]).refuses(&[&[&x[..x.len() - 1], &[90]].concat(), w, &[out]])
        });
        rows.extend(made);
    }
    let bad = |more: &'static [usize]| {
        move |x: &[Tensor]| x[0].conv_transpose2d(&x[1], None, &Conv::new().output_padding(more))
    };
    let last = rows.pop().map(|row| {
        let too_much = |x: &[Tensor]| x[0].conv_transpose3d(&x[1], None, &Conv::new().padding(&[9]));
        row.bad(&[&[1, 2, 2, 2, 1], &[1, 1, 1, 1, 1]], too_much)
    });
    rows.extend(last);
    let square = rows.iter_mut().find(|r| r.op == "conv_transpose2d").unwrap();
    *square = square.clone().bad(&[&[1, 2, 2, 1], &[1, 1, 1, 1]], bad(&[1]));
    rows
}
