//! Losses.

use std::sync::Arc;

use phalanx_tensor::{CrossEntropy, PointLoss, Result, Tensor, Triplet};
use serde_json::Value;

use super::ints;
use crate::row::Row;

fn number(p: &Value, key: &str) -> f64 {
    p[key].as_f64().unwrap_or(0.0)
}

/// The point loss of that name.
fn point(op: &str, p: &Value) -> Option<PointLoss> {
    let of = |key| number(p, key);
    Some(match op {
        "mse" => PointLoss::Mse,
        "l1" => PointLoss::L1,
        "huber" => PointLoss::Huber { delta: of("delta") },
        "smooth_l1" => PointLoss::SmoothL1 { beta: of("beta") },
        "bce" => PointLoss::Bce,
        "hinge" => PointLoss::Hinge { margin: of("margin") },
        "squared_hinge" => PointLoss::SquaredHinge { margin: of("margin") },
        "hinge_embedding" => PointLoss::HingeEmbedding { margin: of("margin") },
        "exponential" => PointLoss::Exponential,
        "logistic" => PointLoss::Logistic,
        "kl_div" => PointLoss::KlDiv { log_target: p["log_target"] == true },
        "poisson" => {
            let [log_input, full] = ["log_input", "full"].map(|key| p[key] == true);
            PointLoss::Poisson { log_input, full, eps: of("eps") }
        }
        _ => return None,
    })
}

/// The operands of a loss of classes, and how it counts.
struct Classes {
    inputs: Vec<String>,
    labels: Vec<i64>,
    smoothing: f64,
    ignore: Option<i64>,
}

impl Classes {
    fn of(p: &Value) -> Self {
        let inputs = p["inputs"].as_array().map_or(vec![], |all| {
            all.iter().map(|name| name.as_str().unwrap_or_default().to_owned()).collect()
        });
        Classes {
            inputs,
            labels: ints(&p["labels"]),
            smoothing: number(p, "label_smoothing"),
            ignore: p["ignore_index"].as_i64(),
        }
    }

    fn run(
        &self,
        x: &[Tensor],
        loss: impl Fn(&Tensor, &CrossEntropy) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let given = |name: &str| self.inputs.iter().position(|i| i == name).map(|i| &x[i + 1]);
        let rows = x[0].shape().without(x[0].shape().len() - 1);
        let target = match given("target") {
            Some(t) => t.clone(),
            None => Tensor::from_slice(&self.labels, rows, x[0].device())?,
        };
        let options = CrossEntropy {
            weights: given("weights"),
            class_weights: given("class_weights"),
            ignore_index: self.ignore,
            label_smoothing: self.smoothing,
        };
        let sum = loss(&target, &options)?;
        let weight = Tensor::scalar(options.weight(&target)?, sum.dtype(), sum.device())?;
        Ok(vec![sum, weight])
    }
}

pub(super) fn fill(op: &str, p: &Value, row: &mut Row) {
    if let Some(loss) = point(op, p) {
        (row.op, row.second) = (loss.name(), loss == PointLoss::Mse);
        row.batch = (0..row.inputs.len()).collect();
        row.run = Arc::new(move |x| Ok(vec![x[0].point_loss(&x[1], loss, x.get(2))?]));
        return;
    }
    let weighted = p["weighted"] == true;
    let weights = move |x: &[Tensor], at: usize| weighted.then(|| x[at].clone());
    let margin = number(p, "margin");
    match op {
        "bce_with_logits" => {
            let positive = p["pos_weight"] == true;
            runs!(row, "bce_with_logits", second: false, |x| {
                let pos_weight = positive.then(|| &x[x.len() - 1]);
                x[0].bce_with_logits(&x[1], pos_weight, weights(x, 2).as_ref())?
            });
        }
        "cross_entropy" => {
            let of = Classes::of(p);
            row.op = "cross_entropy";
            row.run = Arc::new(move |x| of.run(x, |target, how| x[0].cross_entropy_with(target, how)));
        }
        "nll" => {
            let of = Classes::of(p);
            runs!(row, "nll", second: true, |x| of.run(x, |target, how| x[0].nll(target, how))?.remove(0));
        }
        "multi_margin" => {
            let (of, power) = (Classes::of(p), p["p"].as_u64().unwrap_or(0) as u32);
            runs!(row, "multi_margin", second: true, |x| {
                of.run(x, |target, how| x[0].multi_margin(target, power, margin, how))?.remove(0)
            });
        }
        "cosine_embedding" => runs!(row, "cosine_embedding", second: true, |x| {
            x[0].cosine_embedding(&x[1], &x[2], margin, weights(x, 3).as_ref())?
        }),
        "margin_ranking" => runs!(row, "margin_ranking", second: true, |x| {
            x[0].margin_ranking(&x[1], &x[2], margin, weights(x, 3).as_ref())?
        }),
        "triplet_margin" => {
            let how = Triplet { margin, p: number(p, "p"), eps: number(p, "eps"), swap: p["swap"] == true };
            runs!(row, "triplet_margin", second: true, |x| {
                x[0].triplet_margin(&x[1], &x[2], &how, weights(x, 3).as_ref())?
            });
        }
        "gaussian_nll" => {
            let (full, eps) = (p["full"] == true, number(p, "eps"));
            runs!(row, "gaussian_nll", second: true, |x| {
                x[0].gaussian_nll(&x[1], &x[2], full, eps, weights(x, 3).as_ref())?
            });
        }
        _ => {}
    }
}
