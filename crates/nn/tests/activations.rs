//! Rows that are functions of each element: their names, options and defaults.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use common::device;
use phalanx_host::Arena;
use phalanx_host::rng::Key;
use phalanx_nn::{Builder, Forward, ModelConfig, Params, build};
use phalanx_tensor::{Result, Tensor};

type Function = fn(&Tensor) -> Result<Tensor>;

/// A model of rows applied to `x` [N, 2, 1, 3], all parameters trainable.
fn run(rows: &str, x: &Tensor, then: impl FnOnce(&Params, &Forward, Tensor)) {
    let text = format!("layers = [{{ type = \"flatten\" }}, {rows}]");
    let config: ModelConfig = toml::from_str(&text).unwrap();
    let mut b = Builder::new();
    let layer = build(&config, [2, 1, 3], 6, &mut b).unwrap();
    let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
    params.initialise(1).unwrap();
    let cx = Forward::new(&params, &norms, x.device(), true, 0..params.len() as u32, Key::new(1));
    let y = layer.forward(&cx, x).unwrap();
    then(&params, &cx, y);
}

fn images() -> Tensor {
    let x: Vec<f32> = (0..24).map(|i| 5.0 * common::value(0, i) as f32).collect();
    Tensor::from_slice(&x, [4, 2, 1, 3], &device()).unwrap()
}

#[test]
fn every_row_is_its_function_with_pytorchs_defaults() {
    let cases: [(&str, Function); 31] = [
        ("type = \"relu\"", |x| x.relu()),
        ("type = \"sigmoid\"", |x| x.sigmoid()),
        ("type = \"tanh\"", |x| x.tanh()),
        ("type = \"relu6\"", |x| x.relu6()),
        ("type = \"leaky-relu\"", |x| x.leaky_relu(0.01)),
        ("type = \"leaky-relu\", slope = 0.2", |x| x.leaky_relu(0.2)),
        ("type = \"elu\"", |x| x.elu(1.0)),
        ("type = \"elu\", alpha = 0.5", |x| x.elu(0.5)),
        ("type = \"selu\"", |x| x.selu()),
        ("type = \"celu\"", |x| x.celu(1.0)),
        ("type = \"celu\", alpha = 2", |x| x.celu(2.0)),
        ("type = \"gelu\"", |x| x.gelu()),
        ("type = \"gelu\", approximate = \"tanh\"", |x| x.gelu_tanh()),
        ("type = \"silu\"", |x| x.silu()),
        ("type = \"mish\"", |x| x.mish()),
        ("type = \"softplus\"", |x| x.softplus(1.0, 20.0)),
        ("type = \"softplus\", beta = 2.0, threshold = 3", |x| x.softplus(2.0, 3.0)),
        ("type = \"softsign\"", |x| x.softsign()),
        ("type = \"gaussian\"", |x| x.gaussian()),
        ("type = \"hard-sigmoid\"", |x| x.hard_sigmoid()),
        ("type = \"hard-swish\"", |x| x.hard_swish()),
        ("type = \"hard-tanh\"", |x| x.hard_tanh(-1.0, 1.0)),
        ("type = \"hard-tanh\", min = -2, max = 3", |x| x.hard_tanh(-2.0, 3.0)),
        ("type = \"log-sigmoid\"", |x| x.log_sigmoid()),
        ("type = \"tanh-shrink\"", |x| x.tanh_shrink()),
        ("type = \"hard-shrink\"", |x| x.hard_shrink(0.5)),
        ("type = \"hard-shrink\", lambda = 1", |x| x.hard_shrink(1.0)),
        ("type = \"soft-shrink\"", |x| x.soft_shrink(0.5)),
        ("type = \"soft-shrink\", lambda = 1", |x| x.soft_shrink(1.0)),
        ("type = \"threshold\", threshold = 0.1, value = -2", |x| x.threshold(0.1, -2.0)),
        ("type = \"prelu\"", |x| x.leaky_relu(0.25)),
    ];
    let x = images();
    for (row, function) in cases {
        let flat = x.permute(&[0, 3, 1, 2]).unwrap().reshape(&[4, 6]).unwrap();
        let want = function(&flat).unwrap().to_vec::<f32>().unwrap();
        run(&format!("{{ {row} }}"), &x, |_, _, y| assert_eq!(y.to_vec::<f32>().unwrap(), want, "{row}"));
    }
}

#[test]
fn prelu_learns_a_slope_or_one_for_each_channel() {
    let x = images();
    for (options, slopes) in [("", 1), (", per_channel = true, init = 0.5", 6)] {
        run(&format!("{{ type = \"prelu\"{options} }}"), &x, |params, cx, y| {
            let id = params.find("layers.1.weight").unwrap();
            assert_eq!((params.count(), params.spec(id).decay), (slopes, false));
            let gradients = y.sum_all().unwrap().gradients().unwrap();
            let got = gradients.get(&cx.param(id)).unwrap().to_vec::<f32>().unwrap();
            // The slope of a slope is the sum of what is below 0.
            let below = x.permute(&[0, 3, 1, 2]).unwrap().reshape(&[4, 6]).unwrap();
            let below = below.clamp(None, Some(0.0)).unwrap();
            let axes: &[usize] = if slopes == 1 { &[0, 1] } else { &[0] };
            let want = below.sum(axes, false).unwrap().to_vec::<f32>().unwrap();
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4), "{got:?} {want:?}");
        });
    }
}

#[test]
fn named_models_take_a_function_by_its_name() {
    let config: ModelConfig =
        toml::from_str("name = \"mlp\"\nhidden = [5]\nactivation = \"leaky-relu\"").unwrap();
    config.check().unwrap();
    let mut b = Builder::new();
    build(&config, [4, 4, 1], 3, &mut b).unwrap();
    for name in ["cosine", "flatten", "threshold"] {
        let text = format!("name = \"lenet5\"\nactivation = \"{name}\"");
        let e = toml::from_str::<ModelConfig>(&text).unwrap().check().unwrap_err();
        assert!(e.is_usage() && e.to_string().contains(name), "{e}");
    }
}

#[test]
fn options_that_make_no_sense_are_refused_with_their_layer() {
    for (row, say) in [
        ("type = \"celu\", alpha = 0", "alpha is 0"),
        ("type = \"softplus\", beta = 0", "beta is 0"),
        ("type = \"hard-tanh\", min = 2", "min 2 is larger than max 1"),
        ("type = \"soft-shrink\", lambda = -1", "must not be negative"),
    ] {
        let config: ModelConfig = toml::from_str(&format!("layers = [{{ {row} }}]")).unwrap();
        let e = build(&config, [2, 2, 1], 3, &mut Builder::new()).unwrap_err();
        assert!(e.is_usage() && e.to_string().contains(say) && e.to_string().contains("layers.0"), "{e}");
    }
    let slip = toml::from_str::<ModelConfig>("layers = [{ type = \"leaky-relu\", slop = 1 }]").unwrap_err();
    assert!(slip.to_string().contains("slop"), "{slip}");
}
