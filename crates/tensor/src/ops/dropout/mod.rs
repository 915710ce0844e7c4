//! Dropout (Srivastava and others, 2014) and its relatives, with a counter-based mask, which is made again
//! where it is needed and never stored.

mod cpu;
pub(super) mod cuda;
mod noise;

pub(crate) use cpu::{drop_from, threshold};
use phalanx_host::rng::Key;

use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{DType, Error, Result, Shape, Tensor, View, ViewMut, half_storage, ops};

/// `low` with probability `p`, else `scale` times the element plus `shift`.
#[derive(Debug, Clone, Copy)]
struct Dropout {
    op: &'static str,
    p: f64,
    key: Key,
    affine: Affine,
}

/// What becomes of an element.
#[derive(Debug, Clone, Copy)]
struct Affine {
    scale: f64,
    shift: f64,
    low: f64,
}

impl Affine {
    /// A product alone. Adding −0 leaves every number as it is, 0 and −0 too.
    fn product(scale: f64) -> Self {
        Affine { scale, shift: -0.0, low: 0.0 }
    }
}

impl Dropout {
    /// The gradient, which is such an op itself.
    fn back(&self) -> Self {
        Dropout { affine: Affine::product(self.affine.scale), ..*self }
    }
}

/// Checks a probability.
fn want_probability(op: &'static str, shape: Shape, p: f64) -> Result<()> {
    match (0.0..=1.0).contains(&p) {
        true => Ok(()),
        false => {
            let why = format!("its probability is {p}, must be in 0..=1");
            Err(Error::Invalid { op, shape, why })
        }
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        self.op
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.op, inputs, 0)?;
        want_probability(self.op, inputs[0].shape(), self.p)?;
        Ok(Plan::one(inputs[0].dtype, inputs[0].shape()).dense(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        ops::real!(self.op, ins[0].dtype, T => {
            cpu::drop::<T>(cpu, self, ins[0].slice()?, outs[0].slice()?, false);
            Ok(())
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward(&self, cx: &Exec, _: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let cpu = cx.cpu()?;
        let g = g.contiguous()?;
        let (dtype, g) = (g.dtype(), g.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!(self.op, dtype, T => {
            cpu::drop::<T>(cpu, &self.back(), g.slice()?, slot.slice()?, accumulate);
            Ok(())
        })
    }

    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        _: &[Option<Tensor>],
        _: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![grads[0].as_ref().map(|g| apply_one(self.back(), &[g])).transpose()?])
    }
}

impl Tensor {
    /// Each element is 0 with probability `p` and divided by 1 − `p` otherwise. Element i (row-major)
    /// uses word i mod 4 of `key`'s block i / 4, so the mask depends on the key and the place alone.
    /// Fails when `p` is outside 0..=1.
    pub fn dropout(&self, p: f64, key: Key) -> Result<Tensor> {
        let affine = Affine::product(if p < 1.0 { 1.0 / (1.0 - p) } else { 0.0 });
        apply_one(Dropout { op: "dropout", p, key, affine }, &[self])
    }

    /// As [`Tensor::dropout`] for whole channels of `[N, …, C]`: channel c of sample n is dropped by word
    /// n·C + c (Tompson and others, 2015; `torch.nn.Dropout2d`). Fails for fewer than two axes.
    pub fn channel_dropout(&self, p: f64, key: Key) -> Result<Tensor> {
        const OP: &str = "channel_dropout";
        let shape = self.shape();
        let dtype = float(OP, self)?;
        want_probability(OP, shape, p)?;
        if shape.len() < 2 {
            return Err(Error::Invalid {
                op: OP,
                shape,
                why: "it takes [N, …, C], at least two axes".into(),
            });
        }
        let mut planes = vec![1; shape.len()];
        (planes[0], planes[shape.len() - 1]) = (shape[0], shape[shape.len() - 1]);
        let ones = Tensor::scalar(1.0, dtype, self.device())?.expand(&planes)?;
        self.mul(&ones.dropout(p, key)?)
    }

    /// As [`Tensor::dropout`] for networks of SELU units (Klambauer and others, 2017; `torch.nn.AlphaDropout`):
    /// what is dropped becomes the unit's lowest value, and everything is scaled and moved so that mean and
    /// variance of standardised elements stay.
    pub fn alpha_dropout(&self, p: f64, key: Key) -> Result<Tensor> {
        // The lowest value of SELU: −λα.
        const LOW: f64 = -1.758_099_340_847_376_6;
        let scale = if p < 1.0 { ((1.0 - p) * (1.0 + p * LOW * LOW)).powf(-0.5) } else { 0.0 };
        let shift = -scale * p * LOW;
        let affine = Affine { scale, shift, low: scale * LOW + shift };
        apply_one(Dropout { op: "alpha_dropout", p, key, affine }, &[self])
    }

    /// Plus normal noise of mean 0 and standard deviation `deviation`: element i (row-major) gets number i of
    /// [`Tensor::normal`] with `key`. Fails when the deviation is negative or not finite.
    pub fn gaussian_noise(&self, deviation: f64, key: Key) -> Result<Tensor> {
        const OP: &str = "gaussian_noise";
        let dtype = float(OP, self)?;
        if !(deviation >= 0.0 && deviation.is_finite()) {
            let why = format!("its standard deviation is {deviation}, must be 0 or more");
            return Err(Error::Invalid { op: OP, shape: self.shape(), why });
        }
        self.add(&Tensor::normal(dtype, self.shape(), key, self.device())?.scale(deviation)?)
    }
}

/// The type to compute in with a float tensor: f32 for halves, so that what is combined with them is not
/// rounded first.
fn float(op: &'static str, x: &Tensor) -> Result<DType> {
    ops::want_float(op, x)?;
    Ok(if half_storage::is_half(x.dtype()) { DType::F32 } else { x.dtype() })
}
