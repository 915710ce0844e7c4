use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Barrier;

use super::*;
use crate::pack::{BadImages, Images, PackRank, PackReport, PackRequest, PackSource, pack};
use crate::{ShardSet, Split, open};

fn config() -> SynthConfig {
    SynthConfig {
        classes: 5,
        images: 43,
        val: 12,
        size: [48, 64],
        vary: 0.1,
        codec: SynthCodec::Jpeg(90),
        seed: 3,
    }
}

fn images(set: &Synth) -> Vec<Vec<u8>> {
    (0..set.len()).map(|id| set.picture(id).unwrap().pixels).collect()
}

#[test]
fn no_two_images_are_the_same_in_or_between_splits() {
    let config = SynthConfig { vary: 0.0, ..config() };
    let (train, val) = (Synth::new(&config, false).unwrap(), Synth::new(&config, true).unwrap());
    let all: Vec<Vec<u8>> = images(&train).into_iter().chain(images(&val)).collect();
    let different: HashSet<&Vec<u8>> = all.iter().collect();
    assert_eq!((all.len(), different.len()), (55, 55));
    // Not even nearly: the same draw under another key would be.
    for (i, a) in all.iter().enumerate() {
        for b in &all[..i] {
            let off: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            assert!(off / a.len() as u64 > 8, "two images differ by {off} in {} bytes", a.len());
        }
    }
}

#[test]
fn an_image_depends_on_seed_split_class_and_index_alone() {
    let small = Synth::new(&config(), false).unwrap();
    let large = Synth::new(&SynthConfig { images: 1_281_167, val: 50_000, ..config() }, false).unwrap();
    assert_eq!(small.picture(17).unwrap(), large.picture(17).unwrap());
    assert_eq!(large.picture(1_281_166).unwrap(), large.picture(1_281_166).unwrap());
    let other = Synth::new(&SynthConfig { seed: 4, ..config() }, false).unwrap();
    assert_ne!(small.picture(17).unwrap(), other.picture(17).unwrap());
}

/// Whoever changes a pixel changes sets that are measured against each other: count [`VERSION`] up then.
#[test]
fn pixels_are_those_of_this_version() {
    let hash = |size: [usize; 2]| {
        let config = SynthConfig { size, vary: 0.0, ..config() };
        let set = Synth::new(&config, false).unwrap();
        let mut hash = blake3::Hasher::new();
        for id in 0..10 {
            hash.update(&set.picture(id).unwrap().pixels);
        }
        hash.finalize().to_hex()[..16].to_owned()
    };
    assert_eq!(
        (VERSION, hash([32, 32]), hash([75, 100])),
        (1, "0d51119f995801c2".into(), "85cdd5c1652c6ab2".into())
    );
}

#[test]
fn records_are_what_the_schema_says() {
    let mut record = Record::default();
    for codec in [SynthCodec::Jpeg(85), SynthCodec::Raw] {
        let vary = if codec == SynthCodec::Raw { 0.0 } else { 0.2 };
        let set = Synth::new(&SynthConfig { codec, vary, ..config() }, true).unwrap();
        assert_eq!((set.len(), set.schema().classes.len()), (12, 5));
        let mut counts = [0; 5];
        for id in 0..set.len() {
            set.read(id, &mut record).unwrap();
            let [image, label] = &record.fields[..] else { panic!("{record:?}") };
            let class = i64::from_le_bytes(label.bytes[..].try_into().unwrap());
            assert_eq!(set.label(id).unwrap(), Some(class));
            counts[class as usize] += 1;
            let most = &set.schema().fields[0].shape;
            assert!(image.shape.iter().zip(most).all(|(a, b)| a <= b), "{:?} {most:?}", image.shape);
            match codec {
                SynthCodec::Raw => assert_eq!((&image.shape, image.bytes.len()), (most, 48 * 64 * 3)),
                SynthCodec::Jpeg(_) => {
                    let picture = Picture::decode(&image.bytes).unwrap();
                    assert_eq!(vec![picture.height, picture.width, picture.channels], image.shape);
                }
            }
        }
        assert_eq!(counts, [3, 3, 2, 2, 2]);
        assert!(matches!(set.read(12, &mut record), Err(Error::NoSample { sample: 12, len: 12, .. })));
        assert!(set.label(12).is_err());
    }
}

