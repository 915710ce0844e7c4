//! Arrays as safetensors.

use phalanx_host::DType;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::task::{Array, Arrays};
use crate::{Error, Result};

fn failed(problem: String) -> Error {
    Error::config("safetensors", problem)
}

/// The file's bytes.
pub(crate) fn to_safetensors(arrays: &Arrays) -> Result<Vec<u8>> {
    let views = arrays.iter().map(|(name, a)| {
        let dtype = match a.dtype {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::U8 => Dtype::U8,
            DType::I64 => Dtype::I64,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
        };
        let view = TensorView::new(dtype, a.shape.clone(), &a.bytes);
        Ok((name.as_str(), view.map_err(|e| failed(format!("{name}: {e}")))?))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    safetensors::serialize(views, None).map_err(|e| failed(e.to_string()))
}

/// The arrays of a file. Fails on anything that is not whole and plain.
pub(crate) fn from_safetensors(bytes: &[u8]) -> Result<Arrays> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| failed(e.to_string()))?;
    let arrays = file.iter().map(|(name, view)| {
        let dtype = match view.dtype() {
            // Whole numbers that others write; nothing is computed with them.
            Dtype::BOOL | Dtype::I8 => DType::U8,
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::U8 => DType::U8,
            Dtype::I64 => DType::I64,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => return Err(failed(format!("{name} has the unknown type {other:?}"))),
        };
        let array = Array { dtype, shape: view.shape().to_vec(), bytes: view.data().to_vec() };
        Ok((name.to_owned(), array))
    });
    arrays.collect()
}
