//! From gradients to their sum over all shards, while the backward pass still runs.
//!
//! Gradients of a shard are written straight into a slot: an arena laid out like the parameters'. When
//! the last parameter of a bucket is done in the rank's last shard, the bucket's range moves into an
//! all-reduce at once. A rank with several shards needs a few slots, and adds them in the order of the
//! fixed tree ([`phalanx_comm::Schedule`]), bucket by bucket, so every sum has the same bits for any
//! number of ranks.
//!
//! On a GPU the slots are in its memory and are added there. What must travel goes by way of a twin arena in memory of the
//! host: down when a bucket is full, and up again when its sum is there; or over NCCL and not through the host at all
//! (`sums.rs`). Either way backward is queued as a whole: the host waits for copies and for what shards came to behind it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use phalanx_comm::{
    Bucket, Collective, Communicator, Deadline, Event, Overlap, Pending, Schedule, Tree, Wire,
};
use phalanx_gpu::{Context, DevicePtr, Download};
use phalanx_host::simd::{Kernel, Real, Simd};
use phalanx_host::{Arena, ArenaMut, ArenaRef, Cpu, DType};
use phalanx_nn::{Params, flat};
use phalanx_tensor::{Device, LeafId, LeafMemory, LeafSink, Tensor};

use crate::buckets::{self, BucketSpec};
use crate::sums::{self, DeviceSums};
use crate::{Error, Result};

/// The slots that a rank's shards are summed in, all laid out alike, in one arena. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Slots {
    arena: Arena,
    /// Where the arena is, when that is not the host's memory.
    home: Option<Device>,
    /// What travels between ranks then, laid out like the arena's first slots.
    staging: Option<Arena>,
    /// What sums them between GPUs, instead.
    sums: Option<Arc<DeviceSums>>,
    /// Bytes from one slot to the next.
    stride: usize,
    dtype: DType,
}

impl Slots {
    /// As many slots of `elements` elements as this rank's share of the tree needs, in the memory of `home` or else the
    /// host's; between ranks they go over `sums` where it is there. A meeting of all ranks, whose memory must be of one kind.
    pub fn new(
        comm: &dyn Communicator,
        tree: Tree,
        elements: usize,
        dtype: DType,
        home: Option<&Device>,
        sums: Option<&Arc<DeviceSums>>,
    ) -> Result<Self> {
        let sums = sums.filter(|_| home.is_some()).cloned();
        // Every slot begins on a cache line of its own.
        let stride = (elements * dtype.size()).next_multiple_of(phalanx_host::ALIGN);
        let schedule = tree.schedule(comm.rank(), comm.world())?;
        let arena = match home {
            None => comm.alloc(schedule.slots * stride)?,
            Some(device) => device.arena(schedule.slots * stride)?,
        };
        let travels = home.is_some() && comm.world() > 1 && sums.is_none();
        let staging = if travels { Some(comm.alloc(schedule.nodes.len() * stride)?) } else { None };
        Ok(Slots { arena, home: home.cloned(), staging, sums, stride, dtype })
    }

    fn gpu(&self) -> Option<&Context> {
        self.home.as_ref().and_then(Device::gpu)
    }

    /// Where elements of a slot are in the arena.
    fn bytes(&self, slot: usize, elements: &Range<usize>) -> Range<usize> {
        let start = slot * self.stride;
        start + elements.start * self.dtype.size()..start + elements.end * self.dtype.size()
    }

    fn write(&self, slot: usize, elements: &Range<usize>) -> Result<ArenaMut> {
        Ok(self.arena.write(self.bytes(slot, elements))?)
    }

    /// Adds the slots that are due after a shard. With a narrow wire the shard's own values are rounded first,
    /// and every sum of them: a node of the tree has the same bits wherever it is made ([`Wire`]).
    fn merge(&self, cpu: &Cpu, step: &phalanx_comm::Step, elements: &Range<usize>, wire: Wire) -> Result<()> {
        self.round(cpu, step.slot, elements, wire)?;
        for m in &step.merges {
            let mut dst = self.write(m.dst, elements)?;
            let src = self.arena.read(self.bytes(m.src, elements))?;
            match (self.gpu(), self.dtype) {
                (Some(gpu), _) => flat::add(gpu, &mut dst, &src)?,
                (None, DType::F64) => add::<f64>(cpu, dst.as_mut_slice()?, src.as_slice()?),
                (None, _) => add::<f32>(cpu, dst.as_mut_slice()?, src.as_slice()?),
            }
            drop((dst, src));
            self.round(cpu, m.dst, elements, wire)?;
        }
        Ok(())
    }

