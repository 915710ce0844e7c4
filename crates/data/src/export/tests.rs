use std::fs;
use std::path::Path;

use super::place::folder_names;
use super::*;
use crate::import::tests::{GREY_PNG, JPEG, files};
use crate::import::{ImportRequest, import};
use crate::pack::{BadImages, Images, PackRank, PackRequest, PackSource, pack};
use crate::{Kind, Picture};

fn packed(source: &Path, out: &Path) {
    let request = PackRequest {
        source: PackSource::Import(ImportRequest { source: source.to_owned(), ..Default::default() }),
        out: out.to_owned(),
        images: Images::Keep,
        bad: BadImages::Fail,
        check: false,
        shard_bytes: 1 << 20,
        threads: 1,
        force: false,
    };
    pack(&request, PackRank { rank: 0, world: 1 }, &|| Ok::<(), Error>(()), &|_| ()).unwrap();
}

fn request(set: &Path, out: &Path, format: ExportFormat) -> ExportRequest {
    ExportRequest { set: set.to_owned(), out: out.to_owned(), format, tar_bytes: 4000 }
}

/// The bytes and labels of all samples of what an importer finds, sorted.
fn samples(source: &Path) -> Vec<(Vec<u8>, Option<i64>)> {
    let found = import(&ImportRequest { source: source.to_owned(), ..Default::default() }).unwrap();
    let mut all = Vec::new();
    let mut record = Record::default();
    for (_, listing) in &found.splits {
        let reader = crate::import::Reader::new(listing);
        for i in 0..listing.len() {
            reader.read(i, &mut record).unwrap().unwrap();
            all.push((record.fields[0].bytes.clone(), listing.label(i)));
        }
    }
    all.sort();
    all
}

#[test]
fn what_is_exported_can_be_imported_with_the_same_labels() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // The classes' order is not that of their names, and one has no image.
    files(
        &at("source"),
        &[
            ("zoo/1.jpg", JPEG),
            ("zoo/2.png", GREY_PNG),
            ("Ärger/3.jpg", &[JPEG, b" "].concat()),
            ("b/empty.txt", b""),
            ("classes.txt", "zoo\nb\nÄrger\n".as_bytes()),
        ],
    );
    packed(&at("source"), &at("set"));
    for format in [ExportFormat::Webdataset, ExportFormat::Folder] {
        let out = at(&format!("{format:?}"));
        let report = export(&request(&at("set"), &out, format)).unwrap();
        assert_eq!((report.splits[0].records, report.splits[0].dir.clone()), (3, out.clone()));
        assert_eq!(samples(&out), samples(&at("source")), "{format:?}");
        assert!(!at(&format!("{format:?}.part")).exists());
        let found = import(&ImportRequest { source: out.clone(), ..Default::default() }).unwrap();
        assert_eq!(found.splits[0].1.classes.len(), 3, "{format:?}");
        let text = export(&request(&at("set"), &out, format)).unwrap_err();
        assert!(text.kind() == Kind::Usage && text.to_string().contains("not empty"), "{text}");
    }
    // The same set gives the same bytes.
    export(&request(&at("set"), &at("again"), ExportFormat::Webdataset)).unwrap();
    for name in ["000000.tar", "classes.txt"] {
        assert!(fs::read(at("again").join(name)).unwrap() == fs::read(at("Webdataset").join(name)).unwrap());
    }
}

#[test]
fn a_training_split_alone_comes_back_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    files(&at("source"), &[("train/b/1.jpg", JPEG), ("train/a/2.png", GREY_PNG), ("readme.txt", b"")]);
    packed(&at("source"), &at("set"));
    assert!(at("set/train/dataset.rkyv").exists());
    for format in [ExportFormat::Webdataset, ExportFormat::Folder] {
        let out = at(&format!("{format:?}"));
        export(&request(&at("set"), &out, format)).unwrap();
        let found = import(&ImportRequest { source: out.clone(), ..Default::default() }).unwrap();
        assert_eq!(found.splits.iter().map(|s| s.0).collect::<Vec<_>>(), [Some("train")], "{format:?}");
        assert_eq!(found.splits[0].1.classes, ["a", "b"], "{format:?}");
        assert_eq!(samples(&out), samples(&at("source")), "{format:?}");
    }
    // One archive, beside which there is no list of names.
    let alone = at("alone/train.tar");
    fs::create_dir_all(at("alone")).unwrap();
    fs::copy(at("Webdataset/train/000000.tar"), &alone).unwrap();
    let found = import(&ImportRequest { source: alone.clone(), ..Default::default() }).unwrap();
    assert_eq!(
        (found.splits[0].0, &found.splits[0].1.classes[..]),
        (None, &["0".to_owned(), "1".to_owned()][..])
    );
    assert_eq!(samples(&alone), samples(&at("source")));
    // A class may be called so.
    files(&at("class"), &[("train/1.jpg", JPEG)]);
    let found = import(&ImportRequest { source: at("class"), ..Default::default() }).unwrap();
    assert_eq!((found.splits[0].0, found.splits[0].1.classes.clone()), (None, vec!["train".to_owned()]));
}

