//! A step as one CUDA graph: all shards, the sum of their gradients and the update, without a wait of the host.
//!
//! What changes from step to step is in the device's memory: batches in blocks of the graph's, everything else (the update's
//! numbers, keys of random streams, the loss scale) among its varying numbers. Losses are judged on the device before
//! parameters change; the host reads the report of a launch when it is done, at its leisure.

use phalanx_comm::{Activity, Deadline};
use phalanx_gpu::{Buffer, Capture, Context, DevicePtr, Event, Graph, GraphMemory, Pinned, Varying};
use phalanx_nn::recorded::{AVERAGE, Guard, UPDATE};
use phalanx_nn::{Forward, NormId, Update};
use phalanx_tensor::{DType, Device, Memento, RANDOM, Shape, Tensor, gather_to};

use super::graphs::Course;
use super::plain::{Passed, back_from};
use super::{BAD, Begun, Engine, LOSS, OWN, STOP, StepReport, WEIGHT};
use crate::task::Batch;
use crate::{Error, Result};

/// The names of the engine's own varying numbers: what backward begins with, and where the report goes.
const SEED: &str = "seed";
const REPORT: &str = "report";

/// The only phase of a step that is recorded.
const PHASE: usize = 0;

/// A recorded step.
#[derive(Debug)]
pub(super) struct Recorded {
    graph: Graph,
    numbers: Vec<Number>,
    inputs: Vec<Inputs>,
    parts: Vec<Part>,
    /// Whether the report begins with the sum of the gradients' squares.
    with_norm: bool,
    /// The weight of all samples.
    weight: f64,
    /// Where reports go, in turn: two steps can be on their way.
    reports: [Pinned; 2],
    /// Marks behind them.
    done: [Event; 2],
    turn: usize,
}

/// A shard's batch as the graph reads it.
#[derive(Debug)]
struct Inputs {
    batch: Batch,
    /// The block of each of its tensors, and what that was filled from.
    blocks: Vec<(Buffer, Option<Memento>)>,
}

/// What a shard's report has.
#[derive(Debug, Clone, PartialEq)]
struct Part {
    weight: f64,
    statistics: Vec<f64>,
    /// Words of the report before the shard's: its loss, then means and variances of `norms`, each with its count and
    /// channels.
    first: usize,
    norms: Vec<(NormId, usize, usize)>,
    empty: bool,
}

/// A number that is set at each launch.
#[derive(Debug)]
struct Number {
    at: usize,
    source: Source,
}

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The key of the `n`-th random stream of a shard.
    Key {
        shard: u32,
        n: u64,
    },
    Update,
    Average,
    Seed,
    Report,
}

/// The numbers of one launch.
struct Numbers {
    step: u64,
    update: Update,
    seed: f32,
    report: DevicePtr,
}

/// A step that was launched.
#[derive(Debug)]
pub(super) struct Flight {
    step: u64,
    stop: bool,
    /// Samples of each shard whose records could not be used.
    bad: Vec<u64>,
    graph: usize,
    turn: usize,
    /// What the gradients' norm is multiplied by.
    scale: f64,
    done: Event,
}

/// What recording a step has brought forth beside the graph.
struct Composed {
    parts: Vec<Part>,
    /// Random streams that each shard has drawn.
    drawn: Vec<u64>,
    /// Words of the report.
    words: usize,
}

