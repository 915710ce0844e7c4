use std::fs;
use std::io::Write;
use std::path::Path;

use super::*;
use crate::{Codec, Kind, Record};

pub(crate) const JPEG: &[u8] = include_bytes!("../../../../tests/golden/pictures/rgb.jpg");
pub(crate) const GREY_PNG: &[u8] = include_bytes!("../../../../tests/golden/pictures/grey.png");

/// Writes files by their paths below `dir`; a path that ends in a slash is a folder.
pub(crate) fn files(dir: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(if name.ends_with('/') { &path } else { path.parent().unwrap() }).unwrap();
        if !name.ends_with('/') {
            fs::write(path, bytes).unwrap();
        }
    }
}

/// An archive made by the crate `tar`, which our reader does not share a line with.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn of(source: &Path) -> ImportRequest {
    ImportRequest { source: source.to_owned(), ..Default::default() }
}

/// Keys and labels.
pub(super) fn told(listing: &Listing) -> Vec<(&str, Option<i64>)> {
    (0..listing.len()).map(|i| (listing.key(i), listing.label(i))).collect()
}

pub(super) fn read(listing: &Listing, i: u64) -> Record {
    let mut record = Record::default();
    Reader::new(listing).read(i, &mut record).unwrap().unwrap();
    record
}

pub(super) fn refused(request: &ImportRequest) -> String {
    let error = import(request).unwrap_err();
    assert!(matches!(error.kind(), Kind::Data | Kind::Usage));
    error.to_string()
}

#[test]
fn class_folders_may_be_nested_empty_and_named_in_any_script() {
    let dir = tempfile::tempdir().unwrap();
    files(
        dir.path(),
        &[
            ("träume/b.JPG", JPEG),
            ("träume/deep/deeper/a.png", GREY_PNG),
            ("猫/1.jpeg", JPEG),
            ("Zebra/z.jpg", JPEG),
            ("empty/", b""),
            ("empty/notes.txt", b"x"),
            ("Zebra/.DS_Store", b"x"),
            ("readme.md", b"x"),
        ],
    );
    let import = import(&of(dir.path())).unwrap();
    assert_eq!((import.format, import.splits.len()), (Format::Folder, 1));
    let listing = &import.splits[0].1;
    assert_eq!(listing.classes, ["Zebra", "empty", "träume", "猫"]);
    let expected = [
        ("Zebra/z.jpg", Some(0)),
        ("träume/b.JPG", Some(2)),
        ("träume/deep/deeper/a.png", Some(2)),
        ("猫/1.jpeg", Some(3)),
    ];
    assert_eq!(told(listing), expected);
    let warnings = listing.warnings.join("\n");
    assert!(warnings.contains("1 classes have no image and keep their label: \"empty\""), "{warnings}");
    for part in ["readme.md", "hidden", "end in \"txt\""] {
        assert!(warnings.contains(part), "{warnings}");
    }
    let record = read(listing, 2);
    assert_eq!((record.fields[0].codec, &record.fields[0].bytes[..]), (Codec::Png, GREY_PNG));
    assert_eq!(record.fields[0].shape[2], 1);
    assert_eq!(read(listing, 0).fields[0].codec, Codec::Jpeg);
    assert_eq!(listing.bytes(), 3 * JPEG.len() as u64 + GREY_PNG.len() as u64);
    // The second look is the same as the first.
    let (mut a, mut b) = (blake3::Hasher::new(), blake3::Hasher::new());
    listing.hash_into(&mut a);
    super::import(&of(dir.path())).unwrap().splits[0].1.hash_into(&mut b);
    assert_eq!(a.finalize(), b.finalize());
}

