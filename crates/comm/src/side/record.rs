//! What one process knows of another.

use std::time::{Duration, Instant};

use super::message::{Beat, Status, Whom};
use super::report::{Word, seconds};
use crate::{AbortKind, AbortReason};

/// How a process is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Presence {
    /// It has not come yet.
    Absent,
    /// It is there.
    Here,
    /// It has said goodbye.
    Left,
    /// It is lost; how that was noticed.
    Lost(String),
}

/// What is known of a process.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) presence: Presence,
    pub(super) whom: Option<Whom>,
    /// When it was last heard of.
    heard: Instant,
    beat: Option<Beat>,
    pub(super) status: Option<Status>,
}

impl Record {
    pub(super) fn absent() -> Record {
        let (presence, heard) = (Presence::Absent, Instant::now());
        Record { presence, whom: None, heard, beat: None, status: None }
    }

    pub(super) fn arrive(&mut self, whom: Whom) {
        self.presence = Presence::Here;
        self.whom = Some(whom);
        self.hear();
    }

    pub(super) fn is_here(&self) -> bool {
        self.presence == Presence::Here
    }

    pub(super) fn hear(&mut self) {
        self.heard = Instant::now();
    }

    pub(super) fn beats(&mut self, beat: Beat) {
        self.beat = Some(beat);
    }

    /// This process itself did not run for `paused`: no silence of others follows from that.
    pub(super) fn excuse(&mut self, paused: Duration) {
        self.heard = self.heard.checked_add(paused).map_or(self.heard, |h| h.min(Instant::now()));
    }

    /// How it was noticed that the process is silent for longer than `deadline`. The other side may not
    /// yet have heard of a shorter deadline, so its own word counts, too.
    pub(super) fn silence(&self, deadline: Duration) -> Option<String> {
        let every = self.beat.as_ref().map_or(Duration::ZERO, |b| b.every);
        let silent = self.heard.elapsed();
        (self.is_here() && silent > deadline.max(every.saturating_mul(3)))
            .then(|| format!("no sign of life for {}", seconds(silent)))
    }

    /// The process is lost; `how` it was noticed. Returns the reason for all.
    pub(super) fn lose(&mut self, rank: u32, how: String) -> AbortReason {
        let step = self.beat.as_ref().and_then(|b| b.step);
        let who = self.whom.as_ref().map(|w| format!(" ({}, pid {})", w.host, w.pid)).unwrap_or_default();
        let place = self.beat.as_ref().map(|b| format!(", {}", b.place)).unwrap_or_default();
        let seen = match self.presence {
            Presence::Absent => String::new(),
            _ => format!("; last seen {} ago{place}", seconds(self.heard.elapsed())),
        };
        let message = format!("rank {rank}{who} is lost: {how}{seen}");
        self.presence = Presence::Lost(how);
        AbortReason { rank, kind: AbortKind::Communication, step, message }
    }

    /// For the report.
    pub(super) fn word(&self) -> Word {
        if let Some(status) = &self.status {
            return Word::Last(status.clone());
        }
        let how = match &self.presence {
            Presence::Absent => return Word::Absent,
            Presence::Left => return Word::Left(self.whom.clone()),
            Presence::Lost(how) => Some(how.clone()),
            Presence::Here => None,
        };
        let seen = self.beat.as_ref().map(|b| (b.place.clone(), b.step));
        Word::None { whom: self.whom.clone(), how, ago: self.heard.elapsed(), seen }
    }
}
