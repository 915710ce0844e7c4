//! The bucket size that suits a machine: measured by `phalanx bench allreduce --tune`, kept for later runs.
//!
//! Small buckets are summed while backward still runs, large ones move more bytes a second. No number of a
//! run depends on the size, so a run may take whatever was measured where it happens to be.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use phalanx_comm::{Bucket, Collective, Communicator, Event, Overlap, Tree, Wire};
use phalanx_host::{Arena, DType};
use serde::{Deserialize, Serialize};

use crate::report::quantile;
use crate::share::from_rank_0;
use crate::{Error, Result};

/// Megabytes (10⁶ bytes) in a bucket where nothing was measured, on one machine.
pub const DEFAULT_MB: f64 = 25.0;

/// The same between machines: a network is slow enough that the earlier it begins, the better.
pub const NETWORK_MB: f64 = 4.0;

/// The sizes that are tried, in megabytes.
const SIZES: [f64; 9] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 25.0, 64.0];

/// Bytes that each size has to sum.
const TOTAL: usize = 64_000_000;

/// How much slower than the fastest a smaller size may be.
const TOLERANCE: f64 = 1.03;

/// About how long the measurement takes, and the rounds that it has.
const TIME: Duration = Duration::from_secs(20);
const ROUNDS: Range<u32> = 3..15;

/// What was measured in one world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Measured {
    comm: String,
    ranks: u32,
    nodes: u32,
    bucket_mb: f64,
}

/// The file of all that was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct File {
    #[serde(default)]
    measured: Vec<Measured>,
}

/// One size's result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SizeReport {
    /// Megabytes in a bucket.
    pub bucket_mb: f64,
    /// Median time of 64 MB in such buckets, of the rank that took longest in each round.
    pub seconds_p50: f64,
}

/// What `bench allreduce --tune` found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The transport.
    pub comm: &'static str,
    /// Ranks.
    pub ranks: u32,
    /// Machines.
    pub nodes: u32,
    /// Bytes summed with each size.
    pub total_bytes: usize,
    /// By size.
    pub sizes: Vec<SizeReport>,
    /// The smallest size that is within 3 % of the fastest.
    pub bucket_mb: f64,
    /// Where that is kept.
    pub saved_to: PathBuf,
}

/// Measures bucket sizes and keeps the best for later runs in such a world. All ranks get the same report.
pub fn tune(comm: &dyn Communicator) -> Result<Report> {
    let path = place(&|name| std::env::var_os(name).map(PathBuf::from));
    tune_into(comm, path, TOTAL)
}

fn tune_into(comm: &dyn Communicator, path: Option<PathBuf>, total: usize) -> Result<Report> {
    if comm.world() == 1 {
        return Err(Error::config(
            "--tune",
            "one rank alone sums nothing; start more (--ranks, mpirun, srun)",
        ));
    }
    // What cannot be kept need not be measured.
    let path = from_rank_0(comm, comm.deadline(), || {
        let problem = "there is no place for the result: set PHALANX_TUNING to a file, or HOME";
        let path = path.ok_or_else(|| Error::config("--tune", problem))?;
        load(&path).map(|_| path)
    })?;
    let sizes = sweep(comm, total)?;
    let bucket_mb = best(&sizes);
    let (ranks, nodes) = (comm.world(), comm.locality().nodes);
    from_rank_0(comm, comm.deadline(), || {
        save(&path, Measured { comm: comm.name().into(), ranks, nodes, bucket_mb })
    })?;
    Ok(Report { comm: comm.name(), ranks, nodes, total_bytes: total, sizes, bucket_mb, saved_to: path })
}

/// Times all sizes in turns, so that a machine's moods meet all of them.
fn sweep(comm: &dyn Communicator, total: usize) -> Result<Vec<SizeReport>> {
    let arena = comm.alloc(total)?;
    let mut times = vec![Vec::new(); SIZES.len()];
    let begun = Instant::now();
    let mut rounds = 0..1;
    while let Some(round) = rounds.next() {
        for (size, times) in SIZES.iter().zip(&mut times) {
            let mine = round_of(comm, &arena, (size * 1e6) as usize)?.to_le_bytes();
            let all = comm.all_gather(&mine, comm.deadline())?;
            let all = all.iter().filter_map(|b| Some(f64::from_le_bytes(*b.first_chunk()?)));
            times.push(all.fold(0.0, f64::max));
        }
        if round == 0 {
            // The first one has warmed up, and has shown how many there is time for.
            times.iter_mut().for_each(Vec::clear);
            let fit = TIME.as_secs_f64() / begun.elapsed().as_secs_f64().max(1e-9);
            let fit = (fit as u32).clamp(ROUNDS.start, ROUNDS.end);
            rounds = 1..1 + from_rank_0(comm, comm.deadline(), || Ok(fit))?;
        }
    }
    let report = |(&bucket_mb, times): (&f64, &mut Vec<f64>)| {
        let seconds_p50 = quantile(times, 0.5);
        SizeReport { bucket_mb, seconds_p50 }
    };
    Ok(SIZES.iter().zip(&mut times).map(report).collect())
}

