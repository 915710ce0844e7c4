use std::fmt;

use half::{bf16, f16};

/// The type of a tensor's, a batch field's or a collective's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE single precision: parameters, gradients and the default for activations.
    F32,
    /// IEEE double precision: gradient checks, metrics and norms.
    F64,
    /// Unsigned bytes: images, masks.
    U8,
    /// Signed 64-bit integers: labels, indices.
    I64,
    /// IEEE half precision, a storage type.
    F16,
    /// bfloat16, a storage type.
    BF16,
}

impl DType {
    /// Size of one element in bytes.
    pub const fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::F16 | DType::BF16 => 2,
            DType::F32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }

    /// The name used in files, configuration and messages.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::U8 => "u8",
            DType::I64 => "i64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
        }
    }

    /// The type of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        use DType::*;
        [F32, F64, U8, I64, F16, BF16].into_iter().find(|d| d.name() == name)
    }

    /// Whether values of this type have a gradient.
    pub const fn is_float(self) -> bool {
        !matches!(self, DType::U8 | DType::I64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A plain value that can be stored in host memory under a [`DType`].
pub trait Element: bytemuck::Pod + Send + Sync + fmt::Debug + PartialEq {
    /// The run-time name of this type.
    const DTYPE: DType;
}

macro_rules! element {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
element!(f32 => F32, f64 => F64, u8 => U8, i64 => I64, f16 => F16, bf16 => BF16);
