//! Packing: from a source to sets of shards.
//!
//! A listing of the source and the options give, by pure rules, what every shard holds. So each rank writes its shards by
//! itself, their bytes are the same for any number of ranks and threads, and a packing that was interrupted goes on
//! with the shards that are not finished yet.

mod folder;
mod plan;
mod prepare;
mod report;
#[cfg(test)]
mod tests;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use folder::Folder;
use plan::PackPlan;
pub use prepare::Images;
pub use report::{PackReport, Skipped, SplitReport};
use work::Work;

use crate::import::{Import, ImportRequest, Listing, import};
use crate::shards::{SetInfo, ShardSummary, finished_shard, seal};
use crate::synth::{self, SynthConfig};
use crate::{Error, FieldSpec, Result, picture};

/// What becomes of images that cannot be read, and of files that a table names and that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadImages {
    /// Packing ends at the first.
    Fail,
    /// They are left out and listed in the report and in `skipped.json` of the set.
    Skip,
}

/// Where samples come from.
#[derive(Debug, Clone)]
pub enum PackSource {
    /// Files.
    Import(ImportRequest),
    /// They are computed.
    Synth(SynthConfig),
}

impl PackSource {
    fn list(&self) -> Result<Import> {
        match self {
            PackSource::Import(request) => import(request),
            PackSource::Synth(config) => synth::import(config),
        }
    }

    /// For people.
    fn name(&self) -> String {
        match self {
            PackSource::Import(request) => {
                let name = request.source.file_name().map(|n| n.to_string_lossy().into_owned());
                name.unwrap_or_else(|| "source".into())
            }
            PackSource::Synth(config) => format!("synth {}", config.seed),
        }
    }
}

/// What is to be packed, and how.
#[derive(Debug, Clone)]
pub struct PackRequest {
    /// Where it comes from.
    pub source: PackSource,
    /// The folder to write to: a set, or `train` and `val` where the source has two splits.
    pub out: PathBuf,
    /// How images are stored.
    pub images: Images,
    /// What becomes of unreadable ones.
    pub bad: BadImages,
    /// Decode every image, instead of looking at its header and its end alone.
    pub check: bool,
    /// About how many bytes of the source a shard holds.
    pub shard_bytes: u64,
    /// Threads of each rank; each writes a shard of its own.
    pub threads: usize,
    /// Remove a set, or the beginning of another one, that is in `out` already.
    pub force: bool,
}

/// Which of the ranks that pack together this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackRank {
    /// From 0.
    pub rank: u32,
    /// How many there are.
    pub world: u32,
}

/// One split on its way from its source to its folder.
#[derive(Debug)]
struct Job {
    split: Option<&'static str>,
    listing: Listing,
    plan: PackPlan,
    info: SetInfo,
    folder: Folder,
}

/// Packs a source, as one of several ranks that see the same files; `barrier` returns when all of them have called it.
/// Rank 0 gets the report. `say` is told of warnings and progress, in lines.
///
/// Fails with [`Error::Usage`] on options that do not fit the source and when `out` holds something else; with
/// [`Error::Format`] on a source or an image that is damaged; with [`Error::Io`]. The set is then incomplete, and the
/// same call goes on where this one ended.
pub fn pack<E: From<Error>>(
    request: &PackRequest,
    rank: PackRank,
    barrier: &dyn Fn() -> std::result::Result<(), E>,
    say: &(dyn Fn(&str) + Sync),
) -> std::result::Result<Option<PackReport>, E> {
    let jobs = plan(request)?;
    let leads = rank.rank == 0;
    let mut locks = Vec::new();
    if leads {
        if jobs.iter().any(|job| job.folder.dir() != request.out) && !request.force {
            folder::check_above(&request.out)?;
        }
        for job in &jobs {
            let split = job.split.map_or(String::new(), |s| format!("{s}: "));
            job.listing.warnings.iter().for_each(|w| say(&format!("{split}{w}")));
            locks.push(job.folder.begin(job, request.force)?);
        }
    }
    barrier()?;
    let mut kept = Vec::new();
    for job in &jobs {
        job.folder.check()?;
        kept.push(Work::new(job, request, say).run(rank)?);
    }
    barrier()?;
    if !leads {
        return Ok(None);
    }
    let mut report = PackReport { out: request.out.clone(), splits: Vec::new() };
    for (job, kept) in jobs.iter().zip(kept) {
        report.splits.push(close(job, kept)?);
    }
    drop(locks);
    Ok(Some(report))
}

