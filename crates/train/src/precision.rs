//! The types that activations can have.

use phalanx_host::DType;
use serde::{Deserialize, Serialize};

/// The types that activations can have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Single precision whose matrix products and convolutions read 10 bits of each mantissa; on GPUs only.
    Tf32,
    /// The upper half of a single-precision number; on GPUs only.
    Bf16,
    /// Half precision, with losses scaled as gradients need it; on GPUs only.
    Fp16,
}

impl Precision {
    /// As a configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
            Precision::Fp16 => "fp16",
        }
    }

    /// The type that a network's inputs are cast to, where it is a half.
    pub fn activations(self) -> Option<DType> {
        match self {
            Precision::F32 | Precision::Tf32 => None,
            Precision::Bf16 => Some(DType::BF16),
            Precision::Fp16 => Some(DType::F16),
        }
    }

    /// The bytes that `bytes` of single-precision activations take.
    pub(crate) fn of_activations(self, bytes: u64) -> u64 {
        if self.activations().is_some() { bytes.div_ceil(2) } else { bytes }
    }
}
