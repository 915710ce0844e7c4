//! The graph: dynamic control flow, shared leaves, release, second order.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap too")]

use phalanx_host::{Arena, ArenaMut, Cpu, Isa};
use phalanx_tensor::{DType, Device, Error, LeafId, LeafMemory, LeafSink, Result, Tensor};

fn device() -> Device {
    Device::cpu(Cpu::new(Isa::detect(), 1).unwrap())
}

/// The lecture's sine: adds terms of the Taylor series while the last one is above 0.001.
fn taylor_sine(x: &Tensor) -> (Tensor, usize) {
    let (mut sum, mut term, mut i) = (x.clone(), x.clone(), 0usize);
    while term.item().unwrap().abs() > 0.001 {
        term = term.mul(x).unwrap().mul(x).unwrap().scale(-1.0 / ((2 * i + 3) * (2 * i + 2)) as f64).unwrap();
        sum = sum.add(&term).unwrap();
        i += 1;
    }
    (sum, i)
}

#[test]
fn a_loop_whose_length_depends_on_the_data_has_a_gradient() {
    for dtype in [DType::F32, DType::F64] {
        let x = Tensor::scalar(std::f64::consts::PI, dtype, &device()).unwrap().leaf();
        let (y, terms) = taylor_sine(&x);
        assert_eq!(terms, 6);
        let g = y.gradients().unwrap().get(&x).unwrap().item().unwrap();
        assert!((g + 0.9999).abs() < 1e-5, "{g}");
    }
}

#[test]
fn a_very_long_chain_is_walked_and_dropped_without_overflowing_the_stack() {
    let x = Tensor::scalar(1.0, DType::F64, &device()).unwrap().leaf();
    let mut y = x.clone();
    for _ in 0..100_000 {
        y = y.offset(1e-6).unwrap();
    }
    assert_eq!(y.gradients().unwrap().get(&x).unwrap().item().unwrap(), 1.0);
    let mut z = x.clone();
    for _ in 0..100_000 {
        z = z.mul(&x).unwrap();
    }
    drop(z);
}

#[test]
fn a_second_walk_over_a_released_graph_is_an_error() {
    let x = Tensor::scalar(2.0, DType::F64, &device()).unwrap().leaf();
    let y = x.square().unwrap();
    y.gradients().unwrap();
    assert!(matches!(y.gradients(), Err(Error::GraphReleased { op: "square" })));
    let plain = x.detach().square().unwrap();
    assert!(matches!(plain.gradients(), Err(Error::Backward { .. })));
}

/// Lets gradients be written to an arena and notes the order of announcements.
struct ArenaSink {
    arena: Arena,
    place: Vec<std::ops::Range<usize>>,
    uses: Vec<usize>,
    ready: Vec<u64>,
}

impl LeafSink for ArenaSink {
    fn wants(&self, leaf: LeafId) -> bool {
        (leaf.0 as usize) < self.place.len()
    }
    fn memory(&mut self, leaf: LeafId) -> Result<Option<LeafMemory>> {
        let i = leaf.0 as usize;
        self.uses[i] += 1;
        let range: ArenaMut = self.arena.write(self.place[i].clone())?;
        Ok(Some(LeafMemory { range, accumulate: self.uses[i] > 1 }))
    }
    fn ready(&mut self, leaf: LeafId, collected: Option<Tensor>) -> Result<()> {
        assert!(collected.is_none());
        self.ready.push(leaf.0);
        Ok(())
    }
}

#[test]
fn gradients_go_straight_into_the_arena_and_each_leaf_is_announced_once_at_its_last_use() {
    let device = device();
    let arena = Arena::zeroed(64).unwrap();
    arena.write(0..64).unwrap().as_mut_slice::<f32>().unwrap().fill(f32::NAN);
    let leaf = |id: u64, v: [f32; 2]| Tensor::from_slice(&v, [2], &device).unwrap().leaf_named(LeafId(id));
    let (w, b, frozen) = (leaf(0, [2.0, 3.0]), leaf(1, [1.0, -1.0]), leaf(9, [5.0, 7.0]));
    // w is used three times, as a recurrent weight is.
    let mut h = b.clone();
    for _ in 0..3 {
        h = h.mul(&w).unwrap();
    }
    let loss = h.mul(&frozen).unwrap().sum_all().unwrap();
    let mut sink =
        ArenaSink { arena: arena.clone(), place: vec![0..8, 8..16], uses: vec![0; 2], ready: vec![] };
    loss.backward(&mut sink).unwrap();
    assert_eq!(sink.uses, [3, 1]);
    assert_eq!(sink.ready, [1, 0], "announced in the order in which the last uses are walked");
    let held = arena.read(0..16).unwrap();
    // d/dw b w³ f = 3 b w² f; d/db = w³ f.
    assert_eq!(held.as_slice::<f32>().unwrap(), [3.0 * 4.0 * 5.0, -3.0 * 9.0 * 7.0, 8.0 * 5.0, 27.0 * 7.0]);
}

#[test]
fn a_gradient_of_a_gradient_matches_its_formula() {
    let device = device();
    let x = Tensor::from_slice(&[0.3f64, -0.7, 1.1], [3], &device).unwrap().leaf();
    // f = Σ sigmoid(x)·x ; penalty = Σ f'(x)²
    let f = x.sigmoid().unwrap().mul(&x).unwrap().sum_all().unwrap();
    let g = f.gradient_graph(&[&x]).unwrap().remove(0).unwrap();
    let penalty = g.square().unwrap().sum_all().unwrap();
    let got = penalty.gradients().unwrap().get(&x).unwrap().to_vec::<f64>().unwrap();
    let first = |x: f64| {
        let s = 1.0 / (1.0 + (-x).exp());
        s + x * s * (1.0 - s)
    };
    for (x, got) in [0.3, -0.7, 1.1].into_iter().zip(got) {
        let h = 1e-5;
        let want = (first(x + h).powi(2) - first(x - h).powi(2)) / (2.0 * h);
        assert!((want - got).abs() < 1e-8, "{want} {got}");
    }
}
