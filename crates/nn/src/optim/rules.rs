//! The optimizers' rules, element by element.

use phalanx_host::Isa;
use phalanx_host::simd::Simd;

use super::cpu::{Adaptive, Own, Piece, Rule, Scaling};
use super::norms::squares;

/// Stochastic gradient descent without momentum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    pub(super) lr: f32,
}

impl Rule for Plain {
    #[inline(always)]
    fn update<V: Simd<f32>>(&self, _: Own<V>, weight: V, gradient: V, _: &mut [V; 3]) -> V {
        gradient.mul_add(V::splat(-self.lr), weight)
    }
}

/// Stochastic gradient descent with momentum; the state is the velocity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Momentum {
    pub(super) lr: f32,
    pub(super) momentum: f32,
    pub(super) nesterov: bool,
}

impl Rule for Momentum {
    #[inline(always)]
    fn update<V: Simd<f32>>(&self, _: Own<V>, weight: V, gradient: V, [velocity, ..]: &mut [V; 3]) -> V {
        let momentum = V::splat(self.momentum);
        *velocity = velocity.mul_add(momentum, gradient);
        let change = if self.nesterov { velocity.mul_add(momentum, gradient) } else { *velocity };
        change.mul_add(V::splat(-self.lr), weight)
    }
}

/// The running means of gradients and of their squares, of Adam and its kin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) beta: [f32; 2],
    /// 1 − β, rounded once: 1 minus the rounded β would be off by 1e-5 of it.
    pub(super) rest: [f32; 2],
    /// The mean's bias.
    pub(super) bias: f64,
    /// 1 over the root of the mean square's bias.
    pub(super) root: f32,
    pub(super) eps: f32,
}

impl Moments {
    /// `steps` counts the one that is made now.
    pub(super) fn new(beta: [f64; 2], eps: f64, steps: u64) -> Self {
        let [first, second] = beta.map(|b| 1.0 - b.powf(steps as f64));
        Moments {
            beta: beta.map(|b| b as f32),
            rest: beta.map(|b| (1.0 - b) as f32),
            bias: first,
            root: (1.0 / second.sqrt()) as f32,
            eps: eps as f32,
        }
    }

    #[inline(always)]
    fn observe<V: Simd<f32>>(&self, gradient: V, mean: &mut V, square: &mut V) {
        let ([b1, b2], [r1, r2]) = (self.beta.map(V::splat), self.rest.map(V::splat));
        *mean = mean.mul_add(b1, gradient.mul(r1));
        *square = square.mul_add(b2, gradient.mul(gradient).mul(r2));
    }

    /// The mean over the root of the mean square, the former's bias left in.
    #[inline(always)]
    fn ratio<V: Simd<f32>>(&self, mean: V, square: V) -> V {
        mean.div(square.sqrt().mul_add(V::splat(self.root), V::splat(self.eps)))
    }
}

/// Adam; the state is the running mean of gradients and of their squares and, for AMSGrad, the largest of the
/// latter. `DECOUPLED` is AdamW.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adam<const DECOUPLED: bool> {
    pub(super) moments: Moments,
    /// Learning rate over the mean's bias.
    pub(super) step: f32,
    pub(super) amsgrad: bool,
}

impl<const DECOUPLED: bool> Adam<DECOUPLED> {
    pub(super) fn new(lr: f64, moments: Moments, amsgrad: bool) -> Self {
        Adam { moments, step: (lr / moments.bias) as f32, amsgrad }
    }
}

impl<const DECOUPLED: bool> Rule for Adam<DECOUPLED> {
    const COUPLED: bool = !DECOUPLED;
    #[inline(always)]
    fn update<V: Simd<f32>>(
        &self,
        own: Own<V>,
        weight: V,
        gradient: V,
        [mean, square, largest]: &mut [V; 3],
    ) -> V {
        self.moments.observe(gradient, mean, square);
        let mut by = *square;
        if self.amsgrad {
            *largest = largest.max(by);
            by = *largest;
        }
        let change = self.moments.ratio(*mean, by);
        // `decay` is η λ here.
        let weight = if DECOUPLED { weight.sub(weight.mul(own.decay)) } else { weight };
        change.mul_add(V::splat(-self.step), weight)
    }
}

/// RMSprop; the state is the mean square, the mean when centered, the velocity when there is momentum.
#[derive(Clone, Copy, Debug)]
pub(super) struct RmsProp {
    pub(super) lr: f32,
    pub(super) alpha: f32,
    pub(super) rest: f32,
    pub(super) eps: f32,
    pub(super) momentum: f32,
    pub(super) centered: bool,
}

