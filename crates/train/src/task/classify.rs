//! Classification: a loss on labels, errors at one and at five.

use phalanx_nn::{Layer, OptimizerConfig, Params};
use phalanx_tensor::{DType, Tensor, top_k_errors};

use super::{Batch, Criterion, Loss, Phase, PhaseId, ShardCx, Task};
use crate::{Error, Result};

/// What an evaluation of classes sums.
pub(super) const EVALUATIONS: &[&str] = &["loss", "top1_error", "top5_error"];

/// The weight of the samples whose label is not among the one, and not among the five, largest of `scores` `[N, K]`, each
/// beside the weight of all samples; samples labelled `ignore` count nothing.
pub(super) fn errors(
    scores: &Tensor,
    batch: &Batch,
    labels: &Tensor,
    ignore: Option<i64>,
) -> Result<[[f64; 2]; 2]> {
    let wrong = top_k_errors(scores, labels, &[1, 5], ignore)?;
    let counted: Vec<bool> = labels.to_vec::<i64>()?.iter().map(|&label| Some(label) != ignore).collect();
    let counted = batch.weigh(&counted);
    Ok([[batch.weigh(&wrong[0]), counted], [batch.weigh(&wrong[1]), counted]])
}

/// A network whose outputs are the logits of classes. Auxiliary logits, where it hands on some, add their
/// weighted losses in training.
#[derive(Debug)]
pub struct Classification {
    model: Box<dyn Layer>,
    criterion: Criterion,
    phases: [Phase; 1],
    image: String,
    label: String,
}

impl Classification {
    /// Trains all of `params` by `model`, from the batch fields `image` and `label`. Labels are classes, i64 `[N]`, or,
    /// for training, probabilities of classes `[N, K]`.
    pub fn new(
        model: Box<dyn Layer>,
        criterion: Criterion,
        params: &Params,
        optimizer: OptimizerConfig,
        [image, label]: [&str; 2],
    ) -> Self {
        let phase = Phase { name: "train".into(), params: 0..params.len() as u32, optimizer };
        let [image, label] = [image, label].map(str::to_owned);
        Classification { model, criterion, phases: [phase], image, label }
    }

    /// The loss over all targets of a batch's samples, and what its mean divides by.
    fn total(&self, logits: &Tensor, targets: &[(Tensor, Option<Vec<f32>>)]) -> Result<(Tensor, f64)> {
        let mut total: Option<(Tensor, f64)> = None;
        for (target, weights) in targets {
            let (sum, weight) = self.criterion.sum(logits, target, weights.as_deref())?;
            total = Some(match total {
                Some((other, before)) => (other.add(&sum)?, before + weight),
                None => (sum, weight),
            });
        }
        total.ok_or_else(|| Error::Task { task: self.name(), problem: "a batch has no targets".to_owned() })
    }

    fn logits(&self, batch: &Batch, cx: &ShardCx) -> Result<Tensor> {
        Ok(self.model.forward(cx, &batch.input(&self.image, cx)?)?)
    }
}

impl Task for Classification {
    fn name(&self) -> &'static str {
        "classification"
    }

    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn loss(&self, _: PhaseId, batch: &Batch, cx: &ShardCx) -> Result<Loss> {
        let targets = batch.targets(batch.field(&self.label)?)?;
        let of = |logits: &Tensor| self.total(logits, &targets);
        let (mut sum, weight) = of(&self.logits(batch, cx)?)?;
        for (factor, logits) in cx.take_auxiliary() {
            sum = sum.add(&of(&logits)?.0.scale(factor)?)?;
        }
        Ok(Loss { sum, weight, statistics: Vec::new() })
    }

    fn evaluations(&self) -> &[&'static str] {
        EVALUATIONS
    }

    fn evaluate(&self, batch: &Batch, cx: &ShardCx) -> Result<Vec<[f64; 2]>> {
        let (logits, labels) = (self.logits(batch, cx)?, batch.field(&self.label)?);
        // Counted in single precision, whatever the network computes in.
        let logits = if logits.dtype() == DType::F64 { logits } else { logits.to(DType::F32)? };
        let (loss, weight) = self.total(&logits, &batch.targets(labels)?)?;
        let main = batch.main_targets(labels)?;
        let [top1, top5] = errors(&logits, batch, &main, self.criterion.ignored())?;
        Ok(vec![[loss.item()?, weight], top1, top5])
    }
}
