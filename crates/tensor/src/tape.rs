//! The graph: nodes made by the executor while the forward pass runs, and the walk back through them.
//!
//! Control flow is the host language's own: a loop whose length depends on data simply makes more
//! nodes. Nodes are numbered in the order in which they are made, so walking them by falling number is
//! a topological order, and the same one on every run.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::{Collected, Grad, GradSink, LeafSink, Pending};
use crate::storage::Held;
use crate::tensor::Edge;
use crate::{DType, Device, Error, LeafId, Result, Tensor, View, ViewMut, half_storage, ops};

/// One op of the graph, with what its backward pass needs.
pub(crate) struct Node {
    seq: u64,
    op: Arc<dyn Op>,
    edges: Vec<Option<Edge>>,
    outputs: usize,
    saved: Mutex<Option<Saved>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {:?}", self.seq, self.op)
    }
}

impl Node {
    fn saved(&self) -> MutexGuard<'_, Option<Saved>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Takes every reference to another node out of this one.
    fn unlink(&mut self, into: &mut Vec<Arc<Node>>) {
        let saved = self.saved.get_mut().unwrap_or_else(PoisonError::into_inner);
        let inputs = saved.iter_mut().flat_map(|s| s.inputs.iter_mut().flatten());
        let saved_edges = inputs.filter_map(|t| t.edge.take());
        for edge in self.edges.drain(..).flatten().chain(saved_edges) {
            if let Edge::Node(node, _) = edge {
                into.push(node);
            }
        }
    }
}

impl Drop for Node {
    /// Unlinks a long chain node by node: dropping it recursively would overflow the stack.
    fn drop(&mut self) {
        let mut rest = Vec::new();
        self.unlink(&mut rest);
        while let Some(node) = rest.pop() {
            if let Some(mut node) = Arc::into_inner(node) {
                node.unlink(&mut rest);
            }
        }
    }
}

/// Runs an op on its operands and, when one of them is in the graph, records it.
pub fn apply(op: impl Op + 'static, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    apply_dyn(Arc::new(op), inputs)
}

/// As [`apply`], for an op with a single output.
pub fn apply_one(op: impl Op + 'static, inputs: &[&Tensor]) -> Result<Tensor> {
    let name = op.name();
    let first = apply(op, inputs)?.into_iter().next();
    first.ok_or(Error::Backward { why: format!("{name} has no output") })
}

fn apply_dyn(op: Arc<dyn Op>, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let Some(first) = inputs.first() else {
        return Err(Error::Backward { why: format!("{} has no operand", op.name()) });
    };
    let device = first.device().clone();
    if let Some(other) = inputs.iter().find(|t| !t.device().same(&device)) {
        let (lhs, rhs) = (device.name().to_owned(), other.device().name().to_owned());
        return Err(Error::Devices { op: op.name(), lhs, rhs });
    }
    let metas: Vec<Meta> = inputs.iter().map(|t| Meta { dtype: t.dtype(), layout: *t.layout() }).collect();
    let op = half_storage::adapt(op, &metas)?;
    let plan = op.infer(&metas)?;
    let plan = match (&device, op.cuda()) {
        (Device::Cuda(_), Some(op)) => op.plan_cuda(&metas, plan),
        _ => plan,
    };

    let mut operands: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
    let cx = Exec::new(&device);
    let (mut outputs, extra) = match plan.alias {
        Some(layout) => {
            (vec![Tensor::new(first.storage.clone(), layout, plan.outputs[0].dtype, &device)], vec![])
        }
        None => {
            for (i, t) in operands.iter_mut().enumerate() {
                if plan.dense >> i & 1 == 1 && !t.layout().is_contiguous() {
                    *t = Tensor { edge: t.edge.take(), ..ops::shape::materialise(&cx, t)? };
                }
            }
            run(&*op, &cx, &plan, &operands)?
        }
    };

    if operands.iter().any(Tensor::requires_grad) {
        record(op, &plan, metas, operands, &mut outputs, extra);
    }
    Ok(outputs)
}

/// The op's kernels for GPUs.
fn cuda(op: &dyn Op) -> Result<&dyn CudaOp> {
    op.cuda().ok_or(Error::NoCudaKernel { op: op.name() })
}

fn run(op: &dyn Op, cx: &Exec, plan: &Plan, operands: &[Tensor]) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let held: Vec<Held> = operands.iter().map(Tensor::hold).collect::<Result<_>>()?;
    let views: Vec<View> = operands.iter().zip(&held).map(|(t, h)| t.view(h)).collect();
    let specs = || plan.outputs.iter().chain(&plan.saved);
    let mut blocks =
        specs().map(|s| cx.device().alloc(s.shape.numel() * s.dtype.size())).collect::<Result<Vec<_>>>()?;
    let mut muts: Vec<ViewMut> =
        specs().zip(&mut blocks).map(|(s, b)| ViewMut::of(s.dtype, s.shape, b.memory())).collect();
    let (outs, saved) = muts.split_at_mut(plan.outputs.len());
    match cx.device() {
        Device::Cpu(_) => op.forward(cx, &views, outs, saved)?,
        Device::Cuda(gpu) => cuda(op)?.forward_cuda(gpu, &views, outs, saved)?,
    }
    let mut made = specs()
        .zip(blocks)
        .map(|(s, b)| Tensor::from_block(b, s.dtype, s.shape, cx.device()))
        .collect::<Result<Vec<_>>>()?;
    let extra = made.split_off(plan.outputs.len());
    Ok((made, extra))
}

