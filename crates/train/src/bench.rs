//! Measurements for `phalanx bench`: medians of repeated runs on random data.

mod loader;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use loader::{LoaderReport, LoaderRequest, loader};
use phalanx_comm::Communicator;
use phalanx_gpu::{Context, Event};
use phalanx_host::rng::{Key, Stream};
use phalanx_host::{Cpu, Isa};
use phalanx_host::{Mat, MatMut, gemm as product};
use phalanx_nn::{ModelConfig, OptimizerConfig};
use phalanx_tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{Precision, WireType};
use crate::engine::{Clip, Engine, EngineOptions};
use crate::faults::Faults;
use crate::machine::{DeviceChoice, Machine, Wanted};
use crate::report::{peak_rss_bytes, quantile};
use crate::share::from_rank_0;
use crate::task::{Batch, Classification, Criterion, LossConfig, Task};
use crate::{Error, Result, ranks, setup, tuning};

/// What `bench gemm` measured.
#[derive(Debug, Clone, Serialize)]
pub struct GemmReport {
    /// Rows, columns, length of the sums.
    pub shape: [usize; 3],
    /// Compute threads.
    pub threads: usize,
    /// The instruction set.
    pub isa: &'static str,
    /// Median time.
    pub seconds_p50: f64,
    /// 2 m n k by time, in 10⁹ a second.
    pub gflops: f64,
}

fn noise(stream: &mut Stream, n: usize) -> Vec<f32> {
    (0..n).map(|_| stream.f32() - 0.5).collect()
}

/// Measures `C = A·B` in single precision.
pub fn gemm(m: usize, n: usize, k: usize, threads: usize, isa: &str) -> Result<GemmReport> {
    let cpu = Cpu::new(Isa::choose(isa)?, threads)?;
    let mut stream = Key::new(1).stream();
    let (a, b) = (noise(&mut stream, m * k), noise(&mut stream, k * n));
    let mut c = vec![0.0f32; m * n];
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < 5 || begun.elapsed() < Duration::from_secs(1) {
        let since = Instant::now();
        let (a, b) = (Mat::row_major(&a, m, k)?, Mat::row_major(&b, k, n)?);
        product(&cpu, a, b, MatMut::row_major(&mut c, m, n)?, false)?;
        times.push(since.elapsed().as_secs_f64());
    }
    let seconds_p50 = quantile(&mut times[1..], 0.5);
    let flop = 2.0 * m as f64 * n as f64 * k as f64;
    Ok(GemmReport {
        shape: [m, n, k],
        threads,
        isa: cpu.isa.name(),
        seconds_p50,
        gflops: flop / seconds_p50 / 1e9,
    })
}

/// What `bench allreduce` measured; see [`phalanx_comm::bench::Report`].
#[derive(Debug, Clone, Serialize)]
pub struct AllReduceReport {
    /// The transport.
    pub comm: &'static str,
    /// Ranks.
    pub ranks: u32,
    /// Bytes of each rank's buffer.
    pub bytes: usize,
    /// Median time.
    pub seconds_p50: f64,
    /// 2(W−1)/W of the bytes by time.
    pub bus_bandwidth_gb_s: f64,
    /// Bytes read and written by time.
    pub memory_bandwidth_gb_s: f64,
    /// The same for plain copies in the same run.
    pub copy_gb_s: f64,
}

/// What waits on another rank may take in a measurement.
const DEADLINE: Duration = Duration::from_secs(120);

/// Measures all-reduces between thread ranks.
pub fn all_reduce(bytes: usize, ranks: u32, rounds: usize, isa: &str) -> Result<AllReduceReport> {
    let body = |comm: Arc<dyn Communicator>| all_reduce_rank(bytes, rounds, &*comm);
    first(ranks::run_threads(ranks, DEADLINE, Isa::choose(isa)?, body)?)
}

/// Measures all-reduces as one rank of `comm`'s world. All ranks get the same report.
pub fn all_reduce_rank(bytes: usize, rounds: usize, comm: &dyn Communicator) -> Result<AllReduceReport> {
    let r = phalanx_comm::bench::all_reduce(comm, bytes, rounds)?;
    Ok(AllReduceReport {
        comm: r.comm,
        ranks: r.ranks,
        bytes: r.bytes,
        seconds_p50: r.seconds_p50,
        bus_bandwidth_gb_s: r.bus_bandwidth_gb_s,
        memory_bandwidth_gb_s: r.memory_bandwidth_gb_s,
        copy_gb_s: r.copy_gb_s,
    })
}

/// Measures bucket sizes between thread ranks; see [`tuning::tune`].
pub fn tune(ranks: u32, isa: &str) -> Result<tuning::Report> {
    first(ranks::run_threads(ranks, DEADLINE, Isa::choose(isa)?, |comm| tuning::tune(&*comm))?)
}