#[test]
fn pixels_become_png_files_and_arrays_npy_files() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let report = export(&request(Path::new("digits"), &at("digits"), ExportFormat::Folder)).unwrap();
    assert_eq!(report.splits.len(), 2);
    let first = Picture::decode(&fs::read(at("digits").join("val/0/00000000.png")).unwrap_or_else(|_| {
        let class = fs::read_dir(at("digits").join("val/1")).unwrap().next().unwrap().unwrap();
        fs::read(class.path()).unwrap()
    }))
    .unwrap();
    // Sixteen shades are spread over all that a file can say.
    assert_eq!((first.height, first.channels), (8, 1));
    assert!(first.pixels.iter().max() > Some(&200));
    let total: u64 = report.splits.iter().map(|s| s.records).sum();
    assert_eq!(samples(&at("digits")).len() as u64, total);

    files(&at("source"), &[("a.jpg", JPEG), ("set.csv", b"file,target,text\na.jpg,0.5,\"one\ntwo\"\n")]);
    packed(&at("source/set.csv"), &at("set"));
    let out = at("tars");
    export(&request(&at("set"), &out, ExportFormat::Webdataset)).unwrap();
    let mut archive = tar::Archive::new(fs::File::open(out.join("000000.tar")).unwrap());
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        found.push((entry.path().unwrap().to_str().unwrap().to_owned(), bytes));
    }
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["00000000.jpg", "00000000.target.npy", "00000000.txt"]);
    let npy = &found[1].1;
    assert_eq!((npy.len(), &npy[128..], &found[2].1[..]), (132, &0.5f32.to_le_bytes()[..], &b"one\ntwo"[..]));
    // What is exported comes back.
    let found = import(&ImportRequest { source: out.clone(), ..Default::default() }).unwrap();
    let names: Vec<_> = found.splits[0].1.fields.iter().map(|f| (&*f.spec.name, &f.spec.shape[..])).collect();
    assert_eq!(names[1..], [("text", &[7][..]), ("target", &[])]);
    assert!(found.splits[0].1.warnings.is_empty());
    let head = std::str::from_utf8(&npy[10..128]).unwrap();
    assert!(
        head.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (), }") && head.ends_with('\n'),
        "{head}"
    );
    let error = export(&request(&at("set"), &at("no"), ExportFormat::Folder)).unwrap_err();
    assert!(error.kind() == Kind::Usage && error.to_string().contains("needs labels"), "{error}");
    assert!(!at("no").exists() && !at("no.part").exists());
}

#[test]
fn names_of_folders_are_safe_distinct_and_sorted() {
    let names = |classes: &[&str]| folder_names(&classes.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>());
    assert_eq!(names(&["a", "b"]), ["a", "b"]);
    assert_eq!(names(&["b", "a"]), ["0 b", "1 a"]);
    assert_eq!(names(&["a/b", "a:b"]), ["0 a_b", "1 a_b"]);
    assert_eq!(names(&["..", "/etc", ""]), ["0 _", "1 _etc", "2 _"]);
    assert_eq!(names(&[".hidden"]), ["_hidden"]);
    assert_eq!(names(&["é".repeat(300).as_str()])[0].chars().count(), 100);
    let many: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
    assert_eq!(folder_names(&many)[7], "007 7");
    let sorted = folder_names(&many);
    assert!(sorted.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn a_failed_export_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    files(&dir.path().join("source"), &[("a/1.jpg", JPEG), ("a/2.jpg", GREY_PNG)]);
    packed(&dir.path().join("source"), &dir.path().join("set"));
    let shard = dir.path().join("set/shard-00000.dat");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[100] ^= 1;
    fs::write(&shard, bytes).unwrap();
    for format in [ExportFormat::Webdataset, ExportFormat::Folder] {
        let error = export(&request(&dir.path().join("set"), &dir.path().join("out"), format)).unwrap_err();
        assert_eq!(error.kind(), Kind::Data);
        assert!(!dir.path().join("out").exists() && !dir.path().join("out.part").exists());
    }
    // What a killed export has left is no obstacle.
    files(&dir.path().join("new.part"), &[(MARK, b""), ("rubbish", b"x")]);
    let ask = request(Path::new("digits"), &dir.path().join("new"), ExportFormat::Webdataset);
    export(&ask).unwrap();
    assert!(!dir.path().join("new/rubbish").exists() && !dir.path().join("new").join(MARK).exists());
}

/// A folder beside the one to make was removed with all that was in it, whosever it was.
#[test]
fn a_folder_of_somebody_elses_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    files(&at("new.part"), &[("thesis.tex", b"x")]);
    files(&at("full"), &[("b", b"x"), ("a", b"x")]);
    files(dir.path(), &[("file", b"x")]);
    let fails = |out: &str, expected: &str| {
        let error = export(&request(Path::new("digits"), &at(out), ExportFormat::Webdataset)).unwrap_err();
        assert!(error.kind() == Kind::Usage && error.to_string().contains(expected), "{error}");
    };
    fails("new", "holds \"thesis.tex\"; remove it, or name another folder");
    fails("full", "it holds \"a\"; name a new folder");
    fails("file", "is a file; name a new folder");
    assert!(at("new.part/thesis.tex").exists() && !at("new").exists() && at("full/b").exists());
    let none =
        ExportRequest { tar_bytes: 0, ..request(Path::new("digits"), &at("x"), ExportFormat::Webdataset) };
    assert!(export(&none).unwrap_err().to_string().contains("--shard-mb: must be above 0"));
}
