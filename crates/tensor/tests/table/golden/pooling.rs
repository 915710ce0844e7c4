//! Pooling and local response normalisation.

use std::sync::Arc;

use phalanx_tensor::{Pool, Result, Tensor};
use serde_json::Value;

use super::ints;
use crate::row::Row;

/// The windows that a case tells.
fn pool(p: &Value) -> Pool {
    let [kernel, stride, padding] = ["kernel", "stride", "padding"].map(|k| ints::<usize>(&p[k]));
    let pool = Pool::new(&kernel).stride(&stride).padding(&padding).ceil(p["ceil"] == true);
    let pool = pool.count_include_pad(p["count_include_pad"] != false);
    let pool = if p["dilation"].is_array() { pool.dilation(&ints::<usize>(&p["dilation"])) } else { pool };
    p["divisor"].as_u64().map_or(pool, |d| pool.divisor(d as usize))
}

fn set(
    row: &mut Row,
    names: [&'static str; 3],
    second: bool,
    run: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) {
    row.op = names[row.inputs[0].shape.len() - 3];
    (row.second, row.batch) = (second, vec![0]);
    row.run = Arc::new(move |x| Ok(vec![run(&x[0])?]));
}

pub(super) fn fill(op: &str, p: &Value, row: &mut Row) {
    let (windows, out) = (pool(p), ints::<usize>(&p["out"]));
    match op {
        "max_pool" => {
            set(row, ["max_pool1d", "max_pool2d", "max_pool3d"], false, move |x| x.max_pool(&windows));
        }
        "avg_pool" => {
            set(row, ["avg_pool1d", "avg_pool2d", "avg_pool3d"], true, move |x| x.avg_pool(&windows));
        }
        "adaptive_max_pool" => {
            let names = ["adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"];
            set(row, names, false, move |x| x.adaptive_max_pool(&out));
        }
        "adaptive_avg_pool" => {
            let names = ["adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"];
            set(row, names, true, move |x| x.adaptive_avg_pool(&out));
        }
        "local_response_norm" => {
            let [alpha, beta, k] = ["alpha", "beta", "k"].map(|key| p[key].as_f64().unwrap());
            let size = p["size"].as_u64().unwrap() as usize;
            runs!(row, "local_response_norm", second: false, |x| {
                x[0].local_response_norm(size, alpha, beta, k)?
            });
        }
        _ => {}
    }
}
