use crate::{Context, DevicePtr, Pinned, Result};

/// What a kernel found wrong in data, which it can tell nobody while it runs: it writes a record to memory of the host,
/// and who waits for its results looks there. Nothing is copied and nobody waits for it; the first record stays until
/// it is taken.
#[derive(Debug)]
pub struct Faults(Pinned);

/// A record, as `report` in the prelude writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The number that the kernel was told for its op, above 0.
    pub op: i64,
    /// The number of values that an index may have.
    pub limit: i64,
    /// Where the index was found.
    pub position: i64,
    /// The index.
    pub index: i64,
}

impl Faults {
    pub(crate) fn new(mut memory: Pinned) -> Self {
        memory.fill(0);
        Faults(memory)
    }

    /// Where kernels write. Pinned memory has one address on all sides.
    pub fn ptr(&self) -> DevicePtr {
        DevicePtr(self.0.address() as u64)
    }

    /// The record of a kernel that has been waited for; there is none from then on.
    pub fn take(&self) -> Option<Fault> {
        let words = self.0.address().cast::<i64>();
        // SAFETY: the block has room for four numbers. A kernel may write while they are read, hence volatile.
        let [op, limit, position, index] = std::array::from_fn(|i| unsafe { words.add(i).read_volatile() });
        if op == 0 {
            return None;
        }
        // SAFETY: as above.
        unsafe { words.write_volatile(0) };
        Some(Fault { op, limit, position, index })
    }
}

impl Context {
    /// Where kernels of this device write what they find wrong.
    pub fn faults(&self) -> Result<&Faults> {
        self.faults_once().get(|| self.pinned(4 * size_of::<i64>()).map(Faults::new))
    }
}
