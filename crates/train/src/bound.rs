//! What a run's steps wait for.

use phalanx_comm::Communicator;
use serde::{Deserialize, Serialize};

use crate::Result;

/// What a run is bound by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoundBy {
    /// Reading records.
    Read,
    /// Decoding and transforming them.
    Decode,
    /// Moving batches to the device.
    Copy,
    /// The model: data are there in time.
    Compute,
}

/// A share of waiting that is none to speak of.
const FINE: f64 = 0.02;

/// What a rank's steps were made of, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Feeding {
    /// All of the steps.
    pub(crate) steps: f64,
    /// Waiting for the loader.
    pub(crate) wait: f64,
    /// Moving batches to the device.
    pub(crate) copy: f64,
    /// Of all loader threads: reading,
    pub(crate) read: f64,
    /// and decoding and transforming.
    pub(crate) make: f64,
    /// The loader's threads.
    pub(crate) threads: f64,
}

/// What steps were bound by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// By what.
    pub bound_by: BoundBy,
    /// The share of the steps that was spent waiting for data, in 0..1.
    pub stall_share: f64,
    /// Loader threads of each rank that would have been enough, where those there were are too few.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads_needed: Option<u64>,
}

impl Feeding {
    /// The sum of some ranks', as if they were one.
    fn sum(all: &[Feeding]) -> Feeding {
        all.iter().fold(Feeding::default(), |a, b| Feeding {
            steps: a.steps + b.steps,
            wait: a.wait + b.wait,
            copy: a.copy + b.copy,
            read: a.read + b.read,
            make: a.make + b.make,
            threads: a.threads + b.threads,
        })
    }

    /// That of each rank, added up. A meeting of all ranks.
    pub(crate) fn of_all(self, comm: &dyn Communicator) -> Result<Feeding> {
        let mine = [self.steps, self.wait, self.copy, self.read, self.make, self.threads];
        let all = comm.all_gather(bytemuck::cast_slice(&mine), comm.deadline())?;
        let of = |bytes: &Vec<u8>| match bytemuck::pod_collect_to_vec::<u8, f64>(bytes)[..] {
            [steps, wait, copy, read, make, threads] => Feeding { steps, wait, copy, read, make, threads },
            _ => Feeding::default(),
        };
        Ok(Feeding::sum(&all.iter().map(of).collect::<Vec<_>>()))
    }

    /// What it says; `ranks` is how many it is the sum of. `None` before a step was done.
    pub(crate) fn bound(&self, ranks: f64) -> Option<Bound> {
        if self.steps <= 0.0 {
            return None;
        }
        let stall = ((self.wait + self.copy) / self.steps).clamp(0.0, 1.0);
        let by = match () {
            () if stall < FINE => BoundBy::Compute,
            () if self.copy > self.wait => BoundBy::Copy,
            () if self.read > self.make => BoundBy::Read,
            () => BoundBy::Decode,
        };
        let needed = matches!(by, BoundBy::Read | BoundBy::Decode).then(|| {
            // What the loader does must be done while the model is at work.
            let busy = (self.steps - self.wait - self.copy).max(self.steps * 1e-3);
            let threads = self.threads / ranks;
            ((self.read + self.make) / busy).ceil().max(threads.floor() + 1.0) as u64
        });
        // To a hundredth of a percent.
        let stall_share = (stall * 1e4).round() / 1e4;
        Some(Bound { bound_by: by, stall_share, threads_needed: needed })
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = match self.bound_by {
            BoundBy::Read => "reading",
            BoundBy::Decode => "decoding",
            BoundBy::Copy => "copies to the device",
            BoundBy::Compute => "compute",
        };
        let percent = self.stall_share * 100.0;
        let places = if percent < 10.0 { 1 } else { 0 };
        write!(f, "bound by {by}: {percent:.places$} % of the step waits")?;
        match self.threads_needed {
            Some(1) => write!(f, "; 1 loader thread a rank would do"),
            Some(n) => write!(f, "; {n} loader threads a rank would do"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slowest_is_named() {
        let of = |wait, copy, read, make| {
            Feeding { steps: 10.0, wait, copy, read, make, threads: 2.0 }.bound(1.0).unwrap()
        };
        let b = of(0.1, 0.05, 3.0, 5.0);
        assert_eq!((b.bound_by, b.stall_share, b.threads_needed), (BoundBy::Compute, 0.015, None));
        assert_eq!(b.to_string(), "bound by compute: 1.5 % of the step waits");
        // 20 thread-seconds of work beside 6.3 of compute.
        let b = of(3.7, 0.0, 2.0, 18.0);
        assert_eq!(
            b.to_string(),
            "bound by decoding: 37 % of the step waits; 4 loader threads a rank would do"
        );
        assert_eq!(of(3.7, 0.0, 18.0, 2.0).bound_by, BoundBy::Read);
        assert_eq!(of(0.5, 3.0, 1.0, 1.0).bound_by, BoundBy::Copy);
        // Whatever was measured, more than there are.
        assert_eq!(of(1.0, 0.0, 0.0, 1.0).threads_needed, Some(3));
        assert_eq!(Feeding::default().bound(1.0), None);
        assert!(of(20.0, 0.0, 1.0, 1.0).stall_share <= 1.0);
        // Two ranks need what each of them does.
        let one = Feeding { steps: 10.0, wait: 5.0, copy: 0.0, read: 0.0, make: 10.0, threads: 1.0 };
        let two = Feeding::sum(&[one, one]).bound(2.0).unwrap();
        assert_eq!((two, two.threads_needed), (one.bound(1.0).unwrap(), Some(2)));
        let text = serde_json::to_string(&two).unwrap();
        assert_eq!(text, r#"{"bound_by":"decode","stall_share":0.5,"threads_needed":2}"#);
    }
}
