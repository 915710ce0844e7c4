use std::process::Command;

use phalanx_gpu::{Buffer, Context, Source, Type};

/// Kernels of the tests.
pub(crate) static KERNELS: Source = Source {
    name: "tests",
    text: r#"
struct Shape { long long size[3]; int axes; };

extern "C" __global__ void scale(float* y, const float* x, float by, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * by;
}

extern "C" __global__ void count(unsigned* y, unsigned add, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += add;
}

extern "C" __global__ void count_by(unsigned* y, const unsigned* at, unsigned add, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += at ? *at : add;
}

extern "C" __global__ void shape(long long* y, Shape s, unsigned long long u, int i, double d) {
    y[0] = s.size[0]; y[1] = s.size[1]; y[2] = s.size[2]; y[3] = s.axes; y[4] = (long long)u; y[5] = i; y[6] = (long long)d;
}

extern "C" __global__ void reverse(float* y, const float* x) {
    extern __shared__ float block[];
    block[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = block[blockDim.x - 1 - threadIdx.x];
}
"#,
};

/// The first device: of the stand-ins that `PHALANX_CUDA_PATH` names, or of the machine.
pub(crate) fn context() -> Context {
    Context::open(0).unwrap()
}

/// Whether the stand-ins are tested, and not a device.
pub(crate) fn stand_ins() -> bool {
    std::env::var_os("PHALANX_CUDA_PATH").is_some()
}

/// Runs test `name` again in a process with other settings. True in that process: there the test goes on.
pub(crate) fn with_settings(name: &str, settings: &[(&str, &str)]) -> bool {
    const MARK: &str = "PHALANX_TEST_AGAIN";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args([name, "--exact", "--ignored", "--nocapture"]).env(MARK, "1").envs(settings.iter().copied());
    let out = again.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
    false
}

pub(crate) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(crate) fn to_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A buffer with these bytes.
pub(crate) fn buffer(c: &Context, bytes: &[u8]) -> Buffer {
    let b = c.alloc(bytes.len()).unwrap();
    c.upload(&b, 0, bytes).unwrap();
    b
}

/// Small whole numbers in a type that holds them exactly.
pub(crate) fn encode(of: Type, values: &[f32]) -> Vec<u8> {
    match of {
        Type::F32 => floats(values),
        Type::Bf16 => values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect(),
        Type::F16 => values.iter().flat_map(|v| half(*v).to_le_bytes()).collect(),
    }
}

fn half(v: f32) -> u16 {
    let bits = v.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    if v == 0.0 || v.is_nan() {
        return if v.is_nan() { 0x7e00 } else { sign };
    }
    sign | ((((bits >> 23 & 255) as i32 - 127 + 15) as u16) << 10) | (bits >> 13 & 0x3ff) as u16
}

pub(crate) fn decode(of: Type, bytes: &[u8]) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match of {
        Type::F32 => to_floats(bytes),
        Type::Bf16 => pairs().map(|h| f32::from_bits(u32::from(h) << 16)).collect(),
        Type::F16 => pairs()
            .map(|h| {
                let (e, m) = (i32::from(h >> 10 & 31), f32::from(h & 0x3ff));
                let v = match e {
                    0 => m / 1024.0 * 2f32.powi(-14),
                    31 if m > 0.0 => f32::NAN,
                    _ => (1.0 + m / 1024.0) * 2f32.powi(e - 15),
                };
                if h >> 15 == 1 { -v } else { v }
            })
            .collect(),
    }
}

/// Whole numbers from -3 to 3 that repeat nowhere near.
pub(crate) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as f32 % 7.0 - 3.0
        })
        .collect()
}
