//! Losses of numbers one by one, each with its target: what PyTorch calls `mse_loss`, `l1_loss`,
//! `binary_cross_entropy` and so on, as weighted sums.

use super::{check_weights, point_cpu};
use crate::op::{CudaOp, Exec, Meta, Narrow, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// A loss of a number x and its target y. Targets of the margin losses are −1 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PointLoss {
    /// (x − y)²
    Mse,
    /// |x − y|
    L1,
    /// ½ (x − y)² up to a distance of `delta`, then `delta` · (|x − y| − ½ `delta`) (Huber, 1964).
    Huber {
        /// Where it becomes linear, above 0.
        delta: f64,
    },
    /// The Huber loss of `beta`, divided by `beta`; |x − y| for 0 (Girshick, 2015).
    SmoothL1 {
        /// Where it becomes linear, from 0 on.
        beta: f64,
    },
    /// −y log x − (1 − y) log(1 − x), each logarithm at least −100, of a probability x.
    Bce,
    /// The same of x = sigmoid(logit), without overflow; see [`Tensor::bce_with_logits`].
    BceWithLogits,
    /// max(0, `margin` − x y)
    Hinge {
        /// How far on the right side x must be.
        margin: f64,
    },
    /// max(0, `margin` − x y)²
    SquaredHinge {
        /// How far on the right side x must be.
        margin: f64,
    },
    /// x where y > 0, else max(0, `margin` − x): of distances x.
    HingeEmbedding {
        /// How far apart those with y = −1 must be.
        margin: f64,
    },
    /// e^(−x y), AdaBoost's.
    Exponential,
    /// log(1 + e^(−x y)), logistic regression's; PyTorch calls it soft margin.
    Logistic,
    /// y (log y − x): the Kullback–Leibler divergence of log-probabilities x from probabilities y.
    KlDiv {
        /// Whether y is given as its logarithm.
        log_target: bool,
    },
    /// The negative log-likelihood of counts y under Poisson distributions.
    Poisson {
        /// Whether x is the logarithm of the mean: e^x − x y; else x − y log(x + `eps`).
        log_input: bool,
        /// Whether Stirling's approximation of log y! is added where y > 1.
        full: bool,
        /// Keeps the logarithm from 0.
        eps: f64,
    },
}

impl PointLoss {
    /// The name in errors.
    pub fn name(&self) -> &'static str {
        match self {
            PointLoss::Mse => "mse",
            PointLoss::L1 => "l1",
            PointLoss::Huber { .. } => "huber",
            PointLoss::SmoothL1 { .. } => "smooth_l1",
            PointLoss::Bce => "bce",
            PointLoss::BceWithLogits => "bce_with_logits",
            PointLoss::Hinge { .. } => "hinge",
            PointLoss::SquaredHinge { .. } => "squared_hinge",
            PointLoss::HingeEmbedding { .. } => "hinge_embedding",
            PointLoss::Exponential => "exponential",
            PointLoss::Logistic => "logistic",
            PointLoss::KlDiv { .. } => "kl_div",
            PointLoss::Poisson { .. } => "poisson",
        }
    }

    /// What is wrong with its constants, if anything.
    fn problem(&self) -> Option<String> {
        match *self {
            PointLoss::Huber { delta } if !(delta > 0.0 && delta.is_finite()) => {
                Some(format!("delta is {delta}; it must be above 0"))
            }
            PointLoss::SmoothL1 { beta } if !(beta >= 0.0 && beta.is_finite()) => {
                Some(format!("beta is {beta}; it must be a number from 0 on"))
            }
            PointLoss::Hinge { margin }
            | PointLoss::SquaredHinge { margin }
            | PointLoss::HingeEmbedding { margin }
                if !margin.is_finite() =>
            {
                Some(format!("margin is {margin}; it must be a number"))
            }
            PointLoss::Poisson { eps, .. } if !(eps > 0.0 && eps.is_finite()) => {
                Some(format!("eps is {eps}; it must be above 0"))
            }
            _ => None,
        }
    }
}

/// Inputs x, y of one shape, perhaps a weight for each entry of the first axis, perhaps what positive targets count,
/// for each of the last axis.
#[derive(Debug)]
pub(super) struct Point {
    pub(super) loss: PointLoss,
    pub(super) weighted: bool,
    positive: bool,
}

/// Numbers that share a weight.
pub(super) fn per_sample(shape: Shape) -> usize {
    shape.iter().skip(1).product()
}

impl Point {
    pub(super) fn positive(&self) -> Option<usize> {
        self.positive.then_some(2 + usize::from(self.weighted))
    }
}

