use phalanx_gpu::{Args, DevicePtr, Error, Grid, Source, compile};

use crate::common::{KERNELS, buffer, context, floats, to_floats, with_settings};

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_device_says_what_it_is() {
    let c = context();
    let info = c.info();
    assert!(!info.name.is_empty() && info.sms > 0 && info.memory > 0 && info.driver.0 >= 12, "{info:?}");
    assert!(info.arch().starts_with("sm_") && info.shared_per_block >= 48 << 10, "{info:?}");
    assert_eq!((c.ordinal(), format!("{c:?}")), (0, String::from("cuda:0")));
    assert_eq!(c, c.clone());
    assert!(phalanx_gpu::Context::count().unwrap() >= 1);
    let Err(Error::NoDevice { ordinal: 99, .. }) = phalanx_gpu::Context::open(99) else { panic!() };
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_kernel_gets_its_arguments_and_writes_its_result() {
    let c = context();
    let n = 10_000;
    let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let (x_on, y_on) = (buffer(&c, &floats(&x)), c.alloc(n * 4).unwrap());
    let args = Args::new().ptr(y_on.ptr()).ptr(x_on.ptr()).f32(0.5).i64(n as i64);
    c.launch(&KERNELS, "scale", Grid::linear(n, 256), args).unwrap();
    let mut y = vec![0; n * 4];
    c.download(y_on.ptr(), &mut y).unwrap();
    assert!(to_floats(&y).iter().zip(&x).all(|(y, x)| *y == x * 0.5));
    let parts = [(y_on.ptr().offset(8), 4), (x_on.ptr(), 0), (x_on.ptr().offset(20), 8)];
    assert_eq!(to_floats(&c.download_all(&parts).unwrap()), [1.0, 5.0, 6.0]);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn structs_go_by_value() {
    let c = context();
    let y = c.alloc(56).unwrap();
    // Three sizes, and a number of axes in the lower half of the last word.
    let shape: [i64; 4] = [-1, 1 << 40, 3, 7];
    let args = Args::new().ptr(y.ptr()).pod(shape).u64(1 << 50).i32(-9).f64(12.5);
    c.launch(&KERNELS, "shape", Grid::new([1, 1, 1], 1), args).unwrap();
    let got = c.download_all(&[(y.ptr(), 56)]).unwrap();
    let got: Vec<i64> = got.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(got, [-1, 1 << 40, 3, 7, 1 << 50, -9, 12]);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn shared_memory_beyond_48_kb_is_asked_for() {
    let c = context();
    let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let (x_on, y_on) = (buffer(&c, &floats(&x)), c.alloc(256).unwrap());
    for shared in [256, 100 << 10, 4096] {
        let args = Args::new().ptr(y_on.ptr()).ptr(x_on.ptr());
        c.fill_zero(y_on.ptr(), 256).unwrap();
        c.launch(&KERNELS, "reverse", Grid::new([1, 1, 1], 64).shared(shared), args).unwrap();
        let y = to_floats(&c.download_all(&[(y_on.ptr(), 256)]).unwrap());
        assert!(y.iter().rev().eq(&x));
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn no_blocks_no_launch_and_no_kernel_an_error() {
    let c = context();
    c.launch(&KERNELS, "scale", Grid::linear(0, 256), Args::new()).unwrap();
    let e = c.launch(&KERNELS, "scael", Grid::linear(1, 256), Args::new()).unwrap_err();
    assert!(matches!(e, Error::NoKernel { .. }), "{e}");
    assert!(e.to_string().contains("scael"), "{e}");
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_source_that_does_not_compile_comes_with_the_log() {
    let c = context();
    static BROKEN: Source =
        Source { name: "broken", text: "extern \"C\" __global__ void f() { nonsense; }\n" };
    let e = c.load(&BROKEN).unwrap_err();
    assert!(matches!(e, Error::Compile { .. }) && e.to_string().contains("nonsense"), "{e}");
    let e = compile(&BROKEN, "sm_90a").unwrap_err().to_string();
    assert!(e.contains("broken.cu") && e.contains("sm_90a"), "{e}");
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_compiled_source_comes_from_the_cache() {
    let c = context();
    c.load(&KERNELS).unwrap();
    // Whatever was in the cache: a second context of this process reads it, and it works.
    let other = phalanx_gpu::Context::open(0).unwrap();
    assert_ne!(c, other);
    let y = buffer(&other, &[0; 4]);
    let args = Args::new().ptr(y.ptr()).u32(5).u32(1);
    other.launch(&KERNELS, "count", Grid::linear(1, 256), args).unwrap();
    assert_eq!(other.download_all(&[(y.ptr(), 4)]).unwrap(), [5, 0, 0, 0]);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn an_access_out_of_bounds_is_an_error_at_the_wait() {
    let name = "kernels::an_access_out_of_bounds_is_an_error_at_the_wait";
    // In a process of its own: the error stays with the device's context.
    if !with_settings(name, &[]) {
        return;
    }
    let c = context();
    let args = Args::new().ptr(DevicePtr(64)).u32(5).u32(1);
    let launched = c.launch(&KERNELS, "count", Grid::linear(1, 256), args);
    let e = launched.and_then(|()| c.synchronize()).unwrap_err();
    assert!(matches!(e, Error::Call { .. }) && e.to_string().contains("CUDA_ERROR_"), "{e}");
}
