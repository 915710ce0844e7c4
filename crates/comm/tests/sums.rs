//! All-reduces of threads: bits, order, splits, and stress.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{LONG, bucket, run_all, start, total};
use phalanx_comm::threads::{Endpoint, world};
use phalanx_comm::{
    Collective, Collectives, Control, Deadline, Event, Member, Overlap, Tree, Wire, check_same,
};
use phalanx_host::rng::Key;
use phalanx_host::simd::Real;
use phalanx_host::{Arena, Isa};

/// The gradient of one shard: magnitudes far apart, so that another order gives other bits.
fn shard<E: Real>(shard: u32, len: usize) -> Vec<E> {
    (0..len)
        .map(|i| {
            let h = (u64::from(shard) << 32 | i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11;
            let unit = h as f64 / (1u64 << 53) as f64 - 0.5;
            E::from_f64(unit * 10f64.powi((h % 9) as i32 - 4))
        })
        .collect()
}

/// The sum of `shards[from..]` aligned at `level`, by the tree's definition.
fn naive<E: Real>(shards: &[Vec<E>], level: u32, from: usize) -> Vec<E> {
    if level == 0 {
        return shards[from].clone();
    }
    let left = naive(shards, level - 1, from);
    let right = from + (1 << (level - 1));
    if right >= shards.len() {
        return left;
    }
    left.iter().zip(naive(shards, level - 1, right)).map(|(&a, b)| a + b).collect()
}

/// What a rank sends: its shards, merged by its schedule.
fn parts<E: Real>(tree: Tree, rank: u32, world: u32, shards: &[Vec<E>]) -> Vec<Vec<E>> {
    let plan = tree.schedule(rank, world).unwrap();
    let mut slots: Vec<Vec<E>> = vec![Vec::new(); plan.slots];
    for step in plan.steps {
        slots[step.slot] = shards[step.shard as usize].clone();
        for m in step.merges {
            let src = slots[m.src].clone();
            slots[m.dst].iter_mut().zip(src).for_each(|(d, s)| *d += s);
        }
    }
    slots.truncate(plan.nodes.len());
    slots
}

fn same_bits<E: Real>(isa: Isa) {
    for v in [8u32, 7] {
        let tree = Tree::new(v).unwrap();
        for len in [0, 1, 17, 513, 100_003] {
            let shards: Vec<Vec<E>> = (0..v).map(|s| shard(s, len)).collect();
            let want = naive(&shards, 3, 0);
            for ranks in 1..=v {
                let all = common::run(world(ranks, LONG, isa).unwrap(), |me| {
                    let own = parts(tree, me.rank(), ranks, &shards);
                    let overlap = [Overlap::Caller, Overlap::Background][(me.rank() % 2) as usize];
                    total::<E>(&start(&me, 5, tree, &own, overlap).unwrap().wait(me.deadline()).unwrap())
                });
                for got in all {
                    let got = got.unwrap();
                    let differs =
                        got.iter().zip(&want).position(|(a, b)| a.to_f64().to_bits() != b.to_f64().to_bits());
                    assert_eq!((got.len(), differs), (len, None), "V {v} W {ranks} len {len} {isa}");
                }
            }
        }
    }
}

#[test]
fn f32_sums_have_the_same_bits_in_every_world_and_on_every_instruction_set() {
    for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|i| i.available()) {
        same_bits::<f32>(isa);
    }
}

#[test]
fn f64_sums_have_the_same_bits_in_every_world() {
    same_bits::<f64>(Isa::detect());
}

#[test]
fn parts_other_than_the_first_keep_what_they_held() {
    let tree = Tree::new(8).unwrap();
    run_all(3, |me| {
        let own: Vec<Vec<f32>> =
            (0..tree.nodes_of(me.rank(), 3).unwrap().len()).map(|i| vec![i as f32 + 1.0; 100]).collect();
        let done = start(&me, 0, tree, &own, Overlap::Caller).unwrap().wait(me.deadline()).unwrap();
        assert_eq!(done.parts().len(), if me.rank() == 0 { 1 } else { 2 });
        for (i, part) in done.parts().iter().enumerate().skip(1) {
            assert!(part.as_slice::<f32>().unwrap().iter().all(|&x| x == i as f32 + 1.0));
        }
    });
}

