//! Control calls: every rank says a head to every other, then bytes that do not fit into it follow.

use std::sync::Arc;

use super::call::{HEAD, Head, Talk};
use super::ffi::{Comm, Moving, Mpi};
use super::owner::{Progress, Slot, Task};
use crate::{Error, Result};

/// Bytes of a broadcast that go at once.
const CHUNK: usize = 64 << 20;

/// The result of a control call whose bytes all came with the heads.
pub(super) fn short(heads: &[Head], talk: Talk) -> Option<Vec<Vec<u8>>> {
    let mut say = heads.iter();
    if let Talk::Broadcast { root } = talk {
        say = heads.get(root as usize..root as usize + 1)?.iter();
    }
    say.map(|h| h.bytes().map(<[u8]>::to_vec)).collect()
}

/// The heads of all ranks, which must be equal to that of rank `rank` but for their bytes.
pub(super) fn check_heads(bytes: &[u8], mine: &Head, rank: usize, ids: &[u32]) -> Result<Vec<Head>> {
    let heads: Option<Vec<Head>> = bytes.as_chunks::<HEAD>().0.iter().map(Head::from_bytes).collect();
    let broken = || Error::Mpi { call: "MPI_Iallgather", reason: "a head that is none".into() };
    let heads = heads.ok_or_else(broken)?;
    let call = |h: &Head| (h.number, h.talk);
    let Some((other, theirs)) = heads.iter().enumerate().find(|(_, h)| call(h) != call(mine)) else {
        return Ok(heads);
    };
    let tell = |h: &Head| format!("{} (its control call {})", h.talk, h.number);
    Err(Error::Desync {
        place: format!("control call {}", mine.number),
        left_rank: ids[rank],
        left: tell(mine),
        right_rank: ids[other],
        right: tell(theirs),
    })
}

enum Stage {
    Begin,
    /// All heads are under way.
    Heads(Moving),
    /// Bytes of all ranks, each padded to the longest, are under way.
    Bodies(Moving, Vec<usize>),
    /// A chunk of the root's bytes is under way.
    Chunk(Moving),
    Over,
}

/// A control call of this rank.
pub(super) struct Meeting {
    comm: Comm,
    head: Head,
    bytes: Vec<u8>,
    /// The ranks' numbers in messages.
    ids: Arc<[u32]>,
    rank: usize,
    stage: Stage,
    /// What has come of a broadcast.
    got: Vec<u8>,
    to_come: usize,
    slot: Arc<Slot<Vec<Vec<u8>>>>,
}

impl Meeting {
    /// Call `number` of rank `rank` of `comm`. Its result is every rank's bytes, by rank; of a broadcast, the
    /// root's alone.
    pub(super) fn new(
        comm: Comm,
        rank: u32,
        ids: Arc<[u32]>,
        number: u64,
        talk: Talk,
        bytes: Vec<u8>,
        slot: Arc<Slot<Vec<Vec<u8>>>>,
    ) -> Self {
        let head = Head::new(number, talk, &bytes);
        Meeting {
            comm,
            head,
            bytes,
            ids,
            rank: rank as usize,
            stage: Stage::Begin,
            got: Vec::new(),
            to_come: 0,
            slot,
        }
    }

    fn step(&mut self, mpi: &Mpi) -> Result<Progress> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Begin => {
                self.stage = Stage::Heads(mpi.all_gather(self.comm, self.head.to_bytes().to_vec())?);
                Ok(Progress::Some)
            }
            Stage::Heads(mut moving) => match mpi.arrived(&mut moving)? {
                Some(heads) => self.heads(mpi, &heads),
                None => self.again(Stage::Heads(moving)),
            },
            Stage::Bodies(mut moving, lens) => match mpi.arrived(&mut moving)? {
                Some(all) => {
                    let each = all.len() / lens.len().max(1);
                    Ok(self.done(all.chunks(each.max(1)).zip(lens).map(|(b, n)| b[..n].to_vec()).collect()))
                }
                None => self.again(Stage::Bodies(moving, lens)),
            },
            Stage::Chunk(mut moving) => match mpi.arrived(&mut moving)? {
                Some(bytes) => {
                    self.got.extend(bytes);
                    self.chunk(mpi)
                }
                None => self.again(Stage::Chunk(moving)),
            },
            Stage::Over => Ok(Progress::Done),
        }
    }

    fn again(&mut self, stage: Stage) -> Result<Progress> {
        self.stage = stage;
        Ok(Progress::None)
    }

    fn done(&mut self, result: Vec<Vec<u8>>) -> Progress {
        self.slot.put(Ok(result));
        Progress::Done
    }

    /// All heads are there: they must be equal but for their bytes.
    fn heads(&mut self, mpi: &Mpi, bytes: &[u8]) -> Result<Progress> {
        let heads = check_heads(bytes, &self.head, self.rank, &self.ids)?;
        if let Talk::Broadcast { root } = self.head.talk {
            let root = &heads[root as usize];
            if root.bytes().is_none() {
                self.to_come = usize::try_from(root.len).unwrap_or(usize::MAX);
                return self.chunk(mpi);
            }
        }
        if let Some(all) = short(&heads, self.head.talk) {
            return Ok(self.done(all));
        }
        let lens: Vec<usize> = heads.iter().map(|h| usize::try_from(h.len).unwrap_or(usize::MAX)).collect();
        let mut padded = std::mem::take(&mut self.bytes);
        padded.resize(lens.iter().copied().max().unwrap_or(0), 0);
        self.stage = Stage::Bodies(mpi.all_gather(self.comm, padded)?, lens);
        Ok(Progress::Some)
    }

    /// Begins the next chunk of a broadcast.
    fn chunk(&mut self, mpi: &Mpi) -> Result<Progress> {
        let Talk::Broadcast { root } = self.head.talk else { return Ok(Progress::Done) };
        let at = self.got.len();
        let n = CHUNK.min(self.to_come - at);
        if n == 0 {
            let all = std::mem::take(&mut self.got);
            return Ok(self.done(vec![all]));
        }
        let bytes = if root as usize == self.rank { self.bytes[at..at + n].to_vec() } else { vec![0; n] };
        self.stage = Stage::Chunk(mpi.broadcast(self.comm, bytes, root)?);
        Ok(Progress::Some)
    }
}

impl Task for Meeting {
    fn poll(&mut self, mpi: &Mpi) -> Progress {
        self.step(mpi).unwrap_or_else(|e| {
            self.slot.put(Err(e));
            Progress::Done
        })
    }
}
