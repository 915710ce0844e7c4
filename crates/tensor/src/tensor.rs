use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use half::{bf16, f16};
use phalanx_gpu::DevicePtr;
use phalanx_host::{Arena, Buffer, DType, Element};

use crate::storage::{ArenaSlice, Block, Held, Storage};
use crate::tape::Node;
use crate::{Device, Error, Layout, Result, Shape, View, ViewMut};

/// Names a leaf of the graph: something that a gradient is wanted for. Parameters use their index;
/// leaves made by [`Tensor::leaf`] are numbered from [`LeafId::FREE`] on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeafId(pub u64);

impl LeafId {
    /// The first number that [`Tensor::leaf`] gives out; smaller ones belong to parameters.
    pub const FREE: u64 = 1 << 32;

    fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(LeafId::FREE);
        LeafId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Where a tensor comes from in the graph.
#[derive(Clone)]
pub(crate) enum Edge {
    Leaf(LeafId),
    /// Output `1` of node `0`.
    Node(Arc<Node>, usize),
}

/// An n-dimensional array on a device, with its place in the autograd graph if it has one.
///
/// A tensor is immutable and cheap to clone. Shape, type and device are values, not type parameters.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) storage: Storage,
    pub(crate) layout: Layout,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
    pub(crate) edge: Option<Edge>,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let graph = match &self.edge {
            None => "",
            Some(Edge::Leaf(_)) => ", leaf",
            Some(Edge::Node(..)) => ", in graph",
        };
        write!(f, "Tensor({} {} on {}{graph})", self.dtype, self.shape(), self.device.name())
    }
}

impl Tensor {
    /// Wraps a host buffer of `shape.numel()` elements of `dtype`: without a copy on the CPU, copied to a GPU.
    pub fn from_buffer(buffer: Buffer, dtype: DType, shape: Shape, device: &Device) -> Result<Self> {
        Tensor::from_shared(Arc::new(buffer), dtype, shape, device)
    }

    /// As [`Tensor::from_buffer`] for a buffer that others read too (a field of a batch).
    pub fn from_shared(buffer: Arc<Buffer>, dtype: DType, shape: Shape, device: &Device) -> Result<Self> {
        check_len(buffer.len(), dtype, shape)?;
        match device {
            Device::Cpu(_) => {
                Ok(Tensor::new(Storage::Host(buffer), Layout::contiguous(shape), dtype, device))
            }
            Device::Cuda(_) => {
                let mut block = device.alloc(buffer.len())?;
                block.fill_from(buffer.bytes())?;
                Tensor::from_block(block, dtype, shape, device)
            }
        }
    }

    /// Wraps memory of the device's own that has been filled.
    pub fn from_block(block: Block, dtype: DType, shape: Shape, device: &Device) -> Result<Self> {
        check_len(block.len(), dtype, shape)?;
        Ok(Tensor::new(block.into_storage(), Layout::contiguous(shape), dtype, device))
    }

    /// The tensor's memory, when nobody else can read it and it holds the elements row-major; else the tensor.
    pub(crate) fn into_sole_block(self) -> std::result::Result<Block, Tensor> {
        let whole = self.layout.is_contiguous() && self.layout.offset == 0;
        let bytes = self.shape().numel() * self.dtype.size();
        match self.storage {
            Storage::Host(b) if whole && b.len() == bytes => {
                Arc::try_unwrap(b).map(Block::Host).map_err(|b| Tensor { storage: Storage::Host(b), ..self })
            }
            // Of a block that is filled again and again, its owner has a clone.
            Storage::Cuda(b) if whole && b.len() == bytes && b.is_unique() => {
                Arc::try_unwrap(b).map(Block::Cuda).map_err(|b| Tensor { storage: Storage::Cuda(b), ..self })
            }
            storage => Err(Tensor { storage, ..self }),
        }
    }

