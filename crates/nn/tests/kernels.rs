//! Every kernel, compiled by NVIDIA's compiler for the architectures that we name: it needs no GPU. Ignored unless asked for;
//! `tests/run` asks, where it could install NVRTC.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use phalanx_gpu::{KernelResources, compile, resources};
use phalanx_nn::flat::kernel_sources;

/// Kernels that a step of the networks for images spends its time in: nothing of theirs may lie in local memory.
const HOT: [&str; 15] = [
    "norm/moments_",
    "norm/normalise_",
    "norm/gradient_sums_",
    "norm/input_gradient_",
    "norm_rows/",
    "shape/convert_",
    "shape/add_",
    "shape/move_",
    "elementwise/map_bf16",
    "elementwise/map_gradient_bf16",
    "elementwise/zip_",
    "pool/max_",
    "loss/entropy_",
    "reduce/columns_",
    "optim/",
];

#[test]
#[ignore = "needs NVRTC"]
fn nvrtc_every_kernel_compiles_and_hot_ones_keep_to_registers() {
    let sources = kernel_sources();
    let work: Vec<_> =
        ["sm_80", "sm_90a"].iter().flat_map(|arch| sources.iter().map(move |s| (*s, *arch))).collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((source, arch)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let cubin =
                        compile(source, arch).unwrap_or_else(|e| panic!("{} for {arch}: {e}", source.name));
                    let kernels = resources(&cubin).unwrap();
                    assert!(!kernels.is_empty(), "{} has no kernels for {arch}", source.name);
                    found.lock().unwrap().extend(kernels.into_iter().map(|k| (source.name, *arch, k)));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by(|a, b| (a.1, a.0, &a.2.kernel).cmp(&(b.1, b.0, &b.2.kernel)));
    println!("{} kernels for {} sources and two architectures", found.len(), sources.len());
    let mut hot = 0;
    for (source, arch, KernelResources { kernel, registers, spill, .. }) in &found {
        let name = format!("{source}/{kernel}");
        if *spill > 0 || *registers > 128 {
            println!("{arch} {name}: {registers} registers, {spill} bytes of local memory");
        }
        if HOT.iter().any(|h| name.starts_with(h)) {
            hot += 1;
            // What sm_80's compiler cannot hold in registers, sm_90's can: there every hot kernel must.
            assert!(*spill == 0 || *arch == "sm_80", "{arch} {name} has {spill} bytes of local memory");
        }
    }
    assert!(hot > 60, "{hot} hot kernels");
}
