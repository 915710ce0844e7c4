//! What an op is, and what it is handed.

use std::fmt::Debug;

use phalanx_host::{Buffer, Cpu, DType};

use crate::sink::GradSink;
use crate::{Device, Error, Layout, Result, Shape, Tensor, View, ViewMut};

/// An operand as a shape rule sees it.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Element type.
    pub dtype: DType,
    /// Sizes and strides.
    pub layout: Layout,
}

impl Meta {
    /// Sizes of the axes.
    pub fn shape(&self) -> Shape {
        self.layout.shape
    }

    /// The operand's gradient: as the operand, but f32 on the CPU where that is a half. A GPU's kernels read and write
    /// halves, and memory is what they wait for.
    pub(crate) fn gradient(&self, device: &Device) -> Meta {
        match (self.dtype, device) {
            (DType::F16 | DType::BF16, Device::Cpu(_)) => Meta { dtype: DType::F32, ..*self },
            _ => *self,
        }
    }
}

/// What becomes of operands in half precision (bf16, f16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Narrow {
    /// Kernels read f32; the first result is rounded to the type of the first float among them, others stay f32.
    Round,
    /// Kernels read f32 and all results stay f32: sums and losses.
    Keep,
    /// Kernels move elements of any type.
    AnyType,
}

/// A result or a saved tensor that the executor must provide: contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Element type.
    pub dtype: DType,
    /// Sizes of the axes.
    pub shape: Shape,
}

impl Spec {
    /// A tensor of `shape` elements of `dtype`.
    pub fn new(dtype: DType, shape: Shape) -> Self {
        Spec { dtype, shape }
    }
}

/// What an op will do with operands of given shapes: the answer of its shape rule.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The results.
    pub outputs: Vec<Spec>,
    /// Tensors that only the backward pass reads (masks, indices); the forward pass fills them.
    pub saved: Vec<Spec>,
    /// Bit i: the backward pass reads input i.
    pub save_inputs: u32,
    /// Bit i: the backward pass reads output i.
    pub save_outputs: u32,
    /// Bit i: input i must be handed over contiguous.
    pub dense: u32,
    /// The single output is input 0 read through this layout; no kernel runs.
    pub alias: Option<Layout>,
}

impl Plan {
    /// One output and nothing saved.
    pub fn one(dtype: DType, shape: Shape) -> Self {
        Plan { outputs: vec![Spec::new(dtype, shape)], ..Plan::default() }
    }

    /// The output is a view of input 0.
    pub fn alias(dtype: DType, layout: Layout) -> Self {
        Plan { alias: Some(layout), ..Plan::one(dtype, layout.shape) }
    }

    /// Saves the inputs of that bit mask.
    pub fn saving_inputs(mut self, mask: u32) -> Self {
        self.save_inputs = mask;
        self
    }

    /// Saves the outputs of that bit mask.
    pub fn saving_outputs(mut self, mask: u32) -> Self {
        self.save_outputs = mask;
        self
    }

    /// Asks for the inputs of that bit mask to be contiguous.
    pub fn dense(mut self, mask: u32) -> Self {
        self.dense = mask;
        self
    }

    /// Adds a tensor that the forward pass fills for the backward pass.
    pub fn saving(mut self, dtype: DType, shape: Shape) -> Self {
        self.saved.push(Spec::new(dtype, shape));
        self
    }
}

/// What the backward pass gets back of what the forward pass saved. It is handed over by value, so
/// that an op can let go of each tensor as soon as it has read it.
#[derive(Debug, Default)]
pub struct Saved {
    /// By input; present where the plan asked for it.
    pub inputs: Vec<Option<Tensor>>,
    /// By output; present where the plan asked for it.
    pub outputs: Vec<Option<Tensor>>,
    /// The plan's `saved`, in order.
    pub extra: Vec<Tensor>,
    /// Shapes and types of all inputs, saved or not.
    pub metas: Vec<Meta>,
}

impl Saved {
    /// Input `i`, given up by the graph.
    pub fn input(&mut self, i: usize) -> Result<Tensor> {
        self.inputs.get_mut(i).and_then(Option::take).ok_or(Error::GraphReleased { op: "saved input" })
    }

    /// Output `i`, given up by the graph.
    pub fn output(&mut self, i: usize) -> Result<Tensor> {
        self.outputs.get_mut(i).and_then(Option::take).ok_or(Error::GraphReleased { op: "saved output" })
    }
}

