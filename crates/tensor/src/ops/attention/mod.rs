//! Scaled dot-product attention (Vaswani et al., 2017) without the matrix of weights: blocks of it come and go, the
//! softmax runs along (Milakov and Gimelshein, 2018; Dao et al., 2022), and the way back makes them again.

mod blocks;
mod cpu;
pub(super) mod cuda;

use phalanx_host::DType;
use phalanx_host::rng::Key;

use self::blocks::{Back, Heads};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, View, ViewMut, ops};

/// What attention does besides the products.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attention<'a> {
    /// u8, broadcast to `[.., L, S]`: a query looks at the keys where it is not 0.
    pub mask: Option<&'a Tensor>,
    /// Added to the scaled scores, broadcast to `[.., L, S]`; it gets no gradient.
    pub bias: Option<&'a Tensor>,
    /// Whether query i looks at keys 0 to i alone.
    pub causal: bool,
    /// What the scores are multiplied with; 1/√E when left out.
    pub scale: Option<f64>,
    /// The probability of dropping a weight, and the key of the mask: that of [`Tensor::dropout`] on the weights
    /// `[.., L, S]`.
    pub dropout: Option<(f64, Key)>,
}

/// Inputs: queries, keys, values, and perhaps a mask and a bias. Saves the logarithm of each query's sum of
/// exponentials.
#[derive(Debug, Clone, Copy)]
struct Attend {
    mask: bool,
    bias: bool,
    causal: bool,
    scale: f64,
    dropout: Option<(f64, Key)>,
}

impl Attend {
    /// The operands as blocks of heads.
    fn heads<'a>(&self, ins: &[View<'a>]) -> Result<Heads<'a>> {
        let (q, k, v) = (ins[0].shape(), ins[1].shape(), ins[2].shape());
        let n = q.len() - 2;
        let weights = q.with(n + 1, k[n]);
        let mut rest = ins[3..].iter().map(|x| ops::stretch("attention", x, weights));
        let mut next = |is: bool| if is { rest.next().transpose() } else { Ok(None) };
        Ok(Heads {
            sizes: [q[n], k[n], q[n + 1], v[n + 1]],
            q: ins[0],
            k: ins[1],
            v: ins[2],
            mask: next(self.mask)?,
            bias: next(self.bias)?,
            causal: self.causal,
            scale: self.scale,
            dropout: self.dropout,
        })
    }
}

impl Op for Attend {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let op = self.name();
        ops::want_real(op, inputs, 0)?;
        (1..3).try_for_each(|i| ops::want_same(op, inputs, i))?;
        let (q, k, v) = (inputs[0].shape(), inputs[1].shape(), inputs[2].shape());
        let n = q.len().checked_sub(2);
        let Some(n) = n.filter(|&n| n + 2 == k.len() && q[..n] == k[..n] && q[n + 1] == k[n + 1]) else {
            let hint = "it takes queries [..,L,E] and keys [..,S,E] of one batch";
            return Err(Error::Shapes { op, lhs: q, rhs: k, hint });
        };
        if v.len() != k.len() || v[..=n] != k[..=n] {
            let hint = "it takes keys [..,S,E] and values [..,S,V] of one batch";
            return Err(Error::Shapes { op, lhs: k, rhs: v, hint });
        }
        if self.mask && inputs[3].dtype != DType::U8 {
            let (got, want) = (inputs[3].dtype, "u8 (a mask)".to_owned());
            return Err(Error::DTypes { op, operand: 3, got, want });
        }
        if self.bias {
            ops::want_same(op, inputs, 3 + usize::from(self.mask))?;
        }
        let weights = q.with(n + 1, k[n]);
        for x in &inputs[3..] {
            if x.layout.expand(weights).is_none() {
                let hint = "masks and biases must broadcast to the weights [..,L,S]";
                return Err(Error::Shapes { op, lhs: weights, rhs: x.shape(), hint });
            }
        }
        if let Some((p, _)) = self.dropout.filter(|(p, _)| !(0.0..=1.0).contains(p)) {
            let why = format!("its probability of dropping is {p}, must be in 0..=1");
            return Err(Error::Invalid { op, shape: q, why });
        }
        let dtype = inputs[0].dtype;
        let plan = Plan::one(dtype, q.with(n + 1, v[n + 1])).saving(dtype, Shape::new(&q[..=n]));
        Ok(plan.saving_inputs((1 << inputs.len()) - 1).saving_outputs(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()> {
        let (cpu, heads) = (cx.cpu()?, self.heads(ins)?);
        ops::real!(self.name(), ins[0].dtype, T => {
            blocks::forward::<T>(cpu, &heads, outs[0].slice()?, saved[0].slice()?)
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let cpu = cx.cpu()?;
        let (y, g, sums) = (saved.output(0)?.read()?, g.contiguous()?.read()?, saved.extra[0].read()?);
        let ins = saved.inputs.iter().flatten().map(Tensor::read).collect::<Result<Vec<_>>>()?;
        let views: Vec<View> = ins.iter().map(|x| x.view()).collect();
        let (heads, dtype) = (self.heads(&views)?, views[0].dtype);
        let make = |i: usize| cx.workspace(views[i].shape().numel() * dtype.size());
        let [mut dq, mut dk, mut dv] = [make(0)?, make(1)?, make(2)?];
        ops::real!(self.name(), dtype, T => {
            let read = Back { y: y.slice()?, g: g.slice()?, sums: sums.slice()? };
            let to = [dq.as_mut_slice(), dk.as_mut_slice(), dv.as_mut_slice()];
            blocks::backward::<T>(cpu, &heads, &read, to)
        })?;
        for (i, grad) in [dq, dk, dv].into_iter().enumerate() {
            sink.pass(i, Tensor::from_buffer(grad, dtype, views[i].shape(), cx.device())?)?;
        }
        Ok(())
    }
}

impl Tensor {
    /// Scaled dot-product attention of these queries `[.., L, E]` to keys `[.., S, E]` with values `[.., S, V]`:
    /// `softmax(q kᵀ · scale) v`, `[.., L, V]`, as torch.nn.functional.scaled_dot_product_attention. The leading axes
    /// are equal. A query that may look at no key gives zeros.
    ///
    /// The memory besides the operands is one block of the weights a thread, not `L` times `S`. There is no
    /// gradient of the gradient, and none of a bias.
    pub fn attention(&self, keys: &Tensor, values: &Tensor, options: &Attention) -> Result<Tensor> {
        let mut inputs = vec![self.clone(), keys.clone(), values.clone()];
        inputs.extend(options.mask.into_iter().chain(options.bias).map(Tensor::detach));
        let size = self.shape().last().copied().unwrap_or(1);
        let op = Attend {
            mask: options.mask.is_some(),
            bias: options.bias.is_some(),
            causal: options.causal,
            scale: options.scale.unwrap_or(1.0 / (size.max(1) as f64).sqrt()),
            dropout: options.dropout.filter(|&(p, _)| p != 0.0),
        };
        apply_one(op, &inputs.iter().collect::<Vec<_>>())
    }
}
