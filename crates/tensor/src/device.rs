use std::fmt;
use std::sync::Arc;

use phalanx_host::Cpu;

use crate::{Error, Result};

/// Where a tensor lives and is computed: a value, not a type parameter. Cloning it clones a reference.
#[derive(Clone)]
pub enum Device {
    /// One rank's CPU cores: its instruction set, compute threads and caching allocator.
    Cpu(Arc<Cpu>),
    /// One rank's GPU.
    Cuda(phalanx_gpu::Context),
}

impl Device {
    /// A CPU device.
    pub fn cpu(cpu: Cpu) -> Self {
        Device::Cpu(Arc::new(cpu))
    }

    /// GPU `ordinal`; [`Error::DeviceUnavailable`] says what was tried when there is none.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        phalanx_gpu::Context::open(ordinal).map(Device::Cuda).map_err(|e| Error::DeviceUnavailable {
            device: format!("cuda:{ordinal}"),
            reason: e.to_string(),
        })
    }

    /// Fails with the first [`Error::Index`] that a kernel on this GPU has met since the last such error: an index read
    /// from data that lies outside its axis. The CPU's ops fail themselves; a GPU's go on, with results that are not
    /// numbers, until somebody waits for results. Reading a tensor asks, too; who waits in another way asks here.
    pub fn check(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(gpu) => crate::ops::cuda::faults::check(gpu),
        }
    }

    /// The GPU, where it is one.
    pub fn gpu(&self) -> Option<&phalanx_gpu::Context> {
        match self {
            Device::Cpu(_) => None,
            Device::Cuda(gpu) => Some(gpu),
        }
    }

    /// `"cpu"` or `"cuda"`.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu(_) => "cpu",
            Device::Cuda(_) => "cuda",
        }
    }

    /// Whether both are the same device of the same rank.
    pub fn same(&self, other: &Device) -> bool {
        match (self, other) {
            (Device::Cpu(a), Device::Cpu(b)) => Arc::ptr_eq(a, b),
            (Device::Cuda(a), Device::Cuda(b)) => a == b,
            _ => false,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