/// What rank 0 gave.
fn first<T>(all: Vec<T>) -> Result<T> {
    all.into_iter().next().ok_or_else(|| Error::config("--ranks", "there must be at least one rank"))
}

/// What `bench step` is asked to do.
#[derive(Debug, Clone)]
pub struct StepRequest {
    /// The model's name.
    pub model: String,
    /// Height, width, channels; those that the model was made for when left out.
    pub input: Option<[usize; 3]>,
    /// Classes, likewise.
    pub classes: Option<usize>,
    /// Samples of each rank in a step.
    pub batch: u64,
    /// Thread ranks.
    pub ranks: u32,
    /// V; one a rank when left out.
    pub virtual_shards: Option<u32>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// The type of activations.
    pub precision: Precision,
    /// Compute threads of each rank.
    pub threads: usize,
    /// The instruction set's name.
    pub isa: String,
    /// Widths of an MLP's hidden layers, when not its own.
    pub hidden: Option<Vec<usize>>,
    /// Most megabytes in one bucket of gradients, when not the tuned or usual.
    pub bucket_mb: Option<f64>,
    /// What sums of gradients are rounded to.
    pub wire: WireType,
    /// Seconds to measure; a GPU makes 20 steps at least.
    pub seconds: f64,
    /// A whole step, or the forward pass alone.
    pub train: bool,
    /// Whether a GPU's kernels are timed one by one after the steps.
    pub profile: bool,
}

/// What `bench step` measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepReport {
    /// The model's name.
    pub model: String,
    /// Samples of each rank in a step.
    pub batch: u64,
    /// Ranks.
    pub ranks: u32,
    /// V.
    pub virtual_shards: u32,
    /// Compute threads of each rank.
    pub threads: usize,
    /// The instruction set.
    pub isa: String,
    /// Over all ranks, from the median step.
    pub samples_per_second: f64,
    /// Median time of a step; on a GPU by its own clock.
    pub step_ms_p50: f64,
    /// CPU time of rank 0's process in a step, of all its threads, in milliseconds.
    pub cpu_ms: f64,
    /// Bytes of gradients that a step sums.
    pub gradient_bytes: u64,
    /// The most memory that the process had at once.
    pub peak_rss_bytes: u64,
    /// What it is computed on: `cpu` or `cuda`.
    pub device: String,
    /// What that is called.
    pub device_name: String,
    /// The type of activations.
    pub precision: Precision,
    /// The most memory of rank 0's GPU that was in use at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_device_bytes: Option<u64>,
    /// Multiply-adds of linear and convolution layers, twice, by time, in 10⁹ a second over all ranks.
    pub gflops: f64,
    /// `gflops` as a fraction of what matrix products of 512³ reach on as many threads; not known of a GPU.
    pub peak_fraction: Option<f64>,
    /// What each kernel of a step takes on a GPU, the most costly first, when it was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<KernelTime>,
}

/// One kernel, or one kind of a library's calls, in a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KernelTime {
    /// Its name.
    pub name: String,
    /// How often it runs in a step.
    pub runs: f64,
    /// What all its runs take, in milliseconds a step. Marks between kernels take some microseconds of their own.
    pub ms: f64,
}

/// Measures steps on random data, between thread ranks: forward, cross-entropy, backward, sum over ranks,
/// SGD with momentum.
pub fn step(request: &StepRequest) -> Result<StepReport> {
    let body = |comm| step_rank(request, comm);
    first(ranks::run_threads(request.ranks, DEADLINE, Isa::choose(&request.isa)?, body)?)
}

/// As [`step`], as one rank of `comm`'s world: `request.ranks` does not count. All ranks get the report of
/// rank 0.
pub fn step_rank(request: &StepRequest, comm: Arc<dyn Communicator>) -> Result<StepReport> {
    let isa = Isa::choose(&request.isa)?;
    let (ranks, shards) = (comm.world(), request.virtual_shards.unwrap_or(comm.world()));
    let Measured { mut times, cpu, flop, gradient_bytes, machine, profile } =
        run_steps(request, isa, shards, &comm)?;
    let seconds = quantile(&mut times, 0.5);
    let samples = (request.batch * u64::from(ranks)) as f64;
    let gflops = flop * samples / seconds / 1e9;
    let report = |peak: Option<f64>| StepReport {
        model: request.model.clone(),
        batch: request.batch,
        ranks,
        virtual_shards: shards,
        threads: request.threads,
        isa: isa.name().into(),
        samples_per_second: samples / seconds,
        step_ms_p50: seconds * 1e3,
        cpu_ms: cpu * 1e3,
        gradient_bytes,
        peak_rss_bytes: peak_rss_bytes(),
        device: machine.device.name().into(),
        device_name: machine.name(),
        precision: request.precision,
        peak_device_bytes: machine.gpu().map(|gpu| gpu.memory().peak_live),
        gflops,
        peak_fraction: peak.map(|peak| gflops / peak),
        profile: profile.clone(),
    };
    from_rank_0(&*comm, comm.deadline(), || {
        if machine.gpu().is_some() {
            return Ok(report(None));
        }
        let one = gemm(512, 512, 512, 1, &request.isa)?.gflops;
        Ok(report(Some(one * f64::from(ranks) * request.threads as f64)))
    })
}