#[test]
fn a_folders_two_splits_have_one_list_of_classes() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &[("train/a/1.jpg", JPEG), ("train/b/1.jpg", JPEG), ("val/b/2.jpg", JPEG)]);
    let found = import(&of(dir.path())).unwrap();
    assert_eq!(found.splits[0].0, Some("train"));
    assert_eq!((found.splits[1].0, told(&found.splits[1].1)), (Some("val"), vec![("b/2.jpg", Some(1))]));
    assert_eq!(found.splits[1].1.classes, ["a", "b"]);
    files(dir.path(), &[("val/c/3.jpg", JPEG)]);
    assert!(refused(&of(dir.path())).contains("\"c\" is none of the 2 classes"));
    // Names in another order, and WordNet's words for folders of ids.
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &[("a/1.jpg", JPEG), ("b/1.jpg", JPEG), ("classes.txt", b"b\na\nc\n")]);
    let found = import(&of(dir.path())).unwrap();
    assert_eq!(told(&found.splits[0].1), [("a/1.jpg", Some(1)), ("b/1.jpg", Some(0))]);
    assert_eq!(found.splits[0].1.classes, ["b", "a", "c"]);
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &[("n00000002/1.jpg", JPEG), ("n00000001/1.jpg", JPEG)]);
    let words = dir.path().join("words.list");
    fs::write(&words, "n00000002 a dog, hound\nn00000001 a cat\n").unwrap();
    let found = import(&ImportRequest { class_names: Some(words), ..of(dir.path()) }).unwrap();
    assert_eq!(found.splits[0].1.classes, ["a cat", "a dog, hound"]);
    assert_eq!(told(&found.splits[0].1)[1], ("n00000002/1.jpg", Some(1)));
}

#[test]
fn folders_that_cannot_be_are_told() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refused(&of(dir.path())).contains("holds no class folders"));
    assert!(refused(&of(&dir.path().join("gone"))).contains("no such folder"));
    files(dir.path(), &[("a/1.gif", b"GIF")]);
    let text = refused(&of(dir.path()));
    assert!(text.contains("there is no sample") && text.contains("end in \"gif\""), "{text}");
    std::os::unix::fs::symlink(dir.path(), dir.path().join("a/loop")).unwrap();
    assert!(refused(&of(dir.path())).contains("is a link to a folder that it lies in"));
    fs::remove_file(dir.path().join("a/loop")).unwrap();
    // A link to an image is an image; a link to nothing is an error, not a missing sample.
    files(dir.path(), &[("a/1.jpg", JPEG)]);
    std::os::unix::fs::symlink(dir.path().join("a/1.jpg"), dir.path().join("a/2.jpg")).unwrap();
    assert_eq!(import(&of(dir.path())).unwrap().splits[0].1.len(), 2);
    std::os::unix::fs::symlink("/nowhere", dir.path().join("a/3.jpg")).unwrap();
    assert!(refused(&of(dir.path())).contains("3.jpg"));
    fs::remove_file(dir.path().join("a/3.jpg")).unwrap();
    use std::os::unix::ffi::OsStrExt;
    fs::write(dir.path().join("a").join(std::ffi::OsStr::from_bytes(b"\xff.jpg")), JPEG).unwrap();
    assert!(refused(&of(dir.path())).contains("not UTF-8"));
}

const WNIDS: [&str; 3] = ["n00000001", "n00000002", "n00000003"];

/// A training tar of three classes, whose tars stand in no order, and a validation tar of four images.
pub(super) fn imagenet() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let class = |wnid: &str, n: usize| {
        let names: Vec<String> = (0..n).map(|i| format!("{wnid}_{i}.JPEG")).collect();
        tar(&names.iter().map(|name| (name.as_str(), JPEG)).collect::<Vec<_>>())
    };
    let train = tar(&[
        ("n00000003.tar", &class(WNIDS[2], 1)),
        ("n00000001.tar", &class(WNIDS[0], 2)),
        ("n00000002.tar", &class(WNIDS[1], 1)),
    ]);
    let val: Vec<String> = (1..=4).rev().map(|i| format!("ILSVRC2012_val_{i:08}.JPEG")).collect();
    let val = tar(&val.iter().map(|name| (name.as_str(), GREY_PNG)).collect::<Vec<_>>());
    files(dir.path(), &[("ILSVRC2012_img_train.tar", &train), ("ILSVRC2012_img_val.tar", &val)]);
    files(
        dir.path(),
        &[("synset_words.txt", b"n00000001 crane\nn00000002 goldfish, Carassius\nn00000003 crane\n")],
    );
    dir
}

