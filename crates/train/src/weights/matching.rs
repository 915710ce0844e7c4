//! From named arrays to a model: the one place that says whether they are its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use phalanx_nn::{Builder, ModelConfig, Norms, Params};

use crate::snapshot::norm_arrays;
use crate::task::{Array, Arrays};
use crate::{Error, Result};

/// What counts a norm's batches: PyTorch files before 0.4.1 lack it, and nothing computes with it.
const COUNT: &str = ".num_batches_tracked";

/// What wrappers of a model put in front of all of its names: `DistributedDataParallel`, `torch.compile`, and
/// dictionaries of dictionaries written flat.
const WRAPPERS: [&str; 4] = ["module.", "_orig_mod.", "state_dict.", "model."];

/// Names of a kind that are told before the rest is counted.
const TOLD: usize = 6;

/// How arrays differ from what a model has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Misfit {
    /// What the model has and the file lacks, sorted.
    pub missing: Vec<String>,
    /// What the file has and the model lacks, sorted.
    pub extra: Vec<String>,
    /// What has another shape, or no floating-point type: the name, and what it is there and here.
    pub misshaped: Vec<(String, String)>,
}

impl Misfit {
    fn is_none(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.misshaped.is_empty()
    }
}

/// Some of the names and the number of the rest.
fn told(names: impl ExactSizeIterator<Item = String>) -> String {
    let rest = names.len().saturating_sub(TOLD);
    let mut text = names.take(TOLD).collect::<Vec<_>>().join(", ");
    if rest > 0 {
        text += &format!(" and {rest} more");
    }
    text
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let misshaped = self.misshaped.iter().map(|(name, how)| format!("{name} {how}"));
        let parts = [
            ("of another shape", self.misshaped.len(), told(misshaped)),
            ("missing", self.missing.len(), told(self.missing.iter().cloned())),
            ("too many", self.extra.len(), told(self.extra.iter().cloned())),
        ];
        let parts = parts.iter().filter(|p| p.1 > 0).map(|(what, n, names)| format!("{n} {what} ({names})"));
        f.write_str(&parts.collect::<Vec<_>>().join("; "))
    }
}

/// Why arrays were not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// They are not the model's.
    #[error("{0}")]
    Misfit(Misfit),
    /// A word to skip that begins no name.
    #[error("skip has {0:?}, but no tensor of the model begins with it")]
    Skip(String),
    /// From the nn room.
    #[error(transparent)]
    Nn(#[from] phalanx_nn::Error),
}

/// Sets parameters and running statistics from arrays in torchvision's names and layouts; with no `norms`, only
/// the parameters. What begins with a word of `skip` is left as it is, on either side. Returns the names of the
/// model's arrays that were left, sorted.
///
/// Nothing is changed when something does not fit.
pub fn load(
    params: &Params,
    norms: Option<&mut Norms>,
    arrays: &Arrays,
    skip: &[String],
) -> std::result::Result<Vec<String>, LoadError> {
    let mut wanted: BTreeMap<String, Vec<usize>> =
        params.ids().map(|id| (params.spec(id).name.clone(), params.stored_shape(id).to_vec())).collect();
    let held = norms.as_deref().map(norm_arrays).unwrap_or_default();
    wanted.extend(held.iter().map(|(name, array)| (name.clone(), array.shape.clone())));
    if let Some(prefix) = skip.iter().find(|p| !wanted.keys().any(|name| name.starts_with(p.as_str()))) {
        return Err(LoadError::Skip(prefix.clone()));
    }
    let skipped = |name: &str| skip.iter().any(|prefix| name.starts_with(prefix.as_str()));
    let theirs = renamed(arrays, |name| wanted.contains_key(name));
    let misfit = compare(&wanted, &theirs, skipped);
    if !misfit.is_none() {
        return Err(LoadError::Misfit(misfit));
    }
    for id in params.ids().filter(|&id| !skipped(&params.spec(id).name)) {
        if let Some((array, values)) = theirs.get(&params.spec(id).name).and_then(|a| Some((a, a.floats()?)))
        {
            params.import(id, &array.shape, &values)?;
        }
    }
    if let Some(norms) = norms {
        norms.import(&mut |name| {
            let array = if skipped(name) { held.get(name) } else { theirs.get(name).copied() }?;
            let values = match array.floats() {
                Some(values) => values.into_iter().map(f64::from).collect(),
                // The number of batches.
                None => array.to_vec::<i64>().ok()?.into_iter().map(|n| n as f64).collect(),
            };
            Some((array.shape.clone(), values))
        })?;
    }
    Ok(wanted.into_keys().filter(|name| skipped(name)).collect())
}

