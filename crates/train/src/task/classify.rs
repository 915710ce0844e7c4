//! Classification: cross-entropy on labels, errors at one and at five.

use phalanx_nn::{Layer, OptimizerConfig, Params};
use phalanx_tensor::{Tensor, top_k_errors};

use super::{Batch, Loss, Phase, PhaseId, ShardCx, Task};
use crate::Result;

/// What an evaluation of classes sums.
pub(super) const EVALUATIONS: &[&str] = &["loss", "top1_error", "top5_error"];

/// A network whose outputs are the logits of classes. Auxiliary logits, where it hands on some, add their
/// weighted losses in training.
#[derive(Debug)]
pub struct Classification {
    model: Box<dyn Layer>,
    phases: [Phase; 1],
    image: String,
    label: String,
}

impl Classification {
    /// Trains all of `params` by `model`, from the batch fields `image` and `label`.
    pub fn new(
        model: Box<dyn Layer>,
        params: &Params,
        optimizer: OptimizerConfig,
        image: impl Into<String>,
        label: impl Into<String>,
    ) -> Self {
        let phase = Phase { name: "train".into(), params: 0..params.len() as u32, optimizer };
        Classification { model, phases: [phase], image: image.into(), label: label.into() }
    }

    fn logits(&self, batch: &Batch, cx: &ShardCx) -> Result<Tensor> {
        Ok(self.model.forward(cx, batch.field(&self.image)?)?)
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
        let (labels, weights) = (batch.field(&self.label)?, batch.weights_on(cx.device)?);
        let mut sum = self.logits(batch, cx)?.cross_entropy(labels, weights.as_ref())?;
        for (weight, logits) in cx.take_auxiliary() {
            sum = sum.add(&logits.cross_entropy(labels, weights.as_ref())?.scale(weight)?)?;
        }
        Ok(Loss { sum, weight: batch.weight(), statistics: Vec::new() })
    }

    fn evaluations(&self) -> &[&'static str] {
        EVALUATIONS
    }

    fn evaluate(&self, batch: &Batch, cx: &ShardCx) -> Result<Vec<f64>> {
        let (logits, labels) = (self.logits(batch, cx)?, batch.field(&self.label)?);
        let weights = batch.weights_on(cx.device)?;
        let loss = logits.cross_entropy(labels, weights.as_ref())?.item()?;
        let wrong = top_k_errors(&logits, labels, &[1, 5])?;
        Ok(vec![loss, batch.weigh(&wrong[0]), batch.weigh(&wrong[1]), batch.weight()])
    }
}
