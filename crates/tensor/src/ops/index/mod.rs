//! Ops that pick elements by index, and ops that put tensors side by side.

mod cpu;
mod join;

pub use join::{concat, stack};

use crate::op::{Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Result, Shape, Tensor, View, ViewMut, ops};

/// A shape as (outer, size of the axis, inner).
fn around(shape: Shape, axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

/// Whole slices along an axis, in the order of a list of indices.
#[derive(Debug, Clone, Copy)]
struct IndexSelect {
    axis: usize,
}

impl Op for IndexSelect {
    fn name(&self) -> &'static str {
        "index_select"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (x, list) = (inputs[0].shape(), inputs[1].shape());
        ops::want_real(self.name(), inputs, 0)?;
        ops::want_indices(self.name(), inputs, 1)?;
        ops::want_axis(self.name(), x, self.axis)?;
        if list.len() != 1 {
            let hint = "the indices must have one axis";
            return Err(crate::Error::Shapes { op: self.name(), lhs: x, rhs: list, hint });
        }
        Ok(Plan::one(inputs[0].dtype, x.with(self.axis, list[0])).saving_inputs(2).dense(3))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        cx.cpu()?;
        let (from, list) = (around(ins[0].shape(), self.axis), ins[1].slice()?);
        cpu::check(self.name(), list, from[1])?;
        ops::real!(self.name(), ins[0].dtype, T => {
            cpu::select::<T>(ins[0].slice()?, from, list, outs[0].slice()?);
            Ok(())
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
        cx.cpu()?;
        let from = around(sink.shape(0), self.axis);
        let (g, list) = (g.contiguous()?, saved.input(1)?);
        let (dtype, g, list) = (g.dtype(), g.read()?, list.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!(self.name(), dtype, T => {
            cpu::add_selected::<T>(g.slice()?, from, list.slice()?, slot.slice()?, accumulate);
            Ok(())
        })
    }
}

/// One element along an axis for each index.
#[derive(Debug, Clone, Copy)]
struct Gather {
    axis: usize,
}

impl Op for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (x, index) = (inputs[0].shape(), inputs[1].shape());
        ops::want_real("gather", inputs, 0)?;
        ops::want_indices("gather", inputs, 1)?;
        ops::want_axis("gather", x, self.axis)?;
        let fits = x.len() == index.len() && (0..x.len()).all(|a| a == self.axis || index[a] <= x[a]);
        if !fits {
            let hint = "the indices must have as many axes, and none larger save the gathered one";
            return Err(crate::Error::Shapes { op: "gather", lhs: x, rhs: index, hint });
        }
        Ok(Plan::one(inputs[0].dtype, index).saving_inputs(2).dense(3))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        cx.cpu()?;
        let (shape, index) = (ins[0].shape(), ins[1].slice()?);
        cpu::check("gather", index, shape[self.axis])?;
        ops::real!("gather", ins[0].dtype, T => {
            let (x, y) = (ins[0].slice::<T>()?, outs[0].slice::<T>()?);
            cpu::gathered(shape, ins[1].shape(), self.axis, index, |i, at| y[i] = x[at]);
            Ok(())
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
        cx.cpu()?;
        let shape = sink.shape(0);
        let (g, index) = (g.contiguous()?, saved.input(1)?);
        let (dtype, g, list) = (g.dtype(), g.read()?, index.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!("gather", dtype, T => {
            let (g, dx) = (g.slice::<T>()?, slot.slice::<T>()?);
            if !accumulate {
                dx.fill(0.0);
            }
            cpu::gathered(shape, index.shape(), self.axis, list.slice()?, |i, at| dx[at] += g[i]);
            Ok(())
        })
    }
}

impl Tensor {
    /// The slices `indices[0], indices[1], …` (i64, one axis) along `axis`. The gradient of a slice that
    /// is named several times is added up in their order. Fails with [`crate::Error::Index`] for an
    /// index outside the axis.
    pub fn index_select(&self, axis: usize, indices: &Tensor) -> Result<Tensor> {
        apply_one(IndexSelect { axis }, &[self, indices])
    }

    /// One element for each index: along axis 1, `out[i][j] = self[i][indices[i][j]]`. `indices` (i64)
    /// has as many axes as this tensor. Gradients are added up in row-major order. Fails with
    /// [`crate::Error::Index`] for an index outside the axis.
    pub fn gather(&self, axis: usize, indices: &Tensor) -> Result<Tensor> {
        apply_one(Gather { axis }, &[self, indices])
    }
}
