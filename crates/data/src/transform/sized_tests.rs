//! Images of varying size and image files through rows that give them one; signals; what is refused.

use std::path::Path;

use phalanx_host::DType;
use phalanx_host::rng::Key;

use super::*;
use crate::{Codec, LoaderConfig, Picture, Place, RecordField, Resample};

pub(super) fn rows(texts: &[&str]) -> Vec<Transform> {
    #[derive(serde::Deserialize)]
    struct Table {
        rows: Vec<Transform>,
    }
    toml::from_str::<Table>(&format!("rows = [{}]", texts.join(", "))).unwrap().rows
}

fn config(train: &[&str], eval: Option<&[&str]>) -> LoaderConfig {
    LoaderConfig { transforms: rows(train), eval_transforms: eval.map(rows), ..LoaderConfig::default() }
}

/// Images of any size in three colours.
pub(super) fn varying() -> FieldSpec {
    FieldSpec { variable: true, ..FieldSpec::image([500, 500, 3], 255.0) }
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pictures").join(name))
        .unwrap()
}

pub(super) fn file(name: &str) -> RecordField {
    let codec = if name.ends_with("png") { Codec::Png } else { Codec::Jpeg };
    RecordField { bytes: golden(name), shape: vec![500, 500, 3], codec }
}

fn bytes(pipeline: &mut Pipeline, field: &RecordField, key: Option<Key>) -> Vec<u8> {
    let mut out = vec![1; pipeline.output_shape().iter().product()];
    pipeline.run(field, key, Output::Bytes(&mut out)).unwrap();
    out
}

fn pipeline(texts: &[&str], training: bool) -> Pipeline {
    Pipeline::new(&rows(texts), &varying(), training, Pixels::Bytes).unwrap()
}

const PIECE: &str = "{ name = \"random-resized-crop\", size = 24 }";

#[test]
fn evaluation_rows_are_torchvisions_at_odd_sizes() {
    let numbers: serde_json::Value = serde_json::from_slice(&golden("pictures.json")).unwrap();
    for case in numbers["framed"].as_array().unwrap() {
        let [h, w] = [0, 1].map(|i| case["size"][i].as_u64().unwrap() as usize);
        let at = |i: usize| {
            let (y, x, c) = (i / 3 / w, i / 3 % w, i % 3);
            let wave = (x * (c + 2) * 7 + y * (3 - c) * 5) % 256;
            (if x + y > w { 255 - wave } else { wave }) as u8
        };
        let record =
            RecordField { bytes: (0..h * w * 3).map(at).collect(), shape: vec![h, w, 3], codec: Codec::Raw };
        let crop = format!("{{ name = \"centre-crop\", size = {} }}", case["crop"]);
        let resize = format!("{{ name = \"resize\", size = {} }}", case["to"]);
        let texts = if case["to"].is_null() { vec![&crop[..]] } else { vec![&resize[..], &crop] };
        let mut pipeline = pipeline(&texts, false);
        let ours: String = bytes(&mut pipeline, &record, None).iter().map(|b| format!("{b:02x}")).collect();
        assert!(ours == case["rgb"].as_str().unwrap(), "{h}x{w} {texts:?}");
    }
}

#[test]
fn files_are_what_their_pixels_are() {
    for name in [
        "ycc420.jpg",
        "ycc444.jpg",
        "grey-odd.jpg",
        "restarts.jpg",
        "progressive.jpg",
        "rgb.png",
        "palette.png",
    ] {
        let picture = Picture::decode(&golden(name)).unwrap().into_rgb();
        let shape = vec![picture.height, picture.width, 3];
        let raw = RecordField { bytes: picture.pixels.clone(), shape, codec: Codec::Raw };
        // Pieces that are not made smaller by half: nothing is decoded smaller.
        let large = PIECE.replace("24", "[60, 52]");
        for texts in [[&large[..], "{ name = \"flip\" }"], [&large, "{ name = \"vertical-flip\" }"]] {
            let mut pipeline = pipeline(&texts, true);
            for i in 0..20 {
                let key = Some(Key::new(i));
                assert!(
                    bytes(&mut pipeline, &file(name), key) == bytes(&mut pipeline, &raw, key),
                    "{name} {i}"
                );
            }
        }
        // In evaluation a piece is the middle of the resized image, never decoded smaller: 27 for 24.
        let mut pipeline = pipeline(&[PIECE, "{ name = \"flip\", p = 1 }"], false);
        let place = Place::middle(picture.height, picture.width, 27, 24);
        let wanted = u8::resize(&picture.pixels, [picture.height, picture.width, 3], place);
        assert!(bytes(&mut pipeline, &file(name), None) == wanted, "{name}");
    }
}

