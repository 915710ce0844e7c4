//! Tables of files.

use super::tests::*;
use super::*;

#[test]
fn tables_have_quotes_texts_targets_and_missing_files() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &[("img/a.jpg", JPEG), ("img/b, c.png", GREY_PNG), ("img/d\"e.jpg", JPEG)]);
    let table = "\u{feff}file,Label,text,target,note\r\n\
        img/a.jpg,dog,\"two\nlines, \"\"quoted\"\"\",-1.5,x\r\n\
        \r\n\
        \"img/b, c.png\",cat,plain,2e3,y\r\n\
        \"img/d\"\"e.jpg\",dog,,0,z\r\n\
        img/gone.jpg,emu,t,1,\r\n";
    files(dir.path(), &[("set.csv", table.as_bytes())]);
    let found = import(&of(&dir.path().join("set.csv"))).unwrap();
    let listing = &found.splits[0].1;
    assert_eq!(
        (found.format, &listing.classes[..]),
        (Format::Csv, &["cat", "dog", "emu"].map(str::to_owned)[..])
    );
    assert_eq!(told(listing), [("img/a.jpg", Some(1)), ("img/b, c.png", Some(0)), ("img/d\"e.jpg", Some(1))]);
    let record = read(listing, 0);
    assert_eq!(record.fields[1].bytes, (-1.5f32).to_le_bytes());
    assert_eq!(record.fields[2].bytes, b"two\nlines, \"quoted\"");
    assert_eq!(read(listing, 2).fields[2].bytes, b"");
    assert_eq!((listing.missing.len(), &listing.missing[0].key[..]), (1, "img/gone.jpg"));
    assert!(listing.missing[0].problem.contains("line 7"), "{}", listing.missing[0].problem);
    assert!(listing.warnings.join("").contains("note"));
    let with = |text: &str| {
        files(dir.path(), &[("set.csv", text.as_bytes())]);
        import(&of(&dir.path().join("set.csv")))
    };
    let listing = &with("path,class\nimg/a.jpg,7\n").unwrap().splits[0].1;
    assert_eq!((told(listing), listing.classes.len()), (vec![("img/a.jpg", Some(7))], 8));
    // Numbers that are none of classes are sorted as numbers; what a program wrote as 3.0 is 3.
    files(dir.path(), &[("img/1.jpg", JPEG), ("img/2.jpg", JPEG), ("img/3.jpg", JPEG)]);
    let labels = |a: &str, b: &str, c: &str| {
        let found = with(&format!("file,label\nimg/1.jpg,{a}\nimg/2.jpg,{b}\nimg/3.jpg,{c}\n")).unwrap();
        let listing = &found.splits[0].1;
        (told(listing).iter().map(|t| t.1.unwrap()).collect::<Vec<_>>(), listing.classes.join(" "))
    };
    assert_eq!(labels("10", "-1", "2"), (vec![2, 0, 1], "-1 2 10".to_owned()));
    assert_eq!(labels("0.5", "10.5", "9"), (vec![0, 2, 1], "0.5 9 10.5".to_owned()));
    assert_eq!(labels("0.50", "-1", "0.5"), (vec![1, 0, 1], "-1 0.5".to_owned()));
    assert_eq!(labels("nan", "-1", "inf"), (vec![2, 0, 1], "-1 inf nan".to_owned()));
    assert_eq!(labels("3.0", "0", "1.0"), (vec![3, 0, 1], "0 1 2 3".to_owned()));
    assert_eq!(labels("10", "b", "9"), (vec![0, 2, 1], "10 9 b".to_owned()));
    // Several classes, and several targets.
    let found =
        with("file,labels,targets\nimg/1.jpg,cat; dog,1;2.5\nimg/2.jpg,,0;0\nimg/3.jpg,bee,-1;3\n").unwrap();
    let listing = &found.splits[0].1;
    assert_eq!((found.meta["label_names"].as_str(), listing.classes.len()), ("bee\ncat\ndog", 0));
    let specs: Vec<_> = listing.fields.iter().map(|f| (&*f.spec.name, &f.spec.shape[..])).collect();
    assert_eq!(specs[1..], [("labels", &[2][..]), ("target", &[2])]);
    let numbers = |i: u64| bytemuck::pod_collect_to_vec::<u8, i64>(&read(listing, i).fields[1].bytes);
    assert_eq!([numbers(0), numbers(1), numbers(2)], [vec![1, 2], vec![], vec![0]]);
    assert_eq!(read(listing, 0).fields[1].shape, [2]);
    assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&read(listing, 2).fields[2].bytes), [-1.0, 3.0]);
    // Classes of files that are gone are classes.
    let found = with("file,labels\nimg/gone.jpg,ant\nimg/1.jpg,bee\n").unwrap();
    assert_eq!(found.meta["label_names"], "ant\nbee");
    // Labels are no must.
    let listing = &with("image\nimg/a.jpg\n").unwrap().splits[0].1;
    assert_eq!((told(listing), listing.classes.len()), (vec![("img/a.jpg", None)], 0));
    // Files may lie elsewhere than the table.
    files(dir.path(), &[("other/set.csv", b"file,label\na.jpg,0\n")]);
    let request =
        ImportRequest { root: Some(dir.path().join("img")), ..of(&dir.path().join("other/set.csv")) };
    assert_eq!(import(&request).unwrap().splits[0].1.len(), 1);
    let table = [
        ("", "is empty"),
        ("a,b\n1,2\n", "one of them `file`; it is a,b"),
        ("file,path\n", "two columns are the File"),
        ("file,label\nimg/a.jpg\n", "line 2: has 1 columns, and the header has 2"),
        ("file,label\nimg/a.jpg,\"x\n", "line 2: a quote is not closed"),
        ("file,label\nimg/a.jpg,\"x\"y\n", "line 2: something follows a closed quote"),
        ("file,label\nimg/a.jpg,x\"y\"\n", "line 2: a quote stands inside"),
        ("file,label\n../a.jpg,1\n", "line 2: \"../a.jpg\": its name climbs"),
        ("file,label\n/etc/passwd,1\n", "absolute"),
        ("file,label\nimg,1\n", "\"img\" is no regular file"),
        ("file,label\nimg/a.jpg,1\nimg/a.jpg,2\n", "two samples \"img/a.jpg\""),
        ("file,label\nimg/a.jpg,x\n\"img/b, c.png\",\n", "a row has none"),
        ("file,target\nimg/a.jpg,x\n", "line 2: the target \"x\" is no number"),
        ("file,target\nimg/a.jpg,nan\n", "line 2: the target \"nan\" is no number"),
        ("file,target\nimg/a.jpg,1;2\nimg/1.jpg,1\n", "line 3: has 1 targets, and the first row has 2"),
        ("file,target\nimg/a.jpg,\n", "line 2: has 0 targets"),
        ("file,label,labels\nimg/a.jpg,1,1\n", "a sample has one class or several"),
        ("file,label\nimg/a.jpg,99999999\n", "labels are below"),
        ("file,label\nimg/gone.jpg,1\n", "there is no sample"),
    ];
    for (text, expected) in table {
        let found = with(text).unwrap_err().to_string();
        assert!(found.contains(expected), "{found:?} lacks {expected:?}");
    }
    files(dir.path(), &[("set.csv", b"file\nimg/\xff.jpg\n")]);
    assert!(refused(&of(&dir.path().join("set.csv"))).contains("line 2: is not UTF-8"));
}

