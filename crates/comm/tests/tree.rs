//! The tree's plans, against a sum written down in the plainest way.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use phalanx_comm::{Node, Operand, Tree};
use proptest::prelude::*;

/// The definition: halves of the aligned span, the right one passed over where it is empty.
fn naive(tree: Tree, node: Node, x: &[f32]) -> f32 {
    if node.level == 0 {
        return x[node.index as usize];
    }
    let child = |side| Node { level: node.level - 1, index: node.index * 2 + side };
    let left = naive(tree, child(0), x);
    if tree.shards_under(child(1)).is_empty() { left } else { left + naive(tree, child(1), x) }
}

fn values(count: u32) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + 13) % 1009) as f32 * 1.0e-3 + 1.0 / (i + 1) as f32).collect()
}

/// What a rank's slots hold after its schedule; free slots are poisoned to show a use after a merge.
fn run_schedule(tree: Tree, rank: u32, world: u32, x: &[f32]) -> Vec<f32> {
    let plan = tree.schedule(rank, world).unwrap();
    let mut slots = vec![f32::NAN; plan.slots];
    for step in &plan.steps {
        assert!(slots[step.slot].is_nan(), "a shard overwrites a live slot");
        slots[step.slot] = x[step.shard as usize];
        for m in &step.merges {
            slots[m.dst] += slots[m.src];
            slots[m.src] = f32::NAN;
        }
    }
    assert_eq!(plan.nodes, tree.nodes_of(rank, world).unwrap());
    slots.truncate(plan.nodes.len());
    slots
}

#[test]
fn schedules_and_folds_equal_the_naive_sum_for_every_world() {
    for shards in 1..=20 {
        let tree = Tree::new(shards).unwrap();
        let x = values(shards);
        let want = naive(tree, tree.root(), &x).to_bits();
        for world in 1..=shards {
            let mut parts = Vec::new();
            let mut counts = Vec::new();
            for rank in 0..world {
                let held = run_schedule(tree, rank, world, &x);
                for (sum, &node) in held.iter().zip(&tree.nodes_of(rank, world).unwrap()) {
                    assert_eq!(
                        sum.to_bits(),
                        naive(tree, node, &x).to_bits(),
                        "V {shards} W {world} {node:?}"
                    );
                }
                counts.push(held.len());
                parts.extend(held);
            }
            let fold = tree.fold(world).unwrap();
            assert_eq!(fold.parts, counts);
            let mut temps = vec![f32::NAN; fold.temps];
            let mut total = parts[0];
            for step in &fold.steps {
                let get = |o| match o {
                    Operand::Part(i) => parts[i],
                    Operand::Temp(i) => temps[i],
                };
                total = get(step.a) + get(step.b);
                temps[step.dst] = total;
            }
            assert_eq!(fold.steps.len(), parts.len() - 1, "every part is added once");
            assert_eq!(total.to_bits(), want, "V {shards} W {world}");
        }
    }
}

#[test]
fn one_slot_and_no_merge_when_every_rank_has_one_shard() {
    for n in 1..=20 {
        let tree = Tree::new(n).unwrap();
        for rank in 0..n {
            let plan = tree.schedule(rank, n).unwrap();
            assert_eq!((plan.slots, plan.nodes.len(), plan.steps.len()), (1, 1, 1));
            assert!(plan.steps[0].merges.is_empty());
        }
    }
}

#[test]
fn powers_of_two_give_one_node_a_rank_and_few_slots() {
    let tree = Tree::new(64).unwrap();
    for world in [1, 2, 4, 8, 16, 32, 64] {
        for rank in 0..world {
            let plan = tree.schedule(rank, world).unwrap();
            assert_eq!(plan.nodes, [Node { level: (64 / world).trailing_zeros(), index: rank }]);
            assert_eq!(plan.slots as u32, (64 / world).trailing_zeros() + 1);
        }
    }
}

#[test]
fn worlds_that_do_not_fit_are_refused() {
    assert!(Tree::new(0).is_err() && Tree::new(Tree::MAX_SHARDS + 1).is_err());
    let tree = Tree::new(4).unwrap();
    assert!(tree.fold(0).is_err() && tree.fold(5).is_err());
    assert!(tree.shards_of(4, 4).is_err());
    let why = tree.nodes_of(2, 5).unwrap_err().to_string();
    assert!(why.contains("4 virtual shards") && why.contains("rank 2 of 5"), "{why}");
    let big = Tree::new(Tree::MAX_SHARDS).unwrap();
    assert_eq!(big.fold(3).unwrap().parts.len(), 3);
}

proptest! {
    #[test]
    fn ranks_part_the_shards_into_maximal_subtrees(shards in 1u32..3000, world in 1u32..40) {
        prop_assume!(world <= shards);
        let tree = Tree::new(shards).unwrap();
        let mut at = 0;
        for rank in 0..world {
            let own = tree.shards_of(rank, world).unwrap();
            prop_assert_eq!(own.start, at, "no gap and no overlap");
            prop_assert!(own.len() as u32 - shards / world <= 1, "even");
            let nodes = tree.nodes_of(rank, world).unwrap();
            for node in &nodes {
                let span = tree.shards_under(*node);
                prop_assert_eq!(span.start, at);
                at = span.end;
                // Maximal: the parent holds a shard of another rank.
                if *node != tree.root() {
                    let up = tree.shards_under(Node { level: node.level + 1, index: node.index / 2 });
                    prop_assert!(up.start < own.start || up.end > own.end, "{:?} is not maximal", node);
                }
            }
            prop_assert_eq!(at, own.end);
            let distinct: HashSet<_> = nodes.iter().collect();
            prop_assert_eq!(distinct.len(), nodes.len());
        }
        prop_assert_eq!(at, shards);
    }

    #[test]
    fn slots_grow_with_the_logarithm_of_the_shards(shards in 1u32..3000, world in 1u32..40) {
        prop_assume!(world <= shards);
        let tree = Tree::new(shards).unwrap();
        for rank in 0..world {
            let plan = tree.schedule(rank, world).unwrap();
            let own = tree.shards_of(rank, world).unwrap();
            prop_assert!(plan.steps.iter().map(|s| s.shard).eq(own.clone()), "each shard once, in order");
            let log = (own.len() as u32).next_power_of_two().trailing_zeros() as usize;
            prop_assert!(plan.slots <= 2 * (log + 1), "{} slots for {} shards", plan.slots, own.len());
        }
    }
}
