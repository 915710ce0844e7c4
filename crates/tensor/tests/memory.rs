//! A step's memory: reused from the second step on, and released while the backward pass goes on.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap too")]

use std::sync::Arc;

use phalanx_host::{Arena, Cpu, Isa, PoolStats};
use phalanx_tensor::{Conv, DType, Device, Fuse, LeafId, LeafMemory, LeafSink, Result, Tensor};

fn device() -> (Device, Arc<Cpu>) {
    let cpu = Arc::new(Cpu::new(Isa::detect(), 1).unwrap());
    (Device::Cpu(cpu.clone()), cpu)
}

/// Gradients go to an arena, one place after the other.
struct Places {
    arena: Arena,
    starts: Vec<usize>,
    written: Vec<bool>,
}

impl LeafSink for Places {
    fn wants(&self, leaf: LeafId) -> bool {
        (leaf.0 as usize) < self.written.len()
    }
    fn memory(&mut self, leaf: LeafId) -> Result<Option<LeafMemory>> {
        let i = leaf.0 as usize;
        let accumulate = std::mem::replace(&mut self.written[i], true);
        Ok(Some(LeafMemory { range: self.arena.write(self.starts[i]..self.starts[i + 1])?, accumulate }))
    }
    fn ready(&mut self, _: LeafId, _: Option<Tensor>) -> Result<()> {
        Ok(())
    }
}

#[test]
fn from_the_second_step_on_nothing_large_comes_from_the_system() {
    let (device, cpu) = device();
    let shapes: [&[usize]; 8] =
        [&[16, 3, 3, 3], &[16], &[16], &[16], &[64, 16 * 64], &[64], &[10, 64], &[10]];
    let mut starts = vec![0];
    for s in shapes {
        starts.push(starts[starts.len() - 1] + 4 * s.iter().product::<usize>());
    }
    let (weights, gradients) = (Arena::zeroed(starts[8]).unwrap(), Arena::zeroed(starts[8]).unwrap());
    {
        let mut w = weights.write(0..starts[8]).unwrap();
        w.as_mut_slice::<f32>()
            .unwrap()
            .iter_mut()
            .enumerate()
            .for_each(|(i, w)| *w = (i as f32).sin() * 0.05);
    }
    let x = Tensor::full(0.3f32, [64, 16, 16, 3], &device).unwrap();
    let labels = Tensor::full(3i64, [64], &device).unwrap();
    let step = || -> PoolStats {
        let p: Vec<Tensor> = (0..8)
            .map(|i| {
                let w = Tensor::from_arena(&weights, starts[i] / 4, DType::F32, shapes[i].into(), &device);
                w.leaf_named(LeafId(i as u64))
            })
            .collect();
        let h = x.conv2d(&p[0], Some(&p[1]), &Conv::new().padding(&[1])).unwrap();
        let h = h.batch_norm_train(&p[2], &p[3], 1e-5).unwrap().y.relu().unwrap();
        let h = h.max_pool2d([2, 2], [2, 2], [0, 0]).unwrap().reshape(&[64, 16 * 64]).unwrap();
        let h = h.linear(&p[4], Some(&p[5])).unwrap().relu().unwrap();
        let h = h.dropout(0.5, phalanx_host::rng::Key::new(1)).unwrap();
        let loss = h.linear(&p[6], Some(&p[7])).unwrap().cross_entropy(&labels, None).unwrap();
        let sink = &mut Places { arena: gradients.clone(), starts: starts.clone(), written: vec![false; 8] };
        loss.backward(sink).unwrap();
        assert!(sink.written.iter().all(|&w| w));
        cpu.pool.stats()
    };
    let (first, second) = (step(), step());
    assert!(first.large_system_allocs > 0, "the step is large enough to tell");
    for _ in 0..3 {
        let later = step();
        assert_eq!(later.large_system_allocs, first.large_system_allocs);
        assert_eq!(later.peak, second.peak);
    }
}

#[test]
fn backward_frees_what_the_forward_pass_saved_as_it_goes() {
    let (device, cpu) = device();
    let bytes = 256 * 256 * 4;
    let x = Tensor::full(0.01f32, [256, 256], &device).unwrap().leaf();
    let mut y = x.clone();
    for _ in 0..50 {
        y = y.tanh().unwrap();
    }
    let loss = y.sum_all().unwrap();
    drop(y);
    let forward = cpu.pool.stats();
    assert!(forward.live >= 50 * bytes);
    let gradients = loss.gradients().unwrap();
    let after = cpu.pool.stats();
    assert!(after.peak <= forward.peak + 3 * bytes, "{} after {}", after.peak, forward.peak);
    // What is left: the input, its gradient, the loss.
    assert!(after.live <= 3 * bytes, "{} bytes live", after.live);
    assert!(gradients.get(&x).is_some());
}

#[test]
fn a_fused_norm_gives_the_bits_of_its_parts_and_makes_one_result_instead_of_three() {
    let [n, c] = [4096usize, 64];
    let step = |fused: bool| {
        let (device, cpu) = device();
        let make = |k: f32, shape: &[usize]| {
            let data: Vec<f32> = (0..shape.iter().product()).map(|i| (k * i as f32).sin()).collect();
            Tensor::from_slice(&data, shape, &device).unwrap().leaf()
        };
        let (gamma, beta) = (make(0.7, &[c]), make(0.3, &[c]));
        let leaves = [make(0.11, &[n, c]), make(0.13, &[n, c])];
        let norm = |x: &Tensor, residual: Option<&Tensor>| {
            if fused {
                let fuse = Fuse { residual, relu: true };
                return x.batch_norm_train_with(&gamma, &beta, 1e-5, fuse).unwrap().y;
            }
            let y = x.batch_norm_train(&gamma, &beta, 1e-5).unwrap().y;
            residual.map_or(y.clone(), |r| y.add(r).unwrap()).relu().unwrap()
        };
        let before = cpu.pool.stats().live;
        let y = norm(&leaves[0], Some(&leaves[1]));
        let forward = cpu.pool.stats().peak - before;
        let values = y.to_vec::<f32>().unwrap();
        // Its own input is the residual, too, as in a block without a projection.
        let y = norm(&norm(&y, None), Some(&y));
        let loss = y.square().unwrap().sum_all().unwrap();
        drop(y);
        let gradients = loss.gradients().unwrap();
        let of = |t: &Tensor| gradients.get(t).unwrap().to_vec::<f32>().unwrap();
        let numbers = [values, of(&leaves[0]), of(&leaves[1]), of(&gamma), of(&beta)];
        (forward, cpu.pool.stats().peak, numbers)
    };
    let (fused, apart) = (step(true), step(false));
    assert!(fused.2 == apart.2, "a bit differs");
    // One result instead of three.
    assert!(fused.0 < n * c * 4 * 5 / 4 && apart.0 >= n * c * 4 * 3, "{} of {}", fused.0, apart.0);
    // What both keep for the backward pass is the same: the input and the output, which the next layer keeps anyway.
    assert!(fused.1 <= apart.1 + 4096, "{} of {}", fused.1, apart.1);
}