impl Engine {
    /// Launches a step as a graph, if there is one or can be. None when it is to be done piece by piece.
    pub(super) fn launch(
        &mut self,
        step: u64,
        batches: &[Batch],
        factor: f64,
        stop: bool,
    ) -> Result<Option<Flight>> {
        if self.options.faults.any(self.comm.rank(), step) {
            return Ok(None);
        }
        if let Some(why) = self.graphs.objection(batches) {
            self.land_all()?;
            self.graphs.refuse(why)?;
        }
        let graph = match self.graphs.course(batches) {
            Course::Plain => return Ok(None),
            Course::Launch(graph) => graph,
            Course::Record(form) => {
                self.land_all()?;
                match self.record(step, batches) {
                    Ok(recorded) => self.graphs.keep(form, recorded),
                    Err(why) => {
                        self.graphs.give_up(form, why)?;
                        return Ok(None);
                    }
                }
            }
        };
        // A loss scale depends on the step before; reports have two places.
        let flying = self.begun.iter().filter(|b| matches!(b, Begun::Launched(_))).count();
        if self.loss_scale.is_some() || flying > 1 {
            self.land_all()?;
        }
        self.timeline.enter(Activity::Compute);
        let lr = self.task.phases()[PHASE].optimizer.lr() * factor;
        let Some(scale) = self.scale(self.graphs.recorded[graph].weight) else { return Ok(None) };
        let update = self.optimizers[PHASE].begin(scale, lr);
        let recorded = &mut self.graphs.recorded[graph];
        recorded.take(batches)?;
        let turn = recorded.turn;
        recorded.turn = (turn + 1) % recorded.reports.len();
        let seed = self.loss_scale.map_or(1.0, |s| s.scale) as f32;
        let recorded = &self.graphs.recorded[graph];
        let numbers = Numbers { step, update, seed, report: recorded.reports[turn].ptr() };
        let mut values = vec![0; recorded.graph.trace().room()];
        for number in &recorded.numbers {
            let bytes = self.number(number.source, &numbers);
            values[number.at..number.at + bytes.len()].copy_from_slice(&bytes);
        }
        recorded.graph.launch_with(&values)?;
        let done = recorded.done[turn].clone();
        done.record(self.device.gpu().ok_or_else(no_gpu)?.compute())?;
        self.timeline.rest();
        let bad = batches.iter().map(|b| b.bad).collect();
        Ok(Some(Flight { step, stop, bad, graph, turn, scale, done }))
    }

    /// A number's bytes at a launch.
    fn number(&self, source: Source, of: &Numbers) -> Vec<u8> {
        match source {
            Source::Key { shard, n } => {
                let key = self.key(of.step, PHASE, shard);
                Forward::stream(key, n).to_u64().to_ne_bytes().to_vec()
            }
            Source::Update => of.update.varying(),
            Source::Average => self.ema.as_ref().map_or(Vec::new(), |ema| ema.varying(of.step + 1)),
            Source::Seed => of.seed.to_ne_bytes().to_vec(),
            Source::Report => of.report.0.to_ne_bytes().to_vec(),
        }
    }

    /// Takes a launched step's report, after a wait for it.
    pub(super) fn land(&mut self, flight: Flight) -> Result<StepReport> {
        let report = self.take(&flight);
        if report.is_err() {
            // What is still on its way changes nothing, and nobody may go on from there.
            self.begun.clear();
            self.graphs.forget();
        }
        report
    }

    fn take(&mut self, flight: &Flight) -> Result<StepReport> {
        self.timeline.enter(Activity::Compute);
        flight.done.synchronize()?;
        let recorded = &self.graphs.recorded[flight.graph];
        let words: &[u8] = &recorded.reports[flight.turn];
        let squares =
            recorded.with_norm.then(|| words.first_chunk().map_or(f64::NAN, |b| f64::from_ne_bytes(*b)));
        let single = |at: usize| {
            let bytes = words.get(4 * at..).and_then(|w| w.first_chunk());
            f64::from(bytes.map_or(f32::NAN, |b| f32::from_ne_bytes(*b)))
        };
        let names = self.task.statistics().len();
        let mut all = Vec::with_capacity(recorded.parts.len());
        for (at, part) in recorded.parts.iter().enumerate() {
            let mut statistics = vec![0.0; OWN + names + self.norms.statistics_len()];
            statistics[STOP] = f64::from(u8::from(flight.stop && at == 0));
            statistics[BAD] = flight.bad.get(at).map_or(0.0, |&n| n as f64);
            if !part.empty {
                statistics[LOSS] = single(part.first);
                statistics[WEIGHT] = part.weight;
                statistics[OWN..OWN + names].copy_from_slice(&part.statistics);
                let mut next = part.first + 1;
                for &(norm, count, channels) in &part.norms {
                    let mut some = || {
                        let values: Vec<f64> = (next..next + channels).map(single).collect();
                        next += channels;
                        values
                    };
                    let (mean, variance) = (some(), some());
                    self.norms.add(norm, count, [&mean, &variance], &mut statistics[OWN + names..]);
                }
            }
            all.push(statistics);
        }
        let losses: Vec<f64> = all.iter().map(|s| s[LOSS]).collect();
        // What kernels found wrong may be a later step's, as long as this one's loss is a number.
        if self.begun.is_empty() || losses.iter().any(|l| !l.is_finite()) {
            self.device.check()?;
        }
        self.timeline.enter(Activity::Reduce);
        let total = self.fold(&all)?;
        self.check_finite(PHASE, flight.step, total[LOSS], &losses)?;
        self.timeline.enter(Activity::Optimizer);
        let norm = squares.map(|s| s.sqrt() * flight.scale);
        let skipped = norm.map_or(Ok(false), |norm| self.skips(PHASE, flight.step, norm))?;
        if skipped {
            self.optimizers[PHASE].take_back();
        }
        let phase = self.close(PHASE, flight.step, &total, norm.filter(|_| !skipped), skipped)?;
        self.timeline.rest();
        Ok(StepReport { phases: vec![phase], stop: total[STOP] > 0.0, bad: total[BAD] as u64 })
    }

