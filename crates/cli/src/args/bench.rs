//! The arguments of `phalanx bench`.

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use phalanx_train::CudaGraph;

use super::{DeviceName, PrecisionName, WorldArgs, sizes};

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Matrix product
    Gemm {
        /// Rows of the result
        #[arg(long, default_value_t = 1024)]
        m: usize,
        /// Columns of the result
        #[arg(long, default_value_t = 1024)]
        n: usize,
        /// Length of the sums
        #[arg(long, default_value_t = 1024)]
        k: usize,
        /// Where to compute
        #[arg(long, value_enum, default_value = "cpu")]
        device: DeviceName,
        /// The type of the matrices
        #[arg(long, value_enum, default_value = "f32")]
        precision: PrecisionName,
        #[command(flatten)]
        common: BenchCommon,
    },
    /// Kernels of a GPU that wait for memory, beside a copy
    Memory {
        /// Where they run
        #[arg(long, value_enum, default_value = "cuda")]
        device: DeviceName,
        /// Megabytes of the largest operand
        #[arg(long, default_value_t = 400.0, value_name = "MB")]
        megabytes: f64,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// The losses of some steps on random data, to compare devices by
    Losses(BenchLosses),
    /// Training steps of a model on random data
    Step(BenchStep),
    /// Samples of a data set: read, decoded, transformed and put into batches
    Loader(BenchLoader),
    /// Sum over ranks, beside a plain copy
    Allreduce {
        /// Bytes of each rank's buffer
        #[arg(long, default_value_t = 100_000_000)]
        bytes: usize,
        #[command(flatten)]
        world: WorldArgs,
        /// Rounds to take the median of
        #[arg(long, default_value_t = 15)]
        rounds: usize,
        /// Find the best size of buckets, and keep it for runs without distributed.bucket_mb
        #[arg(long, conflicts_with_all = ["bytes", "rounds"])]
        tune: bool,
        /// auto, portable, avx2 or avx512
        #[arg(long, default_value = "auto")]
        isa: String,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchCommon {
    /// Compute threads of each rank
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// auto, portable, avx2 or avx512
    #[arg(long, default_value = "auto")]
    pub isa: String,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CudaGraphName {
    /// Where they can be
    Auto,
    /// Or an error
    On,
    /// Never
    Off,
}

impl From<CudaGraphName> for CudaGraph {
    fn from(name: CudaGraphName) -> Self {
        match name {
            CudaGraphName::Auto => CudaGraph::Auto,
            CudaGraphName::On => CudaGraph::On,
            CudaGraphName::Off => CudaGraph::Off,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchLoader {
    /// A data set: an embedded one's name or a directory, as data.train in a configuration
    #[arg(value_name = "DATASET")]
    pub data: String,
    /// Loader threads; 0 for none but the caller's
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// none, train (random crop and flip), eval (the middle), or one row's name
    #[arg(long, value_name = "NAME", default_value = "train")]
    pub transform: String,
    /// Height and width that rows give images
    #[arg(long, value_name = "PIXELS", default_value_t = 224)]
    pub size: usize,
    /// Samples of a batch
    #[arg(long, default_value_t = 32)]
    pub batch: u64,
    /// Deliver normalised floats instead of bytes
    #[arg(long)]
    pub floats: bool,
    /// Seconds to measure
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchLosses {
    /// The model's name, as in a configuration
    #[arg(long)]
    pub model: String,
    /// Samples in a step, the same in each
    #[arg(long, default_value_t = 8)]
    pub batch: u64,
    /// Height, width and channels of a sample [default: what the model was made for]
    #[arg(long, value_name = "HxWxC", value_parser = sizes)]
    pub input: Option<[usize; 3]>,
    /// Steps to make
    #[arg(long, default_value_t = 50)]
    pub steps: u64,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
    /// The type of activations
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: PrecisionName,
    #[command(flatten)]
    pub common: BenchCommon,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchStep {
    /// The model's name, as in a configuration
    #[arg(long)]
    pub model: String,
    /// Samples of each rank in a step
    #[arg(long, default_value_t = 128)]
    pub batch: u64,
    /// Height, width and channels of a sample [default: what the model was made for]
    #[arg(long, value_name = "HxWxC", value_parser = sizes)]
    pub input: Option<[usize; 3]>,
    /// Classes [default: as many as the model was made for]
    #[arg(long)]
    pub classes: Option<usize>,
    #[command(flatten)]
    pub world: WorldArgs,
    /// Virtual shards [default: one a rank]
    #[arg(long)]
    pub virtual_shards: Option<u32>,
    /// Widths of an MLP's hidden layers, as 2048,512
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    pub hidden: Option<Vec<usize>>,
    /// Most megabytes in one bucket of gradients [default: the tuned, or 25]
    #[arg(long, value_name = "MB")]
    pub bucket_mb: Option<f64>,
    /// What sums of gradients are rounded to
    #[arg(long, value_enum, default_value = "f32")]
    pub wire: WireName,
    /// Seconds to measure; on a GPU 20 steps at least, after 5 that do not count
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Forward and backward, or forward alone
    #[arg(long, value_enum, default_value = "train")]
    pub mode: BenchMode,
    /// Tell what each kernel of a step takes, the most costly first; on a GPU only
    #[arg(long)]
    pub profile: bool,
    /// Whether steps on a GPU become CUDA graphs
    #[arg(long, value_enum, default_value = "auto")]
    pub cuda_graph: CudaGraphName,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
    /// Let several ranks of a machine use one GPU
    #[arg(long)]
    pub share_gpu: bool,
    /// The type of activations
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: PrecisionName,
    #[command(flatten)]
    pub common: BenchCommon,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum WireName {
    /// Nothing is rounded
    F32,
    /// The upper half of a single-precision number
    Bf16,
    /// Half precision
    F16,
}

impl From<WireName> for phalanx_train::config::WireType {
    fn from(name: WireName) -> Self {
        match name {
            WireName::F32 => Self::F32,
            WireName::Bf16 => Self::Bf16,
            WireName::F16 => Self::F16,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum BenchMode {
    /// A whole training step
    Train,
    /// The forward pass alone
    Infer,
}
