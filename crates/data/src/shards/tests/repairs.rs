use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// Flips a byte in the middle of each of these samples' records.
fn damage(dir: &Path, ids: &[u64]) {
    let set = ShardSet::open_whole(dir).unwrap();
    for &id in ids {
        let entry = set.entry(id).unwrap();
        let path = dir.join(format!("shard-{:05}.dat", entry.shard));
        let mut bytes = fs::read(&path).unwrap();
        bytes[entry.offset as usize + entry.length as usize / 2] ^= 4;
        fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn bad_records_are_listed_the_same_for_any_number_of_threads() {
    let dir = scratch();
    let dir = dir.path();
    captioned_set(dir, &[5, 1, 6]);
    damage(dir, &[1, 4, 5, 11]);
    let wanted = verify(dir, 1, &quiet).unwrap();
    assert_eq!(wanted.bad.iter().map(|b| b.id).collect::<Vec<_>>(), [1, 4, 5, 11]);
    assert_eq!((wanted.records, wanted.shards, wanted.files.len()), (12, 3, 0));
    let set = ShardSet::open(dir).unwrap();
    for bad in &wanted.bad {
        let entry = set.entry(bad.id).unwrap();
        assert_eq!((bad.shard, bad.offset), (entry.shard, entry.offset));
        assert_eq!(bad.key_hash, format!("{:016x}", entry.key_hash));
        assert!(bad.reason.contains("CRC32C"), "{}", bad.reason);
        let message = record(&set, bad.id).unwrap_err().to_string();
        assert!(message.contains(&format!("sample {}", bad.id)), "{message}");
    }
    for threads in [0, 2, 3, 8] {
        let done = AtomicU64::new(0);
        let progress = |n| {
            done.fetch_add(n, Ordering::Relaxed);
        };
        assert_eq!(verify(dir, threads, &progress).unwrap(), wanted, "{threads} threads");
        assert_eq!(done.into_inner(), wanted.bytes);
    }
}

#[test]
fn images_that_are_not_what_the_index_says_are_bad() {
    let dir = scratch();
    let dir = dir.path();
    let image = FieldSpec { variable: true, ..FieldSpec::image([0, 0, 3], 255.0) };
    let info = SetInfo { fields: vec![image], classes: vec![], ..captioned() };
    let file = png(4, 5, 0);
    let mut cut = file.clone();
    cut.truncate(file.len() - 20);
    let samples: [(Codec, [usize; 3], &[u8]); 6] = [
        (Codec::Png, [4, 5, 3], &file),
        (Codec::Jpeg, [4, 5, 3], &file),
        (Codec::Png, [5, 4, 3], &file),
        (Codec::Png, [4, 5, 3], &cut),
        (Codec::Jpeg, [4, 5, 3], b"\xff\xd8\xff\xd9"),
        (Codec::Png, [4, 5, 3], b"text"),
    ];
    let mut writer = ShardWriter::create(dir, 0, &info).unwrap();
    for (i, (codec, shape, bytes)) in samples.iter().enumerate() {
        let fields = [SampleField { codec: *codec, shape, bytes }];
        writer.add(&Sample { key: &i.to_string(), label: None, fields: &fields }).unwrap();
    }
    let summary = writer.finish().unwrap();
    assert_eq!((summary.codecs, &summary.largest[..]), ([0, 2, 4], &[[5, 5]][..]));
    seal(dir, &info, &[summary]).unwrap();
    let report = verify(dir, 1, &quiet).unwrap();
    assert_eq!(report.bad.iter().map(|b| b.id).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(report.files.is_empty(), "{report:?}");
    let done = repair(dir, 2, &quiet).unwrap();
    assert_eq!((done.added, done.left), (5, 1));
    assert_eq!(record(&ShardSet::open(dir).unwrap(), 0).unwrap().fields[0].bytes, file);
}

#[test]
fn quarantine_leaves_out_what_is_bad_and_only_that() {
    let dir = scratch();
    let dir = dir.path();
    let root = captioned_set(dir, &[4, 0, 4, 4]);
    let sound: Vec<Vec<u8>> =
        (0..4).map(|k| fs::read(dir.join(format!("shard-{k:05}.dat"))).unwrap()).collect();
    assert_eq!(repair(dir, 1, &quiet).unwrap(), Repaired { left: 12, ..Repaired::default() });
    for bad in [&[0, 1, 5, 11][..], &[3], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], &[11], &[4, 7]] {
        for (k, bytes) in sound.iter().enumerate() {
            fs::write(dir.join(format!("shard-{k:05}.dat")), bytes).unwrap();
        }
        damage(dir, bad);
        let done = repair(dir, 2, &quiet).unwrap();
        assert_eq!(done.quarantined.iter().map(|b| b.id).collect::<Vec<_>>(), bad);
        assert_eq!(done.left, 12 - bad.len() as u64);
        let set = ShardSet::open(dir).unwrap();
        assert_eq!((set.root(), set.quarantined()), (root, bad.len() as u64));
        let left: Vec<u64> = (0..12).filter(|id| !bad.contains(id)).collect();
        assert_eq!(set.len(), left.len() as u64);
        for (id, &was) in (0..).zip(&left) {
            assert_eq!(record(&set, id).unwrap(), captioned_record(was));
            assert_eq!(set.label(id).unwrap(), Some(was as i64 % 3));
            assert_eq!(u64::from(set.shard_of(id).unwrap()), [0, 2, 3][was as usize / 4]);
        }
        assert!(matches!(set.label(set.len()), Err(Error::NoSample { .. })));
        let report = verify(dir, 2, &quiet).unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(report.quarantined, done.quarantined);
        // Once more changes nothing.
        let again = repair(dir, 1, &quiet).unwrap();
        assert_eq!((again.added, again.released, again.quarantined), (0, 0, done.quarantined));
    }
    for (k, bytes) in sound.iter().enumerate() {
        fs::write(dir.join(format!("shard-{k:05}.dat")), bytes).unwrap();
    }
    let done = repair(dir, 1, &quiet).unwrap();
    assert_eq!((done.released, done.left), (2, 12));
    assert!(!dir.join("quarantine.json").exists());
}

#[test]
fn every_flipped_byte_of_a_quarantine_is_found() {
    let dir = scratch();
    let dir = dir.path();
    captioned_set(dir, &[4]);
    damage(dir, &[1, 2]);
    repair(dir, 1, &quiet).unwrap();
    let path = dir.join("quarantine.json");
    let bytes = fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        for flip in [1, 0x2a, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            fs::write(&path, &damaged).unwrap();
            assert!(matches!(ShardSet::open(dir), Err(Error::Format { .. })), "byte {at} ^ {flip}");
        }
    }
    assert_eq!(verify(dir, 1, &quiet).unwrap().files[0].file, "quarantine.json");
    assert_eq!(repair(dir, 1, &quiet).unwrap().left, 2);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    // That of another set names other records.
    let other = scratch();
    captioned_set(other.path(), &[2, 2]);
    fs::copy(&path, other.path().join("quarantine.json")).unwrap();
    let message = ShardSet::open(other.path()).unwrap_err().to_string();
    assert!(message.contains("belongs to another set"), "{message}");
}

#[test]
fn what_follows_from_the_rest_is_written_anew_and_nothing_else() {
    let dir = scratch();
    let dir = dir.path();
    captioned_set(dir, &[3]);
    let people = dir.join("dataset.json");
    let bytes = fs::read(&people).unwrap();
    fs::write(&people, "{}").unwrap();
    // What a repair that was killed leaves is no damage, and is cleared away.
    let left = dir.join("quarantine.json.123.tmp");
    fs::write(&left, "{").unwrap();
    assert_eq!(repair(dir, 1, &quiet).unwrap().rewritten, ["dataset.json"]);
    assert!(!left.exists());
    assert_eq!(fs::read(&people).unwrap(), bytes);
    fs::remove_file(&people).unwrap();
    repair(dir, 1, &quiet).unwrap();
    assert_eq!(fs::read(&people).unwrap(), bytes);

    let index = dir.join("shard-00000.idx");
    let mut bytes = fs::read(&index).unwrap();
    bytes[100] ^= 1;
    fs::write(&index, bytes).unwrap();
    let message = repair(dir, 1, &quiet).unwrap_err().to_string();
    assert!(message.contains("only packing again"), "{message}");
    assert!(!dir.join("quarantine.json").exists());
}
