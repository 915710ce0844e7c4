//! `phalanx predict`: the classes of image files, by a checkpoint of ours or somebody's weights.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use phalanx_data::{
    Codec, FieldSpec, LoaderConfig, Output, Picture, Pipeline, Pixels, Place, RecordField, Resample, Role,
    Source, Split, Transform, Value,
};
use phalanx_host::rng::Key;
use phalanx_host::{Arena, Cpu, DType, Isa};
use phalanx_nn::{Builder, Forward, Layer, ModelConfig, Norms, Params};
use phalanx_tensor::{Device, Tensor};
use serde::Serialize;

use crate::checkpoint::Progress;
use crate::config::{apply, explain};
use crate::machine::{DeviceChoice, Machine, Wanted};
use crate::weights::{self, Weights};
use crate::{Error, Result, memory, setup, table};

/// Images computed at once, where memory allows.
const BATCH: u64 = 32;

/// How an image file becomes what the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparation {
    /// The shorter side to 256 for a model of 224 (others in proportion), the middle cut out, normalised: torchvision's
    /// evaluation transform.
    Imagenet,
    /// Normalised, and nothing else: the image has the model's size.
    None,
}

/// What `phalanx predict` is asked.
#[derive(Debug, Clone)]
pub struct PredictRequest {
    /// The model's name; a checkpoint of ours tells it.
    pub model: Option<String>,
    /// Its options, as `key=value`.
    pub settings: Vec<String>,
    /// A file of weights, a checkpoint or a run directory.
    pub checkpoint: PathBuf,
    /// A file with a class's name in each line.
    pub labels: Option<PathBuf>,
    /// How images become samples: [`Preparation::Imagenet`] for models of 224x224x3, when left out.
    pub transform: Option<Preparation>,
    /// Height, width and channels of a sample, where neither the model's name nor a run tells them.
    pub input: Option<[usize; 3]>,
    /// Classes told of each image.
    pub top: usize,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Compute threads; 0 for all cores.
    pub threads: usize,
}

/// A class that an image may be of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    /// The class, from 0.
    pub class: usize,
    /// Its name; its number where none is known.
    pub name: String,
    /// The network's output for it.
    pub logit: f32,
    /// Its share after softmax.
    pub probability: f64,
}

/// What became of an image: the first classes, best first, or why there is none.
pub type Outcome = Result<Vec<Candidate>>;

/// A model with its weights, ready for images.
pub struct Predictor {
    device: Device,
    cpu: Arc<Cpu>,
    config: ModelConfig,
    params: Params,
    norms: Norms,
    names: Vec<String>,
    preparation: Preparation,
    /// The samples that the model was made for.
    input: [usize; 3],
    transforms: Vec<Transform>,
    /// The largest value of a pixel where the model was trained.
    max: f32,
    top: usize,
}

impl fmt::Debug for Predictor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Predictor")
            .field("config", &self.config)
            .field("input", &self.input)
            .finish_non_exhaustive()
    }
}

/// A softmax of logits, in double precision.
pub(crate) fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut shares: Vec<f64> = logits.iter().map(|&x| (f64::from(x) - f64::from(most)).exp()).collect();
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|s| *s /= sum);
    shares
}

/// What a run of ours tells of its model.
struct Run {
    model: ModelConfig,
    transforms: Vec<Transform>,
    /// Its training set, where it is at hand.
    set: Option<Arc<dyn Source>>,
}

impl Run {
    /// Fails when its training set cannot be opened, unless `request` has what is taken from the set.
    fn of(progress: &Progress, request: &PredictRequest) -> Result<Self> {
        let part = |keys: &[&str]| {
            let (first, rest) = keys.split_first()?;
            rest.iter().try_fold(progress.identity.get(*first)?, |at, key| at.get(*key)).cloned()
        };
        let broken = |e: toml::de::Error| Error::config("state.json, identity", explain(&e));
        let of = |key: &str| part(&[key]).and_then(|v| v.as_table().cloned()).unwrap_or_default();
        let model = table::read(&of("model")).map_err(broken)?;
        let LoaderConfig { transforms, .. } = table::read(&of("loader")).map_err(broken)?;
        let set = part(&["data", "train"]).and_then(|t| Some(t.as_str()?.to_owned()));
        // What depends on the set must not be guessed. The pixels' range may: sets that are not part of the program
        // are of bytes.
        let replaced = request.input.is_some() && request.labels.is_some();
        let set = match set.map(|name| phalanx_data::open(&name, Split::Train)) {
            Some(Err(e)) if !replaced => {
                let problem = format!(
                    "the run's training set, which tells the images' size and the classes' names, cannot be opened: \
                     {e}. Run this in the directory where the run was started, or give --input and --labels"
                );
                return Err(Error::config("data.train", problem));
            }
            opened => opened.and_then(phalanx_data::Result::ok),
        };
        Ok(Run { model, transforms, set })
    }
}

