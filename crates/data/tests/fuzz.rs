//! Files of every format that is read, damaged at random: an error or a value may come of them, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fuzzing;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use fuzzing::{below, mutate, pick, run, scratch};
use phalanx_data::{
    BadImages, Codec, Error, FieldSpec, Format, Images, ImportRequest, Limits, Loader, LoaderConfig, Mode,
    PackRank, PackRequest, PackSource, Picture, Plan, Record, RecordField, Result, Sample, SampleField,
    Schema, SetInfo, ShardSet, ShardWriter, Source, Synth, SynthCodec, SynthConfig, Threads, Transform,
    Value, contact_sheet, finished_shard, import, inspect, pack, repair, seal, verify,
};
use phalanx_host::rng::Stream;
use phalanx_host::{DType, Pool};

/// Small images that a generator makes.
fn pictures() -> Synth {
    let config = SynthConfig {
        classes: 3,
        images: 12,
        val: 0,
        size: [24, 40],
        vary: 0.3,
        codec: SynthCodec::Jpeg(80),
        seed: 1,
    };
    Synth::new(&config, false).unwrap()
}

fn jpeg(id: u64) -> (Vec<u8>, Vec<usize>) {
    let mut record = Record::default();
    pictures().read(id, &mut record).unwrap();
    let image = record.fields.swap_remove(0);
    (image.bytes, image.shape)
}

/// A set of two shards: images, labels and texts.
fn write_set(dir: &Path) -> SetInfo {
    let image = FieldSpec { variable: true, ..FieldSpec::image([0, 0, 3], 255.0) };
    let info = SetInfo {
        name: "fuzz".into(),
        fields: vec![image, FieldSpec::label(), FieldSpec::array("text", DType::U8, &[0], true)],
        classes: vec!["a".into(), "b".into(), "c".into()],
        meta: BTreeMap::from([("source".into(), "nowhere".into())]),
    };
    let mut shards = Vec::new();
    for number in 0..2 {
        let mut writer = ShardWriter::create(dir, number, &info).unwrap();
        for id in u64::from(number) * 4..u64::from(number) * 4 + 4 {
            let ((bytes, shape), text) = (jpeg(id), format!("this is {id}"));
            let fields = [
                SampleField { codec: Codec::Jpeg, shape: &shape, bytes: &bytes },
                SampleField { codec: Codec::Raw, shape: &[text.len()], bytes: text.as_bytes() },
            ];
            writer.add(&Sample { key: &text, label: Some((id % 3) as i64), fields: &fields }).unwrap();
        }
        shards.push(writer.finish().unwrap());
    }
    seal(dir, &info, &shards).unwrap();
    info
}

/// Does with a set what can be done with it.
fn use_set(dir: &Path) {
    let sound = verify(dir, 1, &|_| ()).is_ok_and(|report| report.is_sound());
    let Ok(set) = ShardSet::open(dir) else {
        assert!(!sound, "a set that is sound cannot be opened");
        return;
    };
    let mut record = Record::default();
    // A manifest may promise any number of records.
    for id in (0..set.len().min(12)).chain([set.len(), u64::MAX]) {
        let _ = (set.read(id, &mut record), set.label(id), set.entry(id), set.shard_of(id), set.key_hash(id));
    }
    if set.len() < 1000 {
        let _ = (inspect(&set), contact_sheet(&set, 4, 2, 8));
    }
}

/// Length of the header of a manifest or an index: magic, version, CRC32C and length of what follows, a hash, a CRC32C
/// of itself.
const HEADER: usize = 64;

