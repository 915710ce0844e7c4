//! What is left to the device has the values that it would have here.

use phalanx_host::rng::Key;

use super::sized_tests::{file, rows, varying};
use super::*;
use crate::{Codec, RecordField};

const PAD: &str = "{ name = \"pad-and-crop\", padding = 3 }";
const FLIP: &str = "{ name = \"flip\" }";
const MIRROR: &str = "{ name = \"flip\", p = 1 }";
const SHIFT: &str = "{ name = \"translate\", fraction = 0.4 }";
const UPSIDE_DOWN: &str = "{ name = \"vertical-flip\" }";
const CUT: &str = "{ name = \"random-crop\", size = [7, 8] }";
const WIDE: &str = "{ name = \"random-crop\", size = [12, 5] }";
const MIDDLE: &str = "{ name = \"centre-crop\", size = [7, 14] }";
const SMALL: &str = "{ name = \"random-crop\", size = 5 }";
const PIECE: &str = "{ name = \"random-resized-crop\", size = [9, 10] }";
const RESIZE: &str = "{ name = \"resize\", size = [12, 11] }";
const ERASE: &str = "{ name = \"random-erasing\", p = 1, value = 9 }";
const MEAN: &str = "{ name = \"normalise\", mean = [0.4, 0.5, 0.6], std = [0.2, 0.3, 0.1] }";

/// Images of nine rows and eleven columns.
fn odd() -> FieldSpec {
    FieldSpec::image([9, 11, 3], 255.0)
}

fn noise(i: usize) -> RecordField {
    let bytes = (0..9 * 11 * 3).map(|at: usize| (at * 73 + i * 31 + at * at % 17) as u8).collect();
    RecordField { bytes, shape: vec![9, 11, 3], codec: Codec::Raw }
}

/// As a device does it.
fn by_device(pipeline: &mut Pipeline, record: &RecordField, key: Option<Key>) -> Vec<f32> {
    let ([h, w, c], [rows, columns, _]) = (pipeline.carried_shape(), pipeline.output_shape());
    let mut bytes = vec![1; h * w * c];
    pipeline.run(record, key, Output::Bytes(&mut bytes)).unwrap();
    let [top, left, mirrored] = pipeline.place(key).unwrap_or_default();
    let normalise = pipeline.normalise().unwrap();
    let mut out = Vec::new();
    for (r, j) in (0..rows).flat_map(|r| (0..columns).map(move |j| (r, j))) {
        let (y, x) = (top + r as i64, left + if mirrored == 0 { j } else { columns - 1 - j } as i64);
        let inside = (0..h as i64).contains(&y) && (0..w as i64).contains(&x);
        let at = |k: usize| if inside { bytes[(y as usize * w + x as usize) * c + k] } else { 0 };
        out.extend((0..c).map(|k| normalise.one(f32::from(at(k)), k)));
    }
    out
}

/// Compares both ways in training and in evaluation; returns what is carried of a training image, and whether the device does
/// more than to normalise it.
fn compare(texts: &[&str], spec: &FieldSpec, record: impl Fn(usize) -> RecordField) -> ([usize; 2], bool) {
    let mut seen = ([0; 2], false);
    for training in [false, true] {
        let [mut of_bytes, mut of_floats] = [Pixels::Bytes, Pixels::Floats]
            .map(|pixels| Pipeline::new(&rows(texts), spec, training, pixels).unwrap());
        assert_eq!(of_bytes.pixels(), Pixels::Bytes, "{texts:?}");
        assert_eq!((of_floats.carried_shape(), of_floats.place(None)), (of_floats.output_shape(), None));
        assert_eq!(of_bytes.output_shape(), of_floats.output_shape());
        for i in 0..20 {
            let key = training.then_some(Key::new(i as u64));
            let mut floats = vec![0.0; of_floats.output_shape().iter().product()];
            of_floats.run(&record(i), key, Output::Floats(&mut floats)).unwrap();
            let got = by_device(&mut of_bytes, &record(i), key);
            let same = got.iter().map(|x| x.to_bits()).eq(floats.iter().map(|x| x.to_bits()));
            assert!(same, "{texts:?}, training: {training}, {i}");
        }
        let [h, w, _] = of_bytes.carried_shape();
        seen = ([h, w], of_bytes.place(None).is_some());
    }
    seen
}