impl Predictor {
    /// Reads the weights and builds the model: for as many classes as they were trained for.
    pub fn new(request: &PredictRequest) -> Result<Self> {
        let weights = weights::read(&request.checkpoint)?;
        let run = weights.progress.as_ref().map(|progress| Run::of(progress, request)).transpose()?;
        let mut config = model_config(request, run.as_ref())?;
        let set = run.as_ref().and_then(|r| r.set.as_ref()).map(|set| set.schema());
        let image = set.and_then(|schema| schema.first(Role::Image));
        let usual = phalanx_nn::summarise(&config, None, None, 1)?;
        let of_set = image.and_then(|f| <[usize; 3]>::try_from(&f.shape[..]).ok());
        let input = request.input.or(of_set).unwrap_or(usual.input);
        let usual_classes = set.map_or(usual.classes, |s| s.classes.len());
        let heads = weights::heads(&config, input, usual_classes)?;
        let classes = weights::classes(&heads, &weights.arrays).unwrap_or(usual_classes);
        let (params, norms) = load(&mut config, input, classes, &weights)?;

        let threads = setup::threads_per_rank(request.threads, 1);
        let isa = Isa::choose("auto")?;
        let machine = Machine::open(&Wanted { choice: &request.device, isa, threads, exact: true })?;
        machine.tell_no_gpu();
        machine.load_kernels()?;
        let Machine { device, cpu, .. } = machine;
        let params = params.on(&device)?;
        let of_set = set.map_or_else(Vec::new, |s| s.classes.clone());
        let names = names(request.labels.as_deref(), of_set, classes)?;
        let photographs = input == [224, 224, 3];
        let preparation = request.transform.unwrap_or(match photographs {
            true => Preparation::Imagenet,
            false => Preparation::None,
        });
        let transforms = match &run {
            Some(run) => run.transforms.clone(),
            None => normalisation(&config, input[2])?,
        };
        let max = image.map_or(255.0, |f| f.max);
        let top = request.top.clamp(1, classes);
        Ok(Predictor { device, cpu, config, params, norms, names, preparation, input, transforms, max, top })
    }

    /// Computes images, several at once, and hands each one's outcome to `tell`, in their order. Fails where the
    /// model itself cannot be computed.
    pub fn run(&self, images: &[PathBuf], mut tell: impl FnMut(&Path, Outcome)) -> Result<()> {
        let mut kept: Option<Fitted> = None;
        let batch = self.most(self.input)?;
        for group in images.chunks(batch) {
            let mut samples: Vec<Option<Result<Sample>>> = group.iter().map(|_| None).collect();
            self.cpu.workers.chunks(&mut samples, 1, |i, place| {
                place.iter_mut().for_each(|p| *p = Some(self.prepare(&group[i])));
            });
            let mut samples = group.iter().zip(samples).peekable();
            while let Some((path, sample)) = samples.next() {
                let sample = match sample {
                    Some(Ok(sample)) => sample,
                    Some(Err(e)) => {
                        tell(path, Err(e));
                        continue;
                    }
                    None => continue,
                };
                let shape = sample.shape;
                let of_shape = kept.take_if(|kept| kept.shape == shape);
                let fitted = match of_shape.map_or_else(|| self.layers(shape), Ok) {
                    Ok(fitted) => kept.insert(fitted),
                    Err(e) => {
                        tell(path, Err(unfit(path, &e.to_string())));
                        continue;
                    }
                };
                let (mut pixels, mut paths) = (sample.pixels, vec![path]);
                let same = |next: &(&PathBuf, Option<Result<Sample>>)| matches!(&next.1, Some(Ok(s)) if s.shape == shape);
                while paths.len() < fitted.most
                    && let Some((path, Some(Ok(sample)))) = samples.next_if(same)
                {
                    pixels.extend(sample.pixels);
                    paths.push(path);
                }
                let logits = self.logits(&*fitted.layers, &pixels, paths.len(), shape)?;
                for (path, logits) in paths.iter().zip(logits.chunks_exact(self.names.len())) {
                    tell(path, self.candidates(path, logits));
                }
            }
        }
        Ok(())
    }

