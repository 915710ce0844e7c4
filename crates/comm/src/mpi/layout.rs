//! Who adds what in a world of several machines: a pure plan.
//!
//! Ranks on one machine that are neighbours form a *group*: they add their parts in shared memory first,
//! and one copy of the group's sums crosses the network. The bucket is cut into *lanes*; the k-th lane is
//! the k-th rank's of every group, so that all ranks share the work. A lane is cut into *pieces*, and each
//! piece goes its way by itself: the pieces that wait for the network do not hold up those that can be
//! added.

use std::ops::Range;

use crate::{Fold, Operand, Result, Tree, Wire};

/// The groups of a world, as ranges of ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) groups: Vec<Range<u32>>,
}

impl Layout {
    /// One group a machine where every machine's ranks are neighbours, else one group a rank. `nodes` is the
    /// machine of each rank; `shared` says whether machines have shared memory.
    pub(super) fn new(nodes: &[u32], shared: bool) -> Self {
        let mut groups: Vec<Range<u32>> = Vec::new();
        let mut seen: Vec<u32> = Vec::new();
        let mut neighbours = shared;
        for (rank, node) in (0..).zip(nodes) {
            match groups.last_mut() {
                Some(last) if seen.last() == Some(node) => last.end = rank + 1,
                _ => {
                    neighbours &= !seen.contains(node);
                    seen.push(*node);
                    groups.push(rank..rank + 1);
                }
            }
        }
        if !neighbours {
            groups = (0..nodes.len() as u32).map(|r| r..r + 1).collect();
        }
        Layout { groups }
    }

    /// The group of a rank.
    pub(super) fn group_of(&self, rank: u32) -> usize {
        self.groups.iter().position(|g| g.contains(&rank)).unwrap_or(0)
    }

    /// Lanes: as many as every group has ranks for.
    pub(super) fn lanes(&self) -> usize {
        self.groups.iter().map(|g| g.len()).min().unwrap_or(1)
    }

    /// How a rank's group sums over `tree`. Fails as [`Tree::fold`].
    pub(super) fn plan(&self, tree: Tree, rank: u32) -> Result<Plan> {
        let world = self.groups.last().map_or(0, |g| g.end);
        tree.shards_of(rank, world)?;
        let mut nodes = Vec::new();
        for g in &self.groups {
            let first = tree.shards_of(g.start, world)?.start;
            let last = tree.shards_of(g.end - 1, world)?.end;
            nodes.push(tree.nodes_in(first..last));
        }
        let mine = self.group_of(rank);
        let held = self.groups[mine].clone().map(|r| tree.nodes_of(r, world)).collect::<Result<Vec<_>>>()?;
        let local = nodes[mine].iter().map(|n| tree.fold_of(*n, &held)).collect();
        let parts = held.iter().map(Vec::len).collect();
        let (fold, _) = tree.fold_of(tree.root(), &nodes);
        Ok(Plan { local, parts, fold })
    }
}

/// How one group takes part in a sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// How each of the group's own sums is made from its ranks' parts, numbered through, and where it is
    /// when no step is needed.
    pub(super) local: Vec<(Fold, Operand)>,
    /// Parts of each rank of the group.
    pub(super) parts: Vec<usize>,
    /// How the total is made from all groups' sums.
    pub(super) fold: Fold,
}

/// How a lane's pieces travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Every group sends its sums to every other and all add: one hop. For two groups it moves no more
    /// bytes than the other way; for small sums hops count, not bytes.
    Direct,
    /// Piece i is added by group i mod G, which sends the total to the others: 2(G−1)/G of the bytes, as
    /// a ring, but two hops for any G.
    Owned,
}

/// Bytes of a piece on the wire: large enough that a message's own cost does not count, small enough that
/// several are under way at once.
const PIECE: usize = 256 << 10;

/// Sums whose lane is no larger go directly.
const SMALL: usize = 16 << 10;

/// The elements of lane `lane` of `lanes`: whole cache lines but for the last.
pub(super) fn lane(len: usize, lanes: usize, lane: usize) -> Range<usize> {
    let bound = |i: usize| (len * i / lanes).next_multiple_of(16).min(len);
    let start = if lane == 0 { 0 } else { bound(lane) };
    start..if lane + 1 == lanes { len } else { bound(lane + 1) }
}

