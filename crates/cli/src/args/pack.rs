//! `phalanx data pack` and `phalanx data export`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use super::WorldArgs;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum FormatName {
    /// The tar of class tars, the validation tar and the development kit
    Imagenet,
    /// A folder for each class, perhaps below train and val
    Folder,
    /// Tars with key.jpg, key.cls (or a label in key.json), key.txt, key.NAME.npy
    Webdataset,
    /// IDX files, an embedded set's name, or a set of shards
    Set,
    /// CIFAR-10 or CIFAR-100, the binary version
    Cifar,
    /// A table with the columns file and label, or labels (target, text)
    Csv,
}

impl From<FormatName> for phalanx_data::Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Imagenet => phalanx_data::Format::Imagenet,
            FormatName::Folder => phalanx_data::Format::Folder,
            FormatName::Webdataset => phalanx_data::Format::Webdataset,
            FormatName::Set => phalanx_data::Format::Set,
            FormatName::Cifar => phalanx_data::Format::Cifar,
            FormatName::Csv => phalanx_data::Format::Csv,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CodecName {
    /// Image files as they are, or as --resize makes them
    Keep,
    /// Pixels: the shorter side becomes that of --resize, and the middle square is kept
    Raw,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum BadName {
    /// Packing ends with exit code 3
    Fail,
    /// They are left out and listed
    Skip,
}

/// Packing that was interrupted goes on when it is started again. The set's bytes do not depend on ranks and
/// threads. Under mpirun and srun their processes are the ranks, which must see the same folders.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct Pack {
    /// A folder, a .tar, a .csv, or an embedded set's name
    pub source: PathBuf,
    /// Where the set goes: into OUT, or into OUT/train and OUT/val
    pub out: PathBuf,
    /// What the source is [default: found out]
    #[arg(long, value_enum)]
    pub format: Option<FormatName>,
    /// ImageNet's validation labels [default: beside the tars, or in the kit there]
    #[arg(long, value_name = "FILE")]
    pub ground_truth: Option<PathBuf>,
    /// ImageNet's synset words, or the classes' names, one a line [default: beside the source]
    #[arg(long, value_name = "FILE")]
    pub class_names: Option<PathBuf>,
    /// What a table's files are named from [default: the table's folder]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Make images smaller whose shorter side is above this many pixels
    #[arg(long, value_name = "SHORT")]
    pub resize: Option<usize>,
    /// The JPEG quality of those, 1 to 100 [default: 90]
    #[arg(long, value_name = "Q")]
    pub quality: Option<u8>,
    /// How images are stored
    #[arg(long, value_enum, default_value = "keep")]
    pub codec: CodecName,
    /// What becomes of images that cannot be read
    #[arg(long, value_enum, default_value = "fail")]
    pub bad: BadName,
    /// Decode every image, instead of reading its header and looking for its end
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub writing: WritingArgs,
}

/// How a set is written, wherever its images come from.
#[derive(Debug, ClapArgs)]
pub(crate) struct WritingArgs {
    /// About how many megabytes of the source come into one shard
    #[arg(long, default_value_t = 256.0, value_name = "MB")]
    pub shard_mb: f64,
    /// Threads of each rank
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Remove a set, or the beginning of another one, in OUT, and write beside other files
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub world: WorldArgs,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ExportName {
    /// Tars with key.jpg and key.cls side by side
    Webdataset,
    /// A folder for each class
    Folder,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Export {
    /// The set's folder, or an embedded set's name
    pub set: PathBuf,
    /// The folder to make
    pub out: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    pub format: ExportName,
    /// About how many megabytes come into one tar [default: 256]
    #[arg(long, value_name = "MB")]
    pub shard_mb: Option<f64>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}
