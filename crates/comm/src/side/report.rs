//! The report of a failure: which rank is where, who waits for whom, what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use super::message::{LastCall, Status, Whom};
use crate::AbortReason;

/// Beyond so many ranks, those in the same state share a line.
const SINGLY: usize = 32;
/// Different texts of one call that are told.
const TEXTS: usize = 4;

/// What there is to say of a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// Its last words.
    Last(Status),
    /// It gave none.
    None {
        whom: Option<Whom>,
        /// How it was noticed that it is lost, if it is.
        how: Option<String>,
        /// How long ago it was last heard of.
        ago: Duration,
        /// Place and step that it was last seen at.
        seen: Option<(String, Option<u64>)>,
    },
    /// It had not come yet.
    Absent,
    /// It had said goodbye.
    Left(Option<Whom>),
}

/// A time, for people.
pub(super) fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 99.95 => format!("{s:.1} s"),
        s => format!("{s:.0} s"),
    }
}

/// Some ranks, such as `"rank 3"` or `"ranks 0-63, 65"`.
pub(super) fn ranks(of: &BTreeSet<u32>) -> String {
    let mut spans: Vec<(u32, u32)> = Vec::new();
    for &rank in of {
        match spans.last_mut() {
            Some((_, last)) if *last + 1 == rank => *last = rank,
            _ => spans.push((rank, rank)),
        }
    }
    let span = |(first, last): (u32, u32)| match last - first {
        0 => format!("{first}"),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    };
    let spans: Vec<String> = spans.into_iter().map(span).collect();
    let noun = if of.len() == 1 { "rank" } else { "ranks" };
    format!("{noun} {}", spans.join(", "))
}

fn at(place: &str, step: Option<u64>) -> String {
    step.map_or_else(|| place.to_string(), |step| format!("{place} at step {step}"))
}

/// The call that says most of where a rank is: the first that is not done, else the last.
fn telling(status: &Status) -> Option<&LastCall> {
    status.calls.iter().find(|c| !c.done).or(status.calls.last())
}

/// A line of the table. Ranks are in the same state when all but the times is equal.
#[derive(PartialEq, Eq)]
struct State {
    /// Whether it is the rank that the reason names.
    cause: bool,
    place: String,
    call: String,
}

struct Row {
    ranks: BTreeSet<u32>,
    state: State,
    whom: Option<Whom>,
    /// How long it has been at its place, or is silent.
    since: Option<Duration>,
    /// How long ago a call that is not done was begun.
    begun: Option<Duration>,
    silent: bool,
}

impl Row {
    fn new(rank: u32, word: &Word, cause: bool) -> Row {
        let ranks = BTreeSet::from([rank]);
        let row = |place: String, whom: &Option<Whom>| Row {
            ranks: ranks.clone(),
            state: State { cause, place, call: String::new() },
            whom: whom.clone(),
            since: None,
            begun: None,
            silent: true,
        };
        match word {
            Word::Last(status) => {
                let call = telling(status);
                let text = call.map(|c| {
                    let done = if c.done { ", done" } else { "" };
                    format!("{} {} ({}){done}", c.kind, c.number, c.what)
                });
                Row {
                    state: State {
                        cause,
                        place: at(&status.place, status.step),
                        call: text.unwrap_or_else(|| "no call yet".into()),
                    },
                    since: Some(status.since),
                    begun: call.filter(|c| !c.done).map(|c| c.begun),
                    silent: false,
                    ..row(String::new(), &Some(status.whom.clone()))
                }
            }
            Word::None { whom, how, ago, seen } => {
                let how = how.as_ref().map(|h| format!(", {h}")).unwrap_or_default();
                let seen = seen.as_ref().map(|(place, step)| format!(", {}", at(place, *step)));
                // The time stands in between; see `place`.
                let place = format!("no answer{how}; last seen {TIME} ago{}", seen.unwrap_or_default());
                Row { since: Some(*ago), ..row(place, whom) }
            }
            Word::Absent => row("had not joined yet".into(), &None),
            Word::Left(whom) => row("had left in good order".into(), whom),
        }
    }

    fn join(&mut self, other: Row) {
        self.ranks.extend(other.ranks);
        self.since = self.since.max(other.since);
        self.begun = self.begun.max(other.begun);
    }

    fn time(&self, time: Duration) -> String {
        let several = if self.ranks.len() > 1 { "up to " } else { "" };
        format!("{several}{}", seconds(time))
    }

    fn place(&self) -> String {
        match self.since {
            Some(since) if self.silent => self.state.place.replace(TIME, &self.time(since)),
            Some(since) => format!("{}, for {}", self.state.place, self.time(since)),
            None => self.state.place.clone(),
        }
    }

    fn call(&self) -> String {
        let begun = self.begun.map(|b| format!(", begun {} ago", self.time(b)));
        format!("{}{}", self.state.call, begun.unwrap_or_default())
    }

    fn whom(&self) -> String {
        let whom = self.whom.as_ref().filter(|_| self.ranks.len() == 1);
        whom.map(|w| format!("({}, pid {})", w.host, w.pid)).unwrap_or_default()
    }
}

/// Stands for a time that is not part of a state.
const TIME: &str = "\u{0}";

/// One rank's line.
pub(super) fn line(rank: u32, status: &Status) -> String {
    let row = Row::new(rank, &Word::Last(status.clone()), false);
    format!("rank {rank} {} was {}; {}", row.whom(), row.place(), row.call())
}

