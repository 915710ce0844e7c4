//! The fixed sum over virtual shards: who holds what, in which order a rank merges its own shards, and
//! in which order the ranks' partial sums are added. All of it is pure.

use std::ops::Range;

use crate::{Error, Result};

/// A node of a [`Tree`]: the sum of the shards `index << level .. (index + 1) << level`, as far as they
/// exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node {
    /// Height above the shards.
    pub level: u32,
    /// Position among the nodes of that height.
    pub index: u32,
}

impl Node {
    fn start(self) -> u64 {
        u64::from(self.index) << self.level
    }

    fn children(self) -> (Node, Node) {
        let level = self.level - 1;
        (Node { level, index: self.index * 2 }, Node { level, index: self.index * 2 + 1 })
    }
}

/// The fixed binary tree over V virtual shards. Leaves are the shards; a node adds its right child to
/// its left one; where the right child holds no shard, the left one passes through.
///
/// The tree depends on V alone. A rank holds neighbouring shards and contributes the sums of the
/// maximal subtrees among them, so the total has the same bits for every number of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tree {
    shards: u32,
}

/// How a rank computes its shards one after another with few gradient slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Gradient slots needed: one when there are as many shards as ranks.
    pub slots: usize,
    /// The nodes that the rank holds; node `i` ends in slot `i`, and is part `i` of every bucket.
    pub nodes: Vec<Node>,
    /// One step a shard, in order.
    pub steps: Vec<Step>,
}

/// One shard of a [`Schedule`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The shard to compute.
    pub shard: u32,
    /// The slot that its gradients go to, overwriting what is there.
    pub slot: usize,
    /// What is to be added afterwards, in order.
    pub merges: Vec<Merge>,
}

/// `slot dst += slot src`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// The slot that is added to.
    pub dst: usize,
    /// The slot that is added, free afterwards.
    pub src: usize,
}

/// The order in which the parts of all ranks are added: a list of two-operand sums, of which the last
/// is the total. Every transport follows it, element by element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// How many parts each rank has, by rank. Parts are numbered through over the ranks.
    pub parts: Vec<usize>,
    /// Scratch values needed at once.
    pub temps: usize,
    /// The sums; none when there is one part, which is then the total.
    pub steps: Vec<FoldStep>,
}

/// `temp dst = a + b`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldStep {
    /// The scratch value that receives the sum. The last step's sum is the total.
    pub dst: usize,
    /// The left operand.
    pub a: Operand,
    /// The right operand.
    pub b: Operand,
}

/// An operand of a [`FoldStep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// A part, by its number over all ranks.
    Part(usize),
    /// A scratch value.
    Temp(usize),
}

impl Tree {
    /// The most shards that a tree may have.
    pub const MAX_SHARDS: u32 = 1 << 20;

    /// The tree over `shards` virtual shards. Fails with [`Error::Usage`] when there are none, or more
    /// than [`Tree::MAX_SHARDS`].
    pub fn new(shards: u32) -> Result<Self> {
        if !(1..=Self::MAX_SHARDS).contains(&shards) {
            let most = Self::MAX_SHARDS;
            return Err(Error::Usage(format!(
                "distributed.virtual_shards is {shards}; 1 to {most} can be had"
            )));
        }
        Ok(Tree { shards })
    }

    /// V, the number of virtual shards.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// The node that holds all shards.
    pub fn root(&self) -> Node {
        Node { level: self.shards.next_power_of_two().trailing_zeros(), index: 0 }
    }

    /// The shards under a node.
    pub fn shards_under(&self, node: Node) -> Range<u32> {
        let end = (u64::from(node.index) + 1) << node.level;
        let clip = |x: u64| x.min(u64::from(self.shards)) as u32;
        clip(node.start())..clip(end)
    }

    /// The neighbouring shards of `rank`: `V·rank/W .. V·(rank+1)/W`, which differ in number by at most
    /// one. Fails with [`Error::Tree`] when V < W, or when there is no such rank.
    pub fn shards_of(&self, rank: u32, world: u32) -> Result<Range<u32>> {
        if rank >= world || world > self.shards {
            return Err(Error::Tree { shards: self.shards, rank, world });
        }
        let bound = |r: u32| (u64::from(self.shards) * u64::from(r) / u64::from(world)) as u32;
        Ok(bound(rank)..bound(rank + 1))
    }

