//! Steps as CUDA graphs: the same bits as piece by piece, and an honest word where there is none. They need a GPU, or the
//! stand-in libraries that `tests/cuda/build` makes (`PHALANX_CUDA_PATH`), so they are ignored unless asked for.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/again.rs"]
mod again;
mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use again::with_settings;
use common::{hashes, request, run};
use phalanx_comm::{Communicator, Wire};
use phalanx_gpu::Context;
use phalanx_host::{Cpu, Isa};
use phalanx_nn::{ModelConfig, OptimizerConfig};
use phalanx_tensor::{Device, Tensor};
use phalanx_train::bench::{StepRequest, step};
use phalanx_train::config::{Precision, WireType};
use phalanx_train::faults::Faults;
use phalanx_train::ranks::run_threads;
use phalanx_train::report::Summary;
use phalanx_train::run::TrainRequest;
use phalanx_train::task::{
    Batch, Classification, Criterion, Loss, LossConfig, Phase, PhaseId, ShardCx, Task,
};
use phalanx_train::{
    Clip, CudaGraph, DeviceChoice, Engine, EngineOptions, Error, GraphUse, Machine, Result, SumsOver, setup,
};

fn gpu() -> DeviceChoice {
    DeviceChoice { name: "cuda".into(), share_gpu: true, sums: SumsOver::Auto }
}

/// Some steps of the digits, whose network has norms and dropout, in eight shards of unlike size.
fn asked(out: &Path, graph: &str, settings: &[&str]) -> TrainRequest {
    let graph = format!("train.cuda_graph={graph:?}");
    let settings = [&["train.epochs=1", "compute.threads=1", "log.every_steps=1", &graph], settings].concat();
    TrainRequest { device: gpu(), max_steps: Some(5), ..request(out, 1, &settings) }
}

/// All that must be the same, however a step is done.
fn end(s: &Summary) -> ((String, String, String), Option<String>, u64) {
    (hashes(s), s.ema_hash.clone(), s.train_loss.to_bits())
}

fn metrics(out: &Path, key: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    lines.filter(|l| l["kind"] == "step").map(|l| l[key].clone()).collect()
}

