//! Checks the MPI transport against thread ranks: the same sums, bit by bit, for many trees, sizes and
//! wires; control calls; parts of a world. Started by mpirun or srun, it prints one line and ends with 0.
//!
//! `conformance messages` does it without shared memory; `conformance late` and `conformance desync` fail
//! on purpose and print the error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use phalanx_comm::{
    Bucket, Collective, Communicator, Deadline, Error, Event, Overlap, Result, Tree, Wire, mpi, threads,
};
use phalanx_host::rng::Key;
use phalanx_host::{DType, Isa};

const LONG: Duration = Duration::from_secs(60);

/// The parts of a rank: sums of its nodes' shards in no special order, so only equal trees give equal bits.
fn parts(tree: Tree, rank: u32, world: u32, len: usize, wire: Wire) -> Vec<Vec<f32>> {
    let shard = |s: u32| {
        let mut stream = Key::new(77).derive(u64::from(s), len as u64).stream();
        let mut v: Vec<f32> = (0..len).map(|_| (stream.f32() - 0.5) * 1e3f32.powf(stream.f32())).collect();
        wire.round(Isa::detect(), &mut v);
        v
    };
    let schedule = tree.schedule(rank, world).unwrap();
    let mut slots = vec![Vec::new(); schedule.slots];
    for step in &schedule.steps {
        slots[step.slot] = shard(step.shard);
        for m in &step.merges {
            let src = slots[m.src].clone();
            slots[m.dst].iter_mut().zip(src).for_each(|(x, y)| *x += y);
            wire.round(Isa::detect(), &mut slots[m.dst]);
        }
    }
    slots.truncate(schedule.nodes.len());
    slots
}

/// Sums several buckets, all in flight at once; returns the totals' bits.
fn sums(
    comm: &dyn Communicator,
    tree: Tree,
    lens: &[usize],
    wire: Wire,
    overlap: Overlap,
) -> Result<Vec<u32>> {
    let mine: Vec<_> = lens.iter().map(|n| parts(tree, comm.rank(), comm.world(), *n, wire)).collect();
    let stride = |n: usize| (n * 4).next_multiple_of(64);
    let arena = comm.alloc(mine.iter().map(|p| p.len() * stride(p[0].len())).sum())?;
    let (mut at, mut flights) = (0, Vec::new());
    for (id, parts) in (0..).zip(&mine) {
        let guards = parts.iter().map(|values| {
            let mut guard = arena.write(at..at + values.len() * 4).unwrap();
            guard.as_mut_slice::<f32>().unwrap().copy_from_slice(values);
            at += stride(values.len());
            guard
        });
        let bucket = Bucket::new(id, DType::F32, guards.collect())?;
        flights.push(comm.start(bucket, Collective::AllReduce { tree, wire }, Event::Ready, overlap)?);
    }
    let mut bits = Vec::new();
    for flight in flights {
        let bucket = flight.wait(comm.deadline())?;
        bits.extend(bucket.parts()[0].as_slice::<f32>()?.iter().map(|x| x.to_bits()));
    }
    Ok(bits)
}

/// What thread ranks make of the same.
fn reference(world: u32, tree: Tree, lens: &[usize], wire: Wire) -> Vec<u32> {
    let ends = threads::world(world, LONG, Isa::detect()).unwrap();
    let run = |e| {
        thread::spawn({
            let lens = lens.to_vec();
            move || sums(&e as &threads::Endpoint, tree, &lens, wire, Overlap::Caller).unwrap()
        })
    };
    let ranks: Vec<_> = ends.into_iter().map(run).collect();
    ranks.into_iter().map(|r| r.join().unwrap()).next_back().unwrap()
}

