//! The GPU's side of the house: contexts, streams, memory, kernels and NVIDIA's libraries.
//!
//! Nothing is linked: libraries are looked for when they are used (`library.rs`), and only a driver is needed to
//! open a [`Context`]. Kernels are CUDA C++ in the program's text, compiled on the user's machine by NVRTC and kept
//! in a cache. All computation is on one stream, so memory that is given back can be handed out at once.

mod args;
mod blas;
mod cache;
mod compile;
mod context;
mod cubin;
mod device;
mod dnn;
mod error;
mod fallback;
mod faults;
mod ffi;
mod gemm;
mod geometry;
mod graph;
mod input;
mod launch;
mod library;
mod memory;
mod nccl;
mod pinned;
mod profile;
mod recording;
mod stream;
mod transfer;
mod versions;

pub use args::Args;
pub use blas::Blas;
pub use compile::{PRELUDE, Source, check_compiler, compile};
pub use context::{Context, Timer};
pub use cubin::{KernelResources, resources};
pub use device::DeviceInfo;
pub use dnn::{Conv, Direction, Dnn};
pub use error::{Error, Result};
pub use faults::{Fault, Faults};
pub use gemm::{Gemm, Math, Type};
pub use geometry::{Grid, THREADS};
pub use graph::{Capture, GRAPH_KERNELS, Graph, GraphMemory, InUse};
pub use input::Source as InputSource;
pub use memory::{Buffer, DevicePtr, MemoryStats};
pub use nccl::{Nccl, NcclId};
pub use pinned::Pinned;
pub use profile::Spent;
pub use recording::{Trace, Varying};
pub use stream::{Event, Stream};
pub use transfer::Download;
pub use versions::versions;
