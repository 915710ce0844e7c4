//! The `[loss]` table, and the loss that it makes of logits.

use phalanx_tensor::{CrossEntropy, DType, PointLoss, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The `[loss]` table: what a classifier's logits are compared with its labels by. All are means as PyTorch's: over
/// samples, their weights and those of their classes for `cross_entropy`, over samples for `multi_margin`, over
/// samples and classes for the others, which see a label as one target for each class: 1 at the label and 0 elsewhere,
/// −1 elsewhere for margins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LossConfig {
    /// −log softmax at the label.
    CrossEntropy {
        /// The part of each target that is spread evenly over all classes.
        #[serde(default, skip_serializing_if = "is_zero")]
        label_smoothing: f64,
        /// A weight for each class.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        class_weights: Option<Vec<f64>>,
        /// The label whose samples count nothing, in training and in evaluation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ignore_index: Option<i64>,
    },
    /// Binary cross-entropy of each class's sigmoid.
    Bce {
        /// As in `cross_entropy`.
        #[serde(default, skip_serializing_if = "is_zero")]
        label_smoothing: f64,
        /// What the term of the label counts, for each class.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pos_weight: Option<Vec<f64>>,
    },
    /// Squared difference.
    Mse {},
    /// Absolute difference.
    L1 {},
    /// Quadratic up to `delta`, then linear.
    Huber {
        /// Where it becomes linear.
        #[serde(default = "one")]
        delta: f64,
    },
    /// The Huber loss of `beta`, divided by `beta`.
    SmoothL1 {
        /// Where it becomes linear.
        #[serde(default = "one")]
        beta: f64,
    },
    /// max(0, `margin` − x y)
    Hinge {
        /// How far on the right side a logit must be.
        #[serde(default = "one")]
        margin: f64,
    },
    /// max(0, `margin` − x y)²
    SquaredHinge {
        /// How far on the right side a logit must be.
        #[serde(default = "one")]
        margin: f64,
    },
    /// e^(−x y)
    Exponential {},
    /// log(1 + e^(−x y))
    Logistic {},
    /// How much other classes come nearer to the label's logit than `margin`.
    MultiMargin {
        /// The power, 1 or 2.
        #[serde(default = "first")]
        p: u32,
        /// How much larger the label's logit must be.
        #[serde(default = "one")]
        margin: f64,
        /// A weight for each class.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        class_weights: Option<Vec<f64>>,
    },
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}
fn one() -> f64 {
    1.0
}
fn first() -> u32 {
    1
}

impl Default for LossConfig {
    fn default() -> Self {
        LossConfig::CrossEntropy { label_smoothing: 0.0, class_weights: None, ignore_index: None }
    }
}

impl LossConfig {
    /// Whether it is the plain cross-entropy that a configuration without the table has.
    pub fn is_default(&self) -> bool {
        *self == LossConfig::default()
    }

    /// Checks all values, the classes' when their number is known.
    pub fn check(&self, classes: Option<usize>) -> Result<()> {
        let fail = |problem: String| Err(Error::config("loss", problem));
        let (smoothing, weights) = match self {
            LossConfig::CrossEntropy { label_smoothing, class_weights, .. } => {
                (*label_smoothing, class_weights.as_ref().map(|w| ("class_weights", w)))
            }
            LossConfig::Bce { label_smoothing, pos_weight } => {
                (*label_smoothing, pos_weight.as_ref().map(|w| ("pos_weight", w)))
            }
            LossConfig::MultiMargin { class_weights, .. } => {
                (0.0, class_weights.as_ref().map(|w| ("class_weights", w)))
            }
            _ => (0.0, None),
        };
        if !(0.0..=1.0).contains(&smoothing) {
            return fail(format!("label_smoothing is {smoothing}; it is a part of each target, in 0..1"));
        }
        if let Some((key, weights)) = weights {
            if let Some(bad) = weights.iter().find(|w| !(**w >= 0.0 && w.is_finite())) {
                return fail(format!("{key} has {bad}; weights are numbers from 0 on"));
            }
            if weights.iter().all(|w| *w == 0.0) {
                return fail(format!("{key} has no weight above 0: nothing would count"));
            }
            if let Some(classes) = classes.filter(|c| *c != weights.len()) {
                let given = weights.len();
                return fail(format!("{key} has {given} weights, but the data set has {classes} classes"));
            }
        }
        let (key, value, right) = match *self {
            LossConfig::Huber { delta } => ("delta", delta, delta > 0.0 && delta.is_finite()),
            LossConfig::SmoothL1 { beta } => ("beta", beta, beta >= 0.0 && beta.is_finite()),
            LossConfig::Hinge { margin }
            | LossConfig::SquaredHinge { margin }
            | LossConfig::MultiMargin { margin, .. } => {
                ("margin", margin, margin >= 0.0 && margin.is_finite())
            }
            _ => ("", 0.0, true),
        };
        if !right {
            let least = if key == "delta" { "above 0" } else { "a number from 0 on" };
            return fail(format!("{key} is {value}; it must be {least}"));
        }
        match *self {
            LossConfig::MultiMargin { p, .. } if !(1..=2).contains(&p) => {
                fail(format!("p is {p}; it must be 1 or 2"))
            }
            _ => Ok(()),
        }
    }
}

