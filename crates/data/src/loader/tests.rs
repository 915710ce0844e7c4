use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use phalanx_host::DType;

use super::*;
use crate::{
    Column, Error, FieldSpec, Kind, Memory, Record, Schema, Transform, Value, shard_positions, step_positions,
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
    LoaderConfig { threads, transforms: transforms.to_vec(), prefetch: 3, ..LoaderConfig::default() }
}

fn plan() -> Plan {
    Plan::new(N, 16, 3, 0..3, 2).unwrap()
}

/// Everything that a loader delivers, as bytes.
fn drain(loader: Loader) -> Vec<(WorkItem, Vec<u64>, Vec<Vec<u8>>)> {
    let loaded = loader.map(|l| {
        let Loaded { item, batch } = l.unwrap();
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
        let Loaded { item, batch } = loaded.unwrap();
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
    let config = LoaderConfig { threads: 2, prefetch: 3, ..LoaderConfig::default() };
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
    let config = LoaderConfig { threads: 2, prefetch: 4, ..LoaderConfig::default() };
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
        let config =
            LoaderConfig { threads, transforms: vec![two.clone()], prefetch: 1, ..LoaderConfig::default() };
        let error = Loader::new(set(), &config, Mode::Eval, plan(), &Pool::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
    }
}
