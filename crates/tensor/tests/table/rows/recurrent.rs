//! Recurrent layers over whole sequences.

use phalanx_tensor::{Cell, DType, Recurrence, Tensor};

use crate::row::{Array, In, Row, indices, input, row};

/// What a row's layer has besides its weights.
#[derive(Clone, Copy)]
struct Case {
    cell: Cell,
    /// Samples, steps, inputs, hidden units.
    sizes: [usize; 4],
    bias: bool,
    start: bool,
    reverse: bool,
    lengths: Option<&'static [i64]>,
    /// 0 for the outputs, else a state.
    output: usize,
}

impl Case {
    fn inputs(&self) -> Vec<In> {
        let ([n, t, i, h], g) = (self.sizes, self.cell.gates());
        let mut all = vec![input(&[n, t, i]), input(&[g * h, i]), input(&[g * h, h])];
        if self.bias {
            all.extend([input(&[g * h]), input(&[g * h])]);
        }
        if self.start {
            all.extend((0..self.cell.states()).map(|_| input(&[n, h])));
        }
        all.extend(self.lengths.map(|l| indices(&[n], l)));
        all
    }

    fn run(&self, x: &[Tensor]) -> phalanx_tensor::Result<Tensor> {
        let bias = self.bias.then(|| [&x[3], &x[4]]);
        let by =
            Recurrence { cell: self.cell, weight_ih: &x[1], weight_hh: &x[2], bias, reverse: self.reverse };
        let states = if self.bias { 5 } else { 3 };
        let after = x.len() - usize::from(self.lengths.is_some());
        let start = self.start.then(|| &x[states..after]);
        let mut made = x[0].recurrent(&by, start, self.lengths.map(|_| &x[after]))?;
        Ok(if self.output > 0 { made.states.remove(self.output - 1) } else { made.outputs })
    }

    /// The cell by its definition, sample by sample.
    fn naive(&self, x: &[Array]) -> Array {
        let [samples, steps, i, h] = self.sizes;
        let dot = |w: &Array, row: usize, v: &[f64]| -> f64 {
            v.iter().enumerate().map(|(k, v)| v * w.data[row * v_len(w) + k]).sum()
        };
        let (mut y, mut ends) = (vec![0.0; samples * steps * h], [vec![], vec![]]);
        let states = if self.bias { 5 } else { 3 };
        let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
        for n in 0..samples {
            let begin = |k: usize| match self.start && k < self.cell.states() {
                true => x[states + k].data[n * h..(n + 1) * h].to_vec(),
                false => vec![0.0; h],
            };
            let (mut hidden, mut cell) = (begin(0), begin(1));
            let length = self.lengths.map_or(steps, |l| l[n] as usize);
            for s in 0..length {
                let t = if self.reverse { length - 1 - s } else { s };
                let input = &x[0].data[(n * steps + t) * i..][..i];
                let bias = |k: usize, row: usize| if self.bias { x[k].data[row] } else { 0.0 };
                let from_x = |g: usize, u: usize| dot(&x[1], g * h + u, input) + bias(3, g * h + u);
                let from_h = |g: usize, u: usize| dot(&x[2], g * h + u, &hidden) + bias(4, g * h + u);
                let both = |g: usize, u: usize| from_x(g, u) + from_h(g, u);
                let next = |u: usize| match self.cell {
                    Cell::Tanh => [both(0, u).tanh(), 0.0],
                    Cell::Relu => [both(0, u).max(0.0), 0.0],
                    Cell::Lstm => {
                        let c = sigmoid(both(1, u)) * cell[u] + sigmoid(both(0, u)) * both(2, u).tanh();
                        [sigmoid(both(3, u)) * c.tanh(), c]
                    }
                    Cell::Gru => {
                        let (r, z) = (sigmoid(both(0, u)), sigmoid(both(1, u)));
                        let new = (from_x(2, u) + r * from_h(2, u)).tanh();
                        [(1.0 - z) * new + z * hidden[u], 0.0]
                    }
                };
                let made: Vec<[f64; 2]> = (0..h).map(next).collect();
                hidden = made.iter().map(|m| m[0]).collect();
                cell = made.iter().map(|m| m[1]).collect();
                y[(n * steps + t) * h..][..h].copy_from_slice(&hidden);
            }
            ends[0].extend(hidden);
            ends[1].extend(cell);
        }
        match self.output {
            0 => Array { shape: vec![samples, steps, h], data: y },
            k => Array { shape: vec![samples, h], data: ends[k - 1].clone() },
        }
    }
}

