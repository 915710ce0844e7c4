//! Images on a GPU.

use phalanx_gpu::{Args, Context, Grid, Source};

use super::mix::{Mix, OP};
use super::normalise::{CHANNELS, NormaliseBytes};
use crate::op::{CudaOp, Op};
use crate::ops::cuda::{NONE, THREADS, code, divisor, faults, launch, source, suffix};
use crate::{Error, Result, View, ViewMut};

pub(crate) static SOURCE: Source = source!("images");

impl CudaOp for NormaliseBytes {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (from, to, total) = (ins[0].shape(), outs[0].shape, outs[0].shape.numel());
        let sizes = [from[1], from[2], from[3], to[1], to[2]].map(u32::try_from);
        let [Ok(h), Ok(w), Ok(channels), Ok(rows), Ok(columns)] = sizes else {
            let why = "its sides are more than a GPU's kernels count".to_owned();
            return Err(Error::Invalid { op: self.name(), shape: from, why });
        };
        let mut numbers = [0f32; 1 + 2 * CHANNELS];
        numbers[0] = self.how.scale;
        numbers[1..][..self.how.mean.len()].copy_from_slice(&self.how.mean);
        numbers[1 + CHANNELS..][..self.how.std.len()].copy_from_slice(&self.how.std);
        let mut look = bytemuck::cast_slice(&[h, w, channels, rows, columns]).to_vec();
        look.extend_from_slice(bytemuck::cast_slice(&numbers));
        let places = ins.get(1).map_or(Ok(NONE), View::ptr)?;
        let args =
            Args::new().ptr(ins[0].ptr()?).ptr(outs[0].ptr()?).i64(total as i64).ptr(places).bytes(&look);
        let kind = match channels {
            1 => "_1",
            3 => "_3",
            _ => "",
        };
        let kernel = format!("normalise{kind}_{}", suffix(self.name(), self.dtype)?);
        launch(gpu, &SOURCE, &kernel, total.div_ceil(16 / self.dtype.size()), args)
    }
}

impl CudaOp for Mix {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (dtype, shape) = (ins[0].dtype, ins[0].shape());
        let (samples, line) = (shape[0], shape[2] * shape[3]);
        let per = shape[1] * line;
        if samples * per == 0 {
            return Ok(());
        }
        let why = "an image is too large for a GPU's kernels".to_owned();
        let count = i32::try_from(per).map_err(|_| Error::Invalid { op: OP, shape, why })?;
        let args = Args::new().ptr(ins[0].ptr()?).ptr(outs[0].ptr()?).i64(samples as i64).i32(count);
        let args = args.pod(divisor(line)).pod(divisor(shape[3])).ptr(ins[1].ptr()?);
        let args = args.ptr(ins[2].ptr()?).i32(code(ins[2].dtype)).ptr(ins[3].ptr()?);
        let threads = THREADS as usize;
        let across = per.div_ceil(16 / dtype.size() * threads).clamp(1, 64) as u32;
        let grid = Grid { blocks: [across, samples.min(1 << 15) as u32, 1], threads: THREADS, shared: 0 };
        let kernel = format!("mix_{}", suffix(OP, dtype)?);
        Ok(gpu.launch(&SOURCE, &kernel, grid, faults::args(gpu, args, OP)?)?)
    }
}
