//! How a process becomes a rank of the job's world.

use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use phalanx_host::Isa;

use super::call::Talk;
use super::control::Meeting;
use super::ffi::{Comm, Mpi};
use super::layout::Layout;
use super::owner::{Owner, Slot};
use super::peer_exchange::{Net, Turns};
use super::peer_window::{Board, SEAT_BYTES, check_room};
use super::sums::Sums;
use super::{Transport, World};
use crate::side::{self, Invitation, Side};
use crate::signal::{Poison, lock};
use crate::{Deadline, Error, Locality, Result, Whereabouts};

/// How a process joins.
#[derive(Debug, Clone)]
pub struct Options {
    /// What any wait on another rank may take.
    pub timeout: Duration,
    /// The instruction set for sums.
    pub isa: Isa,
    /// Whether the ranks of a machine sum in shared memory; else they send messages like all others.
    pub shared_memory: bool,
    /// Where the side channel listens, on the machine of rank 0; by default at the address by which its
    /// name is known to the other machines.
    pub bind: Option<IpAddr>,
    /// How long ranks have for their last words after a failure.
    pub grace: Duration,
}

/// Joins the MPI job that this process was started in. Waits for its other processes, at most `timeout`.
///
/// A process can do this once.
pub fn join(options: &Options) -> Result<World> {
    let deadline = Deadline::after(options.timeout);
    let poison = Arc::new(Poison::default());
    let whereabouts = Arc::new(Whereabouts::default());
    let (owner, ready) = Owner::start(&poison)?;
    let library = owner.outcome(&ready, "the other processes in MPI_Init", 0, deadline)?;
    let place = |mpi: &Mpi| mpi.place(mpi.world());
    let (rank, world) = owner.call("its rank", 0, deadline, place)?;

    // The side channel comes first: from then on a failure of one is known to all.
    let control = owner.call("a communicator", rank, deadline, move |mpi| mpi.split(mpi.world(), 0, rank))?;
    let ids: Arc<[u32]> = (0..world).collect();
    let call = |talk, number, bytes| {
        let slot = Slot::new(&poison);
        owner.submit(Meeting::new(control, rank, ids.clone(), number, talk, bytes, slot.clone()));
        owner.outcome(&slot, "the first control calls", rank, deadline)
    };
    let hosts = call(Talk::AllGather, 0, side::host_name().into_bytes())?;
    let hosts: Vec<String> = hosts.iter().map(|h| String::from_utf8_lossy(h).into_owned()).collect();
    let timeouts = side::Options { deadline: options.timeout, grace: options.grace };
    let hosted = (rank == 0).then(|| {
        let bind = options.bind.or_else(|| side::interface_towards(&hosts)).ok_or_else(|| {
            Error::Usage(format!(
                "the address by which {} reaches {} cannot be found: their names are not known there; set \
                 distributed.bind to an address of rank 0's machine",
                hosts[0],
                hosts.iter().find(|h| **h != hosts[0]).map_or("the others", String::as_str)
            ))
        })?;
        Side::host(world, bind, timeouts.clone(), poison.clone(), whereabouts.clone())
    });
    // A host that could not open its side of the channel says so to all.
    let said = match &hosted {
        None => Vec::new(),
        Some(Ok((_, invitation))) => [vec![1], invitation.to_bytes()].concat(),
        Some(Err(e)) => [vec![0], e.to_string().into_bytes()].concat(),
    };
    let said = call(Talk::Broadcast { root: 0 }, 1, said)?;
    let side = match (hosted, said.first().map(Vec::as_slice)) {
        (Some(hosted), _) => hosted?.0,
        (None, Some([1, invitation @ ..])) => {
            let invitation = Invitation::from_bytes(invitation)?;
            Side::join(rank, world, &invitation, timeouts, poison.clone(), whereabouts.clone())?
        }
        (None, other) => {
            let why = other.and_then(|o| o.get(1..)).map(String::from_utf8_lossy).unwrap_or_default();
            return Err(Error::Usage(format!("rank 0 has no side channel: {why}")));
        }
    };
    let side = Arc::new(side);
    side.wait_ready(deadline)?;
    let base = Base {
        owner: owner.clone(),
        library: library.into(),
        isa: options.isa,
        shared_memory: options.shared_memory,
        timeout: Arc::new(Mutex::new(options.timeout)),
        poison: poison.clone(),
        whereabouts,
        side: side.clone(),
    };
    build(base, control, ids, rank, 2).inspect_err(|e| {
        // Who has not got so far must not wait.
        side.abort(crate::AbortReason::new(rank, e.kind(), e.to_string()));
    })
}

/// What all communicators of a job have in common.
struct Base {
    owner: Owner,
    library: Arc<str>,
    isa: Isa,
    shared_memory: bool,
    timeout: Arc<Mutex<Duration>>,
    poison: Arc<Poison>,
    whereabouts: Arc<Whereabouts>,
    side: Arc<Side>,
}

