//! Reductions over axes.

mod along;
pub(super) mod along_cuda;
mod cpu;
pub(crate) mod cuda;
mod extremes;
mod fold;
mod moments;
mod products;

use crate::op::{CudaOp, Exec, Meta, Narrow, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Layout, Result, Shape, Tensor, View, ViewMut, ops};

/// The axes of a reduction, in rising order, each once.
#[derive(Debug, Clone)]
struct Axes(Vec<usize>);

impl Axes {
    fn check(&self, op: &'static str, shape: Shape) -> Result<()> {
        let rising = self.0.windows(2).all(|w| w[0] < w[1]);
        match self.0.last() {
            Some(&last) if last >= shape.len() || !rising => {
                let why = format!("axes {:?} are not among its axes, each named once", self.0);
                Err(Error::Invalid { op, shape, why })
            }
            _ => Ok(()),
        }
    }

    /// The result's shape when reduced axes stay with size 1.
    fn kept(&self, shape: Shape) -> Shape {
        self.0.iter().fold(shape, |s, &a| s.with(a, 1))
    }

    /// The layout's kept axes and its reduced axes, each as a layout of its own.
    fn split(&self, layout: &Layout) -> (Layout, Layout) {
        let part = |reduced: bool| {
            let pick: Vec<usize> =
                (0..layout.shape.len()).filter(|a| self.0.contains(a) == reduced).collect();
            let of = |v: &[usize]| pick.iter().map(|&a| v[a]).collect::<Vec<_>>();
            Layout::with(Shape::new(&of(&layout.shape)), &of(layout.strides()), 0)
        };
        (part(false), part(true))
    }
}

/// Sum or mean over axes; they stay with size 1.
#[derive(Debug, Clone)]
struct Sum {
    axes: Axes,
    mean: bool,
}

impl Sum {
    /// What the sum is multiplied with.
    fn factor(&self, shape: Shape) -> Option<f64> {
        let count: usize = self.axes.0.iter().map(|&a| shape[a]).product();
        self.mean.then(|| 1.0 / count as f64)
    }

    fn grad(&self, shape: Shape, g: &Tensor) -> Result<Tensor> {
        match self.factor(shape) {
            Some(f) => g.scale(f)?.expand(&shape),
            None => g.expand(&shape),
        }
    }
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        if self.mean { "mean" } else { "sum" }
    }

    fn narrow(&self) -> Narrow {
        if self.mean { Narrow::Round } else { Narrow::Keep }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name(), inputs, 0)?;
        self.axes.check(self.name(), inputs[0].shape())?;
        Ok(Plan::one(inputs[0].dtype, self.axes.kept(inputs[0].shape())))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let (kept, reduced) = self.axes.split(&ins[0].layout);
        ops::real!(self.name(), ins[0].dtype, T => {
            let out = outs[0].slice::<T>()?;
            cpu::sum(cpu, ins[0].slice()?, &kept, &reduced, out);
            if let Some(f) = self.factor(ins[0].shape()) {
                out.iter_mut().for_each(|x| *x *= f as T);
            }
            Ok(())
        })
    }

    fn backward(&self, _: &Exec, _: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        grads[0].iter().try_for_each(|g| sink.pass(0, self.grad(sink.shape(0), g)?))
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![grads[0].as_ref().map(|g| self.grad(metas[0].shape(), g)).transpose()?])
    }
}

impl Tensor {
    /// Without the reduced axes, which have size 1, unless they are kept.
    fn drop_axes(self, axes: &[usize], keep: bool) -> Result<Tensor> {
        if keep { Ok(self) } else { self.squeeze(axes) }
    }

    /// Sum over `axes` (rising, each once); with `keep` they stay with size 1. An empty sum is 0.
    pub fn sum(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        if axes.is_empty() {
            return Ok(self.clone());
        }
        apply_one(Sum { axes: Axes(axes.to_vec()), mean: false }, &[self])?.drop_axes(axes, keep)
    }

    /// Mean over `axes` (rising, each once); with `keep` they stay with size 1. The mean of nothing is
    /// not a number.
    pub fn mean(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        apply_one(Sum { axes: Axes(axes.to_vec()), mean: true }, &[self])?.drop_axes(axes, keep)
    }

    /// Mean of all elements, a scalar.
    pub fn mean_all(&self) -> Result<Tensor> {
        let axes: Vec<usize> = (0..self.shape().len()).collect();
        self.mean(&axes, false)
    }

    /// Sum of all elements, a scalar.
    pub fn sum_all(&self) -> Result<Tensor> {
        let axes: Vec<usize> = (0..self.shape().len()).collect();
        self.sum(&axes, false)
    }
}