/// The first or the last of two equal names was taken, and a number beyond the list was no error.
#[test]
fn a_list_of_classes_must_say_which_class_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &[("1.jpg", JPEG), ("names", b"cat\ndog\ncat\n")]);
    let names = Some(dir.path().join("names"));
    let with = |table: &str| {
        files(dir.path(), &[("set.csv", table.as_bytes())]);
        import(&ImportRequest { class_names: names.clone(), ..of(&dir.path().join("set.csv")) })
    };
    let error = |table: &str| with(table).unwrap_err().to_string();
    assert!(error("file,label\n1.jpg,dog\n").contains("the class \"cat\" is there twice, as number 0 and 2"));
    for column in ["label", "labels"] {
        let text = error(&format!("file,{column}\n1.jpg,3\n"));
        assert!(text.contains("label \"3\": is none of the 3 classes"), "{text}");
    }
    // Numbers mean what they mean: ImageNet has two classes that are called crane.
    assert_eq!(with("file,label\n1.jpg,2\n").unwrap().splits[0].1.classes, ["cat", "dog", "cat"]);
    let folder = tempfile::tempdir().unwrap();
    files(folder.path(), &[("cat/1.jpg", JPEG), ("dog/1.jpg", JPEG), ("classes.txt", b"cat\ndog\ncat\n")]);
    assert!(refused(&of(folder.path())).contains("the class \"cat\" is there twice"));
}
