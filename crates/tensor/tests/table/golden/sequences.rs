//! Recurrent layers over whole sequences, and attention.

use std::sync::Arc;

use phalanx_tensor::{Attention, Cell, Recurrence, Result, Tensor, concat, stack};
use serde_json::Value;

use super::ints;
use crate::row::Row;

/// What a case's layer gives: the outputs, then the final states `[D, N, H]`.
fn layer(cell: Cell, p: &Value, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let (bias, start, lengths) = (p["bias"] == true, p["start"] == true, ints::<i64>(&p["lengths"]));
    let directions = if p["bidirectional"] == true { 2 } else { 1 };
    let each = if bias { 4 } else { 2 };
    let lengths = match lengths.is_empty() {
        true => None,
        false => Some(Tensor::from_slice(&lengths, [lengths.len()], x[0].device())?),
    };
    let mut made = Vec::new();
    for d in 0..directions {
        let own = &x[1 + d * each..];
        let (weight_ih, weight_hh) = (&own[0], &own[1]);
        let bias = bias.then(|| [&own[2], &own[3]]);
        let by = Recurrence { cell, weight_ih, weight_hh, bias, reverse: d == 1 };
        let of = |s: &Tensor| s.slice(0, d, 1)?.reshape(&s.shape()[1..]);
        let states = x[1 + directions * each..].iter().map(of).collect::<Result<Vec<_>>>()?;
        made.push(x[0].recurrent(&by, start.then_some(&states), lengths.as_ref())?);
    }
    let mut all = vec![concat(&made.iter().map(|m| &m.outputs).collect::<Vec<_>>(), 2)?];
    for k in 0..cell.states() {
        all.push(stack(&made.iter().map(|m| &m.states[k]).collect::<Vec<_>>(), 0)?);
    }
    Ok(all)
}

fn attention(p: &Value, row: &mut Row) {
    let (causal, scale, hidden) = (p["causal"] == true, p["scale"].as_f64(), ints::<u8>(&p["mask"]));
    let sizes = [0, 1].map(|i| row.inputs[i].shape[row.inputs[i].shape.len() - 2]);
    runs!(row, "attention", second: false, |x| {
        let mask = match hidden.is_empty() {
            true => None,
            false => Some(Tensor::from_slice(&hidden, sizes, x[0].device())?),
        };
        let options = Attention { mask: mask.as_ref(), bias: x.get(3), causal, scale, dropout: None };
        x[0].attention(&x[1], &x[2], &options)?
    });
}

pub(super) fn fill(op: &str, p: &Value, row: &mut Row) {
    let (name, cell) = match op {
        "rnn_tanh" => ("rnn", Cell::Tanh),
        "rnn_relu" => ("rnn", Cell::Relu),
        "lstm" => ("lstm", Cell::Lstm),
        "gru" => ("gru", Cell::Gru),
        "attention" => return attention(p, row),
        _ => return,
    };
    let (p, output) = (p.clone(), p["output"].as_u64().unwrap() as usize);
    row.op = name;
    row.run = Arc::new(move |x| {
        let mut all = layer(cell, &p, x)?;
        Ok(if output > 0 { vec![all.remove(output)] } else { all })
    });
}
