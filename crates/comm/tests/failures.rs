//! Nobody waits for the dead: what each rank sees when another one fails, leaves or strays.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use common::{LONG, bucket, endpoints, run, run_all, start};
use phalanx_comm::threads::Endpoint;
use phalanx_comm::{
    AbortKind, AbortReason, Collective, Collectives, Control, Deadline, Error, Event, Member, Overlap,
    Result, Tree, Wire,
};

const SOON: Duration = Duration::from_secs(5);

fn sum(me: &Endpoint, id: u32, len: usize, overlap: Overlap) -> Result<()> {
    let tree = Tree::new(me.world()).unwrap();
    start(me, id, tree, &[vec![1.0f32; len]], overlap)?.wait(me.deadline()).map(drop)
}

/// Each way in which a rank may wait for the others.
const WAITS: [fn(&Endpoint) -> Result<()>; 4] = [
    |me| sum(me, 0, 10, Overlap::Caller),
    |me| sum(me, 0, 10, Overlap::Background),
    |me| me.barrier(me.deadline()),
    |me| me.split(0, 0).map(drop),
];

#[test]
fn an_abort_ends_every_wait_with_its_reason() {
    for wait in WAITS {
        let reason = AbortReason::new(2, AbortKind::Data, "record 7 is damaged").at_step(41);
        let ended = run_all(3, |me| {
            if me.rank() == 2 {
                std::thread::sleep(Duration::from_millis(30));
                me.abort(reason.clone());
                me.abort(AbortReason::new(2, AbortKind::Other, "a later reason does not count"));
            }
            let since = Instant::now();
            let error = wait(&me).unwrap_err();
            assert!(since.elapsed() < SOON);
            assert_eq!(me.aborted().as_ref(), Some(&reason));
            assert_eq!(error.kind(), AbortKind::Data);
            error.to_string()
        });
        let want = "the run was aborted by rank 2 at step 41: data: record 7 is damaged";
        assert_eq!(ended, [want; 3]);
    }
}

#[test]
fn an_abort_in_a_part_reaches_the_whole_and_the_other_parts() {
    let gate = Barrier::new(4);
    run_all(4, |me| {
        let part = me.split(me.rank() % 2, 0).unwrap();
        gate.wait();
        let error = match me.rank() {
            0 => {
                std::thread::sleep(Duration::from_millis(20));
                part.abort(AbortReason::new(me.rank(), AbortKind::Numerics, "loss is NaN"));
                return;
            }
            2 => me.barrier(me.deadline()),
            _ => {
                part.all_gather(&[], me.deadline()).and_then(|_| part.vote(0, me.deadline())).and_then(|_| {
                    // Ranks 1 and 3 are together and wait for nobody, so they meet rank 0 in the whole.
                    me.barrier(me.deadline())
                })
            }
        };
        assert_eq!(error.unwrap_err().kind().exit_code(), 5);
    });
}

#[test]
fn a_rank_that_panics_ends_the_waits_of_the_others() {
    for wait in WAITS {
        let ended = run(endpoints(3, LONG), |me| {
            if me.rank() == 1 {
                // In mid-operation: its bucket is posted and in flight when the thread unwinds.
                let tree = Tree::new(3).unwrap();
                let flight = start(&me, 0, tree, &[vec![1.0f32; 10]], Overlap::Background).unwrap();
                std::thread::sleep(Duration::from_millis(20));
                std::panic::panic_any(flight.is_done());
            }
            let since = Instant::now();
            let error = wait(&me).and_then(|()| me.barrier(me.deadline())).unwrap_err();
            assert!(since.elapsed() < SOON);
            error
        });
        assert!(ended[1].is_err());
        for rank in [0, 2] {
            match ended[rank].as_ref().unwrap() {
                Error::Aborted { reason } => assert_eq!((reason.rank, reason.kind), (1, AbortKind::Panic)),
                other => panic!("rank {rank}: {other}"),
            }
        }
    }
}

