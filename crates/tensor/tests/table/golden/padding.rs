//! Padding and other moves of elements.

use phalanx_tensor::{PadMode, fold};
use serde_json::Value;

use super::ints;
use crate::row::Row;

fn mode(p: &Value) -> PadMode {
    match p["mode"].as_str() {
        Some("reflect") => PadMode::Reflect,
        Some("replicate") => PadMode::Replicate,
        Some("circular") => PadMode::Circular,
        _ => PadMode::Constant(p["value"].as_f64().unwrap_or(0.0)),
    }
}

pub(super) fn fill(op: &str, p: &Value, row: &mut Row) {
    let list = |key: &str| ints::<usize>(&p[key]);
    let number = |key: &str| p[key].as_u64().unwrap_or(0) as usize;
    let window = ["kernel", "stride", "padding", "dilation"].map(list);
    row.any_type = true;
    match op {
        "pad" => {
            let amounts = p["amounts"].as_array().unwrap();
            let amounts: Vec<[isize; 2]> = amounts.iter().map(|a| ints(a).try_into().unwrap()).collect();
            let (axis, mode) = (number("axis"), mode(p));
            runs!(row, "pad", second: true, |x| x[0].pad(axis, &amounts, mode)?);
        }
        "unfold" => runs!(row, "unfold", second: true, |x| {
            let [k, s, p, d] = &window;
            x[0].unfold(k, s, p, d)?
        }),
        "fold" => {
            let sizes = list("sizes");
            row.any_type = false;
            runs!(row, "fold", second: true, |x| {
                let [k, s, p, d] = &window;
                fold(&x[0], &sizes, k, s, p, d)?
            });
        }
        "pixel_shuffle" => {
            let factor = number("factor");
            runs!(row, "pixel_shuffle", second: true, |x| x[0].pixel_shuffle(factor)?);
        }
        "pixel_unshuffle" => {
            let factor = number("factor");
            runs!(row, "pixel_unshuffle", second: true, |x| x[0].pixel_unshuffle(factor)?);
        }
        "flip" => {
            let axes = list("axes");
            runs!(row, "flip", second: true, |x| x[0].flip(&axes)?);
        }
        "roll" => {
            let (axis, shift) = (number("axis"), p["shift"].as_i64().unwrap() as isize);
            runs!(row, "roll", second: true, |x| x[0].roll(axis, shift)?);
        }
        "repeat" => {
            let times = list("times");
            runs!(row, "repeat", second: true, |x| x[0].repeat(&times)?);
        }
        _ => {}
    }
}
