//! Each command as a call into a room.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser;
use phalanx_data::Pixels;
use phalanx_launch::{Facts, Line, On};
use phalanx_train::config::Config;
#[cfg(feature = "mpi")]
use phalanx_train::evaluate::evaluate_rank;
use phalanx_train::evaluate::{EvaluateRequest, evaluate_checkpoint};
use phalanx_train::faults::Faults;
use phalanx_train::predict::{PredictRequest, Predictor, Preparation};
use phalanx_train::report::Style;
use phalanx_train::run::{TrainRequest, train_or};
#[cfg(feature = "mpi")]
use phalanx_train::rundir::keep_failure;
use phalanx_train::task::Views;
use phalanx_train::{DeviceChoice, bench, ledger};

use crate::args::bench::{Bench, BenchCommon, BenchLoader, BenchLosses, BenchMode, BenchStep};
use crate::args::data::Data;
use crate::args::{
    Args, Command, ConfigCommand, Evaluate, Launch, LedgerCommand, ModelCommand, OnName, Predict, Train,
    TransformName, WorldArgs,
};
use crate::world::{self, World};

/// Stopped on a signal after a checkpoint: start it again (sysexits' EX_TEMPFAIL).
const AGAIN: u8 = 75;

/// The process's exit code for an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    let train = error.chain().find_map(|e| e.downcast_ref::<phalanx_train::Error>());
    let data = error.chain().find_map(|e| e.downcast_ref::<phalanx_data::Error>());
    match (train, data) {
        (Some(e), _) => e.exit_code(),
        (None, Some(e)) => match e.kind() {
            phalanx_data::Kind::Usage => 2,
            phalanx_data::Kind::Data => 3,
            phalanx_data::Kind::System => 1,
        },
        (None, None) => 2,
    }
}

/// Runs a command and returns the exit code.
pub(crate) fn run(args: Args) -> Result<u8> {
    match args.command {
        Command::Train(args) => run_train(args),
        Command::Evaluate(args) => run_evaluate(&args),
        Command::Predict(args) => run_predict(&args),
        Command::Launch(args) => run_launch(args),
        Command::Data(Data::Fetch { name, dir, from }) => {
            let report = phalanx_data::fetch(&name, &dir, from.as_deref())?;
            print(&report.to_string());
            Ok(0)
        }
        Command::Data(Data::Pack(args)) => crate::packing::pack(&args),
        Command::Data(Data::Synth(args)) => crate::packing::synth(&args),
        Command::Data(Data::Export(args)) => crate::packing::export(&args),
        Command::Data(Data::Inspect(args)) => crate::datasets::inspect(&args),
        Command::Data(Data::Verify(args)) => crate::datasets::verify(&args),
        Command::Data(Data::Stats(args)) => crate::datasets::stats(&args),
        Command::Data(Data::Repair(args)) => crate::datasets::repair(&args),
        Command::Ledger(LedgerCommand::Verify { run, json }) => {
            let proof = ledger::verify(&run)?;
            if json {
                return print_json(&proof);
            }
            print(&proof.to_string());
            Ok(0)
        }
        Command::Config(ConfigCommand::Check { files, settings }) => {
            for file in files {
                phalanx_train::setup::check(&Config::load(&file, &settings)?)
                    .with_context(|| file.display().to_string())?;
                print(&format!("{}: ok", file.display()));
            }
            Ok(0)
        }
        Command::Model(ModelCommand::List { json }) => {
            let list = phalanx_train::model::list()?;
            if json { print_json(&list) } else { print_all(&list) }
        }
        Command::Model(ModelCommand::Layers { json }) => {
            let list = phalanx_train::model::layers();
            if json { print_json(&list) } else { print_all(&list) }
        }
        Command::Model(ModelCommand::Show { name, input, classes, batch, settings, json }) => {
            let summary = phalanx_train::model::show(&name, &settings, input, classes, batch)?;
            if json { print_json(&summary) } else { print_all(&summary) }
        }
        Command::Bench(bench) => run_bench(bench),
    }
}

/// Prints the failure of a command that has no run directory.
#[cfg(feature = "mpi")]
pub(crate) fn say(_: phalanx_train::AbortKind, text: &str) {
    crate::report(text);
}

/// `runs/<name of the configuration>`.
fn default_out(config: &Path) -> PathBuf {
    Path::new("runs").join(config.file_stem().unwrap_or(config.as_os_str()))
}

