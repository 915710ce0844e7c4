//! A GAN on points: the discriminator's phase, then the generator's, which trains through a frozen
//! discriminator.

use std::sync::Arc;

use phalanx_comm::Communicator;
use phalanx_host::rng::Key;
use phalanx_nn::{
    Activation, BatchNorm, Builder, Init, Layer, Linear, Noise, NoiseKind, Norms, OptimizerConfig, ParamId,
    Params, Sequential,
};
use phalanx_tensor::{Device, Shape, Tensor};
use phalanx_train::task::{Batch, Loss, Phase, PhaseId, ShardCx, StepCx, Task};
use phalanx_train::{Result, setup};

use crate::{Spike, keeps_the_promise};

const NOISE: usize = 3;
const D: PhaseId = 0;

#[derive(Debug)]
struct Gan {
    discriminator: Sequential,
    generator: Sequential,
    phases: [Phase; 2],
    /// The discriminator's parameters when its phase ended.
    frozen: Vec<Vec<f32>>,
}

/// log(1 + e^x), summed: the cross-entropy of a logit that should be very negative.
fn softplus_sum(x: &Tensor) -> Result<Tensor> {
    Ok(x.exp()?.offset(1.0)?.log()?.sum_all()?)
}

impl Gan {
    fn fake(&self, n: usize, cx: &ShardCx) -> Result<Tensor> {
        let mut stream = cx.next_key().stream();
        let z: Vec<f32> = (0..n * NOISE).map(|_| stream.normal() as f32).collect();
        Ok(self.generator.forward(cx, &Tensor::from_slice(&z, [n, NOISE], cx.device)?)?)
    }

    fn values(&self, params: &Params) -> Result<Vec<Vec<f32>>> {
        self.phases[D].ids().map(|id| Ok(params.export(id)?.1)).collect()
    }
}

impl Task for Gan {
    fn name(&self) -> &'static str {
        "gan"
    }
    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn loss(&self, phase: PhaseId, batch: &Batch, cx: &ShardCx) -> Result<Loss> {
        let real = batch.field("point")?;
        let n = batch.len();
        let d_leaf = cx.param(ParamId(self.phases[D].params.start)).requires_grad();
        let fake = self.fake(n, cx)?;
        let judged = self.discriminator.forward(cx, &fake)?;
        let sum = if phase == D {
            // The generator is frozen: what it makes is no part of the graph.
            assert!(d_leaf && !fake.requires_grad());
            let real = self.discriminator.forward(cx, real)?;
            softplus_sum(&real.neg()?)?.add(&softplus_sum(&judged)?)?
        } else {
            assert!(!d_leaf && judged.requires_grad(), "the discriminator is frozen, the generator is not");
            softplus_sum(&judged.neg()?)?
        };
        Ok(Loss { sum, weight: n as f64, statistics: Vec::new() })
    }

    fn after_phase(&mut self, phase: PhaseId, cx: &mut StepCx) -> Result<()> {
        let now = self.values(cx.params)?;
        if phase == D {
            assert_ne!(now, self.frozen, "the discriminator has learnt");
            self.frozen = now;
        } else {
            assert_eq!(now, self.frozen, "the generator's phase leaves the discriminator alone");
        }
        Ok(())
    }
}

struct Points;

impl Spike for Points {
    fn build(&self, comm: &Arc<dyn Communicator>) -> Result<(Box<dyn Task>, Params, Norms)> {
        let mut b = Builder::new();
        let linear = |b: &mut Builder, name: &str, from: usize, to: usize| {
            let input = Shape::from([from]);
            b.scope(name, |b| Linear::build(b, input, to, true, Init::GlorotUniform)).map(|l| l.0)
        };
        let mut discriminator = Sequential::new();
        discriminator.push(linear(&mut b, "d.fc1", 2, 16)?);
        discriminator.push(Activation::relu());
        discriminator.push(b.scope("d.drop", |b| Noise::build(b, [16].into(), NoiseKind::Dropout, 0.2))?.0);
        discriminator.push(linear(&mut b, "d.fc2", 16, 1)?);
        let split = b.next_param();
        let mut generator = Sequential::new();
        generator.push(linear(&mut b, "g.fc1", NOISE, 16)?);
        generator.push(b.scope("g.bn", |b| BatchNorm::build(b, [16].into()))?.0);
        generator.push(Activation::tanh());
        generator.push(linear(&mut b, "g.fc2", 16, 2)?);
        let end = b.next_param();
        let (params, norms) = setup::parameters(b, 7, comm)?;
        let phases = [
            Phase { name: "discriminator".into(), params: 0..split, optimizer: OptimizerConfig::adam(0.01) },
            Phase {
                name: "generator".into(),
                params: split..end,
                optimizer: OptimizerConfig::sgd(0.05, 0.5, 0.0),
            },
        ];
        Ok((Box::new(Gan { discriminator, generator, phases, frozen: Vec::new() }), params, norms))
    }

    fn batch(&self, step: u64, shard: u32, device: &Device) -> Batch {
        // Uneven shards, and one that now and then has no sample at all.
        let n = (2 + shard as usize) * usize::from(!(shard == 1 && step.is_multiple_of(3)));
        let mut stream = Key::new(11).derive(step, u64::from(shard)).stream();
        let points: Vec<f32> = (0..n).flat_map(|_| [2.0 + 0.3 * stream.normal() as f32, -1.0]).collect();
        Batch::of([("point", Tensor::from_slice(&points, [n, 2], device).unwrap())])
    }
}

#[test]
fn a_gan_keeps_the_promise() {
    let end = keeps_the_promise(&Points, 24);
    assert!(end.losses.iter().all(|l| l.len() == 2 && l.iter().all(|x| x.is_finite())));
    // Both optimizers have state of their own: Adam's two arrays, SGD's one.
    let count = |p: &str| end.snapshot.optimizer.keys().filter(|k| k.starts_with(p)).count();
    assert_eq!((count("discriminator/exp_avg"), count("generator/momentum")), (8, 6));
    assert_eq!(end.snapshot.optimizer_steps, [24, 24]);
}
