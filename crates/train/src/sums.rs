//! Sums of gradients between GPUs by NCCL, without a way through the host's memory.
//!
//! All of it is on the context's communication stream: it waits for what the computation has queued so far, and the
//! computation waits for it where sums are read. The host waits for nobody but at a step's end, and then looks for NCCL's
//! errors, other ranks' aborts and its deadline; whoever gives up ends all ranks through the communicator and its own
//! work by an abort of NCCL's.
//!
//! `exact` sums follow the fixed tree as those of the host do: every rank gets its piece of all parts from all others,
//! adds them in the tree's order, and gives the total to all. They have the same bits for any number of ranks.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use phalanx_comm::{AbortReason, Communicator, Deadline, Fold, Operand, Tree, Wire};
use phalanx_gpu::{Buffer, Context, DevicePtr, Event, Nccl, NcclId};
use phalanx_host::ArenaMut;
use phalanx_nn::flat;

use crate::machine::Machine;
use crate::{Error, Result};

/// Which way sums of gradients go between GPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SumsOver {
    /// NCCL where every rank has a GPU of its own and the library is there, else the host.
    #[default]
    Auto,
    /// The host's memory, and the ranks' communicator.
    Host,
    /// NCCL, or an error that says why not.
    Nccl,
}

/// What an abort of NCCL's may take before its rank goes on without it.
const ABORT: Duration = Duration::from_secs(5);

/// Elements that a piece of a bucket is a multiple of: kernels read 16 bytes at once.
const ALIGNED: usize = 4;

/// A rank's place among GPUs that sum by NCCL.
pub struct DeviceSums {
    nccl: Nccl,
    comm: Arc<dyn Communicator>,
    gpu: Context,
    exact: bool,
    /// What other ranks' parts come to, and sums in between. One bucket after the other uses it.
    scratch: Mutex<Option<Buffer>>,
    fold: Mutex<Option<(Tree, Arc<Fold>)>>,
}

/// A sum on its way, and the ranges that it is in.
pub(crate) struct Flight {
    done: Event,
    parts: Vec<ArenaMut>,
}

/// Why sums cannot go over NCCL here; the same on all ranks. None when they can. A meeting of all ranks.
fn obstacle(comm: &dyn Communicator, gpu: Option<&Context>) -> Result<Option<String>> {
    let rank = comm.rank();
    let problem = match gpu.map(|_| Nccl::version()) {
        None => format!("rank {rank} has no GPU"),
        Some(Err(e)) => format!("rank {rank}: {e}"),
        Some(Ok(_)) => String::new(),
    };
    let mut mine = comm.locality().node.to_le_bytes().to_vec();
    mine.extend(gpu.map(|gpu| gpu.info().uuid).unwrap_or_default());
    let device = mine.len();
    mine.extend(problem.as_bytes());
    let all = comm.all_gather(&mine, comm.deadline())?;
    let problem = all.iter().map(|a| a.get(device..).unwrap_or_default()).find(|p| !p.is_empty());
    if let Some(problem) = problem {
        return Ok(Some(String::from_utf8_lossy(problem).into_owned()));
    }
    let same = |i: usize| all[..i].iter().position(|a| a == &all[i]).map(|first| (first, i));
    Ok((0..all.len())
        .find_map(same)
        .map(|(a, b)| format!("ranks {a} and {b} share one GPU, and NCCL wants one for each rank")))
}

impl DeviceSums {
    /// Joins all ranks' GPUs where that is wanted and possible; else none, and why. A meeting of all ranks, which must
    /// want the same.
    pub fn join(
        comm: &Arc<dyn Communicator>,
        machine: &Machine,
        over: SumsOver,
        exact: bool,
    ) -> Result<std::result::Result<Arc<Self>, Option<String>>> {
        let gpu = machine.gpu();
        let demanded = over == SumsOver::Nccl;
        let refused = |why| {
            let problem = format!("{why}; with --comm auto sums go by way of the host's memory then");
            Err(Error::config("--comm nccl", problem))
        };
        if over == SumsOver::Host || comm.world() == 1 {
            return match gpu {
                None if demanded => refused("rank 0 has no GPU".into()),
                _ => Ok(Err(None)),
            };
        }
        match (obstacle(&**comm, gpu)?, gpu) {
            (Some(why), _) if demanded => refused(why),
            (None, Some(gpu)) => Self::begin(comm, gpu, exact).map(|sums| Ok(Arc::new(sums))),
            // Without any GPU nobody expects NCCL, and there is nothing to tell.
            (why, gpu) => Ok(Err(why.filter(|_| gpu.is_some()))),
        }
    }

