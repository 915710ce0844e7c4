use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use phalanx_host::DType;

use super::*;
use crate::{
    Column, Error, Field, FieldSpec, Kind, Memory, Record, Schema, Transform, Value, shard_positions,
    step_positions,
};

const N: u64 = 103;

/// Images of noise, labels, and a text of varying length.
fn set() -> Arc<dyn Source> {
    let images = (0..N * 48).map(|i| (i * i % 251) as u8).collect();
    let text: Vec<Vec<u8>> = (0..N).map(|i| vec![i as u8 + 1; (i % 7) as usize]).collect();
    let columns = vec![
        Column::fixed::<u8>(FieldSpec::image([4, 4, 3], 250.0), images).unwrap(),
        Column::fixed(FieldSpec::label(), (0..N as i64).map(|i| i % 10).collect()).unwrap(),
        Column::variable(FieldSpec::array("text", DType::U8, &[6], true), &text).unwrap(),
        Column::fixed(FieldSpec::array("at", DType::F32, &[], false), (0..N).map(|i| i as f32).collect())
            .unwrap(),
    ];
    Memory::new("noise", columns, (0..10).map(|c| c.to_string()).collect()).unwrap().shared()
}

fn config(threads: usize) -> LoaderConfig {
    let transforms = [("rotate", "degrees", 30.0), ("translate", "pixels", 2.0), ("flip", "p", 0.5)]
        .map(|(name, key, x)| Transform::new(name, &[(key, Value::Number(x))]).unwrap());
    LoaderConfig {
        threads: Threads::Count(threads),
        transforms: transforms.to_vec(),
        prefetch: 3,
        ..LoaderConfig::default()
    }
}

fn plan() -> Plan {
    Plan::new(N, 16, 3, 0..3, 2).unwrap()
}

/// Everything that a loader delivers, as bytes.
fn drain(loader: Loader) -> Vec<(WorkItem, Vec<u64>, Vec<Vec<u8>>)> {
    let loaded = loader.map(|l| {
        let Loaded { item, batch, .. } = l.unwrap();
        assert_eq!(batch.weights, vec![1.0; batch.len()]);
        (item, batch.ids, batch.fields.iter().map(|f| f.bytes.bytes().to_vec()).collect())
    });
    loaded.collect()
}

#[test]
fn any_number_of_threads_delivers_the_same_bits_in_the_plans_order() {
    let mode = Mode::Train { seed: 9 };
    let run = |threads| drain(Loader::new(set(), &config(threads), mode, plan(), &Pool::new()).unwrap());
    let expected = run(0);
    assert_eq!(expected.iter().map(|l| l.0.clone()).collect::<Vec<_>>(), plan().collect::<Vec<_>>());
    for threads in [1, 2, 5] {
        assert_eq!(run(threads), expected, "{threads} threads");
    }
    // Each epoch sees every sample once, in the order that the seed gives.
    for epoch in 0..2 {
        let ids: Vec<u64> =
            expected.iter().filter(|l| l.0.epoch == epoch).flat_map(|l| l.1.clone()).collect();
        let order = crate::Order::new(9, epoch, N);
        assert!(ids.into_iter().eq((0..N).map(|p| order.at(p))));
    }
}

#[test]
fn a_sample_is_the_same_however_the_epoch_is_cut() {
    let by_sample = |batch, shards, mine| {
        let plan = Plan::new(N, batch, shards, mine, 1).unwrap();
        let loader = Loader::new(set(), &config(2), Mode::Train { seed: 4 }, plan, &Pool::new()).unwrap();
        let mut images = std::collections::BTreeMap::new();
        for loaded in loader {
            let batch = loaded.unwrap().batch;
            let pixels = batch.values::<f32>("image").unwrap();
            for (id, image) in batch.ids.iter().zip(pixels.chunks_exact(48)) {
                assert!(images.insert(*id, image.to_vec()).is_none());
            }
        }
        images
    };
    let whole = by_sample(16, 1, 0..1);
    assert_eq!(whole.len() as u64, N);
    let mut parts = by_sample(40, 4, 0..1);
    parts.append(&mut by_sample(40, 4, 1..4));
    assert_eq!(parts, whole);
}

