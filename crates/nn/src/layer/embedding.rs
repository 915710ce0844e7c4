use phalanx_tensor::{DType, Shape, Tensor};

use super::{Layer, weights};
use crate::params::{ParamId, Stored};
use crate::{Builder, Error, Forward, Init, Result};

/// A table of vectors, looked up by index: torch.nn.Embedding.
#[derive(Debug)]
pub struct Embedding {
    weight: ParamId,
    padding: Option<usize>,
}

impl Embedding {
    /// Registers `weight` [count, size], standard normal; the row `padding` begins at 0 and gets no gradient. `input`
    /// is the shape of one sample, whose numbers are the indices: an image's in the order of its rows. Returns the
    /// layer and its output's shape, [indices, size].
    pub fn build(
        b: &mut Builder,
        input: Shape,
        [count, size]: [usize; 2],
        padding: Option<usize>,
    ) -> Result<(Self, Shape)> {
        let name = b.place("embedding");
        weights(&name, input, [count, size])?;
        let problem = match padding {
            Some(row) if row >= count => format!("there is no row {row} among {count} for the padding"),
            _ if size == 0 => "its vectors would have no numbers".to_owned(),
            _ => String::new(),
        };
        if !problem.is_empty() {
            return Err(Error::Layer { layer: name, input, why: problem });
        }
        let from = b.next_param();
        let init = padding.map_or(Init::Normal(1.0), Init::NormalSaveRow);
        let weight = b.param("weight", [count, size], Stored::Plain, true, init, [1, size]);
        let shape = Shape::from([input.numel(), size]);
        b.describe("embedding", shape, from, 0);
        Ok((Embedding { weight, padding }, shape))
    }

    /// The rows that `indices` (i64, any shape) name: [.., size].
    pub fn look_up(&self, cx: &Forward, indices: &Tensor) -> Result<Tensor> {
        Ok(cx.param(self.weight).embedding(indices, self.padding)?)
    }
}

impl Layer for Embedding {
    /// Numbers that are no integers are cut towards zero.
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let shape = x.shape();
        let (n, each) = (shape[0], shape[1..].iter().product());
        self.look_up(cx, &x.to(DType::I64)?.reshape(&[n, each])?)
    }
}
