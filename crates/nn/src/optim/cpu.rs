//! The updates on the CPU: every element is read and written once.

use phalanx_host::Cpu;
use phalanx_host::simd::{Kernel, Real, Simd};

/// One task's part of an update: neighbouring elements with one rule of weight decay. All slices have
/// the same length; `state` is what the optimizer remembers, as many slices as its rule asks for.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    pub(super) weights: &'a mut [f32],
    pub(super) gradients: &'a [f32],
    pub(super) state: [&'a mut [f32]; 2],
    pub(super) decay: f32,
}

/// A vector's worth of elements: gradient and state in, state and change of weight out.
trait Rule: Copy + Send + Sync {
    /// How many of a piece's state slices are used.
    const STATE: usize;
    /// `gradient` is scaled and decayed; what is returned is added to `weight`.
    fn update<V: Simd<f32>>(&self, weight: V, gradient: V, state: &mut [V; 2]) -> V;
    /// 1 over the weight of all samples.
    fn scale(&self) -> f32;
}

/// Stochastic gradient descent without momentum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    pub(super) scale: f32,
    pub(super) lr: f32,
}

impl Rule for Plain {
    const STATE: usize = 0;
    #[inline(always)]
    fn update<V: Simd<f32>>(&self, weight: V, gradient: V, _: &mut [V; 2]) -> V {
        gradient.mul_add(V::splat(-self.lr), weight)
    }
    fn scale(&self) -> f32 {
        self.scale
    }
}

/// Stochastic gradient descent with momentum; the state is the velocity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Momentum {
    pub(super) scale: f32,
    pub(super) lr: f32,
    pub(super) momentum: f32,
    pub(super) nesterov: bool,
}

impl Rule for Momentum {
    const STATE: usize = 1;
    #[inline(always)]
    fn update<V: Simd<f32>>(&self, weight: V, gradient: V, [velocity, _]: &mut [V; 2]) -> V {
        let momentum = V::splat(self.momentum);
        *velocity = velocity.mul_add(momentum, gradient);
        let change = if self.nesterov { velocity.mul_add(momentum, gradient) } else { *velocity };
        change.mul_add(V::splat(-self.lr), weight)
    }
    fn scale(&self) -> f32 {
        self.scale
    }
}

/// Adam; the state is the running mean of gradients and of their squares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adam {
    scale: f32,
    beta: [f32; 2],
    /// 1 − β, rounded once: 1 minus the rounded β would be off by 1e-5 of it.
    rest: [f32; 2],
    /// Learning rate over the mean's bias.
    step: f32,
    /// 1 over the root of the mean square's bias.
    root: f32,
    eps: f32,
}

impl Adam {
    /// `steps` counts the one that is made now.
    pub(super) fn new(scale: f64, lr: f64, beta: [f64; 2], eps: f64, steps: u64) -> Self {
        let [first, second] = beta.map(|b| 1.0 - b.powf(steps as f64));
        Adam {
            scale: scale as f32,
            beta: beta.map(|b| b as f32),
            rest: beta.map(|b| (1.0 - b) as f32),
            step: (lr / first) as f32,
            root: (1.0 / second.sqrt()) as f32,
            eps: eps as f32,
        }
    }
}

impl Rule for Adam {
    const STATE: usize = 2;
    #[inline(always)]
    fn update<V: Simd<f32>>(&self, weight: V, gradient: V, [mean, square]: &mut [V; 2]) -> V {
        let ([b1, b2], [r1, r2]) = (self.beta.map(V::splat), self.rest.map(V::splat));
        *mean = mean.mul_add(b1, gradient.mul(r1));
        *square = square.mul_add(b2, gradient.mul(gradient).mul(r2));
        let change = mean.div(square.sqrt().mul_add(V::splat(self.root), V::splat(self.eps)));
        change.mul_add(V::splat(-self.step), weight)
    }
    fn scale(&self) -> f32 {
        self.scale
    }
}

struct Update<'a, 'b, R> {
    rule: R,
    piece: &'b mut Piece<'a>,
}

impl<R: Rule> Kernel<f32> for Update<'_, '_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<f32>>(self) {
        let Piece { weights, gradients, state: [s0, s1], decay } = self.piece;
        let mut n = weights.len().min(gradients.len());
        // State that the rule does not use may be empty.
        for s in [&*s0, &*s1].into_iter().take(R::STATE) {
            n = n.min(s.len());
        }
        let (w, g, s) = (weights.as_mut_ptr(), gradients.as_ptr(), [s0.as_mut_ptr(), s1.as_mut_ptr()]);
        let (scale, decay) = (V::splat(self.rule.scale()), V::splat(*decay));
        let mut i = 0;
        while i < n {
            let k = (n - i).min(V::LANES);
            // SAFETY: i + k <= n elements of the weights, the gradients and the first STATE slices of
            // state, no others are touched, and k <= LANES.
            unsafe {
                let weight = V::load_first(w.add(i), k);
                let gradient = weight.mul_add(decay, V::load_first(g.add(i), k).mul(scale));
                let mut state = [V::splat(0.0); 2];
                for j in 0..R::STATE {
                    state[j] = V::load_first(s[j].add(i), k);
                }
                self.rule.update(weight, gradient, &mut state).store_first(w.add(i), k);
                for j in 0..R::STATE {
                    state[j].store_first(s[j].add(i), k);
                }
            }
            i += k;
        }
    }
}

fn run(cpu: &Cpu, rule: impl Rule, pieces: &mut [Piece]) {
    cpu.workers.chunks(pieces, 1, |_, part| {
        for piece in part {
            f32::dispatch(cpu.isa, Update { rule, piece });
        }
    });
}

/// A rule with the constants of one step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Plain(Plain),
    Momentum(Momentum),
    Adam(Adam),
}

impl Step {
    /// Updates all pieces.
    pub(super) fn run(self, cpu: &Cpu, pieces: &mut [Piece]) {
        match self {
            Step::Plain(rule) => run(cpu, rule, pieces),
            Step::Momentum(rule) => run(cpu, rule, pieces),
            Step::Adam(rule) => run(cpu, rule, pieces),
        }
    }
}
