//! Layer normalisation (Ba, Kiros and Hinton, 2016) and root mean square normalisation (Zhang and Sennrich, 2019):
//! each row by its own moments. `torch.nn.LayerNorm`'s and `torch.nn.RMSNorm`'s semantics.

use super::{Given, check_eps, parameter_gradients, row_cpu};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// Inputs x, perhaps gamma, perhaps beta, both of the shape of x's last `axes`; saves each row's mean and inverse
/// deviation.
#[derive(Debug)]
pub(super) struct RowNorm {
    pub(super) axes: usize,
    pub(super) eps: f64,
    /// Whether the mean is taken off first.
    pub(super) centred: bool,
    pub(super) given: Given,
}

impl RowNorm {
    fn rule(&self, shape: Shape) -> row_cpu::Rule {
        let k = shape[shape.len() - self.axes..].iter().product();
        row_cpu::Rule { k, centred: self.centred, eps: self.eps }
    }
}

impl Op for RowNorm {
    fn name(&self) -> &'static str {
        if self.centred { "layer_norm" } else { "rms_norm" }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (op, shape) = (self.name(), inputs[0].shape());
        ops::want_real(op, inputs, 0)?;
        if self.axes == 0 || self.axes > shape.len() {
            let why = format!("it has no {} last axes to be normalised together", self.axes);
            return Err(Error::Invalid { op, shape, why });
        }
        check_eps(op, shape, self.eps)?;
        let (before, normalised) = shape.split_at(shape.len() - self.axes);
        let hint = "it must have the shape of the axes that are normalised together";
        self.given.check(op, inputs, normalised.into(), hint)?;
        let moments = [before.iter().product(), 2];
        let plan = Plan::one(inputs[0].dtype, shape).saving_inputs(self.given.saved()).dense(0b111);
        Ok(plan.saving(inputs[0].dtype, moments.into()))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        ops::real!(self.name(), ins[0].dtype, T => {
            let [gamma, beta] = self.given.operands().map(|i| i.map(|i| ins[i].slice::<T>()).transpose());
            let affine = row_cpu::Affine { gamma: gamma?, beta: beta? };
            let (rule, moments) = (self.rule(ins[0].shape()), saved[0].slice()?);
            row_cpu::normalise(cpu, rule, ins[0].slice()?, affine, outs[0].slice()?, moments);
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
        let x = saved.input(0)?;
        let gamma = if self.given.gamma { Some(saved.input(1)?.read()?) } else { None };
        let (rule, g) = (self.rule(x.shape()), g.contiguous()?);
        let parameters = (1..3).any(|i| sink.wants(i));
        ops::real!(self.name(), g.dtype(), T => {
            let (x, read, moments) = (x.read()?, g.read()?, saved.extra[0].read()?);
            let gamma = gamma.as_ref().map(|g| g.slice()).transpose()?;
            let of = row_cpu::Behind { x: x.slice::<T>()?, g: read.slice()?, gamma, moments: moments.slice()? };
            let sums = match sink.slot(0)? {
                Some(mut slot) => {
                    let accumulate = slot.accumulate();
                    row_cpu::gradients(cpu, rule, of, slot.slice()?, accumulate, parameters)
                }
                None => {
                    let mut unwanted = cx.workspace(size_of_val(of.x))?;
                    row_cpu::gradients(cpu, rule, of, unwanted.as_mut_slice(), false, parameters)
                }
            };
            parameter_gradients(sink, &sums, self.given.operands())
        })
    }
}

impl Tensor {
    /// `(x − mean) / √(variance + eps) · gamma + beta`, with the mean and the biased variance over the last `axes` axes
    /// together; gamma and beta, where they are given, have those axes' shape. As `torch.nn.functional.layer_norm`.
    pub fn layer_norm(
        &self,
        axes: usize,
        gamma: Option<&Tensor>,
        beta: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        self.row_norm(axes, gamma, beta, eps, true)
    }

    /// `x / √(mean of x² + eps) · gamma`, with the mean over the last `axes` axes together, whose shape gamma has. As
    /// `torch.nn.functional.rms_norm`.
    pub fn rms_norm(&self, axes: usize, gamma: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        self.row_norm(axes, gamma, None, eps, false)
    }

    fn row_norm(
        &self,
        axes: usize,
        gamma: Option<&Tensor>,
        beta: Option<&Tensor>,
        eps: f64,
        centred: bool,
    ) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = std::iter::once(self).chain(gamma).chain(beta).collect();
        apply_one(RowNorm { axes, eps, centred, given: Given::of(gamma, beta) }, &inputs)
    }
}