#[test]
fn what_is_no_set_is_refused() {
    let refused = |config: SynthConfig, what: &str| {
        let e = Synth::new(&config, false).unwrap_err();
        assert!(e.kind() == crate::Kind::Usage && e.to_string().starts_with(what), "{e}");
    };
    refused(SynthConfig { classes: 0, ..config() }, "--classes");
    refused(SynthConfig { classes: 100_001, ..config() }, "--classes");
    refused(SynthConfig { images: 0, ..config() }, "--images");
    refused(SynthConfig { size: [7, 64], ..config() }, "--size");
    refused(SynthConfig { size: [64, 8193], ..config() }, "--size");
    refused(SynthConfig { vary: f32::NAN, ..config() }, "--vary");
    refused(SynthConfig { vary: 0.6, ..config() }, "--vary");
    refused(SynthConfig { codec: SynthCodec::Jpeg(0), ..config() }, "--quality");
    refused(SynthConfig { codec: SynthCodec::Raw, ..config() }, "--vary");
}

/// Packs into several shards as `world` ranks.
fn pack_as(config: &SynthConfig, out: &Path, world: u32) -> Result<PackReport> {
    let request = PackRequest {
        source: PackSource::Synth(config.clone()),
        out: out.to_owned(),
        images: Images::Keep,
        bad: BadImages::Fail,
        check: false,
        shard_bytes: 6_000,
        threads: 2,
        force: false,
    };
    let barrier = Barrier::new(world as usize);
    let run = |rank| {
        let wait = || {
            barrier.wait();
            Ok::<(), Error>(())
        };
        pack(&request, PackRank { rank, world }, &wait, &|_| ())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..world).map(|rank| scope.spawn(move || run(rank))).collect();
        let report = run(0);
        others.into_iter().for_each(|other| drop(other.join().unwrap().unwrap()));
        Ok(report?.unwrap())
    })
}

#[test]
fn a_packed_set_is_the_same_for_any_number_of_ranks_and_after_a_pause() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let first = pack_as(&config(), &at("one"), 1).unwrap();
    let roots = |r: &PackReport| r.splits.iter().map(|s| s.root.clone()).collect::<Vec<_>>();
    assert_eq!(first.splits.iter().map(|s| s.records).collect::<Vec<_>>(), [43, 12]);
    assert!(first.splits[0].shards >= 4, "{first}");
    for world in [2, 3] {
        assert_eq!(roots(&pack_as(&config(), &at(&format!("of {world}")), world).unwrap()), roots(&first));
    }
    // A shard is gone, as after an interruption.
    let train = at("one").join("train");
    for name in ["dataset.rkyv", "shard-00002.idx"] {
        fs::remove_file(train.join(name)).unwrap();
    }
    let plan = ShardSet::open(&at("of 2").join("train")).unwrap().meta()["plan"].clone();
    // No file was written for what is computed.
    let written = vec![0; first.splits[0].shards as usize];
    fs::write(train.join(".pack.json"), serde_json::json!({ "plan": plan, "written": written }).to_string())
        .unwrap();
    let again = pack_as(&config(), &at("one"), 1).unwrap();
    assert_eq!((roots(&again), again.splits[0].kept), (roots(&first), first.splits[0].shards - 1));
    // Other images of the same names are another set.
    let e = pack_as(&SynthConfig { seed: 4, ..config() }, &at("one"), 1).unwrap_err();
    assert!(e.to_string().contains("holds another set"), "{e}");
}

#[test]
fn a_packed_set_holds_what_the_generator_gives() {
    let dir = tempfile::tempdir().unwrap();
    let raw = SynthConfig { codec: SynthCodec::Raw, vary: 0.0, val: 0, ..config() };
    for config in [config(), raw] {
        let out = dir.path().join(format!("{:?}", config.codec));
        pack_as(&config, &out, 1).unwrap();
        let made = Synth::new(&config, false).unwrap();
        let (mut wanted, mut found) = (HashSet::new(), HashSet::new());
        let mut record = Record::default();
        let set = open(out.to_str().unwrap(), Split::Train).unwrap();
        assert_eq!(set.schema().classes, made.schema().classes);
        for id in 0..made.len() {
            for (set, seen) in [(&made as &dyn Source, &mut wanted), (&*set, &mut found)] {
                set.read(id, &mut record).unwrap();
                seen.insert((record.fields[0].bytes.clone(), record.fields[1].bytes.clone()));
            }
        }
        assert_eq!(wanted, found);
        assert_eq!(out.join("val").exists(), config.val > 0);
    }
}
