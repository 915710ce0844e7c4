//! The side channel over real sockets: who learns of what, how soon, and what strangers can do.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use phalanx_comm::side::{Fate, Invitation, Options, PostMortem, Side};
use phalanx_comm::{AbortKind, AbortReason, Activity, Deadline, Error, Whereabouts};

/// No test waits longer for what must come at once.
const SOON: Duration = Duration::from_secs(10);
/// A deadline that no test reaches.
const LONG: Duration = Duration::from_secs(60);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[derive(Default)]
struct Doom(OnceLock<AbortReason>);

impl Fate for Doom {
    fn seal(&self, reason: AbortReason) -> bool {
        self.0.set(reason).is_ok()
    }

    fn sealed(&self) -> Option<AbortReason> {
        self.0.get().cloned()
    }
}

/// One process.
struct Rank {
    side: Side,
    doom: Arc<Doom>,
    here: Arc<Whereabouts>,
}

fn options(deadline: Duration) -> Options {
    Options { deadline, grace: Duration::from_millis(300) }
}

fn host(world: u32, deadline: Duration) -> (Rank, Invitation) {
    let (doom, here) = (Arc::new(Doom::default()), Arc::new(Whereabouts::default()));
    let (side, invitation) = Side::host(world, LOCAL, options(deadline), doom.clone(), here.clone()).unwrap();
    (Rank { side, doom, here }, invitation)
}

fn join_at(rank: u32, world: u32, invitation: &Invitation, deadline: Duration) -> Rank {
    let (doom, here) = (Arc::new(Doom::default()), Arc::new(Whereabouts::default()));
    here.at_step(Some(u64::from(rank) + 40));
    here.enter(Activity::Loader);
    let side = Side::join(rank, world, invitation, options(deadline), doom.clone(), here.clone()).unwrap();
    Rank { side, doom, here }
}

fn ready(ranks: &[Rank]) {
    ranks.iter().for_each(|r| r.side.wait_ready(Deadline::after(SOON)).unwrap());
}

fn job(world: u32, deadline: Duration) -> Vec<Rank> {
    let (hub, invitation) = host(world, deadline);
    let others = (1..world).map(|rank| join_at(rank, world, &invitation, deadline));
    let ranks: Vec<Rank> = [hub].into_iter().chain(others).collect();
    ready(&ranks);
    ranks
}

