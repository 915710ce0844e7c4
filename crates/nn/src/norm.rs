//! Running statistics of batch norms, and how the batches of several virtual shards become one update.
//!
//! Every shard is normalised by its own mean and variance. For the running statistics each gives its
//! sums (count, Σx, Σx²); summed over the shards' tree they are those of the whole global batch, as if
//! it had been one, whatever the number of ranks. An instance norm gives (samples, Σ mean, Σ variance) instead.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use phalanx_tensor::{Device, Reading, Shape, Tensor};

use crate::params::Find;
use crate::{Error, Result};

/// A norm's index, in order of registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NormId(pub u32);

/// How a norm's running statistics follow the batches unless it says otherwise: PyTorch's momentum.
pub const MOMENTUM: f64 = 0.1;

#[derive(Debug, Clone)]
struct Norm {
    name: String,
    mean: Vec<f32>,
    variance: Vec<f32>,
    batches: i64,
    /// The batch's share in the new running statistics.
    momentum: f64,
    /// What its records count.
    of: Counted,
    /// Where its sums begin in the flat vector.
    offset: usize,
}

/// What a norm's running statistics are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// The moments of all values of a channel in the batch: batch norm.
    Values,
    /// The means over the samples of each sample's own moments, variances unbiased: instance norm.
    Samples,
}

/// What one use of a norm in training saw: tensors of one value a channel.
#[derive(Debug)]
pub struct NormRecord {
    /// The norm.
    pub norm: NormId,
    /// Values of each channel, or samples.
    pub count: usize,
    /// Their mean.
    pub mean: Tensor,
    /// Their variance, biased; of samples the mean of their unbiased variances.
    pub variance: Tensor,
}

/// A shard's sums on their way to the host; a GPU goes on meanwhile, and the records may be dropped.
#[derive(Debug)]
pub struct Contribution {
    /// Norms and their counts.
    of: Vec<(NormId, usize)>,
    values: Reading,
}

impl Contribution {
    /// Begins to read what norms saw, and the tensors of `also` by the way.
    pub fn begin(records: &[NormRecord], also: &[&Tensor]) -> Result<Self> {
        let wanted: Vec<&Tensor> =
            records.iter().flat_map(|r| [&r.mean, &r.variance]).chain(also.iter().copied()).collect();
        let of = records.iter().map(|r| (r.norm, r.count)).collect();
        Ok(Contribution { of, values: Reading::begin(&wanted)? })
    }

    /// Waits for the values, adds the sums to `out`, as [`Norms::contribution`] does, and returns the elements of the tensors
    /// that were read by the way.
    pub fn add_to(self, norms: &Norms, out: &mut [f64]) -> Result<Vec<Vec<f64>>> {
        norms.check(out.len())?;
        let mut values = self.values.wait()?;
        let others = values.split_off(2 * self.of.len());
        for ((norm, count), values) in self.of.into_iter().zip(values.chunks_exact(2)) {
            norms.add(norm, count, [&values[0], &values[1]], out);
        }
        Ok(others)
    }
}

/// Values of a stored statistic.
#[derive(Debug, Clone, PartialEq)]
pub enum NormValues {
    /// Means and variances.
    Float(Vec<f32>),
    /// The number of batches.
    Count(i64),
}

/// All norms of a model.
#[derive(Debug, Clone, Default)]
pub struct Norms {
    norms: Vec<Norm>,
    len: usize,
    copies: Copies,
}

/// Running statistics in a GPU's memory, by norm, from their first use until they change.
#[derive(Debug, Default)]
struct Copies(Mutex<HashMap<NormId, (Tensor, Tensor)>>);

impl Clone for Copies {
    fn clone(&self) -> Self {
        Copies::default()
    }
}

impl Copies {
    fn table(&self) -> MutexGuard<'_, HashMap<NormId, (Tensor, Tensor)>> {
        // An entry is put in whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Norms {
    /// Registers a norm of `channels` channels: mean 0, variance 1, no batches.
    pub(crate) fn register(&mut self, name: String, channels: usize, momentum: f64, of: Counted) -> NormId {
        let id = NormId(self.norms.len() as u32);
        let norm = Norm {
            name,
            mean: vec![0.0; channels],
            variance: vec![1.0; channels],
            batches: 0,
            momentum,
            of,
            offset: self.len,
        };
        self.norms.push(norm);
        self.len += 1 + 2 * channels;
        id
    }

