//! Norms of each sample by itself.

use std::sync::Arc;

use phalanx_tensor::Tensor;
use serde_json::Value;

use crate::row::Row;

pub(super) fn fill(op: &str, p: &Value, row: &mut Row) {
    let eps = p["eps"].as_f64().unwrap();
    let [axes, groups] = ["axes", "groups"].map(|key| p[key].as_u64().unwrap_or(0) as usize);
    let [scaled, shifted] = ["scaled", "shifted"].map(|key| p[key] == true);
    let affine = move |x: &[Tensor]| {
        [scaled.then(|| x[1].clone()), shifted.then(|| x[1 + usize::from(scaled)].clone())]
    };
    // Rows of one axis are no samples.
    row.batch = if axes == row.inputs[0].shape.len() { vec![] } else { vec![0] };
    match op {
        "layer_norm" => runs!(row, "layer_norm", second: false, |x| {
            let [gamma, beta] = affine(x);
            x[0].layer_norm(axes, gamma.as_ref(), beta.as_ref(), eps)?
        }),
        "rms_norm" => runs!(row, "rms_norm", second: false, |x| {
            x[0].rms_norm(axes, affine(x)[0].as_ref(), eps)?
        }),
        "group_norm" => {
            row.op = "group_norm";
            row.run = Arc::new(move |x| {
                let [gamma, beta] = affine(x);
                let of = x[0].group_norm_with_moments(groups, gamma.as_ref(), beta.as_ref(), eps)?;
                Ok(vec![of.y, of.mean, of.variance])
            });
        }
        _ => {}
    }
}
