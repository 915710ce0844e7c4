//! Convolution of channels-last sequences, images and volumes, through the host's kernels.
//!
//! A convolution ties three tensors together: its input, its weight and its output. Each is a sum over
//! products of the other two, and so is each one's gradient. So there is one op, which computes any of the
//! three: the output (a convolution), the input (a transposed convolution) or the weight.

pub(super) mod cuda;
pub(super) mod direct;
mod local;
mod options;

use phalanx_host::simd::Real;
use phalanx_host::{ConvShape, Cpu, conv_forward, conv_input_gradient, conv_weight_gradient};

pub use options::Conv;

use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::ops::columns::add_column_sums;
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// One of the tensors that a convolution ties together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// `[N, …, I]`.
    Input,
    /// `[O, …, I / groups]`.
    Weight,
    /// `[N, …, O]`.
    Output,
}

impl Part {
    /// What this part is computed from, in the order of the operands.
    fn from(self) -> [Part; 2] {
        match self {
            Part::Output => [Part::Input, Part::Weight],
            Part::Input => [Part::Output, Part::Weight],
            Part::Weight => [Part::Input, Part::Output],
        }
    }

    /// What computing it is called.
    fn name(self) -> &'static str {
        match self {
            Part::Output => "forward",
            Part::Input => "the input's gradient",
            Part::Weight => "the weight's gradient",
        }
    }
}

/// What tells the sizes.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::large_enum_variant, reason = "there is one for a call of an op, and it is copied once")]
enum Rule {
    /// The user's options; the operands tell the rest.
    Options(Conv),
    /// Those of the convolution that this op is a gradient of.
    Sizes(ConvShape),
}

/// Computes `part` from the other two, and adds a bias (one number a channel) as a third operand.
#[derive(Debug)]
struct Convolution {
    part: Part,
    /// Axes between samples and channels.
    rank: usize,
    rule: Rule,
}

/// The shape of a part.
fn shape_of(part: Part, s: &ConvShape, rank: usize) -> Result<Shape> {
    let (first, sizes, last) = match part {
        Part::Input => (s.batch, s.size, s.in_c),
        Part::Weight => (s.out_c, s.kernel, s.in_c / s.groups),
        Part::Output => (s.batch, s.out_size()?, s.out_c),
    };
    Ok(Shape::new(&[&[first], &sizes[3 - rank..], &[last]].concat()))
}

/// Computes `part` of a convolution from `a` and `b`, in the order of [`Part::from`].
fn compute<T: Real>(
    cpu: &Cpu,
    s: &ConvShape,
    part: Part,
    [a, b]: [&[T]; 2],
    bias: Option<&[T]>,
    to: &mut [T],
    accumulate: bool,
) -> phalanx_host::Result<()> {
    match part {
        Part::Output => conv_forward(cpu, s, a, b, bias, to, accumulate),
        Part::Input => {
            if let Some(bias) = bias {
                to.chunks_exact_mut(bias.len().max(1)).for_each(|row| row.copy_from_slice(bias));
            }
            conv_input_gradient(cpu, s, b, a, to, accumulate || bias.is_some())
        }
        Part::Weight => conv_weight_gradient(cpu, s, a, b, to, accumulate),
    }
}

/// Hands out the gradients of a bias and two operands, the last one's first: a weight's sum is on its way between
/// ranks before the input's is computed. Each function writes or adds one, and lets go of what it holds.
fn gradients<T: Real>(
    cpu: &Cpu,
    g: &[T],
    sink: &mut GradSink,
    of_second: impl FnOnce(&mut [T], bool) -> Result<()>,
    of_first: impl FnOnce(&mut [T], bool) -> Result<()>,
) -> Result<()> {
    if let Some(mut slot) = sink.slot(2)? {
        let accumulate = slot.accumulate();
        add_column_sums(cpu, g, slot.slice()?, accumulate);
    }
    sink.settle(2)?;
    match sink.slot(1)? {
        Some(mut slot) => {
            let accumulate = slot.accumulate();
            of_second(slot.slice()?, accumulate)?;
        }
        None => drop(of_second),
    }
    sink.settle(1)?;
    if let Some(mut slot) = sink.slot(0)? {
        let accumulate = slot.accumulate();
        of_first(slot.slice()?, accumulate)?;
    }
    Ok(())
}

