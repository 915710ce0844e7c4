//! The product over axes.

use phalanx_host::DType;

use super::Axes;
use super::fold::{Fold, State, fold};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Result, Shape, Tensor, View, ViewMut, ops};

/// Product over axes; they stay with size 1. Computed in doubles.
#[derive(Debug, Clone)]
pub(super) struct Prod(pub(super) Axes);

impl Fold for Prod {
    fn start(&self, _: usize) -> State {
        [1.0, 0.0]
    }
    #[inline]
    fn step(&self, s: &mut State, x: f64, _: usize) {
        s[0] *= x;
    }
    fn merge(&self, s: &mut State, next: State) {
        s[0] *= next[0];
    }
}

impl Axes {
    /// All axes, those of the reduction last.
    fn order(&self, shape: Shape) -> Vec<usize> {
        (0..shape.len()).filter(|a| !self.0.contains(a)).chain(self.0.iter().copied()).collect()
    }

    /// How many elements are reduced to one.
    fn count(&self, shape: Shape) -> usize {
        self.0.iter().map(|&a| shape[a]).product()
    }

    /// The tensor as a matrix: a row for each kept place.
    pub(super) fn rows(&self, x: &Tensor) -> Result<Tensor> {
        let n = self.count(x.shape());
        x.permute(&self.order(x.shape()))?.reshape(&[x.shape().numel() / n.max(1), n])
    }

    /// Such a matrix as a tensor of `shape` again.
    pub(super) fn unrows(&self, rows: &Tensor, shape: Shape) -> Result<Tensor> {
        let order = self.order(shape);
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
        let sizes: Vec<usize> = order.iter().map(|&a| shape[a]).collect();
        rows.reshape(&sizes)?.permute(&back)
    }
}

/// For each element of a row the product of the others: exact where some are 0. In doubles, so that the
/// products on the way leave no range.
fn others<T: Copy + Into<f64>>(row: &[T], out: &mut [f64]) {
    let mut product = 1.0;
    for (o, &x) in out.iter_mut().zip(row) {
        *o = product;
        product *= x.into();
    }
    product = 1.0;
    for (o, &x) in out.iter_mut().zip(row).rev() {
        *o *= product;
        product *= x.into();
    }
}

impl Op for Prod {
    fn name(&self) -> &'static str {
        "prod"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real("prod", inputs, 0)?;
        self.0.check("prod", inputs[0].shape())?;
        Ok(Plan::one(inputs[0].dtype, self.0.kept(inputs[0].shape())).saving_inputs(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let (kept, reduced) = self.0.split(&ins[0].layout);
        ops::real!("prod", ins[0].dtype, T => {
            let found = fold::<T>(cx.cpu()?, ins[0].slice()?, &kept, &reduced, self);
            outs[0].slice::<T>()?.iter_mut().zip(found).for_each(|(y, s)| *y = s[0] as T);
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
        let (shape, cpu) = (sink.shape(0), cx.cpu()?);
        let n = self.0.count(shape);
        let rows = self.0.rows(&saved.input(0)?.detach())?.contiguous()?;
        let read = rows.read()?;
        let made = cx.make(rows.dtype(), rows.shape(), |mut out| {
            ops::real!("prod", rows.dtype(), T => {
                let x = read.slice::<T>()?;
                cpu.workers.chunks(out.slice::<T>()?, n.max(1), |i, out| {
                    let mut products = vec![0.0; n];
                    others(&x[i * n..(i + 1) * n], &mut products);
                    out.iter_mut().zip(products).for_each(|(o, p)| *o = p as T);
                });
                Ok(())
            })
        })?;
        sink.pass(0, self.0.unrows(&made, shape)?.mul(g)?)
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    /// The products of the others as products themselves, each of a row with a 1 in place of its own element:
    /// n² numbers for a product of n.
    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (Some(x), Some(g)) = (&inputs[0], &grads[0]) else { return Ok(vec![None]) };
        let shape = metas[0].shape();
        let n = self.0.count(shape);
        let rows = self.0.rows(x)?;
        let count = rows.shape()[0];
        let diagonal: Vec<u8> = (0..n * n).map(|i| u8::from(i / n == i % n)).collect();
        let diagonal = Tensor::from_slice(&diagonal, [n, n], x.device())?;
        let one = Tensor::scalar(1.0, x.dtype(), x.device())?;
        let left = diagonal.select(&one, &rows.reshape(&[count, 1, n])?)?;
        Ok(vec![Some(self.0.unrows(&left.prod(&[2], false)?, shape)?.mul(g)?)])
    }
}

/// Whether any (or all) of a mask's elements over axes are set.
#[derive(Debug, Clone)]
pub(super) struct Quantifier {
    pub(super) all: bool,
    pub(super) axes: Axes,
}

impl Fold for Quantifier {
    fn start(&self, _: usize) -> State {
        [f64::from(u8::from(self.all)), 0.0]
    }
    #[inline]
    fn step(&self, s: &mut State, x: f64, _: usize) {
        if (x != 0.0) != self.all {
            s[0] = f64::from(u8::from(!self.all));
        }
    }
    fn merge(&self, s: &mut State, next: State) {
        self.step(s, next[0], 0);
    }
}

impl Op for Quantifier {
    fn name(&self) -> &'static str {
        if self.all { "all" } else { "any" }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_mask(self.name(), inputs, 0)?;
        self.axes.check(self.name(), inputs[0].shape())?;
        Ok(Plan::one(DType::U8, self.axes.kept(inputs[0].shape())))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let (kept, reduced) = self.axes.split(&ins[0].layout);
        let found = fold::<u8>(cx.cpu()?, ins[0].slice()?, &kept, &reduced, self);
        outs[0].slice::<u8>()?.iter_mut().zip(found).for_each(|(y, s)| *y = s[0] as u8);
        Ok(())
    }

    fn backward(&self, _: &Exec, _: Saved, _: &[Option<Tensor>], _: &mut GradSink) -> Result<()> {
        Ok(())
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }
}

impl Tensor {
    /// Product over `axes` (rising, each once); with `keep` they stay with size 1. An empty product is 1. The
    /// gradient is exact where elements are 0.
    pub fn prod(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        apply_one(Prod(Axes(axes.to_vec())), &[self])?.drop_axes(axes, keep)
    }

    /// Whether any element of this mask (u8) over `axes` (rising, each once) is set: a mask; with `keep` the
    /// axes stay with size 1. 0 for no elements.
    pub fn any(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        apply_one(Quantifier { all: false, axes: Axes(axes.to_vec()) }, &[self])?.drop_axes(axes, keep)
    }

    /// Whether all elements of this mask (u8) over `axes` are set, otherwise as [`Tensor::any`]. 1 for no
    /// elements.
    pub fn all(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        apply_one(Quantifier { all: true, axes: Axes(axes.to_vec()) }, &[self])?.drop_axes(axes, keep)
    }
}