fn record(
    op: Arc<dyn Op>,
    plan: &Plan,
    metas: Vec<Meta>,
    operands: Vec<Tensor>,
    outputs: &mut [Tensor],
    extra: Vec<Tensor>,
) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let pick = |mask: u32, tensors: &[Tensor]| -> Vec<Option<Tensor>> {
        tensors.iter().enumerate().map(|(i, t)| (mask >> i & 1 == 1).then(|| t.clone())).collect()
    };
    let saved = Saved {
        inputs: pick(plan.save_inputs, &operands),
        outputs: pick(plan.save_outputs, outputs),
        extra,
        metas,
    };
    let node = Arc::new(Node {
        seq: NEXT.fetch_add(1, Ordering::Relaxed),
        op,
        edges: operands.into_iter().map(|t| t.edge).collect(),
        outputs: outputs.len(),
        saved: Mutex::new(Some(saved)),
    });
    for (i, out) in outputs.iter_mut().enumerate() {
        if out.dtype().is_float() {
            out.edge = Some(Edge::Node(node.clone(), i));
        }
    }
}

/// The part of a graph that lies below a root.
struct Reach {
    /// By number; the flag says whether a wanted leaf lies below.
    nodes: BTreeMap<u64, (Arc<Node>, bool)>,
    /// How many edges point at each leaf.
    uses: HashMap<LeafId, usize>,
}

fn reach(root: &Arc<Node>, wants: impl Fn(LeafId) -> bool) -> Reach {
    let mut nodes = BTreeMap::new();
    let mut uses = HashMap::new();
    let mut todo = vec![root.clone()];
    while let Some(node) = todo.pop() {
        if nodes.contains_key(&node.seq) {
            continue;
        }
        for edge in node.edges.iter().flatten() {
            match edge {
                Edge::Leaf(id) => *uses.entry(*id).or_default() += 1,
                Edge::Node(child, _) => todo.push(child.clone()),
            }
        }
        nodes.insert(node.seq, (node, false));
    }
    // Children have smaller numbers than their parents, so one ascending sweep settles all.
    let order: Vec<u64> = nodes.keys().copied().collect();
    for seq in order {
        let needed = nodes[&seq].0.edges.iter().flatten().any(|e| match e {
            Edge::Leaf(id) => wants(*id),
            Edge::Node(child, _) => nodes.get(&child.seq).is_some_and(|n| n.1),
        });
        if let Some(entry) = nodes.get_mut(&seq) {
            entry.1 = needed;
        }
    }
    Reach { nodes, uses }
}

impl Tensor {
    /// Walks the graph from this scalar back to its leaves and hands their gradients to `leaves`.
    ///
    /// Each leaf is announced as ready when its last use has been walked, while the walk goes on.
    /// Saved tensors are released on the way: a second walk over the same graph fails with
    /// [`Error::GraphReleased`].
    pub fn backward(&self, leaves: &mut dyn LeafSink) -> Result<()> {
        if self.shape().numel() != 1 {
            return Err(Error::Backward {
                why: format!("the root has shape {}, not one element", self.shape()),
            });
        }
        let seed = self.one()?;
        self.backward_from(seed, leaves)
    }

    /// The gradient of this scalar with respect to itself.
    fn one(&self) -> Result<Tensor> {
        Tensor::scalar(1.0, self.gradient_dtype(), self.device())?.reshape(&self.shape())
    }

    /// The type that gradients of this tensor have.
    pub fn gradient_dtype(&self) -> DType {
        Meta { dtype: self.dtype(), layout: *self.layout() }.gradient(self.device()).dtype
    }

