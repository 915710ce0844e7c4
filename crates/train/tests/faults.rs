//! Planted failures on thread ranks: who notices, what is said, and that the run goes on afterwards to the
//! bits of an undisturbed one.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{hashes, request, run};
use phalanx_train::faults::Faults;
use phalanx_train::run::TrainRequest;
use phalanx_train::{Error, ledger};

fn planted(out: &Path, ranks: u32, fault: &str, settings: &[&str]) -> TrainRequest {
    let faults = Faults::parse(&[fault.to_owned()]).unwrap();
    TrainRequest { faults, ..request(out, ranks, settings) }
}

/// Goes on without the fault, on another number of ranks, to the undisturbed end.
fn goes_on(out: &Path, whole: &(String, String, String), fault: &str) {
    assert_eq!(hashes(&run(&request(out, 4, &[])).unwrap()), *whole, "after {fault}");
    assert_eq!(ledger::verify(out).unwrap().whole_epochs, 2, "after {fault}");
}

#[test]
fn each_failure_is_noticed_and_the_run_goes_on_to_the_same_bits() {
    let tmp = tempfile::tempdir().unwrap();
    let whole = hashes(&run(&request(&tmp.path().join("whole"), 2, &[])).unwrap());
    for (fault, code, say) in [
        ("rank=2,step=7,kind=panic", 4, "rank 2 panicked: planted by --inject at step 7"),
        ("rank=1,step=7,kind=nan", 5, "non-finite loss (NaN) at step 7 on rank 1"),
        ("rank=0,step=7,kind=disk-full", 1, "no storage space"),
        ("rank=1,step=7,kind=desync", 4, "ranks are out of step at collective"),
        ("rank=0,step=7,kind=hang-loader", 4, "waited 1s for"),
        ("rank=2,step=7,kind=hang-loader", 4, "rank 2 has not"),
    ] {
        let out = tmp.path().join(fault);
        let begun = Instant::now();
        let e = run(&planted(&out, 3, fault, &["distributed.deadline_s=1"])).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(8), "{fault} took {:?}", begun.elapsed());
        assert!(e.to_string().contains(say), "{fault}: {e}");
        assert_eq!(e.exit_code(), code, "{fault}: {e}");
        if fault.ends_with("desync") {
            // Both sides are named, and what each did.
            let both = ["rank 1 started all-reduce of bucket 0", "started all-reduce of bucket 0: "];
            assert!(both.iter().all(|b| e.to_string().contains(b)), "{e}");
        }
        goes_on(&out, &whole, fault);
    }
}

#[test]
fn a_slow_rank_changes_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let whole = hashes(&run(&request(&tmp.path().join("whole"), 2, &[])).unwrap());
    let slow = planted(&tmp.path().join("slow"), 3, "rank=1,step=9,kind=slow:200", &[]);
    assert_eq!(hashes(&run(&slow).unwrap()), whole);
    // Work that all ranks take long for is no wait.
    let every: Vec<String> = (0..2).map(|rank| format!("rank={rank},step=9,kind=slow:1500")).collect();
    let faults = Faults::parse(&every).unwrap();
    let all = request(&tmp.path().join("all"), 2, &["distributed.deadline_s=1"]);
    assert_eq!(hashes(&run(&TrainRequest { faults, ..all }).unwrap()), whole);
}

#[test]
fn the_audit_finds_replicas_that_have_parted() {
    let tmp = tempfile::tempdir().unwrap();
    let whole = hashes(&run(&request(&tmp.path().join("whole"), 2, &[])).unwrap());
    let at = |name: &str| tmp.path().join(name);
    // Checkpoints after 5, 10, ... steps are audited in any case.
    for (ranks, bad, every, audits) in [(3, 2, 1000, (10, 5)), (3, 0, 4, (8, 5)), (2, 1, 1, (8, 7))] {
        let out = at(&format!("{ranks}-{bad}"));
        let fault = format!("rank={bad},step=7,kind=corrupt-gradient");
        let every = format!("distributed.audit_every_steps={every}");
        let e = run(&planted(&out, ranks, &fault, &[&every])).unwrap_err();
        let Error::Diverged { tensor, ranks: named, world, step, since } = &e else { panic!("{e}") };
        assert!(named.len() == 1 && named[0].starts_with(&format!("rank {bad} (")), "{e}");
        assert_eq!((*world, (*step, *since)), (ranks, audits), "{e}");
        assert!(tensor.contains("weight") || tensor.contains("bias"), "{e}");
        assert_eq!((e.exit_code(), e.to_string().contains("no majority")), (4, ranks == 2), "{e}");
        goes_on(&out, &whole, &fault);
    }
    // At the end, where nothing else was due; and not at all when it is switched off.
    let fault = "rank=1,step=7,kind=corrupt-gradient";
    let e = run(&planted(&at("end"), 2, fault, &["checkpoint.every_steps=0", "checkpoint.every_epochs=0"]))
        .unwrap_err();
    assert!(matches!(e, Error::Diverged { step: 30, since: 0, .. }), "{e}");
    run(&planted(&at("off"), 2, fault, &["distributed.audit_every_steps=0"])).unwrap();
}

/// Whether this is the process that a test has started, and what it is to do.
fn orders() -> Option<(String, String)> {
    Some((std::env::var("PHALANX_TEST_OUT").ok()?, std::env::var("PHALANX_TEST_FAULT").ok()?))
}

/// Not a test of its own: the body of the processes that end in the test below.
#[test]
fn process_body() {
    if let Some((out, fault)) = orders() {
        run(&planted(Path::new(&out), 2, &fault, &[])).unwrap();
    }
}

fn start(out: &Path, fault: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_body", "--test-threads=1"])
        .env("PHALANX_TEST_OUT", out)
        .env("PHALANX_TEST_FAULT", fault)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn processes_are_killed_stopped_and_ended_for_good() {
    let tmp = tempfile::tempdir().unwrap();
    let whole = hashes(&run(&request(&tmp.path().join("whole"), 2, &[])).unwrap());
    let at = |name: &str| tmp.path().join(name);

    let status = start(&at("kill"), "rank=1,step=12,kind=kill").wait().unwrap();
    assert_eq!(status.signal(), Some(9));
    goes_on(&at("kill"), &whole, "a kill");

    let status = start(&at("exit"), "rank=1,step=12,kind=exit:77").wait().unwrap();
    assert_eq!(status.code(), Some(77));
    goes_on(&at("exit"), &whole, "an exit");

    let mut child = start(&at("stop"), "rank=0,step=12,kind=stop");
    let stat = format!("/proc/{}/stat", child.id());
    let stopped = || std::fs::read_to_string(&stat).is_ok_and(|s| s.contains(") T "));
    let begun = Instant::now();
    while !stopped() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never stops");
        std::thread::sleep(Duration::from_millis(10));
    }
    let cont = Command::new("kill").args(["-CONT", &child.id().to_string()]).status().unwrap();
    assert!(cont.success() && child.wait().unwrap().success());
    goes_on(&at("stop"), &whole, "a stop");
}