/// What is known of the failure that `reason` gives; `words` are all ranks', by rank.
pub(super) fn report(reason: &AbortReason, words: &[Word]) -> String {
    let words: Vec<(u32, &Word)> = (0..).zip(words).collect();
    let mut text = String::new();
    section(&mut text, "where the ranks are:", table(reason, &words));
    section(&mut text, "who waits for whom:", waits(&words));
    section(&mut text, "what differs:", differences(&words));
    text
}

fn section(text: &mut String, title: &str, lines: Vec<String>) {
    if !lines.is_empty() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{title}");
        for line in lines {
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
}

fn table(reason: &AbortReason, words: &[(u32, &Word)]) -> Vec<String> {
    let mut rows: Vec<Row> = Vec::new();
    for (rank, word) in words {
        let row = Row::new(*rank, word, *rank == reason.rank);
        match rows.iter_mut().find(|r| words.len() > SINGLY && r.state == row.state) {
            Some(same) => same.join(row),
            None => rows.push(row),
        }
    }
    let cells: Vec<[String; 4]> =
        rows.iter().map(|r| [ranks(&r.ranks), r.whom(), r.place(), r.call()]).collect();
    let width = |column: usize| {
        // Who gave no answer has nothing in the last column, so its long text may stand in its way.
        let cells = cells.iter().filter(|c| column < 2 || !c[3].is_empty());
        cells.map(|c| c[column].chars().count()).max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2)];
    let line = |(row, [who, whom, place, call]): (&Row, &[String; 4])| {
        let mark = if row.state.cause { '>' } else { ' ' };
        let [a, b, c] = widths;
        let whom = if b == 0 { String::new() } else { format!("{whom:b$}  ") };
        format!("{mark} {who:a$}  {whom}{place:c$}  {call}")
    };
    rows.iter().zip(&cells).map(line).collect()
}

/// The answers, with their ranks.
fn answers<'a>(words: &'a [(u32, &Word)]) -> impl Iterator<Item = (u32, &'a Status)> {
    words.iter().filter_map(|(rank, word)| match word {
        Word::Last(status) => Some((*rank, status)),
        _ => None,
    })
}

fn kinds<'a>(words: &'a [(u32, &Word)]) -> BTreeSet<&'a str> {
    answers(words).flat_map(|(_, s)| &s.calls).map(|c| c.kind.as_str()).collect()
}

/// The ranks that call `number` waits for, by the clause that is added to them.
fn missing(words: &[(u32, &Word)], kind: &str, number: u64) -> BTreeMap<&'static str, BTreeSet<u32>> {
    let mut missing: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
    for (rank, word) in words {
        let clause = match word {
            // Calls of a kind are made in order.
            Word::Last(s) if s.calls.iter().any(|c| c.kind == kind && c.number >= number) => continue,
            Word::Last(_) => "",
            Word::None { .. } => ", which gave no answer",
            Word::Absent => ", which had not joined",
            Word::Left(_) => ", which had left",
        };
        missing.entry(clause).or_default().insert(*rank);
    }
    missing
}

fn waits(words: &[(u32, &Word)]) -> Vec<String> {
    let mut lines = Vec::new();
    for kind in kinds(words) {
        // By the call that they wait in.
        let mut waiting: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        let mut all_begun: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        for (rank, status) in answers(words) {
            let open: BTreeSet<u64> =
                status.calls.iter().filter(|c| c.kind == kind && !c.done).map(|c| c.number).collect();
            if let Some(number) = open.iter().find(|n| !missing(words, kind, **n).is_empty()) {
                waiting.entry(*number).or_default().insert(rank);
            } else if let Some(number) = open.first() {
                all_begun.entry(*number).or_default().insert(rank);
            }
        }
        for (number, waiters) in waiting {
            let missing = missing(words, kind, number);
            let for_whom: Vec<String> =
                missing.iter().map(|(clause, who)| format!("{}{clause}", ranks(who))).collect();
            let verb = if waiters.len() == 1 { "waits" } else { "wait" };
            let for_whom = for_whom.join(", and for ");
            lines.push(format!("  {} {verb} in {kind} {number} for {for_whom}", ranks(&waiters)));
        }
        for (number, waiters) in all_begun {
            lines.push(format!(
                "  all ranks have begun {kind} {number}, which has not ended on {}",
                ranks(&waiters)
            ));
        }
    }
    lines
}

/// The first call of each kind that is not the same on all ranks.
fn differences(words: &[(u32, &Word)]) -> Vec<String> {
    let mut calls: BTreeMap<(&str, u64), BTreeMap<&str, BTreeSet<u32>>> = BTreeMap::new();
    for (rank, status) in answers(words) {
        for call in &status.calls {
            let texts = calls.entry((&call.kind, call.number)).or_default();
            texts.entry(&call.what).or_default().insert(rank);
        }
    }
    let mut lines = Vec::new();
    for kind in kinds(words) {
        let first = calls.iter().find(|((k, _), texts)| *k == kind && texts.len() > 1);
        let Some(((_, number), texts)) = first else { continue };
        let mut texts: Vec<_> = texts.iter().map(|(what, who)| (who, what)).collect();
        texts.sort();
        let more = texts.len().saturating_sub(TEXTS);
        texts.truncate(TEXTS);
        let began: Vec<String> =
            texts.iter().map(|(who, what)| format!("{} began {what}", ranks(who))).collect();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        lines.push(format!("  {kind} {number}: {}{more}", began.join("; ")));
    }
    lines
}

#[cfg(test)]
mod tests;
