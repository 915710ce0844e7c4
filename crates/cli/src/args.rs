//! The command line.

pub(crate) mod bench;
pub(crate) mod data;
pub(crate) mod pack;

use std::path::PathBuf;

use bench::Bench;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Trains neural networks data-parallel.
/// Kill it, resize it, start it again: the same bits, and every sample exactly once.
#[derive(Debug, Parser)]
#[command(
    verbatim_doc_comment,
    name = "phalanx",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
#[command(after_help = "Begin with:  phalanx train configs/digits.toml --ranks 2\n\
    Exit codes:  0 done, 2 bad usage or configuration, 3 bad data, 4 communication (a rank is lost),\n             \
    5 numerics (a loss is not finite), 75 stopped on a signal after a checkpoint,\n             \
    1 anything else")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model; run it again to go on where it stopped
    Train(Train),
    /// Evaluate a checkpoint on the configured evaluation set
    Evaluate(Evaluate),
    /// Tell the classes of image files (JPEG, PNG)
    ///
    /// --json prints a line for each image, in their order: [{class, name, logit, probability}, …],
    /// best first; or {image, error} for one that cannot be told. The exit code is then 3.
    #[command(verbatim_doc_comment)]
    Predict(Predict),
    /// Start a command's ranks: as threads, by mpirun or by Slurm
    ///
    /// INT, TERM, HUP, USR1 and USR2 reach the ranks as USR1, so that they stop with a checkpoint.
    /// The exit code is the command's, 128 + N when signal N has ended it.
    #[command(verbatim_doc_comment)]
    Launch(Launch),
    /// Get, make, check and look at data sets
    #[command(subcommand)]
    Data(data::Data),
    /// Prove what a run consumed
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Look at the named models
    #[command(subcommand)]
    Model(ModelCommand),
    /// Measure this machine
    #[command(subcommand)]
    Bench(Bench),
    /// Check configurations
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DeviceName {
    /// A GPU where each rank can have one, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// A GPU
    Cuda,
}

