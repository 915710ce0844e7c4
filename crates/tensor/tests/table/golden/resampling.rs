//! Resizing, and pooling that tells its places.

use std::sync::Arc;

use phalanx_tensor::{FractionalPool, Interpolation, Pool, Resample, Result, Tensor};
use serde_json::Value;

use super::{floats, ints};
use crate::row::Row;

/// The name of an op for as many axes as the input has between samples and channels.
fn named(row: &Row, names: [&'static str; 3]) -> &'static str {
    names[row.inputs[0].shape.len() - 3]
}

/// An op that gives a result and places.
fn places(row: &mut Row, run: impl Fn(&Tensor) -> Result<(Tensor, Tensor)> + Send + Sync + 'static) {
    row.run = Arc::new(move |x| run(&x[0]).map(|(y, places)| vec![y, places]));
}

pub(super) fn fill(op: &str, p: &Value, row: &mut Row) {
    let list = |key: &str| ints::<usize>(&p[key]);
    let [kernel, stride, padding, out] = ["kernel", "stride", "padding", "out"].map(list);
    let sizes = list("sizes");
    match op {
        "interpolate" => {
            let mode = match p["mode"].as_str().unwrap() {
                "nearest" => Interpolation::Nearest,
                "nearest-exact" => Interpolation::NearestExact,
                "linear" => Interpolation::Linear,
                _ => Interpolation::Cubic,
            };
            let how = match p["size"].is_null() {
                true => Resample::by(mode, &floats(&p["factors"])),
                false => Resample::to_size(mode, &list("size")),
            };
            let how = how.align_corners(p["align_corners"] == true).antialias(p["antialias"] == true);
            row.any_type = matches!(mode, Interpolation::Nearest | Interpolation::NearestExact);
            runs!(row, "interpolate", second: true, |x| x[0].interpolate(&how)?);
        }
        "fractional_max_pool" => {
            row.op = named(row, ["fractional_max_pool1d", "fractional_max_pool2d", "fractional_max_pool3d"]);
            let samples = floats(&p["samples"]);
            places(row, move |x| {
                let shape = [x.shape()[0], x.shape()[x.shape().len() - 1], kernel.len()];
                let dtype = if x.dtype() == phalanx_tensor::DType::F64 {
                    x.dtype()
                } else {
                    phalanx_tensor::DType::F32
                };
                let samples = Tensor::from_slice(&samples, shape, x.device())?.to(dtype)?;
                x.fractional_max_pool(&FractionalPool::new(&kernel, &out), &samples)
            });
        }
        "max_pool_places" => {
            row.op = named(row, ["max_pool1d", "max_pool2d", "max_pool3d"]);
            let pool = Pool::new(&kernel).stride(&stride).padding(&padding);
            places(row, move |x| x.max_pool_places(&pool));
        }
        "max_unpool" => {
            let (name, list) =
                (named(row, ["max_unpool1d", "max_unpool2d", "max_unpool3d"]), ints::<i64>(&p["places"]));
            let shape = row.inputs[0].shape.clone();
            runs!(row, "", second: true, |x| {
                x[0].max_unpool(&Tensor::from_slice(&list, &shape[..], x[0].device())?, &sizes)?
            });
            row.op = name;
        }
        _ => {}
    }
}
