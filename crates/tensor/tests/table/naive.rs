//! The ops by their definitions, in double precision and plain loops.

use crate::row::Array;

fn places(shape: &[usize], mut i: usize) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for a in (0..shape.len()).rev() {
        at[a] = i % shape[a];
        i /= shape[a];
    }
    at
}

/// The element at `at`, where axes of size 1 and missing leading axes repeat.
pub(crate) fn pick(a: &Array, at: &[usize]) -> f64 {
    let lead = at.len() - a.shape.len();
    let i = a.shape.iter().zip(&at[lead..]).fold(0, |i, (&n, &p)| i * n + if n == 1 { 0 } else { p });
    a.data[i]
}

/// An array whose element at each place is `f(place)`.
pub(crate) fn build(shape: &[usize], mut f: impl FnMut(&[usize]) -> f64) -> Array {
    Array::new(shape, |i| f(&places(shape, i)))
}

pub(crate) fn stretched(a: &[usize], b: &[usize]) -> Vec<usize> {
    let n = a.len().max(b.len());
    let get = |s: &[usize], i: usize| if i + s.len() >= n { s[i + s.len() - n] } else { 1 };
    (0..n).map(|i| if get(a, i) == 1 { get(b, i) } else { get(a, i) }).collect()
}

pub(crate) fn map(a: &Array, f: impl Fn(f64) -> f64) -> Array {
    Array::new(&a.shape, |i| f(a.data[i]))
}

pub(crate) fn zip(a: &Array, b: &Array, f: impl Fn(f64, f64) -> f64) -> Array {
    build(&stretched(&a.shape, &b.shape), |at| f(pick(a, at), pick(b, at)))
}

pub(crate) fn choose(mask: &Array, a: &Array, b: &Array) -> Array {
    let shape = stretched(&mask.shape, &stretched(&a.shape, &b.shape));
    build(&shape, |at| if pick(mask, at) != 0.0 { pick(a, at) } else { pick(b, at) })
}

/// `f` of the elements that are reduced to one, in row-major order.
pub(crate) fn reduce(a: &Array, axes: &[usize], keep: bool, f: impl Fn(&[f64]) -> f64) -> Array {
    let kept: Vec<usize> =
        a.shape.iter().enumerate().map(|(i, &n)| if axes.contains(&i) { 1 } else { n }).collect();
    let mut groups = vec![Vec::new(); kept.iter().product()];
    for (i, &x) in a.data.iter().enumerate() {
        let at = places(&a.shape, i);
        let to = kept.iter().zip(&at).fold(0, |j, (&n, &p)| j * n + if n == 1 { 0 } else { p });
        groups[to].push(x);
    }
    let shape: Vec<usize> = match keep {
        true => kept,
        false => (0..a.shape.len()).filter(|i| !axes.contains(i)).map(|i| a.shape[i]).collect(),
    };
    Array { shape, data: groups.iter().map(|g| f(g)).collect() }
}

/// Axis `axis` cut into rows of `size`.
pub(crate) fn split(a: &Array, axis: usize, size: usize) -> Array {
    let mut shape = a.shape.clone();
    shape[axis] /= size;
    shape.insert(axis + 1, size);
    Array { shape, data: a.data.clone() }
}

pub(crate) fn sum(x: &[f64]) -> f64 {
    x.iter().sum()
}

pub(crate) fn mean(x: &[f64]) -> f64 {
    sum(x) / x.len() as f64
}

