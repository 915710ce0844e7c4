//! Where gradients go.

use std::collections::HashMap;

use phalanx_host::{ArenaMut, DType, Element};

use crate::op::{Exec, Meta};
use crate::storage::{Block, MemoryMut};
use crate::tensor::Edge;
use crate::{Device, Error, LeafId, Result, Shape, Tensor, ViewMut, ops};

/// Receives the gradients of the leaves: a reducer that lets them be written straight into its arena,
/// or [`Gradients`], which collects them.
pub trait LeafSink {
    /// Whether a gradient of this leaf is wanted at all; no work is done for the others.
    fn wants(&self, leaf: LeafId) -> bool;

    /// The memory that the leaf's gradient is written to, or none to have it collected as a tensor.
    /// Called once per use of the leaf.
    fn memory(&mut self, leaf: LeafId) -> Result<Option<LeafMemory>>;

    /// The leaf's last use has been walked. `collected` is its gradient unless it was written to
    /// memory of the sink's; none when no use of it received a gradient.
    fn ready(&mut self, leaf: LeafId, collected: Option<Tensor>) -> Result<()>;
}

/// A leaf's place in a gradient arena.
#[derive(Debug)]
pub struct LeafMemory {
    /// The place: as many elements as the leaf has.
    pub range: ArenaMut,
    /// Whether there is a sum to add to; otherwise the old contents are meaningless.
    pub accumulate: bool,
}

/// A [`LeafSink`] that keeps the gradients of all leaves as tensors.
#[derive(Debug, Default)]
pub struct Gradients(HashMap<LeafId, Tensor>);

impl Gradients {
    /// The gradient of `leaf`; none when the root did not depend on it.
    pub fn get(&self, leaf: &Tensor) -> Option<&Tensor> {
        self.0.get(&leaf.leaf_id()?)
    }
}

impl LeafSink for Gradients {
    fn wants(&self, _: LeafId) -> bool {
        true
    }
    fn memory(&mut self, _: LeafId) -> Result<Option<LeafMemory>> {
        Ok(None)
    }
    fn ready(&mut self, leaf: LeafId, collected: Option<Tensor>) -> Result<()> {
        if let Some(t) = collected {
            self.0.insert(leaf, t);
        }
        Ok(())
    }
}

impl Tensor {
    /// The gradients of all leaves below this scalar.
    pub fn gradients(&self) -> Result<Gradients> {
        let mut all = Gradients::default();
        self.backward(&mut all)?;
        Ok(all)
    }
}

/// A gradient on its way: memory that is still being summed into, or a tensor that was handed over
/// and may be read by others.
#[derive(Debug)]
pub(crate) enum Grad {
    Owned(Block, DType, Shape),
    Shared(Tensor),
}

impl Grad {
    pub(crate) fn into_tensor(self, device: &Device) -> Result<Tensor> {
        match self {
            Grad::Owned(block, dtype, shape) => Tensor::from_block(block, dtype, shape, device),
            Grad::Shared(t) => Ok(t),
        }
    }
}

/// Gradients of node outputs that have not been walked yet.
#[derive(Debug, Default)]
pub(crate) struct Pending(HashMap<u64, Vec<Option<Grad>>>);

impl Pending {
    pub(crate) fn slot(&mut self, seq: u64, outputs: usize) -> &mut Vec<Option<Grad>> {
        self.0.entry(seq).or_insert_with(|| (0..outputs).map(|_| None).collect())
    }

    pub(crate) fn take(&mut self, seq: u64) -> Option<Vec<Option<Grad>>> {
        self.0.remove(&seq)
    }
}

/// Gradients of leaves whose sink gave no memory for them.
#[derive(Debug, Default)]
pub(crate) struct Collected(HashMap<LeafId, Option<Grad>>);

impl Collected {
    fn slot(&mut self, leaf: LeafId) -> &mut Option<Grad> {
        self.0.entry(leaf).or_default()
    }