    /// Samples of a shape that may be computed at once. Fails when not one fits into memory.
    fn most(&self, shape: [usize; 3]) -> Result<usize> {
        let have = memory::now(&self.device)?;
        let most = memory::samples_at_once(&self.config, shape, self.names.len(), BATCH, have.as_ref())?;
        Ok(most as usize)
    }

    /// The model for samples of that shape. Fails when it takes none of it, or not one fits into memory.
    fn layers(&self, shape: [usize; 3]) -> Result<Fitted> {
        let most = self.most(shape)?;
        let layers = setup::layers_for(&self.config, shape, self.names.len(), &self.params)?;
        Ok(Fitted { shape, most, layers })
    }

    fn logits(
        &self,
        layers: &dyn Layer,
        pixels: &[f32],
        count: usize,
        [h, w, c]: [usize; 3],
    ) -> Result<Vec<f32>> {
        let forward = Forward::new(&self.params, &self.norms, &self.device, false, 0..0, Key::new(0));
        let images = Tensor::from_slice(pixels, [count, h, w, c], &self.device)?;
        Ok(layers.forward(&forward, &images)?.to_vec()?)
    }

    /// An image file as a sample.
    fn prepare(&self, path: &Path) -> Result<Sample> {
        let picture = Picture::read(path)?;
        let picture = match self.input[2] {
            1 => picture.into_grey(),
            3 => picture.into_rgb(),
            n => {
                let problem = format!("images have 1 or 3 channels, and the model takes {n}");
                return Err(unfit(path, &problem));
            }
        };
        let Picture { height, width, channels, pixels } = picture;
        let (shape, pixels) = match self.preparation {
            Preparation::None => ([height, width, channels], pixels),
            Preparation::Imagenet => {
                let side = self.input[0].min(self.input[1]);
                // 256 for 224.
                let place = Place::middle(height, width, (side * 256).div_ceil(224), side);
                ([side, side, channels], u8::resize(&pixels, [height, width, channels], place))
            }
        };
        // A file may hold a hundred million pixels: what the model cannot take must not become floats.
        if shape != self.input {
            self.layers(shape).map_err(|e| unfit(path, &e.to_string()))?;
        }
        // In the units of the set that the model was trained on.
        let spec = FieldSpec { dtype: DType::F32, ..FieldSpec::image(shape, self.max) };
        let stored: Vec<f32> = pixels.iter().map(|&x| f32::from(x) * (self.max / 255.0)).collect();
        let mut out = vec![0.0; pixels.len()];
        let bytes = bytemuck::cast_slice(&stored).to_vec();
        let record = RecordField { bytes, shape: shape.to_vec(), codec: Codec::Raw };
        // The picture has its size already.
        let rows: Vec<_> = self.transforms.iter().filter(|t| !t.sizes()).cloned().collect();
        let mut pipeline = Pipeline::new(&rows, &spec, false, Pixels::Floats)?;
        pipeline.run(&record, None, Output::Floats(&mut out))?;
        Ok(Sample { shape, pixels: out })
    }

    fn candidates(&self, path: &Path, logits: &[f32]) -> Outcome {
        if logits.iter().any(|x| !x.is_finite()) {
            return Err(unfit(path, "the model's outputs for it are not finite: the weights are not good"));
        }
        let shares = softmax(logits);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        // Of equals the lower number first, as the errors of an evaluation count.
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let candidate = |&class: &usize| Candidate {
            class,
            name: self.names[class].clone(),
            logit: logits[class],
            probability: shares[class],
        };
        Ok(order.iter().take(self.top).map(candidate).collect())
    }
}

