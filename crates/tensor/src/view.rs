use phalanx_gpu::DevicePtr;
use phalanx_host::{DType, Element};

use crate::storage::{Memory, MemoryMut};
use crate::{Device, Error, Layout, Result, Shape};

/// One operand of a kernel, for reading: memory of the storage and how the elements lie in it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Element type.
    pub dtype: DType,
    /// Where the elements lie; `offset` counts from the start of the memory.
    pub layout: Layout,
    memory: Memory<'a>,
}

/// One result of a kernel, for writing: always contiguous from its first byte.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// Element type.
    pub dtype: DType,
    /// Sizes of the axes.
    pub shape: Shape,
    memory: MemoryMut<'a>,
}

/// A kernel was handed the memory of another device.
fn elsewhere(device: &'static str) -> Error {
    Error::WrongMemory { op: "view", device }
}

fn mismatch<T: Element>(got: DType) -> Error {
    Error::DTypes { op: "view", operand: 0, got, want: T::DTYPE.to_string() }
}

impl<'a> View<'a> {
    /// A view of host memory.
    pub fn new(dtype: DType, layout: Layout, bytes: &'a [u8]) -> Self {
        View::of(dtype, layout, Memory::Host(bytes))
    }

    /// A view of memory.
    pub fn of(dtype: DType, layout: Layout, memory: Memory<'a>) -> Self {
        View { dtype, layout, memory }
    }

    /// The same bytes read through another layout.
    pub fn with(&self, layout: Layout) -> Self {
        View { layout, ..*self }
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> Shape {
        self.layout.shape
    }

    /// The address on the GPU of the element at the layout's offset, for an op's CUDA kernel.
    pub fn ptr(&self) -> Result<DevicePtr> {
        match self.memory {
            Memory::Device(ptr, _) => Ok(ptr.offset(self.layout.offset * self.dtype.size())),
            Memory::Host(_) => Err(elsewhere("GPU")),
        }
    }

    fn host(&self) -> Result<&'a [u8]> {
        match self.memory {
            Memory::Host(bytes) => Ok(bytes),
            Memory::Device(..) => Err(elsewhere("CPU")),
        }
    }

    /// The bytes from the layout's offset on: the elements themselves when the layout is contiguous.
    pub(crate) fn bytes(&self) -> Result<&'a [u8]> {
        let bytes = self.host()?;
        Ok(&bytes[(self.layout.offset * self.dtype.size()).min(bytes.len())..])
    }

    /// All elements from the layout's offset on, in storage order: the elements themselves when the
    /// layout is contiguous. Fails when the type is not `T`.
    pub fn slice<T: Element>(&self) -> Result<&'a [T]> {
        if self.dtype != T::DTYPE {
            return Err(mismatch::<T>(self.dtype));
        }
        let (bytes, size) = (self.host()?, size_of::<T>());
        let start = (self.layout.offset * size).min(bytes.len());
        let end = (start + self.layout.span() * size).min(bytes.len());
        bytemuck::try_cast_slice(&bytes[start..end]).map_err(|_| mismatch::<T>(self.dtype))
    }
}

impl<'a> ViewMut<'a> {
    /// A view of host memory, which must hold exactly the shape's elements.
    pub fn new(dtype: DType, shape: Shape, bytes: &'a mut [u8]) -> Self {
        ViewMut::of(dtype, shape, MemoryMut::Host(bytes))
    }

    /// A view of memory, which must hold exactly the shape's elements.
    pub fn of(dtype: DType, shape: Shape, memory: MemoryMut<'a>) -> Self {
        let len = shape.numel() * dtype.size();
        let memory = match memory {
            MemoryMut::Host(bytes) => MemoryMut::Host(&mut bytes[..len]),
            MemoryMut::Device(ptr, _) => MemoryMut::Device(ptr, len),
        };
        ViewMut { dtype, shape, memory }
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { dtype: self.dtype, shape: self.shape, memory: self.memory.reborrow() }
    }

    /// The address on the GPU, for an op's CUDA kernel.
    pub fn ptr(&self) -> Result<DevicePtr> {
        match self.memory {
            MemoryMut::Device(ptr, _) => Ok(ptr),
            MemoryMut::Host(_) => Err(elsewhere("GPU")),
        }
    }

    /// The elements, row-major. Fails when the type is not `T`.
    pub fn slice<T: Element>(&mut self) -> Result<&mut [T]> {
        if self.dtype != T::DTYPE {
            return Err(mismatch::<T>(self.dtype));
        }
        bytemuck::try_cast_slice_mut(self.bytes()?).map_err(|_| mismatch::<T>(T::DTYPE))
    }

    /// Sets every byte to 0.
    pub fn zero(&mut self, device: &Device) -> Result<()> {
        match (&mut self.memory, device) {
            (MemoryMut::Host(bytes), _) => bytes.fill(0),
            (MemoryMut::Device(ptr, len), Device::Cuda(gpu)) => gpu.fill_zero(*ptr, *len)?,
            (MemoryMut::Device(..), _) => return Err(elsewhere("CPU")),
        }
        Ok(())
    }

    /// The raw bytes.
    pub fn bytes(&mut self) -> Result<&mut [u8]> {
        match &mut self.memory {
            MemoryMut::Host(bytes) => Ok(bytes),
            MemoryMut::Device(..) => Err(elsewhere("CPU")),
        }
    }
}
