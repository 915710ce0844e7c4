//! What lies at the interfaces' rims: shards without samples, uneven weights, parameters that nothing
//! reaches, acting that must leave no trace, and tasks that contradict themselves.

use std::ops::Range;
use std::sync::Arc;

use phalanx_comm::Communicator;
use phalanx_nn::{BatchNorm, Builder, Init, Layer, Norms, OptimizerConfig, ParamId, Params, Stored};
use phalanx_tensor::{Device, Tensor};
use phalanx_train::task::{Array, Arrays, Batch, Loss, Phase, PhaseId, ShardCx, StateMap, Task};
use phalanx_train::{Error, Result, setup};

use crate::{SHARDS, Spike, run, try_run};

const LR: f64 = 0.25;
/// The parameter that is fitted; the one after it is reached by no loss.
const FIT: ParamId = ParamId(0);

/// What the task does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    Detached,
    Statistics,
    Beyond,
    Namesakes,
    Foreign,
    Apart,
}

/// Fits one number to samples; its second phase trains a parameter that its loss does not reach.
#[derive(Debug)]
struct Fit {
    wrong: Wrong,
    rank: u32,
    norm: BatchNorm,
    phases: Vec<Phase>,
}

impl Task for Fit {
    fn name(&self) -> &'static str {
        "fit"
    }
    fn phases(&self) -> &[Phase] {
        &self.phases
    }
    fn statistics(&self) -> &[&'static str] {
        &["samples"]
    }

    fn prepare(&mut self, _: PhaseId, cx: &ShardCx) -> Result<Option<Batch>> {
        // Acts through a norm: neither the graph nor the running statistics may notice.
        let x = Tensor::full(100.0f32, [3, 1], cx.device)?;
        let seen = self.norm.forward(cx, &x)?;
        assert!(!cx.training() && !seen.requires_grad() && !cx.param(FIT).requires_grad());
        Ok(None)
    }

    fn loss(&self, phase: PhaseId, batch: &Batch, cx: &ShardCx) -> Result<Loss> {
        let keys = [cx.next_key(), cx.next_key(), cx.inference().next_key(), cx.inference().next_key()];
        assert!((1..4).all(|i| !keys[..i].contains(&keys[i])), "streams repeat");
        let statistics = vec![batch.len() as f64; usize::from(self.wrong != Wrong::Statistics)];
        if phase == 1 {
            let weight = if self.wrong == Wrong::Detached { 1.0 } else { 0.0 };
            return Ok(Loss { sum: Tensor::full(1.0f32, [], cx.device)?, weight, statistics });
        }
        let fit = cx.param(FIT).reshape(&[1, 1])?.expand(&[batch.len(), 1])?;
        let weights = batch.weights_on(cx.device)?;
        let sum = fit.mse(batch.field("y")?, weights.as_ref())?;
        Ok(Loss { sum, weight: batch.weight(), statistics })
    }

    fn state(&self) -> StateMap {
        let mut state = StateMap::default();
        if self.wrong == Wrong::Foreign {
            state.shards.insert(SHARDS - 1, Arrays::from([("x".into(), Array::new(&[1], &[1i64]))]));
        }
        if self.wrong == Wrong::Apart {
            let array = |x: u32| Array::new(&[1], &[i64::from(x)]);
            state.shared.extend([("alike".into(), array(0)), ("target".into(), array(self.rank / 2))]);
        }
        state
    }
}

struct Edges(Wrong);

/// The samples and weights of each shard in the first step; the later steps have none at all.
const SAMPLES: [&[[f32; 2]]; SHARDS as usize] =
    [&[[1.0, 0.5], [-3.0, 2.0], [0.5, 1.0]], &[], &[[8.0, 0.25]], &[]];