fn plan(request: &PackRequest) -> Result<Vec<Job>> {
    request.images.check()?;
    if request.shard_bytes == 0 {
        return Err(Error::usage("--shard-mb", "must be above 0"));
    }
    if let PackSource::Import(import) = &request.source
        && let (Some(source), Some(out)) = (real(&import.source), real(&request.out))
        && source.is_dir()
        && out.starts_with(&source)
    {
        let problem =
            "lies in the source, where the next run would take it for a part of it; name another folder";
        return Err(Error::usage(shown(&request.out), problem));
    }
    let Import { splits, meta: of_source, .. } = request.source.list()?;
    let several = splits.len() > 1 || splits.iter().any(|(split, _)| split.is_some());
    let source = request.source.name();
    let mut jobs = Vec::new();
    for (split, listing) in splits {
        if request.bad == BadImages::Fail
            && let Some(first) = listing.missing.first()
        {
            let problem = format!(
                "{:?}: {} ({} such in all; --bad skip leaves them out)",
                first.key,
                first.problem,
                listing.missing.len()
            );
            return Err(Error::format(&listing.path, problem));
        }
        let mut meta = of_source.clone();
        meta.insert("source".into(), source.clone());
        describe(request.images, &mut meta);
        let name = split.map_or_else(|| source.clone(), |split| format!("{source} ({split})"));
        let fields = fields(request.images, &listing)?;
        let bytes = match request.images {
            Images::Raw { side } => listing.len() * (side * side * 3) as u64,
            _ => listing.bytes(),
        };
        let plan = PackPlan::new(listing.len(), bytes, request.shard_bytes);
        meta.insert("plan".into(), hash(request, &listing, &of_source, &plan));
        let info = SetInfo { name, fields, classes: listing.classes.clone(), meta };
        let dir = if several { request.out.join(split.unwrap_or("all")) } else { request.out.clone() };
        let folder = Folder::new(dir, &info);
        jobs.push(Job { split, listing, plan, info, folder });
    }
    Ok(jobs)
}

/// Where a path leads, though its last parts need not be there yet.
fn real(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find_map(|a| Some((a, a.canonicalize().ok()?)))?;
    Some(there.1.join(path.strip_prefix(there.0).ok()?))
}

/// What the options add to a set's description.
fn describe(images: Images, meta: &mut BTreeMap<String, String>) {
    match images {
        Images::Keep => {}
        Images::Resize { short, quality } => {
            meta.insert("resize".into(), short.to_string());
            meta.insert("quality".into(), quality.to_string());
        }
        Images::Raw { side } => {
            meta.insert("resize".into(), side.to_string());
            meta.insert("codec".into(), "raw".into());
        }
    }
}

/// The fields of the set: the first of the listing (the image), the label, the rest.
fn fields(images: Images, listing: &Listing) -> Result<Vec<FieldSpec>> {
    let mut fields = listing.fields.iter().map(|f| images.spec(&f.spec)).collect::<Result<Vec<_>>>()?;
    if !listing.classes.is_empty() {
        fields.insert(fields.len().min(1), FieldSpec::label());
    }
    Ok(fields)
}

/// What must be equal for shards to belong to one set: the names, labels and sizes of the samples, what else is known
/// of their source, and the options.
fn hash(
    request: &PackRequest,
    listing: &Listing,
    of_source: &BTreeMap<String, String>,
    plan: &PackPlan,
) -> String {
    let mut hash = blake3::Hasher::new();
    let options = (request.images, request.bad, request.check, plan.shards());
    // Another decoder may give other bits.
    let decoder = if request.images == Images::Keep { String::new() } else { picture::decoder() };
    hash.update(format!("pack 1 {options:?} {of_source:?} {decoder} ").as_bytes());
    listing.hash_into(&mut hash);
    hash.finalize().to_hex().to_string()
}

/// Seals a split when all its shards are finished.
fn close(job: &Job, kept: u32) -> Result<SplitReport> {
    let dir = job.folder.dir();
    let mut shards: Vec<ShardSummary> = Vec::new();
    for number in 0..job.plan.shards() {
        let found = finished_shard(dir, number, &job.info)?;
        shards.push(found.ok_or_else(|| {
            let problem = format!("shard {number} is gone; do all ranks see the same folder?");
            Error::incomplete(dir, problem)
        })?);
    }
    let skipped = job.folder.skipped(job, shards.len() as u32)?;
    let records = shards.iter().map(|s| s.records).sum();
    if records == 0 {
        let first =
            skipped.first().map_or(String::new(), |s| format!(", the first one because {}", s.problem));
        return Err(Error::format(
            &job.listing.path,
            format!("all {} samples are unreadable{first}", skipped.len()),
        ));
    }
    let root = match job.folder.sealed()? {
        Some(set) => set.root(),
        None => seal(dir, &job.info, &shards)?,
    };
    job.folder.end()?;
    Ok(SplitReport {
        split: job.split.map(str::to_owned),
        dir: dir.to_owned(),
        records,
        classes: job.info.classes.len(),
        bytes: shards.iter().map(|s| s.bytes).sum(),
        shards: shards.len() as u32,
        kept,
        skipped,
        warnings: job.listing.warnings.clone(),
        root: crate::files::hex(&root),
    })
}

/// A split's folder for messages.
fn shown(dir: &Path) -> String {
    dir.display().to_string()
}
