//! Cross-entropy of logits with labels or probabilities, fused with the softmax; `torch.nn.CrossEntropyLoss`'s
//! semantics, with the sum that Phalanx's losses give.

use super::check_weights;
use super::cpu::{self, Goal, Target};
use crate::op::{CudaOp, Exec, Meta, Narrow, Op, Plan, Saved};
use crate::ops::elementwise::math::Math;
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{DType, Error, Result, Shape, Tensor, View, ViewMut, ops};

const OP: &str = "cross_entropy";

/// How [`Tensor::cross_entropy_with`] counts rows and classes; by default all alike.
#[derive(Debug, Clone, Copy, Default)]
pub struct CrossEntropy<'a> {
    /// A weight for each entry of the first axis, `[N]`, of the logits' type.
    pub weights: Option<&'a Tensor>,
    /// A weight for each class, `[K]`, of the logits' type.
    pub class_weights: Option<&'a Tensor>,
    /// The label whose rows count nothing, whether or not it is a class. Probabilities know no such row.
    pub ignore_index: Option<i64>,
    /// The part of each target that is spread evenly over all classes, in 0..1 (Szegedy et al., 2016).
    pub label_smoothing: f64,
}

impl CrossEntropy<'_> {
    /// The weight of what [`Tensor::cross_entropy_with`] has summed for this target, which PyTorch's mean divides
    /// by: Σ weight · class weight of the label over the rows that are not ignored; for probabilities Σ weight over
    /// all rows. Summed in doubles, in the rows' order.
    ///
    /// Fails with [`Error::Index`] only for a label that `class_weights` has no number for.
    pub fn weight(&self, target: &Tensor) -> Result<f64> {
        // Where every row counts 1, labels need not be read: on a GPU that would wait for them.
        let plain = self.weights.is_none() && self.class_weights.is_none() && self.ignore_index.is_none();
        if plain && target.dtype() == DType::I64 {
            return Ok(target.shape().numel() as f64);
        }
        Ok(self.factors(target)?.into_iter().sum())
    }

    /// What each row counts: its sample's weight times its label's, 0 when it is ignored.
    pub(super) fn factors(&self, target: &Tensor) -> Result<Vec<f64>> {
        let shape = target.shape();
        let labelled = target.dtype() == DType::I64;
        let rows = if labelled { shape } else { Shape::new(&shape[..shape.len().saturating_sub(1)]) };
        let samples = rows.first().copied().unwrap_or(0);
        let each: usize = rows.iter().skip(1).product();
        let doubles = |t: &Tensor| t.detach().to(DType::F64)?.to_vec::<f64>();
        let weights = self.weights.map(doubles).transpose()?;
        if let Some(bad) = weights.as_ref().filter(|w| w.len() != samples) {
            let hint = "there is one weight an entry of the first axis";
            return Err(Error::Shapes { op: OP, lhs: shape, rhs: [bad.len()].into(), hint });
        }
        let of = |row: usize| weights.as_ref().map_or(1.0, |w| w[row / each]);
        if !labelled || (self.class_weights.is_none() && self.ignore_index.is_none()) {
            return Ok((0..rows.numel()).map(of).collect());
        }
        let classes = self.class_weights.map(doubles).transpose()?;
        let class = |(position, label): (usize, i64)| match &classes {
            _ if Some(label) == self.ignore_index => Ok(0.0),
            None => Ok(of(position)),
            Some(c) => match usize::try_from(label).ok().and_then(|l| c.get(l)) {
                Some(class) => Ok(of(position) * class),
                None => Err(Error::Index { op: OP, index: label, position, limit: c.len() }),
            },
        };
        target.to_vec::<i64>()?.into_iter().enumerate().map(class).collect()
    }
}

/// Inputs logits `[N, .., K]`, labels `[N, ..]` or probabilities `[N, .., K]`, perhaps weights `[N]`, perhaps weights
/// of classes `[K]`; saves the softmax.
#[derive(Debug)]
pub(super) struct Entropy {
    pub(super) weighted: bool,
    class_weighted: bool,
    pub(super) ignore: Option<i64>,
    pub(super) smoothing: f64,
}

impl Entropy {
    /// The operand with the classes' weights.
    pub(super) fn class_weights(&self) -> Option<usize> {
        self.class_weighted.then_some(2 + usize::from(self.weighted))
    }

    /// What each class counts, apart from the target: (where the target says so, everywhere).
    fn counts<T: Math>(&self, k: usize, class_weights: Option<&[T]>) -> (Vec<T>, Vec<T>) {
        let of = |factor: f64| -> Vec<T> {
            (0..k).map(|c| T::from_f64(factor * class_weights.map_or(1.0, |w| w[c].to_f64()))).collect()
        };
        let base = if self.smoothing > 0.0 { of(self.smoothing / k as f64) } else { Vec::new() };
        (of(1.0 - self.smoothing), base)
    }
}

/// The number of classes and the rows of a sample.
pub(super) fn rows(shape: Shape) -> (usize, usize) {
    (shape[shape.len() - 1], shape[1..shape.len() - 1].iter().product())
}

