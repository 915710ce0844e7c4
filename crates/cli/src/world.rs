//! Which ranks a command has: threads of this process, or the processes of an MPI job.

use std::time::Duration;

use anyhow::{Result, bail};
use phalanx_launch::Place;
#[cfg(feature = "mpi")]
use phalanx_train::{Communicator, config::Config};

use crate::args::{CommName, WorldArgs};

/// Where the ranks of a command are.
pub(crate) enum World {
    /// Threads of this process.
    Threads(u32),
    /// The processes of the job that this one belongs to.
    #[cfg(feature = "mpi")]
    Mpi(Place),
}

/// What the MPI library of this binary calls itself; None when it was built without.
pub(crate) fn library() -> Result<Option<String>> {
    #[cfg(feature = "mpi")]
    return Ok(Some(phalanx_train::mpi_library()?));
    #[cfg(not(feature = "mpi"))]
    Ok(None)
}

/// The same for what is about memory of the host alone.
pub(crate) fn find_on_host(args: &WorldArgs, default: u32) -> Result<World> {
    if matches!(args.comm, CommName::Nccl) {
        bail!("--comm nccl is for GPUs, and this is about memory of the host: see bench step --device cuda");
    }
    find(args, default)
}

/// Finds out which ranks are meant; `default` is the number of threads when nothing says otherwise.
pub(crate) fn find(args: &WorldArgs, default: u32) -> Result<World> {
    let built = cfg!(feature = "mpi");
    let place = Place::here()?;
    let mpi = match args.comm {
        CommName::Threads => false,
        CommName::Mpi => true,
        // Many processes that each train by themselves are not what anybody meant.
        CommName::Auto | CommName::Nccl => {
            if let Err(e) = place.check_before(built) {
                // All processes find the same; one says it, and the others give it the time to.
                if !place.speaks() {
                    std::thread::sleep(Duration::from_millis(300));
                    std::process::exit(e.exit_code().into());
                }
                return Err(e.into());
            }
            place.wants_mpi()
        }
    };
    if !mpi {
        return Ok(World::Threads(args.ranks.unwrap_or(default)));
    }
    if let Some(ranks) = args.ranks {
        bail!(
            "--ranks {ranks} starts threads, but the ranks are this job's processes: leave it out, or give \
             --comm threads"
        );
    }
    #[cfg(feature = "mpi")]
    return Ok(World::Mpi(place));
    #[cfg(not(feature = "mpi"))]
    bail!("this binary was built without MPI; build it with: cargo build --release --features mpi");
}

/// Runs `body` as this process's rank of an MPI job. A failure of any rank ends the process; see
/// [`phalanx_train::process::run`].
#[cfg(feature = "mpi")]
pub(crate) fn run<T: Send>(
    place: &Place,
    config: Option<&Config>,
    say: phalanx_train::process::Say,
    body: impl FnOnce(std::sync::Arc<dyn Communicator>) -> phalanx_train::Result<T> + Send,
) -> Result<T> {
    let check = |world: u32| place.check_world(world).map_err(|e| e.to_string());
    Ok(phalanx_train::process::run(config, say, check, body)?)
}
