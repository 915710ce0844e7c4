//! Losses that compare several numbers of a sample, written with ops: likelihoods and margins. Each is a weighted
//! sum, as PyTorch's function of the same name gives with `reduction="sum"`.

use super::{CrossEntropy, check_weights, cuda};
use crate::half_storage::is_half;
use crate::op::Meta;
use crate::{DType, Error, Result, Shape, Tensor, ops};

/// How [`Tensor::triplet_margin`] measures; by default as PyTorch's `triplet_margin_loss`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Triplet {
    /// How much further the negative must be than the positive.
    pub margin: f64,
    /// The distance is the p-norm of the difference.
    pub p: f64,
    /// Added to each difference.
    pub eps: f64,
    /// Whether the negative's distance from the positive counts where it is the smaller one (Balntas et al., 2016).
    pub swap: bool,
}

impl Default for Triplet {
    fn default() -> Self {
        Triplet { margin: 1.0, p: 2.0, eps: 1e-6, swap: false }
    }
}

/// A half as f32.
fn widened(t: &Tensor) -> Result<Tensor> {
    if is_half(t.dtype()) { t.to(DType::F32) } else { Ok(t.clone()) }
}

/// The operands as a composed loss computes with them: halves as f32, all of one type.
fn operands<const N: usize>(op: &'static str, all: [&Tensor; N]) -> Result<[Tensor; N]> {
    let mut wide = all.map(Tensor::clone);
    wide.iter_mut().try_for_each(|t| widened(t).map(|w| *t = w))?;
    let metas = wide.each_ref().map(meta);
    ops::want_real(op, &metas, 0)?;
    (1..N).try_for_each(|i| ops::want_same(op, &metas, i))?;
    Ok(wide)
}

fn meta(t: &Tensor) -> Meta {
    Meta { dtype: t.dtype(), layout: *t.layout() }
}

/// Checks that both have one shape.
fn alike(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    ops::want_shape(
        op,
        &[meta(a), meta(b)],
        1,
        a.shape(),
        "both must have one shape; expand one of them first",
    )
}

fn refuse(op: &'static str, shape: Shape, why: String) -> Error {
    Error::Invalid { op, shape, why }
}

/// A constant, checked.
fn number(op: &'static str, shape: Shape, name: &str, value: f64, least: f64) -> Result<()> {
    match value >= least && value.is_finite() {
        true => Ok(()),
        false => Err(refuse(op, shape, format!("{name} is {value}; it must be a number from {least} on"))),
    }
}

/// The sum of `each`, entries of the first axis weighted.
fn weighted(op: &'static str, each: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    let Some(w) = weights else { return each.sum_all() };
    let w = widened(&w.detach())?;
    check_weights(op, &[meta(each), meta(&w)], 1)?;
    let mut column = vec![1; each.shape().len()];
    column[0] = w.shape()[0];
    each.mul(&w.reshape(&column)?)?.sum_all()
}

/// `t^p` for `t` from 0 on, with a slope of 0 at 0.
fn power(t: &Tensor, p: f64) -> Result<Tensor> {
    if p == 1.0 {
        return Ok(t.clone());
    }
    let [zero, one] = [0.0, 1.0].map(|v| Tensor::scalar(v, t.dtype(), t.device()));
    let (zero, one) = (zero?, one?);
    let above = t.detach().gt(&zero)?;
    let safe = above.select(t, &one)?;
    let raised = if p == 0.5 { safe.sqrt()? } else { safe.log()?.scale(p)?.exp()? };
    above.select(&raised, &zero)
}

/// |t|, whose slope at 0 is 0.
fn size(t: &Tensor) -> Result<Tensor> {
    t.relu()?.add(&t.neg()?.relu()?)
}

