//! Batch normalisation on a GPU.

use phalanx_gpu::{Context, DevicePtr};

use super::sweeps::{self, Behind, Channels, Finish, Mask, Matrix, MomentsOut, Operand, Target};
use super::{Eval, Train};
use crate::op::{CudaOp, Exec, Saved};
use crate::sink::GradSink;
use crate::{Error, Result, Tensor, View, ViewMut};

impl CudaOp for Train {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        saved: &mut [ViewMut],
    ) -> Result<()> {
        let [y, mean, variance] = outs else {
            return Err(Error::Backward { why: "batch_norm_train has three outputs".into() });
        };
        let (m, inverse) = (Matrix::batch(ins[0].shape()), saved[0].ptr()?);
        let (gamma, beta) = (Operand::numbers(gpu, &ins[1])?, Operand::numbers(gpu, &ins[2])?);
        let (mean, variance) = (mean.ptr()?, variance.ptr()?);
        let out = MomentsOut { groups: m.cols, mean, variance, inverse, spread: DevicePtr(0) };
        sweeps::moments(gpu, &ins[0], m, self.eps, out)?;
        let of = Channels { mean, inverse, gamma: gamma.ptr, beta: beta.ptr, step: 0 };
        sweeps::normalise(gpu, &ins[0], ins.get(3), y, of, self.relu, m)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (mean, inverse) = (saved.output(1)?.read()?, saved.extra[0].read()?);
        let moments = [mean.ptr()?, inverse.ptr()?];
        let residual = (saved.metas.len() > 3).then_some(3);
        let fused = Fused { relu: self.relu, residual, frozen: false };
        fused.backward(cx, saved, g, moments, sink)
    }
}

impl CudaOp for Eval {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let m = Matrix::batch(ins[0].shape());
        let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|i| Operand::numbers(gpu, &ins[i]));
        let (gamma, beta, mean, variance) = (gamma?, beta?, mean?, variance?);
        let inverse = gpu.alloc(m.cols * size_of::<f32>())?;
        sweeps::deviations(gpu, variance.ptr, inverse.ptr(), m.cols, self.eps)?;
        let inverse = inverse.ptr();
        let of = Channels { mean: mean.ptr, inverse, gamma: gamma.ptr, beta: beta.ptr, step: 0 };
        sweeps::normalise(gpu, &ins[0], ins.get(5), &outs[0], of, self.relu, m)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let gpu = cx.gpu()?;
        let (mean, variance) = (saved.input(3)?.read()?, saved.input(4)?.read()?);
        let mean = Operand::numbers(gpu, &mean.view())?;
        let variance = Operand::numbers(gpu, &variance.view())?;
        let channels = saved.metas[1].shape()[0];
        let inverse = gpu.alloc(channels * size_of::<f32>())?;
        sweeps::deviations(gpu, variance.ptr, inverse.ptr(), channels, self.eps)?;
        let moments = [mean.ptr, inverse.ptr()];
        let residual = (saved.metas.len() > 5).then_some(5);
        let fused = Fused { relu: self.relu, residual, frozen: true };
        fused.backward(cx, saved, g, moments, sink)
    }
}

/// A batch norm with what is fused with it, as its backward pass sees it.
struct Fused {
    relu: bool,
    /// The input that the residual is.
    residual: Option<usize>,
    /// Whether the statistics are constants.
    frozen: bool,
}

impl Fused {
    fn backward(
        &self,
        cx: &Exec,
        mut saved: Saved,
        g: &Tensor,
        [mean, inverse]: [DevicePtr; 2],
        sink: &mut GradSink,
    ) -> Result<()> {
        let (gpu, x) = (cx.gpu()?, saved.input(0)?);
        let (dtype, m) = (x.dtype(), Matrix::batch(x.shape()));
        let g = g.to(dtype)?.contiguous()?;
        let again = self.relu && self.residual.is_none();
        let gamma = saved.input(1)?.read()?;
        let beta = if again { Some(saved.input(2)?.read()?) } else { None };
        let gamma = Operand::numbers(gpu, &gamma.view())?;
        let beta = Operand::perhaps(gpu, beta.as_ref().map(|b| b.view()).as_ref())?;
        let of = Channels { mean, inverse, gamma: gamma.ptr, beta: beta.ptr, step: 0 };
        let mask = if again { Mask::Again } else { Mask::Plain };
        let x = x.read()?;
        let behind = |g: DevicePtr, mask| Ok::<_, Error>(Behind { dtype, g, x: x.ptr()?, of, mask, m });

        let wanted = sink.wants(1) || sink.wants(2) || (sink.wants(0) && !self.frozen);
        let (g, parts) = match self.residual.filter(|_| self.relu) {
            Some(i) => {
                let (y, mut parts) = (saved.output(0)?.read()?, None);
                let passed = cx.make(dtype, g.shape(), |out| {
                    let mask = Mask::Kept { y: y.ptr()?, passed: out.ptr()? };
                    parts = Some(behind(g.read()?.ptr()?, mask)?.sums(gpu)?);
                    Ok(())
                })?;
                sink.pass(i, passed.clone())?;
                (passed, parts.filter(|_| wanted))
            }
            None => {
                if let Some(i) = self.residual {
                    sink.pass(i, g.clone())?;
                }
                let parts = wanted.then(|| behind(g.read()?.ptr()?, mask)?.sums(gpu)).transpose()?;
                (g, parts)
            }
        };
        let (to_gamma, to_beta) = (Target::of(sink, Some(1))?, Target::of(sink, Some(2))?);
        let rule = match &parts {
            Some(parts) => {
                let rule = gpu.alloc(2 * m.cols * size_of::<f32>())?;
                let finish = Finish {
                    of,
                    share: 1.0 / m.rows.max(1) as f32,
                    gamma: to_gamma,
                    beta: to_beta,
                    rule: rule.ptr(),
                    ..Finish::NONE
                };
                finish.run(gpu, parts.memory.ptr(), parts.count, [1, m.cols])?;
                (!self.frozen).then_some(rule)
            }
            None => None,
        };
        let dx = Target::of(sink, Some(0))?;
        if dx.wanted() {
            let rule = rule.as_ref().map_or(DevicePtr(0), |r| r.ptr());
            behind(g.read()?.ptr()?, mask)?.input_gradient(gpu, rule, dx)?;
        }
        Ok(())
    }
}
