//! Every kernel, compiled by NVIDIA's compiler for the architectures that we name: it needs no GPU. Ignored unless asked for;
//! `tests/run` asks, where it could install NVRTC.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use phalanx_gpu::{KernelResources, compile, resources};
use phalanx_nn::flat::kernel_sources;

/// Kernels that may have local memory: sine and cosine of large arguments reduce them by a table of CUDA's, which is no array of
/// registers.
const RARE: [&str; 3] = ["dropout/normal", "elementwise/map_rare", "elementwise/map_gradient_rare"];

#[test]
#[ignore = "needs NVRTC"]
fn nvrtc_every_kernel_compiles_and_keeps_to_registers() {
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
    for (source, arch, KernelResources { kernel, registers, spill, .. }) in &found {
        let name = format!("{source}/{kernel}");
        if *spill > 0 || *registers > 128 {
            println!("{arch} {name}: {registers} registers, {spill} bytes of local memory");
        }
        assert!(*spill == 0 || RARE.contains(&&*name), "{arch} {name} has {spill} bytes of local memory");
    }
    assert!(found.len() > 700, "{} kernels", found.len());
}
