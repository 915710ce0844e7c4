//! Ranks as threads of this process.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};
use std::time::Duration;

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
fn keep_panics() {
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

/// Runs `body` on `ranks` thread ranks and returns what each gave. The first failure of any rank, a
/// panic included, aborts the others, and is the one error that comes back.
pub fn run_threads<T: Send>(
    ranks: u32,
    deadline: Duration,
    isa: Isa,
    body: impl Fn(Arc<dyn Communicator>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    keep_panics();
    let endpoints = threads::world(ranks, deadline, isa)?;
    let body = &body;
    let results: Vec<Result<T>> = std::thread::scope(|scope| {
        let spawn = |(rank, endpoint): (u32, threads::Endpoint)| {
            let run = move || {
                let comm: Arc<dyn Communicator> = Arc::new(endpoint);
                let result =
                    catch_unwind(AssertUnwindSafe(|| body(comm.clone()))).unwrap_or_else(|payload| {
                        let kept = PANIC.take();
                        Err(Error::Panic { rank, message: kept.unwrap_or_else(|| message(&*payload)) })
                    });
                if let Err(e) = &result {
                    comm.abort(AbortReason::new(rank, e.kind(), e.to_string()));
                }
                result
            };
            std::thread::Builder::new().name(format!("{THREAD}{rank}")).spawn_scoped(scope, run)
        };
        let started: Vec<_> = (0..ranks).zip(endpoints).map(spawn).collect();
        let join = |(rank, thread): (u32, std::io::Result<std::thread::ScopedJoinHandle<'_, Result<T>>>)| {
            let cannot = |e: std::io::Error| Error::config("ranks", format!("cannot start rank {rank}: {e}"));
            let lost = |_| Error::Panic { rank, message: "its thread was lost".into() };
            thread.map_err(cannot)?.join().map_err(lost)?
        };
        (0..ranks).zip(started).map(join).collect()
    });
    // A rank that was merely told of the abort is not the cause.
    let told = |e: &Error| matches!(e, Error::Comm(phalanx_comm::Error::Aborted { .. }));
    let mut values = Vec::new();
    let mut first: Option<Error> = None;
    for result in results {
        match result {
            Ok(v) => values.push(v),
            Err(e) if first.as_ref().is_none_or(|f| told(f) && !told(&e)) => first = Some(e),
            Err(_) => {}
        }
    }
    first.map_or(Ok(values), Err)
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
}
