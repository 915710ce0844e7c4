use proptest::prelude::*;

use super::*;

fn blocked(block: u32, window: u32) -> OrderKind {
    let [block, window] = [block, window].map(|x| NonZeroU32::new(x).unwrap());
    OrderKind::Blocked { block, window }
}

proptest! {
    #[test]
    fn blocked_orders_have_every_sample_once_and_stay_in_their_windows(
        seed: u64, epoch in 0u64..1000, n in 0u64..5000, block in 1u32..700, window in 1u32..40,
    ) {
        let order = Order::of(blocked(block, window), seed, epoch, n);
        prop_assert_eq!(order.len(), n);
        let mut seen = vec![false; n as usize];
        for p in 0..n {
            let id = order.at(p) as usize;
            prop_assert!(!std::mem::replace(&mut seen[id], true), "sample {id} twice");
        }
        // A window is made up of whole blocks, as many as it has.
        let (mut start, mut left) = (0, n.div_ceil(block.into()));
        while left > 0 {
            let count = left.min(window.into());
            let (mut p, mut blocks) = (start, std::collections::BTreeSet::new());
            let mut size = 0;
            while p < n && (blocks.len() < count as usize || p < start + size) {
                let b = order.at(p) / u64::from(block);
                if blocks.insert(b) {
                    size += u64::from(block).min(n - b * u64::from(block));
                }
                p += 1;
            }
            prop_assert_eq!((blocks.len() as u64, p), (count, start + size));
            (start, left) = (p, left - count);
        }
        prop_assert_eq!(start, n);
    }

    #[test]
    fn huge_blocked_orders_are_one_to_one(
        seed: u64, n in 1u64..1_000_000_000, block in 1u32..100_000, window in 1u32..200, from: u64,
    ) {
        let order = Order::of(blocked(block, window), seed, 7, n);
        let full = Order::new(seed, 7, n);
        let from = from % n;
        let positions = from..n.min(from + 300);
        for order in [&order, &full] {
            let mut ids: Vec<u64> = positions.clone().map(|p| order.at(p)).collect();
            prop_assert!(ids.iter().all(|&id| id < n));
            let some = ids.len();
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), some);
        }
        // The permutation has an inverse, and that is it.
        let (feistel, domain) = (Feistel::new(Key::new(seed)), Domain::new(n));
        for x in positions.take(20) {
            prop_assert_eq!(feistel.before(&domain, feistel.at(&domain, 0, x)), x);
        }
    }

    #[test]
    fn every_sample_once(seed: u64, epoch in 0u64..1000, n in 0u64..5000) {
        let order = Order::new(seed, epoch, n);
        let mut seen = vec![false; n as usize];
        for p in 0..n {
            let id = order.at(p) as usize;
            prop_assert!(!std::mem::replace(&mut seen[id], true), "sample {id} twice");
        }
    }

    #[test]
    fn shards_of_steps_make_up_the_epoch_for_any_number_of_shards(
        n in 0u64..3000, batch in 1u64..300, shards in 1u64..40, seed: u64,
    ) {
        let order = Order::new(seed, 3, n);
        let mut seen = Vec::new();
        for step in 0..steps_per_epoch(n, batch) {
            let range = step_positions(n, batch, step);
            let parts: Vec<_> = (0..shards).map(|s| shard_positions(range.clone(), shards, s)).collect();
            let sizes = || parts.iter().map(|p| p.end - p.start);
            prop_assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
            seen.extend(parts.iter().flat_map(|p| p.clone()).map(|p| order.at(p)));
        }
        let whole: Vec<_> = (0..n).map(|p| order.at(p)).collect();
        prop_assert_eq!(seen, whole);
        prop_assert!(step_positions(n, batch, steps_per_epoch(n, batch)).is_empty());
    }

    #[test]
    fn huge_sets_stay_in_range(seed: u64, n in (1u64 << 40)..u64::MAX, p: u64) {
        prop_assert!(Order::new(seed, 0, n).at(p % n) < n);
        let r = shard_positions(0..n, 7, 6);
        prop_assert_eq!((r.end, r.start), (n, (u128::from(n) * 6 / 7) as u64));
    }
}

