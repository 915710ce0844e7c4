//! Optimizers: one pass over the flat arena, state beside it.

mod cpu;

use std::ops::Range;

use phalanx_host::{Arena, Cpu};
use serde::{Deserialize, Serialize};

use crate::params::{Find, ParamId, Params, Values};
use crate::{Error, Result};

/// The `[optimizer]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Stochastic gradient descent, with momentum as PyTorch defines it: `v ← μ v + g`, `w ← w − η v`.
    Sgd {
        /// Learning rate η.
        lr: f64,
        /// μ
        #[serde(default)]
        momentum: f64,
        /// Nesterov's look-ahead: the step is `g + μ v`.
        #[serde(default)]
        nesterov: bool,
        /// λ in `g ← g + λ w`, for weights but not for norms and biases.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam (Kingma and Ba, 2015) with bias correction.
    Adam {
        /// Learning rate.
        #[serde(default = "adam_lr")]
        lr: f64,
        /// Decay of the mean.
        #[serde(default = "adam_beta1")]
        beta1: f64,
        /// Decay of the mean square.
        #[serde(default = "adam_beta2")]
        beta2: f64,
        /// Added to the root.
        #[serde(default = "adam_eps")]
        eps: f64,
        /// λ in `g ← g + λ w`, for weights but not for norms and biases.
        #[serde(default)]
        weight_decay: f64,
    },
}

fn adam_lr() -> f64 {
    1e-3
}
fn adam_beta1() -> f64 {
    0.9
}
fn adam_beta2() -> f64 {
    0.999
}
fn adam_eps() -> f64 {
    1e-8
}

impl OptimizerConfig {
    /// SGD with momentum.
    pub fn sgd(lr: f64, momentum: f64, weight_decay: f64) -> Self {
        OptimizerConfig::Sgd { lr, momentum, nesterov: false, weight_decay }
    }

    /// Adam with the paper's constants.
    pub fn adam(lr: f64) -> Self {
        OptimizerConfig::Adam {
            lr,
            beta1: adam_beta1(),
            beta2: adam_beta2(),
            eps: adam_eps(),
            weight_decay: 0.0,
        }
    }

    /// The learning rate before any schedule.
    pub fn lr(&self) -> f64 {
        match self {
            OptimizerConfig::Sgd { lr, .. } | OptimizerConfig::Adam { lr, .. } => *lr,
        }
    }

    /// Checks the values.
    pub fn check(&self) -> Result<()> {
        let want = |key: &str, value: f64, ok: bool, rule: &str| match ok {
            true => Ok(()),
            false => Err(Error::config("optimizer", format!("{key} is {value}; {rule}"))),
        };
        let lr = self.lr();
        want("lr", lr, lr > 0.0 && lr.is_finite(), "it must be above 0")?;
        let fraction = |key, x: f64| want(key, x, (0.0..1.0).contains(&x), "it must lie in 0..1");
        let decay = |x: f64| want("weight_decay", x, x >= 0.0 && x.is_finite(), "it must not be negative");
        match *self {
            OptimizerConfig::Sgd { momentum, nesterov, weight_decay, .. } => {
                fraction("momentum", momentum)?;
                want("momentum", momentum, !nesterov || momentum > 0.0, "nesterov needs it above 0")?;
                decay(weight_decay)
            }
            OptimizerConfig::Adam { beta1, beta2, eps, weight_decay, .. } => {
                fraction("beta1", beta1)?;
                fraction("beta2", beta2)?;
                want("eps", eps, eps > 0.0, "it must be above 0")?;
                decay(weight_decay)
            }
        }
    }

    /// Names of the state arrays.
    fn state_names(&self) -> &'static [&'static str] {
        match self {
            OptimizerConfig::Sgd { momentum, .. } if *momentum == 0.0 => &[],
            OptimizerConfig::Sgd { .. } => &["momentum"],
            OptimizerConfig::Adam { .. } => &["exp_avg", "exp_avg_sq"],
        }
    }

    fn weight_decay(&self) -> f64 {
        match *self {
            OptimizerConfig::Sgd { weight_decay, .. } | OptimizerConfig::Adam { weight_decay, .. } => {
                weight_decay
            }
        }
    }
}

/// The constants of one update.
#[derive(Debug, Clone, Copy)]
pub struct Update(cpu::Step);

/// The most elements that one task updates.
const PIECE: usize = 1 << 16;

/// An optimizer of some neighbouring parameters of a model.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    ids: Range<u32>,
    /// The parameters' place in the arena, from the first one's start to the last one's end.
    elements: Range<usize>,
    /// Neighbours with one rule of weight decay, from the place's start to its end, and whether they decay.
    segments: Vec<(Range<usize>, bool)>,
    /// The state, by kind, laid out like the parameters.
    state: Vec<Vec<f32>>,
    steps: u64,
}

