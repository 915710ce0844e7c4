//! An LSTM over 20 steps: one weight used 20 times, its gradient announced once.

use std::collections::HashMap;
use std::sync::Arc;

use phalanx_comm::Communicator;
use phalanx_host::rng::Key;
use phalanx_host::{Arena, Cpu, Isa};
use phalanx_nn::{
    Builder, Forward, Init, Norms, OptimizerConfig, ParamId, Params, Recurrent, RecurrentConfig, Stored,
};
use phalanx_tensor::{Cell, Device, LeafId, LeafMemory, LeafSink, Recurrence, Tensor};
use phalanx_train::task::{Batch, Loss, Phase, PhaseId, ShardCx, Task};
use phalanx_train::{Result, setup};

use crate::{Spike, keeps_the_promise};

const STEPS: usize = 20;
const HIDDEN: usize = 8;

/// Learns the mean of sequences of different lengths.
#[derive(Debug)]
struct Lstm {
    recurrent: Recurrent,
    out: ParamId,
    phases: [Phase; 1],
}

impl Lstm {
    fn build(b: &mut Builder) -> Result<Self> {
        let config = RecurrentConfig::new(HIDDEN);
        let (recurrent, _) = Recurrent::build(b, [STEPS, 1].into(), Cell::Lstm, config)?;
        let out = b.param("out.weight", [1, HIDDEN], Stored::Plain, true, Init::Uniform, [HIDDEN, 1]);
        let optimizer = OptimizerConfig::adam(0.02);
        let phases = [Phase { name: "train".into(), params: 0..b.next_param(), optimizer }];
        Ok(Lstm { recurrent, out, phases })
    }

    /// Predictions [N, 1] for sequences `x` [N, T, 1] of the given lengths.
    fn forward(&self, cx: &Forward, x: &Tensor, lengths: &Tensor) -> Result<Tensor> {
        let ends = self.recurrent.run(cx, x, None, Some(lengths))?.states;
        Ok(ends[0].slice(0, 0, 1)?.reshape(&[x.shape()[0], HIDDEN])?.linear(&cx.param(self.out), None)?)
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
        let y = self.forward(cx, batch.field("sequence")?, batch.field("lengths")?)?;
        let weights = batch.weights_on(cx.device)?;
        let sum = y.mse(batch.field("target")?, weights.as_ref())?;
        Ok(Loss { sum, weight: batch.weight(), statistics: Vec::new() })
    }
}

struct Sequences;

impl Spike for Sequences {
    fn build(&self, comm: &Arc<dyn Communicator>) -> Result<(Box<dyn Task>, Params, Norms)> {
        let mut b = Builder::new();
        let task = Lstm::build(&mut b)?;
        let (params, norms) = setup::parameters(b, 7, comm)?;
        Ok((Box::new(task), params, norms))
    }

    fn batch(&self, step: u64, shard: u32, device: &Device) -> Batch {
        let n = 4;
        let mut stream = Key::new(5).derive(step, u64::from(shard)).stream();
        let (mut x, mut lengths, mut y) = (vec![0.0f32; n * STEPS], Vec::new(), Vec::new());
        for i in 0..n {
            let length = 5 + stream.below(STEPS as u64 - 5) as usize;
            let level = stream.f32() * 2.0 - 1.0;
            // What lies behind the end is not looked at.
            x[i * STEPS..(i + 1) * STEPS].fill(9.0);
            x[i * STEPS..i * STEPS + length].fill(level);
            lengths.push(length as i64);
            y.push(level);
        }
        let fields = [
            ("sequence", Tensor::from_slice(&x, [n, STEPS, 1], device).unwrap()),
            ("lengths", Tensor::from_slice(&lengths, [n], device).unwrap()),
            ("target", Tensor::from_slice(&y, [n, 1], device).unwrap()),
        ];
        Batch::of(fields).weighted(vec![1.0, 0.5, 2.0, 1.0])
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
    let task = Lstm::build(&mut b).unwrap();
    let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
    params.initialise(1).unwrap();
    let cx = Forward::new(&params, &norms, &device, true, 0..params.len() as u32, Key::new(1));
    let batch = Sequences.batch(0, 0, &device);
    let (x, lengths) = (batch.field("sequence").unwrap(), batch.field("lengths").unwrap());

    // Step by step, as an environment would have it: every step is a use of the weights.
    let weight = |name: &str| cx.param(params.find(name).unwrap());
    let [weight_ih, weight_hh] = ["weight_ih_l0", "weight_hh_l0"].map(weight);
    let [bias_ih, bias_hh] = ["bias_ih_l0", "bias_hh_l0"].map(weight);
    let by = Recurrence {
        cell: Cell::Lstm,
        weight_ih: &weight_ih,
        weight_hh: &weight_hh,
        bias: Some([&bias_ih, &bias_hh]),
        reverse: false,
    };
    let mut states: Option<Vec<Tensor>> = None;
    let mut steps = Vec::new();
    for t in 0..STEPS {
        let x = x.slice(1, t, 1).unwrap().reshape(&[x.shape()[0], 1]).unwrap();
        let next = x.recurrent_step(&by, states.as_deref()).unwrap();
        steps.push(next[0].to_vec::<f32>().unwrap());
        states = Some(next);
    }
    let last = states.unwrap().remove(0).linear(&cx.param(task.out), None).unwrap();
    let mut count = Count::default();
    last.square().unwrap().sum_all().unwrap().backward(&mut count).unwrap();
    let leaf = |t: &Tensor| t.leaf_id().unwrap();
    assert_eq!(count.uses[&leaf(&weight_hh)], STEPS);
    assert!(params.ids().all(|p| count.ready[&leaf(&cx.param(p))] == 1));

    // The fused sequence uses them once, and gives the same where the sequences still go on.
    let y = task.recurrent.run(&cx, x, None, Some(lengths)).unwrap().outputs.to_vec::<f32>().unwrap();
    for (n, length) in lengths.to_vec::<i64>().unwrap().into_iter().enumerate() {
        for (t, step) in steps.iter().enumerate() {
            let got = &y[(n * STEPS + t) * HIDDEN..][..HIDDEN];
            match t < length as usize {
                true => assert_eq!(got, &step[n * HIDDEN..][..HIDDEN], "sample {n}, step {t}"),
                false => assert_eq!(got, [0.0; HIDDEN], "sample {n}, step {t}"),
            }
        }
    }
    let mut count = Count::default();
    task.forward(&cx, x, lengths).unwrap().square().unwrap().sum_all().unwrap().backward(&mut count).unwrap();
    assert!(params.ids().all(|p| count.uses[&leaf(&cx.param(p))] == 1));
    assert!(params.ids().all(|p| count.ready[&leaf(&cx.param(p))] == 1));
}