fn check_sums(comm: &dyn Communicator) -> Result<usize> {
    let world = comm.world();
    let mut checked = 0;
    let lens: [&[usize]; 4] = [&[1], &[0, 7, 4096], &[300_001, 5, 70_000], &[2_000_003]];
    for shards in [world, world + 1, 8.max(world), 13.max(world)] {
        let tree = Tree::new(shards)?;
        for (i, lens) in lens.iter().enumerate() {
            for wire in [Wire::F32, Wire::Bf16, Wire::F16 { shift: 4 }] {
                let overlap = if i % 2 == 0 { Overlap::Background } else { Overlap::Caller };
                let got = sums(comm, tree, lens, wire, overlap)?;
                let want = reference(world, tree, lens, wire);
                assert!(got == want, "the sum of {lens:?} over {shards} shards as {wire:?} differs");
                checked += 1;
            }
        }
    }
    Ok(checked)
}

/// More sums at once than a board has places for.
const MANY: usize = 200;

/// Each sum takes the place of one that other ranks may still be looking at.
fn check_many(comm: &dyn Communicator) -> Result<()> {
    let tree = Tree::new(comm.world())?;
    let lens: Vec<usize> = (0..MANY).map(|i| 1 + i * 7 % 50).collect();
    let want = reference(comm.world(), tree, &lens, Wire::F32);
    for overlap in [Overlap::Background, Overlap::Caller] {
        for _ in 0..5 {
            assert!(sums(comm, tree, &lens, Wire::F32, overlap)? == want, "{MANY} sums in flight differ");
        }
    }
    Ok(())
}

fn check_control(comm: &dyn Communicator) -> Result<()> {
    let (rank, world) = (comm.rank(), comm.world());
    for size in [0usize, 3, 40, 41, 100_000] {
        let mine = vec![rank as u8; size * (rank as usize + 1) / world as usize];
        let all = comm.all_gather(&mine, comm.deadline())?;
        for (r, bytes) in (0..world).zip(&all) {
            assert_eq!(*bytes, vec![r as u8; size * (r as usize + 1) / world as usize]);
        }
        let root = size as u32 % world;
        let bytes = (rank == root).then(|| vec![9u8; size]);
        assert_eq!(comm.broadcast(root, bytes.as_deref(), comm.deadline())?, vec![9u8; size]);
    }
    assert!(matches!(comm.broadcast(0, (rank != 0).then_some(&[1]), comm.deadline()), Err(Error::Usage(_))));
    assert_eq!(comm.vote(u8::from(rank == world - 1) * 7, comm.deadline())?, 7);
    comm.barrier(comm.deadline())
}

fn main() {
    let how = std::env::args().nth(1).unwrap_or_default();
    let options = mpi::Options {
        timeout: if how == "late" { Duration::from_secs(1) } else { LONG },
        isa: Isa::detect(),
        shared_memory: how != "messages",
        bind: None,
        grace: Duration::from_millis(500),
    };
    let world = Arc::new(mpi::join(&options).unwrap_or_else(|e| {
        eprintln!("{e}");
        mpi::exit_now(4)
    }));
    let comm: &dyn Communicator = &*world;
    let rank = comm.rank();
    let fails = |result: Result<Vec<u32>>| match result {
        Ok(_) => mpi::exit_now(1),
        Err(e) => {
            println!("rank {rank}: {e}");
            // So that all have said theirs.
            thread::sleep(Duration::from_millis(300));
            mpi::exit_now(e.kind().exit_code())
        }
    };
    let tree = Tree::new(comm.world()).unwrap();
    match how.as_str() {
        "late" if rank == 0 => thread::sleep(Duration::from_secs(3)),
        "late" => fails(sums(comm, tree, &[100], Wire::F32, Overlap::Caller)),
        "desync" => fails(sums(comm, tree, &[100 + rank as usize / 2], Wire::F32, Overlap::Background)),
        _ => {}
    }
    let checked = check_sums(comm).unwrap();
    check_many(comm).unwrap();
    check_control(comm).unwrap();
    let part = comm.split(rank % 2, comm.world() - rank).unwrap();
    check_sums(&*part).unwrap();
    check_control(&*part).unwrap();
    drop(part);
    comm.barrier(Deadline::after(LONG)).unwrap();
    if rank == 0 {
        let l = comm.locality();
        println!("ok: {checked} sums, {} ranks on {} machines, {}", comm.world(), l.nodes, world.library());
    }
    world.close().unwrap();
}