/// Waits until something is so.
fn until<R>(what: &str, mut is: impl FnMut() -> Option<R>) -> R {
    let since = Instant::now();
    loop {
        if let Some(result) = is() {
            return result;
        }
        assert!(since.elapsed() < SOON, "{what} within {SOON:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

impl Rank {
    fn reason(&self) -> AbortReason {
        until("an abort", || self.doom.sealed())
    }

    fn fine(&self) {
        assert_eq!(self.doom.sealed(), None);
    }
}

/// Post-mortems of all ranks; the hub's report is out when it says so.
fn post_mortems(ranks: &[Rank], limit: Duration) -> Vec<PostMortem> {
    thread::scope(|scope| {
        let each = ranks.iter().enumerate().map(|(rank, r)| {
            scope.spawn(move || {
                r.reason();
                let told = r.side.post_mortem(limit);
                if rank == 0 {
                    r.side.release();
                }
                told
            })
        });
        each.collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// A link that can be cut: nothing gets through, nothing is closed. Records what a rank sends.
struct Wire {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<u8>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    fn towards(hub: SocketAddr) -> Wire {
        let listener = TcpListener::bind((LOCAL, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, over, heard) = <(Arc<AtomicBool>, Arc<AtomicBool>, Arc<Mutex<Vec<u8>>>)>::default();
        let mut wire = Wire { address, cut, over, heard, threads: Vec::new() };
        let (cut, over, heard) = (wire.cut.clone(), wire.over.clone(), wire.heard.clone());
        wire.threads.push(thread::spawn(move || {
            let (near, _) = listener.accept().unwrap();
            let far = TcpStream::connect(hub).unwrap();
            let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            let (cut_too, over_too) = (cut.clone(), over.clone());
            let back = thread::spawn(move || pump(far_too, near_too, &cut_too, &over_too, |_| ()));
            pump(near, far, &cut, &over, |bytes| heard.lock().unwrap().extend_from_slice(bytes));
            back.join().unwrap();
        }));
        wire
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }
}

fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    cut: &AtomicBool,
    over: &AtomicBool,
    mut heard: impl FnMut(&[u8]),
) {
    from.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let mut bytes = [0; 4096];
    while !over.load(Ordering::SeqCst) {
        if cut.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(2));
            continue;
        }
        match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => {
                heard(&bytes[..n]);
                if to.write_all(&bytes[..n]).is_err() {
                    break;
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|t| t.join().unwrap());
    }
}

fn through(wire: &Wire, invitation: &Invitation) -> Invitation {
    let mut invitation = invitation.clone();
    invitation.addresses = vec![wire.address];
    invitation
}

/// Three ranks, of which rank 1 is connected through the wire.
fn job_with_wire(deadline: Duration) -> (Vec<Rank>, Wire) {
    let (hub, invitation) = host(3, deadline);
    let wire = Wire::towards(invitation.addresses[0]);
    let first = join_at(1, 3, &through(&wire, &invitation), deadline);
    let second = join_at(2, 3, &invitation, deadline);
    let ranks = vec![hub, first, second];
    ready(&ranks);
    (ranks, wire)
}

fn threads_called(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("comm")).ok());
    names.filter(|n| n.trim() == name).count()
}

#[test]
fn ranks_that_leave_in_any_order_are_not_lost_and_leave_nothing_behind() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let ranks = job(4, LONG);
        for rank in order {
            ranks[rank].side.leave();
            thread::sleep(Duration::from_millis(20));
        }
        ranks.iter().for_each(Rank::fine);
        // Once more does no harm, and there is nothing to report.
        ranks[1].side.leave();
        assert_eq!(ranks[1].side.post_mortem(SOON), PostMortem::default());
    }
    // No other test has a rank of this number.
    let (hub, invitation) = host(78, LONG);
    let last = join_at(77, 78, &invitation, LONG);
    last.side.wait_ready(Deadline::after(SOON)).unwrap();
    assert_eq!(threads_called("side-77"), 1);
    drop((hub, last));
    assert_eq!(threads_called("side-77"), 0);
    assert!(TcpStream::connect(invitation.addresses[0]).is_err());
}

#[test]
fn one_rank_alone_has_a_side_channel_too() {
    let ranks = job(1, LONG);
    let reason = AbortReason::new(0, AbortKind::Other, "the disk is full");
    ranks[0].side.abort(reason.clone());
    let told = ranks[0].side.post_mortem(SOON);
    assert_eq!(told.reason, Some(reason));
    assert!(told.report.starts_with("where the ranks are:\n> rank 0"), "{}", told.report);
}

#[test]
fn an_abort_of_any_rank_reaches_all_with_its_reason() {
    for who in 0..4u32 {
        let ranks = job(4, LONG);
        let reason = AbortReason::new(who, AbortKind::Numerics, "the loss is not finite").at_step(7);
        let since = Instant::now();
        ranks[who as usize].side.abort(reason.clone());
        assert!(since.elapsed() < Duration::from_secs(1), "an abort never waits");
        assert!(ranks.iter().all(|r| r.reason() == reason));
        let told = post_mortems(&ranks, SOON);
        assert!(since.elapsed() < SOON);
        assert!(told.iter().all(|t| t.reason.as_ref() == Some(&reason)));
        assert!(told[1..].iter().all(|t| t.report.is_empty()));
        for rank in 1..4u32 {
            let place = format!("in the loader at step {}, for ", rank + 40);
            let line = told[0].report.lines().find(|l| l.contains(&format!("rank {rank} "))).unwrap();
            assert!(line.contains(&place) && line.contains(&format!("pid {}", std::process::id())), "{line}");
            assert_eq!(line.starts_with('>'), rank == who, "{line}");
        }
    }
}

#[test]
fn a_reason_of_any_length_gets_through() {
    for who in 0..2 {
        let ranks = job(3, LONG);
        // As a transport may do that has found the failure itself.
        let message = "long ".repeat(1 << 18);
        ranks[who].doom.seal(AbortReason::new(who as u32, AbortKind::Other, message.clone()));
        let told = ranks[2].reason();
        assert_eq!((told.rank, told.kind), (who as u32, AbortKind::Other));
        assert!(told.message.len() > 1000 && message.starts_with(told.message.trim_end_matches('…')));
    }
}

#[test]
fn of_many_aborts_at_once_the_first_is_everybody_s_verdict() {
    for _ in 0..5 {
        let ranks = job(6, LONG);
        let own = |rank: usize| AbortReason::new(rank as u32, AbortKind::Data, format!("record {rank}"));
        thread::scope(|scope| {
            for (rank, r) in ranks.iter().enumerate() {
                scope.spawn(move || r.side.abort(own(rank)));
            }
        });
        let told = post_mortems(&ranks, SOON);
        let verdict = ranks[0].reason();
        assert!(told.iter().all(|t| t.reason.as_ref() == Some(&verdict)), "{told:?}");
        // What a process has learnt first, stays.
        let held = ranks.iter().map(Rank::reason).enumerate();
        held.for_each(|(rank, held)| assert!(held == own(rank) || held == verdict, "{held}"));
    }
}

#[test]
fn a_connection_that_closes_without_a_goodbye_is_a_lost_peer() {
    let mut ranks = job(4, LONG);
    let dead = ranks.remove(2);
    // Without a goodbye, as when its process is killed.
    drop(dead);
    for rank in &ranks {
        let reason = rank.reason();
        assert_eq!((reason.rank, reason.kind, reason.step), (2, AbortKind::Communication, Some(42)));
        let message = &reason.message;
        assert!(message.contains(&format!("pid {}) is lost: its connection closed;", std::process::id())));
        assert!(message.ends_with("ago, in the loader"), "{message}");
    }
    let told = post_mortems(&ranks, SOON);
    let silent = "no answer, its connection closed; last seen ";
    assert!(told[0].report.lines().any(|l| l.starts_with("> rank 2") && l.contains(silent)), "{told:?}");
}

#[test]
fn a_cut_link_is_noticed_on_both_sides_after_the_deadline() {
    let deadline = Duration::from_millis(300);
    let (ranks, wire) = job_with_wire(LONG);
    // Known only now, as when it stands in the configuration.
    ranks.iter().for_each(|r| r.side.set_deadline(deadline));
    thread::sleep(deadline);
    ranks.iter().for_each(Rank::fine);
    wire.cut();
    let since = Instant::now();
    let (hub, first, second) = (ranks[0].reason(), ranks[1].reason(), ranks[2].reason());
    assert!(since.elapsed() > deadline / 2);
    assert_eq!((hub.rank, hub.step, first.rank), (1, Some(41), 0));
    assert_eq!(hub, second);
    for message in [&hub.message, &first.message] {
        assert!(message.contains("is lost: no sign of life for "), "{message}");
    }
    let told = post_mortems(&ranks, SOON);
    assert!(told[0].report.contains("> rank 1"), "{}", told[0].report);
    assert!(told[0].report.contains("no answer, no sign of life for "), "{}", told[0].report);
    assert!(told[1].report.contains("rank 0") && told[1].report.contains(" is lost, so there is no full"));
    assert!(told[1].report.contains("rank 1") && told[1].report.contains("in the loader at step 41"));
    assert_eq!(told[2], PostMortem { reason: Some(hub), report: String::new() });
}

#[test]
fn who_goes_on_after_a_silence_learns_of_the_verdict() {
    let (ranks, wire) = job_with_wire(LONG);
    // Only the hub is impatient; the rank itself does not think that anybody is lost.
    wire.cut();
    let reason = AbortReason::new(2, AbortKind::Panic, "a bug");
    ranks[2].side.abort(reason.clone());
    assert_eq!(ranks[0].reason(), reason);
    let since = Instant::now();
    let told = ranks[0].side.post_mortem(SOON);
    // Last words are waited for, but not for long.
    assert!(since.elapsed() >= Duration::from_millis(100) && since.elapsed() < SOON / 2);
    let silent = told.report.lines().find(|l| l.contains("rank 1 ")).unwrap().to_string();
    assert!(
        silent.contains("no answer; last seen ") && silent.contains("in the loader at step 41"),
        "{silent}"
    );
    ranks[1].fine();
    wire.cut.store(false, Ordering::SeqCst);
    assert_eq!(ranks[1].reason(), reason);
    ranks[0].side.release();
    assert_eq!(ranks[1].side.post_mortem(SOON).reason, Some(reason));
}

#[test]
fn a_peer_that_does_not_know_the_new_deadline_yet_is_not_lost() {
    let (hub, invitation) = host(2, LONG);
    let other = join_at(1, 2, &invitation, LONG);
    let ranks = [hub, other];
    ready(&ranks);
    ranks[0].side.set_deadline(Duration::from_millis(100));
    thread::sleep(Duration::from_millis(500));
    ranks.iter().for_each(Rank::fine);
}

#[test]
fn all_wait_until_the_report_is_out_or_the_hub_is_gone() {
    let mut ranks = job(3, LONG);
    let reason = AbortReason::new(1, AbortKind::Data, "a damaged record");
    ranks[1].side.abort(reason.clone());
    let limit = Duration::from_millis(200);
    assert_eq!(ranks[2].reason(), reason);
    let since = Instant::now();
    assert!(ranks[2].side.post_mortem(limit).report.is_empty());
    assert!(since.elapsed() >= limit, "the hub has released nobody");
    let hub = ranks.remove(0);
    let told = thread::scope(|scope| {
        let rank = &ranks[1];
        let waiting = scope.spawn(move || rank.side.post_mortem(LONG));
        drop(hub);
        waiting.join().unwrap()
    });
    assert!(since.elapsed() < SOON);
    assert_eq!(told.reason, Some(reason));
    assert!(told.report.starts_with("rank 0 ("), "{}", told.report);
    assert!(told.report.contains("its connection closed\nrank 2 ("), "{}", told.report);
}

#[test]
fn a_released_rank_does_not_mind_the_hub_s_end() {
    let mut ranks = job(2, LONG);
    ranks[0].side.abort(AbortReason::new(0, AbortKind::Data, "x"));
    let hub = ranks.remove(0);
    hub.side.post_mortem(SOON);
    hub.side.release();
    drop(hub);
    assert!(ranks[0].side.post_mortem(SOON).report.is_empty());
}

#[test]
fn who_has_not_come_is_named_and_who_has_come_is_told() {
    let (hub, invitation) = host(5, LONG);
    let second = join_at(2, 5, &invitation, LONG);
    second.side.wait_ready(Deadline::after(SOON)).unwrap();
    let error = hub.side.wait_ready(Deadline::after(Duration::from_millis(100))).unwrap_err();
    assert_eq!(error.kind(), AbortKind::Communication);
    let text = error.to_string();
    assert!(text.contains("was not joined by ranks 1, 3, 4 within 100 ms"), "{text}");
    assert!(second.reason().message.contains("ranks 1, 3, 4"));
    // Who comes late is told, too.
    let late = join_at(1, 5, &invitation, LONG);
    assert_eq!(late.reason(), second.reason());
    assert!(matches!(late.side.wait_ready(Deadline::after(SOON)), Err(Error::Aborted { .. })));
}

#[test]
fn bad_arguments_are_errors() {
    let make = |world, bind: &str| {
        let fate = Arc::new(Doom::default());
        Side::host(world, bind.parse().unwrap(), options(LONG), fate, Arc::default()).map(|_| ())
    };
    assert!(make(0, "127.0.0.1").is_err());
    assert!(make(2, "0.0.0.0").unwrap_err().to_string().contains("one address of this machine"));
    // From the range for documentation.
    assert!(make(2, "192.0.2.1").unwrap_err().to_string().contains("cannot listen at 192.0.2.1"));
    let (_hub, invitation) = host(2, LONG);
    for rank in [0, 2] {
        let fate = Arc::new(Doom::default());
        assert!(Side::join(rank, 2, &invitation, options(LONG), fate, Arc::default()).is_err());
    }
}

#[test]
fn two_hundred_ranks_agree() {
    let ranks = job(200, LONG);
    let reason = AbortReason::new(150, AbortKind::Other, "the disk is full");
    ranks[150].side.abort(reason.clone());
    let told = post_mortems(&ranks, SOON);
    assert!(told.iter().all(|t| t.reason.as_ref() == Some(&reason)));
    assert!(told[0].report.contains("> rank 150 "), "{}", told[0].report);
    assert!(!told[0].report.contains("no answer"), "{}", told[0].report);
}

/// Whether the hub closes the connection without a word beyond its challenge.
fn is_dropped(mut stream: TcpStream, within: Duration) -> bool {
    stream.set_read_timeout(Some(within)).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes.len() <= CHALLENGE,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

/// A frame with 32 bytes.
const CHALLENGE: usize = 12 + 32 + 32;

fn stranger(invitation: &Invitation) -> TcpStream {
    TcpStream::connect(invitation.addresses[0]).unwrap()
}

#[test]
fn strangers_are_dropped_and_nobody_notices() {
    let (hub, invitation) = host(4, LONG);
    let wire = Wire::towards(invitation.addresses[0]);
    let first = join_at(1, 4, &through(&wire, &invitation), LONG);
    first.side.wait_ready(Deadline::after(SOON)).unwrap();

    // Random bytes, of all sorts of lengths.
    let mut seed = 1u64;
    let mut random = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as u8
    };
    for len in [12, 44, 76, 1000, 100_000] {
        let mut stream = stranger(&invitation);
        let mut bytes: Vec<u8> = (0..len).map(|_| random()).collect();
        // A length that could be; the rest never is.
        bytes[..4].copy_from_slice(&[0; 4]);
        bytes.resize(bytes.len().max(44), 0);
        let _ = stream.write_all(&bytes);
        assert!(is_dropped(stream, SOON), "{len} random bytes");
    }
    // A huge length, and nothing behind it.
    for len in [1025, 64 * 1024, u32::MAX] {
        let mut stream = stranger(&invitation);
        stream.write_all(&len.to_le_bytes()).unwrap();
        assert!(is_dropped(stream, SOON), "a length of {len}");
    }
    // What another rank has said, to another challenge.
    let hello = wire.heard.lock().unwrap().clone();
    assert!(hello.len() > 100);
    let mut stream = stranger(&invitation);
    stream.write_all(&hello).unwrap();
    assert!(is_dropped(stream, SOON), "a replay");
    // The hub's own challenge, sent back.
    let mut stream = stranger(&invitation);
    let mut challenge = [0; CHALLENGE];
    stream.read_exact(&mut challenge).unwrap();
    stream.write_all(&challenge).unwrap();
    assert!(is_dropped(stream, SOON), "a reflection");
    // Who has the secret, but not a place.
    let short = Deadline::after(Duration::from_millis(300));
    let again = join_at(1, 4, &invitation, LONG);
    let beyond = join_at(7, 8, &invitation, LONG);
    // Who has another job's secret.
    let (_other_hub, mut other) = host(2, LONG);
    other.addresses.clone_from(&invitation.addresses);
    let astray = join_at(2, 4, &other, LONG);
    for wrong in [&again, &beyond, &astray] {
        let error = wrong.side.wait_ready(short).unwrap_err().to_string();
        assert!(error.contains("was not welcomed by rank 0 within 300 ms: "), "{error}");
    }
    drop((again, beyond, astray));

    hub.fine();
    let others = [2, 3].map(|rank| join_at(rank, 4, &invitation, LONG));
    let ranks: Vec<Rank> = [hub, first].into_iter().chain(others).collect();
    ready(&ranks);
    // All are there: nobody else may come.
    until("the end of listening", || TcpStream::connect(invitation.addresses[0]).is_err().then_some(()));
    ranks.iter().for_each(Rank::fine);
    let reason = AbortReason::new(3, AbortKind::Other, "still working");
    ranks[3].side.abort(reason.clone());
    assert!(ranks.iter().all(|r| r.reason() == reason));
}

#[test]
fn a_thousand_silent_connections_keep_nobody_out() {
    let (hub, invitation) = host(3, Duration::from_secs(5));
    let first = join_at(1, 3, &invitation, Duration::from_secs(5));
    first.side.wait_ready(Deadline::after(SOON)).unwrap();
    let flood = invitation.addresses[0];
    let over = Arc::new(AtomicBool::new(false));
    let flooding = thread::spawn({
        let over = over.clone();
        move || {
            // Two hundred at any time, so that tests fit into the usual limit of open files.
            let mut open = std::collections::VecDeque::new();
            let mut made = 0;
            while made < 1000 && !over.load(Ordering::SeqCst) {
                if let Ok(stream) = TcpStream::connect_timeout(&flood, Duration::from_millis(200)) {
                    open.push_back(stream);
                    made += 1;
                }
                if open.len() > 200 {
                    open.pop_front();
                }
            }
            made
        }
    });
    thread::sleep(Duration::from_millis(50));
    let second = join_at(2, 3, &invitation, Duration::from_secs(5));
    second.side.wait_ready(Deadline::after(SOON)).unwrap();
    over.store(true, Ordering::SeqCst);
    assert!(flooding.join().unwrap() > 0);
    hub.side.wait_ready(Deadline::after(SOON)).unwrap();
    [&hub, &first, &second].into_iter().for_each(Rank::fine);
}

#[test]
fn silence_in_the_handshake_ends_it() {
    let within = Duration::from_secs(5) + SOON;
    let (hub, invitation) = host(2, LONG);
    // Half a frame, then nothing.
    let mut half = stranger(&invitation);
    half.write_all(&[40, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    // A listener that never says a word.
    let mute = TcpListener::bind((LOCAL, 0)).unwrap();
    let mut nowhere = invitation.clone();
    nowhere.addresses = vec![mute.local_addr().unwrap()];
    let waiting = join_at(1, 2, &nowhere, Duration::from_millis(100));
    assert!(is_dropped(half, within));
    hub.fine();
    let reason = waiting.reason();
    assert_eq!((reason.rank, reason.kind), (0, AbortKind::Communication));
    assert!(
        reason.message.contains("rank 0 is lost: its side channel cannot be joined"),
        "{}",
        reason.message
    );
    assert_eq!(waiting.here.step(), Some(41));
}
