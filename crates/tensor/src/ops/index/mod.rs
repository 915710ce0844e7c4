//! Ops that pick elements by index or add to indexed places, and ops that put tensors side by side.

mod cpu;
pub(super) mod cuda;
mod join;
mod one_hot;
mod scatter;

pub use join::{concat, stack};
use phalanx_host::DType;
use phalanx_host::simd::Real;

use crate::op::{CudaOp, Exec, Meta, Narrow, Op, Plan, Saved};
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
    /// A row of a table; the indices have any axes. Rows of the index `padding` get no gradient.
    Row { padding: Option<i64> },
}

/// Where indices point: units along an axis.
#[derive(Debug, Clone, Copy)]
struct Places {
    unit: Unit,
    axis: usize,
}

impl Places {
    /// The shape of what `index` names in `source`, when they fit.
    fn shape(self, op: &'static str, source: Shape, index: Shape) -> Result<Shape> {
        ops::want_axis(op, source, self.axis)?;
        let refuse = |hint| Err(Error::Shapes { op, lhs: source, rhs: index, hint });
        let fits = |a| a == self.axis || index[a] <= source[a];
        match self.unit {
            Unit::Slice if index.len() != 1 => refuse("the indices must have one axis"),
            Unit::Slice => Ok(source.with(self.axis, index[0])),
            Unit::Element if index.len() != source.len() || !(0..source.len()).all(fits) => {
                refuse("the indices must have as many axes, and none larger save the indexed one")
            }
            Unit::Element => Ok(index),
            Unit::Row { .. } if source.len() != 2 => refuse("the table must have two axes [rows,columns]"),
            Unit::Row { .. } => Ok(Shape::new(&[&index[..], &source[1..]].concat())),
        }
    }

    /// `out (row-major, of shape source) += g` at the indexed places, added up in the order of the indices.
    fn add<T: Real>(self, cx: &Exec, source: Shape, g: &[T], index: &View, out: &mut [T]) -> Result<()> {
        let (cpu, list) = (cx.cpu()?, index.slice()?);
        let around = around(source, self.axis);
        match self.unit {
            Unit::Slice => cpu::add_slices(cpu, g, around, list, None, out),
            Unit::Row { padding } => cpu::add_slices(cpu, g, around, list, padding, out),
            Unit::Element => cpu::add_elements(cpu, g, source, self.axis, (index.shape(), list), out),
        }
        Ok(())
    }
}

/// Units along an axis, in the order of their indices. Inputs: the source, of any type, and the indices.
#[derive(Debug, Clone, Copy)]
struct Pick(Places);

impl Op for Pick {
    fn name(&self) -> &'static str {
        match self.0.unit {
            Unit::Slice => "index_select",
            Unit::Element => "gather",
            Unit::Row { .. } => "embedding",
        }
    }

    fn narrow(&self) -> Narrow {
        Narrow::AnyType
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_indices(self.name(), inputs, 1)?;
        let shape = self.0.shape(self.name(), inputs[0].shape(), inputs[1].shape())?;
        Ok(Plan::one(inputs[0].dtype, shape).saving_inputs(0b10).dense(0b11))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let (shape, axis, list) = (ins[0].shape(), self.0.axis, ins[1].slice()?);
        cpu::check(self.name(), list, shape[axis])?;
        ops::shape::any_type!(ins[0].dtype, T => {
            let (x, y) = (ins[0].slice::<T>()?, outs[0].slice::<T>()?);
            match self.0.unit {
                Unit::Element => cpu::gather(cpu, x, shape, axis, (ins[1].shape(), list), y),
                _ => cpu::slices(cpu, x, around(shape, axis), list, y),
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
        let shape = sink.shape(0);
        let (g, index) = (g.contiguous()?, saved.input(1)?.read()?);
        let (dtype, g) = (g.dtype(), g.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!(self.name(), dtype, T => {
            let out = slot.slice::<T>()?;
            if !accumulate {
                cpu::clear(cx.cpu()?, out);
            }
            self.0.add(cx, shape, g.slice()?, &index.view(), out)
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
        let zeros = Tensor::zeros(g.dtype(), metas[0].shape(), g.device())?;
        let part = match self.0.unit {
            Unit::Slice => zeros.index_add(self.0.axis, index, g)?,
            Unit::Element => zeros.scatter_add(self.0.axis, index, g)?,
            Unit::Row { padding } => {
                let n = index.shape().numel();
                let g = g.reshape(&[n, metas[0].shape()[1]])?;
                let g = match padding {
                    Some(padding) => {
                        let list = index.to_vec::<i64>()?;
                        let keep: Vec<u8> = list.iter().map(|&i| u8::from(i != padding)).collect();
                        let zero = Tensor::scalar(0.0, g.dtype(), g.device())?;
                        Tensor::from_slice(&keep, [n, 1], g.device())?.select(&g, &zero)?
                    }
                    None => g,
                };
                zeros.index_add(0, &index.reshape(&[n])?, &g)?
            }
        };
        Ok(vec![Some(part), None])
    }
}

impl Tensor {
    /// The slices `indices[0], indices[1], …` (i64, one axis) along `axis`, of any element type. The gradient
    /// of a slice that is named several times is added up in their order. Fails with [`Error::Index`] for an
    /// index outside the axis.
    pub fn index_select(&self, axis: usize, indices: &Tensor) -> Result<Tensor> {
        apply_one(Pick(Places { unit: Unit::Slice, axis }), &[self, indices])
    }

    /// One element for each index: along axis 1, `out[i][j] = self[i][indices[i][j]]`. `indices` (i64)
    /// has as many axes as this tensor, which is of any element type. Gradients are added up in row-major
    /// order. Fails with [`Error::Index`] for an index outside the axis.
    pub fn gather(&self, axis: usize, indices: &Tensor) -> Result<Tensor> {
        apply_one(Pick(Places { unit: Unit::Element, axis }), &[self, indices])
    }

    /// The rows of this table `[V, D]` that `indices` (i64, any shape) name: `[.., D]`, as
    /// torch.nn.functional.embedding. The gradient of a row is the sum over its uses in their order; the row
    /// `padding` gets none. Fails with [`Error::Index`] for an index outside `0..V`, and with
    /// [`Error::Invalid`] when `padding` is not a row.
    pub fn embedding(&self, indices: &Tensor, padding: Option<usize>) -> Result<Tensor> {
        let shape = self.shape();
        if let Some(row) = padding.filter(|&p| shape.first().is_some_and(|&v| p >= v)) {
            let why = format!("there is no row {row} for the padding");
            return Err(Error::Invalid { op: "embedding", shape, why });
        }
        if !self.dtype().is_float() {
            let (got, want) = (self.dtype(), "a float".to_owned());
            return Err(Error::DTypes { op: "embedding", operand: 0, got, want });
        }
        let padding = padding.map(|p| p as i64);
        apply_one(Pick(Places { unit: Unit::Row { padding }, axis: 0 }), &[self, indices])
    }
}
