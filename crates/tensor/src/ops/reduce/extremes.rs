//! The largest and the smallest element over axes, and where they are.

use phalanx_host::DType;

use super::Axes;
use super::fold::{Fold, State, fold};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply;
use crate::{Error, Result, Tensor, View, ViewMut, ops};

/// The best element and its place. Not a number is better than all; of equals the first counts.
struct Best {
    largest: bool,
}

impl Best {
    fn better(&self, x: f64, best: f64) -> bool {
        let beats = if self.largest { x > best } else { x < best };
        beats || (x.is_nan() && !best.is_nan())
    }
}

/// The place of an element that was never seen.
const NOWHERE: f64 = -1.0;

impl Fold for Best {
    fn start(&self, _: usize) -> State {
        [0.0, NOWHERE]
    }
    #[inline]
    fn step(&self, s: &mut State, x: f64, place: usize) {
        if s[1] == NOWHERE || self.better(x, s[0]) {
            *s = [x, place as f64];
        }
    }
    fn merge(&self, s: &mut State, next: State) {
        if s[1] == NOWHERE || self.better(next[0], s[0]) {
            *s = next;
        }
    }
}

/// Outputs: the extreme element over axes, which stay with size 1, and its place, counted row-major among the
/// reduced elements.
#[derive(Debug, Clone)]
pub(super) struct Extreme {
    pub(super) name: &'static str,
    pub(super) largest: bool,
    pub(super) axes: Axes,
}

impl Extreme {
    /// The gradient: over one axis it goes to the chosen element; over several it is divided among equals, as
    /// PyTorch does.
    fn grad(
        &self,
        x: Option<&Tensor>,
        y: Option<&Tensor>,
        places: Option<&Tensor>,
        source: crate::Shape,
        g: &Tensor,
    ) -> Result<Tensor> {
        let released = || Error::GraphReleased { op: self.name };
        match (&self.axes.0[..], places) {
            (&[axis], Some(places)) => {
                Tensor::zeros(g.dtype(), source, g.device())?.scatter_add(axis, places, g)
            }
            (axes, _) => {
                let (x, y) = (x.ok_or_else(released)?, y.ok_or_else(released)?);
                let equal = x.eq(y)?.to(g.dtype())?;
                g.div(&equal.sum(axes, true)?)?.mul(&equal)
            }
        }
    }
}

impl Op for Extreme {
    fn name(&self) -> &'static str {
        self.name
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name, inputs, 0)?;
        let shape = inputs[0].shape();
        self.axes.check(self.name, shape)?;
        if let Some(a) = self.axes.0.iter().find(|&&a| shape[a] == 0) {
            let why = format!("axis {a} is empty: nothing is its largest or smallest");
            return Err(Error::Invalid { op: self.name, shape, why });
        }
        let kept = self.axes.kept(shape);
        let mut plan = Plan::one(inputs[0].dtype, kept);
        plan.outputs.push(crate::Spec::new(DType::I64, kept));
        Ok(match self.axes.0.len() {
            1 => plan.saving_outputs(0b10),
            _ => plan.saving_inputs(0b1).saving_outputs(0b1),
        })
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let (kept, reduced) = self.axes.split(&ins[0].layout);
        let (values, places) = outs.split_at_mut(1);
        ops::real!(self.name, ins[0].dtype, T => {
            let rule = Best { largest: self.largest };
            let found = fold::<T>(cx.cpu()?, ins[0].slice()?, &kept, &reduced, &rule);
            let out = values[0].slice::<T>()?.iter_mut().zip(places[0].slice::<i64>()?);
            out.zip(found).for_each(|((y, place), s)| (*y, *place) = (s[0] as T, s[1] as i64));
            Ok(())
        })
    }

    fn backward(&self, _: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let x = saved.inputs[0].as_ref().map(Tensor::detach);
        let [y, places] = [0, 1].map(|i| saved.outputs[i].as_ref());
        let grad = self.grad(x.as_ref(), y, places, sink.shape(0), g)?;
        sink.pass(0, grad)
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        outputs: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(g) = &grads[0] else { return Ok(vec![None]) };
        let [y, places] = [0, 1].map(|i| outputs[i].as_ref());
        Ok(vec![Some(self.grad(inputs[0].as_ref(), y, places, metas[0].shape(), g)?)])
    }
}

impl Tensor {
    fn extreme(&self, name: &'static str, largest: bool, axes: &[usize], keep: bool) -> Result<[Tensor; 2]> {
        let found = apply(Extreme { name, largest, axes: Axes(axes.to_vec()) }, &[self])?;
        match &found[..] {
            [values, places] => {
                Ok([values.clone().drop_axes(axes, keep)?, places.clone().drop_axes(axes, keep)?])
            }
            _ => Err(Error::GraphReleased { op: name }),
        }
    }

    /// Largest element over `axes` (rising, each once); with `keep` they stay with size 1. Not a number
    /// wins. Over one axis the gradient goes to the first of equal elements (torch.max), over several
    /// it is divided among them (torch.amax). Fails when one of the axes is empty.
    pub fn max(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        self.extreme("max", true, axes, keep).map(|[values, _]| values)
    }

    /// Smallest element over `axes`, otherwise as [`Tensor::max`].
    pub fn min(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        self.extreme("min", false, axes, keep).map(|[values, _]| values)
    }

    /// Place of the largest element along `axis` (i64; the axis goes): the first of equals, and the
    /// first that is not a number before all. Fails when the axis is empty.
    pub fn argmax(&self, axis: usize) -> Result<Tensor> {
        self.detach().extreme("argmax", true, &[axis], false).map(|[_, places]| places)
    }

    /// Place of the smallest element along `axis`, otherwise as [`Tensor::argmax`].
    pub fn argmin(&self, axis: usize) -> Result<Tensor> {
        self.detach().extreme("argmin", false, &[axis], false).map(|[_, places]| places)
    }
}
