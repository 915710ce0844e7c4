//! Group normalisation (Wu and He, 2018) and, with groups of one channel, instance normalisation (Ulyanov, Vedaldi and
//! Lempitsky, 2016): each sample by the moments of its groups of channels. `torch.nn.GroupNorm`'s semantics, channels
//! last.

use phalanx_host::simd::Real;

use super::cpu::{self, Channels, Fused, Masked};
use super::{Given, check_eps, parameter_gradients, row_cpu};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved, Spec};
use crate::sink::GradSink;
use crate::tape::apply;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// What [`Tensor::group_norm_with_moments`] gives.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    /// The normalised, scaled and shifted samples.
    pub y: Tensor,
    /// The mean of each sample's groups, `[N, groups]`; has no gradient.
    pub mean: Tensor,
    /// Their biased variance, `[N, groups]`; has no gradient.
    pub variance: Tensor,
}

/// Inputs x `[N, .., C]`, perhaps gamma, perhaps beta, both `[C]`; outputs y, mean and biased variance `[N, groups]`;
/// saves 1/√(variance + eps).
#[derive(Debug)]
pub(super) struct Grouped {
    pub(super) groups: usize,
    pub(super) eps: f64,
    pub(super) given: Given,
}

const OP: &str = "group_norm";

/// Samples, rows of each, channels.
pub(super) fn sizes(shape: Shape) -> [usize; 3] {
    let last = shape.len() - 1;
    [shape[0], shape[1..last].iter().product(), shape[last]]
}

impl Op for Grouped {
    fn name(&self) -> &'static str {
        OP
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(OP, inputs, 0)?;
        let (dtype, shape) = (inputs[0].dtype, inputs[0].shape());
        let refuse = |why: String| Err(Error::Invalid { op: OP, shape, why });
        if shape.len() < 2 {
            return refuse("it needs at least the two axes of [N,..,C]".to_owned());
        }
        let [samples, _, channels] = sizes(shape);
        if self.groups == 0 || channels % self.groups != 0 {
            return refuse(format!("its {channels} channels cannot be cut into {} groups", self.groups));
        }
        check_eps(OP, shape, self.eps)?;
        let hint = "it must be [C], one number for each of the last axis";
        self.given.check(OP, inputs, [channels].into(), hint)?;
        let moments = Spec::new(dtype, [samples, self.groups].into());
        let plan = Plan::one(dtype, shape).saving_inputs(self.given.saved());
        let mut plan = plan.saving_outputs(0b10).dense(0b111);
        plan.outputs.extend([moments; 2]);
        Ok(plan.saving(dtype, moments.shape))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let [y, mean, variance] = outs else {
            return Err(Error::Backward { why: "group_norm has three outputs".into() });
        };
        let [_, rows, cols] = sizes(ins[0].shape());
        ops::real!(OP, ins[0].dtype, T => {
            let x = ins[0].slice::<T>()?;
            let [gamma, beta] = self.given.operands();
            let of = |i: Option<usize>, plain: T| match i {
                Some(i) => Ok::<_, Error>(ins[i].slice()?.to_vec()),
                None => Ok(vec![plain; cols]),
            };
            let (gamma, beta) = (of(gamma, T::ONE)?, of(beta, T::ZERO)?);
            let (y, all, groups) = (y.slice::<T>()?, rows * cols, self.groups);
            let (mean, variance, inverse) = (mean.slice::<T>()?, variance.slice()?, saved[0].slice()?);
            // A sample's mean, variance and inverse deviation, one after the other.
            let mut moments = vec![T::ZERO; 3 * mean.len()];
            cpu.workers.chunks_of_two((y, all.max(1)), (&mut moments, 3 * groups), |n, y, moments| {
                let x = &x[n * all..(n + 1) * all];
                let (mean, rest) = moments.split_at_mut(groups);
                let (variance, inverse) = rest.split_at_mut(groups);
                cpu::moments(cpu, [rows, cols], x, mean, variance);
                cpu::inverse_deviation(variance, self.eps, inverse);
                let (mean, inverse) = (cpu::spread(mean, cols), cpu::spread(inverse, cols));
                let of = Channels { mean: &mean, inverse: &inverse, gamma: &gamma, beta: &beta };
                cpu::normalise(cpu, x, of, Fused { residual: None, relu: false }, y);
            });
            for (n, part) in moments.chunks_exact(3 * groups).enumerate() {
                let at = n * groups..(n + 1) * groups;
                mean[at.clone()].copy_from_slice(&part[..groups]);
                variance[at.clone()].copy_from_slice(&part[groups..2 * groups]);
                inverse[at].copy_from_slice(&part[2 * groups..]);
            }
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
        let (x, mean) = (saved.input(0)?, saved.output(1)?);
        let gamma = if self.given.gamma { Some(saved.input(1)?.read()?) } else { None };
        let [samples, rows, cols] = sizes(x.shape());
        let g = g.contiguous()?;
        ops::real!(OP, g.dtype(), T => {
            let (x, read, mean, inverse) = (x.read()?, g.read()?, mean.read()?, saved.extra[0].read()?);
            let gamma = match &gamma {
                Some(g) => g.slice::<T>()?.to_vec(),
                None => vec![T::ONE; cols],
            };
            let samples = Samples {
                x: x.slice()?,
                g: read.slice()?,
                mean: mean.slice()?,
                inverse: inverse.slice()?,
                sizes: [samples, rows, cols],
                groups: self.groups,
            };
            let mut sums = vec![T::ZERO; 2 * cols * samples.sizes[0]];
            cpu.workers.chunks(&mut sums, (2 * cols).max(1), |n, sums| {
                let of = samples.at(n);
                sums.copy_from_slice(&cpu::gradient_sums(cpu, rows, of.g, of.x, &of.mean, &of.inverse));
            });
            let total = row_cpu::total(&sums, 2 * cols);
            parameter_gradients(sink, &total, self.given.operands())?;
            let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
            let accumulate = slot.accumulate();
            cpu.workers.chunks(slot.slice()?, (rows * cols).max(1), |n, dx| {
                let (of, sums) = (samples.at(n), &sums[n * 2 * cols..(n + 1) * 2 * cols]);
                let rule = cpu::input_rule(rows, self.groups, sums, &of.mean, &of.inverse, &gamma);
                cpu::input_gradient(cpu, of.g, of.x, &rule, dx, accumulate);
            });
            Ok(())
        })
    }
}

/// What the backward pass reads of all samples.
struct Samples<'a, E> {
    x: &'a [E],
    g: &'a [E],
    mean: &'a [E],
    inverse: &'a [E],
    sizes: [usize; 3],
    groups: usize,
}

