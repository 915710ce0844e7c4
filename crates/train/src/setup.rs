//! From a configuration to what one rank computes with.

use std::sync::Arc;

use phalanx_comm::Communicator;
use phalanx_data::{Cores, LoaderConfig, Role, Source, check_fields, delivered};
use phalanx_host::{Arena, Isa};
use phalanx_nn::{Builder, EmaConfig, Layer, ModelConfig, Norms, Params};

use crate::config::Config;
use crate::machine::{DeviceChoice, Machine, Wanted};
use crate::task::{Classification, Criterion, Task};
use crate::{Error, Result};

/// A task with its model.
pub struct Model {
    /// What is trained.
    pub task: Box<dyn Task>,
    /// Its parameters, initialised from the seed.
    pub params: Params,
    /// Its norms' running statistics.
    pub norms: Norms,
}

/// Compute threads of each rank when the configuration leaves it open: the machine's cores shared out
/// among the ranks on it.
pub fn threads_per_rank(configured: usize, ranks_here: u32) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if configured > 0 { configured } else { (cores / ranks_here.max(1) as usize).max(1) }
}

/// What a rank of `comm`'s world computes a configuration with.
pub(crate) fn machine(
    config: &Config,
    choice: &DeviceChoice,
    isa: Isa,
    comm: &dyn Communicator,
) -> Result<Machine> {
    let threads = threads_per_rank(config.compute.threads, comm.locality().local_world);
    Machine::open_among(&Wanted { choice, isa, threads, exact: config.distributed.exact }, comm)
}

/// What a classification needs to know of a set.
pub(crate) struct Samples<'a> {
    /// Height, width and channels.
    pub(crate) input: [usize; 3],
    /// Classes.
    pub(crate) classes: usize,
    /// The images' field.
    pub(crate) image: &'a str,
    /// The labels' field.
    pub(crate) label: &'a str,
}

/// The loader's configuration for a rank of `comm`'s world on `machine`: what is left open there is told.
pub(crate) fn loader(config: &LoaderConfig, comm: &dyn Communicator, machine: &Machine) -> LoaderConfig {
    // On a GPU one thread feeds it, and the others of the rank have nothing to do.
    let compute = if machine.gpu().is_some() { 1 } else { machine.cpu.workers.threads() };
    let cores = Cores { all: threads_per_rank(0, comm.locality().local_world), compute };
    LoaderConfig { threads: config.threads.on(cores), ..config.clone() }
}

/// The images, as the loader delivers them, and labels of a set; fails when it lacks one of them.
pub(crate) fn samples<'a>(source: &'a dyn Source, loader: &LoaderConfig) -> Result<Samples<'a>> {
    let schema = source.schema();
    let missing = |what: &str| Error::config("data.train", format!("{} has no {what}", source.name()));
    let image = schema.first(Role::Image).ok_or_else(|| missing("images"))?;
    let label = schema.first(Role::Label).ok_or_else(|| missing("labels"))?;
    let input = delivered(loader, image)?;
    check_fields(loader, &schema.fields)?;
    let classes = schema.classes.len();
    Ok(Samples { input, classes, image: &image.name, label: &label.name })
}

