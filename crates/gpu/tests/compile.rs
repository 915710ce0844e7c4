//! The compiler without a device: NVIDIA's own, which needs none. Ignored unless asked for; `tests/run` asks, where it
//! could install that.
#![allow(clippy::unwrap_used, clippy::panic)]

use phalanx_gpu::{Error, Source, compile, resources};

static SPILLING: Source = Source {
    name: "resources",
    text: r#"
extern "C" __global__ void small(float* p) { p[threadIdx.x] *= 2.0f; }
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float* p, int k) {
    float a[48];
    for (int i = 0; i < 48; i++) a[i] = p[i * k];
    for (int j = 0; j < k; j++)
        for (int i = 0; i < 48; i++) a[i] = a[i] * a[(i + 7) % 48] + sinf(a[(i * 5) % 48]);
    for (int i = 0; i < 48; i++) p[i * k + threadIdx.x] = a[i];
}
extern "C" __global__ void shared_memory(float* p) {
    __shared__ float s[300];
    s[threadIdx.x] = p[threadIdx.x];
    __syncthreads();
    p[threadIdx.x] = s[threadIdx.x ^ 1];
}
"#,
};

#[test]
#[ignore = "needs NVRTC"]
fn nvrtc_a_cubin_says_what_its_kernels_take() {
    for (arch, reserved) in [("sm_80", 0), ("sm_90a", 1024)] {
        let found = resources(&compile(&SPILLING, arch).unwrap()).unwrap();
        let names: Vec<&str> = found.iter().map(|k| k.kernel.as_str()).collect();
        assert_eq!(names, ["shared_memory", "small", "spilling"]);
        assert!(found[0].shared == 1200 + reserved && found[1].shared == 0, "{found:?}");
        assert!(found[1].registers >= 4 && found[1].registers <= 16, "{found:?}");
        assert_eq!((found[2].registers, found[1].stack, found[1].spill), (32, 0, 0));
        assert!(found[2].spill > 0 && found[2].stack >= found[2].spill, "{found:?}");
    }
}

#[test]
#[ignore = "needs NVRTC"]
fn nvrtc_a_device_that_it_does_not_know_is_named_with_what_to_do() {
    let e = compile(&SPILLING, "sm_999").unwrap_err();
    assert!(matches!(e, Error::OldCompiler { .. }) && e.to_string().contains("sm_999"), "{e}");
}

#[test]
#[ignore = "needs NVRTC"]
fn nvrtc_an_error_names_the_line_of_the_source() {
    static BROKEN: Source =
        Source { name: "broken", text: "\nextern \"C\" __global__ void f() { nonsense; }\n" };
    match compile(&BROKEN, "sm_80") {
        Err(Error::Compile { log, .. }) => {
            assert!(log.contains("broken.cu") && log.contains("nonsense"), "{log}")
        }
        other => panic!("{other:?}"),
    }
}