#[test]
fn odd_arguments_are_total() {
    assert_eq!(Order::new(1, 1, 10).at(10), 10);
    assert_eq!(Order::new(1, 1, 0).at(0), 0);
    assert_eq!(Order::new(1, 1, 1).at(0), 0);
    assert_eq!((steps_per_epoch(5, 0), step_positions(5, 0, 4)), (5, 4..5));
    assert_eq!(step_positions(u64::MAX, u64::MAX, u64::MAX), u64::MAX..u64::MAX);
    assert_eq!((shard_positions(3..8, 0, 0), shard_positions(3..8, 4, 9)), (3..8, 8..8));
}

#[test]
fn the_order_is_pinned() {
    // Checkpoints and ledgers rely on these numbers: a change breaks every run under way.
    let head = |seed, epoch, n| (0..6).map(|p| Order::new(seed, epoch, n).at(p)).collect::<Vec<_>>();
    assert_eq!(head(0, 0, 60_000), PIN[0]);
    assert_eq!(head(0, 1, 60_000), PIN[1]);
    assert_eq!(head(1, 0, 1_281_167), PIN[2]);
}
/// From a second implementation, in Python.
const PIN: [[u64; 6]; 3] = [
    [25369, 57091, 40625, 45530, 57503, 20743],
    [43160, 26784, 17759, 19588, 3262, 31357],
    [599236, 495024, 1132663, 1014599, 1267375, 527161],
];

/// Chi-square of counts against what is expected in these proportions, as standard deviations from its
/// mean.
fn deviation(counts: &[u32], proportions: &[f64]) -> f64 {
    let (total, whole) = (counts.iter().map(|&c| f64::from(c)).sum::<f64>(), proportions.iter().sum::<f64>());
    let term =
        |(&count, p): (&u32, &f64)| (f64::from(count) - total * p / whole).powi(2) / (total * p / whole);
    let chi: f64 = counts.iter().zip(proportions).map(term).sum();
    let freedom = counts.len() as f64 - 1.0;
    (chi - freedom) / (2.0 * freedom).sqrt()
}

#[test]
fn large_orders_are_one_to_one_as_a_whole() {
    for kind in [OrderKind::Full, blocked(1024, 16), blocked(1000, 7)] {
        let n = 3_000_017u64;
        let order = Order::of(kind, 3, 1, n);
        let mut seen = vec![0u64; n.div_ceil(64) as usize];
        for p in 0..n {
            let id = order.at(p);
            seen[(id / 64) as usize] |= 1 << (id % 64);
        }
        assert_eq!(seen.iter().map(|w| u64::from(w.count_ones())).sum::<u64>(), n, "{kind:?}");
    }
    for n in [u64::MAX, u64::MAX - 1, 1 << 63] {
        for p in [0, 1, n / 2, n - 2, n - 1] {
            assert!(Order::of(blocked(1024, 16), 1, 1, n).at(p) < n);
        }
    }
}

#[test]
fn blocked_orders_differ_by_epoch_and_window_and_mix_within_one() {
    let n = 64 * 64 * 4;
    let kind = blocked(64, 16);
    let (a, b) = (Order::of(kind, 1, 0, n), Order::of(kind, 1, 1, n));
    assert!((0..n).filter(|&p| a.at(p) == b.at(p)).count() < 20);
    // Of neighbouring positions few are of one block: 16 are mixed.
    let same = (1..n).filter(|&p| a.at(p) / 64 == a.at(p - 1) / 64).count() as f64 / n as f64;
    assert!((same - 1.0 / 16.0).abs() < 0.01, "{same}");
    // Places in two windows have nothing to do with each other.
    let place = |p: u64| (a.at(p) % 64, p % 1024);
    let like = (0..1024).filter(|&p| place(p).0 == place(p + 1024).0).count();
    assert!(like < 50, "{like}");
    assert_eq!(Order::of(kind, 1, 1, n).at(n), n);
    assert_eq!(Order::of(kind, 1, 1, 0).at(0), 0);
}

#[test]
fn kinds_are_written_as_they_are_read() {
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Table {
        order: OrderKind,
    }
    for (text, kind) in [
        ("order = \"full\"", OrderKind::Full),
        ("order = { blocked = { block = 64, window = 3 } }", blocked(64, 3)),
        ("order = { blocked = { block = 64 } }", blocked(64, 16)),
        ("order = { blocked = {} }", blocked(1024, 16)),
    ] {
        let table: Table = toml::from_str(text).unwrap();
        assert_eq!(table.order, kind, "{text}");
        assert_eq!(toml::from_str::<Table>(&toml::to_string(&table).unwrap()).unwrap(), table);
    }
    for text in
        ["order = \"random\"", "order = { blocked = { block = 0 } }", "order = { blocked = { blok = 1 } }"]
    {
        assert!(toml::from_str::<Table>(text).is_err(), "{text}");
    }
}