    fn round(&self, cpu: &Cpu, slot: usize, elements: &Range<usize>, wire: Wire) -> Result<()> {
        if wire != Wire::F32 && self.dtype == DType::F32 {
            let mut values = self.write(slot, elements)?;
            match (self.gpu(), wire) {
                (None, _) | (_, Wire::F32) => {}
                (Some(gpu), Wire::Bf16) => return Ok(flat::round_bf16(gpu, &mut values)?),
                (Some(gpu), Wire::F16 { shift }) => {
                    let up = f32::from_bits((127 + u32::from(shift)) << 23);
                    return Ok(flat::round_f16(gpu, &mut values, 1.0 / up, up)?);
                }
            }
            cpu.workers.chunks(values.as_mut_slice::<f32>()?, PIECE, |_, v| wire.round(cpu.isa, v));
        }
        Ok(())
    }

    /// The sums of this rank's `nodes` subtrees, which are in memory that can travel.
    fn bucket(&self, id: u32, nodes: usize, elements: &Range<usize>) -> Result<Bucket> {
        Ok(Bucket::new(id, self.dtype, self.parts(&self.arena, nodes, elements)?)?)
    }

    /// Queues copies of the same from a GPU to the host.
    fn leave(&self, gpu: &Context, nodes: usize, elements: &Range<usize>) -> Result<Leaving> {
        let held = (0..nodes).map(|i| Ok(self.arena.read(self.bytes(i, elements))?));
        let held = held.collect::<Result<Vec<_>>>()?;
        let places: Vec<_> =
            held.iter().filter_map(|h| Some((DevicePtr(h.device_address()?), h.len()))).collect();
        Ok(Leaving { copies: gpu.begin_download_beside(&places)?, held, elements: elements.clone() })
    }

    /// What has left the GPU, after a wait for it, in memory that can travel.
    fn arrive(&self, id: u32, staging: &Arena, leaving: Leaving) -> Result<Bucket> {
        let Leaving { copies, held, elements } = leaving;
        let mut parts = self.parts(staging, held.len(), &elements)?;
        copies.read(|mut bytes| {
            for part in &mut parts {
                let (own, others) = bytes.split_at(part.len());
                part.bytes_mut().copy_from_slice(own);
                bytes = others;
            }
        })?;
        Ok(Bucket::new(id, self.dtype, parts)?)
    }

    /// The places of this rank's `nodes` subtrees in an arena.
    fn parts(&self, arena: &Arena, nodes: usize, elements: &Range<usize>) -> Result<Vec<ArenaMut>> {
        (0..nodes).map(|i| Ok(arena.write(self.bytes(i, elements))?)).collect()
    }

    /// Puts the total of `elements`, which has come to the host's memory, where the others are.
    fn land(&self, elements: &Range<usize>) -> Result<()> {
        let (Some(staging), Some(device)) = (&self.staging, &self.home) else { return Ok(()) };
        let place = self.bytes(0, elements);
        let total = staging.read(place.clone())?;
        Ok(device.write_arena(&mut self.arena.write(place)?, total.bytes())?)
    }

    /// Sets `elements` of a slot to zero.
    fn clear(&self, slot: usize, elements: &Range<usize>) -> Result<()> {
        let mut place = self.write(slot, elements)?;
        match &self.home {
            None => place.bytes_mut().fill(0),
            Some(device) => device.clear_arena(&mut place)?,
        }
        Ok(())
    }
}

struct Add<'a, T>(&'a mut [T], &'a [T]);

impl<T: Real> Kernel<T> for Add<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<T>>(self) {
        self.0.iter_mut().zip(self.1).for_each(|(x, &y)| *x += y);
    }
}

/// Elements that one thread takes at once.
const PIECE: usize = 1 << 16;

/// `dst += src`, element by element.
fn add<T: Real>(cpu: &Cpu, dst: &mut [T], src: &[T]) {
    cpu.workers.chunks(dst, PIECE, |i, d| {
        let n = d.len();
        T::dispatch(cpu.isa, Add(d, &src[i * PIECE..i * PIECE + n]));
    });
}

