//! Batched products, and picking and adding by index.

use phalanx_tensor::{DType, Tensor};
use serde_json::Value;

use super::ints;
use crate::row::{Row, indices};

pub(super) fn fill(op: &str, p: &Value, row: &mut Row) {
    let axis = p["axis"].as_u64().unwrap_or(0) as usize;
    let (of, index) = (ints::<usize>(&p["of"]), ints::<i64>(&p["index"]));
    let padding = p["padding"].as_u64().map(|p| p as usize);
    let classes = p["classes"].as_u64().unwrap_or(0) as usize;
    let list = indices(&of, &index);
    let at = move |x: &[Tensor]| Tensor::from_slice(&index, &of[..], x[0].device()).unwrap();
    match op {
        "matmul" => runs!(row, "matmul", second: true, |x| x[0].matmul(&x[1])?),
        "softmax" => runs!(row, "softmax", second: true, |x| x[0].softmax_over(axis)?),
        "log_softmax" => runs!(row, "log_softmax", second: true, |x| x[0].log_softmax_over(axis)?),
        "embedding" => {
            runs!(row, "embedding", second: true, |x| x[0].embedding(&at(x), padding)?);
            row.any_type = true;
            // The gradient of a padding row is not its slope.
            row.slopes = padding.is_none();
        }
        "index_add" => runs!(row, "index_add", second: true, |x| x[0].index_add(axis, &at(x), &x[1])?),
        "scatter_add" => runs!(row, "scatter_add", second: true, |x| x[0].scatter_add(axis, &at(x), &x[1])?),
        "one_hot" => {
            row.inputs = vec![list];
            row.smooth = false;
            runs!(row, "one_hot", second: false, |x| x[0].one_hot(classes, DType::F64)?);
        }
        _ => {}
    }
}
