//! The side channel: how the processes of a job know that the others are alive, tell each other of a
//! failure, and make one report of it, also when what they compute over is stuck.
//!
//! It is a star of TCP connections apart from MPI: rank 0 is the hub, all others connect to it. In each
//! process one thread serves it, without ever waiting for a socket, so a stopped peer holds up nobody. Every
//! frame is signed with the job's secret ([`frame`]), and a connection begins with a challenge; what does not
//! fit is dropped, unparsed. Once all ranks have come, the hub listens no more.
//!
//! A process is lost when its connection closes without a goodbye, or when nothing was heard of it for
//! longer than the deadline. The first reason that the hub learns of is the verdict for all.

mod client;
mod frame;
mod hub;
mod interface;
mod link;
mod message;
mod record;
mod report;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::signal::{Poison, lock};
use crate::{AbortKind, AbortReason, Deadline, Error, Result, Whereabouts};
use frame::{Key, Nonce};
use message::{Beat, Status, fitting};
use record::{Presence, Record};

pub use interface::{host_name, interface_towards};

/// What a failure ends in this process.
pub trait Fate: Send + Sync {
    /// Ends all waits with `reason`, unless an earlier one has. Returns whether this was the first.
    fn seal(&self, reason: AbortReason) -> bool;

    /// The first reason.
    fn sealed(&self) -> Option<AbortReason>;
}

impl Fate for Poison {
    fn seal(&self, reason: AbortReason) -> bool {
        self.set(reason, None)
    }

    fn sealed(&self) -> Option<AbortReason> {
        self.reason()
    }
}

/// What rank 0 tells all others through MPI: where to connect, and the job's secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Where the hub listens; the first that answers is taken.
    pub addresses: Vec<SocketAddr>,
    secret: [u8; 32],
}

impl Invitation {
    /// For a broadcast. Whoever reads it can join the job.
    pub fn to_bytes(&self) -> Vec<u8> {
        let addresses: Vec<String> = self.addresses.iter().map(SocketAddr::to_string).collect();
        [&self.secret[..], addresses.join(" ").as_bytes()].concat()
    }

    /// Reads what [`Invitation::to_bytes`] has written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Invitation> {
        let wrong = || Error::Side(format!("has an invitation of {} bytes that cannot be read", bytes.len()));
        let (secret, addresses) = bytes.split_first_chunk::<32>().ok_or_else(wrong)?;
        let addresses = std::str::from_utf8(addresses).map_err(|_| wrong())?;
        let addresses: std::result::Result<Vec<SocketAddr>, _> =
            addresses.split_whitespace().map(str::parse).collect();
        match addresses {
            Ok(addresses) if !addresses.is_empty() => Ok(Invitation { addresses, secret: *secret }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invitation({:?}, a secret)", self.addresses)
    }
}

/// How patient the side channel is.
#[derive(Debug, Clone)]
pub struct Options {
    /// After how much silence a process is lost.
    pub deadline: Duration,
    /// How long the hub collects last words after a failure.
    pub grace: Duration,
}

/// What is known of a failure afterwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PostMortem {
    /// The reason on which all processes agree: the first that the hub has learnt of. `None` without a failure.
    pub reason: Option<AbortReason>,
    /// What is to be printed below the error; empty, or lines that each end with a line feed.
    pub report: String,
}

/// What the process asks of its side thread.
#[derive(Debug, Clone)]
struct Wish {
    deadline: Duration,
    release: bool,
    end: Option<End>,
    nudged: bool,
}

/// How the side thread ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With a goodbye.
    Leave,
    /// Without one: the process fails.
    Stop,
}

/// What the side thread tells its process.
#[derive(Debug)]
struct State {
    /// On the hub all ranks, itself first; elsewhere only rank 0.
    records: Vec<Record>,
    /// All have come; elsewhere: the hub has said welcome.
    ready: bool,
    /// The hub's verdict, and since when it is known here.
    verdict: Option<(AbortReason, Instant)>,
    /// The hub has told what there was to tell.
    released: bool,
    /// Why the last attempt to connect failed.
    trouble: Option<String>,
    /// The side thread is gone.
    ended: bool,
}

/// What the side thread and its process have in common.
struct Shared {
    rank: u32,
    world: u32,
    grace: Duration,
    fate: Arc<dyn Fate>,
    here: Arc<Whereabouts>,
    wish: Mutex<Wish>,
    wake: Condvar,
    state: Mutex<State>,
    bell: Condvar,
}