/// Where a kernel runs: the device of the op's operands, with its threads and workspace.
#[derive(Debug)]
pub struct Exec<'a> {
    device: &'a Device,
}

impl<'a> Exec<'a> {
    pub(crate) fn new(device: &'a Device) -> Self {
        Exec { device }
    }

    /// The device.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// The CPU, for an op's CPU kernel.
    pub fn cpu(&self) -> Result<&'a Cpu> {
        match self.device {
            Device::Cpu(cpu) => Ok(cpu),
            Device::Cuda(_) => Err(Error::WrongMemory { op: "kernel", device: "CPU" }),
        }
    }

    /// The GPU, for an op's CUDA kernel.
    pub fn gpu(&self) -> Result<&'a phalanx_gpu::Context> {
        match self.device {
            Device::Cuda(gpu) => Ok(gpu),
            Device::Cpu(_) => Err(Error::WrongMemory { op: "kernel", device: "GPU" }),
        }
    }

    /// Scratch memory for the time of a CPU kernel; the contents are arbitrary.
    pub fn workspace(&self, bytes: usize) -> Result<Buffer> {
        Ok(self.cpu()?.pool.alloc(bytes)?)
    }

    /// A new tensor filled by `fill`, outside the graph.
    pub fn make(
        &self,
        dtype: DType,
        shape: Shape,
        fill: impl FnOnce(ViewMut) -> Result<()>,
    ) -> Result<Tensor> {
        let mut block = self.device.alloc(shape.numel() * dtype.size())?;
        fill(ViewMut::of(dtype, shape, block.memory()))?;
        Tensor::from_block(block, dtype, shape, self.device)
    }
}

/// One operation, defined once: its shape rule, its kernels and its gradient.
///
/// An op with parameters (a stride, an axis, a random key) holds them as fields.
pub trait Op: Debug + Send + Sync {
    /// The name in errors, profiles and the op table.
    fn name(&self) -> &'static str;

    /// What becomes of halves; they reach the other functions only with [`Narrow::AnyType`].
    fn narrow(&self) -> Narrow {
        Narrow::Round
    }

    /// The shape rule: every check of the operands is made here, before any memory is taken.
    fn infer(&self, inputs: &[Meta]) -> Result<Plan>;

    /// Fills every element of `outs` and `saved`. Not called for a plan with an alias.
    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()>;

    /// Adds this op's part to the gradients of its inputs: `grads[i]` is the gradient of output i (not
    /// necessarily contiguous; none when nothing depends on it). Inputs whose [`GradSink::wants`] is
    /// false get nothing and cost nothing.
    fn backward(&self, cx: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()>;

    /// The op's kernels for GPUs (`ops/<family>/cuda.rs`).
    fn cuda(&self) -> Option<&dyn CudaOp> {
        None
    }

    /// The gradient written with ops, so that it has a gradient itself. `inputs`, `outputs` and `grads`
    /// are in the graph. An op may refuse, as this default does.
    fn backward_graph(
        &self,
        _inputs: &[Option<Tensor>],
        _outputs: &[Option<Tensor>],
        _metas: &[Meta],
        _grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        Err(Error::NoSecondOrder { op: self.name() })
    }
}

/// An op's kernels for GPUs. They read and write f32, bf16 and f16 and compute in f32: what [`Narrow`] says is only how
/// the shape rule is asked and of which type the results are. Operands may be of different float types.
pub trait CudaOp: Op {
    /// What the shape rule says, changed where kernels on a GPU save something else for the way back: to compute again is
    /// often faster than to read. The operands are as they are, halves too.
    fn plan_cuda(&self, _inputs: &[Meta], plan: Plan) -> Plan {
        plan
    }

    /// As [`Op::forward`]; enqueued on the compute stream.
    fn forward_cuda(
        &self,
        gpu: &phalanx_gpu::Context,
        ins: &[View],
        outs: &mut [ViewMut],
        saved: &mut [ViewMut],
    ) -> Result<()>;

    /// As [`Op::backward`], which serves where that is written with ops. A gradient has its input's type.
    fn backward_cuda(
        &self,
        cx: &Exec,
        saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        self.backward(cx, saved, grads, sink)
    }
}