pub(crate) fn largest(x: &[f64]) -> f64 {
    x.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

pub(crate) fn place_of_largest(x: &[f64]) -> f64 {
    x.iter().position(|&v| v == largest(x)).unwrap() as f64
}

pub(crate) fn permute(a: &Array, axes: &[usize]) -> Array {
    let shape: Vec<usize> = axes.iter().map(|&x| a.shape[x]).collect();
    build(&shape, |at| {
        let mut from = vec![0; at.len()];
        axes.iter().zip(at).for_each(|(&x, &p)| from[x] = p);
        pick(a, &from)
    })
}

pub(crate) fn matmul(a: &Array, b: &Array) -> Array {
    let k = a.shape[1];
    build(&[a.shape[0], b.shape[1]], |at| (0..k).map(|p| pick(a, &[at[0], p]) * pick(b, &[p, at[1]])).sum())
}

/// x wᵀ + b on the last axis.
pub(crate) fn linear(x: &Array, w: &Array, b: Option<&Array>) -> Array {
    let (o, i) = (w.shape[0], w.shape[1]);
    let shape = [&x.shape[..x.shape.len() - 1], &[o]].concat();
    Array::new(&shape, |at| {
        let (row, c) = (at / o, at % o);
        b.map_or(0.0, |b| b.data[c]) + (0..i).map(|p| x.data[row * i + p] * w.data[c * i + p]).sum::<f64>()
    })
}

/// Calls `f(y, x)` for each place of a window inside the image.
fn window(
    [oy, ox]: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    size: [usize; 2],
    mut f: impl FnMut(usize, usize, usize, usize),
) {
    for ky in 0..kernel[0] {
        for kx in 0..kernel[1] {
            let y = (oy * stride[0] + ky).wrapping_sub(padding[0]);
            let x = (ox * stride[1] + kx).wrapping_sub(padding[1]);
            if y < size[0] && x < size[1] {
                f(ky, kx, y, x);
            }
        }
    }
}

fn outs(size: [usize; 2], kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> [usize; 2] {
    [0, 1].map(|i| (size[i] + 2 * padding[i] - kernel[i]) / stride[i] + 1)
}

pub(crate) fn conv2d(
    x: &Array,
    w: &Array,
    b: Option<&Array>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Array {
    let (size, kernel) = ([x.shape[1], x.shape[2]], [w.shape[1], w.shape[2]]);
    let [oh, ow] = outs(size, kernel, stride, padding);
    build(&[x.shape[0], oh, ow, w.shape[0]], |at| {
        let mut total = b.map_or(0.0, |b| b.data[at[3]]);
        window([at[1], at[2]], kernel, stride, padding, size, |ky, kx, y, xx| {
            for c in 0..x.shape[3] {
                total += pick(x, &[at[0], y, xx, c]) * pick(w, &[at[3], ky, kx, c]);
            }
        });
        total
    })
}

pub(crate) fn max_pool2d(x: &Array, kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> Array {
    let size = [x.shape[1], x.shape[2]];
    let [oh, ow] = outs(size, kernel, stride, padding);
    build(&[x.shape[0], oh, ow, x.shape[3]], |at| {
        let mut best = f64::NEG_INFINITY;
        window([at[1], at[2]], kernel, stride, padding, size, |_, _, y, xx| {
            best = best.max(pick(x, &[at[0], y, xx, at[3]]));
        });
        best
    })
}

fn normalised(x: &Array, gamma: &Array, beta: &Array, f: impl Fn(usize) -> (f64, f64), eps: f64) -> Array {
    let c = gamma.shape[0];
    Array::new(&x.shape, |i| {
        let (mean, variance) = f(i % c);
        (x.data[i] - mean) / (variance + eps).sqrt() * gamma.data[i % c] + beta.data[i % c]
    })
}

pub(crate) fn batch_norm_train(x: &Array, gamma: &Array, beta: &Array, eps: f64) -> Array {
    let c = gamma.shape[0];
    let statistics: Vec<(f64, f64)> = (0..c)
        .map(|k| {
            let column: Vec<f64> = x.data.iter().copied().skip(k).step_by(c).collect();
            let m = mean(&column);
            (m, mean(&column.iter().map(|v| (v - m) * (v - m)).collect::<Vec<_>>()))
        })
        .collect();
    normalised(x, gamma, beta, |k| statistics[k], eps)
}

pub(crate) fn batch_norm_eval(x: &[Array], eps: f64) -> Array {
    normalised(&x[0], &x[1], &x[2], |k| (x[3].data[k], x[4].data[k]), eps)
}

pub(crate) fn log_softmax(x: &Array) -> Array {
    let k = *x.shape.last().unwrap();
    Array::new(&x.shape, |i| {
        let row = &x.data[i / k * k..i / k * k + k];
        let top = largest(row);
        x.data[i] - top - row.iter().map(|v| (v - top).exp()).sum::<f64>().ln()
    })
}

fn scalar(x: f64) -> Array {
    Array { shape: vec![], data: vec![x] }
}

pub(crate) fn cross_entropy(x: &Array, labels: &[i64], weights: Option<&Array>) -> Array {
    let logs = log_softmax(x);
    let loss = |(i, &l): (usize, &i64)| -weights.map_or(1.0, |w| w.data[i]) * pick(&logs, &[i, l as usize]);
    scalar(labels.iter().enumerate().map(loss).sum())
}

pub(crate) fn mse(a: &Array, b: &Array, weights: Option<&Array>) -> Array {
    let each: usize = a.shape.iter().skip(1).product();
    let square = |i: usize| weights.map_or(1.0, |w| w.data[i / each]) * (a.data[i] - b.data[i]).powi(2);
    scalar((0..a.data.len()).map(square).sum())
}

pub(crate) fn concat(parts: &[Array], axis: usize) -> Array {
    let mut shape = parts[0].shape.clone();
    shape[axis] = parts.iter().map(|p| p.shape[axis]).sum();
    build(&shape, |at| {
        let mut at = at.to_vec();
        for p in parts {
            if at[axis] < p.shape[axis] {
                return pick(p, &at);
            }
            at[axis] -= p.shape[axis];
        }
        unreachable!("the place lies in one of the parts")
    })
}

pub(crate) fn index_select(x: &Array, axis: usize, list: &[i64]) -> Array {
    let mut shape = x.shape.clone();
    shape[axis] = list.len();
    build(&shape, |at| {
        let mut at = at.to_vec();
        at[axis] = list[at[axis]] as usize;
        pick(x, &at)
    })
}

pub(crate) fn gather(x: &Array, axis: usize, index: &Array) -> Array {
    build(&index.shape, |at| {
        let mut from = at.to_vec();
        from[axis] = pick(index, at) as usize;
        pick(x, &from)
    })
}