/// The pieces of a lane and their route.
pub(super) fn pieces(
    lane: Range<usize>,
    groups: usize,
    wire: Wire,
    size: usize,
) -> (Route, Vec<Range<usize>>) {
    let size = if size == 4 { wire.size() } else { size };
    let bytes = lane.len() * size;
    let route = if groups == 2 || bytes <= SMALL { Route::Direct } else { Route::Owned };
    // With few pieces a group, some groups would add more than others.
    let count = match route {
        Route::Direct => bytes.div_ceil(PIECE),
        Route::Owned => bytes.div_ceil(PIECE).next_multiple_of(groups),
    };
    let count = count.max(1);
    let cut = (0..count).map(|i| {
        let r = self::lane(lane.len(), count, i);
        lane.start + r.start..lane.start + r.end
    });
    (route, cut.filter(|r| !r.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn groups_are_machines_whose_ranks_are_neighbours() {
        let groups = |nodes: &[u32], shared| Layout::new(nodes, shared).groups;
        assert_eq!(groups(&[0, 0, 1, 1, 1], true), [0..2, 2..5]);
        assert_eq!(groups(&[0, 0, 1, 1], false), [0..1, 1..2, 2..3, 3..4]);
        assert_eq!(groups(&[0, 1, 0, 1], true), [0..1, 1..2, 2..3, 3..4]);
        assert_eq!(groups(&[0], true), vec![0..1]);
        assert_eq!(Layout::new(&[0, 0, 1, 1, 1], true).lanes(), 2);
    }

    fn run(fold: &Fold, total: Operand, parts: &[Vec<String>]) -> String {
        let all: Vec<&String> = parts.iter().flatten().collect();
        let mut temps = vec![String::new(); fold.temps];
        let value = |o: Operand, temps: &[String]| match o {
            Operand::Part(i) => all[i].clone(),
            Operand::Temp(i) => temps[i].clone(),
        };
        for s in &fold.steps {
            temps[s.dst] = format!("({}+{})", value(s.a, &temps), value(s.b, &temps));
        }
        value(total, &temps)
    }

    proptest! {
        /// The sum over groups is the same expression as the sum over ranks, for any spread of ranks.
        #[test]
        fn grouping_changes_no_bit(sizes in prop::collection::vec(1u32..4, 1..5), more in 0u32..9) {
            let nodes: Vec<u32> = sizes.iter().zip(0..).flat_map(|(n, i)| vec![i; *n as usize]).collect();
            let world = nodes.len() as u32;
            let tree = Tree::new(world + more).unwrap();
            let layout = Layout::new(&nodes, true);
            let leaf = |n: crate::Node| {
                // A node's own sum, spelt out.
                let shards: Vec<u32> = tree.shards_under(n).collect();
                let held: Vec<Vec<crate::Node>> = shards.iter().map(|s| vec![crate::Node { level: 0, index: *s }]).collect();
                let names: Vec<Vec<String>> = shards.iter().map(|s| vec![s.to_string()]).collect();
                let (fold, total) = tree.fold_of(n, &held);
                run(&fold, total, &names)
            };
            let mut sums = Vec::new();
            for g in &layout.groups {
                let plan = layout.plan(tree, g.start).unwrap();
                let parts: Vec<Vec<String>> = g.clone()
                    .map(|r| tree.nodes_of(r, world).unwrap().into_iter().map(leaf).collect()).collect();
                prop_assert_eq!(&plan.parts, &parts.iter().map(Vec::len).collect::<Vec<_>>());
                sums.push(plan.local.iter().map(|(f, t)| run(f, *t, &parts)).collect::<Vec<_>>());
            }
            let plan = layout.plan(tree, 0).unwrap();
            let total = plan.fold.steps.last().map_or(Operand::Part(0), |s| Operand::Temp(s.dst));
            prop_assert_eq!(run(&plan.fold, total, &sums), leaf(tree.root()));
        }

        #[test]
        fn pieces_cut_every_lane_whole(len in 0usize..3_000_000, lanes in 1usize..5, groups in 2usize..7) {
            let mut next = 0;
            for k in 0..lanes {
                let range = lane(len, lanes, k);
                prop_assert_eq!(range.start, next);
                let (_, pieces) = pieces(range.clone(), groups, Wire::F32, 4);
                for p in &pieces {
                    prop_assert_eq!(p.start, next);
                    prop_assert!(p.len() * 4 <= PIECE + 64);
                    next = p.end;
                }
                prop_assert_eq!(next, range.end);
            }
            prop_assert_eq!(next, len);
        }
    }
}