#[test]
fn a_range_in_flight_cannot_be_borrowed_until_wait_gives_it_back() {
    let tree = Tree::new(2).unwrap();
    let gate = std::sync::Barrier::new(2);
    run_all(2, |me| {
        let arena = me.alloc(800).unwrap();
        if me.rank() == 1 {
            gate.wait();
        }
        let own = bucket(1, &arena, &[vec![1.0f32; 100]]);
        let flight = me
            .start(own, Collective::AllReduce { tree, wire: Wire::F32 }, Event::Ready, Overlap::Background)
            .unwrap();
        if me.rank() == 0 {
            // The other rank has not come: nothing can be done.
            assert!(!flight.is_done());
            assert!(arena.write(0..4).is_err() && arena.read(396..400).is_err());
            assert!(arena.write(400..800).is_ok(), "the rest of the arena is free");
            gate.wait();
        }
        let back = flight.wait(me.deadline()).unwrap();
        assert!(arena.read(0..4).is_err(), "the bucket is a borrow");
        assert_eq!(total::<f32>(&back), [2.0; 100]);
        drop(back);
        assert!(arena.write(0..800).is_ok());
    });
}

#[test]
fn the_communication_thread_finishes_without_a_waiter() {
    let tree = Tree::new(2).unwrap();
    run_all(2, |me| {
        let flights: Vec<_> = (0..4)
            .map(|id| start(&me, id, tree, &[vec![1.0f32; 50_000]], Overlap::Background).unwrap())
            .collect();
        let patience = Deadline::after(LONG);
        while !flights.iter().all(|f| f.is_done()) {
            assert!(!patience.expired(), "nobody did the work");
            std::thread::sleep(Duration::from_millis(1));
        }
        for flight in flights {
            assert_eq!(total::<f32>(&flight.wait(me.deadline()).unwrap())[49_999], 2.0);
        }
    });
}

#[test]
fn operations_complete_in_the_order_in_which_they_were_started() {
    let tree = Tree::new(3).unwrap();
    run_all(3, |me| {
        for round in 0..50 {
            let lens = [60_000, 1, 9_000, 0, 30_000];
            let flights: Vec<_> = (0..5)
                .map(|id| {
                    let overlap = [Overlap::Background, Overlap::Caller][(round + id) % 2];
                    start(&me, id as u32, tree, &[vec![1.0f64; lens[id]]], overlap).unwrap()
                })
                .collect();
            let mut flights = flights;
            // Waiting for the last drives all before it.
            flights.pop().unwrap().wait(me.deadline()).unwrap();
            assert!(flights.iter().all(|f| f.is_done()));
            flights.into_iter().rev().for_each(|f| drop(f.wait(me.deadline()).unwrap()));
        }
    });
}

#[test]
fn a_dropped_flight_does_not_hold_up_the_others() {
    let tree = Tree::new(2).unwrap();
    run_all(2, |me| {
        let first = start(&me, 0, tree, &[vec![1.0f32; 70_000]], Overlap::Caller).unwrap();
        if me.rank() == 0 {
            drop(first);
        } else {
            assert_eq!(total::<f32>(&first.wait(me.deadline()).unwrap())[0], 2.0);
        }
        let next = start(&me, 1, tree, &[vec![2.0f32; 10]], Overlap::Caller).unwrap();
        assert_eq!(total::<f32>(&next.wait(me.deadline()).unwrap()), [4.0; 10]);
    });
}

#[test]
fn a_bucket_with_the_wrong_number_of_parts_is_refused() {
    let tree = Tree::new(8).unwrap();
    let me = common::endpoints(3, LONG).remove(2);
    let why = start(&me, 9, tree, &[vec![0.0f32]], Overlap::Caller).unwrap_err().to_string();
    assert!(why.contains("bucket 9 has 1 parts") && why.contains("2 nodes of 8"), "{why}");
    let small = Tree::new(2).unwrap();
    assert!(start(&me, 9, small, &[vec![0.0f32]], Overlap::Caller).is_err());
}

