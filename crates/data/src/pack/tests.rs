use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Barrier;

use super::*;
use crate::import::tests::{GREY_PNG, JPEG, files, tar};
use crate::shards::{ShardSet, verify};
use crate::{Codec, Kind, Picture, Record, Source, Split, open};

/// A JPEG file that no other number gives.
fn picture(number: usize) -> Vec<u8> {
    let (height, width) = (20 + number % 7, 30 + number % 5);
    let pixels = (0..height * width * 3).map(|i| (i * (number + 3) / 50 % 256) as u8).collect();
    let mut file = Vec::new();
    Picture { height, width, channels: 3, pixels }.to_jpeg(80, &mut file).unwrap();
    file
}

/// Sixty images in three classes.
fn source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..60 {
        files(dir.path(), &[(&format!("class {}/{i:03}.jpg", i % 3), &picture(i))]);
    }
    dir
}

/// Packs into about seven shards.
fn request(source: &Path, out: &Path) -> PackRequest {
    PackRequest {
        source: PackSource::Import(ImportRequest { source: source.to_owned(), ..Default::default() }),
        out: out.to_owned(),
        images: Images::Keep,
        bad: BadImages::Fail,
        check: false,
        shard_bytes: 8000,
        threads: 1,
        force: false,
    }
}

fn alone(request: &PackRequest) -> Result<PackReport> {
    let report = pack(request, PackRank { rank: 0, world: 1 }, &|| Ok::<(), Error>(()), &|_| ())?;
    Ok(report.unwrap())
}

fn together(request: &PackRequest, world: u32) -> PackReport {
    let barrier = Barrier::new(world as usize);
    let run = |rank| {
        let wait = || {
            barrier.wait();
            Ok::<(), Error>(())
        };
        pack(request, PackRank { rank, world }, &wait, &|_| ()).unwrap()
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..world).map(|rank| scope.spawn(move || run(rank))).collect();
        let report = run(0).unwrap();
        assert!(others.into_iter().all(|other| other.join().unwrap().is_none()));
        report
    })
}

fn sound(dir: &Path) -> bool {
    verify(dir, 1, &|_| ()).unwrap().is_sound()
}

