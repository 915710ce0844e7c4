//! How fast the order and the loader are, alone on their threads: `cargo run --release -p phalanx-data
//! --example throughput`.

use std::time::Instant;

use phalanx_data::{Error, Loader, LoaderConfig, Memory, Mode, Order, Plan, Transform};
use phalanx_host::Pool;

fn main() -> Result<(), Error> {
    for n in [1797u64, 60_000, 1_281_167, 14_197_122] {
        let (order, looks) = (Order::new(0, 0, n), 20_000_000u64);
        let start = Instant::now();
        let sum = (0..looks).fold(0u64, |sum, p| sum.wrapping_add(order.at(p % n)));
        let rate = looks as f64 / start.elapsed().as_secs_f64();
        println!("order of {n}: {:.1} million look-ups/s (sum {sum})", rate / 1e6);
    }

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
            let config = LoaderConfig { threads, transforms: transforms.clone(), ..LoaderConfig::default() };
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