    pub(crate) fn take(&mut self, leaf: LeafId) -> Option<Grad> {
        self.0.remove(&leaf).flatten()
    }
}

/// Hands an op's backward pass the places where the gradients of its inputs go.
pub struct GradSink<'a> {
    pub(crate) edges: &'a [Option<Edge>],
    pub(crate) metas: &'a [Meta],
    pub(crate) needed: &'a HashMap<u64, bool>,
    pub(crate) device: &'a Device,
    pub(crate) pending: &'a mut Pending,
    pub(crate) collected: &'a mut Collected,
    pub(crate) leaves: &'a mut dyn LeafSink,
    /// Uses of each leaf that have not been walked yet.
    pub(crate) uses: &'a mut HashMap<LeafId, usize>,
    /// Bit i: input i has been walked.
    pub(crate) settled: u64,
}

/// Where one input's gradient goes: contiguous, of the input's shape and type.
#[derive(Debug)]
pub struct Slot<'a> {
    memory: SlotMemory<'a>,
    dtype: DType,
    shape: Shape,
    accumulate: bool,
}

#[derive(Debug)]
enum SlotMemory<'a> {
    Arena(ArenaMut),
    Pool(&'a mut Block),
}

impl Slot<'_> {
    /// Whether to add to what is there; otherwise it must be overwritten, every element of it.
    pub fn accumulate(&self) -> bool {
        self.accumulate
    }

    /// The elements, row-major. Fails when the type is not `T`.
    pub fn slice<T: Element>(&mut self) -> Result<&mut [T]> {
        match &mut self.memory {
            SlotMemory::Arena(a) => Ok(a.as_mut_slice()?),
            SlotMemory::Pool(Block::Host(b)) => Ok(b.as_mut_slice()),
            SlotMemory::Pool(Block::Cuda(_)) => Err(Error::WrongMemory { op: "gradient", device: "CPU" }),
        }
    }

    /// The place as a kernel's result.
    pub fn view(&mut self) -> ViewMut<'_> {
        let memory = match &mut self.memory {
            SlotMemory::Arena(a) => MemoryMut::of_arena(a),
            SlotMemory::Pool(b) => b.memory(),
        };
        ViewMut::of(self.dtype, self.shape, memory)
    }
}

/// Checks that a leaf's memory is as large as its gradient.
fn check_place(range: &ArenaMut, dtype: DType, shape: Shape) -> Result<()> {
    let want = shape.numel() * dtype.size();
    if range.len() == want {
        return Ok(());
    }
    let why = format!("its gradient's place has {} bytes, {want} are needed", range.len());
    Err(Error::Invalid { op: "backward", shape, why })
}

