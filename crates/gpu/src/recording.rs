//! What a recording is made of: all of its work by name and fingerprint, and the numbers that change from launch to launch.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Args, Context, DevicePtr, Error, Result};

/// Bytes of the block that changing numbers live in.
pub(crate) const ROOM: usize = 16 << 10;
/// What a number's place is a multiple of, in bytes.
const ALIGN: usize = 8;

/// A number that kernels of a graph read from memory, so that it can be another one at each launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Varying {
    /// What it is, as [`Args::varying`] was told.
    pub what: &'static str,
    /// Where in the block it is, in bytes.
    pub at: usize,
    /// What it was when it was recorded.
    pub bytes: Vec<u8>,
}

/// What a recording was made of.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    values: Vec<Varying>,
    work: Vec<(String, u64)>,
}

impl Trace {
    /// The numbers that are to be set before each launch. Equal ones of one kind are one.
    pub fn varying(&self) -> &[Varying] {
        &self.values
    }

    /// Bytes that [`crate::Graph::launch_with`] wants.
    pub fn room(&self) -> usize {
        self.values.last().map_or(0, |v| v.at + v.bytes.len().next_multiple_of(ALIGN))
    }

    /// Pieces of work.
    pub fn len(&self) -> usize {
        self.work.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.work.is_empty()
    }

    /// The first work that is not the same in `other`: other kernels, arguments or sizes. Numbers that vary may differ.
    pub fn difference(&self, other: &Trace) -> Option<String> {
        let pairs = self.work.iter().zip(&other.work);
        if let Some((a, b)) = pairs.clone().find(|(a, b)| a != b) {
            return Some(if a.0 == b.0 { a.0.clone() } else { format!("{} against {}", a.0, b.0) });
        }
        let places = |t: &Trace| t.values.iter().map(|v| (v.what, v.at)).collect::<Vec<_>>();
        if self.work.len() != other.work.len() || places(self) != places(other) {
            return Some(format!("{} pieces of work against {}", self.work.len(), other.work.len()));
        }
        None
    }
}

/// The recording of a context's compute stream, while there is one.
#[derive(Default)]
pub(crate) struct Recording {
    on: AtomicBool,
    state: Mutex<(DevicePtr, Trace)>,
}

impl Recording {
    fn state(&self) -> MutexGuard<'_, (DevicePtr, Trace)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Begins with an empty block at `values`.
    pub(crate) fn begin(&self, values: DevicePtr) {
        *self.state() = (values, Trace::default());
        self.on.store(true, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) -> Trace {
        self.on.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.state().1)
    }

    /// Takes note of work, when a recording is going on.
    pub(crate) fn note<H: Hash>(&self, name: impl FnOnce() -> String, of: impl FnOnce() -> H) {
        if self.is_on() {
            let mut hasher = DefaultHasher::new();
            of().hash(&mut hasher);
            self.state().1.work.push((name(), hasher.finish()));
        }
    }

    fn place(&self, what: &'static str, bytes: &[u8]) -> Result<Option<DevicePtr>> {
        if !self.is_on() {
            return Ok(None);
        }
        let (base, trace) = &mut *self.state();
        if let Some(known) = trace.values.iter().find(|v| v.what == what && v.bytes == bytes) {
            return Ok(Some(base.offset(known.at)));
        }
        let at = trace.room();
        if at + bytes.len() > ROOM {
            return Err(Error::Capturing { what: "more changing numbers were used than there is room for" });
        }
        trace.values.push(Varying { what, at, bytes: bytes.to_vec() });
        Ok(Some(base.offset(at)))
    }
}

impl Context {
    /// While a graph is recorded, the address at which kernels find a number that may be another one at each launch; else
    /// none, and kernels are given the number itself.
    pub fn varying(&self, what: &'static str, bytes: &[u8]) -> Result<Option<DevicePtr>> {
        self.core().recording.place(what, bytes)
    }

    pub(crate) fn refuse_while_capturing(&self, what: &'static str) -> Result<()> {
        if self.is_capturing() { Err(Error::Capturing { what }) } else { Ok(()) }
    }
}

impl Args {
    /// Two arguments, a pointer and a number: where the pointer is not null, the kernel finds the number there
    /// ([`Context::varying`]).
    pub fn varying(self, gpu: &Context, what: &'static str, bytes: &[u8]) -> Result<Args> {
        Ok(match gpu.varying(what, bytes)? {
            Some(at) => self.ptr(at).bytes(&vec![0; bytes.len()]),
            None => self.ptr(DevicePtr(0)).bytes(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_places_and_other_work_is_told() {
        let r = Recording::default();
        let note = |name: &str, of: u64| r.note(|| name.to_owned(), || of);
        assert_eq!(r.place("key", &[1; 8]).unwrap(), None);
        note("nothing", 1);
        let record = |key: u8, by: u64, more: bool| {
            r.begin(DevicePtr(4096));
            let places =
                [("key", vec![key; 8]), ("by", vec![key; 4]), ("by", vec![9; 4]), ("key", vec![key; 8])]
                    .map(|(what, bytes)| r.place(what, &bytes).unwrap().unwrap().0);
            assert_eq!(places, [4096, 4104, 4112, 4096]);
            note("add", by);
            if more {
                note("more", 0);
            }
            r.end()
        };
        let first = record(1, 5, false);
        assert_eq!((first.len(), first.room(), first.varying().len()), (1, 24, 3));
        assert_eq!(first.difference(&record(2, 5, false)), None);
        assert_eq!(first.difference(&record(1, 6, false)), Some("add".into()));
        assert_eq!(first.difference(&record(1, 5, true)), Some("1 pieces of work against 2".into()));
        r.begin(DevicePtr(0));
        let full = (0..).map(|i: u32| r.place("n", &i.to_le_bytes())).find(Result::is_err).unwrap();
        assert!(matches!(full, Err(Error::Capturing { .. })));
    }
}
