use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::Kind;
use crate::import::tests::tar;

/// One header block, with a right checksum, after `change` has had its way.
fn header(name: &str, kind: u8, size: u64, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut block);
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.resize(bytes.len().next_multiple_of(512), 0);
    out
}

const END: [u8; 1024] = [0; 1024];

fn walk(bytes: &[u8]) -> Result<Vec<Member>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let (opened, length) = open(file.path())?;
    let mut walker = Walker::new(&opened, file.path(), length)?;
    let mut all = Vec::new();
    while let Some(member) = walker.next()? {
        // What is listed can be read.
        assert!(member.offset + member.length <= length);
        walker.content(&member, usize::MAX)?;
        all.push(member);
    }
    Ok(all)
}

fn refused(bytes: &[u8]) -> String {
    let error = walk(bytes).unwrap_err();
    assert_eq!(error.kind(), Kind::Data);
    error.to_string()
}

#[test]
fn files_are_found_where_they_lie_under_short_long_and_foreign_names() {
    let long = format!("{}/{}.jpg", "folder".repeat(30), "é".repeat(60));
    let bytes = tar(&[("a.jpg", b"one"), (&long, b"two"), ("./b/./c.cls", b""), ("d", &[7; 513])]);
    let found = walk(&bytes).unwrap();
    let names: Vec<&str> = found.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["a.jpg", long.as_str(), "b/c.cls", "d"]);
    for (member, content) in found.iter().zip([&b"one"[..], b"two", b"", &[7; 513]]) {
        assert_eq!(&bytes[member.offset as usize..][..member.length as usize], content);
    }
    // POSIX: a prefix of its own, and attributes with the name and the size.
    let split = header("c.jpg", b'0', 3, |h| h[345..350].copy_from_slice(b"a/b/x"));
    let record = b"17 path=d/\xc3\xa9.jpg\n9 size=3\n20 mtime=12345.6789\n";
    let attributes = header("pax", b'x', record.len() as u64, |_| ());
    let lying = header("short", b'0', 0, |_| ());
    let folder = header("a/", b'5', 0, |_| ());
    let old_folder = header("b/", 0, 0, |_| ());
    let bytes = [
        folder,
        old_folder,
        split,
        padded(b"abc"),
        attributes,
        padded(record),
        lying,
        padded(b"def"),
        END.to_vec(),
        vec![0; 9000],
    ]
    .concat();
    let found = walk(&bytes).unwrap();
    let names: Vec<&str> = found.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["a/b/x/c.jpg", "d/é.jpg"]);
    assert_eq!(&bytes[found[1].offset as usize..][..found[1].length as usize], b"def");
    // A size in binary, and a checksum of signed bytes.
    let binary = header("big", b'0', 0, |h| {
        h[124..136].fill(0);
        (h[124], h[135]) = (0x80, 3);
    });
    assert_eq!(walk(&[binary, padded(b"ghi"), END.to_vec()].concat()).unwrap()[0].length, 3);
    let mut signed = header("\u{e9}", b'0', 0, |_| ());
    signed[148..156].fill(b' ');
    let sum: i64 = signed.iter().map(|&b| i64::from(b as i8)).sum();
    signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(walk(&[signed, END.to_vec()].concat()).unwrap()[0].name, "é");
    assert_eq!(walk(&END).unwrap(), []);
}

