//! `phalanx data inspect`, `verify`, `stats` and `repair`.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use phalanx_data::{ShardSet, Split, shard_sets};
use serde::Serialize;

use crate::args::data::{Inspect, Repair, Stats, Verify};
use crate::commands::{print_all, print_json};
use crate::packing::tell;
use crate::world::{self, World};

/// How often progress is told.
const TELL: Duration = Duration::from_secs(5);
/// Pictures in a row of a contact sheet, and pixels of one.
const SHEET: (usize, usize) = (8, 128);
/// Pictures on a contact sheet.
const PICTURES: u64 = 64;

/// A set's report, and where the set is.
#[derive(Serialize)]
struct Of<T> {
    dir: PathBuf,
    #[serde(flatten)]
    report: T,
}

impl<T: Display> Display for Of<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}  {}", self.dir.display(), self.report)
    }
}

/// The reports of all sets in a folder.
fn each<T>(dir: &Path, report: impl Fn(&Path) -> phalanx_data::Result<T>) -> Result<Vec<Of<T>>> {
    let sets = shard_sets(dir)?.into_iter();
    sets.map(|dir| Ok(Of { report: report(&dir)?, dir })).collect()
}

fn show<T: Serialize + Display>(reports: &[Of<T>], json: bool, code: u8) -> Result<u8> {
    if json {
        print_json(&reports)?;
    } else {
        for report in reports {
            print_all(report)?;
        }
    }
    Ok(code)
}

/// Tells how far something is, now and then.
fn progress(what: &'static str, unit: f64) -> impl Fn(u64) + Sync {
    let (done, last) = (AtomicU64::new(0), Mutex::new(Instant::now()));
    move |more| {
        let done = done.fetch_add(more, Ordering::Relaxed) + more;
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= TELL {
            *last = Instant::now();
            tell(&format!("{:.0} {what}", done as f64 / unit));
        }
    }
}

pub(crate) fn inspect(args: &Inspect) -> Result<u8> {
    if let Some(file) =
        args.sheet.as_ref().filter(|f| !f.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")))
    {
        bail!("--sheet writes a PNG file: let {} end in .png", file.display());
    }
    let reports = each(&args.dir, |dir| phalanx_data::inspect(&ShardSet::open(dir)?))?;
    if let (Some(file), Some(first)) = (&args.sheet, reports.first()) {
        let (columns, side) = SHEET;
        let pictures = args.pictures.unwrap_or(PICTURES);
        let sheet = phalanx_data::contact_sheet(&ShardSet::open(&first.dir)?, pictures, columns, side)?;
        let png = sheet.to_png().map_err(|problem| anyhow!("{}: {problem}", file.display()))?;
        phalanx_data::write_whole(file, &png)?;
    }
    show(&reports, args.json, 0)
}

pub(crate) fn verify(args: &Verify) -> Result<u8> {
    let tell = progress("MB read", 1e6);
    let reports = each(&args.dir, |dir| phalanx_data::verify(dir, args.threads, &tell))?;
    let sound = reports.iter().all(|r| r.report.is_sound());
    show(&reports, args.json, if sound { 0 } else { 3 })
}

pub(crate) fn repair(args: &Repair) -> Result<u8> {
    let tell = progress("MB read", 1e6);
    show(&each(&args.dir, |dir| phalanx_data::repair(dir, args.threads, &tell))?, args.json, 0)
}

pub(crate) fn stats(args: &Stats) -> Result<u8> {
    let set = phalanx_data::open(&args.set.to_string_lossy(), Split::Train)?;
    let tell = progress("images seen", 1.0);
    let stats = match world::find_on_host(&args.world, 1)? {
        World::Threads(ranks) => Some(phalanx_train::stats::stats(&*set, ranks, &tell)?),
        #[cfg(feature = "mpi")]
        World::Mpi(place) => world::run(&place, None, &crate::commands::say, |comm| {
            let stats = phalanx_train::stats::stats_rank(&*set, 1, &*comm, &tell)?;
            Ok((comm.rank() == 0).then_some(stats))
        })?,
    };
    match stats {
        None => Ok(0),
        Some(stats) if args.json => print_json(&stats),
        Some(stats) => print_all(&stats),
    }
}