    /// The maximal subtrees that `rank` holds whole, ascending: one when W and V are powers of two.
    /// Errors as [`Tree::shards_of`].
    pub fn nodes_of(&self, rank: u32, world: u32) -> Result<Vec<Node>> {
        Ok(self.nodes_in(self.shards_of(rank, world)?))
    }

    /// The maximal subtrees that lie within neighbouring shards, ascending.
    pub fn nodes_in(&self, shards: Range<u32>) -> Vec<Node> {
        let mut nodes = Vec::new();
        let mut at = shards.start;
        while at < shards.end {
            let mut node = Node { level: 0, index: at };
            // Upwards while the parent begins here too and all of it is ours.
            while node.level < self.root().level && node.index.is_multiple_of(2) {
                let parent = Node { level: node.level + 1, index: node.index / 2 };
                if self.shards_under(parent).end > shards.end {
                    break;
                }
                node = parent;
            }
            at = self.shards_under(node).end;
            nodes.push(node);
        }
        nodes
    }

    /// How `rank` computes its shards. Errors as [`Tree::shards_of`].
    pub fn schedule(&self, rank: u32, world: u32) -> Result<Schedule> {
        let nodes = self.nodes_of(rank, world)?;
        let mut plan = Schedule { slots: 0, nodes: nodes.clone(), steps: Vec::new() };
        for (slot, &node) in nodes.iter().enumerate() {
            self.walk(node, slot, &mut plan);
        }
        Ok(plan)
    }

    /// Plans the shards under `node` so that their sum ends in `slot`; slots below stay untouched.
    fn walk(&self, node: Node, slot: usize, plan: &mut Schedule) {
        if node.level == 0 {
            plan.slots = plan.slots.max(slot + 1);
            plan.steps.push(Step { shard: node.index, slot, merges: Vec::new() });
            return;
        }
        let (left, right) = node.children();
        self.walk(left, slot, plan);
        if right.start() < u64::from(self.shards) {
            self.walk(right, slot + 1, plan);
            if let Some(step) = plan.steps.last_mut() {
                step.merges.push(Merge { dst: slot, src: slot + 1 });
            }
        }
    }

    /// The order in which the parts of all ranks of a world are added. Fails with [`Error::Tree`] when
    /// V < W.
    pub fn fold(&self, world: u32) -> Result<Fold> {
        self.shards_of(0, world)?;
        let held = (0..world).map(|r| self.nodes_of(r, world)).collect::<Result<Vec<_>>>()?;
        Ok(self.fold_of(self.root(), &held).0)
    }

    /// The order in which the sum of `node` is made from the nodes that several holders have, and where
    /// the sum is then: a part when somebody holds the node whole.
    pub fn fold_of(&self, node: Node, held: &[Vec<Node>]) -> (Fold, Operand) {
        let all: Vec<Node> = held.iter().flatten().copied().collect();
        let mut fold = Fold { parts: held.iter().map(Vec::len).collect(), temps: 0, steps: Vec::new() };
        let total = self.combine(node, 0, &all, &mut fold);
        (fold, total)
    }

    /// Plans the sum of `node` from the parts `held`; scratch values below `temp` stay untouched.
    fn combine(&self, node: Node, temp: usize, held: &[Node], fold: &mut Fold) -> Operand {
        let span = self.shards_under(node);
        if let Some(i) = held.iter().position(|&h| self.shards_under(h) == span) {
            return Operand::Part(i);
        }
        let (left, right) = node.children();
        let a = self.combine(left, temp, held, fold);
        if right.start() >= u64::from(self.shards) {
            return a;
        }
        let above = temp + usize::from(matches!(a, Operand::Temp(_)));
        let b = self.combine(right, above, held, fold);
        fold.steps.push(FoldStep { dst: temp, a, b });
        fold.temps = fold.temps.max(temp + 1);
        Operand::Temp(temp)
    }
}
