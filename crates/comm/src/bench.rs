//! What an all-reduce costs, next to what the machine's memory gives.
//!
//! Times drift from run to run, so plain copies and all-reduces take turns in one run and the report
//! carries both: their ratio can be trusted.

use std::thread;
use std::time::{Duration, Instant};

use phalanx_host::{DType, Isa};

use crate::{Bucket, Collective, Communicator, Error, Event, Overlap, Result, Tree, Wire, threads};

/// The outcome of [`all_reduce`]. Bandwidths are in 10⁹ bytes a second, over all ranks together but for
/// the bus bandwidth.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The transport.
    pub comm: &'static str,
    /// The number of ranks.
    pub ranks: u32,
    /// Size of the bucket of each rank.
    pub bytes: usize,
    /// Median time of an all-reduce, of the rank that took longest in each round.
    pub seconds_p50: f64,
    /// `2 (W − 1) / W · bytes / time`: what a ring would send and receive on every link.
    pub bus_bandwidth_gb_s: f64,
    /// Bytes read and written by time, where each byte of every bucket must be read and written once.
    pub memory_bandwidth_gb_s: f64,
    /// Bytes read and written by time when every rank copies a buffer of its own of that size.
    pub copy_gb_s: f64,
}

/// The outcome of [`latency`], in seconds: medians over batches, of the mean time of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    /// A barrier.
    pub barrier_s: f64,
    /// An all-reduce of one number, with [`Overlap::Caller`].
    pub all_reduce_s: f64,
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// By round, the longest time that any rank took.
fn longest(rank: &dyn Communicator, times: &[f64]) -> Result<Vec<f64>> {
    let mine: Vec<u8> = times.iter().flat_map(|t| t.to_le_bytes()).collect();
    let mut longest = vec![0.0; times.len()];
    for all in rank.all_gather(&mine, rank.deadline())? {
        for (most, bytes) in longest.iter_mut().zip(all.as_chunks::<8>().0) {
            *most = f64::max(*most, f64::from_le_bytes(*bytes));
        }
    }
    Ok(longest)
}

/// Sums `bucket` over one shard a rank.
fn sum(rank: &dyn Communicator, bucket: Bucket) -> Result<Bucket> {
    let tree = Tree::new(rank.world())?;
    let flight =
        rank.start(bucket, Collective::AllReduce { tree, wire: Wire::F32 }, Event::Ready, Overlap::Caller)?;
    flight.wait(rank.deadline())
}

/// Measures all-reduces of `bytes` bytes of `f32` a rank (rounded up to a whole number), in `rounds`
/// rounds that also copy as much. Every rank calls it and gets the same report. The first sum is
/// checked; a wrong one is [`Error::Bucket`].
pub fn all_reduce(rank: &dyn Communicator, bytes: usize, rounds: usize) -> Result<Report> {
    let bytes = bytes.next_multiple_of(4);
    let (from, to) = (rank.alloc(bytes)?, rank.alloc(bytes)?);
    let mut part = from.write(0..bytes)?;
    part.as_mut_slice::<f32>()?.fill((rank.rank() + 1) as f32);
    let mut copy = to.write(0..bytes)?;
    // The first copy and the first sum also warm up: pages are mapped, threads are awake.
    copy.bytes_mut().copy_from_slice(part.bytes());
    let mut bucket = sum(rank, Bucket::new(0, DType::F32, vec![part])?)?;
    let want = (1..=rank.world()).sum::<u32>() as f32;
    if bucket.parts()[0].as_slice::<f32>()?.iter().any(|&x| x != want) {
        let why = format!("was summed wrongly over {} ranks; expected {want} everywhere", rank.world());
        return Err(Error::Bucket { id: 0, why });
    }
    // Zeros stay finite however often they are summed.
    bucket.parts_mut().iter_mut().for_each(|p| p.bytes_mut().fill(0));
    let (mut sums, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        rank.barrier(rank.deadline())?;
        let since = Instant::now();
        copy.bytes_mut().copy_from_slice(bucket.parts()[0].bytes());
        copies.push(since.elapsed().as_secs_f64());
        rank.barrier(rank.deadline())?;
        let since = Instant::now();
        bucket = sum(rank, bucket)?;
        sums.push(since.elapsed().as_secs_f64());
    }
    let seconds_p50 = median(longest(rank, &sums)?);
    let copy_s = median(longest(rank, &copies)?);
    let world = f64::from(rank.world());
    let moved = 2.0 * world * bytes as f64 / 1e9;
    Ok(Report {
        comm: rank.name(),
        ranks: rank.world(),
        bytes,
        seconds_p50,
        bus_bandwidth_gb_s: 2.0 * (world - 1.0) / world * bytes as f64 / 1e9 / seconds_p50,
        memory_bandwidth_gb_s: moved / seconds_p50,
        copy_gb_s: moved / copy_s,
    })
}

/// Measures calls that carry next to nothing, back to back on all ranks, in `batches` of 100. Every
/// rank calls it and gets the same figures.
pub fn latency(rank: &dyn Communicator, batches: usize) -> Result<Latency> {
    const BATCH: u32 = 100;
    let arena = rank.alloc(4)?;
    let mut bucket = Bucket::new(0, DType::F32, vec![arena.write(0..4)?])?;
    let (mut barriers, mut sums) = (Vec::new(), Vec::new());
    for _ in 0..batches.max(1) {
        rank.barrier(rank.deadline())?;
        let since = Instant::now();
        for _ in 0..BATCH {
            rank.barrier(rank.deadline())?;
        }
        barriers.push(since.elapsed().as_secs_f64() / f64::from(BATCH));
        let since = Instant::now();
        for _ in 0..BATCH {
            bucket = sum(rank, bucket)?;
        }
        sums.push(since.elapsed().as_secs_f64() / f64::from(BATCH));
    }
    Ok(Latency { barrier_s: median(longest(rank, &barriers)?), all_reduce_s: median(longest(rank, &sums)?) })
}

/// [`all_reduce`] between `ranks` threads of this process.
pub fn all_reduce_threads(ranks: u32, bytes: usize, rounds: usize, isa: Isa) -> Result<Report> {
    on_threads(ranks, isa, |rank| all_reduce(rank, bytes, rounds))
}

/// [`latency`] between `ranks` threads of this process.
pub fn latency_threads(ranks: u32, batches: usize, isa: Isa) -> Result<Latency> {
    on_threads(ranks, isa, |rank| latency(rank, batches))
}

fn on_threads<T: Send>(
    ranks: u32,
    isa: Isa,
    body: impl Fn(&dyn Communicator) -> Result<T> + Sync,
) -> Result<T> {
    let body = &body;
    let mut others = threads::world(ranks, Duration::from_secs(120), isa)?;
    let first = others.remove(0);
    thread::scope(|scope| {
        for rank in others {
            // What fails on another rank ends the waits of the first.
            scope.spawn(move || body(&rank).map(drop));
        }
        // Dropped before the scope joins the others, which may wait for it.
        let first = first;
        body(&first)
    })
}