/// All files of a folder.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |e: &fs::DirEntry| e.file_name().into_string().unwrap();
    fs::read_dir(dir).unwrap().map(|e| e.unwrap()).map(|e| (name(&e), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn a_set_has_every_sample_once_as_it_was_with_its_label() {
    let (source, out) = (source(), tempfile::tempdir().unwrap());
    let report = alone(&request(source.path(), out.path())).unwrap();
    let split = &report.splits[0];
    assert_eq!((split.records, split.classes, split.kept), (60, 3, 0));
    assert!((5..=9).contains(&split.shards), "{}", split.shards);
    assert!(sound(out.path()));
    let set = ShardSet::open(out.path()).unwrap();
    assert_eq!(split.root, crate::files::hex(&set.root()));
    let mut expected: Vec<(Vec<u8>, i64)> = (0..60).map(|i| (picture(i), i as i64 % 3)).collect();
    let mut found = Vec::new();
    let mut record = Record::default();
    for id in 0..set.len() {
        set.read(id, &mut record).unwrap();
        found.push((record.fields[0].bytes.clone(), set.label(id).unwrap().unwrap()));
    }
    // Neighbours are of mixed classes.
    assert!(found.windows(2).filter(|pair| pair[0].1 != pair[1].1).count() > 20);
    found.sort();
    expected.sort();
    assert!(found == expected);
    assert_eq!(set.schema().classes, ["class 0", "class 1", "class 2"]);
    assert!(!content(out.path()).keys().any(|name| name.starts_with('.')));
    let text = report.to_string();
    assert!(text.contains("60 samples of 3 classes") && text.contains(&split.root), "{text}");
}

#[test]
fn bytes_do_not_depend_on_ranks_threads_or_where_the_source_lies() {
    let (source, out) = (source(), tempfile::tempdir().unwrap());
    let resized = |at: &str| PackRequest {
        images: Images::Resize { short: 16, quality: 70 },
        ..request(source.path(), &out.path().join(at))
    };
    for (what, of) in [("plain", None), ("resized", Some(()))] {
        let request = |at: &str| match of {
            None => request(source.path(), &out.path().join(at)),
            Some(()) => resized(at),
        };
        let first = format!("{what}-1");
        let report = alone(&request(&first)).unwrap();
        let expected = content(&out.path().join(&first));
        for world in [2, 3, 5, 11] {
            let name = format!("{what}-{world}");
            assert_eq!(together(&request(&name), world).splits[0].root, report.splits[0].root);
            assert!(content(&out.path().join(&name)) == expected, "{what} by {world} ranks");
        }
        let name = format!("{what}-threads");
        alone(&PackRequest { threads: 3, ..request(&name) }).unwrap();
        assert!(content(&out.path().join(&name)) == expected, "{what} by 3 threads");
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join(source.path().file_name().unwrap());
    fs::rename(source.path(), &moved).unwrap();
    alone(&request(&moved, &out.path().join("moved"))).unwrap();
    assert!(content(&out.path().join("moved")) == content(&out.path().join("plain-1")));
}

/// Packing that ends in shard `shard`, because of an image that is damaged for the moment; the report of going on.
fn cut_and_go_on(source: &Path, request: &PackRequest, shard: u32, world: u32) -> PackReport {
    let jobs = plan(request).unwrap();
    let victim = jobs[0].plan.samples(shard).last().unwrap();
    let path = source.join(jobs[0].listing.key(victim));
    let good = fs::read(&path).unwrap();
    fs::write(&path, vec![b'x'; good.len()]).unwrap();
    let error = alone(request).unwrap_err();
    assert!(error.kind() == Kind::Data && error.to_string().contains(jobs[0].listing.key(victim)), "{error}");
    assert!(error.to_string().contains("--bad skip"));
    // What is there is no set yet, and no shard is half there.
    assert!(matches!(ShardSet::open(&request.out), Err(Error::Incomplete { .. })) || shard == 0);
    let unfinished = content(&request.out);
    assert!(!unfinished.keys().any(|name| name.ends_with(".tmp")), "{:?}", unfinished.keys());
    fs::write(&path, good).unwrap();
    together(request, world)
}

/// What a packing leaves for one that goes on.
fn state(request: &PackRequest) -> Vec<u8> {
    let jobs = plan(request).unwrap();
    let empty = tempfile::tempdir().unwrap();
    let folder = Folder::new(empty.path().to_owned(), &jobs[0].info);
    folder.begin(&jobs[0], false).unwrap();
    fs::read(empty.path().join(".pack.json")).unwrap()
}

#[test]
fn shards_whose_files_were_replaced_meanwhile_are_packed_again() {
    let (source, out) = (source(), tempfile::tempdir().unwrap());
    let request = request(source.path(), out.path());
    let shards = alone(&request).unwrap().splits[0].shards;
    let old = state(&request);
    for (victim, cut) in [(0, true), (shards - 1, true), (1, false)] {
        let jobs = plan(&request).unwrap();
        let path = source.path().join(jobs[0].listing.key(jobs[0].plan.samples(victim).next().unwrap()));
        // Another image of the same size.
        let mut file = fs::read(&path).unwrap();
        let at = file.len() - 10;
        file[at] ^= 1;
        let before = state(&request);
        fs::write(&path, &file).unwrap();
        assert_ne!(state(&request), before);
        if cut {
            fs::remove_file(out.path().join("dataset.rkyv")).unwrap();
            files(out.path(), &[(".pack.json", &before)]);
        }
        // A finished set is left as it is.
        let kept = shards - u32::from(cut);
        assert_eq!(alone(&request).unwrap().splits[0].kept, kept, "shard {victim}");
        let fresh = tempfile::tempdir().unwrap();
        alone(&PackRequest { out: fresh.path().to_owned(), ..request.clone() }).unwrap();
        assert_eq!(content(out.path()) == content(fresh.path()), cut);
    }
    // What does not tell when its files were written is not trusted.
    fs::remove_file(out.path().join("dataset.rkyv")).unwrap();
    let mut told: serde_json::Value = serde_json::from_slice(&old).unwrap();
    told.as_object_mut().unwrap().remove("written");
    files(out.path(), &[(".pack.json", told.to_string().as_bytes())]);
    assert_eq!(alone(&request).unwrap().splits[0].kept, 0);
}

#[test]
fn only_one_packs_into_a_folder_at_a_time() {
    let (source, out) = (source(), tempfile::tempdir().unwrap());
    let request = request(source.path(), out.path());
    let jobs = plan(&request).unwrap();
    let lock = jobs[0].folder.begin(&jobs[0], false).unwrap();
    let before = content(out.path());
    for force in [false, true] {
        let error = alone(&PackRequest { force, ..request.clone() }).unwrap_err();
        assert!(error.kind() == Kind::Usage && error.to_string().contains("another process"), "{error}");
        assert!(content(out.path()) == before);
    }
    drop(lock);
    alone(&request).unwrap();
    assert!(sound(out.path()));
}

#[test]
fn packing_that_was_cut_goes_on_and_gives_the_same_bytes() {
    let (source, out) = (source(), tempfile::tempdir().unwrap());
    let expected = alone(&request(source.path(), &out.path().join("whole"))).unwrap();
    let expected = (expected.splits[0].shards, content(&out.path().join("whole")));
    for shard in 0..expected.0 {
        for world in [1, 3] {
            let request = request(source.path(), &out.path().join(format!("cut-{shard}-{world}")));
            let report = cut_and_go_on(source.path(), &request, shard, world);
            let kept = (0..shard).filter(|s| s % world == 0).count() as u32;
            assert_eq!(report.splits[0].kept, kept, "cut in shard {shard}");
            assert!(content(&request.out) == expected.1, "cut in shard {shard}, {world} ranks");
        }
    }
    // What a killed process leaves: temporary files, a shard's records without its index, a damaged index.
    let request = request(source.path(), &out.path().join("killed"));
    cut_and_go_on(source.path(), &request, 2, 1);
    let state = state(&request);
    for damage in 0..4 {
        for name in ["dataset.rkyv", "dataset.json"] {
            fs::remove_file(request.out.join(name)).unwrap();
        }
        files(&request.out, &[(".pack.json", &state), ("shard-00001.dat.tmp", b"half")]);
        match damage {
            0 => fs::remove_file(request.out.join("shard-00001.idx")).unwrap(),
            1 => fs::write(request.out.join("shard-00000.idx"), b"x").unwrap(),
            2 => fs::write(request.out.join("shard-00003.dat"), b"x").unwrap(),
            _ => files(&request.out, &[("dataset.rkyv.77.tmp", b"x"), (".pack-skipped-00001.json", b"[]")]),
        }
        let report = alone(&request).unwrap();
        assert_eq!(report.splits[0].kept, expected.0 - u32::from(damage < 3));
        assert!(content(&request.out) == expected.1, "damage {damage}");
    }
}

#[test]
fn a_second_run_finds_the_set_ready_and_another_one_needs_force() {
    let (source, out) = (source(), tempfile::tempdir().unwrap());
    let ask = request(source.path(), out.path());
    let first = alone(&ask).unwrap();
    let written = fs::metadata(out.path().join("dataset.rkyv")).unwrap().modified().unwrap();
    let again = alone(&ask).unwrap();
    assert_eq!(
        (&again.splits[0].root, again.splits[0].kept),
        (&first.splits[0].root, first.splits[0].shards)
    );
    assert_eq!(fs::metadata(out.path().join("dataset.rkyv")).unwrap().modified().unwrap(), written);
    assert!(!content(out.path()).keys().any(|name| name.starts_with('.')));

    let other = PackRequest { images: Images::Raw { side: 8 }, shard_bytes: 1 << 20, ..ask.clone() };
    let error = alone(&other).unwrap_err();
    assert!(error.kind() == Kind::Usage && error.to_string().contains("--force"), "{error}");
    assert!(ShardSet::open(out.path()).is_ok());
    files(out.path(), &[("mine.txt", b"stays")]);
    let report = alone(&PackRequest { force: true, ..other.clone() }).unwrap();
    assert_eq!((report.splits[0].shards, report.splits[0].kept), (1, 0));
    assert!(sound(out.path()) && out.path().join("mine.txt").exists());

    // The beginning of another set, a shard of nobody's, and a damaged manifest.
    fs::remove_file(out.path().join("dataset.rkyv")).unwrap();
    assert!(alone(&ask).unwrap_err().to_string().contains("is not this packing's"));
    files(out.path(), &[(".pack.json", b"{\"plan\":\"abc\"}")]);
    assert!(alone(&ask).unwrap_err().to_string().contains("beginning of another set"));
    files(out.path(), &[("dataset.rkyv", b"x")]);
    assert!(alone(&ask).unwrap_err().to_string().contains("cannot be opened"));
    assert_eq!(alone(&PackRequest { force: true, ..ask }).unwrap().splits[0].root, first.splits[0].root);

    // A source that has changed is another one.
    files(source.path(), &[("class 0/new.jpg", JPEG)]);
    assert!(alone(&request(source.path(), out.path())).is_err());
}

#[test]
fn a_folder_of_other_things_is_left_alone() {
    let (source, out) = (source(), tempfile::tempdir().unwrap());
    files(out.path(), &[(".hidden", b"x"), ("lost+found/x", b"x"), ("thesis.tex", b"x")]);
    let ask = request(source.path(), out.path());
    let error = alone(&ask).unwrap_err();
    let text = error.to_string();
    assert!(
        error.kind() == Kind::Usage && text.contains("\"thesis.tex\", which is no part of a set"),
        "{text}"
    );
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 3);
    alone(&PackRequest { force: true, ..ask.clone() }).unwrap();
    fs::remove_file(out.path().join("thesis.tex")).unwrap();
    alone(&ask).unwrap();
    assert!(sound(out.path()));
}

/// Two splits went into any folder at all, since only those of the splits were looked into.
#[test]
fn a_folder_of_other_things_gets_no_splits() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    files(source.path(), &[("train/a/1.jpg", JPEG), ("val/a/2.jpg", JPEG)]);
    files(out.path(), &[(".git/x", b"x"), ("lost+found/", b""), ("papers/thesis.tex", b"x")]);
    let ask = request(source.path(), out.path());
    let fails = |expected: &str| {
        let error = alone(&ask).unwrap_err();
        assert!(error.kind() == Kind::Usage && error.to_string().contains(expected), "{error}");
        assert!(!out.path().join("train").exists());
    };
    fails("\"papers\", which is no part of a set; name an empty folder");
    fs::remove_dir_all(out.path().join("papers")).unwrap();
    files(out.path(), &[("dataset.rkyv", b"x")]);
    fails("is a set itself");
    fs::remove_file(out.path().join("dataset.rkyv")).unwrap();
    // A split that another packing has put there is no obstacle, and neither is this one's beginning.
    let third = tempfile::tempdir().unwrap();
    files(third.path(), &[("a/3.jpg", JPEG)]);
    alone(&request(third.path(), &out.path().join("test"))).unwrap();
    for _ in 0..2 {
        alone(&ask).unwrap();
    }
    assert!(["train", "val", "test"].iter().all(|split| sound(&out.path().join(split))));
    files(out.path(), &[("thesis.tex", b"x")]);
    assert!(alone(&ask).is_err());
    alone(&PackRequest { force: true, ..ask }).unwrap();
}

/// A table's several labels and targets are in the set as the table has them.
#[test]
fn several_labels_and_targets_are_fields_of_a_set() {
    let (source, out) = (source(), tempfile::tempdir().unwrap());
    let table =
        b"file,labels,targets\nclass 0/000.jpg,cat;dog,1;2\nclass 1/001.jpg,,3;4\nclass 2/002.jpg,bee,5;6\n";
    files(source.path(), &[("set.csv", table)]);
    alone(&request(&source.path().join("set.csv"), out.path())).unwrap();
    assert!(sound(out.path()));
    let set = ShardSet::open(out.path()).unwrap();
    assert_eq!((set.meta()["label_names"].as_str(), set.schema().classes.len()), ("bee\ncat\ndog", 0));
    let (mut record, mut seen) = (Record::default(), Vec::new());
    for id in 0..3 {
        set.read(id, &mut record).unwrap();
        let labels = bytemuck::pod_collect_to_vec::<u8, i64>(&record.fields[1].bytes);
        seen.push((labels, bytemuck::pod_collect_to_vec::<u8, f32>(&record.fields[2].bytes)));
    }
    seen.sort_by(|a, b| a.1[0].total_cmp(&b.1[0]));
    let wanted = [(vec![1, 2], vec![1.0, 2.0]), (vec![], vec![3.0, 4.0]), (vec![0], vec![5.0, 6.0])];
    assert_eq!(seen, wanted);
}

#[test]
fn unreadable_images_end_packing_or_are_listed() {
    let (source, out) = (source(), tempfile::tempdir().unwrap());
    // No image, a cut one, and one that only decoding shows to be damaged.
    let mut damaged = picture(3);
    let middle = damaged.len() / 2;
    damaged[middle..middle + 40].fill(0xff);
    files(
        source.path(),
        &[("class 1/a.jpg", b"GIF89a"), ("class 1/b.png", &GREY_PNG[..60]), ("class 2/c.jpg", &damaged)],
    );
    let ask =
        |at: &str, bad, check| PackRequest { bad, check, ..request(source.path(), &out.path().join(at)) };
    let error = alone(&ask("fail", BadImages::Fail, false)).unwrap_err();
    assert_eq!(error.kind(), Kind::Data);
    let quick = alone(&ask("quick", BadImages::Skip, false)).unwrap();
    assert_eq!((quick.splits[0].records, quick.splits[0].skipped.len()), (61, 2));
    let report = alone(&ask("one", BadImages::Skip, true)).unwrap();
    let mut keys: Vec<&str> = report.splits[0].skipped.iter().map(|s| &s.key[..]).collect();
    keys.sort_unstable();
    assert_eq!(
        (report.splits[0].records, &keys[..]),
        (60, &["class 1/a.jpg", "class 1/b.png", "class 2/c.jpg"][..])
    );
    assert!(report.splits[0].skipped.iter().any(|s| s.problem.contains("GIF")));
    together(&ask("three", BadImages::Skip, true), 3);
    let found = content(&out.path().join("one"));
    assert!(found.contains_key("skipped.json") && found == content(&out.path().join("three")));
    assert!(sound(&out.path().join("one")));
    // The list is told again by a run that finds the set ready.
    assert_eq!(
        alone(&ask("one", BadImages::Skip, true)).unwrap().splits[0].skipped,
        report.splits[0].skipped
    );
    assert!(report.to_string().contains("left out 3 samples"));

    let bad = tempfile::tempdir().unwrap();
    files(bad.path(), &[("a/1.jpg", b"x"), ("a/2.jpg", b"")]);
    let nothing = PackRequest { bad: BadImages::Skip, ..request(bad.path(), &out.path().join("nothing")) };
    let text = alone(&nothing).unwrap_err().to_string();
    assert!(text.contains("all 2 samples are unreadable"), "{text}");
}

#[test]
fn files_that_a_table_names_and_that_are_gone_follow_the_same_rule() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    files(
        dir.path(),
        &[("a.jpg", JPEG), ("set.csv", b"file,label,target,text\na.jpg,x,0.5,one\nb.jpg,y,1,two\n")],
    );
    let ask = request(&dir.path().join("set.csv"), out.path());
    let text = alone(&ask).unwrap_err().to_string();
    assert!(text.contains("b.jpg") && text.contains("line 3"), "{text}");
    let report = alone(&PackRequest { bad: BadImages::Skip, ..ask }).unwrap();
    assert_eq!((report.splits[0].records, &report.splits[0].skipped[0].key[..]), (1, "b.jpg"));
    let set = ShardSet::open(out.path()).unwrap();
    let names: Vec<&str> = set.schema().fields.iter().map(|f| &*f.name).collect();
    assert_eq!(names, ["image", "label", "target", "text"]);
    let mut record = Record::default();
    set.read(0, &mut record).unwrap();
    assert_eq!(
        (&record.fields[2].bytes[..], &record.fields[3].bytes[..]),
        (&0.5f32.to_le_bytes()[..], &b"one"[..])
    );
}

