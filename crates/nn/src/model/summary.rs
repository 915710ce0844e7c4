//! What a model consists of and what it costs, for people: `phalanx model`.

use std::fmt;

use serde::Serialize;

use super::{ModelConfig, build, zoo};
use crate::{Builder, Result};

/// A named model at the input that it was made for.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: &'static str,
    /// Other names, of it or of it with an option set.
    pub aliases: Vec<&'static str>,
    /// Its options in the `[model]` table.
    pub options: &'static [&'static str],
    /// Height, width and channels of the input.
    pub input: [usize; 3],
    /// Classes.
    pub classes: usize,
    /// Trainable elements.
    pub parameters: u64,
    /// Multiply-adds of one sample's forward pass.
    pub multiply_adds: u64,
    /// Where it was published.
    pub paper: &'static str,
}

/// All named models.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Listing(Vec<Listed>);

/// Lists the named models.
pub fn list() -> Result<Listing> {
    let one = |m: &zoo::NamedModel| {
        let s = summarise(&ModelConfig::named(m.name), None, None, 1)?;
        Ok(Listed {
            name: m.name,
            aliases: zoo::aliases(m.name).collect(),
            options: m.options,
            input: m.input,
            classes: m.classes,
            parameters: s.parameters,
            multiply_adds: s.multiply_adds,
            paper: m.paper,
        })
    };
    zoo::MODELS.iter().map(one).collect::<Result<_>>().map(Listing)
}

/// A layer of a [`Summary`].
#[derive(Debug, Clone, Serialize)]
pub struct LayerSummary {
    /// Its path in the model.
    pub layer: String,
    /// Its kind.
    pub kind: String,
    /// The shape of its output without the batch: height, width, channels, or a vector's length.
    pub output: Vec<usize>,
    /// Trainable elements.
    pub parameters: u64,
    /// Multiply-adds of one sample's forward pass.
    pub multiply_adds: u64,
    /// Bytes of its output for the whole batch.
    pub activation_bytes: u64,
}

/// What a model consists of, and what it costs at a batch.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The model's name; none for rows of layers.
    pub model: Option<String>,
    /// Height, width and channels of a sample.
    pub input: [usize; 3],
    /// Classes.
    pub classes: usize,
    /// Samples computed at once.
    pub batch: u64,
    /// The layers in order, without the functions of single elements and dropout.
    pub layers: Vec<LayerSummary>,
    /// Trainable elements.
    pub parameters: u64,
    /// Multiply-adds of one sample's forward pass in linear and convolution layers.
    pub multiply_adds: u64,
    /// Twice that, in 10⁹.
    pub gflop: f64,
    /// The same of one sample's training step, in 10⁹ floating-point operations.
    pub training_gflop: f64,
    /// Memory of a training step in single precision.
    pub memory: Memory,
}

/// Bytes that a training step needs in single precision. Workspaces of kernels and gradients of activations
/// come on top.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// The parameters.
    pub parameters: u64,
    /// Their gradients.
    pub gradients: u64,
    /// The optimizer's state: one number a parameter, as SGD with momentum has.
    pub optimizer: u64,
    /// The batch and the outputs that wait for the backward pass.
    pub activations: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        sum([self.parameters, self.gradients, self.optimizer, self.activations])
    }
}

impl Summary {
    /// Bytes of one sample.
    pub fn sample_bytes(&self) -> u64 {
        count(&self.input).saturating_mul(F32)
    }
}

/// Bytes of an element.
const F32: u64 = size_of::<f32>() as u64;

/// The elements of a shape. A number past all counting is told as the largest, since sizes may be whatever a user
/// has typed.
fn count(sizes: &[usize]) -> u64 {
    sizes.iter().fold(1, |n, &size| n.saturating_mul(size as u64))
}

/// A sum, at most the largest number.
fn sum(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().fold(0, u64::saturating_add)
}

