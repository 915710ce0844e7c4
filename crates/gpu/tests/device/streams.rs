use std::time::Duration;

use phalanx_gpu::{Args, Buffer, Context, Error, Grid};

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
