//! A rank that is a process of an MPI job: how it joins, and how it ends.
//!
//! The rank runs on a thread of its own, so that this one can end the process whatever that thread hangs
//! in. After a failure all ranks give their last words over the side channel, rank 0 prints one report, and
//! everybody leaves at once with the failure's exit code: a launcher ends the peers of a process that
//! leaves, so nobody does before the report is out.

use std::io::Write;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use phalanx_comm::mpi::{self, World, exit_now};
use phalanx_comm::{AbortKind, AbortReason, Communicator, Control, Member};
use phalanx_host::Isa;

use crate::config::{Config, DistributedConfig};
use crate::{Error, Result, ranks};

/// How long a rank may take to come back after a failure of another one, before it counts as stuck.
const COME_BACK: Duration = Duration::from_millis(500);

/// How long ranks wait for the report on rank 0.
const REPORT: Duration = Duration::from_secs(2);

/// How often this thread looks whether the run has been aborted.
const LOOK: Duration = Duration::from_millis(20);

/// How long the side channel collects last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Prints a failure: its kind, and what is to be said of it.
pub type Say<'a> = &'a dyn Fn(AbortKind, &str);

/// Joins the MPI job as `config` says (defaults stand in for one that cannot be read), checks the size of the
/// world with `check`, runs `body` as this rank and ends MPI together with all other ranks. When that fails on
/// any rank it does not return: `say` is called where the failure is to be printed, and the process ends with
/// its exit code.
///
/// An error comes back only from a process that could not join; there is then nobody to be told.
pub fn run<T: Send>(
    config: Option<&Config>,
    say: Say,
    check: impl FnOnce(u32) -> std::result::Result<(), String>,
    body: impl FnOnce(Arc<dyn Communicator>) -> Result<T> + Send,
) -> Result<T> {
    ranks::keep_panics();
    let defaults = DistributedConfig::default();
    let distributed = config.map_or(&defaults, |c| &c.distributed);
    let options = mpi::Options {
        timeout: Duration::from_secs_f64(distributed.deadline_s),
        isa: Isa::choose(config.map_or("auto", |c| &c.compute.isa))?,
        shared_memory: distributed.shared_memory,
        bind: distributed.bind,
        grace: LAST_WORDS,
    };
    let world = Arc::new(mpi::join(&options)?);
    let comm: Arc<dyn Communicator> = world.clone();
    if let Err(problem) = check(comm.world()) {
        let e = Error::config("the launch", problem);
        comm.abort(AbortReason::new(comm.rank(), e.kind(), e.to_string()));
        fail(&world, &e, say);
    }
    let (tell, outcome) = mpsc::channel();
    std::thread::scope(|scope| {
        let mine = comm.clone();
        let rank = move || {
            let result = ranks::guarded(&mine, || body(mine.clone()));
            drop(mine);
            // The other end is there until the process ends.
            let _ = tell.send(result);
        };
        if let Err(e) = ranks::thread_of(world.rank()).spawn_scoped(scope, rank) {
            let e = Error::config("this rank", format!("its thread cannot be started: {e}"));
            comm.abort(AbortReason::new(world.rank(), e.kind(), e.to_string()));
            fail(&world, &e, say);
        }
        drop(comm);
        let value = wait(&world, &outcome).unwrap_or_else(|e| fail(&world, &e, say));
        if let Err(e) = world.close() {
            world.abort(AbortReason::new(world.rank(), e.kind(), e.to_string()));
            fail(&world, &e.into(), say);
        }
        Ok(value)
    })
}

/// The rank's outcome, or the abort that it does not come back from.
fn wait<T>(world: &World, outcome: &mpsc::Receiver<Result<T>>) -> Result<T> {
    let mut aborted: Option<Instant> = None;
    loop {
        match outcome.recv_timeout(LOOK) {
            Ok(result) => return result,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let message = "its thread is gone".into();
                return Err(Error::Panic { rank: world.rank(), message });
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let Some(reason) = world.aborted() else { continue };
        if aborted.get_or_insert_with(Instant::now).elapsed() > COME_BACK {
            return Err(phalanx_comm::Error::Aborted { reason }.into());
        }
    }
}

/// The end of a rank of a run that has failed.
fn fail(world: &World, e: &Error, say: Say) -> ! {
    let found = world.side().post_mortem(REPORT);
    let reason = found.reason.unwrap_or_else(|| AbortReason::new(world.rank(), e.kind(), e.to_string()));
    // Where rank 0 is gone, nobody else can say it.
    if world.rank() == 0 || !found.report.is_empty() {
        say(reason.kind, &told(&reason, &found.report));
    }
    world.side().release();
    // A reader that has gone away is no reason to stay.
    let _ = std::io::stdout().flush();
    exit_now(reason.kind.exit_code())
}

/// A failure as rank 0 tells it: who waits for whom matters only when ranks have lost each other.
fn told(reason: &AbortReason, report: &str) -> String {
    let error = match reason.kind {
        AbortKind::Usage | AbortKind::Numerics | AbortKind::Panic | AbortKind::Communication => {
            reason.message.clone()
        }
        AbortKind::Data | AbortKind::Other => format!("rank {}: {}", reason.rank, reason.message),
    };
    match (reason.kind, report.is_empty()) {
        (AbortKind::Communication | AbortKind::Panic, false) => format!("{error}\n{}", report.trim_end()),
        _ => error,
    }
}
