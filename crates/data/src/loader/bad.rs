//! Records that cannot be used, and what becomes of their samples.

use phalanx_host::rng::Key;
use serde::{Deserialize, Serialize};

use crate::files::is_of_bytes;
use crate::{Error, Order};

/// What becomes of a sample whose record cannot be read, decoded or transformed (`loader.bad_records`).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadRecords {
    /// It ends the run.
    #[default]
    Fail,
    /// Another sample takes its place, one of [`substitutes`]; in evaluation it counts nothing.
    Substitute,
    /// It is in no batch and counts nothing.
    Quarantine,
}

impl BadRecords {
    /// Whether it is the default.
    pub fn is_fail(&self) -> bool {
        *self == BadRecords::Fail
    }
}

/// A sample of a batch whose record was bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSample {
    /// The sample.
    pub id: u64,
    /// The sample that is in its place; `None` where the batch has no row for it.
    pub substitute: Option<u64>,
    /// What was wrong with the record.
    pub reason: String,
}

/// Separates the substitutes' random stream from every other one of the same seed.
const STREAM: u64 = 0x7375_6273_7400;
/// Samples that are tried: if a tenth of a set is bad, one in 10³² finds none that is good.
const TRIES: u64 = 32;

/// The samples that may take the place of sample `id` of `n` in an epoch, best first: the beginning of a permutation
/// that is keyed by (seed, epoch, sample). The first that can be read does.
pub fn substitutes(seed: u64, epoch: u64, id: u64, n: u64) -> impl Iterator<Item = u64> {
    let walk = Order::keyed(Key::new(seed).derive(STREAM, epoch).derive(id, 0), n);
    (0..n.min(TRIES)).map(move |p| walk.at(p)).filter(move |&other| other != id)
}

/// Bad samples that are never too many in the middle of an epoch: at a run's beginning one in a few says little.
const FLOOR: u64 = 10;

/// Whether `bad` of `seen` samples are more than `limit` (`loader.bad_limit`) of them. Where they are not yet all samples of
/// an epoch or an evaluation (`whole`), ten are never too many.
pub fn too_many_bad(bad: u64, seen: u64, limit: f64, whole: bool) -> bool {
    (whole || bad > FLOOR) && bad as f64 > limit * seen as f64
}

/// Whether an error says that a record is bad; else something else is wrong, and would be with other records.
pub(crate) fn is_of_record(e: &Error) -> bool {
    match e {
        Error::Format { .. } | Error::Field { .. } | Error::Label { .. } | Error::Panic { .. } => true,
        Error::Io { cause, .. } => is_of_bytes(cause),
        Error::Sample { cause, .. } => is_of_record(cause),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use proptest::prelude::*;
    use rustix::io::Errno;

    use super::*;

    proptest! {
        #[test]
        fn substitutes_are_others_each_once_and_keyed(seed: u64, epoch: u64, n in 1u64..100_000, id: u64) {
            let id = id % n;
            let all: Vec<u64> = substitutes(seed, epoch, id, n).collect();
            let mut sorted = all.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), all.len());
            prop_assert!(all.len() as u64 >= n.min(TRIES) - 1 && all.iter().all(|&o| o < n && o != id));
            prop_assert!(substitutes(seed, epoch, id, n).eq(all.iter().copied()));
            if n > 1000 {
                prop_assert!(!substitutes(seed, epoch ^ 1, id, n).eq(all.iter().copied()));
                prop_assert!(!substitutes(seed, epoch, (id + 1) % n, n).eq(all));
            }
        }
    }

    #[test]
    fn a_few_are_never_too_many() {
        assert!(!too_many_bad(10, 10, 0.0, false) && too_many_bad(11, 1_000_000, 0.0, false));
        assert!(!too_many_bad(100, 10_000, 0.01, false) && too_many_bad(101, 10_000, 0.01, false));
        assert!(!too_many_bad(1000, 1000, 1.0, false) && !too_many_bad(1000, 1000, 1.0, true));
        assert!(!too_many_bad(1, 100, 0.01, true) && too_many_bad(2, 100, 0.01, true));
        assert!(!too_many_bad(0, 0, 0.0, true));
    }

    #[test]
    fn what_ails_more_than_a_record_is_no_bad_record() {
        let io = |e: std::io::Error| Error::io("read", "shard-00000.dat")(e);
        let of = |code: Errno| is_of_record(&io(code.into()));
        assert!(of(Errno::IO) && is_of_record(&io(ErrorKind::UnexpectedEof.into())));
        assert!(!is_of_record(&Error::Slow { took: 2, most: 1 }));
        for code in [Errno::NOENT, Errno::ACCESS, Errno::STALE, Errno::MFILE, Errno::NOMEM, Errno::TIMEDOUT] {
            assert!(!of(code), "{code}");
        }
    }
}
