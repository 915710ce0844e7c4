//! What the op table cannot say in a row: numbers that are none, ties, indices out of range, casts,
//! metrics.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap too")]

use std::sync::OnceLock;

use phalanx_host::rng::Key;
use phalanx_host::{Cpu, Isa};
use phalanx_tensor::{CrossEntropy, DType, Device, Error, PointLoss, Tensor, top_k_errors};

fn device() -> Device {
    static ONE: OnceLock<Device> = OnceLock::new();
    ONE.get_or_init(|| Device::cpu(Cpu::new(Isa::detect(), 1).unwrap())).clone()
}

fn tensor<const N: usize>(x: &[f32], shape: [usize; N]) -> Tensor {
    Tensor::from_slice(x, shape, &device()).unwrap()
}

fn gradient(y: &Tensor, x: &Tensor) -> Vec<f32> {
    y.sum_all().unwrap().gradients().unwrap().get(x).unwrap().to_vec().unwrap()
}

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

#[test]
fn the_largest_is_not_a_number_before_all_and_the_first_of_equals() {
    let x = tensor(&[1.0, 3.0, 3.0, NAN, 9.0, NAN, -INF, -INF, -INF], [3, 3]).leaf();
    let y = x.max(&[1], false).unwrap();
    let got = y.to_vec::<f32>().unwrap();
    assert!(got[0] == 3.0 && got[1].is_nan() && got[2] == -INF, "{got:?}");
    assert_eq!(gradient(&y, &x), [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    assert_eq!(x.argmax(1).unwrap().to_vec::<i64>().unwrap(), [1, 0, 0]);
}

/// A function, its operand, what it gives, and the gradient of the sum of that.
type Case<'a> = (&'a str, fn(&Tensor) -> phalanx_tensor::Result<Tensor>, &'a [f32], &'a [f32], &'a [f32]);

/// Whether two lists are equal, not a number being equal to itself.
fn same(got: &[f32], want: &[f32]) -> bool {
    got.len() == want.len() && got.iter().zip(want).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()))
}

