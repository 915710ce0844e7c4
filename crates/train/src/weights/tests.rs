//! Files that PyTorch has written (tests/golden/weights.py), and files that want to do harm.

use proptest::prelude::*;

use super::archive::Archive;
use super::*;
use crate::task::Array;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/weights").join(name)
}

/// The script's formula.
fn formula(number: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((7 * i + 3 * number) % 16) as f32 / 8.0 - 1.0).collect()
}

fn problem(bytes: &[u8]) -> String {
    torch::read(bytes).unwrap_err()
}

#[test]
fn files_of_every_format_hold_the_same_tensors() {
    let first = read(&golden("plain.pth")).unwrap();
    assert_eq!(first.arrays.len(), 8);
    let wanted: [(&str, &[usize]); 7] = [
        ("conv1.weight", &[4, 3, 3, 3]),
        ("bn1.weight", &[4]),
        ("bn1.bias", &[4]),
        ("bn1.running_mean", &[4]),
        ("bn1.running_var", &[4]),
        ("fc.weight", &[5, 4]),
        ("fc.bias", &[5]),
    ];
    for (number, (name, shape)) in wanted.into_iter().enumerate() {
        let array = &first.arrays[name];
        assert_eq!(array.shape, shape, "{name}");
        assert_eq!(array.floats().unwrap(), formula(number, shape.iter().product()), "{name}");
    }
    assert_eq!(first.arrays["bn1.num_batches_tracked"], Array::new(&[], &[7i64]));
    for name in ["legacy.pth", "protocol4.pth", "no-crc.pth"] {
        let other = read(&golden(name)).unwrap();
        assert_eq!(other.arrays, first.arrays, "{name}");
        assert_ne!(other.origin.blake3, first.origin.blake3, "{name}");
    }
}

#[test]
fn views_share_storages_and_every_type_is_read() {
    for name in ["views.pth", "views-legacy.pth"] {
        let arrays = read(&golden(name)).unwrap().arrays;
        let floats = |name: &str| arrays[&format!("module.{name}")].floats().unwrap();
        let whole = formula(0, 24);
        let at = |places: &[usize]| places.iter().map(|&i| whole[i]).collect::<Vec<_>>();
        assert_eq!(floats("whole"), whole);
        let across: Vec<usize> = (0..24).map(|i| i % 4 * 6 + i / 4).collect();
        assert_eq!(
            (floats("transposed"), arrays["module.transposed"].shape.clone()),
            (at(&across), vec![6, 4])
        );
        assert_eq!(floats("slice"), at(&[6, 8, 10, 12, 14, 16]));
        assert_eq!(floats("column"), at(&[5, 11, 17, 23]));
        assert_eq!(floats("expanded"), [formula(1, 3), formula(1, 3)].concat());
        assert_eq!((floats("scalar"), arrays["module.scalar"].shape.len()), (formula(2, 1), 0));
        assert_eq!((floats("empty"), arrays["module.empty"].shape.clone()), (vec![], vec![0, 3]));
        for (number, name) in [(3, "parameter"), (4, "f64"), (5, "f16"), (6, "bf16")] {
            assert_eq!(floats(name), formula(number, floats(name).len()), "{name}");
        }
        for (name, values) in [("i32", [-1, 2]), ("i16", [-3, 4]), ("i8", [-5, 6])] {
            assert_eq!(arrays[&format!("module.{name}")], Array::new(&[2], &values.map(i64::from)), "{name}");
        }
        assert_eq!(arrays["module.bool"], Array::new(&[2], &[1u8, 0]));
    }
}

#[test]
fn what_is_no_tensor_is_named_and_not_executed() {
    let e = read(&golden("module.pth")).unwrap_err();
    assert!(e.to_string().contains("asks for torch.nn.modules.linear.Linear") && e.exit_code() == 3, "{e}");
    assert!(e.to_string().contains("state_dict()"), "{e}");
    // os.system("true"), as a file before PyTorch 1.6.
    let mut bytes = fs::read(golden("legacy.pth")).unwrap();
    let dict = bytes.windows(14).position(|w| w == b"ccollections\nO").unwrap();
    bytes.splice(dict.., *b"cposix\nsystem\nX\x04\0\0\0true\x85R.");
    assert!(problem(&bytes).contains("asks for posix.system"), "{}", problem(&bytes));
    for (bytes, say) in [
        (&b"\x80\x02cbuiltins\neval\n"[..], "builtins.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n", "_rebuild_tensor_v3"),
        (b"\x80\x02ctorch\nload\n", "torch.load"),
        (b"\x80\x02}h\x05.", "not kept"),
        (b"\x80\x02(u.", "empty stack"),
        (b"\x80\x02}b.", "empty stack"),
        (b"\x80\x02](K\x01K\x02u.", "no dictionary"),
        (b"\x80\x02}(K\x01u.", "without a value"),
        (b"\x80\x02K\x01K\x02R.", "no function"),
        (b"\x80\x02i", "opcode 0x69"),
        (b"\x80\x02X\xff\xff\xff\xff", "cut off"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "tuple belongs"),
    ] {
        let e = pickle::Pickle::read(bytes).unwrap_err();
        assert!(e.contains(say), "{e}");
    }
}