#[test]
fn a_split_groups_by_colour_and_orders_by_key() {
    run_all(5, |me| {
        // Odd ranks in reverse: 3, 1. Even ranks as they are: 0, 2, 4.
        let part = me.split(me.rank() % 2, if me.rank() % 2 == 1 { 9 - me.rank() } else { 0 }).unwrap();
        let odd = me.rank() % 2 == 1;
        assert_eq!(part.world(), if odd { 2 } else { 3 });
        let ids = part.all_gather(&[me.rank() as u8], part.deadline()).unwrap().concat();
        assert_eq!(ids, if odd { vec![3, 1] } else { vec![0, 2, 4] });
        assert_eq!(ids[part.rank() as usize] as u32, me.rank());
        let tree = Tree::new(part.world()).unwrap();
        let arena = part.alloc(64).unwrap();
        let own = bucket(0, &arena, &[vec![me.rank() as f64; 8]]);
        let sum = part
            .start(own, Collective::AllReduce { tree, wire: Wire::F32 }, Event::Ready, Overlap::Background)
            .unwrap();
        let want = if odd { 4.0 } else { 6.0 };
        assert_eq!(total::<f64>(&sum.wait(part.deadline()).unwrap()), [want; 8]);
        // The whole world still works, and a second split is another world.
        me.barrier(me.deadline()).unwrap();
        assert_eq!(me.split(7, 0).unwrap().world(), 5);
    });
}

#[test]
fn control_messages() {
    run_all(4, |me| {
        let d = me.deadline();
        let all = me.all_gather(&vec![me.rank() as u8; me.rank() as usize], d).unwrap();
        assert_eq!(all, [vec![], vec![1], vec![2, 2], vec![3, 3, 3]]);
        let give = (me.rank() == 2).then_some(&b"config"[..]);
        assert_eq!(me.broadcast(2, give, d).unwrap(), b"config");
        assert!(me.broadcast(9, None, d).unwrap_err().to_string().contains("broadcast from rank 9"));
        assert_eq!(me.vote(if me.rank() == 1 { 75 } else { 0 }, d).unwrap(), 75);
        me.barrier(d).unwrap();
        check_same(&me, "the bucket plan", "abc", d).unwrap();
        let mine = if me.rank() >= 2 { "avx2" } else { "avx512" };
        let why = check_same(&me, "the instruction set", mine, d).unwrap_err().to_string();
        assert_eq!(
            why,
            "the instruction set differs between ranks: rank 0 has \"avx512\", rank 2 has \"avx2\""
        );
        assert_eq!((me.name(), me.aborted()), ("threads", None));
    });
}

/// Rounds of random sizes, sleeps and overlaps; every result is checked.
fn stress(me: &Endpoint, arena: &Arena, rounds: u64) {
    let ranks = me.world();
    let tree = Tree::new(ranks).unwrap();
    for round in 0..rounds {
        // The same on every rank, and one that differs between them.
        let draw = |who| {
            let [a, b, ..] = Key::new(0).derive(who, 0).block(round);
            u64::from(a) << 32 | u64::from(b)
        };
        let (common, own) = (draw(0), draw(1 + u64::from(me.rank())));
        if own.is_multiple_of(5) {
            std::thread::sleep(Duration::from_micros(own >> 32 & 511));
        }
        let buckets = 1 + common % 3;
        let flights: Vec<_> = (0..buckets)
            .map(|b| {
                let len = (common >> (8 * b) & 0xff) as usize * [1, 97][(common >> (40 + b) & 1) as usize];
                let at = b as usize * 100_000;
                let mut part = arena.write(at..at + 4 * len).unwrap();
                part.as_mut_slice::<f32>().unwrap().fill((u64::from(me.rank()) + round) as f32);
                let bucket = phalanx_comm::Bucket::new(b as u32, phalanx_host::DType::F32, vec![part]);
                let overlap = [Overlap::Background, Overlap::Caller][(own >> (50 + b) & 1) as usize];
                me.start(
                    bucket.unwrap(),
                    Collective::AllReduce { tree, wire: Wire::F32 },
                    Event::Ready,
                    overlap,
                )
                .unwrap()
            })
            .collect();
        if common.is_multiple_of(7) {
            me.barrier(me.deadline()).unwrap();
        }
        let want = (u64::from(ranks * (ranks - 1) / 2) + u64::from(ranks) * round) as f32;
        for flight in flights {
            let got = flight.wait(me.deadline()).unwrap();
            assert!(got.parts()[0].as_slice::<f32>().unwrap().iter().all(|&x| x == want), "round {round}");
        }
    }
}

#[test]
fn stress_with_as_many_ranks_as_cores_and_with_more() {
    for ranks in [2, 3, 8] {
        run_all(ranks, |me| stress(&me, &me.alloc(300_000).unwrap(), 200));
    }
}
