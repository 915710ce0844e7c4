//! Adding to indexed places: the way back of picking.

use super::{Pick, Places, Unit, cpu};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Result, Tensor, View, ViewMut, ops};

/// A tensor with units added to it at their places. Inputs: the tensor, the indices, the units.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScatterAdd(pub(super) Places);

impl ScatterAdd {
    /// The gradient of the units.
    fn picked(self, g: &Tensor, index: &Tensor) -> Result<Tensor> {
        apply_one(Pick(self.0), &[g, index])
    }
}

impl Op for ScatterAdd {
    fn name(&self) -> &'static str {
        match self.0.unit {
            Unit::Element => "scatter_add",
            _ => "index_add",
        }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name(), inputs, 0)?;
        ops::want_indices(self.name(), inputs, 1)?;
        ops::want_same(self.name(), inputs, 2)?;
        let shape = inputs[0].shape();
        let want = self.0.shape(self.name(), shape, inputs[1].shape())?;
        ops::want_shape(self.name(), inputs, 2, want, "what is added must have the shape that is indexed")?;
        Ok(Plan::one(inputs[0].dtype, shape).saving_inputs(0b10).dense(0b111))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        cx.cpu()?;
        let shape = ins[0].shape();
        cpu::check(self.name(), ins[1].slice()?, shape[self.0.axis])?;
        ops::real!(self.name(), ins[0].dtype, T => {
            let out = outs[0].slice::<T>()?;
            out.copy_from_slice(ins[0].slice()?);
            self.0.add(cx, shape, ins[2].slice()?, &ins[1], out)
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward(
        &self,
        _: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let (Some(g), index) = (&grads[0], saved.input(1)?) else { return Ok(()) };
        if sink.wants(2) {
            sink.pass(2, self.picked(g, &index)?)?;
        }
        sink.pass(0, g.clone())
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        _: &[Option<Tensor>],
        _: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (Some(index), Some(g)) = (&inputs[1], &grads[0]) else { return Ok(vec![None; 3]) };
        Ok(vec![Some(g.clone()), None, Some(self.picked(g, index)?)])
    }
}

impl Tensor {
    /// This tensor with the slices of `source` added at `indices` (i64, one axis) along `axis`, in their
    /// order, as torch.index_add. `source` has the shape that [`Tensor::index_select`] would give. Fails with
    /// [`crate::Error::Index`] for an index outside the axis.
    pub fn index_add(&self, axis: usize, indices: &Tensor, source: &Tensor) -> Result<Tensor> {
        apply_one(ScatterAdd(Places { unit: Unit::Slice, axis }), &[self, indices, source])
    }

    /// This tensor with the elements of `source` added at the places that `indices` (i64) name, in row-major
    /// order, as torch.scatter_add: along axis 1, `out[i][indices[i][j]] += source[i][j]`. `indices` and
    /// `source` have one shape. Fails with [`crate::Error::Index`] for an index outside the axis.
    pub fn scatter_add(&self, axis: usize, indices: &Tensor, source: &Tensor) -> Result<Tensor> {
        apply_one(ScatterAdd(Places { unit: Unit::Element, axis }), &[self, indices, source])
    }
}