    fn begin(comm: &Arc<dyn Communicator>, gpu: &Context, exact: bool) -> Result<Self> {
        let deadline = comm.deadline();
        let id = (comm.rank() == 0).then(Nccl::unique_id).transpose()?;
        let id = comm.broadcast(0, id.as_ref().map(|id| &id[..]), deadline)?;
        let id = NcclId::try_from(&id[..]).map_err(|_| {
            phalanx_comm::Error::Usage("rank 0 gave something else than NCCL's identity".into())
        })?;
        let nccl = Nccl::join(gpu, &id, comm.rank() as usize, comm.world() as usize)?;
        let (comm, gpu) = (comm.clone(), gpu.clone());
        let sums = DeviceSums { nccl, comm, gpu, exact, scratch: Mutex::default(), fold: Mutex::default() };
        sums.wait("all ranks to join NCCL", deadline, || Ok(sums.nccl.settled()?))?;
        Ok(sums)
    }

    /// Begins to sum `parts`, this rank's nodes of `tree`, over all ranks; the total comes to the first. They are as the
    /// compute stream leaves them. Every rank must begin the same sums in the same order.
    pub(crate) fn start(
        &self,
        parts: Vec<ArenaMut>,
        tree: Tree,
        wire: Wire,
        deadline: Deadline,
    ) -> Result<Flight> {
        self.queue(&parts, tree, wire, deadline)
            .map_err(|e| self.give_up(e))
            .map(|done| Flight { done, parts })
    }

    fn queue(&self, parts: &[ArenaMut], tree: Tree, wire: Wire, deadline: Deadline) -> Result<Event> {
        let places: Vec<_> = parts.iter().filter_map(|p| p.device_address().map(DevicePtr)).collect();
        let count = parts.first().map_or(0, |p| p.len() / size_of::<f32>());
        let stream = self.gpu.communication();
        if self.exact {
            self.sum_by_tree(&places, count, tree, wire, deadline)?;
        } else {
            self.gpu.communicate_after_compute()?;
            if let Some((&first, others)) = places.split_first() {
                for &other in others {
                    flat::sum_on(&self.gpu, stream, first, [first, other], count)?;
                }
                self.nccl.all_reduce(first, first, count)?;
                self.settle(deadline)?;
            }
        }
        let done = self.gpu.event()?;
        done.record(stream)?;
        Ok(done)
    }

    /// The sum over the tree: each rank adds a piece of the bucket, and what does not divide, all of them.
    fn sum_by_tree(
        &self,
        mine: &[DevicePtr],
        count: usize,
        tree: Tree,
        wire: Wire,
        deadline: Deadline,
    ) -> Result<()> {
        let (me, ranks) = (self.nccl.rank(), self.nccl.ranks());
        let fold = self.fold(tree)?;
        let plan = Pieces::new(&fold, me, ranks, count);
        let scratch = self.scratch(plan.scratch_bytes())?;
        self.gpu.communicate_after_compute()?;
        self.nccl.group(|nccl| {
            for peer in (0..ranks).filter(|&r| r != me) {
                for &part in mine {
                    for (at, len) in plan.wanted_by(peer) {
                        nccl.send(float(part, at), len, peer)?;
                    }
                }
                for part in plan.parts_of(peer) {
                    let mut to = float(scratch, plan.place(part));
                    for (_, len) in plan.wanted_by(me) {
                        nccl.receive(to, len, peer)?;
                        to = float(to, len);
                    }
                }
            }
            Ok(())
        })?;
        self.settle(deadline)?;

        let last = fold.steps.len().saturating_sub(1);
        // Where they are in a part of the bucket, and where in scratch memory.
        let mut behind = 0;
        for (at, len) in plan.wanted_by(me) {
            let first = plan.parts_of(me).start;
            let find = |operand: &Operand| match *operand {
                Operand::Part(p) if plan.parts_of(me).contains(&p) => float(mine[p - first], at),
                Operand::Part(p) => float(scratch, plan.place(p) + behind),
                Operand::Temp(t) => float(scratch, plan.temporary(t) + behind),
            };
            for (i, step) in fold.steps.iter().enumerate() {
                let to = if i == last { float(mine[0], at) } else { find(&Operand::Temp(step.dst)) };
                flat::sum_on(&self.gpu, self.gpu.communication(), to, [find(&step.a), find(&step.b)], len)?;
                self.round(to, len, wire)?;
            }
            behind += len;
        }
        if plan.piece > 0 {
            self.nccl.all_gather(float(mine[0], me * plan.piece), mine[0], plan.piece)?;
            self.settle(deadline)?;
        }
        Ok(())
    }