/// A loss of so many classes.
#[derive(Debug, Clone)]
pub struct Criterion {
    config: LossConfig,
    classes: usize,
}

impl Criterion {
    /// Checks the table for a data set of `classes`.
    pub fn new(config: &LossConfig, classes: usize) -> Result<Self> {
        config.check(Some(classes))?;
        Ok(Criterion { config: config.clone(), classes })
    }

    /// The label whose samples count nothing.
    pub fn ignored(&self) -> Option<i64> {
        match self.config {
            LossConfig::CrossEntropy { ignore_index, .. } => ignore_index,
            _ => None,
        }
    }

    /// The sum over samples of weighted losses, and the weight that its mean divides by. `logits` are `[N, K]`, the
    /// target is labels, i64 `[N]`, or probabilities of the logits' shape; `weights` are the samples'.
    pub fn sum(&self, logits: &Tensor, target: &Tensor, weights: Option<&[f32]>) -> Result<(Tensor, f64)> {
        let plain_entropy = matches!(&self.config, LossConfig::CrossEntropy { .. });
        let half = matches!(logits.dtype(), DType::F16 | DType::BF16);
        // Cross-entropy reads halves as they are; of the others none is worth a second type.
        let wide = if half && !plain_entropy { Some(logits.to(DType::F32)?) } else { None };
        let logits = wide.as_ref().unwrap_or(logits);
        let of_weights = if half { DType::F32 } else { logits.dtype() };
        let tensor = |list: &Option<Vec<f64>>| -> Result<Option<Tensor>> {
            let make = |w: &Vec<f64>| -> phalanx_tensor::Result<Tensor> {
                match of_weights {
                    DType::F32 => {
                        let single: Vec<f32> = w.iter().map(|&x| x as f32).collect();
                        Tensor::from_slice(&single, [w.len()], logits.device())
                    }
                    other => Tensor::from_slice(w, [w.len()], logits.device())?.to(other),
                }
            };
            Ok(list.as_ref().map(make).transpose()?)
        };
        // What all samples count together, which is known here: on a GPU nobody need wait for it.
        let samples = target.shape().first().copied().unwrap_or(0);
        let all = weights.map_or(samples as f64, |w| w.iter().map(|&w| f64::from(w)).sum());
        let list = |w: &[f32]| Tensor::from_slice(w, [w.len()], logits.device())?.to(of_weights);
        let weights = weights.map(list).transpose()?;
        let weights = weights.as_ref();
        let plain = CrossEntropy { weights, ..CrossEntropy::default() };
        let point = match &self.config {
            LossConfig::CrossEntropy { label_smoothing, class_weights, ignore_index } => {
                let class_weights = tensor(class_weights)?;
                let how = CrossEntropy {
                    class_weights: class_weights.as_ref(),
                    ignore_index: *ignore_index,
                    label_smoothing: *label_smoothing,
                    ..plain
                };
                let by_label = how.class_weights.is_some() || how.ignore_index.is_some();
                let weight = if by_label { how.weight(target)? } else { all };
                return Ok((logits.cross_entropy_with(target, &how)?, weight));
            }
            LossConfig::MultiMargin { p, margin, class_weights } => {
                let class_weights = tensor(class_weights)?;
                let how = CrossEntropy { class_weights: class_weights.as_ref(), ..plain };
                // As PyTorch's: the classes' weights are no part of what its mean divides by.
                return Ok((logits.multi_margin(target, *p, *margin, &how)?, all));
            }
            LossConfig::Bce { label_smoothing, pos_weight } => {
                let shares = self.shares(logits, target)?;
                let shares = match *label_smoothing {
                    0.0 => shares,
                    part => shares.scale(1.0 - part)?.offset(part / self.classes as f64)?,
                };
                let sum = logits.bce_with_logits(&shares, tensor(pos_weight)?.as_ref(), weights)?;
                return Ok((sum, all * self.classes as f64));
            }
            LossConfig::Mse {} => PointLoss::Mse,
            LossConfig::L1 {} => PointLoss::L1,
            LossConfig::Huber { delta } => PointLoss::Huber { delta: *delta },
            LossConfig::SmoothL1 { beta } => PointLoss::SmoothL1 { beta: *beta },
            LossConfig::Hinge { margin } => PointLoss::Hinge { margin: *margin },
            LossConfig::SquaredHinge { margin } => PointLoss::SquaredHinge { margin: *margin },
            LossConfig::Exponential {} => PointLoss::Exponential,
            LossConfig::Logistic {} => PointLoss::Logistic,
        };
        let shares = self.shares(logits, target)?;
        let signed = matches!(
            self.config,
            LossConfig::Hinge { .. }
                | LossConfig::SquaredHinge { .. }
                | LossConfig::Exponential {}
                | LossConfig::Logistic {}
        );
        let shares = if signed { shares.scale(2.0)?.offset(-1.0)? } else { shares };
        let sum = logits.point_loss(&shares, point, weights)?;
        Ok((sum, all * self.classes as f64))
    }

