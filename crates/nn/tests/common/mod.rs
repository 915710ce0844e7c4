//! What the tests of this folder share: a device, and the golden files with the formulas of their
//! inputs (see `tests/golden/make.py`).

// Each test binary uses its own part of this.
#![allow(dead_code)]

use phalanx_host::{Cpu, Isa};
use phalanx_tensor::Device;
use serde_json::Value;

pub(crate) fn cpu(threads: usize) -> Cpu {
    Cpu::new(Isa::detect(), threads).unwrap()
}

pub(crate) fn device() -> Device {
    Device::cpu(cpu(2))
}

/// The cases of a golden file.
pub(crate) fn cases(family: &str) -> Vec<Value> {
    let path = format!("{}/../../tests/golden/{family}.json", env!("CARGO_MANIFEST_DIR"));
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    file["cases"].as_array().unwrap().clone()
}

pub(crate) fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Element `i` of input `k`.
pub(crate) fn value(k: usize, i: usize) -> f64 {
    0.8 * (0.7 * i as f64 * (k as f64 + 1.0) + 0.3 * k as f64).sin() + 0.1
}

/// Element `i` of the weights that make a scalar of a tensor.
pub(crate) fn weight(i: usize) -> f64 {
    (0.9 * i as f64).cos() + 0.2
}
