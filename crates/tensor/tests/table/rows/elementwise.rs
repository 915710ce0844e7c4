//! Functions of one, two or three elements.

use phalanx_tensor::DType;

use crate::naive as n;
use crate::row::{Row, input, mask, positive, row};

/// Shapes that fill no vector, one, several, and more than one task.
const FLAT: [&[usize]; 4] = [&[], &[1], &[3, 7], &[5, 3301]];

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    macro_rules! unary {
        ($($method:ident $name:literal $input:ident |$x:ident| $value:expr;)*) => { $(
            for shape in FLAT {
                let row = row($name, vec![$input(shape)], |x| x[0].$method(), |x| n::map(&x[0], |$x| $value));
                rows.push(if shape.is_empty() { row } else { row.batch(&[0]) }.second());
            }
        )* };
    }
    unary! {
        neg "neg" input |x| -x;
        exp "exp" input |x| x.exp();
        log "log" positive |x| x.ln();
        sqrt "sqrt" positive |x| x.sqrt();
        square "square" input |x| x * x;
        sigmoid "sigmoid" input |x| 1.0 / (1.0 + (-x).exp());
        tanh "tanh" input |x| x.tanh();
        relu "relu" input |x| x.max(0.0);
        step "step" input |x| f64::from(u8::from(x > 0.0));
    }
    rows.push(
        row("affine", vec![input(&[4, 9])], |x| x[0].scale(-2.5), |x| n::map(&x[0], |x| -2.5 * x)).second(),
    );
    rows.push(
        row("affine", vec![input(&[33])], |x| x[0].offset(0.75), |x| n::map(&x[0], |x| x + 0.75)).second(),
    );
    let pairs: [(&[usize], &[usize]); 5] = [
        (&[5, 3301], &[5, 3301]),
        (&[4, 1, 3], &[2, 3]),
        (&[130, 200], &[200]),
        (&[130, 200], &[130, 1]),
        (&[], &[]),
    ];
    macro_rules! binary {
        ($($method:ident $name:literal |$x:ident, $y:ident| $value:expr;)*) => { $(
            for (a, b) in pairs {
                let inputs = vec![input(a), positive(b)];
                let row = row($name, inputs, |x| x[0].$method(&x[1]), |x| n::zip(&x[0], &x[1], |$x, $y| $value));
                let row = if a == b && !a.is_empty() { row.batch(&[0, 1]) } else { row };
                rows.push(row.second().refuses(&[&[3, 4], &[3]]).refuses(&[&[2], &[5, 3]]));
            }
        )* };
    }
    binary! {
        add "add" |x, y| x + y;
        sub "sub" |x, y| x - y;
        mul "mul" |x, y| x * y;
        div "div" |x, y| x / y;
    }
    for (m, a, b) in [
        (&[3usize, 4][..], &[3usize, 4][..], &[4usize][..]),
        (&[6, 1], &[1, 5], &[]),
        (&[70, 90], &[70, 90], &[70, 90]),
    ] {
        let inputs = vec![mask(m), input(a), input(b)];
        let row = row("where", inputs, |x| x[0].select(&x[1], &x[2]), |x| n::choose(&x[0], &x[1], &x[2]));
        rows.push(row.second().refuses(&[&[3], &[2], &[2]]).refuses(&[&[2], &[2], &[3]]));
    }
    for (a, b) in [(&[3usize, 7][..], &[3usize, 7][..]), (&[5, 1], &[4]), (&[40, 50], &[50])] {
        let above = |x: f64, y: f64| f64::from(u8::from(x > y));
        let row =
            row("gt", vec![input(a), input(b)], |x| x[0].gt(&x[1]), move |x| n::zip(&x[0], &x[1], above));
        rows.push(row.no_gradient().refuses(&[&[3], &[2]]));
    }
    for shape in [&[7usize][..], &[3, 0, 2], &[100, 30]] {
        let row = row("to", vec![input(shape)], |x| x[0].to(DType::F64), |x| x[0].clone());
        rows.push(row.batch(&[0]).any_type().second());
    }
    rows
}
