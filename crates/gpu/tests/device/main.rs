//! The crate on a device: a GPU, or with `PHALANX_CUDA_PATH` NVIDIA's stand-ins of `tests/cuda`, which run kernels on the
//! CPU. Ignored unless asked for; `tests/run` asks.
#![allow(clippy::unwrap_used, clippy::panic)]

mod collectives;
mod common;
mod convolution;
mod kernels;
mod memory;
mod product;
mod streams;