#[test]
fn pieces_of_files_decoded_smaller_are_nearly_the_same() {
    let picture = Picture::decode(&golden("ycc420.jpg")).unwrap();
    let raw = RecordField {
        bytes: picture.pixels,
        shape: vec![picture.height, picture.width, 3],
        codec: Codec::Raw,
    };
    let mut pipeline = pipeline(&["{ name = \"random-resized-crop\", size = 8, scale_min = 0.5 }"], true);
    let mut other = 0;
    for i in 0..50 {
        let [a, b] =
            [&file("ycc420.jpg"), &raw].map(|record| bytes(&mut pipeline, record, Some(Key::new(i))));
        let off = a.iter().zip(&b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64;
        // The golden picture has edges of full strength at every other pixel.
        assert!(off < 12.0, "{i}: {off}");
        other += usize::from(a != b);
    }
    assert!(other > 25, "{other}");
}

#[test]
fn bytes_with_their_normalisation_are_the_floats() {
    let texts = [
        PIECE,
        "{ name = \"vertical-flip\" }",
        "{ name = \"normalise\", mean = [0.4, 0.5, 0.6], std = [0.2, 0.3, 0.1] }",
    ];
    let erase = [PIECE, "{ name = \"random-erasing\", p = 1 }", "{ name = \"grey\", p = 0.5 }"];
    for texts in [&texts, &erase] {
        let mut of_bytes = pipeline(texts, true);
        let mut of_floats = Pipeline::new(&rows(texts), &varying(), true, Pixels::Floats).unwrap();
        let normalise = of_bytes.normalise().unwrap().clone();
        assert_eq!((of_bytes.pixels(), of_floats.pixels()), (Pixels::Bytes, Pixels::Floats));
        for i in 0..10 {
            let mut floats = vec![0.0; 24 * 24 * 3];
            let key = Some(Key::new(i));
            of_floats.run(&file("ycc422.jpg"), key, Output::Floats(&mut floats)).unwrap();
            let bytes = bytes(&mut of_bytes, &file("ycc422.jpg"), key);
            let wanted = bytes.iter().enumerate().map(|(j, &x)| normalise.one(f32::from(x), j % 3));
            assert!(wanted.eq(floats), "{i}");
        }
    }
    // A row that needs floats, or one behind the normalisation, makes them floats.
    for texts in [&[PIECE, "{ name = \"rotate\" }"], &[PIECE, "{ name = \"color-jitter\", hue = 0.1 }"]] {
        assert_eq!(pipeline(texts, true).pixels(), Pixels::Floats);
    }
    assert_eq!(
        pipeline(&[PIECE, "{ name = \"normalise\" }", "{ name = \"flip\" }"], true).pixels(),
        Pixels::Floats
    );
}

#[test]
fn training_and_evaluation_deliver_one_size_or_say_what_to_write() {
    let shape = |config: &LoaderConfig| delivered(config, &varying());
    assert_eq!(shape(&config(&[PIECE], None)).unwrap(), [24, 24, 3]);
    let resize = "{ name = \"resize\", size = 30 }";
    let [random, middle] =
        ["random", "centre"].map(|at| format!("{{ name = \"{at}-crop\", size = [20, 16] }}"));
    assert_eq!(shape(&config(&[resize, &random], None)).unwrap(), [20, 16, 3]);
    assert_eq!(shape(&config(&[resize, &random], Some(&[&middle]))).unwrap(), [20, 16, 3]);
    let e = shape(&config(&[PIECE], Some(&[resize, &middle]))).unwrap_err();
    assert!(
        e.to_string()
            .contains("let loader.eval_transforms end with { name = \"centre-crop\", size = [24, 24] }"),
        "{e}"
    );
    let e = shape(&config(&[], None)).unwrap_err();
    assert!(e.to_string().contains("vary in size; a row must give them one"), "{e}");
    let e = shape(&config(&[PIECE], Some(&[resize]))).unwrap_err();
    assert!(e.to_string().contains("loader.eval_transforms") && e.kind() == crate::Kind::Usage, "{e}");
    let e = shape(&config(&["{ name = \"random-resized-crop\" }"], None)).unwrap_err();
    assert!(e.to_string().contains("it needs `size`"), "{e}");
    let e = shape(&config(&["{ name = \"resize\" }"], None)).unwrap_err();
    assert!(e.to_string().contains("size: is missing"), "{e}");
    // A set of one size keeps it.
    let fixed = FieldSpec::image([8, 9, 1], 16.0);
    assert_eq!(delivered(&config(&["{ name = \"random-resized-crop\" }"], None), &fixed).unwrap(), [8, 9, 1]);
}

#[test]
fn damaged_files_and_records_are_errors() {
    let mut pipeline = pipeline(&[PIECE], true);
    let mut out = vec![0; 24 * 24 * 3];
    let mut run = |field: &RecordField| pipeline.run(field, Some(Key::new(0)), Output::Bytes(&mut out));
    let mut cut = file("ycc420.jpg");
    cut.bytes.truncate(2000);
    assert!(run(&cut).unwrap_err().to_string().contains("cut off"));
    let text = RecordField { bytes: b"text".to_vec(), ..file("ycc420.jpg") };
    assert!(run(&text).unwrap_err().to_string().contains("no JPEG or PNG"));
    let short = RecordField { bytes: vec![0; 26], shape: vec![3, 3, 3], codec: Codec::Raw };
    assert!(run(&short).unwrap_err().to_string().contains("has 26 bytes of shape [3, 3, 3]"));
    assert!(run(&file("ycc420.jpg")).is_ok());
    let limits = crate::Limits { max_pixels: 100, ..Default::default() };
    let config = LoaderConfig { limits, ..config(&[PIECE], None) };
    let mut pipeline = Pipeline::of(&config, &varying(), true, Pixels::Bytes).unwrap();
    let e = pipeline.run(&file("ycc420.jpg"), None, Output::Bytes(&mut out)).unwrap_err();
    assert!(e.to_string().contains("loader.limits.max_pixels is 100"), "{e}");
}

/// An image of one column becomes as many times as high as it was narrow.
#[test]
fn an_image_that_grows_beyond_the_limit_on_its_way_is_a_bad_record() {
    let pixels = vec![7u8; 3000];
    let line = RecordField { bytes: pixels, shape: vec![1000, 1, 3], codec: Codec::Raw };
    let limits = crate::Limits { max_pixels: 100_000, ..Default::default() };
    let crop = "{ name = \"centre-crop\", size = 32 }";
    for rows in [
        // The crop is planned with the size, and nothing larger is made.
        &["{ name = \"resize\", size = 64 }", crop][..],
        &["{ name = \"resize\", size = 64 }", "{ name = \"flip\", p = 1 }", crop],
        &["{ name = \"gaussian-noise\" }", "{ name = \"resize\", size = 64 }", crop],
    ] {
        let config = LoaderConfig { limits, ..config(rows, None) };
        let mut pipeline = Pipeline::of(&config, &varying(), true, Pixels::Floats).unwrap();
        let mut out = vec![0f32; 32 * 32 * 3];
        let done = pipeline.run(&line, Some(Key::new(0)), Output::Floats(&mut out));
        if rows.len() == 2 {
            done.unwrap();
            continue;
        }
        let e = done.unwrap_err().to_string();
        assert!(e.contains("becomes 64x64000 on the way") && e.contains("max_pixels is 100000"), "{e}");
    }
}

#[test]
fn signals_are_shifted_resampled_and_disturbed() {
    let spec = FieldSpec::array("sound", DType::F32, &[100, 2], false);
    let sound: Vec<f32> = (0..200).map(|i| 1.0 + (i / 2) as f32).collect();
    let run = |text: &str, key: u64| {
        let mut bytes = bytemuck::cast_slice::<f32, u8>(&sound).to_vec();
        let mut signal = Signal::of(&config(&[text], None), &spec, true).unwrap().unwrap();
        signal.run(&mut bytes, &[100, 2], Some(Key::new(key))).unwrap();
        bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)
    };
    let mut shifts = std::collections::BTreeSet::new();
    for i in 0..100 {
        let out = run("{ name = \"time-shift\", fraction = 0.02 }", i);
        let by = (-2i64..=2).find(|by| {
            (0..200).all(|j| {
                let t = j / 2 - by;
                out[j as usize] == if (0..100).contains(&t) { sound[(2 * t) as usize] } else { 0.0 }
            })
        });
        shifts.insert(by.unwrap());
        let out = run("{ name = \"pitch-shift\", semitones = 12 }", i);
        // A line stays a line about its middle; its slope is the speed.
        let speed = (out[102] - out[98]) / 2.0;
        assert!(
            (0.49..=2.01).contains(&speed) && ((out[98] + out[100]) / 2.0 - 50.5).abs() < speed + 1e-3,
            "{speed}"
        );
    }
    assert_eq!(shifts.len(), 5);
    let out = run("{ name = \"noise\", snr_min = 20, snr_max = 20 }", 1);
    let power = |x: &[f32]| x.iter().map(|x| f64::from(x * x)).sum::<f64>();
    let noise: Vec<f32> = out.iter().zip(&sound).map(|(a, b)| a - b).collect();
    let decibels = 10.0 * (power(&sound) / power(&noise)).log10();
    assert!((18.0..22.0).contains(&decibels), "{decibels}");
    // Rows for both need the field's name; rows for signals leave images alone.
    assert!(Signal::of(&config(&["{ name = \"gaussian-noise\" }"], None), &spec, true).unwrap().is_none());
    let named = "{ name = \"log1p\", field = \"sound\" }";
    assert_eq!(run(named, 0)[2], 3f32.ln());
    assert!(Signal::of(&config(&["{ name = \"noise\" }"], None), &spec, false).unwrap().is_none());
    let flip = Signal::of(&config(&["{ name = \"flip\", field = \"sound\" }"], None), &spec, true);
    assert!(flip.unwrap_err().to_string().contains("is for images"));
    let fields = [spec];
    let e = check_fields(&config(&["{ name = \"noise\", field = \"sond\" }"], None), &fields).unwrap_err();
    assert!(e.to_string().contains("there is no field \"sond\"; the set has sound"), "{e}");
    // A row that would do nothing is a mistake.
    let noise = config(&["{ name = \"noise\" }"], None);
    check_fields(&noise, &fields).unwrap();
    let e = check_fields(&noise, &[FieldSpec::image([8, 8, 3], 255.0), FieldSpec::label()]).unwrap_err();
    assert!(e.to_string().contains("transform noise: is for signals"), "{e}");
}

