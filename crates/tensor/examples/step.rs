//! Times a training step's forward and backward pass: `step [mlp|lenet5] [batch] [threads] [seconds]`.
//!
//! The weights live in one arena and the gradients go straight into another, as in training. Prints the
//! median of the step, then the median of each op (forward passes, run one by one).

use std::error::Error;
use std::ops::Range;
use std::time::{Duration, Instant};

use phalanx_host::{Arena, Cpu, Isa};
use phalanx_tensor::{Conv, DType, Device, LeafId, LeafMemory, LeafSink, Result, Tensor};

/// Gradients go to an arena, each to its place.
struct Places<'a> {
    arena: &'a Arena,
    ranges: &'a [Range<usize>],
    written: Vec<bool>,
}

impl LeafSink for Places<'_> {
    fn wants(&self, leaf: LeafId) -> bool {
        (leaf.0 as usize) < self.written.len()
    }
    fn memory(&mut self, leaf: LeafId) -> Result<Option<LeafMemory>> {
        let i = leaf.0 as usize;
        let accumulate = std::mem::replace(&mut self.written[i], true);
        Ok(Some(LeafMemory { range: self.arena.write(self.ranges[i].clone())?, accumulate }))
    }
    fn ready(&mut self, _: LeafId, _: Option<Tensor>) -> Result<()> {
        Ok(())
    }
}

/// Times of the parts of a forward pass, by name.
#[derive(Default)]
struct Parts(Vec<(String, Vec<Duration>)>, usize);

impl Parts {
    fn time(&mut self, name: &str, f: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let start = Instant::now();
        let y = f()?;
        if self.0.len() <= self.1 {
            self.0.push((format!("{name} -> {}", y.shape()), Vec::new()));
        }
        self.0[self.1].1.push(start.elapsed());
        self.1 += 1;
        Ok(y)
    }
}

fn mlp(x: &Tensor, p: &[Tensor], parts: &mut Parts) -> Result<Tensor> {
    let x = x.reshape(&[x.shape()[0], 784])?;
    let h = parts.time("linear", || x.linear(&p[0], Some(&p[1])))?;
    let h = parts.time("relu", || h.relu())?;
    parts.time("linear", || h.linear(&p[2], Some(&p[3])))
}

fn lenet5(x: &Tensor, p: &[Tensor], parts: &mut Parts) -> Result<Tensor> {
    let mut h = x.clone();
    for (i, padding) in [(0, 2), (2, 0)] {
        let conv = Conv::new().padding(&[padding]);
        h = parts.time("conv2d", || h.conv2d(&p[i], Some(&p[i + 1]), &conv))?;
        h = parts.time("relu", || h.relu())?;
        h = parts.time("max_pool2d", || h.max_pool2d([2, 2], [2, 2], [0, 0]))?;
    }
    h = parts.time("flatten", || h.permute(&[0, 3, 1, 2])?.reshape(&[x.shape()[0], 400]))?;
    for i in [4, 6] {
        h = parts.time("linear", || h.linear(&p[i], Some(&p[i + 1])))?;
        h = parts.time("relu", || h.relu())?;
    }
    parts.time("linear", || h.linear(&p[8], Some(&p[9])))
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse());
    let (batch, threads, seconds) = (number(1, 128)?, number(2, 1)?, number(3, 2)?);
    let deep = args.first().is_some_and(|a| a == "lenet5");
    let shapes: &[&[usize]] = match deep {
        true => &[
            &[6, 5, 5, 1],
            &[6],
            &[16, 5, 5, 6],
            &[16],
            &[120, 400],
            &[120],
            &[84, 120],
            &[84],
            &[10, 84],
            &[10],
        ],
        false => &[&[512, 784], &[512], &[10, 512], &[10]],
    };
    let device = Device::cpu(Cpu::new(Isa::detect(), threads)?);
    let mut end = 0;
    let mut ranges = Vec::new();
    for s in shapes {
        let bytes = 4 * s.iter().product::<usize>();
        ranges.push(end..end + bytes);
        // Each parameter starts on a cache line, as in training.
        end += bytes.next_multiple_of(64);
    }
    let (weights, gradients) = (Arena::zeroed(end)?, Arena::zeroed(end)?);
    for (i, w) in weights.write(0..end)?.as_mut_slice::<f32>()?.iter_mut().enumerate() {
        *w = (i as f32 * 0.7).sin() * 0.05;
    }
    let p: Vec<Tensor> = shapes
        .iter()
        .enumerate()
        .map(|(i, s)| {
            let w = Tensor::from_arena(&weights, ranges[i].start / 4, DType::F32, (*s).into(), &device);
            w.leaf_named(LeafId(i as u64))
        })
        .collect();
    let pixels: Vec<f32> = (0..batch * 784).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = Tensor::from_slice(&pixels, [batch, 28, 28, 1], &device)?;
    let labels: Vec<i64> = (0..batch as i64).map(|i| i % 10).collect();
    let labels = Tensor::from_slice(&labels, [batch], &device)?;

    let (mut parts, mut steps, mut backs) = (Parts::default(), Vec::new(), Vec::new());
    let until = Instant::now() + Duration::from_secs(seconds as u64);
    while Instant::now() < until {
        let start = Instant::now();
        parts.1 = 0;
        let logits = if deep { lenet5(&x, &p, &mut parts)? } else { mlp(&x, &p, &mut parts)? };
        let loss = parts.time("cross_entropy", || logits.cross_entropy(&labels, None))?;
        drop(logits);
        let back = Instant::now();
        let written = vec![false; shapes.len()];
        loss.backward(&mut Places { arena: &gradients, ranges: &ranges, written })?;
        backs.push(back.elapsed());
        steps.push(start.elapsed());
    }
    let step = median(&mut steps);
    println!(
        "{}, batch {batch}, {threads} thread(s), {}: step {:.3} ms, backward {:.3} ms, {:.0} images/s",
        if deep { "lenet5" } else { "mlp" },
        Isa::detect(),
        step.as_secs_f64() * 1e3,
        median(&mut backs).as_secs_f64() * 1e3,
        batch as f64 / step.as_secs_f64()
    );
    for (name, times) in &mut parts.0 {
        println!("  {:8.1} us  {name}", median(times).as_secs_f64() * 1e6);
    }
    Ok(())
}
