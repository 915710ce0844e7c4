//! Pooling on random grids of shapes, against its definition in doubles: values, gradients, and what is
//! refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may unwrap too")]

use std::sync::OnceLock;

use phalanx_host::{Cpu, Isa};
use phalanx_tensor::{DType, Device, Pool, Result, Tensor};
use proptest::prelude::*;

fn device() -> Device {
    static ONE: OnceLock<Device> = OnceLock::new();
    ONE.get_or_init(|| Device::cpu(Cpu::new(Isa::detect(), 2).unwrap())).clone()
}

/// Whole numbers, many of them alike.
fn number(seed: usize, i: usize) -> f64 {
    let mixed =
        (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed.wrapping_mul(0xD1B5_4A32_D192_ED03));
    ((mixed >> 40) % 41) as f64 - 20.0
}

/// One axis: its size and how windows lie on it.
#[derive(Debug, Clone, Copy)]
struct Line {
    size: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
}

/// One window along an axis: the places that it reads, and how many it has with the padding.
type Window = (Vec<usize>, usize);

impl Line {
    /// The windows one after the other; none when the first does not fit.
    fn windows(&self, ceil: bool) -> Vec<Window> {
        let Line { size, kernel, stride, padding, dilation } = *self;
        let (reach, end) = ((kernel - 1) * dilation + 1, size + 2 * padding);
        let mut starts: Vec<usize> = (0..end).step_by(stride).take_while(|s| s + reach <= end).collect();
        if let Some(last) = starts.last()
            && ceil
            && last + reach < end
            && last + stride < size + padding
        {
            starts.push(last + stride);
        }
        let one = |start: &usize| {
            let all: Vec<usize> = (0..kernel).map(|k| start + k * dilation).collect();
            let inside = all.iter().filter(|&&p| p >= padding && p < padding + size).map(|p| p - padding);
            (inside.collect(), all.iter().filter(|&&p| p < end).count())
        };
        starts.iter().map(one).collect()
    }
}

/// Calls `f(output, inputs, padded)` for each window of samples of `channels`: where its result lies, the
/// places that it reads, and the size with padding.
fn each(
    sizes: &[usize],
    axes: &[Vec<Window>],
    batch: usize,
    channels: usize,
    mut f: impl FnMut(usize, &[usize], usize),
) {
    let windows: usize = axes.iter().map(Vec::len).product();
    for at in 0..batch * windows {
        let (mut rest, mut padded) = (at % windows, 1);
        let mut picked = Vec::new();
        for axis in axes.iter().rev() {
            picked.insert(0, &axis[rest % axis.len()]);
            padded *= picked[0].1;
            rest /= axis.len();
        }
        let mut places = vec![at / windows];
        for ((inside, _), size) in picked.iter().zip(sizes) {
            places = places.iter().flat_map(|p| inside.iter().map(move |i| p * size + i)).collect();
        }
        for c in 0..channels {
            let inputs: Vec<usize> = places.iter().map(|p| p * channels + c).collect();
            f(at * channels + c, &inputs, padded);
        }
    }
}

/// Values and gradients of `run` against `want`'s; numbers within `tolerance` of each other.
fn compare(
    shape: &[usize],
    want: (Vec<f64>, Vec<f64>),
    dtype: DType,
    tolerance: f64,
    run: impl Fn(&Tensor) -> Result<Tensor>,
) -> std::result::Result<(), TestCaseError> {
    let x: Vec<f64> = (0..shape.iter().product()).map(|i| number(1, i)).collect();
    let x = Tensor::from_slice(&x, shape, &device()).unwrap().to(dtype).unwrap().leaf();
    let y = run(&x).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let g: Vec<f64> = (0..y.shape().numel()).map(|i| number(2, i)).collect();
    let g = Tensor::from_slice(&g, y.shape(), &device()).unwrap().to(dtype).unwrap();
    let all = y.mul(&g).unwrap().sum_all().unwrap().gradients().unwrap();
    let doubles = |t: &Tensor| t.detach().to(DType::F64).unwrap().to_vec::<f64>().unwrap();
    for (got, want) in [(doubles(&y), want.0), (doubles(all.get(&x).unwrap()), want.1)] {
        prop_assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let fits = (got - want).abs() <= tolerance * want.abs().max(20.0);
            prop_assert!(fits, "{}: element {} is {}, must be {}", dtype, i, got, want);
        }
    }
    Ok(())
}

/// What pooling must give: the largest numbers, or sums divided by what `divisor(places, padded)` says.
fn wanted(
    shape: &[usize],
    axes: &[Vec<Window>],
    divisor: Option<&dyn Fn(usize, usize) -> f64>,
) -> (Vec<f64>, Vec<f64>) {
    let (batch, channels) = (shape[0], shape[shape.len() - 1]);
    let windows: usize = axes.iter().map(Vec::len).product();
    let mut y = vec![0.0; batch * windows * channels];
    let mut dx = vec![0.0; shape.iter().product()];
    each(&shape[1..shape.len() - 1], axes, batch, channels, |to, inputs, padded| match divisor {
        None => {
            let first = |best: usize, &i: &usize| if number(1, i) > number(1, best) { i } else { best };
            let best = inputs.iter().fold(inputs[0], first);
            y[to] = number(1, best);
            dx[best] += number(2, to);
        }
        Some(divisor) => {
            let by = divisor(inputs.len(), padded);
            for &i in inputs {
                y[to] += number(1, i) / by;
                dx[i] += number(2, to) / by;
            }
        }
    });
    (y, dx)
}

