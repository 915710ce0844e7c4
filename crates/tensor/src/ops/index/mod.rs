//! Ops that pick elements by index, and ops that put tensors side by side.

mod cpu;
mod join;

pub use join::{concat, stack};
use phalanx_host::simd::Real;

use crate::op::{Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// A shape as (outer, size of the axis, inner).
pub(crate) fn around(shape: Shape, axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

/// What an index names.
#[derive(Debug, Clone, Copy)]
enum Unit {
    /// A whole slice across the axis; the indices have one axis.
    Slice,
    /// One element; the indices have the axes of the source.
    Element,
}

/// Units along an axis, in the order of their indices. Inputs: the source and the indices.
#[derive(Debug, Clone, Copy)]
struct Pick {
    unit: Unit,
    axis: usize,
}

impl Pick {
    /// `source (+)= g` at the indexed places, added up in the order of the indices.
    fn add<T: Real>(self, source: Shape, g: &[T], index: &View, out: &mut [T]) -> Result<()> {
        let list = index.slice()?;
        match self.unit {
            Unit::Slice => cpu::add_slices(g, around(source, self.axis), list, out),
            Unit::Element => {
                cpu::elements(source, index.shape(), self.axis, list, |i, at| out[at] += g[i]);
            }
        }
        Ok(())
    }
}

impl Op for Pick {
    fn name(&self) -> &'static str {
        match self.unit {
            Unit::Slice => "index_select",
            Unit::Element => "gather",
        }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (x, index) = (inputs[0].shape(), inputs[1].shape());
        ops::want_real(self.name(), inputs, 0)?;
        ops::want_indices(self.name(), inputs, 1)?;
        ops::want_axis(self.name(), x, self.axis)?;
        let refuse = |hint| Err(Error::Shapes { op: self.name(), lhs: x, rhs: index, hint });
        let fits = |a| a == self.axis || index[a] <= x[a];
        let shape = match self.unit {
            Unit::Slice if index.len() != 1 => return refuse("the indices must have one axis"),
            Unit::Slice => x.with(self.axis, index[0]),
            Unit::Element if index.len() != x.len() || !(0..x.len()).all(fits) => {
                return refuse("the indices must have as many axes, and none larger save the gathered one");
            }
            Unit::Element => index,
        };
        Ok(Plan::one(inputs[0].dtype, shape).saving_inputs(0b10).dense(0b11))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        cx.cpu()?;
        let (shape, list) = (ins[0].shape(), ins[1].slice()?);
        cpu::check(self.name(), list, shape[self.axis])?;
        ops::real!(self.name(), ins[0].dtype, T => {
            let (x, y) = (ins[0].slice::<T>()?, outs[0].slice::<T>()?);
            match self.unit {
                Unit::Slice => cpu::slices(x, around(shape, self.axis), list, y),
                Unit::Element => cpu::elements(shape, ins[1].shape(), self.axis, list, |i, at| y[i] = x[at]),
            }
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
        let (g, index) = (g.contiguous()?, saved.input(1)?.read()?);
        let (dtype, g) = (g.dtype(), g.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!(self.name(), dtype, T => {
            let out = slot.slice::<T>()?;
            if !accumulate {
                out.fill(0.0);
            }
            self.add(shape, g.slice()?, &index.view(), out)
        })
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (Some(index), Some(g)) = (&inputs[1], &grads[0]) else { return Ok(vec![None, None]) };
        let back = PutBack { pick: *self, source: metas[0].shape() };
        Ok(vec![Some(apply_one(back, &[g, index])?), None])
    }
}

/// The way back of [`Pick`]: units added to zeros at their places. Inputs: the units and the indices,
/// which were checked on the way there.
#[derive(Debug, Clone, Copy)]
struct PutBack {
    pick: Pick,
    source: Shape,
}

/// `units` (one for each index) added to zeros of shape `source` at their places along `axis`: the way back of
/// [`Tensor::gather`].
pub(crate) fn put_back(units: &Tensor, axis: usize, indices: &Tensor, source: Shape) -> Result<Tensor> {
    apply_one(PutBack { pick: Pick { unit: Unit::Element, axis }, source }, &[units, indices])
}

impl Op for PutBack {
    fn name(&self) -> &'static str {
        "put_back"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name(), inputs, 0)?;
        Ok(Plan::one(inputs[0].dtype, self.source).saving_inputs(0b10).dense(0b11))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        cx.cpu()?;
        ops::real!(self.name(), ins[0].dtype, T => {
            let out = outs[0].slice::<T>()?;
            out.fill(0.0);
            self.pick.add(self.source, ins[0].slice()?, &ins[1], out)
        })
    }

    fn backward(
        &self,
        _: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let (Some(g), index) = (&grads[0], saved.input(1)?) else { return Ok(()) };
        sink.pass(0, apply_one(self.pick, &[g, &index])?)
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        _: &[Option<Tensor>],
        _: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (Some(index), Some(g)) = (&inputs[1], &grads[0]) else { return Ok(vec![None, None]) };
        Ok(vec![Some(apply_one(self.pick, &[g, index])?), None])
    }
}

impl Tensor {
    /// The slices `indices[0], indices[1], …` (i64, one axis) along `axis`. The gradient of a slice that
    /// is named several times is added up in their order. Fails with [`Error::Index`] for an index
    /// outside the axis.
    pub fn index_select(&self, axis: usize, indices: &Tensor) -> Result<Tensor> {
        apply_one(Pick { unit: Unit::Slice, axis }, &[self, indices])
    }

    /// One element for each index: along axis 1, `out[i][j] = self[i][indices[i][j]]`. `indices` (i64)
    /// has as many axes as this tensor. Gradients are added up in row-major order. Fails with
    /// [`Error::Index`] for an index outside the axis.
    pub fn gather(&self, axis: usize, indices: &Tensor) -> Result<Tensor> {
        apply_one(Pick { unit: Unit::Element, axis }, &[self, indices])
    }
}
