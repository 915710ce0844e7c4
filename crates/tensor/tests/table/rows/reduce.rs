//! Reductions over axes.

use phalanx_tensor::Tensor;

use crate::naive as n;
use crate::row::{Array, Row, input, mask, row};

pub(super) fn all() -> Vec<Row> {
    let whole = |op,
                 run: fn(&[Tensor]) -> phalanx_tensor::Result<Tensor>,
                 axes: &'static [usize],
                 f: fn(&[f64]) -> f64,
                 to: &'static [usize]| {
        let want = move |x: &[Array]| Array { shape: to.to_vec(), ..n::reduce(&x[0], axes, true, f) };
        row(op, vec![input(&[2, 3, 4])], run, want).second()
    };
    let mut rows = vec![
        whole("mean", |x| x[0].mean_all(), &[0, 1, 2], n::mean, &[]),
        whole("sum", |x| x[0].sum_to(&[3, 1]), &[0, 2], n::sum, &[3, 1]),
    ];
    let cases: [(&[usize], &[usize]); 9] = [
        (&[300, 70], &[0]),
        (&[300, 70], &[1]),
        (&[70, 300], &[0, 1]),
        (&[4, 33, 5, 6], &[0, 2]),
        (&[4, 33, 5, 6], &[1, 3]),
        (&[3, 1, 2], &[1]),
        (&[1, 1000], &[0]),
        (&[2000, 3], &[0]),
        (&[3, 40, 17], &[0, 1]),
    ];
    for (shape, axes) in cases {
        for keep in [false, true] {
            macro_rules! reduction {
                ($name:literal $method:ident) => {
                    row(
                        $name,
                        vec![input(shape)],
                        move |x| x[0].$method(axes, keep),
                        move |x| n::reduce(&x[0], axes, keep, n::$method),
                    )
                    .bad(&[&[3, 4]], |x| x[0].$method(&[2], false))
                    .bad(&[&[3, 4]], |x| x[0].$method(&[1, 0], false))
                    .bad(&[&[3, 4]], |x| x[0].$method(&[0, 0], true))
                };
            }
            rows.push(reduction!("sum" sum).second().batch(if axes[0] == 0 { &[0] } else { &[] }));
            rows.push(reduction!("mean" mean).second());
        }
    }
    // The second case is cut into blocks.
    let cases: [(&[usize], &[usize]); 7] = [
        (&[13, 7], &[0]),
        (&[2, 40_000], &[1]),
        (&[13, 7], &[1]),
        (&[3, 5, 4], &[0, 2]),
        (&[1], &[0]),
        (&[9, 4, 2], &[1, 2]),
        (&[150, 200], &[0]),
    ];
    for (shape, axes) in cases {
        macro_rules! reduction {
            ($name:literal |$t:ident, $a:ident| $run:expr, |$g:ident| $want:expr) => {{
                let run = move |x: &[Tensor]| {
                    let ($t, $a) = (&x[0], axes);
                    $run
                };
                let want = move |x: &[Array]| n::reduce(&x[0], axes, false, |$g| $want);
                let row = row($name, vec![input(shape)], run, want)
                    .bad(&[&[3, 4]], |x| {
                        let ($t, $a) = (&x[0], &[2][..]);
                        $run
                    })
                    .bad(&[&[3, 4]], |x| {
                        let ($t, $a) = (&x[0], &[1, 0][..]);
                        $run
                    });
                if axes[0] > 0 { row.batch(&[0]) } else { row }
            }};
        }
        rows.extend([
            reduction!("var" | t, a | t.var(a, 0.0, false), |g| n::variance(g)).second(),
            reduction!("std" | t, a | t.std(a, 0.0, false), |g| n::variance(g).sqrt()).second(),
            reduction!("norm" | t, a | t.norm(2.0, a, false), |g| n::length(g)).second(),
            reduction!("logsumexp" | t, a | t.logsumexp(a, false), |g| n::log_sum_exp(g)).second(),
        ]);
        // In longer rows single precision finds equals that double does not, and products leave the range.
        if shape.iter().product::<usize>() < 1000 {
            rows.extend([
                reduction!("max" | t, a | t.max(a, false), |g| n::largest(g)).second(),
                reduction!("min" | t, a | t.min(a, false), |g| -n::largest(&n::negated(g))).second(),
                reduction!("prod" | t, a | t.prod(a, false), |g| g.iter().product()).second(),
            ]);
        }
        for (name, all) in [("any", false), ("all", true)] {
            let run = move |x: &[Tensor]| if all { x[0].all(axes, false) } else { x[0].any(axes, false) };
            let want = move |g: &[f64]| {
                let mut set = g.iter().map(|&x| x != 0.0);
                f64::from(u8::from(if all { set.all(|s| s) } else { set.any(|s| s) }))
            };
            let want = move |x: &[Array]| n::reduce(&x[0], axes, false, want);
            rows.push(row(name, vec![mask(shape)], run, want).no_gradient());
        }
    }
    for (shape, axis) in [(&[13usize, 7][..], 0), (&[13, 7], 1), (&[3, 5, 4], 1), (&[6], 0)] {
        for (name, largest) in [("argmax", true), ("argmin", false)] {
            let find = move |t: &Tensor, axis| if largest { t.argmax(axis) } else { t.argmin(axis) };
            let place =
                move |g: &[f64]| n::place_of_largest(&if largest { g.to_vec() } else { n::negated(g) });
            let row = row(
                name,
                vec![input(shape)],
                move |x| find(&x[0], axis),
                move |x| n::reduce(&x[0], &[axis], false, place),
            );
            let row = row.no_gradient().bad(&[&[3, 0]], move |x| find(&x[0], 1));
            let row = row.bad(&[&[3]], move |x| find(&x[0], 1));
            rows.push(if axis == 1 { row.batch(&[0]) } else { row });
        }
    }
    rows
}