/// The same of one sample; moments by channel.
struct Sample<'a, E> {
    x: &'a [E],
    g: Masked<'a, E>,
    mean: Vec<E>,
    inverse: Vec<E>,
}

impl<'a, E: Real> Samples<'a, E> {
    fn at(&self, n: usize) -> Sample<'a, E> {
        let [_, rows, cols] = self.sizes;
        let (all, of) = (n * rows * cols..(n + 1) * rows * cols, n * self.groups..(n + 1) * self.groups);
        Sample {
            x: &self.x[all.clone()],
            g: Masked { g: &self.g[all], y: None },
            mean: cpu::spread(&self.mean[of.clone()], cols),
            inverse: cpu::spread(&self.inverse[of], cols),
        }
    }
}

impl Tensor {
    /// Normalises each of `groups` groups of neighbouring channels (the last axis of `[N, .., C]`) of each sample by
    /// its own mean and biased variance, then scales each channel by `gamma` and shifts it by `beta`, where they are
    /// given, both `[C]`. With as many groups as channels it is instance normalisation.
    ///
    /// A group of a single value has variance 0 and becomes `beta`.
    pub fn group_norm(
        &self,
        groups: usize,
        gamma: Option<&Tensor>,
        beta: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        Ok(self.group_norm_with_moments(groups, gamma, beta, eps)?.y)
    }

    /// As [`Tensor::group_norm`], and the moments.
    pub fn group_norm_with_moments(
        &self,
        groups: usize,
        gamma: Option<&Tensor>,
        beta: Option<&Tensor>,
        eps: f64,
    ) -> Result<GroupNorm> {
        let inputs: Vec<&Tensor> = std::iter::once(self).chain(gamma).chain(beta).collect();
        let op = Grouped { groups, eps, given: Given::of(gamma, beta) };
        let mut outs = apply(op, &inputs)?.into_iter();
        let (Some(y), Some(mean), Some(variance)) = (outs.next(), outs.next(), outs.next()) else {
            return Err(Error::Backward { why: "group_norm has three outputs".into() });
        };
        Ok(GroupNorm { y, mean: mean.detach(), variance: variance.detach() })
    }
}
