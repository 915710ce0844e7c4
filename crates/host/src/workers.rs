use std::marker::PhantomData;

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
            Some(pool) if tasks > 1 => spread(pool, tasks, &task),
            _ => (0..tasks).for_each(task),
        }
    }

    /// Cuts `data` into pieces of `piece` elements (the last may be shorter) and runs `task(i, piece i)`
    /// on each. `piece` must not be 0.
    pub fn chunks<T: Send>(&self, data: &mut [T], piece: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        match &self.pool {
            Some(pool) if data.len() > piece => {
                let pieces = Pieces::new(data, piece);
                // SAFETY: `spread` runs each index once, so that no piece is out twice.
                spread(pool, pieces.count(), &|i| task(i, unsafe { pieces.get(i) }));
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
                let (a, b) = (Pieces::new(a, piece_a), Pieces::new(b, piece_b));
                // SAFETY: `spread` runs each index once, so that no piece is out twice.
                let task = |i| unsafe { task(i, a.get(i), b.get(i)) };
                spread(pool, a.count().min(b.count()), &task);
            }
            _ => {
                let pairs = a.chunks_mut(piece_a).zip(b.chunks_mut(piece_b));
                pairs.enumerate().for_each(|(i, (a, b))| task(i, a, b));
            }
        }
    }
}

/// Runs each of `0..tasks` once on the threads of `pool`. Not generic: the pool's own code, which would be compiled
/// for every kernel, is as large as a small kernel.
fn spread(pool: &rayon::ThreadPool, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
    use rayon::prelude::*;
    pool.install(|| (0..tasks).into_par_iter().for_each(task));
}

/// A slice whose pieces are handed out one by one.
struct Pieces<'a, T> {
    data: *mut T,
    len: usize,
    piece: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out disjoint parts of a slice of elements that may go to other threads, and nothing else.
unsafe impl<T: Send> Sync for Pieces<'_, T> {}

impl<'a, T> Pieces<'a, T> {
    fn new(data: &'a mut [T], piece: usize) -> Self {
        Pieces { data: data.as_mut_ptr(), len: data.len(), piece, of: PhantomData }
    }

    fn count(&self) -> usize {
        self.len.div_ceil(self.piece)
    }

    /// Piece `i`, of [`Pieces::count`].
    ///
    /// # Safety
    ///
    /// No piece may be asked for twice.
    #[allow(clippy::mut_from_ref)]
    unsafe fn get(&self, i: usize) -> &'a mut [T] {
        let from = (i * self.piece).min(self.len);
        let len = self.piece.min(self.len - from);
        // SAFETY: within the slice, which is borrowed for 'a; the caller asks for no part of it twice.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(from), len) }
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
