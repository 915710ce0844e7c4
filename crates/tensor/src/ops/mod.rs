//! The op table: one folder a family, each with its shape rules and gradients (`mod.rs`), its CPU
//! kernels (`cpu.rs`) and, on machines that have one, its CUDA kernels.

mod attention;
mod boxes;
mod cast;
mod columns;
mod conv;
pub(crate) mod cuda;
mod dropout;
pub mod elementwise;
mod images;
mod index;
mod loss;
mod matmul;
mod moves;
mod norm;
mod pool;
mod recurrent;
pub mod reduce;
mod resample;
mod response;
pub mod shape;
mod tasks;
mod walk;

pub use attention::Attention;
pub use conv::Conv;
pub(crate) use elementwise::stretch;
pub use images::{Crops, Normalisation};
pub use index::{concat, stack};
pub use loss::{CrossEntropy, PointLoss, Triplet, top_k_errors};
pub use moves::{PadMode, fold};
pub use norm::{BatchNorm, Fuse, GroupNorm};
pub use pool::{FractionalPool, Pool};
pub use recurrent::{Cell, Recurred, Recurrence};
pub use resample::{Interpolation, Resample};

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

use phalanx_host::DType;

use crate::op::Meta;
use crate::{Error, Result, Shape, Tensor};

/// Checks that the first operand of an op that is made of others is a float, so that the message names it.
pub(crate) fn want_float(op: &'static str, x: &Tensor) -> Result<()> {
    match x.dtype() {
        d if d.is_float() => Ok(()),
        got => Err(Error::DTypes { op, operand: 0, got, want: "a float".to_owned() }),
    }
}

/// Checks that operand `i` is of a compute type.
pub(crate) fn want_real(op: &'static str, inputs: &[Meta], i: usize) -> Result<()> {
    match inputs[i].dtype {
        DType::F32 | DType::F64 => Ok(()),
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

/// Checks that operand `i` holds indices.
pub(crate) fn want_indices(op: &'static str, inputs: &[Meta], i: usize) -> Result<()> {
    match inputs[i].dtype {
        DType::I64 => Ok(()),
        got => Err(Error::DTypes { op, operand: i, got, want: "i64 (indices)".to_owned() }),
    }
}

/// Checks that operand `i` is a mask.
pub(crate) fn want_mask(op: &'static str, inputs: &[Meta], i: usize) -> Result<()> {
    match inputs[i].dtype {
        DType::U8 => Ok(()),
        got => Err(Error::DTypes { op, operand: i, got, want: "u8 (a mask)".to_owned() }),
    }
}

/// Checks that operand `i` has exactly the shape `want`.
pub(crate) fn want_shape(
    op: &'static str,
    inputs: &[Meta],
    i: usize,
    want: Shape,
    hint: &'static str,
) -> Result<()> {
    match inputs[i].shape() {
        got if got == want => Ok(()),
        got => Err(Error::Shapes { op, lhs: inputs[0].shape(), rhs: got, hint }),
    }
}

/// Checks that operand 0 has `axes` axes, named as in `names`.
pub(crate) fn want_axes(op: &'static str, inputs: &[Meta], axes: usize, names: &str) -> Result<()> {
    let shape = inputs[0].shape();
    match shape.len() {
        n if n == axes => Ok(()),
        n => Err(Error::Invalid { op, shape, why: format!("it has {n} axes, not the {axes} of {names}") }),
    }
}

/// Checks that operand 0 has an axis `axis` and gives its size.
pub(crate) fn want_axis(op: &'static str, shape: Shape, axis: usize) -> Result<usize> {
    let why = || format!("there is no axis {axis}");
    shape.get(axis).copied().ok_or_else(|| Error::Invalid { op, shape, why: why() })
}
