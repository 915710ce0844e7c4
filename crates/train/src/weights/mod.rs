//! Weights from files: our own checkpoints, safetensors, and PyTorch's `.pth`, read without executing anything.

mod archive;
mod init;
mod matching;
mod pickle;
#[cfg(test)]
mod tests;
mod torch;

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use init::misfit;
pub use init::{Begun, InitConfig};
pub use matching::{LoadError, Misfit, classes, heads, load};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, Progress, from_safetensors};
use crate::task::Arrays;
use crate::{Error, Result};

/// Named arrays and where they are from.
#[derive(Debug, Clone)]
pub struct Weights {
    /// The arrays, under the names in the file.
    pub arrays: Arrays,
    /// Where they are from.
    pub origin: Origin,
    /// How far the run had come, when they are of one of our checkpoints.
    pub progress: Option<Progress>,
}

/// Where weights are from: kept in the records of the run that begins with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The file, or the checkpoint's directory.
    pub path: PathBuf,
    /// The BLAKE3 hash, in hex, of the file; of a checkpoint's, of the arrays' elements in order of name.
    pub blake3: String,
}

/// Reads weights: a safetensors file, a file of `torch.save`, a checkpoint of ours, or a run directory for its
/// newest checkpoint. From a checkpoint come the averaged weights where the run has kept an average;
/// `model.safetensors` in it is the plain ones.
///
/// Fails with [`Error::WeightsFile`] on a file that is damaged or holds something else.
pub fn read(path: &Path) -> Result<Weights> {
    if path.is_dir() {
        return of_checkpoint(path);
    }
    let wrong = |problem: String| Error::WeightsFile { path: path.into(), problem };
    let bytes = fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::Weights { path: path.into(), problem: "there is no such file or directory".into() }
        }
        _ => wrong(format!("it cannot be read: {e}")),
    })?;
    let arrays = match &bytes {
        b if torch::is_torch(b) => torch::read(b),
        b if looks_like_safetensors(b) => from_safetensors(b).map_err(|e| e.to_string()),
        _ => {
            Err("it is neither a safetensors file nor one of torch.save (a zip archive, or a pickle before \
                  PyTorch 1.6)"
                .into())
        }
    };
    let origin = Origin { path: path.into(), blake3: blake3::hash(&bytes).to_hex().to_string() };
    Ok(Weights { arrays: arrays.map_err(wrong)?, origin, progress: None })
}

/// The length of the header, then the header, which is a JSON object.
fn looks_like_safetensors(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{')
}

fn of_checkpoint(path: &Path) -> Result<Weights> {
    let (path, snapshot, progress) = checkpoint::find(path, |_| ())?;
    let mut arrays = snapshot.model;
    arrays.extend(snapshot.ema);
    let mut hasher = blake3::Hasher::new();
    arrays.values().for_each(|a| {
        hasher.update(&a.bytes);
    });
    let origin = Origin { path, blake3: hasher.finalize().to_hex().to_string() };
    Ok(Weights { arrays, origin, progress: Some(progress) })
}