    /// The running mean and variance of a norm, as tensors.
    pub fn running(&self, id: NormId, device: &Device) -> Result<(Tensor, Tensor)> {
        let kept = device.gpu().is_some();
        let mut copies = self.copies.table();
        if let Some(copy) = copies.get(&id).filter(|copy| kept && copy.0.device().same(device)) {
            return Ok(copy.clone());
        }
        let norm = &self.norms[id.0 as usize];
        let channels = [norm.mean.len()];
        let made = (
            Tensor::from_slice(&norm.mean, channels, device)?,
            Tensor::from_slice(&norm.variance, channels, device)?,
        );
        if kept {
            copies.insert(id, made.clone());
        }
        Ok(made)
    }

    /// Makes the copies of all running statistics that a GPU keeps until they change, before memory of another kind is in use.
    pub fn keep_on(&self, device: &Device) -> Result<()> {
        if device.gpu().is_some() {
            (0..self.norms.len()).try_for_each(|i| self.running(NormId(i as u32), device).map(drop))?;
        }
        Ok(())
    }

    /// Length of the flat vector of sums.
    pub fn statistics_len(&self) -> usize {
        self.len
    }

    fn check(&self, got: usize) -> Result<()> {
        match got == self.len {
            true => Ok(()),
            false => Err(Error::Statistics { want: self.len, got }),
        }
    }

    /// Adds a shard's sums to `out`, which has [`Norms::statistics_len`] elements.
    pub fn contribution(&self, records: &[NormRecord], out: &mut [f64]) -> Result<()> {
        Contribution::begin(records, &[])?.add_to(self, out).map(drop)
    }

    /// Adds the sums of one record, whose count, mean and variance these are, to `out`, as [`Norms::contribution`] does.
    pub fn add(&self, norm: NormId, count: usize, [mean, variance]: [&[f64]; 2], out: &mut [f64]) {
        let norm = &self.norms[norm.0 as usize];
        let channels = norm.mean.len();
        let n = count as f64;
        let sums = &mut out[norm.offset..norm.offset + 1 + 2 * channels];
        sums[0] += n;
        for c in 0..channels {
            let square = match norm.of {
                Counted::Values => variance[c] + mean[c] * mean[c],
                Counted::Samples => variance[c],
            };
            sums[1 + c] += n * mean[c];
            sums[1 + channels + c] += n * square;
        }
    }

    /// Folds the sums of a whole step in, once. Norms that were not used keep what they have.
    pub fn fold(&mut self, sums: &[f64]) -> Result<()> {
        self.check(sums.len())?;
        self.copies = Copies::default();
        for norm in &mut self.norms {
            let channels = norm.mean.len();
            let sums = &sums[norm.offset..norm.offset + 1 + 2 * channels];
            let n = sums[0];
            if n <= 0.0 {
                continue;
            }
            norm.batches += 1;
            // As PyTorch: the running variance follows the unbiased one.
            let unbias = if n > 1.0 { n / (n - 1.0) } else { 1.0 };
            let m = norm.momentum;
            let follow = |old: f32, new: f64| ((1.0 - m) * f64::from(old) + m * new) as f32;
            for c in 0..channels {
                let mean = sums[1 + c] / n;
                let square = sums[1 + channels + c] / n;
                let variance = match norm.of {
                    Counted::Values => (square - mean * mean).max(0.0) * unbias,
                    Counted::Samples => square,
                };
                norm.mean[c] = follow(norm.mean[c], mean);
                norm.variance[c] = follow(norm.variance[c], variance);
            }
        }
        Ok(())
    }

    /// Names, shapes and values for a checkpoint.
    pub fn export(&self) -> Vec<(String, Vec<usize>, NormValues)> {
        let of = |n: &Norm| {
            let channels = vec![n.mean.len()];
            [
                (format!("{}.running_mean", n.name), channels.clone(), NormValues::Float(n.mean.clone())),
                (format!("{}.running_var", n.name), channels, NormValues::Float(n.variance.clone())),
                (format!("{}.num_batches_tracked", n.name), vec![], NormValues::Count(n.batches)),
            ]
        };
        self.norms.iter().flat_map(of).collect()
    }