fn compare(
    wanted: &BTreeMap<String, Vec<usize>>,
    theirs: &BTreeMap<String, &Array>,
    skipped: impl Fn(&str) -> bool,
) -> Misfit {
    let mut misfit = Misfit::default();
    for (name, shape) in wanted.iter().filter(|(name, _)| !skipped(name) && !name.ends_with(COUNT)) {
        let how = match theirs.get(name) {
            None => {
                misfit.missing.push(name.clone());
                continue;
            }
            Some(array) if array.shape != *shape => format!("is {:?} there and {shape:?} here", array.shape),
            Some(array) if !array.dtype.is_float() => format!("is {} there", array.dtype),
            Some(_) => continue,
        };
        misfit.misshaped.push((name.clone(), how));
    }
    let known = |name: &str| wanted.contains_key(name) || skipped(name) || name.ends_with(COUNT);
    misfit.extra = theirs.keys().filter(|name| !known(name)).cloned().collect();
    misfit
}

/// The arrays under the model's names: without what wrappers put in front of all of them, and with the names
/// that torchvision's DenseNets had first.
fn renamed(arrays: &Arrays, wants: impl Fn(&str) -> bool) -> BTreeMap<String, &Array> {
    let mut cut = 0;
    let any_wanted = |cut: usize| arrays.keys().any(|name| wants(&name[cut..]));
    while !any_wanted(cut)
        && let Some(wrapper) = WRAPPERS
            .iter()
            .find(|w| !arrays.is_empty() && arrays.keys().all(|name| name[cut..].starts_with(**w)))
    {
        cut += wrapper.len();
    }
    let own = |(name, array)| {
        let name: &String = name;
        let name = &name[cut..];
        let new = without_dots(name).filter(|new| !wants(name) && wants(new));
        (new.unwrap_or_else(|| name.to_owned()), array)
    };
    arrays.iter().map(own).collect()
}

/// `denselayer1.norm.1.weight` as `denselayer1.norm1.weight`: torchvision's DenseNets had the dots first, and its
/// public files still have (`_load_state_dict` in its densenet.py).
fn without_dots(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let at = parts.windows(3).position(|w| {
        w[0].starts_with("denselayer") && matches!(w[1], "norm" | "conv") && matches!(w[2], "1" | "2")
    })?;
    let joined = format!("{}{}", parts[at + 1], parts[at + 2]);
    let parts = parts[..=at].iter().copied().chain([&*joined]).chain(parts[at + 3..].iter().copied());
    Some(parts.collect::<Vec<_>>().join("."))
}

/// What of a model depends on the number of classes: the name of each such parameter and the axis along which it
/// has one entry a class.
pub fn heads(config: &ModelConfig, input: [usize; 3], classes: usize) -> Result<Vec<(String, usize)>> {
    let specs = |classes| {
        let mut b = Builder::new();
        phalanx_nn::build(config, input, classes, &mut b)?;
        Ok::<_, Error>(b.specs().to_vec())
    };
    // Rows of layers may fix the number: then nothing depends on it.
    let Ok(other) = specs(classes + 1) else { return Ok(Vec::new()) };
    let axis = |a: &[usize], b: &[usize]| (0..a.len()).find(|&i| a[i] == classes && b[i] == classes + 1);
    let pairs = specs(classes)?.into_iter().zip(other);
    Ok(pairs
        .filter_map(|(a, b)| Some((a.name.clone(), axis(&a.stored_shape(), &b.stored_shape())?)))
        .collect())
}

/// The number of classes that arrays were trained for; none when the model's heads are not among them, or do not
/// agree.
pub fn classes(heads: &[(String, usize)], arrays: &Arrays) -> Option<usize> {
    let names: BTreeSet<&str> = heads.iter().map(|(name, _)| name.as_str()).collect();
    let theirs = renamed(arrays, |name| names.contains(name));
    let mut found = heads.iter().filter_map(|(name, axis)| theirs.get(name)?.shape.get(*axis).copied());
    let first = found.next().filter(|&n| n > 0)?;
    found.all(|n| n == first).then_some(first)
}

impl Misfit {
    /// Whether nothing but the number of classes is another; then what to skip for a new head.
    pub fn other_classes(&self, heads: &[(String, usize)]) -> Option<Vec<String>> {
        let is_head = |name: &String| heads.iter().any(|(head, _)| head == name);
        let all = !self.misshaped.is_empty() && self.misshaped.iter().all(|(name, _)| is_head(name));
        let layers = heads.iter().map(|(name, _)| match name.rsplit_once('.') {
            Some((layer, _)) => format!("{layer}."),
            None => name.clone(),
        });
        let layers: BTreeSet<String> = layers.collect();
        (all && self.missing.is_empty() && self.extra.is_empty()).then(|| layers.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