    /// The sum of all shards' statistics, in the tree's order.
    fn fold(&mut self, all: &[Vec<f64>]) -> Result<Vec<f64>> {
        let reducer = &mut self.reducers[PHASE];
        for (at, statistics) in all.iter().enumerate() {
            reducer.statistics(&self.cpu, at, statistics)?;
        }
        reducer.total(Deadline::after(self.options.deadline))
    }

    /// Records a step of these batches, or says why it cannot be.
    fn record(&mut self, step: u64, batches: &[Batch]) -> std::result::Result<Recorded, String> {
        // What is wrong with the step itself, doing it piece by piece tells.
        self.try_record(step, batches).unwrap_or_else(|e| Err(e.to_string()))
    }

    /// It is recorded twice, for two steps that have nothing in common: whatever else than the varying numbers is not the same
    /// in both, such as what a layer draws on the host, would be wrong at every launch.
    fn try_record(&mut self, step: u64, batches: &[Batch]) -> Result<std::result::Result<Recorded, String>> {
        let gpu = self.device.gpu().ok_or_else(no_gpu)?.clone();
        let Some(memory) = self.graphs.memory()?.cloned() else { return Ok(Err("it was refused".into())) };
        let inputs =
            batches.iter().map(|b| Inputs::like(b, &gpu, &self.device)).collect::<Result<Vec<_>>>()?;
        let halted = self.graphs.halted(&gpu)?;
        let numbers = self.pretend(step, 0.75);
        let mut once = || -> Result<_> {
            let other = self.pretend(step.wrapping_add(1 << 40), 0.25);
            let (capture, probed) = self.compose_in(&gpu, &memory, &inputs, &other, &halted)?;
            let probe = capture.discard()?;
            let (capture, composed) = self.compose_in(&gpu, &memory, &inputs, &numbers, &halted)?;
            let graph = capture.end()?;
            let difference = probe.difference(graph.trace());
            Ok((graph, composed, probed, difference))
        };
        let mut made = once()?;
        if made.3.is_some() {
            // The first may have had other addresses, as memory grew with it.
            made = once()?;
        }
        let (graph, composed, probed, difference) = made;
        if let Some(what) = difference {
            return Ok(Err(format!("something is not the same at each step: {what}")));
        }
        if probed.parts != composed.parts {
            return Ok(Err("the weights or statistics of its losses are not the same at each step".into()));
        }
        let mut varying = Vec::new();
        for of in graph.trace().varying() {
            let Some(source) = self.source(of, &numbers, &composed.drawn)? else {
                return Ok(Err(format!("nobody knows what a number of the kind {:?} is at a step", of.what)));
            };
            varying.push(Number { at: of.at, source });
        }
        if memory.used() > 0 {
            return Ok(Err(format!("a step leaves {} bytes of device memory behind", memory.used())));
        }
        let with_norm = self.judges_norm();
        let parts = composed.parts;
        let all: Vec<Vec<f64>> = parts
            .iter()
            .map(|part| {
                let names = self.task.statistics().len();
                let mut statistics = vec![0.0; OWN + names + self.norms.statistics_len()];
                statistics[WEIGHT] = part.weight;
                statistics
            })
            .collect();
        let weight = self.fold(&all)?[WEIGHT];
        if weight <= 0.0 {
            return Ok(Err("its samples have no weight".into()));
        }
        let (numbers, room) = (varying, size_of::<f32>() * composed.words);
        let reports = [gpu.pinned(room)?, gpu.pinned(room)?];
        let done = [gpu.event()?, gpu.event()?];
        Ok(Ok(Recorded { graph, numbers, inputs, parts, with_norm, weight, reports, done, turn: 0 }))
    }

