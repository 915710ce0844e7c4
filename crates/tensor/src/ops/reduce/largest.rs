//! The largest element over axes, and where it is.

use phalanx_host::DType;
use phalanx_host::simd::Real;

use super::Axes;
use crate::op::{Exec, Meta, Op, Plan, Saved};
use crate::ops::walk::Walk;
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Layout, Result, Shape, Tensor, View, ViewMut, ops};

/// Calls `found(i, place, value)` with the largest number of each kept place i, in order; `place` counts
/// the reduced elements row-major. Not a number is larger than all; of equals the first counts.
fn largest<T: Real>(src: &[T], kept: &Layout, reduced: &Layout, mut found: impl FnMut(usize, usize, T)) {
    if kept.shape.numel() == 0 || reduced.shape.numel() == 0 {
        return;
    }
    let (outer, inner) = (Walk::new([kept]), Walk::new([reduced]));
    let (n, [step]) = (outer.inner(), outer.steps());
    let (m, [inner_step]) = (inner.inner(), inner.steps());
    outer.for_runs(0, outer.runs(), |r, [base]| {
        for k in 0..n {
            let base = base + k * step;
            let (mut best, mut place) = (src[base], 0);
            inner.for_runs(0, inner.runs(), |q, [at]| {
                for i in 0..m {
                    let x = src[base + at + i * inner_step];
                    // False for a best that is not a number; true for the first x that is not.
                    if x > best || (x.partial_cmp(&x).is_none() && best.partial_cmp(&best).is_some()) {
                        (best, place) = (x, q * m + i);
                    }
                }
            });
            found(r * n + k, place, best);
        }
    });
}

fn not_empty(op: &'static str, axes: &Axes, shape: Shape) -> Result<()> {
    match axes.0.iter().find(|&&a| shape[a] == 0) {
        Some(a) => {
            Err(Error::Invalid { op, shape, why: format!("axis {a} is empty: nothing is its largest") })
        }
        None => Ok(()),
    }
}

/// Largest element over axes, which stay with size 1; the place of each is saved.
#[derive(Debug, Clone)]
struct Max(Axes);

impl Op for Max {
    fn name(&self) -> &'static str {
        "max"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real("max", inputs, 0)?;
        let shape = inputs[0].shape();
        self.0.check("max", shape)?;
        not_empty("max", &self.0, shape)?;
        let kept = self.0.kept(shape);
        Ok(Plan::one(inputs[0].dtype, kept).saving(DType::I64, kept))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()> {
        cx.cpu()?;
        let (kept, reduced) = self.0.split(&ins[0].layout);
        let places = saved[0].slice::<i64>()?;
        ops::real!("max", ins[0].dtype, T => {
            let out = outs[0].slice::<T>()?;
            largest(ins[0].slice()?, &kept, &reduced, |i, place, x| {
                (out[i], places[i]) = (x, place as i64);
            });
            Ok(())
        })
    }

    fn backward(&self, cx: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        cx.cpu()?;
        let whole = Layout::contiguous(sink.shape(0));
        let (kept, reduced) = self.0.split(&whole);
        let g = g.contiguous()?;
        let (dtype, g, places) = (g.dtype(), g.read()?, saved.extra[0].read()?);
        let places = places.slice::<i64>()?;
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!("max", dtype, T => {
            let (g, dx) = (g.slice::<T>()?, slot.slice::<T>()?);
            if !accumulate {
                dx.fill(T::ZERO);
            }
            for (i, (&g, &place)) in g.iter().zip(places).enumerate() {
                dx[offset(&kept, i) + offset(&reduced, place as usize)] += g;
            }
            Ok(())
        })
    }
}

/// Where element `i` (row-major) of a layout lies.
fn offset(layout: &Layout, mut i: usize) -> usize {
    let mut at = 0;
    for (&size, &stride) in layout.shape.iter().zip(layout.strides()).rev() {
        at += i % size * stride;
        i /= size;
    }
    at
}

/// Place of the largest element along one axis, which goes.
#[derive(Debug, Clone)]
struct Argmax(usize);

impl Op for Argmax {
    fn name(&self) -> &'static str {
        "argmax"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real("argmax", inputs, 0)?;
        let (axes, shape) = (Axes(vec![self.0]), inputs[0].shape());
        axes.check("argmax", shape)?;
        not_empty("argmax", &axes, shape)?;
        Ok(Plan::one(DType::I64, shape.without(self.0)))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        cx.cpu()?;
        let (kept, reduced) = Axes(vec![self.0]).split(&ins[0].layout);
        let out = outs[0].slice::<i64>()?;
        ops::real!("argmax", ins[0].dtype, T => {
            largest::<T>(ins[0].slice()?, &kept, &reduced, |i, place, _| out[i] = place as i64);
            Ok(())
        })
    }

    fn backward(&self, _: &Exec, _: Saved, _: &[Option<Tensor>], _: &mut GradSink) -> Result<()> {
        Ok(())
    }
}

impl Tensor {
    /// Largest element over `axes` (rising, each once); with `keep` they stay with size 1. Not a number
    /// wins; the gradient goes to the first of equal elements. Fails when one of the axes is empty.
    pub fn max(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        apply_one(Max(Axes(axes.to_vec())), &[self])?.drop_axes(axes, keep)
    }

    /// Place of the largest element along `axis` (i64; the axis goes): the first of equals, and the
    /// first that is not a number before all. Fails when the axis is empty.
    pub fn argmax(&self, axis: usize) -> Result<Tensor> {
        apply_one(Argmax(axis), &[&self.detach()])
    }
}
