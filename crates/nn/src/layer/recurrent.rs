//! Recurrent layers over sequences [T, I]: torch.nn.RNN, LSTM and GRU.

use phalanx_tensor::{Cell, Recurred, Recurrence, Shape, Tensor, concat, stack};
use serde::{Deserialize, Serialize};

use super::{Dropout, Layer, weights};
use crate::params::{ParamId, Stored};
use crate::{Builder, Error, Forward, Init, Result};

/// The function of a recurrent layer's step, as configurations name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecurrentCell {
    /// tanh
    Rnn,
    /// max(x, 0)
    RnnRelu,
    /// Long short-term memory.
    Lstm,
    /// Gated recurrent units.
    Gru,
}

impl From<RecurrentCell> for Cell {
    fn from(cell: RecurrentCell) -> Cell {
        match cell {
            RecurrentCell::Rnn => Cell::Tanh,
            RecurrentCell::RnnRelu => Cell::Relu,
            RecurrentCell::Lstm => Cell::Lstm,
            RecurrentCell::Gru => Cell::Gru,
        }
    }
}

/// How a recurrent layer is set up, as PyTorch's are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecurrentConfig {
    /// The size of the hidden state, in each direction.
    pub hidden: usize,
    /// Layers on top of each other.
    pub layers: usize,
    /// Whether a second set of weights goes through the sequence from its end.
    pub bidirectional: bool,
    /// The probability of dropping between layers, in training.
    pub dropout: f64,
    /// Whether there are biases.
    pub bias: bool,
    /// In a model of rows: whether the layer gives the last hidden state alone, a vector, instead of all.
    pub last: bool,
}

impl RecurrentConfig {
    /// One layer in one direction.
    pub fn new(hidden: usize) -> Self {
        RecurrentConfig { hidden, layers: 1, bidirectional: false, dropout: 0.0, bias: true, last: false }
    }

    fn directions(&self) -> usize {
        if self.bidirectional { 2 } else { 1 }
    }
}

/// The weights of one direction of one layer.
#[derive(Debug)]
struct Direction {
    weight_ih: ParamId,
    weight_hh: ParamId,
    bias: Option<[ParamId; 2]>,
}

/// A recurrent network, in one or both directions, of one or several layers.
#[derive(Debug)]
pub struct Recurrent {
    cell: Cell,
    config: RecurrentConfig,
    /// By layer, each forward then reverse.
    directions: Vec<Direction>,
    dropout: Dropout,
}

/// The sizes of one sample when it is a sequence [steps, inputs], or an image, whose rows are steps.
fn sequence(layer: &str, input: Shape) -> Result<[usize; 2]> {
    match input[..] {
        [steps, inputs] => Ok([steps, inputs]),
        [h, w, c] => Ok([h, w * c]),
        _ => Err(Error::Layer {
            layer: layer.to_owned(),
            input,
            why: "it takes sequences [steps, inputs], or images, whose rows are the steps".into(),
        }),
    }
}

impl Recurrent {
    /// Registers the weights under PyTorch's names (`weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, then
    /// those of the reverse direction with `_reverse`), which begin uniform in ±1/√hidden. `input` is the shape of
    /// one sample, [T, I] or [H, W, C]. Returns the layer and its output's shape: [T, D·H], or [D·H] for the
    /// last state.
    pub fn build(
        b: &mut Builder,
        input: Shape,
        cell: Cell,
        config: RecurrentConfig,
    ) -> Result<(Self, Shape)> {
        let kind = match cell {
            Cell::Tanh => "rnn",
            Cell::Relu => "rnn-relu",
            Cell::Lstm => "lstm",
            Cell::Gru => "gru",
        };
        let name = b.place(kind);
        let [steps, inputs] = sequence(&name, input)?;
        let (hidden, each) = (config.hidden, config.directions());
        if config.layers == 0 || hidden == 0 || steps == 0 {
            let why =
                format!("{steps} steps, {} layers and a state of {hidden}: none may be 0", config.layers);
            return Err(Error::Layer { layer: name, input, why });
        }
        let dropout = Dropout::build(b, input, config.dropout)?.0;
        let from = b.next_param();
        let (mut directions, mut work) = (Vec::new(), 0u64);
        for layer in 0..config.layers {
            let inputs = if layer == 0 { inputs } else { each * hidden };
            let rows = cell.gates().saturating_mul(hidden);
            weights(&name, input, [rows, inputs])?;
            weights(&name, input, [rows, hidden])?;
            work += (steps * each * rows) as u64 * (inputs + hidden) as u64;
            for end in ["", "_reverse"].into_iter().take(each) {
                let mut param = |name: &str, shape: Shape, decay| {
                    let name = format!("{name}_l{layer}{end}");
                    b.param(&name, shape, Stored::Plain, decay, Init::Uniform, [hidden, hidden])
                };
                let weight_ih = param("weight_ih", [rows, inputs].into(), true);
                let weight_hh = param("weight_hh", [rows, hidden].into(), true);
                let bias =
                    config.bias.then(|| ["bias_ih", "bias_hh"].map(|b| param(b, [rows].into(), false)));
                directions.push(Direction { weight_ih, weight_hh, bias });
            }
        }
        let size = each * hidden;
        let shape = if config.last { [size].into() } else { [steps, size].into() };
        b.describe(kind, shape, from, work);
        Ok((Recurrent { cell, config, directions, dropout }, shape))
    }