    /// A tensor over the elements from byte `at` of a device's block on. Whoever writes the block writes the tensor.
    pub fn of_buffer(
        buffer: &phalanx_gpu::Buffer,
        at: usize,
        dtype: DType,
        shape: Shape,
        device: &Device,
    ) -> Result<Self> {
        let (size, end) = (dtype.size(), at + shape.numel() * dtype.size());
        if end > buffer.len() || !at.is_multiple_of(size) {
            let why = format!("it does not lie at byte {at} of {}", buffer.len());
            return Err(Error::Invalid { op: "of_buffer", shape, why });
        }
        let mut layout = Layout::contiguous(shape);
        layout.offset = at / size;
        Ok(Tensor::new(Storage::Cuda(Arc::new(buffer.clone())), layout, dtype, device))
    }

    /// Where the elements are in a GPU's memory, and their bytes. Fails unless they lie row-major without gaps.
    pub fn place_on_gpu(&self) -> Result<(DevicePtr, usize)> {
        if !self.layout.is_contiguous() {
            let why = "its elements do not lie one after the other".to_owned();
            return Err(Error::Invalid { op: "place", shape: self.shape(), why });
        }
        Ok((self.view(&self.hold()?).ptr()?, self.shape().numel() * self.dtype.size()))
    }

    /// Something that knows this tensor's values again, without keeping them.
    pub fn memento(&self) -> Memento {
        let block = match &self.storage {
            Storage::Cuda(block) => Arc::downgrade(block),
            Storage::Host(_) | Storage::Arena(_) => Weak::new(),
        };
        Memento { block, layout: self.layout }
    }

    /// A tensor over elements `start..start + shape.numel()` (in units of `dtype`) of an arena.
    pub fn from_arena(arena: &Arena, start: usize, dtype: DType, shape: Shape, device: &Device) -> Self {
        let size = dtype.size();
        let slice = ArenaSlice { arena: arena.clone(), start: start * size, len: shape.numel() * size };
        Tensor::new(Storage::Arena(slice), Layout::contiguous(shape), dtype, device)
    }

    /// Copies a slice, row-major.
    pub fn from_slice<T: Element>(data: &[T], shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let shape = shape.into();
        if data.len() != shape.numel() {
            let why = format!("{} elements were given", data.len());
            return Err(Error::Invalid { op: "from_slice", shape, why });
        }
        let mut block = device.alloc(size_of_val(data))?;
        block.fill_from(bytemuck::cast_slice(data))?;
        Tensor::from_block(block, T::DTYPE, shape, device)
    }

    /// All elements `value`.
    pub fn full<T: Element>(value: T, shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let shape = shape.into();
        match device {
            Device::Cpu(cpu) => {
                let mut buffer = cpu.pool.alloc(shape.numel() * size_of::<T>())?;
                buffer.as_mut_slice::<T>().fill(value);
                Tensor::from_buffer(buffer, T::DTYPE, shape, device)
            }
            // One element is copied over, the others are made of it there.
            Device::Cuda(_) => Tensor::from_slice(&[value], [], device)?.expand(&shape)?.contiguous(),
        }
    }

    /// All elements zero.
    pub fn zeros(dtype: DType, shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let shape = shape.into();
        let mut block = device.alloc(shape.numel() * dtype.size())?;
        ViewMut::of(dtype, shape, block.memory()).zero(device)?;
        Tensor::from_block(block, dtype, shape, device)
    }

    /// A scalar of a float type.
    pub fn scalar(value: f64, dtype: DType, device: &Device) -> Result<Self> {
        match dtype {
            DType::F64 => Tensor::full(value, [], device),
            DType::F32 => Tensor::full(value as f32, [], device),
            DType::F16 => Tensor::full(f16::from_f64(value), [], device),
            DType::BF16 => Tensor::full(bf16::from_f64(value), [], device),
            got => Err(Error::DTypes { op: "scalar", operand: 0, got, want: "a float".into() }),
        }
    }