#[test]
fn images_become_smaller_and_never_larger() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tall = Picture { height: 90, width: 60, channels: 3, pixels: vec![200; 90 * 60 * 3] };
    let grey = Picture { height: 50, width: 101, channels: 1, pixels: vec![9; 50 * 101] };
    let small = picture(1);
    files(
        source.path(),
        &[
            ("a/tall.png", &tall.to_png().unwrap()),
            ("b/grey.png", &grey.to_png().unwrap()),
            ("c/small.jpg", &small),
        ],
    );
    let ask = |at: &str, images| PackRequest {
        images,
        shard_bytes: 1 << 20,
        ..request(source.path(), &out.path().join(at))
    };
    alone(&ask("resized", Images::Resize { short: 30, quality: 90 })).unwrap();
    let set = ShardSet::open(&out.path().join("resized")).unwrap();
    let mut found = BTreeMap::new();
    let mut record = Record::default();
    for id in 0..3 {
        set.read(id, &mut record).unwrap();
        found.insert(set.label(id).unwrap().unwrap(), record.fields[0].clone());
    }
    assert_eq!((found[&0].codec, &found[&0].shape[..]), (Codec::Jpeg, &[45, 30, 3][..]));
    assert_eq!((found[&1].codec, &found[&1].shape[..]), (Codec::Jpeg, &[30, 60, 1][..]));
    assert_eq!((found[&2].codec, &found[&2].bytes), (Codec::Jpeg, &small));
    assert_eq!(Picture::decode(&found[&0].bytes).unwrap().height, 45);
    assert_eq!((set.meta()["resize"].as_str(), set.meta()["quality"].as_str()), ("30", "90"));

    alone(&ask("raw", Images::Raw { side: 30 })).unwrap();
    let set = ShardSet::open(&out.path().join("raw")).unwrap();
    assert_eq!(
        (&set.schema().fields[0].shape[..], set.schema().fields[0].variable),
        (&[30, 30, 3][..], false)
    );
    for id in 0..3 {
        set.read(id, &mut record).unwrap();
        assert_eq!((record.fields[0].codec, record.fields[0].bytes.len()), (Codec::Raw, 30 * 30 * 3));
    }
    // A set of shards can be packed again, smaller.
    let again = PackRequest {
        images: Images::Raw { side: 4 },
        ..request(&out.path().join("resized"), &out.path().join("again"))
    };
    assert_eq!(alone(&again).unwrap().splits[0].records, 3);

    for images in [
        Images::Resize { short: 0, quality: 90 },
        Images::Raw { side: 70_000 },
        Images::Resize { short: 9, quality: 0 },
    ] {
        assert_eq!(alone(&ask("no", images)).unwrap_err().kind(), Kind::Usage);
    }
    let digits = PackRequest {
        images: Images::Raw { side: 4 },
        ..request(Path::new("digits"), &out.path().join("digits"))
    };
    assert!(alone(&digits).unwrap_err().to_string().contains("pixels of one size"));
}

