//! Against Pillow and torchvision (tests/golden/pictures.py), and against files that are no images.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pictures").join(name)
}

fn numbers() -> Value {
    serde_json::from_slice(&fs::read(golden("pictures.json")).unwrap()).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap().as_bytes();
    text.as_chunks::<2>()
        .0
        .iter()
        .map(|c| u8::from_str_radix(str::from_utf8(c).unwrap(), 16).unwrap())
        .collect()
}

fn pair(value: &Value) -> [usize; 2] {
    [0, 1].map(|i| value[i].as_u64().unwrap() as usize)
}

fn furthest(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

#[test]
fn files_of_every_kind_are_what_pillow_makes_of_them() {
    let numbers = numbers();
    let files = numbers["files"].as_object().unwrap();
    assert_eq!(files.len(), 15);
    for (name, wanted) in files {
        let picture = Picture::read(&golden(name)).unwrap();
        assert_eq!([picture.height, picture.width], pair(&wanted["size"]), "{name}");
        let grey = name.starts_with("grey") || name == "bits.png";
        assert_eq!(picture.channels, if grey { 1 } else { 3 }, "{name}");
        // JPEG leaves the rounding of its transforms open.
        let (most, off) = (
            if name.ends_with("jpg") { 3 } else { 0 },
            furthest(&picture.into_rgb().pixels, &hex(&wanted["rgb"])),
        );
        assert!(off <= most, "{name} is off by {off}");
    }
}

/// The script's pattern.
fn pattern(height: usize, width: usize) -> Vec<u8> {
    let at = |i: usize| {
        let (y, x, c) = (i / 3 / width, i / 3 % width, i % 3);
        let wave = (x * (c + 2) * 7 + y * (3 - c) * 5) % 256;
        (if x + y > width { 255 - wave } else { wave }) as u8
    };
    (0..height * width * 3).map(at).collect()
}

#[test]
fn resizing_and_cropping_is_torchvisions() {
    for case in numbers()["resized"].as_array().unwrap() {
        let [height, width] = pair(&case["size"]);
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let place = Place::middle(height, width, number("shorter"), number("crop"));
        let (pixels, wanted) = (pattern(height, width), hex(&case["rgb"]));
        let ours = u8::resize(&pixels, [height, width, 3], place);
        assert_eq!(furthest(&ours, &wanted), 0, "{height}x{width} {place:?}");
        let floats: Vec<f32> = pixels.iter().map(|&p| f32::from(p)).collect();
        let ours = f32::resize(&floats, [height, width, 3], place);
        // Pillow rounds between the passes, here nothing is.
        let off = ours.iter().zip(&wanted).map(|(a, b)| (a - f32::from(*b)).abs()).fold(0.0, f32::max);
        assert!(off <= 1.01, "{height}x{width} {place:?}: {off}");
    }
}

#[test]
fn a_part_is_the_part_of_the_whole() {
    let (size, pixels) = ([19, 23, 3], pattern(19, 23));
    for to in [[19, 23], [19, 40], [7, 23], [40, 11]] {
        let whole = u8::resize(&pixels, size, Place::whole(to));
        let (from, take) = ([3, 2], [4, 9]);
        let part = u8::resize(&pixels, size, Place { size: to, from, take });
        let cut = (3..7).flat_map(|y| whole[(y * to[1] + 2) * 3..(y * to[1] + 11) * 3].to_vec());
        assert_eq!(part, cut.collect::<Vec<_>>(), "{to:?}");
    }
    assert_eq!(u8::resize(&pixels, size, Place::whole([19, 23])), pixels);
    // One line becomes 25,600 rows, of which the middle ones are made.
    let line = u8::resize(&[7; 300], [100, 1, 3], Place::middle(100, 1, 256, 224));
    assert_eq!(line, vec![7; 224 * 224 * 3]);
    assert_eq!(shorter_side(375, 500, 256), [256, 341]);
}

#[test]
fn what_is_no_image_is_named() {
    let say = |bytes: &[u8]| Picture::decode(bytes).unwrap_err();
    assert!(say(b"").contains("empty"));
    assert!(say(b"hello, this is text").contains("no JPEG or PNG"));
    assert!(say(b"GIF89a....").contains("a GIF image; JPEG and PNG are read"));
    assert!(say(b"RIFF\0\0\0\0WEBPVP8 ").contains("a WebP image"));
    let png = fs::read(golden("rgb.png")).unwrap();
    assert!(say(&png[..png.len() / 2]).contains("damaged PNG"));
    // A header that claims 4 billion pixels, with its checksum.
    let mut huge = png.clone();
    huge[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    assert!(say(&huge).contains("PNG"), "{}", say(&huge));
    let jpeg = fs::read(golden("rgb.jpg")).unwrap();
    for cut in [40, jpeg.len() / 2, jpeg.len() - 2] {
        assert!(say(&jpeg[..cut]).contains("a JPEG image that is cut off"), "{}", say(&jpeg[..cut]));
    }
    // What follows the end is nobody's business, be it the beginning of a scan.
    let whole = Picture::decode(&jpeg).unwrap();
    for rest in [&[0, 7][..], &[0xff, 0xda, 0]] {
        assert_eq!(Picture::decode(&[&jpeg[..], rest].concat()).unwrap(), whole);
    }
    // The end of a thumbnail within a segment is not the image's.
    let thumbnail = [&jpeg[..2], &[0xff, 0xfe, 0, 6, 0xff, 0xd8, 0xff, 0xd9], &jpeg[2..]].concat();
    assert_eq!(Picture::decode(&thumbnail).unwrap(), whole);
    assert!(say(&thumbnail[..thumbnail.len() - 2]).contains("cut off"));
    let e = Picture::read(Path::new("/none.png")).unwrap_err();
    assert!(e.to_string().contains("/none.png") && e.kind() == crate::Kind::Data, "{e}");
}

#[test]
fn colours_become_grey_as_pillows() {
    let p = Picture { height: 1, width: 2, channels: 3, pixels: vec![255, 0, 10, 9, 200, 77] };
    assert_eq!(p.into_grey().pixels, [77, 129]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn damaged_images_never_panic(
        name in prop::sample::select(&["rgb.png", "palette.png", "grey16.png", "rgb.jpg", "progressive.jpg", "cmyk.jpg"][..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = fs::read(golden(name)).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(p) = Picture::decode(&bytes) {
            prop_assert_eq!(p.pixels.len(), p.height * p.width * p.channels);
        }
    }
}
