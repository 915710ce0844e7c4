//! Losses of numbers one by one on a GPU.

use phalanx_gpu::{Args, Context, Grid, Source};
use phalanx_host::DType;

use super::cuda::sum;
use super::point::{Point, PointLoss, per_sample};
use crate::op::{CudaOp, Exec, Op, Saved};
use crate::ops::cuda::{launch, optional, source, suffix};
use crate::sink::GradSink;
use crate::{Error, Result, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("point_loss", "point.cu");

/// Elements that a block adds up.
const EACH: usize = 16 * 1024;
/// Elements that a thread takes at once.
const PACK: usize = 4;

impl PointLoss {
    /// Its number in `point.cu`, and its two constants.
    fn cuda(&self) -> (i32, [f64; 2]) {
        match *self {
            PointLoss::Mse => (0, [0.0; 2]),
            PointLoss::L1 => (1, [0.0; 2]),
            PointLoss::Huber { delta } => (2, [delta, 1.0]),
            PointLoss::SmoothL1 { beta } if beta > 0.0 => (2, [beta, 1.0 / beta]),
            PointLoss::SmoothL1 { .. } => (1, [0.0; 2]),
            PointLoss::Bce => (3, [0.0; 2]),
            PointLoss::BceWithLogits => (4, [0.0; 2]),
            PointLoss::Hinge { margin } => (5, [margin, 0.0]),
            PointLoss::SquaredHinge { margin } => (6, [margin, 0.0]),
            PointLoss::HingeEmbedding { margin } => (7, [margin, 0.0]),
            PointLoss::Exponential => (8, [0.0; 2]),
            PointLoss::Logistic => (9, [0.0; 2]),
            PointLoss::KlDiv { log_target: true } => (10, [0.0; 2]),
            PointLoss::KlDiv { log_target: false } => (11, [0.0; 2]),
            PointLoss::Poisson { log_input, full, eps } => {
                (if log_input { 12 } else { 13 }, [eps, f64::from(u8::from(full))])
            }
        }
    }
}

impl Point {
    /// The arguments that kernels take for a `Pair`.
    fn pair(&self, ins: &[View]) -> Result<Args> {
        let (loss, [a, b]) = self.loss.cuda();
        let shape = ins[0].shape();
        let args = Args::new().i32(loss).f32(a as f32).f32(b as f32);
        let args = optional(optional(args, Some(&ins[0]))?, Some(&ins[1]))?;
        let args = optional(args, self.weighted.then(|| &ins[2]))?;
        let args = optional(args, self.positive().map(|i| &ins[i]))?;
        let (k, last) = (per_sample(shape), shape.last().copied().unwrap_or(1));
        Ok(args.i64(shape.numel() as i64).i64(k as i64).i64(last as i64))
    }
}

impl CudaOp for Point {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        ins[..2].iter().try_for_each(|x| suffix(self.name(), x.dtype).map(|_| ()))?;
        let blocks = ins[0].shape().numel().div_ceil(EACH);
        let parts = gpu.alloc(blocks * size_of::<f32>())?;
        let args = self.pair(ins)?.i32(EACH as i32).ptr(parts.ptr());
        gpu.launch(&SOURCE, "point_sums", Grid::linear(blocks, 1), args)?;
        sum(gpu, parts.ptr(), blocks, outs[0].ptr()?)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let read = (0..saved.inputs.len()).map(|i| saved.input(i)?.read()).collect::<Result<Vec<_>>>()?;
        let views: Vec<View> = read.iter().map(|r| r.view()).collect();
        let g = g.to(DType::F32)?.read()?;
        let n = views.first().ok_or(Error::GraphReleased { op: self.name() })?.shape().numel();
        for i in 0..2 {
            let dtype = suffix(self.name(), views[i].dtype)?;
            let Some(mut slot) = sink.slot(i)? else { continue };
            let add = i32::from(slot.accumulate());
            let args = self.pair(&views)?.i32(i as i32).ptr(g.ptr()?).ptr(slot.view().ptr()?).i32(add);
            launch(cx.gpu()?, &SOURCE, &format!("point_gradient_{dtype}"), n.div_ceil(PACK), args)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_case() {
        for (loss, number) in [
            (PointLoss::Mse, 0),
            (PointLoss::SmoothL1 { beta: 0.0 }, 1),
            (PointLoss::SmoothL1 { beta: 0.5 }, 2),
            (PointLoss::Logistic, 9),
            (PointLoss::KlDiv { log_target: false }, 11),
            (PointLoss::Poisson { log_input: false, full: true, eps: 1e-8 }, 13),
        ] {
            assert_eq!(loss.cuda().0, number, "{}", loss.name());
            assert!(number > 11 || SOURCE.text.contains(&format!("case {number}:")));
        }
    }
}