impl Spike for Edges {
    fn build(&self, comm: &Arc<dyn Communicator>) -> Result<(Box<dyn Task>, Params, Norms)> {
        let mut b = Builder::new();
        b.param("fit", [1], Stored::Plain, false, Init::Uniform, [1, 1]);
        b.param("lonely", [1], Stored::Plain, false, Init::Uniform, [1, 1]);
        let norm = b.scope("norm", |b| BatchNorm::build(b, [1].into()))?.0;
        let wrong = self.0;
        let phase = |name: &str, params: Range<u32>| Phase {
            name: name.into(),
            params,
            optimizer: OptimizerConfig::sgd(LR, 0.0, 0.0),
        };
        let second = if wrong == Wrong::Namesakes { "fit" } else { "lonely" };
        let end = if wrong == Wrong::Beyond { 9 } else { 2 };
        // The first phase holds both: one is reached, the other gets zeros.
        let phases = vec![phase("fit", 0..2), phase(second, 1..end)];
        let (params, norms) = setup::parameters(b, 7, comm)?;
        Ok((Box::new(Fit { wrong, rank: comm.rank(), norm, phases }), params, norms))
    }

    fn batch(&self, step: u64, shard: u32, device: &Device) -> Batch {
        let samples = if step == 0 { SAMPLES[shard as usize] } else { &[] };
        let y: Vec<f32> = samples.iter().map(|s| s[0]).collect();
        let y = Tensor::from_slice(&y, [y.len(), 1], device).unwrap();
        Batch::of([("y", y)]).weighted(samples.iter().map(|s| s[1]).collect())
    }
}

#[test]
fn uneven_and_empty_shards_weigh_as_one_batch_and_what_nothing_reaches_stays() {
    let before = run(&Edges(Wrong::Nothing), 1, 0..0, None).snapshot;
    let one = run(&Edges(Wrong::Nothing), 1, 0..3, None);
    for world in 2..=SHARDS {
        assert_eq!(run(&Edges(Wrong::Nothing), world, 0..3, None), one, "on {world} ranks");
    }
    let value = |arrays: &Arrays, name: &str| f64::from(arrays[name].to_vec::<f32>().unwrap()[0]);
    let was = value(&before.model, "fit");
    let samples = || SAMPLES.iter().copied().flatten().map(|&[y, w]| (f64::from(y), f64::from(w)));
    let total: f64 = samples().map(|(_, w)| w).sum();
    let slope: f64 = samples().map(|(y, w)| 2.0 * w * (was - y)).sum::<f64>() / total;
    let fit = value(&one.snapshot.model, "fit");
    assert!((fit - (was - LR * slope)).abs() < 1e-6, "{fit} against {}", was - LR * slope);
    // One step had samples, and only in one phase; all else is as it was, to the bit.
    assert_eq!(one.snapshot.optimizer_steps, [1, 0]);
    assert!(["lonely", "norm.running_mean"].iter().all(|n| before.model.contains_key(*n)));
    for (name, array) in before.model.iter().filter(|(n, _)| *n != "fit") {
        assert_eq!(one.snapshot.model[name], *array, "{name}");
    }
}

#[test]
fn tasks_that_contradict_themselves_are_told_so() {
    for (wrong, want) in [
        (Wrong::Detached, "the loss of phase \"lonely\" depends on none of its parameters"),
        (Wrong::Statistics, "it names 1 statistics, but its loss has 0"),
        (Wrong::Beyond, "phase \"lonely\" trains parameters 1..9, but the model has 4"),
        (Wrong::Namesakes, "two phases are named \"fit\""),
        (Wrong::Foreign, "state of shard 3, but this rank holds 0..2"),
    ] {
        let e = try_run(&Edges(wrong), 2, 0..1, None).unwrap_err();
        assert!(
            matches!(e, Error::Task { task: "fit", .. }) && e.to_string().contains(want),
            "{wrong:?}: {e}"
        );
    }
    // What all ranks must have alike is compared whenever it is taken.
    let e = try_run(&Edges(Wrong::Apart), 3, 0..1, None).unwrap_err();
    assert!(matches!(e, Error::Comm(phalanx_comm::Error::Differs { rank: 2, .. })), "{e}");
    assert!(e.to_string().contains("the task's shared state") && e.to_string().contains("target = "), "{e}");
}
