//! Which files are copied: a pure function.

/// A file that will be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The set that it is of, and the shard.
    pub(super) set: usize,
    pub(super) number: u32,
    pub(super) bytes: u64,
    /// Whether there is a copy already.
    pub(super) there: bool,
}

/// What is to be done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Copies to use that are there.
    pub(super) keep: Vec<Wanted>,
    /// Copies to make, in this order.
    pub(super) copy: Vec<Wanted>,
    /// Bytes of both.
    pub(super) bytes: u64,
    /// Bytes that are not copied.
    pub(super) left: u64,
}

/// Takes files in their order as long as all that are taken stay within `limit` bytes and what is new within `free`.
/// Copies that are there come first: they cost nothing.
pub(super) fn plan(wanted: &[Wanted], free: u64, limit: u64) -> Plan {
    let mut plan = Plan::default();
    let mut free = free;
    for file in wanted.iter().filter(|f| f.there) {
        match plan.bytes.checked_add(file.bytes).filter(|&sum| sum <= limit) {
            Some(sum) => {
                plan.bytes = sum;
                plan.keep.push(*file);
            }
            None => plan.left += file.bytes,
        }
    }
    for file in wanted.iter().filter(|f| !f.there) {
        let sum = plan.bytes.checked_add(file.bytes).filter(|&sum| sum <= limit && file.bytes <= free);
        match sum {
            Some(sum) => {
                plan.bytes = sum;
                free -= file.bytes;
                plan.copy.push(*file);
            }
            None => plan.left += file.bytes,
        }
    }
    plan
}