impl Shared {
    fn new(rank: u32, world: u32, options: Options, fate: Arc<dyn Fate>, here: Arc<Whereabouts>) -> Self {
        let records = if rank == 0 { world } else { 1 };
        Shared {
            rank,
            world,
            grace: options.grace,
            fate,
            here,
            wish: Mutex::new(Wish { deadline: options.deadline, release: false, end: None, nudged: false }),
            wake: Condvar::new(),
            state: Mutex::new(State {
                records: vec![Record::absent(); records as usize],
                ready: false,
                verdict: None,
                released: false,
                trouble: None,
                ended: false,
            }),
            bell: Condvar::new(),
        }
    }

    /// Changes what is wished, and wakes the side thread for it.
    fn ask(&self, change: impl FnOnce(&mut Wish)) {
        let mut wish = lock(&self.wish);
        change(&mut wish);
        wish.nudged = true;
        self.wake.notify_all();
    }

    /// For the side thread: sleeps, unless there is a new wish. Returns what is wished now.
    fn sleep(&self, most: Duration) -> Wish {
        let wish = lock(&self.wish);
        let (mut wish, _) = self
            .wake
            .wait_timeout_while(wish, most, |w| !w.nudged && w.end.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        wish.nudged = false;
        wish.clone()
    }

    /// For the side thread: changes the state and wakes who waits for it.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut lock(&self.state));
        self.bell.notify_all();
        result
    }

    /// Waits until `done` gives something; `None` when the deadline has passed.
    fn wait<R>(&self, deadline: Deadline, mut done: impl FnMut(&mut State) -> Option<R>) -> Option<R> {
        let mut state: MutexGuard<'_, State> = lock(&self.state);
        loop {
            if let Some(result) = done(&mut state) {
                return Some(result);
            }
            // Not longer than this, as other things than the state end a wait, too.
            let nap = deadline.remaining().unwrap_or(NAP).min(NAP);
            if nap.is_zero() {
                return None;
            }
            state = self.bell.wait_timeout(state, nap).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn beat(&self, deadline: Duration) -> Beat {
        Beat::of(&self.here, interval(deadline))
    }

    fn whom_of_hub(&self) -> String {
        let state = lock(&self.state);
        let whom = state.records.first().and_then(|r| r.whom.as_ref());
        whom.map(|w| format!(" ({}, pid {})", w.host, w.pid)).unwrap_or_default()
    }
}

/// How long waits for the side thread sleep at most.
const NAP: Duration = Duration::from_millis(10);
/// How often the side thread looks at its connections at the start, and after a failure.
const BRISK: Duration = Duration::from_millis(2);
/// What the other side has to answer a challenge, or a hello.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// What a goodbye, or a last word, may take to get through.
const PARTING: Duration = Duration::from_millis(500);

/// How often signs of life are given.
fn interval(deadline: Duration) -> Duration {
    (deadline / 10).clamp(Duration::from_millis(50), Duration::from_secs(2))
}

/// How often the side thread looks at its connections while nothing happens.
fn pause(deadline: Duration) -> Duration {
    (interval(deadline) / 4).min(Duration::from_millis(50))
}

/// Measures how much longer than expected a thread did not run, because the process was stopped or starved.
struct Pulse(Instant);

impl Pulse {
    fn new() -> Self {
        Pulse(Instant::now())
    }

    /// To be called after a sleep of at most `pause`: the time by which it was longer.
    fn overslept(&self, pause: Duration) -> Duration {
        self.0.elapsed().saturating_sub(pause * 2)
    }

    /// To be called before a sleep.
    fn rest(&mut self) {
        self.0 = Instant::now();
    }
}

/// Bytes that nobody can guess.
fn random() -> Result<Nonce> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).map_err(|e| {
        Error::Side(format!("needs random bytes for its secret, but /dev/urandom cannot be read: {e}"))
    })?;
    Ok(bytes)
}

/// A process's end of the side channel. Dropped without [`Side::leave`], it is a lost peer to the others.
pub struct Side {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Side(rank {} of {})", self.shared.rank, self.shared.world)
    }
}

impl Side {
    /// Opens the side channel of a job of `world` processes. To be called by rank 0. It listens at `bind`, on
    /// a port that the system chooses, until all others have joined.
    pub fn host(
        world: u32,
        bind: IpAddr,
        options: Options,
        fate: Arc<dyn Fate>,
        here: Arc<Whereabouts>,
    ) -> Result<(Side, Invitation)> {
        if world == 0 || bind.is_unspecified() {
            let why = format!(
                "cannot be opened at {bind} for {world} ranks: it needs one address of this machine that \
                 the others reach, and a rank"
            );
            return Err(Error::Side(why));
        }
        let secret = random()?;
        let shared = Arc::new(Shared::new(0, world, options, fate, here));
        let (hub, address) = hub::Hub::open(shared.clone(), bind, Key::new(secret))?;
        let side = Side::start(shared, move || hub.run())?;
        Ok((side, Invitation { addresses: vec![address], secret }))
    }