#[test]
fn evaluation_reads_in_the_sets_order_without_random_transforms() {
    let source = set();
    let loader = Loader::new(source.clone(), &config(2), Mode::Eval, plan(), &Pool::new()).unwrap();
    let mut record = Record::default();
    let mut next = 0;
    for loaded in loader.take_while(|l| l.as_ref().unwrap().item.epoch == 0) {
        let Loaded { item, batch, .. } = loaded.unwrap();
        assert_eq!(item.positions, shard_positions(step_positions(N, 16, item.step), 3, item.shard));
        let images = batch.values::<f32>("image").unwrap();
        let (labels, at) = (batch.values::<i64>("label").unwrap(), batch.values::<f32>("at").unwrap());
        let text = batch.field("text").unwrap();
        let lengths = text.lengths.as_ref().unwrap();
        let longest = *lengths.iter().max().unwrap_or(&0) as usize;
        assert_eq!(text.shape, [batch.len(), longest]);
        for (row, &id) in batch.ids.iter().enumerate() {
            assert_eq!(id, next);
            next += 1;
            source.read(id, &mut record).unwrap();
            let pixels = record.fields[0].bytes.iter().map(|&x| f32::from(x) * (1.0 / 250.0));
            assert!(pixels.eq(images[row * 48..][..48].iter().copied()));
            assert_eq!((labels[row], at[row]), (id as i64 % 10, id as f32));
            let mut padded = record.fields[2].bytes.clone();
            assert_eq!(lengths[row] as usize, padded.len());
            padded.resize(longest, 0);
            assert_eq!(text.bytes.bytes()[row * longest..][..longest], padded);
        }
    }
    assert_eq!(next, N);
}

#[test]
fn a_short_last_step_leaves_shards_empty() {
    let plan = Plan::new(5, 4, 4, 0..4, 1).unwrap();
    let loader = Loader::new(set(), &config(1), Mode::Eval, plan, &Pool::new()).unwrap();
    let sizes: Vec<_> =
        loader.map(|l| l.unwrap().batch).map(|b| (b.len(), b.fields[0].shape.clone())).collect();
    assert_eq!(sizes.iter().map(|s| s.0).collect::<Vec<_>>(), [1, 1, 1, 1, 0, 0, 0, 1]);
    assert_eq!(sizes[4].1, [0, 4, 4, 3]);
}

/// What is done to a record.
type How = fn(&mut Record) -> Result<()>;

/// Fails in its own way at one sample, and counts what is read.
#[derive(Debug)]
struct Trap {
    inner: Arc<dyn Source>,
    at: u64,
    how: How,
    reads: AtomicU64,
}

impl Source for Trap {
    fn name(&self) -> &str {
        "trap"
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn schema(&self) -> &Schema {
        self.inner.schema()
    }
    fn read(&self, id: u64, record: &mut Record) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read(id, record)?;
        if id == self.at { (self.how)(record) } else { Ok(()) }
    }
    fn label(&self, id: u64) -> Result<Option<i64>> {
        self.inner.label(id)
    }
}

fn trap(at: u64, how: How) -> Arc<Trap> {
    Arc::new(Trap { inner: set(), at, how, reads: AtomicU64::new(0) })
}

