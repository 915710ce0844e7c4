use std::time::{Duration, Instant};

use phalanx_gpu::{Context, Conv, DevicePtr, Direction, Math, Type};

use crate::common::{buffer, context, decode, encode, numbers, stand_ins, with_settings};

fn conv(axes: &[[usize; 6]], n: usize, c: usize, k: usize, groups: usize) -> Conv {
    let list = |i: usize| axes.iter().map(|a| a[i]).collect::<Vec<_>>();
    let out = |a: &[usize; 6]| (a[0] + a[3] + a[4] - (a[5] * (a[1] - 1) + 1)) / a[2] + 1;
    Conv {
        n,
        c,
        k,
        groups,
        image: list(0),
        kernel: list(1),
        out: axes.iter().map(out).collect(),
        stride: list(2),
        pad_before: list(3),
        pad_after: list(4),
        dilation: list(5),
        activations: Type::F32,
        weights: Type::F32,
        math: Math::F32,
        exact: true,
        direction: Direction::Forward,
        accumulate: false,
        bias: None,
    }
}

/// All places of a box, the last axis fastest.
fn places(sizes: &[usize]) -> Vec<Vec<usize>> {
    sizes.iter().fold(vec![vec![]], |all, size| {
        all.iter().flat_map(|p| (0..*size).map(|i| [p.as_slice(), &[i]].concat())).collect()
    })
}

fn flat(place: &[usize], sizes: &[usize]) -> usize {
    place.iter().zip(sizes).fold(0, |at, (p, s)| at * s + p)
}

/// Calls with the flat places in x, w and y of every product.
fn products(c: &Conv, mut each: impl FnMut(usize, usize, usize)) {
    let (ic, oc) = (c.c / c.groups, c.k / c.groups);
    for o in places(&c.out) {
        for p in places(&c.kernel) {
            let from: Option<Vec<usize>> = (0..o.len())
                .map(|a| (o[a] * c.stride[a] + p[a] * c.dilation[a]).checked_sub(c.pad_before[a]))
                .collect();
            let Some(from) = from.filter(|f| f.iter().zip(&c.image).all(|(f, i)| f < i)) else { continue };
            let (pixels, image) = (c.out.iter().product::<usize>(), c.image.iter().product::<usize>());
            let taps: usize = c.kernel.iter().product();
            for n in 0..c.n {
                for k in 0..c.k {
                    for i in 0..ic {
                        let x = (n * image + flat(&from, &c.image)) * c.c + k / oc * ic + i;
                        let w = (k * taps + flat(&p, &c.kernel)) * ic + i;
                        let y = (n * pixels + flat(&o, &c.out)) * c.k + k;
                        each(x, w, y);
                    }
                }
            }
        }
    }
}

