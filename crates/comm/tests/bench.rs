//! The benchmark itself, and the speed that the threads promise.
#![allow(clippy::unwrap_used)]

use phalanx_comm::bench::{all_reduce_threads, latency_threads};
use phalanx_host::Isa;

#[test]
fn reports_are_consistent() {
    for ranks in [1, 2, 3] {
        let r = all_reduce_threads(ranks, 99_999, 5, Isa::detect()).unwrap();
        assert_eq!((r.comm, r.ranks, r.bytes), ("threads", ranks, 100_000));
        let w = f64::from(ranks);
        let bus = 2.0 * (w - 1.0) / w * 1e5 / r.seconds_p50 / 1e9;
        assert!(r.seconds_p50 > 0.0 && (r.bus_bandwidth_gb_s - bus).abs() <= 1e-9 * bus, "{r:?}");
        let memory = 2.0 * w * 1e5 / r.seconds_p50 / 1e9;
        assert!((r.memory_bandwidth_gb_s - memory).abs() <= 1e-9 * memory && r.copy_gb_s > 0.0, "{r:?}");
        let l = latency_threads(ranks, 3, Isa::detect()).unwrap();
        assert!(l.barrier_s > 0.0 && l.all_reduce_s > 0.0);
    }
}

/// Run alone and in release mode: `cargo test --release -p phalanx-comm --test bench -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, which needs two idle cores"]
fn two_threads_reach_the_promised_speed() {
    let isa = Isa::detect();
    for bytes in [250_000, 1_600_000, 25_000_000, 100_000_000] {
        let rounds = (2_000_000_000 / bytes).clamp(20, 1000);
        let r = all_reduce_threads(2, bytes, rounds, isa).unwrap();
        println!("{:.2} of a copy; {r:?}", r.memory_bandwidth_gb_s / r.copy_gb_s);
        if bytes >= 25_000_000 {
            assert!(r.memory_bandwidth_gb_s >= 0.6 * r.copy_gb_s);
        }
    }
    for ranks in [2, 4, 8] {
        println!("{ranks} ranks: {:?}", latency_threads(ranks, 100, isa).unwrap());
    }
    let l = latency_threads(2, 100, isa).unwrap();
    assert!(l.barrier_s < 10e-6 && l.all_reduce_s < 10e-6, "{l:?}");
}