impl RmsProp {
    pub(super) fn new(lr: f64, alpha: f64, eps: f64, momentum: f64, centered: bool) -> Self {
        RmsProp {
            lr: lr as f32,
            alpha: alpha as f32,
            rest: (1.0 - alpha) as f32,
            eps: eps as f32,
            momentum: momentum as f32,
            centered,
        }
    }
}

impl Rule for RmsProp {
    #[inline(always)]
    fn update<V: Simd<f32>>(
        &self,
        _: Own<V>,
        weight: V,
        gradient: V,
        [square, mean, velocity]: &mut [V; 3],
    ) -> V {
        let (alpha, rest) = (V::splat(self.alpha), V::splat(self.rest));
        *square = square.mul_add(alpha, gradient.mul(gradient).mul(rest));
        let mut by = *square;
        if self.centered {
            *mean = mean.mul_add(alpha, gradient.mul(rest));
            // Rounding can take a variance of nothing below zero.
            by = by.sub(mean.mul(*mean)).max(V::splat(0.0));
        }
        let mut change = gradient.div(by.sqrt().add(V::splat(self.eps)));
        if self.momentum > 0.0 {
            *velocity = velocity.mul_add(V::splat(self.momentum), change);
            change = *velocity;
        }
        change.mul_add(V::splat(-self.lr), weight)
    }
}

/// Adagrad; the state is the sum of squares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adagrad {
    pub(super) lr: f32,
    pub(super) eps: f32,
}

impl Rule for Adagrad {
    #[inline(always)]
    fn update<V: Simd<f32>>(&self, _: Own<V>, weight: V, gradient: V, [sum, ..]: &mut [V; 3]) -> V {
        *sum = gradient.mul_add(gradient, *sum);
        let change = gradient.div(sum.sqrt().add(V::splat(self.eps)));
        change.mul_add(V::splat(-self.lr), weight)
    }
}

/// LARS; the state is the velocity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lars {
    pub(super) lr: f64,
    pub(super) momentum: f32,
    pub(super) trust: f64,
    pub(super) weight_decay: f64,
}

impl Rule for Lars {
    #[inline(always)]
    fn update<V: Simd<f32>>(&self, own: Own<V>, weight: V, gradient: V, [velocity, ..]: &mut [V; 3]) -> V {
        *velocity = velocity.mul_add(V::splat(self.momentum), gradient.mul(own.rate));
        weight.sub(*velocity)
    }
}

impl Adaptive for Lars {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn measure(&self, isa: Isa, scaling: Scaling, piece: &Piece) -> [f64; 2] {
        let Scaling { scale, bound } = scaling;
        // As the update's own loop has it, not-a-number included.
        let scaled = |[g]: [f32; 1]| {
            let g = g * scale;
            let g = if g > bound { bound } else { g };
            if -bound > g { -bound } else { g }
        };
        [squares(isa, [&*piece.weights], |[w]| w), squares(isa, [piece.gradients], scaled)]
    }

    fn ratio(&self, [weights, gradients]: [f64; 2]) -> f64 {
        self.trust * weights / (gradients + self.weight_decay * weights)
    }
}

/// LAMB's first half: the running means; the weights stay.
#[derive(Clone, Copy, Debug)]
pub(super) struct LambMoments(pub(super) Moments);

impl Rule for LambMoments {
    const COUPLED: bool = false;
    #[inline(always)]
    fn update<V: Simd<f32>>(&self, _: Own<V>, weight: V, gradient: V, [mean, square, _]: &mut [V; 3]) -> V {
        self.0.observe(gradient, mean, square);
        weight
    }
}

/// LAMB's second half: the step, its size from the norms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lamb {
    pub(super) lr: f64,
    pub(super) moments: Moments,
}

impl Rule for Lamb {
    const COUPLED: bool = false;
    #[inline(always)]
    fn update<V: Simd<f32>>(&self, own: Own<V>, weight: V, _: V, [mean, square, _]: &mut [V; 3]) -> V {
        let step = self.moments.ratio(*mean, *square).mul(V::splat((1.0 / self.moments.bias) as f32));
        weight.sub(weight.mul_add(own.decay, step).mul(own.rate))
    }
}

impl Adaptive for Lamb {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn measure(&self, isa: Isa, _: Scaling, piece: &Piece) -> [f64; 2] {
        let Moments { bias, root, eps, .. } = self.moments;
        let (unbias, decay) = ((1.0 / bias) as f32, piece.decay);
        let [mean, square, _] = &piece.state;
        let step = |[w, m, v]: [f32; 3]| m / (v.sqrt() * root + eps) * unbias + decay * w;
        [squares(isa, [&*piece.weights], |[w]| w), squares(isa, [&*piece.weights, &**mean, &**square], step)]
    }

    fn ratio(&self, [weights, step]: [f64; 2]) -> f64 {
        weights / step
    }
}
