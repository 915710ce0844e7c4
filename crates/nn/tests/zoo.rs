//! The named networks: tensors, parameters and multiply-adds as torchvision and the papers have them.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use phalanx_host::Arena;
use phalanx_nn::{Builder, ModelConfig, Norms, Params, build};
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