impl Op for Entropy {
    fn name(&self) -> &'static str {
        OP
    }

    fn narrow(&self) -> Narrow {
        Narrow::Keep
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(OP, inputs, 0)?;
        let (dtype, shape) = (inputs[0].dtype, inputs[0].shape());
        let refuse = |why: String| Err(Error::Invalid { op: OP, shape, why });
        if shape.len() < 2 {
            return refuse("it needs at least the two axes of logits [N,..,K]".to_owned());
        }
        if inputs[1].dtype == DType::I64 {
            let hint = "there is one label a row of the logits [N,..,K]";
            ops::want_shape(OP, inputs, 1, shape.without(shape.len() - 1), hint)?;
        } else {
            ops::want_same(OP, inputs, 1)?;
            let hint = "probabilities must have the shape of the logits [N,..,K]; labels are i64";
            ops::want_shape(OP, inputs, 1, shape, hint)?;
            if self.ignore.is_some() {
                return refuse("only labels can be ignored, but the target holds probabilities".to_owned());
            }
        }
        if self.weighted {
            check_weights(OP, inputs, 2)?;
        }
        if let Some(i) = self.class_weights() {
            ops::want_same(OP, inputs, i)?;
            let hint = "there is one weight a class of the logits [N,..,K]";
            ops::want_shape(OP, inputs, i, [shape[shape.len() - 1]].into(), hint)?;
        }
        if !(0.0..=1.0).contains(&self.smoothing) {
            return refuse(format!("label_smoothing is {}; it must lie in 0..1", self.smoothing));
        }
        Ok(Plan::one(dtype, [].into()).saving_inputs(0b1110).saving(dtype, shape).dense(0b1111))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let (k, each) = rows(ins[0].shape());
        if ins[1].dtype == DType::I64 {
            let labels = ins[1].slice::<i64>()?;
            let bad = |&l: &i64| Some(l) != self.ignore && !usize::try_from(l).is_ok_and(|l| l < k);
            if let Some(position) = labels.iter().position(bad) {
                return Err(Error::Index { op: OP, index: labels[position], position, limit: k });
            }
        }
        ops::real!(OP, ins[0].dtype, T => {
            let class_weights = self.class_weights().map(|i| ins[i].slice::<T>()).transpose()?;
            let (scale, base) = self.counts(k, class_weights);
            let target = target(&ins[1])?;
            let weights = if self.weighted { Some(ins[2].slice()?) } else { None };
            let goal = Goal { k, target, ignore: self.ignore, weights, each, scale: &scale, base: &base };
            let sum = cpu::cross_entropy::<T>(cpu, goal, ins[0].slice()?, saved[0].slice()?);
            outs[0].slice::<T>()?.fill(sum as T);
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
        let (k, each) = rows(sink.shape(0));
        let read = saved.inputs.iter_mut().map(|t| t.take().map(|t| t.read()).transpose());
        let (read, p) = (read.collect::<Result<Vec<_>>>()?, saved.extra[0].read()?);
        let (dtype, g) = (g.dtype(), g.item()?);
        let part = |i: usize| {
            let released = Error::GraphReleased { op: OP };
            read.get(i).and_then(Option::as_ref).map(|r| r.view()).ok_or(released)
        };
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!(OP, dtype, T => {
            let class_weights = self.class_weights().map(|i| part(i)?.slice::<T>()).transpose()?;
            let (scale, base) = self.counts(k, class_weights);
            let (of, weights) = (part(1)?, if self.weighted { Some(part(2)?.slice()?) } else { None });
            let target = target(&of)?;
            let goal = Goal { k, target, ignore: self.ignore, weights, each, scale: &scale, base: &base };
            cpu::cross_entropy_gradient::<T>(cpu, goal, p.slice()?, g as T, slot.slice()?, accumulate);
            Ok(())
        })
    }
}

fn target<'a, T: Math>(view: &View<'a>) -> Result<Target<'a, T>> {
    Ok(match view.dtype {
        DType::I64 => Target::Labels(view.slice()?),
        _ => Target::Shares(view.slice()?),
    })
}

impl Tensor {
    /// The sum over samples of `weights[i] · −log softmax(self[i])[labels[i]]`, a scalar.
    ///
    /// This tensor is the logits `[N, K]`, `labels` is i64 `[N]`, and `weights` `[N]` has the logits'
    /// type; weights are 1 when there are none, and get no gradient. A label outside `0..K` fails with
    /// [`Error::Index`], whatever its weight; on a GPU that is said when something is read ([`crate::Device::check`]),
    /// and the loss is not a number. Further axes and further choices: [`Tensor::cross_entropy_with`].
    pub fn cross_entropy(&self, labels: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        self.cross_entropy_with(labels, &CrossEntropy { weights, ..CrossEntropy::default() })
    }

    /// The sum over rows of `weight · Σ_c class_weights[c] · t[c] · −log softmax(row)[c]`, a scalar, as
    /// `torch.nn.functional.cross_entropy` with `reduction="sum"`; [`CrossEntropy::weight`] is what its mean divides
    /// by.
    ///
    /// This tensor is the logits `[N, .., K]`, classes last. `target` is either labels, i64 `[N, ..]`, or
    /// probabilities of the logits' type and shape (mixup); t is 1 at the label, or the probabilities, after label
    /// smoothing. Only the logits get a gradient.
    pub fn cross_entropy_with(&self, target: &Tensor, options: &CrossEntropy) -> Result<Tensor> {
        let CrossEntropy { weights, class_weights, ignore_index, label_smoothing } = *options;
        let constants: Vec<Tensor> =
            [Some(target), weights, class_weights].into_iter().flatten().map(Tensor::detach).collect();
        let inputs: Vec<&Tensor> = std::iter::once(self).chain(&constants).collect();
        let op = Entropy {
            weighted: weights.is_some(),
            class_weighted: class_weights.is_some(),
            ignore: ignore_index,
            smoothing: label_smoothing,
        };
        apply_one(op, &inputs)
    }
}