fn run_train(args: Train) -> Result<u8> {
    // First of all: a signal that comes while the run is being set up counts as well.
    let stop = phalanx_launch::stop_on_signals()?;
    let world = world::find(&args.world, 1)?;
    let style = match (args.json, args.quiet) {
        (true, _) => Style::Json,
        (_, true) => Style::Quiet,
        _ => Style::Human,
    };
    let config = Config::load(&args.config, &args.settings).map(|mut config| {
        config.train.precision = args.precision.map_or(config.train.precision, Into::into);
        config
    });
    let out = args.out.clone().unwrap_or_else(|| default_out(&args.config));
    let request = |config: Config, ranks: u32| -> phalanx_train::Result<TrainRequest> {
        Ok(TrainRequest {
            config,
            ranks,
            device: DeviceChoice { sums: args.world.comm.into(), ..(&args.device).into() },
            out: out.clone(),
            resume: args.resume.parse().unwrap_or_default(),
            max_steps: args.max_steps,
            style,
            faults: Faults::parse(&args.inject)?,
            allow_fingerprint_change: args.allow_fingerprint_change,
            stop: stop.clone(),
        })
    };
    let (outcome, speaks) = match world {
        World::Threads(ranks) => {
            // A rank has failed and another one hangs: nothing but the end of the process ends that thread.
            let stuck = |e: &phalanx_train::Error| {
                crate::report(&e.to_string());
                std::process::exit(e.exit_code().into());
            };
            (train_or(&request(config?, ranks)?, &stuck)?, true)
        }
        #[cfg(feature = "mpi")]
        World::Mpi(place) => {
            let known = config.as_ref().ok().cloned();
            let say = |kind, text: &str| {
                crate::report(text);
                keep_failure(&out, kind, text);
            };
            world::run(&place, known.as_ref(), &say, |comm| {
                let request = request(config?, comm.world())?;
                let speaks = comm.rank() == 0;
                Ok((phalanx_train::run::train_rank(&request, comm)?, speaks))
            })?
        }
    };
    if outcome.stopped && speaks && style == Style::Human {
        print("stopped with a checkpoint; run the same command again to go on");
    }
    Ok(if outcome.stopped { AGAIN } else { 0 })
}

fn run_evaluate(args: &Evaluate) -> Result<u8> {
    let config = Config::load(&args.config, &args.settings);
    let request = |config: Config| EvaluateRequest {
        config,
        checkpoint: args.checkpoint.clone(),
        views: Views { scales: args.scales.clone(), crops: args.crops, crop: args.crop },
        device: (&args.device).into(),
        precision: args.precision.map(Into::into),
    };
    let eval = match world::find(&args.world, 1)? {
        World::Threads(ranks) => Some(evaluate_checkpoint(&request(config?), ranks)?),
        #[cfg(feature = "mpi")]
        World::Mpi(place) => {
            let known = config.as_ref().ok().cloned();
            world::run(&place, known.as_ref(), &say, |comm| {
                let speaks = comm.rank() == 0;
                let eval = evaluate_rank(&request(config?), comm)?;
                Ok(speaks.then_some(eval))
            })?
        }
    };
    let Some(eval) = eval else { return Ok(0) };
    if args.json {
        return print_json(&eval);
    }
    print(&format!(
        "loss {:.4}  error {:.2} %  top-5 error {:.2} %  ({} samples{})",
        eval.loss,
        eval.top1_error * 100.0,
        eval.top5_error * 100.0,
        eval.samples,
        eval.of_what()
    ));
    Ok(0)
}

fn run_predict(args: &Predict) -> Result<u8> {
    let predictor = Predictor::new(&PredictRequest {
        model: args.model.clone(),
        settings: args.settings.clone(),
        checkpoint: args.checkpoint.clone(),
        labels: args.labels.clone(),
        transform: args.transform.map(|name| match name {
            TransformName::Imagenet => Preparation::Imagenet,
            TransformName::None => Preparation::None,
        }),
        input: args.input,
        top: args.top,
        device: args.device.name().into(),
        threads: args.threads,
    })?;
    let mut code = 0;
    predictor.run(&args.images, |image, outcome| {
        let json = |value: serde_json::Value| print(&value.to_string());
        match outcome {
            Ok(best) if args.json => json(serde_json::json!(best)),
            Ok(best) => {
                print(&image.display().to_string());
                for c in best {
                    print(&format!("  {:6.2} %  {} ({})", c.probability * 100.0, c.name, c.class));
                }
            }
            Err(e) => {
                if args.json {
                    let image = image.display().to_string();
                    json(serde_json::json!({ "image": image, "error": e.to_string() }));
                }
                crate::report(&e.to_string());
                code = e.exit_code();
            }
        }
    })?;
    Ok(code)
}

