//! `phalanx data pack`, `synth` and `export`.

use anyhow::{Result, bail};
use phalanx_data::{
    BadImages, ExportFormat, ExportRequest, Images, ImportRequest, PackRequest, PackSource, SynthCodec,
    SynthConfig,
};

use crate::args::data::{Synth, SynthCodecName};
use crate::args::pack::{BadName, CodecName, Export, ExportName, Pack, WritingArgs};
use crate::commands::{print_all, print_json};
use crate::world::{self, World};

/// Bytes of a megabyte as the options count them.
const MB: f64 = 1e6;
/// Megabytes of an exported tar.
const SHARD_MB: f64 = 256.0;
/// The JPEG quality of images that are written anew.
const QUALITY: u8 = 90;

pub(crate) fn pack(args: &Pack) -> Result<u8> {
    let images = match (args.codec, args.resize, args.quality) {
        (CodecName::Keep, None, None) => Images::Keep,
        (CodecName::Keep, Some(short), quality) => {
            Images::Resize { short, quality: quality.unwrap_or(QUALITY) }
        }
        (CodecName::Raw, Some(side), None) => Images::Raw { side },
        (CodecName::Raw, None, _) => bail!("--codec raw stores images of one size: give it with --resize"),
        (_, _, Some(_)) => {
            bail!("--quality is of JPEG files that are written anew: with --resize, and without --codec raw")
        }
    };
    let request = PackRequest {
        source: PackSource::Import(ImportRequest {
            source: args.source.clone(),
            format: args.format.map(Into::into),
            ground_truth: args.ground_truth.clone(),
            class_names: args.class_names.clone(),
            root: args.root.clone(),
        }),
        out: args.out.clone(),
        images,
        bad: match args.bad {
            BadName::Fail => BadImages::Fail,
            BadName::Skip => BadImages::Skip,
        },
        check: args.check,
        shard_bytes: (args.writing.shard_mb * MB) as u64,
        threads: args.writing.threads,
        force: args.writing.force,
    };
    run(&request, &args.writing)
}

pub(crate) fn synth(args: &Synth) -> Result<u8> {
    let codec = match (args.codec, args.quality) {
        (SynthCodecName::Jpeg, quality) => SynthCodec::Jpeg(quality.unwrap_or(QUALITY)),
        (SynthCodecName::Raw, None) => SynthCodec::Raw,
        (SynthCodecName::Raw, Some(_)) => bail!("--quality is of JPEG files, and --codec raw writes none"),
    };
    let [width, height] = args.size;
    let config = SynthConfig {
        classes: args.classes,
        images: args.images,
        val: args.val.unwrap_or(args.images.div_ceil(20)),
        size: [height, width],
        vary: args.vary.unwrap_or(if codec == SynthCodec::Raw { 0.0 } else { 0.1 }),
        codec,
        seed: args.seed,
    };
    let request = PackRequest {
        source: PackSource::Synth(config),
        out: args.out.clone(),
        images: Images::Keep,
        bad: BadImages::Fail,
        check: false,
        shard_bytes: (args.writing.shard_mb * MB) as u64,
        threads: args.writing.threads,
        force: args.writing.force,
    };
    run(&request, &args.writing)
}

fn run(request: &PackRequest, args: &WritingArgs) -> Result<u8> {
    let report = match world::find_on_host(&args.world, 1)? {
        World::Threads(ranks) => {
            phalanx_launch::tell_on_signals(
                "interrupted: the same command goes on where this one has stopped",
            )?;
            Some(phalanx_train::pack::pack(request, ranks, &tell)?)
        }
        #[cfg(feature = "mpi")]
        World::Mpi(place) => world::run(&place, None, &crate::commands::say, |comm| {
            phalanx_train::pack::pack_rank(request, &*comm, &tell)
        })?,
    };
    match report {
        None => Ok(0),
        Some(report) if args.json => print_json(&report),
        Some(report) => print_all(&report),
    }
}

pub(crate) fn export(args: &Export) -> Result<u8> {
    if let (ExportName::Folder, Some(_)) = (args.format, args.shard_mb) {
        bail!("--shard-mb is of tars, and --format folder writes none");
    }
    phalanx_launch::tell_on_signals(
        "interrupted: the same command begins anew, and removes what this one has left beside OUT",
    )?;
    let report = phalanx_data::export(&ExportRequest {
        set: args.set.clone(),
        out: args.out.clone(),
        format: match args.format {
            ExportName::Webdataset => ExportFormat::Webdataset,
            ExportName::Folder => ExportFormat::Folder,
        },
        tar_bytes: (args.shard_mb.unwrap_or(SHARD_MB) * MB) as u64,
    })?;
    if args.json { print_json(&report) } else { print_all(&report) }
}

/// Warnings and progress, which are no part of the report.
pub(crate) fn tell(text: &str) {
    use std::io::Write;
    // A standard error that is closed is no reason to stop.
    let _ = writeln!(std::io::stderr(), "{text}");
}