/// Steps that a GPU makes before any are timed, and the fewest that are.
const WARM_UP: u64 = 5;
const TIMED: u64 = 20;
/// Steps whose kernels are timed one by one.
const PROFILED: u64 = 3;

/// What steps cost.
struct Measured {
    /// Seconds of each.
    times: Vec<f64>,
    /// Mean seconds of CPU time of this process.
    cpu: f64,
    /// Floating-point operations of one sample.
    flop: f64,
    gradient_bytes: u64,
    machine: Machine,
    profile: Vec<KernelTime>,
}

/// Seconds of CPU time that this process has had; 0 where the system does not tell.
fn cpu_seconds() -> f64 {
    // In hundredths of a second on every Linux that has this file.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |s| s.1).split(' ');
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|t| t.parse().ok()).collect();
    ticks.iter().sum::<f64>() / TICKS
}

/// Whether so many steps in so many seconds are enough: some of which the first do not count, unless each takes
/// many times the time that was asked for.
fn enough(steps: usize, took: f64, asked: f64) -> bool {
    took > asked && (steps >= 10 || steps >= 3 && took > 5.0 * asked)
}

fn run_steps(request: &StepRequest, isa: Isa, shards: u32, comm: &Arc<dyn Communicator>) -> Result<Measured> {
    let (choice, threads) = (&request.device, request.threads);
    let mut machine = Machine::open_among(&Wanted { choice, isa, threads, exact: false }, &**comm)?;
    machine.set_precision(request.precision)?;
    if request.profile && machine.gpu().is_none() {
        let problem = format!("it tells of a GPU's kernels; use --device cuda{}", machine.in_brackets());
        return Err(Error::config("--profile", problem));
    }
    if comm.rank() == 0 {
        machine.tell_no_gpu();
    }
    machine.join(comm, request.device.sums, false)?;
    let device = machine.device.clone();
    let mut builder = phalanx_nn::Builder::new();
    let mut model = ModelConfig::named(&request.model);
    model.hidden = request.hidden.clone();
    let made_for = phalanx_nn::summarise(&model, request.input, request.classes, 1)?;
    let ([h, w, c], classes) = (made_for.input, made_for.classes);
    let layers = phalanx_nn::build(&model, [h, w, c], classes, &mut builder)?;
    let multiply_adds =
        if request.train { builder.training_multiply_adds() } else { builder.multiply_adds() };
    let (params, norms) = setup::parameters_on(builder, 1, comm, &machine)?;
    let optimizer = OptimizerConfig::sgd(0.01, 0.9, 1e-4);
    let criterion = Criterion::new(&LossConfig::default(), classes)?;
    let task = Classification::new(layers, criterion, &params, optimizer, ["image", "label"]);
    let task: Box<dyn Task> = Box::new(task);
    let options = EngineOptions {
        seed: 1,
        shards,
        bucket_bytes: tuning::bucket_bytes(request.bucket_mb, &**comm)?.0,
        wire: request.wire.wire(request.batch * u64::from(comm.world())),
        deadline: DEADLINE,
        clip: Clip::default(),
        ema: None,
        evaluate_ema: false,
        precision: request.precision,
        samples: request.batch * u64::from(comm.world()),
        faults: Faults::default(),
    };
    let mut engine = Engine::new(comm.clone(), &machine, task, params, norms, options)?;

    let total = request.batch * u64::from(comm.world());
    let mut stream = Key::new(2).derive(u64::from(comm.rank()), 0).stream();
    let batches = engine.shards()?.map(|shard| {
        let range = phalanx_data::shard_positions(0..total, u64::from(shards), u64::from(shard));
        let n = (range.end - range.start) as usize;
        let labels: Vec<i64> = (0..n).map(|_| stream.below(classes as u64) as i64).collect();
        Ok(Batch::of([
            ("image", Tensor::from_slice(&noise(&mut stream, n * h * w * c), [n, h, w, c], &device)?),
            ("label", Tensor::from_slice(&labels, [n], &device)?),
        ]))
    });
    let batches = batches.collect::<Result<Vec<_>>>()?;
    let gradient_bytes = (engine.params().count() * size_of::<f32>()) as u64;
    let flop = 2.0 * multiply_adds as f64;
    let mut times = Vec::new();
    let mut number = 0;
    if let Some(gpu) = machine.gpu() {
        let layers = setup::layers_for(&model, [h, w, c], classes, engine.params())?;
        let mut step = || -> Result<()> {
            if request.train {
                engine.step(number, batches.clone(), 1.0, false)?;
            } else {
                // The forward pass alone: nobody waits for what comes out.
                let cx = engine.inference();
                for batch in &batches {
                    layers.forward(&cx, &batch.input("image", &cx)?)?;
                }
            }
            number += 1;
            Ok(())
        };
        let (times, cpu, profile) = time_on_gpu(gpu, &**comm, request, &mut step)?;
        drop(engine);
        return Ok(Measured { times, cpu, flop, gradient_bytes, machine, profile });
    }
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    // All ranks stop at the step that rank 0 stops at.
    loop {
        let since = Instant::now();
        let enough = comm.rank() == 0 && enough(times.len(), begun.elapsed().as_secs_f64(), request.seconds);
        let stop = if request.train {
            engine.step(number, batches.clone(), 1.0, enough)?.stop
        } else {
            let cx = engine.inference();
            batches.iter().try_for_each(|b| engine.task().evaluate(b, &cx).map(|_| ()))?;
            comm.vote(u8::from(enough), comm.deadline())? > 0
        };
        times.push(since.elapsed().as_secs_f64());
        number += 1;
        if stop {
            break;
        }
    }
    let cpu = (cpu_seconds() - cpu) / times.len() as f64;
    // The first steps fill the pool and the caches.
    let times = times.split_off((times.len() / 3).min(3));
    Ok(Measured { times, cpu, flop, gradient_bytes, machine, profile: Vec::new() })
}