#[test]
fn slopes_at_kinks_are_pytorchs() {
    let cases: [Case; 15] = [
        ("abs", |x| x.abs(), &[0.0, -0.0, NAN], &[0.0, 0.0, NAN], &[0.0, 0.0, 0.0]),
        (
            "clamp",
            |x| x.clamp(Some(-1.0), Some(1.0)),
            &[-1.0, 1.0, NAN, 0.5],
            &[-1.0, 1.0, NAN, 0.5],
            &[0.0, 0.0, 0.0, 1.0],
        ),
        ("relu6", |x| x.relu6(), &[0.0, 6.0, 7.0], &[0.0, 6.0, 6.0], &[0.0, 0.0, 0.0]),
        ("leaky_relu", |x| x.leaky_relu(0.25), &[0.0, NAN], &[0.0, NAN], &[0.25, 0.25]),
        ("elu", |x| x.elu(0.5), &[0.0, 200.0], &[0.0, 200.0], &[0.5, 1.0]),
        ("hard_sigmoid", |x| x.hard_sigmoid(), &[-3.0, 3.0], &[0.0, 1.0], &[0.0, 0.0]),
        ("hard_swish", |x| x.hard_swish(), &[-3.0, 3.0], &[0.0, 3.0], &[0.0, 1.0]),
        ("threshold", |x| x.threshold(0.5, 20.0), &[0.5, NAN, 1.0], &[20.0, NAN, 1.0], &[0.0, 0.0, 1.0]),
        ("hard_shrink", |x| x.hard_shrink(0.5), &[0.5, -0.5], &[0.0, 0.0], &[0.0, 0.0]),
        ("soft_shrink", |x| x.soft_shrink(0.5), &[0.5, -0.5], &[0.0, 0.0], &[0.0, 0.0]),
        ("softplus", |x| x.softplus(1.0, 20.0), &[100.0, -200.0, NAN], &[100.0, 0.0, NAN], &[1.0, 0.0, NAN]),
        ("log_sigmoid", |x| x.log_sigmoid(), &[-800.0, 800.0], &[-800.0, 0.0], &[1.0, 0.0]),
        ("pow", |x| x.pow_scalar(0.0), &[0.0, NAN], &[1.0, 1.0], &[0.0, 0.0]),
        ("pow", |x| x.pow_scalar(0.5), &[0.0, -1.0], &[0.0, NAN], &[INF, NAN]),
        ("round", |x| x.round(), &[0.5, 1.5, 2.5], &[0.0, 2.0, 2.0], &[0.0, 0.0, 0.0]),
    ];
    for (name, f, x, want, slopes) in cases {
        let x = Tensor::from_slice(x, [x.len()], &device()).unwrap().leaf();
        let y = f(&x).unwrap();
        assert!(same(&y.to_vec().unwrap(), want), "{name}: {:?}", y.to_vec::<f32>());
        let got = gradient(&y, &x);
        assert!(same(&got, slopes), "{name}: {got:?}");
    }
    let a = tensor(&[1.0, NAN, 1.0, 2.0, -INF, 0.0], [6]).leaf();
    let b = tensor(&[1.0, 1.0, NAN, 1.0, -3.0, -0.0], [6]).leaf();
    let y = a.maximum(&b).unwrap();
    assert!(same(&y.to_vec().unwrap(), &[1.0, NAN, NAN, 2.0, -3.0, 0.0]), "{:?}", y.to_vec::<f32>());
    let both = |y: &Tensor, x: [&Tensor; 2]| {
        let all = y.sum_all().unwrap().gradients().unwrap();
        x.map(|x| all.get(x).unwrap().to_vec::<f32>().unwrap())
    };
    assert_eq!(both(&y, [&a, &b]), [[0.5, 1.0, 1.0, 1.0, 0.0, 0.5], [0.5, 1.0, 1.0, 0.0, 1.0, 0.5]]);
    let (x, slope) = (tensor(&[0.0, -1.0, 1.0], [3]).leaf(), tensor(&[0.25], [1]).leaf());
    let slopes = both(&x.prelu(&slope).unwrap(), [&x, &slope]);
    assert_eq!(slopes, [vec![0.25, 0.25, 1.0], vec![-1.0]]);
    let (base, exponent) = (tensor(&[0.0, 0.0, 2.0], [3]).leaf(), tensor(&[0.0, 2.0, 0.0], [3]).leaf());
    let y = base.pow(&exponent).unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [1.0, 0.0, 1.0]);
    let [of_base, of_exponent] = both(&y, [&base, &exponent]);
    assert_eq!((of_base, &of_exponent[..2]), (vec![0.0; 3], &[0.0; 2][..]));
    assert!((of_exponent[2] - 2f32.ln()).abs() < 1e-6);
}

#[test]
fn masks_tell_numbers_from_others_in_every_type() {
    let x = tensor(&[1.0, NAN, INF, -INF], [4]);
    let bits = |t: phalanx_tensor::Result<Tensor>| t.unwrap().to_vec::<u8>().unwrap();
    for x in [x.clone(), x.to(DType::F64).unwrap(), x.to(DType::BF16).unwrap()] {
        assert_eq!(bits(x.isnan()), [0, 1, 0, 0]);
        assert_eq!((bits(x.isfinite()), bits(x.isinf())), (vec![1, 0, 0, 0], vec![0, 0, 1, 1]));
        assert_eq!((bits(x.ne(&x)), bits(x.eq(&x))), (vec![0, 1, 0, 0], vec![1, 0, 1, 1]));
        assert_eq!((bits(x.le_scalar(1.0)), bits(x.gt_scalar(0.3))), (vec![1, 0, 0, 1], vec![1, 0, 1, 0]));
        assert_eq!(bits(x.masked_fill(&x.isnan().unwrap(), 7.0).unwrap().eq_scalar(7.0)), [0, 1, 0, 0]);
    }
    let whole = Tensor::from_slice(&[1i64, 2, i64::MAX], [3], &device()).unwrap();
    assert_eq!((bits(whole.isnan()), bits(whole.isfinite())), (vec![0; 3], vec![1; 3]));
    assert_eq!((bits(whole.gt_scalar(1.5)), bits(whole.eq(&whole))), (vec![0, 1, 1], vec![1; 3]));
    let text = whole.eq(&x.slice(0, 0, 3).unwrap()).unwrap_err().to_string();
    assert!(text.starts_with("eq:") && text.contains("i64"), "{text}");
}

