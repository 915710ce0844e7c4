//! Times recurrent layers, batched products, attention and embeddings, forward and backward:
//! `sequence [threads] [seconds]`. Prints `name  milliseconds`, the least of each; bench/peers/sequence.py is
//! PyTorch's side.

use std::error::Error;
use std::time::{Duration, Instant};

use phalanx_host::{Cpu, Isa};
use phalanx_tensor::{Attention, Cell, Device, Gradients, Recurrence, Result, Tensor};

struct Bench {
    device: Device,
    least: Duration,
}

impl Bench {
    fn tensor(&self, shape: &[usize]) -> Result<Tensor> {
        let n = shape.iter().product();
        let data: Vec<f32> = (0..n).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) * 1e-4).collect();
        Ok(Tensor::from_slice(&data, shape, &self.device)?.leaf())
    }

    fn time(&self, name: &str, mut run: impl FnMut() -> Result<()>) -> Result<()> {
        run()?;
        let (begin, mut best) = (Instant::now(), f64::INFINITY);
        while begin.elapsed() < self.least {
            let start = Instant::now();
            run()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{name:<32}{:>9.3}", best * 1e3);
        Ok(())
    }

    /// The output of `f` alone, and with the gradients of all leaves.
    fn both(&self, name: &str, f: impl Fn() -> Result<Tensor>) -> Result<()> {
        self.time(&format!("{name} forward"), || f().map(drop))?;
        let seed = Tensor::full(1.0f32, f()?.shape(), &self.device)?;
        self.time(&format!("{name} forward+backward"), || {
            f()?.backward_from(seed.clone(), &mut Gradients::default())
        })
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(Ok(1), |a| a.parse())?;
    let least = Duration::from_secs_f64(args.next().map_or(Ok(2.0), |a| a.parse())?);
    let b = Bench { device: Device::cpu(Cpu::new(Isa::detect(), threads)?), least };
    // Batch 64, 50 steps, 128 inputs, 256 hidden units.
    for (name, cell) in [("lstm", Cell::Lstm), ("gru", Cell::Gru), ("rnn", Cell::Tanh)] {
        let rows = cell.gates() * 256;
        let (x, weight_ih, weight_hh) =
            (b.tensor(&[64, 50, 128])?, b.tensor(&[rows, 128])?, b.tensor(&[rows, 256])?);
        let bias = [b.tensor(&[rows])?, b.tensor(&[rows])?];
        let bias = Some(bias.each_ref());
        let by = Recurrence { cell, weight_ih: &weight_ih, weight_hh: &weight_hh, bias, reverse: false };
        b.both(name, || Ok(x.recurrent(&by, None, None)?.outputs))?;
    }
    for (batch, m, k, n) in
        [(4096, 8, 8, 8), (1024, 16, 32, 16), (256, 64, 64, 64), (16, 256, 256, 256), (2, 1024, 1024, 1024)]
    {
        let (x, y) = (b.tensor(&[batch, m, k])?, b.tensor(&[batch, k, n])?);
        b.both(&format!("matmul {batch}x{m}x{k}x{n}"), || x.matmul(&y))?;
    }
    for (heads, length) in [(32, 128), (8, 1024)] {
        let [q, k, v] = [0; 3].map(|_| b.tensor(&[heads, length, 64]));
        let (q, k, v) = (q?, k?, v?);
        b.both(&format!("attention {heads}x{length}x64"), || q.attention(&k, &v, &Attention::default()))?;
    }
    let (table, n) = (b.tensor(&[20_000, 256])?, 3200);
    let list: Vec<i64> = (0..n).map(|i| i * i % 19_997).collect();
    let list = Tensor::from_slice(&list, [64, 50], &b.device)?;
    b.both("embedding 20000x256 3200", || table.embedding(&list, None))?;
    Ok(())
}
