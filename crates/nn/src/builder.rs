use phalanx_host::Arena;
use phalanx_tensor::Shape;

use crate::norm::{Counted, NormId, Norms};
use crate::params::{ParamId, ParamSpec, Params, Stored};
use crate::{Init, Result};

/// A layer of a built model, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its path in the model, as `layer1.0.conv2`.
    pub path: String,
    /// Its kind, as `conv`.
    pub kind: String,
    /// The shape of one sample after it.
    pub output: Shape,
    /// Whether its output, after the function that may follow, waits for the backward pass.
    pub kept: bool,
    /// Whether it is computed in training only.
    pub training_only: bool,
    /// Its trainable elements.
    pub parameters: usize,
    /// Multiply-adds of one sample.
    pub multiply_adds: u64,
}

/// Registers parameters and norms while a model is built; names are scoped like paths.
#[derive(Debug, Default)]
pub struct Builder {
    specs: Vec<ParamSpec>,
    norms: Norms,
    path: Vec<String>,
    described: Vec<Described>,
}

impl Builder {
    /// Nothing registered yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `build` with `name` in front of all names that it registers.
    pub fn scope<T>(&mut self, name: impl Into<String>, build: impl FnOnce(&mut Builder) -> T) -> T {
        self.path.push(name.into());
        let result = build(self);
        self.path.pop();
        result
    }

    pub(crate) fn path_push(&mut self, name: &str) {
        self.path.push(name.to_owned());
    }

    pub(crate) fn path_pop(&mut self) {
        self.path.pop();
    }

    /// The full name of `name` in this scope; the scope's own when `name` is empty.
    pub fn name(&self, name: &str) -> String {
        let parts = self.path.iter().map(String::as_str).chain([name]).filter(|p| !p.is_empty());
        parts.collect::<Vec<_>>().join(".")
    }

    /// The scope and the kind of the layer in it, as `layers.3 (conv)`: how messages name a layer.
    pub fn place(&self, kind: &str) -> String {
        format!("{} ({kind})", self.name(""))
    }

    /// Registers a parameter. `fans` are the inputs and outputs of one unit.
    pub fn param(
        &mut self,
        name: &str,
        shape: impl Into<Shape>,
        stored: Stored,
        decay: bool,
        init: Init,
        fans: [usize; 2],
    ) -> ParamId {
        let id = ParamId(self.specs.len() as u32);
        let (name, shape) = (self.name(name), shape.into());
        self.specs.push(ParamSpec { name, shape, stored, decay, init, fans });
        id
    }

    /// Registers the running statistics of a norm; `momentum` is a batch's share in the new ones, `of` what they are
    /// made of.
    pub fn norm(&mut self, channels: usize, momentum: f64, of: Counted) -> NormId {
        self.norms.register(self.name(""), channels, momentum, of)
    }

    /// The next parameter's index: where a part of a model (a phase's) begins or ends.
    pub fn next_param(&self) -> u32 {
        self.specs.len() as u32
    }

    /// Notes a layer for [`Builder::description`]. `from` is [`Builder::next_param`] before it.
    pub fn describe(&mut self, kind: &str, output: Shape, from: u32, multiply_adds: u64) {
        let parameters = self.specs[from as usize..].iter().map(|s| s.shape.numel()).sum();
        let (path, kind) = (self.name(""), kind.to_owned());
        let made =
            Described { path, kind, output, kept: true, training_only: false, parameters, multiply_adds };
        self.described.push(made);
    }

    /// Notes that nothing keeps the output of the last described layer for the backward pass.
    pub(crate) fn describe_unkept(&mut self) {
        if let Some(last) = self.described.last_mut() {
            last.kept = false;
        }
    }

    /// Notes that the layers described from index `from` on are computed in training only.
    pub(crate) fn describe_training_only(&mut self, from: usize) {
        self.described[from..].iter_mut().for_each(|d| d.training_only = true);
    }

    /// Changes how those parameters begin that were registered from index `from` on under a name that
    /// ends with `name`.
    pub(crate) fn begin(&mut self, from: u32, name: &str, init: Init) {
        let ours = self.specs[from as usize..].iter_mut().filter(|s| s.name.ends_with(name));
        ours.for_each(|s| s.init = init);
    }

    /// The parameters registered so far, in order.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// The layers, in order.
    pub fn description(&self) -> &[Described] {
        &self.described
    }

    /// Multiply-adds of one sample's forward pass in linear and convolution layers, as in evaluation.
    pub fn multiply_adds(&self) -> u64 {
        self.described
            .iter()
            .filter(|d| !d.training_only)
            .map(|d| d.multiply_adds)
            .fold(0, u64::saturating_add)
    }

    /// Multiply-adds of one sample's training step: each layer once forward and twice backward, but for
    /// the first one, whose input needs no gradient.
    pub fn training_multiply_adds(&self) -> u64 {
        let each = || self.described.iter().map(|d| d.multiply_adds);
        each().fold(0, u64::saturating_add).saturating_mul(3) - each().find(|m| *m > 0).unwrap_or(0)
    }

    /// Lays everything out; `alloc` gives the parameters' arena. They hold zeros until
    /// [`Params::initialise`].
    pub fn finish(
        self,
        alloc: &mut dyn FnMut(usize) -> phalanx_host::Result<Arena>,
    ) -> Result<(Params, Norms)> {
        Ok((Params::new(self.specs, alloc)?, self.norms))
    }
}