impl GradSink<'_> {
    /// Whether input `i` needs a gradient.
    pub fn wants(&self, i: usize) -> bool {
        match self.edges.get(i) {
            Some(Some(Edge::Leaf(id))) => self.leaves.wants(*id),
            Some(Some(Edge::Node(n, _))) => self.needed.get(&n.seq()).copied().unwrap_or(false),
            _ => false,
        }
    }

    /// The shape of input `i`.
    pub fn shape(&self, i: usize) -> Shape {
        self.metas[i].shape()
    }

    /// Where the gradient of input `i` goes; none when none is wanted.
    pub fn slot(&mut self, i: usize) -> Result<Option<Slot<'_>>> {
        if !self.wants(i) {
            return Ok(None);
        }
        let meta = self.metas[i];
        let (shape, dtype) = (meta.shape(), meta.dtype);
        if let Some(Some(Edge::Leaf(id))) = self.edges.get(i)
            && let Some(LeafMemory { range, accumulate }) = self.leaves.memory(*id)?
        {
            check_place(&range, dtype, shape)?;
            return Ok(Some(Slot { memory: SlotMemory::Arena(range), dtype, shape, accumulate }));
        }
        let device = self.device;
        let Some(place) = self.place(i) else { return Ok(None) };
        let accumulate = place.is_some();
        // Make the sum so far exclusively ours: a tensor that was handed over may have other readers.
        *place = Some(match place.take() {
            Some(Grad::Owned(b, d, s)) => Grad::Owned(b, d, s),
            Some(Grad::Shared(t)) => match t.into_sole_block() {
                Ok(own) => Grad::Owned(own, dtype, shape),
                Err(t) => {
                    let mut own = device.alloc(shape.numel() * dtype.size())?;
                    let mut view = ViewMut::of(dtype, shape, own.memory());
                    ops::shape::copy_into(&Exec::new(device), &t, &mut view)?;
                    Grad::Owned(own, dtype, shape)
                }
            },
            None => Grad::Owned(device.alloc(shape.numel() * dtype.size())?, dtype, shape),
        });
        match place {
            Some(Grad::Owned(block, ..)) => {
                Ok(Some(Slot { memory: SlotMemory::Pool(block), dtype, shape, accumulate }))
            }
            _ => Ok(None),
        }
    }

    /// Hands over a finished gradient of input `i`, without a copy where nothing is to be added to it.
    pub fn pass(&mut self, i: usize, grad: Tensor) -> Result<()> {
        if !self.wants(i) {
            return Ok(());
        }
        let (Meta { dtype, layout }, device) = (self.metas[i], self.device);
        let shape = layout.shape;
        // On a GPU operands may differ in type, and a gradient made of ops has the type of its first.
        let grad = if grad.dtype() == dtype { grad } else { grad.to(dtype)? };
        if grad.shape() != shape {
            let hint = "a gradient must have its input's shape";
            return Err(Error::Shapes { op: "backward", lhs: shape, rhs: grad.shape(), hint });
        }
        let in_memory = match self.edges.get(i) {
            Some(Some(Edge::Leaf(id))) => self.leaves.memory(*id)?,
            _ => None,
        };
        if let Some(LeafMemory { mut range, accumulate }) = in_memory {
            check_place(&range, dtype, shape)?;
            let cx = Exec::new(device);
            let mut to = ViewMut::of(dtype, shape, MemoryMut::of_arena(&mut range));
            return match accumulate {
                true => ops::shape::add_into(&cx, &grad, &mut to),
                false => ops::shape::copy_into(&cx, &grad, &mut to),
            };
        }
        match self.place(i) {
            Some(place @ None) => *place = Some(Grad::Shared(grad)),
            Some(Some(_)) => {
                if let Some(mut slot) = self.slot(i)? {
                    ops::shape::add_into(&Exec::new(device), &grad, &mut slot.view())?;
                }
            }
            None => {}
        }
        Ok(())
    }

    /// The op has nothing more to say to input `i`. A leaf whose last use this was is ready: its gradient can be
    /// summed over ranks while the op goes on with its other inputs.
    pub fn settle(&mut self, i: usize) -> Result<()> {
        if i < u64::BITS as usize { self.walked(i) } else { Ok(()) }
    }

    /// As [`GradSink::settle`], for every input when the op has ended.
    pub(crate) fn walked(&mut self, i: usize) -> Result<()> {
        let Some(Some(Edge::Leaf(id))) = self.edges.get(i) else { return Ok(()) };
        let bit = 1u64.checked_shl(i as u32).unwrap_or(0);
        if self.settled & bit != 0 {
            return Ok(());
        }
        self.settled |= bit;
        let Some(left) = self.uses.get_mut(id) else { return Ok(()) };
        *left -= 1;
        if *left == 0 && self.leaves.wants(*id) {
            let grad = self.collected.take(*id).map(|g| g.into_tensor(self.device)).transpose()?;
            self.leaves.ready(*id, grad)?;
        }
        Ok(())
    }

    fn place(&mut self, i: usize) -> Option<&mut Option<Grad>> {
        match self.edges.get(i)?.as_ref()? {
            Edge::Leaf(id) => Some(self.collected.slot(*id)),
            Edge::Node(node, output) => self.pending.slot(node.seq(), node.outputs()).get_mut(*output),
        }
    }
}
