//! Copies between host and device through pinned blocks, on the compute stream unless they say otherwise.

use std::collections::VecDeque;

use crate::memory::within;
use crate::{Buffer, Context, DevicePtr, Event, Pinned, Result, Stream};

/// Bytes of one piece of a large copy.
const PIECE: usize = 8 << 20;

/// What may be on its way: so many bytes, and so many copies, of which a step of a small network makes dozens.
const MOST_BYTES: usize = 64 << 20;
const MOST_FLYING: usize = 1024;

/// Pinned blocks whose copy to the device may not be done.
#[derive(Default)]
pub(crate) struct Staging {
    flying: VecDeque<(Pinned, Event)>,
    /// Events of landed copies, to be used again.
    events: Vec<Event>,
    /// Sources of uploads that became part of the graph that is being recorded.
    recorded: Vec<Pinned>,
}

impl Staging {
    /// The sources of recorded uploads, for the graph to keep.
    pub(crate) fn recorded(&mut self) -> Vec<Pinned> {
        std::mem::take(&mut self.recorded)
    }

    /// Gives back what has landed; waits when too much is on its way.
    fn land(&mut self) -> Result<()> {
        while let Some((_, event)) = self.flying.front() {
            let bytes: usize = self.flying.iter().map(|(pinned, _)| pinned.len()).sum();
            if self.flying.len() >= MOST_FLYING || bytes >= MOST_BYTES {
                event.synchronize()?;
            } else if !event.query()? {
                break;
            }
            if let Some((_, event)) = self.flying.pop_front() {
                self.events.push(event);
            }
        }
        Ok(())
    }
}

/// Bytes on their way from the device to the host.
#[derive(Debug)]
pub struct Download(Way);

#[derive(Debug)]
enum Way {
    Here(Vec<u8>),
    Flying(Flying),
}

#[derive(Debug)]
struct Flying {
    bytes: Pinned,
    done: Event,
}

impl Download {
    /// The bytes, after a wait for them and for what was queued before.
    pub fn wait(self) -> Result<Vec<u8>> {
        match self.0 {
            Way::Here(bytes) => Ok(bytes),
            flying => Download(flying).read(<[u8]>::to_vec),
        }
    }

    /// The same where they are, for `read` to look at.
    pub fn read<T>(self, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
        match self.0 {
            Way::Here(bytes) => Ok(read(&bytes)),
            Way::Flying(flying) => {
                flying.done.synchronize()?;
                Ok(read(&flying.bytes))
            }
        }
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        // The block is somebody else's at once. An error comes out at the next wait.
        let _ = self.done.synchronize();
    }
}

impl Context {
    /// Copies `bytes` into `dst` from byte `at` on. The source may be reused at return. While a graph is
    /// recorded, the bytes become part of it.
    pub fn upload(&self, dst: &Buffer, at: usize, bytes: &[u8]) -> Result<()> {
        within(at, bytes.len(), dst.len())?;
        let mut to = dst.ptr().offset(at);
        let name = || format!("upload of {} bytes", bytes.len());
        self.core().recording.note(name, || (to.0, bytes));
        for piece in bytes.chunks(PIECE) {
            let mut pinned = self.pinned(piece.len())?;
            pinned.copy_from_slice(piece);
            let mut staging = self.staging();
            if self.is_capturing() {
                self.copy_in(self.compute(), to, &pinned)?;
                staging.recorded.push(pinned);
                to = to.offset(piece.len());
                continue;
            }
            staging.land()?;
            // Before the copy: without a mark nobody would know when the block is free again.
            let event = staging.events.pop().map_or_else(|| self.event(), Ok)?;
            self.copy_in(self.compute(), to, &pinned)?;
            if let Err(e) = event.record(self.compute()) {
                let _ = self.compute().synchronize();
                return Err(e);
            }
            staging.flying.push_back((pinned, event));
            to = to.offset(piece.len());
        }
        Ok(())
    }

    /// Copies from device memory; waits for the compute stream.
    pub fn download(&self, src: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.refuse_while_capturing("the host reads what was computed")?;
        let mut from = src;
        for piece in to.chunks_mut(PIECE) {
            let mut pinned = self.pinned(piece.len())?;
            self.copy_out(self.compute(), &mut pinned, 0, from, piece.len())?;
            self.synchronize()?;
            piece.copy_from_slice(&pinned);
            from = from.offset(piece.len());
        }
        Ok(())
    }

