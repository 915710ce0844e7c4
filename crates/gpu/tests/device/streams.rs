use std::time::Duration;

use phalanx_gpu::{Args, Buffer, Context, Error, Grid, Nccl, Trace};

use crate::common::{KERNELS, buffer, context, stand_ins, with_settings};

fn count(c: &Context, b: &Buffer, add: u32) {
    let n = (b.len() / 4) as u32;
    let args = Args::new().ptr(b.ptr()).u32(add).u32(n);
    c.launch(&KERNELS, "count", Grid::linear(n as usize, 256), args).unwrap();
}

fn first(c: &Context, b: &Buffer) -> u32 {
    u32::from_le_bytes(c.download_all(&[(b.ptr(), 4)]).unwrap().try_into().unwrap())
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn events_order_streams_and_measure() {
    let name = "streams::events_order_streams_and_measure";
    // Work as late as allowed: a wait that is missing shows.
    if !with_settings(name, &[("PHALANX_STANDIN_STREAMS", "1")]) {
        return;
    }
    let c = context();
    let b = buffer(&c, &[0; 4000]);
    let timer = c.timer().unwrap();
    timer.start().unwrap();
    count(&c, &b, 3);
    let counted = c.event().unwrap();
    counted.record(c.compute()).unwrap();
    c.copies().wait(&counted).unwrap();
    let mut out = c.pinned(4000).unwrap();
    c.copy_out(c.copies(), &mut out, 0, b.ptr(), 4000).unwrap();
    let copied = c.event().unwrap();
    copied.record(c.copies()).unwrap();
    // Another owner would write over what the copy reads.
    b.keep_until(&copied);
    drop(b);
    let other = buffer(&c, &[9; 4000]);
    copied.synchronize_within(Duration::from_secs(20)).unwrap();
    assert!(copied.query().unwrap());
    assert_eq!(out[..4], [3, 0, 0, 0]);
    assert!(timer.stop().unwrap() >= 0.0);
    assert_eq!(first(&c, &other), 0x0909_0909);
    c.copies().synchronize().unwrap();
    c.compute().synchronize_within(Duration::from_secs(20)).unwrap();
    assert!(c.communication().query().unwrap());
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn what_is_brought_beside_the_computation_waits_for_who_read_the_block_before() {
    let name = "streams::what_is_brought_beside_the_computation_waits_for_who_read_the_block_before";
    if !with_settings(name, &[("PHALANX_STANDIN_STREAMS", "1")]) {
        return;
    }
    let c = context();
    let kept = buffer(&c, &[0; 8 * 4000]);
    let mut live = Vec::new();
    let mut ahead: Option<(Buffer, phalanx_gpu::Event)> = None;
    for i in 0..9u8 {
        let next = (i < 8).then(|| {
            let mut source = c.pinned(4000).unwrap();
            source.fill(i + 1);
            c.bring(Box::new(source)).unwrap()
        });
        if let Some((block, landed)) = ahead.take() {
            // Read late, and given back at once: the copy after the next is into the same block.
            c.compute().wait(&landed).unwrap();
            c.copy(kept.ptr().offset((i as usize - 1) * 4000), block.ptr(), 4000).unwrap();
        }
        ahead = next;
        live.push(c.memory().live);
    }
    let all = c.download_all(&[(kept.ptr(), 8 * 4000)]).unwrap();
    for (i, part) in all.chunks(4000).enumerate() {
        assert!(part.iter().all(|b| *b == i as u8 + 1), "batch {i} is {:?} ..", &part[..4]);
    }
    assert!(live[2..].iter().all(|l| *l == live[2]), "two blocks serve for all: {live:?}");
    // One that nobody reads is no trouble, nor is one of nothing; other sizes get blocks of their own.
    for bytes in [0, 10, 4000, 100_000] {
        let (block, _) = c.bring(Box::new(c.pinned(bytes).unwrap())).unwrap();
        assert_eq!(block.len(), bytes);
    }
    let before = c.memory().live;
    c.trim().unwrap();
    assert!(c.memory().live < before, "blocks that wait are given back");
    let capture = c.capture().unwrap();
    let refused = c.bring(Box::new(c.pinned(10).unwrap()));
    assert!(matches!(refused, Err(Error::Capturing { .. })));
    drop(capture);
}

/// A block that is new to input has to wait for all that computes: so none may be, once steps are alike.
#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn blocks_for_input_suffice_for_steps_of_many_shards() {
    let c = context();
    let step = || -> Vec<Buffer> {
        (0..24).map(|_| c.bring(Box::new(c.pinned(4000).unwrap())).unwrap().0).collect()
    };
    let mut used = step();
    let mut allocations = Vec::new();
    for _ in 0..5 {
        // The next arrives while this one is read.
        used = step();
        allocations.push(c.memory().allocations);
    }
    assert_eq!(used.len(), 24);
    assert!(allocations[1..].iter().all(|a| *a == allocations[1]), "{allocations:?}");
}

/// Else it waits for what runs on other streams, such as a sum that waits for another rank.
#[test]
#[ignore = "needs the stand-ins"]
fn a_kernels_first_launch_waits_for_nobody() {
    let name = "streams::a_kernels_first_launch_waits_for_nobody";
    if !stand_ins() || !with_settings(name, &[("PHALANX_STANDIN_STREAMS", "1")]) {
        return;
    }
    let c = context();
    c.load(&KERNELS).unwrap();
    let (out, y) = (c.pinned(4).unwrap(), buffer(&c, &[0; 4]));
    c.synchronize().unwrap();
    let args = Args::new().ptr(out.ptr()).u32(5).u32(1);
    c.launch_on(c.communication(), &KERNELS, "count", Grid::linear(1, 256), args).unwrap();
    let args = Args::new().ptr(y.ptr()).ptr(y.ptr()).f32(2.0).i64(1);
    c.launch(&KERNELS, "scale", Grid::linear(1, 256), args).unwrap();
    assert_eq!(out[..], [0; 4], "work of another stream is done, for which nobody has waited");
    c.communication().synchronize().unwrap();
    assert_eq!(out[..], [5, 0, 0, 0]);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn kernels_of_all_streams_have_run_before_their_module_goes() {
    let name = "streams::kernels_of_all_streams_have_run_before_their_module_goes";
    if !with_settings(name, &[("PHALANX_STANDIN_STREAMS", "1")]) {
        return;
    }
    let c = context();
    let out = c.pinned(4).unwrap();
    let args = Args::new().ptr(out.ptr()).u32(5).u32(1);
    c.launch_on(c.communication(), &KERNELS, "count", Grid::linear(1, 256), args).unwrap();
    drop(c);
    assert_eq!(out[..], [5, 0, 0, 0]);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_graph_does_its_work_at_each_launch() {
    let c = context();
    c.load(&KERNELS).unwrap();
    let total = buffer(&c, &[0; 512]);
    let held = c.memory().live;
    let capture = c.capture().unwrap();
    assert!(c.is_capturing());
    {
        // Memory of its own, an upload, and a result that outlives the recording.
        let step = buffer(&c, &[1; 512]);
        count(&c, &step, 1);
        count(&c, &total, 1);
        count(&c, &total, 10);
        let again = c.capture().unwrap_err();
        assert!(matches!(again, Error::Capturing { .. }), "{again}");
        assert!(c.download_all(&[(step.ptr(), 4)]).is_err());
    }
    let out = c.alloc(512).unwrap();
    c.copy(out.ptr(), total.ptr(), 512).unwrap();
    let graph = capture.end().unwrap();
    assert!(!c.is_capturing());
    assert_eq!(first(&c, &total), 0, "recorded, not done");
    for round in 1..4 {
        let scratch = buffer(&c, &[7; 512]);
        graph.launch().unwrap();
        assert_eq!((first(&c, &total), first(&c, &out)), (11 * round, 11 * round));
        assert_eq!(first(&c, &scratch), 0x0707_0707, "others' memory is not the graph's");
    }
    drop(graph);
    drop(out);
    assert_eq!(c.memory().live, held);
    count(&c, &total, 1);
    assert_eq!(first(&c, &total), 34);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn graphs_share_memory_and_read_numbers_that_change() {
    let c = context();
    c.load(&KERNELS).unwrap();
    let total = buffer(&c, &[0; 512]);
    let memory = c.graph_memory().unwrap();
    // In the memory of graphs, and gone again.
    let in_use = memory.enter();
    let own = c.alloc(3 << 20).unwrap();
    let lasting = c.alloc_lasting(512).unwrap();
    assert_eq!(memory.used(), 3 << 20);
    drop((own, in_use));
    assert_eq!((memory.used(), memory.held() >= 3 << 20), (0, true));
    c.copy(lasting.ptr(), total.ptr(), 512).unwrap();

    let by = |value: u32, times: usize| -> phalanx_gpu::Result<()> {
        let scratch = c.alloc(3 << 20)?;
        c.fill_zero(scratch.ptr(), 512)?;
        for _ in 0..times {
            let args = Args::new().ptr(scratch.ptr()).varying(&c, "by", &value.to_le_bytes())?;
            c.launch(&KERNELS, "count_by", Grid::linear(128, 128), args.u32(128))?;
        }
        let args = Args::new().ptr(total.ptr()).varying(&c, "by", &(value + 1).to_le_bytes())?;
        c.launch(&KERNELS, "count_by", Grid::linear(128, 128), args.u32(128))?;
        c.copy(total.ptr().offset(256), scratch.ptr(), 256)
    };
    by(5, 1).unwrap();
    assert_eq!(first(&c, &total), 6);
    let trace = |value, times| -> Trace {
        let capture = c.capture_in(&memory).unwrap();
        by(value, times).unwrap();
        capture.discard().unwrap()
    };
    let probe = trace(70, 2);
    assert_eq!((probe.len(), probe.room(), probe.varying().len()), (5, 16, 2));
    let capture = c.capture_in(&memory).unwrap();
    by(9, 2).unwrap();
    let two = capture.end().unwrap();
    assert_eq!(two.trace().difference(&probe), None);
    assert_eq!(two.trace().difference(&trace(9, 3)), Some("tests/count_by".into()));
    assert_eq!(trace(1, 1).difference(&trace(2, 1)), None);
    let capture = c.capture_in(&memory).unwrap();
    by(9, 3).unwrap();
    let three = capture.end().unwrap();
    assert!(c.trim().is_ok() && two.launch_with(&[0; 8]).is_err());
    let numbers = |a: u32, b: u32| [a.to_le_bytes(), [0; 4], b.to_le_bytes(), [0; 4]].concat();
    let second = |c: &Context| {
        u32::from_le_bytes(c.download_all(&[(total.ptr().offset(256), 4)]).unwrap().try_into().unwrap())
    };
    for (graph, a, b, want) in [(&two, 1, 10, (16, 2)), (&three, 2, 20, (36, 6)), (&two, 3, 0, (36, 6))] {
        graph.launch_with(&numbers(a, b)).unwrap();
        assert_eq!((first(&c, &total), second(&c)), want);
    }
    let held = memory.held();
    drop((two, three, memory));
    c.trim().unwrap();
    assert!(c.memory().cached < held, "{held} of {:?}", c.memory());
    let capture = c.capture().unwrap();
    assert!(c.trim().is_err() && c.graph_memory().is_err());
    drop(capture);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_recording_that_is_dropped_leaves_nothing() {
    let c = context();
    c.load(&KERNELS).unwrap();
    let total = buffer(&c, &[0; 512]);
    let capture = c.capture().unwrap();
    count(&c, &total, 1);
    drop(capture);
    assert!(!c.is_capturing());
    assert_eq!(first(&c, &total), 0);
    count(&c, &total, 2);
    assert_eq!(first(&c, &total), 2);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_device_that_is_too_old_is_named() {
    let name = "streams::a_device_that_is_too_old_is_named";
    if !stand_ins() || !with_settings(name, &[("PHALANX_STANDIN_COMPUTE", "7.5")]) {
        return;
    }
    let e = Context::open(0).unwrap_err();
    assert!(matches!(e, Error::OldDevice { found: (7, 5), .. }), "{e}");
    assert!(e.to_string().contains("compute capability 7.5, and 8.0 or newer is needed"), "{e}");
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn libraries_that_are_too_old_are_named() {
    let name = "streams::libraries_that_are_too_old_are_named";
    let old = ["NVRTC", "BLASLT", "DNN", "NCCL"].map(|l| format!("PHALANX_STANDIN_{l}_VERSION"));
    let [nvrtc, blas, dnn, nccl] = old.each_ref().map(String::as_str);
    let settings = [(nvrtc, "11080"), (blas, "111103"), (dnn, "8907"), (nccl, "21700")];
    if !stand_ins() || !with_settings(name, &settings) {
        return;
    }
    let c = context();
    for (found, says) in [
        (phalanx_gpu::check_compiler().err(), "libnvrtc.so.13 is version 11.8, and 12.2 or newer is needed"),
        (c.blas().err(), "libcublasLt.so.13 is version 111103, and 120200 (of CUDA 12.2) or newer"),
        (c.dnn().err(), "libcudnn.so.9 is version 8907, and 90000 (9.0) or newer"),
        (Nccl::version().err(), "libnccl.so.2 is version 2.17.0, and 2.18.0 or newer"),
    ] {
        let e = found.unwrap();
        assert!(matches!(e, Error::OldLibrary { .. }) && e.to_string().contains(says), "{e}");
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_driver_that_is_too_old_is_named() {
    let name = "streams::a_driver_that_is_too_old_is_named";
    if !stand_ins() {
        return;
    }
    if !with_settings(name, &[("PHALANX_STANDIN_DRIVER_VERSION", "11080")]) {
        return;
    }
    let e = Context::open(0).unwrap_err();
    assert!(matches!(e, Error::OldDriver { .. }) && e.to_string().contains("11.8"), "{e}");
}
