//! The crate on a device: NVIDIA's stand-ins of `tests/cuda`, which run kernels on the CPU, or what is installed when
//! `PHALANX_TEST_GPU=1`. Without a C++ compiler and without `PHALANX_CUDA_PATH` these tests pass without a check.
#![allow(clippy::unwrap_used, clippy::panic)]

mod collectives;
mod common;
mod convolution;
mod kernels;
mod memory;
mod product;
mod streams;