/// Makes the checksums of a manifest or an index fit again.
fn reseal(bytes: &mut [u8], is_manifest: bool) {
    let Some((head, payload)) = bytes.split_first_chunk_mut::<HEADER>() else { return };
    head[12..16].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    head[16..24].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    if is_manifest {
        head[24..56].copy_from_slice(blake3::hash(payload).as_bytes());
    }
    let crc = crc32c::crc32c(&head[..60]);
    head[60..].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn damaged_manifests_and_lists_are_errors() {
    let dir = scratch();
    write_set(dir.path());
    // A list of bad records to damage as well.
    let data = dir.path().join("shard-00001.dat");
    let mut bytes = fs::read(&data).unwrap();
    bytes[100] ^= 1;
    fs::write(&data, &bytes).unwrap();
    assert_eq!(repair(dir.path(), 1, &|_| ()).unwrap().quarantined.len(), 1);
    let names = ["dataset.rkyv", "dataset.rkyv", "dataset.rkyv", "quarantine.json", "dataset.json"];
    let whole: Vec<Vec<u8>> = names.iter().map(|name| fs::read(dir.path().join(name)).unwrap()).collect();
    run("manifest", 8, 400, |r| {
        let which = below(r, names.len());
        let mut bytes = whole[which].clone();
        if names[which] == "dataset.rkyv" && below(r, 10) < 9 {
            mutate(r, &mut bytes, HEADER);
            reseal(&mut bytes, true);
        } else {
            mutate(r, &mut bytes, 0);
        }
        let path = dir.path().join(names[which]);
        fs::write(&path, bytes).unwrap();
        use_set(dir.path());
        if below(r, 8) == 0 {
            let _ = repair(dir.path(), 1, &|_| ());
        }
        for (name, bytes) in names.iter().zip(&whole) {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
    });
}

#[test]
fn damaged_indexes_are_errors() {
    let dir = scratch();
    let info = write_set(dir.path());
    let names = ["shard-00000.idx", "shard-00001.idx", "dataset.rkyv", "dataset.json"];
    let whole: Vec<Vec<u8>> = names.iter().map(|name| fs::read(dir.path().join(name)).unwrap()).collect();
    run("index", 8, 400, |r| {
        let which = below(r, 2);
        let mut bytes = whole[which].clone();
        let forged = below(r, 10) < 9;
        mutate(r, &mut bytes, if forged { HEADER } else { 0 });
        if forged {
            reseal(&mut bytes, false);
        }
        fs::write(dir.path().join(names[which]), bytes).unwrap();
        use_set(dir.path());
        // A manifest that vouches for it.
        let shards: Result<Vec<_>> = (0..2).map(|number| finished_shard(dir.path(), number, &info)).collect();
        if let Ok(shards) = shards
            && let [Some(first), Some(second)] = &shards[..]
            && seal(dir.path(), &info, &[first.clone(), second.clone()]).is_ok()
        {
            use_set(dir.path());
        }
        for (name, bytes) in names.iter().zip(&whole) {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
    });
}

/// Tars of samples: usual ones, long names in either fashion, a class tar within a tar.
fn tars() -> Vec<(&'static str, Vec<u8>)> {
    let member = |builder: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    let mut plain = tar::Builder::new(Vec::new());
    for id in 0..3u64 {
        member(&mut plain, &format!("{id:04}.jpg"), &jpeg(id).0);
        member(&mut plain, &format!("{id:04}.cls"), (id % 2).to_string().as_bytes());
        member(&mut plain, &format!("{id:04}.json"), b"{\"a\": 1}");
    }
    let mut long = tar::Builder::new(Vec::new());
    let name = "n".repeat(150);
    member(&mut long, &format!("{name}.jpg"), &jpeg(3).0);
    member(&mut long, &format!("{name}.cls"), b"1");
    let mut pax = tar::Builder::new(Vec::new());
    pax.append_pax_extensions([("path", "ümläut/a.jpg".as_bytes()), ("comment", b"no".as_slice())]).unwrap();
    member(&mut pax, "a.jpg", &jpeg(4).0);
    pax.append_pax_extensions([("path", "ümläut/a.cls".as_bytes())]).unwrap();
    member(&mut pax, "a.cls", b"0");
    let mut class = tar::Builder::new(Vec::new());
    member(&mut class, "n01440764_1.JPEG", &jpeg(5).0);
    member(&mut class, "n01440764_2.JPEG", &jpeg(6).0);
    let mut nested = tar::Builder::new(Vec::new());
    member(&mut nested, "n01440764.tar", &class.into_inner().unwrap());
    vec![
        ("a.tar", plain.into_inner().unwrap()),
        ("a.tar", long.into_inner().unwrap()),
        ("a.tar", pax.into_inner().unwrap()),
        ("ILSVRC2012_img_train.tar", nested.into_inner().unwrap()),
    ]
}

/// What no header should say: paths that climb, absolute ones, sizes without end, sorts of members.
const ODD_FIELDS: &[&[u8]] = &[
    b"../../x\0",
    b"/etc/x\0",
    b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"77777777777\0",
    b"00000000000\0",
    b"-1\0",
    b"1",
    b"2",
    b"5",
    b"g",
    b"x",
    b"L",
    b"K",
    b"S",
];

/// Makes the checksums of all headers fit again, as far as blocks look like headers.
fn sum_headers(bytes: &mut [u8]) {
    for block in bytes.as_chunks_mut::<512>().0 {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

#[test]
fn damaged_tars_are_errors() {
    let (tars, dir) = (tars(), scratch());
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    let mut imported = 0;
    run("tar", 8, 600, |r| {
        let (name, whole) = pick(r, &tars);
        let mut bytes = whole.clone();
        if below(r, 2) == 0 {
            // A field of a header: the name, the size, the sort, the magic, the prefix.
            let blocks: Vec<usize> =
                (0..bytes.len() / 512).filter(|b| bytes[b * 512 + 257..][..5] == *b"ustar").collect();
            let at =
                pick(r, &blocks) * 512 + *pick(r, &[0, 100, 124, 124, 124, 156, 156, 157, 257, 263, 345]);
            let new: &&[u8] = pick(r, ODD_FIELDS);
            for (byte, new) in bytes[at..].iter_mut().zip(*new) {
                *byte = *new;
            }
        } else {
            mutate(r, &mut bytes, 0);
        }
        if below(r, 8) > 0 {
            sum_headers(&mut bytes);
        }
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join(name), bytes).unwrap();
        let format = if name.len() > 5 { Format::Imagenet } else { Format::Webdataset };
        let request = ImportRequest { source: source.clone(), format: Some(format), ..Default::default() };
        if import(&request).is_ok() {
            imported += 1;
            let request = PackRequest {
                source: PackSource::Import(request),
                out: out.clone(),
                images: *pick(
                    r,
                    &[Images::Keep, Images::Resize { short: 9, quality: 70 }, Images::Raw { side: 7 }],
                ),
                bad: *pick(r, &[BadImages::Fail, BadImages::Skip]),
                check: r.u32() & 1 == 0,
                shard_bytes: 2000,
                threads: 1,
                force: true,
            };
            let done = pack(&request, PackRank { rank: 0, world: 1 }, &|| Ok::<(), Error>(()), &|_| ());
            if let Ok(Some(report)) = done {
                report.splits.iter().for_each(|split| use_set(&split.dir));
            }
        }
        let mut inside: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        inside.sort();
        let known = ["out", "source"];
        assert!(
            inside.iter().all(|name| known.iter().any(|k| name == k)),
            "{inside:?}: something climbed out"
        );
        let _ = (fs::remove_dir_all(&source), fs::remove_dir_all(&out));
    });
    assert!(imported > 0 || std::env::var_os("PHALANX_FUZZ_CASE").is_some(), "no mutant was a tar any more");
}

/// One image file as a set.
#[derive(Debug)]
struct One {
    schema: Schema,
    bytes: Vec<u8>,
    codec: Codec,
}

impl Source for One {
    fn name(&self) -> &str {
        "one"
    }

    fn len(&self) -> u64 {
        1
    }

    fn schema(&self) -> &Schema {
        &self.schema
    }

    fn read(&self, _: u64, record: &mut Record) -> Result<()> {
        record.reset(1);
        record.fields[0] =
            RecordField { bytes: self.bytes.clone(), shape: vec![24, 40, 3], codec: self.codec };
        Ok(())
    }

    fn label(&self, _: u64) -> Result<Option<i64>> {
        Ok(None)
    }
}

/// Decodes what transforms need of a file.
fn load(bytes: Vec<u8>, codec: Codec, rows: &[Transform], seed: u64) {
    let image = FieldSpec { variable: true, ..FieldSpec::image([64, 64, 3], 255.0) };
    let schema = Schema { fields: vec![image], classes: Vec::new() };
    let limits = Limits { max_pixels: 1 << 22, ..Limits::default() };
    let config = LoaderConfig {
        threads: Threads::Count(0),
        transforms: rows.to_vec(),
        limits,
        ..LoaderConfig::default()
    };
    let plan = Plan::new(1, 1, 1, 0..1, 1).unwrap();
    let set = Arc::new(One { schema, bytes, codec });
    let loader = Loader::new(set, &config, Mode::Train { seed }, plan, &Pool::new()).unwrap();
    for loaded in loader.flatten() {
        let pixels = loaded.batch.values::<f32>("image").unwrap();
        assert!(pixels.iter().all(|v| v.is_finite()));
    }
}

fn rows() -> Vec<Vec<Transform>> {
    let size = |name: &str, size: f64| Transform::new(name, &[("size", Value::Number(size))]).unwrap();
    let crop = size("random-resized-crop", 16.0);
    let resize = size("resize", 20.0);
    let middle = size("centre-crop", 16.0);
    vec![vec![crop], vec![resize, middle]]
}

/// Makes the CRC32s of a PNG file's chunks fit again.
fn sum_chunks(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(length) =
        bytes.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize)
    {
        let Some(content) = bytes.get(at + 4..(at + 8).saturating_add(length)) else { return };
        let mut crc = flate2::Crc::new();
        crc.update(content);
        let sum = crc.sum().to_be_bytes();
        let end = at + 8 + length;
        let Some(place) = bytes.get_mut(end..end + 4) else { return };
        place.copy_from_slice(&sum);
        at = end + 4;
    }
}

/// Where a file says its size: rows and columns, of two bytes in JPEG and four in PNG.
fn size_at(bytes: &[u8]) -> Option<(usize, usize)> {
    if bytes.starts_with(b"\x89PNG") {
        return (bytes.len() > 24).then_some((16, 4));
    }
    let frame = bytes.windows(2).position(|w| matches!(w, [0xff, 0xc0..=0xc2]))?;
    (frame + 9 <= bytes.len()).then_some((frame + 5, 2))
}

/// The size that a mutant claims is made small: what large ones cost is tested by one case, not by each.
fn shrink(r: &mut Stream, bytes: &mut [u8]) {
    let Some((at, width)) = size_at(bytes) else { return };
    let number = |at: usize| bytes[at..at + width].iter().fold(0u64, |n, &b| n << 8 | u64::from(b));
    if number(at).saturating_mul(number(at + width)) > 1 << 22 {
        bytes[at..at + 2 * width].fill(0);
        bytes[at + width - 1] = r.u32() as u8;
        bytes[at + 2 * width - 1] = r.u32() as u8;
    }
}

fn fuzz_images(name: &str, codec: Codec, corpus: &[Vec<u8>]) {
    let rows = rows();
    let mut decoded = 0;
    run(name, 9, 700, |r| {
        let mut bytes = pick(r, corpus).clone();
        match below(r, 10) {
            // The beginning of one and the end of another.
            0 => {
                let other = pick(r, corpus);
                bytes.truncate(below(r, bytes.len()));
                bytes.extend_from_slice(&other[below(r, other.len())..]);
            }
            // Headers and tables are a small part of a file.
            1..=4 => {
                let mut rest = bytes.split_off(bytes.len().min(700));
                mutate(r, &mut bytes, 2);
                bytes.append(&mut rest);
            }
            _ => mutate(r, &mut bytes, 2),
        }
        shrink(r, &mut bytes);
        if codec == Codec::Png && below(r, 10) > 0 {
            sum_chunks(&mut bytes);
        }
        if let Ok(picture) = Picture::decode(&bytes) {
            assert_eq!(picture.pixels.len(), picture.height * picture.width * picture.channels);
            decoded += 1;
        }
        let rows: &Vec<Transform> = pick(r, &rows);
        load(bytes, codec, rows, r.u64());
    });
    assert!(
        decoded > 0 || std::env::var_os("PHALANX_FUZZ_CASE").is_some(),
        "no mutant was an image any more"
    );
}

fn golden(end: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pictures");
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == end));
    paths.sort();
    assert!(paths.len() >= 4, "{paths:?}");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn damaged_jpeg_files_are_errors_or_images() {
    let corpus: Vec<Vec<u8>> = golden("jpg").into_iter().chain((0..4).map(|id| jpeg(id).0)).collect();
    fuzz_images("jpeg", Codec::Jpeg, &corpus);
}

#[test]
fn damaged_png_files_are_errors_or_images() {
    let made = (0..3).map(|id| pictures().picture(id).unwrap().to_png().unwrap());
    let corpus: Vec<Vec<u8>> = golden("png").into_iter().chain(made).collect();
    fuzz_images("png", Codec::Png, &corpus);
}
