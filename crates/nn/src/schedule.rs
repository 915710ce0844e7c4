//! How the learning rate runs: pure functions of the epoch, and one rule that looks at the evaluation.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The `[schedule]` table. One cycle (Smith and Topin, 2018) is a warm-up from `warmup_start` and a cosine or linear
/// fall to a small `floor`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// `constant`, `step`, `cosine`, `linear`, `polynomial` or `plateau`.
    pub name: ScheduleName,
    /// Epochs in which the rate rises linearly to its full value.
    pub warmup_epochs: f64,
    /// The fraction of the full rate at which the rise begins.
    pub warmup_start: f64,
    /// `step`: epochs between divisions, when `milestones` is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_epochs: Option<f64>,
    /// `step`: epochs at which the rate is multiplied by `gamma`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub milestones: Vec<f64>,
    /// `step` and `plateau`: the factor of each division.
    pub gamma: f64,
    /// All but `constant` and `step`: the fraction of the full rate that is never gone below.
    pub floor: f64,
    /// `polynomial`: the power that the fraction of the way still to go is raised to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<f64>,
    /// `plateau`: evaluations without a better loss before a division.
    pub patience: u64,
}

/// The shapes that a schedule can have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    /// The full rate.
    #[default]
    Constant,
    /// Multiplied by `gamma` at milestones, or every so many epochs.
    Step,
    /// Half a cosine down to the floor (Loshchilov and Hutter, 2017).
    Cosine,
    /// A straight line down to the floor.
    Linear,
    /// A power of the way still to go, down to the floor; LARS's recipes take the power 2.
    Polynomial,
    /// Multiplied by `gamma` when the evaluation's loss stops falling.
    Plateau,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        ScheduleConfig {
            name: ScheduleName::Constant,
            warmup_epochs: 0.0,
            warmup_start: 0.0,
            every_epochs: None,
            milestones: Vec::new(),
            gamma: 0.1,
            floor: 0.0,
            power: None,
            patience: 5,
        }
    }
}

impl ScheduleConfig {
    /// Checks the values.
    pub fn check(&self) -> Result<()> {
        let fail = |problem: &str| Err(Error::config("schedule", problem));
        let fraction = |x: f64| (0.0..=1.0).contains(&x);
        if !(self.warmup_epochs >= 0.0 && self.warmup_epochs.is_finite()) {
            return fail("warmup_epochs must not be negative");
        }
        if !fraction(self.warmup_start) || !fraction(self.floor) {
            return fail("warmup_start and floor are fractions of the full rate, in 0..1");
        }
        if !(self.gamma > 0.0 && self.gamma <= 1.0) {
            return fail("gamma must lie above 0 and not above 1");
        }
        let above_0 = |e: &f64| *e > 0.0;
        if !self.every_epochs.iter().chain(&self.milestones).all(above_0) {
            return fail("every_epochs and milestones must be above 0");
        }
        match (self.name == ScheduleName::Polynomial, self.power) {
            (true, None) => return fail("polynomial needs a power"),
            (true, Some(p)) if !(p > 0.0 && p.is_finite()) => return fail("power must be above 0"),
            (false, Some(_)) => return fail("power goes with the name polynomial"),
            _ => {}
        }
        let steps = self.every_epochs.is_some() || !self.milestones.is_empty();
        match (self.name == ScheduleName::Step, steps) {
            (true, false) => fail("step needs every_epochs or milestones"),
            (false, true) => fail("every_epochs and milestones go with the name step"),
            _ if self.every_epochs.is_some() && !self.milestones.is_empty() => {
                fail("give either every_epochs or milestones")
            }
            _ => Ok(()),
        }
    }

    /// What the learning rate is multiplied by at `epoch` (fractional) of `total`.
    pub fn factor(&self, epoch: f64, total: f64) -> f64 {
        if epoch < self.warmup_epochs {
            return self.warmup_start + (1.0 - self.warmup_start) * epoch / self.warmup_epochs;
        }
        let span = (total - self.warmup_epochs).max(f64::MIN_POSITIVE);
        let done = ((epoch - self.warmup_epochs) / span).clamp(0.0, 1.0);
        let above_floor = |x: f64| self.floor + (1.0 - self.floor) * x;
        match self.name {
            ScheduleName::Constant | ScheduleName::Plateau => 1.0,
            ScheduleName::Step => {
                let passed = match self.every_epochs {
                    Some(every) => (epoch / every).floor(),
                    None => self.milestones.iter().filter(|m| **m <= epoch).count() as f64,
                };
                self.gamma.powf(passed)
            }
            ScheduleName::Cosine => above_floor(0.5 * (1.0 + (std::f64::consts::PI * done).cos())),
            ScheduleName::Linear => above_floor(1.0 - done),
            ScheduleName::Polynomial => above_floor((1.0 - done).powf(self.power.unwrap_or(1.0))),
        }
    }

    /// The rule that looks at evaluations, when the schedule has one, going on from `state`.
    pub fn plateau(&self, state: Option<&PlateauState>) -> Result<Option<Plateau>> {
        self.check()?;
        Ok((self.name == ScheduleName::Plateau).then(|| Plateau {
            gamma: self.gamma,
            floor: self.floor,
            patience: self.patience,
            state: state.cloned().unwrap_or_default(),
        }))
    }
}