/// The p-norm of `a − b + eps` over the last axis.
fn distance(a: &Tensor, b: &Tensor, p: f64, eps: f64) -> Result<Tensor> {
    let d = a.sub(b)?.offset(eps)?;
    let each = if p == 2.0 { d.square()? } else { power(&size(&d)?, p)? };
    power(&each.sum(&[d.shape().len() - 1], false)?, 1.0 / p)
}

/// What the labels of rows name: the places of their numbers, which rows count and how much.
struct Rows {
    /// Labels, 0 for ignored rows, with an axis of 1 behind.
    places: Tensor,
    /// 1 for rows that count, when some are ignored.
    counted: Option<Tensor>,
    /// Each row's factor, when they are not all 1.
    factors: Option<Tensor>,
}

impl Rows {
    fn new(op: &'static str, x: &Tensor, labels: &Tensor, options: &CrossEntropy) -> Result<Self> {
        let shape = x.shape();
        let Some((&k, rows)) = shape.split_last().filter(|(_, rows)| !rows.is_empty()) else {
            return Err(refuse(op, shape, "it needs at least the two axes [N,..,K]".into()));
        };
        let metas = [meta(x), meta(labels)];
        ops::want_indices(op, &metas, 1)?;
        ops::want_shape(op, &metas, 1, rows.into(), "there is one label a row of [N,..,K]")?;
        if let Some(w) = options.weights {
            check_weights(op, &[metas[0], meta(&widened(w)?)], 1)?;
        }
        if let Some(c) = options.class_weights {
            let metas = [metas[0], meta(&widened(c)?)];
            ops::want_same(op, &metas, 1)?;
            ops::want_shape(op, &metas, 1, [k].into(), "there is one weight a class of [N,..,K]")?;
        }
        if let Some(gpu) = x.device().gpu() {
            // Nothing is read here: that would wait for the GPU.
            let [places, counted, factors] = cuda::label_rows(gpu, op, labels, k, options)?;
            let counted = options.ignore_index.map(|_| counted);
            return Ok(Rows { places, counted, factors: Some(factors) });
        }
        let list = labels.to_vec::<i64>()?;
        let ignored = |l: &i64| Some(*l) == options.ignore_index;
        let bad = |l: &i64| !ignored(l) && !usize::try_from(*l).is_ok_and(|l| l < k);
        if let Some(position) = list.iter().position(bad) {
            return Err(Error::Index { op, index: list[position], position, limit: k });
        }
        let places: Vec<i64> = list.iter().map(|l| if ignored(l) { 0 } else { *l }).collect();
        let counted: Vec<u8> = list.iter().map(|l| u8::from(!ignored(l))).collect();
        let some = counted.contains(&0);
        let plain = options.weights.is_none() && options.class_weights.is_none();
        let factors = (!plain).then(|| options.factors(labels)).transpose()?;
        let column = [rows, &[1]].concat();
        let device = x.device();
        Ok(Rows {
            places: Tensor::from_slice(&places, &column[..], device)?,
            counted: some.then(|| Tensor::from_slice(&counted, rows, device)).transpose()?,
            factors: factors.map(|f| Tensor::from_slice(&f, rows, device)?.to(x.dtype())).transpose()?,
        })
    }

    /// The sum of one number a row.
    fn sum(&self, each: &Tensor) -> Result<Tensor> {
        let mut each = each.clone();
        if let Some(counted) = &self.counted {
            // Not by a factor of 0: what an ignored row holds may be no number.
            each = counted.select(&each, &Tensor::scalar(0.0, each.dtype(), each.device())?)?;
        }
        if let Some(factors) = &self.factors {
            each = each.mul(factors)?;
        }
        each.sum_all()
    }
}

/// A mask of `[N, K]` that is 0 at each row's place alone.
fn others(places: &Tensor, [samples, k]: [usize; 2]) -> Result<Tensor> {
    if let Some(gpu) = places.device().gpu() {
        return cuda::all_but(gpu, places, k);
    }
    let mut others = vec![1u8; samples * k];
    for (i, l) in places.to_vec::<i64>()?.into_iter().enumerate() {
        // Without classes there is no such place, which `gather` refuses.
        if let Some(other) = others.get_mut(i * k + l as usize) {
            *other = 0;
        }
    }
    Tensor::from_slice(&others, [samples, k], places.device())
}