#[test]
fn small_sets_get_all_permutations_equally_often() {
    for n in [3usize, 4, 5, 6] {
        let mut counts = std::collections::BTreeMap::new();
        let all: usize = (1..=n).product();
        for epoch in 0..(all * 200) as u64 {
            let o = Order::new(11, epoch, n as u64);
            *counts.entry((0..n as u64).map(|p| o.at(p)).collect::<Vec<_>>()).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), all);
        let d = deviation(&counts.into_values().collect::<Vec<_>>(), &vec![1.0; all]);
        assert!(d.abs() < 5.0, "n = {n}: {d} deviations");
    }
}

#[test]
fn pairs_of_places_get_all_pairs_of_samples_equally_often() {
    for n in [7u64, 8, 15, 16, 17, 33, 64, 65, 130] {
        for (i, j) in [(0, 1), (0, n / 2), (n - 2, n - 1)] {
            let mut counts = vec![0u32; (n * n) as usize];
            for epoch in 0..n * n * 40 {
                let o = Order::new(13, epoch, n);
                counts[(o.at(i) * n + o.at(j)) as usize] += 1;
            }
            let proportions: Vec<_> = (0..n * n).map(|c| f64::from(c / n != c % n)).collect();
            let (counts, proportions): (Vec<_>, Vec<_>) =
                counts.into_iter().zip(proportions).filter(|(_, p)| *p > 0.0).unzip();
            assert_eq!(counts.iter().map(|&c| u64::from(c)).sum::<u64>(), n * n * 40);
            let d = deviation(&counts, &proportions);
            assert!(d.abs() < 5.0, "n = {n}, places {i} and {j}: {d} deviations");
        }
    }
}

#[test]
fn places_differences_and_epochs_look_random() {
    for n in [1000u64, 1024, 1797, 60_000] {
        let rounds = 400_000 / n + 1;
        let (mut place, mut step, mut again) = (vec![0u32; 64], vec![0u32; 32], vec![0u32; 32]);
        let (mut fixed, mut follows) = (0u64, 0u64);
        for epoch in 0..rounds {
            let (o, next) = (Order::new(5, epoch, n), Order::new(5, epoch + 1, n));
            let bucket = |x: u64, k: usize| (u128::from(x) * k as u128 / u128::from(n)) as usize;
            for p in 0..n {
                let (a, b) = (o.at(p), o.at((p + 1) % n));
                // Where in the set does each eighth of the epoch read?
                place[bucket(p, 8) * 8 + bucket(a, 8)] += 1;
                step[bucket((b + n - a) % n, 32)] += 1;
                again[bucket((next.at(p) + n - a) % n, 32)] += 1;
                fixed += u64::from(a == p);
                follows += u64::from(b == (a + 1) % n);
            }
        }
        // How many of 0..n fall into each of k buckets.
        let sizes = |k: u64| (0..k).map(move |b| ((b + 1) * n).div_ceil(k) - (b * n).div_ceil(k));
        let places: Vec<_> = sizes(8).flat_map(|a| sizes(8).map(move |b| (a * b) as f64)).collect();
        let differences: Vec<_> = sizes(32).map(|a| a as f64).collect();
        // Two samples in a row are never the same.
        let mut steps = differences.clone();
        steps[0] -= 1.0;
        // A permutation is more even than independent draws, so only the upper side can fail.
        for (what, d) in [
            ("place", deviation(&place, &places)),
            ("step", deviation(&step, &steps)),
            ("epochs", deviation(&again, &differences)),
        ] {
            assert!(d < 5.0, "n = {n}, {what}: {d} deviations");
        }
        // Fixed points and kept neighbours are Poisson with mean 1 an epoch.
        for (what, hits) in [("fixed", fixed), ("follows", follows)] {
            let (hits, mean) = (hits as f64, rounds as f64);
            assert!((hits - mean).abs() < 5.0 * mean.sqrt() + 1.0, "n = {n}, {what}: {hits} of {mean}");
        }
    }
}
