//! The `[optimizer]` table.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The `[optimizer]` table. Weight decay and, in LARS and LAMB, the trust ratio apply to weights but not to norms
/// and biases ([`crate::ParamSpec::decay`]).
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
        /// λ in `g ← g + λ w`.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam (Kingma and Ba, 2015) with bias correction.
    Adam {
        /// Learning rate.
        #[serde(default = "milli")]
        lr: f64,
        /// Decay of the mean.
        #[serde(default = "adam_beta1")]
        beta1: f64,
        /// Decay of the mean square.
        #[serde(default = "adam_beta2")]
        beta2: f64,
        /// Added to the root.
        #[serde(default = "tiny")]
        eps: f64,
        /// λ in `g ← g + λ w`.
        #[serde(default)]
        weight_decay: f64,
        /// Divides by the largest mean square so far (Reddi et al., 2018).
        #[serde(default, skip_serializing_if = "is_false")]
        amsgrad: bool,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019): `w ← w − η λ w` before Adam's step, as in
    /// PyTorch. The schedule scales the decay with the learning rate.
    AdamW {
        /// Learning rate η.
        #[serde(default = "milli")]
        lr: f64,
        /// Decay of the mean.
        #[serde(default = "adam_beta1")]
        beta1: f64,
        /// Decay of the mean square.
        #[serde(default = "adam_beta2")]
        beta2: f64,
        /// Added to the root.
        #[serde(default = "tiny")]
        eps: f64,
        /// λ
        #[serde(default = "hundredth")]
        weight_decay: f64,
        /// Divides by the largest mean square so far (Reddi et al., 2018).
        #[serde(default, skip_serializing_if = "is_false")]
        amsgrad: bool,
    },
    /// RMSprop (Tieleman and Hinton, 2012) as PyTorch defines it: `s ← α s + (1 − α) g²`, `w ← w − η g / (√s + ε)`.
    RmsProp {
        /// Learning rate η.
        #[serde(default = "hundredth")]
        lr: f64,
        /// Decay α of the mean square.
        #[serde(default = "rmsprop_alpha")]
        alpha: f64,
        /// ε, added to the root.
        #[serde(default = "tiny")]
        eps: f64,
        /// μ of a velocity `v ← μ v + g / (√s + ε)`, whose step is then `η v`.
        #[serde(default)]
        momentum: f64,
        /// Divides by the standard deviation (Graves, 2013): the root of `s` less the square of the mean gradient.
        #[serde(default)]
        centered: bool,
        /// λ in `g ← g + λ w`.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adagrad (Duchi et al., 2011): `s ← s + g²`, `w ← w − η g / (√s + ε)`.
    Adagrad {
        /// Learning rate η.
        #[serde(default = "hundredth")]
        lr: f64,
        /// δ in `η / (1 + (t − 1) δ)`, which the rate is in step t.
        #[serde(default)]
        lr_decay: f64,
        /// What the sums of squares begin with.
        #[serde(default)]
        initial_accumulator_value: f64,
        /// ε, added to the root.
        #[serde(default = "adagrad_eps")]
        eps: f64,
        /// λ in `g ← g + λ w`.
        #[serde(default)]
        weight_decay: f64,
    },
    /// LARS (You, Gitman and Ginsburg, 2017), as the paper's Algorithm 1 has it: for each parameter
    /// `v ← μ v + η r (g + λ w)`, `w ← w − v` with `r = τ ‖w‖ / (‖g‖ + λ ‖w‖)`; r is 1 where a norm is zero, and for
    /// norms and biases. The learning rate lies inside the velocity, as in TensorFlow's LARSOptimizer; variants
    /// that multiply the velocity by it (LARC) take other steps while the rate changes.
    Lars {
        /// Learning rate η.
        lr: f64,
        /// μ
        #[serde(default = "lars_momentum")]
        momentum: f64,
        /// τ
        #[serde(default = "milli")]
        trust_coefficient: f64,
        /// λ
        #[serde(default)]
        weight_decay: f64,
    },
    /// LAMB (You et al., 2020), Algorithm 2 with φ(x) = x: for each parameter `w ← w − η r u` with Adam's
    /// bias-corrected step and the decay in `u = m̂ / (√v̂ + ε) + λ w`, and `r = ‖w‖ / ‖u‖`; r is 1 where a norm is
    /// zero, and for norms and biases. Gradients are not clipped unless that is asked for.
    Lamb {
        /// Learning rate η.
        lr: f64,
        /// Decay of the mean.
        #[serde(default = "adam_beta1")]
        beta1: f64,
        /// Decay of the mean square.
        #[serde(default = "adam_beta2")]
        beta2: f64,
        /// ε, added to the root.
        #[serde(default = "lamb_eps")]
        eps: f64,
        /// λ
        #[serde(default = "hundredth")]
        weight_decay: f64,
    },
}

fn is_false(x: &bool) -> bool {
    !x
}
fn milli() -> f64 {
    1e-3
}
fn hundredth() -> f64 {
    0.01
}
fn tiny() -> f64 {
    1e-8
}
fn adam_beta1() -> f64 {
    0.9
}
fn adam_beta2() -> f64 {
    0.999
}
fn rmsprop_alpha() -> f64 {
    0.99
}
fn adagrad_eps() -> f64 {
    1e-10
}
fn lars_momentum() -> f64 {
    0.9
}
fn lamb_eps() -> f64 {
    1e-6
}