#[test]
fn imagenet_is_read_out_of_its_tars() {
    let dir = imagenet();
    files(
        dir.path(),
        &[("imagenet_2012_validation_synset_labels.txt", b"n00000003\nn00000001\nn00000002\nn00000001\n")],
    );
    let found = import(&of(dir.path())).unwrap();
    assert_eq!(
        (found.format, found.meta["class_ids"].as_str()),
        (Format::Imagenet, "n00000001 n00000002 n00000003")
    );
    let (train, val) = (&found.splits[0].1, &found.splits[1].1);
    assert_eq!(train.classes, ["crane (n00000001)", "goldfish, Carassius", "crane (n00000003)"]);
    let expected = [
        ("n00000001/n00000001_0.JPEG", Some(0)),
        ("n00000001/n00000001_1.JPEG", Some(0)),
        ("n00000002/n00000002_0.JPEG", Some(1)),
        ("n00000003/n00000003_0.JPEG", Some(2)),
    ];
    assert_eq!(told(train), expected);
    let labels: Vec<i64> = told(val).iter().filter_map(|(_, l)| *l).collect();
    assert_eq!((labels, val.key(0)), (vec![2, 0, 1, 0], "ILSVRC2012_val_00000001.JPEG"));
    assert_eq!((val.classes.len(), &read(train, 1).fields[0].bytes[..]), (3, JPEG));
    assert_eq!(read(val, 3).fields[0].codec, Codec::Png);
}

#[test]
fn the_validation_labels_may_be_written_in_five_ways() {
    let cases: [(&str, &[u8]); 3] = [
        ("val.txt", b"ILSVRC2012_val_00000002.JPEG 0\nILSVRC2012_val_00000001.JPEG 2\nILSVRC2012_val_00000003.JPEG 1\nILSVRC2012_val_00000004.JPEG 0\n"),
        ("LOC_val_solution.csv", b"ImageId,PredictionString\nILSVRC2012_val_00000002,n00000001 1 2 3 4 \nILSVRC2012_val_00000001,n00000003 1 2 3 4 n00000003 5 6 7 8\nILSVRC2012_val_00000003,n00000002 1 2 3 4\nILSVRC2012_val_00000004,n00000001 9 9 9 9\n"),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"7\n9\n8\n9\n"),
    ];
    for (name, bytes) in cases {
        let dir = imagenet();
        files(
            dir.path(),
            &[
                (name, bytes),
                ("map_clsloc.txt", b"n00000003 7 crane\nn00000002 8 goldfish\nn00000001 9 crane\n"),
            ],
        );
        let found = import(&of(dir.path())).unwrap();
        let labels: Vec<i64> = told(&found.splits[1].1).iter().filter_map(|(_, l)| *l).collect();
        assert_eq!(labels, [2, 0, 1, 0], "{name}");
    }
    // The kit as distributed: packed, with its own table of numbers.
    let dir = imagenet();
    fs::remove_file(dir.path().join("synset_words.txt")).unwrap();
    let table = mat_file(&[
        (9, "n00000001", "crane"),
        (8, "n00000002", "goldfish, Carassius"),
        (7, "n00000003", "hen"),
    ]);
    let kit = tar(&[
        ("ILSVRC2012_devkit_t12/readme.txt", b"x"),
        ("ILSVRC2012_devkit_t12/data/meta.mat", &table),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"7\n9\n8\n9\n"),
    ]);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&kit).unwrap();
    files(dir.path(), &[("ILSVRC2012_devkit_t12.tar.gz", &packed.finish().unwrap())]);
    let found = import(&of(dir.path())).unwrap();
    let labels: Vec<i64> = told(&found.splits[1].1).iter().filter_map(|(_, l)| *l).collect();
    assert_eq!((labels, &found.splits[0].1.classes[2][..]), (vec![2, 0, 1, 0], "hen"));
    // Without the training tar the list says which classes there are.
    fs::remove_file(dir.path().join("ILSVRC2012_img_train.tar")).unwrap();
    let found = import(&of(dir.path())).unwrap();
    assert_eq!((found.splits.len(), found.splits[0].1.classes.len()), (1, 3));
}

