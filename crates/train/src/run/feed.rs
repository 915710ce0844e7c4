//! What the steps of a run are fed with.

use std::sync::Arc;
use std::time::Instant;

use phalanx_data::{Loader, LoaderConfig, LoaderStats, Mode, Plan, Source};
use phalanx_tensor::Device;

use crate::bad::BadLine;
use crate::ledger::Line;
use crate::task::{Ahead, Batch};
use crate::{Error, Result};

/// A rank's batches, step by step. To a GPU they are on their way before the step that uses them begins: while the one before
/// is computed.
#[derive(Debug)]
pub(super) struct Feed {
    loader: Loader,
    device: Device,
    shards: usize,
    /// Of the step after the one that is being computed.
    ahead: Option<Vec<Sent>>,
    /// Seconds in moving batches to the device.
    copying: f64,
}

/// What a step is fed with.
#[derive(Debug, Default)]
pub(super) struct Fed {
    /// A batch for each of the rank's shards.
    pub(super) batches: Vec<Batch>,
    /// What the ledger says of each once the step is done.
    pub(super) lines: Vec<Line>,
    /// The samples whose records could not be used.
    pub(super) bad: Vec<BadLine>,
}

/// A shard's batch on its way, and what is to be said of it.
#[derive(Debug)]
struct Sent {
    line: Line,
    bad: Vec<BadLine>,
    batch: Ahead,
}

impl Feed {
    /// Begins to load for `shards` shards.
    pub(super) fn new(
        source: Arc<dyn Source>,
        config: &LoaderConfig,
        mode: Mode,
        plan: Plan,
        device: &Device,
        shards: usize,
    ) -> Result<Self> {
        let loader = Loader::new(source, config, mode, plan, &device.host_pool())?;
        Ok(Feed { loader, device: device.clone(), shards, ahead: None, copying: 0.0 })
    }

    /// What `step` is fed with. Waits for the loader. What is next is sent at once where it is there already, so that it
    /// crosses while this step is computed.
    pub(super) fn next(&mut self, step: u64) -> Result<Fed> {
        let sent = match self.ahead.take() {
            Some(sent) => sent,
            None => self.send(step)?,
        };
        let mut fed = Fed::default();
        let landing = Instant::now();
        for Sent { line, bad, batch } in sent {
            let mut batch = batch.land()?;
            batch.bad = bad.len() as u64;
            fed.batches.push(batch);
            fed.lines.push(line);
            fed.bad.extend(bad);
        }
        self.copying += landing.elapsed().as_secs_f64();
        // On the CPU nothing crosses, and to hold batches early would only take memory. An error that the loader has ahead of
        // this step is for the next one.
        if self.device.gpu().is_some() && self.loader.is_ready(self.shards) {
            self.ahead = Some(self.send(step + 1)?);
        }
        Ok(fed)
    }

    /// Seconds in moving batches to the device, and what the loader has done, so far.
    pub(super) fn books(&self) -> (f64, LoaderStats) {
        (self.copying, self.loader.stats())
    }

    fn send(&mut self, step: u64) -> Result<Vec<Sent>> {
        let mut all = Vec::with_capacity(self.shards);
        for _ in 0..self.shards {
            let ended = || Error::config("loader", format!("it ended before step {step}"));
            let loaded = self.loader.next().ok_or_else(ended)??;
            let line = Line::new(step, &loaded);
            let bad =
                loaded.bad.into_iter().map(|bad| BadLine::new(step, line.epoch, line.shard, bad)).collect();
            let sending = Instant::now();
            let batch = Ahead::send(loaded.batch, &self.device)?;
            self.copying += sending.elapsed().as_secs_f64();
            all.push(Sent { line, bad, batch });
        }
        Ok(all)
    }
}
