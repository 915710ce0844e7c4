//! Where a rank's time goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_comm::{Activity, Communicator};
use serde::{Deserialize, Serialize};

use crate::Result;

/// Seconds by what they were spent on. In a summary they are those of this start, from its first step to its
/// end, and the mean over all ranks; in a line of metrics those of rank 0 since the line before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// All of it.
    pub total_s: f64,
    /// Forward and backward.
    pub compute_s: f64,
    /// Waiting for the loader's next batch.
    pub data_wait_s: f64,
    /// Waiting for sums that backward did not hide, once all ranks had come to them.
    pub communication_s: f64,
    /// Waiting for ranks that had not come to a sum yet.
    pub skew_s: f64,
    /// Changing parameters, with what a task does afterwards.
    pub optimizer_s: f64,
    /// Taking snapshots and waiting for the one before to be written.
    pub checkpoint_s: f64,
    /// Evaluating.
    pub evaluation_s: f64,
    /// Comparing replicas.
    pub audit_s: f64,
    /// The rest.
    pub unexplained_s: f64,
}

impl Times {
    /// The shares of the whole, in whole percents, that round to more than none.
    pub fn shares(&self) -> String {
        let named = [
            ("compute", self.compute_s),
            ("data", self.data_wait_s),
            ("communication", self.communication_s),
            ("stragglers", self.skew_s),
            ("optimizer", self.optimizer_s),
            ("checkpoints", self.checkpoint_s),
            ("evaluation", self.evaluation_s),
            ("audit", self.audit_s),
            ("rest", self.unexplained_s),
        ];
        let percents =
            named.map(|(name, s)| (name, (100.0 * s / self.total_s.max(f64::MIN_POSITIVE)).round()));
        let shown = percents.iter().filter(|p| p.1 > 0.0).map(|(name, p)| format!("{name} {p} %"));
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// The parts of [`Times`], as they are counted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Compute,
    Data,
    Communication,
    Skew,
    Optimizer,
    Checkpoint,
    Evaluation,
    Audit,
    Rest,
}

const PARTS: usize = Part::Rest as usize + 1;

/// What was spent on each part so far, in seconds.
pub(crate) type Spent = [f64; PARTS];

fn part(activity: Activity) -> Part {
    match activity {
        Activity::Loader => Part::Data,
        Activity::Compute => Part::Compute,
        Activity::Reduce => Part::Communication,
        Activity::Optimizer => Part::Optimizer,
        Activity::Checkpoint => Part::Checkpoint,
        Activity::Evaluation => Part::Evaluation,
        Activity::Audit => Part::Audit,
        Activity::Starting | Activity::Finishing => Part::Rest,
    }
}

fn times(spent: &Spent) -> Times {
    // To the microsecond.
    let rounded = |s: f64| (s * 1e6).round() / 1e6;
    let of = |part: Part| rounded(spent[part as usize]);
    Times {
        total_s: rounded(spent.iter().sum()),
        compute_s: of(Part::Compute),
        data_wait_s: of(Part::Data),
        communication_s: of(Part::Communication),
        skew_s: of(Part::Skew),
        optimizer_s: of(Part::Optimizer),
        checkpoint_s: of(Part::Checkpoint),
        evaluation_s: of(Part::Evaluation),
        audit_s: of(Part::Audit),
        unexplained_s: of(Part::Rest),
    }
}

/// A rank's clock: it is always at one part, so no time is lost. What the rank enters here, its whereabouts
/// tell as well.
pub(crate) struct Timeline {
    comm: Arc<dyn Communicator>,
    at: Part,
    since: Instant,
    /// What the rank had waited for others at `since`.
    waited: Duration,
    spent: Spent,
}

impl Timeline {
    pub(crate) fn new(comm: Arc<dyn Communicator>) -> Self {
        let waited = comm.waited().for_ranks;
        Timeline { comm, at: Part::Rest, since: Instant::now(), waited, spent: [0.0; PARTS] }
    }

    /// The rank begins something.
    pub(crate) fn enter(&mut self, activity: Activity) {
        self.comm.whereabouts().enter(activity);
        self.turn(part(activity));
    }

