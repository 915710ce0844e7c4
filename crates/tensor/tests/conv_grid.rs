//! Convolutions on random grids of shapes, against their definition in doubles: values, both gradients, what is
//! refused, and the same bits on any number of threads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may unwrap too")]

mod products;

use std::sync::OnceLock;

use phalanx_host::{Cpu, Isa};
use phalanx_tensor::{Conv, DType, Device, Result, Tensor};
use products::Windows;
use proptest::prelude::*;

/// Machines of 1, 2 and 3 threads.
fn devices() -> &'static [Device; 3] {
    static ALL: OnceLock<[Device; 3]> = OnceLock::new();
    ALL.get_or_init(|| [1, 2, 3].map(|n| Device::cpu(Cpu::new(Isa::detect(), n).unwrap())))
}

/// Whole numbers: sums of products of few of them are exact in any order.
fn numbers(seed: usize, n: usize) -> Vec<f64> {
    let one = |i: usize| {
        let mixed = (i + 1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add(seed.wrapping_mul(0xD1B5_4A32_D192_ED03));
        ((mixed >> 40) % 15) as f64 - 7.0
    };
    (0..n).map(one).collect()
}

/// What `run` makes of `x`, `w` and a bias, and its gradients with respect to each, on a machine.
fn results(
    shapes: &[Vec<usize>; 3],
    dtype: DType,
    device: &Device,
    run: &dyn Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<[Vec<f64>; 4]> {
    let leaf = |i: usize| -> Result<Tensor> {
        let data = numbers(i, shapes[i].iter().product());
        Ok(Tensor::from_slice(&data, &shapes[i][..], device)?.to(dtype)?.leaf())
    };
    let x: [Tensor; 3] = [leaf(0)?, leaf(1)?, leaf(2)?];
    let y = run(&x[0], &x[1], &x[2])?;
    let g = Tensor::from_slice(&numbers(3, y.shape().numel()), y.shape(), device)?.to(dtype)?;
    let all = y.mul(&g)?.sum_all()?.gradients()?;
    let doubles = |t: &Tensor| t.detach().to(DType::F64)?.to_vec::<f64>();
    let slope = |t: &Tensor| doubles(all.get(t).unwrap());
    Ok([doubles(&y)?, slope(&x[0])?, slope(&x[1])?, slope(&x[2])?])
}

/// Values and gradients of `run` against those wanted: exact, since all numbers are whole and small.
fn check(
    shapes: &[Vec<usize>; 3],
    want: &[Vec<f64>; 4],
    run: &dyn Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> std::result::Result<(), TestCaseError> {
    let [one, two, three] = devices();
    let fail = |e: phalanx_tensor::Error| TestCaseError::fail(e.to_string());
    for (device, dtype) in [(one, DType::F64), (one, DType::F32), (two, DType::F32), (three, DType::F32)] {
        let got = results(shapes, dtype, device, run).map_err(fail)?;
        for (what, (got, want)) in ["y", "dx", "dw", "db"].iter().zip(got.iter().zip(want)) {
            prop_assert_eq!(got.len(), want.len(), "{}", what);
            let wrong = got.iter().zip(want).position(|(g, w)| g != w);
            prop_assert!(wrong.is_none(), "{} {}: number {:?}", dtype, what, wrong);
        }
    }
    Ok(())
}

/// The wanted values and gradients, from the products; `forward(products, f)` calls `f(y, x, w)` for each.
fn wanted(
    shapes: &[Vec<usize>; 3],
    y: &[usize],
    each: impl Fn(&mut dyn FnMut(usize, usize, usize)),
) -> [Vec<f64>; 4] {
    let [x, w, b] = [0, 1, 2].map(|i| numbers(i, shapes[i].iter().product()));
    let g = numbers(3, y.iter().product());
    let mut out: Vec<f64> = (0..g.len()).map(|i| b[i % b.len()]).collect();
    let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; b.len()]);
    each(&mut |yi, xi, wi| {
        out[yi] += x[xi] * w[wi];
        dx[xi] += g[yi] * w[wi];
        dw[wi] += g[yi] * x[xi];
    });
    g.iter().enumerate().for_each(|(i, g)| db[i % b.len()] += g);
    [out, dx, dw, db]
}

/// One axis: size, kernel, stride, padding before and after, dilation, output padding.
type Axis = [usize; 7];

/// An axis of at most `most` pixels; mostly one that the kernel fits on.
fn axis(most: usize) -> impl Strategy<Value = Axis> {
    let sizes = (1..=11usize, 1..=4usize, 0..=5usize, 0..=5usize, 1..=3usize, 0..=6usize, 0..8u8, 0..3usize);
    sizes.prop_map(move |(kernel, stride, before, after, dilation, more, kind, output)| {
        let dilation = if (kernel - 1) * dilation < most { dilation } else { 1 };
        let fits = ((kernel - 1) * dilation + 1).saturating_sub(before + after);
        let size = match kind {
            0 => 1,
            1 => 1 + (7 * more) % most,
            _ => (fits + more).clamp(1, most),
        };
        [size, kernel, stride, before, after, dilation, output.min(stride.max(dilation) - 1)]
    })
}

/// 1 to 3 axes, the more the smaller.
fn axes() -> impl Strategy<Value = Vec<Axis>> {
    prop_oneof![
        2 => prop::collection::vec(axis(24), 1),
        4 => prop::collection::vec(axis(12), 2),
        1 => prop::collection::vec(axis(5), 3),
    ]
}

/// Channels in and out, and groups: one, some, or as many as channels.
fn channels() -> impl Strategy<Value = [usize; 3]> {
    prop_oneof![
        3 => (1..9usize, 1..9usize).prop_map(|(i, o)| [i, o, 1]),
        1 => (prop_oneof![Just(16usize), Just(33)], 1..20usize).prop_map(|(i, o)| [i, o, 1]),
        2 => (1..4usize, 1..4usize, 2..5usize).prop_map(|(i, o, g)| [i * g, o * g, g]),
        2 => (2..20usize).prop_map(|c| [c, c, c]),
    ]
}

fn windows(axes: &[Axis], groups: usize) -> (Windows, Conv) {
    let of = |k: usize| axes.iter().map(|a| a[k]).collect::<Vec<_>>();
    let padding: Vec<[usize; 2]> = axes.iter().map(|a| [a[3], a[4]]).collect();
    let conv = Conv::new().stride(&of(2)).padding_each(&padding).dilation(&of(5)).groups(groups);
    (Windows { stride: of(2), padding, dilation: of(5), groups }, conv)
}

fn shape(first: usize, sizes: &[usize], last: usize) -> Vec<usize> {
    [&[first], sizes, &[last]].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_convolution(axes in axes(), batch in 1..3usize, [i, o, groups] in channels()) {
        let (windows, conv) = windows(&axes, groups);
        let [sizes, kernel] = [0, 1].map(|k| axes.iter().map(|a| a[k]).collect::<Vec<_>>());
        let shapes = [shape(batch, &sizes, i), shape(o, &kernel, i / groups), vec![o]];
        let run = |x: &Tensor, w: &Tensor, b: &Tensor| match axes.len() {
            1 => x.conv1d(w, Some(b), &conv),
            2 => x.conv2d(w, Some(b), &conv),
            _ => x.conv3d(w, Some(b), &conv),
        };
        let Some(out) = windows.output(&sizes, &kernel) else {
            prop_assert!(results(&shapes, DType::F32, &devices()[0], &run).is_err());
            return Ok(());
        };
        let y = shape(batch, &out, o);
        let want = wanted(&shapes, &y, |f| windows.each(&shapes[0], &shapes[1], &y, f));
        check(&shapes, &want, &run)?;
    }

    #[test]
    fn any_transposed_convolution(axes in axes(), batch in 1..3usize, [i, o, groups] in channels()) {
        let (windows, conv) = windows(&axes, groups);
        let [sizes, kernel, more] = [0, 1, 6].map(|k| axes.iter().map(|a| a[k]).collect::<Vec<_>>());
        let sizes: Vec<usize> = sizes.iter().map(|&n| n.min(6)).collect();
        let conv = conv.output_padding(&more);
        let shapes = [shape(batch, &sizes, i), shape(i, &kernel, o / groups), vec![o]];
        let run = |x: &Tensor, w: &Tensor, b: &Tensor| match axes.len() {
            1 => x.conv_transpose1d(w, Some(b), &conv),
            2 => x.conv_transpose2d(w, Some(b), &conv),
            _ => x.conv_transpose3d(w, Some(b), &conv),
        };
        let Some(out) = windows.transposed(&sizes, &kernel, &more) else {
            prop_assert!(results(&shapes, DType::F32, &devices()[0], &run).is_err());
            return Ok(());
        };
        let y = shape(batch, &out, o);
        // The output is the input of the convolution that the windows are of.
        let each = |f: &mut dyn FnMut(usize, usize, usize)| {
            windows.each(&y, &shapes[1], &shapes[0], |xi, yi, wi| f(yi, xi, wi));
        };
        check(&shapes, &wanted(&shapes, &y, each), &run)?;
    }
}
