//! Matrix products: of matrices, of batches of them, and of a batch of rows with a layer's weight.

mod batch;
pub(crate) mod cuda;
mod linear;

use phalanx_host::simd::Real;
use phalanx_host::{Cpu, Mat, MatMut, gemm};

use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::{GradSink, Slot};
use crate::tape::apply_one;
use crate::{Error, Layout, Result, Shape, Tensor, View, ViewMut, ops};

/// A two-dimensional view as the host's matrix; strides and all.
pub(crate) fn mat<'a, T: Real>(v: &View<'a>) -> Result<Mat<'a, T>> {
    let (shape, strides) = (v.shape(), v.layout.strides());
    Ok(Mat::new(v.slice()?, shape[0], shape[1], strides[0], strides[1])?)
}

/// `slot (+)= a · b`, where the slot holds as many elements as the product.
fn into_slot<T: Real>(cpu: &Cpu, a: Mat<T>, b: Mat<T>, [m, n]: [usize; 2], slot: &mut Slot) -> Result<()> {
    let accumulate = slot.accumulate();
    Ok(gemm(cpu, a, b, MatMut::row_major(slot.slice()?, m, n)?, accumulate)?)
}

/// `[.., m, k] · [.., k, n]`; the leading axes broadcast.
#[derive(Debug)]
struct Matmul;

/// The batch that two operands' leading axes broadcast to.
fn batch(a: Shape, b: Shape) -> Option<Shape> {
    let lead = |s: Shape| s.len().checked_sub(2).map(|n| Shape::new(&s[..n]));
    lead(a)?.broadcast(&lead(b)?)
}

/// The view with its leading axes stretched to `batch`.
fn stretch<'a>(view: &View<'a>, batch: Shape) -> Result<View<'a>> {
    let shape = view.shape();
    ops::stretch("matmul", view, Shape::new(&[&batch[..], &shape[shape.len() - 2..]].concat()))
}

/// The view with its last two axes swapped.
fn turn<'a>(view: &View<'a>) -> View<'a> {
    let swap = |v: &[usize]| {
        let mut v = v.to_vec();
        let n = v.len();
        v.swap(n - 2, n - 1);
        v
    };
    let layout = view.layout;
    view.with(Layout::with(Shape::new(&swap(&layout.shape)), &swap(layout.strides()), layout.offset))
}

/// The axes of `batch` along which an operand of `shape` was stretched, as a bit mask.
fn stretched(shape: Shape, batch: Shape) -> u32 {
    let missing = batch.len() + 2 - shape.len();
    let along = |&i: &usize| batch[i] != 1 && (i < missing || shape[i - missing] == 1);
    (0..batch.len()).filter(along).map(|i| 1 << i).sum()
}

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real("matmul", inputs, 0)?;
        ops::want_same("matmul", inputs, 1)?;
        let (a, b) = (inputs[0].shape(), inputs[1].shape());
        let refuse = |hint| Error::Shapes { op: "matmul", lhs: a, rhs: b, hint };
        let batch = batch(a, b).ok_or_else(|| {
            refuse("it takes [..,m,k] and [..,k,n] (or vectors [k]), and the leading axes must broadcast")
        })?;
        let (&[.., m, k], &[.., l, n]) = (&a[..], &b[..]) else {
            return Err(refuse("it takes [..,m,k] and [..,k,n]"));
        };
        if k != l {
            return Err(refuse("it takes [..,m,k] and [..,k,n] with one k"));
        }
        Ok(Plan::one(inputs[0].dtype, Shape::new(&[&batch[..], &[m, n]].concat())).saving_inputs(3))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let shape = outs[0].shape;
        let batch = Shape::new(&shape[..shape.len() - 2]);
        let (a, b) = (stretch(&ins[0], batch)?, stretch(&ins[1], batch)?);
        ops::real!("matmul", a.dtype, T => batch::products::<T>(cpu, &a, &b, 0, outs[0].slice()?, false))
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
        let (shapes, shape) = ([a.shape(), b.shape()], g.shape());
        let batch = Shape::new(&shape[..shape.len() - 2]);
        let (dtype, g) = (g.dtype(), g.read()?);
        let (a, b) = (a.read()?, b.read()?);
        let (a, b) = (stretch(&a.view(), batch)?, stretch(&b.view(), batch)?);
        for (i, [x, y]) in [[g.view(), turn(&b)], [turn(&a), g.view()]].iter().enumerate() {
            let Some(mut slot) = sink.slot(i)? else { continue };
            let (accumulate, summed) = (slot.accumulate(), stretched(shapes[i], batch));
            ops::real!("matmul", dtype, T => {
                batch::products::<T>(cpu, x, y, summed, slot.slice()?, accumulate)
            })?;
        }
        Ok(())
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
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
        let (da, db) = (g.matmul(&b.t()?)?, a.t()?.matmul(g)?);
        Ok(vec![Some(da.sum_to(&a.shape())?), Some(db.sum_to(&b.shape())?)])
    }
}

impl Tensor {
    /// The matrix product of `[.., m, k]` and `[.., k, n]`, as torch.matmul: the leading axes are a batch and
    /// broadcast, and a vector `[k]` is one row on the left, one column on the right, whose axis the result
    /// does not have. Transposed and other strided views are read in place.
    pub fn matmul(&self, b: &Tensor) -> Result<Tensor> {
        let (left, right) = (self.shape().len() == 1, b.shape().len() == 1);
        if !left && !right {
            return apply_one(Matmul, &[self, b]);
        }
        let matrix = |t: &Tensor, size: [usize; 2]| match t.shape().len() {
            1 => t.reshape(&size),
            _ => Ok(t.clone()),
        };
        let rows = matrix(self, [1, self.shape().numel()])?;
        let y = apply_one(Matmul, &[&rows, &matrix(b, [b.shape().numel(), 1])?])?;
        let mut shape = y.shape();
        if right {
            shape = shape.without(shape.len() - 1);
        }
        if left {
            shape = shape.without(shape.len() - 1 - usize::from(!right));
        }
        y.reshape(&shape)
    }
}