/// Seconds for the whole arena in buckets of `bytes`, started one after the other as backward does.
fn round_of(comm: &dyn Communicator, arena: &Arena, bytes: usize) -> Result<f64> {
    let what = Collective::AllReduce { tree: Tree::new(comm.world())?, wire: Wire::F32 };
    comm.barrier(comm.deadline())?;
    let begun = Instant::now();
    let mut flights = Vec::new();
    for (id, start) in (0..arena.len()).step_by(bytes).enumerate() {
        let part = arena.write(start..arena.len().min(start + bytes))?;
        let bucket = Bucket::new(id as u32, DType::F32, vec![part])?;
        flights.push(comm.start(bucket, what, Event::Ready, Overlap::Background)?);
    }
    for flight in flights {
        flight.wait(comm.deadline())?;
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// The smallest size that is nearly as fast as the fastest.
fn best(sizes: &[SizeReport]) -> f64 {
    let fastest = sizes.iter().map(|s| s.seconds_p50).fold(f64::INFINITY, f64::min);
    let near = sizes.iter().find(|s| s.seconds_p50 <= fastest * TOLERANCE);
    near.map_or(DEFAULT_MB, |s| s.bucket_mb)
}

/// Most bytes in a bucket: as configured, or as measured for such a world, or the default. With what the user
/// should know. A meeting of all ranks.
pub(crate) fn bucket_bytes(
    configured: Option<f64>,
    comm: &dyn Communicator,
) -> Result<(usize, Option<String>)> {
    let path = place(&|name| std::env::var_os(name).map(PathBuf::from));
    bucket_bytes_of(configured, comm, path.as_deref())
}

fn bucket_bytes_of(
    configured: Option<f64>,
    comm: &dyn Communicator,
    path: Option<&Path>,
) -> Result<(usize, Option<String>)> {
    let nodes = comm.locality().nodes;
    let usual = if nodes > 1 { NETWORK_MB } else { DEFAULT_MB };
    let find = || path.map_or(Ok(None), |path| find(path, comm.name(), comm.world(), nodes));
    let (mb, warning) = match configured {
        Some(mb) => (mb, None),
        None => from_rank_0(comm, comm.deadline(), || {
            Ok(match find() {
                Ok(found) => (found.unwrap_or(usual), None),
                // What was to make a run faster is no reason to have none.
                Err(e) => (usual, Some(format!("{e}; buckets have {usual} MB"))),
            })
        })?,
    };
    Ok(((mb * 1e6) as usize, warning))
}

/// Where measurements are kept; `None` where nobody says.
fn place(env: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name| env(name).filter(|v| !v.as_os_str().is_empty());
    if let Some(file) = env("PHALANX_TUNING") {
        return Some(file).filter(|f| !f.as_os_str().is_empty());
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("phalanx/tuning.toml"))
}

fn load(path: &Path) -> Result<File> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
        text => text.map_err(Error::io("read", path))?,
    };
    let file: File = toml::from_str(&text).map_err(|e| {
        let problem = format!("{}; remove it, and measure again with bench allreduce --tune", e.message());
        Error::config(path.display().to_string(), problem)
    })?;
    match file.measured.iter().find(|m| !(m.bucket_mb > 0.0 && m.bucket_mb.is_finite())) {
        None => Ok(file),
        Some(m) => {
            let problem = format!("bucket_mb is {}; remove it, and measure again", m.bucket_mb);
            Err(Error::config(path.display().to_string(), problem))
        }
    }
}

fn find(path: &Path, comm: &str, ranks: u32, nodes: u32) -> Result<Option<f64>> {
    let all = load(path)?.measured;
    Ok(all.iter().find(|m| (m.comm.as_str(), m.ranks, m.nodes) == (comm, ranks, nodes)).map(|m| m.bucket_mb))
}