impl Op for Point {
    fn name(&self) -> &'static str {
        self.loss.name()
    }

    fn narrow(&self) -> Narrow {
        Narrow::Keep
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let op = self.name();
        ops::want_real(op, inputs, 0)?;
        (1..inputs.len()).try_for_each(|i| ops::want_same(op, inputs, i))?;
        let shape = inputs[0].shape();
        ops::want_shape(op, inputs, 1, shape, "both must have one shape; expand one of them first")?;
        if self.weighted {
            check_weights(op, inputs, 2)?;
        }
        if let Some(i) = self.positive() {
            let last = shape.len().saturating_sub(1);
            let hint = "pos_weight is one number for each of the last axis";
            ops::want_shape(op, inputs, i, Shape::new(&shape[last..]), hint)?;
        }
        match self.loss.problem() {
            Some(why) => Err(Error::Invalid { op, shape, why }),
            None => Ok(Plan::one(inputs[0].dtype, [].into()).saving_inputs(15).dense(15)),
        }
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        ops::real!(self.name(), ins[0].dtype, T => {
            let pair = point_cpu::Pair {
                loss: self.loss,
                k: per_sample(ins[0].shape()),
                x: ins[0].slice::<T>()?,
                y: ins[1].slice()?,
                weights: if self.weighted { Some(ins[2].slice()?) } else { None },
                positive: self.positive().map(|i| ins[i].slice()).transpose()?,
            };
            outs[0].slice::<T>()?.fill(point_cpu::sum(cpu, pair) as T);
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
        let cpu = cx.cpu()?;
        let read = (0..saved.inputs.len()).map(|i| saved.input(i)?.read()).collect::<Result<Vec<_>>>()?;
        let (dtype, g) = (g.dtype(), g.item()?);
        for i in 0..2 {
            let k = per_sample(sink.shape(i));
            let Some(mut slot) = sink.slot(i)? else { continue };
            let accumulate = slot.accumulate();
            ops::real!(self.name(), dtype, T => {
                let pair = point_cpu::Pair {
                    loss: self.loss,
                    k,
                    x: read[0].slice::<T>()?,
                    y: read[1].slice()?,
                    weights: if self.weighted { Some(read[2].slice()?) } else { None },
                    positive: self.positive().map(|i| read[i].slice()).transpose()?,
                };
                point_cpu::gradient(cpu, pair, i, g as T, slot.slice()?, accumulate);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        if self.loss != PointLoss::Mse {
            return Err(Error::NoSecondOrder { op: self.name() });
        }
        let (Some(x), Some(y)) = (&inputs[0], &inputs[1]) else {
            return Err(Error::GraphReleased { op: "mse" });
        };
        let Some(g) = &grads[0] else { return Ok(vec![None; metas.len()]) };
        let mut d = x.sub(y)?.mul(&g.scale(2.0)?)?;
        if let Some(Some(w)) = inputs.get(2) {
            let mut column = vec![1; x.shape().len()];
            column[0] = w.shape()[0];
            d = d.mul(&w.reshape(&column)?)?;
        }
        let mut parts = vec![Some(d.clone()), Some(d.neg()?)];
        parts.resize(metas.len(), None);
        Ok(parts)
    }
}

impl Tensor {
    /// The sum of `weights[i] · loss(self[i, ..], target[i, ..])`, a scalar. Both have one shape and type; `weights`
    /// has one number an entry of the first axis (1 when there are none) and gets no gradient. The target gets one
    /// where the loss has a slope there.
    pub fn point_loss(&self, target: &Tensor, loss: PointLoss, weights: Option<&Tensor>) -> Result<Tensor> {
        self.point(target, loss, None, weights)
    }

    /// [`Tensor::point_loss`] of the squared difference.
    pub fn mse(&self, target: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        self.point(target, PointLoss::Mse, None, weights)
    }

    /// [`Tensor::point_loss`] of [`PointLoss::BceWithLogits`], where the term of y counts `pos_weight` times: one
    /// number for each of the last axis, without a gradient.
    pub fn bce_with_logits(
        &self,
        target: &Tensor,
        pos_weight: Option<&Tensor>,
        weights: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.point(target, PointLoss::BceWithLogits, pos_weight, weights)
    }

    fn point(
        &self,
        target: &Tensor,
        loss: PointLoss,
        positive: Option<&Tensor>,
        weights: Option<&Tensor>,
    ) -> Result<Tensor> {
        let constants: Vec<Tensor> = [weights, positive].into_iter().flatten().map(Tensor::detach).collect();
        let inputs: Vec<&Tensor> = [self, target].into_iter().chain(&constants).collect();
        apply_one(Point { loss, weighted: weights.is_some(), positive: positive.is_some() }, &inputs)
    }
}
