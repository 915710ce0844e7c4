//! Layers that pad, resize, shuffle and disturb: shapes, what a context changes, and refusals.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::device;
use phalanx_host::Arena;
use phalanx_host::rng::Key;
use phalanx_nn::{Builder, Error, Forward, ModelConfig, build};
use phalanx_tensor::{DType, Interpolation, PadMode, Resample, Tensor};

/// Rows over samples [6, 4, 8], and then a flatten: what a batch of two becomes.
fn run(rows: &str, training: bool, key: u64) -> Result<(Tensor, Tensor), Error> {
    let text = format!("layers = [{rows}, {{ type = \"flatten\" }}, {{ type = \"linear\" }}]");
    let config: ModelConfig = toml::from_str(&text).unwrap();
    let mut b = Builder::new();
    build(&config, [6, 4, 8], 3, &mut b)?;
    // The same rows without a head.
    let config: ModelConfig =
        toml::from_str(&format!("layers = [{rows}, {{ type = \"flatten\" }}]")).unwrap();
    let flat = b.description().iter().find(|d| d.kind == "flatten").unwrap().output.numel();
    let mut b = Builder::new();
    let layer = build(&config, [6, 4, 8], flat, &mut b)?;
    let (params, norms) = b.finish(&mut Arena::zeroed)?;
    let device = device();
    let cx = Forward::new(&params, &norms, &device, training, 0..0, Key::new(key));
    let x: Vec<f32> = (0..2 * 6 * 4 * 8).map(|i| common::value(0, i) as f32).collect();
    let x = Tensor::from_slice(&x, [2, 6, 4, 8], &device)?;
    Ok((x.clone(), layer.forward(&cx, &x)?))
}

fn numbers(t: &Tensor) -> Vec<f32> {
    t.to_vec().unwrap()
}

/// The op's result as the flatten gives it.
fn flat(t: Tensor) -> Vec<f32> {
    numbers(&t.permute(&[0, 3, 1, 2]).unwrap())
}

#[test]
fn rows_compute_what_their_ops_compute() {
    let of = |rows: &str| run(rows, false, 1).unwrap();
    let (x, y) = of("{ type = \"pad\", amounts = 1 }");
    assert_eq!(numbers(&y), flat(x.pad(1, &[[1, 1], [1, 1]], PadMode::Constant(0.0)).unwrap()));
    let (x, y) = of("{ type = \"pad\", amounts = [[1, 2], 0], mode = \"reflect\" }");
    assert_eq!(numbers(&y), flat(x.pad(1, &[[1, 2], [0, 0]], PadMode::Reflect).unwrap()));
    let (x, y) = of("{ type = \"pad\", amounts = [-1, [0, 2]], value = 0.5 }");
    assert_eq!(numbers(&y), flat(x.pad(1, &[[-1, -1], [0, 2]], PadMode::Constant(0.5)).unwrap()));
    let (x, y) = of("{ type = \"upsample\", scale = 2 }");
    assert_eq!(numbers(&y), flat(x.interpolate(&Resample::by(Interpolation::Nearest, &[2.0; 2])).unwrap()));
    let (x, y) = of("{ type = \"upsample\", size = [3, 9], mode = \"linear\", align_corners = true }");
    let how = Resample::to_size(Interpolation::Linear, &[3, 9]).align_corners(true);
    assert_eq!(numbers(&y), flat(x.interpolate(&how).unwrap()));
    let (x, y) = of("{ type = \"pixel-shuffle\", factor = 2 }, { type = \"pixel-unshuffle\", factor = 2 }");
    assert_eq!(numbers(&y), flat(x));
    // In evaluation fractional windows lie in the same way for all.
    let (x, y) = of("{ type = \"fractional-max-pool\", kernel = 2, ratio = 0.7 }");
    assert_eq!(y.shape()[..], [2, 4 * 2 * 8]);
    let samples = Tensor::full(0.5f32, [2, 8, 2], x.device()).unwrap();
    let pool = phalanx_tensor::FractionalPool::new(&[2, 2], &[4, 2]);
    assert_eq!(numbers(&y), flat(x.fractional_max_pool(&pool, &samples).unwrap().0));
}

#[test]
fn disturbances_belong_to_the_key_and_to_training() {
    for row in [
        "{ type = \"dropout\", p = 0.4 }",
        "{ type = \"channel-dropout\", p = 0.4 }",
        "{ type = \"alpha-dropout\", p = 0.4 }",
        "{ type = \"gaussian-noise\", std = 0.4 }",
        "{ type = \"fractional-max-pool\", kernel = 2, out = [4, 3] }",
    ] {
        let of = |training, key| numbers(&run(row, training, key).unwrap().1);
        assert_eq!(of(true, 1), of(true, 1), "{row}");
        assert_ne!(of(true, 1), of(true, 2), "{row}");
        assert_ne!(of(true, 1), of(false, 1), "{row}");
        assert_eq!(of(false, 1), of(false, 2), "{row}");
    }
    let (x, y) = run("{ type = \"channel-dropout\", p = 0.5 }", true, 3).unwrap();
    let dropped = numbers(&y).chunks(24).filter(|plane| plane.iter().all(|&v| v == 0.0)).count();
    let kept = numbers(&y).chunks(24).filter(|plane| plane.iter().all(|&v| v != 0.0)).count();
    assert!(dropped > 0 && kept > 0 && dropped + kept == 16, "{dropped} {kept}");
    // Halves and doubles, too.
    for dtype in [DType::BF16, DType::F64] {
        let noisy = x.to(dtype).unwrap().gaussian_noise(0.1, Key::new(1)).unwrap();
        assert_eq!(noisy.dtype(), dtype);
    }
}

#[test]
fn rows_that_do_not_fit_are_refused_with_their_place() {
    for (row, say) in [
        ("{ type = \"pad\", amounts = [1] }", "layers.0 (pad) cannot take [6,4,8]"),
        ("{ type = \"pad\", amounts = 4, mode = \"reflect\" }", "reaches further"),
        ("{ type = \"pad\", amounts = -3 }", "less than nothing"),
        ("{ type = \"upsample\" }", "one of size and scale"),
        ("{ type = \"upsample\", size = 2, scale = 2 }", "one of size and scale"),
        ("{ type = \"upsample\", size = [2, 2, 2] }", "layers.0 (upsample) cannot take [6,4,8]"),
        ("{ type = \"upsample\", scale = 0.01 }", "cannot become 0"),
        ("{ type = \"upsample\", scale = 2, antialias = true }", "linear and cubic"),
        ("{ type = \"pixel-shuffle\", factor = 3 }", "multiple of its factor 3 squared"),
        ("{ type = \"pixel-unshuffle\", factor = 4 }", "height and width"),
        ("{ type = \"flatten\" }, { type = \"pad\", amounts = 1 }", "layers.1 (pad) cannot take [192]"),
        ("{ type = \"fractional-max-pool\", kernel = 2 }", "one of out and ratio"),
        ("{ type = \"fractional-max-pool\", kernel = 2, ratio = 1.0 }", "cannot be cut into 6 windows of 2"),
        ("{ type = \"fractional-max-pool\", kernel = 2, out = [6, 3] }", "cannot be cut into 6 windows of 2"),
        ("{ type = \"channel-dropout\", p = 2.0 }", "probability"),
        ("{ type = \"gaussian-noise\", std = -1.0 }", "standard deviation"),
    ] {
        let e = run(row, false, 0).err().unwrap();
        assert!(e.to_string().contains(say) && e.is_usage(), "{row}: {e}");
    }
}