/// The part of `whole` with the job's ranks `ids`, which gave `color`.
pub(super) fn part(whole: &World, ids: Arc<[u32]>, color: u32, key: u32) -> Result<World> {
    let base = Base {
        owner: whole.owner.clone(),
        library: whole.library.clone(),
        isa: whole.isa,
        shared_memory: !matches!(whole.transport, Transport::Net(ref n) if n.board.is_none()),
        timeout: whole.timeout.clone(),
        poison: whole.poison.clone(),
        // Calls of a part are counted apart: among the world's they would look like calls that other ranks miss.
        whereabouts: Arc::default(),
        side: whole.side.clone(),
    };
    let (me, comm) = (whole.ids[whole.rank as usize], whole.comm);
    let control = base
        .owner
        .call("a part of the world", me, whole_deadline(whole), move |mpi| mpi.split(comm, color, key))?;
    let rank = ids.iter().take_while(|id| **id != me).count() as u32;
    build(base, control, ids, rank, 0)
}

fn whole_deadline(whole: &World) -> Deadline {
    Deadline::after(*lock(&whole.timeout))
}

/// A world of the ranks of `control`, in which `talks` control calls have been made.
fn build(base: Base, control: Comm, ids: Arc<[u32]>, rank: u32, talks: u64) -> Result<World> {
    let deadline = Deadline::after(*lock(&base.timeout));
    let me = ids[rank as usize];
    let (comm, node, nodes) = base.owner.call("communicators for sums", me, deadline, move |mpi| {
        let comm = mpi.split(control, 0, rank)?;
        let node = mpi.split_node(control, rank)?;
        // A machine is known by the first of its ranks.
        let here = mpi.gather_now(node, rank.to_le_bytes().to_vec())?;
        let first = here.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).min().unwrap_or(rank);
        let all = mpi.gather_now(control, first.to_le_bytes().to_vec())?;
        let firsts: Vec<u32> = all.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        Ok((comm, node, firsts))
    })?;
    let locality = locality(&nodes, rank);
    let layout = Layout::new(&nodes, base.shared_memory);
    let group = layout.group_of(rank);
    let members = layout.groups[group].clone();
    let mut world = World {
        rank,
        ids: ids.clone(),
        locality,
        timeout: base.timeout,
        isa: base.isa,
        poison: base.poison,
        whereabouts: base.whereabouts,
        side: base.side,
        owner: base.owner,
        comm,
        control,
        node,
        library: base.library,
        transport: Transport::Alone,
        windows: layout.groups.iter().any(|g| g.len() > 1),
        talks: AtomicU64::new(talks),
        sums: AtomicU64::new(0),
        folds: Mutex::default(),
        plans: Mutex::default(),
        waited: Arc::default(),
        closed: AtomicBool::new(false),
        thread: Mutex::default(),
    };
    if world.ids.len() == 1 {
        return Ok(world);
    }
    let local = rank - members.start;
    // Every machine finds out whether there is room before any asks for it: see `World::alloc`.
    let several = members.len() > 1;
    world.agree(if several { check_room((SEAT_BYTES + 8192) * members.len()) } else { Ok(()) })?;
    let board = if several {
        let seats = world
            .owner
            .call("a shared-memory window", me, deadline, move |mpi| mpi.shared_window(node, SEAT_BYTES))?;
        Some(Arc::new(Board::new(local, seats)?))
    } else {
        None
    };
    world.transport = match (layout.groups.len(), board) {
        (1, Some(board)) => Transport::Shared(Arc::new(Sums::new(
            board,
            ids,
            rank,
            world.isa,
            &world.poison,
            &world.whereabouts,
        ))),
        (_, board) => Transport::Net(Arc::new(Net {
            comm,
            layout,
            group,
            local: local as usize,
            board,
            isa: world.isa,
            ids,
            turns: Mutex::new(Turns::default()),
            spare: Mutex::default(),
            under_way: AtomicUsize::new(0),
            begun: Mutex::default(),
        })),
    };
    // Nobody posts before all have their board.
    crate::Control::barrier(&world, deadline)?;
    Ok(world)
}

/// Where a rank sits, when `firsts` names the first rank on each rank's machine.
fn locality(firsts: &[u32], rank: u32) -> Locality {
    let mine = firsts[rank as usize];
    let mut machines: Vec<u32> = firsts.to_vec();
    machines.sort_unstable();
    machines.dedup();
    let same = |ranks: &[u32]| ranks.iter().filter(|f| **f == mine).count() as u32;
    Locality {
        node: machines.iter().take_while(|m| **m != mine).count() as u32,
        nodes: machines.len() as u32,
        local_rank: same(&firsts[..rank as usize]),
        local_world: same(firsts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_on_machines_are_counted_by_the_first_rank() {
        let firsts = [0, 0, 2, 0, 2];
        let at = |r| locality(&firsts, r);
        assert_eq!(at(3), Locality { node: 0, nodes: 2, local_rank: 2, local_world: 3 });
        assert_eq!(at(4), Locality { node: 1, nodes: 2, local_rank: 1, local_world: 2 });
    }
}
