//! Reductions over axes.

mod cpu;

use crate::op::{Exec, Meta, Op, Plan, Saved};
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

/// Sum over axes; they stay with size 1.
#[derive(Debug, Clone)]
struct Sum(Axes);

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real("sum", inputs, 0)?;
        self.0.check("sum", inputs[0].shape())?;
        Ok(Plan::one(inputs[0].dtype, self.0.kept(inputs[0].shape())))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let (kept, reduced) = self.0.split(&ins[0].layout);
        ops::real!("sum", ins[0].dtype, T => {
            cpu::sum::<T>(cpu, ins[0].slice()?, &kept, &reduced, outs[0].slice()?);
            Ok(())
        })
    }

    fn backward(&self, _: &Exec, _: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let shape = sink.shape(0);
        grads[0].iter().try_for_each(|g| sink.pass(0, g.expand(&shape)?))
    }

    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![grads[0].as_ref().map(|g| g.expand(&metas[0].shape())).transpose()?])
    }
}

impl Tensor {
    fn squeeze(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        if keep {
            return Ok(self.clone());
        }
        let left: Vec<usize> =
            self.shape().iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &s)| s).collect();
        self.reshape(&left)
    }

    /// Sum over `axes` (rising, each once); with `keep` they stay with size 1. An empty sum is 0.
    pub fn sum(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        if axes.is_empty() {
            return Ok(self.clone());
        }
        apply_one(Sum(Axes(axes.to_vec())), &[self])?.squeeze(axes, keep)
    }

    /// Sum of all elements, a scalar.
    pub fn sum_all(&self) -> Result<Tensor> {
        let axes: Vec<usize> = (0..self.shape().len()).collect();
        self.sum(&axes, false)
    }
}