/// Where a command takes its ranks from; None for one that has none.
fn world_of(command: &Command) -> Option<&WorldArgs> {
    match command {
        Command::Train(args) => Some(&args.world),
        Command::Evaluate(args) => Some(&args.world),
        Command::Bench(Bench::Step(args)) => Some(&args.world),
        Command::Bench(Bench::Allreduce { world, .. }) => Some(world),
        Command::Data(Data::Pack(args)) => Some(&args.writing.world),
        Command::Data(Data::Synth(args)) => Some(&args.writing.world),
        Command::Data(Data::Stats(args)) => Some(&args.world),
        _ => None,
    }
}

fn run_launch(args: Launch) -> Result<u8> {
    // What is wrong with the command is told here once, and not by every rank.
    let words = std::iter::once("phalanx").chain(args.command.iter().map(String::as_str));
    let inner = Args::try_parse_from(words).unwrap_or_else(|e| e.exit());
    let Some(world) = world_of(&inner.command) else {
        bail!(
            "{}: it has no ranks to start; train, evaluate, data pack, data synth, data stats, bench step and \
             bench allreduce have",
            args.command.join(" ")
        );
    };
    let request = phalanx_launch::Request {
        on: match args.on {
            OnName::Auto => On::Auto,
            OnName::Local => On::Local,
            OnName::Mpirun => On::Mpirun,
            OnName::Slurm => On::Slurm,
        },
        nodes: args.nodes,
        ranks_per_node: args.ranks_per_node,
        gpus_per_node: args.gpus_per_node,
        partition: args.partition,
        time: args.time,
        requeue: args.requeue,
        own_ranks: world.ranks,
        command: args.command,
    };
    let line = Line::new(&request, &Facts::here(world::library()?)?)?;
    if args.dry_run {
        print(&line.shell());
        return Ok(0);
    }
    Ok(line.run()?)
}

fn run_bench(args: Bench) -> Result<u8> {
    match args {
        Bench::Gemm { m, n, k, device, precision, common } => {
            let report = bench::gemm(&bench::GemmRequest {
                m,
                n,
                k,
                device: device.name().into(),
                precision: precision.into(),
                threads: common.threads,
                isa: common.isa.clone(),
            })?;
            show(
                &common,
                &report,
                &format!("{:.1} GFLOP/s ({:.3} ms)", report.gflops, report.seconds_p50 * 1e3),
            )
        }
        Bench::Memory { device, megabytes, json } => {
            let report = bench::memory(&device.name().into(), megabytes)?;
            if json {
                return print_json(&report);
            }
            print(&format!("{:40} {:8.0} GB/s", "a copy", report.copy_gb_s));
            for k in &report.kernels {
                print(&format!(
                    "{:40} {:8.0} GB/s  {:.2} of a copy's  {:.3} ms",
                    k.name, k.gb_s, k.of_copy, k.ms
                ));
            }
            Ok(0)
        }
        Bench::Losses(args) => run_bench_losses(&args),
        Bench::Step(args) => run_bench_step(&args),
        Bench::Loader(args) => run_bench_loader(&args),
        Bench::Allreduce { world, isa, json, tune: true, .. } => run_tune(&world, &isa, json),
        Bench::Allreduce { bytes, world, rounds, isa, json, tune: false } => {
            let r = match world::find_on_host(&world, 2)? {
                World::Threads(ranks) => Some(bench::all_reduce(bytes, ranks, rounds, &isa)?),
                #[cfg(feature = "mpi")]
                World::Mpi(place) => world::run(&place, None, &say, |comm| {
                    let report = bench::all_reduce_rank(bytes, rounds, &*comm)?;
                    Ok((comm.rank() == 0).then_some(report))
                })?,
            };
            let Some(r) = r else { return Ok(0) };
            if json {
                return print_json(&r);
            }
            print(&format!(
                "{:.3} ms  bus {:.2} GB/s  memory {:.2} GB/s ({:.2} of a plain copy's {:.2} GB/s)",
                r.seconds_p50 * 1e3,
                r.bus_bandwidth_gb_s,
                r.memory_bandwidth_gb_s,
                r.memory_bandwidth_gb_s / r.copy_gb_s,
                r.copy_gb_s
            ));
            Ok(0)
        }
    }
}