#[test]
fn what_is_wrong_with_imagenets_files_is_told() {
    let truth = |lines: &str| {
        let dir = imagenet();
        let path = dir.path().join("labels");
        fs::write(&path, lines).unwrap();
        refused(&ImportRequest { ground_truth: Some(path), ..of(dir.path()) })
    };
    assert!(truth("n00000001\nn00000001\n").contains("holds 2 labels, but"));
    assert!(truth("1\n2\n3\n4\n").contains("line 1: what class number 1 is"));
    assert!(truth("x\n").contains("\"x\" is neither"));
    assert!(truth("n00000001\nn00000001\nn00000009\nn00000001\n").contains("n00000009"));
    assert!(truth("ILSVRC2012_val_00000001.JPEG 0\n").contains("no label for ILSVRC2012_val_00000002.JPEG"));
    assert!(truth("ILSVRC2012_val_00000001.JPEG 0\nn00000001\n").contains("some do not"));
    assert!(truth("a 7\nb 1\n").contains("no label for"));
    let text = truth("n00000001\nn00000001\nn00000009\nn00000001\n");
    assert!(
        text.ends_with("has the class n00000009, which is none of the 3 classes of the training tar"),
        "{text}"
    );
    let dir = imagenet();
    assert!(refused(&of(dir.path())).contains("--ground-truth"));
    files(dir.path(), &[("synset_words.txt", b"crane\n")]);
    let text = refused(&of(dir.path()));
    assert!(
        text.contains("words.txt: line 1 is \"crane\", which does not begin with a WordNet id"),
        "{text}"
    );
    // The file that is meant is named.
    fs::remove_file(dir.path().join("synset_words.txt")).unwrap();
    files(dir.path(), &[("LOC_synset_mapping.txt", b"crane\n")]);
    assert!(refused(&of(dir.path())).contains("LOC_synset_mapping.txt: line 1 is"));
    files(dir.path(), &[("LOC_synset_mapping.txt", b"n00000001 a\nn00000001 b\n")]);
    assert!(refused(&of(dir.path())).contains("line 2: n00000001 is there twice"));
    let dir = imagenet();
    files(dir.path(), &[("ILSVRC2012_img_train.tar", &tar(&[("a.jpg", JPEG)]))]);
    assert!(refused(&of(dir.path())).contains("holds no class tars"));
}

/// A MATLAB file with the kit's table, one structure for each row.
fn mat_file(rows: &[(u16, &str, &str)]) -> Vec<u8> {
    fn element(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut out = match data.len() {
            n @ 1..=4 => ((n as u32) << 16 | kind).to_le_bytes().to_vec(),
            n => [kind.to_le_bytes(), (n as u32).to_le_bytes()].concat(),
        };
        out.extend(data);
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }
    fn matrix(class: u8, dims: [i32; 2], name: &str, rest: Vec<u8>) -> Vec<u8> {
        let dims = dims.map(i32::to_le_bytes).concat();
        let flags = [u32::from(class).to_le_bytes(), [0; 4]].concat();
        element(14, &[element(6, &flags), element(5, &dims), element(1, name.as_bytes()), rest].concat())
    }
    let text = |t: &str| {
        let units: Vec<u8> = t.encode_utf16().flat_map(u16::to_le_bytes).collect();
        matrix(4, [1, t.len() as i32], "", element(4, &units))
    };
    let names: Vec<u8> = ["ILSVRC2012_ID", "WNID", "words", "gloss"]
        .iter()
        .flat_map(|n| {
            let mut name = n.as_bytes().to_vec();
            name.resize(16, 0);
            name
        })
        .collect();
    let mut fields = [element(5, &16i32.to_le_bytes()), element(1, &names)].concat();
    for (id, wnid, words) in rows {
        fields.extend(matrix(6, [1, 1], "", element(4, &id.to_le_bytes())));
        fields.extend(text(wnid));
        fields.extend(text(words));
        fields.extend(text(""));
    }
    let table = matrix(2, [rows.len() as i32, 1], "synsets", fields);
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&table).unwrap();
    let packed = packed.finish().unwrap();
    let mut out = vec![b' '; 124];
    out.extend(b"\x00\x01IM");
    out.extend(15u32.to_le_bytes());
    out.extend((packed.len() as u32).to_le_bytes());
    out.extend(packed);
    out
}

