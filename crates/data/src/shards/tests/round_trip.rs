use proptest::prelude::*;

use super::*;
use crate::{Role, Split, open};

/// A field of a made-up schema.
#[derive(Debug, Clone)]
enum Kind {
    Raw([usize; 3], DType),
    Files([usize; 2]),
    AnyFiles,
    AnyRaw(usize),
    Fixed(Vec<usize>, DType),
    Rows(Vec<usize>, DType),
}

impl Kind {
    fn spec(&self, name: &str) -> FieldSpec {
        let image = |shape, dtype, variable| FieldSpec { dtype, variable, ..FieldSpec::image(shape, 1.0) };
        let mut spec = match self {
            Kind::Raw(shape, dtype) => image(*shape, *dtype, false),
            Kind::Files([h, w]) => image([*h, *w, 3], DType::U8, false),
            Kind::AnyFiles => image([0, 0, 3], DType::U8, true),
            Kind::AnyRaw(c) => image([0, 0, *c], DType::U8, true),
            Kind::Fixed(shape, dtype) => FieldSpec::array("", *dtype, shape, false),
            Kind::Rows(row, dtype) => FieldSpec::array("", *dtype, &[&[0], &row[..]].concat(), true),
        };
        spec.name = name.into();
        spec
    }

    /// A sample's field, decided by `seed`.
    fn field(&self, seed: u64) -> RecordField {
        let random = noise(8, seed);
        let [a, b, c] = [0, 1, 2].map(|i| usize::from(random[i]));
        let raw = |shape: Vec<usize>, dtype: DType| {
            let n = shape.iter().product::<usize>() * dtype.size();
            RecordField { bytes: noise(n, seed ^ 1), shape, codec: Codec::Raw }
        };
        let file = |h: usize, w: usize| RecordField {
            bytes: noise(1 + a * 5, seed ^ 2),
            shape: vec![h, w, 1 + 2 * (c % 2)],
            codec: [Codec::Jpeg, Codec::Png][c % 2],
        };
        match self {
            Kind::Raw(shape, dtype) => raw(shape.to_vec(), *dtype),
            Kind::Files([h, w]) => file(*h, *w),
            Kind::AnyFiles => file(1 + a, 1 + b * 200),
            Kind::AnyRaw(c) => raw(vec![1 + a % 9, 1 + b % 9, *c], DType::U8),
            Kind::Fixed(shape, dtype) => raw(shape.clone(), *dtype),
            Kind::Rows(row, dtype) => raw([&[a % 4], &row[..]].concat(), *dtype),
        }
    }
}

fn dtypes() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::U8, DType::F32, DType::I64, DType::F16, DType::F64, DType::BF16])
}