#[test]
fn errors_and_panics_reach_the_caller_with_the_sample_and_the_set() {
    let broken = |_: &mut Record| Err(Error::format("shard-00003.dat", "CRC mismatch"));
    let panics = |_: &mut Record| panic!("decoder bug {}", 7);
    let short = |r: &mut Record| {
        r.fields[0].bytes.pop();
        Ok(())
    };
    let wrong = |r: &mut Record| {
        r.fields[1].bytes[0] = 10;
        Ok(())
    };
    let fewer = |r: &mut Record| {
        r.fields.pop();
        Ok(())
    };
    let table: [(How, &str); 5] = [
        (broken, "sample 50 of trap: shard-00003.dat: CRC mismatch"),
        (panics, "sample 50 of trap: loader thread panicked: decoder bug 7"),
        (short, "sample 50 of trap: field \"image\": has 47 bytes of shape [4, 4, 3]"),
        (wrong, "sample 50 of trap has label 10, but the set has 10 classes"),
        (fewer, "sample 50 of trap: field \"record\": the record has 3 fields, the schema 4"),
    ];
    for (how, expected) in table {
        for threads in [0, 1, 3] {
            let mut loader =
                Loader::new(trap(50, how), &config(threads), Mode::Eval, plan(), &Pool::new()).unwrap();
            // What comes before the sample in the plan is delivered all the same: 48 samples are three
            // steps of three shards.
            for _ in 0..9 {
                assert!(loader.next().unwrap().is_ok());
            }
            let error = loader.next().unwrap().unwrap_err();
            assert!(error.to_string().starts_with(expected), "{threads} threads: {error}");
            assert_eq!(error.kind(), Kind::Data);
            assert!(loader.next().is_none());
        }
    }
}

#[test]
fn the_window_is_bounded_and_dropping_is_prompt() {
    let source = trap(N, |_| Ok(()));
    let config = LoaderConfig { threads: Threads::Count(2), prefetch: 3, ..LoaderConfig::default() };
    let plan = Plan::new(N, 1, 1, 0..1, 1_000_000).unwrap();
    let mut loader = Loader::new(source.clone(), &config, Mode::Eval, plan, &Pool::new()).unwrap();
    loader.next().unwrap().unwrap();
    let reads = || source.reads.load(Ordering::Relaxed);
    let deadline = Instant::now() + Duration::from_secs(20);
    while reads() < 4 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(20));
    // One delivered, three ahead; the window cannot hold more whatever the time.
    assert_eq!(reads(), 4);
    while !loader.is_ready(3) && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(loader.is_ready(3) && !loader.is_ready(4));
    loader.next().unwrap().unwrap();
    assert!(loader.is_ready(2));
    drop(loader);
    assert_eq!(Arc::strong_count(&source), 1, "the threads are gone");

    let slow = |_: &mut Record| {
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    };
    // A batch of 100 whose every sample takes 20 ms would take two seconds.
    let slow_set: Arc<dyn Source> = Arc::new(Every { inner: set(), how: slow });
    let plan = Plan::new(N, 100, 1, 0..1, 1).unwrap();
    let loader = Loader::new(slow_set, &config, Mode::Eval, plan, &Pool::new()).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let start = Instant::now();
    drop(loader);
    assert!(start.elapsed() < Duration::from_millis(1000), "{:?}", start.elapsed());
}

/// Does something at every sample.
#[derive(Debug)]
struct Every {
    inner: Arc<dyn Source>,
    how: How,
}