#[test]
fn other_files_say_what_they_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let try_read = |bytes: &[u8]| {
        let path = dir.path().join("w");
        fs::write(&path, bytes).unwrap();
        let e = read(&path).unwrap_err();
        assert_eq!(e.exit_code(), 3, "{e}");
        e.to_string()
    };
    assert!(try_read(b"").contains("neither a safetensors file nor one of torch.save"));
    assert!(try_read(&[0x89; 100]).contains("neither"));
    assert!(try_read(b"\x05\0\0\0\0\0\0\0{\"a\":").contains("safetensors"));
    let e = read(&dir.path().join("none")).unwrap_err();
    assert!(e.to_string().contains("no such file") && e.exit_code() == 2, "{e}");
    let e = read(dir.path()).unwrap_err();
    assert!(e.to_string().contains("not complete"), "{e}");
    let zip = fs::read(golden("plain.pth")).unwrap();
    assert!(try_read(&zip[..zip.len() - 1]).contains("zip directory is damaged or cut off"));
    // A byte of a tensor, under its checksum.
    let mut damaged = zip.clone();
    let entry = damaged.windows(14).position(|w| w == b"plain/data/0FB").unwrap();
    damaged[entry + 200] ^= 1;
    assert!(try_read(&damaged).contains("CRC-32"), "{}", try_read(&damaged));
    // The first is in the local header, which is not looked at; the directory's is.
    let renamed = |from: &[u8], to: &[u8]| {
        let at = zip.windows(from.len()).rposition(|w| w == from).unwrap();
        [&zip[..at], to, &zip[at + from.len()..]].concat()
    };
    assert!(try_read(&renamed(b"plain/data.pkl", b"plain/date.pkl")).contains("without PyTorch's data.pkl"));
    assert!(try_read(&renamed(b"plain/data/3", b"plain/data/9")).contains("no entry \"plain/data/3\""));
    assert!(try_read(&renamed(b"plain/data/3", b"plain/data/4")).contains("two entries"));
}

/// An archive of one entry whose numbers stand in zip64 records.
fn zip64(name: &[u8], contents: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 0];
    let word = |n: u32| n.to_le_bytes();
    let long = |n: usize| (n as u64).to_le_bytes();
    let extra = [&[1, 0, 24, 0][..], &long(contents.len()), &long(contents.len()), &long(0)].concat();
    bytes.extend(
        [&b"PK\x03\x04"[..], &[0; 14], &word(u32::MAX), &word(u32::MAX), &[name.len() as u8, 0, 0, 0]]
            .concat(),
    );
    bytes.extend([name, contents].concat());
    let directory = bytes.len();
    bytes.extend([&b"PK\x01\x02"[..], &[0; 16], &word(u32::MAX), &word(u32::MAX)].concat());
    bytes.extend(
        [&[name.len() as u8, 0, extra.len() as u8, 0][..], &[0; 10], &word(u32::MAX), name, &extra].concat(),
    );
    let record = bytes.len();
    bytes.extend([&b"PK\x06\x06"[..], &[0; 28], &long(1), &long(0), &long(directory)].concat());
    bytes.extend([&b"PK\x06\x07"[..], &word(0), &long(record), &word(1)].concat());
    bytes.extend([&b"PK\x05\x06"[..], &[0; 4], &[0xff; 12], &[0; 2]].concat());
    bytes
}

#[test]
fn archives_of_64_bits_are_read() {
    let bytes = zip64(b"a/data.pkl", b"contents");
    let archive = Archive::open(&bytes).unwrap();
    assert_eq!(archive.names().collect::<Vec<_>>(), ["a/data.pkl"]);
    assert_eq!(archive.get("a/data.pkl").unwrap(), b"contents");
    assert!(Archive::open(&bytes[..bytes.len() - 30]).is_err());
}