/// Builds the model without values and adds up what its layers tell. Input and classes are those that
/// it was made for when left out.
pub fn summarise(
    config: &ModelConfig,
    input: Option<[usize; 3]>,
    classes: Option<usize>,
    batch: u64,
) -> Result<Summary> {
    config.check()?;
    let usual = match &config.name {
        Some(name) => zoo::resolve(name, config)?.0.made_for(),
        None => zoo::IMAGENET,
    };
    let (input, classes) = (input.unwrap_or(usual.0), classes.unwrap_or(usual.1));
    let mut b = Builder::new();
    build(config, input, classes, &mut b)?;
    let bytes = |shape: &[usize]| count(shape).saturating_mul(F32).saturating_mul(batch);
    let layers = b.description().iter().map(|d| LayerSummary {
        layer: d.path.clone(),
        kind: d.kind.clone(),
        output: d.output.to_vec(),
        parameters: d.parameters as u64,
        multiply_adds: d.multiply_adds,
        activation_bytes: bytes(&d.output),
    });
    let layers: Vec<LayerSummary> = layers.collect();
    let kept = b.description().iter().filter(|d| d.kept).map(|d| bytes(&d.output));
    let activations = sum(kept.chain([bytes(&input)]));
    let parameters = sum(layers.iter().map(|l| l.parameters));
    let each = parameters.saturating_mul(F32);
    Ok(Summary {
        model: config.name.clone(),
        input,
        classes,
        batch,
        parameters,
        multiply_adds: b.multiply_adds(),
        gflop: 2e-9 * b.multiply_adds() as f64,
        training_gflop: 2e-9 * b.training_multiply_adds() as f64,
        memory: Memory { parameters: each, gradients: each, optimizer: each, activations },
        layers,
    })
}

/// A count with its unit of thousands, as `61.1 M`.
fn short(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n} "),
    }
}

/// Sizes, as `224x224x3`.
fn sizes(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["model", "input", "parameters", "multiply-adds"];
        writeln!(f, "{:<17}{:<12}{:>11}{:>15}  from", head[0], head[1], head[2], head[3])?;
        for m in &self.0 {
            let (input, parameters, work) = (sizes(&m.input), short(m.parameters), short(m.multiply_adds));
            writeln!(f, "{:<17}{input:<12}{parameters:>11}{work:>15}  {}", m.name, m.paper)?;
            if !m.aliases.is_empty() {
                writeln!(f, "  also {}", m.aliases.join(", "))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, batch) = (self.model.as_deref().unwrap_or("the model"), self.batch);
        writeln!(
            f,
            "{name}: samples of {}, {} classes, batches of {batch}",
            sizes(&self.input),
            self.classes
        )?;
        let width = self.layers.iter().map(|l| l.layer.len()).max().unwrap_or(0).max(5);
        let head = ["layer", "kind", "output", "parameters", "multiply-adds", "activations"];
        let [a, b, c, d, e, g] = head;
        writeln!(f, "{a:<width$}  {b:<18}{c:>14}{d:>13}{e:>15}{g:>13}")?;
        for l in &self.layers {
            let (output, work) = (sizes(&l.output), short(l.multiply_adds));
            let (parameters, bytes) = (l.parameters, short(l.activation_bytes));
            writeln!(
                f,
                "{:<width$}  {:<18}{output:>14}{parameters:>13}{work:>15}{bytes:>12}B",
                l.layer, l.kind
            )?;
        }
        let m = &self.memory;
        writeln!(f, "parameters     {} ({}B)", self.parameters, short(m.parameters))?;
        writeln!(
            f,
            "multiply-adds  {} a sample: {:.2} GFLOP forward, {:.2} in a training step",
            short(self.multiply_adds).trim_end(),
            self.gflop,
            self.training_gflop
        )?;
        write!(
            f,
            "training       {}B: parameters {}B, gradients {}B, momentum {}B, activations {}B",
            short(m.total()),
            short(m.parameters),
            short(m.gradients),
            short(m.optimizer),
            short(m.activations)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_past_all_counting_are_the_largest() {
        let text = "layers = [{ type = \"global-avg-pool\" }, { type = \"linear\" }]";
        let config: ModelConfig = toml::from_str(text).unwrap();
        let of = |side, batch| summarise(&config, Some([side, side, 3]), Some(10), batch).unwrap();
        let usual = of(8, 2);
        assert_eq!((usual.sample_bytes(), usual.memory.activations), (4 * 192, 8 * (192 + 3 + 10)));
        let large = of(1 << 32, 1);
        assert_eq!((large.sample_bytes(), large.memory.activations), (u64::MAX, u64::MAX));
        assert_eq!((large.memory.total(), large.memory.parameters), (u64::MAX, 4 * 40));
        assert_eq!(of(8, u64::MAX).layers[0].activation_bytes, u64::MAX);
    }
}