/// What a plateau rule remembers. Losses are kept as bits, since a decimal may round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlateauState {
    best_bits: u64,
    bad: u64,
    divisions: u32,
}

impl Default for PlateauState {
    fn default() -> Self {
        PlateauState { best_bits: f64::INFINITY.to_bits(), bad: 0, divisions: 0 }
    }
}

/// Divides the rate when the evaluation's loss has not fallen for a while.
#[derive(Debug, Clone)]
pub struct Plateau {
    gamma: f64,
    floor: f64,
    patience: u64,
    state: PlateauState,
}

impl Plateau {
    /// What the learning rate is multiplied by now.
    pub fn factor(&self) -> f64 {
        self.gamma.powi(self.state.divisions as i32).max(self.floor)
    }

    /// Takes the loss of an evaluation into account.
    pub fn observe(&mut self, loss: f64) {
        let s = &mut self.state;
        if loss < f64::from_bits(s.best_bits) {
            (s.best_bits, s.bad) = (loss.to_bits(), 0);
            return;
        }
        s.bad += 1;
        if s.bad > self.patience {
            (s.bad, s.divisions) = (0, s.divisions + 1);
        }
    }

    /// What a checkpoint must hold.
    pub fn state(&self) -> PlateauState {
        self.state.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> ScheduleConfig {
        let c: ScheduleConfig = toml::from_str(text).unwrap();
        c.check().unwrap();
        c
    }

    #[test]
    fn known_points_of_each_shape() {
        let c = read("name = \"cosine\"\nwarmup_epochs = 2\nfloor = 0.1");
        assert_eq!([0.0, 1.0, 2.0].map(|e| c.factor(e, 10.0)), [0.0, 0.5, 1.0]);
        assert!((c.factor(6.0, 10.0) - 0.55).abs() < 1e-12 && (c.factor(10.0, 10.0) - 0.1).abs() < 1e-12);
        let s = read("name = \"step\"\nmilestones = [3, 6]\ngamma = 0.5");
        assert_eq!([2.9, 3.0, 7.0].map(|e| s.factor(e, 9.0)), [1.0, 0.5, 0.25]);
        let s = read("name = \"step\"\nevery_epochs = 4");
        assert!((s.factor(8.5, 20.0) - 0.01).abs() < 1e-15);
        assert_eq!(read("").factor(5.0, 9.0), 1.0);
        let l = read("name = \"linear\"\nwarmup_epochs = 5\nwarmup_start = 0.25\nfloor = 0.2");
        let got = [0.0, 4.0, 5.0, 10.0, 15.0, 16.0].map(|e| l.factor(e, 15.0));
        let want = [0.25, 0.85, 1.0, 0.6, 0.2, 0.2];
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12), "{got:?}");
        let p = read("name = \"polynomial\"\npower = 2\nwarmup_epochs = 2\nfloor = 0.2");
        let got = [1.0, 2.0, 6.0, 8.0, 10.0].map(|e| p.factor(e, 10.0));
        let want = [0.5, 1.0, 0.4, 0.25, 0.2];
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12), "{got:?}");
    }

    #[test]
    fn a_plateau_divides_after_patience_and_remembers() {
        let c = read("name = \"plateau\"\npatience = 1\ngamma = 0.5\nfloor = 0.2");
        let mut p = c.plateau(None).unwrap().unwrap();
        let mut seen = Vec::new();
        for loss in [1.0, 0.9, 0.95, 0.9, 0.9, 0.91, 0.92, 0.93, 0.94] {
            p = c.plateau(Some(&p.state())).unwrap().unwrap();
            p.observe(loss);
            seen.push(p.factor());
        }
        assert_eq!(seen, [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]);
        assert!(read("").plateau(None).unwrap().is_none());
    }

    #[test]
    fn impossible_tables_are_refused() {
        for text in [
            "name = \"step\"",
            "gamma = 0",
            "floor = 2",
            "warmup_epochs = -1",
            "milestones = [1]",
            "name = \"polynomial\"",
            "name = \"polynomial\"\npower = 0",
            "power = 2",
        ] {
            let c: ScheduleConfig = toml::from_str(text).unwrap();
            assert!(c.check().is_err(), "{text}");
        }
        assert!(toml::from_str::<ScheduleConfig>("nam = \"step\"").is_err());
    }

    proptest! {
        #[test]
        fn factors_stay_between_0_and_1(epoch in 0.0f64..200.0, total in 1.0f64..200.0, warm in 0.0f64..10.0) {
            use ScheduleName::{Constant, Cosine, Linear, Polynomial, Step};
            for name in [Constant, Cosine, Step, Linear, Polynomial] {
                let every_epochs = (name == Step).then_some(7.0);
                let power = (name == Polynomial).then_some(1.5);
                let c = ScheduleConfig { name, warmup_epochs: warm, every_epochs, power, ..ScheduleConfig::default() };
                prop_assert!((0.0..=1.0).contains(&c.factor(epoch, total)));
            }
        }
    }
}
