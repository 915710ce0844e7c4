//! Worlds of threads for the tests.
#![allow(dead_code, clippy::unwrap_used)]

use std::thread;
use std::time::Duration;

use phalanx_comm::threads::{Endpoint, world};
use phalanx_comm::{Bucket, Collective, Collectives, Event, Overlap, Pending, Result, Tree, Wire};
use phalanx_host::simd::Real;
use phalanx_host::{Arena, Isa};

/// Long enough never to be what ends a test that works.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn endpoints(ranks: u32, timeout: Duration) -> Vec<Endpoint> {
    world(ranks, timeout, Isa::detect()).unwrap()
}

/// Runs `body` as every rank on a thread of its own; results by rank. A rank's panic is its `Err`.
pub(crate) fn run<T: Send>(
    endpoints: Vec<Endpoint>,
    body: impl Fn(Endpoint) -> T + Sync,
) -> Vec<thread::Result<T>> {
    let body = &body;
    thread::scope(|s| {
        let ranks: Vec<_> = endpoints.into_iter().map(|e| s.spawn(move || body(e))).collect();
        ranks.into_iter().map(|r| r.join()).collect()
    })
}

/// As `run`, for ranks that do not panic.
pub(crate) fn run_all<T: Send>(ranks: u32, body: impl Fn(Endpoint) -> T + Sync) -> Vec<T> {
    run(endpoints(ranks, LONG), body).into_iter().map(|r| r.unwrap()).collect()
}

/// A bucket at the start of `arena` with these parts.
pub(crate) fn bucket<E: Real>(id: u32, arena: &Arena, parts: &[Vec<E>]) -> Bucket {
    let bytes = parts[0].len() * E::DTYPE.size();
    let guards = parts.iter().enumerate().map(|(i, part)| {
        let mut guard = arena.write(i * bytes..(i + 1) * bytes).unwrap();
        guard.as_mut_slice::<E>().unwrap().copy_from_slice(part);
        guard
    });
    Bucket::new(id, E::DTYPE, guards.collect()).unwrap()
}

pub(crate) fn start<E: Real>(
    rank: &Endpoint,
    id: u32,
    tree: Tree,
    parts: &[Vec<E>],
    overlap: Overlap,
) -> Result<Pending> {
    let arena = rank.alloc(parts.len() * parts[0].len() * E::DTYPE.size())?;
    rank.start(
        bucket(id, &arena, parts),
        Collective::AllReduce { tree, wire: Wire::F32 },
        Event::Ready,
        overlap,
    )
}

pub(crate) fn total<E: Real>(bucket: &Bucket) -> Vec<E> {
    bucket.parts()[0].as_slice::<E>().unwrap().to_vec()
}