/// Puts a measurement in the place of an earlier one of such a world.
fn save(path: &Path, new: Measured) -> Result<()> {
    let mut file = load(path)?;
    file.measured.retain(|m| (&m.comm, m.ranks, m.nodes) != (&new.comm, new.ranks, new.nodes));
    file.measured.push(new);
    let text =
        toml::to_string(&file).map_err(|e| Error::config(path.display().to_string(), e.to_string()))?;
    let tmp = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&tmp, text)?;
        fs::rename(&tmp, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&tmp);
        Error::io("write", path)(e)
    })
}

#[cfg(test)]
mod tests {
    use phalanx_host::Isa;

    use super::*;
    use crate::ranks::run_threads;

    #[test]
    fn the_smallest_of_the_fast_sizes_is_taken() {
        let of = |times: &[f64]| {
            let report = |(&bucket_mb, &seconds_p50)| SizeReport { bucket_mb, seconds_p50 };
            best(&SIZES.iter().zip(times).map(report).collect::<Vec<_>>())
        };
        assert_eq!(of(&[9.0, 5.0, 2.05, 2.0, 2.1, 2.2]), 1.0);
        assert_eq!(of(&[9.0, 5.0, 2.07, 2.0]), 2.0);
        assert_eq!(of(&[]), DEFAULT_MB);
    }

    #[test]
    fn the_place_follows_the_environment() {
        let of = |vars: &[(&str, &str)]| {
            let find = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| PathBuf::from(v.1));
            place(&find).map(|p| p.display().to_string())
        };
        let home = ("HOME", "/h");
        assert_eq!(of(&[home]).as_deref(), Some("/h/.cache/phalanx/tuning.toml"));
        assert_eq!(of(&[home, ("XDG_CACHE_HOME", "/c")]).as_deref(), Some("/c/phalanx/tuning.toml"));
        assert_eq!(of(&[home, ("XDG_CACHE_HOME", "")]).as_deref(), Some("/h/.cache/phalanx/tuning.toml"));
        assert_eq!(of(&[home, ("PHALANX_TUNING", "/t.toml")]).as_deref(), Some("/t.toml"));
        // Set to nothing, there is no such file.
        assert_eq!(of(&[home, ("PHALANX_TUNING", "")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_measurement_is_kept_for_its_world_and_replaced_by_the_next() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a/tuning.toml");
        let deadline = Duration::from_secs(60);
        let tune = |ranks| {
            run_threads(ranks, deadline, Isa::detect(), |c| tune_into(&*c, Some(path.clone()), 1_000_000))
        };
        let reports = tune(2).unwrap();
        assert_eq!(reports[0], reports[1]);
        let report = &reports[0];
        assert!(report.sizes.len() == SIZES.len() && report.sizes.iter().all(|s| s.seconds_p50 > 0.0));
        assert_eq!(find(&path, "threads", 2, 1).unwrap(), Some(report.bucket_mb));
        for (comm, ranks, nodes) in [("threads", 3, 1), ("mpi", 2, 1), ("threads", 2, 2)] {
            assert_eq!(find(&path, comm, ranks, nodes).unwrap(), None);
        }
        let bytes = |ranks, configured| {
            let ask = |c: std::sync::Arc<dyn Communicator>| bucket_bytes_of(configured, &*c, Some(&path));
            run_threads(ranks, deadline, Isa::Portable, ask).unwrap().remove(0)
        };
        let tuned = (report.bucket_mb * 1e6) as usize;
        assert_eq!((bytes(2, None), bytes(3, None)), ((tuned, None), (25_000_000, None)));
        assert_eq!(bytes(2, Some(0.5)), (500_000, None));
        let of = |ranks, bucket_mb| Measured { comm: "threads".into(), ranks, nodes: 1, bucket_mb };
        save(&path, of(3, 7.5)).unwrap();
        save(&path, of(2, 1.5)).unwrap();
        assert_eq!(load(&path).unwrap().measured, [of(3, 7.5), of(2, 1.5)]);
        assert_eq!(fs::read_dir(tmp.path().join("a")).unwrap().count(), 1);

        assert!(tune(1).unwrap_err().to_string().contains("one rank alone"));
        for damaged in
            ["[[measured]", "[[measured]]\ncomm = \"threads\"\nranks = 2\nnodes = 1\nbucket_mb = 0"]
        {
            fs::write(&path, damaged).unwrap();
            let e = tune(2).unwrap_err();
            assert!(e.to_string().contains("tuning.toml: ") && e.to_string().contains("remove it"), "{e}");
            let (default, warning) = bytes(2, None);
            assert!(default == 25_000_000 && warning.unwrap().contains("tuning.toml: "));
        }
    }
}
