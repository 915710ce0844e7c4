//! Data sets, the order in which their samples are seen, and the loader that turns them into batches.
//!
//! The heart of the room is pure: which sample is seen when is a function of (seed, epoch, position)
//! ([`Order`]), and which positions belong to a step and a virtual shard is arithmetic ([`Plan`]). The
//! number of ranks, threads and restarts is no input of either, so a run that is killed, resized and
//! started again sees every sample exactly once and in the same place.
//!
//! Around it: [`Source`] gives raw records (from memory, or from a [`ShardSet`] on disk), the
//! [`Transform`] table turns images into what a model eats, and [`Loader`] does both on its own threads
//! and delivers in the plan's order. Nothing here knows tensors or ranks.

mod batch;
mod config;
mod embedded;
mod error;
mod export;
mod fetch;
mod files;
mod idx;
mod import;
mod inspect;
mod loader;
mod memory;
mod open;
mod order;
mod pack;
mod picture;
mod plan;
mod shards;
mod shown;
mod source;
mod stage;
mod stats;
mod synth;
mod threads;
mod transform;
mod views;

pub use batch::{Batch, Crops, Field, Normalise};
pub use config::{DataConfig, LoaderConfig};
pub use error::{Error, Kind, Result};
pub use export::{ExportFormat, ExportReport, ExportRequest, ExportedSplit, export};
pub use fetch::{FetchedFile, Report, fetch, fetchable};
pub use files::write_whole;
pub use import::{Format, Import, ImportRequest, Listing, import};
pub use inspect::{ClassCount, InspectReport, SizeCount, Sizes, Spread, contact_sheet, inspect};
pub use loader::{
    BadRecords, BadSample, Cores, Loaded, Loader, LoaderStats, Mode, Threads, substitutes, too_many_bad,
};
pub use memory::{Column, Memory};
pub use open::{Split, embedded_names, open, shard_sets};
pub use order::{Order, OrderKind, shard_positions, step_positions, steps_per_epoch};
pub use pack::{
    BadImages, Images, PackRank, PackReport, PackRequest, PackSource, Skipped, SplitReport, pack,
};
pub use picture::{Limits, Picture, Place, Resample, decoder, shorter_side};
pub use plan::{Plan, WorkItem};
pub use shards::{
    BadFile, BadRecord, Repaired, Sample, SampleField, SetInfo, ShardEntry, ShardSet, ShardSummary,
    ShardWriter, VerifyReport, finished_shard, repair, seal, verify,
};
pub use source::{Codec, FieldSpec, Record, RecordField, Role, Schema, Source};
pub use stage::{Stage, Staged, StagedSet, Stager};
pub use stats::{BlockStats, ChannelStats, STATS_BLOCK, block_stats, stats_blocks};
pub use synth::{Synth, SynthCodec, SynthConfig};
pub use transform::{
    Mix, Mixing, Output, Param, Pipeline, Pixels, Row, Signal, Transform, Value, check_fields, delivered,
    rows,
};
pub use views::{Balance, Subset, balanced, few_shots, split_validation};
