//! What one rank finds out and all must know.

use phalanx_comm::{Communicator, Deadline};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// What rank 0 finds out, told to all. An error of rank 0 is its own: it ends the others by an abort.
pub(crate) fn from_rank_0<T: Serialize + DeserializeOwned>(
    comm: &dyn Communicator,
    deadline: Deadline,
    find: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let broken = |e: serde_json::Error| Error::config("rank 0", e.to_string());
    let mine = if comm.rank() == 0 { Some(serde_json::to_vec(&find()?).map_err(broken)?) } else { None };
    let all = comm.broadcast(0, mine.as_deref(), deadline)?;
    serde_json::from_slice(&all).map_err(broken)
}

/// Bytes that go in one message, so that each has a deadline of its own.
const PIECE: usize = 64 << 20;

/// The bytes that rank 0 gives, however many, on all ranks.
pub(crate) fn bytes_from_rank_0(comm: &dyn Communicator, mine: Option<&[u8]>) -> Result<Vec<u8>> {
    let len: usize = from_rank_0(comm, comm.deadline(), || Ok(mine.map_or(0, <[u8]>::len)))?;
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        let piece = mine.and_then(|m| m.get(all.len()..len.min(all.len() + PIECE)));
        all.extend(comm.broadcast(0, piece, comm.deadline())?);
    }
    Ok(all)
}
