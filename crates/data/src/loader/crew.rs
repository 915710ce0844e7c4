//! How many threads load.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The threads of a loader (`loader.threads`): a number, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// That many; none makes every batch in the caller's thread.
    Count(usize),
    /// As many as the model needs to be fed, within the rank's cores; of the whole machine where they are not known.
    Auto(Option<Cores>),
}

/// The cores that a rank has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cores {
    /// In all.
    pub all: usize,
    /// Those that compute.
    pub compute: usize,
}

impl Threads {
    /// With `auto` told what the rank has.
    pub fn on(self, cores: Cores) -> Self {
        match self {
            Threads::Auto(_) => Threads::Auto(Some(cores)),
            count => count,
        }
    }
}

impl Serialize for Threads {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Threads::Count(n) => n.serialize(s),
            Threads::Auto(_) => "auto".serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for Threads {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Threads;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, 0 or more, or \"auto\"")
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Threads, E> {
                let wrong = |_| E::invalid_value(de::Unexpected::Signed(n), &self);
                usize::try_from(n).map(Threads::Count).map_err(wrong)
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Threads, E> {
                let wrong = |_| E::invalid_value(de::Unexpected::Unsigned(n), &self);
                usize::try_from(n).map(Threads::Count).map_err(wrong)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Threads, E> {
                match text {
                    "auto" => Ok(Threads::Auto(None)),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }
        d.deserialize_any(Either)
    }
}

/// What an interval between two looks came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interval {
    pub(super) seconds: f64,
    /// Seconds that the consumer waited.
    pub(super) waited: f64,
    /// Batches delivered.
    pub(super) batches: u64,
}

/// The share of waiting that is not worth another thread.
const FINE: f64 = 0.02;
/// By how much the rate must grow for a thread to stay.
const WORTH: f64 = 1.02;

/// The plan of how many threads load. It begins with the cores that nobody computes on, takes on one more as long as
/// the consumer waits and each makes it faster, and sends the last away where it did not.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Crew {
    now: usize,
    most: usize,
    /// The rate before the last one came, in batches a second.
    before: Option<f64>,
    settled: bool,
}

impl Crew {
    pub(super) fn new(threads: Threads) -> Self {
        let (now, most) = match threads {
            Threads::Count(n) => (n, n),
            Threads::Auto(cores) => {
                let whole =
                    || Cores { all: std::thread::available_parallelism().map_or(1, usize::from), compute: 0 };
                let cores = cores.unwrap_or_else(whole);
                let most = cores.all.max(1);
                (cores.all.saturating_sub(cores.compute).clamp(1, most), most)
            }
        };
        Crew { now, most, before: None, settled: now == most }
    }

    /// The threads that are to load now.
    pub(super) fn now(&self) -> usize {
        self.now
    }

    /// Whether their number may change.
    pub(super) fn is_open(&self) -> bool {
        !self.settled
    }

    /// No more are to be had.
    pub(super) fn settle_at(&mut self, now: usize) {
        (self.now, self.settled) = (now, true);
    }

    /// Draws the conclusion from an interval; returns how many are to load from now on.
    pub(super) fn observe(&mut self, interval: &Interval) -> usize {
        if self.settled || interval.seconds <= 0.0 || interval.batches == 0 {
            return self.now;
        }
        let rate = interval.batches as f64 / interval.seconds;
        if self.before.take().is_some_and(|before| rate < before * WORTH) {
            // It only takes time from those that compute.
            self.settle_at(self.now - 1);
        } else if interval.waited > FINE * interval.seconds && self.now < self.most {
            self.before = Some(rate);
            self.now += 1;
        }
        self.now
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn auto(all: usize, compute: usize) -> Crew {
        Crew::new(Threads::Auto(Some(Cores { all, compute })))
    }

    #[test]
    fn it_begins_with_the_cores_that_are_left() {
        for ((all, compute), now) in [((8, 6), 2), ((2, 2), 1), ((1, 4), 1), ((0, 0), 1), ((16, 0), 16)] {
            let crew = auto(all, compute);
            assert_eq!((crew.now(), crew.is_open()), (now, now < all), "{all} {compute}");
        }
        assert_eq!(Crew::new(Threads::Count(3)), Crew { now: 3, most: 3, before: None, settled: true });
        assert!(Crew::new(Threads::Auto(None)).now() >= 1);
    }

    #[test]
    fn it_grows_while_that_helps() {
        let mut crew = auto(4, 4);
        let look = |waited, batches| Interval { seconds: 1.0, waited, batches };
        assert_eq!(crew.observe(&look(0.01, 100)), 1, "nobody waits");
        assert_eq!(crew.observe(&look(0.5, 100)), 2);
        assert_eq!(crew.observe(&look(0.3, 180)), 3);
        // The third did not help: the cores are in use.
        assert_eq!(crew.observe(&look(0.3, 181)), 2);
        assert!(!crew.is_open());
        assert_eq!(crew.observe(&look(0.9, 500)), 2);
    }

    proptest! {
        #[test]
        fn it_stays_within_the_cores(
            all in 0usize..40, compute in 0usize..40, looks in proptest::collection::vec((0.0f64..2.0, 0u64..1000), 0..60),
        ) {
            let mut crew = auto(all, compute);
            let least = crew.now();
            for (waited, batches) in looks {
                let now = crew.observe(&Interval { seconds: 1.0, waited, batches });
                prop_assert!((least..=all.max(1)).contains(&now));
            }
        }
    }
}
