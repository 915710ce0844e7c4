//! Matrix products: of two matrices, and of a batch of rows with a layer's weight.

mod linear;

use phalanx_host::simd::Real;
use phalanx_host::{Cpu, Mat, MatMut, gemm};

use crate::op::{Exec, Meta, Op, Plan, Saved};
use crate::sink::{GradSink, Slot};
use crate::tape::apply_one;
use crate::{Error, Result, Tensor, View, ViewMut, ops};

/// A two-dimensional view as the host's matrix; strides and all.
fn mat<'a, T: Real>(v: &View<'a>) -> Result<Mat<'a, T>> {
    let (shape, strides) = (v.shape(), v.layout.strides());
    Ok(Mat::new(v.slice()?, shape[0], shape[1], strides[0], strides[1])?)
}

/// `slot (+)= a · b`, where the slot holds as many elements as the product.
fn into_slot<T: Real>(cpu: &Cpu, a: Mat<T>, b: Mat<T>, [m, n]: [usize; 2], slot: &mut Slot) -> Result<()> {
    let accumulate = slot.accumulate();
    Ok(gemm(cpu, a, b, MatMut::row_major(slot.slice()?, m, n)?, accumulate)?)
}

/// `[m, k] · [k, n]`.
#[derive(Debug)]
struct Matmul;

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real("matmul", inputs, 0)?;
        ops::want_same("matmul", inputs, 1)?;
        let (a, b) = (inputs[0].shape(), inputs[1].shape());
        match (&a[..], &b[..]) {
            (&[m, k], &[l, n]) if k == l => Ok(Plan::one(inputs[0].dtype, [m, n].into()).saving_inputs(3)),
            _ => {
                let hint = "it takes [m,k] and [k,n]";
                Err(Error::Shapes { op: "matmul", lhs: a, rhs: b, hint })
            }
        }
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let shape = outs[0].shape;
        ops::real!("matmul", ins[0].dtype, T => {
            let c = MatMut::row_major(outs[0].slice::<T>()?, shape[0], shape[1])?;
            Ok(gemm(cpu, mat(&ins[0])?, mat(&ins[1])?, c, false)?)
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
        let cpu = cx.cpu()?;
        let (a, b) = (saved.input(0)?, saved.input(1)?);
        let ([m, k], n) = ([a.shape()[0], a.shape()[1]], b.shape()[1]);
        let (dtype, g) = (g.dtype(), g.read()?);
        let (a, b) = (a.read()?, b.read()?);
        ops::real!("matmul", dtype, T => {
            if let Some(mut slot) = sink.slot(0)? {
                into_slot::<T>(cpu, mat(&g.view())?, mat(&b.view())?.t(), [m, k], &mut slot)?;
            }
            if let Some(mut slot) = sink.slot(1)? {
                into_slot::<T>(cpu, mat(&a.view())?.t(), mat(&g.view())?, [k, n], &mut slot)?;
            }
            Ok(())
        })
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        _: &[Option<Tensor>],
        _: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let [Some(a), Some(b)] = inputs else { return Err(Error::GraphReleased { op: "matmul" }) };
        let Some(g) = &grads[0] else { return Ok(vec![None, None]) };
        Ok(vec![Some(g.matmul(&b.t()?)?), Some(a.t()?.matmul(g)?)])
    }
}

impl Tensor {
    /// The matrix product of `[m, k]` and `[k, n]`; transposed and other strided views are read in
    /// place.
    pub fn matmul(&self, b: &Tensor) -> Result<Tensor> {
        apply_one(Matmul, &[self, b])
    }
}
