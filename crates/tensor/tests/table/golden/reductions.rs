//! Reductions, and what is computed along an axis.

use std::sync::Arc;

use phalanx_tensor::{Result, Tensor};
use serde_json::Value;

use super::ints;
use crate::row::Row;

/// Sets the op, and what gives its values and their places.
fn found(
    row: &mut Row,
    op: &'static str,
    run: impl Fn(&Tensor) -> Result<(Tensor, Tensor)> + Send + Sync + 'static,
) {
    (row.op, row.second) = (op, true);
    row.run = Arc::new(move |x| run(&x[0]).map(|(values, places)| vec![values, places]));
}

pub(super) fn fill(op: &str, p: &Value, row: &mut Row) {
    let (axes, keep) = (ints::<usize>(&p["axes"]), p["keepdim"] == true);
    let [axis, k] = ["axis", "k"].map(|key| p[key].as_u64().unwrap_or(0) as usize);
    let correction = p["correction"].as_f64().unwrap_or(f64::NAN);
    let power = p["p"].as_f64().unwrap_or(f64::INFINITY);
    let (largest, falling) = (p["largest"] == true, p["falling"] == true);
    match op {
        "min" => runs!(row, "min", second: true, |x| x[0].min(&axes, keep)?),
        "prod" => runs!(row, "prod", second: true, |x| x[0].prod(&axes, keep)?),
        "logsumexp" => runs!(row, "logsumexp", second: true, |x| x[0].logsumexp(&axes, keep)?),
        "var" => runs!(row, "var", second: true, |x| x[0].var(&axes, correction, keep)?),
        "std" => runs!(row, "std", second: true, |x| x[0].std(&axes, correction, keep)?),
        "norm" => runs!(row, "norm", second: true, |x| x[0].norm(power, &axes, keep)?),
        "cumsum" => runs!(row, "cumsum", second: true, |x| x[0].cumsum(axis)?),
        "cumprod" => runs!(row, "cumprod", second: false, |x| x[0].cumprod(axis)?),
        "top_k" => found(row, "top_k", move |x| x.top_k(k, axis, largest, true)),
        "sort" => found(row, "sort", move |x| x.sort(axis, falling)),
        _ => {}
    }
}
