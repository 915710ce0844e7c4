//! Convolutions, as they are and transposed.

use std::sync::Arc;

use phalanx_tensor::Conv;
use serde_json::Value;

use super::ints;
use crate::row::Row;

pub(super) fn fill(op: &str, p: &Value, row: &mut Row) {
    let [stride, dilation, more] = ["stride", "dilation", "output_padding"].map(|k| ints::<usize>(&p[k]));
    let groups = p["groups"].as_u64().unwrap() as usize;
    let conv = Conv::new().stride(&stride).dilation(&dilation).groups(groups);
    let conv = if p["padding"] == "same" { conv.same() } else { conv.padding(&ints::<usize>(&p["padding"])) };
    let conv = if more.is_empty() { conv } else { conv.output_padding(&more) };
    let rank = stride.len();
    (row.second, row.batch) = (true, vec![0]);
    match op {
        "conv" => {
            row.op = ["conv1d", "conv2d", "conv3d"][rank - 1];
            row.run = Arc::new(move |x| {
                let (w, b) = (&x[1], x.get(2));
                Ok(vec![match rank {
                    1 => x[0].conv1d(w, b, &conv)?,
                    2 => x[0].conv2d(w, b, &conv)?,
                    _ => x[0].conv3d(w, b, &conv)?,
                }])
            });
        }
        "conv_transpose" => {
            row.op = ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"][rank - 1];
            row.run = Arc::new(move |x| {
                let (w, b) = (&x[1], x.get(2));
                Ok(vec![match rank {
                    1 => x[0].conv_transpose1d(w, b, &conv)?,
                    2 => x[0].conv_transpose2d(w, b, &conv)?,
                    _ => x[0].conv_transpose3d(w, b, &conv)?,
                }])
            });
        }
        _ => {}
    }
}