    /// The outputs `[N, T, D·H]` of the last layer for sequences `x` `[N, T, I]` and the final states
    /// `[L·D, N, H]` of all, by layer, each forward then reverse. `start` are the states before the first step, of
    /// that shape, zeros when there are none; `lengths` as in [`Tensor::recurrent`].
    pub fn run(
        &self,
        cx: &Forward,
        x: &Tensor,
        start: Option<&[Tensor]>,
        lengths: Option<&Tensor>,
    ) -> Result<Recurred> {
        let each = self.config.directions();
        let (mut x, mut ends) = (x.clone(), vec![Vec::new(); self.cell.states()]);
        for (layer, directions) in self.directions.chunks(each).enumerate() {
            if layer > 0 {
                // In the order in which the outputs lie.
                let turn = [1, 0, 2];
                x = self.dropout.forward(cx, &x.permute(&turn)?)?.permute(&turn)?;
            }
            let mut outputs = Vec::new();
            for (d, direction) in directions.iter().enumerate() {
                let [weight_ih, weight_hh] = [direction.weight_ih, direction.weight_hh].map(|p| cx.param(p));
                let bias = direction.bias.map(|b| b.map(|p| cx.param(p)));
                let by = Recurrence {
                    cell: self.cell,
                    weight_ih: &weight_ih,
                    weight_hh: &weight_hh,
                    bias: bias.as_ref().map(|[i, h]| [i, h]),
                    reverse: d == 1,
                };
                let own = |s: &Tensor| {
                    let own = s.slice(0, layer * each + d, 1)?;
                    own.reshape(&s.shape()[1..])
                };
                let start = start.map(|s| s.iter().map(own).collect::<phalanx_tensor::Result<Vec<_>>>());
                let made = x.recurrent(&by, start.transpose()?.as_deref(), lengths)?;
                outputs.push(made.outputs);
                ends.iter_mut().zip(made.states).for_each(|(all, end)| all.push(end));
            }
            x = match outputs.len() {
                1 => outputs.remove(0),
                _ => concat(&outputs.iter().collect::<Vec<_>>(), 2)?,
            };
        }
        let states = ends.iter().map(|all| stack(&all.iter().collect::<Vec<_>>(), 0));
        Ok(Recurred { outputs: x, states: states.collect::<phalanx_tensor::Result<_>>()? })
    }
}

impl Layer for Recurrent {
    fn forward(&self, cx: &Forward, x: &Tensor) -> Result<Tensor> {
        let shape = x.shape();
        let x = match shape[..] {
            [n, h, w, c] => x.reshape(&[n, h, w * c])?,
            _ => x.clone(),
        };
        let made = self.run(cx, &x, None, None)?;
        if !self.config.last {
            return Ok(made.outputs);
        }
        // The last layer's states, side by side.
        let (each, all) = (self.config.directions(), &made.states[0]);
        let last = all.slice(0, all.shape()[0] - each, each)?.permute(&[1, 0, 2])?;
        Ok(last.reshape(&[shape[0], each * self.config.hidden])?)
    }
}