#[test]
fn a_rank_that_leaves_ends_the_waits_that_need_it_and_no_others() {
    for wait in WAITS {
        run_all(3, |me| {
            // All have come to these when rank 0 leaves; who is late to look still gets the result.
            sum(&me, 3, 5000, Overlap::Background).unwrap();
            me.barrier(me.deadline()).unwrap();
            if me.rank() == 0 {
                return;
            }
            let since = Instant::now();
            let error = wait(&me).unwrap_err();
            assert!(since.elapsed() < SOON);
            let Error::Aborted { reason } = error else { panic!("{error}") };
            assert_eq!((reason.rank, reason.kind), (0, AbortKind::Communication));
            assert!(reason.message.contains("the rank is gone"), "{reason}");
        });
    }
}

#[test]
fn leaving_in_good_order_is_no_abort() {
    let apart = Barrier::new(3);
    run_all(3, |me| {
        sum(&me, 0, 10_000, Overlap::Background).unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(me.rank()) * 5));
        apart.wait();
        assert_eq!(me.aborted(), None);
    });
}

#[test]
fn the_memory_of_a_rank_that_is_gone_stays_until_the_world_is() {
    let mut ranks = endpoints(2, LONG);
    let (other, me) = (ranks.remove(1), ranks.remove(0));
    let arena = other.alloc(4000).unwrap();
    let tree = Tree::new(2).unwrap();
    let own = bucket(0, &arena, &[vec![2.5f32; 1000]]);
    let flight = other
        .start(own, Collective::AllReduce { tree, wire: Wire::F32 }, Event::Ready, Overlap::Background)
        .unwrap();
    // The rank goes away with everything it has, while its bucket is posted.
    drop((flight, other));
    assert!(arena.write(0..4).is_err(), "peers may still read and write the range");
    // It had come to this operation, so its peer completes it.
    let got =
        start(&me, 0, tree, &[vec![1.0f32; 1000]], Overlap::Caller).unwrap().wait(me.deadline()).unwrap();
    assert_eq!(common::total::<f32>(&got), [3.5; 1000]);
    // It had not come to the next.
    assert!(sum(&me, 1, 1, Overlap::Caller).is_err());
    drop(me);
    assert_eq!(arena.read(0..4000).unwrap().as_slice::<f32>().unwrap()[999], 3.5);
}

#[test]
fn different_operations_are_a_desync_that_names_both_sides_on_every_rank() {
    let tree = |v| Tree::new(v).unwrap();
    // Rank 2 differs in the bucket's number, its length, its tree, its type.
    let strays: [fn(&Endpoint, Tree) -> Result<()>; 4] = [
        |me, t| start(me, 8, t, &[vec![0.0f32; 6]], Overlap::Caller)?.wait(me.deadline()).map(drop),
        |me, t| start(me, 7, t, &[vec![0.0f32; 5]], Overlap::Caller)?.wait(me.deadline()).map(drop),
        |me, _| {
            let other = Tree::new(4)?;
            let parts = vec![vec![0.0f32; 6]; other.nodes_of(2, 3)?.len()];
            start(me, 7, other, &parts, Overlap::Background)?.wait(me.deadline()).map(drop)
        },
        |me, t| start(me, 7, t, &[vec![0.0f64; 6]], Overlap::Background)?.wait(me.deadline()).map(drop),
    ];
    let signs = ["bucket 8: 6 f32", "bucket 7: 5 f32", "6 f32 over 4 virtual", "bucket 7: 6 f64"];
    for (stray, sign) in strays.into_iter().zip(signs) {
        let ended = run_all(3, |me| {
            let result = if me.rank() == 2 {
                stray(&me, tree(3))
            } else {
                start(&me, 7, tree(3), &[vec![0.0f32; 6]], Overlap::Background)
                    .and_then(|f| f.wait(me.deadline()).map(drop))
            };
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Desync { .. }), "{error}");
            assert!(me.aborted().is_some());
            error.to_string()
        });
        assert!(ended.iter().all(|e| *e == ended[0]), "{ended:?}");
        let common = "bucket 7: 6 f32 over 3 virtual shards";
        assert!(ended[0].contains(sign) && ended[0].contains(common), "{}", ended[0]);
        assert!(ended[0].contains("collective 0") && ended[0].contains("rank 2 started"), "{}", ended[0]);
    }
}

