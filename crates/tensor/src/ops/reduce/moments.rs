//! Variance, standard deviation, the logarithm of a sum of exponentials, and vector norms over axes.
//!
//! They are computed in doubles from the elements and differentiated with ops, so each has a second order.

use super::Axes;
use super::fold::{Fold, State, fold};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Layout, Result, Tensor, View, ViewMut, ops};

/// Which number of the elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum What {
    /// Σ (x − mean)² / (n − correction)
    Variance { correction: f64 },
    /// Its square root.
    Deviation { correction: f64 },
    /// ln Σ e^x
    LogSumExp,
    /// (Σ |x|^p)^(1/p), and its limits at 0 (how many are not 0), ∞ and −∞.
    Norm { p: f64 },
}

#[derive(Debug, Clone)]
pub(super) struct Moment {
    pub(super) what: What,
    pub(super) axes: Axes,
}

/// Σ of a function of the elements and of a number of their kept place.
struct Total<F> {
    f: F,
    of: Vec<f64>,
}

impl<F: Fn(f64, f64) -> f64 + Sync> Fold for Total<F> {
    fn start(&self, i: usize) -> State {
        [0.0, self.of.get(i).copied().unwrap_or(0.0)]
    }
    #[inline]
    fn step(&self, s: &mut State, x: f64, _: usize) {
        s[0] += (self.f)(x, s[1]);
    }
    fn merge(&self, s: &mut State, next: State) {
        s[0] += next[0];
    }
}

/// The largest or the smallest of |x| or x; not a number wins.
struct Bound {
    largest: bool,
    size: bool,
}

impl Fold for Bound {
    fn start(&self, _: usize) -> State {
        [if self.largest { f64::NEG_INFINITY } else { f64::INFINITY }, 0.0]
    }
    #[inline]
    fn step(&self, s: &mut State, x: f64, _: usize) {
        let x = if self.size { x.abs() } else { x };
        if (if self.largest { x > s[0] } else { x < s[0] }) || x.is_nan() {
            s[0] = x;
        }
    }
    fn merge(&self, s: &mut State, next: State) {
        if (if self.largest { next[0] > s[0] } else { next[0] < s[0] }) || next[0].is_nan() {
            s[0] = next[0];
        }
    }
}

/// What a kernel reads: the elements and the axes that stay and go.
struct Source<'a, T> {
    cx: &'a Exec<'a>,
    x: &'a [T],
    kept: Layout,
    reduced: Layout,
}

impl<T: Copy + Into<f64> + Sync> Source<'_, T> {
    fn fold(&self, rule: &impl Fold) -> Result<Vec<f64>> {
        let states = fold(self.cx.cpu()?, self.x, &self.kept, &self.reduced, rule);
        Ok(states.into_iter().map(|s| s[0]).collect())
    }

    fn total(&self, of: Vec<f64>, f: impl Fn(f64, f64) -> f64 + Sync) -> Result<Vec<f64>> {
        self.fold(&Total { f, of })
    }

    fn variance(&self, correction: f64) -> Result<Vec<f64>> {
        let n = self.reduced.shape.numel() as f64;
        let means = self.total(vec![], |x, _| x)?.into_iter().map(|s| s / n).collect();
        let squares = self.total(means, |x, mean| (x - mean) * (x - mean))?;
        Ok(squares.into_iter().map(|s| s / (n - correction).max(0.0)).collect())
    }

    fn log_sum_exp(&self) -> Result<Vec<f64>> {
        let largest = self.fold(&Bound { largest: true, size: false })?;
        // An infinite largest is the answer: it is not taken away from itself.
        let shift: Vec<f64> = largest.iter().map(|&x| if x.is_infinite() { 0.0 } else { x }).collect();
        let sums = self.total(shift.clone(), |x, shift| (x - shift).exp())?;
        Ok(sums.into_iter().zip(shift).map(|(s, shift)| s.ln() + shift).collect())
    }

    fn norm(&self, p: f64) -> Result<Vec<f64>> {
        match p {
            0.0 => self.total(vec![], |x, _| f64::from(x != 0.0)),
            1.0 => self.total(vec![], |x, _| x.abs()),
            2.0 => Ok(self.total(vec![], |x, _| x * x)?.into_iter().map(f64::sqrt).collect()),
            p if p.is_infinite() => self.fold(&Bound { largest: p > 0.0, size: true }),
            p => {
                Ok(self.total(vec![], |x, _| x.abs().powf(p))?.into_iter().map(|s| s.powf(1.0 / p)).collect())
            }
        }
    }
}

