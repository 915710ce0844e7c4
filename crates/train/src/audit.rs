//! The replica audit: do all ranks still have the same model?

use phalanx_comm::side::host_name;
use phalanx_nn::{Ema, NormValues, Params};

use crate::engine::Engine;
use crate::{Error, Result};

/// A hash's bytes.
const HASH: usize = blake3::OUT_LEN;

impl Engine {
    /// Compares all ranks' parameters, their average and running statistics after `step` steps; `since` is when they were
    /// last known to be equal. A meeting of all ranks, which all get the same [`Error::Diverged`].
    ///
    /// A compute thread hashes 1.5 to 2.2 GB/s (measured), so a model of 25 million parameters takes one some
    /// 60 ms: every 1000 steps of 60 ms that is 0.1 %. A GPU hashes its own. Nothing but a hash travels as long as all are equal.
    pub fn audit(&self, step: u64, since: u64) -> Result<()> {
        let (rank, world) = (self.comm.rank(), self.comm.world());
        if world == 1 {
            return Ok(());
        }
        let all = self.comm.all_gather(self.digest()?.as_bytes(), self.comm.deadline())?;
        if all.iter().all(|h| *h == all[0]) {
            return Ok(());
        }
        let mine = self.tensor_hashes()?;
        let hashes: Vec<u8> = mine.iter().flat_map(|(_, h)| *h.as_bytes()).collect();
        let all = self.comm.all_gather(&hashes, self.comm.deadline())?;
        let hosts = self.comm.all_gather(host_name().as_bytes(), self.comm.deadline())?;
        let (tensor, ranks) = first_difference(&all).unwrap_or((0, vec![rank]));
        let place = |r: u32| match hosts.get(r as usize).map(|h| String::from_utf8_lossy(h)) {
            Some(host) if !host.is_empty() => format!("rank {r} ({host})"),
            _ => format!("rank {r}"),
        };
        let tensor = mine.into_iter().nth(tensor).map(|(name, _)| name).unwrap_or_default();
        Err(Error::Diverged { tensor, ranks: ranks.into_iter().map(place).collect(), world, step, since })
    }

    /// The hash of everything that must be equal.
    fn digest(&self) -> Result<blake3::Hash> {
        let mut all = blake3::Hasher::new();
        for params in self.replicated() {
            params.piece_hashes(&self.cpu.workers)?.iter().for_each(|hash| {
                all.update(hash);
            });
        }
        self.norm_hashes().iter().for_each(|(_, hash)| {
            all.update(hash.as_bytes());
        });
        Ok(all.finalize())
    }

    /// The parameters and, where it is kept, their average.
    fn replicated(&self) -> impl Iterator<Item = &Params> {
        [Some(&self.params), self.ema.as_ref().map(Ema::average)].into_iter().flatten()
    }

    fn norm_hashes(&self) -> Vec<(String, blake3::Hash)> {
        let hash = |values: &NormValues| match values {
            NormValues::Float(v) => blake3::hash(bytemuck::cast_slice(v)),
            NormValues::Count(n) => blake3::hash(&n.to_le_bytes()),
        };
        self.norms.export().into_iter().map(|(name, _, values)| (name, hash(&values))).collect()
    }

    /// By tensor, in the order in which a model uses them.
    fn tensor_hashes(&self) -> Result<Vec<(String, blake3::Hash)>> {
        let mut all = Vec::new();
        for (params, prefix) in self.replicated().zip(["", "average of "]) {
            for id in params.ids() {
                let hash = params.read(params.range(id), |v| blake3::hash(bytemuck::cast_slice(v)))?;
                all.push((format!("{prefix}{}", params.spec(id).name), hash));
            }
        }
        all.extend(self.norm_hashes());
        Ok(all)
    }
}

/// The first tensor whose hash is not the same on all ranks, and the ranks that are not with the majority; on
/// a tie, those that are not with the first of the largest groups.
fn first_difference(hashes: &[Vec<u8>]) -> Option<(usize, Vec<u32>)> {
    let tensors = hashes.iter().map(|h| h.len() / HASH).min()?;
    let of = |rank: usize, tensor: usize| &hashes[rank][tensor * HASH..(tensor + 1) * HASH];
    let tensor = (0..tensors).find(|&t| (1..hashes.len()).any(|r| of(r, t) != of(0, t)))?;
    let group = |rank: usize| (0..hashes.len()).filter(|&r| of(r, tensor) == of(rank, tensor)).count();
    // Of equals, `max_by_key` takes the last.
    let leader = (0..hashes.len()).rev().max_by_key(|&r| group(r))?;
    let apart = (0..hashes.len()).filter(|&r| of(r, tensor) != of(leader, tensor));
    Some((tensor, apart.map(|r| r as u32).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minority_is_named_and_rank_0_wins_a_tie() {
        let ranks = |of: &[&[u8]]| -> Vec<Vec<u8>> {
            of.iter().map(|tensors| tensors.iter().flat_map(|&t| [t; HASH]).collect()).collect()
        };
        assert_eq!(first_difference(&ranks(&[&[1, 2], &[1, 2]])), None);
        assert_eq!(first_difference(&[]), None);
        // The first tensor counts, whatever comes later.
        assert_eq!(first_difference(&ranks(&[&[1, 2], &[1, 3], &[1, 2]])), Some((1, vec![1])));
        assert_eq!(first_difference(&ranks(&[&[9, 2], &[1, 3], &[1, 2]])), Some((0, vec![0])));
        assert_eq!(first_difference(&ranks(&[&[1], &[2]])), Some((0, vec![1])));
        assert_eq!(first_difference(&ranks(&[&[1], &[2], &[1], &[2]])), Some((0, vec![1, 3])));
        assert_eq!(first_difference(&ranks(&[&[1], &[2], &[3]])), Some((0, vec![1, 2])));
        assert_eq!(first_difference(&ranks(&[&[1], &[2], &[3], &[3]])), Some((0, vec![0, 1])));
    }
}
