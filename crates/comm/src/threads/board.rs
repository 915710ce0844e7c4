//! Where ranks meet: the n-th call of every rank is one [`Meeting`].

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::signal::{Signal, lock};

/// One call that all ranks make: what each brought (`P`), and the state of the work on it (`S`).
pub(super) struct Meeting<C, P, S> {
    pub(super) number: u64,
    pub(super) call: C,
    pub(super) state: S,
    first: usize,
    posts: Box<[OnceLock<P>]>,
    posted: AtomicUsize,
}

impl<C, P, S> Meeting<C, P, S> {
    /// Whether every rank has come. Acquires what each wrote before it came.
    pub(super) fn is_complete(&self) -> bool {
        self.posted.load(Ordering::Acquire) == self.posts.len()
    }

    /// What a rank brought, if it has come.
    pub(super) fn post(&self, rank: usize) -> Option<&P> {
        self.posts[rank].get()
    }

    /// What the ranks that have come brought, by rank.
    pub(super) fn posts(&self) -> impl Iterator<Item = &P> {
        self.posts.iter().filter_map(OnceLock::get)
    }

    pub(super) fn missing(&self) -> Vec<usize> {
        (0..self.posts.len()).filter(|&r| self.posts[r].get().is_none()).collect()
    }
}

struct Table<C, P, S> {
    /// Meetings that not every rank has come to, by number.
    open: VecDeque<Arc<Meeting<C, P, S>>>,
    /// By rank: the number of its next call, and its last call.
    ranks: Vec<(u64, Option<C>)>,
}

/// The sequence of meetings of one kind.
pub(super) struct Board<C, P, S> {
    kind: &'static str,
    table: Mutex<Table<C, P, S>>,
    /// Rung when a meeting is complete, when its work is done, and when a rank leaves.
    pub(super) signal: Arc<Signal>,
}

/// A rank whose call is not what another rank called in the same place.
pub(super) struct Mismatch<C> {
    pub(super) number: u64,
    pub(super) first: usize,
    pub(super) theirs: C,
}

impl<C: Copy + PartialEq + Display, P, S> Board<C, P, S> {
    pub(super) fn new(kind: &'static str, ranks: usize, signal: Arc<Signal>) -> Self {
        let table = Table { open: VecDeque::new(), ranks: vec![(0, None); ranks] };
        Board { kind, table: Mutex::new(table), signal }
    }

    /// Brings `payload` to the rank's next meeting. The first to come makes its `state`.
    pub(super) fn post(
        &self,
        rank: usize,
        call: C,
        payload: P,
        state: impl FnOnce() -> S,
    ) -> Result<Arc<Meeting<C, P, S>>, Mismatch<C>> {
        let mut table = lock(&self.table);
        let number = table.ranks[rank].0;
        table.ranks[rank] = (number + 1, Some(call));
        let meeting = match table.open.iter().find(|m| m.number == number) {
            Some(meeting) => Arc::clone(meeting),
            None => {
                let posts = table.ranks.iter().map(|_| OnceLock::new()).collect();
                let posted = AtomicUsize::new(0);
                let made = Arc::new(Meeting { number, call, state: state(), first: rank, posts, posted });
                table.open.push_back(Arc::clone(&made));
                made
            }
        };
        if meeting.call != call {
            return Err(Mismatch { number, first: meeting.first, theirs: meeting.call });
        }
        // The slot is empty: a rank's numbers are used once.
        let _ = meeting.posts[rank].set(payload);
        // Releases what this rank wrote; being read-modify-writes, the additions of all ranks form one
        // release sequence, so who sees the last of them has seen the writes of all.
        let posted = meeting.posted.fetch_add(1, Ordering::AcqRel) + 1;
        if posted == meeting.posts.len() {
            // Ranks come in order, so the oldest is the first to be complete.
            table.open.pop_front();
        }
        Ok(meeting)
    }

    /// For messages: which meeting that is.
    pub(super) fn place(&self, number: u64) -> String {
        format!("{} {number}", self.kind)
    }

    /// For messages: the last that a rank did here.
    pub(super) fn last(&self, rank: usize) -> String {
        match lock(&self.table).ranks[rank] {
            (next, Some(call)) => format!("{} ({call})", self.place(next - 1)),
            (_, None) => format!("no {}", self.kind),
        }
    }
}
