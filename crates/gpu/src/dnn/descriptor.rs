use std::ffi::{c_int, c_void};

use crate::Result;
use crate::ffi::Handle;
use crate::ffi::dnn::{CuDnn, Status};

/// A descriptor of the backend interface; destroyed on drop. Kinds, attributes and the types of their values are
/// numbers of `cudnn_graph.h`.
pub(super) struct Descriptor {
    table: &'static CuDnn,
    pub(super) raw: Handle,
}

/// Kinds of descriptors (`cudnnBackendDescriptorType_t`).
pub(super) mod kind {
    pub(in crate::dnn) const POINTWISE: i32 = 0;
    pub(in crate::dnn) const CONVOLUTION: i32 = 1;
    pub(in crate::dnn) const ENGINE: i32 = 2;
    pub(in crate::dnn) const ENGINE_CONFIG: i32 = 3;
    pub(in crate::dnn) const HEURISTICS: i32 = 4;
    pub(in crate::dnn) const PLAN: i32 = 5;
    pub(in crate::dnn) const KNOB_CHOICE: i32 = 7;
    pub(in crate::dnn) const FORWARD: i32 = 10;
    pub(in crate::dnn) const BACKWARD_FILTER: i32 = 11;
    pub(in crate::dnn) const BACKWARD_DATA: i32 = 12;
    pub(in crate::dnn) const POINTWISE_OPERATION: i32 = 13;
    pub(in crate::dnn) const GRAPH: i32 = 15;
    pub(in crate::dnn) const VARIANT_PACK: i32 = 16;
    pub(in crate::dnn) const TENSOR: i32 = 17;
}

/// Types of attributes' values (`cudnnBackendAttributeType_t`).
pub(super) mod value {
    pub(in crate::dnn) const HANDLE: i32 = 0;
    pub(in crate::dnn) const DATA_TYPE: i32 = 1;
    pub(in crate::dnn) const BOOLEAN: i32 = 2;
    pub(in crate::dnn) const INT64: i32 = 3;
    pub(in crate::dnn) const FLOAT: i32 = 4;
    pub(in crate::dnn) const VOID_PTR: i32 = 6;
    pub(in crate::dnn) const CONVOLUTION_MODE: i32 = 7;
    pub(in crate::dnn) const HEURISTICS_MODE: i32 = 8;
    pub(in crate::dnn) const KNOB_TYPE: i32 = 9;
    pub(in crate::dnn) const NUMERICAL_NOTE: i32 = 11;
    pub(in crate::dnn) const POINTWISE_MODE: i32 = 14;
    pub(in crate::dnn) const DESCRIPTOR: i32 = 15;
}

impl Descriptor {
    pub(super) fn new(table: &'static CuDnn, kind: i32) -> Result<Self> {
        let mut raw: Handle = 0;
        // SAFETY: writes one handle, destroyed on drop.
        let status = unsafe { (table.cudnnBackendCreateDescriptor)(kind, &mut raw) };
        table.check(status, "cudnnBackendCreateDescriptor")?;
        Ok(Descriptor { table, raw })
    }

    /// Sets an attribute to values of a plain type; `of` must be the type that `values` are in C.
    fn set(&self, attribute: i32, of: i32, count: usize, values: *const c_void) -> Result<()> {
        // SAFETY: a live descriptor; the callers below give as many values of the type as they say.
        let status =
            unsafe { (self.table.cudnnBackendSetAttribute)(self.raw, attribute, of, count as i64, values) };
        self.table.check(status, "cudnnBackendSetAttribute")
    }

    pub(super) fn int64(&self, attribute: i32, values: &[i64]) -> Result<()> {
        self.set(attribute, value::INT64, values.len(), values.as_ptr().cast())
    }

    pub(super) fn float(&self, attribute: i32, v: f32) -> Result<()> {
        self.set(attribute, value::FLOAT, 1, (&raw const v).cast())
    }

