//! Batches on their way to the device.

use phalanx_gpu::Feed;
use phalanx_tensor::{Device, Shape, Tensor};

use crate::Result;
use crate::task::Batch;

/// Moves loaded batches onto a device: to a GPU on a stream of their own, while the step before runs.
#[derive(Debug)]
pub(crate) struct Feeder {
    device: Device,
    feed: Option<Feed>,
}

impl Feeder {
    pub(crate) fn new(device: &Device) -> Self {
        Feeder { device: device.clone(), feed: device.gpu().map(Feed::new) }
    }

    /// As [`Batch::from_data`].
    pub(crate) fn batch(&mut self, batch: phalanx_data::Batch) -> Result<Batch> {
        let Some(feed) = &mut self.feed else { return Batch::from_data(batch, &self.device) };
        Batch::with(batch, |f| {
            let block = feed.send(f.bytes.bytes())?;
            Ok(Tensor::of_buffer(&block, 0, f.dtype, Shape::new(&f.shape), &self.device)?)
        })
    }
}