    /// Whether the norm of the gradients decides something.
    fn judges_norm(&self) -> bool {
        self.options.clip.norm.is_some() || self.loss_scale.is_some()
    }

    /// Numbers as a step could have them.
    fn pretend(&mut self, step: u64, scale: f64) -> Numbers {
        let optimizer = &mut self.optimizers[PHASE];
        let update = optimizer.begin(scale, scale);
        optimizer.take_back();
        Numbers { step, update, seed: scale as f32, report: DevicePtr(step) }
    }

    /// What a recorded number is, if there is one such.
    fn source(&self, of: &Varying, numbers: &Numbers, drawn: &[u64]) -> Result<Option<Source>> {
        let mine = self.shards()?;
        let all: Vec<Source> = match of.what {
            UPDATE => vec![Source::Update],
            AVERAGE => vec![Source::Average],
            SEED => vec![Source::Seed],
            REPORT => vec![Source::Report],
            RANDOM => mine
                .zip(drawn)
                .flat_map(|(shard, &drawn)| (0..drawn).map(move |n| Source::Key { shard, n }))
                .collect(),
            _ => Vec::new(),
        };
        let mut fitting = all.into_iter().filter(|&source| self.number(source, numbers) == of.bytes);
        Ok(fitting.next().filter(|_| fitting.next().is_none()))
    }

    /// Records the work of a step. When that fails, the recording is thrown away.
    fn compose_in(
        &mut self,
        gpu: &Context,
        memory: &GraphMemory,
        inputs: &[Inputs],
        numbers: &Numbers,
        halted: &Buffer,
    ) -> Result<(Capture, Composed)> {
        let capture = gpu.capture_in(memory)?;
        let composed = self.compose(gpu, memory, inputs, numbers, halted)?;
        Ok((capture, composed))
    }