    fn round(&self, at: DevicePtr, count: usize, wire: Wire) -> Result<()> {
        let (gpu, stream) = (&self.gpu, self.gpu.communication());
        match wire {
            Wire::F32 => Ok(()),
            Wire::Bf16 => Ok(flat::round_bf16_on(gpu, stream, at, count)?),
            Wire::F16 { shift } => {
                let up = f32::from_bits((127 + u32::from(shift)) << 23);
                Ok(flat::round_f16_on(gpu, stream, at, count, 1.0 / up, up)?)
            }
        }
    }

    /// What the compute stream does from here on comes after the sum, whose ranges are free again.
    pub(crate) fn land(&self, flight: Flight) -> Result<Landed> {
        self.gpu.compute().wait(&flight.done)?;
        drop(flight.parts);
        Ok(Landed(flight.done))
    }

    /// Waits for a sum, and so for all that were begun before it.
    pub(crate) fn finish(&self, landed: &Landed, deadline: Deadline) -> Result<()> {
        self.wait("sums over NCCL", deadline, || {
            Ok(landed.0.query()? || self.nccl.settled()? && landed.0.query()?)
        })
    }

    /// Waits until NCCL has taken what was asked for: connections to other ranks are made at their first use.
    fn settle(&self, deadline: Deadline) -> Result<()> {
        self.wait("NCCL's connections to other ranks", deadline, || Ok(self.nccl.settled()?))
    }

    fn wait(&self, what: &str, deadline: Deadline, done: impl Fn() -> Result<bool>) -> Result<()> {
        let begun = Instant::now();
        let mut rest = Duration::ZERO;
        loop {
            match done() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(e) => return Err(self.give_up(e)),
            }
            if let Some(reason) = self.comm.aborted() {
                return Err(self.give_up(phalanx_comm::Error::Aborted { reason }.into()));
            }
            if deadline.expired() {
                let late = phalanx_comm::Error::Deadline {
                    rank: self.comm.rank(),
                    allowed: deadline.allowed(),
                    what: what.to_owned(),
                    missing: Vec::new(),
                    report: "some rank has not come or is out of step, or a link between GPUs is down".into(),
                };
                return Err(self.give_up(late.into()));
            }
            // At first without a rest, then with growing ones.
            if begun.elapsed() > Duration::from_micros(100) {
                rest = (rest + Duration::from_micros(20)).min(Duration::from_millis(1));
                std::thread::sleep(rest);
            }
        }
    }

    /// Ends all ranks, then what this one has in flight: in this order, so that nobody takes a sum for one that an abort
    /// has left half done.
    fn give_up(&self, e: Error) -> Error {
        self.comm.abort(AbortReason::new(self.comm.rank(), e.kind(), e.to_string()));
        self.nccl.abort(ABORT);
        e
    }

    fn fold(&self, tree: Tree) -> Result<Arc<Fold>> {
        let mut kept = self.fold.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((of, fold)) if *of == tree => Ok(fold.clone()),
            _ => {
                let fold = Arc::new(tree.fold(self.comm.world())?);
                *kept = Some((tree, fold.clone()));
                Ok(fold)
            }
        }
    }

    fn scratch(&self, bytes: usize) -> Result<DevicePtr> {
        let mut held = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = held.as_ref().filter(|b| b.len() >= bytes) {
            return Ok(block.ptr());
        }
        let block = self.gpu.alloc(bytes)?;
        let ptr = block.ptr();
        if let Some(old) = held.replace(block) {
            let used = self.gpu.event()?;
            used.record(self.gpu.communication())?;
            old.keep_until(&used);
        }
        Ok(ptr)
    }
}

