//! What one rank finds out and all must know.

use phalanx_comm::{Communicator, Deadline};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::first_difference;
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

/// Checks that a table is the same on all ranks. Every rank gets the same [`phalanx_comm::Error::Differs`],
/// which names the first key in which the first such rank differs from rank 0, and both values.
pub(crate) fn check_same_table(
    comm: &dyn Communicator,
    what: &str,
    table: impl FnOnce() -> Result<toml::Table>,
) -> Result<()> {
    if comm.world() == 1 {
        return Ok(());
    }
    let mine = table()?;
    let text = mine.to_string();
    let hashes = comm.all_gather(blake3::hash(text.as_bytes()).as_bytes(), comm.deadline())?;
    let Some(rank) = hashes.iter().position(|h| *h != hashes[0]) else { return Ok(()) };
    // Only now the texts, which may be long.
    let theirs: toml::Table = from_rank_0(comm, comm.deadline(), || Ok(mine.clone()))?;
    let (key, first, other) = first_difference(&theirs, &mine).unwrap_or_default();
    let told = [first, other].map(|value| format!("{key} = {}", value.trim_matches('"'))).join("\n");
    let all = comm.all_gather(told.as_bytes(), comm.deadline())?;
    let told = String::from_utf8_lossy(&all[rank]).into_owned();
    let (first, other) = told.split_once('\n').unwrap_or_default();
    let (what, rank) = (what.to_owned(), rank as u32);
    Err(phalanx_comm::Error::Differs { what, rank, first: first.into(), other: other.into() }.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use phalanx_host::Isa;

    use super::*;
    use crate::ranks::run_threads;

    const DEADLINE: Duration = Duration::from_secs(30);

    #[test]
    fn long_messages_come_whole() {
        let long: Vec<u8> = (0..PIECE + 77).map(|i| (i % 251) as u8).collect();
        for bytes in [&[][..], &[7], &long] {
            let give = |comm: std::sync::Arc<dyn Communicator>| {
                bytes_from_rank_0(&*comm, (comm.rank() == 0).then_some(bytes))
            };
            for got in run_threads(3, DEADLINE, Isa::Portable, give).unwrap() {
                assert!(got == bytes);
            }
        }
    }

    #[test]
    fn the_first_key_that_differs_is_named() {
        let check = |of: &(dyn Fn(u32) -> String + Sync)| {
            run_threads(4, DEADLINE, Isa::Portable, |comm| {
                let table = || Ok(toml::from_str(&of(comm.rank())).unwrap());
                check_same_table(&*comm, "the configuration", table)
            })
        };
        check(&|_| "a = 1\n[b]\nc = 2".into()).unwrap();
        let e = check(&|rank| format!("a = 1\nz = {rank}\n[b]\nc = {}", u32::from(rank == 2))).unwrap_err();
        assert_eq!(
            e.to_string(),
            "the configuration differs between ranks: rank 0 has \"z = 0\", rank 1 has \"z = 1\""
        );
        assert_eq!(e.exit_code(), 4);
        let e = check(&|rank| format!("isa = \"avx{}\"", if rank == 3 { 2 } else { 512 })).unwrap_err();
        assert!(e.to_string().ends_with("rank 0 has \"isa = avx512\", rank 3 has \"isa = avx2\""), "{e}");
        let e = check(&|rank| if rank < 2 { "a = 1".into() } else { format!("a = 1\n[b]\nc = {rank}") });
        assert!(e.unwrap_err().to_string().contains("rank 0 has \"b = unset\", rank 2 has"));
    }
}
