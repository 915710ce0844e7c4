//! A run's whole state as plain arrays: taken from an engine, put back into one on any number of ranks.

use phalanx_comm::Deadline;
use phalanx_host::DType;
use phalanx_nn::{Ema, NormValues, Norms, Params};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{from_safetensors, to_safetensors};
use crate::engine::Engine;
use crate::share::{bytes_from_rank_0, check_same_table};
use crate::task::{Array, Arrays, StateMap};
use crate::{Error, Result, weights};

/// Everything that the next step depends on, besides the configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Parameters and norms' running statistics, under torchvision's names and layouts.
    pub model: Arrays,
    /// The averaged parameters, under the same names; none unless an average is kept.
    pub ema: Arrays,
    /// The optimizers' state: `phase/state.parameter`.
    pub optimizer: Arrays,
    /// The task's state.
    pub task: StateMap,
    /// The optimizers' step counts, by phase.
    pub optimizer_steps: Vec<u64>,
}

/// The BLAKE3 hash, in hex, of a model's parameters and of its norms' running statistics: the raw
/// little-endian elements of each array of a checkpoint, in order of name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelHash {
    /// Of the parameters.
    pub params: String,
    /// Of the norms' running statistics.
    pub buffers: String,
    /// Of the averaged parameters, when an average is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<String>,
}

impl Snapshot {
    /// The first parameter that is not finite.
    pub fn first_non_finite(&self) -> Option<String> {
        let bad = |a: &Array| {
            a.dtype == DType::F32 && a.to_vec::<f32>().is_ok_and(|v| v.iter().any(|x| !x.is_finite()))
        };
        self.model.iter().find(|(_, a)| bad(a)).map(|(n, _)| n.clone())
    }
}