/// Fails when what is evaluated on is not of the kind that is trained on, whose samples `train` describes: a class's number
/// must mean the same in both.
pub(crate) fn check_alike(
    train: (&dyn Source, &Samples<'_>),
    eval: &dyn Source,
    loader: &LoaderConfig,
) -> Result<()> {
    if eval.is_empty() {
        return Ok(());
    }
    let fail = |problem: String| Err(Error::config("data.eval", problem));
    let ((source, ours), names) = (train, [train.0.name(), eval.name()]);
    let theirs = match samples(eval, loader) {
        Ok(samples) => samples,
        Err(e) => return fail(format!("{} does not fit {}: {e}", names[1], names[0])),
    };
    let text = |[h, w, c]: [usize; 3]| format!("{h}x{w}x{c}");
    for (what, a, b) in [
        ("images are", text(ours.input), text(theirs.input)),
        ("the images' field is", ours.image.to_owned(), theirs.image.to_owned()),
        ("the labels' field is", ours.label.to_owned(), theirs.label.to_owned()),
        ("the number of classes is", ours.classes.to_string(), theirs.classes.to_string()),
    ] {
        if a != b {
            return fail(format!("{what} {a} in {} and {b} in {}", names[0], names[1]));
        }
    }
    // A set that has only numbers for its classes has no names that could contradict others.
    let named = |of: &dyn Source| of.schema().classes.iter().zip(0..).any(|(name, i)| *name != i.to_string());
    if !named(source) || !named(eval) {
        return Ok(());
    }
    let mut classes = source.schema().classes.iter().zip(&eval.schema().classes).enumerate();
    match classes.find(|(_, (a, b))| a != b) {
        None => Ok(()),
        Some((i, (a, b))) => fail(format!("class {i} is {a:?} in {} and {b:?} in {}", names[0], names[1])),
    }
}

/// Builds the configured model for the samples of `source`, its parameters in the memory of `machine`'s device.
pub(crate) fn classification(
    config: &Config,
    source: &dyn Source,
    comm: &Arc<dyn Communicator>,
    machine: &Machine,
) -> Result<Model> {
    let Samples { input, classes, image, label } = samples(source, &config.loader)?;
    let mut builder = Builder::new();
    let criterion = Criterion::new(&config.loss, classes)?;
    let layers = phalanx_nn::build(&config.model, input, classes, &mut builder)?;
    let (params, norms) = parameters_on(builder, config.seed, comm, machine)?;
    let task = Classification::new(layers, criterion, &params, config.optimizer.clone(), [image, label]);
    Ok(Model { task: Box::new(task), params, norms })
}

/// The configured model's layers for samples of another size, over the parameters of one that is there.
///
/// Fails when the parameters would be others: a model without a pooling to a fixed size takes one size only.
pub fn layers_for(
    config: &ModelConfig,
    input: [usize; 3],
    classes: usize,
    params: &Params,
) -> Result<Box<dyn Layer>> {
    let mut b = Builder::new();
    let layers = phalanx_nn::build(config, input, classes, &mut b)?;
    let ours = params.ids().map(|id| params.spec(id));
    let other =
        b.specs().iter().zip(ours).find(|(new, spec)| new.name != spec.name || new.shape != spec.shape);
    match other {
        None => Ok(layers),
        Some((new, spec)) => {
            let [h, w, c] = input;
            let problem = format!(
                "it was made for another size than {h}x{w}x{c}: {} would be {} and is {}",
                new.name,
                new.stored_shape(),
                spec.stored_shape()
            );
            Err(Error::config("the model", problem))
        }
    }
}

/// The parameters that a builder has registered, initialised from `seed`, in the memory of `machine`'s device.
pub(crate) fn parameters_on(
    builder: Builder,
    seed: u64,
    comm: &Arc<dyn Communicator>,
    machine: &Machine,
) -> Result<(Params, Norms)> {
    if machine.gpu().is_none() {
        return parameters(builder, seed, comm);
    }
    machine.load_kernels()?;
    // First values are made by the processor, so that they do not depend on where training goes on.
    let (params, norms) = builder.finish(&mut Arena::zeroed)?;
    params.initialise(seed)?;
    Ok((params.on(&machine.device)?, norms))
}

/// The parameters that a builder has registered, in memory of `comm`, initialised from `seed`.
pub fn parameters(builder: Builder, seed: u64, comm: &Arc<dyn Communicator>) -> Result<(Params, Norms)> {
    let mut failed = None;
    let mut alloc = |bytes: usize| match comm.alloc(bytes) {
        Ok(arena) => Ok(arena),
        Err(e) => {
            failed = Some(e);
            Arena::zeroed(0)
        }
    };
    let built = builder.finish(&mut alloc);
    if let Some(e) = failed {
        return Err(e.into());
    }
    let (params, norms) = built?;
    params.initialise(seed)?;
    Ok((params, norms))
}

/// Checks everything about a configuration that can be known without running it; where its data set is
/// at hand, also that the model fits the samples.
pub fn check(config: &Config) -> Result<()> {
    Isa::choose(&config.compute.isa)?;
    config.optimizer.check()?;
    config.schedule.check()?;
    config.loss.check(None)?;
    config.ema.as_ref().map_or(Ok(()), EmaConfig::check)?;
    config.model.check()?;
    match phalanx_data::open(&config.data.train, phalanx_data::Split::Train) {
        Ok(source) => {
            let schema = source.schema();
            config.loss.check(Some(schema.classes.len()))?;
            if let Some(image) = schema.first(Role::Image) {
                let input = delivered(&config.loader, image)?;
                phalanx_nn::build(&config.model, input, schema.classes.len(), &mut Builder::new())?;
            }
            Ok(())
        }
        // A configuration may be written before its data are fetched.
        Err(phalanx_data::Error::UnknownSet { .. }) if config.data.train.contains('/') => Ok(()),
        Err(e) => Err(e.into()),
    }
}