impl Convolution {
    fn sizes(&self, a: Shape, b: Shape) -> Result<ConvShape> {
        let (op, rank) = (self.name(), self.rank);
        let misfit = |hint| Error::Shapes { op, lhs: a, rhs: b, hint };
        let conv = match self.rule {
            Rule::Options(conv) => conv,
            Rule::Sizes(s) => {
                let [first, second] = self.part.from();
                let fits = shape_of(first, &s, rank)? == a && shape_of(second, &s, rank)? == b;
                return if fits { Ok(s) } else { Err(misfit("they are not those of the convolution")) };
            }
        };
        if a.len() != rank + 2 || b.len() != rank + 2 {
            return Err(misfit(
                "it takes [N,..,C] and a weight [O,..,I/groups] with an axis for each dimension",
            ));
        }
        let (x, sizes) = (a[rank + 1], &a[1..=rank]);
        let (rows, kernel, share) = (b[0], &b[1..=rank], b[rank + 1]);
        let channels = share.saturating_mul(conv.group_count());
        let refuse = |why: String| Error::Invalid { op, shape: a, why: format!("{why} (the weight is {b})") };
        match self.part {
            Part::Input if x != rows => {
                Err(misfit("the weight [I,..,O/groups] has one row for each channel of [N,..,I]"))
            }
            Part::Input => conv.transposed_sizes([a[0], channels, rows], sizes, kernel).map_err(refuse),
            _ if x != channels => {
                Err(misfit("the channels of [N,..,I] are not those of the weight [O,..,I/groups]"))
            }
            _ => conv.sizes([a[0], channels, rows], sizes, kernel).map_err(refuse),
        }
    }

    /// Computes another part of the same convolution.
    fn other(&self, part: Part, s: ConvShape) -> Self {
        Convolution { part, rank: self.rank, rule: Rule::Sizes(s) }
    }
}