impl Engine {
    /// Takes a snapshot. A meeting of all ranks, since the shards' states are gathered; ranks that do not
    /// `keep` it get an empty one.
    pub fn snapshot(&self, keep: bool) -> Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        if keep {
            snapshot.model = self.model_arrays()?;
            snapshot.ema =
                self.ema.as_ref().map(|e| param_arrays(e.average())).transpose()?.unwrap_or_default();
        }
        let optimizers = self.optimizers.iter().filter(|_| keep);
        for (phase, optimizer) in self.task.phases().iter().zip(optimizers) {
            for (name, (shape, values)) in optimizer.export(&self.params)? {
                snapshot.optimizer.insert(format!("{}/{name}", phase.name), Array::new(&shape, &values));
            }
            snapshot.optimizer_steps.push(optimizer.steps());
        }
        let (mine, held) = (self.task.state(), self.shards()?);
        if let Some(shard) = mine.shards.keys().find(|s| !held.contains(s)) {
            let problem = format!("it gives state of shard {shard}, but this rank holds {held:?}");
            return Err(Error::Task { task: self.task.name(), problem });
        }
        check_same_table(&*self.comm, "the task's shared state", || {
            let hash = |a: &Array| blake3::hash(&a.bytes).to_hex().as_str().to_owned();
            Ok(mine.shared.iter().map(|(n, a)| (n.clone(), hash(a).into())).collect())
        })?;
        snapshot.task.shared = mine.shared;
        let flat: Arrays = mine
            .shards
            .into_iter()
            .flat_map(|(shard, arrays)| arrays.into_iter().map(move |(n, a)| (format!("{shard}/{n}"), a)))
            .collect();
        let bytes = if flat.is_empty() { Vec::new() } else { to_safetensors(&flat)? };
        let deadline = Deadline::after(self.options.deadline);
        let parts = self.comm.all_gather(&bytes, deadline)?;
        for part in parts.into_iter().filter(|p| keep && !p.is_empty()) {
            for (name, array) in from_safetensors(&part)? {
                snapshot.task.insert_sharded(&name, array)?;
            }
        }
        Ok(snapshot)
    }

    /// Puts a snapshot back. Fails, naming the array, when the model or the optimizer is another one.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.restore_model(&snapshot.model)?;
        if let Some(ema) = &self.ema {
            if snapshot.ema.is_empty() {
                let problem = "the checkpoint has no averaged weights: it is of a run without this table";
                return Err(Error::config("ema", problem));
            }
            weights::load(ema.average(), None, &snapshot.ema, &[]).map_err(misfit)?;
        }
        let phases = self.task.phases().iter().zip(&mut self.optimizers).zip(&snapshot.optimizer_steps);
        for ((phase, optimizer), &steps) in phases {
            optimizer.import(&self.params, steps, &mut |name| {
                let array = snapshot.optimizer.get(&format!("{}/{name}", phase.name))?;
                Some((array.shape.clone(), array.to_vec::<f32>().ok()?))
            })?;
        }
        let mine = self.shards()?;
        let shards = snapshot.task.shards.range(mine).map(|(s, a)| (*s, a.clone())).collect();
        self.task.load_state(StateMap { shared: snapshot.task.shared.clone(), shards })
    }

    fn restore_model(&mut self, model: &Arrays) -> Result<()> {
        weights::load(&self.params, Some(&mut self.norms), model, &[]).map(drop).map_err(misfit)
    }

    /// Begins with the parameters and running statistics of rank 0. A meeting of all ranks.
    pub(crate) fn take_model_of_rank_0(&mut self) -> Result<()> {
        if self.comm.world() > 1 {
            let mine =
                if self.comm.rank() == 0 { Some(to_safetensors(&self.model_arrays()?)?) } else { None };
            let model = bytes_from_rank_0(&*self.comm, mine.as_deref())?;
            if mine.is_none() {
                self.restore_model(&from_safetensors(&model)?)?;
            }
        }
        // The average begins with what the model begins with, which loaded weights may have changed: on one rank,
        // too.
        self.ema = self.options.ema.as_ref().map(|config| Ema::new(config, &self.params)).transpose()?;
        Ok(())
    }

    /// Parameters and norms under their checkpoint names.
    fn model_arrays(&self) -> Result<Arrays> {
        let mut arrays = param_arrays(&self.params)?;
        arrays.extend(norm_arrays(&self.norms));
        Ok(arrays)
    }

    /// The hash of the model as it is.
    pub fn hash(&self) -> Result<ModelHash> {
        let is_param = |name: &str| self.params.find(name).is_some();
        let mut hashers = [blake3::Hasher::new(), blake3::Hasher::new()];
        for (name, array) in &self.model_arrays()? {
            hashers[usize::from(!is_param(name))].update(&array.bytes);
        }
        let [params, buffers] = hashers.map(|h| h.finalize().to_hex().to_string());
        let ema = self.ema.as_ref().map(|e| param_arrays(e.average())).transpose()?.map(|arrays| {
            let mut hasher = blake3::Hasher::new();
            arrays.values().for_each(|a| {
                hasher.update(&a.bytes);
            });
            hasher.finalize().to_hex().to_string()
        });
        Ok(ModelHash { params, buffers, ema })
    }
}

/// Parameters under their checkpoint names.
pub(crate) fn param_arrays(params: &Params) -> Result<Arrays> {
    let arrays = params.ids().map(|id| {
        let (shape, values) = params.export(id)?;
        Ok((params.spec(id).name.clone(), Array::new(&shape, &values)))
    });
    arrays.collect()
}

/// Norms' running statistics under their checkpoint names.
pub(crate) fn norm_arrays(norms: &Norms) -> Arrays {
    let array = |shape: &[usize], values| match values {
        NormValues::Float(v) => Array::new(shape, &v),
        NormValues::Count(n) => Array::new(shape, &[n]),
    };
    norms.export().into_iter().map(|(name, shape, values)| (name, array(&shape, values))).collect()
}

fn misfit(e: weights::LoadError) -> Error {
    Error::config("model", format!("the checkpoint is of another model: {e}"))
}

impl StateMap {
    /// Puts an array named `shard/name` in its place.
    pub(crate) fn insert_sharded(&mut self, name: &str, array: Array) -> Result<()> {
        let parsed = name.split_once('/').and_then(|(s, n)| Some((s.parse::<u32>().ok()?, n)));
        let (shard, name) = parsed.ok_or_else(|| {
            Error::config("state", format!("{name:?} does not begin with a virtual shard's number"))
        })?;
        self.shards.entry(shard).or_default().insert(name.to_owned(), array);
        Ok(())
    }
}