/// A bucket on its way from a GPU to the host.
struct Leaving {
    // Before the ranges: it waits for the copies.
    copies: Download,
    held: Vec<ArenaRef>,
    elements: Range<usize>,
}

/// How a sum comes.
enum Way {
    /// It is there.
    Here,
    /// Over the ranks' communicator, as soon as the host has this rank's part.
    Leaving(Leaving),
    /// Over the ranks' communicator.
    Host(Pending),
    /// Between GPUs.
    Device(sums::Flight),
}

/// Sums one phase's gradients, and a vector of statistics beside them, over all shards.
pub struct Reducer {
    comm: Arc<dyn Communicator>,
    tree: Tree,
    wire: Wire,
    schedule: Schedule,
    /// The phase's parameters: indices into `places`.
    first: u64,
    places: Vec<Range<usize>>,
    buckets: Vec<BucketSpec>,
    bucket_of: Vec<usize>,
    gradients: Slots,
    statistics: Slots,
    statistics_len: usize,
    // The shard in work.
    at: usize,
    written: Vec<bool>,
    ready: Vec<bool>,
    left: Vec<usize>,
    // Buckets are launched in their planned order, whatever order they fill in.
    filled: Vec<bool>,
    launched: usize,
    /// The statistics' sum, where it is on its way.
    total: Option<Pending>,
    /// The buckets' sums, in order.
    pending: VecDeque<Way>,
    /// The last of the sums over NCCL, for whose end nobody has waited yet.
    landed: Option<sums::Landed>,
    misfit: bool,
}

impl Reducer {
    /// A reducer for the parameters `ids`, with room for `statistics_len` statistics. `gradients` is laid
    /// out like all parameters; the reducers of several phases can share it, one at a time.
    pub fn new(
        comm: &Arc<dyn Communicator>,
        tree: Tree,
        params: &Params,
        ids: Range<u32>,
        gradients: &Slots,
        statistics_len: usize,
        bucket_bytes: usize,
        wire: Wire,
    ) -> Result<Self> {
        let schedule = tree.schedule(comm.rank(), comm.world())?;
        let places: Vec<_> = ids.clone().map(|i| params.range(phalanx_nn::ParamId(i))).collect();
        let buckets = buckets::plan(&places, (bucket_bytes / size_of::<f32>()).max(1));
        let mut bucket_of = vec![0; places.len()];
        for (b, spec) in buckets.iter().enumerate() {
            bucket_of[spec.params.clone()].fill(b);
        }
        let statistics = Slots::new(&**comm, tree, statistics_len, DType::F64, None, None)?;
        Ok(Reducer {
            comm: comm.clone(),
            tree,
            wire,
            first: u64::from(ids.start),
            written: vec![false; places.len()],
            ready: vec![false; places.len()],
            left: vec![0; buckets.len()],
            filled: vec![false; buckets.len()],
            schedule,
            places,
            buckets,
            bucket_of,
            gradients: gradients.clone(),
            statistics,
            statistics_len,
            at: 0,
            launched: 0,
            total: None,
            pending: VecDeque::new(),
            landed: None,
            misfit: false,
        })
    }

    /// A planted failure: the next bucket is one element shorter than it is on the other ranks.
    pub(crate) fn misfit(&mut self) {
        self.misfit = true;
    }

    /// The bucket plan: the elements of each, to be compared across ranks.
    pub fn plan(&self) -> Vec<String> {
        let of = |b: &BucketSpec| format!("{}..{}", b.elements.start, b.elements.end);
        self.buckets.iter().map(of).collect()
    }

    /// The shards of this rank, in the order in which they are computed.
    pub fn shards(&self) -> Vec<u32> {
        self.schedule.steps.iter().map(|s| s.shard).collect()
    }

    /// Starts shard number `at` of [`Reducer::shards`]; the reducer is then the sink of its backward
    /// pass.
    pub fn begin_shard(&mut self, at: usize) {
        if at == 0 {
            self.launched = 0;
            self.total = None;
            self.pending.clear();
        }
        self.at = at;
        self.written.fill(false);
        self.ready.fill(false);
        self.filled.fill(false);
        for (left, spec) in self.left.iter_mut().zip(&self.buckets) {
            *left = spec.params.len();
        }
    }

    /// Whether all shards are to be queued before anything of them is waited for, as on a GPU. Elsewhere a shard's statistics come
    /// before its backward pass: collectives begin in one order on all ranks.
    pub fn queues(&self) -> bool {
        self.gradients.home.is_some()
    }