impl OptimizerConfig {
    /// SGD with momentum.
    pub fn sgd(lr: f64, momentum: f64, weight_decay: f64) -> Self {
        OptimizerConfig::Sgd { lr, momentum, nesterov: false, weight_decay }
    }

    /// Adam with the paper's constants.
    pub fn adam(lr: f64) -> Self {
        let (beta1, beta2, eps) = (adam_beta1(), adam_beta2(), tiny());
        OptimizerConfig::Adam { lr, beta1, beta2, eps, weight_decay: 0.0, amsgrad: false }
    }

    /// The learning rate before any schedule.
    pub fn lr(&self) -> f64 {
        match *self {
            OptimizerConfig::Sgd { lr, .. }
            | OptimizerConfig::Adam { lr, .. }
            | OptimizerConfig::AdamW { lr, .. }
            | OptimizerConfig::RmsProp { lr, .. }
            | OptimizerConfig::Adagrad { lr, .. }
            | OptimizerConfig::Lars { lr, .. }
            | OptimizerConfig::Lamb { lr, .. } => lr,
        }
    }

    pub(super) fn weight_decay(&self) -> f64 {
        match *self {
            OptimizerConfig::Sgd { weight_decay, .. }
            | OptimizerConfig::Adam { weight_decay, .. }
            | OptimizerConfig::AdamW { weight_decay, .. }
            | OptimizerConfig::RmsProp { weight_decay, .. }
            | OptimizerConfig::Adagrad { weight_decay, .. }
            | OptimizerConfig::Lars { weight_decay, .. }
            | OptimizerConfig::Lamb { weight_decay, .. } => weight_decay,
        }
    }

    /// Checks the values.
    pub fn check(&self) -> Result<()> {
        let want = |key: &str, value: f64, ok: bool, rule: &str| match ok {
            true => Ok(()),
            false => Err(Error::config("optimizer", format!("{key} is {value}; {rule}"))),
        };
        let above_0 = |key, x: f64| want(key, x, x > 0.0 && x.is_finite(), "it must be above 0");
        let not_below_0 = |key, x: f64| want(key, x, x >= 0.0 && x.is_finite(), "it must not be negative");
        let fraction = |key, x: f64| want(key, x, (0.0..1.0).contains(&x), "it must lie in 0..1");
        above_0("lr", self.lr())?;
        not_below_0("weight_decay", self.weight_decay())?;
        match *self {
            OptimizerConfig::Sgd { momentum, nesterov, .. } => {
                fraction("momentum", momentum)?;
                want("momentum", momentum, !nesterov || momentum > 0.0, "nesterov needs it above 0")
            }
            OptimizerConfig::Adam { beta1, beta2, eps, .. }
            | OptimizerConfig::AdamW { beta1, beta2, eps, .. }
            | OptimizerConfig::Lamb { beta1, beta2, eps, .. } => {
                fraction("beta1", beta1)?;
                fraction("beta2", beta2)?;
                above_0("eps", eps)
            }
            OptimizerConfig::RmsProp { alpha, eps, momentum, .. } => {
                fraction("alpha", alpha)?;
                above_0("eps", eps)?;
                fraction("momentum", momentum)
            }
            OptimizerConfig::Adagrad { lr_decay, initial_accumulator_value, eps, .. } => {
                not_below_0("lr_decay", lr_decay)?;
                not_below_0("initial_accumulator_value", initial_accumulator_value)?;
                above_0("eps", eps)
            }
            OptimizerConfig::Lars { momentum, trust_coefficient, .. } => {
                fraction("momentum", momentum)?;
                above_0("trust_coefficient", trust_coefficient)
            }
        }
    }

    /// The names of the state arrays, each at the place where the rule looks for it.
    pub(super) fn state_names(&self) -> [Option<&'static str>; 3] {
        match *self {
            OptimizerConfig::Sgd { momentum: 0.0, .. } => [None; 3],
            OptimizerConfig::Sgd { .. } | OptimizerConfig::Lars { .. } => [Some("momentum"), None, None],
            OptimizerConfig::Adam { amsgrad, .. } | OptimizerConfig::AdamW { amsgrad, .. } => {
                [Some("exp_avg"), Some("exp_avg_sq"), amsgrad.then_some("max_exp_avg_sq")]
            }
            OptimizerConfig::Lamb { .. } => [Some("exp_avg"), Some("exp_avg_sq"), None],
            OptimizerConfig::RmsProp { centered, momentum, .. } => {
                [Some("square_avg"), centered.then_some("grad_avg"), (momentum > 0.0).then_some("momentum")]
            }
            OptimizerConfig::Adagrad { .. } => [Some("sum"), None, None],
        }
    }

    /// The numbers that it keeps for each parameter.
    pub fn states(&self) -> usize {
        self.state_names().iter().flatten().count()
    }

    /// What every element of the state begins with.
    pub(super) fn first_state(&self) -> f32 {
        match *self {
            OptimizerConfig::Adagrad { initial_accumulator_value, .. } => initial_accumulator_value as f32,
            _ => 0.0,
        }
    }

    /// Whether the rule needs norms of whole parameters.
    pub(super) fn trusts(&self) -> bool {
        matches!(self, OptimizerConfig::Lars { .. } | OptimizerConfig::Lamb { .. })
    }
}
