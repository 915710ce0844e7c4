use std::sync::Arc;

use crate::context::Core;
use crate::{DevicePtr, Error, Math, Result, Type};

/// Which of a convolution's three operands is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// y from x and w.
    Forward,
    /// The gradient of x from w and that of y.
    Data,
    /// The gradient of w from x and that of y.
    Weights,
}

/// A convolution (cross-correlation): x is `[n, image.., c]`, w `[k, kernel.., c / groups]` and y `[n, out.., k]`,
/// dense; sums in f32. One to three spatial axes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Conv {
    /// Samples.
    pub n: usize,
    /// Channels of x.
    pub c: usize,
    /// Channels of y.
    pub k: usize,
    /// Groups; 1 for an ordinary convolution.
    pub groups: usize,
    /// Spatial sizes of x.
    pub image: Vec<usize>,
    /// Spatial sizes of w.
    pub kernel: Vec<usize>,
    /// Spatial sizes of y.
    pub out: Vec<usize>,
    /// Steps, one an axis.
    pub stride: Vec<usize>,
    /// Zeros before the image, one number an axis.
    pub pad_before: Vec<usize>,
    /// Zeros after the image, one number an axis.
    pub pad_after: Vec<usize>,
    /// Distances of the kernel's elements, one an axis; 1 for dense.
    pub dilation: Vec<usize>,
    /// Type of x and y.
    pub activations: Type,
    /// Type of w.
    pub weights: Type,
    /// How f32 operands are multiplied.
    pub math: Math,
    /// Only algorithms that give the same bits every time, chosen without timing.
    pub exact: bool,
    /// What is computed.
    pub direction: Direction,
}

/// cuDNN.
pub struct Dnn {}

impl Dnn {
    pub(crate) fn open(_core: &Arc<Core>) -> Result<Self> {
        Err(Error::Invalid { what: String::from("not written") })
    }

    /// Queues a convolution on the compute stream: writes y (forward), x (data) or w (weights) from the other two.
    pub fn convolve(&self, _c: &Conv, _x: DevicePtr, _w: DevicePtr, _y: DevicePtr) -> Result<()> {
        Err(Error::Invalid { what: String::from("not written") })
    }

    /// What was chosen for each convolution so far.
    pub fn choices(&self) -> Vec<String> {
        Vec::new()
    }

    /// Takes these choices instead of own ones.
    pub fn pin(&self, _choices: &[String]) -> Result<()> {
        Ok(())
    }
}