#[test]
fn reductions_know_zeros_ties_infinities_and_no_elements() {
    let cases: [Case; 15] = [
        ("amax", |x| x.reshape(&[1, 3])?.max(&[0, 1], false), &[1.0, 1.0, 0.0], &[1.0], &[0.5, 0.5, 0.0]),
        ("amax", |x| x.reshape(&[3, 1])?.max(&[0, 1], false), &[1.0, NAN, 0.0], &[NAN], &[NAN; 3]),
        ("min", |x| x.min(&[0], false), &[1.0, 1.0, NAN], &[NAN], &[0.0, 0.0, 1.0]),
        ("prod", |x| x.prod(&[0], false), &[2.0, 0.0, 3.0], &[0.0], &[0.0, 6.0, 0.0]),
        ("prod", |x| x.prod(&[0], false), &[2.0, 0.0, 0.0], &[0.0], &[0.0; 3]),
        ("var", |x| x.var(&[0], 1.0, false), &[1.0], &[NAN], &[NAN]),
        ("std", |x| x.std(&[0], 1.0, false), &[1.0, 1.0], &[0.0], &[0.0, 0.0]),
        ("norm", |x| x.norm(2.0, &[0], false), &[0.0, 0.0], &[0.0], &[0.0, 0.0]),
        ("norm", |x| x.norm(f64::INFINITY, &[0], false), &[2.0, -2.0, 1.0], &[2.0], &[0.5, -0.5, 0.0]),
        ("norm", |x| x.norm(f64::NEG_INFINITY, &[0], false), &[2.0, 1.0, -1.0], &[1.0], &[0.0, 0.5, -0.5]),
        ("norm", |x| x.norm(1.5, &[0], false), &[2.0, 0.0], &[2.0], &[1.0, 0.0]),
        ("norm", |x| x.norm(0.0, &[0], false), &[2.0, 0.0], &[1.0], &[0.0, 0.0]),
        ("logsumexp", |x| x.logsumexp(&[0], false), &[INF, 1.0], &[INF], &[NAN, 0.0]),
        ("logsumexp", |x| x.logsumexp(&[0], false), &[1000.0, 1000.0], &[1000.6932], &[0.5, 0.5]),
        (
            "cumprod",
            |x| x.cumprod(0),
            &[2.0, 0.0, 3.0, 0.0, 4.0],
            &[2.0, 0.0, 0.0, 0.0, 0.0],
            &[1.0, 8.0, 0.0, 0.0, 0.0],
        ),
    ];
    for (name, f, x, want, slopes) in cases {
        let x = Tensor::from_slice(x, [x.len()], &device()).unwrap().leaf();
        let y = f(&x).unwrap();
        assert!(same(&y.to_vec().unwrap(), want), "{name}: {:?}", y.to_vec::<f32>());
        let close =
            gradient(&y, &x).iter().zip(slopes).all(|(a, b)| (a - b).abs() < 1e-4 || same(&[*a], &[*b]));
        assert!(close, "{name}: {:?}", gradient(&y, &x));
    }
    let none = tensor(&[], [0, 2]);
    let values = |t: phalanx_tensor::Result<Tensor>| t.unwrap().to_vec::<f32>().unwrap();
    assert_eq!(values(none.prod(&[0], false)), [1.0; 2]);
    assert_eq!(values(none.logsumexp(&[0], false)), [-INF; 2]);
    assert_eq!(values(none.norm(2.0, &[0], false)), [0.0; 2]);
    assert!(values(none.var(&[0], 0.0, false)).iter().all(|v| v.is_nan()));
    let bits = |t: phalanx_tensor::Result<Tensor>| t.unwrap().to_vec::<u8>().unwrap();
    let mask = none.to(DType::U8).unwrap();
    assert_eq!((bits(mask.any(&[0], false)), bits(mask.all(&[0], false))), (vec![0; 2], vec![1; 2]));
    for refused in [none.max(&[0], false), none.min(&[0, 1], true), none.norm(f64::INFINITY, &[0], false)] {
        assert!(refused.unwrap_err().to_string().contains("empty"));
    }
}

