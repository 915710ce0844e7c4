//! What a CPU rank stands on: host memory, the instruction set, vector units, compute threads and
//! counter-based random numbers.
//!
//! `host` is the CPU's sibling of `gpu`: `tensor`, `comm` and `data` build on it and never on each
//! other. It exists because gradients are written by `tensor` straight into memory that `comm`
//! reduces in place: the [`Arena`] that both share must belong to neither of them.
//!
//! Nothing here knows tensors, ranks or files.

mod arena;
mod conv;
mod cpu;
mod element;
mod error;
mod gemm;
mod isa;
mod pool;
pub mod rng;
pub mod simd;
mod workers;

pub use arena::{Arena, ArenaMut, ArenaRef};
pub use conv::{ConvShape, conv_forward, conv_input_gradient, conv_weight_gradient};
pub use cpu::Cpu;
pub use element::{DType, Element};
pub use error::{Error, Result};
pub use gemm::{Gemm, Mat, MatMut, Packed, gemm, gemm_bias, gemm_packed};
pub use isa::Isa;
pub use pool::{Buffer, Foreign, ForeignMemory, Pool, PoolStats};
pub use workers::Workers;

/// Alignment in bytes of every arena, every pooled buffer and every parameter's start inside an
/// arena: one cache line, one AVX-512 register.
pub const ALIGN: usize = 64;
