//! Rows that are functions of each element.

use serde::Deserialize;
use serde::de::value::{Error as Unreadable, MapDeserializer};

use super::Row;
use crate::layer::Activation;
use crate::{Error, Result};

// What options are when they are left out: PyTorch's defaults.
pub(super) fn hundredth() -> f64 {
    0.01
}
pub(super) fn quarter() -> f64 {
    0.25
}
pub(super) fn half() -> f64 {
    0.5
}
pub(super) fn unit() -> f64 {
    1.0
}
pub(super) fn minus_unit() -> f64 {
    -1.0
}
pub(super) fn twenty() -> f64 {
    20.0
}

/// How GELU is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approximate {
    /// By the error function.
    #[default]
    None,
    /// By tanh.
    Tanh,
}

/// Up to two options as two.
fn two(given: &[f64]) -> [f64; 2] {
    let at = |i: usize| given.get(i).copied().unwrap_or(0.0);
    [at(0), at(1)]
}

impl Row {
    /// The function, when the row is one of each element without parameters; otherwise, and for options that make
    /// no sense, an error of the layer at `place`.
    pub(super) fn activation(&self, place: &str) -> Result<Activation> {
        if let Some(problem) = self.problem() {
            return Err(Error::config(place, problem));
        }
        macro_rules! table {
            ($x:ident, $o:ident; $($row:pat => $name:literal [$($option:expr),*] $body:expr;)*) => {
                match *self {
                    $($row => Ok(Activation::new($name, two(&[$($option),*]), |$x, $o| { let _ = $o; $body })),)*
                    _ => Err(Error::config(place, "it is no function of each element")),
                }
            };
        }
        table! { x, o;
            Row::Relu {} => "relu" [] x.relu();
            Row::Sigmoid {} => "sigmoid" [] x.sigmoid();
            Row::Tanh {} => "tanh" [] x.tanh();
            Row::Relu6 {} => "relu6" [] x.relu6();
            Row::LeakyRelu { slope } => "leaky-relu" [slope] x.leaky_relu(o[0]);
            Row::Elu { alpha } => "elu" [alpha] x.elu(o[0]);
            Row::Selu {} => "selu" [] x.selu();
            Row::Celu { alpha } => "celu" [alpha] x.celu(o[0]);
            Row::Gelu { approximate: Approximate::None } => "gelu" [] x.gelu();
            Row::Gelu { approximate: Approximate::Tanh } => "gelu" [] x.gelu_tanh();
            Row::Silu {} => "silu" [] x.silu();
            Row::Mish {} => "mish" [] x.mish();
            Row::Softplus { beta, threshold } => "softplus" [beta, threshold] x.softplus(o[0], o[1]);
            Row::Softsign {} => "softsign" [] x.softsign();
            Row::Gaussian {} => "gaussian" [] x.gaussian();
            Row::HardSigmoid {} => "hard-sigmoid" [] x.hard_sigmoid();
            Row::HardSwish {} => "hard-swish" [] x.hard_swish();
            Row::HardTanh { min, max } => "hard-tanh" [min, max] x.hard_tanh(o[0], o[1]);
            Row::LogSigmoid {} => "log-sigmoid" [] x.log_sigmoid();
            Row::TanhShrink {} => "tanh-shrink" [] x.tanh_shrink();
            Row::HardShrink { lambda } => "hard-shrink" [lambda] x.hard_shrink(o[0]);
            Row::SoftShrink { lambda } => "soft-shrink" [lambda] x.soft_shrink(o[0]);
            Row::Threshold { threshold, value } => "threshold" [threshold, value] x.threshold(o[0], o[1]);
        }
    }

    /// What makes the options of such a row senseless.
    fn problem(&self) -> Option<String> {
        match *self {
            Row::Celu { alpha: 0.0 } => Some("alpha is 0, which x is divided by".into()),
            Row::Softplus { beta: 0.0, .. } => Some("beta is 0, which the result is divided by".into()),
            Row::HardTanh { min, max } if min > max => Some(format!("min {min} is larger than max {max}")),
            Row::HardShrink { lambda } | Row::SoftShrink { lambda } if lambda < 0.0 => {
                Some(format!("lambda is {lambda}, but must not be negative"))
            }
            _ => None,
        }
    }

    /// The row of the function `name` with the usual options, as models take it by its name alone.
    pub(super) fn of_function(name: &str) -> Result<Row> {
        let row = Row::deserialize(MapDeserializer::<_, Unreadable>::new([("type", name)].into_iter()));
        match row {
            Ok(row) if row.activation("").is_ok() || matches!(row, Row::Prelu { .. }) => Ok(row),
            _ => {
                let problem = format!(
                    "activation {name:?} is no function of each element, such as \"relu\", \"gelu\" or \"leaky-relu\""
                );
                Err(Error::config("model", problem))
            }
        }
    }
}
