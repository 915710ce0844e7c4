//! What becomes of a batch of images between the loader and the network: bytes to floats, perhaps cropped and mirrored on
//! the way (`normalise.rs`), and images mixed with others of their batch (`mix.rs`).

mod cpu;
pub(super) mod cuda;
mod mix;
mod normalise;

pub use normalise::{Crops, Normalisation};

use crate::op::Meta;
use crate::{Result, ops};

/// Checks that operand 0 is images and gives their height, width and channels.
fn want_images(op: &'static str, inputs: &[Meta]) -> Result<[usize; 3]> {
    ops::want_axes(op, inputs, 4, "[N,H,W,C]")?;
    let shape = inputs[0].shape();
    Ok([shape[1], shape[2], shape[3]])
}