/// An axis of at most `most` numbers; mostly one that a window fits on.
fn line(most: usize) -> impl Strategy<Value = Line> {
    let sizes = (1..=11usize, 1..=4usize, 0..=5usize, 1..=3usize, 0..=6usize, 0..8u8);
    sizes.prop_map(move |(kernel, stride, padding, dilation, more, kind)| {
        let padding = padding.min(kernel / 2);
        let dilation = if (kernel - 1) * dilation < most { dilation } else { 1 };
        let fits = ((kernel - 1) * dilation + 1).saturating_sub(2 * padding);
        let size = match kind {
            0 => 1,
            1 => 1 + (7 * more) % most,
            _ => (fits + more).clamp(1, most),
        };
        Line { size, kernel, stride, padding, dilation }
    })
}

/// 1 to 3 axes, the more the smaller.
fn lines() -> impl Strategy<Value = Vec<Line>> {
    prop_oneof![
        prop::collection::vec(line(40), 1),
        prop::collection::vec(line(20), 2),
        prop::collection::vec(line(11), 3),
    ]
}

fn pool(lines: &[Line]) -> Pool {
    let of = |f: fn(&Line) -> usize| lines.iter().map(f).collect::<Vec<_>>();
    Pool::new(&of(|l| l.kernel))
        .stride(&of(|l| l.stride))
        .padding(&of(|l| l.padding))
        .dilation(&of(|l| l.dilation))
}

fn shape(batch: usize, lines: &[Line], channels: usize) -> Vec<usize> {
    let sizes = lines.iter().map(|l| l.size);
    [batch].into_iter().chain(sizes).chain([channels]).collect()
}

fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), 2..=9usize, Just(16), Just(33)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_largest_of_any_windows(lines in lines(), batch in 1..3usize, channels in channels(), ceil: bool) {
        let (shape, pool) = (shape(batch, &lines, channels), pool(&lines).ceil(ceil));
        let axes: Vec<_> = lines.iter().map(|l| l.windows(ceil)).collect();
        let empty = axes.iter().any(|a| a.is_empty() || a.iter().any(|w| w.0.is_empty()));
        if empty {
            let x = Tensor::zeros(DType::F32, &shape[..], &device()).unwrap();
            prop_assert!(x.max_pool(&pool).is_err());
            return Ok(());
        }
        let want = wanted(&shape, &axes, None);
        for dtype in [DType::F64, DType::F32] {
            compare(&shape, want.clone(), dtype, 0.0, |x| x.max_pool(&pool))?;
        }
    }

    #[test]
    fn the_mean_of_any_windows(
        lines in lines(),
        batch in 1..3usize,
        channels in channels(),
        ceil: bool,
        padded: bool,
        divisor in prop::option::of(1..9usize),
    ) {
        let lines: Vec<Line> = lines.into_iter().map(|l| Line { dilation: 1, ..l }).collect();
        let mut pool = pool(&lines).ceil(ceil).count_include_pad(padded);
        pool = divisor.map_or(pool, |d| pool.divisor(d));
        let shape = shape(batch, &lines, channels);
        let axes: Vec<_> = lines.iter().map(|l| l.windows(ceil)).collect();
        if axes.iter().any(Vec::is_empty) {
            let x = Tensor::zeros(DType::F32, &shape[..], &device()).unwrap();
            prop_assert!(x.avg_pool(&pool).is_err());
            return Ok(());
        }
        let by = |inside, all| divisor.unwrap_or(if padded { all } else { inside }) as f64;
        let want = wanted(&shape, &axes, Some(&by));
        compare(&shape, want.clone(), DType::F64, 1e-13, |x| x.avg_pool(&pool))?;
        compare(&shape, want, DType::F32, 2e-6, |x| x.avg_pool(&pool))?;
    }

    #[test]
    fn windows_that_adapt(
        sizes in prop::collection::vec((1..14usize, 1..9usize), 1..=3),
        batch in 1..3usize,
        channels in channels(),
    ) {
        let out: Vec<usize> = sizes.iter().map(|s| s.1).collect();
        let axis = |&(size, out): &(usize, usize)| -> Vec<Window> {
            let one = |o: usize| {
                // Place i belongs to each window that it overlaps with: both as parts of a whole.
                let inside = (0..size).filter(|i| (i + 1) * out > o * size && i * out < (o + 1) * size);
                (inside.collect(), 0)
            };
            (0..out).map(one).collect()
        };
        let axes: Vec<Vec<Window>> = sizes.iter().map(axis).collect();
        let shape: Vec<usize> =
            [batch].into_iter().chain(sizes.iter().map(|s| s.0)).chain([channels]).collect();
        compare(&shape, wanted(&shape, &axes, None), DType::F32, 0.0, |x| x.adaptive_max_pool(&out))?;
        let mean = wanted(&shape, &axes, Some(&|inside, _| inside as f64));
        compare(&shape, mean.clone(), DType::F64, 1e-13, |x| x.adaptive_avg_pool(&out))?;
        compare(&shape, mean, DType::F32, 2e-6, |x| x.adaptive_avg_pool(&out))?;
    }
}
