//! Ranks as threads of this process.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once, mpsc};
use std::time::{Duration, Instant};

use phalanx_comm::{AbortReason, Communicator, threads};
use phalanx_host::Isa;

use crate::{Error, Result};

thread_local! {
    /// The message and place of the panic that is unwinding this rank's thread.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

const THREAD: &str = "rank-";

/// Keeps a rank's panic for the report at the end instead of printing it from the middle of the run;
/// panics of other threads are printed as ever.
pub(crate) fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let is_rank = std::thread::current().name().is_some_and(|n| n.starts_with(THREAD));
            if !is_rank {
                return before(info);
            }
            let place = info.location().map_or(String::new(), |l| format!(" ({l})"));
            PANIC.with_borrow_mut(|p| *p = Some(format!("{}{place}", message(info.payload()))));
        }));
    });
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

/// The thread that a rank runs on, by whose name [`keep_panics`] knows it.
pub(crate) fn thread_of(rank: u32) -> std::thread::Builder {
    std::thread::Builder::new().name(format!("{THREAD}{rank}"))
}

/// Runs a rank's body, on its own thread; tells the others when it fails, or panics.
pub(crate) fn guarded<T>(comm: &Arc<dyn Communicator>, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let rank = comm.rank();
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let kept = PANIC.take();
        Err(Error::Panic { rank, message: kept.unwrap_or_else(|| message(&*payload)) })
    });
    if let Err(e) = &result {
        comm.abort(AbortReason::new(rank, e.kind(), e.to_string()));
    }
    result
}

/// What the other ranks have to end in after one failed. Every wait ends at once and a step's work soon:
/// who is not back by then hangs where no abort reaches.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// Runs `body` on `ranks` thread ranks and returns what each gave. The first failure of any rank, a
/// panic included, aborts the others, and is the one error that comes back.
pub fn run_threads<T: Send>(
    ranks: u32,
    deadline: Duration,
    isa: Isa,
    body: impl Fn(Arc<dyn Communicator>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    run_threads_or(ranks, deadline, isa, GRACE, &|_| (), body)
}

/// As [`run_threads`]; calls `stuck` with the failure when some rank is still there `grace` after it. A
/// thread cannot be ended from outside, so `stuck` may want to end the process.
pub fn run_threads_or<T: Send>(
    ranks: u32,
    deadline: Duration,
    isa: Isa,
    grace: Duration,
    stuck: &dyn Fn(&Error),
    body: impl Fn(Arc<dyn Communicator>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    keep_panics();
    let endpoints = threads::world(ranks, deadline, isa)?;
    let body = &body;
    let (done, outcomes) = mpsc::channel();
    std::thread::scope(|scope| {
        for (rank, endpoint) in (0..ranks).zip(endpoints) {
            let comm: Arc<dyn Communicator> = Arc::new(endpoint);
            let (mine, tell) = (comm.clone(), done.clone());
            // The collector waits for one outcome of each rank; it is there.
            let run = move || drop(tell.send((rank, guarded(&mine, || body(mine.clone())))));
            let thread = thread_of(rank);
            if let Err(e) = thread.spawn_scoped(scope, run) {
                // The ranks that did start must not wait for those that did not.
                let e = Error::config("--ranks", format!("rank {rank} of {ranks} cannot be started: {e}"));
                comm.abort(AbortReason::new(rank, e.kind(), e.to_string()));
                let _ = done.send((rank, Err(e)));
                break;
            }
        }
        drop(done);
        collect(&outcomes, grace, stuck)
    })
}

/// The outcomes of all ranks in their order, or the failure that caused the others.
fn collect<T>(
    outcomes: &mpsc::Receiver<(u32, Result<T>)>,
    grace: Duration,
    stuck: &dyn Fn(&Error),
) -> Result<Vec<T>> {
    // A rank that was merely told of the abort is not the cause.
    let told = |e: &Error| matches!(e, Error::Comm(phalanx_comm::Error::Aborted { .. }));
    let mut values = BTreeMap::new();
    let mut failure: Option<(Error, Instant)> = None;
    loop {
        let next = match &failure {
            None => outcomes.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            Some((_, at)) => outcomes.recv_timeout(grace.saturating_sub(at.elapsed())),
        };
        match (next, &failure) {
            (Ok((rank, Ok(value))), _) => drop(values.insert(rank, value)),
            (Ok((_, Err(e))), None) => failure = Some((e, Instant::now())),
            (Ok((_, Err(e))), Some((first, at))) if told(first) && !told(&e) => failure = Some((e, *at)),
            (Ok((_, Err(_))), Some(_)) => {}
            (Err(mpsc::RecvTimeoutError::Timeout), Some((e, _))) => {
                stuck(e);
                break;
            }
            (Err(_), _) => break,
        }
    }
    match failure {
        None => Ok(values.into_values().collect()),
        Some((e, _)) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use phalanx_comm::Deadline;

    use super::*;

    #[test]
    fn one_failure_ends_all_ranks_and_is_the_one_that_is_told() {
        let wait = |c: &Arc<dyn Communicator>| Ok(c.barrier(Deadline::after(Duration::from_secs(30)))?);
        let run = |body: &(dyn Fn(Arc<dyn Communicator>) -> Result<u32> + Sync)| {
            run_threads(3, Duration::from_secs(30), Isa::Portable, body)
        };
        assert_eq!(run(&|c| wait(&c).map(|()| c.rank())).unwrap(), [0, 1, 2]);
        let e = run(&|c| match c.rank() {
            1 => Err(Error::config("here", "broken")),
            _ => wait(&c).map(|()| 0),
        });
        assert_eq!(e.unwrap_err().to_string(), "here: broken");
        let e = run(&|c| match c.rank() {
            2 => std::panic::panic_any("boom"),
            _ => wait(&c).map(|()| 0),
        });
        let e = e.unwrap_err();
        assert!(matches!(&e, Error::Panic { rank: 2, message } if message.contains("boom")), "{e}");
        assert_eq!(e.exit_code(), 4);
    }

    #[test]
    fn a_rank_that_hangs_is_told_of_and_waited_for() {
        let said = std::sync::Mutex::new(Vec::new());
        let stuck = |e: &Error| said.lock().unwrap().push(e.to_string());
        let (grace, deadline) = (Duration::from_millis(20), Duration::from_secs(30));
        let e = run_threads_or(2, deadline, Isa::Portable, grace, &stuck, |c| match c.rank() {
            0 => Err::<(), _>(Error::config("here", "broken")),
            _ => {
                std::thread::sleep(Duration::from_millis(300));
                Ok(())
            }
        });
        assert_eq!(e.unwrap_err().to_string(), "here: broken");
        assert_eq!(said.into_inner().unwrap(), ["here: broken"]);
    }
}
