//! How fast packing is, against copying, hashing and syncing the same files: `taskset -c 0 cargo run --release -p
//! phalanx-data --example pack_speed -- FOLDER SCRATCH`. FOLDER has a folder of images for each class.
//!
//! Two copies to compare with: into one file, and into a file for each. All three in turn, five rounds; the
//! medians of megabytes a second of the files' content, and of the ratios in a round.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use phalanx_data::{BadImages, Error, Images, ImportRequest, PackRank, PackRequest, PackSource, pack};

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [source, scratch] = &args[..] else { return Err("usage: pack_speed FOLDER SCRATCH".into()) };
    std::fs::create_dir_all(scratch)?;
    let mut files = Vec::new();
    for class in std::fs::read_dir(source)? {
        for file in std::fs::read_dir(class?.path())? {
            files.push(file?.path());
        }
    }
    files.sort();
    let mut bytes = 0;
    for file in &files {
        bytes += std::fs::read(file)?.len();
    }
    println!("{} files, {:.1} MB", files.len(), bytes as f64 / 1e6);
    let mut rates = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        for turn in 0..rates.len() {
            // Another one first in each round, and none that pays for what the one before has left to the disk.
            let k = (turn + round) % rates.len();
            let rates = &mut rates[k];
            rustix::fs::syncfs(File::open(scratch)?)?;
            let out = scratch.join(format!("{round}-{k}"));
            let start = Instant::now();
            match k {
                0 => packed(source, &out)?,
                1 => copied_into_one(&files, &out)?,
                _ => copied_one_by_one(&files, &out)?,
            }
            rates.push(bytes as f64 / 1e6 / start.elapsed().as_secs_f64());
            std::fs::remove_dir_all(&out)?;
        }
    }
    let ratio = |k: usize| median(&rates[0].iter().zip(&rates[k]).map(|(a, b)| a / b).collect::<Vec<f64>>());
    println!("pack              {:.0} MB/s", median(&rates[0]));
    println!("copy into one     {:.0} MB/s; packing is {:.2} of it", median(&rates[1]), ratio(1));
    println!("copy one by one   {:.0} MB/s; packing is {:.2} of it", median(&rates[2]), ratio(2));
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn packed(source: &Path, out: &Path) -> Result<(), Error> {
    let request = PackRequest {
        source: PackSource::Import(ImportRequest { source: source.to_owned(), ..Default::default() }),
        out: out.to_owned(),
        images: Images::Keep,
        bad: BadImages::Fail,
        check: false,
        shard_bytes: 256_000_000,
        threads: 1,
        force: false,
    };
    pack(&request, PackRank { rank: 0, world: 1 }, &|| Ok::<(), Error>(()), &|_| ()).map(drop)
}

fn copied_into_one(files: &[PathBuf], out: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(out)?;
    let mut all = File::create(out.join("all"))?;
    let mut hash = blake3::Hasher::new();
    for file in files {
        let content = std::fs::read(file)?;
        hash.update(&content);
        all.write_all(&content)?;
    }
    all.sync_all()
}

fn copied_one_by_one(files: &[PathBuf], out: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(out)?;
    for (i, file) in files.iter().enumerate() {
        let content = std::fs::read(file)?;
        std::hint::black_box(blake3::hash(&content));
        std::fs::write(out.join(format!("{i}.jpg")), &content)?;
    }
    rustix::fs::syncfs(File::open(out)?)?;
    Ok(())
}
