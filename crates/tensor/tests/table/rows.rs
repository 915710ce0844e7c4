//! The table: rows with a naive reference. PyTorch's golden cases are added to them.

use phalanx_host::rng::Key;
use phalanx_tensor::{DType, Tensor, concat, stack};

use crate::naive as n;
use crate::row::{Array, In, Row, frozen, indices, input, mask, positive, row};

pub(crate) fn all() -> Vec<Row> {
    [elementwise(), reduce(), products(), images(), norms(), losses(), indexing(), shapes()].concat()
}

/// Shapes that fill no vector, one, several, and more than one task.
const FLAT: [&[usize]; 4] = [&[], &[1], &[3, 7], &[5, 3301]];

fn elementwise() -> Vec<Row> {
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

fn reduce() -> Vec<Row> {
    let mut rows = Vec::new();
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

fn products() -> Vec<Row> {
    let mut rows = Vec::new();
    for (m, k, l) in [(1, 1, 1), (37, 129, 65), (128, 64, 10), (5, 0, 3), (2, 300, 1)] {
        let row = row(
            "matmul",
            vec![input(&[m, k]), input(&[k, l])],
            |x| x[0].matmul(&x[1]),
            |x| n::matmul(&x[0], &x[1]),
        );
        let row = row.refuses(&[&[3, 4], &[3, 4]]).refuses(&[&[4], &[4, 2]]).refuses(&[&[2, 3, 4], &[4, 2]]);
        rows.push(row.batch(&[0]).second());
    }
    for (lead, i, o) in [
        (&[7usize][..], 5, 3),
        (&[130], 70, 33),
        (&[], 4, 6),
        (&[2, 3, 2], 8, 17),
        (&[4], 0, 3),
        (&[3], 2, 1),
    ] {
        let x = [lead, &[i]].concat();
        let with = row(
            "linear",
            vec![input(&x), input(&[o, i]), input(&[o])],
            |x| x[0].linear(&x[1], Some(&x[2])),
            |x| n::linear(&x[0], &x[1], Some(&x[2])),
        );
        let with = with.refuses(&[&[2, 5], &[3, 4], &[3]]).refuses(&[&[2, 5], &[3, 5], &[4]]);
        let with = with.refuses(&[&[2, 5], &[5], &[3]]).refuses(&[&[], &[3, 5], &[3]]);
        let bare = row(
            "linear",
            vec![input(&x), input(&[o, i])],
            |x| x[0].linear(&x[1], None),
            |x| n::linear(&x[0], &x[1], None),
        );
        let bare = bare.refuses(&[&[2, 5], &[3, 4]]);
        // With a bias a batch of none is empty all the same.
        let batch: &[usize] = if lead.is_empty() { &[] } else { &[0] };
        rows.extend([with.batch(batch).second(), bare.batch(batch).second()]);
    }
    rows
}

/// Images, a kernel, stride and padding.
type Sizes<const K: usize> = ([usize; 4], [usize; K], [usize; 2], [usize; 2]);

fn images() -> Vec<Row> {
    let mut rows = Vec::new();
    let cases: [Sizes<3>; 9] = [
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
    for (x, [o, kh, kw], stride, padding) in cases {
        let w = [o, kh, kw, x[3]];
        let with = row(
            "conv2d",
            vec![input(&x), input(&w), input(&[o])],
            move |x| x[0].conv2d(&x[1], Some(&x[2]), stride, padding),
            move |x| n::conv2d(&x[0], &x[1], Some(&x[2]), stride, padding),
        );
        let with =
            with.refuses(&[&[1, 4, 4, 2], &[3, 1, 1, 3], &[3]]).refuses(&[&[4, 4, 2], &[3, 1, 1, 2], &[3]]);
        let with = with.refuses(&[&[1, 4, 4, 2], &[3, 1, 1, 2], &[2]]).refuses(&[
            &[1, 2, 2, 1],
            &[1, 90, 90, 1],
            &[1],
        ]);
        let with = with.bad(&[&[1, 4, 4, 2], &[3, 1, 1, 2]], |x| x[0].conv2d(&x[1], None, [0, 1], [0, 0]));
        let with = with.bad(&[&[1, 4, 4, 2], &[3, 0, 1, 2]], |x| x[0].conv2d(&x[1], None, [1, 1], [0, 0]));
        let bare = row(
            "conv2d",
            vec![input(&x), input(&w)],
            move |x| x[0].conv2d(&x[1], None, stride, padding),
            move |x| n::conv2d(&x[0], &x[1], None, stride, padding),
        );
        rows.extend([with.batch(&[0]), bare.batch(&[0])]);
    }
    let cases: [Sizes<2>; 8] = [
        ([3, 14, 12, 6], [2, 2], [2, 2], [0, 0]),
        ([2, 7, 9, 16], [2, 2], [2, 2], [0, 0]),
        ([2, 9, 9, 64], [3, 3], [2, 2], [1, 1]),
        ([1, 6, 5, 33], [3, 3], [1, 1], [1, 1]),
        ([1, 5, 8, 1], [1, 3], [2, 1], [0, 1]),
        ([1, 20, 19, 2], [17, 16], [1, 2], [8, 0]),
        ([1, 2, 2, 3], [2, 2], [5, 5], [0, 0]),
        ([1, 4, 4, 0], [2, 2], [2, 2], [0, 0]),
    ];
    for (x, kernel, stride, padding) in cases {
        let row = row(
            "max_pool2d",
            vec![input(&x)],
            move |x| x[0].max_pool2d(kernel, stride, padding),
            move |x| n::max_pool2d(&x[0], kernel, stride, padding),
        );
        let row =
            row.refuses(&[&[4, 4, 2]]).bad(&[&[1, 2, 2, 1]], |x| x[0].max_pool2d([3, 3], [1, 1], [0, 0]));
        let row = row.bad(&[&[1, 4, 4, 1]], |x| x[0].max_pool2d([2, 2], [0, 1], [0, 0]));
        let row = row.bad(&[&[1, 4, 4, 1]], |x| x[0].max_pool2d([0, 2], [1, 1], [0, 0]));
        rows.push(row.bad(&[&[1, 4, 4, 1]], |x| x[0].max_pool2d([2, 2], [1, 1], [2, 0])).batch(&[0]));
    }
    rows
}

fn norms() -> Vec<Row> {
    let mut rows = Vec::new();
    for shape in
        [&[7usize, 3][..], &[500, 1], &[3, 5, 5, 6], &[40, 65], &[2, 9, 9, 17], &[5000, 6], &[2, 3, 64]]
    {
        let c = [*shape.last().unwrap()];
        let inputs = || vec![input(shape), input(&c), input(&c)];
        let train = row(
            "batch_norm_train",
            inputs(),
            |x| Ok(x[0].batch_norm_train(&x[1], &x[2], 1e-3)?.y),
            |x| n::batch_norm_train(&x[0], &x[1], &x[2], 1e-3),
        );
        let train = train.refuses(&[&[4], &[4], &[4]]).refuses(&[&[2, 4], &[3], &[4]]).refuses(&[
            &[2, 4],
            &[4],
            &[1, 4],
        ]);
        let bad = |x: &[Tensor]| Ok(x[0].batch_norm_train(&x[1], &x[1], -1.0)?.y);
        rows.push(train.bad(&[&[2, 3], &[3]], bad).batch(&[0]));
        let eval = row(
            "batch_norm_eval",
            [inputs(), vec![frozen(&c), frozen(&c)]].concat(),
            |x| x[0].batch_norm_eval(&x[1], &x[2], &x[3], &x[4], 1e-3),
            |x| n::batch_norm_eval(x, 1e-3),
        );
        rows.push(eval.refuses(&[&[2, 4], &[4], &[4], &[3], &[4]]).batch(&[0]));
    }
    for (shape, p) in [
        (&[1usize][..], 0.5),
        (&[3, 21], 0.25),
        (&[3, 20_011], 0.5),
        (&[65], 0.0),
        (&[65], 1.0),
        (&[4, 64], 0.9),
    ] {
        let key = Key::new(5).derive(1, 2);
        let kept = move |i: usize| f64::from(key.block(i as u64 / 4)[i % 4]) >= p * 4_294_967_296.0;
        let row = row(
            "dropout",
            vec![input(shape)],
            move |x| x[0].dropout(p, key),
            move |x| Array::new(&x[0].shape, |i| if kept(i) { x[0].data[i] / (1.0 - p) } else { 0.0 }),
        );
        let row =
            row.bad(&[&[3]], move |x| x[0].dropout(1.5, key)).bad(&[&[3]], move |x| x[0].dropout(-0.1, key));
        rows.push(row.bad(&[&[3]], move |x| x[0].dropout(f64::NAN, key)).batch(&[0]).second());
    }
    rows
}

fn losses() -> Vec<Row> {
    let mut rows = Vec::new();
    for shape in [&[5usize][..], &[3, 1], &[130, 10], &[4, 16], &[2, 3, 33], &[7, 1000]] {
        rows.push(
            row(
                "softmax",
                vec![input(shape)],
                |x| x[0].softmax(),
                |x| n::map(&n::log_softmax(&x[0]), f64::exp),
            )
            .refuses(&[&[]])
            .batch(if shape.len() > 1 { &[0] } else { &[] })
            .second(),
        );
        rows.push(
            row("log_softmax", vec![input(shape)], |x| x[0].log_softmax(), |x| n::log_softmax(&x[0]))
                .refuses(&[&[]])
                .batch(if shape.len() > 1 { &[0] } else { &[] })
                .second(),
        );
    }
    for (samples, classes) in [(1usize, 1usize), (3, 5), (128, 10), (40, 1000), (3000, 17)] {
        let labels: Vec<i64> = (0..samples).map(|i| ((7 * i + 2) % classes) as i64).collect();
        let (x, of) = (input(&[samples, classes]), indices(&[samples], &labels));
        let list = labels.clone();
        let plain = row(
            "cross_entropy",
            vec![x.clone(), of.clone()],
            |x| x[0].cross_entropy(&x[1], None),
            move |x| n::cross_entropy(&x[0], &list, None),
        );
        let weighted = row(
            "cross_entropy",
            vec![x, of, frozen(&[samples])],
            |x| x[0].cross_entropy(&x[1], Some(&x[2])),
            move |x| n::cross_entropy(&x[0], &labels, Some(&x[2])),
        );
        rows.push(plain.batch(&[0, 1]));
        rows.push(weighted.batch(&[0, 1, 2]));
    }
    for row in &mut rows {
        if row.op == "cross_entropy" && row.inputs[0].shape == [3, 5] {
            *row = match row.inputs.len() {
                2 => row.clone().refuses(&[&[2, 4], &[3]]).refuses(&[&[3], &[3]]),
                _ => row.clone().refuses(&[&[3, 4], &[3], &[2]]),
            };
        }
    }
    for shape in [&[6usize][..], &[5, 3, 4], &[300, 70], &[]] {
        let plain = row(
            "mse",
            vec![input(shape), input(shape)],
            |x| x[0].mse(&x[1], None),
            |x| n::mse(&x[0], &x[1], None),
        );
        let plain = plain.refuses(&[&[3], &[4]]).refuses(&[&[3, 2], &[2]]).second();
        if let Some(&samples) = shape.first() {
            let inputs = vec![input(shape), input(shape), frozen(&[samples])];
            let row =
                row("mse", inputs, |x| x[0].mse(&x[1], Some(&x[2])), |x| n::mse(&x[0], &x[1], Some(&x[2])));
            rows.push(
                row.batch(&[0, 1, 2]).refuses(&[&[3, 2], &[3, 2], &[2]]).refuses(&[&[], &[], &[1]]).second(),
            );
            rows.push(plain.batch(&[0, 1]));
        } else {
            rows.push(plain);
        }
    }
    rows
}

fn indexing() -> Vec<Row> {
    let mut rows = Vec::new();
    for (shape, axis, list) in [
        (&[6usize, 3][..], 0, &[5i64, 0, 0, 2, 5][..]),
        (&[2, 4, 3], 1, &[3, 3, 0]),
        (&[5], 0, &[]),
        (&[3, 7], 1, &[6, 0, 6, 1]),
        (&[50, 90], 0, &[7; 70]),
    ] {
        let of = indices(&[list.len()], list);
        let row = row(
            "index_select",
            vec![input(shape), of],
            move |x| x[0].index_select(axis, &x[1]),
            move |x| n::index_select(&x[0], axis, list),
        );
        let row = row.bad(&[&[3], &[1]], |x| x[0].index_select(1, &x[1].to(DType::I64)?));
        let row = row.bad(&[&[3], &[1, 1]], |x| x[0].index_select(0, &x[1].to(DType::I64)?));
        let row = row.bad(&[&[0], &[1]], |x| x[0].index_select(0, &x[1].to(DType::I64)?)).second();
        rows.push(if axis > 0 { row.batch(&[0]) } else { row });
    }
    for (shape, axis, of, list) in [
        (&[4usize, 3][..], 1, &[4usize, 2][..], &[2i64, 0, 1, 1, 0, 0, 2, 2][..]),
        (&[4, 3], 0, &[2, 3], &[3, 3, 0, 1, 2, 0]),
        (&[2, 5, 3], 1, &[2, 1, 2], &[4, 0, 2, 2]),
        (&[6], 0, &[8], &[5, 5, 5, 0, 1, 2, 3, 4]),
    ] {
        let inputs = vec![input(shape), indices(of, list)];
        let row =
            row("gather", inputs, move |x| x[0].gather(axis, &x[1]), move |x| n::gather(&x[0], axis, &x[1]));
        let row = row.bad(&[&[3, 2], &[3]], |x| x[0].gather(0, &x[1].to(DType::I64)?));
        let row = row.bad(&[&[3, 2], &[4, 1]], |x| x[0].gather(1, &x[1].to(DType::I64)?));
        let row = row.bad(&[&[3, 2], &[3, 1]], |x| x[0].gather(2, &x[1].to(DType::I64)?)).second();
        rows.push(if axis > 0 { row.batch(&[0, 1]) } else { row });
    }
    let all = |x: &[Tensor], axis| concat(&x.iter().collect::<Vec<_>>(), axis);
    let cases: [(Vec<In>, usize); 4] = [
        (vec![input(&[3, 2]), input(&[3, 5])], 1),
        (vec![input(&[1, 4]), input(&[0, 4]), input(&[7, 4])], 0),
        (vec![input(&[2, 3, 2]), input(&[2, 3, 1])], 2),
        (vec![input(&[50, 40]), input(&[30, 40])], 0),
    ];
    for (inputs, axis) in cases {
        let row = row("concat", inputs, move |x| all(x, axis), move |x| n::concat(x, axis));
        let row = row.bad(&[&[3, 2], &[2, 3]], move |x| all(x, 0)).bad(&[&[3, 2], &[3]], move |x| all(x, 0));
        let row = row.bad(&[&[3], &[3]], move |x| all(x, 1)).bad(&[], move |x| all(x, 0)).second();
        rows.push(if axis > 0 { row.batch(&[0, 1]) } else { row });
    }
    for (shape, axis) in [(&[3usize, 2][..], 0), (&[3, 2], 1), (&[4], 1), (&[], 0)] {
        let pair = |x: &[Tensor], axis| stack(&[&x[0], &x[1]], axis);
        let row = row(
            "stack",
            vec![input(shape), input(shape)],
            move |x| pair(x, axis),
            move |x| {
                let mut sizes = shape.to_vec();
                sizes.insert(axis, 1);
                n::concat(&[0, 1].map(|i| Array { shape: sizes.clone(), data: x[i].data.clone() }), axis)
            },
        );
        let row = row.bad(&[&[3], &[2]], move |x| pair(x, 0)).bad(&[&[3], &[3]], move |x| pair(x, 2));
        rows.push(row.bad(&[], |_| stack(&[], 0)).second());
    }
    rows
}

fn shapes() -> Vec<Row> {
    let mut rows = Vec::new();
    for (from, to) in
        [(&[6usize, 4][..], &[2usize, 12][..]), (&[3, 1, 5], &[15]), (&[1], &[]), (&[0, 3], &[3, 0, 2])]
    {
        let same = move |x: &[Array]| Array { shape: to.to_vec(), data: x[0].data.clone() };
        let row = row("reshape", vec![input(from)], move |x| x[0].reshape(to), same).any_type().second();
        rows.push(row.bad(&[&[3, 2]], |x| x[0].reshape(&[7])));
    }
    for (shape, axes) in
        [(&[3usize, 4][..], &[1usize, 0][..]), (&[2, 3, 4], &[1, 2, 0]), (&[70, 50], &[1, 0])]
    {
        let turned = move |x: &[Array]| n::permute(&x[0], axes);
        let row = row("permute", vec![input(shape)], move |x| x[0].permute(axes), turned).any_type().second();
        rows.push(row.bad(&[&[3, 2]], |x| x[0].permute(&[0, 0])).bad(&[&[3, 2]], |x| x[0].permute(&[0])));
        let copy = row_of_contiguous(shape, axes);
        rows.push(copy);
    }
    for (shape, axis, start, len, step) in
        [(&[9usize, 4][..], 0, 1, 3, 3), (&[2, 7], 1, 6, 1, 4), (&[5], 0, 5, 0, 1), (&[60, 70], 1, 3, 22, 3)]
    {
        let list: Vec<i64> = (0..len).map(|i| (start + i * step) as i64).collect();
        let cut = move |x: &[Array]| n::index_select(&x[0], axis, &list);
        let row = row("slice", vec![input(shape)], move |x| x[0].slice_by(axis, start, len, step), cut);
        let row = row.bad(&[&[5]], |x| x[0].slice(0, 3, 3)).bad(&[&[5]], |x| x[0].slice(1, 0, 1));
        rows.push(row.bad(&[&[5]], |x| x[0].slice_by(0, 0, 1, 0)).any_type().second());
    }
    for (from, to) in [
        (&[4usize][..], &[3usize, 4][..]),
        (&[3, 1, 5], &[2, 3, 4, 5]),
        (&[], &[2, 2]),
        (&[1, 90], &[80, 90]),
    ] {
        let wide = move |x: &[Array]| n::build(to, |at| n::pick(&x[0], at));
        let row = row("expand", vec![input(from)], move |x| x[0].expand(to), wide).any_type().second();
        rows.push(row.bad(&[&[3]], |x| x[0].expand(&[4])).bad(&[&[3, 1]], |x| x[0].expand(&[3])));
    }
    rows
}

fn row_of_contiguous(shape: &'static [usize], axes: &'static [usize]) -> Row {
    let turned = move |x: &[Array]| n::permute(&x[0], axes);
    row("contiguous", vec![input(shape)], move |x| x[0].permute(axes)?.contiguous(), turned)
        .any_type()
        .second()
}
