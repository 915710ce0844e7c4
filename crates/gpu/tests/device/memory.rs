use phalanx_gpu::{Args, Error, Grid};

use crate::common::{KERNELS, buffer, context, stand_ins, with_settings};

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_block_is_handed_out_again_and_counted() {
    let c = context();
    let a = c.alloc(3000).unwrap();
    let b = c.alloc(0).unwrap();
    assert_eq!((a.len(), b.len(), a.ptr().0 % 512, b.ptr().0 % 512), (3000, 0, 0, 0));
    assert_ne!(a.ptr(), b.ptr());
    let stats = c.memory();
    assert_eq!(
        (stats.live, stats.peak_live, stats.allocations, stats.device_allocations),
        (3584, 3584, 2, 1)
    );
    assert_eq!(stats.cached, (2 << 20) - 3584);
    let at = a.ptr();
    let clone = a.clone();
    drop(a);
    assert_ne!(c.alloc(3000).unwrap().ptr(), at, "a clone still has it");
    drop(clone);
    assert_eq!(c.alloc(3000).unwrap().ptr(), at);
    drop(b);
    assert_eq!(c.memory().live, 0);
    c.trim().unwrap();
    assert_eq!(c.memory().cached, 0);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn bytes_go_to_the_device_and_come_back_whole() {
    let c = context();
    // More than a piece of a copy, and a rest.
    let bytes: Vec<u8> = (0..20_000_003u32).map(|i| (i % 251) as u8).collect();
    let b = c.alloc(bytes.len() + 7).unwrap();
    c.upload(&b, 7, &bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    c.download(b.ptr().offset(7), &mut back).unwrap();
    assert!(back == bytes);
    let parts = [(b.ptr().offset(7), 3), (b.ptr().offset(10), bytes.len() - 3)];
    assert!(c.download_all(&parts).unwrap() == bytes);
    let copy = c.alloc(bytes.len()).unwrap();
    c.copy(copy.ptr(), b.ptr().offset(7), bytes.len()).unwrap();
    c.fill_zero(copy.ptr().offset(5), 10).unwrap();
    c.download(copy.ptr(), &mut back).unwrap();
    assert!(back[..5] == bytes[..5] && back[5..15] == [0; 10] && back[15..] == bytes[15..]);
    let e = c.upload(&b, 8, &bytes[..bytes.len()]).unwrap_err();
    assert!(matches!(e, Error::OutOfBounds { at: 8, .. }), "{e}");
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_download_has_what_was_there_when_it_was_begun() {
    let c = context();
    let [a, b] = [buffer(&c, &[1; 3000]), buffer(&c, &[2; 5])];
    let begun = c.begin_download(&[(b.ptr(), 5), (a.ptr(), 3000)]).unwrap();
    c.fill_zero(a.ptr(), 3000).unwrap();
    // Its block may be handed out and written to before anybody has waited.
    drop(b);
    let other = buffer(&c, &[9; 5]);
    let unread = c.begin_download(&[(a.ptr(), 3000)]).unwrap();
    drop(unread);
    let got = begun.wait().unwrap();
    assert!(got[..5] == [2; 5] && got[5..] == [1; 3000]);
    assert_eq!(c.download_all(&[(a.ptr(), 1), (other.ptr(), 5)]).unwrap(), [0, 9, 9, 9, 9, 9]);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn many_uploads_keep_their_bytes() {
    let c = context();
    let blocks: Vec<_> = (0..200u8).map(|i| buffer(&c, &[i; 100])).collect();
    for (i, b) in (0..).zip(&blocks) {
        assert_eq!(c.download_all(&[(b.ptr(), 100)]).unwrap(), [i; 100]);
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn uploads_from_several_threads_meet_no_other() {
    let c = context();
    std::thread::scope(|s| {
        for t in 0..4u8 {
            let c = c.clone();
            s.spawn(move || {
                for _ in 0..20 {
                    let b = buffer(&c, &[t; 5000]);
                    assert!(c.download_all(&[(b.ptr(), 5000)]).unwrap().iter().all(|v| *v == t));
                }
            });
        }
    });
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn pinned_memory_is_cached() {
    let c = context();
    let mut a = c.pinned(5000).unwrap();
    a.fill(7);
    let at = a.as_ptr();
    drop(a);
    let b = c.pinned(8000).unwrap();
    assert_eq!((b.as_ptr(), b.len()), (at, 8000), "the same power of two");
    assert_ne!(c.pinned(8000).unwrap().as_ptr(), at);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_full_device_gives_back_what_is_cached_then_says_what_is_live() {
    let name = "memory::a_full_device_gives_back_what_is_cached_then_says_what_is_live";
    if !stand_ins() || !with_settings(name, &[("PHALANX_STANDIN_MEMORY", "67108864")]) {
        return;
    }
    let c = context();
    let mib = 1 << 20;
    let blocks: Vec<_> = (0..3).map(|_| c.alloc(20 * mib).unwrap()).collect();
    let e = c.alloc(21 * mib).unwrap_err();
    let Error::OutOfMemory { wanted, fits, live, graphs, cached, total, ref largest, .. } = e else {
        panic!("{e}")
    };
    assert_eq!((wanted, live, cached, total), (21 << 20, 60 << 20, 0, 64 << 20), "{e}");
    assert_eq!((fits, graphs), (4 << 20, 0));
    assert_eq!(*largest, [20 << 20; 3]);
    drop(blocks);
    // No cached segment is large enough, but together they are.
    assert_eq!(c.alloc(50 * mib).unwrap().len(), 50 * mib);
    // Where the usual segment of 20 MB has no room, one as small as the request has.
    let most = c.alloc(50 * mib).unwrap();
    assert_eq!(c.alloc(5 * mib).unwrap().len(), 5 * mib);
    drop(most);
    // What graphs keep serves nobody else, and is no piece that is too small.
    let memory = c.graph_memory().unwrap();
    let in_use = memory.enter();
    drop((c.alloc(30 * mib).unwrap(), in_use));
    let e = c.alloc(40 * mib).unwrap_err();
    let Error::OutOfMemory { fits, graphs, cached, .. } = e else { panic!("{e}") };
    // Beside it there is the rest of a segment for small blocks, of which one lives.
    assert!((fits, graphs) == (32 << 20, 30 << 20) && cached < 2 << 20, "{e}");
    assert!(e.to_string().contains("31457280 kept for CUDA graphs"), "{e}");
}

/// Between blocks of one allocation of the device nobody sees where one ends.
#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_byte_beyond_a_block_is_found_where_blocks_are_apart() {
    let name = "memory::a_byte_beyond_a_block_is_found_where_blocks_are_apart";
    if !stand_ins() || !with_settings(name, &[("PHALANX_CUDA_APART", "1")]) {
        return;
    }
    let c = context();
    let (y, x) = (c.alloc(100).unwrap(), c.alloc(100).unwrap());
    let asked = c.memory().device_allocations;
    let scale = |n: i64| {
        let args = Args::new().ptr(y.ptr()).ptr(x.ptr()).f32(2.0).i64(n);
        c.launch(&KERNELS, "scale", Grid::new([1, 1, 1], 32), args)?;
        c.synchronize()
    };
    scale(25).unwrap();
    let e = scale(26).unwrap_err().to_string();
    assert!(e.contains("illegal") || e.contains("ILLEGAL"), "{e}");
    assert_eq!(asked, 2);
}