impl Source for Every {
    fn name(&self) -> &str {
        "every"
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn schema(&self) -> &Schema {
        self.inner.schema()
    }
    fn read(&self, id: u64, record: &mut Record) -> Result<()> {
        self.inner.read(id, record)?;
        (self.how)(record)
    }
    fn label(&self, id: u64) -> Result<Option<i64>> {
        self.inner.label(id)
    }
}

#[test]
fn nothing_large_is_allocated_once_the_window_has_been_full() {
    let images = Memory::classification(
        "large",
        vec![7; 64 * 32 * 32 * 3],
        [32, 32, 3],
        255.0,
        vec![0; 64],
        vec!["only".into()],
    );
    let source = images.unwrap().shared();
    let pool = Pool::new();
    let plan = Plan::new(64, 16, 1, 0..1, 50).unwrap();
    let config = LoaderConfig { threads: Threads::Count(2), prefetch: 4, ..LoaderConfig::default() };
    let loader = Loader::new(source, &config, Mode::Train { seed: 0 }, plan, &pool).unwrap();
    for loaded in loader {
        loaded.unwrap();
    }
    // At most the window and the batch in the caller's hands.
    let stats = pool.stats();
    assert!(stats.large_system_allocs <= 5 && stats.live == 0, "{stats:?}");
}

#[test]
fn transforms_that_do_not_fit_are_refused_at_the_start() {
    let two = Transform::new("normalise", &[("mean", Value::List(vec![0.5, 0.5]))]).unwrap();
    for threads in [0, 2] {
        let config = LoaderConfig {
            threads: Threads::Count(threads),
            transforms: vec![two.clone()],
            prefetch: 1,
            ..LoaderConfig::default()
        };
        let error = Loader::new(set(), &config, Mode::Eval, plan(), &Pool::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
    }
}

/// Fails in its own way at some samples.
#[derive(Debug)]
struct Holes {
    inner: Arc<dyn Source>,
    at: Vec<u64>,
    how: How,
}

impl Source for Holes {
    fn name(&self) -> &str {
        "holes"
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn schema(&self) -> &Schema {
        self.inner.schema()
    }
    fn read(&self, id: u64, record: &mut Record) -> Result<()> {
        self.inner.read(id, record)?;
        if self.at.contains(&id) { (self.how)(record) } else { Ok(()) }
    }
    fn label(&self, id: u64) -> Result<Option<i64>> {
        self.inner.label(id)
    }
}

const BROKEN: How = |_| Err(Error::format("shard-00003.dat", "CRC mismatch"));

type Delivered = (WorkItem, Batch, Vec<BadSample>, Vec<u64>);

/// All batches of an epoch over a set with holes.
fn with_holes(
    at: &[u64],
    how: How,
    policy: BadRecords,
    mode: Mode,
    threads: usize,
) -> Result<Vec<Delivered>> {
    let source = Arc::new(Holes { inner: set(), at: at.to_vec(), how });
    let config = LoaderConfig { bad_records: policy, ..config(threads) };
    let plan = Plan::new(N, 16, 3, 0..3, 2).unwrap();
    Loader::new(source, &config, mode, plan, &Pool::new())?
        .map(|l| l.map(|l| (l.item, l.batch, l.bad, l.ids)))
        .collect()
}

fn bytes(batch: &Batch, row: usize) -> Vec<Vec<u8>> {
    let of = |f: &Field| {
        let each = f.bytes.len() / batch.len();
        f.bytes.bytes()[row * each..][..each].to_vec()
    };
    // The text is padded to the longest of the batch.
    batch.fields.iter().filter(|f| f.lengths.is_none()).map(of).collect()
}

#[test]
fn another_sample_takes_the_place_of_a_bad_one() {
    let mode = Mode::Train { seed: 9 };
    let at = [7, 50, 51, 52, 99];
    let wrong_label: How = |r| {
        r.fields[1].bytes[0] = 10;
        Ok(())
    };
    // The first field is filled, and the text, before the last one fails.
    let late: How = |r| {
        r.fields[3].bytes.pop();
        Ok(())
    };
    let panics: How = |_| panic!("decoder bug");
    let whole = with_holes(&[], BROKEN, BadRecords::Substitute, mode, 0).unwrap();
    for how in [BROKEN, wrong_label, late, panics] {
        let one = with_holes(&at, how, BadRecords::Substitute, mode, 0).unwrap();
        let mut found = 0;
        for ((item, batch, bad, ids), (_, before, none, _)) in one.iter().zip(&whole) {
            assert_eq!(*ids, batch.ids);
            assert!(none.is_empty() && batch.ids == before.ids && batch.weights == before.weights);
            let lengths = batch.field("text").unwrap().lengths.as_ref().unwrap();
            for (row, &id) in batch.ids.iter().enumerate() {
                let is_bad = bad.iter().find(|b| b.id == id);
                assert_eq!(is_bad.is_some(), at.contains(&id));
                let Some(is_bad) = is_bad else {
                    assert_eq!(bytes(batch, row), bytes(before, row));
                    continue;
                };
                found += 1;
                assert!(is_bad.reason.contains(&format!("sample {id} of holes")), "{}", is_bad.reason);
                let mut good = substitutes(9, item.epoch, id, N).filter(|o| !at.contains(o));
                let by = good.next().unwrap();
                assert_eq!(is_bad.substitute, Some(by));
                assert_eq!(batch.values::<f32>("at").unwrap()[row], by as f32);
                assert_eq!(
                    (batch.values::<i64>("label").unwrap()[row], lengths[row]),
                    (by as i64 % 10, (by % 7) as u32)
                );
            }
        }
        assert_eq!(found, 2 * at.len());
        for threads in [1, 3] {
            let other = with_holes(&at, how, BadRecords::Substitute, mode, threads).unwrap();
            for (a, b) in one.iter().zip(&other) {
                assert_eq!((&a.0, &a.1.ids, &a.2), (&b.0, &b.1.ids, &b.2));
                assert!((0..a.1.len()).all(|row| bytes(&a.1, row) == bytes(&b.1, row)));
            }
        }
    }
}

#[test]
fn a_bad_sample_is_nothing_in_quarantine_and_in_evaluation() {
    for (policy, mode) in [
        (BadRecords::Quarantine, Mode::Train { seed: 9 }),
        (BadRecords::Quarantine, Mode::Eval),
        (BadRecords::Substitute, Mode::Eval),
    ] {
        let at = [0, 50, 102];
        let mut found = Vec::new();
        let whole = with_holes(&[], BROKEN, policy, mode, 0).unwrap();
        for ((item, batch, bad, ids), (_, before, _, all)) in
            with_holes(&at, BROKEN, policy, mode, 2).unwrap().into_iter().zip(&whole)
        {
            found.extend(bad.iter().map(|b| (item.epoch, b.id)));
            assert!(bad.iter().all(|b| b.substitute.is_none()) && ids == *all);
            let left: Vec<usize> = (0..ids.len()).filter(|&row| !at.contains(&ids[row])).collect();
            assert!(left.iter().map(|&row| ids[row]).eq(batch.ids.iter().copied()));
            assert_eq!(batch.weights, vec![1.0; left.len()]);
            for (row, &of_whole) in left.iter().enumerate() {
                assert_eq!(bytes(&batch, row), bytes(before, of_whole));
            }
            let [is, was] = [&batch, before].map(|b| b.field("text").unwrap().lengths.as_ref().unwrap());
            assert!(left.iter().map(|&row| was[row]).eq(is.iter().copied()));
        }
        found.sort_unstable();
        assert_eq!(found, [(0, 0), (0, 50), (0, 102), (1, 0), (1, 50), (1, 102)]);
    }
}

#[test]
fn what_is_no_fault_of_a_record_ends_the_run_under_any_policy() {
    let all: Vec<u64> = (0..N).collect();
    let mode = Mode::Train { seed: 9 };
    let e = with_holes(&all, BROKEN, BadRecords::Substitute, mode, 1).unwrap_err();
    assert!(e.to_string().contains("no other that could take its place") && e.kind() == Kind::Data, "{e}");
    let none_left = with_holes(&all, BROKEN, BadRecords::Quarantine, mode, 1).unwrap();
    assert!(none_left.iter().all(|(_, batch, bad, ids)| batch.is_empty() && bad.len() == ids.len()));
    let usage: How = |_| Err(Error::usage("transform", "cannot be"));
    for policy in [BadRecords::Fail, BadRecords::Substitute, BadRecords::Quarantine] {
        let e = with_holes(&[5], usage, policy, mode, 2).unwrap_err();
        assert!(e.to_string().contains("sample 5 of holes: transform: cannot be"), "{e}");
    }
    assert!(with_holes(&[5], BROKEN, BadRecords::Fail, mode, 2).is_err());
}

#[test]
fn blocked_orders_are_delivered_and_any_slices_make_up_the_same() {
    let kind: crate::OrderKind =
        crate::OrderKind::Blocked { block: 8.try_into().unwrap(), window: 3.try_into().unwrap() };
    for order in [crate::OrderKind::Full, kind] {
        let run = |batch, world: u64| {
            let mut ids = Vec::new();
            let ranks: Vec<Vec<Loaded>> = (0..world)
                .map(|rank| {
                    let mine = shard_positions(0..16, world, rank);
                    let plan = Plan::new(N, batch, 16, mine, 1).unwrap();
                    let config = LoaderConfig { order, ..config(1) };
                    let mode = Mode::Train { seed: 2 };
                    Loader::new(set(), &config, mode, plan, &Pool::new())
                        .unwrap()
                        .map(|l| l.unwrap())
                        .collect()
                })
                .collect();
            for step in 0..N.div_ceil(batch) {
                let of = ranks.iter().flatten().filter(|l| l.item.step == step);
                ids.extend(of.flat_map(|l| {
                    let at = l.batch.values::<f32>("image").unwrap();
                    l.batch.ids.iter().copied().zip(at.chunks(48).map(<[f32]>::to_vec)).collect::<Vec<_>>()
                }));
            }
            ids
        };
        let whole = run(20, 1);
        let expected = crate::Order::of(order, 2, 0, N);
        assert!(whole.iter().map(|s| s.0).eq((0..N).map(|p| expected.at(p))));
        for world in 2..=16 {
            assert!(run(20, world) == whole, "{world} ranks");
        }
    }
}

#[test]
fn the_books_say_what_was_read_and_who_waited() {
    let slow: Arc<dyn Source> = Arc::new(Every {
        inner: set(),
        how: |_| {
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        },
    });
    for threads in [0, 1] {
        let plan = Plan::new(N, 16, 1, 0..1, 1).unwrap();
        let mut loader = Loader::new(slow.clone(), &config(threads), Mode::Eval, plan, &Pool::new()).unwrap();
        let before = loader.stats();
        assert!(loader.by_ref().all(|l| l.is_ok()));
        let stats = loader.stats().since(&before);
        let text: u64 = (0..N).map(|i| i % 7).sum();
        assert_eq!((stats.samples, stats.bytes, stats.threads), (N, N * (48 + 8 + 4) + text, threads));
        assert!(stats.read_s >= 0.1 && stats.make_s > 0.0 && stats.make_s < stats.read_s, "{stats:?}");
        assert!(stats.wait_s > 0.05, "{stats:?}");
    }
}

#[test]
fn threads_come_while_the_consumer_waits_and_the_batches_stay_the_same() {
    let slow: Arc<dyn Source> = Arc::new(Every {
        inner: set(),
        how: |_| {
            std::thread::sleep(Duration::from_micros(700));
            Ok(())
        },
    });
    let run = |threads, source: &Arc<dyn Source>| {
        let plan = Plan::new(N, 8, 1, 0..1, 30).unwrap();
        let config = LoaderConfig { threads, transforms: vec![], prefetch: 2, ..LoaderConfig::default() };
        let mut loader =
            Loader::new(source.clone(), &config, Mode::Train { seed: 1 }, plan, &Pool::new()).unwrap();
        let ids: Vec<Vec<u64>> = loader.by_ref().map(|l| l.unwrap().batch.ids).collect();
        (ids, loader.stats().threads)
    };
    // Sleeping takes no core: each thread helps.
    let (ids, threads) = run(Threads::Auto(Some(Cores { all: 4, compute: 4 })), &slow);
    assert!((2..=4).contains(&threads), "{threads}");
    assert_eq!(ids, run(Threads::Count(1), &set()).0);
}
