use crate::{Error, Result};

/// The compute threads of one rank.
///
/// Work is cut into tasks by the shapes of the operands alone, never by the number of threads, and
/// each task writes its own part of the output: any number of threads gives the same bits.
#[derive(Debug)]
pub struct Workers {
    pool: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Workers {
    /// `threads` compute threads; 0 is taken as 1. One thread means the caller's own: nothing is
    /// started and nothing is handed over.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = threads.max(1);
        let pool = match threads {
            1 => None,
            n => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(n)
                    .thread_name(|i| format!("compute-{i}"))
                    .build()
                    .map_err(|e| Error::Threads { threads: n, reason: e.to_string() })?,
            ),
        };
        Ok(Workers { pool, threads })
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `task(0) … task(tasks - 1)`, in any order and on any thread, and returns when all are done.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        match &self.pool {
            Some(pool) if tasks > 1 => {
                use rayon::prelude::*;
                pool.install(|| (0..tasks).into_par_iter().for_each(&task));
            }
            _ => (0..tasks).for_each(task),
        }
    }

    /// Cuts `data` into pieces of `piece` elements (the last may be shorter) and runs `task(i, piece i)`
    /// on each. `piece` must not be 0.
    pub fn chunks<T: Send>(&self, data: &mut [T], piece: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        match &self.pool {
            Some(pool) if data.len() > piece => {
                use rayon::prelude::*;
                pool.install(|| data.par_chunks_mut(piece).enumerate().for_each(|(i, c)| task(i, c)));
            }
            _ => data.chunks_mut(piece).enumerate().for_each(|(i, c)| task(i, c)),
        }
    }

    /// As [`Workers::chunks`] over two slices cut into as many pieces, each by its own size: `task(i, a, b)`.
    pub fn chunks_of_two<T: Send, U: Send>(
        &self,
        (a, piece_a): (&mut [T], usize),
        (b, piece_b): (&mut [U], usize),
        task: impl Fn(usize, &mut [T], &mut [U]) + Sync,
    ) {
        match &self.pool {
            Some(pool) if a.len() > piece_a => {
                use rayon::prelude::*;
                let pairs = a.par_chunks_mut(piece_a).zip(b.par_chunks_mut(piece_b));
                pool.install(|| pairs.enumerate().for_each(|(i, (a, b))| task(i, a, b)));
            }
            _ => {
                let pairs = a.chunks_mut(piece_a).zip(b.chunks_mut(piece_b));
                pairs.enumerate().for_each(|(i, (a, b))| task(i, a, b));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in [0, 1, 3] {
            let w = Workers::new(threads).unwrap();
            let mut data = vec![0u32; 1003];
            w.chunks(&mut data, 10, |i, c| c.iter_mut().for_each(|x| *x += i as u32 + 1));
            assert!(data.iter().enumerate().all(|(i, &x)| x == i as u32 / 10 + 1));
            let mut half = vec![0u32; 202];
            w.chunks_of_two((&mut data, 10), (&mut half, 2), |i, a, b| {
                a.iter_mut().for_each(|x| *x -= i as u32);
                b.iter_mut().for_each(|x| *x += i as u32);
            });
            assert!(data.iter().all(|&x| x == 1) && half.iter().enumerate().all(|(i, &x)| x == i as u32 / 2));
            let sum = std::sync::atomic::AtomicUsize::new(0);
            w.run(100, |i| {
                sum.fetch_add(i, std::sync::atomic::Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }
}
