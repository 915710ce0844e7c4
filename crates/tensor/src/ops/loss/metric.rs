//! Errors counted for people, outside the graph.

use phalanx_host::DType;

use crate::{Error, Result, Tensor};

/// For each `k` of `ks`, whether each sample's label is missed by the `k` largest of its logits.
///
/// `logits` are `[N, K]`, `labels` are i64 `[N]`; the answer is `[ks][N]`. A sample with the label `ignore` is missed by
/// none. Ties count against us: a
/// logit equal to the label's is taken to be larger. A label's logit that is not a number is always an
/// error, and another's is taken to be larger. Fails with [`Error::Index`] for a label outside `0..K`.
pub fn top_k_errors(
    logits: &Tensor,
    labels: &Tensor,
    ks: &[usize],
    ignore: Option<i64>,
) -> Result<Vec<Vec<bool>>> {
    const OP: &str = "top_k_errors";
    let (shape, of) = (logits.shape(), labels.shape());
    if shape.len() != 2 || *of != shape[..1] {
        let hint = "it takes logits [N,K] and labels [N]";
        return Err(Error::Shapes { op: OP, lhs: shape, rhs: of, hint });
    }
    if labels.dtype() != DType::I64 {
        let want = "i64 (indices)".to_owned();
        return Err(Error::DTypes { op: OP, operand: 1, got: labels.dtype(), want });
    }
    let labels = &labels.detach();
    if let (Some(gpu), DType::F32) = (logits.device().gpu(), logits.dtype()) {
        // Only the ranks come over.
        let ranks = super::cuda::ranks(gpu, logits, labels, ignore)?.to_vec::<i64>()?;
        if let Some(position) = ranks.iter().position(|&r| r < 0) {
            let index = labels.to_vec::<i64>()?[position];
            return Err(Error::Index { op: OP, index, position, limit: shape[1] });
        }
        // A logit of a label that is no number has the rank K.
        let wrong = |r: i64, k: usize| r >= shape[1] as i64 || r >= k as i64;
        return Ok(ks.iter().map(|&k| ranks.iter().map(|&r| wrong(r, k)).collect()).collect());
    }
    let rows = match logits.dtype() {
        DType::F32 | DType::F64 => logits.detach().to(DType::F64)?.to_vec::<f64>()?,
        got => return Err(Error::DTypes { op: OP, operand: 0, got, want: "f32 or f64".into() }),
    };
    let k = shape[1];
    let mut ranks = Vec::with_capacity(shape[0]);
    for (position, label) in labels.to_vec::<i64>()?.into_iter().enumerate() {
        if Some(label) == ignore {
            ranks.push(0);
            continue;
        }
        let row = &rows[position * k..(position + 1) * k];
        let own = usize::try_from(label).ok().filter(|&l| l < k);
        let own = own.ok_or(Error::Index { op: OP, index: label, position, limit: k })?;
        let smaller = |x: &&f64| **x < row[own];
        // The label itself is not smaller than itself.
        let better = k - 1 - row.iter().filter(smaller).count();
        ranks.push(if row[own].is_nan() { usize::MAX } else { better });
    }
    Ok(ks.iter().map(|&k| ranks.iter().map(|&r| r >= k).collect()).collect())
}
