//! Tensors put one after the other.

use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, MAX_AXES, Result, Tensor, View, ViewMut, ops};

/// Operands one after the other along an axis.
#[derive(Debug, Clone, Copy)]
struct Concat {
    op: &'static str,
    axis: usize,
}

impl Concat {
    /// The parts of the output's gradient, one an operand.
    fn grads(
        &self,
        metas: &[Meta],
        g: &Tensor,
        wants: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut start = 0;
        let part = |(i, m): (usize, &Meta)| {
            let len = m.shape()[self.axis];
            start += len;
            wants(i).then(|| g.slice(self.axis, start - len, len)).transpose()
        };
        metas.iter().enumerate().map(part).collect()
    }
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        self.op
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let first = inputs[0].shape();
        ops::want_axis(self.op, first, self.axis)?;
        let mut total = first[self.axis];
        for (i, m) in inputs.iter().enumerate().skip(1) {
            ops::want_same(self.op, inputs, i)?;
            let shape = m.shape();
            if shape.len() != first.len() || first.with(self.axis, 0) != shape.with(self.axis, 0) {
                let hint = "all axes but the joined one must be equal";
                return Err(Error::Shapes { op: self.op, lhs: first, rhs: shape, hint });
            }
            total += shape[self.axis];
        }
        Ok(Plan::one(inputs[0].dtype, first.with(self.axis, total)))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        cx.cpu()?;
        let mut start = 0;
        for x in ins {
            ops::shape::put(x, self.axis, start, 1, &mut outs[0])?;
            start += x.shape()[self.axis];
        }
        Ok(())
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward(&self, _: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let parts = self.grads(&saved.metas, g, |i| sink.wants(i))?;
        for (i, part) in parts.into_iter().enumerate() {
            part.into_iter().try_for_each(|p| sink.pass(i, p))?;
        }
        Ok(())
    }

    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(g) = &grads[0] else { return Ok(vec![None; metas.len()]) };
        self.grads(metas, g, |_| true)
    }
}

impl CudaOp for Concat {
    fn forward_cuda(
        &self,
        gpu: &phalanx_gpu::Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let mut start = 0;
        for x in ins {
            let target = ops::shape::part(outs[0].shape, x.shape(), self.axis, start, 1);
            let part = ops::cuda::typed(gpu, x, outs[0].dtype)?;
            ops::shape::cuda::place(gpu, &part.view(), &target, &mut outs[0], false)?;
            start += x.shape()[self.axis];
        }
        Ok(())
    }
}

fn join(op: &'static str, parts: &[&Tensor], axis: usize) -> Result<Tensor> {
    if parts.is_empty() {
        let why = "it needs at least one tensor".to_owned();
        return Err(Error::Invalid { op, shape: [0].into(), why });
    }
    apply_one(Concat { op, axis }, parts)
}

/// The tensors one after the other along `axis`; all other axes must be equal.
pub fn concat(parts: &[&Tensor], axis: usize) -> Result<Tensor> {
    join("concat", parts, axis)
}

/// The tensors, all of one shape, along a new axis `axis`.
pub fn stack(parts: &[&Tensor], axis: usize) -> Result<Tensor> {
    let wider = |t: &&Tensor| {
        let shape = t.shape();
        if axis > shape.len() || shape.len() >= MAX_AXES {
            let why = format!("there is no place {axis} for a new axis");
            return Err(Error::Invalid { op: "stack", shape, why });
        }
        if shape != parts[0].shape() {
            let hint = "all shapes must be equal";
            return Err(Error::Shapes { op: "stack", lhs: parts[0].shape(), rhs: shape, hint });
        }
        t.reshape(&[&shape[..axis], &[1], &shape[axis..]].concat())
    };
    let parts = parts.iter().map(wider).collect::<Result<Vec<_>>>()?;
    join("stack", &parts.iter().collect::<Vec<_>>(), axis)
}