    /// The rank has ended what it did; what comes now is small and has no name.
    pub(crate) fn rest(&mut self) {
        self.turn(Part::Rest);
    }

    fn turn(&mut self, next: Part) {
        let now = Instant::now();
        let mut took = now.duration_since(self.since);
        if self.at == Part::Communication || next == Part::Communication {
            let waited = self.comm.waited().for_ranks;
            if self.at == Part::Communication {
                let skew = waited.saturating_sub(self.waited).min(took);
                self.spent[Part::Skew as usize] += skew.as_secs_f64();
                took -= skew;
            }
            self.waited = waited;
        }
        self.spent[self.at as usize] += took.as_secs_f64();
        (self.at, self.since) = (next, now);
    }

    /// Begins anew.
    pub(crate) fn reset(&mut self) {
        self.turn(self.at);
        self.spent = [0.0; PARTS];
    }

    /// What was spent up to now.
    pub(crate) fn spent(&mut self) -> Spent {
        self.turn(self.at);
        self.spent
    }

    /// What was spent since `before`, which becomes now.
    pub(crate) fn since(&mut self, before: &mut Spent) -> Times {
        let now = self.spent();
        let then = std::mem::replace(before, now);
        times(&std::array::from_fn(|i| now[i] - then[i]))
    }

    /// The mean of what all ranks have spent. A meeting of all ranks.
    pub(crate) fn mean(&mut self) -> Result<Times> {
        let mine = self.spent();
        let all = self.comm.all_gather(bytemuck::cast_slice(&mine), self.comm.deadline())?;
        let mut sum = [0.0; PARTS];
        for bytes in &all {
            for (sum, value) in sum.iter_mut().zip(bytemuck::pod_collect_to_vec::<u8, f64>(bytes)) {
                *sum += value;
            }
        }
        Ok(times(&sum.map(|s| s / all.len() as f64)))
    }
}

#[cfg(test)]
mod tests {
    use phalanx_comm::{Bucket, Collective, Event, Overlap, Tree, Wire};
    use phalanx_host::{DType, Isa};

    use super::*;
    use crate::ranks::run_threads;

    #[test]
    fn every_moment_is_counted_once_and_stragglers_apart() {
        let late = Duration::from_millis(60);
        let body = |comm: Arc<dyn Communicator>| {
            let arena = comm.alloc(4)?;
            let mut line = Timeline::new(comm.clone());
            let begun = Instant::now();
            line.enter(Activity::Compute);
            if comm.rank() == 1 {
                std::thread::sleep(late);
            }
            line.enter(Activity::Reduce);
            assert_eq!(comm.whereabouts().activity(), Activity::Reduce);
            let what = Collective::AllReduce { tree: Tree::new(2)?, wire: Wire::F32 };
            let bucket = Bucket::new(0, DType::F32, vec![arena.write(0..4)?])?;
            comm.start(bucket, what, Event::Ready, Overlap::Caller)?.wait(comm.deadline())?;
            line.rest();
            let mut before = [0.0; PARTS];
            let mine = line.since(&mut before);
            assert!((mine.total_s - begun.elapsed().as_secs_f64()).abs() < 0.02, "{mine:?}");
            assert!(line.since(&mut before).total_s < 0.02);
            Ok((mine, line.mean()?))
        };
        let all = run_threads(2, Duration::from_secs(30), Isa::Portable, body).unwrap();
        let late = late.as_secs_f64();
        assert!(all[0].0.skew_s > late / 2.0 && all[0].0.compute_s < late / 2.0, "{all:?}");
        assert!(all[1].0.skew_s < late / 2.0 && all[1].0.compute_s >= late, "{all:?}");
        assert_eq!(all[0].1, all[1].1);
        assert!(all[0].1.skew_s > late / 4.0 && all[0].1.skew_s < all[0].0.skew_s);
        let text = Times { total_s: 2.0, compute_s: 1.5, audit_s: 0.001, skew_s: 0.5, ..Times::default() };
        assert_eq!(text.shares(), "compute 75 %, stragglers 25 %");
    }
}
