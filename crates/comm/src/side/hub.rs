//! Rank 0's side thread.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::frame::{Key, Nonce, Way};
use super::link::{Link, part_from};
use super::message::{Hello, Message, Whom, fitting};
use super::record::Presence;
use super::{BRISK, End, HANDSHAKE, PARTING, Pulse, Shared, Wish, interval, pause};
use crate::{AbortReason, Error, Result};

/// Connections that have not yet shown that they know the secret.
const STRANGERS: usize = 64;
/// When there are that many, those make place for new ones that have not answered for so long.
const PLACE_AFTER: Duration = Duration::from_millis(100);

struct Stranger {
    link: Link,
    challenge: Nonce,
    since: Instant,
}

/// What the hub does with a stranger.
enum Admission {
    Wait,
    Drop,
    Admit(Hello),
}

pub(super) struct Hub {
    shared: Arc<Shared>,
    secret: Key,
    /// Until all have joined.
    listener: Option<TcpListener>,
    challenges: u64,
    strangers: Vec<Stranger>,
    /// By rank; none for rank 0, and for who is gone.
    links: Vec<Option<Link>>,
    verdict: Option<AbortReason>,
    released: bool,
    last_beat: Option<Instant>,
}

impl Hub {
    pub(super) fn open(shared: Arc<Shared>, bind: IpAddr, secret: Key) -> Result<(Hub, SocketAddr)> {
        let refused = |e: std::io::Error| {
            Error::Side(format!(
                "cannot listen at {bind}: {e}; it must be an address of rank 0's machine that the others reach"
            ))
        };
        let listener = TcpListener::bind((bind, 0)).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let links = (0..shared.world).map(|_| None).collect();
        let hub = Hub {
            shared,
            secret,
            listener: Some(listener),
            challenges: 0,
            strangers: Vec::new(),
            links,
            verdict: None,
            released: false,
            last_beat: None,
        };
        Ok((hub, address))
    }

    /// Serves the channel until its process wants to end it.
    pub(super) fn run(mut self) {
        let whom = Whom::me();
        self.shared.change(|state| state.records.iter_mut().take(1).for_each(|r| r.arrive(whom.clone())));
        let mut pulse = Pulse::new();
        let mut nap = BRISK;
        loop {
            pulse.rest();
            let wish = self.shared.sleep(nap);
            let overslept = pulse.overslept(nap);
            self.admit(&whom);
            self.listen_to_ranks(wish.deadline, overslept);
            self.judge();
            self.give_sign_of_life(wish.deadline);
            self.release(&wish);
            if let Some(end) = wish.end {
                self.part(end);
                break;
            }
            self.links.iter_mut().flatten().for_each(Link::flush);
            nap = self.nap(wish.deadline);
        }
        self.shared.change(|state| state.ended = true);
    }

    fn nap(&self, deadline: Duration) -> Duration {
        let busy = self.listener.is_some() || (self.verdict.is_some() && !self.released);
        // A look at every connection takes about a microsecond each.
        let looks = Duration::from_micros(5) * self.shared.world;
        looks + if busy { BRISK } else { pause(deadline) }
    }

    /// Lets strangers in that belong to the job.
    fn admit(&mut self, whom: &Whom) {
        self.accept();
        let mut i = 0;
        while let Some(stranger) = self.strangers.get_mut(i) {
            match self.shared.examine(stranger) {
                Admission::Wait => i += 1,
                Admission::Drop => drop(self.strangers.swap_remove(i)),
                Admission::Admit(hello) => {
                    let Stranger { mut link, challenge, .. } = self.strangers.swap_remove(i);
                    link.rekey(self.secret.of_session(&challenge, &hello.answer, hello.rank));
                    link.trust();
                    link.tell(&Message::Welcome(whom.clone()));
                    if let Some(reason) = &self.verdict {
                        link.tell(&Message::Abort(reason.clone()));
                    }
                    self.welcome(hello, link);
                }
            }
        }
        if self.listener.is_some() && self.shared.change(|state| state.ready) {
            // Nobody else may come.
            self.listener = None;
            self.strangers.clear();
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        // Errors are those of one connection, or of too many open files: it is tried again next time.
        for _ in 0..STRANGERS {
            if self.strangers.len() >= STRANGERS {
                let Some(slow) = self.strangers.iter().position(|s| s.since.elapsed() > PLACE_AFTER) else {
                    break;
                };
                self.strangers.swap_remove(slow);
            }
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {
                    continue;
                }
                Err(_) => break,
            };
            let challenge = self.secret.challenge(self.challenges);
            self.challenges += 1;
            let Ok(mut link) = Link::new(stream, self.secret.of_challenge(), Way::FromHub) else { continue };
            link.send(&challenge);
            link.flush();
            link.rekey(self.secret.of_hello(&challenge));
            self.strangers.push(Stranger { link, challenge, since: Instant::now() });
        }
    }