/// The pickle of `{"x": tensor}` whose storage "0" has `held` elements, as an archive.
fn archive_of(
    held: usize,
    sizes: &[i64],
    strides: &[i64],
    offset: i64,
) -> std::result::Result<Arrays, String> {
    let tuple = |numbers: &[i64]| {
        let each = numbers.iter().flat_map(|n| [&[0x8a, 8][..], &n.to_le_bytes()].concat());
        [b"(".to_vec(), each.collect(), b"t".to_vec()].concat()
    };
    let pickle = [
        b"\x80\x02}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ".to_vec(),
        [&[0x8a, 8][..], &offset.to_le_bytes()].concat(),
        tuple(sizes),
        tuple(strides),
        b"\x89}tRs.".to_vec(),
    ];
    let (parsed, storage) = (pickle::Pickle::read(&pickle.concat())?, vec![0u8; 4 * held]);
    let tensor = &parsed.tensors[0];
    let mut room = 8 * storage.len();
    let array = torch::gather(tensor, parsed.storages[0].kind, &storage, &mut room)?;
    Ok(Arrays::from([("x".into(), array)]))
}

#[test]
fn views_beyond_their_storage_are_refused() {
    assert_eq!(archive_of(6, &[2, 3], &[3, 1], 0).unwrap()["x"].shape, [2, 3]);
    assert_eq!(archive_of(6, &[1, 3], &[i64::MAX, 2], 1).unwrap()["x"].shape, [1, 3]);
    assert_eq!(archive_of(6, &[0, i64::MAX, 2], &[1, 1, 1], 99).unwrap()["x"].shape[0], 0);
    for (sizes, strides, offset) in [
        (&[2, 3][..], &[3, 1][..], 1),
        (&[2, 3], &[4, 1], 0),
        (&[6], &[1], i64::MAX),
        (&[2], &[i64::MAX], i64::MAX),
    ] {
        let e = archive_of(6, sizes, strides, offset).unwrap_err();
        assert!(e.contains("goes beyond its storage of 6 elements"), "{e}");
    }
    for (sizes, strides) in [(&[1 << 40][..], &[0][..]), (&[i64::MAX, i64::MAX], &[0, 0]), (&[100], &[0])] {
        let e = archive_of(6, sizes, strides, 0).unwrap_err();
        assert!(e.contains("larger than the file can hold"), "{e}");
    }
    assert!(archive_of(6, &[-1], &[1], 0).unwrap_err().contains("from 0 on"));
    assert!(archive_of(6, &[1], &[1, 1], 0).unwrap_err().contains("as many strides"));
    assert!(archive_of(6, &[1; 40], &[1; 40], 0).unwrap_err().contains("40 axes"));
}

#[test]
fn a_pickle_that_grows_by_copies_ends() {
    // A list of 1,000 pairs, made into a dictionary again and again.
    let mut bytes = b"\x80\x02](".to_vec();
    (0..1000).for_each(|_| bytes.extend(b"K\x01K\x02\x86"));
    bytes.extend(b"eq\x00ccollections\nOrderedDict\nq\x01");
    (0..40_000).for_each(|_| bytes.extend(b"h\x01h\x00\x85R"));
    bytes.push(b'.');
    let e = pickle::Pickle::read(&bytes).unwrap_err();
    assert!(e.contains("more than"), "{e}");
}

#[test]
fn long_keys_of_storages_are_not_copied() {
    let with_key = |len: usize| {
        let mut bytes = b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX".to_vec();
        bytes.extend((len as u32).to_le_bytes());
        bytes.extend(vec![b'7'; len]);
        bytes.extend(b"X\x03\0\0\0cpuK\x01tq\x00");
        (0..1000).for_each(|_| bytes.extend(b"h\x00Q"));
        bytes.push(b'.');
        pickle::Pickle::read(&bytes)
    };
    assert_eq!(with_key(64).unwrap().storages.len(), 1000);
    for len in [65, 1 << 20] {
        let e = with_key(len).unwrap_err();
        assert!(e.contains("longer than any of PyTorch's"), "{e}");
    }
}

fn any_file() -> impl Strategy<Value = Vec<u8>> {
    let names = vec!["plain.pth", "legacy.pth", "protocol4.pth", "views.pth", "views-legacy.pth"];
    prop::sample::select(names).prop_map(|name| fs::read(golden(name)).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever bytes there are: arrays that are as large as their shape says, or an error.
    #[test]
    fn damaged_files_never_panic(
        file in any_file(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = file;
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        if let Ok(arrays) = torch::read(&file) {
            for array in arrays.values() {
                prop_assert_eq!(array.bytes.len(), array.shape.iter().product::<usize>() * array.dtype.size());
                prop_assert!(array.bytes.len() <= 8 * file.len());
            }
        }
    }

    #[test]
    fn random_pickles_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = pickle::Pickle::read(&bytes);
        let _ = torch::read(&[b"PK\x03\x04", &bytes[..]].concat());
    }

    /// Only opcodes that do something, so that most pickles go on for a while.
    #[test]
    fn pickles_of_opcodes_never_panic(
        ops in prop::collection::vec(prop::sample::select(&b"(012NK)\x85\x86\x87t]lae}dsuRbq\x94hQ."[..]), 0..200),
    ) {
        let _ = pickle::Pickle::read(&ops);
    }
}
