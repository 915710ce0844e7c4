use std::time::{Duration, Instant};

use phalanx_gpu::{Context, DevicePtr, Error, Nccl, NcclId};

use crate::common::{buffer, floats, stand_ins, to_floats, with_settings};

const FOUR: (&str, &str) = ("PHALANX_STANDIN_DEVICES", "4");

/// Runs `body` on `ranks` threads, each with a device of its own.
fn on_ranks(ranks: usize, body: impl Fn(Context, usize) + Sync) {
    std::thread::scope(|s| {
        let each = |rank| {
            let body = &body;
            s.spawn(move || body(Context::open(rank).unwrap(), rank))
        };
        let all: Vec<_> = (0..ranks).map(each).collect();
        all.into_iter().for_each(|t| t.join().unwrap());
    });
}

fn until(done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
}

fn join(c: &Context, id: &NcclId, rank: usize, ranks: usize) -> Nccl {
    let nccl = Nccl::join(c, id, rank, ranks).unwrap();
    until(|| nccl.settled().unwrap());
    nccl
}

fn read(c: &Context, at: DevicePtr, count: usize) -> Vec<f32> {
    c.communication().synchronize_within(Duration::from_secs(60)).unwrap();
    let mut bytes = vec![0; count * 4];
    c.download(at, &mut bytes).unwrap();
    to_floats(&bytes)
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn collectives_do_what_they_say_and_two_communicators_have_one_order() {
    let name = "collectives::collectives_do_what_they_say_and_two_communicators_have_one_order";
    if !stand_ins() || !with_settings(name, &[FOUR]) {
        return;
    }
    assert!(Nccl::version().unwrap().starts_with("2."));
    let ids = [Nccl::unique_id().unwrap(), Nccl::unique_id().unwrap()];
    on_ranks(3, |c, rank| {
        let [one, two] = ids.map(|id| join(&c, &id, rank, 3));
        let r = rank as f32;
        let x = buffer(&c, &floats(&[r, r + 10.0, r + 20.0]));
        let all = buffer(&c, &floats(&[-1.0; 9]));
        let part = buffer(&c, &floats(&[0.0]));
        c.synchronize().unwrap();
        // Each on the other's result, one communicator after the other: the order is that of the calls.
        one.all_reduce(x.ptr(), x.ptr(), 3).unwrap();
        two.all_gather(x.ptr(), all.ptr(), 3).unwrap();
        one.reduce_scatter(all.ptr(), part.ptr(), 1).unwrap();
        two.broadcast(x.ptr(), 1, 2).unwrap();
        until(|| one.settled().unwrap() && two.settled().unwrap());
        assert_eq!(read(&c, x.ptr(), 3), [3.0, 33.0, 63.0]);
        assert_eq!(read(&c, all.ptr(), 9), [3.0, 33.0, 63.0].repeat(3));
        assert_eq!(read(&c, part.ptr(), 1), [[9.0, 99.0, 189.0][rank]]);
        // A ring.
        let (next, before) = ((rank + 1) % 3, (rank + 2) % 3);
        let mine = buffer(&c, &floats(&[r]));
        c.synchronize().unwrap();
        two.group(|n| {
            n.send(mine.ptr(), 1, next)?;
            n.receive(part.ptr(), 1, before)
        })
        .unwrap();
        until(|| two.settled().unwrap());
        assert_eq!(read(&c, part.ptr(), 1), [before as f32]);
        assert!(matches!(one.send(x.ptr(), 1, 3), Err(Error::Invalid { .. })));
        assert!((one.rank(), one.ranks()) == (rank, 3) && Nccl::join(&c, &ids[0], 0, usize::MAX).is_err());
    });
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_peer_that_never_comes_is_ended_by_an_abort() {
    let name = "collectives::a_peer_that_never_comes_is_ended_by_an_abort";
    if !stand_ins() || !with_settings(name, &[FOUR]) {
        return;
    }
    let id = Nccl::unique_id().unwrap();
    let lonely = Context::open(3).unwrap();
    let nccl = Nccl::join(&lonely, &Nccl::unique_id().unwrap(), 0, 2).unwrap();
    assert!(!nccl.settled().unwrap() && nccl.abort(Duration::from_secs(10)));
    assert!(matches!(nccl.settled(), Err(Error::Collective { .. })) && nccl.abort(Duration::ZERO));
    on_ranks(2, |c, rank| {
        let nccl = join(&c, &id, rank, 2);
        let x = buffer(&c, &floats(&[1.0]));
        c.synchronize().unwrap();
        if rank == 0 {
            nccl.all_reduce(x.ptr(), x.ptr(), 1).unwrap();
            let stream = c.communication();
            let late = stream.synchronize_within(Duration::from_millis(50)).unwrap_err();
            assert!(matches!(late, Error::TimedOut { .. }), "{late}");
            assert!(nccl.abort(Duration::from_secs(10)));
            stream.synchronize_within(Duration::from_secs(10)).unwrap();
            assert!(nccl.all_reduce(x.ptr(), x.ptr(), 1).is_err());
        }
    });
}

/// With NCCL itself the ranks hang, until a deadline of somebody's ends them; the stand-in says what is wrong.
#[test]
#[ignore = "needs the stand-ins"]
fn two_nccl_communicators_in_different_orders_end_with_an_error() {
    let name = "collectives::two_nccl_communicators_in_different_orders_end_with_an_error";
    if !stand_ins() || !with_settings(name, &[FOUR]) {
        return;
    }
    let ids = [Nccl::unique_id().unwrap(), Nccl::unique_id().unwrap()];
    on_ranks(2, |c, rank| {
        let [one, two] = ids.map(|id| join(&c, &id, rank, 2));
        let (x, y) = (buffer(&c, &floats(&[1.0, rank as f32])), buffer(&c, &floats(&[2.0])));
        c.synchronize().unwrap();
        for _ in 0..3 {
            one.all_reduce(x.ptr(), x.ptr(), 2).unwrap();
            two.all_reduce(y.ptr(), y.ptr(), 1).unwrap();
        }
        assert_eq!((read(&c, x.ptr(), 2), read(&c, y.ptr(), 1)), (vec![8.0, 4.0], vec![16.0]));
        let (first, second) = if rank == 0 { (&one, &two) } else { (&two, &one) };
        first.all_reduce(x.ptr(), x.ptr(), 1).unwrap();
        // The other rank's call may be there by now, and the error with it.
        let late = second.all_reduce(y.ptr(), y.ptr(), 1);
        let failed = || [&one, &two].into_iter().find_map(|n| n.settled().err()).or(late.clone().err());
        until(|| failed().is_some());
        assert!(matches!(failed(), Some(Error::Collective { code: 5, .. })), "{:?}", failed());
        for nccl in [&one, &two] {
            assert!(nccl.abort(Duration::from_secs(10)));
            assert!(nccl.all_reduce(x.ptr(), x.ptr(), 1).is_err());
        }
        c.communication().synchronize_within(Duration::from_secs(10)).unwrap();
    });
}

#[test]
#[ignore = "needs the stand-ins"]
fn full_memory_waits_for_a_peer_that_never_comes_no_longer_than_allowed() {
    let name = "collectives::full_memory_waits_for_a_peer_that_never_comes_no_longer_than_allowed";
    if !stand_ins() || !with_settings(name, &[FOUR, ("PHALANX_STANDIN_MEMORY", "64M")]) {
        return;
    }
    let id = Nccl::unique_id().unwrap();
    on_ranks(2, |c, rank| {
        let nccl = join(&c, &id, rank, 2);
        if rank == 0 {
            let x = buffer(&c, &vec![0; 40 << 20]);
            c.synchronize().unwrap();
            nccl.all_reduce(x.ptr(), x.ptr(), 1).unwrap();
            let summed = c.event().unwrap();
            summed.record(c.communication()).unwrap();
            x.keep_until(&summed);
            drop(x);
            c.set_patience(Duration::from_millis(50));
            let late = c.alloc(50 << 20).unwrap_err();
            assert!(matches!(late, Error::TimedOut { .. }), "{late}");
            assert!(matches!(c.trim(), Err(Error::TimedOut { .. })));
            assert!(nccl.abort(Duration::from_secs(10)));
            assert_eq!(c.alloc(50 << 20).unwrap().len(), 50 << 20);
        }
    });
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn one_rank_alone_has_every_collective() {
    let c = Context::open(0).unwrap();
    let nccl = join(&c, &Nccl::unique_id().unwrap(), 0, 1);
    let numbers = [1.0, -2.0, 0.5];
    let x = buffer(&c, &floats(&numbers));
    // Each leaves the numbers where the test looks for them.
    for collective in 0..5 {
        let y = buffer(&c, &floats(&[7.0; 3]));
        c.synchronize().unwrap();
        match collective {
            0 => nccl.all_reduce(x.ptr(), y.ptr(), 3),
            1 => nccl.all_gather(x.ptr(), y.ptr(), 3),
            2 => nccl.reduce_scatter(x.ptr(), y.ptr(), 3),
            3 => nccl.broadcast(x.ptr(), 3, 0),
            _ => nccl.group(|n| {
                n.send(x.ptr(), 3, 0)?;
                n.receive(y.ptr(), 3, 0)
            }),
        }
        .unwrap();
        until(|| nccl.settled().unwrap());
        assert_eq!(read(&c, if collective == 3 { x.ptr() } else { y.ptr() }, 3), numbers, "{collective}");
    }
    assert_eq!((nccl.rank(), nccl.ranks()), (0, 1));
}
