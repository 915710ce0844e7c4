//! Tasks that write several places or may fail.

use std::iter::repeat_with;
use std::sync::{Mutex, PoisonError};

use phalanx_host::Cpu;

use crate::Result;

/// As [`phalanx_host::Workers::chunks`], for tasks that may fail; gives the error of one that did.
pub(crate) fn try_chunks<T: Send>(
    cpu: &Cpu,
    data: &mut [T],
    piece: usize,
    task: impl Fn(usize, &mut [T]) -> Result<()> + Sync,
) -> Result<()> {
    let failed = Mutex::new(None);
    cpu.workers.chunks(data, piece, |i, data| {
        if let Err(e) = task(i, data) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// `data` cut into pieces for that many tasks; an empty slice gives empty pieces.
pub(crate) fn groups<T>(data: &mut [T], piece: usize, pieces: usize) -> impl Iterator<Item = &mut [T]> {
    data.chunks_mut(piece.max(1)).chain(repeat_with(Default::default)).take(pieces)
}
