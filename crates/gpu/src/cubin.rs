use crate::{Error, Result};

/// What a kernel takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelResources {
    /// The kernel.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack frame in local memory.
    pub stack: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
}

/// Reads what each kernel of a cubin takes.
pub fn resources(_cubin: &[u8]) -> Result<Vec<KernelResources>> {
    Err(Error::Cubin { what: "not written" })
}