#[test]
fn splits_go_into_folders_that_training_opens() {
    let out = tempfile::tempdir().unwrap();
    let report = alone(&request(Path::new("digits"), out.path())).unwrap();
    assert_eq!(
        report.splits.iter().map(|s| s.split.as_deref()).collect::<Vec<_>>(),
        [Some("train"), Some("val")]
    );
    let spec = out.path().to_str().unwrap();
    for split in [Split::Train, Split::Test] {
        let (packed, whole) = (open(spec, split).unwrap(), open("digits", split).unwrap());
        assert_eq!((packed.len(), packed.schema()), (whole.len(), whole.schema()));
        let sum = |set: &dyn Source| -> u64 {
            let mut record = Record::default();
            (0..set.len())
                .map(|id| {
                    set.read(id, &mut record).unwrap();
                    let pixels: u64 = record.fields[0].bytes.iter().map(|&b| u64::from(b)).sum();
                    pixels * (1 + set.label(id).unwrap().unwrap() as u64)
                })
                .sum()
        };
        assert_eq!(sum(&*packed), sum(&*whole));
    }
}

#[test]
fn archives_are_packed_without_unpacking() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let inner: Vec<Vec<u8>> = (0..3)
        .map(|c| {
            let named: Vec<(String, Vec<u8>)> =
                (0..4).map(|i| (format!("{i}.JPEG"), picture(c * 4 + i))).collect();
            tar(&named.iter().map(|(n, b)| (n.as_str(), &b[..])).collect::<Vec<_>>())
        })
        .collect();
    let names = ["n00000001.tar", "n00000002.tar", "n00000003.tar"];
    let all: Vec<(&str, &[u8])> = names.iter().zip(&inner).map(|(n, b)| (*n, &b[..])).collect();
    files(dir.path(), &[("ILSVRC2012_img_train.tar", &tar(&all))]);
    let report = together(&request(dir.path(), out.path()), 2);
    assert_eq!((report.splits[0].records, report.splits[0].dir.clone()), (12, out.path().join("train")));
    let set = ShardSet::open(&out.path().join("train")).unwrap();
    assert_eq!(set.meta()["class_ids"], "n00000001 n00000002 n00000003");
}

