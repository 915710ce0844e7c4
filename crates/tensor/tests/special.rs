//! What the op table cannot say in a row: numbers that are none, ties, indices out of range, casts,
//! metrics.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap too")]

use std::sync::OnceLock;

use phalanx_host::rng::Key;
use phalanx_host::{Cpu, Isa};
use phalanx_tensor::{DType, Device, Error, Tensor, top_k_errors};

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
    is(top_k_errors(&x, &list(&[-7, 0]), &[1]).unwrap_err(), -7, 0, 3);
    let text = x.cross_entropy(&list(&[i64::MIN, 0]), None).unwrap_err().to_string();
    assert!(text.contains("cross_entropy") && text.contains("outside 0..3"), "{text}");
}

#[test]
fn top_k_errors_count_ties_and_numbers_that_are_none_against_us() {
    let logits =
        tensor(&[0.1, 0.9, 0.5, 0.2, 7.0, 7.0, 1.0, 2.0, NAN, 1.0, 2.0, 3.0, 1.0, NAN, 0.0, 0.5], [4, 4]);
    let labels = Tensor::from_slice(&[2i64, 0, 0, 0], [4], &device()).unwrap();
    let errors = top_k_errors(&logits, &labels, &[1, 2, 4]).unwrap();
    assert_eq!(errors[0], [true, true, true, true], "second; tied; not a number; below one");
    assert_eq!(errors[1], [false, false, true, false]);
    assert_eq!(errors[2], [false, false, true, false]);
    assert!(top_k_errors(&logits, &logits, &[1]).unwrap_err().to_string().starts_with("top_k_errors:"));
    let (rows, none) = (logits.slice(0, 0, 0).unwrap(), labels.slice(0, 0, 0).unwrap());
    assert_eq!(top_k_errors(&rows, &none, &[1, 5]).unwrap(), [vec![], vec![]] as [Vec<bool>; 2]);
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
