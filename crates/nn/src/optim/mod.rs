//! Optimizers: one pass over the flat arena, state beside it.

mod config;
mod cpu;
mod cuda;
mod ema;
mod norms;
mod rules;

use std::borrow::Cow;
use std::ops::Range;

pub use config::OptimizerConfig;
pub use cuda::{
    AVERAGE, Guard, Judged, UPDATE, add, kernel_sources, load, round_bf16, round_bf16_on, round_f16,
    round_f16_on, sum_on,
};
pub use ema::{Ema, EmaConfig};
pub use norms::clip_factor;
use phalanx_host::{Arena, Cpu};
use phalanx_tensor::Device;

use crate::params::{Find, ParamId, Params, Values, bytes};
use crate::{Error, Result};

/// The constants of one update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    step: cpu::Step,
    scaling: cpu::Scaling,
    decay: f32,
    /// The scale of gradients, not rounded.
    exact: f64,
}

/// Neighbouring elements that are updated alike.
#[derive(Debug)]
struct Segment {
    /// From the first parameter's start to the next segment's, or to the last parameter's end.
    elements: Range<usize>,
    /// Whether weight decay and trust ratios apply: not to norms and biases.
    decays: bool,
}

/// An optimizer of some neighbouring parameters of a model.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    ids: Range<u32>,
    /// The parameters' place in the arena, from the first one's start to the last one's end.
    elements: Range<usize>,
    /// They fill the place from its start to its end. A rule that needs norms has one for each parameter.
    segments: Vec<Segment>,
    state: State,
    /// What averaged gradients are cut to.
    bound: f32,
    steps: u64,
}

/// The state, by kind, laid out like the parameters: where they are.
#[derive(Debug)]
enum State {
    /// Empty where the rule has none of the kind.
    Host([Vec<f32>; 3]),
    Cuda(cuda::Kept),
}

impl Optimizer {
    /// An optimizer without history for the parameters `ids`, in whose memory its state is.
    pub fn new(config: &OptimizerConfig, params: &Params, ids: Range<u32>) -> Result<Self> {
        config.check()?;
        if ids.end as usize > params.len() {
            let problem = format!("parameters {ids:?} are not among the model's {}", params.len());
            return Err(Error::config("optimizer", problem));
        }
        let (trusts, decaying) = (config.trusts(), config.weight_decay() != 0.0);
        let mut segments: Vec<Segment> = Vec::new();
        for id in ids.clone().map(ParamId) {
            let (range, decays) = (params.range(id), params.spec(id).decay && (decaying || trusts));
            match segments.last_mut() {
                Some(last) if last.decays == decays && !trusts => last.elements.end = range.end,
                // What lies between two parameters is padding: zero in parameters and gradients, so it stays
                // zero whatever rule it falls under.
                last => {
                    if let Some(last) = last {
                        last.elements.end = range.start;
                    }
                    segments.push(Segment { elements: range, decays });
                }
            }
        }
        let elements = match (segments.first(), segments.last()) {
            (Some(a), Some(b)) => a.elements.start..b.elements.end,
            _ => 0..0,
        };
        let (kinds, first) = (config.state_names().map(|name| name.is_some()), config.first_state());
        let state = match params.home().and_then(Device::gpu) {
            Some(gpu) => {
                let decays = |id| params.spec(id).decay && (decaying || trusts);
                let (ids, elements) = (ids.clone(), elements.clone());
                State::Cuda(cuda::Kept::new(gpu, params, ids, elements, decays, kinds, first, trusts)?)
            }
            None => State::Host(kinds.map(|there| vec![first; if there { elements.len() } else { 0 }])),
        };
        let (config, bound) = (config.clone(), f32::INFINITY);
        Ok(Optimizer { config, ids, elements, segments, state, bound, steps: 0 })
    }

    /// Cuts every averaged gradient to `-bound..=bound` from now on, before weight decay, as
    /// `torch.nn.utils.clip_grad_value_` does.
    pub fn clip_values(&mut self, bound: f64) {
        self.bound = bound as f32;
    }

    /// Updates made so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The Euclidean norm of the averaged gradients of all parameters together: of `gradients` times `scale`.
    pub fn gradient_norm(&self, cpu: &Cpu, gradients: &Arena, scale: f64) -> Result<f64> {
        if let State::Cuda(kept) = &self.state {
            return Ok(kept.norm(gradients)? * scale);
        }
        let gradients = gradients.read(bytes(&self.elements))?;
        Ok(norms::norm(cpu, gradients.as_slice()?) * scale)
    }

