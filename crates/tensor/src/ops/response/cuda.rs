//! Local response normalisation on a GPU.

use phalanx_gpu::{Args, Context, DevicePtr, Grid, Source};

use super::LocalResponseNorm;
use crate::op::{CudaOp, Exec, Saved};
use crate::ops::cuda::{THREADS, launch, source, suffix};
use crate::sink::GradSink;
use crate::{DType, Result, Shape, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("response");

/// Elements that a block takes at once, about.
const PIECE: usize = 2048;
/// Shared memory that every GPU gives a block without being asked for more, in bytes.
const ROOM: usize = 48 * 1024;

/// Neighbouring pixels that a block takes at once and the shared memory that it needs for them; none where a single one does
/// not fit.
fn group(channels: usize, size: usize) -> Option<[usize; 2]> {
    // Squares and parts, both with room for the windows at the ends, and the scaled gradient.
    let pixel = 4 * (2 * (channels + size - 1) + channels);
    let pixels = (PIECE / channels.max(1)).clamp(1, PIECE).min(ROOM / pixel.max(1));
    (pixels > 0).then_some([pixels, pixels * pixel])
}

impl LocalResponseNorm {
    /// `out (+)=` the output, or the gradient where `g` is not null.
    fn launch(
        &self,
        gpu: &Context,
        (dtype, shape): (DType, Shape),
        [x, g, out]: [DevicePtr; 3],
        add: bool,
    ) -> Result<()> {
        let channels = shape[shape.len() - 1];
        if shape.numel() == 0 {
            return Ok(());
        }
        let (pixels, suffix) = (shape.numel() / channels, suffix("local_response_norm", dtype)?);
        let (share, place) = (self.alpha / self.size as f64, group(channels, self.size));
        let many = place.map_or(1, |[pixels, _]| pixels);
        let factors = [self.k, share, -self.beta, -2.0 * self.beta * share].map(|v| (v as f32).to_bits());
        let [a, b, c, d] = factors;
        let args = Args::new().ptr(x).ptr(g).ptr(out).i64(pixels as i64).i32(i32::from(add));
        let args = args.pod([channels as u32, self.size as u32, many as u32, a, b, c, d]);
        let Some([_, shared]) = place else {
            return launch(gpu, &SOURCE, &format!("respond_far_{suffix}"), shape.numel(), args);
        };
        let blocks = pixels.div_ceil(many).min(1 << 20) as u32;
        let grid = Grid { blocks: [blocks, 1, 1], threads: THREADS, shared: shared as u32 };
        Ok(gpu.launch(&SOURCE, &format!("respond_{suffix}"), grid, args)?)
    }
}

impl CudaOp for LocalResponseNorm {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let of = (ins[0].dtype, ins[0].shape());
        self.launch(gpu, of, [ins[0].ptr()?, DevicePtr(0), outs[0].ptr()?], false)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let x = saved.input(0)?;
        let of = (x.dtype(), x.shape());
        let (g, x) = (g.to(x.dtype())?.contiguous()?.read()?, x.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let add = slot.accumulate();
        self.launch(cx.gpu()?, of, [x.ptr()?, g.ptr()?, slot.view().ptr()?], add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_group_of_pixels_fits_into_shared_memory_or_there_is_none() {
        assert_eq!(group(96, 5), Some([21, 21 * 4 * 296]));
        for (channels, size) in
            [(1, 1), (1, 64), (3, 5), (64, 128), (2000, 5), (4000, 5), (4093, 5), (9000, 5)]
        {
            match group(channels, size) {
                Some([pixels, bytes]) => assert!(pixels >= 1 && bytes <= ROOM),
                None => assert!(4 * (3 * channels + 2 * size - 2) > ROOM),
            }
        }
    }

    proptest! {
        #[test]
        fn a_block_takes_as_many_pixels_as_it_has_room_for(channels in 1usize..20_000, size in 1usize..200) {
            let pixel = 4 * (3 * channels + 2 * (size - 1));
            match group(channels, size) {
                None => prop_assert!(pixel > ROOM),
                Some([pixels, shared]) => {
                    prop_assert!(pixels >= 1 && shared == pixels * pixel && shared <= ROOM);
                    let more = pixels + 1;
                    prop_assert!(more * pixel > ROOM || more * channels > PIECE);
                }
            }
        }
    }
}