#[test]
fn a_matlab_table_is_read_and_damage_is_no_panic() {
    let file = mat_file(&[(1, "n00000001", "crane"), (2, "n00000002", "")]);
    let rows = mat::synsets(&file).unwrap();
    assert_eq!(rows[0], mat::Synset { id: 1, wnid: "n00000001".into(), words: "crane".into() });
    assert_eq!((rows.len(), rows[1].id, rows[1].words.as_str()), (2, 2, ""));
    for cut in 0..file.len() {
        assert!(mat::synsets(&file[..cut]).is_err(), "cut at {cut}");
    }
    for at in 124..file.len() {
        for bit in 0..8 {
            let mut bent = file.clone();
            bent[at] ^= 1 << bit;
            // Any answer will do.
            drop(mat::synsets(&bent));
        }
    }
}

#[test]
fn splits_have_the_names_that_people_give_them() {
    let splits = |folders: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        for folder in folders {
            files(dir.path(), &[(&format!("{folder}/a/1.jpg"), JPEG), (&format!("{folder}/b/2.jpg"), JPEG)]);
        }
        import(&of(dir.path())).map(|found| {
            let warnings = found.splits.iter().flat_map(|(_, l)| l.warnings.clone()).collect::<String>();
            let of = |(split, listing): &(Option<&'static str>, Listing)| {
                (
                    *split,
                    listing.path.file_name().unwrap().to_string_lossy().into_owned(),
                    listing.classes.len(),
                )
            };
            (found.splits.iter().map(of).collect::<Vec<_>>(), warnings)
        })
    };
    for (folders, train, eval) in [
        (&["train", "valid"][..], "train", "valid"),
        (&["Train", "Val"], "Train", "Val"),
        (&["TRAINING", "test"], "TRAINING", "test"),
        (&["train", "val", "test"], "train", "val"),
    ] {
        let (found, warnings) = splits(folders).unwrap();
        assert_eq!(found, [(Some("train"), train.into(), 2), (Some("val"), eval.into(), 2)], "{folders:?}");
        assert_eq!(warnings.contains("left out the folder \"test\""), folders.len() == 3, "{warnings}");
    }
    for (folder, split) in [("val", "val"), ("Validation", "val"), ("train", "train")] {
        assert_eq!(splits(&[folder]).unwrap().0, [(Some(split), folder.into(), 2)]);
    }
    // Classes that are called so.
    let (found, _) = splits(&["train", "car"]).unwrap();
    assert_eq!((found[0].0, found[0].2), (None, 2));
    assert!(splits(&["train", "Train"]).unwrap_err().to_string().contains("two folders for training"));
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &[("a/1.jpg", JPEG), ("b/1.jpg", JPEG)]);
    let file = Some(dir.path().join("x"));
    let e = refused(&ImportRequest { ground_truth: file.clone(), ..of(dir.path()) });
    assert!(e.contains("--ground-truth: is for imagenet, and") && e.ends_with("is folder"), "{e}");
    assert!(refused(&ImportRequest { root: file.clone(), ..of(dir.path()) }).contains("--root: is for csv"));
    let e = refused(&ImportRequest { class_names: file, ..of(Path::new("digits")) });
    assert!(e.contains("--class-names") && e.ends_with("digits is set"), "{e}");
}