impl Tensor {
    /// The sum over rows of `weight · class weight · −self[row, label]`: the negative log-likelihood of
    /// log-probabilities `[N, .., K]` and labels, i64 `[N, ..]`. What counts how much is as in
    /// [`Tensor::cross_entropy_with`]; there is no label smoothing.
    pub fn nll(&self, labels: &Tensor, options: &CrossEntropy) -> Result<Tensor> {
        const OP: &str = "nll";
        let [x] = operands(OP, [self])?;
        if options.label_smoothing != 0.0 {
            let why = "label_smoothing must be 0; cross_entropy has it".to_owned();
            return Err(refuse(OP, x.shape(), why));
        }
        let rows = Rows::new(OP, &x, labels, options)?;
        let picked = x.gather(x.shape().len() - 1, &rows.places)?;
        rows.sum(&picked.reshape(&labels.shape())?.neg()?)
    }

    /// The multi-class hinge loss of scores `[N, K]` and labels, i64 `[N]`: the sum over samples of
    /// `weight · class weight / K · Σ_{c ≠ label} max(0, margin − self[i, label] + self[i, c])^p`, p 1 or 2, as
    /// `torch.nn.functional.multi_margin_loss`. What counts how much is as in [`Tensor::cross_entropy_with`]; there
    /// is no label smoothing.
    pub fn multi_margin(
        &self,
        labels: &Tensor,
        p: u32,
        margin: f64,
        options: &CrossEntropy,
    ) -> Result<Tensor> {
        const OP: &str = "multi_margin";
        let [x] = operands(OP, [self])?;
        let shape = x.shape();
        ops::want_axes(OP, &[meta(&x)], 2, "scores [N,K]")?;
        number(OP, shape, "margin", margin, 0.0)?;
        if !(1..=2).contains(&p) || options.label_smoothing != 0.0 {
            let why = format!("p is {p}, it must be 1 or 2, and label_smoothing must be 0");
            return Err(refuse(OP, shape, why));
        }
        let rows = Rows::new(OP, &x, labels, options)?;
        let (samples, k) = (shape[0], shape[1]);
        let others = others(&rows.places, [samples, k])?;
        let short = x.sub(&x.gather(1, &rows.places)?)?.offset(margin)?.relu()?;
        let short = others.select(&short, &Tensor::scalar(0.0, x.dtype(), x.device())?)?;
        let short = if p == 2 { short.square()? } else { short };
        rows.sum(&short.sum(&[1], false)?.scale(1.0 / k.max(1) as f64)?)
    }

    /// The sum of `weights[i] · (1 − cos)` where `target[i]` is above 0, else of `weights[i] · max(0, cos − margin)`,
    /// where cos is that of the angle between `self[i]` and `other[i]`; both are `[N, D]`, the target is `[N]` of −1
    /// and 1 without a gradient. As `torch.nn.functional.cosine_embedding_loss`.
    pub fn cosine_embedding(
        &self,
        other: &Tensor,
        target: &Tensor,
        margin: f64,
        weights: Option<&Tensor>,
    ) -> Result<Tensor> {
        const OP: &str = "cosine_embedding";
        const EPS: f64 = 1e-12;
        let [a, b, y] = operands(OP, [self, other, &target.detach()])?;
        ops::want_axes(OP, &[meta(&a)], 2, "vectors [N,D]")?;
        alike(OP, &a, &b)?;
        ops::want_shape(OP, &[meta(&a), meta(&y)], 1, [a.shape()[0]].into(), "there is one target a sample")?;
        number(OP, a.shape(), "margin", margin, -1.0)?;
        let dot = |a: &Tensor, b: &Tensor| a.mul(b)?.sum(&[1], false);
        let lengths = dot(&a, &a)?.offset(EPS)?.mul(&dot(&b, &b)?.offset(EPS)?)?.sqrt()?;
        let cos = dot(&a, &b)?.div(&lengths)?;
        let zero = Tensor::scalar(0.0, y.dtype(), y.device())?;
        let each = y.gt(&zero)?.select(&cos.neg()?.offset(1.0)?, &cos.offset(-margin)?.relu()?)?;
        weighted(OP, &each, weights)
    }

