use phalanx_host::DType;

use crate::Shape;

/// What can go wrong with tensors; every variant names the operation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Two operands whose shapes do not go together.
    #[error("{op}: shapes {lhs} and {rhs} do not fit: {hint}")]
    Shapes {
        /// The operation.
        op: &'static str,
        /// The first operand's shape.
        lhs: Shape,
        /// The second operand's shape.
        rhs: Shape,
        /// The rule that was broken.
        hint: &'static str,
    },
    /// One operand whose shape (or an axis, a range, a parameter) is not possible.
    #[error("{op}: not possible on shape {shape}: {why}")]
    Invalid {
        /// The operation.
        op: &'static str,
        /// The operand's shape.
        shape: Shape,
        /// What is wrong.
        why: String,
    },
    /// An operand of the wrong type.
    #[error("{op}: operand {operand} is {got}, must be {want}")]
    DTypes {
        /// The operation.
        op: &'static str,
        /// Which operand, counted from 0.
        operand: usize,
        /// Its type.
        got: DType,
        /// What the operation takes.
        want: String,
    },
    /// An operation in double precision on the CPU, in a build without its kernels.
    #[error(
        "{op}: this build has no CPU kernels in double precision; build phalanx-tensor with the feature `double`"
    )]
    NoDouble {
        /// The operation.
        op: &'static str,
    },
    /// Operands on different devices.
    #[error("{op}: operands live on {lhs} and {rhs}; move one of them first")]
    Devices {
        /// The operation.
        op: &'static str,
        /// The first operand's device.
        lhs: String,
        /// The other operand's device.
        rhs: String,
    },
    /// The device cannot be used on this machine.
    #[error("device {device} is unavailable: {reason}")]
    DeviceUnavailable {
        /// The device's name.
        device: String,
        /// What was tried, and what to do.
        reason: String,
    },
    /// The operation has no second derivative as a graph.
    #[error("{op}: has no gradient of its gradient; build the penalty from ops that have one")]
    NoSecondOrder {
        /// The operation.
        op: &'static str,
    },
    /// A graph was walked twice.
    #[error("{op}: its saved tensors were released by an earlier backward pass; run the forward pass again")]
    GraphReleased {
        /// The operation.
        op: &'static str,
    },
    /// `backward` was called on something that depends on no leaf, or is no scalar.
    #[error("backward: {why}")]
    Backward {
        /// What is wrong.
        why: String,
    },
    /// An index read from data (a label, a gather index) lies outside its axis.
    #[error("{op}: index {index} at position {position} is outside 0..{limit}")]
    Index {
        /// The operation.
        op: &'static str,
        /// The offending value.
        index: i64,
        /// Where it was found.
        position: usize,
        /// The number of valid values.
        limit: usize,
    },
    /// The operation has no kernel for GPUs.
    #[error("{op}: has no CUDA kernel; use --device cpu")]
    NoCudaKernel {
        /// The operation.
        op: &'static str,
    },
    /// A kernel of one device was handed the memory of another: an error of this program.
    #[error("{op}: its operand is not in the memory of the {device}")]
    WrongMemory {
        /// The operation.
        op: &'static str,
        /// Where it must be.
        device: &'static str,
    },
    /// From the GPU's room.
    #[error(transparent)]
    Gpu(#[from] phalanx_gpu::Error),
    /// From the host room.
    #[error(transparent)]
    Host(#[from] phalanx_host::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
