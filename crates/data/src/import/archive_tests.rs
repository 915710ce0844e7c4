//! Archives whose members are samples.

use std::fs;

use super::tests::*;
use super::*;

#[test]
fn webdataset_tars_are_grouped_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let first = tar(&[
        ("0001.jpg", JPEG),
        ("0001.cls", b"3\n"),
        ("0001.txt", "ein Föhn".as_bytes()),
        ("0001.npy", b"x"),
        ("sub.dir/0002.txt", b"other"),
        ("sub.dir/0002.cls", b"0"),
        ("sub.dir/0002.PNG", GREY_PNG),
    ]);
    let second = tar(&[("0001.png", GREY_PNG), ("0001.txt", b"third"), ("0001.cls", b"1")]);
    files(dir.path(), &[("a.tar", &first), ("b.tar", &second)]);
    let found = import(&of(dir.path())).unwrap();
    let listing = &found.splits[0].1;
    assert_eq!((found.format, listing.classes.len()), (Format::Webdataset, 4));
    assert_eq!(told(listing), [("a/0001", Some(3)), ("a/sub.dir/0002", Some(0)), ("b/0001", Some(1))]);
    let record = read(listing, 1);
    assert_eq!((&record.fields[0].bytes[..], &record.fields[1].bytes[..]), (GREY_PNG, &b"other"[..]));
    assert_eq!((&*listing.fields[1].spec.name, &listing.fields[1].spec.shape[..]), ("text", &[9][..]));
    assert!(listing.warnings.join("").contains("\"npy\""));
    // A list of the classes counts, and one tar alone is a set, too.
    files(dir.path(), &[("classes.txt", b"a\nb\nc\nd\ne\n")]);
    assert_eq!(import(&of(&dir.path().join("a.tar"))).unwrap().splits[0].1.classes.len(), 5);
    let error = |members: &[(&str, &[u8])]| {
        let dir = tempfile::tempdir().unwrap();
        files(dir.path(), &[("x.tar", &tar(members))]);
        refused(&of(dir.path()))
    };
    assert!(error(&[("1.jpg", JPEG), ("1.cls", b"cat")]).contains("\"cat\" is no label"));
    assert!(error(&[("1.jpg", JPEG), ("1.cls", b"-1")]).contains("no label"));
    assert!(error(&[("1.jpg", JPEG), ("1.cls", &[b'1'; 100])]).contains("has 100 bytes"));
    assert!(error(&[("1.jpg", JPEG), ("1.png", JPEG)]).contains("two files of one kind"));
    assert!(error(&[("1.jpg", JPEG), ("1.cls", b"1"), ("2.jpg", JPEG)]).contains("\"x/2\": it has no label"));
    assert!(error(&[("1.jpg", JPEG), ("1.txt", b"1"), ("2.jpg", JPEG)]).contains("differ in having a .txt"));
    assert!(error(&[("1.jpg", JPEG), ("2.jpg", JPEG), ("1.jpg", JPEG)]).contains("two files of one kind"));
    assert!(error(&[("1.txt", b"")]).contains("samples without an image"));
}

#[test]
fn files_of_a_sample_are_found_wherever_they_lie_in_a_tar() {
    let dir = tempfile::tempdir().unwrap();
    let archive = tar(&[
        ("1.jpg", JPEG),
        ("2.jpg", GREY_PNG),
        // What a Mac's tar puts beside each file.
        ("._1.cls", b"AppleDouble"),
        ("1.cls", b"4"),
        ("__MACOSX/3.jpg", JPEG),
        ("2.cls", b"1"),
    ]);
    files(dir.path(), &[("x.tar", &archive)]);
    let found = import(&of(dir.path())).unwrap();
    let listing = &found.splits[0].1;
    assert_eq!(told(listing), [("x/1", Some(4)), ("x/2", Some(1))]);
    assert_eq!(read(listing, 1).fields[0].bytes, GREY_PNG);
    assert!(listing.warnings.join("").contains("left out 2 files without an ending, or hidden"));
}

/// A Mac puts a twin beside each file that it copies to a foreign disk.
#[test]
fn twins_of_archives_are_no_archives() {
    let dir = tempfile::tempdir().unwrap();
    let archive = tar(&[("1.jpg", JPEG), ("1.cls", b"0")]);
    files(dir.path(), &[("x.tar", &archive), ("._x.tar", b"AppleDouble"), ("__MACOSX/x.tar", b"x")]);
    let found = import(&of(dir.path())).unwrap();
    assert_eq!(told(&found.splits[0].1), [("x/1", Some(0))]);
    let dir = imagenet();
    files(dir.path(), &[("val.txt", b"ILSVRC2012_val_00000001.JPEG 0\nILSVRC2012_val_00000002.JPEG 0\n")]);
    files(dir.path(), &[("._ILSVRC2012_img_train.tar", b"AppleDouble")]);
    fs::remove_file(dir.path().join("ILSVRC2012_img_val.tar")).unwrap();
    assert_eq!(import(&of(dir.path())).unwrap().splits[0].1.len(), 4);
    // Alone they are nothing.
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &[("._x.tar", b"AppleDouble")]);
    assert!(guess(dir.path()).is_err());
}

/// Images and labels under other keys made a set without labels.
#[test]
fn labels_that_belong_to_no_image_are_told() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &[("x.tar", &tar(&[("img/1.jpg", JPEG), ("lab/1.cls", b"0")]))]);
    let text = refused(&of(dir.path()));
    assert!(text.contains("x.tar") && text.contains("\"lab/1\" has a label and no image"), "{text}");
    // Where images have labels, one too many is left out and told.
    files(dir.path(), &[("x.tar", &tar(&[("1.jpg", JPEG), ("1.cls", b"0"), ("2.cls", b"1")]))]);
    let found = import(&of(dir.path())).unwrap();
    assert!(found.splits[0].1.warnings.join("").contains("left out 1 samples without an image"));
}