#[test]
fn ranks_that_see_different_sources_stop() {
    let (source, other, out) = (source(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    files(other.path(), &[("a/1.jpg", JPEG)]);
    // Rank 0 comes as far as the first barrier, where it hears that the other one has failed.
    let stop = || Err(Error::usage("rank 1", "failed"));
    let ask = request(source.path(), out.path());
    assert!(pack(&ask, PackRank { rank: 0, world: 2 }, &stop, &|_| ()).is_err());
    let ask = request(other.path(), out.path());
    let error = pack(&ask, PackRank { rank: 1, world: 2 }, &|| Ok::<(), Error>(()), &|_| ()).unwrap_err();
    assert!(error.to_string().contains("the ranks do not see the same source"), "{error}");
}

#[test]
fn a_set_does_not_go_into_its_own_source() {
    let source = source();
    for out in ["", "new", "class 0/../new/deeper"] {
        let error = alone(&request(source.path(), &source.path().join(out))).unwrap_err();
        assert!(error.kind() == Kind::Usage && error.to_string().contains("lies in the source"), "{error}");
    }
    assert!(!source.path().join("new").exists());
}

#[test]
fn what_cannot_be_written_is_the_systems_fault() {
    let (source, file) = (source(), tempfile::NamedTempFile::new().unwrap());
    let error = alone(&request(source.path(), &file.path().join("out"))).unwrap_err();
    assert_eq!(error.kind(), Kind::System);
}
