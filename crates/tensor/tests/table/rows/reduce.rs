//! Reductions over axes.

use crate::naive as n;
use crate::row::{Array, Row, input, row};

pub(super) fn all() -> Vec<Row> {
    let whole = |op,
                 run: fn(&[phalanx_tensor::Tensor]) -> phalanx_tensor::Result<phalanx_tensor::Tensor>,
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
    for (shape, axes) in [
        (&[13usize, 7][..], &[0usize][..]),
        (&[13, 7], &[1]),
        (&[3, 5, 4], &[0, 2]),
        (&[1], &[0]),
        (&[9, 4, 2], &[1, 2]),
    ] {
        let row = row(
            "max",
            vec![input(shape)],
            move |x| x[0].max(axes, false),
            move |x| n::reduce(&x[0], axes, false, n::largest),
        );
        let row = row.bad(&[&[3, 0]], |x| x[0].max(&[1], false)).bad(&[&[3]], |x| x[0].max(&[1], true));
        rows.push(if axes[0] > 0 { row.batch(&[0]) } else { row });
    }
    for (shape, axis) in [(&[13usize, 7][..], 0), (&[13, 7], 1), (&[3, 5, 4], 1), (&[6], 0)] {
        let row = row(
            "argmax",
            vec![input(shape)],
            move |x| x[0].argmax(axis),
            move |x| n::reduce(&x[0], &[axis], false, n::place_of_largest),
        );
        let row = row.no_gradient().bad(&[&[3, 0]], |x| x[0].argmax(1)).bad(&[&[3]], |x| x[0].argmax(1));
        rows.push(if axis == 1 { row.batch(&[0]) } else { row });
    }
    rows
}
