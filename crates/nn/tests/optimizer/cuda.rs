//! The same rules on a GPU, against the CPU. Needs one, or the stand-in libraries that `tests/cuda/build` makes
//! (`PHALANX_CUDA_PATH`), so these tests are ignored unless asked for: `tests/run` asks.

use phalanx_host::{Arena, Isa};
use phalanx_nn::{Ema, EmaConfig, Optimizer, OptimizerConfig, ParamId, Params, Stored, flat};
use phalanx_tensor::Device;

use super::common::cpu;
use super::{all, configs, gradients, params, spec};

fn gpu() -> Device {
    Device::cuda(0).unwrap()
}

/// A copy of a host arena on the device.
fn sent(arena: &Arena, device: &Device) -> Arena {
    let there = device.arena(arena.len()).unwrap();
    let held = arena.read(0..arena.len()).unwrap();
    device.copy_arena(&held, &mut there.write(0..arena.len()).unwrap()).unwrap();
    there
}

fn values(arena: &Arena, device: &Device) -> Vec<f32> {
    let held = arena.read(0..arena.len()).unwrap();
    bytemuck::pod_collect_to_vec(&device.read_arena(&held).unwrap())
}

fn weights(params: &Params) -> Vec<f32> {
    params.read(0..params.elements(), <[f32]>::to_vec).unwrap()
}

/// Whether a rule's rates come from sums whose order is another one on a GPU.
fn trusts(config: &OptimizerConfig) -> bool {
    matches!(config, OptimizerConfig::Lars { .. } | OptimizerConfig::Lamb { .. })
}

