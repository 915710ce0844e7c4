//! Runs whose gradients go over NCCL from GPU to GPU, with the stand-in libraries that `tests/cuda/build` makes
//! (`PHALANX_CUDA_PATH`), so they are ignored unless asked for. How many devices there are and what fails is told the
//! stand-ins by the environment: each case is a process of its own.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/again.rs"]
mod again;
mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use again::{again, is_again, with_settings};
use common::{hashes, request, run};
use phalanx_train::faults::Faults;
use phalanx_train::run::TrainRequest;
use phalanx_train::{DeviceChoice, SumsOver};

const FOUR: (&str, &str) = ("PHALANX_STANDIN_DEVICES", "4");

/// A short run, each rank with a GPU of its own where there are enough.
fn over(sums: SumsOver, out: &Path, ranks: u32, settings: &[&str]) -> TrainRequest {
    let settings = [settings, &["train.epochs=1", "compute.threads=1"]].concat();
    let device = DeviceChoice { name: "cuda".into(), share_gpu: sums != SumsOver::Nccl, sums };
    TrainRequest { device, max_steps: Some(4), ..request(out, ranks, &settings) }
}

#[test]
#[ignore = "needs the stand-ins"]
fn exact_sums_over_nccl_are_those_over_the_host_for_any_world() {
    if !with_settings("exact_sums_over_nccl_are_those_over_the_host_for_any_world", &[FOUR]) {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    for wire in ["distributed.wire=\"f32\"", "distributed.wire=\"bf16\"", "distributed.wire=\"f16\""] {
        let mut first = None;
        let worlds: &[_] = if wire.contains("f32") { &[1, 2, 3, 4] } else { &[1, 3] };
        for &world in worlds {
            for sums in [SumsOver::Host, SumsOver::Nccl] {
                let out = tmp.path().join(format!("{}-{world}-{sums:?}", wire.len()).replace('"', "") + wire);
                // Several buckets, which follow each other through the same memory.
                let summary = run(&over(sums, &out, world, &[wire, "distributed.bucket_mb=0.05"])).unwrap();
                let name = if sums == SumsOver::Nccl && world > 1 { "nccl" } else { "threads" };
                assert_eq!((summary.comm.as_str(), summary.steps), (name, 4));
                let got = hashes(&summary);
                assert_eq!(*first.get_or_insert(got.clone()), got, "{wire}: {world} ranks over {sums:?}");
            }
        }
    }
}

#[test]
#[ignore = "needs the stand-ins"]
fn sums_in_any_order_are_as_good() {
    if !with_settings("sums_in_any_order_are_as_good", &[FOUR]) {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let of = |name: &str, world, exact: &str| {
        // What is left open is NCCL where every rank has a GPU.
        let asked = over(SumsOver::Auto, &tmp.path().join(name), world, &[exact]);
        let summary = run(&asked).unwrap();
        (summary.comm.clone(), summary.train_loss)
    };
    let (name, exact) = of("exact", 3, "distributed.exact=true");
    assert_eq!(name, "nccl");
    for world in [2, 3] {
        let (name, fast) = of(&format!("fast-{world}"), world, "distributed.exact=false");
        assert!(name == "nccl" && (fast - exact).abs() < 1e-4 * exact, "{world}: {fast}, not {exact}");
    }
}

/// Work of streams as late as allowed: a wait between a gradient and its sum that is missing shows.
#[test]
#[ignore = "needs the stand-ins"]
fn sums_wait_for_gradients_and_updates_for_sums() {
    let late = ("PHALANX_STANDIN_STREAMS", "1");
    if !with_settings("sums_wait_for_gradients_and_updates_for_sums", &[FOUR, late]) {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let of = |sums| {
        let settings = ["distributed.bucket_mb=0.05", "distributed.virtual_shards=4"];
        hashes(&run(&over(sums, &tmp.path().join(format!("{sums:?}")), 2, &settings)).unwrap())
    };
    assert_eq!(of(SumsOver::Nccl), of(SumsOver::Host));
}

#[test]
#[ignore = "needs the stand-ins"]
fn an_error_of_nccl_ends_all_ranks_in_time() {
    // Calls in the middle of a group, at its end and alone: of one rank and of all.
    for failing in ["3@1", "4@0", "5@1", "6", "7@2"] {
        let failing = ("PHALANX_STANDIN_NCCL_FAIL", failing);
        if with_settings("an_error_of_nccl_ends_all_ranks_in_time", &[FOUR, failing]) {
            nccl_fails();
            return;
        }
    }
}

fn nccl_fails() {
    let tmp = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let e = run(&over(SumsOver::Nccl, &tmp.path().join("run"), 3, &[])).unwrap_err();
    assert!(e.to_string().contains("unhandled system error") && e.exit_code() == 4, "{e}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
#[ignore = "needs the stand-ins"]
fn a_rank_that_fails_or_never_comes_ends_all_of_them() {
    if !with_settings("a_rank_that_fails_or_never_comes_ends_all_of_them", &[FOUR]) {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    for (fault, code, say) in [
        ("rank=1,step=2,kind=hang-loader", 4, "waited 10s for"),
        ("rank=1,step=2,kind=panic", 4, "rank 1 panicked"),
        ("rank=0,step=1,kind=nan", 5, "non-finite loss (NaN) at step 1 on rank 0"),
        ("rank=1,step=2,kind=desync", 4, ""),
    ] {
        let faults = Faults::parse(&[fault.to_owned()]).unwrap();
        let out = tmp.path().join(fault);
        let asked = over(SumsOver::Nccl, &out, 3, &["distributed.deadline_s=10"]);
        let begun = Instant::now();
        let e = run(&TrainRequest { faults, ..asked }).unwrap_err();
        assert!(e.to_string().contains(say) && e.exit_code() == code, "{fault}: {e}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{fault} took {:?}", begun.elapsed());
    }
}

/// Which library is missing, and what is said of it.
const WITHOUT: &str = "PHALANX_TEST_WITHOUT";

#[test]
#[ignore = "needs the stand-ins"]
fn what_is_missing_or_too_old_is_named_and_left_open_the_run_does_without() {
    let name = "what_is_missing_or_too_old_is_named_and_left_open_the_run_does_without";
    let tmp = tempfile::tempdir().unwrap();
    if !is_again() {
        let all = std::env::var_os("PHALANX_CUDA_PATH").unwrap();
        for (library, says) in [
            ("libcuda.so.1", "no CUDA driver: tried "),
            ("libnvrtc.so.13", "no run-time compiler (NVRTC): tried "),
            ("libcublasLt.so.13", "no cuBLASLt: tried "),
            ("libcudnn.so.9", "no cuDNN: tried "),
            ("libnccl.so.2", "no NCCL"),
        ] {
            let folder = tmp.path().join(library);
            std::fs::create_dir(&folder).unwrap();
            for file in std::fs::read_dir(&all).unwrap().map(|f| f.unwrap()) {
                if file.file_name() != library {
                    std::os::unix::fs::symlink(file.path(), folder.join(file.file_name())).unwrap();
                }
            }
            again(name, &[FOUR, ("PHALANX_CUDA_PATH", folder.to_str().unwrap()), (WITHOUT, says)]);
        }
        let old = "compute capability 7.5, and 8.0 or newer is needed";
        again(name, &[FOUR, ("PHALANX_STANDIN_COMPUTE", "7.5"), (WITHOUT, old)]);
        let old = "libcudnn.so.9 is version 8907, and 90000 (9.0) or newer";
        again(name, &[FOUR, ("PHALANX_STANDIN_DNN_VERSION", "8907"), (WITHOUT, old)]);
        let old = "libnccl.so.2 is version 2.17.0, and 2.18.0 or newer";
        again(name, &[FOUR, ("PHALANX_STANDIN_NCCL_VERSION", "21700"), (WITHOUT, old)]);
        return;
    }
    let says = std::env::var(WITHOUT).unwrap();
    let of_sums = says.contains("NCCL") || says.contains("nccl");
    let e = run(&over(SumsOver::Nccl, &tmp.path().join("demanded"), 2, &[])).unwrap_err();
    assert!(e.to_string().contains(&says) && e.exit_code() == 2, "{e}");
    let open = DeviceChoice { name: "auto".into(), share_gpu: false, sums: SumsOver::Auto };
    let out = tmp.path().join("open");
    let summary = run(&TrainRequest { device: open, ..over(SumsOver::Auto, &out, 2, &[]) }).unwrap();
    let device = if of_sums { "cuda" } else { "cpu" };
    assert_eq!((summary.device.as_str(), summary.comm.as_str()), (device, "threads"));
    // Why is in the run's description.
    let env = std::fs::read_to_string(out.join("env.json")).unwrap();
    assert!(env.contains(&says), "{env}");
}

#[test]
#[ignore = "needs the stand-ins"]
fn ranks_of_one_gpu_are_refused_or_go_by_way_of_the_host() {
    if !with_settings("ranks_of_one_gpu_are_refused_or_go_by_way_of_the_host", &[]) {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut asked = over(SumsOver::Nccl, &tmp.path().join("refused"), 2, &[]);
    asked.device.share_gpu = true;
    let e = run(&asked).unwrap_err();
    let say = "--comm nccl: ranks 0 and 1 share one GPU, and NCCL wants one for each rank; with --comm auto";
    assert!(e.to_string().contains(say) && e.exit_code() == 2, "{e}");
    let out = tmp.path().join("open");
    assert_eq!(run(&over(SumsOver::Auto, &out, 2, &[])).unwrap().comm, "threads");
    let env = std::fs::read_to_string(out.join("env.json")).unwrap();
    assert!(env.contains("ranks 0 and 1 share one GPU"), "{env}");
    let on_cpu =
        TrainRequest { device: DeviceChoice { sums: SumsOver::Nccl, ..DeviceChoice::from("cpu") }, ..asked };
    let e = run(&on_cpu).unwrap_err();
    assert!(e.to_string().contains("rank 0 has no GPU") && e.exit_code() == 2, "{e}");
}
