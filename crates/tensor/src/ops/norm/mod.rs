//! Batch normalisation (Ioffe and Szegedy, "Batch Normalization", 2015) over all axes but the last, alone or fused
//! with the addition and the ReLU that end a residual block; normalisation of each sample by itself beside it.

mod cpu;
mod cuda;
mod group;
mod group_cuda;
mod row_cpu;
pub(super) mod row_cuda;
mod sample;
pub(super) mod sweeps;

pub use group::GroupNorm;
use phalanx_host::simd::Real;

use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::{apply, apply_one};
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// What [`Tensor::batch_norm_train`] gives.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    /// The normalised, scaled and shifted batch.
    pub y: Tensor,
    /// The mean of each channel, `[C]`; has no gradient.
    pub mean: Tensor,
    /// The biased variance of each channel, `[C]`; has no gradient.
    pub variance: Tensor,
    /// The number of values a channel, which statistics of several batches are weighted with.
    pub count: usize,
}

/// What is computed in the same pass after the normalisation, so that neither its result nor the sum is kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fuse<'a> {
    /// Added to the normalised batch, whose shape it has.
    pub residual: Option<&'a Tensor>,
    /// Whether max(·, 0) is taken at last. Its gradient is told from the output, which the next layer keeps anyway.
    pub relu: bool,
}

/// Checks that the operands from 1 up to `channels` are one number a channel and that one after them has x's shape,
/// and gives the channels' shape.
fn per_channel(op: &'static str, inputs: &[Meta], channels: usize) -> Result<Shape> {
    ops::want_real(op, inputs, 0)?;
    let shape = inputs[0].shape();
    let Some(&c) = shape.last().filter(|_| shape.len() >= 2) else {
        let why = "it needs at least the two axes of [N,C]".to_owned();
        return Err(Error::Invalid { op, shape, why });
    };
    for i in 1..inputs.len() {
        ops::want_same(op, inputs, i)?;
        if i > channels {
            ops::want_shape(op, inputs, i, shape, "the residual must have the batch's shape")?;
            continue;
        }
        ops::want_shape(op, inputs, i, [c].into(), "it must be [C], one number for each of the last axis")?;
    }
    Ok([c].into())
}

fn check_eps(op: &'static str, shape: Shape, eps: f64) -> Result<()> {
    match eps >= 0.0 && eps.is_finite() {
        true => Ok(()),
        false => Err(Error::Invalid { op, shape, why: format!("eps is {eps}, must be a number from 0 on") }),
    }
}

/// Rows of the matrix that `shape` is when its last axis is the columns.
fn rows(shape: Shape) -> usize {
    shape[..shape.len() - 1].iter().product()
}

/// Inputs x, gamma, beta, perhaps a residual; outputs y, mean, biased variance; saved 1/√(variance + eps).
#[derive(Debug)]
struct Train {
    eps: f64,
    relu: bool,
}

impl Op for Train {
    fn name(&self) -> &'static str {
        "batch_norm_train"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let channels = per_channel(self.name(), inputs, 2)?;
        check_eps(self.name(), inputs[0].shape(), self.eps)?;
        let (dtype, of) = (inputs[0].dtype, inputs[0].shape());
        let outputs = 0b10 | u32::from(self.relu);
        // Beta for a GPU, which computes a ReLU's input again rather than read its output; a residual is not kept.
        let inputs = if self.relu && inputs.len() == 3 { 0b111 } else { 0b11 };
        let mut plan = Plan::one(dtype, of).saving_inputs(inputs).saving_outputs(outputs).dense(0b1111);
        plan.outputs.extend([crate::Spec::new(dtype, channels); 2]);
        Ok(plan.saving(dtype, channels))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let [y, mean, variance] = outs else {
            return Err(Error::Backward { why: "batch_norm_train has three outputs".into() });
        };
        let rows = rows(ins[0].shape());
        ops::real!(self.name(), ins[0].dtype, T => {
            let (x, gamma, beta) = (ins[0].slice::<T>()?, ins[1].slice::<T>()?, ins[2].slice::<T>()?);
            let (mean, variance, inverse) = (mean.slice::<T>()?, variance.slice()?, saved[0].slice()?);
            cpu::moments(cpu, [rows, mean.len()], x, mean, variance);
            cpu::inverse_deviation(variance, self.eps, inverse);
            let fuse = fused(ins.get(3), self.relu)?;
            cpu::normalise(cpu, x, cpu::Channels { mean, inverse, gamma, beta }, fuse, y.slice()?);
            Ok(())
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
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
        let y = if self.relu { Some(saved.output(0)?) } else { None };
        let (x, gamma, mean) = (saved.input(0)?, saved.input(1)?, saved.output(1)?);
        let rows = rows(x.shape());
        let (g, y) = through_residual(cx, sink, 3, g.contiguous()?, y)?;
        ops::real!(self.name(), g.dtype(), T => {
            let (g, x, gamma) = (g.read()?, x.read()?, gamma.read()?);
            let (mean, inverse) = (mean.read()?, saved.extra[0].read()?);
            let (x, mean, inverse) = (x.slice()?, mean.slice()?, inverse.slice()?);
            let y = y.as_ref().map(Tensor::read).transpose()?;
            let g = cpu::Masked { g: g.slice::<T>()?, y: y.as_ref().map(|y| y.slice()).transpose()? };
            let sums = cpu::gradient_sums(cpu, rows, g, x, mean, inverse);
            parameter_gradients(sink, &sums, [Some(1), Some(2)])?;
            if let Some(mut slot) = sink.slot(0)? {
                let accumulate = slot.accumulate();
                let a = cpu::input_rule(rows, mean.len(), &sums, mean, inverse, gamma.slice()?);
                cpu::input_gradient(cpu, g, x, &a, slot.slice()?, accumulate);
            }
            Ok(())
        })
    }
}

/// The residual, if there is one, and what follows it.
fn fused<'a, T: Real>(residual: Option<&View<'a>>, relu: bool) -> Result<cpu::Fused<'a, T>> {
    Ok(cpu::Fused { residual: residual.map(View::slice).transpose()?, relu })
}