impl Op for Convolution {
    fn name(&self) -> &'static str {
        let names = match self.part {
            Part::Output => ["conv1d", "conv2d", "conv3d"],
            Part::Input => ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"],
            Part::Weight => ["conv1d_weight", "conv2d_weight", "conv3d_weight"],
        };
        names[self.rank - 1]
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let op = self.name();
        ops::want_real(op, inputs, 0)?;
        (1..inputs.len()).try_for_each(|i| ops::want_same(op, inputs, i))?;
        let s = self.sizes(inputs[0].shape(), inputs[1].shape())?;
        let mut s = s;
        s.outputs = Some(s.out_size()?);
        let shape = shape_of(self.part, &s, self.rank)?;
        if inputs.len() == 3 {
            let channels = shape[self.rank + 1];
            ops::want_shape(
                op,
                inputs,
                2,
                [channels].into(),
                "the bias has one number a channel of the output",
            )?;
        }
        Ok(Plan::one(inputs[0].dtype, shape).saving_inputs(3).dense(7))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let s = self.sizes(ins[0].shape(), ins[1].shape())?;
        ops::real!(self.name(), ins[0].dtype, T => {
            let bias = ins.get(2).map(View::slice::<T>).transpose()?;
            Ok(compute(cpu, &s, self.part, [ins[0].slice()?, ins[1].slice()?], bias, outs[0].slice()?, false)?)
        })
    }

    fn backward(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let cpu = cx.cpu()?;
        let (a, b) = (saved.input(0)?, saved.input(1)?);
        let s = self.sizes(a.shape(), b.shape())?;
        let [first, second] = self.part.from();
        let g = g.contiguous()?;
        ops::real!(self.name(), g.dtype(), T => {
            let g = g.read()?;
            let g = g.slice::<T>()?;
            let of_second = move |to: &mut [T], accumulate| {
                let a = a.read()?;
                let [p, q] = second.from().map(|p| if p == first { a.slice() } else { Ok(g) });
                Ok(compute(cpu, &s, second, [p?, q?], None, to, accumulate)?)
            };
            let of_first = |to: &mut [T], accumulate| {
                let b = b.read()?;
                let [p, q] = first.from().map(|p| if p == second { b.slice() } else { Ok(g) });
                Ok(compute(cpu, &s, first, [p?, q?], None, to, accumulate)?)
            };
            gradients(cpu, g, sink, of_second, of_first)
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let [Some(a), Some(b), ..] = inputs else { return Err(Error::GraphReleased { op: self.name() }) };
        let Some(g) = &grads[0] else { return Ok(vec![None; metas.len()]) };
        let s = self.sizes(a.shape(), b.shape())?;
        let [first, second] = self.part.from();
        let [p, q] = first.from().map(|p| if p == second { b } else { g });
        let mut parts = vec![Some(apply_one(self.other(first, s), &[p, q])?)];
        let [p, q] = second.from().map(|p| if p == first { a } else { g });
        parts.push(Some(apply_one(self.other(second, s), &[p, q])?));
        if metas.len() == 3 {
            let axes: Vec<usize> = (0..=self.rank).collect();
            parts.push(Some(g.sum(&axes, false)?));
        }
        Ok(parts)
    }
}

impl Tensor {
    fn convolve(
        &self,
        part: Part,
        rank: usize,
        w: &Tensor,
        bias: Option<&Tensor>,
        conv: &Conv,
    ) -> Result<Tensor> {
        let op = Convolution { part, rank, rule: Rule::Options(*conv) };
        match bias {
            Some(b) => apply_one(op, &[self, w, b]),
            None => apply_one(op, &[self, w]),
        }
    }

    /// The cross-correlation of sequences `[N, T, I]` with the weight `w` `[O, K, I / groups]`, plus `bias`
    /// `[O]`: `[N, OT, O]` (`torch.nn.functional.conv1d`, with channels last).
    pub fn conv1d(&self, w: &Tensor, bias: Option<&Tensor>, conv: &Conv) -> Result<Tensor> {
        self.convolve(Part::Output, 1, w, bias, conv)
    }

    /// The cross-correlation of images `[N, H, W, I]` with the weight `w` `[O, KH, KW, I / groups]`, plus
    /// `bias` `[O]`: `[N, OH, OW, O]` (`torch.nn.functional.conv2d`, with channels last).
    pub fn conv2d(&self, w: &Tensor, bias: Option<&Tensor>, conv: &Conv) -> Result<Tensor> {
        self.convolve(Part::Output, 2, w, bias, conv)
    }

    /// The cross-correlation of volumes `[N, D, H, W, I]` with the weight `w` `[O, KD, KH, KW, I / groups]`,
    /// plus `bias` `[O]`: `[N, OD, OH, OW, O]` (`torch.nn.functional.conv3d`, with channels last).
    pub fn conv3d(&self, w: &Tensor, bias: Option<&Tensor>, conv: &Conv) -> Result<Tensor> {
        self.convolve(Part::Output, 3, w, bias, conv)
    }

    /// The transposed convolution of sequences `[N, T, I]` with the weight `w` `[I, K, O / groups]`, plus
    /// `bias` `[O]`: the gradient of the input of the convolution with `w` whose output they are
    /// (`torch.nn.functional.conv_transpose1d`, with channels last).
    pub fn conv_transpose1d(&self, w: &Tensor, bias: Option<&Tensor>, conv: &Conv) -> Result<Tensor> {
        self.convolve(Part::Input, 1, w, bias, conv)
    }

    /// The transposed convolution of images `[N, H, W, I]` with the weight `w` `[I, KH, KW, O / groups]`, as
    /// [`Tensor::conv_transpose1d`].
    pub fn conv_transpose2d(&self, w: &Tensor, bias: Option<&Tensor>, conv: &Conv) -> Result<Tensor> {
        self.convolve(Part::Input, 2, w, bias, conv)
    }

    /// The transposed convolution of volumes `[N, D, H, W, I]` with the weight `w`
    /// `[I, KD, KH, KW, O / groups]`, as [`Tensor::conv_transpose1d`].
    pub fn conv_transpose3d(&self, w: &Tensor, bias: Option<&Tensor>, conv: &Conv) -> Result<Tensor> {
        self.convolve(Part::Input, 3, w, bias, conv)
    }
}
