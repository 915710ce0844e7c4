use std::ffi::c_void;

use crate::DevicePtr;

/// Room of one argument: CUDA's vectors want 16 bytes' alignment at most.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
struct Cell([u8; 16]);

/// The arguments of a launch, in the kernel's order. At most 4 KB together, as the driver allows.
#[derive(Default)]
pub struct Args {
    cells: Vec<Cell>,
    /// First cell of each argument.
    starts: Vec<u32>,
}

impl Args {
    /// None yet.
    pub fn new() -> Self {
        Args { cells: Vec::with_capacity(16), starts: Vec::with_capacity(16) }
    }

    /// A pointer.
    pub fn ptr(self, p: DevicePtr) -> Self {
        self.bytes(&p.0.to_ne_bytes())
    }

    /// An `int`.
    pub fn i32(self, v: i32) -> Self {
        self.bytes(&v.to_ne_bytes())
    }

    /// An `unsigned`.
    pub fn u32(self, v: u32) -> Self {
        self.bytes(&v.to_ne_bytes())
    }

    /// A `long long`.
    pub fn i64(self, v: i64) -> Self {
        self.bytes(&v.to_ne_bytes())
    }

    /// An `unsigned long long`.
    pub fn u64(self, v: u64) -> Self {
        self.bytes(&v.to_ne_bytes())
    }

    /// A `float`.
    pub fn f32(self, v: f32) -> Self {
        self.bytes(&v.to_ne_bytes())
    }

    /// A `double`.
    pub fn f64(self, v: f64) -> Self {
        self.bytes(&v.to_ne_bytes())
    }

    /// A struct by value; `repr(C)`, with the kernel's fields.
    pub fn pod(self, v: impl bytemuck::Pod) -> Self {
        self.bytes(bytemuck::bytes_of(&v))
    }

    /// Any argument by its bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.starts.push(self.cells.len() as u32);
        for part in bytes.chunks(16) {
            let mut cell = Cell::default();
            cell.0[..part.len()].copy_from_slice(part);
            self.cells.push(cell);
        }
        self
    }

    /// All arguments, to be compared.
    pub(crate) fn contents(&self) -> Vec<[u8; 16]> {
        self.cells.iter().map(|c| c.0).collect()
    }

    /// Addresses of the arguments, for the driver. Valid while `self` is not changed.
    pub(crate) fn pointers(&mut self) -> Vec<*mut c_void> {
        let base = self.cells.as_mut_ptr();
        // SAFETY: each start is at most the number of cells; an argument without bytes points at the end.
        self.starts.iter().map(|s| unsafe { base.add(*s as usize) }.cast()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_lie_aligned_and_whole() {
        let mut args = Args::new().i32(-5).pod([1u64, 2, 3]).f32(0.5).ptr(DevicePtr(9));
        let at = args.pointers();
        assert_eq!(at.len(), 4);
        assert!(at.iter().all(|p| p.addr() % 16 == 0));
        // SAFETY: the pointers are at the arguments that were put in.
        unsafe {
            assert_eq!(*at[0].cast::<i32>(), -5);
            assert_eq!(*at[1].cast::<[u64; 3]>(), [1, 2, 3]);
            assert_eq!(*at[2].cast::<f32>(), 0.5);
            assert_eq!(*at[3].cast::<u64>(), 9);
        }
    }
}
