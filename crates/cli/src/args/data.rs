//! `phalanx data`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::WorldArgs;
use super::pack::{Export, Pack, WritingArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Get a data set and check it: from a folder, a system package or the network
    Fetch {
        /// mnist or fashion-mnist
        name: String,
        /// Where to put it
        dir: PathBuf,
        /// A folder that has the files already
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
    },
    /// Turn a data set into sets of shards, which train = "OUT" then names
    Pack(Pack),
    /// Make a set like ImageNet of textures that are computed, which a network can learn
    Synth(Synth),
    /// Write a set as files that other programs read
    Export(Export),
    /// Tell what is in a set
    Inspect(Inspect),
    /// Read every byte of a set and decode every image: exit code 3 and a list if one is bad
    Verify(Verify),
    /// The mean and deviation of each channel, for the transform normalise
    Stats(Stats),
    /// Put the bad records of a set into quarantine, so that it can be used without them
    ///
    /// Records that are sound again are released. What else is missing or damaged, only packing again
    /// brings back.
    #[command(verbatim_doc_comment)]
    Repair(Repair),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SynthCodecName {
    /// JPEG files
    Jpeg,
    /// Pixels of one size
    Raw,
}

/// The set depends on its options alone, not on ranks and threads; an image not even on how many there are.
/// What was interrupted goes on when it is started again. Under mpirun and srun their processes are the ranks,
/// which must see the same folder.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct Synth {
    /// Where the set goes: into OUT/train and OUT/val
    pub out: PathBuf,
    /// Classes
    #[arg(long, value_name = "K")]
    pub classes: u64,
    /// Images to train on
    #[arg(long, value_name = "N")]
    pub images: u64,
    /// Images to validate on; 0 for none [default: a twentieth of --images]
    #[arg(long, value_name = "M")]
    pub val: Option<u64>,
    /// Width and height of an image
    #[arg(long, value_name = "WxH", default_value = "500x375", value_parser = width_and_height)]
    pub size: [usize; 2],
    /// By which part the sides vary; if they do, a fifth of the images is upright
    /// [default: 0.1, and 0 for --codec raw]
    #[arg(long, value_name = "PART", verbatim_doc_comment)]
    pub vary: Option<f32>,
    /// How images are stored
    #[arg(long, value_enum, default_value = "jpeg")]
    pub codec: SynthCodecName,
    /// The JPEG quality, 1 to 100 [default: 90]
    #[arg(long, value_name = "Q")]
    pub quality: Option<u8>,
    /// Another seed makes other classes and images
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub writing: WritingArgs,
}

/// Reads WxH.
fn width_and_height(text: &str) -> Result<[usize; 2], String> {
    let sizes: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    sizes.ok().and_then(|s| s.try_into().ok()).ok_or_else(|| "the form is WxH, as 500x375".into())
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Inspect {
    /// The folder of a set, or of its splits
    pub dir: PathBuf,
    /// Write a PNG file of small pictures; with several splits, of the first
    #[arg(long, value_name = "FILE")]
    pub sheet: Option<PathBuf>,
    /// Pictures on it [default: 64]
    #[arg(long, value_name = "N", requires = "sheet")]
    pub pictures: Option<u64>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Verify {
    /// The folder of a set, or of its splits
    pub dir: PathBuf,
    /// Threads
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Print the report as JSON, with all bad records
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Stats {
    /// The folder of a set, or an embedded set's name; of two splits the first counts
    pub set: PathBuf,
    #[command(flatten)]
    pub world: WorldArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Repair {
    /// The folder of a set, or of its splits
    pub dir: PathBuf,
    /// Threads
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}