    /// A target for each class: the probabilities, or 1 at the label.
    fn shares(&self, logits: &Tensor, target: &Tensor) -> Result<Tensor> {
        if target.dtype() != DType::I64 {
            return Ok(target.clone());
        }
        let (labels, k) = (target.to_vec::<i64>()?, self.classes);
        let mut shares = vec![0.0f32; labels.len() * k];
        for (position, label) in labels.iter().enumerate() {
            let class = usize::try_from(*label).ok().filter(|l| *l < k);
            let wrong = phalanx_tensor::Error::Index { op: "loss", index: *label, position, limit: k };
            shares[position * k + class.ok_or(wrong)?] = 1.0;
        }
        Ok(Tensor::from_slice(&shares, [labels.len(), k], logits.device())?.to(logits.dtype())?)
    }
}

#[cfg(test)]
mod tests {
    use phalanx_host::{Cpu, Isa};
    use phalanx_tensor::Device;

    use super::*;

    #[test]
    fn means_are_those_of_pytorch_and_a_label_is_a_probability_of_one() {
        let device = Device::cpu(Cpu::new(Isa::detect(), 1).unwrap());
        // The formula of tests/golden/make.py.
        let logits: Vec<f32> = (0..12).map(|i| (0.8 * (0.7 * f64::from(i)).sin() + 0.1) as f32).collect();
        let logits = Tensor::from_slice(&logits, [3, 4], &device).unwrap();
        let labels = Tensor::from_slice(&[1i64, 3, 0], [3], &device).unwrap();
        let shares = [0.0f32, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0];
        let shares = Tensor::from_slice(&shares, [3, 4], &device).unwrap();
        let weights = "[0.5, 2.0, 1.0, 0.25]";
        for (table, want) in [
            ("kind = \"cross_entropy\"".to_owned(), 1.837_916),
            (
                format!(
                    "kind = \"cross_entropy\"\nlabel_smoothing = 0.1\nclass_weights = {weights}\nignore_index = 3"
                ),
                1.525_943,
            ),
            (format!("kind = \"bce\"\nlabel_smoothing = 0.1\npos_weight = {weights}"), 0.806_435),
            ("kind = \"mse\"".into(), 0.675_891),
            ("kind = \"l1\"".into(), 0.669_165),
            ("kind = \"huber\"\ndelta = 0.5".into(), 0.228_006),
            ("kind = \"smooth_l1\"\nbeta = 0.5".into(), 0.456_012),
            ("kind = \"hinge\"".into(), 1.289_517),
            ("kind = \"squared_hinge\"".into(), 1.925_659),
            ("kind = \"exponential\"".into(), 1.501_851),
            ("kind = \"logistic\"".into(), 0.880_262),
            (format!("kind = \"multi_margin\"\np = 2\nmargin = 0.5\nclass_weights = {weights}"), 0.529_317),
        ] {
            let config: LossConfig = toml::from_str(&table).unwrap();
            assert_eq!(config.is_default(), table == "kind = \"cross_entropy\"", "{table}");
            let criterion = Criterion::new(&config, 4).unwrap();
            let mean = |target: &Tensor| {
                let (sum, weight) = criterion.sum(&logits, target, None).unwrap();
                sum.item().unwrap() / weight
            };
            let got = mean(&labels);
            assert!((got - want).abs() < 2e-6, "{table}: {got}, not {want}");
            let soft = criterion.ignored().is_none() && !table.contains("class_weights");
            assert!(!soft || (mean(&shares) - got).abs() < 2e-6, "{table}");
        }
    }
}