    pub(crate) fn new(storage: Storage, layout: Layout, dtype: DType, device: &Device) -> Self {
        Tensor { storage, layout, dtype, device: device.clone(), edge: None }
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> Shape {
        self.layout.shape
    }

    /// How the elements lie in the storage.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the tensor lives.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether a backward pass from this tensor can reach a leaf.
    pub fn requires_grad(&self) -> bool {
        self.edge.is_some()
    }

    /// The leaf's name, when this tensor is one.
    pub fn leaf_id(&self) -> Option<LeafId> {
        match self.edge {
            Some(Edge::Leaf(id)) => Some(id),
            _ => None,
        }
    }

    /// The same values as a new leaf with a name of its own.
    pub fn leaf(&self) -> Self {
        self.leaf_named(LeafId::fresh())
    }

    /// The same values as the leaf `id`.
    pub fn leaf_named(&self, id: LeafId) -> Self {
        Tensor { edge: Some(Edge::Leaf(id)), ..self.clone() }
    }

    /// The same values outside the graph.
    pub fn detach(&self) -> Self {
        Tensor { edge: None, ..self.clone() }
    }

    /// The elements, row-major, as a new vector. Fails when the type is not `T`.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let dense = self.detach().contiguous()?;
        let held = dense.storage.hold()?;
        let view = dense.view(&held);
        let Device::Cuda(gpu) = &self.device else { return Ok(view.slice::<T>()?.to_vec()) };
        if self.dtype != T::DTYPE {
            let want = T::DTYPE.to_string();
            return Err(Error::DTypes { op: "to_vec", operand: 0, got: self.dtype, want });
        }
        let mut all = vec![T::zeroed(); dense.shape().numel()];
        gpu.download(view.ptr()?, bytemuck::cast_slice_mut(&mut all))?;
        crate::ops::cuda::faults::check(gpu)?;
        Ok(all)
    }

    /// The only element of a float tensor.
    pub fn item(&self) -> Result<f64> {
        if self.shape().numel() != 1 {
            let why = "it has not exactly one element".to_owned();
            return Err(Error::Invalid { op: "item", shape: self.shape(), why });
        }
        Ok(match self.dtype {
            DType::F64 => self.to_vec::<f64>()?[0],
            DType::F32 => f64::from(self.to_vec::<f32>()?[0]),
            DType::F16 => self.to_vec::<f16>()?[0].to_f64(),
            DType::BF16 => self.to_vec::<bf16>()?[0].to_f64(),
            got => return Err(Error::DTypes { op: "item", operand: 0, got, want: "a float".into() }),
        })
    }

    /// The memory, held for reading.
    pub fn hold(&self) -> Result<Held> {
        self.storage.hold()
    }

    /// The elements, held for reading together with the way they lie.
    pub(crate) fn read(&self) -> Result<Read> {
        Ok(Read { held: self.hold()?, dtype: self.dtype, layout: self.layout })
    }

    /// A kernel's view of the held memory.
    pub fn view<'a>(&self, held: &'a Held) -> View<'a> {
        View::of(self.dtype, self.layout, held.memory())
    }
}

/// Knows a tensor's values again: see [`Tensor::memento`].
#[derive(Debug, Clone)]
pub struct Memento {
    block: Weak<phalanx_gpu::Buffer>,
    layout: Layout,
}

impl Memento {
    /// Whether `other` certainly has the values that the tensor had: they are in the same block of a GPU's memory, which has
    /// been held all the time. Never for other memory.
    pub fn knows(&self, other: &Tensor) -> bool {
        match (&other.storage, self.block.upgrade()) {
            (Storage::Cuda(block), Some(mine)) => Arc::ptr_eq(block, &mine) && self.layout == other.layout,
            _ => false,
        }
    }
}

/// A tensor's elements while a backward kernel reads them.
pub(crate) struct Read {
    held: Held,
    dtype: DType,
    layout: Layout,
}

impl Read {
    pub(crate) fn view(&self) -> View<'_> {
        View::of(self.dtype, self.layout, self.held.memory())
    }

    /// As [`View::ptr`].
    pub(crate) fn ptr(&self) -> Result<DevicePtr> {
        self.view().ptr()
    }

    /// As [`View::slice`].
    pub(crate) fn slice<T: Element>(&self) -> Result<&[T]> {
        self.view().slice()
    }
}

fn check_len(bytes: usize, dtype: DType, shape: Shape) -> Result<()> {
    let want = shape.numel() * dtype.size();
    match bytes == want {
        true => Ok(()),
        false => {
            let why = format!("the buffer has {bytes} bytes, {want} are needed");
            Err(Error::Invalid { op: "from_buffer", shape, why })
        }
    }
}