    /// Takes the statistics of shard number `at`, in order and before its backward pass unless [`Reducer::queues`]. Those of the
    /// last shard begin their way over the ranks at once, so that they are there when the gradients are.
    pub fn statistics(&mut self, cpu: &Cpu, at: usize, statistics: &[f64]) -> Result<()> {
        let step = &self.schedule.steps[at];
        let all = 0..self.statistics_len;
        if !all.is_empty() {
            let mut slot = self.statistics.write(step.slot, &all)?;
            slot.as_mut_slice::<f64>()?.copy_from_slice(statistics);
        }
        self.statistics.merge(cpu, step, &all, Wire::F32)?;
        if at + 1 == self.schedule.steps.len() && self.comm.world() > 1 {
            let id = self.buckets.len() as u32;
            let bucket = self.statistics.bucket(id, self.schedule.nodes.len(), &all)?;
            let what = Collective::AllReduce { tree: self.tree, wire: Wire::F32 };
            self.total = Some(self.comm.start(bucket, what, Event::Ready, Overlap::Caller)?);
        }
        Ok(())
    }

    /// Begins the sums of what is on its way from a GPU to the host, bucket by bucket after a wait for each; after the last shard's
    /// statistics. The sums of one cross while the next is computed.
    pub fn depart(&mut self) -> Result<()> {
        let Some(staging) = self.gradients.staging.clone() else { return Ok(()) };
        for b in 0..self.pending.len() {
            let way = match std::mem::replace(&mut self.pending[b], Way::Here) {
                Way::Leaving(leaving) => {
                    Way::Host(self.begin(b, self.gradients.arrive(b as u32, &staging, leaving)?)?)
                }
                other => other,
            };
            self.pending[b] = way;
        }
        Ok(())
    }

    /// Ends the shard: parameters that its graph did not reach have a gradient of zero.
    pub fn end_shard(&mut self, cpu: &Cpu) -> Result<()> {
        for i in (0..self.places.len()).rev() {
            if !self.ready[i] {
                self.done(cpu, i)?;
            }
        }
        Ok(())
    }

    /// Waits for the statistics' sums, after the last shard and before [`Reducer::next_sum`].
    pub fn total(&mut self, deadline: Deadline) -> Result<Vec<f64>> {
        if let Some(pending) = self.total.take() {
            pending.wait(deadline)?;
        }
        let all = 0..self.statistics_len;
        let total = self.statistics.arena.read(self.statistics.bytes(0, &all))?;
        Ok(total.as_slice::<f64>()?.to_vec())
    }

    /// Waits for the next bucket's sums and returns its elements; none when all are there. The sums are then
    /// in [`Reducer::gradients`]. On a GPU they may still be on their way for the host, but not for the compute stream,
    /// until none is left.
    pub fn next_sum(&mut self, deadline: Deadline) -> Result<Option<Range<usize>>> {
        let bucket = self.buckets.len() - self.pending.len();
        let Some(way) = self.pending.pop_front() else {
            // No later wait for the compute stream could be ended from outside.
            if let (Some(landed), Some(sums)) = (self.landed.take(), &self.gradients.sums) {
                sums.finish(&landed, deadline)?;
            }
            return Ok(None);
        };
        let elements = self.buckets[bucket].elements.clone();
        match (way, &self.gradients.sums) {
            (Way::Host(pending), _) => {
                pending.wait(deadline)?;
                self.gradients.land(&elements)?;
            }
            (Way::Device(flight), Some(sums)) => self.landed = Some(sums.land(flight)?),
            (Way::Here | Way::Leaving(_) | Way::Device(_), _) => {}
        }
        Ok(Some(elements))
    }

    /// The gradient sums of all shards: laid out like the parameters, from the arena's start.
    pub fn gradients(&self) -> &Arena {
        &self.gradients.arena
    }

    fn index(&self, leaf: LeafId) -> Option<usize> {
        let i = usize::try_from(leaf.0.checked_sub(self.first)?).ok()?;
        (i < self.places.len()).then_some(i)
    }

    /// The place of a leaf's gradient in the shard in work.
    fn memory(&mut self, leaf: LeafId) -> phalanx_tensor::Result<Option<LeafMemory>> {
        let Some(i) = self.index(leaf) else { return Ok(None) };
        let slot = self.schedule.steps[self.at].slot;
        let range = self.gradients.arena.write(self.gradients.bytes(slot, &self.places[i]))?;
        let accumulate = std::mem::replace(&mut self.written[i], true);
        Ok(Some(LeafMemory { range, accumulate }))
    }