#[test]
fn cifar_files_become_images_with_channels_last() {
    let dir = tempfile::tempdir().unwrap();
    let record = |labels: &[u8], base: u8| {
        let planes =
            (0..3u8).flat_map(|c| (0..1024).map(move |i| base.wrapping_add(c * 50).wrapping_add(i as u8)));
        [labels.to_vec(), planes.collect()].concat()
    };
    for i in 1..=5u8 {
        files(dir.path(), &[(&format!("cifar-10-batches-bin/data_batch_{i}.bin"), &record(&[i], i))]);
    }
    files(
        dir.path(),
        &[("cifar-10-batches-bin/test_batch.bin", &[record(&[9], 0), record(&[0], 1)].concat())],
    );
    let names: String = (0..10).map(|i| format!("class {i}\n")).collect();
    files(dir.path(), &[("cifar-10-batches-bin/batches.meta.txt", format!("{names}\n").as_bytes())]);
    let found = import(&of(dir.path())).unwrap();
    let (train, test) = (&found.splits[0].1, &found.splits[1].1);
    assert_eq!(
        (found.format, train.len(), test.len(), &train.classes[9][..]),
        (Format::Cifar, 5, 2, "class 9")
    );
    assert_eq!(told(train)[4], ("data_batch_5/00000", Some(5)));
    let pixels = &read(train, 1).fields[0];
    assert_eq!((&pixels.shape[..], &pixels.bytes[..6]), (&[32, 32, 3][..], &[2, 52, 102, 3, 53, 103][..]));
    files(dir.path(), &[("cifar-10-batches-bin/data_batch_3.bin", &[1; 3072])]);
    assert!(refused(&of(dir.path())).contains("no whole records of 3073"));

    let dir = tempfile::tempdir().unwrap();
    let two = [record(&[4, 99], 7), record(&[19, 0], 8)].concat();
    files(dir.path(), &[("train.bin", &two), ("test.bin", &record(&[1, 100], 9))]);
    assert!(refused(&of(dir.path())).contains("label 100"));
    files(dir.path(), &[("test.bin", &record(&[1, 2], 9))]);
    let found = import(&of(dir.path())).unwrap();
    let record = read(&found.splits[0].1, 0);
    assert_eq!(told(&found.splits[0].1), [("train/00000", Some(99)), ("train/00001", Some(0))]);
    assert_eq!(
        (&record.fields[0].bytes[..3], &record.fields[1].bytes[..]),
        (&[7, 57, 107][..], &4i64.to_le_bytes()[..])
    );
}

#[test]
fn what_training_opens_can_be_packed_as_well() {
    let found = import(&of(Path::new("digits"))).unwrap();
    assert_eq!((found.format, found.splits.len()), (Format::Set, 2));
    let listing = &found.splits[1].1;
    assert_eq!((listing.key(3), listing.classes.len()), ("val/00000003", 10));
    let record = read(listing, 3);
    assert_eq!((record.fields.len(), &record.fields[0].shape[..]), (1, &[8, 8, 1][..]));
}

#[test]
fn samples_that_changed_or_are_no_images_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    files(
        dir.path(),
        &[
            ("a/1.jpg", JPEG),
            ("a/2.jpg", b"no image"),
            ("a/3.jpg", &JPEG[..JPEG.len() - 20]),
            ("a/4.jpg", b""),
        ],
    );
    let found = import(&of(dir.path())).unwrap();
    let listing = &found.splits[0].1;
    let reader = Reader::new(listing);
    let mut record = Record::default();
    let problems: Vec<String> = (1..4).map(|i| reader.read(i, &mut record).unwrap().unwrap_err()).collect();
    assert!(problems[0].contains("no JPEG or PNG") && problems[1].contains("cut off"), "{problems:?}");
    assert!(problems[2].contains("empty"), "{problems:?}");
    fs::write(dir.path().join("a/1.jpg"), [JPEG, b"x"].concat()).unwrap();
    assert!(reader.read(0, &mut record).unwrap_err().to_string().contains("has changed since"));
    fs::remove_file(dir.path().join("a/1.jpg")).unwrap();
    assert!(reader.read(0, &mut record).unwrap_err().to_string().contains("1.jpg"));
}

#[test]
fn formats_are_guessed_from_what_lies_there() {
    let cases: [(&[&str], Option<Format>); 8] = [
        (&["a/1.jpg"], Some(Format::Folder)),
        (&["train/a/1.jpg", "val/a/1.jpg"], Some(Format::Folder)),
        (&["x.tar"], Some(Format::Webdataset)),
        (&["train/x.tar", "val/x.tar"], Some(Format::Webdataset)),
        (&["ILSVRC2012_img_val.tar"], Some(Format::Imagenet)),
        (&["train-images-idx3-ubyte.gz"], Some(Format::Set)),
        (&["train.bin", "test.bin"], Some(Format::Cifar)),
        (&["notes.txt"], None),
    ];
    for (names, format) in cases {
        let dir = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| files(dir.path(), &[(name, b"")]));
        assert_eq!(guess(dir.path()).ok(), format, "{names:?}");
    }
    assert!(guess(Path::new("digits")).is_ok());
}