    /// Sets all statistics from what `find` gives for their names. The number of batches may be missing,
    /// as in old PyTorch files.
    pub fn import(&mut self, find: &mut Find<f64>) -> Result<()> {
        self.copies = Copies::default();
        for norm in &mut self.norms {
            let channels = norm.mean.len();
            let mut get = |kind: &str| -> Result<Vec<f32>> {
                let name = format!("{}.{kind}", norm.name);
                let (shape, values) = find(&name).ok_or_else(|| Error::Missing { name: name.clone() })?;
                if shape != [channels] {
                    return Err(Error::Mismatch { name, want: [channels].into(), got: Shape::new(&shape) });
                }
                Ok(values.into_iter().map(|v| v as f32).collect())
            };
            let (mean, variance) = (get("running_mean")?, get("running_var")?);
            let count = find(&format!("{}.num_batches_tracked", norm.name));
            norm.batches = count.and_then(|(_, v)| v.first().copied()).unwrap_or(0.0) as i64;
            (norm.mean, norm.variance) = (mean, variance);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use phalanx_host::{Cpu, Isa};

    use super::*;

    fn record(norm: NormId, data: &[f32], device: &Device) -> NormRecord {
        let n = data.len() as f32;
        let mean = data.iter().sum::<f32>() / n;
        let variance = data.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n;
        let t = |v: f32| Tensor::from_slice(&[v], [1], device).unwrap();
        NormRecord { norm, count: data.len(), mean: t(mean), variance: t(variance) }
    }

    #[test]
    fn several_shards_fold_to_the_statistics_of_the_whole_batch() {
        let device = Device::cpu(Cpu::new(Isa::Portable, 1).unwrap());
        let all = [1.0f32, 4.0, -2.0, 0.5, 3.0, 9.0, 2.0];
        let mut results = Vec::new();
        for cut in [&[7usize][..], &[3, 4], &[1, 1, 5]] {
            let mut norms = Norms::default();
            let id = norms.register("bn".into(), 1, MOMENTUM, Counted::Values);
            let unused = norms.register("other".into(), 2, MOMENTUM, Counted::Values);
            let mut sums = vec![0.0; norms.statistics_len()];
            let mut at = 0;
            for &n in cut {
                norms.contribution(&[record(id, &all[at..at + n], &device)], &mut sums).unwrap();
                at += n;
            }
            norms.fold(&sums).unwrap();
            assert_eq!(norms.norms[unused.0 as usize].batches, 0);
            results.push((norms.norms[0].mean[0], norms.norms[0].variance[0], norms.norms[0].batches));
        }
        // torch.nn.BatchNorm1d(1) after one batch: 0.1 · mean; 0.9 + 0.1 · unbiased variance.
        let (mean, variance) = (17.5 / 7.0, 11.916_667);
        for (m, v, n) in results {
            assert!(
                (m - 0.1 * mean as f32).abs() < 1e-6 && (v - (0.9 + 0.1 * variance as f32)).abs() < 1e-5,
                "{m} {v}"
            );
            assert_eq!(n, 1);
        }
    }

    #[test]
    fn statistics_travel_by_name() {
        let mut a = Norms::default();
        a.register("bn".into(), 2, MOMENTUM, Counted::Values);
        a.fold(&[4.0, 1.0, 2.0, 3.0, 8.0]).unwrap();
        let stored = a.export();
        let mut b = Norms::default();
        b.register("bn".into(), 2, MOMENTUM, Counted::Values);
        let mut find = |name: &str| {
            let (_, shape, values) = stored.iter().find(|(n, ..)| n == name)?;
            Some((
                shape.clone(),
                match values {
                    NormValues::Float(v) => v.iter().map(|&x| f64::from(x)).collect(),
                    NormValues::Count(n) => vec![*n as f64],
                },
            ))
        };
        b.import(&mut find).unwrap();
        assert_eq!(b.export(), stored);
        b.register("more".into(), 1, MOMENTUM, Counted::Values);
        assert!(matches!(b.import(&mut find), Err(Error::Missing { name }) if name == "more.running_mean"));
    }
}