#[test]
fn extremes_of_long_rows_are_the_first_of_equals_too() {
    let mut x: Vec<f32> = (0..100_000).map(|i| (i % 1000) as f32).collect();
    for threads in [1, 3] {
        let device = Device::cpu(Cpu::new(Isa::detect(), threads).unwrap());
        let place = |x: &[f32], largest: bool| {
            let t = Tensor::from_slice(x, [x.len()], &device).unwrap();
            let at = if largest { t.argmax(0) } else { t.argmin(0) };
            at.unwrap().to_vec::<i64>().unwrap()[0]
        };
        assert_eq!((place(&x, true), place(&x, false)), (999, 0));
        x[70_000] = 2000.0;
        x[90_000] = -1.0;
        assert_eq!((place(&x, true), place(&x, false)), (70_000, 90_000));
        (x[50_000], x[60_000]) = (NAN, NAN);
        assert_eq!((place(&x, true), place(&x, false)), (50_000, 50_000));
        x.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 1000) as f32);
    }
}

#[test]
fn the_k_largest_come_first_of_equals_first_and_not_a_number_is_larger_than_all() {
    let x = tensor(&[3.0, 1.0, 3.0, 2.0, NAN], [5]).leaf();
    let places = |found: &(Tensor, Tensor)| found.1.to_vec::<i64>().unwrap();
    let top = x.top_k(3, 0, true, true).unwrap();
    assert!(same(&top.0.to_vec().unwrap(), &[NAN, 3.0, 3.0]) && places(&top) == [4, 0, 2]);
    assert_eq!(gradient(&top.0, &x), [1.0, 0.0, 1.0, 0.0, 1.0]);
    assert_eq!(places(&x.top_k(3, 0, true, false).unwrap()), [0, 2, 4]);
    assert_eq!(places(&x.top_k(3, 0, false, true).unwrap()), [1, 3, 0]);
    assert_eq!(places(&x.sort(0, false).unwrap()), [1, 3, 0, 2, 4]);
    assert_eq!(places(&x.sort(0, true).unwrap()), [4, 0, 2, 3, 1]);
    assert_eq!(x.top_k(0, 0, true, true).unwrap().0.shape()[..], [0]);
    let text = x.top_k(6, 0, true, true).unwrap_err().to_string();
    assert!(text.starts_with("top_k:") && text.contains("k is 6, but axis 0 has 5"), "{text}");
    assert!(x.sort(1, true).unwrap_err().to_string().starts_with("sort:"));
}

#[test]
fn pooling_keeps_not_a_number_and_infinities_and_takes_the_first_of_equals() {
    // One image of one row; windows of three; the vector path and the path for odd numbers.
    for (x, want, place) in [
        ([2.0, 5.0, 5.0], 5.0, 1),
        ([NAN, 7.0, NAN], NAN, 0),
        ([7.0, NAN, 8.0], NAN, 1),
        ([-INF, -INF, -INF], -INF, 0),
        ([1.0, INF, 2.0], INF, 1),
        ([-0.0, 0.0, -1.0], -0.0, 0),
    ] {
        for channels in [1usize, 5, 40] {
            let wide: Vec<f32> = x.iter().flat_map(|&v| vec![v; channels]).collect();
            let t = tensor(&wide, [1, 1, 3, channels]).leaf();
            let y = t.max_pool2d([1, 3], [1, 1], [0, 0]).unwrap();
            for y in y.to_vec::<f32>().unwrap() {
                assert!(y == want || (y.is_nan() && want.is_nan()), "{x:?}: {y}");
            }
            let g = gradient(&y, &t);
            let hit: Vec<bool> = (0..3 * channels).map(|i| i / channels == place).collect();
            assert_eq!(g.iter().map(|&g| g == 1.0).collect::<Vec<_>>(), hit, "{x:?}");
        }
    }
}

#[test]
fn padding_of_a_pool_never_wins() {
    let x = tensor(&[-5.0, -3.0, -4.0, -6.0], [1, 2, 2, 1]).leaf();
    let y = x.max_pool2d([2, 2], [1, 1], [1, 1]).unwrap();
    let want = [-5.0, -3.0, -3.0, -4.0, -3.0, -3.0, -4.0, -4.0, -6.0];
    assert_eq!(y.to_vec::<f32>().unwrap(), want);
    assert_eq!(gradient(&y, &x), [1.0, 4.0, 3.0, 1.0]);
}