/// Gives the residual, input `i` if there is one, its gradient: what a ReLU let through of the output's. Returns
/// the gradient that is left to go on with, and the output where its mask is still to be taken.
fn through_residual(
    cx: &Exec,
    sink: &mut GradSink,
    i: usize,
    g: Tensor,
    y: Option<Tensor>,
) -> Result<(Tensor, Option<Tensor>)> {
    if !sink.wants(i) {
        return Ok((g, y));
    }
    let g = match y {
        // Both go on with it, and the output's memory is free before the input's gradient needs its own.
        Some(y) => ops::elementwise::relu_gradient(cx, &y, &g)?,
        None => g,
    };
    sink.pass(i, g.clone())?;
    Ok((g, None))
}

/// Whether a norm of single samples has been given gamma and beta, which then come after x.
#[derive(Debug, Clone, Copy)]
struct Given {
    gamma: bool,
    beta: bool,
}

impl Given {
    fn of(gamma: Option<&Tensor>, beta: Option<&Tensor>) -> Self {
        Given { gamma: gamma.is_some(), beta: beta.is_some() }
    }

    /// The operands that they are.
    fn operands(self) -> [Option<usize>; 2] {
        [self.gamma.then_some(1), self.beta.then_some(1 + usize::from(self.gamma))]
    }

    /// The inputs that the backward pass reads, x and gamma, as a bit mask.
    fn saved(self) -> u32 {
        if self.gamma { 0b11 } else { 0b1 }
    }

    /// Checks that both have `shape`.
    fn check(self, op: &'static str, inputs: &[Meta], shape: Shape, hint: &'static str) -> Result<()> {
        self.operands().into_iter().flatten().try_for_each(|i| {
            ops::want_same(op, inputs, i)?;
            ops::want_shape(op, inputs, i, shape, hint)
        })
    }
}

/// Gradients of gamma and beta, inputs `[i, j]` where there are such, from the sums over the rows of g times the
/// normalised input, then of g.
fn parameter_gradients<T: Real>(sink: &mut GradSink, sums: &[T], inputs: [Option<usize>; 2]) -> Result<()> {
    let (of_gamma, of_beta) = sums.split_at(sums.len() / 2);
    for (i, sums) in inputs.into_iter().zip([of_gamma, of_beta]) {
        let Some(i) = i else { continue };
        if let Some(mut slot) = sink.slot(i)? {
            let accumulate = slot.accumulate();
            let out = slot.slice::<T>()?;
            match accumulate {
                true => out.iter_mut().zip(sums).for_each(|(o, &s)| *o += s),
                false => out.copy_from_slice(sums),
            }
        }
    }
    Ok(())
}

/// Inputs x, gamma, beta, mean, variance, perhaps a residual; the statistics are constants.
#[derive(Debug)]
struct Eval {
    eps: f64,
    relu: bool,
}

