//! What the steps of a run are fed with.

use std::sync::Arc;

use phalanx_data::{Loader, LoaderConfig, Mode, Plan, Source};
use phalanx_tensor::Device;

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
}

/// A shard's batch on its way, and what the ledger will say of it.
#[derive(Debug)]
struct Sent {
    epoch: u64,
    shard: u32,
    ids: Vec<u64>,
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
        Ok(Feed { loader, device: device.clone(), shards, ahead: None })
    }

    /// The batches of `step`, and their lines for the ledger once the step is done. Waits for the loader. What is next is sent
    /// at once where it is there already, so that it crosses while this step is computed.
    pub(super) fn next(&mut self, step: u64) -> Result<(Vec<Batch>, Vec<Line>)> {
        let sent = match self.ahead.take() {
            Some(sent) => sent,
            None => self.send(step)?,
        };
        let (mut batches, mut lines) = (Vec::with_capacity(sent.len()), Vec::with_capacity(sent.len()));
        for Sent { epoch, shard, ids, batch } in sent {
            lines.push(Line { step, epoch, shard, ids });
            batches.push(batch.land()?);
        }
        // On the CPU nothing crosses, and to hold batches early would only take memory. An error that the loader has ahead of
        // this step is for the next one.
        if self.device.gpu().is_some() && self.loader.is_ready(self.shards) {
            self.ahead = Some(self.send(step + 1)?);
        }
        Ok((batches, lines))
    }

    fn send(&mut self, step: u64) -> Result<Vec<Sent>> {
        let one = |loader: &mut Loader| {
            let ended = || Error::config("loader", format!("it ended before step {step}"));
            let loaded = loader.next().ok_or_else(ended)??;
            let (epoch, shard, ids) = (loaded.item.epoch, loaded.item.shard as u32, loaded.batch.ids.clone());
            Ok(Sent { epoch, shard, ids, batch: Ahead::send(loaded.batch, &self.device)? })
        };
        (0..self.shards).map(|_| one(&mut self.loader)).collect()
    }
}