    fn last_shard(&self) -> bool {
        self.at + 1 == self.schedule.steps.len()
    }

    /// Parameter `i` is finished in this shard.
    fn done(&mut self, cpu: &Cpu, i: usize) -> Result<()> {
        let step = &self.schedule.steps[self.at];
        if !self.written[i] {
            self.gradients.clear(step.slot, &self.places[i])?;
        }
        self.ready[i] = true;
        let b = self.bucket_of[i];
        self.left[b] -= 1;
        if self.left[b] > 0 {
            return Ok(());
        }
        self.gradients.merge(cpu, step, &self.buckets[b].elements, self.wire)?;
        self.filled[b] = true;
        if self.last_shard() {
            self.launch()?;
        }
        Ok(())
    }

    fn launch(&mut self) -> Result<()> {
        while self.launched < self.buckets.len() && self.filled[self.launched] {
            let (b, nodes) = (self.launched, self.schedule.nodes.len());
            let mut elements = self.buckets[b].elements.clone();
            elements.end -= usize::from(std::mem::take(&mut self.misfit));
            let g = &self.gradients;
            let way = match (&g.home, &g.sums, &g.staging, g.gpu()) {
                (Some(_), ..) if self.comm.world() == 1 => Way::Here,
                (_, Some(sums), ..) => {
                    let parts = g.parts(&g.arena, nodes, &elements)?;
                    Way::Device(sums.start(parts, self.tree, self.wire, self.comm.deadline())?)
                }
                (_, _, Some(_), Some(gpu)) => Way::Leaving(g.leave(gpu, nodes, &elements)?),
                _ => Way::Host(self.begin(b, g.bucket(b as u32, nodes, &elements)?)?),
            };
            self.pending.push_back(way);
            self.launched += 1;
        }
        Ok(())
    }

    /// Begins the sum of bucket `b` over the ranks' communicator.
    fn begin(&self, b: usize, bucket: Bucket) -> Result<Pending> {
        let what = Collective::AllReduce { tree: self.tree, wire: self.wire };
        // The last bucket fills when backward ends: the caller waits next, so it does the work.
        let overlap = if b + 1 == self.buckets.len() { Overlap::Caller } else { Overlap::Background };
        Ok(self.comm.start(bucket, what, Event::Ready, overlap)?)
    }
}

/// The reducer as the sink of one shard's backward pass.
pub struct ShardSink<'a> {
    /// The reducer, between `begin_shard` and `end_shard`.
    pub reducer: &'a mut Reducer,
    /// The CPU that merges slots.
    pub cpu: &'a Cpu,
    /// The first error of the reducer's own, which the tensor room cannot carry.
    pub error: Option<Error>,
}

impl LeafSink for ShardSink<'_> {
    fn wants(&self, leaf: LeafId) -> bool {
        self.reducer.index(leaf).is_some()
    }

    fn memory(&mut self, leaf: LeafId) -> phalanx_tensor::Result<Option<LeafMemory>> {
        self.reducer.memory(leaf)
    }

    fn ready(&mut self, leaf: LeafId, _: Option<Tensor>) -> phalanx_tensor::Result<()> {
        let Some(i) = self.reducer.index(leaf) else { return Ok(()) };
        if let Err(e) = self.reducer.done(self.cpu, i) {
            let why = e.to_string();
            self.error.get_or_insert(e);
            return Err(phalanx_tensor::Error::Backward { why });
        }
        Ok(())
    }
}

/// The reducer as the sink of a backward pass whose gradients nobody wants; [`Reducer::begin_shard`] comes before and after.
pub(crate) struct Rehearsal<'a>(pub(crate) &'a mut Reducer);

impl LeafSink for Rehearsal<'_> {
    fn wants(&self, leaf: LeafId) -> bool {
        self.0.index(leaf).is_some()
    }

    fn memory(&mut self, leaf: LeafId) -> phalanx_tensor::Result<Option<LeafMemory>> {
        self.0.memory(leaf)
    }

    fn ready(&mut self, _: LeafId, _: Option<Tensor>) -> phalanx_tensor::Result<()> {
        Ok(())
    }
}
