//! The named networks: tensors, parameters and multiply-adds as torchvision and the papers have them.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::device;
use phalanx_host::Arena;
use phalanx_host::rng::Key;
use phalanx_nn::{Builder, Forward, ModelConfig, Norms, Params, build, list_models, summarise};
use phalanx_tensor::Tensor;
use serde_json::Value;
use sha2::{Digest, Sha256};

fn made(config: &ModelConfig, input: [usize; 3], classes: usize) -> (Params, Norms, u64) {
    let mut b = Builder::new();
    build(config, input, classes, &mut b).unwrap();
    let multiply_adds = b.multiply_adds();
    let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
    (params, norms, multiply_adds)
}

/// Every tensor of a checkpoint has torchvision's name and shape, and as many multiply-adds are counted.
#[test]
fn networks_consist_of_torchvisions_tensors() {
    let path = format!("{}/../../tests/golden/zoo.json", env!("CARGO_MANIFEST_DIR"));
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for row in file["networks"].as_array().unwrap() {
        let name = row["name"].as_str().unwrap();
        let (params, norms, multiply_adds) = made(&ModelConfig::named(name), [224, 224, 3], 1000);
        let stored = params.ids().map(|id| (params.spec(id).name.clone(), params.stored_shape(id).to_vec()));
        let tensors: Vec<_> = stored.chain(norms.export().into_iter().map(|(n, s, _)| (n, s))).collect();
        let sizes = |s: &[usize]| s.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let mut lines: Vec<_> = tensors.iter().map(|(n, s)| format!("{n} [{}]\n", sizes(s))).collect();
        lines.sort();
        let elements: usize = tensors.iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        let count = |key: &str| row[key].as_u64().unwrap() as usize;
        assert_eq!(tensors.len(), count("tensors"), "{name}: {lines:?}");
        assert_eq!(elements, count("elements"), "{name}");
        assert_eq!(params.count(), count("parameters"), "{name}");
        let hash = Sha256::digest(lines.concat()).iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hash, row["sha256"], "{name}: {lines:?}");
        // torchvision counts the heads of GoogLeNet only where they are computed.
        if let Some(giga) = row["giga_multiply_adds"].as_f64() {
            let ours = multiply_adds as f64 / 1e9;
            assert!((ours - giga).abs() < 0.01 * giga + 5e-4, "{name}: {ours} G multiply-adds, not {giga}");
        }
    }
}

/// The figures that lectures give: multiply-adds in 10⁹, and twice as many floating-point operations.
#[test]
fn figures_are_those_of_the_lectures() {
    for (name, giga) in
        [("alexnet", 0.7), ("alexnet-2012", 0.72), ("vgg16", 15.5), ("resnet50", 4.1), ("resnet152", 11.3)]
    {
        let summary = summarise(&ModelConfig::named(name), None, None, 1).unwrap();
        assert_eq!((summary.input, summary.classes), ([224, 224, 3], 1000));
        let found = summary.multiply_adds as f64 / 1e9;
        assert!((found - giga).abs() < 0.025 * giga, "{name}: {found} G multiply-adds, not about {giga}");
        assert!((summary.gflop - 2.0 * found).abs() < 1e-9, "{name}: {} GFLOP", summary.gflop);
        let layers: u64 = summary.layers.iter().map(|l| l.multiply_adds).sum();
        assert_eq!(layers, summary.multiply_adds, "{name}");
    }
}

/// Every network takes images of any size and number of channels and gives any number of classes, in evaluation and in
/// training, where a gradient reaches every parameter.
#[test]
fn networks_take_images_of_any_kind() {
    let device = device();
    let names = serde_json::to_value(list_models().unwrap()).unwrap();
    for row in names.as_array().unwrap() {
        let name = row["name"].as_str().unwrap();
        let options: Vec<&str> =
            row["options"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let mut config = ModelConfig::named(name);
        // Layers of usual size would take most of the time and show nothing.
        if options.contains(&"hidden") {
            config.hidden = Some(vec![12, 11]);
        }
        if options.contains(&"depth") {
            config.depth = Some(if options.contains(&"width") { 10 } else { 8 });
        }
        if options.contains(&"width") {
            config.width = Some(2);
        }
        // Seven bands, as satellites have them.
        let [h, w] = if row["input"][0] == 224 { [67, 75] } else { [13, 18] };
        let sizes = [h, w, 7];
        let mut b = Builder::new();
        let model = build(&config, sizes, 5, &mut b).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
        params.initialise(1).unwrap();
        let images: Vec<f32> = (0..2 * h * w * 7).map(|i| ((i * 37 % 101) as f32) / 50.0 - 1.0).collect();
        let images = Tensor::from_slice(&images, [2, h, w, 7], &device).unwrap();

        let cx = Forward::new(&params, &norms, &device, false, 0..0, Key::new(0));
        let logits = model.forward(&cx, &images).unwrap();
        assert_eq!(logits.shape()[..], [2, 5], "{name}");
        assert!(logits.to_vec::<f32>().unwrap().iter().all(|x| x.is_finite()), "{name}");

        let cx = Forward::new(&params, &norms, &device, true, 0..params.len() as u32, Key::new(0));
        let logits = model.forward(&cx, &images).unwrap();
        let labels = Tensor::from_slice(&[4i64, 1], [2], &device).unwrap();
        let mut loss = logits.cross_entropy(&labels, None).unwrap();
        for (weight, logits) in cx.take_auxiliary() {
            assert_eq!(logits.shape()[..], [2, 5], "{name}");
            let part = logits.cross_entropy(&labels, None).unwrap().scale(weight).unwrap();
            loss = loss.add(&part).unwrap();
        }
        let gradients = loss.gradients().unwrap();
        for id in params.ids() {
            let (spec, gradient) = (params.spec(id), gradients.get(&cx.param(id)));
            let gradient = gradient.unwrap_or_else(|| panic!("{name}: {} has no gradient", spec.name));
            assert_eq!(gradient.shape(), spec.shape, "{name}: {}", spec.name);
        }
    }
}
