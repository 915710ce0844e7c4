//! A contractive autoencoder (Rifai et al., 2011): a penalty on the Jacobian of the hidden layer, which
//! needs the gradient of a gradient.

use std::sync::Arc;

use phalanx_comm::Communicator;
use phalanx_host::rng::Key;
use phalanx_host::{Cpu, Isa};
use phalanx_nn::{Builder, Init, Layer, Linear, Norms, OptimizerConfig, Params};
use phalanx_tensor::{Device, Tensor};
use phalanx_train::task::{Batch, Loss, Phase, PhaseId, ShardCx, Task};
use phalanx_train::{Result, setup};

use crate::{Spike, keeps_the_promise};

const INPUTS: usize = 5;
const HIDDEN: usize = 3;
const LAMBDA: f64 = 0.1;

/// Σ over samples of ‖∂h/∂x‖², one hidden unit after the other.
fn penalty(h: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut total: Option<Tensor> = None;
    for j in 0..h.shape()[1] {
        let gradient = h.slice(1, j, 1)?.sum_all()?.gradient_graph(&[x])?.remove(0);
        let part = gradient.expect("h depends on x").square()?.sum_all()?;
        total = Some(match total {
            Some(t) => t.add(&part)?,
            None => part,
        });
    }
    Ok(total.expect("there are hidden units"))
}

#[derive(Debug)]
struct Autoencoder {
    encode: Linear,
    decode: Linear,
    phases: [Phase; 1],
}

impl Task for Autoencoder {
    fn name(&self) -> &'static str {
        "contractive"
    }
    fn phases(&self) -> &[Phase] {
        &self.phases
    }
    fn statistics(&self) -> &[&'static str] {
        &["penalty"]
    }
    fn loss(&self, _: PhaseId, batch: &Batch, cx: &ShardCx) -> Result<Loss> {
        let x = batch.field("x")?.leaf();
        let h = self.encode.forward(cx, &x)?.sigmoid()?;
        let penalty = penalty(&h, &x)?;
        let statistics = vec![penalty.item()?];
        let sum = self.decode.forward(cx, &h)?.mse(&x.detach(), None)?.add(&penalty.scale(LAMBDA)?)?;
        Ok(Loss { sum, weight: batch.len() as f64, statistics })
    }
}

struct Points;

impl Spike for Points {
    fn build(&self, comm: &Arc<dyn Communicator>) -> Result<(Box<dyn Task>, Params, Norms)> {
        let mut b = Builder::new();
        let (encode, hidden) =
            b.scope("encode", |b| Linear::build(b, [INPUTS].into(), HIDDEN, true, Init::LecunNormal))?;
        let (decode, _) = b.scope("decode", |b| Linear::build(b, hidden, INPUTS, true, Init::LecunNormal))?;
        let optimizer = OptimizerConfig::sgd(0.05, 0.9, 0.0);
        let phases = [Phase { name: "train".into(), params: 0..b.next_param(), optimizer }];
        let (params, norms) = setup::parameters(b, 7, comm)?;
        Ok((Box::new(Autoencoder { encode, decode, phases }), params, norms))
    }

    fn batch(&self, step: u64, shard: u32, device: &Device) -> Batch {
        let n = 3 + shard as usize;
        let mut stream = Key::new(3).derive(step, u64::from(shard)).stream();
        // Points near a line.
        let x: Vec<f32> = (0..n)
            .flat_map(|_| {
                let t = stream.f32() * 2.0 - 1.0;
                (0..INPUTS).map(move |i| t * (i as f32 - 1.5))
            })
            .collect();
        Batch::of([("x", Tensor::from_slice(&x, [n, INPUTS], device).unwrap())])
    }
}

#[test]
fn a_contractive_autoencoder_keeps_the_promise_and_learns() {
    let end = keeps_the_promise(&Points, 40);
    let (first, last) = (end.losses[0][0], end.losses[39][0]);
    assert!(last < 0.5 * first, "{first} -> {last}");
}

/// The penalty of given weights in doubles, and its gradient with respect to them.
fn in_doubles(w: &[f64], x: &[f64], b: &[f64]) -> (f64, Vec<f64>) {
    let device = Device::cpu(Cpu::new(Isa::detect(), 1).unwrap());
    let t = |v: &[f64], shape: &[usize]| Tensor::from_slice(v, shape, &device).unwrap();
    let weight = t(w, &[HIDDEN, INPUTS]).leaf();
    let x = t(x, &[x.len() / INPUTS, INPUTS]).leaf();
    let h = x.linear(&weight, Some(&t(b, &[HIDDEN]))).unwrap().sigmoid().unwrap();
    let p = penalty(&h, &x).unwrap();
    let value = p.item().unwrap();
    (value, p.gradients().unwrap().get(&weight).unwrap().to_vec().unwrap())
}

#[test]
fn the_penalty_is_the_closed_form_and_its_gradient_the_finite_difference() {
    let mut stream = Key::new(1).stream();
    let mut draw = |n: usize| (0..n).map(|_| stream.normal()).collect::<Vec<f64>>();
    let (w, x, b) = (draw(HIDDEN * INPUTS), draw(4 * INPUTS), draw(HIDDEN));
    let (value, gradient) = in_doubles(&w, &x, &b);
    // Σ_j (h_j (1 − h_j))² Σ_i W_ji², over the samples.
    let mut closed = 0.0;
    for x in x.chunks(INPUTS) {
        for (j, row) in w.chunks(INPUTS).enumerate() {
            let z: f64 = row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b[j];
            let h = 1.0 / (1.0 + (-z).exp());
            closed += (h * (1.0 - h)).powi(2) * row.iter().map(|w| w * w).sum::<f64>();
        }
    }
    assert!((value - closed).abs() < 1e-12 * closed, "{value} {closed}");
    for i in 0..w.len() {
        let at = |d: f64| {
            let mut w = w.clone();
            w[i] += d;
            in_doubles(&w, &x, &b).0
        };
        let h = 1e-5;
        let want = (at(h) - at(-h)) / (2.0 * h);
        assert!((gradient[i] - want).abs() < 1e-8, "weight {i}: {} against {want}", gradient[i]);
    }
}
