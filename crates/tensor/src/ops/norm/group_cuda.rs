//! Group normalisation on a GPU: a batch norm's passes for each sample, with moments by groups of channels.

use phalanx_gpu::Context;

use super::group::{Grouped, sizes};
use super::sweeps::{self, Behind, Channels, Finish, Mask, Matrix, MomentsOut, Operand, Target};
use crate::op::{CudaOp, Exec, Saved};
use crate::sink::GradSink;
use crate::{Error, Result, Shape, Tensor, View, ViewMut};

fn matrix(shape: Shape) -> Matrix {
    let [samples, rows, cols] = sizes(shape);
    Matrix { samples, rows, cols }
}

impl CudaOp for Grouped {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        saved: &mut [ViewMut],
    ) -> Result<()> {
        let [y, mean, variance] = outs else {
            return Err(Error::Backward { why: "group_norm has three outputs".into() });
        };
        let m = matrix(ins[0].shape());
        let [gamma, beta] = self.given.operands().map(|i| Operand::perhaps(gpu, i.map(|i| &ins[i])));
        let (gamma, beta) = (gamma?, beta?);
        let spread = gpu.alloc(m.samples * 2 * m.cols * size_of::<f32>())?;
        let out = MomentsOut {
            groups: self.groups,
            mean: mean.ptr()?,
            variance: variance.ptr()?,
            inverse: saved[0].ptr()?,
            spread: spread.ptr(),
        };
        sweeps::moments(gpu, &ins[0], m, self.eps, out)?;
        let of = Channels { gamma: gamma.ptr, beta: beta.ptr, ..Channels::spread(&spread, m.cols) };
        sweeps::normalise(gpu, &ins[0], None, y, of, false, m)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (gpu, x) = (cx.gpu()?, saved.input(0)?);
        let (dtype, m) = (x.dtype(), matrix(x.shape()));
        let gamma = if self.given.gamma { Some(saved.input(1)?.read()?) } else { None };
        let gamma = Operand::perhaps(gpu, gamma.as_ref().map(|g| g.view()).as_ref())?;
        let (mean, inverse) = (saved.output(1)?.read()?, saved.extra[0].read()?);
        let (x, g) = (x.read()?, g.to(dtype)?.contiguous()?.read()?);
        let spread = sweeps::spread_groups(gpu, [mean.ptr()?, inverse.ptr()?], m, self.groups)?;
        let of = Channels { gamma: gamma.ptr, ..Channels::spread(&spread, m.cols) };
        let behind = Behind { dtype, g: g.ptr()?, x: x.ptr()?, of, mask: Mask::Plain, m };
        let (parts, sums) = (behind.sums(gpu)?, gpu.alloc(m.samples * 2 * m.cols * size_of::<f32>())?);
        let each = Finish { of, sums: sums.ptr(), ..Finish::NONE };
        each.run(gpu, parts.memory.ptr(), parts.count, [m.samples, m.cols])?;
        let [gamma, beta] = self.given.operands().map(|i| Target::of(sink, i));
        let (gamma, beta) = (gamma?, beta?);
        if gamma.wanted() || beta.wanted() {
            // The samples' sums are the parts of the whole.
            let all = Finish { gamma, beta, ..Finish::NONE };
            all.run(gpu, sums.ptr(), m.samples, [1, m.cols])?;
        }
        let dx = Target::of(sink, Some(0))?;
        if dx.wanted() {
            let rule = sweeps::group_rule(gpu, &sums, of, m, self.groups)?;
            behind.input_gradient(gpu, rule.ptr(), dx)?;
        }
        Ok(())
    }
}