fn compare(what: &str, got: &[f32], want: &[f32], exact: bool) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let near = (g - w).abs() <= 1e-5 * (1.0 + w.abs());
        assert!(g.to_bits() == w.to_bits() || (!exact && near), "{what} [{i}]: {g}, not {w}");
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn rules_give_what_they_give_on_the_cpu() {
    let device = gpu();
    // Products and sums are fused on a GPU, as by these instruction sets.
    let fused = Isa::detect() != Isa::Portable;
    for (n, config) in configs().into_iter().enumerate() {
        let (here, there) = (params(), params().on(&device).unwrap());
        let mut optimizers = [&here, &there].map(|p| Optimizer::new(&config, p, 0..6).unwrap());
        if n % 2 == 0 {
            optimizers.iter_mut().for_each(|o| o.clip_values(0.9));
        }
        for step in 0..3 {
            let g = gradients(&here, step);
            optimizers[0].step(&cpu(2), &here, &g, 0.125, config.lr()).unwrap();
            let g = sent(&g, &device);
            // In parts, as sums arrive.
            let update = optimizers[1].begin(0.125, config.lr());
            let start = |id| here.range(ParamId(id)).start;
            let end = here.range(ParamId(5)).end;
            for part in [start(4)..end, start(1)..start(4), 0..start(1)] {
                optimizers[1].update(&cpu(1), &there, &g, update, part).unwrap();
            }
        }
        let exact = fused && !trusts(&config);
        compare(&format!("{config:?}"), &weights(&there), &all(&here), exact);
        let [state, want] = [(1, &there), (0, &here)].map(|(i, p)| optimizers[i].export(p).unwrap());
        assert_eq!(state.len(), want.len());
        for ((name, (shape, got)), (expected, (wanted, want))) in state.iter().zip(&want) {
            assert_eq!((name, shape), (expected, wanted));
            compare(name, got, want, exact);
        }
        // And back in: nothing changes.
        let mut find = |name: &str| state.iter().find(|(n, ..)| n == name).map(|(_, v)| v.clone());
        let mut after = Optimizer::new(&config, &there, 0..6).unwrap();
        after.import(&there, 3, &mut find).unwrap();
        assert_eq!(after.export(&there).unwrap(), state, "{config:?}");
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn how_an_update_is_cut_changes_no_bits_and_no_parameter_may_be() {
    let device = gpu();
    for config in configs() {
        let bits = |cuts: &[usize]| {
            let params = params().on(&device).unwrap();
            let mut optimizer = Optimizer::new(&config, &params, 0..6).unwrap();
            let end = params.range(ParamId(5)).end;
            for step in 0..2 {
                let gradients = sent(&gradients(&params, step), &device);
                let update = optimizer.begin(0.125, config.lr());
                let bounds = [&[0], cuts, &[end]].concat();
                for part in bounds.windows(2).rev() {
                    optimizer.update(&cpu(1), &params, &gradients, update, part[0]..part[1]).unwrap();
                }
            }
            weights(&params).into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let start = |id| params().range(ParamId(id)).start;
        assert!(bits(&[]) == bits(&[1, 2, 3, 4, 5].map(start)), "{config:?}");
        let params = params().on(&device).unwrap();
        let mut optimizer = Optimizer::new(&config, &params, 0..6).unwrap();
        let (update, gradients) = (optimizer.begin(0.125, 0.1), sent(&gradients(&params, 0), &device));
        let e = optimizer.update(&cpu(1), &params, &gradients, update, 0..start(3) + 8).unwrap_err();
        assert!(e.to_string().contains("cuts fc.weight"), "{e}");
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn norms_averages_sums_and_rounding_are_the_cpus() {
    let device = gpu();
    let context = device.gpu().unwrap();
    let (here, there) = (params(), params().on(&device).unwrap());
    let sums = gradients(&here, 3);
    let sent_sums = sent(&sums, &device);
    for ids in [0..6u32, 1..4, 2..2] {
        let want = Optimizer::new(&configs()[0], &here, ids.clone()).unwrap();
        let want = want.gradient_norm(&cpu(1), &sums, 0.125).unwrap();
        let optimizer = Optimizer::new(&configs()[0], &there, ids.clone()).unwrap();
        let got = optimizer.gradient_norm(&cpu(1), &sent_sums, 0.125).unwrap();
        assert!((got - want).abs() <= 1e-12 * want, "{ids:?}: {got}, not {want}");
        assert_eq!(got.to_bits(), optimizer.gradient_norm(&cpu(1), &sent_sums, 0.125).unwrap().to_bits());
    }

    let config: EmaConfig = toml::from_str("decay = 0.9").unwrap();
    let mut averages = [&here, &there].map(|p| Ema::new(&config, p).unwrap());
    for params in [&here, &there] {
        params.initialise(77).unwrap();
    }
    compare("first values", &weights(&there), &all(&here), true);
    averages[0].update(&cpu(1), &here, 1).unwrap();
    averages[1].update(&cpu(1), &there, 1).unwrap();
    compare("average", &weights(averages[1].average()), &weights(averages[0].average()), true);

    // Back to the host, from where nothing is to move.
    let back = params().on(&device).unwrap().on(&Device::Cpu(cpu(1).into())).unwrap();
    assert!(back.home().is_none());
    compare("back", &all(&back), &all(&params()), true);

    // A target network, and a range that ends with no whole vector.
    there.copy(1..2, 2..3).unwrap();
    let len = 4 * 1003;
    let (a, b) = (device.arena(2 * 4096).unwrap(), device.arena(8192).unwrap());
    let numbers = &weights(&there)[..2048];
    device.write_arena(&mut a.write(0..8192).unwrap(), bytemuck::cast_slice(numbers)).unwrap();
    device.write_arena(&mut b.write(0..8192).unwrap(), bytemuck::cast_slice(numbers)).unwrap();
    let before = values(&a, &device);
    flat::add(context, &mut a.write(4096..4096 + len).unwrap(), &b.read(0..len).unwrap()).unwrap();
    let want =
        |i: usize| if (1024..1024 + 1003).contains(&i) { before[i] + before[i - 1024] } else { before[i] };
    compare("sum", &values(&a, &device), &(0..2048).map(want).collect::<Vec<_>>(), true);
    flat::round_bf16(context, &mut b.write(0..len).unwrap()).unwrap();
    let round = |i: usize| if i < 1003 { f32::from_bits(upper(before[i])) } else { before[i] };
    compare("bf16", &values(&b, &device), &(0..2048).map(round).collect::<Vec<_>>(), true);
}

/// The nearest number whose lower half is zero.
fn upper(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16 << 16
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn parameters_have_one_hash_wherever_they_are() {
    let device = gpu();
    // Two whole pieces and some, one to the byte, and less than one.
    for elements in [(2 << 18) + 77, 1 << 18, 500] {
        let specs = vec![spec("w", &[elements], Stored::Plain, true)];
        let params = Params::new(specs, &mut Arena::zeroed).unwrap();
        params.initialise(7).unwrap();
        let here = params.piece_hashes(&cpu(2).workers).unwrap();
        assert_eq!(here.len(), (params.elements() * 4).div_ceil(1 << 20));
        let there = params.on(&device).unwrap();
        assert_eq!(there.piece_hashes(&cpu(1).workers).unwrap(), here, "{elements}");
        there.write(elements / 2, &[0.5]).unwrap();
        assert_ne!(there.piece_hashes(&cpu(1).workers).unwrap(), here);
    }
}
