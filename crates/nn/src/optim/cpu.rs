//! The updates on the CPU: every element is read and written once; twice by rules that need norms first.

use phalanx_host::simd::{Kernel, Real, Simd};
use phalanx_host::{Cpu, Isa};

use super::rules;

/// The most elements that one task updates.
pub(super) const PIECE: usize = 1 << 16;

/// One task's part of an update: neighbouring elements of one parameter, or of several with one rule of weight
/// decay. All slices have the same length, or none where the rule keeps no such state.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    pub(super) weights: &'a mut [f32],
    pub(super) gradients: &'a [f32],
    pub(super) state: [&'a mut [f32]; 3],
    pub(super) decay: f32,
    /// The segment that it is cut from.
    pub(super) segment: usize,
    /// Whether the rate is set by norms.
    pub(super) adapts: bool,
    /// What [`Adaptive::measure`] has found.
    pub(super) squares: [f64; 2],
    /// The learning rate of an [`Adaptive`] rule.
    pub(super) rate: f32,
}

/// What gradients are multiplied by (1 over the weight of all samples), and the magnitude that they are then
/// cut to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scaling {
    pub(super) scale: f32,
    pub(super) bound: f32,
}

/// A piece's own constants.
#[derive(Clone, Copy)]
pub(super) struct Own<V> {
    pub(super) decay: V,
    pub(super) rate: V,
}

/// A vector's worth of elements: gradient and state in, state and new weights out.
pub(super) trait Rule: Copy + Send + Sync {
    /// Whether weight decay is added to the gradient before the rule sees it.
    const COUPLED: bool = true;
    /// The new weights; `gradient` is scaled, clipped and, when coupled, decayed.
    fn update<V: Simd<f32>>(&self, own: Own<V>, weight: V, gradient: V, state: &mut [V; 3]) -> V;
}

/// A rule whose learning rate depends on two norms of each parameter.
pub(super) trait Adaptive: Rule {
    /// The learning rate that the ratio multiplies.
    fn lr(&self) -> f64;
    /// Σ weight² and the sum of squares of what it is set against.
    fn measure(&self, isa: Isa, scaling: Scaling, piece: &Piece) -> [f64; 2];
    /// The trust ratio for these two norms, neither of which is zero.
    fn ratio(&self, norms: [f64; 2]) -> f64;
}

struct Update<'a, 'b, R> {
    rule: R,
    scaling: Scaling,
    piece: &'b mut Piece<'a>,
}

impl<R: Rule> Kernel<f32> for Update<'_, '_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<f32>>(self) {
        let Piece { weights, gradients, state, decay, rate, .. } = self.piece;
        let n = weights.len().min(gradients.len());
        let used = state.each_ref().map(|s| s.len() >= n);
        let (w, g, s) = (weights.as_mut_ptr(), gradients.as_ptr(), state.each_mut().map(|s| s.as_mut_ptr()));
        let own = Own { decay: V::splat(*decay), rate: V::splat(*rate) };
        let [scale, most, least] =
            [self.scaling.scale, self.scaling.bound, -self.scaling.bound].map(V::splat);
        let mut i = 0;
        while i < n {
            let k = (n - i).min(V::LANES);
            // SAFETY: i + k <= n elements of the weights, the gradients and those slices of state that are as
            // long, no others are touched, and k <= LANES.
            unsafe {
                let weight = V::load_first(w.add(i), k);
                let mut gradient = V::load_first(g.add(i), k).mul(scale);
                gradient = gradient.if_gt(most, most, gradient);
                gradient = least.if_gt(gradient, least, gradient);
                if R::COUPLED {
                    gradient = weight.mul_add(own.decay, gradient);
                }
                let mut state = [V::splat(0.0); 3];
                for j in 0..3 {
                    if used[j] {
                        state[j] = V::load_first(s[j].add(i), k);
                    }
                }
                self.rule.update(own, weight, gradient, &mut state).store_first(w.add(i), k);
                for j in 0..3 {
                    if used[j] {
                        state[j].store_first(s[j].add(i), k);
                    }
                }
            }
            i += k;
        }
    }
}

fn run(cpu: &Cpu, scaling: Scaling, rule: impl Rule, pieces: &mut [Piece]) {
    cpu.workers.chunks(pieces, 1, |_, part| {
        for piece in part {
            f32::dispatch(cpu.isa, Update { rule, scaling, piece });
        }
    });
}

/// Sets every piece's rate from the norms of its parameter, all of whose pieces must be there.
fn set_rates(cpu: &Cpu, scaling: Scaling, rule: impl Adaptive, pieces: &mut [Piece]) {
    cpu.workers.chunks(pieces, 1, |_, part| {
        for piece in part.iter_mut().filter(|p| p.adapts) {
            piece.squares = rule.measure(cpu.isa, scaling, piece);
        }
    });
    for parameter in pieces.chunk_by_mut(|a, b| a.segment == b.segment) {
        let norms = [0, 1].map(|i| parameter.iter().map(|p| p.squares[i]).sum::<f64>().sqrt());
        let ratio = if norms[0] > 0.0 && norms[1] > 0.0 { rule.ratio(norms) } else { 1.0 };
        parameter.iter_mut().for_each(|p| p.rate = (rule.lr() * ratio) as f32);
    }
}

/// A rule with the constants of one step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Plain(rules::Plain),
    Momentum(rules::Momentum),
    Adam(rules::Adam<false>),
    AdamW(rules::Adam<true>),
    RmsProp(rules::RmsProp),
    Adagrad(rules::Adagrad),
    Lars(rules::Lars),
    Lamb(rules::LambMoments, rules::Lamb),
}

impl Step {
    /// Updates all pieces.
    pub(super) fn run(self, cpu: &Cpu, scaling: Scaling, pieces: &mut [Piece]) {
        match self {
            Step::Plain(rule) => run(cpu, scaling, rule, pieces),
            Step::Momentum(rule) => run(cpu, scaling, rule, pieces),
            Step::Adam(rule) => run(cpu, scaling, rule, pieces),
            Step::AdamW(rule) => run(cpu, scaling, rule, pieces),
            Step::RmsProp(rule) => run(cpu, scaling, rule, pieces),
            Step::Adagrad(rule) => run(cpu, scaling, rule, pieces),
            Step::Lars(rule) => {
                set_rates(cpu, scaling, rule, pieces);
                run(cpu, scaling, rule, pieces);
            }
            Step::Lamb(moments, rule) => {
                run(cpu, scaling, moments, pieces);
                set_rates(cpu, scaling, rule, pieces);
                run(cpu, scaling, rule, pieces);
            }
        }
    }
}
