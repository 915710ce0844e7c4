//! Sums over boxes of channels-last images with weights that are products of one weight an axis: average
//! pooling, interpolation, padding, and the gradients of all three, which are such sums themselves.

mod cpu;
pub(super) mod cuda;

use std::fmt::Debug;

use phalanx_host::DType;

use crate::op::{CudaOp, Exec, Meta, Narrow, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// What each result reads along one axis: places of the operand with their weights, and what the sum is
/// divided by.
#[derive(Debug, Clone)]
pub(crate) struct Taps {
    /// Places along the operand's axis.
    size: usize,
    /// Where the list of each result ends.
    ends: Vec<usize>,
    list: Vec<(usize, f64)>,
    divisors: Vec<f64>,
}

impl Taps {
    /// No result yet, of an axis of `size`.
    pub(crate) fn new(size: usize) -> Self {
        Taps { size, ends: vec![], list: vec![], divisors: vec![] }
    }

    /// Adds a result.
    pub(crate) fn push(&mut self, places: impl Iterator<Item = (usize, f64)>, divisor: f64) {
        self.list.extend(places);
        self.ends.push(self.list.len());
        self.divisors.push(divisor);
    }

    /// The number of results.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The list of result `o`, as a range.
    fn range(&self, o: usize) -> std::ops::Range<usize> {
        (if o == 0 { 0 } else { self.ends[o - 1] })..self.ends[o]
    }

    /// The one place that result `o` is, if any.
    fn place(&self, o: usize) -> Option<usize> {
        self.list[self.range(o)].first().map(|&(place, _)| place)
    }

    /// The way back: which results each place went into.
    fn transposed(&self) -> Taps {
        let mut users = vec![Vec::new(); self.size];
        for (o, divisor) in self.divisors.iter().enumerate() {
            for &(i, weight) in &self.list[self.range(o)] {
                users[i].push((o, weight / divisor));
            }
        }
        let mut back = Taps::new(self.len());
        users.into_iter().for_each(|list| back.push(list.into_iter(), 1.0));
        back
    }
}

/// Which boxes are summed.
pub(crate) trait Boxes: Debug + Clone + Send + Sync + 'static {
    /// The op's name.
    fn name(&self) -> &'static str;
    /// The number of axes between samples and channels, 1 to 3.
    fn rank(&self) -> usize;
    /// The taps along each of these axes of `x`; every check of their sizes is made here.
    fn taps(&self, x: Shape) -> Result<Vec<Taps>>;
    /// Whether every result is one place of the operand, unchanged, or none of them. Then operands may be of
    /// any type.
    fn moves(&self) -> bool {
        false
    }
}

/// Checks that operand 0 has samples, `rank` axes (1 to 3) and channels.
pub(crate) fn want_image(op: &'static str, inputs: &[Meta], rank: usize) -> Result<()> {
    let names = ["sequences [N,T,C]", "images [N,H,W,C]", "volumes [N,D,H,W,C]"];
    match rank.checked_sub(1).and_then(|r| names.get(r)) {
        Some(names) => ops::want_axes(op, inputs, rank + 2, names),
        None => {
            let why = format!("{rank} axes between samples and channels are not 1 to 3");
            Err(Error::Invalid { op, shape: inputs[0].shape(), why })
        }
    }
}

/// The sums, or their way back to an operand of the shape `back`: each is the other's gradient.
#[derive(Debug, Clone)]
pub(crate) struct BoxSum<B> {
    rule: B,
    back: Option<Shape>,
    /// What a result without places is, where the rule moves.
    fill: f64,
}

impl<B: Boxes> BoxSum<B> {
    pub(crate) fn new(rule: B) -> Self {
        BoxSum { rule, back: None, fill: 0.0 }
    }

    /// As [`BoxSum::new`], for a rule that moves; results without places are `fill`.
    pub(crate) fn filled(rule: B, fill: f64) -> Self {
        BoxSum { rule, back: None, fill }
    }

    /// The way back to an operand of shape `x`: what each of its places went into is added up.
    pub(crate) fn back(rule: B, x: Shape) -> Self {
        BoxSum { rule, back: Some(x), fill: 0.0 }
    }

    /// Whether elements are moved and not computed with.
    fn moves(&self) -> bool {
        self.back.is_none() && self.rule.moves()
    }

    /// The taps from an operand of shape `x` to the result, and whether they must be turned around.
    fn taps(&self, x: Shape, turned: bool) -> Result<Vec<Taps>> {
        let taps = self.rule.taps(self.back.unwrap_or(x))?;
        Ok(if self.back.is_some() != turned { taps.iter().map(Taps::transposed).collect() } else { taps })
    }

    /// The op that this one's gradient is.
    fn other(&self, x: Shape) -> Self {
        match self.back {
            Some(_) => BoxSum::new(self.rule.clone()),
            None => BoxSum::back(self.rule.clone(), x),
        }
    }
}

impl<B: Boxes> Op for BoxSum<B> {
    fn name(&self) -> &'static str {
        self.rule.name()
    }

    fn narrow(&self) -> Narrow {
        if self.moves() { Narrow::AnyType } else { Narrow::Round }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        if !self.moves() {
            ops::want_real(self.name(), inputs, 0)?;
        }
        want_image(self.name(), inputs, self.rule.rank())?;
        let x = inputs[0].shape();
        let taps = self.taps(x, false)?;
        let shape = taps.iter().enumerate().fold(x, |s, (axis, t)| s.with(axis + 1, t.len()));
        Ok(Plan::one(inputs[0].dtype, shape).dense(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let x = ins[0].shape();
        let (taps, channels) = (self.taps(x, false)?, x[x.len() - 1]);
        if self.moves() {
            let dtype = ins[0].dtype;
            let fill = Tensor::scalar(self.fill, DType::F64, cx.device())?.to(dtype)?;
            let fill = fill.hold()?;
            let (from, to) = (ins[0].bytes()?, outs[0].bytes()?);
            cpu::moves(cpu, &taps, channels * dtype.size(), from, to, fill.bytes()?);
            return Ok(());
        }
        ops::real!(self.name(), ins[0].dtype, T => {
            cpu::sums::<T>(cx, &taps, channels, ins[0].slice()?, outs[0].slice()?, false)
        })
    }

    fn backward(&self, cx: &Exec, _: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let x = sink.shape(0);
        let channels = x[x.len() - 1];
        let (dtype, g) = (g.dtype(), g.contiguous()?.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let (taps, accumulate) = (self.taps(x, true)?, slot.accumulate());
        ops::real!(self.name(), dtype, T => {
            cpu::sums::<T>(cx, &taps, channels, g.slice()?, slot.slice()?, accumulate)
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let back = |g| apply_one(self.other(metas[0].shape()), &[g]);
        Ok(vec![grads[0].as_ref().map(back).transpose()?])
    }
}