impl DeviceName {
    pub(crate) fn name(self) -> &'static str {
        match self {
            DeviceName::Auto => "auto",
            DeviceName::Cpu => "cpu",
            DeviceName::Cuda => "cuda",
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeviceArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceName,
    /// Let several ranks of a machine use one GPU
    #[arg(long)]
    pub share_gpu: bool,
}

impl From<&DeviceArgs> for phalanx_train::DeviceChoice {
    fn from(args: &DeviceArgs) -> Self {
        Self { name: args.device.name().to_owned(), share_gpu: args.share_gpu, sums: Default::default() }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CommName {
    /// What fits how the program was started
    Auto,
    /// Ranks are threads of this process
    Threads,
    /// Ranks are the processes that mpirun or srun has started
    Mpi,
    /// Gradients go over NCCL from GPU to GPU; ranks are threads or processes, as fits
    Nccl,
}

impl From<CommName> for phalanx_train::SumsOver {
    fn from(name: CommName) -> Self {
        match name {
            CommName::Auto => Self::Auto,
            CommName::Threads | CommName::Mpi => Self::Host,
            CommName::Nccl => Self::Nccl,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WorldArgs {
    /// Ranks, as threads of this process; any number gives the same bits
    ///
    /// Under mpirun and srun it is left out: ranks are the processes that they start.
    #[arg(long, value_name = "N")]
    pub ranks: Option<u32>,
    /// How ranks talk to each other
    #[arg(long, value_enum, default_value = "auto")]
    pub comm: CommName,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Train {
    /// The configuration, a TOML file
    pub config: PathBuf,
    #[command(flatten)]
    pub world: WorldArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// The run directory [default: runs/<name of the configuration>]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where to begin
    ///
    /// auto: at the newest good checkpoint in the run directory, if it has one
    /// never: anew; the run directory must not hold a run
    /// DIR: at that checkpoint, or at the newest one of that run directory
    #[arg(long, value_name = "auto|never|DIR", default_value = "auto", verbatim_doc_comment)]
    pub resume: String,
    /// The type of activations, instead of the configuration's
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionName>,
    /// Stop when N steps are done in all, with a checkpoint; later starts can go on
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,
    /// Change a value of the configuration, as --set optimizer.lr=0.05; may be repeated
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Print events as JSON lines
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Print errors only
    #[arg(long)]
    pub quiet: bool,
    /// Plant a failure: rank=R,step=S,kind=K; may be repeated
    ///
    /// K: kill, stop, slow:MS, panic, nan, desync, corrupt-gradient, hang-loader, disk-full,
    /// exit:CODE
    #[arg(long, value_name = "SPEC", verbatim_doc_comment)]
    pub inject: Vec<String>,
    /// Go on although the checkpoint was written with other instructions or another version
    #[arg(long)]
    pub allow_fingerprint_change: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Evaluate {
    /// The configuration, a TOML file
    pub config: PathBuf,
    /// A checkpoint, or a run directory for its newest one
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    #[command(flatten)]
    pub world: WorldArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// The type of activations [default: the checkpoint's on a GPU, f32 on the CPU]
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionName>,
    /// Views of an image whose shares are averaged: 1, or 10 (corners and middle, and mirrored)
    #[arg(long, value_name = "1|10", default_value_t = 1)]
    pub crops: usize,
    /// The side of a crop [default: the whole image, or for ten crops the model's size]
    #[arg(long, value_name = "N")]
    pub crop: Option<usize>,
    /// Resize the shorter side to each of these, as 224,256, and average over them
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pub scales: Vec<usize>,
    /// Change a value of the configuration
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TransformName {
    /// The shorter side to 256, the middle 224x224 cut out, normalised
    Imagenet,
    /// Normalised; the image has the model's size
    None,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Predict {
    /// Image files
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    /// Weights: a checkpoint or run directory, or a file (safetensors, or .pth of PyTorch)
    #[arg(long, value_name = "DIR|FILE")]
    pub checkpoint: PathBuf,
    /// The model's name; a checkpoint of ours tells it
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Set an option of the named model, as --set batch_norm=true; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// A file with the name of a class in each line
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// How images become samples [default: imagenet for models of 224x224x3, else none]
    #[arg(long, value_enum)]
    pub transform: Option<TransformName>,
    /// Height, width and channels of a sample [default: the run's, or the model's usual ones]
    #[arg(long, value_name = "HxWxC", value_parser = sizes)]
    pub input: Option<[usize; 3]>,
    /// Classes to tell of each image
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub top: usize,
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceName,
    /// Compute threads [default: one for each core]
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print JSON, a line an image
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum OnName {
    /// Slurm in an allocation of it, else local
    Auto,
    /// Threads of one process on this machine
    Local,
    /// Processes on this machine
    Mpirun,
    /// srun, in this allocation or for one of its own
    Slurm,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Launch {
    /// Who starts the ranks
    #[arg(long, value_enum, default_value = "auto")]
    pub on: OnName,
    /// Machines [default: those of the allocation, or 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub nodes: Option<u32>,
    /// Ranks on each machine [default: one for each GPU asked for, or 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ranks_per_node: Option<u32>,
    /// GPUs to ask Slurm for on each machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub gpus_per_node: Option<u32>,
    /// Slurm's partition
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
    /// Slurm's limit of time, as 30 (minutes) or 1-12:00:00
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,
    /// Have Slurm queue the job again when it is stopped (not there yet)
    #[arg(long)]
    pub requeue: bool,
    /// Print the line instead of running it
    #[arg(long)]
    pub dry_run: bool,
    /// train, evaluate, data pack|synth|stats or bench step|allreduce, with its
    /// arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Prove that each sample was consumed exactly once an epoch
    Verify {
        /// The run directory
        run: PathBuf,
        /// Print the proof as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// List the named models: parameters and multiply-adds at the input that each was made for
    List {
        /// Print the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the kinds of layers that `[[model.layers]]` can name, with their options
    Layers {
        /// Print the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a model's layers, and what they cost
    Show {
        /// The model's name
        name: String,
        /// Height, width and channels of a sample [default: what the model was made for]
        #[arg(long, value_name = "HxWxC", value_parser = sizes)]
        input: Option<[usize; 3]>,
        /// Classes [default: what the model was made for]
        #[arg(long, value_name = "K")]
        classes: Option<usize>,
        /// Samples computed at once
        #[arg(long, value_name = "N", default_value_t = 1)]
        batch: u64,
        /// Set an option of the model, as --set batch_norm=true; may be repeated
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<String>,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Reads HxWxC.
fn sizes(text: &str) -> Result<[usize; 3], String> {
    let sizes: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    sizes.ok().and_then(|s| s.try_into().ok()).ok_or_else(|| "the form is HxWxC, as 28x28x1".into())
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check configurations without running them
    Check {
        /// TOML files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Change a value of the configurations
        #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
        settings: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum PrecisionName {
    /// Single precision
    F32,
    /// Single precision with 10 bits of mantissa in products, on GPUs
    Tf32,
    /// The upper half of a single-precision number, on GPUs
    Bf16,
    /// Half precision with scaled losses, on GPUs
    Fp16,
}

impl From<PrecisionName> for phalanx_train::config::Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Self::F32,
            PrecisionName::Tf32 => Self::Tf32,
            PrecisionName::Bf16 => Self::Bf16,
            PrecisionName::Fp16 => Self::Fp16,
        }
    }
}