#[test]
fn different_control_calls_are_a_desync() {
    let ended = run_all(2, |me| {
        let d = me.deadline();
        let result = if me.rank() == 0 { me.barrier(d) } else { me.vote(1, d).map(drop) };
        result.unwrap_err().to_string()
    });
    assert_eq!(ended[0], ended[1]);
    assert!(ended[0].contains("control call 0") && ended[0].contains("barrier") && ended[0].contains("vote"));
}

#[test]
fn a_deadline_names_who_is_missing_and_what_they_did_last() {
    let gate = Barrier::new(3);
    let ended = run_all(3, |me| {
        sum(&me, 4, 10, Overlap::Caller).unwrap();
        me.vote(0, me.deadline()).unwrap();
        if me.rank() == 1 {
            gate.wait();
            return me.barrier(me.deadline()).unwrap_err();
        }
        let tree = Tree::new(3).unwrap();
        let flight = start(&me, 5, tree, &[vec![1.0f32; 10]], Overlap::Background).unwrap();
        // Rank 2 has patience, rank 0 has not.
        let patience = if me.rank() == 0 { Duration::from_millis(80) } else { LONG };
        let since = Instant::now();
        let error = flight.wait(Deadline::after(patience)).unwrap_err();
        assert!((Duration::from_millis(70)..SOON).contains(&since.elapsed()));
        gate.wait();
        error
    });
    let Error::Deadline { rank: 0, missing, .. } = &ended[0] else { panic!("{}", ended[0]) };
    assert_eq!(*missing, [1]);
    let text = ended[0].to_string();
    assert!(text.contains("rank 0 waited 80ms for collective 1 (all-reduce of bucket 5"), "{text}");
    assert!(text.contains("ranks 0, 2 have come; rank 1 has not"), "{text}");
    assert!(text.contains("its last: collective 0 (all-reduce of bucket 4"), "{text}");
    assert!(text.contains("control call 0 (vote)"), "{text}");
    for other in &ended[1..] {
        let Error::Aborted { reason } = other else { panic!("{other}") };
        assert_eq!((reason.rank, reason.kind), (0, AbortKind::Communication));
        assert!(reason.message.contains("rank 1 has not"), "{reason}");
    }
}

#[test]
fn nothing_starts_after_an_abort() {
    let me = endpoints(1, LONG).remove(0);
    sum(&me, 0, 100, Overlap::Background).unwrap();
    me.abort(AbortReason::new(0, AbortKind::Usage, "enough"));
    assert!(WAITS.iter().all(|wait| matches!(wait(&me), Err(Error::Aborted { .. }))));
}

#[test]
fn aborts_at_random_moments_end_every_rank_and_free_all_memory() {
    for round in 0..60u64 {
        let arenas: Vec<_> = (0..3).map(|_| phalanx_host::Arena::zeroed(400_000).unwrap()).collect();
        run_all(3, |me| {
            let tree = Tree::new(3).unwrap();
            let arena = &arenas[me.rank() as usize];
            let since = Instant::now();
            for turn in 0u64.. {
                let own = match arena.write(0..400_000) {
                    Ok(part) => phalanx_comm::Bucket::new(0, phalanx_host::DType::F32, vec![part]).unwrap(),
                    // After an error the range may still be in a peer's hands.
                    Err(_) => break,
                };
                if u64::from(me.rank()) == round % 3 && turn == round / 3 {
                    me.abort(AbortReason::new(me.rank(), AbortKind::Other, "stop"));
                }
                let overlap = [Overlap::Background, Overlap::Caller][(turn % 2) as usize];
                let end = me
                    .start(own, Collective::AllReduce { tree, wire: Wire::F32 }, Event::Ready, overlap)
                    .and_then(|f| f.wait(me.deadline()));
                if end.is_err() {
                    break;
                }
            }
            assert!(me.aborted().is_some() && since.elapsed() < SOON);
        });
        // With the last endpoint gone nothing is parked any more.
        assert!(arenas.iter().all(|a| a.write(0..400_000).is_ok()), "round {round}");
    }
}
