//! Staging among ranks: the first of each node copies, the others wait, and all read what is there.

use std::time::{Duration, Instant};

use phalanx_comm::side::host_name;
use phalanx_comm::{Communicator, Deadline};
use phalanx_data::{Source, Staged, Stager};
use serde::{Deserialize, Serialize};

use crate::config::DataConfig;
use crate::{Error, Result};

/// How long a rank copies before it meets the others: far below any deadline.
const TURN: Duration = Duration::from_secs(2);

/// What a rank tells of its node.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    node: u32,
    host: String,
    staged: Option<Staged>,
}

/// What staging came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    /// Bytes of copies, over all nodes.
    pub(crate) bytes: u64,
    /// Those that were not there before.
    pub(crate) copied: u64,
    /// Bytes that nodes read where they lie.
    pub(crate) left: u64,
    /// What the user should know.
    #[serde(skip)]
    pub(crate) warnings: Vec<String>,
}

/// Stages what `sources` will read, the more important first. A meeting of all ranks; `None` where nothing was asked
/// for.
pub(crate) fn stage(
    config: &DataConfig,
    comm: &dyn Communicator,
    sources: &[&dyn Source],
    allowed: Duration,
) -> Result<Option<Outcome>> {
    if config.stage.is_off() {
        return Ok(None);
    }
    let here = comm.locality();
    let mut stager = match here.local_rank {
        0 => Stager::new(sources, &config.stage, config.stage_limit()?)?,
        _ => None,
    };
    loop {
        let until = Instant::now() + TURN.min(allowed / 4);
        let done = stager.as_mut().is_none_or(|s| s.advance(until));
        if comm.vote(u8::from(!done), Deadline::after(allowed))? == 0 {
            break;
        }
    }
    let broken = |e: serde_json::Error| Error::config("staging", e.to_string());
    let mine = Told { node: here.node, host: host_name(), staged: stager.map(Stager::finish) };
    let mine = serde_json::to_vec(&mine).map_err(broken)?;
    let mut outcome = Outcome::default();
    for bytes in comm.all_gather(&mine, Deadline::after(allowed))? {
        let Told { node, host, staged } = serde_json::from_slice(&bytes).map_err(broken)?;
        let Some(staged) = staged else { continue };
        if node == here.node {
            sources.iter().for_each(|source| staged.apply(*source));
        }
        outcome.bytes += staged.bytes;
        outcome.copied += staged.copied;
        outcome.left += staged.left;
        outcome.warnings.extend(staged.warnings.iter().map(|w| format!("{host}: {w}")));
    }
    Ok(Some(outcome))
}