#[test]
fn rows_that_are_left_to_the_device_have_the_same_values() {
    let whole = [9, 11];
    for (texts, carried, left) in [
        (&[FLIP, MEAN][..], whole, true),
        (&[PAD], whole, true),
        (&[PAD, FLIP], whole, true),
        (&[FLIP, PAD], whole, true),
        (&[MIRROR, PAD, FLIP, MIRROR, MEAN], whole, true),
        (&[SHIFT, FLIP], whole, true),
        (&[CUT], whole, true),
        (&[CUT, FLIP, MEAN], whole, true),
        (&[MIRROR, CUT], whole, true),
        (&[MIRROR, CUT, FLIP], whole, true),
        // With zeros around what is smaller.
        (&[WIDE, MIRROR], whole, true),
        (&[MIDDLE, FLIP], whole, true),
        (&[MIRROR, MIDDLE], whole, true),
        // A part that is so much smaller is cut out here.
        (&[SMALL, FLIP], [5, 5], true),
        (&[SMALL], [5, 5], false),
        // Of two cuts the last.
        (&[PAD, SHIFT, FLIP], whole, true),
        (&[CUT, PAD], [7, 8], true),
        (&[PAD, CUT], [7, 8], false),
        // The last rows alone.
        (&[UPSIDE_DOWN, PAD], whole, true),
        (&[PAD, UPSIDE_DOWN], whole, false),
        (&[ERASE, FLIP], whole, true),
        (&[FLIP, ERASE], whole, false),
        (&[RESIZE, CUT, FLIP], [7, 8], true),
        (&[RESIZE, CUT], [7, 8], false),
        (&[], whole, false),
    ] {
        assert_eq!(compare(texts, &odd(), noise), (carried, left), "{texts:?}");
    }
}

#[test]
fn of_images_of_any_size_mirrors_and_shifts_are_left() {
    let files = |i| file(["ycc420.jpg", "ycc422.jpg"][i % 2]);
    for (texts, left) in [
        (&[PIECE, FLIP, MEAN][..], true),
        (&[PIECE, PAD, FLIP], true),
        (&[PIECE, FLIP, CUT], false),
        (&["{ name = \"resize\", size = 14 }", CUT, FLIP], true),
        (&["{ name = \"resize\", size = 14 }", FLIP, CUT], false),
    ] {
        let (carried, is_left) = compare(texts, &varying(), files);
        assert_eq!(is_left, left, "{texts:?}");
        assert!([[9, 10], [7, 8]].contains(&carried), "{texts:?}");
    }
}

/// Then a raw image is read into its place in the batch.
#[test]
fn where_all_rows_are_left_images_are_only_copied() {
    let only_copies = |texts: &[&str], spec: &FieldSpec, training| {
        Pipeline::new(&rows(texts), spec, training, Pixels::Bytes).unwrap().only_copies()
    };
    for texts in [&[][..], &[FLIP], &[PAD, FLIP], &[CUT, FLIP, MEAN], &[MIDDLE]] {
        assert!(only_copies(texts, &odd(), true) && only_copies(texts, &odd(), false), "{texts:?}");
    }
    for texts in [&[ERASE][..], &[UPSIDE_DOWN, FLIP], &[SMALL], &[RESIZE, FLIP]] {
        assert!(!only_copies(texts, &odd(), true), "{texts:?}");
    }
    assert!(!only_copies(&[PIECE, FLIP], &varying(), true));
}
