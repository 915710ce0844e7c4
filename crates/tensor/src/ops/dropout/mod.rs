//! Dropout (Srivastava and others, 2014) with a counter-based mask, which is made again where it is
//! needed and never stored.

mod cpu;

pub(crate) use cpu::drop_from;
use phalanx_host::rng::Key;

use crate::op::{Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Tensor, View, ViewMut, ops};

/// Zero with probability `p`, else scaled by 1/(1 − p).
#[derive(Debug, Clone, Copy)]
struct Dropout {
    p: f64,
    key: Key,
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real("dropout", inputs, 0)?;
        if !(0.0..=1.0).contains(&self.p) {
            let why = format!("its probability is {}, must be in 0..=1", self.p);
            return Err(Error::Invalid { op: "dropout", shape: inputs[0].shape(), why });
        }
        Ok(Plan::one(inputs[0].dtype, inputs[0].shape()).dense(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        ops::real!("dropout", ins[0].dtype, T => {
            cpu::drop::<T>(cpu, self.p, self.key, ins[0].slice()?, outs[0].slice()?, false);
            Ok(())
        })
    }

    fn backward(&self, cx: &Exec, _: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let cpu = cx.cpu()?;
        let g = g.contiguous()?;
        let (dtype, g) = (g.dtype(), g.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!("dropout", dtype, T => {
            cpu::drop::<T>(cpu, self.p, self.key, g.slice()?, slot.slice()?, accumulate);
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
        Ok(vec![grads[0].as_ref().map(|g| g.dropout(self.p, self.key)).transpose()?])
    }
}

impl Tensor {
    /// Each element is 0 with probability `p` and divided by 1 − `p` otherwise. Element i (row-major)
    /// uses word i mod 4 of `key`'s block i / 4, so the mask depends on the key and the place alone.
    /// Fails when `p` is outside 0..=1.
    pub fn dropout(&self, p: f64, key: Key) -> Result<Tensor> {
        apply_one(Dropout { p, key }, &[self])
    }
}
