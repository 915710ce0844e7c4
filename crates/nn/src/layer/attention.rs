use phalanx_tensor::{Attention, DType, Tensor};

use super::weights;
use crate::params::{ParamId, Stored};
use crate::{Builder, Error, Forward, Init, Result};

/// Attention in several heads (Vaswani et al., 2017): torch.nn.MultiheadAttention with batches first, whose keys and
/// values have the queries' size.
#[derive(Debug)]
pub struct MultiheadAttention {
    size: usize,
    heads: usize,
    dropout: f64,
    in_proj: [ParamId; 2],
    out_proj: [ParamId; 2],
}

/// What a query may look at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sight<'a> {
    /// u8 `[N, S]`: keys where it is 0 are not looked at. PyTorch's `key_padding_mask` is its opposite.
    pub keys: Option<&'a Tensor>,
    /// u8 `[L, S]`, the same for each query apart. PyTorch's `attn_mask` is its opposite.
    pub pairs: Option<&'a Tensor>,
    /// Whether query i looks at keys 0 to i alone.
    pub causal: bool,
}

impl MultiheadAttention {
    /// Registers `in_proj_weight` [3E, E], `in_proj_bias`, `out_proj.weight` [E, E] and `out_proj.bias` under PyTorch's
    /// names and with its first values. `dropout` is the probability of dropping a weight in training. Fails unless
    /// `heads` divides `size`, E.
    pub fn build(b: &mut Builder, size: usize, heads: usize, dropout: f64) -> Result<Self> {
        let name = b.place("attention");
        if heads == 0 || !size.is_multiple_of(heads) {
            let why = format!("{size} numbers cannot be shared among {heads} heads");
            return Err(Error::Layer { layer: name, input: [size].into(), why });
        }
        if !(0.0..=1.0).contains(&dropout) {
            return Err(Error::config(name, format!("dropout is {dropout}; a probability lies in 0..1")));
        }
        weights(&name, [size].into(), [3 * size, size])?;
        let mut pair = |weight: &str, bias: &str, rows: usize, init| {
            let fans = [size, rows];
            [
                b.param(weight, [rows, size], Stored::Plain, true, init, fans),
                b.param(bias, [rows], Stored::Plain, false, Init::Zeros, fans),
            ]
        };
        let in_proj = pair("in_proj_weight", "in_proj_bias", 3 * size, Init::GlorotUniform);
        let out_proj = pair("out_proj.weight", "out_proj.bias", size, Init::Uniform);
        Ok(MultiheadAttention { size, heads, dropout, in_proj, out_proj })
    }

    /// What the queries `[N, L, E]` get of the values `[N, S, E]` by the keys `[N, S, E]`: `[N, L, E]`.
    pub fn attend(&self, cx: &Forward, [q, k, v]: [&Tensor; 3], sight: &Sight) -> Result<Tensor> {
        // Drawn in any case, so that the probability does not shift the streams of later layers.
        let key = cx.next_key();
        let [weight, bias] = self.in_proj.map(|p| cx.param(p));
        let head = |x: &Tensor, part: usize| -> Result<Tensor> {
            let own = |p: &Tensor| p.slice(0, part * self.size, self.size);
            let (bias, shape) = (own(&bias)?, x.shape());
            let y = x.linear(&own(&weight)?, Some(&bias))?;
            let sizes = [&shape[..shape.len() - 1], &[self.heads, self.size / self.heads]].concat();
            Ok(y.reshape(&sizes)?.permute(&[0, 2, 1, 3])?)
        };
        let (q, k, v) = (head(q, 0)?, head(k, 1)?, head(v, 2)?);
        let mask = match (sight.keys, sight.pairs) {
            (None, pairs) => pairs.cloned(),
            (Some(keys), pairs) => {
                let shape = keys.shape();
                let keys = keys.reshape(&[&shape[..1], &[1, 1], &shape[1..]].concat())?;
                match pairs {
                    None => Some(keys),
                    // A product of masks: what both let see.
                    Some(pairs) => {
                        let one = |m: &Tensor| m.to(DType::F32);
                        Some(one(&keys)?.mul(&one(pairs)?)?.to(DType::U8)?)
                    }
                }
            }
        };
        let dropout = (cx.training() && self.dropout > 0.0).then_some((self.dropout, key));
        let options =
            Attention { mask: mask.as_ref(), causal: sight.causal, dropout, ..Attention::default() };
        let y = q.attention(&k, &v, &options)?.permute(&[0, 2, 1, 3])?;
        let shape = y.shape();
        let [weight, bias] = self.out_proj.map(|p| cx.param(p));
        Ok(y.reshape(&[shape[0], shape[1], self.size])?.linear(&weight, Some(&bias))?)
    }
}
