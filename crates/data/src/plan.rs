use std::ops::Range;

use crate::{Error, Result, shard_positions, step_positions, steps_per_epoch};

/// What a loader makes one batch of: the positions of one virtual shard in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkItem {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The step within the epoch, from 0.
    pub step: u64,
    /// The virtual shard.
    pub shard: u64,
    /// Positions in the epoch's order; may be empty in a short last step.
    pub positions: Range<u64>,
}

/// The batches that one rank needs, in the order in which it needs them: epoch by epoch, step by step,
/// shard by shard. An iterator over [`WorkItem`]s that holds nothing but numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    samples: u64,
    global_batch: u64,
    shards: u64,
    mine: Range<u64>,
    epochs: u64,
    next: (u64, u64, u64),
}

impl Plan {
    /// The plan for `epochs` epochs (counted from 0) over `samples` samples in steps of `global_batch`,
    /// split into `shards` virtual shards of which `mine` are this rank's.
    ///
    /// Fails when the batch or the shards are 0, or when `mine` is not inside `0..shards`.
    pub fn new(samples: u64, global_batch: u64, shards: u64, mine: Range<u64>, epochs: u64) -> Result<Self> {
        if global_batch == 0 || shards == 0 {
            return Err(Error::usage("plan", "the global batch and the number of shards must be at least 1"));
        }
        if mine.is_empty() || mine.end > shards {
            return Err(Error::usage("plan", format!("shards {mine:?} are not inside 0..{shards}")));
        }
        let next = (0, 0, mine.start);
        Ok(Plan { samples, global_batch, shards, mine, epochs, next })
    }

    /// The same plan from step `step` of epoch `epoch` on: where a resumed run continues.
    pub fn starting_at(mut self, epoch: u64, step: u64) -> Self {
        self.next = (epoch, step, self.mine.start);
        self
    }

    /// Steps in one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        steps_per_epoch(self.samples, self.global_batch)
    }
}

impl Iterator for Plan {
    type Item = WorkItem;

    fn next(&mut self) -> Option<WorkItem> {
        let (mut epoch, mut step, shard) = self.next;
        if step >= self.steps_per_epoch() {
            (epoch, step) = (epoch + 1, 0);
        }
        if epoch >= self.epochs || self.samples == 0 {
            return None;
        }
        self.next = if shard + 1 < self.mine.end {
            (epoch, step, shard + 1)
        } else {
            (epoch, step + 1, self.mine.start)
        };
        let positions =
            shard_positions(step_positions(self.samples, self.global_batch, step), self.shards, shard);
        Some(WorkItem { epoch, step, shard, positions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_runs_through_epochs_steps_and_its_own_shards() {
        let plan = Plan::new(10, 4, 4, 2..4, 2).unwrap();
        let items: Vec<_> = plan.clone().map(|i| (i.epoch, i.step, i.shard, i.positions)).collect();
        assert_eq!(items.len(), 2 * 3 * 2);
        assert_eq!(items[0], (0, 0, 2, 2..3));
        assert_eq!(items[4], (0, 2, 2, 9..9));
        assert_eq!(items[5], (0, 2, 3, 9..10));
        assert_eq!(items[6], (1, 0, 2, 2..3));
        let rest: Vec<_> = plan.clone().starting_at(0, 2).map(|i| (i.epoch, i.step)).collect();
        assert_eq!(rest[..3], [(0, 2), (0, 2), (1, 0)]);
        let at_the_end = plan.clone().starting_at(0, 3).next().map(|i| (i.epoch, i.step));
        assert_eq!(at_the_end, Some((1, 0)));
        assert_eq!(plan.starting_at(2, 0).next(), None);
        assert_eq!(Plan::new(0, 4, 1, 0..1, 1).unwrap().next(), None);
    }

    #[test]
    fn ranks_together_consume_every_position_once() {
        for world in [1, 2, 3, 5] {
            let mut seen: Vec<u64> = (0..world)
                .flat_map(|r| Plan::new(101, 16, 8, shard_positions(0..8, world, r), 1).unwrap())
                .flat_map(|item| item.positions)
                .collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..101));
        }
    }

    #[test]
    fn impossible_plans_are_refused() {
        for plan in [Plan::new(9, 0, 1, 0..1, 1), Plan::new(9, 1, 0, 0..0, 1), Plan::new(9, 1, 2, 1..3, 1)] {
            assert_eq!(plan.unwrap_err().kind(), crate::Kind::Usage);
        }
    }
}