    /// A value of an enum; `of` is one of those of [`value`].
    pub(super) fn choice(&self, attribute: i32, of: i32, v: c_int) -> Result<()> {
        self.set(attribute, of, 1, (&raw const v).cast())
    }

    pub(super) fn boolean(&self, attribute: i32, v: bool) -> Result<()> {
        self.set(attribute, value::BOOLEAN, 1, (&raw const v).cast())
    }

    /// The library's handle.
    pub(super) fn handle(&self, attribute: i32, v: Handle) -> Result<()> {
        self.set(attribute, value::HANDLE, 1, (&raw const v).cast())
    }

    /// Device addresses.
    pub(super) fn addresses(&self, attribute: i32, values: &[u64]) -> Result<()> {
        self.set(attribute, value::VOID_PTR, values.len(), values.as_ptr().cast())
    }

    pub(super) fn descriptor(&self, attribute: i32, of: &Descriptor) -> Result<()> {
        self.set(attribute, value::DESCRIPTOR, 1, (&raw const of.raw).cast())
    }

    pub(super) fn descriptors(&self, attribute: i32, of: &[&Descriptor]) -> Result<()> {
        let raw: Vec<Handle> = of.iter().map(|d| d.raw).collect();
        self.set(attribute, value::DESCRIPTOR, raw.len(), raw.as_ptr().cast())
    }

    /// Must follow the attributes. The library's word on whether they fit together.
    pub(super) fn finalize(&self) -> Result<()> {
        // SAFETY: a live descriptor.
        let status = unsafe { (self.table.cudnnBackendFinalize)(self.raw) };
        self.table.check(status, "cudnnBackendFinalize")
    }

    /// Reads at most as many values as fit, and gives how many there are.
    fn get(&self, attribute: i32, of: i32, room: usize, values: *mut c_void) -> Result<usize> {
        let mut count = 0i64;
        // SAFETY: a live descriptor; the callers below have room for as many values of the type as they say.
        let status: Status = unsafe {
            (self.table.cudnnBackendGetAttribute)(self.raw, attribute, of, room as i64, &mut count, values)
        };
        self.table.check(status, "cudnnBackendGetAttribute")?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub(super) fn get_int64(&self, attribute: i32) -> Result<i64> {
        let mut v = 0i64;
        self.get(attribute, value::INT64, 1, (&raw mut v).cast())?;
        Ok(v)
    }

    /// Values of an enum, at most 64.
    pub(super) fn get_choices(&self, attribute: i32, of: i32) -> Result<Vec<c_int>> {
        let mut values = [0; 64];
        let count = self.get(attribute, of, values.len(), values.as_mut_ptr().cast())?;
        Ok(values[..count.min(values.len())].to_vec())
    }

    /// Descriptors of a kind; the library fills such as were made before.
    pub(super) fn get_descriptors(&self, attribute: i32, kind: i32, most: usize) -> Result<Vec<Descriptor>> {
        let count = self.get(attribute, value::DESCRIPTOR, 0, std::ptr::null_mut())?.min(most);
        let made = (0..count).map(|_| Descriptor::new(self.table, kind)).collect::<Result<Vec<_>>>()?;
        let mut raw: Vec<Handle> = made.iter().map(|d| d.raw).collect();
        let filled = self.get(attribute, value::DESCRIPTOR, count, raw.as_mut_ptr().cast())?;
        Ok(made.into_iter().take(filled).collect())
    }

    /// One descriptor of a kind.
    pub(super) fn get_descriptor(&self, attribute: i32, kind: i32) -> Result<Descriptor> {
        let made = Descriptor::new(self.table, kind)?;
        let mut raw = made.raw;
        self.get(attribute, value::DESCRIPTOR, 1, (&raw mut raw).cast())?;
        Ok(made)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by this library, not used after.
        unsafe { (self.table.cudnnBackendDestroyDescriptor)(self.raw) };
    }
}
