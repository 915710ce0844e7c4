//! Networks: parameters and their flat arena, layers, models, initialisation, optimizers, schedules.
//!
//! A model is built once against a [`Builder`], which gives out parameter and norm ids; layers hold ids,
//! never values. [`Params`] keeps all values in one arena, so that an optimizer runs fused over it and a
//! bucket of gradients is a range of its twin. A [`Forward`] hands values to layers for one virtual
//! shard. Nothing here hears of files or ranks.

mod builder;
mod digest;
mod error;
mod forward;
mod init;
mod layer;
mod model;
mod norm;
mod optim;
mod params;
mod schedule;

/// Sums and rounding of flat ranges of a GPU's arenas, for gradients on their way.
pub mod flat {
    pub use crate::optim::{
        add, kernel_sources, load, round_bf16, round_bf16_on, round_f16, round_f16_on, sum_on,
    };
}

/// What updates that are part of a CUDA graph look at, tell, and find their numbers by.
pub mod recorded {
    pub use crate::optim::{AVERAGE, Guard, Judged, UPDATE};
}

pub use builder::{Builder, Described};
pub use error::{Error, Result};
pub use forward::Forward;
pub use init::Init;
pub use layer::{
    Activation, AdaptiveAvgPool2d, AvgPool2d, BatchNorm, ConvConfig, ConvKind, Convolution, Embedding,
    Flatten, FractionalMaxPool, FractionalTo, GlobalAvgPool, GroupNorm, InstanceNorm, Layer, LayerNorm,
    Linear, LocalResponseNorm, LocallyConnected2d, MaxPool2d, MultiheadAttention, Noise, NoiseKind,
    NormOptions, Pad, PadAmount, PadName, Padding, PaddingName, Pair, PerAxis, PixelShuffle, Prelu,
    Recurrent, RecurrentCell, RecurrentConfig, RmsNorm, Sequential, Sight, Sizes, Upsample, UpsampleMode,
    UpsampleTo,
};
pub use model::{
    Approximate, LayerKind, LayerListing, LayerOption, LayerSummary, Listed, Listing, Memory, ModelConfig,
    Row, Summary, build, list as list_models, summarise,
};
pub use norm::{Contribution, Counted, MOMENTUM, NormId, NormRecord, NormValues, Norms};
pub use optim::{Ema, EmaConfig, Optimizer, OptimizerConfig, Update, clip_factor};
pub use params::{Find, ParamId, ParamSpec, Params, Stored, Values};
pub use schedule::{Plateau, PlateauState, ScheduleConfig, ScheduleName};
