//! An LSTM over 20 steps: one weight used 20 times, its gradient announced once.

use std::collections::HashMap;
use std::sync::Arc;

use phalanx_comm::Communicator;
use phalanx_host::rng::Key;
use phalanx_host::{Arena, Cpu, Isa};
use phalanx_nn::{Builder, Forward, Init, Norms, OptimizerConfig, ParamId, Params, Stored};
use phalanx_tensor::{DType, Device, LeafId, LeafMemory, LeafSink, Tensor};
use phalanx_train::task::{Batch, Loss, Phase, PhaseId, ShardCx, Task};
use phalanx_train::{Result, setup};

use crate::{Spike, keeps_the_promise};

const STEPS: usize = 20;
const HIDDEN: usize = 8;

/// Learns the mean of sequences of different lengths.
#[derive(Debug)]
struct Lstm {
    input: ParamId,
    recurrent: ParamId,
    bias: ParamId,
    out: ParamId,
    phases: [Phase; 1],
}

impl Lstm {
    /// Registers the weights: gates input, forget, cell, output below each other.
    fn build(b: &mut Builder) -> Self {
        let mut param = |name: &str, shape: [usize; 2], fan: usize| {
            b.param(name, shape, Stored::Plain, true, Init::Uniform, [fan, fan])
        };
        let input = param("weight_ih", [4 * HIDDEN, 1], HIDDEN);
        let recurrent = param("weight_hh", [4 * HIDDEN, HIDDEN], HIDDEN);
        let out = param("out.weight", [1, HIDDEN], HIDDEN);
        let bias = b.param("bias", [4 * HIDDEN], Stored::Plain, false, Init::Zeros, [1, 1]);
        let optimizer = OptimizerConfig::adam(0.02);
        let phases = [Phase { name: "train".into(), params: 0..b.next_param(), optimizer }];
        Lstm { input, recurrent, bias, out, phases }
    }

    /// Predictions [N, 1] for sequences `x` [N, T], of which `inside` [N, T] is 1 within the length.
    fn forward(&self, cx: &Forward, x: &Tensor, inside: &Tensor) -> Result<Tensor> {
        let n = x.shape()[0];
        let [wi, wr, bias] = [self.input, self.recurrent, self.bias].map(|p| cx.param(p));
        let mut h = Tensor::zeros(DType::F32, [n, HIDDEN], cx.device())?;
        let mut c = h.clone();
        for t in 0..STEPS {
            let gates = x.slice(1, t, 1)?.linear(&wi, Some(&bias))?.add(&h.linear(&wr, None)?)?;
            let gate = |k: usize| gates.slice(1, k * HIDDEN, HIDDEN);
            let kept = gate(1)?.sigmoid()?.mul(&c)?;
            let next_c = kept.add(&gate(0)?.sigmoid()?.mul(&gate(2)?.tanh()?)?)?;
            let next_h = gate(3)?.sigmoid()?.mul(&next_c.tanh()?)?;
            // Past its end a sequence keeps its state.
            let on = inside.slice(1, t, 1)?;
            c = c.add(&next_c.sub(&c)?.mul(&on)?)?;
            h = h.add(&next_h.sub(&h)?.mul(&on)?)?;
        }
        Ok(h.linear(&cx.param(self.out), None)?)
    }
}

impl Task for Lstm {
    fn name(&self) -> &'static str {
        "lstm"
    }
    fn phases(&self) -> &[Phase] {
        &self.phases
    }
    fn loss(&self, _: PhaseId, batch: &Batch, cx: &ShardCx) -> Result<Loss> {
        let y = self.forward(cx, batch.field("sequence")?, batch.field("inside")?)?;
        let weights = batch.weights_on(cx.device)?;
        let sum = y.mse(batch.field("target")?, weights.as_ref())?;
        Ok(Loss { sum, weight: batch.weight(), statistics: Vec::new() })
    }
}

struct Sequences;

impl Spike for Sequences {
    fn build(&self, comm: &Arc<dyn Communicator>) -> Result<(Box<dyn Task>, Params, Norms)> {
        let mut b = Builder::new();
        let task = Lstm::build(&mut b);
        let (params, norms) = setup::parameters(b, 7, comm)?;
        Ok((Box::new(task), params, norms))
    }

    fn batch(&self, step: u64, shard: u32, device: &Device) -> Batch {
        let n = 4;
        let mut stream = Key::new(5).derive(step, u64::from(shard)).stream();
        let (mut x, mut inside, mut y) = (vec![0.0f32; n * STEPS], vec![0.0f32; n * STEPS], Vec::new());
        for i in 0..n {
            let length = 5 + stream.below(STEPS as u64 - 5) as usize;
            let level = stream.f32() * 2.0 - 1.0;
            for t in 0..length {
                x[i * STEPS + t] = level;
                inside[i * STEPS + t] = 1.0;
            }
            y.push(level);
        }
        let t = |v: &[f32], w: usize| Tensor::from_slice(v, [n, w], device).unwrap();
        let fields = [("sequence", t(&x, STEPS)), ("inside", t(&inside, STEPS)), ("target", t(&y, 1))];
        Batch { weights: Some(vec![1.0, 0.5, 2.0, 1.0]), ..Batch::of(fields) }
    }
}

#[test]
fn an_lstm_keeps_the_promise_and_learns() {
    let end = keeps_the_promise(&Sequences, 60);
    let mean = |l: &[Vec<f64>]| l.iter().map(|x| x[0]).sum::<f64>() / l.len() as f64;
    let (first, last) = (mean(&end.losses[..5]), mean(&end.losses[55..]));
    assert!(last < 0.3 * first, "{first} -> {last}");
}

#[derive(Default)]
struct Count {
    uses: HashMap<LeafId, usize>,
    ready: HashMap<LeafId, usize>,
}

impl LeafSink for Count {
    fn wants(&self, _: LeafId) -> bool {
        true
    }
    fn memory(&mut self, leaf: LeafId) -> phalanx_tensor::Result<Option<LeafMemory>> {
        *self.uses.entry(leaf).or_default() += 1;
        Ok(None)
    }
    fn ready(&mut self, leaf: LeafId, grad: Option<Tensor>) -> phalanx_tensor::Result<()> {
        assert!(grad.is_some());
        *self.ready.entry(leaf).or_default() += 1;
        Ok(())
    }
}

#[test]
fn a_recurrent_weight_is_used_at_every_step_and_ready_once() {
    let device = Device::cpu(Cpu::new(Isa::detect(), 1).unwrap());
    let mut b = Builder::new();
    let task = Lstm::build(&mut b);
    let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
    params.initialise(1).unwrap();
    let cx = Forward::new(&params, &norms, &device, true, 0..params.len() as u32, Key::new(1));
    let batch = Sequences.batch(0, 0, &device);
    let y = task.forward(&cx, batch.field("sequence").unwrap(), batch.field("inside").unwrap()).unwrap();
    let mut count = Count::default();
    y.square().unwrap().sum_all().unwrap().backward(&mut count).unwrap();
    let leaf = |p: ParamId| LeafId(u64::from(p.0));
    assert!(count.uses[&leaf(task.recurrent)] >= STEPS);
    assert!(params.ids().all(|p| count.ready[&leaf(p)] == 1));
}
