use phalanx_host::{DType, Element};

use crate::{Error, Layout, Result, Shape};

/// One operand of a kernel, for reading: bytes of the storage and how the elements lie in them.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Element type.
    pub dtype: DType,
    /// Where the elements lie; `offset` counts from the start of `bytes`.
    pub layout: Layout,
    bytes: &'a [u8],
}

/// One result of a kernel, for writing: always contiguous from its first byte.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// Element type.
    pub dtype: DType,
    /// Sizes of the axes.
    pub shape: Shape,
    bytes: &'a mut [u8],
}

fn mismatch<T: Element>(got: DType) -> Error {
    Error::DTypes { op: "view", operand: 0, got, want: T::DTYPE.to_string() }
}

impl<'a> View<'a> {
    /// A view of `bytes`.
    pub fn new(dtype: DType, layout: Layout, bytes: &'a [u8]) -> Self {
        View { dtype, layout, bytes }
    }

    /// The same bytes read through another layout.
    pub fn with(&self, layout: Layout) -> Self {
        View { layout, ..*self }
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> Shape {
        self.layout.shape
    }

    /// The bytes from the layout's offset on: the elements themselves when the layout is contiguous.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        &self.bytes[(self.layout.offset * self.dtype.size()).min(self.bytes.len())..]
    }

    /// All elements from the layout's offset on, in storage order: the elements themselves when the
    /// layout is contiguous. Fails when the type is not `T`.
    pub fn slice<T: Element>(&self) -> Result<&'a [T]> {
        if self.dtype != T::DTYPE {
            return Err(mismatch::<T>(self.dtype));
        }
        let size = size_of::<T>();
        let start = (self.layout.offset * size).min(self.bytes.len());
        let end = (start + self.layout.span() * size).min(self.bytes.len());
        bytemuck::try_cast_slice(&self.bytes[start..end]).map_err(|_| mismatch::<T>(self.dtype))
    }
}

impl<'a> ViewMut<'a> {
    /// A view of `bytes`, which must hold exactly the shape's elements.
    pub fn new(dtype: DType, shape: Shape, bytes: &'a mut [u8]) -> Self {
        let len = shape.numel() * dtype.size();
        ViewMut { dtype, shape, bytes: &mut bytes[..len] }
    }

    /// The elements, row-major. Fails when the type is not `T`.
    pub fn slice<T: Element>(&mut self) -> Result<&mut [T]> {
        if self.dtype != T::DTYPE {
            return Err(mismatch::<T>(self.dtype));
        }
        bytemuck::try_cast_slice_mut(self.bytes).map_err(|_| mismatch::<T>(T::DTYPE))
    }

    /// The raw bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.bytes
    }
}