impl Moment {
    /// The gradient, where `x` is the input and `y` the output.
    fn grad(&self, x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Tensor> {
        let axes = &self.axes.0[..];
        let variance = |correction: f64, g: &Tensor| {
            let n: usize = axes.iter().map(|&a| x.shape()[a]).product();
            let factor = 2.0 / (n as f64 - correction).max(0.0);
            x.sub(&x.mean(axes, true)?)?.scale(factor)?.mul(g)
        };
        match self.what {
            What::Variance { correction } => variance(correction, g),
            // Where nothing deviates there is no slope; it counts as 0.
            What::Deviation { correction } => {
                let none = y.eq_scalar(0.0)?;
                let slope = y.masked_fill(&none, 1.0)?.rdiv(0.5)?.masked_fill(&none, 0.0)?;
                variance(correction, &g.mul(&slope)?)
            }
            What::LogSumExp => x.sub(y)?.exp()?.mul(g),
            What::Norm { p } => norm_gradient(p, axes, x, y, g),
        }
    }
}

/// The gradient of a norm: 0 where the norm is 0, and of a norm that is one element's size divided among equals.
fn norm_gradient(p: f64, axes: &[usize], x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Tensor> {
    match p {
        0.0 => g.mul(&x.scale(0.0)?),
        1.0 => g.mul(&x.sign()?),
        p if p.is_infinite() => {
            let equal = x.detach().abs()?.eq(y)?.to(g.dtype())?;
            g.div(&equal.sum(axes, true)?)?.mul(&equal)?.mul(&x.sign()?)
        }
        p => {
            // g · sign(x) · (|x| / y)^(p − 1); 0 where x is, which a negative power would not give.
            let none = y.eq_scalar(0.0)?;
            let share = x.div(&y.masked_fill(&none, 1.0)?)?;
            if p == 2.0 {
                return g.mul(&share);
            }
            let zero = x.eq_scalar(0.0)?;
            let power = share.abs()?.masked_fill(&zero, 1.0)?.pow_scalar(p - 1.0)?;
            g.mul(&power.mul(&x.sign()?)?)
        }
    }
}

impl Op for Moment {
    fn name(&self) -> &'static str {
        match self.what {
            What::Variance { .. } => "var",
            What::Deviation { .. } => "std",
            What::LogSumExp => "logsumexp",
            What::Norm { .. } => "norm",
        }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name(), inputs, 0)?;
        let shape = inputs[0].shape();
        self.axes.check(self.name(), shape)?;
        let kept = self.axes.kept(shape);
        let empty = self.axes.0.iter().any(|&a| shape[a] == 0) && kept.numel() > 0;
        if empty && matches!(self.what, What::Norm { p } if p.is_infinite()) {
            let why = "the elements of an empty axis have no largest or smallest size".to_owned();
            return Err(Error::Invalid { op: self.name(), shape, why });
        }
        Ok(Plan::one(inputs[0].dtype, kept).saving_inputs(1).saving_outputs(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let (kept, reduced) = self.axes.split(&ins[0].layout);
        ops::real!(self.name(), ins[0].dtype, T => {
            let source = Source { cx, x: ins[0].slice::<T>()?, kept, reduced };
            let found = match self.what {
                What::Variance { correction } => source.variance(correction)?,
                What::Deviation { correction } => {
                    source.variance(correction)?.into_iter().map(f64::sqrt).collect()
                }
                What::LogSumExp => source.log_sum_exp()?,
                What::Norm { p } => source.norm(p)?,
            };
            outs[0].slice::<T>()?.iter_mut().zip(found).for_each(|(y, x)| *y = x as T);
            Ok(())
        })
    }

    fn backward(
        &self,
        _: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let grad = self.grad(&saved.input(0)?.detach(), &saved.output(0)?.detach(), g)?;
        sink.pass(0, grad)
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        outputs: &[Option<Tensor>],
        _: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        match (&inputs[0], &outputs[0], &grads[0]) {
            (Some(x), Some(y), Some(g)) => Ok(vec![Some(self.grad(x, y, g)?)]),
            _ => Ok(vec![None]),
        }
    }
}

impl Tensor {
    fn moment(&self, what: What, axes: &[usize], keep: bool) -> Result<Tensor> {
        apply_one(Moment { what, axes: Axes(axes.to_vec()) }, &[self])?.drop_axes(axes, keep)
    }

    /// Variance over `axes` (rising, each once), Σ (x − mean)² / max(0, n − correction): 1 for the unbiased
    /// estimate (torch.var's default), 0 for the population's. With `keep` the axes stay with size 1. Not
    /// a number where n is at most the correction.
    pub fn var(&self, axes: &[usize], correction: f64, keep: bool) -> Result<Tensor> {
        self.moment(What::Variance { correction }, axes, keep)
    }

    /// Standard deviation, the root of [`Tensor::var`]; where it is 0 its gradient counts as 0 (torch.std).
    pub fn std(&self, axes: &[usize], correction: f64, keep: bool) -> Result<Tensor> {
        self.moment(What::Deviation { correction }, axes, keep)
    }

    /// ln Σ e^x over `axes` (rising, each once), without overflow; with `keep` they stay with size 1. −∞ for
    /// no elements.
    pub fn logsumexp(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        self.moment(What::LogSumExp, axes, keep)
    }

    /// The vector norm (Σ |x|^p)^(1/p) over `axes` (rising, each once); with `keep` they stay with size 1.
    /// `p` is any number: 0 counts the elements that are not 0, ∞ and −∞ give the largest and the smallest
    /// size, whose gradient is divided among equals; where the norm is 0 its gradient counts as 0
    /// (torch.linalg.vector_norm). Fails for an infinite `p` and an empty axis.
    pub fn norm(&self, p: f64, axes: &[usize], keep: bool) -> Result<Tensor> {
        self.moment(What::Norm { p }, axes, keep)
    }
}
