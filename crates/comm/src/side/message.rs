//! What the two ends of a connection say to each other.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::frame::Nonce;
use crate::{AbortReason, Whereabouts};

/// Bytes of a call's text, and of a host's name, that are told.
const TEXT: usize = 500;
/// Bytes of a reason's message that are told. In JSON a byte may take six.
const MESSAGE: usize = 8 * 1024;

/// The first word of a rank.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) rank: u32,
    pub(super) world: u32,
    pub(super) whom: Whom,
    pub(super) answer: Nonce,
}

/// All later ones, in both directions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Message {
    /// The hub's answer to a hello.
    Welcome(Whom),
    /// A sign of life.
    Beat(Beat),
    /// From a rank: it has given up. From the hub: so has everybody.
    Abort(AbortReason),
    /// A rank's last words.
    Status(Status),
    /// The hub has told what there was to tell.
    Released,
    /// The connection will be closed in good order.
    Goodbye,
}

/// Which process a rank is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Whom {
    /// Its machine's name.
    pub(super) host: String,
    /// Its process there.
    pub(super) pid: u32,
}

impl Whom {
    /// This process.
    pub(super) fn me() -> Whom {
        Whom { host: shortened(super::host_name(), TEXT / 2), pid: std::process::id() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Beat {
    pub(super) place: String,
    pub(super) step: Option<u64>,
    /// When to expect the next one.
    pub(super) every: Duration,
}

impl Beat {
    pub(super) fn of(here: &Whereabouts, every: Duration) -> Beat {
        Beat { place: here.activity().place().to_string(), step: here.step(), every }
    }
}

/// Where a rank was when the run failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Status {
    /// Which process it is.
    pub(super) whom: Whom,
    /// What it was doing, as [`crate::Activity::place`] says it.
    pub(super) place: String,
    /// The step that it was in.
    pub(super) step: Option<u64>,
    /// How long it had been doing that.
    pub(super) since: Duration,
    /// Its last calls, oldest first.
    pub(super) calls: Vec<LastCall>,
}

/// One of a rank's last calls; see [`crate::Call`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastCall {
    /// Which call of its kind it was, from 0.
    pub(super) number: u64,
    /// `"collective"` or `"control call"`.
    pub(super) kind: String,
    /// What it did.
    pub(super) what: String,
    /// How long before it was begun.
    pub(super) begun: Duration,
    /// Whether it was done.
    pub(super) done: bool,
}

impl Status {
    pub(super) fn of(here: &Whereabouts) -> Status {
        let calls = here.calls().into_iter().map(|c| LastCall {
            number: c.number,
            kind: c.kind.to_string(),
            what: shortened(c.what, TEXT),
            begun: c.begun,
            done: c.done,
        });
        Status {
            whom: Whom::me(),
            place: here.activity().place().to_string(),
            step: here.step(),
            since: here.since(),
            calls: calls.collect(),
        }
    }
}

/// The reason as it fits into a frame.
pub(super) fn fitting(reason: AbortReason) -> AbortReason {
    AbortReason { message: shortened(reason.message, MESSAGE), ..reason }
}

fn shortened(mut text: String, most: usize) -> String {
    if text.len() > most {
        let cut = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::frame::LARGEST;
    use super::*;
    use crate::AbortKind;

    #[test]
    fn the_longest_messages_fit_into_a_frame() {
        let here = Whereabouts::default();
        for n in 0..20 {
            here.begin_call("control call", n, || "\u{1}".repeat(5000));
        }
        let status = serde_json::to_vec(&Message::Status(Status::of(&here))).unwrap();
        assert!(status.len() <= LARGEST && !status.is_empty());
        for text in ["\u{1}", "é"] {
            let reason = fitting(AbortReason::new(0, AbortKind::Other, text.repeat(1 << 20)));
            let abort = serde_json::to_vec(&Message::Abort(reason)).unwrap();
            assert!(abort.len() <= LARGEST && !abort.is_empty());
        }
        let short = AbortReason::new(0, AbortKind::Other, "short");
        assert_eq!(fitting(short.clone()), short);
    }
}