impl Optimizer {
    /// An optimizer without history for the parameters `ids`.
    pub fn new(config: &OptimizerConfig, params: &Params, ids: Range<u32>) -> Result<Self> {
        config.check()?;
        if ids.end as usize > params.len() {
            let problem = format!("parameters {ids:?} are not among the model's {}", params.len());
            return Err(Error::config("optimizer", problem));
        }
        let mut segments: Vec<(Range<usize>, bool)> = Vec::new();
        for id in ids.clone().map(ParamId) {
            let (range, decay) = (params.range(id), params.spec(id).decay && config.weight_decay() != 0.0);
            match segments.last_mut() {
                Some(last) if last.1 == decay => last.0.end = range.end,
                // What lies between two parameters is padding: zero in parameters, gradients and state,
                // so it stays zero whatever rule it falls under.
                Some(last) => {
                    last.0.end = range.start;
                    segments.push((range, decay));
                }
                None => segments.push((range, decay)),
            }
        }
        let elements = match (segments.first(), segments.last()) {
            (Some(a), Some(b)) => a.0.start..b.0.end,
            _ => 0..0,
        };
        let state = config.state_names().iter().map(|_| vec![0.0; elements.len()]).collect();
        Ok(Optimizer { config: config.clone(), ids, elements, segments, state, steps: 0 })
    }

    /// Updates made so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Makes one update from gradient sums laid out like the parameters. They are multiplied by `scale`
    /// (1 over the weight of all samples) first; `lr` is the learning rate of this step.
    pub fn step(&mut self, cpu: &Cpu, params: &Params, gradients: &Arena, scale: f64, lr: f64) -> Result<()> {
        let update = self.begin(scale, lr);
        self.update(cpu, params, gradients, update, self.elements.clone())
    }

    /// Begins an update that is made part by part; `scale` and `lr` as in [`Optimizer::step`]. Every element of this
    /// optimizer's parameters is to be in one part: all rules go element by element, so how the parts are cut
    /// changes no bit.
    pub fn begin(&mut self, scale: f64, lr: f64) -> Update {
        self.steps += 1;
        Update(match self.config {
            OptimizerConfig::Sgd { momentum: 0.0, .. } => {
                cpu::Step::Plain(cpu::Plain { scale: scale as f32, lr: lr as f32 })
            }
            OptimizerConfig::Sgd { momentum, nesterov, .. } => cpu::Step::Momentum(cpu::Momentum {
                scale: scale as f32,
                lr: lr as f32,
                momentum: momentum as f32,
                nesterov,
            }),
            OptimizerConfig::Adam { beta1, beta2, eps, .. } => {
                cpu::Step::Adam(cpu::Adam::new(scale, lr, [beta1, beta2], eps, self.steps))
            }
        })
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
        let bytes = elements.start * size_of::<f32>()..elements.end * size_of::<f32>();
        let mut weights = params.arena().write(bytes.clone())?;
        let gradients = gradients.read(bytes)?;
        let (mut w, mut g) = (weights.as_mut_slice::<f32>()?, gradients.as_slice::<f32>()?);
        let own = elements.start - self.elements.start..elements.end - self.elements.start;
        let mut state = self.state.iter_mut().map(|s| &mut s[own.clone()]);
        let mut state = [(); 2].map(|()| state.next().unwrap_or_default());
        let decay = self.config.weight_decay() as f32;
        let mut pieces = Vec::new();
        for (range, decays) in &self.segments {
            let mut left = range.end.min(elements.end).saturating_sub(range.start.max(elements.start));
            while left > 0 {
                let len = left.min(PIECE);
                pieces.push(cpu::Piece {
                    weights: split(&mut w, len),
                    gradients: &g[..len],
                    state: state.each_mut().map(|s| split(s, len)),
                    decay: if *decays { decay } else { 0.0 },
                });
                g = &g[len..];
                left -= len;
            }
        }
        update.0.run(cpu, &mut pieces);
        Ok(())
    }

    fn part(&self, params: &Params, id: ParamId) -> Range<usize> {
        let r = params.range(id);
        r.start - self.elements.start..r.end - self.elements.start
    }

    /// Names (`momentum.conv1.weight`), stored shapes and values of the state.
    pub fn export(&self, params: &Params) -> Result<Vec<(String, Values<f32>)>> {
        let mut out = Vec::new();
        for (kind, state) in self.config.state_names().iter().zip(&self.state) {
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
        for (k, kind) in self.config.state_names().iter().enumerate() {
            for id in self.ids.clone().map(ParamId) {
                let name = format!("{kind}.{}", params.spec(id).name);
                let (shape, stored) = find(&name).ok_or_else(|| Error::Missing { name: name.clone() })?;
                let values = params.from_stored(id, &name, &shape, &stored)?;
                let part = self.part(params, id);
                self.state[k][part].copy_from_slice(&values);
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
