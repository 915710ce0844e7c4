//! Tensors, their operations and their gradients.
//!
//! Shape, element type and device are run-time values: there is one [`Tensor`] type. Each operation is
//! defined once, in one folder of [`ops`]: its shape rule, its kernel for each device and its gradient
//! ([`Op`]). The executor ([`apply`]) checks, allocates, runs and records; [`Tensor::backward`] walks
//! back and lets gradients be written straight into memory that a [`LeafSink`] provides.
//!
//! Nothing here knows of ranks, files or layers.

mod device;
mod error;
mod half_storage;
mod op;
pub mod ops;
mod shape;
mod sink;
mod storage;
mod tape;
mod tensor;
mod transfer;
mod view;

pub use device::Device;
pub use error::{Error, Result};
pub use op::{CudaOp, Exec, Meta, Narrow, Op, Plan, Saved, Spec};
pub use ops::cuda::{RANDOM, sources as kernel_sources};
pub use ops::shape::cuda::gather_to;
pub use ops::{
    Attention, BatchNorm, Cell, Conv, Crops, CrossEntropy, FractionalPool, Fuse, GroupNorm, Interpolation,
    Normalisation, PadMode, PointLoss, Pool, Recurred, Recurrence, Resample, Triplet, concat, fold, stack,
    top_k_errors,
};
pub use phalanx_host::{DType, Element};
pub use shape::{Layout, MAX_AXES, Shape};
pub use sink::{GradSink, Gradients, LeafMemory, LeafSink, Slot};
pub use storage::{ArenaSlice, Block, Held, Memory, MemoryMut, Storage};
pub use tape::{apply, apply_one};
pub use tensor::{LeafId, Memento, Tensor};
pub use transfer::{Landing, Reading};
pub use view::{View, ViewMut};