    /// The sum of `weights[i] · max(0, margin − target · (self − other))`: with a target of 1 `self` is to be the
    /// larger by the margin, with −1 `other`. All have one shape; the target gets no gradient. As
    /// `torch.nn.functional.margin_ranking_loss`.
    pub fn margin_ranking(
        &self,
        other: &Tensor,
        target: &Tensor,
        margin: f64,
        weights: Option<&Tensor>,
    ) -> Result<Tensor> {
        const OP: &str = "margin_ranking";
        let [a, b, y] = operands(OP, [self, other, &target.detach()])?;
        alike(OP, &a, &b)?;
        alike(OP, &a, &y)?;
        number(OP, a.shape(), "margin", margin, f64::MIN)?;
        weighted(OP, &a.sub(&b)?.mul(&y)?.neg()?.offset(margin)?.relu()?, weights)
    }

    /// The sum of `weights[i] · max(0, d(self, positive) − d(self, negative) + margin)` over vectors `[N, .., D]`, as
    /// `torch.nn.functional.triplet_margin_loss`; `how` tells the distance.
    pub fn triplet_margin(
        &self,
        positive: &Tensor,
        negative: &Tensor,
        how: &Triplet,
        weights: Option<&Tensor>,
    ) -> Result<Tensor> {
        const OP: &str = "triplet_margin";
        let [a, p, n] = operands(OP, [self, positive, negative])?;
        let shape = a.shape();
        if shape.len() < 2 {
            return Err(refuse(OP, shape, "it needs at least the two axes [N,..,D]".into()));
        }
        alike(OP, &a, &p)?;
        alike(OP, &a, &n)?;
        number(OP, shape, "margin", how.margin, 0.0)?;
        number(OP, shape, "p", how.p, 1.0)?;
        number(OP, shape, "eps", how.eps, 0.0)?;
        let far = |a: &Tensor, b: &Tensor| distance(a, b, how.p, how.eps);
        let (near, mut away) = (far(&a, &p)?, far(&a, &n)?);
        if how.swap {
            let other = far(&p, &n)?;
            away = away.detach().gt(&other.detach())?.select(&other, &away)?;
        }
        weighted(OP, &near.sub(&away)?.offset(how.margin)?.relu()?, weights)
    }

    /// The sum of `weights[i] · ½ (log v + (self − target)² / v)` with v the larger of `variance` and `eps`; with `full`
    /// plus ½ log 2π each. All three have one shape. The variance's gradient is that at v, as in
    /// `torch.nn.functional.gaussian_nll_loss`.
    pub fn gaussian_nll(
        &self,
        target: &Tensor,
        variance: &Tensor,
        full: bool,
        eps: f64,
        weights: Option<&Tensor>,
    ) -> Result<Tensor> {
        const OP: &str = "gaussian_nll";
        let [x, y, v] = operands(OP, [self, target, variance])?;
        alike(OP, &x, &y)?;
        alike(OP, &x, &v)?;
        number(OP, x.shape(), "eps", eps, f64::MIN_POSITIVE)?;
        let short = v.detach().neg()?.offset(eps)?.relu()?;
        let v = v.add(&short)?;
        let each = v.log()?.add(&x.sub(&y)?.square()?.div(&v)?)?.scale(0.5)?;
        let each = if full { each.offset(0.5 * std::f64::consts::TAU.ln())? } else { each };
        weighted(OP, &each, weights)
    }
}