/// The model's layers for samples of one shape.
struct Fitted {
    shape: [usize; 3],
    /// Samples that may be computed at once.
    most: usize,
    layers: Box<dyn Layer>,
}

/// A prepared image.
struct Sample {
    shape: [usize; 3],
    pixels: Vec<f32>,
}

/// An image that this model cannot take.
fn unfit(path: &Path, problem: &str) -> Error {
    phalanx_data::Error::Format { path: path.into(), problem: problem.to_owned() }.into()
}

/// The model that is asked for, or that the run had.
fn model_config(request: &PredictRequest, run: Option<&Run>) -> Result<ModelConfig> {
    let of_run = run.map(|r| r.model.clone());
    match (&request.model, of_run) {
        (None, Some(config)) if request.settings.is_empty() => Ok(config),
        (None, Some(_)) => {
            Err(Error::config("--set", "the checkpoint tells its model's options; give --model to tell them"))
        }
        (None, None) => {
            let problem = format!(
                "{} does not tell what model it is of: name it, as --model resnet50 (phalanx model list)",
                request.checkpoint.display()
            );
            Err(Error::config("--model", problem))
        }
        (Some(name), _) => {
            let mut table = toml::Table::new();
            request.settings.iter().try_for_each(|s| apply(&mut table, s))?;
            table.insert("name".into(), name.as_str().into());
            table::read(&table).map_err(|e| Error::config("model", explain(&e)))
        }
    }
}

/// Builds the model and gives it the weights. Layers that are for training alone may be missing in the file.
fn load(
    config: &mut ModelConfig,
    input: [usize; 3],
    classes: usize,
    weights: &Weights,
) -> Result<(Params, Norms)> {
    let mut b = Builder::new();
    phalanx_nn::build(config, input, classes, &mut b)?;
    let training_only = b.description().iter().filter(|d| d.training_only).map(|d| format!("{}.", d.path));
    let absent = |layer: &String| !weights.arrays.keys().any(|name| name.contains(layer.as_str()));
    let own = |layer: &String| b.specs().iter().any(|s| s.name.starts_with(layer.as_str()));
    let skip: Vec<String> = training_only.filter(|layer| absent(layer) && own(layer)).collect();
    let (params, mut norms) = b.finish(&mut Arena::zeroed)?;
    let loaded = weights::load(&params, Some(&mut norms), &weights.arrays, &skip);
    loaded.map_err(|e| weights::misfit(&weights.origin.path, e, Ok(Vec::new())))?;
    Ok((params, norms))
}

/// The classes' names: a line each of `labels`, or the set's, or numbers.
fn names(labels: Option<&Path>, of_set: Vec<String>, classes: usize) -> Result<Vec<String>> {
    let Some(path) = labels else {
        return Ok(match of_set.len() == classes {
            true => of_set,
            false => (0..classes).map(|n| n.to_string()).collect(),
        });
    };
    let place = format!("--labels {}", path.display());
    let text = fs::read_to_string(path)
        .map_err(|e| Error::config(place.as_str(), format!("it cannot be read: {e}")))?;
    let names: Vec<String> = text.lines().map(|l| l.trim().to_owned()).collect();
    if names.len() != classes {
        let problem = format!("it has {} lines, but the model has {classes} classes", names.len());
        return Err(Error::config(place, problem));
    }
    Ok(names)
}

/// How torchvision normalises images for its weights.
fn normalisation(config: &ModelConfig, channels: usize) -> Result<Vec<Transform>> {
    // Those of GoogLeNet come from elsewhere and were trained with one mean and deviation for all channels:
    // `transform_input` in torchvision's googlenet.py undoes the usual ones for them.
    let (mean, std) = match config.name.as_deref() {
        Some("googlenet") => ([0.5; 3], [0.5; 3]),
        _ => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    };
    if channels != 3 {
        return Ok(Vec::new());
    }
    let list = |numbers: [f64; 3]| Value::List(numbers.to_vec());
    Ok(vec![Transform::new("normalise", &[("mean", list(mean)), ("std", list(std))])?])
}

#[cfg(test)]
mod tests;
