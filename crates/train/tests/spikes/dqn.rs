//! A DQN in a corridor: an environment and a replay memory for each virtual shard, a target network
//! copied in `after_phase`. There is no data set.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use phalanx_comm::Communicator;
use phalanx_host::rng::Stream;
use phalanx_nn::{
    Activation, Builder, Forward, Init, Layer, Linear, Norms, OptimizerConfig, Params, Sequential,
};
use phalanx_tensor::{Device, Tensor};
use phalanx_train::task::{Array, Arrays, Batch, Loss, Phase, PhaseId, ShardCx, StateMap, StepCx, Task};
use phalanx_train::{Error, Result, setup};

use crate::{SHARDS, Spike, keeps_the_promise};

/// Cells of the corridor; the agent begins in the first and is paid in the last.
const CELLS: usize = 5;
const ACTIONS: usize = 2;
const MEMORY: usize = 64;
const SAMPLE: usize = 8;
const GAMMA: f64 = 0.8;
const COPY_EVERY: u64 = 10;

/// A transition: from, action, reward, to, whether it went on.
type Move = [f32; 5];

/// One shard's world.
#[derive(Debug, Clone, Default, PartialEq)]
struct World {
    cell: usize,
    moves: Vec<Move>,
    next: usize,
}

impl World {
    fn act(&mut self, action: usize) {
        let to = if action == 1 { self.cell + 1 } else { self.cell.saturating_sub(1) };
        let won = to + 1 == CELLS;
        let made =
            [self.cell as f32, action as f32, f32::from(u8::from(won)), to as f32, f32::from(u8::from(!won))];
        if self.moves.len() < MEMORY {
            self.moves.push(made);
        } else {
            self.moves[self.next] = made;
        }
        self.next = (self.next + 1) % MEMORY;
        self.cell = if won { 0 } else { to };
    }

    fn save(&self) -> Arrays {
        let place = Array::new(&[2], &[self.cell as i64, self.next as i64]);
        let moves = Array::new(&[self.moves.len(), 5], self.moves.as_flattened());
        Arrays::from([("place".into(), place), ("moves".into(), moves)])
    }

    fn load(arrays: &Arrays) -> Result<Self> {
        let problem = "a shard's world is not whole".to_owned();
        let (Some(place), Some(moves)) = (arrays.get("place"), arrays.get("moves")) else {
            return Err(Error::Task { task: "dqn", problem });
        };
        let (place, flat) = (place.to_vec::<i64>()?, moves.to_vec::<f32>()?);
        let moves = flat.as_chunks::<5>().0.to_vec();
        Ok(World { cell: place[0] as usize, moves, next: place[1] as usize })
    }
}

#[derive(Debug)]
struct Dqn {
    net: Sequential,
    target: Sequential,
    target_params: Range<u32>,
    phases: [Phase; 1],
    worlds: BTreeMap<u32, World>,
}

fn one_hot(cells: &[f32], device: &Device) -> Result<Tensor> {
    let mut x = vec![0.0f32; cells.len() * CELLS];
    cells.iter().enumerate().for_each(|(i, &c)| x[i * CELLS + c as usize] = 1.0);
    Ok(Tensor::from_slice(&x, [cells.len(), CELLS], device)?)
}

impl Dqn {
    fn greedy(&self, cx: &Forward, cell: usize) -> Result<usize> {
        let q = self.net.forward(cx, &one_hot(&[cell as f32], cx.device())?)?.to_vec::<f32>()?;
        Ok(usize::from(q[1] > q[0]))
    }

    fn sample(world: &World, stream: &mut Stream, device: &Device) -> Result<Batch> {
        let moves: Vec<Move> =
            (0..SAMPLE).map(|_| world.moves[stream.below(world.moves.len() as u64) as usize]).collect();
        let column = |k: usize| moves.iter().map(|m| m[k]).collect::<Vec<f32>>();
        let actions: Vec<i64> = column(1).into_iter().map(|a| a as i64).collect();
        let vector = |v: Vec<f32>| Tensor::from_slice(&v, [SAMPLE, 1], device);
        Ok(Batch::of([
            ("from", one_hot(&column(0), device)?),
            ("action", Tensor::from_slice(&actions, [SAMPLE, 1], device)?),
            ("reward", vector(column(2))?),
            ("to", one_hot(&column(3), device)?),
            ("goes_on", vector(column(4))?),
        ]))
    }
}

