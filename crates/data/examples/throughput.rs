//! How fast the order and the loader are, alone on their threads: `cargo run --release -p phalanx-data
//! --example throughput`.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use phalanx_data::{
    Codec, Error, FieldSpec, Loader, LoaderConfig, Memory, Mode, Order, OrderKind, Pixels, Plan, Sample,
    SampleField, SetInfo, ShardSet, ShardWriter, Source, Threads, Transform, Value, seal,
};
use phalanx_host::Pool;

fn main() -> Result<(), Error> {
    let blocks = |n: u32| NonZeroU32::MIN.saturating_add(n - 1);
    let blocked = OrderKind::Blocked { block: blocks(1024), window: blocks(16) };
    for (name, kind) in [("full", OrderKind::Full), ("blocked", blocked)] {
        for n in [1797u64, 60_000, 1_281_167, 14_197_122] {
            let (order, looks) = (Order::of(kind, 0, 0, n), 20_000_000u64);
            let start = Instant::now();
            let sum = (0..looks).fold(0u64, |sum, p| sum.wrapping_add(order.at(p % n)));
            let rate = looks as f64 / start.elapsed().as_secs_f64();
            println!("{name} order of {n}: {:.1} million look-ups/s (sum {sum})", rate / 1e6);
        }
    }

    raw_shards()?;

    // MNIST's shape and size.
    let n = 60_000u64;
    let images = (0..n * 784).map(|i| (i * 37 % 256) as u8).collect();
    let labels = (0..n as i64).map(|i| i % 10).collect();
    let classes = (0..10).map(|c| c.to_string()).collect();
    let set = Memory::classification("like MNIST", images, [28, 28, 1], 255.0, labels, classes)?.shared();
    let crop = Transform::new("pad-and-crop", &[])?;
    let rotate = Transform::new("rotate", &[])?;
    for (what, transforms) in
        [("normalise", vec![]), ("pad-and-crop", vec![crop.clone()]), ("both", vec![crop, rotate])]
    {
        for (shards, threads) in [(1, 0), (1, 1), (1, 2), (8, 0), (8, 1), (8, 2)] {
            let config = LoaderConfig {
                threads: Threads::Count(threads),
                transforms: transforms.clone(),
                ..LoaderConfig::default()
            };
            let plan = Plan::new(n, 128, shards, 0..shards, 2)?;
            let pool = Pool::new();
            let start = Instant::now();
            let mut seen = 0;
            for loaded in Loader::new(set.clone(), &config, Mode::Train { seed: 0 }, plan, &pool)? {
                seen += loaded?.batch.len();
            }
            let rate = seen as f64 / start.elapsed().as_secs_f64();
            println!(
                "{what}, batch 128 in {shards} shards, {threads} threads: {rate:.0} images/s, {} large allocations",
                pool.stats().large_system_allocs
            );
        }
    }
    Ok(())
}

/// Bytes a second of raw images of 256x256 from shards in the page cache, and of a plain copy of as many bytes.
fn raw_shards() -> Result<(), Error> {
    const SIDE: usize = 256;
    let (records, bytes) = (2000u64, SIDE * SIDE * 3);
    let tmp = tempfile::tempdir().map_err(|cause| Error::Io {
        doing: "create",
        path: std::env::temp_dir(),
        cause,
    })?;
    let info = SetInfo {
        name: "raw".into(),
        fields: vec![FieldSpec::image([SIDE, SIDE, 3], 255.0), FieldSpec::label()],
        classes: vec!["only".into()],
        meta: Default::default(),
    };
    let mut writer = ShardWriter::create(tmp.path(), 0, &info)?;
    for i in 0..records {
        let image: Vec<u8> = (0..bytes).map(|b| (b as u64 * 31 + i * 7) as u8).collect();
        let fields = [SampleField { codec: Codec::Raw, shape: &[SIDE, SIDE, 3], bytes: &image }];
        writer.add(&Sample { key: &i.to_string(), label: Some(0), fields: &fields })?;
    }
    seal(tmp.path(), &info, &[writer.finish()?])?;
    let set: Arc<dyn Source> = Arc::new(ShardSet::open(tmp.path())?);
    let never = Transform::new("flip", &[("p", Value::Number(0.0))])?;
    let all = records as f64 * bytes as f64;
    for turn in 0..3 {
        let from = vec![1u8; bytes * 500];
        // Touched before, as what the loader fills.
        let mut to = vec![2u8; from.len()];
        let start = Instant::now();
        for _ in 0..records / 500 {
            to.copy_from_slice(&from);
            std::hint::black_box(&mut to);
        }
        let copy = all / start.elapsed().as_secs_f64();
        drop((from, to));
        for (what, transforms) in
            [("straight into the batch", vec![]), ("by a row on bytes", vec![never.clone()])]
        {
            let config = LoaderConfig {
                threads: Threads::Count(0),
                pixels: Pixels::Bytes,
                transforms,
                ..LoaderConfig::default()
            };
            let pool = Pool::new();
            let mut loader = Loader::new(
                set.clone(),
                &config,
                Mode::Train { seed: 0 },
                Plan::new(records, 100, 1, 0..1, 1)?,
                &pool,
            )?;
            let start = Instant::now();
            for loaded in loader.by_ref() {
                std::hint::black_box(loaded?);
            }
            let rate = all / start.elapsed().as_secs_f64();
            println!(
                "raw images, turn {turn}, {what}: {:.2} GB/s, {:.2} of a copy's {:.2} GB/s",
                rate / 1e9,
                rate / copy,
                copy / 1e9
            );
        }
    }
    Ok(())
}
