use std::fs;

use super::*;

/// The files of a set, by name.
fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_flipped_byte_is_found() {
    let dir = scratch();
    let dir = dir.path();
    captioned_set(dir, &[3, 0, 2]);
    let original = |id| captioned_record(id);
    assert!(verify(dir, 1, &quiet).unwrap().is_sound());
    for name in files(dir) {
        let path = dir.join(&name);
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= if at % 2 == 0 { 1 << (at / 2 % 8) } else { 0xff };
            fs::write(&path, &damaged).unwrap();
            let report = verify(dir, 1, &quiet).unwrap();
            assert!(!report.is_sound(), "byte {at} of {name}");
            // Whoever reads the set sees an error, or what was written.
            let Ok(set) = ShardSet::open(dir) else { continue };
            for id in 0..set.len() {
                match record(&set, id) {
                    Ok(read) => assert_eq!(read, original(id), "sample {id}, byte {at} of {name}"),
                    Err(e) => assert!(report.bad.iter().any(|b| b.id == id), "{e}, {report:?}"),
                }
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(verify(dir, 1, &quiet).unwrap().is_sound());
}

/// Opens and reads all that is there, whatever comes of it.
fn use_all(dir: &Path) {
    let _ = verify(dir, 1, &quiet).unwrap();
    let Ok(set) = ShardSet::open(dir) else { return };
    // A forged manifest may promise any number of records.
    for id in 0..set.len().min(10) {
        let _ = (record(&set, id), set.label(id).unwrap(), set.entry(id).unwrap());
    }
    let _ = (crate::inspect(&set), crate::contact_sheet(&set, 4, 2, 8));
}

/// A file's header and archive, with checksums that fit.
fn forge(content: format::Content, hash: [u8; 32], archive: &[u8]) -> Vec<u8> {
    [&format::header(content, hash, archive), archive].concat()
}

#[test]
fn forged_archives_with_fitting_checksums_never_panic() {
    let dir = scratch();
    let dir = dir.path();
    captioned_set(dir, &[2]);
    let manifest = dir.join("dataset.rkyv");
    let bytes = fs::read(&manifest).unwrap();
    let archive = &bytes[format::HEADER..];
    let mut opened = 0;
    for at in 0..archive.len() {
        for flip in [1, 0x80] {
            let mut forged = archive.to_vec();
            forged[at] ^= flip;
            let root = *blake3::hash(&forged).as_bytes();
            fs::write(&manifest, forge(format::Content::Manifest, root, &forged)).unwrap();
            use_all(dir);
            opened += u32::from(ShardSet::open(dir).is_ok());
        }
    }
    // Those that only say something else of the files that nobody compares before all is read.
    assert!(opened > 0);
    fs::write(&manifest, &bytes).unwrap();

    let index = dir.join("shard-00000.idx");
    let original = fs::read(&index).unwrap();
    let info = captioned();
    for at in format::HEADER..original.len() {
        for flip in [1, 0x80] {
            let mut forged = original[format::HEADER..].to_vec();
            forged[at - format::HEADER] ^= flip;
            let hash = format::info_hash(&info).unwrap();
            fs::write(&index, forge(format::Content::Index, hash, &forged)).unwrap();
            // The manifest vouches for it.
            let Some(summary) = finished_shard(dir, 0, &info).unwrap() else { continue };
            let (shards, info) = (vec![summary], format::InfoRow::of(&info));
            let archive = format::archive(&format::Manifest { info, shards, for_people: [0; 32] }).unwrap();
            let root = *blake3::hash(&archive).as_bytes();
            fs::write(&manifest, forge(format::Content::Manifest, root, &archive)).unwrap();
            use_all(dir);
        }
    }
}

#[test]
fn short_and_missing_files_make_a_set_incomplete() {
    let dir = scratch();
    let dir = dir.path();
    captioned_set(dir, &[2, 2]);
    for name in files(dir) {
        let path = dir.join(&name);
        let bytes = fs::read(&path).unwrap();
        let lengths = [Some(0), Some(1), Some(bytes.len() / 2), Some(bytes.len() - 1), None];
        for length in lengths {
            match length {
                Some(length) => fs::write(&path, &bytes[..length]).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let report = verify(dir, 2, &quiet).unwrap();
            if name == "dataset.json" {
                assert_eq!(report.files[0].file, name);
                assert!(ShardSet::open(dir).is_ok());
            } else {
                assert_eq!(report.incomplete.len(), 1, "{name} {length:?}: {report:?}");
                let message = is_incomplete(ShardSet::open(dir));
                assert!(message.contains("is incomplete") && message.contains(&name), "{message}");
                is_incomplete(repair(dir, 1, &quiet));
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(verify(dir, 2, &quiet).unwrap().is_sound());
}

#[test]
fn longer_and_foreign_files_are_found() {
    let dir = scratch();
    let dir = dir.path();
    captioned_set(dir, &[2, 2]);
    for name in files(dir) {
        let path = dir.join(&name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
        let report = verify(dir, 1, &quiet).unwrap();
        assert_eq!((report.files.len(), &report.files[0].file), (1, &name), "{report:?}");
        fs::write(&path, &bytes).unwrap();
    }
    for name in
        ["shard-00002.dat", "shard-0.idx", "shard-00001.dat.tmp", "dataset.rkyv.7.tmp", "shard-00000.bak"]
    {
        fs::write(dir.join(name), "").unwrap();
        let report = verify(dir, 1, &quiet).unwrap();
        assert_eq!((report.files.len(), &report.files[0].file[..]), (1, name), "{report:?}");
        assert!(ShardSet::open(dir).is_ok());
        fs::remove_file(dir.join(name)).unwrap();
    }
    fs::write(dir.join("README"), "a note").unwrap();
    assert!(verify(dir, 1, &quiet).unwrap().is_sound());
}

#[test]
fn parts_in_each_others_place_are_found() {
    let dir = scratch();
    let dir = dir.path();
    captioned_set(dir, &[2, 2]);
    let path = |name: &str| dir.join(name);
    let swap = |end: &str| {
        let (a, b) = (path(&format!("shard-00000.{end}")), path(&format!("shard-00001.{end}")));
        fs::rename(&a, path("x")).unwrap();
        fs::rename(&b, &a).unwrap();
        fs::rename(path("x"), &b).unwrap();
    };
    swap("idx");
    assert!(ShardSet::open(dir).is_err());
    assert!(!verify(dir, 1, &quiet).unwrap().is_sound());
    swap("dat");
    assert!(ShardSet::open(dir).is_err());
    swap("idx");
    assert!(!verify(dir, 1, &quiet).unwrap().is_sound());
}

#[test]
fn a_set_that_was_not_sealed_is_incomplete() {
    let dir = scratch();
    let dir = dir.path();
    let open = || ShardSet::open(dir);
    assert!(matches!(open(), Err(Error::Format { .. })));
    assert!(matches!(verify(dir, 1, &quiet), Err(Error::Format { .. })));

    let info = captioned();
    let (h, w, label, image, text) = caption(0);
    let fields = [
        SampleField { codec: Codec::Png, shape: &[h, w, 3], bytes: &image },
        SampleField { codec: Codec::Raw, shape: &[text.len()], bytes: &text },
    ];
    let sample = Sample { key: "k", label: Some(label), fields: &fields };
    let mut dropped = ShardWriter::create(dir, 0, &info).unwrap();
    dropped.add(&sample).unwrap();
    drop(dropped);
    assert!(files(dir).is_empty(), "{:?}", files(dir));

    let write = |number| {
        let mut writer = ShardWriter::create(dir, number, &info).unwrap();
        writer.add(&sample).unwrap();
        writer.finish().unwrap()
    };
    let (first, second) = (write(0), write(1));
    assert!(is_incomplete(open()).contains("no dataset.rkyv"));
    let report = verify(dir, 1, &quiet).unwrap();
    assert_eq!((report.incomplete.len(), report.is_sound()), (1, false));
    // A shard that is begun anew is not finished until it is.
    let again = ShardWriter::create(dir, 1, &info).unwrap();
    assert_eq!(finished_shard(dir, 1, &info).unwrap(), None);
    assert!(is_incomplete(seal(dir, &info, &[first.clone(), second.clone()])).contains("shard-00001"));
    drop(again);

    assert!(matches!(seal(dir, &info, std::slice::from_ref(&second)), Err(Error::Usage { .. })));
    let second = write(1);
    let twice = seal(dir, &info, &[first.clone(), first.clone()]).unwrap_err();
    assert!(twice.to_string().contains("there twice"), "{twice}");
    let short = seal(dir, &info, std::slice::from_ref(&first)).unwrap_err();
    assert!(short.to_string().contains("shard-00001.dat"), "{short}");
    is_incomplete(open());
    seal(dir, &info, &[second, first]).unwrap();
    assert_eq!(open().unwrap().len(), 2);
    // And then nobody writes to it any more.
    let refused = ShardWriter::create(dir, 0, &info).unwrap_err();
    assert_eq!(refused.kind(), crate::Kind::Usage);
    assert_eq!(open().unwrap().len(), 2);
}

#[test]
fn a_full_disk_is_named_and_leaves_no_shard() {
    let dir = scratch();
    let dir = dir.path();
    let full = |name: &str| std::os::unix::fs::symlink("/dev/full", dir.join(name)).unwrap();
    full("shard-00000.dat.tmp");
    let mut info = captioned();
    info.fields = vec![FieldSpec::array("bytes", DType::U8, &[0], true)];
    let bytes = noise(700_000, 0);
    let fields = [SampleField { codec: Codec::Raw, shape: &[bytes.len()], bytes: &bytes }];
    let mut writer = ShardWriter::create(dir, 0, &info).unwrap();
    let sample = Sample { key: "k", label: None, fields: &fields };
    writer.add(&sample).unwrap();
    let message = writer.add(&sample).unwrap_err().to_string();
    assert!(message.contains("cannot write") && message.contains("shard-00000.dat"), "{message}");
    // A caller that goes on gets no silent hole.
    assert!(writer.add(&sample).is_err());
    assert!(writer.finish().is_err());
    assert!(files(dir).is_empty());

    full("shard-00000.idx.tmp");
    let mut writer = ShardWriter::create(dir, 0, &info).unwrap();
    writer.add(&sample).unwrap();
    let message = writer.finish().unwrap_err().to_string();
    assert!(message.contains("shard-00000.idx"), "{message}");
    assert_eq!(finished_shard(dir, 0, &info).unwrap(), None);
    is_incomplete(ShardSet::open(dir));
}

#[test]
fn a_file_that_shrinks_while_the_set_is_open_is_an_error() {
    let dir = scratch();
    let dir = dir.path();
    captioned_set(dir, &[2]);
    let set = ShardSet::open(dir).unwrap();
    let path = dir.join("shard-00000.dat");
    fs::File::options().write(true).open(&path).unwrap().set_len(set.entry(1).unwrap().offset + 1).unwrap();
    assert_eq!(record(&set, 0).unwrap(), captioned_record(0));
    let message = record(&set, 1).unwrap_err().to_string();
    assert!(message.contains("sample 1 at byte") && message.contains("ends before it"), "{message}");
}