impl fmt::Debug for DeviceSums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSums({:?}, exact: {})", self.nccl, self.exact)
    }
}

/// A sum that the compute stream waits for.
pub(crate) struct Landed(Event);

/// The address of the element that is `at` elements behind `base`.
fn float(base: DevicePtr, at: usize) -> DevicePtr {
    base.offset(at * size_of::<f32>())
}

/// How a bucket is cut among the ranks, and where other ranks' parts of it are in scratch memory. In elements.
struct Pieces {
    me: usize,
    /// The first part of each rank, and behind them the number of all.
    first: Vec<usize>,
    temps: usize,
    /// Of each rank, one after the other.
    piece: usize,
    /// What is left over behind them, and where.
    rest: (usize, usize),
    /// From one part to the next in scratch memory.
    stride: usize,
}

impl Pieces {
    fn new(fold: &Fold, me: usize, ranks: usize, count: usize) -> Self {
        let mut first = vec![0];
        for parts in &fold.parts {
            first.push(first.last().map_or(0, |f| f + parts));
        }
        let piece = count / ranks / ALIGNED * ALIGNED;
        let rest = (piece * ranks, count - piece * ranks);
        let stride = (piece + rest.1).next_multiple_of(ALIGNED);
        Pieces { me, first, temps: fold.temps, piece, rest, stride }
    }

    fn parts_of(&self, rank: usize) -> std::ops::Range<usize> {
        self.first[rank]..self.first[rank + 1]
    }

    /// Where a part has what `rank` adds, and how much; none of it is empty.
    fn wanted_by(&self, rank: usize) -> impl Iterator<Item = (usize, usize)> {
        [(rank * self.piece, self.piece), self.rest].into_iter().filter(|(_, len)| *len > 0)
    }

    /// Where another rank's part is in scratch memory.
    fn place(&self, part: usize) -> usize {
        let mine = self.parts_of(self.me);
        let before = if part >= mine.end { mine.len() } else { 0 };
        (part - before) * self.stride
    }

    fn temporary(&self, temp: usize) -> usize {
        let others = self.first.last().map_or(0, |all| all - self.parts_of(self.me).len());
        (others + temp) * self.stride
    }

    fn scratch_bytes(&self) -> usize {
        self.temporary(self.temps) * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_cover_a_bucket_and_scratch_places_are_apart(shards in 1u32..20, ranks in 1u32..9, count in 0usize..200) {
            prop_assume!(shards >= ranks);
            let fold = Tree::new(shards).unwrap().fold(ranks).unwrap();
            for me in 0..ranks as usize {
                let plan = Pieces::new(&fold, me, ranks as usize, count);
                let mut seen = vec![0; count];
                for rank in 0..ranks as usize {
                    for (at, len) in plan.wanted_by(rank) {
                        prop_assert!(at % ALIGNED == 0 && len > 0);
                        seen[at..at + len].iter_mut().for_each(|s| *s += 1);
                    }
                }
                // The rest is everybody's.
                let rest = plan.rest.0;
                prop_assert!(seen[..rest].iter().all(|s| *s == 1) && seen[rest..].iter().all(|s| *s == ranks));
                let others = (0..ranks as usize).filter(|r| *r != me).flat_map(|r| plan.parts_of(r));
                let mut places: Vec<_> = others.map(|p| plan.place(p)).collect();
                places.extend((0..fold.temps).map(|t| plan.temporary(t)));
                let most: usize = plan.wanted_by(me).map(|(_, len)| len).sum();
                for (i, at) in places.iter().enumerate() {
                    prop_assert!(*at == i * plan.stride && most <= plan.stride);
                }
                prop_assert_eq!(plan.scratch_bytes(), places.len() * plan.stride * 4);
            }
        }
    }
}