    /// Makes one update from gradient sums laid out like the parameters. They are multiplied by `scale`
    /// (1 over the weight of all samples) first; `lr` is the learning rate of this step.
    pub fn step(&mut self, cpu: &Cpu, params: &Params, gradients: &Arena, scale: f64, lr: f64) -> Result<()> {
        let update = self.begin(scale, lr);
        self.update(cpu, params, gradients, update, self.elements.clone())
    }

    /// Begins an update that is made part by part; `scale` and `lr` as in [`Optimizer::step`]. Every element of this
    /// optimizer's parameters is to be in one part, and no part may end inside a parameter: rules go by element, or
    /// by parameter, so how the parts are cut changes no bit.
    pub fn begin(&mut self, scale: f64, lr: f64) -> Update {
        self.steps += 1;
        let moments = |beta, eps| rules::Moments::new(beta, eps, self.steps);
        let (rate, decay) = (lr as f32, self.config.weight_decay());
        let step = match self.config {
            OptimizerConfig::Sgd { momentum: 0.0, .. } => cpu::Step::Plain(rules::Plain { lr: rate }),
            OptimizerConfig::Sgd { momentum, nesterov, .. } => {
                cpu::Step::Momentum(rules::Momentum { lr: rate, momentum: momentum as f32, nesterov })
            }
            OptimizerConfig::Adam { beta1, beta2, eps, amsgrad, .. } => {
                cpu::Step::Adam(rules::Adam::new(lr, moments([beta1, beta2], eps), amsgrad))
            }
            OptimizerConfig::AdamW { beta1, beta2, eps, amsgrad, .. } => {
                cpu::Step::AdamW(rules::Adam::new(lr, moments([beta1, beta2], eps), amsgrad))
            }
            OptimizerConfig::RmsProp { alpha, eps, momentum, centered, .. } => {
                cpu::Step::RmsProp(rules::RmsProp::new(lr, alpha, eps, momentum, centered))
            }
            OptimizerConfig::Adagrad { lr_decay, eps, .. } => {
                let lr = lr / (1.0 + (self.steps - 1) as f64 * lr_decay);
                cpu::Step::Adagrad(rules::Adagrad { lr: lr as f32, eps: eps as f32 })
            }
            OptimizerConfig::Lars { momentum, trust_coefficient, weight_decay, .. } => {
                let (momentum, trust) = (momentum as f32, trust_coefficient);
                cpu::Step::Lars(rules::Lars { lr, momentum, trust, weight_decay })
            }
            OptimizerConfig::Lamb { beta1, beta2, eps, .. } => {
                let moments = moments([beta1, beta2], eps);
                cpu::Step::Lamb(rules::LambMoments(moments), rules::Lamb { lr, moments })
            }
        };
        let decoupled = matches!(self.config, OptimizerConfig::AdamW { .. });
        Update {
            step,
            scaling: cpu::Scaling { scale: scale as f32, bound: self.bound },
            decay: if decoupled { lr * decay } else { decay } as f32,
            exact: scale,
        }
    }

    /// Forgets the last [`Optimizer::begin`], whose update was not made.
    pub fn take_back(&mut self) {
        self.steps = self.steps.saturating_sub(1);
    }

    /// While a graph is recorded on the parameters' GPU: records an update of all of them, which looks itself whether it is
    /// to be made. At a launch its numbers are [`Update::varying`], under the name [`UPDATE`].
    pub fn record(
        &self,
        params: &Params,
        gradients: &Arena,
        update: &Update,
        guard: &Guard,
    ) -> Result<Judged> {
        match &self.state {
            State::Cuda(kept) => kept.record(params, gradients, update, guard),
            State::Host(_) => {
                Err(phalanx_tensor::Error::WrongMemory { op: "optimizer", device: "GPU" }.into())
            }
        }
    }

