//! Which sample comes to lie where: a pure function of how many there are and how large they are.

use std::ops::Range;

use crate::{Order, shard_positions};

/// Separates the order on disk from every training order of the same seed.
const SEED: u64 = 0x7061_636B;

/// The layout of a set: its samples in a fixed random order, so that any stretch of it has all classes, cut into
/// shards that differ by at most one sample. Ranks take the shards in turn; nothing depends on their number.
#[derive(Debug, Clone)]
pub(crate) struct PackPlan {
    order: Order,
    shards: u32,
}

impl PackPlan {
    /// The plan for `samples` samples of `bytes` bytes together in shards of about `shard_bytes`: at least one, and
    /// none without a sample unless there is none.
    pub(crate) fn new(samples: u64, bytes: u64, shard_bytes: u64) -> Self {
        let shards = (bytes / shard_bytes.max(1))
            .saturating_add(u64::from(bytes % shard_bytes.max(1) > shard_bytes / 2));
        let shards = shards.min(samples).clamp(1, u64::from(u32::MAX)) as u32;
        PackPlan { order: Order::new(SEED, 0, samples), shards }
    }

    /// The number of shards.
    pub(crate) fn shards(&self) -> u32 {
        self.shards
    }

    /// The places of shard `shard` in the whole.
    pub(crate) fn places(&self, shard: u32) -> Range<u64> {
        shard_positions(0..self.order.len(), u64::from(self.shards), u64::from(shard))
    }

    /// The samples of shard `shard`, in its order.
    pub(crate) fn samples(&self, shard: u32) -> impl Iterator<Item = u64> {
        self.places(shard).map(|place| self.order.at(place))
    }

    /// The shards that rank `rank` of `world` writes.
    pub(crate) fn mine(&self, rank: u32, world: u32) -> impl Iterator<Item = u32> + use<> {
        (rank..self.shards).step_by(world.max(1) as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_sample_lies_in_one_place_whoever_writes_it(
            samples in 0u64..3000,
            each in 0u64..1000,
            shard_bytes in 0u64..200_000,
            world in 1u32..17,
        ) {
            let plan = PackPlan::new(samples, samples * each, shard_bytes);
            let alone: Vec<(u32, Vec<u64>)> = (0..plan.shards()).map(|s| (s, plan.samples(s).collect())).collect();
            let mut together: Vec<(u32, Vec<u64>)> = (0..world)
                .flat_map(|rank| plan.mine(rank, world))
                .map(|s| (s, plan.samples(s).collect()))
                .collect();
            together.sort();
            prop_assert_eq!(&together, &alone);
            let mut all: Vec<u64> = alone.iter().flat_map(|(_, samples)| samples).copied().collect();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..samples));
            let sizes = alone.iter().map(|(_, s)| s.len());
            let (most, least) = (sizes.clone().max().unwrap_or(0), sizes.min().unwrap_or(0));
            prop_assert!(most - least <= 1 && (least > 0 || samples == 0));
        }

        #[test]
        fn shards_are_about_as_large_as_asked(bytes in 1u64..1 << 40, shard_bytes in 1u64..1 << 30) {
            let plan = PackPlan::new(u64::MAX >> 8, bytes, shard_bytes);
            let each = bytes / u64::from(plan.shards());
            prop_assert!(each <= shard_bytes * 3 / 2);
            prop_assert!(plan.shards() == 1 || each >= shard_bytes / 2);
        }
    }

    #[test]
    fn neighbours_are_of_mixed_classes() {
        // A thousand samples of each of ten classes, as a listing sorts them.
        let plan = PackPlan::new(10_000, 10_000, 100);
        assert_eq!(plan.shards(), 100);
        for shard in 0..100 {
            let mut classes: Vec<u64> = plan.samples(shard).map(|i| i / 1000).collect();
            classes.sort_unstable();
            classes.dedup();
            assert!(classes.len() >= 8, "{classes:?}");
        }
    }
}