    /// Copies several ranges (address, bytes) from device memory, one after the other; one wait for all of them
    /// unless they are large.
    pub fn download_all(&self, parts: &[(DevicePtr, usize)]) -> Result<Vec<u8>> {
        self.begin_download(parts)?.wait()
    }

    /// Queues copies of several ranges (address, bytes) from device memory, one after the other, as they are where the compute
    /// stream is now; the ranges may be given back. Large ones are waited for here.
    pub fn begin_download(&self, parts: &[(DevicePtr, usize)]) -> Result<Download> {
        self.refuse_while_capturing("the host reads what was computed")?;
        let total = parts.iter().map(|p| p.1).sum();
        if total > PIECE {
            // Not so much pinned memory at once: the wait is the smaller part.
            let mut all = vec![0; total];
            let mut rest = all.as_mut_slice();
            for (src, bytes) in parts {
                let (part, after) = rest.split_at_mut(*bytes);
                self.download(*src, part)?;
                rest = after;
            }
            return Ok(Download(Way::Here(all)));
        }
        Ok(Download(Way::Flying(self.fly(self.compute(), parts, total)?)))
    }

    /// The same on the communication stream and whatever their size: what is queued on the compute stream after this does not
    /// wait for the copies, so the ranges must stay as they are until they are done.
    pub fn begin_download_beside(&self, parts: &[(DevicePtr, usize)]) -> Result<Download> {
        self.refuse_while_capturing("the host reads what was computed")?;
        self.communicate_after_compute()?;
        let total = parts.iter().map(|p| p.1).sum();
        Ok(Download(Way::Flying(self.fly(self.communication(), parts, total)?)))
    }

    /// Queues copies of ranges of `total` bytes into one pinned block.
    fn fly(&self, stream: &Stream, parts: &[(DevicePtr, usize)], total: usize) -> Result<Flying> {
        let mut flying = Flying { bytes: self.pinned(total)?, done: self.event()? };
        let mut at = 0;
        let mut queue = || {
            for (src, bytes) in parts {
                self.copy_out(stream, &mut flying.bytes, at, *src, *bytes)?;
                at += bytes;
            }
            flying.done.record(stream)
        };
        if let Err(e) = queue() {
            // There is no mark to wait for.
            let _ = stream.synchronize();
            return Err(e);
        }
        Ok(flying)
    }

    /// Queues a copy of a whole pinned block to the device on any stream. The block must stay as it is until the
    /// copy is done.
    pub fn copy_in(&self, stream: &Stream, dst: DevicePtr, src: &Pinned) -> Result<()> {
        self.copy_bytes_in(stream, dst, src)
    }

    /// The same from any memory, which must stay as it is until the copy is done.
    pub(crate) fn copy_bytes_in(&self, stream: &Stream, dst: DevicePtr, src: &[u8]) -> Result<()> {
        if src.is_empty() {
            return Ok(());
        }
        let d = self.primary().enter()?;
        // SAFETY: the source is a slice; where it goes is the caller's part, as with a launch.
        let status = unsafe { (d.cuMemcpyHtoDAsync_v2)(dst.0, src.as_ptr().cast(), src.len(), stream.raw) };
        d.check(status, "cuMemcpyHtoDAsync_v2")
    }

    /// Queues a copy of `bytes` device bytes to byte `at` of a pinned block on any stream. The block must not be
    /// read until the copy is done.
    pub fn copy_out(
        &self,
        stream: &Stream,
        dst: &mut Pinned,
        at: usize,
        src: DevicePtr,
        bytes: usize,
    ) -> Result<()> {
        within(at, bytes, dst.len())?;
        if bytes == 0 {
            return Ok(());
        }
        let d = self.primary().enter()?;
        let to = dst.address().wrapping_byte_add(at);
        // SAFETY: the range of the target was checked; where it comes from is the caller's part, as with a launch.
        let status = unsafe { (d.cuMemcpyDtoHAsync_v2)(to, src.0, bytes, stream.raw) };
        d.check(status, "cuMemcpyDtoHAsync_v2")
    }

    /// Copies within device memory on the compute stream.
    pub fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let copy = || self.core().copy(dst.0, src.0, bytes);
        self.core().queue(|| String::from("copy"), || (dst.0, src.0, bytes), copy)
    }

    /// Writes zeros on the compute stream.
    pub fn fill_zero(&self, dst: DevicePtr, bytes: usize) -> Result<()> {
        let zero = || self.core().fill_zero(dst.0, bytes);
        self.core().queue(|| String::from("zeros"), || (dst.0, bytes), zero)
    }
}
