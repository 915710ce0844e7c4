//! Bytes to floats.

use half::{bf16, f16};
use phalanx_host::DType;

use super::{cpu, want_images};
use crate::op::{CudaOp, Exec, Meta, Narrow, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Tensor, View, ViewMut, ops};

const OP: &str = "normalise_bytes";

/// Most channels of an image of bytes: what a GPU's kernel takes as arguments.
pub(super) const CHANNELS: usize = 32;

/// `(x · scale − mean[c]) / std[c]` for channel `c`, each operation rounded to f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalisation {
    /// The factor before all else.
    pub scale: f32,
    /// One a channel.
    pub mean: Vec<f32>,
    /// One a channel.
    pub std: Vec<f32>,
}

impl Normalisation {
    /// What becomes of a byte of channel `c`.
    pub(super) fn of(&self, c: usize, x: u8) -> f32 {
        (f32::from(x) * self.scale - self.mean[c]) / self.std[c]
    }
}

/// A part of each image, all of one size, perhaps mirrored.
#[derive(Debug, Clone, Copy)]
pub struct Crops<'a> {
    /// Height and width of the parts.
    pub size: [usize; 2],
    /// i64 `[N, 3]`: the first row and the first column of each part, and whether it is mirrored left to right (not 0) once
    /// it has been cut. Where a part lies outside its image, which it may, bytes are 0.
    pub places: &'a Tensor,
}

/// Inputs bytes `[N, H, W, C]`, perhaps places `[N, 3]`.
#[derive(Debug)]
pub(super) struct NormaliseBytes {
    pub(super) how: Normalisation,
    size: Option<[usize; 2]>,
    pub(super) dtype: DType,
}

impl Op for NormaliseBytes {
    fn name(&self) -> &'static str {
        OP
    }

    fn narrow(&self) -> Narrow {
        Narrow::AnyType
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let [h, w, channels] = want_images(OP, inputs)?;
        let shape = inputs[0].shape();
        let refuse = |why: String| Err(Error::Invalid { op: OP, shape, why });
        if inputs[0].dtype != DType::U8 {
            return Err(Error::DTypes { op: OP, operand: 0, got: inputs[0].dtype, want: "u8".to_owned() });
        }
        if !matches!(self.dtype, DType::F32 | DType::F16 | DType::BF16) {
            return refuse(format!("it makes f32, bf16 or f16, not {}", self.dtype));
        }
        let (means, stds) = (self.how.mean.len(), self.how.std.len());
        if means != channels || stds != channels {
            return refuse(format!("it was given {means} means and {stds} deviations"));
        }
        if channels > CHANNELS {
            return refuse(format!("it takes up to {CHANNELS} channels"));
        }
        if inputs.len() > 1 {
            ops::want_indices(OP, inputs, 1)?;
            ops::want_shape(OP, inputs, 1, [shape[0], 3].into(), "there are three numbers an image [N,3]")?;
        }
        let [rows, columns] = self.size.unwrap_or([h, w]);
        Ok(Plan::one(self.dtype, [shape[0], rows, columns, channels].into()).dense(0b11))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let (cpu, from, to) = (cx.cpu()?, ins[0].shape(), outs[0].shape);
        let (bytes, places) = (ins[0].slice::<u8>()?, ins.get(1).map(|p| p.slice::<i64>()).transpose()?);
        let look = cpu::Look { from: [from[1], from[2], from[3]], to: [to[1], to[2]], places };
        let out = &mut outs[0];
        match self.dtype {
            DType::F16 => {
                cpu::look_up(cpu, &look, &cpu::table(&self.how, f16::from_f32), bytes, out.slice()?)
            }
            DType::BF16 => {
                cpu::look_up(cpu, &look, &cpu::table(&self.how, bf16::from_f32), bytes, out.slice()?)
            }
            _ => cpu::look_up(cpu, &look, &cpu::table(&self.how, |x| x), bytes, out.slice()?),
        }
        Ok(())
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward(&self, _: &Exec, _: Saved, _: &[Option<Tensor>], _: &mut GradSink) -> Result<()> {
        Ok(())
    }
}

impl Tensor {
    /// Images of bytes `[N, H, W, C]`, or a part of each, as floats of type `dtype`: f32, or rounded from that to bf16 or
    /// f16. The bits are the same on all devices. Outside the graph. Fails for more than 32 channels.
    pub fn normalise_bytes(
        &self,
        how: &Normalisation,
        crops: Option<&Crops>,
        dtype: DType,
    ) -> Result<Tensor> {
        let op = NormaliseBytes { how: how.clone(), size: crops.map(|c| c.size), dtype };
        match crops {
            Some(crops) => apply_one(op, &[self, crops.places]),
            None => apply_one(op, &[self]),
        }
    }
}