    /// Joins the side channel that rank 0 has opened. Returns at once; see [`Side::wait_ready`].
    pub fn join(
        rank: u32,
        world: u32,
        invitation: &Invitation,
        options: Options,
        fate: Arc<dyn Fate>,
        here: Arc<Whereabouts>,
    ) -> Result<Side> {
        if rank == 0 || rank >= world {
            return Err(Error::Side(format!(
                "cannot be joined by rank {rank} of {world}: rank 0 opens it, ranks from 1 join"
            )));
        }
        let answer = random()?;
        let shared = Arc::new(Shared::new(rank, world, options, fate, here));
        let key = Key::new(invitation.secret);
        let client = client::Client::new(shared.clone(), invitation.addresses.clone(), key, answer);
        Side::start(shared, move || client.run())
    }

    fn start(shared: Arc<Shared>, serve: impl FnOnce() + Send + 'static) -> Result<Side> {
        let rank = shared.rank;
        let thread = thread::Builder::new()
            .name(format!("side-{rank}"))
            .spawn(serve)
            .map_err(|e| Error::Side(format!("of rank {rank} cannot start its thread: {e}")))?;
        Ok(Side { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Waits until all ranks have joined; elsewhere than on rank 0: until rank 0 has said welcome. When they
    /// do not, rank 0 tells those that have.
    pub fn wait_ready(&self, deadline: Deadline) -> Result<()> {
        let shared = &self.shared;
        let ready = shared.wait(deadline, |state| match shared.fate.sealed() {
            Some(reason) => Some(Err(Error::Aborted { reason })),
            None => state.ready.then_some(Ok(())),
        });
        ready.unwrap_or_else(|| {
            let allowed = report::seconds(deadline.allowed());
            let (missing, trouble) = {
                let state = lock(&shared.state);
                let missing = state.records.iter().zip(0..).skip(1);
                let missing = missing.filter(|(r, _)| r.presence == Presence::Absent).map(|(_, rank)| rank);
                (missing.collect::<BTreeSet<u32>>(), state.trouble.clone())
            };
            let why = if shared.rank == 0 {
                format!(
                    "of rank 0 was not joined by {} within {allowed}: is there a firewall, or an address \
                     that they do not reach?",
                    report::ranks(&missing)
                )
            } else {
                format!(
                    "of rank {} was not welcomed by rank 0 within {allowed}{}",
                    shared.rank,
                    trouble.map(|t| format!(": {t}")).unwrap_or_default()
                )
            };
            if shared.rank == 0 {
                self.abort(AbortReason::new(0, AbortKind::Communication, format!("the side channel {why}")));
            }
            Err(Error::Side(why))
        })
    }

    /// Changes after how much silence a process is lost, once the configuration is known.
    pub fn set_deadline(&self, deadline: Duration) {
        self.shared.ask(|wish| wish.deadline = deadline);
    }

    /// Ends all waits of this process, and tells all others. Never waits itself.
    pub fn abort(&self, reason: AbortReason) {
        self.shared.fate.seal(fitting(reason));
        // The side thread finds the fate sealed.
        self.shared.ask(|_| ());
    }

    /// What is known of a failure; to be called after one. On rank 0: collects the others' last words and
    /// makes the report, which is to be printed before [`Side::release`]. Elsewhere: waits until rank 0 has
    /// done that; there is no report then, only a line when rank 0 is lost. Takes `limit` at most. Without
    /// a failure it returns at once.
    pub fn post_mortem(&self, limit: Duration) -> PostMortem {
        let shared = &self.shared;
        let Some(own) = shared.fate.sealed() else {
            return PostMortem::default();
        };
        shared.ask(|_| ());
        let deadline = Deadline::after(limit);
        if shared.rank == 0 { self.collect(own, deadline) } else { self.wait_for_release(own, deadline) }
    }

    fn collect(&self, own: AbortReason, deadline: Deadline) -> PostMortem {
        let shared = &self.shared;
        // Whether all have spoken or their time is over, does not matter for what is reported.
        let _ = shared.wait(deadline, |state| {
            let Some((_, since)) = &state.verdict else { return state.ended.then_some(()) };
            let silent = state.records.iter().skip(1).any(|r| r.is_here() && r.status.is_none());
            (!silent || since.elapsed() >= shared.grace || state.ended).then_some(())
        });
        let own_words = report::Word::Last(Status::of(&shared.here));
        let others: Vec<report::Word> =
            lock(&shared.state).records.iter().skip(1).map(Record::word).collect();
        let words: Vec<report::Word> = [own_words].into_iter().chain(others).collect();
        PostMortem { report: report::report(&own, &words), reason: Some(own) }
    }

    fn wait_for_release(&self, own: AbortReason, deadline: Deadline) -> PostMortem {
        let shared = &self.shared;
        let lost = shared.wait(deadline, |state| {
            let presence = state.records.first().map(|r| &r.presence);
            match presence {
                _ if state.released => Some(None),
                Some(Presence::Lost(how)) => Some(Some(how.clone())),
                Some(Presence::Left) => Some(None),
                _ => state.ended.then_some(None),
            }
        });
        let report = lost.flatten().map(|how| {
            let line = report::line(shared.rank, &Status::of(&shared.here));
            format!("rank 0{} is lost, so there is no full report: {how}\n{line}\n", shared.whom_of_hub())
        });
        let verdict = lock(&shared.state).verdict.as_ref().map(|(reason, _)| reason.clone());
        PostMortem { reason: verdict.or(Some(own)), report: report.unwrap_or_default() }
    }

    /// On rank 0, after the report is out: lets all others go. Returns once they are told, or half a second
    /// later.
    pub fn release(&self) {
        if self.shared.rank == 0 {
            self.shared.ask(|wish| wish.release = true);
            let deadline = Deadline::after(PARTING);
            let _ = self.shared.wait(deadline, |state| (state.released || state.ended).then_some(()));
        }
    }

    /// Ends the side channel in good order: the others learn that this process is done.
    pub fn leave(&self) {
        self.end(End::Leave);
    }

    fn end(&self, end: End) {
        let Some(thread) = lock(&self.thread).take() else { return };
        self.shared.ask(|wish| wish.end = Some(end));
        // A panic of the side thread is no reason for one more.
        let _ = thread.join();
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.end(End::Stop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_travels_and_keeps_its_secret() {
        let addresses = vec!["127.0.0.1:4100".parse().unwrap(), "[::1]:4200".parse().unwrap()];
        let invitation = Invitation { addresses, secret: [251; 32] };
        let bytes = invitation.to_bytes();
        assert_eq!(Invitation::from_bytes(&bytes).unwrap(), invitation);
        for bytes in [&bytes[..31], &bytes[..32], &bytes[..bytes.len() - 5], b""] {
            assert!(Invitation::from_bytes(bytes).is_err());
        }
        let shown = format!("{invitation:?}");
        assert!(shown.contains("127.0.0.1:4100") && !shown.contains("251"), "{shown}");
    }

    #[test]
    fn last_words_tell_the_calls_of_a_rank_that_hangs() {
        let options = Options { deadline: Duration::from_secs(60), grace: Duration::from_secs(10) };
        let fates: [Arc<Poison>; 2] = Default::default();
        let heres: [Arc<Whereabouts>; 2] = Default::default();
        let bind = IpAddr::from([127, 0, 0, 1]);
        let (hub, invitation) =
            Side::host(2, bind, options.clone(), fates[0].clone(), heres[0].clone()).unwrap();
        let other = Side::join(1, 2, &invitation, options, fates[1].clone(), heres[1].clone()).unwrap();
        hub.wait_ready(Deadline::after(Duration::from_secs(10))).unwrap();
        for (here, size) in heres.iter().zip([4, 5]) {
            here.begin_call("collective", 0, move || format!("sum of {size} f32"));
        }
        heres[1].begin_call("control call", 0, || "barrier".into());
        // Nothing else of rank 1 runs: its side thread answers.
        hub.abort(AbortReason::new(0, AbortKind::Communication, "the sum takes too long"));
        let told = hub.post_mortem(Duration::from_secs(10)).report;
        hub.release();
        let waits = "  rank 1 waits in control call 0 for rank 0\n";
        let differs = "what differs:\n  collective 0: rank 0 began sum of 4 f32; rank 1 began sum of 5 f32\n";
        assert!(told.contains(waits) && told.ends_with(differs), "{told}");
        assert!(other.post_mortem(Duration::from_secs(10)).report.is_empty());
    }

    #[test]
    fn signs_of_life_are_as_frequent_as_the_deadline_asks() {
        let ms = Duration::from_millis;
        assert_eq!(interval(ms(100)), ms(50));
        assert_eq!(interval(ms(5000)), ms(500));
        assert_eq!(interval(ms(600_000)), ms(2000));
        assert_eq!(pause(ms(100)), ms(12) + Duration::from_micros(500));
        assert_eq!(pause(ms(600_000)), ms(50));
    }
}