fn check(c: &Conv) {
    let context = context();
    let sizes = [
        c.n * c.c * c.image.iter().product::<usize>(),
        c.k * c.c / c.groups * c.kernel.iter().product::<usize>(),
        c.n * c.k * c.out.iter().product::<usize>(),
    ];
    for direction in [Direction::Forward, Direction::Data, Direction::Weights] {
        let c = Conv { direction, ..c.clone() };
        let mut xwy = [0, 1, 2].map(|i| numbers(sizes[i], i as u32));
        let types = [c.activations, c.weights, c.activations];
        let on = [0, 1, 2].map(|i| buffer(&context, &encode(types[i], &xwy[i])));
        let target = match direction {
            Direction::Forward => 2,
            Direction::Data => 0,
            Direction::Weights => 1,
        };
        let mut wanted = vec![0.0; sizes[target]];
        products(&c, |x, w, y| match direction {
            Direction::Forward => wanted[y] += xwy[0][x] * xwy[1][w],
            Direction::Data => wanted[x] += xwy[2][y] * xwy[1][w],
            Direction::Weights => wanted[w] += xwy[0][x] * xwy[2][y],
        });
        for _ in 0..2 {
            context.dnn().unwrap().convolve(&c, [on[0].ptr(), on[1].ptr(), on[2].ptr()], None).unwrap();
            let got = context.download_all(&[(on[target].ptr(), on[target].len())]).unwrap();
            xwy[target] = decode(types[target], &got);
            assert_eq!(xwy[target], wanted, "{c:?}");
        }
        // The same again on top of it: attempts must not be counted, whatever is timed.
        let twice: Vec<f32> = wanted.iter().map(|v| v + v).collect();
        let more = Conv { accumulate: true, exact: false, ..c.clone() };
        let at = [on[0].ptr(), on[1].ptr(), on[2].ptr()];
        let done = context.dnn().unwrap().convolve(&more, at, None).unwrap();
        let got = context.download_all(&[(on[target].ptr(), on[target].len())]).unwrap();
        assert_eq!(decode(types[target], &got), if done { &twice } else { &wanted }[..], "{more:?}");
        let more = Conv { exact: true, ..more };
        assert!(context.dnn().unwrap().convolve(&more, at, None).unwrap());
        if direction == Direction::Forward {
            check_bias(&context, &c, at, &wanted);
        }
    }
}

