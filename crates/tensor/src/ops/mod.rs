//! The op table: one folder a family, each with its shape rules and gradients (`mod.rs`), its CPU
//! kernels (`cpu.rs`) and, on machines that have one, its CUDA kernels.

pub mod elementwise;
pub mod reduce;
pub mod shape;
mod walk;

/// Runs `$body` with the type alias `$t` for the compute type that `$dtype` names; other types are an
/// error of operand 0 of `$op`.
macro_rules! real {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            phalanx_host::DType::F32 => {
                type $t = f32;
                $body
            }
            phalanx_host::DType::F64 => {
                type $t = f64;
                $body
            }
            got => Err($crate::Error::DTypes { op: $op, operand: 0, got, want: "f32 or f64".to_owned() }),
        }
    };
}
pub(crate) use real;

use crate::op::Meta;
use crate::{Error, Result};

/// Checks that operand `i` is of a compute type.
pub(crate) fn want_real(op: &'static str, inputs: &[Meta], i: usize) -> Result<()> {
    match inputs[i].dtype {
        phalanx_host::DType::F32 | phalanx_host::DType::F64 => Ok(()),
        got => Err(Error::DTypes { op, operand: i, got, want: "f32 or f64".to_owned() }),
    }
}

/// Checks that operand `i` has the type of operand 0.
pub(crate) fn want_same(op: &'static str, inputs: &[Meta], i: usize) -> Result<()> {
    match inputs[i].dtype {
        got if got == inputs[0].dtype => Ok(()),
        got => {
            Err(Error::DTypes { op, operand: i, got, want: format!("{} like operand 0", inputs[0].dtype) })
        }
    }
}