fn run_bench_loader(args: &BenchLoader) -> Result<u8> {
    let r = bench::loader(&bench::LoaderRequest {
        data: args.data.clone(),
        threads: args.threads,
        transform: args.transform.clone(),
        size: args.size,
        batch: args.batch,
        pixels: if args.floats { Pixels::Floats } else { Pixels::Bytes },
        seconds: args.seconds,
    })?;
    if args.json {
        return print_json(&r);
    }
    print(&format!(
        "{:.0} samples/s  {:.3} GB/s of {} {:?} ({:.2} of a plain copy's {:.2} GB/s)",
        r.samples_per_second,
        r.bytes_per_second / 1e9,
        r.dtype,
        r.shape,
        r.bytes_per_second / r.copy_bytes_per_second,
        r.copy_bytes_per_second / 1e9
    ));
    Ok(0)
}

fn run_tune(world: &WorldArgs, isa: &str, json: bool) -> Result<u8> {
    let r = match world::find_on_host(world, 2)? {
        World::Threads(ranks) => Some(bench::tune(ranks, isa)?),
        #[cfg(feature = "mpi")]
        World::Mpi(place) => world::run(&place, None, &say, |comm| {
            let report = phalanx_train::tuning::tune(&*comm)?;
            Ok((comm.rank() == 0).then_some(report))
        })?,
    };
    let Some(r) = r else { return Ok(0) };
    if json {
        return print_json(&r);
    }
    for size in &r.sizes {
        print(&format!("{:>6} MB  {:.3} ms", size.bucket_mb, size.seconds_p50 * 1e3));
    }
    let (mb, ranks, nodes, path) = (r.bucket_mb, r.ranks, r.nodes, r.saved_to.display());
    print(&format!("best: {mb} MB, for {ranks} ranks of {} on {nodes} machine(s), kept in {path}", r.comm));
    Ok(0)
}

fn run_bench_step(args: &BenchStep) -> Result<u8> {
    let world = world::find(&args.world, 1)?;
    let request = |ranks: u32| bench::StepRequest {
        model: args.model.clone(),
        input: args.input,
        classes: args.classes,
        batch: args.batch,
        ranks,
        virtual_shards: args.virtual_shards,
        device: DeviceChoice {
            name: args.device.name().to_owned(),
            share_gpu: args.share_gpu,
            sums: args.world.comm.into(),
        },
        precision: args.precision.into(),
        threads: args.common.threads,
        isa: args.common.isa.clone(),
        hidden: args.hidden.clone(),
        bucket_mb: args.bucket_mb,
        wire: args.wire.into(),
        seconds: args.seconds,
        train: matches!(args.mode, BenchMode::Train),
        profile: args.profile,
        cuda_graph: args.cuda_graph.into(),
    };
    let report = match world {
        World::Threads(ranks) => Some(bench::step(&request(ranks))?),
        #[cfg(feature = "mpi")]
        World::Mpi(place) => world::run(&place, None, &say, |comm| {
            let (speaks, ranks) = (comm.rank() == 0, comm.world());
            let report = bench::step_rank(&request(ranks), comm)?;
            Ok(speaks.then_some(report))
        })?,
    };
    let Some(report) = report else { return Ok(0) };
    let mut text = format!(
        "{:.0} samples/s  {:.3} ms a step  {:.1} GFLOP/s",
        report.samples_per_second, report.step_ms_p50, report.gflops
    );
    for what in &report.fallbacks {
        text.push_str(&format!("\nby a slow kernel: {what}"));
    }
    for kernel in &report.profile {
        text.push_str(&format!("\n{:9.3} ms {:6.1} x  {}", kernel.ms, kernel.runs, kernel.name));
    }
    show(&args.common, &report, &text)
}

fn run_bench_losses(args: &BenchLosses) -> Result<u8> {
    let request = bench::StepRequest {
        input: args.input,
        batch: args.batch,
        device: args.device.name().into(),
        precision: args.precision.into(),
        threads: args.common.threads,
        isa: args.common.isa.clone(),
        ..bench::StepRequest::of(&args.model)
    };
    let report = bench::losses(&request, args.steps)?;
    let text: Vec<String> = report.losses.iter().map(|loss| format!("{loss:.6}")).collect();
    show(&args.common, &report, &text.join("\n"))
}

fn show(common: &BenchCommon, report: &impl serde::Serialize, text: &str) -> Result<u8> {
    if common.json {
        return print_json(report);
    }
    print(text);
    Ok(0)
}

pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<u8> {
    print(&serde_json::to_string(value)?);
    Ok(0)
}

pub(crate) fn print_all(what: &impl std::fmt::Display) -> Result<u8> {
    print(what.to_string().trim_end());
    Ok(0)
}

/// Prints a line; a reader that has gone away is no reason to fail.
fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}
