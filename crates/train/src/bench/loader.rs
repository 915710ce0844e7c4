//! How fast samples are loaded: read, decoded, transformed and put into batches.

use std::time::{Duration, Instant};

use phalanx_data::{Loader, LoaderConfig, Mode, Pixels, Plan, Role, Split, Threads, Transform, Value, open};
use phalanx_host::Pool;
use serde::Serialize;

use crate::{Error, Result};

/// What `bench loader` is asked to do.
#[derive(Debug, Clone)]
pub struct LoaderRequest {
    /// A data set, as `data.train` names it.
    pub data: String,
    /// Loader threads; 0 for the caller's own.
    pub threads: usize,
    /// `none`, `train` (a random resized crop and a flip), `eval` (the middle of the resized image), or one row's name.
    pub transform: String,
    /// Height and width that rows give images.
    pub size: usize,
    /// Samples of a batch.
    pub batch: u64,
    /// What images are delivered as.
    pub pixels: Pixels,
    /// Seconds to measure, after a third of it that does not count.
    pub seconds: f64,
}

/// What `bench loader` measured.
#[derive(Debug, Clone, Serialize)]
pub struct LoaderReport {
    /// The set's name.
    pub data: String,
    /// Its samples.
    pub samples: u64,
    /// Loader threads.
    pub threads: usize,
    /// What was done to images.
    pub transform: String,
    /// Height, width and channels of a delivered image.
    pub shape: Vec<usize>,
    /// `u8` or `f32`.
    pub dtype: String,
    /// Samples delivered by time.
    pub samples_per_second: f64,
    /// Bytes delivered by time, of all fields.
    pub bytes_per_second: f64,
    /// The same for plain copies of as many bytes on one thread, in the same run.
    pub copy_bytes_per_second: f64,
    /// What decodes image files.
    pub decoder: String,
}

/// The rows of a request, and whether they are those of training.
fn rows(request: &LoaderRequest) -> Result<(Vec<Transform>, bool)> {
    let size = Value::Number(request.size as f64);
    let row = |name: &str| {
        let takes_size =
            phalanx_data::rows().iter().any(|r| r.name == name && r.params.iter().any(|p| p.name == "size"));
        let params: Vec<_> = takes_size.then(|| ("size", size.clone())).into_iter().collect();
        Transform::new(name, &params)
    };
    let train = || -> Result<Vec<Transform>> { Ok(vec![row("random-resized-crop")?, row("flip")?]) };
    match &request.transform[..] {
        "none" => Ok((Vec::new(), true)),
        "train" => Ok((train()?, true)),
        "eval" => Ok((train()?, false)),
        name => Ok((vec![row(name)?], true)),
    }
}

/// Loads samples of a set's training split, epoch after epoch, in random order (of the test split in its own for `eval`),
/// and drops the batches.
pub fn loader(request: &LoaderRequest) -> Result<LoaderReport> {
    let (transforms, training) = rows(request)?;
    let source = open(&request.data, if training { Split::Train } else { Split::Test })?;
    if source.is_empty() {
        return Err(Error::config("DATASET", format!("{} has no samples", source.name())));
    }
    let config = LoaderConfig {
        threads: Threads::Count(request.threads),
        transforms,
        pixels: request.pixels,
        ..LoaderConfig::default()
    };
    let mode = if training { Mode::Train { seed: 0 } } else { Mode::Eval };
    let plan = Plan::new(source.len(), request.batch, 1, 0..1, u64::MAX)?;
    let mut loader = Loader::new(source.clone(), &config, mode, plan, &Pool::new())?;
    let warm = Duration::from_secs_f64(request.seconds / 3.0);
    let all = warm + Duration::from_secs_f64(request.seconds);
    let (begun, mut since) = (Instant::now(), None);
    let (mut samples, mut bytes, mut shape, mut dtype) = (0, 0, Vec::new(), String::new());
    while begun.elapsed() < all {
        let Some(loaded) = loader.next() else { break };
        let batch = loaded?.batch;
        let image = source.schema().first(Role::Image).map(|f| batch.field(&f.name)).transpose()?;
        if let Some(image) = image {
            (shape, dtype) = (image.shape[1..].to_vec(), image.dtype.to_string());
        }
        if since.is_none() {
            // Counting begins with a delivery, so that whole batches are counted.
            since = (begun.elapsed() >= warm).then(Instant::now);
            continue;
        }
        samples += batch.len() as u64;
        bytes += batch.fields.iter().map(|f| f.bytes.len() as u64).sum::<u64>();
    }
    let seconds = since.map_or(f64::INFINITY, |since: Instant| since.elapsed().as_secs_f64());
    drop(loader);
    let of_batch = (bytes / samples.max(1) * request.batch).clamp(1 << 12, 1 << 28) as usize;
    Ok(LoaderReport {
        data: source.name().to_owned(),
        samples: source.len(),
        threads: request.threads,
        transform: request.transform.clone(),
        shape,
        dtype,
        samples_per_second: samples as f64 / seconds,
        bytes_per_second: bytes as f64 / seconds,
        copy_bytes_per_second: copies(of_batch),
        decoder: phalanx_data::decoder(),
    })
}

/// Bytes a second of plain copies of `bytes` out of memory that no cache holds.
fn copies(bytes: usize) -> f64 {
    const MEMORY: usize = 1 << 28;
    let from = vec![1u8; MEMORY.max(bytes)];
    let mut to = vec![0u8; bytes];
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < 5 || begun.elapsed() < Duration::from_millis(500) {
        let at = (times.len() * bytes) % (from.len() - bytes + 1);
        let since = Instant::now();
        to.copy_from_slice(&from[at..at + bytes]);
        std::hint::black_box(&to);
        times.push(since.elapsed().as_secs_f64());
    }
    bytes as f64 / crate::report::quantile(&mut times[1..], 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loading_is_measured_with_and_without_rows() {
        let request = |transform: &str| LoaderRequest {
            data: "digits".into(),
            threads: 1,
            transform: transform.into(),
            size: 12,
            batch: 32,
            pixels: Pixels::Bytes,
            seconds: 0.05,
        };
        for (transform, shape, dtype) in [
            ("none", [8, 8, 1], "u8"),
            ("train", [12, 12, 1], "u8"),
            ("eval", [12, 12, 1], "u8"),
            ("rotate", [8, 8, 1], "f32"),
        ] {
            let report = loader(&request(transform)).unwrap();
            assert_eq!((&report.shape[..], &report.dtype[..]), (&shape[..], dtype), "{transform}");
            assert!(report.samples_per_second > 0.0 && report.bytes_per_second > report.samples_per_second);
            assert!(report.copy_bytes_per_second.is_finite());
        }
        assert_eq!(loader(&request("rotat")).unwrap_err().exit_code(), 2);
        assert_eq!(loader(&LoaderRequest { batch: 0, ..request("none") }).unwrap_err().exit_code(), 2);
    }
}