    fn welcome(&mut self, hello: Hello, link: Link) {
        let Some(place) = self.links.get_mut(hello.rank as usize) else { return };
        *place = Some(link);
        self.shared.change(|state| {
            if let Some(record) = state.records.get_mut(hello.rank as usize) {
                record.arrive(hello.whom);
            }
            state.ready = state.records.iter().all(|r| r.presence != Presence::Absent);
        });
    }

    /// Reads what the ranks have said, and finds out who is lost.
    fn listen_to_ranks(&mut self, deadline: Duration, overslept: Duration) {
        let mut abort = None;
        let links = &mut self.links;
        let alone = links.len() == 1;
        self.shared.change(|state| {
            state.ready |= alone;
            for ((rank, place), record) in (0..).zip(links.iter_mut()).zip(&mut state.records) {
                let Some(link) = place else { continue };
                record.excuse(overslept);
                link.fill();
                while let Some(message) = link.message() {
                    record.hear();
                    match message {
                        Message::Beat(beat) => record.beats(beat),
                        Message::Abort(reason) => abort = abort.take().or(Some(reason)),
                        Message::Status(status) => record.status = Some(status),
                        Message::Goodbye => record.presence = Presence::Left,
                        // No rank says these.
                        Message::Welcome(_) | Message::Released => {}
                    }
                }
                let closed = link.end().map(str::to_string);
                // A link to a silent process is kept: should it go on, it learns what has happened.
                let lost = closed.clone().or_else(|| record.silence(deadline));
                if record.is_here()
                    && let Some(how) = lost
                {
                    let reason = record.lose(rank, how);
                    abort = abort.take().or(Some(reason));
                }
                if closed.is_some() || record.presence == Presence::Left {
                    *place = None;
                }
            }
        });
        if let Some(reason) = abort {
            self.shared.fate.seal(reason);
        }
    }

    /// Tells all of the first reason.
    fn judge(&mut self) {
        if self.verdict.is_some() {
            return;
        }
        let Some(reason) = self.shared.fate.sealed().map(fitting) else { return };
        self.tell_all(&Message::Abort(reason.clone()));
        self.shared.change(|state| state.verdict = Some((reason.clone(), Instant::now())));
        self.verdict = Some(reason);
    }

    fn give_sign_of_life(&mut self, deadline: Duration) {
        if self.last_beat.is_some_and(|at| at.elapsed() < interval(deadline)) {
            return;
        }
        self.last_beat = Some(Instant::now());
        let beat = Message::Beat(self.shared.beat(deadline));
        // Who does not read gets no more to read.
        self.links.iter_mut().flatten().filter(|l| l.is_flushed()).for_each(|link| link.tell(&beat));
    }

    fn release(&mut self, wish: &Wish) {
        if !wish.release || self.released {
            return;
        }
        self.tell_all(&Message::Released);
        self.links.iter_mut().flatten().for_each(Link::flush);
        self.released = true;
        self.shared.change(|state| state.released = true);
    }

    fn tell_all(&mut self, message: &Message) {
        self.links.iter_mut().flatten().for_each(|link| link.tell(message));
    }

    fn part(&mut self, end: End) {
        if end == End::Leave {
            self.tell_all(&Message::Goodbye);
        }
        let mut links: Vec<&mut Link> = self.links.iter_mut().flatten().collect();
        let since = Instant::now();
        part_from(&mut links, || {
            std::thread::sleep(BRISK);
            since.elapsed() < PARTING
        });
    }
}

impl Shared {
    fn examine(&self, stranger: &mut Stranger) -> Admission {
        let link = &mut stranger.link;
        link.flush();
        link.fill();
        let Some(payload) = link.payload() else {
            let over = link.end().is_some() || stranger.since.elapsed() > HANDSHAKE;
            return if over { Admission::Drop } else { Admission::Wait };
        };
        // It knows the secret, but it may still be of another world, or come twice.
        let Ok(hello) = serde_json::from_slice::<Hello>(&payload) else {
            return Admission::Drop;
        };
        let expected = hello.rank != 0
            && hello.world == self.world
            && self.change(|state| {
                state.records.get(hello.rank as usize).is_some_and(|r| r.presence == Presence::Absent)
            });
        if expected { Admission::Admit(hello) } else { Admission::Drop }
    }
}