#[test]
fn softmax_and_cross_entropy_survive_extreme_logits() {
    let x = tensor(&[1000.0, 0.0, -1000.0, 3e38, -3e38, 0.0], [2, 3]).leaf();
    assert_eq!(x.softmax().unwrap().to_vec::<f32>().unwrap(), [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    assert_eq!(x.log_softmax().unwrap().to_vec::<f32>().unwrap()[..3], [0.0, -1000.0, -2000.0]);
    let labels = Tensor::from_slice(&[1i64, 0], [2], &device()).unwrap();
    let loss = x.cross_entropy(&labels, None).unwrap();
    assert_eq!(loss.item().unwrap(), 1000.0);
    assert_eq!(gradient(&loss, &x), [1.0, -1.0, 0.0, 0.0, 0.0, 0.0]);
    for bad in [NAN, INF] {
        let x = tensor(&[0.0, bad, 1.0], [1, 3]);
        let label = Tensor::from_slice(&[0i64], [1], &device()).unwrap();
        assert!(x.softmax().unwrap().to_vec::<f32>().unwrap().iter().any(|v| v.is_nan()), "{bad}");
        let loss = x.cross_entropy(&label, None).unwrap().item().unwrap();
        assert!(!loss.is_finite(), "a loss of {loss} hides {bad}");
    }
}

#[test]
fn indices_outside_their_axis_are_named_with_their_place() {
    let x = tensor(&[0.0; 6], [2, 3]);
    let list = |v: &[i64]| Tensor::from_slice(v, [v.len()], &device()).unwrap();
    let is = |e: Error, index: i64, position: usize, limit: usize| match e {
        Error::Index { index: i, position: p, limit: l, .. } => {
            assert_eq!((i, p, l), (index, position, limit));
        }
        e => panic!("{e}"),
    };
    is(x.index_select(0, &list(&[0, 1, 2])).unwrap_err(), 2, 2, 2);
    is(x.index_select(1, &list(&[0, -1])).unwrap_err(), -1, 1, 3);
    let column = Tensor::from_slice(&[0i64, 3], [2, 1], &device()).unwrap();
    is(x.gather(1, &column).unwrap_err(), 3, 1, 3);
    is(x.scatter_add(1, &column, &tensor(&[0.0; 2], [2, 1])).unwrap_err(), 3, 1, 3);
    is(x.index_add(0, &list(&[1, 1, -2]), &tensor(&[0.0; 9], [3, 3])).unwrap_err(), -2, 2, 2);
    is(x.embedding(&column, None).unwrap_err(), 3, 1, 2);
    is(list(&[0, 5, 6]).one_hot(5, DType::F32).unwrap_err(), 5, 1, 5);
    let any = list(&[7, 8, 9]).index_select(0, &list(&[2, 0])).unwrap();
    assert_eq!(any.to_vec::<i64>().unwrap(), [9, 7], "any element type can be picked from");
    let weights = tensor(&[1.0, 0.0], [2]);
    is(x.cross_entropy(&list(&[0, 3]), Some(&weights)).unwrap_err(), 3, 1, 3);
    is(top_k_errors(&x, &list(&[-7, 0]), &[1], None).unwrap_err(), -7, 0, 3);
    let text = x.cross_entropy(&list(&[i64::MIN, 0]), None).unwrap_err().to_string();
    assert!(text.contains("cross_entropy") && text.contains("outside 0..3"), "{text}");
}

#[test]
fn ignored_rows_count_nothing_whatever_they_hold() {
    let x = tensor(&[1.0, 2.0, NAN, INF, 0.0, 0.0], [3, 2]).leaf();
    let labels = Tensor::from_slice(&[1i64, -1, 0], [3], &device()).unwrap();
    let how = CrossEntropy { ignore_index: Some(-1), ..CrossEntropy::default() };
    for smoothing in [0.0, 0.1] {
        let how = CrossEntropy { label_smoothing: smoothing, ..how };
        let loss = x.cross_entropy_with(&labels, &how).unwrap();
        assert!(loss.item().unwrap().is_finite());
        let g = gradient(&loss, &x);
        assert!(g[2..4] == [0.0, 0.0] && g[0] > 0.0 && g[5] > 0.0, "{g:?}");
        assert_eq!(how.weight(&labels).unwrap(), 2.0);
    }
    let nll = x.nll(&labels, &how).unwrap();
    assert_eq!((nll.item().unwrap(), gradient(&nll, &x)), (-2.0, vec![0.0, -1.0, 0.0, 0.0, -1.0, 0.0]));
    let plain = x.cross_entropy_with(&labels, &CrossEntropy::default()).unwrap_err();
    assert!(matches!(plain, Error::Index { index: -1, position: 1, limit: 2, .. }), "{plain}");
    let classes = tensor(&[1.0, 2.0], [2]);
    let weighed = CrossEntropy { class_weights: Some(&classes), ..CrossEntropy::default() };
    assert!(matches!(weighed.weight(&labels), Err(Error::Index { index: -1, position: 1, limit: 2, .. })));
    let all = CrossEntropy { ignore_index: Some(1), ..weighed };
    let none = Tensor::full(1i64, [3], &device()).unwrap();
    let loss = x.cross_entropy_with(&none, &all).unwrap();
    assert_eq!((loss.item().unwrap(), all.weight(&none).unwrap()), (0.0, 0.0));
}

#[test]
fn losses_of_single_numbers_are_exact_far_out_and_keep_what_is_no_number() {
    let x = tensor(&[1e4, -1e4, 1e4, -1e4, -20.0], [5]).leaf();
    let y = tensor(&[1.0, 0.0, 0.0, 1.0, 0.0], [5]);
    let loss = x.bce_with_logits(&y, None, None).unwrap();
    assert_eq!(loss.item().unwrap(), f64::from((2e4 + (-20f64).exp()) as f32));
    let g = gradient(&loss, &x);
    assert_eq!(g[..4], [0.0, 0.0, 1.0, -1.0]);
    let small = (-20f32).exp();
    assert!((g[4] - small).abs() < 1e-6 * small, "{}", g[4]);
    let p = tensor(&[0.0, 1.0, 1e-9], [3]).leaf();
    let wrong = p.point_loss(&tensor(&[1.0, 0.0, 0.0], [3]), PointLoss::Bce, None).unwrap();
    assert!(
        (wrong.item().unwrap() - 200.0).abs() < 1e-4 && gradient(&wrong, &p).iter().all(|g| g.is_finite())
    );
    for loss in [
        PointLoss::Mse,
        PointLoss::L1,
        PointLoss::Huber { delta: 1.0 },
        PointLoss::SmoothL1 { beta: 0.5 },
        PointLoss::Bce,
        PointLoss::BceWithLogits,
        PointLoss::Hinge { margin: 1.0 },
        PointLoss::SquaredHinge { margin: 1.0 },
        PointLoss::HingeEmbedding { margin: -1.0 },
        PointLoss::Exponential,
        PointLoss::Logistic,
        PointLoss::KlDiv { log_target: false },
        PointLoss::KlDiv { log_target: true },
        PointLoss::Poisson { log_input: true, full: true, eps: 1e-8 },
    ] {
        let (nan, one) = (tensor(&[0.5, NAN], [2]), tensor(&[0.5, -1.0], [2]));
        assert!(nan.point_loss(&one, loss, None).unwrap().item().unwrap().is_nan(), "{loss:?}");
    }
}

#[test]
fn top_k_errors_count_ties_and_numbers_that_are_none_against_us() {
    let logits =
        tensor(&[0.1, 0.9, 0.5, 0.2, 7.0, 7.0, 1.0, 2.0, NAN, 1.0, 2.0, 3.0, 1.0, NAN, 0.0, 0.5], [4, 4]);
    let labels = Tensor::from_slice(&[2i64, 0, 0, 0], [4], &device()).unwrap();
    let errors = top_k_errors(&logits, &labels, &[1, 2, 4], None).unwrap();
    assert_eq!(errors[0], [true, true, true, true], "second; tied; not a number; below one");
    assert_eq!(errors[1], [false, false, true, false]);
    assert_eq!(errors[2], [false, false, true, false]);
    let ignoring = top_k_errors(&logits, &labels, &[1], Some(2)).unwrap();
    assert_eq!(ignoring[0], [false, true, true, true]);
    assert!(top_k_errors(&logits, &logits, &[1], None).unwrap_err().to_string().starts_with("top_k_errors:"));
    let (rows, none) = (logits.slice(0, 0, 0).unwrap(), labels.slice(0, 0, 0).unwrap());
    assert_eq!(top_k_errors(&rows, &none, &[1, 5], None).unwrap(), [vec![], vec![]] as [Vec<bool>; 2]);
}

#[test]
fn casts_round_cut_and_saturate() {
    let x = tensor(&[1.5, -2.7, 300.0, NAN, 3e20, 0.1], [6]);
    let all = [DType::F32, DType::F64, DType::U8, DType::I64, DType::F16, DType::BF16];
    assert_eq!(x.to(DType::U8).unwrap().to_vec::<u8>().unwrap(), [1, 0, 255, 0, 255, 0]);
    assert_eq!(x.to(DType::I64).unwrap().to_vec::<i64>().unwrap(), [1, -2, 300, 0, i64::MAX, 0]);
    let halves = x.to(DType::F16).unwrap().to_vec::<half::f16>().unwrap();
    assert!(halves[3].is_nan() && halves[4].is_infinite() && halves[5] == half::f16::from_f32(0.1));
    // Small whole numbers survive any pair of types.
    let small = tensor(&[0.0, 1.0, 7.0, 200.0], [4]);
    for (from, to) in all.into_iter().flat_map(|a| all.map(|b| (a, b))) {
        let t = small.to(from).unwrap().to(to).unwrap();
        assert_eq!(t.dtype(), to);
        assert_eq!(t.to(DType::F32).unwrap().to_vec::<f32>().unwrap(), [0.0, 1.0, 7.0, 200.0], "{from} {to}");
    }
    let leaf = x.leaf();
    assert!(leaf.to(DType::F64).unwrap().requires_grad());
    assert!(leaf.to(DType::BF16).unwrap().requires_grad() && !leaf.to(DType::I64).unwrap().requires_grad());
    let y = leaf.to(DType::F64).unwrap().scale(3.0).unwrap();
    assert_eq!(gradient(&y, &leaf), [3.0; 6]);
}

#[test]
fn batch_norm_of_one_sample_and_of_none_gives_statistics_that_can_be_combined() {
    let (gamma, beta) = (tensor(&[2.0, 3.0], [2]).leaf(), tensor(&[0.5, -0.5], [2]).leaf());
    let x = tensor(&[4.0, 7.0], [1, 2]).leaf();
    let one = x.batch_norm_train(&gamma, &beta, 1e-5).unwrap();
    assert_eq!(one.y.to_vec::<f32>().unwrap(), [0.5, -0.5]);
    assert_eq!(one.mean.to_vec::<f32>().unwrap(), [4.0, 7.0]);
    assert_eq!((one.variance.to_vec::<f32>().unwrap(), one.count), (vec![0.0, 0.0], 1));
    assert!(!one.mean.requires_grad() && !one.variance.requires_grad());
    assert_eq!(gradient(&one.y, &x), [0.0, 0.0]);
    let none = x.detach().slice(0, 0, 0).unwrap().batch_norm_train(&gamma, &beta, 1e-5).unwrap();
    assert_eq!((none.mean.to_vec::<f32>().unwrap(), none.count), (vec![0.0, 0.0], 0));
}

#[test]
fn the_variance_of_numbers_far_from_zero_keeps_its_digits() {
    // Whole numbers around 10,000 with variance 2, which a sum of squares in f32 would lose.
    let x: Vec<f32> = (0..5000).map(|i| 10_000.0 + (i % 5) as f32).collect();
    let ones = tensor(&[1.0], [1]);
    let b = tensor(&x, [5000, 1]).batch_norm_train(&ones, &ones, 0.0).unwrap();
    assert_eq!(b.mean.item().unwrap(), 10_002.0);
    assert!((b.variance.item().unwrap() - 2.0).abs() < 1e-5, "{}", b.variance.item().unwrap());
}

#[test]
fn long_sums_keep_their_digits() {
    let n = 1 << 22;
    let x = Tensor::full(0.1f32, [n], &device()).unwrap();
    let exact = f64::from(0.1f32) * n as f64;
    for sum in
        [x.sum_all().unwrap(), x.reshape(&[n / 4, 4]).unwrap().sum(&[0], false).unwrap().sum_all().unwrap()]
    {
        let off = (sum.item().unwrap() - exact).abs() / exact;
        assert!(off < 1e-6, "{off}");
    }
    let mean = x.mean_all().unwrap().item().unwrap();
    assert!((mean - f64::from(0.1f32)).abs() < 1e-7, "{mean}");
    assert!(tensor(&[], [0]).mean_all().unwrap().item().unwrap().is_nan());
}

#[test]
fn dropout_keeps_the_same_elements_in_every_type_and_about_as_many_as_asked() {
    let key = Key::new(3);
    let n = 100_000;
    for p in [0.1, 0.5, 0.8] {
        let x = Tensor::full(1.0f32, [n], &device()).unwrap();
        let y = x.dropout(p, key).unwrap().to_vec::<f32>().unwrap();
        let z = x.to(DType::F64).unwrap().dropout(p, key).unwrap().to_vec::<f64>().unwrap();
        assert!(y.iter().zip(&z).all(|(a, b)| (*a == 0.0) == (*b == 0.0)));
        let kept = y.iter().filter(|&&v| v != 0.0).count() as f64 / n as f64;
        assert!((kept - (1.0 - p)).abs() < 0.006, "{p}: {kept}");
        let other = x.dropout(p, Key::new(4)).unwrap().to_vec::<f32>().unwrap();
        assert_ne!(y, other);
    }
}

#[test]
fn rules_make_tensors() {
    let d = device();
    let list = |t: Tensor| t.to(DType::F64).unwrap().to_vec::<f64>().unwrap();
    let range = |a, b, s, dtype| Tensor::arange(a, b, s, dtype, &d);
    assert_eq!(list(range(1.0, 2.5, 0.5, DType::F32).unwrap()), [1.0, 1.5, 2.0]);
    assert_eq!(list(range(3.0, -1.0, -2.0, DType::I64).unwrap()), [3.0, 1.0]);
    assert_eq!(range(0.0, 0.0, 1.0, DType::F32).unwrap().shape()[..], [0]);
    for (a, b, s) in [(0.0, 1.0, 0.0), (0.0, 1.0, -1.0), (0.0, f64::INFINITY, 1.0), (f64::NAN, 1.0, 1.0)] {
        let e = range(a, b, s, DType::F32).unwrap_err().to_string();
        assert!(e.starts_with("arange:"), "{e}");
    }
    let line = list(Tensor::linspace(-1.0, 0.1, 7, DType::F64, &d).unwrap());
    assert_eq!((line.len(), line[0], line[6]), (7, -1.0, 0.1));
    assert!(line.windows(2).all(|w| (w[1] - w[0] - 1.1 / 6.0).abs() < 1e-15));
    assert_eq!(list(Tensor::linspace(2.0, 5.0, 1, DType::F32, &d).unwrap()), [2.0]);
    assert_eq!(list(Tensor::eye(2, 3, DType::BF16, &d).unwrap()), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
}

#[test]
fn random_disturbances_have_the_moments_they_should_and_belong_to_their_key() {
    let (d, key, n) = (device(), Key::new(9), 200_000);
    let moments = |t: &Tensor| {
        let v: Vec<f64> = t.to(DType::F64).unwrap().to_vec().unwrap();
        let mean = v.iter().sum::<f64>() / n as f64;
        (mean, v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64)
    };
    let x = Tensor::normal(DType::F32, [n], key, &d).unwrap();
    let normal = |(mean, variance): (f64, f64)| assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02);
    normal(moments(&x));
    // SELU's constants keep mean 0 and variance 1, whatever is dropped.
    for p in [0.05, 0.3] {
        normal(moments(&x.alpha_dropout(p, Key::new(10)).unwrap()));
    }
    let noisy = x.gaussian_noise(0.5, Key::new(11)).unwrap();
    let (_, variance) = moments(&noisy.sub(&x).unwrap());
    assert!((variance - 0.25).abs() < 0.01, "{variance}");
    let again = Tensor::normal(DType::F32, [n / 2], key, &d).unwrap();
    assert_eq!(again.to_vec::<f32>().unwrap(), x.slice(0, 0, n / 2).unwrap().to_vec::<f32>().unwrap());
    assert!(Tensor::normal(DType::BF16, [3], key, &d).unwrap_err().to_string().contains("f32 or f64"));
}