impl Task for Dqn {
    fn name(&self) -> &'static str {
        "dqn"
    }
    fn phases(&self) -> &[Phase] {
        &self.phases
    }
    fn needs_data(&self) -> bool {
        false
    }

    fn prepare(&mut self, _: PhaseId, cx: &ShardCx) -> Result<Option<Batch>> {
        let mut stream = cx.next_key().stream();
        let mut world = self.worlds.remove(&cx.shard).unwrap_or_default();
        for _ in 0..4 {
            let random = stream.f32() < 0.3;
            let action = if random { stream.below(2) as usize } else { self.greedy(cx, world.cell)? };
            world.act(action);
        }
        let batch = Dqn::sample(&world, &mut stream, cx.device)?;
        self.worlds.insert(cx.shard, world);
        Ok(Some(batch))
    }

    fn loss(&self, _: PhaseId, batch: &Batch, cx: &ShardCx) -> Result<Loss> {
        let q = self.net.forward(cx, batch.field("from")?)?.gather(1, batch.field("action")?)?;
        let best = self.target.forward(&cx.inference(), batch.field("to")?)?.max(&[1], true)?;
        assert!(!best.requires_grad(), "the target network is no part of the graph");
        let later = best.mul(batch.field("goes_on")?)?.scale(GAMMA)?;
        let sum = q.mse(&batch.field("reward")?.add(&later)?, None)?;
        Ok(Loss { sum, weight: batch.len() as f64, statistics: Vec::new() })
    }

    fn after_phase(&mut self, _: PhaseId, cx: &mut StepCx) -> Result<()> {
        if (cx.step + 1).is_multiple_of(COPY_EVERY) {
            cx.params.copy(self.phases[0].params.clone(), self.target_params.clone())?;
        }
        Ok(())
    }

    fn state(&self) -> StateMap {
        let shards = self.worlds.iter().map(|(s, w)| (*s, w.save())).collect();
        StateMap { shards, ..StateMap::default() }
    }

    fn load_state(&mut self, state: StateMap) -> Result<()> {
        self.worlds = state.shards.iter().map(|(s, a)| Ok((*s, World::load(a)?))).collect::<Result<_>>()?;
        Ok(())
    }
}

struct Corridor;

impl Spike for Corridor {
    fn build(&self, comm: &Arc<dyn Communicator>) -> Result<(Box<dyn Task>, Params, Norms)> {
        let mut b = Builder::new();
        let mut net = |scope: &str| -> Result<(Sequential, Range<u32>)> {
            let from = b.next_param();
            let mut layers = Sequential::new();
            b.scope(scope, |b| {
                let hidden = b.scope("fc1", |b| Linear::build(b, [CELLS].into(), 16, true, Init::Uniform))?;
                layers.push(hidden.0);
                layers.push(Activation::relu());
                layers.push(b.scope("fc2", |b| Linear::build(b, hidden.1, ACTIONS, true, Init::Uniform))?.0);
                Ok::<(), Error>(())
            })?;
            Ok((layers, from..b.next_param()))
        };
        let (online, ids) = net("online")?;
        let (target, target_params) = net("target")?;
        let (params, norms) = setup::parameters(b, 7, comm)?;
        params.copy(ids.clone(), target_params.clone())?;
        let phases =
            [Phase { name: "train".into(), params: ids, optimizer: OptimizerConfig::sgd(0.1, 0.0, 0.0) }];
        Ok((
            Box::new(Dqn { net: online, target, target_params, phases, worlds: BTreeMap::new() }),
            params,
            norms,
        ))
    }

    fn batch(&self, _: u64, _: u32, _: &Device) -> Batch {
        unreachable!("the task makes its own batches")
    }
}

#[test]
fn a_dqn_keeps_the_promise_and_finds_the_way() {
    let end = keeps_the_promise(&Corridor, 240);
    assert_eq!(end.snapshot.task.shards.len(), SHARDS as usize);
    // Every world's memory is full of its own moves, and the later ones mostly win.
    for arrays in end.snapshot.task.shards.values() {
        let world = World::load(arrays).unwrap();
        assert_eq!(world.moves.len(), MEMORY);
        let wins = world.moves.iter().filter(|m| m[2] == 1.0).count();
        assert!(wins >= 6, "{wins} wins in {MEMORY} moves");
    }
    let worlds: Vec<_> = end.snapshot.task.shards.values().collect();
    assert!(worlds.windows(2).all(|w| w[0] != w[1]), "each shard has a world of its own");
}
