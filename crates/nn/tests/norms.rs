//! Norms of each sample by itself as layers: their names and layouts in a checkpoint, and numbers of PyTorch 2.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{device, value};
use phalanx_host::Arena;
use phalanx_host::rng::Key;
use phalanx_nn::{Builder, Forward, Layer, ModelConfig, NormValues, Norms, Params, build};
use phalanx_tensor::{Device, Tensor};

struct Net {
    layer: Box<dyn Layer>,
    params: Params,
    norms: Norms,
    device: Device,
}

/// A model of one row over images [2, 3, 2].
fn net(row: &str) -> Net {
    let config: ModelConfig = toml::from_str(&format!("layers = [{row}, {{ type = \"flatten\" }}]")).unwrap();
    let mut b = Builder::new();
    let layer = build(&config, [2, 3, 2], 12, &mut b).unwrap();
    let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
    params.initialise(1).unwrap();
    Net { layer, params, norms, device: device() }
}

/// The first `n` elements of input `k`.
fn values(k: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| value(k, i) as f32).collect()
}

impl Net {
    fn set(&self, name: &str, shape: &[usize], values: &[f32]) {
        let id = self.params.find(name).unwrap();
        assert_eq!(self.params.stored_shape(id)[..], *shape, "{name}");
        self.params.import(id, shape, values).unwrap();
    }

    fn input(&self, k: usize) -> Tensor {
        Tensor::from_slice(&values(k, 24), [2, 2, 3, 2], &self.device).unwrap()
    }

    fn forward(&self, training: bool, x: &Tensor) -> (Tensor, Forward<'_>) {
        let all = 0..self.params.len() as u32;
        let cx = Forward::new(&self.params, &self.norms, &self.device, training, all, Key::new(0));
        (self.layer.forward(&cx, x).unwrap(), cx)
    }

    /// The first numbers, channels last.
    fn starts(&self, training: bool, want: [f32; 6]) {
        let y = self
            .forward(training, &self.input(0))
            .0
            .reshape(&[2, 2, 2, 3])
            .unwrap()
            .permute(&[0, 2, 3, 1])
            .unwrap();
        let got = y.to_vec::<f32>().unwrap();
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 2e-5), "{:?}, not {want:?}", &got[..6]);
    }
}

#[test]
fn values_are_those_of_pytorch() {
    let whole = net("{ type = \"layer-norm\", axes = 3 }");
    whole.set("layers.0.weight", &[2, 2, 3], &values(2, 12));
    whole.set("layers.0.bias", &[2, 2, 3], &values(3, 12));
    whole.starts(true, [0.61605, -0.20747, 0.22103, 1.33792, 0.07219, -0.17935]);
    let group = net("{ type = \"group-norm\", groups = 1 }");
    group.set("layers.0.weight", &[2], &[1.0; 2]);
    group.starts(false, [-0.20048, 0.73667, 1.23307, 1.05525, 0.28683, -0.71077]);
    let rms = net("{ type = \"rms-norm\" }");
    rms.set("layers.0.weight", &[2], &[1.0; 2]);
    rms.starts(true, [0.22684, 1.3959, 1.05646, 0.94016, 1.26953, -0.62314]);
    for row in ["layer-norm", "rms-norm"] {
        let none = net(&format!("{{ type = \"{row}\", affine = false }}"));
        assert!(none.params.is_empty() && none.norms.statistics_len() == 0, "{row}");
    }
}

#[test]
fn instance_norms_follow_each_sample_and_fold_their_means_as_pytorch_does() {
    let mut net = net("{ type = \"instance-norm\", affine = true, track_running_stats = true }");
    net.set("layers.0.weight", &[2], &[1.5, 0.5]);
    net.set("layers.0.bias", &[2], &[0.25, -1.0]);
    net.starts(true, [0.07099, -0.68309, 2.30126, -0.52808, 0.82913, -1.38743]);
    for k in 0..2 {
        // One sample a shard.
        let mut sums = vec![0.0; net.norms.statistics_len()];
        for shard in 0..2 {
            let records = net.forward(true, &net.input(k).slice(0, shard, 1).unwrap()).1.take_statistics();
            net.norms.contribution(&records, &mut sums).unwrap();
        }
        net.norms.fold(&sums).unwrap();
    }
    let stored = net.norms.export();
    let names: Vec<&str> = stored.iter().map(|s| s.0.as_str()).collect();
    assert_eq!(names, ["layers.0.running_mean", "layers.0.running_var", "layers.0.num_batches_tracked"]);
    for ((_, _, got), want) in stored.iter().zip([[0.026_817, 0.031_711], [0.870_618, 0.887_29]]) {
        let NormValues::Float(got) = got else { panic!("{got:?}") };
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 2e-6), "{got:?}, not {want:?}");
    }
    net.starts(false, [0.36765, -0.69019, 1.63501, -0.5972, 0.79847, -1.11271]);
}

#[test]
fn wrong_norms_name_the_layer() {
    for (row, say) in [
        ("{ type = \"layer-norm\", axes = 4 }", "layers.0 (layer-norm) cannot take [2,3,2]: axes is 4"),
        ("{ type = \"rms-norm\", axes = 0 }", "axes is 0"),
        ("{ type = \"group-norm\", groups = 3 }", "2 channels cannot be cut into 3 groups"),
        ("{ type = \"group-norm\", groups = 2, eps = -1 }", "eps is -1"),
        ("{ type = \"instance-norm\", momentum = 2 }", "momentum is 2"),
        ("{ type = \"flatten\" }, { type = \"instance-norm\" }", "a single value"),
    ] {
        let config: ModelConfig = toml::from_str(&format!("layers = [{row}]")).unwrap();
        let e = build(&config, [2, 3, 2], 12, &mut Builder::new()).unwrap_err();
        assert!(e.to_string().contains(say) && e.is_usage(), "{row}: {e}");
    }
}