    /// As [`Tensor::backward`] with `seed` as the gradient of this tensor (of any shape).
    pub fn backward_from(&self, seed: Tensor, leaves: &mut dyn LeafSink) -> Result<()> {
        if seed.shape() != self.shape() {
            let hint = "the gradient must have the root's shape";
            return Err(Error::Shapes { op: "backward", lhs: self.shape(), rhs: seed.shape(), hint });
        }
        let (root, output) = match &self.edge {
            Some(Edge::Node(node, output)) => (node.clone(), *output),
            Some(Edge::Leaf(_)) | None => {
                return Err(Error::Backward { why: "the root was not computed from any leaf".into() });
            }
        };
        let Reach { mut nodes, mut uses } = reach(&root, |id| leaves.wants(id));
        let needed: HashMap<u64, bool> = nodes.iter().map(|(&s, n)| (s, n.1)).collect();
        let mut pending = Pending::default();
        let mut collected = Collected::default();
        pending.slot(root.seq, root.outputs)[output] = Some(Grad::Shared(seed.detach()));
        drop(root);

        while let Some((seq, (node, needed_here))) = nodes.pop_last() {
            let grads = pending.take(seq).filter(|_| needed_here);
            let saved = match grads {
                Some(_) => node.saved().take().ok_or(Error::GraphReleased { op: node.op.name() })?,
                None => Saved::default(),
            };
            let metas: Vec<Meta> = saved.metas.iter().map(|m| m.gradient(self.device())).collect();
            let mut sink = GradSink {
                edges: &node.edges,
                metas: &metas,
                needed: &needed,
                device: self.device(),
                pending: &mut pending,
                collected: &mut collected,
                leaves,
                uses: &mut uses,
                settled: 0,
            };
            if let Some(grads) = grads {
                let grads = grads.into_iter().map(|g| g.map(|g| g.into_tensor(self.device())).transpose());
                let grads = grads.collect::<Result<Vec<_>>>()?;
                let cx = Exec::new(self.device());
                match self.device() {
                    Device::Cpu(_) => node.op.backward(&cx, saved, &grads, &mut sink)?,
                    // An op that only arranges views has no kernel, and its gradient is made of ops.
                    Device::Cuda(_) => match node.op.cuda() {
                        Some(op) => op.backward_cuda(&cx, saved, &grads, &mut sink)?,
                        None => node.op.backward(&cx, saved, &grads, &mut sink)?,
                    },
                }
            }
            for i in 0..node.edges.len() {
                sink.walked(i)?;
            }
        }
        Ok(())
    }

    /// The gradients of this scalar with respect to `inputs` (leaves or computed tensors), themselves in
    /// the graph, so that a penalty on them can be trained (second order). The graph is kept. `None`
    /// for an input that this tensor does not depend on. Fails with [`Error::NoSecondOrder`] where an
    /// op on the way has no such gradient.
    pub fn gradient_graph(&self, inputs: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
        let Some(Edge::Node(root, output)) = &self.edge else {
            return Err(Error::Backward { why: "the root was not computed from any leaf".into() });
        };
        let mut stops: HashMap<LeafId, Option<Tensor>> = HashMap::new();
        let mut inner: HashMap<(u64, usize), Option<Tensor>> = HashMap::new();
        for t in inputs {
            match &t.edge {
                Some(Edge::Leaf(id)) => {
                    stops.insert(*id, None);
                }
                Some(Edge::Node(n, i)) => {
                    inner.insert((n.seq, *i), None);
                }
                None => return Err(Error::Backward { why: "an input is not in the graph".into() }),
            }
        }
        let mut reach = reach(root, |id| stops.contains_key(&id));
        // A computed input also makes the nodes above it needed.
        for seq in reach.nodes.keys().copied().collect::<Vec<_>>() {
            let above = reach.nodes[&seq].0.edges.iter().flatten().any(|e| match e {
                Edge::Leaf(_) => false,
                Edge::Node(c, i) => {
                    inner.contains_key(&(c.seq, *i)) || reach.nodes.get(&c.seq).is_some_and(|n| n.1)
                }
            });
            if let Some(n) = reach.nodes.get_mut(&seq) {
                n.1 |= above;
            }
        }
        let mut pending: HashMap<u64, Vec<Option<Tensor>>> = HashMap::new();
        let seed = self.one()?;
        let mut first = vec![None; root.outputs];
        first[*output] = Some(seed);
        pending.insert(root.seq, first);

        while let Some((seq, (node, needed))) = reach.nodes.pop_last() {
            let Some(grads) = pending.remove(&seq) else { continue };
            for (i, g) in grads.iter().enumerate() {
                if let Some(found) = inner.get_mut(&(seq, i)) {
                    *found = g.clone();
                }
            }
            if !needed {
                continue;
            }
            let (ins, outs, metas) = {
                let saved = node.saved();
                let s = saved.as_ref().ok_or(Error::GraphReleased { op: node.op.name() })?;
                let outs = s.outputs.iter().enumerate().map(|(i, t)| {
                    t.as_ref().map(|t| Tensor { edge: Some(Edge::Node(node.clone(), i)), ..t.clone() })
                });
                (s.inputs.clone(), outs.collect::<Vec<_>>(), s.metas.clone())
            };
            let made = node.op.backward_graph(&ins, &outs, &metas, &grads)?;
            for (edge, grad) in node.edges.iter().zip(made) {
                let (Some(edge), Some(grad)) = (edge, grad) else { continue };
                let place = match edge {
                    Edge::Leaf(id) => match stops.get_mut(id) {
                        Some(place) => place,
                        None => continue,
                    },
                    Edge::Node(c, i) => {
                        &mut pending.entry(c.seq).or_insert_with(|| vec![None; c.outputs])[*i]
                    }
                };
                *place = Some(match place.take() {
                    Some(sum) => sum.add(&grad)?,
                    None => grad,
                });
            }
        }
        let answer = |t: &&Tensor| match &t.edge {
            Some(Edge::Leaf(id)) => stops.get(id).cloned().flatten(),
            Some(Edge::Node(n, i)) => inner.get(&(n.seq, *i)).cloned().flatten(),
            None => None,
        };
        Ok(inputs.iter().map(answer).collect())
    }
}
