//! The side thread of all ranks but rank 0.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::frame::{Key, Nonce, Way};
use super::link::{Link, part_from};
use super::message::{Hello, Message, Status, Whom, fitting};
use super::record::Presence;
use super::{BRISK, End, HANDSHAKE, PARTING, Pulse, Shared, interval, pause};

/// What one attempt to connect may take; longer than it takes to ask twice when the first packet is lost.
const CONNECT: Duration = Duration::from_millis(1500);
/// By how much ranks come one after another: the system keeps only some that wait to be accepted, and those
/// beyond believe for seconds that they are connected.
const TURN: Duration = Duration::from_micros(500);
/// After so long without a challenge a rank tries again, as it may be one of those.
const CHALLENGE: Duration = Duration::from_millis(700);
/// Between attempts.
const AGAIN: Duration = Duration::from_millis(50);

/// How far the connection to the hub is.
enum Stage {
    /// There is none; when to try again.
    Away(Instant),
    /// Since when the hub owes a challenge, or a welcome when it is so far.
    Greeting { link: Link, said_hello: bool, since: Instant },
    /// The hub knows this rank.
    Joined(Link),
    /// The hub is gone.
    Over,
}

pub(super) struct Client {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    secret: Key,
    answer: Nonce,
    stage: Stage,
    started: Instant,
    attempts: usize,
    /// The hub was told that this rank has given up.
    told: bool,
    last_beat: Option<Instant>,
    /// The deadline that the last sign of life was given for.
    deadline: Duration,
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>, addresses: Vec<SocketAddr>, secret: Key, answer: Nonce) -> Self {
        let now = Instant::now();
        Client {
            stage: Stage::Away(now + TURN * shared.rank),
            shared,
            addresses,
            secret,
            answer,
            started: now,
            attempts: 0,
            told: false,
            last_beat: None,
            deadline: Duration::ZERO,
        }
    }

    /// Serves the channel until its process wants to end it.
    pub(super) fn run(mut self) {
        let mut pulse = Pulse::new();
        let mut nap = Duration::ZERO;
        loop {
            pulse.rest();
            let wish = self.shared.sleep(nap);
            let overslept = pulse.overslept(nap);
            if wish.end.is_none() {
                self.approach(wish.deadline);
            }
            self.listen_to_hub(wish.deadline, overslept);
            self.give_up();
            self.give_sign_of_life(wish.deadline);
            if let Some(end) = wish.end {
                self.part(end);
                break;
            }
            if let Some(link) = self.link() {
                link.flush();
            }
            nap = self.nap(wish.deadline);
        }
        self.shared.change(|state| state.ended = true);
    }

    fn nap(&self, deadline: Duration) -> Duration {
        match self.stage {
            // Connecting and reading wait by themselves.
            Stage::Greeting { .. } => Duration::ZERO,
            Stage::Away(at) => at.saturating_duration_since(Instant::now()),
            Stage::Joined(_) | Stage::Over => pause(deadline),
        }
    }

    fn link(&mut self) -> Option<&mut Link> {
        match &mut self.stage {
            Stage::Greeting { link, .. } | Stage::Joined(link) => Some(link),
            Stage::Away(_) | Stage::Over => None,
        }
    }

    /// Brings the connection nearer to the hub's welcome.
    fn approach(&mut self, deadline: Duration) {
        match self.stage {
            Stage::Away(at) if at <= Instant::now() => self.connect(),
            Stage::Greeting { .. } => self.greet(),
            Stage::Away(_) | Stage::Joined(_) | Stage::Over => {}
        }
        let waiting = matches!(self.stage, Stage::Away(_) | Stage::Greeting { .. });
        if waiting && self.started.elapsed() > deadline.max(HANDSHAKE) {
            let trouble = self.shared.change(|state| state.trouble.clone());
            let trouble = trouble.map(|t| format!(" ({t})")).unwrap_or_default();
            self.stage = Stage::Over;
            self.lose(format!("its side channel cannot be joined{trouble}"));
        }
    }

    fn connect(&mut self) {
        let Some(address) = self.addresses.get(self.attempts % self.addresses.len().max(1)).copied() else {
            self.again("there is no address".into());
            return;
        };
        self.attempts += 1;
        let link = TcpStream::connect_timeout(&address, CONNECT)
            .and_then(|stream| Link::new(stream, self.secret.of_challenge(), Way::ToHub))
            .and_then(|mut link| link.lean(Some(AGAIN)).map(|()| link));
        match link {
            Ok(link) => self.stage = Stage::Greeting { link, said_hello: false, since: Instant::now() },
            Err(e) => self.again(format!("{address} cannot be connected to ({e})")),
        }
    }

    fn again(&mut self, why: String) {
        self.stage = Stage::Away(Instant::now() + AGAIN);
        self.shared.change(|state| state.trouble = Some(why));
    }

    fn greet(&mut self) {
        let Stage::Greeting { link, said_hello, since } = &mut self.stage else { return };
        link.fill();
        if !*said_hello && let Some(payload) = link.payload() {
            let Ok(challenge) = Nonce::try_from(payload) else {
                return self.again("who answered there is not the hub".into());
            };
            let (rank, world) = (self.shared.rank, self.shared.world);
            let hello = Hello { rank, world, whom: Whom::me(), answer: self.answer };
            let Ok(hello) = serde_json::to_vec(&hello) else { return };
            link.rekey(self.secret.of_hello(&challenge));
            link.send(&hello);
            link.flush();
            link.rekey(self.secret.of_session(&challenge, &self.answer, rank));
            link.trust();
            *said_hello = true;
        }
        if *said_hello && let Some(Message::Welcome(whom)) = link.message() {
            if let Err(e) = link.lean(None) {
                return self.again(format!("the connection cannot be used ({e})"));
            }
            self.shared.change(|state| {
                state.records.iter_mut().for_each(|r| r.arrive(whom.clone()));
                state.ready = true;
            });
            if let Stage::Greeting { link, .. } = std::mem::replace(&mut self.stage, Stage::Over) {
                self.stage = Stage::Joined(link);
            }
        } else if let Some(end) = link.end().map(str::to_string) {
            self.again(format!("the hub did not let this rank in ({end})"));
        } else if !*said_hello && since.elapsed() > CHALLENGE {
            self.again("who answered there is silent".into());
        }
    }

    /// Reads what the hub has said, and finds out whether it is lost.
    fn listen_to_hub(&mut self, deadline: Duration, overslept: Duration) {
        let Stage::Joined(link) = &mut self.stage else { return };
        let here = &self.shared.here;
        let mut verdict = None;
        let found = self.shared.change(|state| {
            let record = state.records.first_mut()?;
            record.excuse(overslept);
            link.fill();
            while let Some(message) = link.message() {
                record.hear();
                match message {
                    Message::Beat(beat) => record.beats(beat),
                    Message::Abort(reason) => {
                        state.verdict = Some((reason.clone(), Instant::now()));
                        verdict = Some(reason);
                        link.tell(&Message::Status(Status::of(here)));
                    }
                    Message::Released => state.released = true,
                    Message::Goodbye => record.presence = Presence::Left,
                    // The hub says neither.
                    Message::Welcome(_) | Message::Status(_) => {}
                }
            }
            let closed = link.end().map(str::to_string);
            let over = closed.is_some() || record.presence == Presence::Left;
            let lost = closed.or_else(|| record.silence(deadline)).filter(|_| record.is_here());
            Some((over, lost))
        });
        if let Some(reason) = verdict {
            self.told = true;
            self.shared.fate.seal(reason);
        }
        // The connection to a silent hub is kept: should it go on, it learns what has happened.
        if let Some((true, _)) = found {
            self.stage = Stage::Over;
        }
        if let Some((_, Some(how))) = found {
            self.lose(how);
        }
    }

    /// The hub is lost.
    fn lose(&mut self, how: String) {
        let reason = self.shared.change(|state| {
            // After its last word the hub may go.
            let record = state.records.first_mut().filter(|_| !state.released)?;
            Some(record.lose(0, how))
        });
        if let Some(reason) = reason {
            self.shared.fate.seal(reason);
        }
    }

    /// Tells the hub when this process has given up by itself.
    fn give_up(&mut self) {
        let Stage::Joined(link) = &mut self.stage else { return };
        if !self.told
            && let Some(reason) = self.shared.fate.sealed()
        {
            link.tell(&Message::Abort(fitting(reason)));
            self.told = true;
        }
    }

    fn give_sign_of_life(&mut self, deadline: Duration) {
        let due =
            self.deadline != deadline || self.last_beat.is_none_or(|at| at.elapsed() >= interval(deadline));
        let Stage::Joined(link) = &mut self.stage else { return };
        // What a silent hub does not read is not added to.
        if due && link.is_flushed() {
            link.tell(&Message::Beat(self.shared.beat(deadline)));
            self.last_beat = Some(Instant::now());
            self.deadline = deadline;
        }
    }

    fn part(&mut self, end: End) {
        let Stage::Joined(link) = &mut self.stage else { return };
        if end == End::Leave {
            link.tell(&Message::Goodbye);
        }
        let since = Instant::now();
        part_from(&mut [link], || {
            std::thread::sleep(BRISK);
            since.elapsed() < PARTING
        });
    }
}