/// Columns of a matrix.
fn v_len(w: &Array) -> usize {
    w.shape[1]
}

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for cell in [Cell::Tanh, Cell::Relu, Cell::Lstm, Cell::Gru] {
        let name = ["rnn", "", "gru", "lstm"][cell.gates() - 1];
        let plain = Case {
            cell,
            sizes: [2, 3, 3, 4],
            bias: true,
            start: false,
            reverse: false,
            lengths: None,
            output: 0,
        };
        let last = cell.states();
        for case in [
            plain,
            Case { sizes: [3, 4, 2, 5], start: true, lengths: Some(&[2, 4, 0]), ..plain },
            Case { sizes: [3, 4, 2, 5], start: true, reverse: true, lengths: Some(&[3, 0, 4]), ..plain },
            Case { sizes: [3, 4, 1, 3], reverse: true, lengths: Some(&[1, 4, 2]), bias: false, ..plain },
            Case { sizes: [2, 1, 3, 2], start: true, bias: false, output: last, ..plain },
            Case { sizes: [4, 3, 2, 3], start: true, lengths: Some(&[3, 1, 0, 2]), output: last, ..plain },
            Case { sizes: [2, 4, 2, 3], start: true, reverse: true, output: 1, ..plain },
            Case { sizes: [1, 0, 2, 3], start: true, output: 1, ..plain },
            Case { sizes: [70, 3, 33, 40], start: true, ..plain },
        ] {
            let inputs = case.inputs();
            let batch: Vec<usize> =
                (0..inputs.len()).filter(|&k| k == 0 || k >= if case.bias { 5 } else { 3 }).collect();
            let row = row(name, inputs, move |x| case.run(x), move |x| case.naive(x));
            // Without samples the outputs are empty; states and gradients too.
            rows.push(row.batch(&batch));
        }
        let (g, h) = (cell.gates(), 2);
        let by = move |x: &[Tensor], start: Option<&[Tensor]>, lengths: Option<&Tensor>| {
            let (weight_ih, weight_hh) = (&x[1], &x[2]);
            let by = Recurrence { cell, weight_ih, weight_hh, bias: Some([&x[3], &x[4]]), reverse: false };
            Ok(x[0].recurrent(&by, start, lengths)?.outputs)
        };
        let good: [&[usize]; 5] = [&[2, 3, 4], &[g * h, 4], &[g * h, h], &[g * h], &[g * h]];
        let mut row = rows.pop().unwrap();
        for (k, wrong) in [
            (0, &[2usize, 4][..]),
            (0, &[2, 3, 5]),
            (1, &[g * h + 1, 4]),
            (1, &[g * h]),
            (2, &[g * h, h + 1]),
            (2, &[g * h, 0]),
            (2, &[g * h + 1, h]),
            (3, &[1]),
            (4, &[g * h, 1]),
        ] {
            let mut shapes = good;
            shapes[k] = wrong;
            row = row.bad(&shapes, move |x| by(x, None, None));
        }
        let with = |shape: &'static [usize]| [&good[..], &[shape]].concat();
        row = row.bad(&with(&[3, 2]), move |x| by(x, Some(&vec![x[5].clone(); last][..]), None));
        row = row.bad(&with(&[2, 2]), move |x| by(x, Some(&vec![x[5].clone(); last + 1][..]), None));
        row = row.bad(&with(&[3]), move |x| by(x, None, Some(&x[5].to(DType::I64)?)));
        row = row.bad(&with(&[2]), move |x| by(x, None, Some(&x[5].offset(9.0)?.to(DType::I64)?)));
        row = row.bad(&with(&[2]), move |x| by(x, None, Some(&x[5].offset(-9.0)?.to(DType::I64)?)));
        rows.push(row);
    }
    rows
}