/// With a bias, added in one go or, in words, not at all.
fn check_bias(context: &Context, c: &Conv, at: [DevicePtr; 3], plain: &[f32]) {
    let row: Vec<f32> = (0..c.k).map(|k| k as f32 * 0.5 - 1.0).collect();
    let mut refused = false;
    for exact in [true, false] {
        let c = Conv { bias: Some(Type::F32), exact, ..c.clone() };
        let bias = buffer(context, &encode(Type::F32, &row));
        let done = context.dnn().unwrap().convolve(&c, at, Some(bias.ptr())).unwrap();
        // The stand-in has none with groups; NVIDIA's library has.
        assert!(done || c.groups > 1 || !exact, "{c:?}");
        refused |= exact && !done;
        let bytes = plain.len() * c.activations.size();
        let got = decode(c.activations, &context.download_all(&[(at[2], bytes)]).unwrap());
        for (i, (got, plain)) in got.iter().zip(plain).enumerate().filter(|_| done) {
            assert_eq!(*got, plain + row[i % c.k], "{c:?}");
        }
    }
    let choices = context.dnn().unwrap().choices();
    let apart = |l: &String| l.contains("-bias-f32") && l.contains("-exact") && l.ends_with("= apart");
    assert_eq!(choices.iter().any(apart), refused);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn convolutions_of_one_two_and_three_axes() {
    check(&conv(&[[9, 3, 2, 1, 0, 1]], 2, 4, 8, 1));
    check(&conv(&[[6, 3, 1, 1, 1, 1], [7, 2, 2, 0, 1, 1]], 2, 4, 8, 1));
    check(&conv(&[[4, 2, 1, 0, 0, 1], [5, 3, 2, 1, 1, 1], [4, 1, 1, 0, 0, 1]], 2, 4, 4, 1));
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn convolutions_with_groups_and_dilation() {
    check(&conv(&[[8, 3, 1, 2, 2, 2], [8, 3, 1, 2, 2, 2]], 1, 8, 8, 2));
    check(&conv(&[[6, 3, 1, 1, 1, 1], [6, 3, 1, 1, 1, 1]], 2, 8, 8, 8));
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn convolutions_of_half_types() {
    for of in [Type::Bf16, Type::F16] {
        let c = conv(&[[6, 3, 1, 1, 1, 1], [6, 3, 1, 1, 1, 1]], 1, 8, 8, 1);
        check(&Conv { activations: of, weights: of, exact: false, ..c });
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_convolution_without_samples_has_a_gradient_of_zero() {
    let context = context();
    let b = buffer(&context, &[1; 64 * 4 + 4]);
    for direction in [Direction::Forward, Direction::Data, Direction::Weights] {
        let c = Conv { direction, ..conv(&[[2, 1, 1, 0, 0, 1]], 0, 8, 8, 1) };
        context.dnn().unwrap().convolve(&c, [b.ptr(); 3], None).unwrap();
    }
    let got = context.download_all(&[(b.ptr(), b.len())]).unwrap();
    assert!(got[..256].iter().all(|v| *v == 0) && got[256..] == [1; 4]);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_choice_can_be_named_and_pinned() {
    let context = context();
    let c = conv(&[[6, 3, 1, 1, 1, 1], [6, 3, 1, 1, 1, 1]], 1, 8, 8, 1);
    let [x, w, y] = [288, 576, 288].map(|n| buffer(&context, &vec![0; n * 4]));
    let run = |context: &Context| {
        let dnn = context.dnn().unwrap();
        dnn.convolve(&c, [x.ptr(), w.ptr(), y.ptr()], None).unwrap();
        dnn.choices()
    };
    let chosen = run(&context);
    assert_eq!(chosen.len(), 1);
    assert!(chosen[0].starts_with("forward-n1-c8-k8-g1-i6x6-w3x3"), "{chosen:?}");
    let other = Context::open(0).unwrap();
    other.dnn().unwrap().pin(&chosen, true).unwrap();
    assert_eq!(run(&other), chosen);
    let third = Context::open(0).unwrap();
    let unknown = vec![chosen[0].split(" = ").next().unwrap().to_string() + " = 987654"];
    third.dnn().unwrap().pin(&unknown, false).unwrap();
    assert_eq!(run(&third), chosen, "a choice that is not offered is passed over");
    assert!(third.dnn().unwrap().pin(&[String::from("nonsense")], false).is_err());
    let fourth = Context::open(0).unwrap();
    let dnn = fourth.dnn().unwrap();
    dnn.pin(&unknown, true).unwrap();
    let e = dnn.convolve(&c, [x.ptr(), w.ptr(), y.ptr()], None).unwrap_err().to_string();
    assert!(e.contains("987654") && e.contains("forward-n1-c8") && e.contains("chosen anew"), "{e}");
}

/// With one engine that takes a second: the other one is chosen, and the slow one ran once, whichever comes first.
fn check_slow(name: &str, slow: &str, good: &str) {
    if !stand_ins() || !with_settings(name, &[("PHALANX_STANDIN_DNN_SLOW", &format!("{slow}:1000"))]) {
        return;
    }
    let context = context();
    let c = conv(&[[6, 3, 1, 1, 1, 1], [6, 3, 1, 1, 1, 1]], 1, 8, 8, 1);
    let c = Conv { activations: Type::Bf16, weights: Type::Bf16, exact: false, ..c };
    let [x, w, y] = [288, 576, 288].map(|n| buffer(&context, &vec![0; n * 2]));
    let dnn = context.dnn().unwrap();
    let began = Instant::now();
    dnn.convolve(&c, [x.ptr(), w.ptr(), y.ptr()], None).unwrap();
    context.synchronize().unwrap();
    let took = began.elapsed();
    let choices = dnn.choices();
    assert!(choices.len() == 1 && choices[0].ends_with(&format!(" = {good}")), "{choices:?}");
    let once = Duration::from_secs(1)..Duration::from_secs(2);
    assert!(once.contains(&took), "{slow} took {took:?}");
}

#[test]
#[ignore = "needs the stand-ins"]
fn a_slow_plan_that_comes_first_is_given_up_after_one_run() {
    check_slow("convolution::a_slow_plan_that_comes_first_is_given_up_after_one_run", "11", "0");
}

#[test]
#[ignore = "needs the stand-ins"]
fn a_slow_plan_that_comes_last_is_given_up_after_one_run() {
    check_slow("convolution::a_slow_plan_that_comes_last_is_given_up_after_one_run", "0", "11");
}