/// A file as NumPy writes it.
fn npy(kind: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\0", &(text.len() as u16).to_le_bytes()[..], text.as_bytes(), elements].concat()
}

#[test]
fn arrays_with_a_name_are_fields() {
    let dir = tempfile::tempdir().unwrap();
    let target = |x: f32| npy("<f4", "(2,)", &[x, -x].map(f32::to_le_bytes).concat());
    let labels = |all: &[i64]| {
        let bytes: Vec<u8> = all.iter().flat_map(|l| l.to_le_bytes()).collect();
        npy("<i8", &format!("({},)", all.len()), &bytes)
    };
    let (one, two) = ((target(1.0), labels(&[3, 5])), (target(2.0), labels(&[])));
    let members: [(&str, &[u8]); 8] = [
        ("1.target.npy", &one.0),
        ("1.jpg", JPEG),
        ("1.labels.npy", &one.1),
        ("1.npy", b"x"),
        ("2.labels.npy", &two.1),
        ("2.txt", b"t"),
        ("2.jpg", JPEG),
        ("2.target.npy", &two.0),
    ];
    files(dir.path(), &[("x.tar", &tar(&[&members[..], &[("1.txt", b"u")]].concat()))]);
    let found = import(&of(dir.path())).unwrap();
    let listing = &found.splits[0].1;
    let specs: Vec<_> =
        listing.fields.iter().map(|f| (&*f.spec.name, &f.spec.shape[..], f.spec.variable)).collect();
    assert_eq!(specs[1..], [("text", &[1][..], true), ("labels", &[2], true), ("target", &[2], false)]);
    let (record, empty) = (read(listing, 0), read(listing, 1));
    assert_eq!(bytemuck::pod_collect_to_vec::<u8, i64>(&record.fields[2].bytes), [3, 5]);
    assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&record.fields[3].bytes), [1.0, -1.0]);
    assert_eq!((&empty.fields[2].shape[..], empty.fields[2].bytes.len()), (&[0][..], 0));
    assert!(listing.warnings.join("").contains("end in \"npy\""), "{:?}", listing.warnings);
    // Rows of one length in each split, and not the same one.
    let row = |n: usize| npy("|u1", &format!("({n},)"), &vec![7; n]);
    let split = |n: usize| tar(&[("1.jpg", JPEG), ("1.extra.npy", &row(n))]);
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &[("train/x.tar", &split(2)), ("val/x.tar", &split(3))]);
    let found = import(&of(dir.path())).unwrap();
    assert!(found.splits.iter().all(|(_, listing)| listing.fields[1].spec.variable));
    let error = |a: &[u8], b: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        let members = [("1.jpg", JPEG), ("1.t.npy", a), ("2.jpg", JPEG), ("2.t.npy", b)];
        files(dir.path(), &[("x.tar", &tar(&members))]);
        import(&of(dir.path()))
    };
    let (flat, table) = (row(4), npy("|u1", "(2, 2)", &[0; 4]));
    assert!(
        error(&flat, &table)
            .unwrap_err()
            .to_string()
            .contains("sample \"2\": its .t.npy file has the shape [2, 2]")
    );
    assert!(
        error(&flat, &target(0.0))
            .unwrap_err()
            .to_string()
            .contains("holds F32, and that of the first sample U8")
    );
    let unknown = npy("<i4", "(1,)", &[0; 4]);
    assert!(error(&flat, &unknown).unwrap_err().to_string().contains("differ in having a .t.npy file"));
    let found = error(&unknown, &unknown).unwrap();
    assert!(found.splits[0].1.warnings.join("").contains("the first one holds <i4"));
}

#[test]
fn a_description_may_hold_the_label() {
    let labels = |members: &[(&str, &[u8])]| {
        let dir = tempfile::tempdir().unwrap();
        files(dir.path(), &[("x.tar", &tar(members))]);
        import(&of(dir.path())).map(|found| {
            let listing = &found.splits[0].1;
            let labels: Vec<_> = told(listing).iter().map(|t| t.1).collect();
            (labels, listing.warnings.join(""), listing.classes.len())
        })
    };
    let both: [(&str, &[u8]); 5] = [
        ("1.json", b"{\"label\": 2, \"x\": 1}"),
        ("1.jpg", JPEG),
        // What a file of its own says counts.
        ("2.json", b"{\"label\": 0}"),
        ("2.cls", b"1"),
        ("2.jpg", JPEG),
    ];
    assert_eq!(labels(&both).unwrap(), (vec![Some(2), Some(1)], String::new(), 3));
    for none in [&b"{\"x\": 1}"[..], b"no json", b"[1]", b"{\"label\": null}"] {
        assert_eq!(labels(&[("1.json", none), ("1.jpg", JPEG)]).unwrap(), (vec![None], String::new(), 0));
    }
    for wrong in [&b"{\"label\": \"cat\"}"[..], b"{\"label\": -1}", b"{\"label\": 1.5}"] {
        let (found, warnings, _) = labels(&[("1.json", wrong), ("1.jpg", JPEG)]).unwrap();
        assert!(
            found == [None] && warnings.contains("labels in .json files, which are no numbers"),
            "{warnings}"
        );
    }
    let error = labels(&[&both[..2], &[("3.json", b"{}"), ("3.jpg", JPEG)]].concat()).unwrap_err();
    assert!(error.to_string().contains("\"x/3\": it has no label and others have"), "{error}");
}