fn kinds() -> impl Strategy<Value = Kind> {
    let dims = |least: usize, n| prop::collection::vec(least..4, 0..n);
    prop_oneof![
        (1..5usize, 1..5usize, 1..5usize, prop::sample::select(vec![DType::U8, DType::F32]))
            .prop_map(|(h, w, c, d)| Kind::Raw([h, w, c], d)),
        (1..70usize, 1..70usize).prop_map(|(h, w)| Kind::Files([h, w])),
        Just(Kind::AnyFiles),
        (1..5usize).prop_map(Kind::AnyRaw),
        (dims(0, 4), dtypes()).prop_map(|(shape, d)| Kind::Fixed(shape, d)),
        (dims(1, 3), dtypes()).prop_map(|(row, d)| Kind::Rows(row, d)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_is_read(
        kinds in prop::collection::vec(kinds(), 0..4),
        label_at in prop::option::of(0..4usize),
        name in "\\PC{0,12}",
        classes in prop::collection::vec("\\PC{0,8}", 1..5),
        keys in prop::collection::vec("\\PC{0,20}", 0..30),
        shard in 1..12usize,
        seed in any::<u64>(),
    ) {
        let dir = scratch();
        let dir = dir.path();
        let mut fields: Vec<FieldSpec> =
            kinds.iter().enumerate().map(|(i, k)| k.spec(&format!("{name}{i}"))).collect();
        let label_at = label_at.map(|at| at.min(fields.len()));
        if let Some(at) = label_at {
            fields.insert(at, FieldSpec::label());
        }
        let meta = BTreeMap::from([(name.clone(), "ünï".to_owned())]);
        let info = SetInfo { name: name.clone(), fields, classes: classes.clone(), meta };
        let label = |id: usize| (seed.wrapping_add(id as u64) % classes.len() as u64) as i64;
        let sample = |id: usize| -> Vec<RecordField> {
            let field = |(i, k): (usize, &Kind)| k.field(seed ^ (id * 8 + i) as u64);
            kinds.iter().enumerate().map(field).collect()
        };
        let mut shards = Vec::new();
        for (number, chunk) in keys.chunks(shard).enumerate() {
            let mut writer = ShardWriter::create(dir, number as u32, &info).unwrap();
            for (k, key) in chunk.iter().enumerate() {
                let id = number * shard + k;
                let values = sample(id);
                let fields: Vec<SampleField<'_>> = values
                    .iter()
                    .map(|f| SampleField { codec: f.codec, shape: &f.shape, bytes: &f.bytes })
                    .collect();
                writer.add(&Sample { key, label: label_at.map(|_| label(id)), fields: &fields }).unwrap();
                prop_assert_eq!(writer.records(), k as u64 + 1);
                prop_assert_eq!(writer.bytes() % 64, 0);
            }
            let summary = writer.finish().unwrap();
            // Continuing finds the same.
            prop_assert_eq!(finished_shard(dir, number as u32, &info).unwrap(), Some(summary.clone()));
            let text = serde_json::to_string(&summary).unwrap();
            prop_assert_eq!(&serde_json::from_str::<ShardSummary>(&text).unwrap(), &summary);
            shards.push(summary);
        }
        let root = seal(dir, &info, &shards).unwrap();
        prop_assert_eq!(seal(dir, &info, &shards).unwrap(), root);

        let set = ShardSet::open(dir).unwrap();
        prop_assert_eq!((set.root(), set.name(), set.len()), (root, &name[..], keys.len() as u64));
        prop_assert_eq!((&set.schema().classes, set.meta()), (&classes, &info.meta));
        // One record is used again and again, as a loader does.
        let mut record = Record::default();
        let mut largest = vec![[0; 2]; kinds.len()];
        for id in (0..keys.len()).rev() {
            set.read(id as u64, &mut record).unwrap();
            let mut wanted = sample(id);
            for (f, largest) in wanted.iter().zip(&mut largest) {
                for (axis, largest) in largest.iter_mut().enumerate() {
                    *largest = f.shape.get(axis).copied().unwrap_or(0).max(*largest);
                }
            }
            if let Some(at) = label_at {
                let bytes = label(id).to_le_bytes().to_vec();
                wanted.insert(at, RecordField { bytes, shape: vec![], codec: Codec::Raw });
            }
            prop_assert_eq!(&record.fields, &wanted);
            prop_assert_eq!(set.label(id as u64).unwrap(), label_at.map(|_| label(id)));
            let entry = set.entry(id as u64).unwrap();
            prop_assert_eq!((entry.shard as usize, entry.record as usize), (id / shard, id % shard));
            prop_assert_eq!(entry.offset % 64, 0);
            let hash = blake3::hash(keys[id].as_bytes());
            prop_assert_eq!(&entry.key_hash.to_le_bytes(), &hash.as_bytes()[..8]);
            prop_assert_eq!(set.key_hash(id as u64).unwrap(), entry.key_hash);
        }
        // What varies has the largest size there is.
        let stored = set.schema().fields.iter().filter(|f| f.role != Role::Label);
        for ((spec, kind), largest) in stored.zip(&kinds).zip(largest) {
            match kind {
                Kind::AnyFiles | Kind::AnyRaw(_) => prop_assert_eq!(&spec.shape[..2], &largest[..]),
                Kind::Rows(..) => prop_assert_eq!(spec.shape[0], largest[0]),
                _ => prop_assert_eq!(&spec.shape, &kind.spec("").shape),
            }
        }
        let past = set.read(keys.len() as u64, &mut record);
        let is_past = matches!(past, Err(Error::NoSample { .. }));
        prop_assert!(is_past);
        prop_assert!(set.label(u64::MAX).is_err());
    }
}

#[test]
fn the_same_samples_give_the_same_bytes() {
    let (a, b) = (scratch(), scratch());
    assert_eq!(captioned_set(a.path(), &[3, 2]), captioned_set(b.path(), &[3, 2]));
    for entry in std::fs::read_dir(a.path()).unwrap() {
        let name = entry.unwrap().file_name();
        let read = |dir: &TempDir| std::fs::read(dir.path().join(&name)).unwrap();
        assert_eq!(read(&a), read(&b), "{name:?}");
    }
    assert_ne!(captioned_set(scratch().path(), &[2, 3]), captioned_set(scratch().path(), &[3, 2]));
}

#[test]
fn sets_of_nothing_open() {
    for shards in [&[][..], &[0], &[0, 2, 0, 1, 0]] {
        let dir = scratch();
        captioned_set(dir.path(), shards);
        let set = ShardSet::open(dir.path()).unwrap();
        assert_eq!(set.len(), shards.iter().sum::<u64>());
        assert!((0..set.len()).all(|id| record(&set, id).unwrap() == captioned_record(id)));
        assert!(matches!(set.label(set.len()), Err(Error::NoSample { .. })));
        let report = verify(dir.path(), 2, &quiet).unwrap();
        assert!(report.is_sound(), "{report:?}");
    }
}

#[test]
fn many_threads_read_from_more_shards_than_stay_open() {
    let dir = scratch();
    captioned_set(dir.path(), &[1; 9]);
    let mut set = ShardSet::open(dir.path()).unwrap();
    set.keep_open(2);
    std::thread::scope(|scope| {
        for t in 0..4 {
            let set = &set;
            scope.spawn(move || {
                for i in 0..200 {
                    let id = (i * (t + 1)) % 9;
                    assert_eq!(record(set, id).unwrap(), captioned_record(id));
                }
            });
        }
    });
}

#[test]
fn a_finished_shard_of_another_set_is_written_anew() {
    let dir = scratch();
    captioned_set(dir.path(), &[2]);
    let info = captioned();
    let path = dir.path();
    assert!(finished_shard(path, 0, &info).unwrap().is_some());
    assert_eq!(finished_shard(path, 1, &info).unwrap(), None);
    let mut other = info.clone();
    other.meta.insert("quality".into(), "85".into());
    assert_eq!(finished_shard(path, 0, &other).unwrap(), None);
    // A shard that lies at the place of another.
    for end in ["dat", "idx"] {
        std::fs::copy(path.join(format!("shard-00000.{end}")), path.join(format!("shard-00001.{end}")))
            .unwrap();
    }
    assert_eq!(finished_shard(path, 1, &info).unwrap(), None);
    let data = path.join("shard-00000.dat");
    let bytes = std::fs::read(&data).unwrap();
    std::fs::write(&data, &bytes[1..]).unwrap();
    assert_eq!(finished_shard(path, 0, &info).unwrap(), None);
    std::fs::write(&data, &bytes).unwrap();
    std::fs::write(path.join("shard-00000.idx"), b"PHXINDEX").unwrap();
    assert_eq!(finished_shard(path, 0, &info).unwrap(), None);
}

#[test]
fn a_directory_has_splits_or_is_one() {
    let dir = scratch();
    let sub = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    captioned_set(&sub("train"), &[3]);
    let spec = dir.path().to_str().unwrap();
    assert_eq!(open(spec, Split::Train).unwrap().len(), 3);
    let missing = open(spec, Split::Test).unwrap_err().to_string();
    assert!(missing.contains("in train and none for the test split"), "{missing}");
    captioned_set(&sub("validation"), &[1]);
    assert_eq!(open(spec, Split::Test).unwrap().len(), 1);
    captioned_set(&sub("val"), &[2]);
    assert_eq!(open(spec, Split::Test).unwrap().len(), 2);

    // A set is what it is asked for, but never silently the test split of itself.
    let train = format!("{spec}/train");
    assert_eq!(open(&train, Split::Test).unwrap().len(), 3);
    let config = |train: &str, eval: Option<&str>| crate::DataConfig {
        train: train.into(),
        eval: eval.map(String::from),
        ..toml::from_str("train = \"\"").unwrap()
    };
    assert_eq!(config(spec, None).open(0).unwrap().1.len(), 2);
    assert_eq!(config(&train, Some(&train)).open(0).unwrap().1.len(), 3);
    let refused = config(&train, None).open(0).unwrap_err();
    assert_eq!(refused.kind(), crate::Kind::Usage);
    assert!(refused.to_string().contains("without a test split"), "{refused}");
}