#[test]
fn affine_maps_turn_shift_and_scale() {
    let spec = FieldSpec { dtype: DType::F32, ..FieldSpec::image([9, 9, 1], 1.0) };
    let mut pixels = vec![0f32; 81];
    pixels[4 * 9 + 4] = 1.0;
    let record = |pixels: &[f32]| RecordField {
        bytes: bytemuck::cast_slice(pixels).to_vec(),
        shape: vec![9, 9, 1],
        codec: Codec::Raw,
    };
    let still = "{ name = \"affine\", degrees = 0, fraction = 0, scale_min = 1, scale_max = 1 }";
    let as_is = "{ name = \"normalise\", scale = 1.0 }";
    let run = |row: &str, pixels: &[f32], key: u64| {
        let mut pipeline = Pipeline::new(&rows(&[row, as_is]), &spec, true, Pixels::Floats).unwrap();
        let mut out = vec![0.0; 81];
        pipeline.run(&record(pixels), Some(Key::new(key)), Output::Floats(&mut out)).unwrap();
        out
    };
    assert_eq!(run(still, &pixels, 0), pixels);
    // Twice as large: what is a pixel off the middle is two off.
    pixels[4 * 9 + 5] = 3.0;
    let large = still.replace("scale_min = 1, scale_max = 1", "scale_min = 2, scale_max = 2");
    let out = run(&large, &pixels, 0);
    assert_eq!((out[4 * 9 + 4], out[4 * 9 + 5], out[4 * 9 + 6]), (1.0, 2.0, 3.0));
    // Shifted by at most a ninth: the sum of what is in the middle stays.
    let shifted = run(&still.replace("fraction = 0", "fraction = 0.11"), &pixels, 5);
    assert!((shifted.iter().sum::<f32>() - 4.0).abs() < 1e-4 && shifted != pixels, "{shifted:?}");
}