fn reason(s: &Summary) -> &str {
    match &s.cuda_graph {
        Some(GraphUse::Not(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_step_as_a_graph_has_the_bits_of_one_piece_by_piece() {
    let tmp = tempfile::tempdir().unwrap();
    let adam = "optimizer={ name = \"adamw\", lr = 0.01, weight_decay = 0.01 }";
    let lamb = "optimizer={ name = \"lamb\", lr = 0.02, weight_decay = 0.01 }";
    let heavy = format!("loss={{ kind = \"cross_entropy\", class_weights = {:?} }}", [500.0; 10]);
    for (n, settings) in [
        &["ema.decay=0.9", "ema.every_steps=2"][..],
        &[adam, "train.clip_norm=0.5", "distributed.wire=\"bf16\""],
        &[lamb, "distributed.virtual_shards=3", "train.precision=\"bf16\""],
        &["train.precision=\"fp16\"", "ema.decay=0.9", "train.clip_norm=0.5"],
        &["model={ name = \"mlp\" }", "distributed.virtual_shards=1", "train.clip_value=0.01"],
    ]
    .into_iter()
    .enumerate()
    {
        let of = |graph: &str| {
            let out = tmp.path().join(format!("{n}-{graph}"));
            let summary = run(&asked(&out, graph, settings)).unwrap();
            (summary, metrics(&out, "loss"), metrics(&out, "grad_norm"), metrics(&out, "skipped_steps"))
        };
        let (plain, graph) = (of("off"), of("on"));
        assert_eq!(end(&graph.0), end(&plain.0), "{settings:?}");
        assert_eq!((&graph.1, &graph.2, &graph.3), (&plain.1, &plain.2, &plain.3), "{settings:?}");
        assert_eq!(graph.0.cuda_graph, Some(GraphUse::Recorded(true)));
        assert_eq!(reason(&plain.0), "train.cuda_graph is off");
    }
    // What the host sums of a batch is no part of a graph.
    let out = tmp.path().join("weights");
    let e = run(&asked(&out, "on", &[&heavy])).unwrap_err();
    assert!(e.to_string().contains("the host reads what was computed") && e.exit_code() == 2, "{e}");
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_run_goes_on_with_and_without_graphs_and_past_epochs() {
    let tmp = tempfile::tempdir().unwrap();
    let steps = |out: &Path, graph: &str, steps: u64| {
        // Two epochs of four steps, the last of which is another form.
        let settings = ["train.epochs=2", "train.global_batch=450", "distributed.virtual_shards=2"];
        let text = asked(out, graph, &settings);
        run(&TrainRequest { max_steps: Some(steps), ..text }).unwrap()
    };
    let whole = steps(&tmp.path().join("whole"), "off", 8);
    let cut = tmp.path().join("cut");
    for (to, graph) in [(3, "on"), (4, "off"), (7, "auto")] {
        assert_eq!(steps(&cut, graph, to).steps, to);
    }
    assert_eq!(end(&steps(&cut, "on", 8)), end(&whole));
    let through = tmp.path().join("through");
    let summary = steps(&through, "auto", 8);
    assert_eq!((end(&summary), summary.cuda_graph), (end(&whole), Some(GraphUse::Recorded(true))));
    let env = std::fs::read_to_string(through.join("env.json")).unwrap();
    assert!(env.contains("\"cuda_graph\": true"), "{env}");
}

/// Where its part of each image lies is an input of a graph, as the images are.
#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn images_that_are_cropped_on_the_device_are_the_same_with_and_without_graphs() {
    let tmp = tempfile::tempdir().unwrap();
    let (pad, flip) = ("{ name = \"pad-and-crop\", padding = 2 }", "{ name = \"flip\" }");
    let (cut, mean) = ("{ name = \"random-crop\", size = 7 }", "{ name = \"normalise\", mean = 0.5 }");
    for (n, rows) in [[pad, flip, mean].join(", "), [cut, flip].join(", ")].iter().enumerate() {
        let rows = format!("loader.transforms=[{rows}]");
        let of = |graph: &str, pixels: &str| {
            let out = tmp.path().join(format!("{n}-{graph}-{pixels}"));
            let pixels = format!("loader.pixels={pixels:?}");
            let summary =
                run(&asked(&out, graph, &[&rows, &pixels, "distributed.virtual_shards=2"])).unwrap();
            assert_eq!(summary.cuda_graph == Some(GraphUse::Recorded(true)), graph == "on");
            (end(&summary), metrics(&out, "loss"))
        };
        let floats = of("off", "floats");
        assert_eq!(of("on", "bytes"), floats, "{rows}");
        assert_eq!(of("off", "bytes"), floats, "{rows}");
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn streams_are_waited_for_where_they_must_be() {
    // Work of streams as late as allowed: a wait that is missing shows.
    if !with_settings("streams_are_waited_for_where_they_must_be", &[("PHALANX_STANDIN_STREAMS", "1")]) {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    // Images and where their parts lie are copies of their own.
    let settings = ["distributed.virtual_shards=2", "train.global_batch=32", "loader.pixels=\"bytes\""];
    let of = |graph: &str| end(&run(&asked(&tmp.path().join(graph), graph, &settings)).unwrap());
    assert_eq!(of("on"), of("off"));
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn what_cannot_be_a_graph_is_done_piece_by_piece_and_said_once() {
    let tmp = tempfile::tempdir().unwrap();
    let ranks = |graph: &str| {
        let out = tmp.path().join(format!("ranks-{graph}"));
        run(&TrainRequest { ranks: 2, max_steps: Some(2), ..asked(&out, graph, &[]) })
    };
    assert!(reason(&ranks("auto").unwrap()).contains("summed over 2 ranks"));
    let e = ranks("on").unwrap_err();
    assert!(e.to_string().contains("train.cuda_graph") && e.exit_code() == 2, "{e}");

    // Its places are drawn on the host.
    let fractional = "model.layers=[{ type = \"fractional-max-pool\", kernel = 2, out = 4 }, { type = \"flatten\" }, \
                      { type = \"linear\" }]";
    let fractional = ["distributed.virtual_shards=1", "train.global_batch=16", fractional];
    let (auto, off) = (tmp.path().join("auto"), tmp.path().join("off"));
    let by_host = run(&asked(&auto, "auto", &fractional)).unwrap();
    assert!(reason(&by_host).contains("not the same at each step: upload of "), "{}", reason(&by_host));
    assert_eq!(end(&by_host), end(&run(&asked(&off, "off", &fractional)).unwrap()));
    let told = std::fs::read_to_string(auto.join("metrics.jsonl")).unwrap();
    assert_eq!(told.matches("steps are not launched as CUDA graphs").count(), 1, "{told}");
    assert!(!std::fs::read_to_string(off.join("metrics.jsonl")).unwrap().contains("CUDA graphs"));
    let short = run(&TrainRequest { max_steps: Some(1), ..asked(&tmp.path().join("short"), "auto", &[]) });
    assert_eq!(reason(&short.unwrap()), "no two steps were alike");
}

/// An engine of two virtual shards a rank on the GPU, whose steps must be graphs.
fn engine(comm: Arc<dyn Communicator>, model: &str, clip: Option<f64>, device: &Device) -> Result<Engine> {
    engine_of(comm, model, clip, device, CudaGraph::On, |task| Box::new(task))
}

fn engine_of(
    comm: Arc<dyn Communicator>,
    model: &str,
    clip: Option<f64>,
    device: &Device,
    cuda_graph: CudaGraph,
    task_of: fn(Classification) -> Box<dyn Task>,
) -> Result<Engine> {
    let mut machine = Machine::cpu(Cpu::new(Isa::detect(), 1)?);
    machine.device = device.clone();
    let mut builder = phalanx_nn::Builder::new();
    let layers = phalanx_nn::build(&ModelConfig::named(model), [12, 12, 1], 3, &mut builder)?;
    let (params, norms) = setup::parameters(builder, 1, &comm)?;
    let criterion = Criterion::new(&LossConfig::default(), 3)?;
    let task = Classification::new(
        layers,
        criterion,
        &params,
        OptimizerConfig::sgd(0.1, 0.9, 0.0),
        ["image", "label"],
    );
    let options = EngineOptions {
        seed: 1,
        shards: 2 * comm.world(),
        bucket_bytes: 1 << 12,
        wire: Wire::F32,
        deadline: Duration::from_secs(60),
        clip: Clip { norm: clip, value: None },
        ema: None,
        evaluate_ema: false,
        precision: Precision::F32,
        samples: 8,
        cuda_graph,
        faults: Faults::default(),
    };
    Engine::new(comm, &machine, task_of(task), params, norms, options)
}

/// Reads on the host what it computes of a batch of three.
struct ReadsThree(Classification);

impl Task for ReadsThree {
    fn name(&self) -> &'static str {
        "reads-three"
    }

    fn phases(&self) -> &[Phase] {
        self.0.phases()
    }

    fn is_static(&self) -> bool {
        true
    }

    fn loss(&self, phase: PhaseId, batch: &Batch, cx: &ShardCx) -> Result<Loss> {
        if batch.field("label")?.shape()[0] == 3 {
            batch.field("label")?.to_vec::<i64>()?;
        }
        self.0.loss(phase, batch, cx)
    }
}

/// Wants each loss to come without a wait since the one before of the same step.
struct Watches(Classification, Mutex<(u64, u64)>);

impl Task for Watches {
    fn name(&self) -> &'static str {
        "watches"
    }

    fn phases(&self) -> &[Phase] {
        self.0.phases()
    }

    fn loss(&self, phase: PhaseId, batch: &Batch, cx: &ShardCx) -> Result<Loss> {
        let mut seen = self.1.lock().unwrap();
        let waits = cx.device.gpu().unwrap().host_waits();
        // The first steps choose algorithms.
        if cx.step > 1 && seen.0 == cx.step && seen.1 != waits {
            let problem = format!("the host waited {} times between two shards", waits - seen.1);
            return Err(Error::Task { task: self.name(), problem });
        }
        *seen = (cx.step, waits);
        drop(seen);
        self.0.loss(phase, batch, cx)
    }
}

/// Piece by piece, too, and where sums go by way of the host.
#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn all_shards_are_queued_before_the_host_waits() {
    if !with_settings("all_shards_are_queued_before_the_host_waits", &[("PHALANX_STANDIN_DEVICES", "2")]) {
        return;
    }
    // A real machine may have one alone, whose waits would be counted together.
    let worlds: &[u32] = if Context::open(1).is_ok() { &[1, 2] } else { &[1] };
    for &ranks in worlds {
        let losses = run_threads(ranks, Duration::from_secs(60), Isa::detect(), |comm| {
            let device = Device::Cuda(Context::open(comm.rank() as usize).unwrap());
            let watches = |task| Box::new(Watches(task, Mutex::default())) as Box<dyn Task>;
            let mut engine = engine_of(comm, "lenet5", None, &device, CudaGraph::Off, watches)?;
            let mut step = |i| engine.step(i, batches(&device, i as u32, None), 1.0, false);
            (0..5).map(|i| Ok(step(i)?.phases[0].loss_sum.to_bits())).collect::<Result<Vec<_>>>()
        });
        let losses = losses.unwrap();
        assert!(losses.iter().all(|l| l == &losses[0]));
    }
}

fn batches(device: &Device, of: u32, spoiled: Option<f32>) -> Vec<Batch> {
    let shard = |shard: u32| {
        let mut pixels: Vec<f32> = (0..576).map(|i| ((i * 7 + of * 13 + shard) % 11) as f32 / 11.0).collect();
        if let (Some(value), 1) = (spoiled, shard) {
            pixels[5] = value;
        }
        let labels: Vec<i64> = (0..4).map(|i| i64::from((i + of + shard) % 3)).collect();
        Batch::of([
            ("image", Tensor::from_slice(&pixels, [4, 12, 12, 1], device).unwrap()),
            ("label", Tensor::from_slice(&labels, [4], device).unwrap()),
        ])
    };
    vec![shard(0), shard(1)]
}

fn alone(body: impl Fn(Arc<dyn Communicator>) -> Result<()> + Sync) {
    run_threads(1, Duration::from_secs(60), Isa::detect(), body).unwrap();
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn numerics_are_judged_before_a_parameter_changes_also_with_a_step_behind() {
    alone(|comm| {
        for (clip, value) in [(None, f32::NAN), (Some(1.0), f32::INFINITY)] {
            let device = Device::Cuda(Context::open(0).unwrap());
            let mut engine = engine(comm.clone(), "mlp", clip, &device)?;
            for step in 0..4 {
                engine.step(step, batches(&device, step as u32, None), 1.0, false)?;
            }
            assert_eq!(engine.cuda_graph_used(), Some(GraphUse::Recorded(true)));
            let work = engine.recorded_work();
            assert!(
                work.iter().any(|w| w == "optim/judge") && !work.iter().any(|w| w.contains("upload")),
                "{work:?}"
            );
            let before = engine.hash()?;
            engine.begin(4, batches(&device, 4, Some(value)), 1.0, false)?;
            assert!(engine.may_go_ahead());
            engine.begin(5, batches(&device, 5, None), 1.0, false)?;
            assert!(!engine.may_go_ahead());
            let e = engine.finish().unwrap_err();
            assert!(matches!(e, Error::NonFinite { step: 4, rank: 0, shard: 1, .. }), "{e}");
            assert_eq!((engine.outstanding(), engine.hash()?), (0, before));
            // Whoever goes on all the same goes on.
            for step in 6..9 {
                engine.step(step, batches(&device, 0, None), 1.0, false)?;
            }
        }
        // A label that is no class is told as such.
        let device = Device::Cuda(Context::open(0).unwrap());
        let mut engine = engine(comm.clone(), "mlp", None, &device)?;
        for step in 0..3 {
            engine.step(step, batches(&device, 0, None), 1.0, false)?;
        }
        let before = engine.hash()?;
        let mut wrong = batches(&device, 0, None);
        wrong[0].fields.insert("label".into(), Tensor::from_slice(&[0i64, 1, 7, 1], [4], &device)?);
        engine.begin(3, wrong, 1.0, false)?;
        engine.begin(4, batches(&device, 0, None), 1.0, false)?;
        let e = engine.finish().unwrap_err();
        assert!(e.to_string().contains('7') && engine.hash()? == before, "{e}");
        Ok(())
    });
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_step_that_cannot_be_a_graph_may_follow_one_that_is_on_its_way() {
    alone(|comm| {
        let device = Device::Cuda(Context::open(0).unwrap());
        let mut engine = engine(comm.clone(), "mlp", None, &device)?;
        for step in 0..3 {
            engine.step(step, batches(&device, 0, None), 1.0, false)?;
        }
        let weighted = || batches(&device, 1, None).into_iter().map(|b| b.weighted(vec![1.0; 4])).collect();
        engine.begin(3, batches(&device, 1, None), 1.0, false)?;
        assert!(engine.may_go_ahead());
        // Graphs were demanded, so it is an error; the report of the step before is there all the same.
        let e = engine.begin(4, weighted(), 1.0, false).unwrap_err();
        assert!(e.to_string().contains("weights of their own"), "{e}");
        assert!(engine.finish()?.phases[0].loss_sum.is_finite());
        Ok(())
    });
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn an_evaluation_has_the_memory_of_steps() {
    alone(|comm| {
        let device = Device::Cuda(Context::open(0).unwrap());
        let mut engine = engine(comm.clone(), "lenet5", None, &device)?;
        for step in 0..3 {
            engine.step(step, batches(&device, 0, None), 1.0, false)?;
        }
        let gpu = device.gpu().unwrap();
        let batch = &batches(&device, 0, None)[0];
        let (held, asked) = (gpu.free_memory()?, gpu.memory().device_allocations);
        let values = engine.between_steps(|e| e.task().evaluate(batch, &e.inference()))?;
        assert!(values[0][1] == 4.0 && values[0][0].is_finite(), "{values:?}");
        assert_eq!((gpu.free_memory()?, gpu.memory().device_allocations), (held, asked));
        // What is kept of it would be written over.
        let e = engine.between_steps(|_| Ok(gpu.alloc(4096)?)).unwrap_err();
        assert!(e.to_string().contains("4096 bytes of device memory are left behind"), "{e}");
        Ok(())
    });
}

#[test]
#[ignore = "needs the stand-ins"]
fn an_evaluation_that_fits_without_graphs_fits() {
    if !with_settings("an_evaluation_that_fits_without_graphs_fits", &[("PHALANX_STANDIN_MEMORY", "128M")]) {
        return;
    }
    alone(|comm| {
        let device = Device::Cuda(Context::open(0).unwrap());
        let gpu = device.gpu().unwrap();
        let mut engine = engine(comm.clone(), "lenet5", None, &device)?;
        let steps = |engine: &mut Engine, from: u64| -> Result<Vec<u64>> {
            let one = |step| {
                Ok(engine.step(step, batches(&device, 0, None), 1.0, false)?.phases[0].loss_sum.to_bits())
            };
            (from..from + 3).map(one).collect()
        };
        steps(&mut engine, 0)?;
        engine.between_steps(|_| Ok((gpu.alloc(20 << 20)?.len(), gpu.alloc(12 << 20)?.len())))?;
        // One block of nearly all that is not live: of smaller ones in the steps' memory it cannot be made.
        let most = gpu.free_memory()? as usize - (8 << 20);
        let calls = std::cell::Cell::new(0);
        let got = engine.between_steps(|_| {
            calls.set(calls.get() + 1);
            Ok(gpu.alloc(most)?.len())
        })?;
        assert_eq!((got, calls.get()), (most, 2));
        // Steps are recorded again.
        assert!(steps(&mut engine, 3)?.iter().all(|l| f64::from_bits(*l).is_finite()));
        assert_eq!(engine.cuda_graph_used(), Some(GraphUse::Recorded(true)));
        engine.begin(6, batches(&device, 0, None), 1.0, false)?;
        assert!(engine.may_go_ahead(), "the step was not launched as a graph");
        engine.finish()?;
        // What fits in no case is tried no more than that, and told.
        calls.set(0);
        let e = engine.between_steps(|_| {
            calls.set(calls.get() + 1);
            Ok(gpu.alloc(200 << 20)?.len())
        });
        assert!(e.unwrap_err().to_string().contains("out of device memory") && calls.get() == 2);
        Ok(())
    });
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_form_of_steps_that_cannot_be_a_graph_leaves_others_theirs() {
    alone(|comm| {
        let device = Device::Cuda(Context::open(0).unwrap());
        let mut engine = engine_of(comm.clone(), "mlp", None, &device, CudaGraph::Auto, |task| {
            Box::new(ReadsThree(task))
        })?;
        let three = || -> Vec<Batch> {
            let cut = |b: Batch| {
                let all = ["image", "label"]
                    .map(|name| (name, b.fields[name].slice(0, 0, 3).unwrap().contiguous().unwrap()));
                Batch::of(all)
            };
            batches(&device, 0, None).into_iter().map(cut).collect()
        };
        let mut graphs = Vec::new();
        for (step, short) in [false, false, false, true, true, true, false].into_iter().enumerate() {
            let batches = if short { three() } else { batches(&device, 0, None) };
            engine.begin(step as u64, batches, 1.0, false)?;
            graphs.push(engine.may_go_ahead());
            engine.finish()?;
        }
        assert_eq!(graphs, [false, true, true, false, false, false, true]);
        assert_eq!(engine.cuda_graph(), Some(GraphUse::Recorded(true)));
        Ok(())
    });
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn batches_that_take_turns_are_each_their_own() {
    alone(|comm| {
        let device = Device::Cuda(Context::open(0).unwrap());
        let all = [0, 1].map(|of| batches(&device, of, None));
        let turns = [0usize, 0, 0, 1, 0, 0, 1, 1, 0];
        let losses = |graph: bool| -> Result<Vec<u64>> {
            let mut engine = engine(comm.clone(), "lenet5", None, &device)?;
            let one = |(step, &turn): (usize, &usize)| {
                // Work that is marked is not recorded.
                if !graph {
                    device.gpu().unwrap().begin_profile();
                }
                let report = engine.step(step as u64, all[turn].clone(), 1.0, false)?;
                device.gpu().unwrap().end_profile()?;
                Ok(report.phases[0].loss_sum.to_bits())
            };
            let losses = turns.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
            let used = engine.cuda_graph_used() == Some(GraphUse::Recorded(true));
            assert_eq!(used, graph);
            Ok(losses)
        };
        assert_eq!(losses(true)?, losses(false)?);
        Ok(())
    });
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn measured_steps_say_whether_they_were_graphs() {
    let asked = |cuda_graph| StepRequest {
        model: "mlp".into(),
        input: None,
        classes: None,
        batch: 4,
        ranks: 1,
        virtual_shards: None,
        device: gpu(),
        precision: Precision::Bf16,
        threads: 1,
        isa: "auto".into(),
        hidden: Some(vec![16]),
        bucket_mb: None,
        wire: WireType::F32,
        seconds: 0.01,
        train: true,
        profile: true,
        cuda_graph,
    };
    let graph = step(&asked(CudaGraph::Auto)).unwrap();
    assert!(graph.captured && graph.not_captured.is_none() && !graph.profile.is_empty());
    let plain = step(&asked(CudaGraph::Off)).unwrap();
    assert!(!plain.captured && plain.not_captured.is_some());
}