impl Op for Eval {
    fn name(&self) -> &'static str {
        "batch_norm_eval"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        per_channel(self.name(), inputs, 4)?;
        check_eps(self.name(), inputs[0].shape(), self.eps)?;
        let plan = Plan::one(inputs[0].dtype, inputs[0].shape()).saving_outputs(u32::from(self.relu));
        let saved = if self.relu && inputs.len() == 5 { 0b11111 } else { 0b11011 };
        Ok(plan.saving_inputs(saved).dense(0b11_1111))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        ops::real!(self.name(), ins[0].dtype, T => {
            let part = |i: usize| ins[i].slice::<T>();
            let mut inverse = part(4)?.to_vec();
            cpu::inverse_deviation(part(4)?, self.eps, &mut inverse);
            let of = cpu::Channels { gamma: part(1)?, beta: part(2)?, mean: part(3)?, inverse: &inverse };
            cpu::normalise(cpu, part(0)?, of, fused(ins.get(5), self.relu)?, outs[0].slice()?);
            Ok(())
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
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
        let y = if self.relu { Some(saved.output(0)?) } else { None };
        let (x, gamma) = (saved.input(0)?, saved.input(1)?);
        let (mean, variance) = (saved.input(3)?, saved.input(4)?);
        let rows = rows(x.shape());
        let (g, y) = through_residual(cx, sink, 5, g.contiguous()?, y)?;
        ops::real!(self.name(), g.dtype(), T => {
            let (g, x, gamma, mean) = (g.read()?, x.read()?, gamma.read()?, mean.read()?);
            let (x, y) = (x.slice()?, y.as_ref().map(Tensor::read).transpose()?);
            let g = cpu::Masked { g: g.slice::<T>()?, y: y.as_ref().map(|y| y.slice()).transpose()? };
            let mut inverse = variance.to_vec::<T>()?;
            cpu::inverse_deviation(&inverse.clone(), self.eps, &mut inverse);
            if sink.wants(1) || sink.wants(2) {
                let sums = cpu::gradient_sums(cpu, rows, g, x, mean.slice()?, &inverse);
                parameter_gradients(sink, &sums, [Some(1), Some(2)])?;
            }
            if let Some(mut slot) = sink.slot(0)? {
                let accumulate = slot.accumulate();
                let a = cpu::frozen_rule(&inverse, gamma.slice()?);
                cpu::input_gradient(cpu, g, x, &a, slot.slice()?, accumulate);
            }
            Ok(())
        })
    }
}

impl Tensor {
    /// Normalises each channel (the last axis of `[N, C]` or `[N, H, W, C]`) by this batch's own mean
    /// and biased variance, then scales by `gamma` and shifts by `beta`, both `[C]`.
    ///
    /// A channel of a single value has variance 0 and becomes `beta`, and an empty batch gives
    /// statistics of 0 with a count of 0: a virtual shard may hold one sample or none, and its
    /// statistics are weighted with the count.
    pub fn batch_norm_train(&self, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<BatchNorm> {
        self.batch_norm_train_with(gamma, beta, eps, Fuse::default())
    }

    /// As [`Tensor::batch_norm_train`], with what `fuse` says in the same pass: relu(norm + residual).
    pub fn batch_norm_train_with(
        &self,
        gamma: &Tensor,
        beta: &Tensor,
        eps: f64,
        fuse: Fuse,
    ) -> Result<BatchNorm> {
        let inputs: Vec<&Tensor> = [self, gamma, beta].into_iter().chain(fuse.residual).collect();
        let mut outs = apply(Train { eps, relu: fuse.relu }, &inputs)?.into_iter();
        let (Some(y), Some(mean), Some(variance)) = (outs.next(), outs.next(), outs.next()) else {
            return Err(Error::Backward { why: "batch_norm_train has three outputs".into() });
        };
        let count = rows(self.shape());
        Ok(BatchNorm { y, mean: mean.detach(), variance: variance.detach(), count })
    }

    /// As [`Tensor::batch_norm_train`] with given statistics `mean` and `variance`, which get no gradient.
    pub fn batch_norm_eval(
        &self,
        gamma: &Tensor,
        beta: &Tensor,
        mean: &Tensor,
        variance: &Tensor,
        eps: f64,
    ) -> Result<Tensor> {
        self.batch_norm_eval_with([gamma, beta], [mean, variance], eps, Fuse::default())
    }

    /// As [`Tensor::batch_norm_eval`] with `[gamma, beta]` and `[mean, variance]`, with what `fuse` says in the same
    /// pass: relu(norm + residual).
    pub fn batch_norm_eval_with(
        &self,
        [gamma, beta]: [&Tensor; 2],
        [mean, variance]: [&Tensor; 2],
        eps: f64,
        fuse: Fuse,
    ) -> Result<Tensor> {
        let (mean, variance) = (mean.detach(), variance.detach());
        let inputs: Vec<&Tensor> =
            [self, gamma, beta, &mean, &variance].into_iter().chain(fuse.residual).collect();
        apply_one(Eval { eps, relu: fuse.relu }, &inputs)
    }
}
