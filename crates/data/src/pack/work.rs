//! The shards of one rank, each written by one of its threads.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{BadImages, Job, PackRank, PackRequest, Skipped};
use crate::import::Reader;
use crate::shards::{Sample, SampleField, ShardWriter, finished_shard};
use crate::threads::on_threads;
use crate::{Codec, Error, Record, Result, Role};

/// How often progress is told.
const TELL: Duration = Duration::from_secs(5);

pub(super) struct Work<'a> {
    job: &'a Job,
    request: &'a PackRequest,
    say: &'a (dyn Fn(&str) + Sync),
    reader: Reader<'a>,
    stop: AtomicBool,
    done: AtomicU64,
    samples: AtomicU64,
    kept: AtomicU64,
}

impl<'a> Work<'a> {
    pub(super) fn new(job: &'a Job, request: &'a PackRequest, say: &'a (dyn Fn(&str) + Sync)) -> Self {
        Work {
            job,
            request,
            say,
            reader: Reader::new(&job.listing),
            stop: AtomicBool::new(false),
            done: AtomicU64::new(0),
            samples: AtomicU64::new(0),
            kept: AtomicU64::new(0),
        }
    }

    /// Writes the rank's shards; gives how many were there already.
    pub(super) fn run(&self, PackRank { rank, world }: PackRank) -> Result<u32> {
        let mine: Vec<u32> = self.job.plan.mine(rank, world).collect();
        let next = AtomicUsize::new(0);
        let failures = Mutex::new(Vec::new());
        let told = Mutex::new((Instant::now(), Instant::now()));
        let thread = || {
            while !self.stop.load(Ordering::Relaxed) {
                let Some(&shard) = mine.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                if let Err(e) = self.shard(shard) {
                    self.stop.store(true, Ordering::Relaxed);
                    failures.lock().unwrap_or_else(PoisonError::into_inner).push((shard, e));
                }
                self.done.fetch_add(1, Ordering::Relaxed);
                if rank == 0 {
                    self.tell(mine.len(), &told);
                }
            }
        };
        let threads = self.request.threads.clamp(1, mine.len().max(1));
        on_threads(threads, "pack", thread)?;
        // The first shard's, so that one damage is always told in the same words.
        let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        failures.sort_by_key(|(shard, _)| *shard);
        match failures.into_iter().next() {
            Some((_, e)) => Err(e),
            None => Ok(self.kept.load(Ordering::Relaxed) as u32),
        }
    }

    fn tell(&self, shards: usize, told: &Mutex<(Instant, Instant)>) {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.1.elapsed() < TELL {
            return;
        }
        told.1 = Instant::now();
        let rate = self.samples.load(Ordering::Relaxed) as f64 / told.0.elapsed().as_secs_f64();
        let split = self.job.split.map_or(String::new(), |s| format!("{s}: "));
        let done = self.done.load(Ordering::Relaxed);
        (self.say)(&format!("{split}{done} of {shards} shards of rank 0, {rate:.0} samples/s"));
    }

    fn shard(&self, number: u32) -> Result<()> {
        let Job { plan, info, folder, listing, .. } = self.job;
        if finished_shard(folder.dir(), number, info)?.is_some() {
            self.kept.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let mut writer = ShardWriter::create(folder.dir(), number, info)?;
        let (mut record, mut skipped) = (Record::default(), Vec::new());
        for i in plan.samples(number) {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if let Err(problem) = self.sample(i, &mut record)? {
                match self.request.bad {
                    BadImages::Skip => skipped.push(Skipped { key: listing.key(i).to_owned(), problem }),
                    BadImages::Fail => {
                        let hint = "--bad skip leaves such samples out";
                        let problem = format!("sample {:?}: {problem} ({hint})", listing.key(i));
                        return Err(Error::format(&listing.path, problem));
                    }
                }
                continue;
            }
            let fields = record.fields.iter();
            let fields: Vec<SampleField<'_>> =
                fields.map(|f| SampleField { codec: f.codec, shape: &f.shape, bytes: &f.bytes }).collect();
            writer.add(&Sample { key: listing.key(i), label: listing.label(i), fields: &fields })?;
            self.samples.fetch_add(1, Ordering::Relaxed);
        }
        folder.keep_skipped(number, &skipped)?;
        writer.finish()?;
        Ok(())
    }

    /// Reads a sample and makes of it what is stored; the inner error is what is wrong with its image.
    fn sample(&self, i: u64, record: &mut Record) -> Result<std::result::Result<(), String>> {
        if let Err(problem) = self.reader.read(i, record)? {
            return Ok(Err(problem));
        }
        for (listed, field) in self.job.listing.fields.iter().zip(&mut record.fields) {
            if listed.spec.role == Role::Image
                && field.codec != Codec::Raw
                && let Err(problem) = self.request.images.apply(field, self.request.check)
            {
                return Ok(Err(problem));
            }
        }
        Ok(Ok(()))
    }
}