    /// Updates `elements` of the arena. The rest of the gradients may still be on their way.
    pub fn update(
        &mut self,
        cpu: &Cpu,
        params: &Params,
        gradients: &Arena,
        update: Update,
        elements: Range<usize>,
    ) -> Result<()> {
        if self.config.trusts() || matches!(self.state, State::Cuda(_)) {
            self.check_whole(params, &elements)?;
        }
        let state = match &mut self.state {
            State::Cuda(kept) => return kept.update(params, gradients, &update, elements),
            State::Host(state) => state,
        };
        let mut weights = params.arena().write(bytes(&elements))?;
        let gradients = gradients.read(bytes(&elements))?;
        let (mut w, mut g) = (weights.as_mut_slice::<f32>()?, gradients.as_slice::<f32>()?);
        let own = elements.start - self.elements.start..elements.end - self.elements.start;
        let mut state = state.each_mut().map(|s| s.get_mut(own.clone()).unwrap_or_default());
        let mut pieces = Vec::new();
        for (segment, Segment { elements: range, decays }) in self.segments.iter().enumerate() {
            let mut left = range.end.min(elements.end).saturating_sub(range.start.max(elements.start));
            while left > 0 {
                let len = left.min(cpu::PIECE);
                pieces.push(cpu::Piece {
                    weights: split(&mut w, len),
                    gradients: &g[..len],
                    state: state.each_mut().map(|s| split(s, len)),
                    decay: if *decays { update.decay } else { 0.0 },
                    segment,
                    adapts: *decays && self.config.trusts(),
                    squares: [0.0; 2],
                    rate: 0.0,
                });
                g = &g[len..];
                left -= len;
            }
        }
        update.step.run(cpu, update.scaling, &mut pieces);
        Ok(())
    }

    /// Checks that no parameter is cut by the bounds of `elements`.
    fn check_whole(&self, params: &Params, elements: &Range<usize>) -> Result<()> {
        let cuts = |id: &ParamId| {
            let range = params.range(*id);
            [elements.start, elements.end].iter().any(|&at| range.start < at && at < range.end)
        };
        match self.ids.clone().map(ParamId).find(cuts) {
            None => Ok(()),
            Some(id) => {
                let name = &params.spec(id).name;
                let problem = format!("the part {elements:?} cuts {name}, all of which is updated at once");
                Err(Error::config("optimizer", problem))
            }
        }
    }

    fn part(&self, params: &Params, id: ParamId) -> Range<usize> {
        let r = params.range(id);
        r.start - self.elements.start..r.end - self.elements.start
    }

    /// The kinds of state that there are, and their places.
    fn kinds(&self) -> impl Iterator<Item = (&'static str, usize)> + use<> {
        self.config.state_names().into_iter().zip(0..).filter_map(|(kind, at)| Some((kind?, at)))
    }

    /// Names (`momentum.conv1.weight`), stored shapes and values of the state.
    pub fn export(&self, params: &Params) -> Result<Vec<(String, Values<f32>)>> {
        let mut out = Vec::new();
        for (kind, state) in self.kinds() {
            let state = match &self.state {
                State::Host(all) => Cow::Borrowed(&all[state]),
                State::Cuda(kept) => Cow::Owned(kept.state(state)?),
            };
            for id in self.ids.clone().map(ParamId) {
                let values = params.to_stored(id, &state[self.part(params, id)]);
                let name = format!("{kind}.{}", params.spec(id).name);
                out.push((name, (params.stored_shape(id).to_vec(), values)));
            }
        }
        Ok(out)
    }

    /// Sets the state from what `find` gives for its names.
    pub fn import(&mut self, params: &Params, steps: u64, find: &mut Find<f32>) -> Result<()> {
        for (kind, k) in self.kinds() {
            let mut all = match &self.state {
                State::Host(all) => all[k].clone(),
                State::Cuda(_) => vec![self.config.first_state(); self.elements.len()],
            };
            for id in self.ids.clone().map(ParamId) {
                let name = format!("{kind}.{}", params.spec(id).name);
                let (shape, stored) = find(&name).ok_or_else(|| Error::Missing { name: name.clone() })?;
                let values = params.from_stored(id, &name, &shape, &stored)?;
                all[self.part(params, id)].copy_from_slice(&values);
            }
            match &mut self.state {
                State::Host(state) => state[k] = all,
                State::Cuda(kept) => kept.set_state(k, &all)?,
            }
        }
        self.steps = steps;
        Ok(())
    }
}

/// Takes the first `n` elements (or all, when there are fewer) off a slice.
fn split<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let n = n.min(rest.len());
    let (head, tail) = std::mem::take(rest).split_at_mut(n);
    *rest = tail;
    head
}
