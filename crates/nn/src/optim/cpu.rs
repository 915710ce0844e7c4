//! The updates on the CPU: every element once, in pieces cut by position.

use phalanx_host::Cpu;
use phalanx_host::simd::{Kernel, Real, Simd};

/// Elements that one task updates.
const PIECE: usize = 1 << 16;

/// The constants of an SGD step.
#[derive(Clone, Copy)]
pub(super) struct Sgd {
    scale: f32,
    lr: f32,
    momentum: f32,
    nesterov: bool,
    decay: f32,
    /// The velocity begins as the first gradient.
    first: bool,
}

impl Sgd {
    pub(super) fn new(scale: f64, lr: f64, momentum: f64, nesterov: bool, decay: f64, first: bool) -> Self {
        let [scale, lr, momentum, decay] = [scale, lr, momentum, decay].map(|x| x as f32);
        Sgd { scale, lr, momentum, nesterov, decay, first }
    }
}

struct SgdPiece<'a> {
    rule: Sgd,
    w: &'a mut [f32],
    g: &'a [f32],
    v: Option<&'a mut [f32]>,
}

impl Kernel<f32> for SgdPiece<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<f32>>(self) {
        let n = self.w.len().min(self.g.len());
        let (w, g) = (self.w.as_mut_ptr(), self.g.as_ptr());
        let v = self.v.map(|v| {
            assert!(v.len() >= n, "the velocity is shorter than the parameters");
            v.as_mut_ptr()
        });
        let r = self.rule;
        let [scale, step, momentum, decay] = [r.scale, -r.lr, r.momentum, r.decay].map(V::splat);
        let mut i = 0;
        while i < n {
            let k = (n - i).min(V::LANES);
            // SAFETY: i + k <= n elements of all slices, and k <= LANES.
            unsafe {
                let weight = V::load_first(w.add(i), k);
                let grad = weight.mul_add(decay, V::load_first(g.add(i), k).mul(scale));
                let mut change = grad;
                if let Some(v) = v {
                    let velocity = match r.first {
                        true => grad,
                        false => V::load_first(v.add(i), k).mul_add(momentum, grad),
                    };
                    velocity.store_first(v.add(i), k);
                    change = if r.nesterov { velocity.mul_add(momentum, grad) } else { velocity };
                }
                change.mul_add(step, weight).store_first(w.add(i), k);
            }
            i += k;
        }
    }
}

/// One SGD step on neighbouring parameters.
pub(super) fn sgd(cpu: &Cpu, rule: Sgd, w: &mut [f32], g: &[f32], v: Option<&mut [f32]>) {
    match v {
        None => cpu.workers.chunks(w, PIECE, |i, w| {
            let g = &g[i * PIECE..i * PIECE + w.len()];
            f32::dispatch(cpu.isa, SgdPiece { rule, w, g, v: None });
        }),
        Some(v) => {
            let mut pieces: Vec<_> =
                w.chunks_mut(PIECE).zip(g.chunks(PIECE)).zip(v.chunks_mut(PIECE)).collect();
            cpu.workers.chunks(&mut pieces, 1, |_, piece| {
                let [((w, g), v)] = piece else { return };
                f32::dispatch(cpu.isa, SgdPiece { rule, w, g, v: Some(v) });
            });
        }
    }
}

/// The constants of an Adam step.
#[derive(Clone, Copy)]
pub(super) struct Adam {
    scale: f32,
    beta1: f32,
    beta2: f32,
    /// Learning rate over the mean's bias.
    step: f32,
    /// 1 over the root of the mean square's bias.
    root: f32,
    eps: f32,
    decay: f32,
}

impl Adam {
    pub(super) fn new(
        scale: f64,
        lr: f64,
        [beta1, beta2]: [f64; 2],
        eps: f64,
        decay: f64,
        steps: u64,
    ) -> Self {
        let bias = |beta: f64| 1.0 - beta.powf(steps as f64);
        let (step, root) = (lr / bias(beta1), 1.0 / bias(beta2).sqrt());
        let [scale, beta1, beta2, step, root, eps, decay] =
            [scale, beta1, beta2, step, root, eps, decay].map(|x| x as f32);
        Adam { scale, beta1, beta2, step, root, eps, decay }
    }
}

struct AdamPiece<'a> {
    rule: Adam,
    w: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Kernel<f32> for AdamPiece<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<f32>>(self) {
        let n = self.w.len().min(self.g.len()).min(self.m.len()).min(self.v.len());
        let (w, g) = (self.w.as_mut_ptr(), self.g.as_ptr());
        let (m, v) = (self.m.as_mut_ptr(), self.v.as_mut_ptr());
        let r = self.rule;
        let [scale, step, root, eps, decay] = [r.scale, -r.step, r.root, r.eps, r.decay].map(V::splat);
        let [b1, b2, c1, c2] = [r.beta1, r.beta2, 1.0 - r.beta1, 1.0 - r.beta2].map(V::splat);
        let mut i = 0;
        while i < n {
            let k = (n - i).min(V::LANES);
            // SAFETY: i + k <= n elements of all slices, and k <= LANES.
            unsafe {
                let weight = V::load_first(w.add(i), k);
                let grad = weight.mul_add(decay, V::load_first(g.add(i), k).mul(scale));
                let mean = V::load_first(m.add(i), k).mul_add(b1, grad.mul(c1));
                let square = V::load_first(v.add(i), k).mul_add(b2, grad.mul(grad).mul(c2));
                mean.store_first(m.add(i), k);
                square.store_first(v.add(i), k);
                let change = mean.div(square.sqrt().mul_add(root, eps));
                change.mul_add(step, weight).store_first(w.add(i), k);
            }
            i += k;
        }
    }
}

/// One Adam step on neighbouring parameters.
pub(super) fn adam(cpu: &Cpu, rule: Adam, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let state = m.chunks_mut(PIECE).zip(v.chunks_mut(PIECE));
    let mut pieces: Vec<_> = w.chunks_mut(PIECE).zip(g.chunks(PIECE)).zip(state).collect();
    cpu.workers.chunks(&mut pieces, 1, |_, piece| {
        let [((w, g), (m, v))] = piece else { return };
        f32::dispatch(cpu.isa, AdamPiece { rule, w, g, m, v });
    });
}