    fn compose(
        &mut self,
        gpu: &Context,
        memory: &GraphMemory,
        inputs: &[Inputs],
        numbers: &Numbers,
        halted: &Buffer,
    ) -> Result<Composed> {
        let with_norm = self.judges_norm();
        let (mut parts, mut drawn, mut losses, mut report) = (vec![], vec![], vec![], vec![]);
        let mut first = if with_norm { 2 } else { 0 };
        for (at, (shard, input)) in self.shards()?.zip(inputs).enumerate() {
            self.reducers[PHASE].begin_shard(at);
            if input.batch.is_empty() {
                parts.push(Part { weight: 0.0, statistics: vec![], first, norms: vec![], empty: true });
                drawn.push(0);
            } else {
                let key = self.key(numbers.step, PHASE, shard);
                let passed = self.pass(PHASE, numbers.step, shard, key, &input.batch)?;
                let Passed { loss, seen, drawn: streams } = passed;
                drawn.push(streams);
                let single = |t: &Tensor| t.dtype() == DType::F32;
                if !single(&loss.sum) || !seen.iter().all(|r| single(&r.mean) && single(&r.variance)) {
                    let problem = "losses and statistics are not in single precision".to_owned();
                    return Err(Error::Task { task: self.task.name(), problem });
                }
                let sum = loss.sum.detach().contiguous()?;
                if loss.sum.requires_grad() {
                    let seed = seed(gpu, memory, numbers.seed, loss.sum.shape(), &self.device)?;
                    back_from(&mut self.reducers[PHASE], &self.cpu, &loss.sum, seed)?;
                }
                let mut norms = Vec::with_capacity(seen.len());
                let mut values = vec![sum.clone()];
                for r in &seen {
                    norms.push((r.norm, r.count, r.mean.shape().numel()));
                    values.extend([r.mean.detach().contiguous()?, r.variance.detach().contiguous()?]);
                }
                losses.push(sum);
                let (weight, statistics) = (loss.weight, loss.statistics);
                parts.push(Part { weight, statistics, first, norms, empty: false });
                first += values.iter().map(|v| v.shape().numel()).sum::<usize>();
                report.extend(values);
            }
            self.reducers[PHASE].end_shard(&self.cpu)?;
        }
        while self.reducers[PHASE].next_sum(Deadline::after(self.options.deadline))?.is_some() {}

        let places = losses.iter().map(Tensor::place_on_gpu).collect::<phalanx_tensor::Result<Vec<_>>>()?;
        let all = gpu.alloc(size_of::<f32>() * places.len())?;
        let losses = match places[..] {
            [(one, _)] => one,
            _ => {
                gather_to(gpu, &places, None, all.ptr())?;
                all.ptr()
            }
        };
        let guard = Guard {
            losses,
            count: places.len(),
            norm: with_norm,
            most: self.options.clip.norm,
            scaled: self.loss_scale.is_some(),
            halted: halted.ptr(),
        };
        let gradients = self.reducers[PHASE].gradients();
        let judged = self.optimizers[PHASE].record(&self.params, gradients, &numbers.update, &guard)?;
        if let Some(ema) = &self.ema {
            ema.record(&self.params, numbers.step + 1, judged.skipped)?;
        }
        let mut places: Vec<_> = judged.squares.into_iter().map(|s| (s, size_of::<f64>())).collect();
        for value in &report {
            places.push(value.place_on_gpu()?);
        }
        gather_to(gpu, &places, Some(REPORT), numbers.report)?;
        Ok(Composed { parts, drawn, words: first })
    }
}

impl Inputs {
    /// Blocks for batches like this one.
    fn like(batch: &Batch, gpu: &Context, device: &Device) -> Result<Self> {
        let mut blocks = Vec::new();
        let batch = batch.like(|t| {
            let block = gpu.alloc_lasting(t.shape().numel() * t.dtype().size())?;
            let own = Tensor::of_buffer(&block, 0, t.dtype(), t.shape(), device)?;
            blocks.push((block, None));
            Ok(own)
        })?;
        Ok(Inputs { batch, blocks })
    }
}

impl Recorded {
    /// All of its work, by name.
    pub(super) fn work(&self) -> impl Iterator<Item = &str> {
        self.graph.trace().work()
    }

    /// Puts the batches where the graph reads them, unless they are there.
    fn take(&mut self, batches: &[Batch]) -> Result<()> {
        for (input, batch) in self.inputs.iter_mut().zip(batches) {
            for ((block, from), (_, t)) in input.blocks.iter_mut().zip(batch.tensors()) {
                if from.as_ref().is_some_and(|from| from.knows(t)) {
                    continue;
                }
                let dense = t.detach().contiguous()?;
                let (place, bytes) = dense.place_on_gpu()?;
                block.context().copy(block.ptr(), place, bytes)?;
                *from = Some(t.memento());
            }
        }
        Ok(())
    }
}

/// What backward begins with: a number that varies.
fn seed(gpu: &Context, memory: &GraphMemory, value: f32, shape: Shape, device: &Device) -> Result<Tensor> {
    let place = gpu.varying(SEED, &value.to_ne_bytes())?.ok_or_else(no_gpu)?;
    let at = (place.0 - memory.values().ptr().0) as usize;
    Ok(Tensor::of_buffer(memory.values(), at, DType::F32, shape, device)?)
}

/// Steps are recorded where there is a GPU, and a recording.
fn no_gpu() -> Error {
    phalanx_tensor::Error::WrongMemory { op: "graph", device: "GPU" }.into()
}
