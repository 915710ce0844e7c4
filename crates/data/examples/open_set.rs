//! Writes a shard set of records of a few bytes and times what a run does with it: opening, looking up, reading.
//!
//! `cargo run --release -p phalanx-data --example open_set -- DIR [RECORDS [SHARDS [BYTES [ROUNDS]]]]`; a set that is in
//! DIR already is only opened, so that a second run shows the memory of opening alone.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use phalanx_data::{
    Codec, FieldSpec, Record, Sample, SampleField, SetInfo, ShardSet, ShardWriter, Source, finished_shard,
    seal,
};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dir = Path::new(args.first().ok_or("the first argument is a directory")?);
    let number = |i: usize, or: u64| args.get(i).map_or(Ok(or), |a| a.parse());
    let (records, shards) = (number(1, 1_281_167)?, number(2, 512)?.max(1));
    let (bytes, rounds) = (number(3, 12)?, number(4, 1)?);
    if !dir.join("dataset.rkyv").exists() {
        std::fs::create_dir_all(dir)?;
        let start = Instant::now();
        write(dir, records, shards, bytes)?;
        println!("written in {:.2} s", start.elapsed().as_secs_f64());
    }
    let before = resident_mb()?;
    for _ in 0..rounds {
        let start = Instant::now();
        let set = ShardSet::open(dir)?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        let after = resident_mb()?;
        println!("{} records opened in {ms:.1} ms; resident {after:.0} MB, {before:.0} before", set.len());
        look_up(&set)?;
        read(&set)?;
    }
    Ok(())
}

fn write(dir: &Path, records: u64, shards: u64, bytes: u64) -> Result<(), Box<dyn Error>> {
    let image = FieldSpec { variable: true, ..FieldSpec::image([0, 0, 1], 255.0) };
    let info = SetInfo {
        name: "opened".into(),
        fields: vec![image, FieldSpec::label()],
        classes: (0..1000).map(|c| format!("class {c}")).collect(),
        meta: BTreeMap::new(),
    };
    let pixels: Vec<u8> = (0..bytes).map(|i| i as u8).collect();
    let per_shard = records.div_ceil(shards);
    let mut done = Vec::new();
    for number in 0..shards as u32 {
        if let Some(summary) = finished_shard(dir, number, &info)? {
            done.push(summary);
            continue;
        }
        let mut writer = ShardWriter::create(dir, number, &info)?;
        let first = u64::from(number) * per_shard;
        for id in first..records.min(first + per_shard) {
            // As a column, or a row if it is too long for that.
            let shape = if bytes < 65_536 { [bytes as usize, 1, 1] } else { [256, bytes as usize / 256, 1] };
            let fields = [SampleField { codec: Codec::Raw, shape: &shape, bytes: &pixels }];
            writer.add(&Sample { key: &id.to_string(), label: Some((id % 1000) as i64), fields: &fields })?;
        }
        done.push(writer.finish()?);
    }
    seal(dir, &info, &done)?;
    Ok(())
}

/// Ids that lie far apart.
fn scattered(set: &ShardSet, n: u64) -> impl Iterator<Item = u64> {
    let len = set.len();
    (0..n).map(move |i| (u128::from(i) * 0x9E37_79B9_7F4A_7C15 % u128::from(len)) as u64)
}

fn look_up(set: &ShardSet) -> Result<(), Box<dyn Error>> {
    let (start, n, mut sum) = (Instant::now(), 4_000_000, 0);
    for id in scattered(set, n) {
        sum += set.label(id)?.unwrap_or(0);
    }
    let rate = n as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("labels: {rate:.1} M a second, scattered (sum {sum})");
    Ok(())
}

fn read(set: &ShardSet) -> Result<(), Box<dyn Error>> {
    let (n, mut record, mut total) = (set.len().min(200_000), Record::default(), 0);
    let start = Instant::now();
    for id in scattered(set, n) {
        set.read(id, &mut record)?;
        total += record.fields[0].bytes.len();
    }
    let seconds = start.elapsed().as_secs_f64();
    let gb = total as f64 / 1e9;
    println!("records: {:.0} a second, {:.2} GB/s, scattered", n as f64 / seconds, gb / seconds);
    // The same bytes copied, from memory that no cache holds.
    let size = record.fields[0].bytes.len().max(1);
    let from = vec![1u8; (256 << 20) / size * size];
    let mut to = vec![0u8; from.len()];
    let mut copy = || {
        let start = Instant::now();
        from.chunks_exact(size).zip(to.chunks_exact_mut(size)).for_each(|(a, b)| b.copy_from_slice(a));
        from.len() as f64 / 1e9 / start.elapsed().as_secs_f64()
    };
    // The first one is also given its memory by the system.
    let (_, copied) = (copy(), copy());
    println!("a plain copy: {copied:.2} GB/s (byte {})", std::hint::black_box(&to)[to.len() / 2]);
    Ok(())
}

/// The memory that this process has, in 10^6 bytes.
fn resident_mb() -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0 / 1e6)
}
