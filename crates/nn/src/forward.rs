use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;

use phalanx_host::rng::Key;
use phalanx_tensor::{DType, Device, LeafId, Tensor};

use crate::Result;
use crate::norm::{NormId, NormRecord, Norms};
use crate::params::{ParamId, Params};

/// What layers are handed while they run: parameters, norms, random numbers, and a place to record what
/// training needs besides gradients. One for each step, phase and virtual shard.
#[derive(Debug)]
pub struct Forward<'a> {
    params: &'a Params,
    norms: &'a Norms,
    device: &'a Device,
    training: bool,
    trainable: Range<u32>,
    activations: Option<DType>,
    key: Key,
    drawn: Cell<u64>,
    handed: RefCell<HashMap<ParamId, Tensor>>,
    records: RefCell<Vec<NormRecord>>,
    auxiliary: RefCell<Vec<(f64, Tensor)>>,
}

impl<'a> Forward<'a> {
    /// A context in which `trainable` parameters are leaves of the graph and all others are constants,
    /// so that nothing is recorded for them. `key` names its random streams.
    pub fn new(
        params: &'a Params,
        norms: &'a Norms,
        device: &'a Device,
        training: bool,
        trainable: Range<u32>,
        key: Key,
    ) -> Self {
        Forward {
            params,
            norms,
            device,
            training,
            trainable,
            activations: None,
            key,
            drawn: Cell::new(0),
            handed: RefCell::default(),
            records: RefCell::default(),
            auxiliary: RefCell::default(),
        }
    }

    /// A context for the same parameters without training: nothing is recorded, norms use their running
    /// statistics, dropout lets all through. Its random streams are its own.
    pub fn inference(&self) -> Forward<'a> {
        Forward::new(self.params, self.norms, self.device, false, 0..0, self.next_key())
            .with_activations(self.activations)
    }

    /// The same context for networks whose activations have the type `dtype`, where it is given.
    pub fn with_activations(mut self, dtype: Option<DType>) -> Self {
        self.activations = dtype;
        self
    }

    /// The type of activations, where it is not that of what a network is given.
    pub fn activations(&self) -> Option<DType> {
        self.activations
    }

    /// What a network is given, in the type of its activations: this is the one cast, for all that follows has the type of
    /// what it is made of, and parameters stay in single precision.
    pub fn enter(&self, x: &Tensor) -> Result<Tensor> {
        match self.activations {
            Some(dtype) if x.dtype().is_float() => Ok(x.to(dtype)?),
            _ => Ok(x.clone()),
        }
    }

    /// Whether norms use the batch and dropout drops.
    pub fn training(&self) -> bool {
        self.training
    }

    /// The device.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// All parameters.
    pub fn params(&self) -> &'a Params {
        self.params
    }

    /// A parameter: a leaf named by its index when it is trainable here, a constant otherwise.
    pub fn param(&self, id: ParamId) -> Tensor {
        let make = || {
            let plain = self.params.tensor(id, self.device);
            if self.trainable.contains(&id.0) { plain.leaf_named(LeafId(u64::from(id.0))) } else { plain }
        };
        self.handed.borrow_mut().entry(id).or_insert_with(make).clone()
    }

    /// A random stream for the next layer that needs one; each call gives another.
    pub fn next_key(&self) -> Key {
        let n = self.drawn.get();
        self.drawn.set(n + 1);
        Forward::stream(self.key, n)
    }

    /// Random streams drawn so far.
    pub fn drawn(&self) -> u64 {
        self.drawn.get()
    }

    /// The `n`-th stream that a context with this key gives, from 0.
    pub fn stream(key: Key, n: u64) -> Key {
        key.derive(n, 0)
    }

    /// A norm's running mean and variance.
    pub fn running(&self, id: NormId) -> Result<(Tensor, Tensor)> {
        self.norms.running(id, self.device)
    }

    /// Keeps what a norm saw, for [`Norms::contribution`].
    pub fn record(&self, record: NormRecord) {
        self.records.borrow_mut().push(record);
    }

    /// What norms saw since the last call.
    pub fn take_statistics(&self) -> Vec<NormRecord> {
        self.records.take()
    }

    /// Hands on further logits of the network, which the loss counts with `weight` times its own: the
    /// auxiliary heads of GoogLeNet.
    pub fn add_auxiliary(&self, weight: f64, logits: Tensor) {
        self.auxiliary.borrow_mut().push((weight, logits));
    }

    /// The auxiliary logits since the last call, with their weights.
    pub fn take_auxiliary(&self) -> Vec<(f64, Tensor)> {
        self.auxiliary.take()
    }
}