#[test]
fn an_archive_in_an_archive_is_walked_where_it_lies() {
    let inner = tar(&[("x.jpg", b"inside"), ("y.jpg", b"too")]);
    let bytes = tar(&[("first", b"12345"), ("class.tar", &inner)]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let (opened, length) = open(file.path()).unwrap();
    let mut outer = Walker::new(&opened, file.path(), length).unwrap();
    outer.next().unwrap();
    let tar = outer.next().unwrap().unwrap();
    let mut walker = outer.inner(&tar).unwrap();
    let first = walker.next().unwrap().unwrap();
    assert_eq!(&bytes[first.offset as usize..][..6], b"inside");
    assert_eq!(walker.next().unwrap().unwrap().name, "y.jpg");
    assert!(walker.next().unwrap().is_none() && walker.next().unwrap().is_none());
    assert!(outer.next().unwrap().is_none());
    // Damage inside is told with both names; it cannot reach beyond its own end.
    let mut bent = bytes.clone();
    bent[tar.offset as usize + 124..][..12].copy_from_slice(b"00000100000\0");
    std::fs::write(file.path(), &bent).unwrap();
    let (opened, length) = open(file.path()).unwrap();
    let mut outer = Walker::new(&opened, file.path(), length).unwrap();
    outer.next().unwrap();
    let tar = outer.next().unwrap().unwrap();
    let text = outer.inner(&tar).unwrap().next().unwrap_err().to_string();
    assert!(text.contains("class.tar") && text.contains("x.jpg") && text.contains("checksum"), "{text}");
}

#[test]
fn what_has_no_place_in_a_data_set_is_refused_by_name() {
    let entry = |name: &str, kind: u8| [header(name, kind, 0, |_| ()), END.to_vec()].concat();
    let pax = |record: &str, kind: u8| {
        let about = header("pax", kind, record.len() as u64, |_| ());
        [about, padded(record.as_bytes()), header("a", b'0', 0, |_| ()), END.to_vec()].concat()
    };
    let huge = header("a.jpg", b'0', 1 << 30, |_| ());
    let whole = tar(&[("a.jpg", &[1; 600]), ("b.jpg", &[2; 10])]);
    let mut bent = whole.clone();
    bent[3] ^= 1;
    let mut word = header("a.jpg", b'0', 0, |h| h[124..136].copy_from_slice(b"9999999999z\0"));
    word.extend(END);
    let endless: Vec<u8> =
        (0..20).flat_map(|_| [header("n", b'L', 2, |_| ()), padded(b"x\0")].concat()).collect();
    let long = header("n", b'L', 2 << 20, |_| ());
    let bomb = [long, vec![b'a'; 2 << 20], header("a", b'0', 0, |_| ()), END.to_vec()].concat();
    let negative = header("a", b'0', 0, |h| h[124..136].fill(0xff));
    let overflow = header("a", b'0', 0, |h| {
        h[124..136].fill(0xff);
        h[124..128].copy_from_slice(&[0x80, 0, 0, 0]);
    });
    let table: Vec<(Vec<u8>, &[&str])> = vec![
        (entry("../a.jpg", b'0'), &["../a.jpg", "byte 0", "climbs out"]),
        (entry("a/../../b.jpg", b'0'), &["climbs out"]),
        (entry("..", b'5'), &["climbs out"]),
        (entry("/etc/passwd", b'0'), &["/etc/passwd", "absolute"]),
        (entry("l", b'1'), &["hard link"]),
        (entry("l", b'2'), &["symbolic link"]),
        (entry("d", b'3'), &["a device"]),
        (entry("d", b'4'), &["a device"]),
        (entry("p", b'6'), &["a pipe"]),
        (entry("s", b'S'), &["sparse"]),
        (entry("s", b'Q'), &["no use"]),
        (entry(".", b'0'), &["name of a directory"]),
        (pax("22 GNU.sparse.major=1\n", b'x'), &["sparse"]),
        (pax("14 path=../ab\n", b'x'), &["climbs out"]),
        (pax("11 path=ab\n", b'g'), &["all files after it"]),
        (pax("99 path=ab\n", b'x'), &["attributes is broken"]),
        (pax("11 path=abc", b'x'), &["attributes is broken"]),
        (pax("path", b'x'), &["attributes is broken"]),
        (pax("12 size=abc\n", b'x'), &["attributes is broken"]),
        (pax("29 size=18446744073709551615\n", b'x'), &["claims 18446744073709551615"]),
        ([huge, END.to_vec()].concat(), &["a.jpg", "claims 1073741824 bytes", "ends 1024 bytes after"]),
        (word, &["size is no number"]),
        ([negative, END.to_vec()].concat(), &["size is no number"]),
        ([overflow, END.to_vec()].concat(), &["claims 18446744073709551615"]),
        (bent, &["checksum is wrong", "byte 0"]),
        (whole[..whole.len() - 1024].to_vec(), &["cut short"]),
        (whole[..whole.len() - 512].to_vec(), &["cut short"]),
        (whole[..700].to_vec(), &["claims 600 bytes"]),
        ([&whole[..], &whole[..]].concat(), &["something follows"]),
        ([&whole[..], &vec![0; 2 << 20]].concat(), &["follow the archive's end"]),
        (vec![], &["cut short"]),
        (vec![7; 100], &["cut short"]),
        (vec![7; 600], &["checksum"]),
        ([endless, END.to_vec()].concat(), &["describe no file"]),
        ([header("n", b'L', 2, |_| ()), padded(b"x\0"), END.to_vec()].concat(), &["was announced"]),
        (bomb, &["describes the next file in 2097152 bytes"]),
        (b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), &["gzip", "gunzip -k"]),
        (b"BZh91AY".to_vec(), &["bzip2"]),
        (b"\xfd7zXZ\0\0".to_vec(), &["xz"]),
        (b"\x28\xb5\x2f\xfd\0".to_vec(), &["zstd"]),
    ];
    for (bytes, parts) in table {
        let text = refused(&bytes);
        for part in parts {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }
    assert!(super::pax(b"5 a=\n").is_ok());
    let text = open(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(text.contains("no regular file"), "{text}");
    assert!(refused(&[header("a\u{0}", b'0', 0, |h| h[0] = 0xff), END.to_vec()].concat()).contains("UTF-8"));
}

#[test]
fn paths_are_tidied_or_refused() {
    for (raw, tidy) in [("a", "a"), ("./a//b/", "a/b"), ("./", ""), ("a/./b", "a/b"), ("..a/b..", "..a/b..")]
    {
        assert_eq!(safe_path(raw.as_bytes()).unwrap(), tidy);
    }
    for raw in ["/", "/a", "..", "a/..", "../a", "a\0b"] {
        assert!(safe_path(raw.as_bytes()).is_err(), "{raw:?}");
    }
    assert!(safe_path(&[b'a'; 5000]).is_err());
}

proptest! {
    /// Whatever is done to an archive, walking it ends, stays inside it, and gives no name that climbs.
    #[test]
    fn mutated_archives_never_lead_outside(
        changes in proptest::collection::vec((0usize..8192, any::<u8>()), 0..20),
        cut in 0usize..8192,
        fix in any::<bool>(),
    ) {
        let inner = tar(&[("x.jpg", &[5; 700]), ("y.jpg", b"too")]);
        let long = "n".repeat(150);
        let mut bytes = tar(&[("a.jpg", &[1; 600]), (&long, b"1"), ("c.tar", &inner)]);
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if fix {
            // Checksums that fit again let a mutation get further in.
            for block in bytes.chunks_exact_mut(512).filter(|b| &b[257..262] == b"ustar") {
                block[148..156].fill(b' ');
                let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        bytes.truncate(bytes.len() - cut % bytes.len());
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let (opened, length) = open(file.path()).unwrap();
        let Ok(mut walker) = Walker::new(&opened, file.path(), length) else { return Ok(()) };
        let mut files = 0;
        while let Ok(Some(member)) = walker.next() {
            prop_assert!(member.offset + member.length <= length);
            prop_assert!(!member.name.is_empty() && !member.name.starts_with('/'));
            prop_assert!(member.name.split('/').all(|part| part != ".." && !part.is_empty()));
            if let Ok(mut inside) = walker.inner(&member) {
                while let Ok(Some(inner)) = inside.next() {
                    prop_assert!(inner.offset >= member.offset);
                    prop_assert!(inner.offset + inner.length <= member.offset + member.length);
                }
            }
            files += 1;
            prop_assert!(files <= 32);
        }
    }
}