/// Times steps by a GPU's own clock: the seconds of each, the mean seconds of CPU time, and what kernels took where that
/// is asked for. All ranks make as many steps.
fn time_on_gpu(
    gpu: &Context,
    comm: &dyn Communicator,
    request: &StepRequest,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<(Vec<f64>, f64, Vec<KernelTime>)> {
    let mark = || -> Result<Event> {
        let event = gpu.timed_event()?;
        event.record(gpu.compute())?;
        Ok(event)
    };
    let mut steps = |count: u64| -> Result<Vec<f64>> {
        let mut marks = vec![mark()?];
        for _ in 0..count {
            step()?;
            marks.push(mark()?);
        }
        gpu.synchronize()?;
        marks.windows(2).map(|m| Ok(f64::from(m[0].elapsed(&m[1])?) / 1e3)).collect()
    };
    steps(WARM_UP)?;
    comm.barrier(comm.deadline())?;
    let (begun, before) = (Instant::now(), cpu_seconds());
    let mut times = steps(TIMED)?;
    // As many more as fill the time that is asked for.
    let more = from_rank_0(comm, comm.deadline(), || {
        let took = begun.elapsed().as_secs_f64();
        Ok(((request.seconds / took - 1.0).max(0.0) * TIMED as f64).ceil() as u64)
    })?;
    times.extend(steps(more)?);
    let cpu = (cpu_seconds() - before) / times.len() as f64;
    let mut profile = Vec::new();
    if request.profile {
        gpu.begin_profile();
        steps(PROFILED)?;
        let mean = |s: phalanx_gpu::Spent| KernelTime {
            name: s.name,
            runs: s.runs as f64 / PROFILED as f64,
            ms: s.milliseconds / PROFILED as f64,
        };
        profile = gpu.end_profile()?.into_iter().map(mean).collect();
    }
    Ok((times, cpu, profile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_positive_and_wrong_names_are_errors() {
        let g = gemm(33, 17, 65, 1, "auto").unwrap();
        assert!(g.gflops > 0.0);
        assert!(matches!(gemm(8, 8, 8, 1, "sse9"), Err(Error::Host(_))));
        let mut r = StepRequest {
            model: "lenet5".into(),
            input: None,
            classes: None,
            batch: 4,
            ranks: 2,
            virtual_shards: Some(4),
            device: "cpu".into(),
            precision: Precision::F32,
            threads: 1,
            isa: "auto".into(),
            hidden: None,
            bucket_mb: None,
            wire: WireType::F32,
            seconds: 0.01,
            train: true,
            profile: false,
        };
        let report = step(&r).unwrap();
        assert!(
            report.samples_per_second > 0.0
                && report.gflops > 0.0
                && report.peak_fraction.is_some_and(|p| p > 0.0)
        );
        r.train = false;
        assert!(step(&r).unwrap().samples_per_second > 0.0);
        r.model = "lenet6".into();
        assert_eq!(step(&r).unwrap_err().exit_code(), 2);
    }
}
